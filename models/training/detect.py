"""Training the capillary detector: a run that reads top to bottom, stops at any time, and goes on to the same bits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.detector_card import load_detector, save_detector
from models.engines.contract import find_folder
from models.networks.faster_rcnn import CapillaryDetector, DetectorConfig
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
from models.training.progress import NOBODY, Clock, Listeners, Progress, crossed, metrics_csv, progress_row
from models.training.state import TrainingState, use_bf16
from wsi.config import Config
from wsi.errors import ConfigError, ModelError, SlideError
from wsi.files import write_text
from wsi.marks.boxes import Detections, joined, suppress
from wsi.metrics.detection import Marked, average_precision
from wsi.slides.manifest import SlideRow
from wsi.slides.slide import Slide

CLIP = 5.0  # largest norm of a gradient: a tile with many false boxes must not undo what was learned
TRIES = 100  # places drawn in turn that cannot be read before the run gives up
RISE = 0.05  # share of the examples in which the rate rises


class DetectorTrainConfig(Config):
    """The recipe.

    Attributes:
        slides: a manifest with truth (GeoJSON or ASAP XML) and split, or several.
        enlarge_um: for each class, by how much its boxes grow on each side. Kim et al. 2019: 40 px for negative and 50
            for positive capillaries, at a spacing they do not state.
        examples: tiles to train on, drawn around an object of each class in turn, then around a trap if any is marked.
        validation_tiles: drawn once from the validation slides.
        validate_every, checkpoint_every: in examples.
        augment: its orientations and colours; tiles are drawn anywhere, so its jitter means nothing here.
        scale: tiles are read at spacings up to so many times finer or coarser, boxes and enlargement with them: the
            spacing of a slide is not always what its file says.
        precision: of the forward pass of training; ``auto`` is bf16 where it is fast. Validation is in fp32.
        init: a detector to start from, by name or folder; from random weights without it.
    """

    name: str
    slides: Path | tuple[Path, ...] | None = None
    detector: DetectorConfig = DetectorConfig()
    enlarge_um: tuple[float, ...] = (4.0, 4.0)
    seed: int = Field(default=0, ge=0)
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
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    init: str | None = None
    demonstration: bool = False
    training_data: str = ""
    limits: str = ""

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

    def rate(self, seen: int) -> float:
        """The learning rate after ``seen`` examples: a short rise, then a cosine down to 0."""
        rise = min(1.0, (seen + self.batch) / (RISE * self.examples))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(seen / self.examples, 1.0)))


@dataclass(eq=False)
class TileSampler:
    """Draws tiles of marked slides from one generator: a slide, a class in turn, an object, a place around it."""

    slides: Sequence[Slide]
    marked: Sequence[MarkedSlide]
    cfg: DetectorTrainConfig
    rng: np.random.Generator
    lost: list[list[int]] = field(default_factory=list)

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
        return self.lost

    def exclude_all(self, places: Iterable[Sequence[int]]) -> None:
        """Take over what an earlier run lost."""
        self.lost = [list(place) for place in places]

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
                self.lost.append([i, *corner])
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
        listeners: who hears of it.

    Returns:
        The best mean average precision at an overlap of 0.5; NaN where nothing is held out.

    Raises:
        ConfigError: no slide to train on, or none of its places can be read.
        ModelError: the loss is not finite, or there is nothing to resume.
    """
    torch.manual_seed(cfg.seed)
    network = _start(cfg).to(memory_format=torch.channels_last)
    with ExitStack() as stack:
        train_on = _sampler(training_rows(rows), cfg, cfg.seed, stack)
        if train_on is None:
            raise ConfigError("no slide to train on: none of the split 'train' has anything marked on it")
        tiles = validation_tiles(rows, cfg, stack)
        optimiser = torch.optim.AdamW(network.parameters(), cfg.learning_rate, weight_decay=cfg.weight_decay)
        state = TrainingState(network, optimiser, train_on, torch.Generator().manual_seed(cfg.seed))
        recipe = cfg.model_dump(
            mode="json", exclude={"name", "slides", "limits", "training_data", "checkpoint_every"}
        )
        if resume:
            state.load(out, recipe)
            listeners.say(f"resumed after {state.seen} examples")
        clock = Clock(state.seen, state.seconds)
        while state.seen < cfg.examples:
            with clock.waiting():
                examples = [train_on.draw(state.seen + i) for i in range(cfg.batch)]
            rate = cfg.rate(state.seen)
            loss = _step(state, examples, rate, cfg)
            if not math.isfinite(loss):
                raise ModelError(
                    f"the loss is {loss} after {state.seen} examples; lower learning_rate and --resume"
                )
            state.count(cfg.batch, loss, train_on.state, clock.elapsed)
            now = clock.progress(state, cfg.examples, rate)
            listeners.report(now)
            done = state.seen >= cfg.examples
            if done or crossed(state.seen, cfg.batch, cfg.validate_every):
                _validate(state, tiles, cfg, out, now, code_version, listeners)
            stop = listeners.stop()
            if stop or done or crossed(state.seen, cfg.batch, cfg.checkpoint_every):
                state.save(out, recipe)
            if stop:
                raise KeyboardInterrupt
    return math.nan if state.best is None else state.best


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
    found = [row for row in rows if row.split in (None, "train")]
    both = {row.source.path for row in found} & {row.source.path for row in rows if row.split == "validation"}
    if both:
        raise ConfigError(f"{min(both)} is in both splits, train and validation; remove one of its lines")
    return found


