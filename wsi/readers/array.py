"""A pyramid held in memory, and plain images (PNG, JPEG, BMP, WebP) as slides of one level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from wsi.arrays import RgbImage, check_array
from wsi.errors import SlideError
from wsi.slide import Level, Slide, over_white

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class ArraySlide(Slide):
    """Levels given as arrays, finest first."""

    vendor = "image"

    def __init__(
        self,
        images: Sequence[RgbImage],
        *,
        path: str = "<array>",
        mpp: float | None = None,
        allow_anisotropic: bool = False,
    ) -> None:
        for image in images:
            check_array("image", image, ndim=3, dtype=np.uint8)
        height, width = images[0].shape[:2]
        levels = []
        for image in images:
            downsample = (width / image.shape[1] + height / image.shape[0]) / 2
            levels.append(Level((image.shape[1], image.shape[0]), downsample))
        super().__init__(path, levels, [], mpp=mpp, allow_anisotropic=allow_anisotropic)
        self._images: list[RgbImage] = list(images)

    def _read(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        image = self._images[level]
        x, y = (int(np.floor(c / self.levels[level].downsample + 0.5)) for c in location)
        canvas = np.full((size[1], size[0], 3), 255, np.uint8)
        x0, y0 = max(0, x), max(0, y)
        x1, y1 = min(image.shape[1], x + size[0]), min(image.shape[0], y + size[1])
        if x1 > x0 and y1 > y0:
            canvas[y0 - y : y1 - y, x0 - x : x1 - x] = image[y0:y1, x0:x1]
        return canvas

    def close(self) -> None:
        """Nothing to release."""


def open_image(path: str, *, mpp: float | None = None, allow_anisotropic: bool = False) -> ArraySlide:
    """Read a plain image whole; transparency is laid over white."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGBA"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise SlideError(f"{path} cannot be read as an image ({error})") from error
    return ArraySlide([over_white(pixels)], path=path, mpp=mpp, allow_anisotropic=allow_anisotropic)
