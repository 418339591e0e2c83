"""Which fields of a kidney slide capillaries are counted in: candidates on a grid, told by a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field as Setting

from models.card import ModelCard
from models.engines import Engine
from pipelines.scoring import score_chunks
from wsi.arrays import PointsXY
from wsi.blocks import chunk_side, plan_blocks
from wsi.c4d import FEASIBLE, FIELD_UM
from wsi.config import Config
from wsi.errors import ModelError
from wsi.grid import TileGrid, make_grid, tissue_share
from wsi.placement import Placement
from wsi.slide import Slide, plan_read
from wsi.store import HeatmapSpec, HeatmapStore
from wsi.tissue import Mask

MOSTLY_EMPTY = (
    1 / 3
)  # share of tissue below which a field is said to be empty (Kim's thesis: over two thirds)


class FieldsConfig(Config):
    """How fields are chosen.

    Attributes:
        min_tissue: share of tissue from which a square of the grid is a candidate.
        sample: None takes every candidate; a number draws so many of them at random, for speed.
        seed: of that draw.
        threshold: score from which a field is feasible; None is the model's own.
    """

    min_tissue: float = Setting(default=0.05, gt=0, le=1)
    sample: int | None = Setting(default=None, gt=0)
    seed: int = Setting(default=0, ge=0)
    threshold: float | None = Setting(default=None, ge=0, le=1)


@dataclass(frozen=True, slots=True)
class KidneyField:
    """A candidate.

    Attributes:
        x, y: corner, in level-0 pixels; with the grid's side it may reach off the slide.
        tissue: share of its part on the slide.
        score: that it is feasible, 0..1; None where it could not be decoded.
        why_not: why it is left out; empty where capillaries are counted in it.
    """

    x: int
    y: int
    tissue: float
    score: float | None
    why_not: str

    @property
    def feasible(self) -> bool:
        """Whether capillaries are counted in it."""
        return not self.why_not


@dataclass(frozen=True, eq=False, slots=True)
class FieldSet:
    """Every candidate of a slide, row by row, and the grid they lie on.

    Attributes:
        side: of a field, in level-0 pixels.
        shape: (rows, cols) of the grid.
    """

    fields: tuple[KidneyField, ...]
    side: int
    shape: tuple[int, int]

    @property
    def feasible(self) -> tuple[KidneyField, ...]:
        """Those that count."""
        return tuple(f for f in self.fields if f.feasible)

    @property
    def mask(self) -> Mask:
        """True where a field is feasible."""
        pixels = np.zeros(self.shape, np.bool_)
        for f in self.feasible:
            pixels[f.y // self.side, f.x // self.side] = True
        return Mask(pixels, Placement(self.side, self.side))

    def area_mm2(self, size: tuple[int, int], mpp: float) -> float:
        """Tissue in feasible fields.

        Args:
            size: (width, height) of the slide in level-0 pixels: fields may reach off it.
            mpp: um per level-0 pixel.
        """
        corners = ((f, size[0] - f.x, size[1] - f.y) for f in self.feasible)
        return sum(f.tissue * min(self.side, w) * min(self.side, h) for f, w, h in corners) * mpp**2 / 1e6

    def index(self, points: PointsXY) -> npt.NDArray[np.int64]:
        """The number of the feasible field that holds each level-0 (x, y); -1 where none does."""
        numbers = np.full(
            (self.shape[0] + 1, self.shape[1] + 1), -1, np.int64
        )  # the last row and column: off the grid
        for i, f in enumerate(self.feasible):
            numbers[f.y // self.side, f.x // self.side] = i
        rows, cols = Placement(self.side, self.side).cells(points).T
        outside = (rows < 0) | (cols < 0) | (rows >= self.shape[0]) | (cols >= self.shape[1])
        return np.where(outside, -1, numbers[np.where(outside, -1, rows), np.where(outside, -1, cols)])


def field_threshold(card: ModelCard, cfg: FieldsConfig) -> float:
    """The score from which a field is feasible.

    Raises:
        ModelError: the model does not tell fields, or those of another size.
    """
    threshold = cfg.threshold if cfg.threshold is not None else card.threshold
    if card.positive != FEASIBLE or card.spacing_um is None or threshold is None:
        raise ModelError(f"the model {card.name} does not tell feasible fields; give one of wsi train fields")
    if abs(card.stride_px * card.spacing_um / FIELD_UM - 1) > 0.01:
        raise ModelError(f"the model {card.name} sees fields of another size than {FIELD_UM:g} um")
    return threshold


def choose_fields(
    slide: Slide,
    mask: Mask,
    engine: Engine,
    path: Path,
    cfg: FieldsConfig,
    *,
    fingerprint: str,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> FieldSet:
    """Score the candidates with the same engine and store as patches, and tell feasible ones.

    Args:
        slide: what is read.
        mask: where there is tissue.
        engine: of a model of fields.
        path: of the heatmap; scores that are there already are not computed again.
        cfg: how.
        fingerprint: of all that made the scores.
        tick: called with (fields done, fields).

    Raises:
        ModelError: the model does not tell fields.
        SpacingError: the slide is too coarse for it.
    """
    card = engine.models.card
    threshold = field_threshold(card, cfg)
    plan = plan_read(slide, card.patch_px, card.stride_px, card.spacing_um, tolerance=card.spacing_tolerance)
    grid = _sampled(make_grid(slide.size, plan, mask, min_tissue=cfg.min_tissue), cfg)
    side = chunk_side(slide, plan)
    spec = HeatmapSpec.of_grid(grid, side, slide.mpp, card.classes, fingerprint)
    store = HeatmapStore.create(path, spec)
    engine.expect(len(grid))
    score_chunks(slide, plan_blocks(grid, side), engine, store, progress=tick)
    scores = store.read(card.positive_index).scores
    shares = tissue_share(mask, slide.size, plan.stride_l0, grid.shape)
    found = tuple(
        _field(
            int(row), int(col), plan.stride_l0, float(shares[row, col]), float(scores[row, col]), threshold
        )
        for row, col in grid.cells
    )
    return FieldSet(found, plan.stride_l0, grid.shape)


def _sampled(grid: TileGrid, cfg: FieldsConfig) -> TileGrid:
    if cfg.sample is None or cfg.sample >= len(grid):
        return grid
    chosen = np.random.default_rng(cfg.seed).choice(len(grid), cfg.sample, replace=False)
    return TileGrid(grid.shape, grid.cells[np.sort(chosen)], grid.plan)


def _field(row: int, col: int, side: int, tissue: float, score: float, threshold: float) -> KidneyField:
    if np.isnan(score):
        return KidneyField(col * side, row * side, tissue, None, "cannot be decoded")
    why_not = ""
    if score < threshold:
        empty = f"mostly empty: {tissue:.0%} tissue"
        unfit = "scar, artefact, poor stain, large vessel or glomerulus: the network does not say which"
        why_not = empty if tissue < MOSTLY_EMPTY else unfit
    return KidneyField(col * side, row * side, round(tissue, 4), round(score, 6), why_not)
