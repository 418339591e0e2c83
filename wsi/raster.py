"""Polygons onto rasters."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from shapely import Polygon

_BITS = 8  # cv2 places corners to 1/256 of a cell


def fill_polygon(
    raster: npt.NDArray[np.uint8],
    shape: Polygon,
    step: tuple[float, float],
    value: int,
    *,
    corner: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Set the cells of a polygon with holes; a cell whose centre lies inside is set, and those the edge crosses.

    Args:
        raster: changed in place.
        shape: in level-0 pixels; may reach off the raster.
        step: level-0 pixels per cell, (x, y).
        value: what is written.
        corner: level-0 (x, y) of the raster's top-left corner.
    """
    rings = [shape.exterior, *shape.interiors]
    points = [
        np.round(((np.asarray(ring.coords)[:, :2] - corner) / step - 0.5) * (1 << _BITS)).astype(np.int32)
        for ring in rings
    ]
    cv2.fillPoly(raster, points, value, cv2.LINE_8, _BITS)
