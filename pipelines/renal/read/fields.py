"""The fields of a kidney slide in which capillaries are counted: squares along the tissue, chosen by a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field as Setting

from models.card import ModelCard
from models.engines import Engine
from pipelines.runs.task import HERE, ChunkTask, Executor, in_parts
from wsi.arrays import CellsRC, PointsXY
from wsi.config import Config
from wsi.errors import ModelError
from wsi.marks.c4d import FIELD_UM, FIELD_UNITS
from wsi.placement import Placement
from wsi.results.folder import Folder
from wsi.results.store import HeatmapSpec, HeatmapStore
from wsi.slides.blocks import chunk_side, plan_blocks
from wsi.slides.grid import TileGrid, make_grid, tissue_share
from wsi.slides.slide import Slide, plan_read
from wsi.slides.source import SlideSource
from wsi.slides.tissue import Mask
from wsi.vocabulary import FEASIBLE

MOSTLY_EMPTY = (
    1 / 3
)  # share of tissue below which a field is said to be empty (Kim's thesis: over two thirds)

FORMAT = 1  # version of the fields and their scores; raise it when the golden fields of the tests change
SLACK = 0.02  # share of a unit: corners were rounded to whole pixels


class FieldsConfig(Config):
    """Settings of the choice of fields.

    Attributes:
        min_tissue: share of tissue from which a square is a candidate.
        sample: number of candidates that are drawn at random, for speed; None takes all.
        seed: seed of that draw.
        threshold: score from which a field is feasible; None is the model's own threshold.
    """

    min_tissue: float = Setting(default=0.05, gt=0, le=1)
    sample: int | None = Setting(default=None, gt=0)
    seed: int = Setting(default=0, ge=0)
    threshold: float | None = Setting(default=None, ge=0, le=1)


@dataclass(frozen=True, slots=True)
class KidneyField:
    """A candidate field.

    Attributes:
        x, y: corner, in level-0 pixels; the field may reach off the slide.
        tissue: share of tissue in its part on the slide.
        score: score for a feasible field, 0..1; None where the field could not be decoded.
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
    """All candidate fields of a slide, from top to bottom and left to right; they do not overlap.

    Attributes:
        side: side of a field, in level-0 pixels.
        size: (width, height) of the slide in level-0 pixels: fields may reach off it.
    """

    fields: tuple[KidneyField, ...]
    side: int
    size: tuple[int, int]

    @property
    def feasible(self) -> tuple[KidneyField, ...]:
        """The fields in which capillaries are counted."""
        return tuple(f for f in self.fields if f.feasible)

    @property
    def mask(self) -> Mask:
        """Mask of the feasible fields, on a raster of a thirteenth of a field's side; rounded outward."""
        step = self.side / FIELD_UNITS
        pixels = np.zeros((math.ceil(self.size[1] / step), math.ceil(self.size[0] / step)), np.bool_)
        for f in self.feasible:
            rows = slice(max(0, math.floor(f.y / step + SLACK)), math.ceil((f.y + self.side) / step - SLACK))
            cols = slice(max(0, math.floor(f.x / step + SLACK)), math.ceil((f.x + self.side) / step - SLACK))
            pixels[rows, cols] = True
        return Mask(pixels, Placement(step, step))

    def area_mm2(self, mpp: float) -> float:
        """Area of tissue in feasible fields, in mm2.

        Args:
            mpp: um per level-0 pixel.
        """
        width, height = self.size
        area = 0.0
        for f in self.feasible:
            visible_width = min(f.x + self.side, width) - max(f.x, 0)
            visible_height = min(f.y + self.side, height) - max(f.y, 0)
            area += f.tissue * visible_width * visible_height
        return area * mpp**2 / 1e6

    def index(self, points: PointsXY) -> npt.NDArray[np.int64]:
        """The number of the feasible field (half-open) that holds each level-0 (x, y); -1 where none does."""
        return index_of([(f.x, f.y) for f in self.feasible], self.side, points)


def index_of(corners: Sequence[tuple[int, int]], side: int, points: PointsXY) -> npt.NDArray[np.int64]:
    """The number of the square that holds each point, the first of two that overlap by rounding; -1 where none does."""
    numbers = np.full(len(points), -1, np.int64)
    for i in range(len(corners) - 1, -1, -1):
        x, y = corners[i]
        inside = (
            (points[:, 0] >= x) & (points[:, 0] < x + side) & (points[:, 1] >= y) & (points[:, 1] < y + side)
        )
        numbers[inside] = i
    return numbers


def field_threshold(card: ModelCard, cfg: FieldsConfig) -> float:
    """The score from which a field is feasible.

    Raises:
        ModelError: the model does not score fields, or scores fields of another size.
    """
    threshold = cfg.threshold if cfg.threshold is not None else card.threshold
    if card.positive != FEASIBLE or card.spacing_um is None or threshold is None:
        raise ModelError(f"the model {card.name} does not tell feasible fields; give one of wsi train fields")
    if abs(card.stride_px * card.spacing_um / FIELD_UM - 1) > 0.01:
        raise ModelError(f"the model {card.name} sees fields of another size than {FIELD_UM:g} um")
    return threshold


