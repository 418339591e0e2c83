"""What engines are made of. A spec travels to another process; there the engine is made, once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

from models.card import CARD
from models.engines.choice import engine_for
from models.engines.contract import Engine, EngineConfig, Models, find_models
from models.forms.timm_folder import EMBEDDING
from wsi.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from models.card import DetectorCard, SegmenterCard
    from models.engines.boxes import BoxEngine
    from models.engines.maps import MapEngine

E = TypeVar("E", "BoxEngine", "MapEngine")
_ENGINES: WeakValueDictionary[object, object] = WeakValueDictionary()  # by spec: those that are in use


@dataclass(frozen=True, slots=True)
class ScoreSpec:
    """An engine that gives scores: its models, how they are run, and what the first engine said of itself."""

    models: Models
    cfg: EngineConfig
    description: str = ""

    def make(self) -> Engine:
        """The engine, see `EngineSpec.make`."""
        engine = _ENGINES.get(_key(self))
        if not isinstance(engine, Engine):
            here = find_models([str(folder) for folder in self.models.folders])
            _same_weights(self.models.folders, self.models.weights, here.weights)
            engine = load_engine(self.models, self.cfg)
        _same_engine(self.description, engine.description)
        return engine

    def __hash__(self) -> int:
        return hash((self.models.folders, *self.models.weights))


@dataclass(frozen=True, slots=True)
class BoxSpec:
    """An engine that gives boxes: the detector's folder, its card, how it is run, and what the first one said."""

    folder: Path
    card: DetectorCard
    cfg: EngineConfig
    description: str = ""

    def make(self) -> BoxEngine:
        """The engine, see `EngineSpec.make`."""
        from models.engines.boxes import BoxEngine

        return _engine_of(self, BoxEngine)

    def __hash__(self) -> int:
        return hash((self.folder, self.card.sha256))


@dataclass(frozen=True, slots=True)
class MapSpec:
    """An engine that gives maps: the segmenter's folder, its card, how it is run, and what the first one said."""

    folder: Path
    card: SegmenterCard
    cfg: EngineConfig
    description: str = ""

    def make(self) -> MapEngine:
        """The engine, see `EngineSpec.make`."""
        from models.engines.maps import MapEngine

        return _engine_of(self, MapEngine)

    def __hash__(self) -> int:
        return hash((self.folder, self.card.sha256))


def load_engine(models: Models, cfg: EngineConfig) -> Engine:
    """A new engine; ``auto`` is the library that suits this machine.

    Raises:
        ConfigError: this machine cannot run the engine with these settings.
        ModelError: a model is broken.
    """
    if cfg.output == "scores" and models.card.classes == (EMBEDDING,):
        raise ModelError(
            f"{models.folders[0]} gives features and names no class: wsi features takes it; for scores train a class "
            f"layer on it (trained: head)"
        )
    if engine_for(cfg.engine) == "openvino":
        if cfg.precision == "fp16":
            raise ConfigError("precision fp16 needs a GPU; use --precision bf16 or fp32 on a CPU")
        from models.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(models, cfg)
    if cfg.precision == "int8":
        raise ConfigError(
            "int8 is run by OpenVINO on a CPU; use --engine openvino, or --precision fp16 on a GPU"
        )
    from models.engines.torch import TorchEngine

    return TorchEngine(models, cfg)


def _same_engine(begun: str, here: str) -> None:
    """Refuse an engine that computes in another way than the one that a run was begun with, and that results name.

    Raises:
        ModelError: what both are.
    """
    if begun not in ("", here):
        raise ModelError(
            f"this process would compute with {here}, the run was begun with {begun}; use machines of one kind, or "
            f"give --engine and --precision"
        )


def keep(spec: ScoreSpec | BoxSpec | MapSpec, engine: Engine | BoxEngine | MapEngine) -> None:
    """Let the spec's ``make`` give this engine, as long as somebody holds it."""
    _ENGINES[_key(spec)] = engine


def _key(spec: ScoreSpec | BoxSpec | MapSpec) -> ScoreSpec | BoxSpec | MapSpec:
    return replace(spec, description="")


def _engine_of(spec: BoxSpec | MapSpec, kind: type[E]) -> E:
    """The engine of a model's folder that somebody holds, or a new one; of the very model that the spec names.

    Raises:
        ModelError: it is another.
    """
    engine = _ENGINES.get(_key(spec))
    if not isinstance(engine, kind):
        engine = kind(spec.folder, spec.cfg)
        _same_weights([spec.folder], [spec.card.sha256], [engine.card.sha256])
        if engine.card != spec.card:
            raise ModelError(
                f"{spec.folder / CARD} is not the card that the run was begun with; copy the model there"
            )
    _same_engine(spec.description, engine.description)
    return engine


def _same_weights(folders: Iterable[Path], wanted: Iterable[str], here: Iterable[str]) -> None:
    """Refuse weights other than those that a run was begun with.

    Raises:
        ModelError: names the folder.
    """
    for folder, first, second in zip(folders, wanted, here, strict=True):
        if first != second:
            raise ModelError(
                f"{folder} holds other weights ({second[:12]}...) than those that the run was begun with "
                f"({first[:12]}...); copy the same model there"
            )
