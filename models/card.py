"""The cards of models, which are read and checked without loading the networks."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from wsi.config import Config, first_mistake
from wsi.errors import ModelError
from wsi.files import file_sha256
from wsi.slides.stain import StainMethod
from wsi.vocabulary import NEGATIVE, POSITIVE, UNKNOWN_AREA, in_words, means_tumour

WEIGHTS = "model.safetensors"
TORCHSCRIPT, WSINFER_CONFIG = "torchscript_model.pt", "config.json"  # a model in WSInfer's form
CARD = "card.json"
DOMAIN = "domain.safetensors"
INT8 = ("int8.xml", "int8.bin")  # a graph of OpenVINO that computes in whole numbers
INT8_COST = 0.001  # of the AUC: an int8 form that costs more is not taken unasked
DEFAULT_MODEL = "lymph-node-10x"  # trained on real tissue; reads slides of 1 um/px and finer
ZOO = Path(__file__).resolve().parent / "zoo"
# The side of a detector's tile is a multiple of this: then every level of its pyramid has whole pixels
SIDE_STEP = 32
RUN_CORE_PX = 1024  # of a segmenter's tiles on slides: with more, a network's maps take gigabytes
Task = Literal["classify", "detect", "segment"]
ClassifierName = Literal[
    "inception_v3",
    "efficientnet_lite0",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "timm",
]
DetectorName = Literal["faster_rcnn", "retinanet", "yolo_v3", "cornernet"]
SegmenterName = Literal[
    "unet",
    "unet_valid",
    "fcn_32s",
    "fcn_16s",
    "fcn_8s",
    "deeplab_v2",
    "deeplab_v3",
    "dilated_context",
    "refinenet",
    "two_path",
    "input_cascade",
]
# Networks without padding: pixels that are lost on each side of a tile, and the step in which its side may grow
VALID_MARGIN: dict[str, tuple[int, int]] = {
    "unet_valid": (92, 16),  # 572 px give 388 (Ronneberger et al. 2015)
    "two_path": (16, 1),  # 33 px give one (Havaei et al. 2017)
    "input_cascade": (32, 1),  # 65 px give one, by way of 33
}


# arguments of timm's create_model by which it would load or fetch weights itself
_TIMM_LOADS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}

_TIMM_OTHER = {"in_chans", "features_only", "out_indices"}  # with these it takes or gives something else


class TimmModel(Config):
    """A network of timm, as its ``create_model`` takes it.

    Attributes:
        name: timm's, such as ``vit_small_patch16_224``.
        args: further arguments, such as ``{init_values: 1.0e-5, dynamic_img_size: true}``; the ``model_args`` of a
            published ``config.json``.
        mean, std: of the pixels in 0..1, as the weights were trained with; those of ImageNet if not given.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.]+$")
    args: dict[str, Any] = {}
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def _spread(self) -> TimmModel:
        if not all(0 < value < math.inf for value in self.std) or not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean {list(self.mean)} and std {list(self.std)} must be numbers, std above 0")
        if not _TIMM_OTHER.isdisjoint(self.args):
            raise ValueError(
                f"args {sorted(_TIMM_OTHER & set(self.args))} of timm are not taken: patches are RGB, features one row"
            )
        if not _TIMM_LOADS.isdisjoint(self.args):
            raise ValueError(
                f"args {sorted(_TIMM_LOADS & set(self.args))} of timm are not taken: they load files"
            )
        return self


class Architecture(Config):
    """Kind and size of a network.

    Attributes:
        width: multiplier of the channels, for ``inception_v3``.
        input_px: side to which networks other than ``inception_v3`` resize patches; None leaves them as they are.
        timm: of the name ``timm``: which network.
    """

    name: ClassifierName | Literal["torchscript"] = "inception_v3"
    width: float = Field(default=1.0, gt=0, le=1)
    input_px: int | None = Field(default=None, gt=0)
    timm: TimmModel | None = None

    @model_validator(mode="after")
    def _one_of_timm(self) -> Architecture:
        if (self.name == "timm") != (self.timm is not None):
            raise ValueError("architecture timm and the field timm, which names the network, go together")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what came later, where it is as it was before: what was made then has the same hash."""
        value: dict[str, Any] = dump(self)
        if self.timm is None:
            value.pop("timm", None)
        return value

    def __repr_args__(self) -> Any:
        """Likewise: the hash of a model's graph is made of it."""
        return [(key, value) for key, value in super().__repr_args__() if key != "timm" or value is not None]


