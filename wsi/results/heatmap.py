"""Scores of a slide's cells, and their place on the slide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wsi.arrays import Scores, check_array
from wsi.placement import Placement

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, slots=True)
class Heatmap:
    """One class's scores: (rows, cols) float32 in 0..1, NaN where nothing was scored.

    Attributes:
        cell_px: side of a cell in the pixels that the model saw.
    """

    scores: Scores
    placement: Placement
    cell_px: int = 128

    def __post_init__(self) -> None:
        check_array("scores", self.scores, ndim=2, dtype=np.float32)
        if np.nanmin(self.scores, initial=0) < 0 or np.nanmax(self.scores, initial=0) > 1:
            raise ValueError("scores must lie in 0..1")

    @property
    def scored(self) -> int:
        """Number of cells that have a score."""
        return int(np.isfinite(self.scores).sum())

    @property
    def maximum(self) -> float:
        """The highest score; NaN where no cell was scored."""
        return float(np.nanmax(self.scores)) if self.scored else float("nan")

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the scores in level-0 pixels, y downward; cells without a score are left empty.

        Args:
            axes: matplotlib's axes to draw on; None takes the current ones.
        """
        from matplotlib import pyplot as plt  # takes a second, and only a notebook asks for it

        axes = axes or plt.gca()
        rows, cols = self.scores.shape
        extent = (0, cols * self.placement.step_x, rows * self.placement.step_y, 0)
        axes.imshow(self.scores, extent=extent, vmin=0, vmax=1, cmap="inferno", interpolation="nearest")
        return axes
