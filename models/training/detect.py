"""The task of the capillary detector: its recipe, tiles, losses, validation and card."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.card import DetectorConfig
from models.checkpoint import load_detector, save_detector
from models.engines.contract import find_folder
from models.networks.faster_rcnn import CapillaryDetector
from models.training.data.augment import AugmentConfig, draw_changes, recolour, restain
from models.training.data.detection import (
    TRAP,
    Example,
    MarkedSlide,
    draw_corner,
    read_example,
    read_marked,
    turned,
)
from models.training.loop import Judgement, run
from models.training.progress import NOBODY, Listeners
from models.training.recipe import Recipe, cosine
from models.training.state import TrainingState, use_bf16
from models.training.team import Team, choose_device, join_team, share_batch_norm
from wsi.errors import ConfigError, SlideError
from wsi.marks.boxes import Detections, joined, suppress
from wsi.metrics.detection import Marked, average_precision
from wsi.slides.manifest import SlideRow
from wsi.slides.slide import Slide

CLIP = 5.0  # largest norm of a gradient: a tile with many false boxes must not undo what was learned
TRIES = 100  # places drawn in turn that cannot be read before the run gives up


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


@dataclass(eq=False)
class TileSampler:
    """Draws tiles of marked slides from one generator: a slide, a class in turn, an object, a place around it."""

    slides: Sequence[Slide]
    marked: Sequence[MarkedSlide]
    cfg: DetectorTrainConfig
    rng: np.random.Generator
    unreadable: list[list[int]] = field(default_factory=list)

    @property
    def state(self) -> Any:
        """The generator's."""
        return self.rng.bit_generator.state

    @state.setter
    def state(self, value: Any) -> None:
        self.rng.bit_generator.state = value

    @property
    def kinds(self) -> tuple[int, ...]:
        """What tiles are drawn around, in turn."""
        traps = (TRAP,) if any(len(m.traps) for m in self.marked) else ()
        return (*range(len(self.cfg.detector.classes)), *traps)

    @property
    def excluded(self) -> list[list[int]]:
        """Places (slide, x, y) that could not be read; they cost themselves."""
        return self.unreadable

    def exclude_all(self, places: Iterable[Sequence[int]]) -> None:
        """Take over what an earlier run lost."""
        self.unreadable = [list(place) for place in places]

    def draw(self, number: int) -> Example:
        """A tile, turned; its number says which of the kinds it is drawn around.

        Raises:
            ConfigError: no place can be read.
        """
        label = self.kinds[number % len(self.kinds)]
        for _ in range(TRIES):
            i = int(self.rng.integers(len(self.slides)))
            slide, marked = self.slides[i], self.marked[i]
            scale = 1.0 if self.cfg.scale == 1 else self.cfg.scale ** self.rng.uniform(-1, 1)
            side_l0 = self.cfg.detector.tile_px * self.cfg.detector.spacing_um * scale / slide.mpp
            corner = draw_corner(marked, side_l0, self.rng, label)
            orientation = int(self.rng.integers(self.cfg.augment.orientations))
            try:
                return turned(self._read(i, corner, scale), orientation)
            except SlideError:
                self.unreadable.append([i, *corner])
        raise ConfigError(
            f"none of {TRIES} places in turn could be read, the last on {slide.path}; check the slides"
        )

    def _read(self, i: int, corner: tuple[int, int], scale: float) -> Example:
        d = self.cfg.detector
        enlarge_um = [um * scale for um in self.cfg.enlarge_um]  # as many pixels of the tile
        return read_example(
            self.slides[i], self.marked[i], corner, d.tile_px, d.spacing_um * scale, enlarge_um
        )


def train_detector(
    rows: Sequence[SlideRow],
    cfg: DetectorTrainConfig,
    out: Path,
    *,
    code_version: str,
    resume: bool = False,
    listeners: Listeners = NOBODY,
) -> float:
    """Train, and keep the best network by mean average precision in ``out/model``; the last where nothing is held out.

    Args:
        rows: slides with truth; those of the split ``validation`` are held out.
        cfg: the recipe.
        out: ``model/``, ``metrics.csv`` and ``checkpoint.safetensors`` go here.
        code_version: stated in the card.
        resume: go on from ``out/checkpoint.safetensors``; on a CPU to the same bits as without the stop.
        listeners: the functions that are told of the run's progress.

    Returns:
        The best mean average precision at an overlap of 0.5; NaN where nothing is held out.

    Raises:
        ConfigError: no slide to train on, or none of its places can be read.
        ModelError: the loss is not finite, or there is nothing to resume.
    """
    device = choose_device(cfg.device)
    team = join_team(cfg.batch, device)
    torch.manual_seed(cfg.seed)
    network = _start(cfg)
    share_batch_norm(network, team)
    network = network.to(device).to(memory_format=torch.channels_last)
    with ExitStack() as stack:
        sampler = _sampler(training_rows(rows), cfg, cfg.seed, stack)
        if sampler is None:
            raise ConfigError("no slide to train on: none of the split 'train' has anything marked on it")
        task = Detect(sampler, validation_tiles(rows, cfg, stack), cfg, out, code_version, team, device)
        optimiser = torch.optim.AdamW(network.parameters(), cfg.learning_rate, weight_decay=cfg.weight_decay)
        state = TrainingState(network, optimiser, sampler, torch.Generator().manual_seed(cfg.seed))
        return run(task, state, out, resume=resume, listeners=listeners)


