"""A pyramid held in memory, and plain images (PNG, JPEG, BMP, WebP) as slides of one level."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from wsi.arrays import RgbImage, check_array
from wsi.errors import SlideError
from wsi.slides.slide import Level, Slide, over_white

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# 16,384 px square: 0.8 GB of RGB; a picture of a few bytes may claim more than memory holds
LARGEST_PX = 1 << 28
Image.MAX_IMAGE_PIXELS = LARGEST_PX  # Pillow's own limit is below it


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
        """Nothing to release but a copy."""
        super().close()


def open_image(path: str, *, mpp: float | None = None, allow_anisotropic: bool = False) -> ArraySlide:
    """Read a plain image whole; transparency is laid over white.

    Raises:
        SlideError: the image is broken, larger than `LARGEST_PX`, or holds more than 8 bits a channel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is checked here
            image = Image.open(path)  # reads the header only
        with image, _strictly():
            _check(path, image)
            pixels = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    except SlideError:
        raise
    except Image.DecompressionBombError as error:
        raise SlideError(
            f"{path} claims far more than the {LARGEST_PX:,} px of plain images that are read ({error}); "
            f"convert it to a pyramidal TIFF"
        ) from error
    except Exception as error:  # Pillow raises SyntaxError, struct.error and others for broken pictures
        raise SlideError(
            f"{path} cannot be read as an image ({error}); check that the copy is complete"
        ) from error
    rgb = over_white(pixels) if pixels.shape[2] == 4 else pixels
    return ArraySlide([rgb], path=path, mpp=mpp, allow_anisotropic=allow_anisotropic)


@contextmanager
def _strictly() -> Iterator[None]:
    """Let Pillow refuse pictures that are cut short, whatever other libraries (WeasyPrint) have set."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _check(path: str, image: Image.Image) -> None:
    width, height = image.size
    if width * height > LARGEST_PX:
        raise SlideError(
            f"{path} says that it has {width:,} x {height:,} px; plain images of up to {LARGEST_PX:,} px are read: "
            f"convert it to a pyramidal TIFF"
        )
    if image.mode.startswith(("I", "F")):
        raise SlideError(
            f"{path} holds {image.mode} pixels, more than 8 bits; only 8-bit RGB or grey is read: convert it"
        )
