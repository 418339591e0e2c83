"""The grid of cells that are scored on a slide: numbers only, no pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi.arrays import CellsRC, PointsXY, check_array
from wsi.placement import Placement
from wsi.slides.slide import ReadPlan
from wsi.slides.tissue import Mask

MIN_TISSUE = 0.05  # share of a cell; a sliver of tissue at an edge holds no lesion of its own


@dataclass(frozen=True, eq=False, slots=True)
class TileGrid:
    """The cells to score, row by row.

    Attributes:
        shape: (rows, cols) of the whole heatmap.
        cells: (n, 2) row, col of the cells with tissue.
        plan: the plan for reading a cell's patch.
    """

    shape: tuple[int, int]
    cells: CellsRC
    plan: ReadPlan

    def __post_init__(self) -> None:
        check_array("cells", self.cells, ndim=2, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def placement(self) -> Placement:
        """Placement of the heatmap on the slide."""
        return Placement(self.plan.stride_l0, self.plan.stride_l0)

    @property
    def corners(self) -> PointsXY:
        """Level-0 (x, y) of each patch's top-left corner; may lie off the slide."""
        corners_px = self.cells[:, ::-1] * self.plan.stride_px - self.plan.halo_px
        return np.asarray(corners_px * self.plan.scale, np.float64)


def make_grid(
    size: tuple[int, int], plan: ReadPlan, mask: Mask | None, *, min_tissue: float = MIN_TISSUE
) -> TileGrid:
    """The grid of cells that cover the slide once, with those that hold tissue selected.

    Args:
        size: (width, height) of the slide in level-0 pixels.
        plan: stride and patch.
        mask: None takes every cell.
        min_tissue: share of a cell (its part on the slide) that must be tissue; above 0.
    """
    width, height = size
    shape = math.ceil(height / plan.stride_l0), math.ceil(width / plan.stride_l0)
    if mask is None:
        selected = np.ones(shape, np.bool_)
    else:
        selected = tissue_share(mask, size, plan.stride_l0, shape) >= min_tissue
    return TileGrid(shape, np.argwhere(selected).astype(np.int64), plan)


def tissue_share(
    mask: Mask, size: tuple[int, int], stride_l0: int, shape: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Exact share of tissue of every cell's part on the slide, as (rows, cols) in 0..1.

    The mask is constant over each of its pixels, so its integral image, interpolated linearly
    between pixel borders, is the exact area up to any point.
    """
    integral = np.zeros((mask.pixels.shape[0] + 1, mask.pixels.shape[1] + 1))
    np.cumsum(np.cumsum(mask.pixels, axis=0, dtype=np.float64), axis=1, out=integral[1:, 1:])
    edges_y = np.minimum(np.arange(shape[0] + 1) * stride_l0, size[1])
    edges_x = np.minimum(np.arange(shape[1] + 1) * stride_l0, size[0])
    at_rows = _interpolate(integral, edges_y / mask.placement.step_y)
    area = _interpolate(at_rows.T, edges_x / mask.placement.step_x).T  # (rows + 1, cols + 1)
    tissue = np.diff(np.diff(area, axis=0), axis=1) * (mask.placement.step_x * mask.placement.step_y)
    return np.asarray(tissue / np.outer(np.diff(edges_y), np.diff(edges_x)))


def _interpolate(
    rows: npt.NDArray[np.float64], positions: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Linear interpolation between rows; beyond the last row the last row's value."""
    positions = np.minimum(positions, len(rows) - 1)
    low = np.minimum(np.floor(positions).astype(np.int64), len(rows) - 2)
    weight = (positions - low)[:, None]
    return np.asarray(rows[low] * (1 - weight) + rows[low + 1] * weight)