def used_rows(rows: Sequence[SlideRow]) -> list[SlideRow]:
    """Slides that are trained on, then those that are held out."""
    return training_rows(rows) + [row for row in rows if row.split == "validation"]


def read_truths(rows: Sequence[SlideRow], cfg: DetectorTrainConfig) -> list[MarkedSlide]:
    """What is marked on every slide; each is opened once, so that a bad one is named before anything is replaced.

    Raises:
        ConfigError: a slide has no truth.
        WsiError: a truth file or slide that cannot be used.
    """
    found = []
    for row in rows:
        if row.truth is None:
            raise ConfigError(f"{row.source.label} has no truth; fill in the column 'truth'")
        found.append(read_marked(row.truth, cfg.detector.classes))
        with row.source.open() as slide:
            _ = slide.mpp  # refuses a slide without a spacing
    return found


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


def _step(state: TrainingState, examples: Sequence[Example], rate: float, cfg: DetectorTrainConfig) -> float:
    """One update; the sum of the four losses."""
    network, optimiser = state.network, state.optimiser
    assert isinstance(network, CapillaryDetector)  # `train_detector` made it
    network.train()
    for group in optimiser.param_groups:
        group["lr"] = rate
    tiles = _recoloured(np.stack([e.pixels for e in examples]), cfg.augment, state.generator)
    boxes = [torch.from_numpy(e.boxes) for e in examples]
    with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16(cfg.precision, torch.device("cpu"))):
        losses = network.losses(tiles, boxes, [torch.from_numpy(e.labels) for e in examples])
    loss = torch.stack(list(losses.values())).sum()
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
    if torch.isfinite(loss):
        optimiser.step()
    return float(loss.detach())


def _recoloured(pixels: npt.NDArray[np.uint8], cfg: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Float (n, 3, h, w) in 0..1; orientations were drawn with the boxes."""
    draws = draw_changes(len(pixels), cfg, generator).draws
    tiles = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    if cfg.stain:
        tiles = restain(tiles, 1 + cfg.stain * draws[:, 4:7], 0.1 * cfg.stain * draws[:, 7:10])
    tiles = (recolour(tiles, cfg, draws[:, :4]) + 1) / 2
    return tiles.contiguous(memory_format=torch.channels_last)


def detect_tiles(network: CapillaryDetector, tiles: Sequence[Example]) -> list[Detections]:
    """What the network finds on each tile."""
    network.eval()
    return [network.detect(torch.from_numpy(tile.pixels[None]))[0] for tile in tiles]


def count_thresholds(
    found: Sequence[Detections], truth: Sequence[Marked], cfg: DetectorConfig
) -> tuple[float, ...]:
    """For each class the score above which as many are found as are marked, so that counts are not biased.

    Boxes of all classes suppress each other first, as they do on a slide.

    Where fewer are found at all it is the network's own lowest score; where none is marked, 0.5.
    """
    every = joined([suppress(f, cfg.iou) for f in found])
    chosen = []
    for label in range(len(cfg.classes)):
        marked = sum(int((t.labels == label).sum()) for t in truth)
        scores = np.sort(every.scores[every.labels == label])[::-1]
        if marked == 0:
            chosen.append(0.5)
        else:
            chosen.append(float(scores[marked - 1]) if len(scores) >= marked else cfg.lowest_score)
    return tuple(round(value, 4) for value in chosen)


def _validate(
    state: TrainingState,
    tiles: Sequence[Example],
    cfg: DetectorTrainConfig,
    out: Path,
    now: Progress,
    code_version: str,
    listeners: Listeners,
) -> None:
    """Measure, write a row, and keep the network if it is the best; without validation tiles, always."""
    assert isinstance(state.network, CapillaryDetector)  # `train_detector` made it
    found = detect_tiles(state.network, tiles)
    truth = [Marked(tile.boxes, tile.labels) for tile in tiles]
    names = cfg.detector.classes if tiles else ()
    precisions = {name: average_precision(found, truth, i) for i, name in enumerate(names)}
    known = [value for value in precisions.values() if math.isfinite(value)]
    mean = sum(known) / len(known) if known else None
    now = replace(now, auc=mean)
    state.rows.append(progress_row(now))
    listeners.report(now)
    if mean is None or state.best is None or mean > state.best:
        state.best = mean
        save_detector(
            out / "model",
            state.network,
            name=cfg.name,
            detector=cfg.detector,
            enlarge_um=cfg.enlarge_um,
            thresholds=count_thresholds(found, truth, cfg.detector),
            demonstration=cfg.demonstration,
            limits=cfg.limits,
            training={"examples": state.seen, "seed": cfg.seed, "data": cfg.training_data},
            metrics={
                "AP50": {name: round(value, 4) for name, value in precisions.items() if math.isfinite(value)}
            },
            code_version=code_version,
        )
    write_text(out / "metrics.csv", metrics_csv(state.rows))
    listeners.metrics(state.rows)
