"""The recipe of a training run: one frozen configuration, and the rates that follow from it."""

from __future__ import annotations

import math
from abc import abstractmethod
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from models.card import Architecture, ClassifierName, DetectorConfig, SegmenterConfig, TimmModel
from models.networks.inception import PATCH_PX
from models.training.data.augment import AugmentConfig
from wsi.config import Config
from wsi.datasets.rules import Dataset, read_dataset
from wsi.slides.stain import StainMethod
from wsi.vocabulary import FEASIBLE, NORMAL, NOT_FEASIBLE, TUMOUR, in_words

STRIDE_PX = 128  # the centre square that a patch speaks for (Liu et al. 2017)
RISE = 0.05  # share of the examples in which the rate rises
FROM_SCRATCH, FROM_WEIGHTS = 0.05, 0.002  # first learning rates of Liu et al. 2017


class Recipe(Config):
    """What the training loop asks of every recipe.

    Attributes:
        examples: to train on.
        validate_every: examples between validations.
        checkpoint_every: examples between checkpoints to resume from.
        precision: of the forward pass; weights and optimiser stay in fp32. ``auto`` is bf16 where it is fast.
        device: ``auto`` is a GPU where torch can use one.
    """

    name: str
    seed: int = Field(default=0, ge=0)
    batch: int = Field(gt=0)
    examples: int = Field(gt=0)
    validate_every: int = Field(gt=0)
    checkpoint_every: int = Field(gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    demonstration: bool = False
    training_data: str = ""
    limits: str = ""

    @property
    @abstractmethod
    def first_rate(self) -> float:
        """The learning rate at the start."""

    @abstractmethod
    def rate(self, seen: int) -> float:
        """The learning rate after ``seen`` examples."""


def cosine(seen: int, batch: int, examples: int) -> float:
    """Share of the first rate after ``seen`` examples: a short rise, then a cosine to 0 (Loshchilov, Hutter 2017)."""
    rise = min(1.0, (seen + batch) / (RISE * examples))
    return rise * 0.5 * (1 + math.cos(math.pi * min(seen / examples, 1.0)))


class TrainConfig(Recipe):
    """The recipe of a classifier; defaults are those of Liu et al. 2017 where they state one.

    Attributes:
        slides: a manifest, or a folder of slides and truth files of the same names.
        patches: a folder of labelled patches, instead of slides.
        task: ``tumour`` tells tumour from normal by the middle of a patch; ``fields`` tells feasible fields of kidneys,
            each a whole patch (Kim et al. 2019).
        sensitivity: share of the feasible validation fields that the model's threshold keeps.
        folds: cross-validate on ``patches`` by as many parts, contiguous in their order within each class.
        dataset: what is known of the slides by name, or the name of rules that ship: ``camelyon16``.
        truth_label: value of truth masks that means tumour; None detects 0/1, 0/255 and 0/1/2.
        validation: a further folder of labelled patches, by which the best network is chosen.
        architecture: the network; ``efficientnet_lite0`` is small and starts from ImageNet's weights.
        timm: of the architecture ``timm``: which network of timm.
        trained: ``all`` layers, or the ``head`` alone: the class layer, on the features of the weights in ``init``.
        width: multiplier of the channels; 1 is the full Inception-v3.
        input_px: side that patches are brought to inside networks other than ``inception_v3``; None leaves them.
        patch_px, stride_px: side of the patch, and of its centre that the label speaks of, in the model's pixels.
        init: weights to start from: a model's folder or shipped name, a published file of torchvision or folder of
            timm; ``imagenet`` downloads torchvision's.
        stain_normalisation: recolour every slide first; Liu et al. found no gain.
        learning_rate: None is 0.05, or 0.002 when started from weights (Liu et al. 2017).
        schedule: ``halve`` after every ``halve_every`` examples, or ``cosine`` down to 0 after a short rise.
        optimiser: ``rmsprop`` is TensorFlow's, as published; ``adamw`` suits short runs from weights.
        average: examples over which weights are averaged, newer ones counting more (Polyak and Juditsky 1992, with
            exponential weights); the average is validated and kept, and is steadier than the last weights. 0 is none.
        focal_gamma: focal loss instead of cross-entropy; Lin et al. 2017 use 2. 0 is cross-entropy.
        hard_negatives: a list from ``wsi train mine``; its places get ``hard_share`` of the first class's draws.
        second_phase: examples after which everything but the output layer is fixed, drawn at the true class
            frequencies (Havaei et al. 2017); 0 is none. It starts from the last network, and its best one replaces
            that of the first phase.
        validation_patches: patches, half of each class, drawn once from the validation slides.
        aux_weight: share of the auxiliary head's loss (Szegedy et al. 2015 use 0.3; REPATH 0.4).
    """

    slides: Path | None = None
    patches: Path | None = None
    validation: Path | None = None
    task: Literal["tumour", "fields"] = "tumour"
    sensitivity: float = Field(default=0.99, gt=0, le=1)
    folds: int = Field(default=0, ge=0)
    dataset: Dataset | str = Dataset()
    truth_label: int | None = Field(default=None, gt=0)
    architecture: ClassifierName = "inception_v3"
    timm: TimmModel | None = None
    width: float = Field(default=1.0, gt=0, le=1)
    input_px: int | None = Field(default=None, gt=0)
    patch_px: int = Field(default=PATCH_PX, gt=0)
    stride_px: int = Field(default=STRIDE_PX, gt=0)
    init: Path | None = None
    trained: Literal["all", "head"] = "all"
    spacing_um: float | None = Field(default=0.243, gt=0)
    spacing_tolerance: float = Field(default=0.1, ge=0, lt=1)
    stain_normalisation: StainMethod = "none"
    batch: int = Field(default=32, gt=1)
    examples: int = Field(default=10_000_000, gt=0)
    learning_rate: float | None = Field(default=None, gt=0)
    schedule: Literal["halve", "cosine"] = "halve"
    halve_every: int = Field(default=2_000_000, gt=0)
    optimiser: Literal["rmsprop", "adamw"] = "rmsprop"
    momentum: float = 0.9
    decay: float = 0.9
    epsilon: float = 1.0
    weight_decay: float = Field(default=0.0, ge=0)
    average: int = Field(default=0, ge=0)
    focal_gamma: float = Field(default=0.0, ge=0)
    aux_weight: float = 0.4
    dropout: float = Field(default=0.5, ge=0, lt=1)
    hard_negatives: Path | None = None
    hard_share: float = Field(default=0.25, ge=0, lt=1)
    second_phase: int = Field(default=0, ge=0)
    validate_every: int = Field(default=100_000, gt=0)
    validation_patches: int = Field(default=4_000, gt=1)
    checkpoint_every: int = Field(default=20_000, gt=0)
    threads: int = Field(default=1, gt=0)
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.slides is not None and self.patches is not None:
            raise ValueError("name slides or patches, not both")
        if self.task == "fields" and self.patches is not None:
            raise ValueError("fields are trained on slides, not on patches")
        if self.validation is not None and (self.patches is None or self.folds):
            raise ValueError("validation goes with patches and without folds")
        if self.architecture == "inception_v3" and (self.patch_px < PATCH_PX or self.input_px is not None):
            raise ValueError(f"inception_v3 takes patches of {PATCH_PX} px or more, and no input_px")
        if self.trained == "head" and self.init is None:
            raise ValueError("trained: head needs weights to start from; name them as init")
        _ = self.network  # timm and architecture are checked against each other
        if self.folds == 1 or (self.folds and self.patches is None):
            raise ValueError("folds must be 0, or 2 and more with patches")
        _ = self.rules  # an unknown name is refused here
        return self

    @property
    def classes(self) -> tuple[str, str]:
        """Names of the two classes, the one that is looked for last."""
        return (NOT_FEASIBLE, FEASIBLE) if self.task == "fields" else (NORMAL, TUMOUR)

    @property
    def positive(self) -> str:
        """Name of the class that is looked for."""
        return self.classes[-1]

    @property
    def words(self) -> tuple[str, str]:
        """What sentences call the two classes, the one that is looked for last."""
        return in_words(self.classes, self.positive)

    @property
    def network(self) -> Architecture:
        """The network, as its card will state it."""
        return Architecture(name=self.architecture, width=self.width, input_px=self.input_px, timm=self.timm)

    @property
    def rules(self) -> Dataset:
        """What is known of the slides by name."""
        return read_dataset(self.dataset) if isinstance(self.dataset, str) else self.dataset

    @property
    def first_rate(self) -> float:
        """The learning rate at the start."""
        return self.learning_rate or (FROM_SCRATCH if self.init is None else FROM_WEIGHTS)

    @property
    def total(self) -> int:
        """Examples of both phases."""
        return self.examples + self.second_phase

    def rate(self, seen: int) -> float:
        """The learning rate after ``seen`` examples; the second phase keeps the first's last."""
        seen = min(seen, self.examples - 1)
        if self.schedule == "halve":
            return self.first_rate * 0.5 ** (seen // self.halve_every)
        return self.first_rate * cosine(seen, self.batch, self.examples)


class DetectorTrainConfig(Recipe):
    """The recipe of a detector.

    Attributes:
        slides: a manifest with truth (GeoJSON or ASAP XML) and split, or several.
        enlarge_um: for each class, by how much its boxes grow on each side. Kim et al. 2019: 40 px for negative and 50
            for positive capillaries, at a spacing they do not state.
        examples: tiles, drawn around an object of each class in turn, then around a trap if any is marked.
        validation_tiles: drawn once from the validation slides.
        augment: its orientations and colours; tiles are drawn anywhere, so its jitter means nothing here.
        scale: tiles are read at spacings up to so many times finer or coarser, boxes and enlargement with them: the
            spacing of a slide is not always what its file says.
        precision: of the forward pass of training; validation is in fp32.
        init: a detector to start from, by name or folder; from random weights without it.
    """

    slides: Path | tuple[Path, ...] | None = None
    detector: DetectorConfig = DetectorConfig()
    enlarge_um: tuple[float, ...] = (4.0, 4.0)
    batch: int = Field(default=2, gt=0)
    examples: int = Field(default=12000, gt=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    validate_every: int = Field(default=1500, gt=0)
    validation_tiles: int = Field(default=90, gt=0)
    checkpoint_every: int = Field(default=500, gt=0)
    augment: AugmentConfig = AugmentConfig(
        brightness=0.1, saturation=0.2, hue=0.03, contrast=0.25, stain=0.15
    )
    scale: float = Field(default=1.0, ge=1, le=2)
    init: str | None = None

    @model_validator(mode="after")
    def _one_enlargement_a_class(self) -> DetectorTrainConfig:
        if len(self.enlarge_um) != len(self.detector.classes):
            raise ValueError(
                f"enlarge_um must hold one number for each of {', '.join(self.detector.classes)}"
            )
        return self

    @property
    def manifests(self) -> tuple[Path, ...]:
        """The manifests, however many there are."""
        if self.slides is None:
            return ()
        return (self.slides,) if isinstance(self.slides, Path) else self.slides

    @property
    def first_rate(self) -> float:
        """The learning rate at the start."""
        return self.learning_rate

    def rate(self, seen: int) -> float:
        """The learning rate after ``seen`` examples: a short rise, then a cosine down to 0."""
        return self.learning_rate * cosine(seen, self.batch, self.examples)


class SegmenterTrainConfig(Recipe):
    """The recipe of a segmenter.

    Attributes:
        slides: a manifest with truth (GeoJSON or ASAP XML, whose groups are the segmenter's classes) and split.
        batch: 2 or more, as some networks normalise one value of each tile.
        examples: tiles, drawn around the edge of an outline of each class in turn.
        validation_tiles: drawn once from the validation slides.
        augment: its orientations and colours; tiles are drawn anywhere, so its jitter means nothing here.
        elastic_px: standard deviation of the moves by which tiles are bent; Ronneberger et al. 2015 take 10 px. 0 does
            not bend them.
        separation: most that a pixel between two objects counts above others; Ronneberger et al. 2015 take 10. 0 makes
            all count alike.
        focal_gamma: focal loss instead of cross-entropy; Lin et al. 2017 use 2. 0 is cross-entropy.
        init: a segmenter to start from, by name or folder; from random weights without it.
    """

    slides: Path | None = None
    segmenter: SegmenterConfig
    batch: int = Field(default=4, gt=1)
    examples: int = Field(default=8000, gt=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    validate_every: int = Field(default=2000, gt=0)
    validation_tiles: int = Field(default=60, gt=0)
    checkpoint_every: int = Field(default=1000, gt=0)
    augment: AugmentConfig = AugmentConfig(
        brightness=0.1, saturation=0.2, hue=0.03, contrast=0.25, stain=0.15
    )
    elastic_px: float = Field(default=0.0, ge=0, le=50)
    separation: float = Field(default=0.0, ge=0, le=100)
    focal_gamma: float = Field(default=0.0, ge=0, le=5)
    init: str | None = None

    @property
    def first_rate(self) -> float:
        """The learning rate at the start."""
        return self.learning_rate

    def rate(self, seen: int) -> float:
        """The learning rate after ``seen`` examples: a short rise, then a cosine down to 0."""
        return self.learning_rate * cosine(seen, self.batch, self.examples)
