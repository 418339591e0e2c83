"""Polygons drawn onto rasters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from shapely import MultiPolygon, Polygon

from wsi.arrays import BoolRaster, PointsXY

_BITS = 8  # cv2 places corners to 1/256 of a cell


def fill_polygon(
    raster: npt.NDArray[np.uint8],
    shape: Polygon,
    step: tuple[float, float],
    value: int,
    *,
    corner: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Set the cells of a polygon with holes: cells whose centre lies inside, and cells that its edge runs through.

    Args:
        raster: the raster, changed in place.
        shape: in level-0 pixels; may reach off the raster.
        step: level-0 pixels per cell, (x, y).
        value: value of the set cells.
        corner: level-0 (x, y) of the raster's top-left corner.
    """
    rings = [shape.exterior, *shape.interiors]
    points = [
        np.round(((np.asarray(ring.coords)[:, :2] - corner) / step - 0.5) * (1 << _BITS)).astype(np.int32)
        for ring in rings
    ]
    cv2.fillPoly(raster, points, value, cv2.LINE_8, _BITS)


def cells_inside(area: MultiPolygon, step: tuple[float, float], shape: tuple[int, int]) -> BoolRaster:
    """The cells whose centre lies in the area, exactly.

    A row's cells are inside between the first and second crossing of its middle line with the outlines, the third and
    fourth, and so on; holes need no special case.

    Args:
        area: in level-0 pixels, valid; may reach off the raster.
        step: level-0 pixels per cell, (x, y); the corner of cell (0, 0) is level-0 pixel (0, 0).
        shape: (rows, cols).
    """
    inside = np.zeros(shape, np.bool_)
    for polygon in area.geoms:
        part = cells_of(polygon, step, shape)
        inside[part.window] |= part.inside
    return inside


@dataclass(frozen=True, eq=False, slots=True)
class PolygonCells:
    """The cells of one polygon: a window of the raster, and True for its cells that are inside."""

    window: tuple[slice, slice]
    inside: BoolRaster


def cells_of(
    polygon: Polygon,
    step: tuple[float, float],
    shape: tuple[int, int],
    *,
    corner: tuple[float, float] = (0.0, 0.0),
) -> PolygonCells:
    """The cells inside one polygon (see `cells_inside`), in a window around it; empty if it lies off the raster.

    ``corner`` is the level-0 (x, y) of the raster's top-left corner.
    """
    x0, y0, x1, y1 = np.array(polygon.bounds) - [*corner, *corner]
    left, right = (min(max(0, n), shape[1]) for n in (math.floor(x0 / step[0]), math.ceil(x1 / step[0])))
    top, bottom = (min(max(0, n), shape[0]) for n in (math.floor(y0 / step[1]), math.ceil(y1 / step[1])))
    height, width = max(0, bottom - top), max(0, right - left)
    flips = np.zeros(height * (width + 1), np.int64)
    for ring in (polygon.exterior, *polygon.interiors) if flips.size else ():
        points = (
            (shapely.get_coordinates(ring) - corner) / step - 0.5 - (left, top)
        )  # whole numbers are centres
        rows, cols = _crossings(points, height)
        flips += np.bincount(rows * (width + 1) + np.clip(cols, 0, width), minlength=len(flips))
    odd = (flips.reshape(height, width + 1)[:, :width] & 1).astype(np.bool_)
    return PolygonCells(np.s_[top:bottom, left:right], np.logical_xor.accumulate(odd, axis=1))


def areas_of(inside: BoolRaster, step: float, least: int = 1) -> list[Polygon]:
    """The connected areas of a raster as polygons along the cells' edges, with holes; cells that touch by a corner
    only are apart.

    Args:
        inside: True for the cells of the areas.
        step: level-0 pixels along a cell, whose cell (0, 0) has its corner at level-0 pixel (0, 0).
        least: areas of fewer cells are left out.

    Returns:
        Polygons in level-0 pixels, from top to bottom, then from left to right.
    """
    _, numbers, boxes, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=4)
    areas: list[Polygon] = []
    for number in 1 + np.flatnonzero(boxes[1:, cv2.CC_STAT_AREA] >= least):
        left, top, width, height, _ = boxes[number]
        part = numbers[top : top + height, left : left + width] == number
        edges = np.diff(np.pad(part, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        row, start = np.nonzero(edges == 1)  # both in the order of rows, so that runs begin and end together
        end = np.nonzero(edges == -1)[1]
        runs = shapely.box(
            (left + start) * step, (top + row) * step, (left + end) * step, (top + row + 1) * step
        )
        area = shapely.union_all(runs)
        assert isinstance(area, Polygon)  # its cells are connected by their edges
        areas.append(area)
    return sorted(areas, key=lambda area: (area.bounds[1], area.bounds[0]))


def _crossings(ring: PointsXY, height: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Crossings of a closed ring with the lines y = 0 ... height - 1: each row, and the first whole x from there on."""
    upward = ring[:-1, 1] <= ring[1:, 1]
    low = np.where(upward[:, None], ring[:-1], ring[1:])
    high = np.where(upward[:, None], ring[1:], ring[:-1])
    # an edge includes its lower end but not its upper one, so that a corner on a line counts as often as it must
    first = np.clip(np.ceil(low[:, 1]), 0, height).astype(np.int64)
    last = np.clip(np.ceil(high[:, 1]), 0, height).astype(np.int64)
    count = last - first
    edge = np.repeat(np.arange(len(count)), count)
    rows = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    run = (high[edge] - low[edge]).T
    cols = low[edge, 0] + (rows - low[edge, 1]) * run[0] / run[1]
    return rows, np.ceil(cols).astype(np.int64)