class DetectorConfig(Config):
    """The network's shape.

    Attributes:
        classes: names, from 0 as they leave this module; inside Faster R-CNN 0 is the background.
        network: ``faster_rcnn`` (Ren et al. 2015), ``retinanet`` (Lin et al. 2017), ``yolo_v3`` (Redmon and Farhadi
            2018) or ``cornernet`` (Law and Deng 2018), which has an hourglass of its own and no anchors.
        backbone: ``resnet50`` (Kim et al. 2019 name Faster R-CNN only; this is torchvision's default), or ``small`` for
            CPUs: three stages at 1/4, 1/8 and 1/16; ``darknet53``, of yolo_v3 alone: three at 1/8, 1/16 and 1/32.
        tile_px: side of the tiles that the network is trained on; it resizes nothing.
        spacing_um: um per pixel of the tiles.
        anchors_px: side of the anchors, one for each level of the pyramid, fine to coarse.
        anchor_boxes: of yolo_v3: (width, height) of three anchors a level, fine to coarse. Empty: training takes them
            from its boxes by k-means; of anchors_px yolo_v3 takes the number alone.
        iou: overlap above which a box suppresses another in its tile.
        lowest_score: boxes with a lower score are left out.
        separate: a whole network for each class, as in Kim et al. 2019, instead of one for all; takes twice the time.
    """

    classes: tuple[str, ...] = Field(default=(NEGATIVE, POSITIVE), min_length=1)
    network: DetectorName = "faster_rcnn"
    backbone: Literal["small", "resnet50", "darknet53"] = "small"
    tile_px: int = Field(default=512, gt=0, multiple_of=SIDE_STEP)
    spacing_um: float = Field(default=0.5, gt=0)
    anchors_px: tuple[float, ...] = (32.0, 48.0, 80.0)
    anchor_boxes: tuple[tuple[float, float], ...] = ()
    iou: float = Field(default=0.4, gt=0, lt=1)
    lowest_score: float = Field(default=0.05, ge=0, lt=1)
    separate: bool = False

    @model_validator(mode="after")
    def _one_anchor_a_level(self) -> DetectorConfig:
        levels = 4 if self.backbone == "resnet50" else 3
        if len(self.anchors_px) != levels:
            raise ValueError(f"{self.backbone} has {levels} levels, so it needs as many anchors_px")
        if self.backbone == "darknet53" and self.network != "yolo_v3":
            raise ValueError(f"darknet53 is a backbone of yolo_v3; {self.network} takes small or resnet50")
        if self.network == "cornernet" and self.backbone != "small":
            raise ValueError("cornernet has an hourglass of its own; leave backbone at small")
        if self.anchor_boxes and self.network != "yolo_v3":
            raise ValueError(f"anchor_boxes are of yolo_v3; {self.network} takes anchors_px")
        if any(not min(sides) > 0 for sides in self.anchor_boxes):
            raise ValueError(f"anchor_boxes {list(self.anchor_boxes)} must have sides above 0")
        if self.anchor_boxes and len(self.anchor_boxes) != 3 * levels:
            raise ValueError(f"{self.backbone} has {levels} levels, so it needs {3 * levels} anchor_boxes")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what came later, where it is as it was before: what was made then has the same hash."""
        value: dict[str, Any] = dump(self)
        if self.network == "faster_rcnn":
            value.pop("network", None)
        if not self.anchor_boxes:
            value.pop("anchor_boxes", None)
        return value


class SegmenterConfig(Config):
    """The network's shape, and the tiles that it maps.

    Attributes:
        classes: names by their number on the map; the first is all that no outline marks. Where outlines overlap in
            the truth, the later class lies on top.
        network: one of `models.registry.SEGMENTERS`.
        width: channels of the finest level, from which those of all others follow; with fewer than 8 training can hang:
            oneDNN (torch 2.14, AVX2) never ends one of the gradients then.
        spacing_um: um per pixel that the network sees.
        core_px: side of the part of a training tile that is mapped.
        margin_px: around it, seen and not mapped; what a network pads there never reaches the map.
        pool: pixels of the network along one cell of the map, whose class probabilities are averaged.
    """

    classes: tuple[str, ...] = Field(min_length=2, max_length=255)
    network: SegmenterName = "unet"
    width: int = Field(default=16, ge=8, le=64)
    spacing_um: float = Field(default=1.0, gt=0)
    core_px: int = Field(default=256, gt=0)
    margin_px: int = Field(default=32, ge=0)
    pool: Literal[1, 2, 4, 8] = 2

    @model_validator(mode="after")
    def _fits(self) -> SegmenterConfig:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes {list(self.classes)} name one twice")
        if UNKNOWN_AREA in self.classes:
            raise ValueError(f"{UNKNOWN_AREA!r} cannot be a class: outlines of this group are not trained on")
        if self.network in VALID_MARGIN:
            margin, step = VALID_MARGIN[self.network]
            if self.margin_px != margin:
                raise ValueError(f"{self.network} loses {margin} px on each side: set margin_px to that")
            if self.network == "unet_valid" and self.core_px % step != 4:
                raise ValueError(
                    f"core_px {self.core_px} of unet_valid must be 4 more than a multiple of {step}"
                )
        elif self.tile_px % SIDE_STEP:
            raise ValueError(f"core_px + 2 margin_px is {self.tile_px}, which is no multiple of {SIDE_STEP}")
        if self.core_px % self.pool:
            raise ValueError(f"core_px {self.core_px} is no multiple of pool {self.pool}")
        return self

    @property
    def tile_px(self) -> int:
        """Side of a training tile."""
        return self.core_px + 2 * self.margin_px

    @property
    def run_core_px(self) -> int:
        """Side of the core of the tiles that slides are mapped by: larger ones waste less on their margins."""
        step = max(VALID_MARGIN.get(self.network, (0, SIDE_STEP))[1], self.pool)
        return self.core_px + step * max(0, round((RUN_CORE_PX - self.core_px) / step))


class Card(Config):
    """What the card of every model states, whatever its task.

    Attributes:
        task: ``classify`` patches, ``detect`` objects on tiles, or ``segment``: name the class of every place.
        demonstration: trained without any real tissue of its kind; not for real tissue.
        sha256: hex sha256 of the weight file.
    """

    task: Task
    name: str
    demonstration: bool = False
    intended_use: str = "Research use only; not for diagnosis."
    limits: str = ""
    training: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    code_version: str = ""
    sha256: str


class Int8Facts(Config):
    """What is known of a model's int8 form (``wsi models quantise``), which is faster on CPUs with VNNI.

    Attributes:
        sha256: hex sha256 of the two files, one after the other.
        made_from: fingerprint of all of the model that its graph holds, see `ModelCard.graph_fingerprint`.
        auc: on labelled patches that it was not fitted on, in int8.
        auc_fp32: the same in fp32.
        largest_difference: of a score on them, between both.
        patches: number of those patches.
        made_by: the library that made it.
    """

    sha256: str
    made_from: str
    auc: float
    auc_fp32: float
    largest_difference: float
    patches: int
    made_by: str

    @property
    def cheap(self) -> bool:
        """Whether it costs so little quality that it may be taken unasked."""
        return self.auc_fp32 - self.auc < INT8_COST


class ModelCard(Card):
    """The card of a classifier of patches: what a run needs, and what readers want to know.

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
        int8: of the model's int8 form; None: it has none.
    """

    task: Literal["classify"] = "classify"
    format: Literal[1] = 1
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
    int8: Int8Facts | None = None

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
        return means_tumour(self.positive)

    @property
    def positive_index(self) -> int:
        """Index of the positive class."""
        return self.classes.index(self.positive)

    @property
    def graph_fingerprint(self) -> str:
        """Hash of what a graph of the model holds: weights, calibration, and the patch that it takes."""
        parts = (self.sha256, self.architecture, self.calibration, self.positive_index, self.patch_px)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    @property
    def words(self) -> tuple[str, str]:
        """What sentences call patches that are not of the positive class, and patches that are."""
        return in_words(self.classes, self.positive)


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


class DetectorCard(Card):
    """The card of a detector.

    Attributes:
        detector: the network, and the tiles that it looks at.
        enlarge_um: for each class, by how much the boxes it learned were larger than the capillaries, on each side.
        thresholds: for each class, the score from which a detection counts: with it as many were found on the
            validation tiles as were marked.
        counting_errors: of each validation slide, how many positive capillaries were hit, false and missed in its
            report, and how many negative ones (wsi renal evaluate --into); empty where nobody measured it.
    """

    task: Literal["detect"] = "detect"
    detector: DetectorConfig
    enlarge_um: tuple[float, ...]
    thresholds: tuple[float, ...]
    counting_errors: tuple[tuple[int, int, int, int, int, int], ...] = ()


class SegmenterCard(Card):
    """The card of a segmenter.

    Attributes:
        segmenter: the network, its classes, and the tiles that it maps.
    """

    task: Literal["segment"] = "segment"
    format: Literal[1] = 1
    segmenter: SegmenterConfig


C = TypeVar("C", ModelCard, DetectorCard, SegmenterCard)
_OF_TASK: dict[str, tuple[type[Card], str]] = {
    "classify": (
        ModelCard,
        "{} is a model of patches: wsi score takes it as --model, this needs a model of another kind",
    ),
    "detect": (
        DetectorCard,
        "{} is a detector of capillaries: wsi renal takes it as --model, this needs a model of another kind",
    ),
    "segment": (
        SegmenterCard,
        "{} is a segmenter: wsi segment takes it as --model, this needs a model of another kind",
    ),
}


def is_wsinfer(folder: Path) -> bool:
    """Whether a folder has the two files of WSInfer's form; see `models.forms.wsinfer`, which loads torch."""
    return (folder / WSINFER_CONFIG).is_file() and (folder / TORCHSCRIPT).is_file()


