"""The drawing of ROC curves, for patches and for slides."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

RocCurve = tuple[str, npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""A curve's name in the legend, its false positive rates and its true positive rates, both 0..1."""
_BLUE = "#1565c0"


def draw_roc(
    axis: Axes,
    curves: Sequence[RocCurve],
    *,
    points: Sequence[tuple[str, float, float]] = (),
    thin: float = 0.9,
) -> None:
    """Draw ROC curves with the diagonal of chance, a grid and a legend; the caller sets labels, limits and title.

    Args:
        axis: where to draw.
        curves: the first is drawn boldly.
        points: operating points on the first curve: name, false and true positive rate, 0..1.
        thin: width of the other curves' lines, in points of 1/72 inch.
    """
    for i, (name, false, true) in enumerate(curves):
        style = {"linewidth": 2.2, "color": _BLUE, "zorder": 5} if i == 0 else {"linewidth": thin}
        axis.plot(false, true, label=name, **style)
    for (name, false_rate, true_rate), marker in zip(points, cycle("osD^v"), strict=False):
        axis.plot(false_rate, true_rate, marker, color=_BLUE, markersize=6, zorder=6, label=name)
    axis.plot([0, 1], [0, 1], ":", color="grey", linewidth=1)
    if curves or points:
        axis.legend(loc="lower right", fontsize=8)
    axis.grid(alpha=0.3)
