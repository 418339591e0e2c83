"""Named array types: order, dtype and range of every array in a public signature."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

RgbImage = npt.NDArray[np.uint8]
"""(height, width, 3), 0..255, red first."""

BoolRaster = npt.NDArray[np.bool_]
"""(rows, cols)."""

CellsRC = npt.NDArray[np.int64]
"""(n, 2): row, col of raster cells."""

PointsXY = npt.NDArray[np.float64]
"""(n, 2): x, y in level-0 pixels."""

BoxesXYXY = npt.NDArray[np.float64]
"""(n, 4): x0, y0, x1, y1 in level-0 pixels, half-open."""

Scores = npt.NDArray[np.float32]
"""Probabilities in 0..1; NaN is "not scored". Each use states the shape."""


def oriented(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Pixels (rows, cols, ...) in orientation 0..7: bit 1 transposes, then bit 2 reverses rows and bit 4 columns.

    The same as `models.networks.contract.orient`.
    """
    transposed = np.swapaxes(pixels, 0, 1) if orientation & 1 else pixels
    return transposed[:: -1 if orientation & 2 else 1, :: -1 if orientation & 4 else 1]


def check_array(name: str, array: npt.NDArray[Any], *, ndim: int, dtype: npt.DTypeLike) -> None:
    """Raise ValueError unless ``array`` has this many dimensions and this dtype."""
    if array.ndim != ndim or array.dtype != np.dtype(dtype):
        raise ValueError(
            f"{name} must be a {ndim}-d {np.dtype(dtype)} array, got {array.shape} {array.dtype}"
        )
