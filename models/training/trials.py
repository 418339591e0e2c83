"""Several trainings of a detector side by side: what an enlargement of the labels does, what corrected labels add."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.checkpoint import load_detector
from models.engines.detect_slide import SMALLEST_UM
from models.training.data.tiles import validation_tiles
from models.training.detect import detect_tiles
from models.training.recipe import DetectorTrainConfig
from wsi.errors import ConfigError
from wsi.marks.boxes import Boxes, shrunk
from wsi.marks.c4d import REACH_UM
from wsi.metrics.detection import Agreement, average_precision, by_distance
from wsi.slides.manifest import SlideRow

PAPER_UM = 0.25  # um per pixel that the paper's enlargements are read at: it does not state its spacing


@dataclass(frozen=True, eq=False, slots=True)
class Trial:
    """One training: its name, which is its folder, recipe and slides."""

    name: str
    cfg: DetectorTrainConfig
    rows: tuple[SlideRow, ...]


@dataclass(frozen=True, slots=True)
class TrialScore:
    """How well a trial's network does on one class of the held-out tiles.

    Attributes:
        ap50_learned: against boxes as enlarged as it has learned them.
        ap50_capillary: against the capillaries' own boxes, what it was enlarged by taken off.
        agreement: by distance of middles, at the network's threshold.
    """

    trial: str
    enlarged_um: float
    label: str
    ap50_learned: float
    ap50_capillary: float
    agreement: Agreement


def sweep_trials(
    cfg: DetectorTrainConfig, rows: Sequence[SlideRow], pixels: Sequence[int]
) -> tuple[Trial, ...]:
    """A training for each enlargement, in the paper's pixels, the same for all classes."""
    return tuple(
        Trial(
            f"enlarged_{px:02d}px",
            cfg.model_copy(update={"enlarge_um": (px * PAPER_UM,) * len(cfg.detector.classes)}),
            tuple(rows),
        )
        for px in pixels
    )


def corrected_trials(
    cfg: DetectorTrainConfig, rows: Sequence[SlideRow], corrected: Sequence[SlideRow]
) -> tuple[Trial, ...]:
    """The same training without and with further slides, whose labels a person corrected.

    Raises:
        ConfigError: one of them is held out, or belongs to the first data set.
    """
    known = {row.source.path for row in rows}
    for row in corrected:
        if row.split not in (None, "train"):
            raise ConfigError(
                f"{row.source.label} is of the split {row.split!r}: corrected slides are trained on"
            )
        if row.source.path in known:
            raise ConfigError(f"{row.source.label} is in both data sets; give each slide once")
    return Trial("without", cfg, tuple(rows)), Trial("with", cfg, (*rows, *corrected))


def score_trial(trial: Trial, folder: Path) -> list[TrialScore]:
    """Measure a trained trial on the held-out tiles, which are the same for all trials.

    Raises:
        ConfigError: no slide is held out.
    """
    network, card = load_detector(folder / "model")
    plain = trial.cfg.model_copy(update={"enlarge_um": (0.0,) * len(trial.cfg.detector.classes)})
    with ExitStack() as stack:
        tiles = validation_tiles(trial.rows, trial.cfg, stack)
        capillaries = [tile.objects for tile in validation_tiles(trial.rows, plain, stack)]
    if not capillaries:
        raise ConfigError("trials are compared on held-out slides; give some the split 'validation'")
    detections = detect_tiles(network, tiles)
    learned = [tile.objects for tile in tiles]
    spacing = card.detector.spacing_um
    by_px = [um / spacing for um in card.enlarge_um]
    small = [shrunk(boxes, by_px, SMALLEST_UM / spacing) for boxes in detections]
    limits = np.array(card.thresholds)
    return [
        TrialScore(
            trial.name,
            card.enlarge_um[i],
            name,
            average_precision(detections, learned, i),
            average_precision(small, capillaries, i),
            _agreement(small, capillaries, i, limits, REACH_UM / spacing),
        )
        for i, name in enumerate(card.detector.classes)
    ]


def _agreement(
    found: Sequence[Boxes],
    truth: Sequence[Boxes],
    label: int,
    limits: npt.NDArray[np.float64],
    reach_px: float,
) -> Agreement:
    """Hits, false alarms and misses of one class over all tiles, whose detections and marks are in the same order."""
    total = np.zeros(3, np.int64)
    for detections, marks in zip(found, truth, strict=True):
        counted = detections[(detections.labels == label) & (detections.known_scores >= limits[label])]
        one = by_distance(counted, marks[marks.labels == label], reach_px)
        total += (one.hits, one.false, one.missed)
    return Agreement(*(int(v) for v in total))
