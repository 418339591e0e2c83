"""Pieces of a phantom, and the parts of the layout that they show: shared by drawings and mosaics."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from wsi.marks.raster import fill_polygon
from wsi.phantoms.layout import Disc, Layout
from wsi.phantoms.textures import Plane

COARSE = 8  # regions are computed on every 8th pixel, then enlarged
_MARGIN = 2  # coarse cells around a piece, so that smoothing sees the same on both sides of its border
_EDGE = _MARGIN * COARSE
_FAR = 64  # distance to the border is kept on every 64th pixel
_LATTICE = 128
_WIGGLE = 1024


class Place(NamedTuple):
    """A piece of the slide in level-0 pixels."""

    x0: int
    y0: int
    width: int
    height: int


class Canvas:
    """The random fields and regions of one slide: a place has the same value in every piece that shows it."""

    def __init__(self, layout: Layout, rng: np.random.Generator) -> None:
        self.layout = layout
        self.mpp = layout.mpp
        self.lattices = rng.standard_normal((3, _LATTICE, _LATTICE)).astype(np.float32)
        self.wiggle = self._wiggle(rng)
        self.depth_um = self._depth()

    def _wiggle(self, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """Cell-sized noise, 64..192, that makes borders of regions follow cells."""
        field = cv2.GaussianBlur(
            np.pad(rng.standard_normal((_WIGGLE, _WIGGLE)).astype(np.float32), 64, mode="wrap"),
            (0, 0),
            3 / self.mpp,
        )[64:-64, 64:-64]
        return np.asarray(np.clip(128 + 32 * field / field.std(), 64, 192), np.uint8)

    def _depth(self) -> Plane:
        """Signed distance to the nodes' border in um, positive inside, on every 64th pixel."""
        cols, rows = (-(-n // _FAR) + 2 for n in self.layout.size)
        inside = np.zeros((rows, cols), np.uint8)
        for node in self.layout.nodes:
            fill_polygon(inside, node, (_FAR, _FAR), 1)
        depth_inside = cv2.distanceTransform(inside, cv2.DIST_L2, 5)
        depth_outside = cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
        return np.asarray((depth_inside - depth_outside) * _FAR * self.mpp, np.float32)

    def grid(self, place: Place) -> tuple[Plane, Plane]:
        """Level-0 x and y of the middle of every coarse pixel, with the margin."""
        x0, y0, width, height = place
        x = (np.arange(width // COARSE + 2 * _MARGIN, dtype=np.float32) + 0.5 - _MARGIN) * COARSE + x0
        y = (np.arange(height // COARSE + 2 * _MARGIN, dtype=np.float32) + 0.5 - _MARGIN) * COARSE + y0
        x_grid, y_grid = np.meshgrid(x, y)
        return x_grid, y_grid

    def depth(self, x: Plane, y: Plane) -> Plane:
        """Signed distance to the nodes' border in um, positive inside."""
        coordinates = (x / _FAR - 0.5, y / _FAR - 0.5)
        return np.asarray(
            cv2.remap(self.depth_um, *coordinates, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
            np.float32,
        )

    def noise(self, which: int, blob_um: float, x: Plane, y: Plane) -> Plane:
        """Smooth noise of mean 0 and standard deviation near 1."""
        step = blob_um / self.mpp
        coordinates = [np.asarray(c / step % _LATTICE, np.float32) for c in (x, y)]
        return np.asarray(
            cv2.remap(
                self.lattices[which],
                coordinates[0],
                coordinates[1],
                cv2.INTER_CUBIC,
                borderMode=cv2.BORDER_WRAP,
            )
        )

    def mask(self, where: npt.NDArray[np.bool_], place: Place) -> npt.NDArray[np.uint8]:
        """255 on the piece's pixels where the coarse raster is True, with cell-sized wiggles at the border."""
        x0, y0, width, height = place
        soft = self.enlarge(cv2.blur(where.astype(np.uint8) * 255, (3, 3)), place)
        rows = np.arange(y0, y0 + height) % _WIGGLE
        threshold = np.tile(self.wiggle, (1, -(-width // _WIGGLE) + 1))[
            rows, x0 % _WIGGLE : x0 % _WIGGLE + width
        ]
        return np.asarray(cv2.compare(soft, threshold, cv2.CMP_GT), np.uint8)

    def enlarge(self, coarse: cv2.typing.MatLike, place: Place) -> cv2.typing.MatLike:
        """A coarse raster on the piece's pixels, without the margin."""
        full = cv2.resize(coarse, None, fx=COARSE, fy=COARSE, interpolation=cv2.INTER_LINEAR)
        return full[_EDGE : _EDGE + place.height, _EDGE : _EDGE + place.width]

    def discs(self, discs: tuple[Disc, ...], x: Plane, y: Plane, bands: Plane) -> npt.NDArray[np.bool_]:
        """The coarse pixels inside discs whose border follows ``bands``."""
        inside = np.zeros(x.shape, np.bool_)
        for disc in discs:
            if x[0, 0] - 1.5 * disc.radius < disc.x < x[0, -1] + 1.5 * disc.radius and (
                y[0, 0] - 1.5 * disc.radius < disc.y < y[-1, 0] + 1.5 * disc.radius
            ):
                inside |= np.hypot(x - disc.x, y - disc.y) < disc.radius * (1 + 0.12 * bands)
        return inside

    def lesions(
        self, place: Place, shape: tuple[int, ...], leave_out: Collection[str] = ()
    ) -> npt.NDArray[np.bool_]:
        """The coarse pixels inside lesions, except lesions of the kinds in ``leave_out``."""
        raster = np.zeros(shape, np.uint8)
        corner = (place.x0 - _EDGE, place.y0 - _EDGE)
        for lesion in self.layout.lesions:
            if lesion.kind not in leave_out:
                fill_polygon(raster, lesion.outline, (COARSE, COARSE), 1, corner=corner)
        return raster > 0

    def uneven(self, image: cv2.typing.MatLike, x: Plane, y: Plane, place: Place) -> npt.NDArray[np.uint8]:
        """The image with uneven thickness: density varies by up to 15 %, over half a millimetre."""
        gain = self.enlarge(1 + np.clip(0.06 * self.noise(1, 500, x, y), -0.15, 0.15), place)
        darkness = cv2.multiply(cv2.bitwise_not(image), cv2.merge([gain] * 3), dtype=cv2.CV_8U)
        return np.asarray(cv2.bitwise_not(darkness), np.uint8)
