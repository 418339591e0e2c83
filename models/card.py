"""The card of a model, which is read and checked without loading the network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from wsi.config import Config, first_mistake
from wsi.errors import ModelError
from wsi.files import file_sha256
from wsi.slides.stain import StainMethod

WEIGHTS = "model.safetensors"
CARD = "card.json"
DOMAIN = "domain.safetensors"
TUMOUR_CLASSES = ("tumor", "tumour", "metastasis", "metastases")  # names of a class that means tumour
DEFAULT_MODEL = "lymph-node-10x"  # trained on real tissue; reads slides of 1 um/px and finer
ZOO = Path(__file__).resolve().parent / "zoo"


class Architecture(Config):
    """Kind and size of a network.

    Attributes:
        width: multiplier of the channels, for ``inception_v3``.
        input_px: side to which ``efficientnet_lite0`` resizes patches; None leaves them as they are.
    """

    name: Literal["inception_v3", "efficientnet_lite0", "torchscript"] = "inception_v3"
    width: float = Field(default=1.0, gt=0, le=1)
    input_px: int | None = Field(default=None, gt=0)


class ModelCard(Config):
    """Properties of a model that a run needs, and information for readers.

    Attributes:
        classes: names of the classes, in the order of the network's outputs.
        positive: the class whose probability is the heatmap that lesions are found on.
        patch_px: side of the patch that the network reads.
        stride_px: side of the cell that is scored; the distance between patches.
        spacing_um: um per pixel of the training; None reads every slide at level 0.
        spacing_tolerance: relative difference within which a slide's level 0 is read as it is.
        stain_normalisation: slides are recoloured by this method before the network sees them.
        threshold: score from which a patch counts as of the positive class, chosen on the validation patches; or None.
        confidence: slide scores from which a slide is probably normal, equivocal, probably and definitely tumour, as
            checked for this model; None: they were not checked, and slides get a score without a verdict.
        calibration: scale and offset of the log-odds of the positive one of two classes, so that a score of 0.9 means
            nine in ten on the patches of the fit (Platt 1999); None: scores come from the network unchanged.
        domain: sha256 of ``domain.safetensors``, by which tissue that the model does not know is recognised; None:
            such tissue is not recognised.
        demonstration: trained on phantoms; not for real tissue.
        sha256: hex sha256 of the weight file.
    """

    format: Literal[1] = 1
    name: str
    architecture: Architecture
    classes: tuple[str, ...] = Field(min_length=1)
    positive: str
    patch_px: int = Field(gt=0)
    stride_px: int = Field(gt=0)
    spacing_um: float | None
    spacing_tolerance: float = Field(default=0.1, ge=0, lt=1)
    stain_normalisation: StainMethod = "none"
    threshold: float | None = None
    confidence: tuple[float, float, float, float] | None = None
    calibration: tuple[float, float] | None = None
    domain: str | None = None
    demonstration: bool = False
    intended_use: str = "Research use only; not for diagnosis."
    limits: str = ""
    training: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    code_version: str = ""
    sha256: str

    @model_validator(mode="after")
    def _consistent(self) -> ModelCard:
        if self.positive not in self.classes:
            raise ValueError(f"positive class {self.positive!r} is not among {list(self.classes)}")
        if self.stride_px > self.patch_px:
            raise ValueError(f"stride_px {self.stride_px} is larger than patch_px {self.patch_px}")
        if self.calibration is not None and (len(self.classes) != 2 or not self.calibration[0] > 0):
            raise ValueError(f"calibration {list(self.calibration)} needs two classes and a scale above 0")
        cuts = self.confidence
        if cuts is not None and not (list(cuts) == sorted(set(cuts)) and cuts[0] >= 0 and cuts[-1] <= 1):
            raise ValueError(f"confidence {list(cuts)} must ascend within 0..1")
        return self

    @property
    def finds_tumour(self) -> bool:
        """Whether the positive class is tumour, so that a slide's score can be read as a finding."""
        return self.positive.casefold() in TUMOUR_CLASSES

    @property
    def positive_index(self) -> int:
        """Index of the positive class."""
        return self.classes.index(self.positive)


def common_card(cards: Sequence[ModelCard]) -> ModelCard:
    """The card of the common input of several models: that of the finest, with a patch large enough for all.

    A coarser model's patch is cut out of the middle and reduced inside the network, so all score the same cell.
    """
    finest = min(cards, key=lambda card: card.spacing_um or 0.0)
    if finest.spacing_um is None:
        return finest
    side = max(round(card.patch_px * ((card.spacing_um or 0.0) / finest.spacing_um)) for card in cards)
    if (side - finest.patch_px) % 2:  # the middle of a patch stays the middle of its cell
        side += 1
    return finest.model_copy(update={"patch_px": side})


def read_card(folder: Path) -> ModelCard:
    """Read ``card.json`` and check the other files' hashes against it.

    Raises:
        ModelError: a file is missing, the card is not valid, or a byte of the other files changed.
    """
    path = folder / CARD
    try:
        card = ModelCard.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError(
            f"{folder} is not a model: {CARD} cannot be read ({error.strerror}); a model folder holds {WEIGHTS} "
            f"and {CARD}, or WSInfer's torchscript_model.pt and config.json"
        ) from error
    except ValidationError as error:
        raise ModelError(f"{path} is not a valid card: {first_mistake(error)}") from error
    for name, stated in ((WEIGHTS, card.sha256), (DOMAIN, card.domain)):
        if stated is not None and (digest := hash_file(folder / name)) != stated:
            raise ModelError(
                f"{folder / name} has sha256 {digest[:12]}..., its card says {stated[:12]}...; copy the model again"
            )
    return card


def is_detector(folder: Path) -> bool:
    """Whether a folder holds a detector of capillaries, which has another kind of card."""
    try:
        return bool(json.loads((folder / CARD).read_bytes()).get("kind") == "detector")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def hash_file(path: Path) -> str:
    """Hex sha256 of a file's bytes.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); copy the model again") from error


def card_json(card: Config) -> str:
    """The card as JSON text."""
    return json.dumps(card.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
