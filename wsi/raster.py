"""Polygons onto rasters."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
from shapely import MultiPolygon, Polygon

from wsi.arrays import BoolRaster

_BITS = 8  # cv2 places corners to 1/256 of a cell
_FINER = 8  # centres are decided to an eighth of a cell


def fill_polygon(
    raster: npt.NDArray[np.uint8],
    shape: Polygon,
    step: tuple[float, float],
    value: int,
    *,
    corner: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Set the cells of a polygon with holes: those whose centre lies inside, and those that its edge runs through.

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


def cells_inside(area: MultiPolygon, step: tuple[float, float], shape: tuple[int, int]) -> BoolRaster:
    """The cells whose centre lies in the area, to a sixteenth of a cell.

    Args:
        area: in level-0 pixels.
        step: level-0 pixels per cell, (x, y); the corner of cell (0, 0) is level-0 pixel (0, 0).
        shape: (rows, cols).
    """
    found = np.zeros(shape, np.bool_)
    for polygon in area.geoms:
        x0, y0, x1, y1 = polygon.bounds
        left, top = max(0, math.floor(x0 / step[0])), max(0, math.floor(y0 / step[1]))
        right, bottom = min(shape[1], math.ceil(x1 / step[0])), min(shape[0], math.ceil(y1 / step[1]))
        if right <= left or bottom <= top:
            continue
        fine = np.zeros(((bottom - top) * _FINER, (right - left) * _FINER), np.uint8)
        corner = (left * step[0], top * step[1])
        fill_polygon(fine, polygon, (step[0] / _FINER, step[1] / _FINER), 1, corner=corner)
        # the middle of a cell is the corner of four fine cells: two of them across it must be inside
        half = _FINER // 2
        middle = fine[half::_FINER, half::_FINER] & fine[half - 1 :: _FINER, half - 1 :: _FINER]
        found[top:bottom, left:right] |= middle > 0
    return found
