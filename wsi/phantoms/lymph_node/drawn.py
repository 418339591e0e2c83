"""Drawn tissue: textures from `wsi.phantoms.textures`, placed as the layout states."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from wsi.arrays import RgbImage
from wsi.phantoms.canvas import Canvas, Place
from wsi.phantoms.layout import Disc, Layout
from wsi.phantoms.textures import Plane, Scanner, Staining, lone_px, make_atlas, wrap_crop


class DrawnTissue:
    """Painter of drawn tissue in one slide's stain."""

    def __init__(self, layout: Layout, rng: np.random.Generator, scanner: Scanner) -> None:
        self.layout = layout
        staining = Staining(scanner, rng.uniform(0.85, 1.15), rng.uniform(0.8, 1.25), rng.uniform(0.75, 1.15))
        self.atlas = make_atlas(rng, staining)
        self.canvas = Canvas(layout, rng)
        self.turns = rng.uniform(0, 360, len(layout.cells))
        self.glass = scanner.glass

    def paint(self, place: Place, depth: Plane) -> RgbImage:
        """Pixels of a piece; ``depth`` is `Canvas.depth` on its coarse grid."""
        canvas = self.canvas
        x, y = canvas.grid(place)
        rough = depth + 14 * canvas.noise(0, 60, x, y)
        bands = canvas.noise(1, 110, x, y) + 0.5 * canvas.noise(2, 45, x, y)
        medulla = rough > 420 + 200 * canvas.noise(2, 500, x, y)
        image = np.full((place.height, place.width, 3), self.glass, np.uint8)
        self._lay(image, "fat", (rough > -110 + 60 * bands) & (rough <= 4), place)
        self._lay(image, "lymphocytes", rough > 0, place)
        self._lay(image, "germinal_centre", canvas.discs(self.layout.follicles, x, y, bands), place)
        sinuses = ((rough > 45) & (rough < 75)) | (medulla & (np.abs(bands) < 0.28))
        self._lay(image, "sinus", sinuses & (rough > 0), place)
        trabecula = (np.abs(canvas.noise(0, 420, x, y)) < 0.045) & (rough > 0)
        self._lay(image, "stroma", ((rough > 0) & (rough < 42)) | trabecula, place)
        walls = canvas.discs(self.layout.vessels, x, y, np.float32(0.3) * bands)
        self._lay(image, "stroma", walls, place)
        lumens = tuple(Disc(v.x, v.y, v.radius * 0.6) for v in self.layout.vessels)
        self._lay(image, "blood", canvas.discs(lumens, x, y, np.float32(0.3) * bands), place)
        self._lay(image, "tumour", canvas.lesions(place, x.shape, leave_out=("isolated",)), place)
        self._lone_cells(image, place.x0, place.y0)
        return canvas.uneven(image, x, y, place)

    def _lay(self, image: RgbImage, texture: str, where: npt.NDArray[np.bool_], place: Place) -> None:
        """Copy a texture to the places where the coarse raster is True."""
        if where.any():
            cv2.copyTo(wrap_crop(self.atlas[texture], *place), self.canvas.mask(where, place), image)

    def _lone_cells(self, image: RgbImage, x0: int, y0: int) -> None:
        """Draw single tumour cells over the tissue."""
        height, width = image.shape[:2]
        side = lone_px(self.layout.mpp)
        across = self.atlas["tumour_cells"].shape[0] // side
        for (x, y), turn in zip(self.layout.cells, self.turns, strict=True):
            left, top = round(x) - side // 2 - x0, round(y) - side // 2 - y0
            if left >= width or top >= height or left + side <= 0 or top + side <= 0:
                continue
            col, row = int(turn) % across, int(turn) // across % across
            stamp = self.atlas["tumour_cells"][row * side : (row + 1) * side, col * side : (col + 1) * side]
            mask = cv2.compare(stamp.min(axis=2), min(self.glass) - 70, cv2.CMP_LT)  # the cell, not its glass
            a, b = max(0, left), max(0, top)
            c, d = min(width, left + side), min(height, top + side)
            window = np.s_[b - top : d - top, a - left : c - left]
            cv2.copyTo(
                np.ascontiguousarray(stamp[window]), np.ascontiguousarray(mask[window]), image[b:d, a:c]
            )
