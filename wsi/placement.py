"""Placement of a raster (tissue mask, heatmap) on the slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsi.arrays import BoxesXYXY, CellsRC, PointsXY


@dataclass(frozen=True, slots=True)
class Placement:
    """The placement of a raster whose cell (row, col) covers ``step_x`` x ``step_y`` level-0 pixels.

    The top-left corner of cell (0, 0) lies at level-0 pixel (0, 0). The two steps
    differ a little where a pyramid level was rounded to whole pixels.
    """

    step_x: float
    step_y: float

    def __post_init__(self) -> None:
        if self.step_x <= 0 or self.step_y <= 0:
            raise ValueError(f"steps must be positive, got {self.step_x} x {self.step_y}")

    def centers(self, cells: CellsRC) -> PointsXY:
        """Level-0 (x, y) of the middle of each (row, col)."""
        rows, cols = cells[:, 0], cells[:, 1]
        return np.stack([(cols + 0.5) * self.step_x, (rows + 0.5) * self.step_y], axis=1)

    def boxes(self, cells: CellsRC) -> BoxesXYXY:
        """The half-open level-0 box of each (row, col)."""
        rows, cols = cells[:, 0], cells[:, 1]
        x0, y0 = cols * self.step_x, rows * self.step_y
        return np.stack([x0, y0, x0 + self.step_x, y0 + self.step_y], axis=1)

    def cells(self, points: PointsXY) -> CellsRC:
        """The (row, col) that holds each level-0 (x, y); may lie off the raster."""
        cols = np.floor(points[:, 0] / self.step_x)
        rows = np.floor(points[:, 1] / self.step_y)
        return np.stack([rows, cols], axis=1).astype(np.int64)

    def raster_points(self, points: PointsXY) -> PointsXY:
        """Level-0 (x, y) converted to (x, y) in cells, with fractions: (0, 0) is the raster's corner."""
        return np.asarray(points / np.array([self.step_x, self.step_y]))
