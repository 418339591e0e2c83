"""The interface of every engine, its settings, and the search for models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol, runtime_checkable

from pydantic import Field

from models.card import ZOO, ModelCard, common_card, is_wsinfer, read_card
from models.forms.timm_folder import is_timm_folder, timm_card
from wsi.arrays import Scores
from wsi.config import Config
from wsi.errors import ModelError
from wsi.slides.blocks import PatchBlock

# Number of patches of a slide from which compiling for a GPU, which takes half a minute, saves time
COMPILE_FROM = 60_000
CELL_TOLERANCE = 0.05  # 32 px of 0.97 um and 128 px of 0.243 um differ by 0.2 %


class EngineConfig(Config):
    """Settings for running a network.

    Attributes:
        engine: ``auto`` is torch where there is a GPU, else openvino.
        precision: ``auto`` is fp16 on a GPU; on a CPU int8 where the model has a checked int8 form and the CPU suits
            it, else bf16 where the CPU computes in it, else fp32; of a detector always fp32.
        orientations: 1, or the mean over the 8 flips and turns.
        batch: patches run at once; None is 8 on a CPU and 256 on a GPU, divided by the orientations; of a detector's
            tiles 1 and 16.
    """

    engine: Literal["auto", "openvino", "torch"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    orientations: Literal[1, 8] = 1
    output: ClassVar[Literal["scores", "features"]] = "scores"
    batch: int | None = Field(default=None, gt=0)


class FeatureEngineConfig(EngineConfig):
    """Settings for running a network up to its class layer: features instead of scores.

    They are computed in fp32 if precision is ``auto``, as other programs' models are trained on them.
    """

    output: ClassVar[Literal["scores", "features"]] = "features"


@dataclass(frozen=True, slots=True)
class Models:
    """One model, or several whose scores are averaged; each may have its own spacing."""

    folders: tuple[Path, ...]
    cards: tuple[ModelCard, ...]

    @property
    def card(self) -> ModelCard:
        """The card of the engine's input: that of the one model, or `common_card` of several."""
        return self.cards[0] if len(self.cards) == 1 else common_card(self.cards)

    @property
    def confidence(self) -> tuple[float, float, float, float] | None:
        """The slide scores at which the verdict changes; None unless all models were checked with the same scores."""
        return self.card.confidence if len({c.confidence for c in self.cards}) == 1 else None

    def with_positive(self, name: str) -> Models:
        """The same models, with another of their classes as the positive one.

        Raises:
            ModelError: the models have no class of this name.
        """
        if name not in self.card.classes:
            raise ModelError(f"the model has no class {name!r}; it has {', '.join(self.card.classes)}")
        return Models(self.folders, tuple(card.model_copy(update={"positive": name}) for card in self.cards))

    @property
    def weights(self) -> list[str]:
        """Each weight file's sha256."""
        return [card.sha256 for card in self.cards]


class EngineSpec(Protocol):
    """What an engine is made of: the spec travels to another process, the engine never does."""

    def make(self) -> Engine:
        """The engine; it is the same one as long as somebody in this process holds it.

        Raises:
            ConfigError: this machine cannot run it.
            ModelError: a model is broken, or is not the one that the spec was made with.
        """
        ...


@runtime_checkable
class Engine(Protocol):
    """Interface of an engine, which scores patches.

    Attributes:
        models: what it runs.
        description: libraries, precision and device, for what is written about a result.
        width: how many numbers it gives of a patch: classes, or features.
    """

    models: Models
    description: str
    width: int

    @property
    def spec(self) -> EngineSpec:
        """What it was made of."""
        ...

    def expect(self, patches: int) -> None:
        """Prepare for a slide, before its first block; ``patches`` counts all its patches, already scored ones, too."""
        ...

    def score(
        self, blocks: Iterable[PatchBlock], *, scored: Callable[[int], None] = lambda patches: None
    ) -> Iterator[Scores]:
        """One (n, classes) array of 0..1 per block, in the order of the blocks; or (n, features) of any value.

        ``scored`` is called after every batch with its number of patches, perhaps from another thread.
        The engine takes a few blocks before it gives the first scores, so a generator can read meanwhile.
        The scores of a patch do not depend on other blocks.
        """
        ...


def find_models(names: Sequence[str]) -> Models:
    """The models of these names; a name is a folder, or that of a model that ships.

    Raises:
        ModelError: there is no model of a name, or the models cannot be averaged.
    """
    folders = tuple(find_folder(name) for name in names)
    cards = tuple(_card(folder) for folder in folders)
    for name, card in zip(names, cards, strict=True):
        for field in ("classes", "positive", "stain_normalisation"):
            first_value, value = getattr(cards[0], field), getattr(card, field)
            if first_value != value:
                raise ModelError(
                    f"models {names[0]} and {name} differ in {field} ({first_value} and {value}); "
                    f"only models that answer the same question can be averaged"
                )
        if not _same_cells(cards[0], card):
            raise ModelError(
                f"models {names[0]} and {name} speak for different cells ({_cell_text(cards[0])} and "
                f"{_cell_text(card)}); only models of the same cells can be averaged"
            )
    return Models(folders, cards)


def _same_cells(first: ModelCard, second: ModelCard) -> bool:
    """Whether both models score squares of the same size on the slide, within a twentieth."""
    if first.spacing_um is None or second.spacing_um is None:
        return (first.spacing_um, first.patch_px, first.stride_px) == (
            second.spacing_um,
            second.patch_px,
            second.stride_px,
        )
    ratio = first.stride_px * first.spacing_um / (second.stride_px * second.spacing_um)
    return abs(ratio - 1) <= CELL_TOLERANCE


def _cell_text(card: ModelCard) -> str:
    if card.spacing_um is None:
        return f"{card.stride_px} px of any spacing"
    return f"{card.stride_px * card.spacing_um:.1f} um"


def _card(folder: Path) -> ModelCard:
    if is_timm_folder(folder):
        return timm_card(folder)
    if not is_wsinfer(folder):
        return read_card(folder, ModelCard)
    from models.forms.wsinfer import read_wsinfer  # loads torch, which takes seconds

    return read_wsinfer(folder)[0]


def find_folder(name: str) -> Path:
    """The folder of this path, or that of the model that ships by this name.

    Raises:
        ModelError: there is no such folder and no such model.
    """
    for folder in (Path(name), ZOO / name):
        if folder.is_dir():
            return folder.absolute()  # it means the same in a process that works in another folder
    raise ModelError(f"there is no model folder {name}; models that ship: {', '.join(shipped())}")


def shipped() -> list[str]:
    """Names of the models that ship."""
    return sorted(p.name for p in ZOO.iterdir() if p.is_dir())
