"""A piece of a drawn kidney: two planes of stain, and methods that draw shapes into them."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from shapely import Polygon
from shapely.geometry.base import BaseGeometry

from wsi.phantoms.kidney.layout import Round
from wsi.phantoms.textures import Plane

_SHIFT = 4  # cv2's fractional bits: outlines are placed to a sixteenth of a pixel


class Piece:
    """Two concentration planes of a piece of the slide; shapes are drawn into them in level-0 pixels."""

    def __init__(self, x0: int, y0: int, width: int, height: int) -> None:
        self.x0, self.y0, self.width, self.height = x0, y0, width, height
        self.h: Plane = np.zeros((height, width), np.float32)
        self.d: Plane = np.zeros((height, width), np.float32)
        self.rng = np.random.default_rng(0)  # generator of the object that is drawn

    def _points(self, points: npt.ArrayLike) -> npt.NDArray[np.int32]:
        return np.round((np.asarray(points) - (self.x0, self.y0) - 0.5) * (1 << _SHIFT)).astype(np.int32)

    def fill(self, plane: Plane, shape: BaseGeometry, value: float) -> None:
        """Fill an outline; nothing where it is empty."""
        for part in getattr(shape, "geoms", [shape]):
            if isinstance(part, Polygon) and not part.is_empty:
                cv2.fillPoly(plane, [self._points(part.exterior.coords)], float(value), cv2.LINE_8, _SHIFT)

    def stroke(self, plane: Plane, shape: Polygon, value: float, width: int) -> None:
        """Draw an outline as a line."""
        cv2.polylines(
            plane, [self._points(shape.exterior.coords)], True, float(value), width, cv2.LINE_8, _SHIFT
        )

    def arc(self, plane: Plane, shape: Polygon, share: tuple[float, float], value: float, width: int) -> None:
        """Draw a part of an outline: shares of its length, which may go over 1."""
        ring = shape.exterior
        places = [ring.interpolate(w % 1, normalized=True) for w in np.linspace(*share, 24)]
        points = self._points([(p.x, p.y) for p in places])
        cv2.polylines(plane, [points], False, float(value), width, cv2.LINE_8, _SHIFT)

    def ellipse(
        self, plane: Plane, x: float, y: float, axes: tuple[float, float], turn: float, value: float
    ) -> None:
        """Fill an ellipse; nothing where an axis is not positive, or where it lies off the piece."""
        reach = max(axes)
        if min(axes) <= 0 or not (
            -reach < x - self.x0 < self.width + reach and -reach < y - self.y0 < self.height + reach
        ):
            return
        middle = self._points([x, y])
        halves = (round(axes[0] * (1 << _SHIFT)), round(axes[1] * (1 << _SHIFT)))
        centre = (int(middle[0]), int(middle[1]))
        cv2.ellipse(plane, centre, halves, turn, 0, 360, float(value), -1, cv2.LINE_8, _SHIFT)

    def disc(self, plane: Plane, r: Round, share: float, value: float) -> None:
        """Fill a share of a round structure's radius."""
        self.ellipse(plane, r.x, r.y, (share * r.radius, share * r.radius), 0, value)

    def clear_outside(self, shape: Polygon) -> None:
        """Clear the DAB plane outside a shape, as a line along its border also paints there."""
        inside = np.zeros(self.d.shape, np.uint8)
        cv2.fillPoly(inside, [self._points(shape.exterior.coords)], 1, cv2.LINE_8, _SHIFT)
        self.d *= inside
