"""Reading of regions that may be broken in part: whole if possible, else piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsi.arrays import RgbImage
from wsi.errors import RegionError
from wsi.slides.slide import Slide

SMALLEST_PX = 256  # a common tile side: broken parts are rarely smaller
GIVE_UP_AFTER = 64  # failed pieces in a row; all pieces after them are taken as broken

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels of the region, half-open."""


@dataclass(frozen=True, eq=False, slots=True)
class Salvaged:
    """A region's pixels, white where ``broken`` boxes could not be decoded."""

    pixels: RgbImage
    broken: tuple[Box, ...]
    reason: str | None


def read_salvaging(slide: Slide, location: tuple[int, int], level: int, size: tuple[int, int]) -> Salvaged:
    """Read a region; where that fails, halve it until the pieces that fail are small.

    Args:
        slide: the slide to read.
        location: (x, y) in level-0 pixels.
        level: index of the level.
        size: (width, height) in pixels of ``level``.
    """
    return _Salvage(slide, level).read(location, size)


class _Salvage:
    """The reading of one region; it counts failures, so that a file that is broken throughout does not take hours."""

    def __init__(self, slide: Slide, level: int) -> None:
        self.slide = slide
        self.level = level
        self.failures = 0
        self.reason: str | None = None

    def read(self, location: tuple[int, int], size: tuple[int, int]) -> Salvaged:
        if self.failures < GIVE_UP_AFTER:
            try:
                pixels = self.slide.read_region(location, self.level, size)
                self.failures = 0
                return Salvaged(pixels, (), None)
            except RegionError as error:
                self.reason = self.reason or str(error)
                self.failures += 1
        width, height = size
        if max(size) <= SMALLEST_PX or self.failures >= GIVE_UP_AFTER:
            white = np.full((height, width, 3), 255, np.uint8)
            return Salvaged(white, ((0, 0, width, height),), self.reason)
        return self._read_halves(location, size)

    def _read_halves(self, location: tuple[int, int], size: tuple[int, int]) -> Salvaged:
        downsample = self.slide.levels[self.level].downsample
        pixels = np.empty((size[1], size[0], 3), np.uint8)
        broken: list[Box] = []
        for x0, y0, x1, y1 in _halves(size):
            corner = (location[0] + round(x0 * downsample), location[1] + round(y0 * downsample))
            part = self.read(corner, (x1 - x0, y1 - y0))
            pixels[y0:y1, x0:x1] = part.pixels
            broken += [(x0 + a, y0 + b, x0 + c, y0 + d) for a, b, c, d in part.broken]
        return Salvaged(pixels, tuple(broken), self.reason)


def _halves(size: tuple[int, int]) -> tuple[Box, Box]:
    width, height = size
    if width >= height:
        middle = width // 2
        return (0, 0, middle, height), (middle, 0, width, height)
    middle = height // 2
    return (0, 0, width, middle), (0, middle, width, height)
