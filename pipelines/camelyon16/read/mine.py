"""Hard negatives: the highest-scoring normal cells of scored training slides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import binary_dilation

from pipelines.runs.training_pictures import contact_sheet_png
from wsi.arrays import RgbImage
from wsi.datasets.patch_folder import NEGATIVE_LABEL
from wsi.datasets.truth import read_truth
from wsi.errors import ConfigError, StoreError
from wsi.files import csv_text, write_bytes, write_text
from wsi.results.folder import Folder, Place, folder_at
from wsi.results.store import HeatmapStore
from wsi.slides.grid import make_grid
from wsi.slides.manifest import SlideRow
from wsi.slides.slide import ReadPlan
from wsi.slides.source import SlideSource
from wsi.vocabulary import means_tumour

if TYPE_CHECKING:
    from models.training.recipe import TrainConfig  # it loads torch, which takes seconds

SHOWN = 40


@dataclass(frozen=True, slots=True)
class HardNegative:
    """A normal cell that scores high: level-0 (x, y) of its corner; ``patch_l0`` is the side of its patch."""

    slide: str
    x: int
    y: int
    score: float
    source: SlideSource
    stride_l0: int
    patch_l0: int

    def read(self) -> RgbImage:
        """The pixels of its patch at level 0."""
        halo = (self.patch_l0 - self.stride_l0) // 2
        with self.source.open() as slide:
            return slide.read_region((self.x - halo, self.y - halo), 0, (self.patch_l0, self.patch_l0))


def hard_negatives(
    rows: Sequence[SlideRow],
    scored: Place,
    cfg: TrainConfig,
    *,
    per_slide: int,
    threshold: float,
    margin: int,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> list[HardNegative]:
    """The highest-scoring normal cells of each slide, highest first.

    Args:
        rows: training slides with truth; those that are marked in part are passed over.
        scored: folder of ``wsi score`` with results of these slides.
        cfg: its ``truth_label`` says which value of a mask means tumour.
        per_slide: largest number of cells of one slide.
        threshold: lowest score.
        margin: cells around tumour that are left out, as outlines are not that exact.
        tick: called with (slides done, slides).

    Raises:
        StoreError: a slide was not scored.
        ConfigError: none is left to look at.
    """
    usable = [row for row in rows if not row.partial]
    if not usable:
        raise ConfigError("every training slide is marked only in part: none can give normal cells")
    negatives: list[HardNegative] = []
    folder = folder_at(scored)
    for i, row in enumerate(usable):
        tick(i, len(usable))
        negatives += _of_slide(row, folder.inside(row.source.name), cfg, per_slide, threshold, margin)
    tick(len(usable), len(usable))
    return sorted(negatives, key=lambda h: (-h.score, h.slide, h.y, h.x))


def _of_slide(
    row: SlideRow, results: Folder, cfg: TrainConfig, per_slide: int, threshold: float, margin: int
) -> list[HardNegative]:
    if not results.exists("heatmap.zarr"):
        raise StoreError(
            f"{results} holds no heatmap of {row.source.label}; run: wsi score SLIDES --out {results.parent}"
        )
    store = HeatmapStore.open(results.inside("heatmap.zarr"))
    facts = store.attributes
    classes, stride, side = facts["classes"], facts["stride_level0"][0], facts["patch_level0"][0]
    tumour_class = next((i for i, c in enumerate(classes) if means_tumour(c)), None)
    if tumour_class is None:
        raise StoreError(
            f"{results} was scored by a model of the classes {', '.join(classes)}: none is tumour"
        )
    scores = store.read(tumour_class).scores.copy()
    plan = ReadPlan(0, stride, facts["stride_model_px"], round(side * facts["stride_model_px"] / stride))
    with row.source.open() as slide:
        grid = make_grid(slide.size, plan, None)
        if grid.shape != scores.shape:
            raise StoreError(
                f"{results} was scored from another slide than {row.source.label}; score it again"
            )
        if row.checked_truth is not None:
            tumour = read_truth(row.checked_truth, slide, grid, label=cfg.truth_label).tumour
            near = binary_dilation(tumour, np.ones((3, 3)), iterations=margin) if margin else tumour
            scores[near] = np.nan
    flat = np.where(np.isnan(scores), -1, scores).ravel()
    best = [int(i) for i in np.argsort(-flat, kind="stable")[:per_slide] if flat[i] >= threshold]
    corners = [(stride * (i % scores.shape[1]), stride * (i // scores.shape[1])) for i in best]
    return [
        HardNegative(row.source.name, x, y, float(flat[i]), row.source, stride, side)
        for i, (x, y) in zip(best, corners, strict=True)
    ]


def write_list(path: Path, found: Sequence[HardNegative]) -> Path:
    """Write ``slide,x,y,score``, and a picture of the highest beside it; return the picture's path."""
    rows = ((h.slide, h.x, h.y, f"{h.score:.6f}") for h in found)
    write_text(path, csv_text(("slide", "x", "y", "score"), rows))
    picture = path.with_suffix(".png")
    best = found[:SHOWN]
    sheet = contact_sheet_png(
        [h.read() for h in best],
        [NEGATIVE_LABEL] * len(best),
        title="Hard negatives: normal tissue that the model takes for tumour",
        captions=[f"{h.slide} {h.x},{h.y} {h.score:.2f}" for h in best],
    )
    write_bytes(picture, sheet)
    return picture