def task_of(folder: Path) -> str | None:
    """The task that a model's card names; None where there is no card that can be read."""
    try:
        return str(_facts(folder)["task"])
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None


def card_in(folder: Path) -> Card:
    """The card of a model of this program's own form, whatever its task, checked as `read_card` does.

    Raises:
        ModelError: see `read_card`.
    """
    kind = _OF_TASK.get(task_of(folder) or "", _OF_TASK["classify"])[0]
    return read_card(folder, kind)  # type: ignore[type-var]


def read_card(folder: Path, kind: type[C]) -> C:
    """Read ``card.json`` and check the other files' hashes against it.

    Args:
        folder: the model's.
        kind: the card that is expected.

    Raises:
        ModelError: a file is missing, the card is not valid or of another task, or a byte of the other files changed.
    """
    path = folder / CARD
    try:
        facts = _facts(folder)
        if facts["task"] not in _OF_TASK:
            raise ModelError(
                f"{path} is of the task {facts['task']!r}, which this version does not know; it knows "
                f"{', '.join(_OF_TASK)}"
            )
        stated, wrong = _OF_TASK[facts["task"]]
        if stated is not kind:
            raise ModelError(wrong.format(folder))
        card = kind.model_validate_json(json.dumps(facts))
    except OSError as error:
        if (folder / WSINFER_CONFIG).is_file() and not is_wsinfer(folder):
            raise ModelError(
                f"{folder} has no {CARD}: as published it may give features (wsi features), but names no class"
            ) from error
        raise ModelError(
            f"{folder} is not a model: {CARD} cannot be read ({error.strerror}); a model folder holds {WEIGHTS} "
            f"and {CARD}, or WSInfer's torchscript_model.pt and config.json"
        ) from error
    except ValidationError as error:
        raise ModelError(
            f"{path} is not a valid card: {first_mistake(error)}; copy the model again"
        ) from error
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(f"{path} is not a valid card ({error}); copy the model again") from error
    domain = card.domain if isinstance(card, ModelCard) else None
    for name, digest in ((WEIGHTS, card.sha256), (DOMAIN, domain)):
        if digest is not None and (found := hash_file(folder / name)) != digest:
            raise ModelError(
                f"{folder / name} has sha256 {found[:12]}..., its card says {digest[:12]}...; copy the model again"
            )
    int8 = card.int8 if isinstance(card, ModelCard) else None
    if int8 is not None and (found := hash_int8(folder)) != int8.sha256:
        raise ModelError(
            f"{folder / INT8[0]} and {INT8[1]} have sha256 {found[:12]}..., the card says {int8.sha256[:12]}...; copy "
            f"the model again"
        )
    return card


def _facts(folder: Path) -> dict[str, Any]:
    """The content of a card. In 0.1 a detector's card named a kind instead of a task; other cards named neither."""
    facts: dict[str, Any] = json.loads((folder / CARD).read_bytes())
    if facts.pop("kind", None) == "detector":
        facts["task"] = "detect"
    return {"task": "classify"} | facts


def hash_file(path: Path) -> str:
    """Hex sha256 of a file's bytes.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); copy the model again") from error


def hash_int8(folder: Path) -> str:
    """Hex sha256 of the two files of an int8 form, one after the other.

    Raises:
        ModelError: a file cannot be read.
    """
    try:
        return hashlib.sha256(b"".join((folder / name).read_bytes() for name in INT8)).hexdigest()
    except OSError as error:
        raise ModelError(
            f"{error.filename} cannot be read ({error.strerror}); copy the model again"
        ) from error


def card_json(card: Config) -> str:
    """The card as JSON text."""
    return json.dumps(card.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