def choose_fields(
    slide: Slide,
    source: SlideSource,
    mask: Mask,
    engine: Engine,
    folder: Folder,
    cfg: FieldsConfig,
    *,
    fingerprint: str,
    executor: Executor = HERE,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> FieldSet:
    """Score the candidates with the same engine and store as patches, and choose the feasible ones.

    Args:
        slide: the slide to read.
        source: of the slide, for tasks that open it themselves.
        mask: mask of the tissue.
        engine: engine of a model that scores fields.
        folder: the heatmap's own; scores that it already holds are not computed again.
        cfg: how fields are chosen.
        fingerprint: hash of everything that makes the scores.
        executor: who scores the fields.
        tick: called with (fields done, fields).

    Raises:
        ModelError: the model does not score fields.
        SpacingError: the slide is too coarse for it.
    """
    card = engine.models.card
    threshold = field_threshold(card, cfg)
    units = units_of(card.patch_px)
    plan = plan_read(
        slide, card.patch_px, card.patch_px // units, card.spacing_um, tolerance=card.spacing_tolerance
    )
    shape = make_grid(slide.size, plan, None).shape
    shares = tissue_share(mask, slide.size, plan.stride_l0, shape)
    whole = unit_areas(slide.size, plan.stride_l0, shape)
    corners = _sampled(place_fields(shares * whole, whole, units, cfg.min_tissue), cfg)
    grid = TileGrid(shape, corners + units // 2, plan)  # the middle of a patch is the middle one of its units
    side = chunk_side(slide, plan)
    spec = HeatmapSpec.of_grid(grid, side, slide.mpp, card.classes, fingerprint)
    store = HeatmapStore.create(folder, spec)
    tasks = [
        ChunkTask(source, blocks, len(grid), engine.spec, folder, fingerprint)
        for blocks in in_parts(plan_blocks(grid, side), executor.chunks_per_task)
    ]
    for _ in executor.map(tasks, tick):
        pass  # each has written its chunks
    store.pack()
    scores = store.read(card.positive_index).scores
    fields = []
    for row, col in corners.tolist():
        window = np.s_[row : row + units, col : col + units]
        tissue = float((shares * whole)[window].sum() / whole[window].sum())
        score = float(scores[row + units // 2, col + units // 2])
        fields.append(_field(row, col, plan.stride_l0, tissue, score, threshold))
    return FieldSet(tuple(fields), units * plan.stride_l0, slide.size)


def units_of(patch_px: int) -> int:
    """The number of units of a field's side: odd, so that one is the middle, and a divisor of the patch's side."""
    return max(n for n in range(1, FIELD_UNITS + 1, 2) if patch_px % n == 0)


def unit_areas(size: tuple[int, int], unit: int, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Area of each unit's part on the slide, in level-0 pixels: (rows, cols)."""
    width, height = size
    heights = np.diff(np.minimum(np.arange(shape[0] + 1) * unit, height))
    widths = np.diff(np.minimum(np.arange(shape[1] + 1) * unit, width))
    return np.outer(heights, widths).astype(np.float64)


def place_fields(
    tissue: npt.NDArray[np.float64], whole: npt.NDArray[np.float64], units: int, min_tissue: float
) -> CellsRC:
    """Place squares along the tissue: strips over each piece of it, and in each strip squares over each run of tissue.

    On a fixed grid the rim of a biopsy falls into fields that are mostly glass, which are then left out.

    Args:
        tissue: (rows, cols) area of tissue in each unit.
        whole: (rows, cols) area of each unit on the slide.
        units: side of a square, in units.
        min_tissue: share of tissue from which a square is taken.

    Returns:
        (n, 2) row, col of the squares' top-left units, row by row; none overlap.
    """
    rows, cols = tissue.shape
    is_occupied = np.zeros(tissue.shape, np.bool_)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats((tissue > 0).astype(np.uint8), connectivity=8)
    corners = []
    largest_first = sorted(
        range(1, count), key=lambda i: (-boxes[i, cv2.CC_STAT_AREA], boxes[i, 1], boxes[i, 0])
    )
    for piece in largest_first:  # so the rim of the glass takes no square from the biopsy
        first = int(boxes[piece, 1])
        for top in _starts(first, first + int(boxes[piece, 3]), units, rows):
            columns = np.flatnonzero((labels[top : top + units] == piece).any(axis=0))
            for run_columns in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1):
                for left in (
                    _starts(int(run_columns[0]), int(run_columns[-1]) + 1, units, cols)
                    if len(run_columns)
                    else ()
                ):
                    window = np.s_[top : top + units, left : left + units]
                    if (
                        not is_occupied[window].any()
                        and tissue[window].sum() >= min_tissue * whole[window].sum()
                    ):
                        is_occupied[window] = True
                        corners.append((top, left))
    return np.array(sorted(corners), np.int64).reshape(-1, 2)


def _starts(first: int, last: int, side: int, length: int) -> list[int]:
    """Starts of squares that cover first..last, centred; up to a quarter of a square may stay uncovered.

    Their middle units lie inside 0..length.
    """
    count = max(1, math.ceil((last - first) / side - 0.25))
    highest = length - 1 - side // 2
    start = min(first + (last - first - count * side) // 2, highest - (count - 1) * side)
    return [max(0, start) + i * side for i in range(count) if i == 0 or max(0, start) + i * side <= highest]


def _sampled(corners: CellsRC, cfg: FieldsConfig) -> CellsRC:
    if cfg.sample is None or cfg.sample >= len(corners):
        return corners
    chosen = np.random.default_rng(cfg.seed).choice(len(corners), cfg.sample, replace=False)
    return corners[np.sort(chosen)]


def _field(row: int, col: int, unit: int, tissue: float, score: float, threshold: float) -> KidneyField:
    if np.isnan(score):
        return KidneyField(col * unit, row * unit, tissue, None, "cannot be decoded")
    why_not = ""
    if score < threshold:
        empty_text = f"mostly empty: {tissue:.0%} tissue"
        unfit_text = "scar, artefact, poor stain, large vessel or glomerulus: the network does not say which"
        why_not = empty_text if tissue < MOSTLY_EMPTY else unfit_text
    return KidneyField(col * unit, row * unit, round(tissue, 4), round(score, 6), why_not)