@dataclass(frozen=True, eq=False, slots=True)
class TileBatch:
    """This process's tiles of one step, and the state of the sampler after it."""

    tiles: tuple[Example, ...]
    after: Any


class TileFeed:
    """Batches in the order of the draws. Every process of a team reads the whole batch, and keeps its own share."""

    def __init__(self, sampler: TileSampler, batch: int, team: Team, seen: int) -> None:
        self._sampler, self._batch, self._team, self._drawn = sampler, batch, team, seen

    def next(self) -> TileBatch:
        """The next batch.

        Raises:
            ConfigError: no place can be read.
        """
        tiles = [self._sampler.draw(self._drawn + i) for i in range(self._batch)]
        self._drawn += self._batch
        return TileBatch(tuple(tiles[i] for i in self._team.share(self._batch)), self._sampler.state)


@dataclass(frozen=True, eq=False, slots=True)
class Detect:
    """Finding capillaries on tiles; see `models.training.loop.Task`."""

    sampler: TileSampler
    held_out: Sequence[Example]
    cfg: DetectorTrainConfig
    out: Path
    code_version: str
    team: Team
    device: torch.device
    measure: str = "ap50"
    clip: float | None = CLIP

    @property
    def recipe(self) -> DetectorTrainConfig:
        """The recipe."""
        return self.cfg

    @property
    def ends(self) -> tuple[int, ...]:
        """There is one phase."""
        return (self.cfg.examples,)

    @property
    def resumable(self) -> dict[str, Any]:
        """What must be the same to go on with a run: all but paths, names and how fast it goes."""
        free = {"name", "slides", "limits", "training_data", "checkpoint_every", "device"}
        return self.cfg.model_dump(mode="json", exclude=free)

    def show(self, listeners: Listeners) -> None:
        """Nothing is shown: tiles with boxes need a picture of their own."""

    def enter(self, phase: int, state: TrainingState, listeners: Listeners) -> None:
        """Nothing changes."""

    def feed(self, state: TrainingState) -> AbstractContextManager[TileFeed]:
        """Batches from the next tile on."""
        return nullcontext(TileFeed(self.sampler, self.cfg.batch, self.team, state.seen))

    def loss(self, state: TrainingState, batch: TileBatch) -> Tensor:
        """Sum of the network's losses on this process's share of a batch."""
        network = _detector(state)
        network.train()
        share = self.team.share(self.cfg.batch)
        pixels = np.stack([tile.pixels for tile in batch.tiles])
        tiles = _recoloured(pixels, self.cfg.augment, state.generator, self.cfg.batch, share).to(self.device)
        boxes = [torch.from_numpy(tile.boxes).to(self.device) for tile in batch.tiles]
        labels = [torch.from_numpy(tile.labels).to(self.device) for tile in batch.tiles]
        bf16 = use_bf16(self.cfg.precision, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            losses = network.losses(tiles, boxes, labels)
        return torch.stack(list(losses.values())).sum()

    def judge(self, state: TrainingState) -> Judgement:
        """The mean of the classes' average precisions at an overlap of 0.5 on the held-out tiles, and thresholds."""
        tiles = self.held_out
        detections = detect_tiles(_detector(state), tiles)
        truth = [Marked(tile.boxes, tile.labels) for tile in tiles]
        names = self.cfg.detector.classes if tiles else ()
        precisions = {name: average_precision(detections, truth, i) for i, name in enumerate(names)}
        known = {name: value for name, value in precisions.items() if math.isfinite(value)}
        card = {
            "thresholds": count_thresholds(detections, truth, self.cfg.detector),
            "metrics": {"AP50": {name: round(value, 4) for name, value in known.items()}},
        }
        return Judgement(sum(known.values()) / len(known) if known else None, card)

    def keep(self, state: TrainingState, judgement: Judgement) -> None:
        """Write ``model/``."""
        cfg = self.cfg
        save_detector(
            self.out / "model",
            _detector(state),
            name=cfg.name,
            detector=cfg.detector,
            enlarge_um=cfg.enlarge_um,
            demonstration=cfg.demonstration,
            limits=cfg.limits,
            training={"examples": state.seen, "seed": cfg.seed, "data": cfg.training_data},
            code_version=self.code_version,
            **judgement.card,
        )


def _detector(state: TrainingState) -> CapillaryDetector:
    """The network that `train_detector` made."""
    assert isinstance(state.judged, CapillaryDetector)
    return state.judged


def _start(cfg: DetectorTrainConfig) -> CapillaryDetector:
    """A network of random weights, or of those of the detector that the recipe names.

    Raises:
        ConfigError: that detector has another shape.
    """
    if cfg.init is None:
        return CapillaryDetector(cfg.detector)
    network, card = load_detector(find_folder(cfg.init))
    if card.detector != cfg.detector:
        raise ConfigError(
            f"init: {cfg.init} has another shape than detector: in the recipe; make them the same"
        )
    return network


def training_rows(rows: Sequence[SlideRow]) -> list[SlideRow]:
    """Slides of the split ``train``, or of none; other splits are kept apart.

    Raises:
        ConfigError: a slide is trained on and held out.
    """
    used = [row for row in rows if row.split in (None, "train")]
    both = {row.source.path for row in used} & {row.source.path for row in rows if row.split == "validation"}
    if both:
        raise ConfigError(f"{min(both)} is in both splits, train and validation; remove one of its lines")
    return used


def used_rows(rows: Sequence[SlideRow]) -> list[SlideRow]:
    """Slides that are trained on, then those that are held out."""
    return training_rows(rows) + [row for row in rows if row.split == "validation"]


def read_truths(rows: Sequence[SlideRow], cfg: DetectorTrainConfig) -> list[MarkedSlide]:
    """What is marked on every slide; each is opened once, so that a bad one is named before anything is replaced.

    Raises:
        ConfigError: a slide has no truth.
        WsiError: a truth file or slide that cannot be used.
    """
    truths = []
    for row in rows:
        if row.truth is None:
            raise ConfigError(f"{row.source.label} has no truth; fill in the column 'truth'")
        truths.append(read_marked(row.truth, cfg.detector.classes))
        with row.source.open() as slide:
            _ = slide.mpp  # refuses a slide without a spacing
    return truths


def _sampler(
    rows: Sequence[SlideRow], cfg: DetectorTrainConfig, seed: int, stack: ExitStack
) -> TileSampler | None:
    # a slide on which nothing is marked has nothing to show
    usable = [(r, m) for r, m in zip(rows, read_truths(rows, cfg), strict=True) if m.usable]
    slides = [stack.enter_context(row.source.open()) for row, _ in usable]
    return TileSampler(slides, [m for _, m in usable], cfg, np.random.default_rng(seed)) if usable else None


def validation_tiles(rows: Sequence[SlideRow], cfg: DetectorTrainConfig, stack: ExitStack) -> list[Example]:
    """The tiles of held-out slides that networks are measured on: the same for every run of a seed; maybe none.

    Args:
        rows: of all splits.
        cfg: the recipe.
        stack: closes the slides.
    """
    as_stated = cfg.model_copy(update={"scale": 1.0})
    sampler = _sampler([r for r in rows if r.split == "validation"], as_stated, cfg.seed + 1, stack)
    if sampler is None:
        return []
    return [sampler.draw(i) for i in range(cfg.validation_tiles)]


def _recoloured(
    pixels: npt.NDArray[np.uint8], cfg: AugmentConfig, generator: torch.Generator, batch: int, share: range
) -> Tensor:
    """Float (n, 3, h, w) in 0..1 of a share of a batch; orientations were drawn with the boxes."""
    draws = draw_changes(batch, cfg, generator).of(share).draws
    tiles = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    if cfg.stain:
        tiles = restain(tiles, 1 + cfg.stain * draws[:, 4:7], 0.1 * cfg.stain * draws[:, 7:10])
    tiles = (recolour(tiles, cfg, draws[:, :4]) + 1) / 2
    return tiles.contiguous(memory_format=torch.channels_last)


def detect_tiles(network: CapillaryDetector, tiles: Sequence[Example]) -> list[Detections]:
    """What the network finds on each tile."""
    network.eval()
    device = next(network.parameters()).device
    return [network.detect(torch.from_numpy(tile.pixels[None]).to(device))[0] for tile in tiles]


def count_thresholds(
    detections: Sequence[Detections], truth: Sequence[Marked], cfg: DetectorConfig
) -> tuple[float, ...]:
    """For each class the score above which as many are found as are marked, so that counts are not biased.

    Boxes of all classes suppress each other first, as they do on a slide.

    Where fewer are found at all it is the network's own lowest score; where none is marked, 0.5.
    """
    boxes = joined([suppress(one, cfg.iou) for one in detections])
    chosen = []
    for label in range(len(cfg.classes)):
        marked = sum(int((t.labels == label).sum()) for t in truth)
        scores = np.sort(boxes.scores[boxes.labels == label])[::-1]
        if marked == 0:
            chosen.append(0.5)
        else:
            chosen.append(float(scores[marked - 1]) if len(scores) >= marked else cfg.lowest_score)
    return tuple(round(value, 4) for value in chosen)
