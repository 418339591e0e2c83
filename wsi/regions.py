"""Reading that a broken region does not end: whole if possible, else piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsi.arrays import RgbImage
from wsi.errors import RegionError
from wsi.slide import Slide

SMALLEST_PX = 256  # a common tile side: what cannot be decoded is rarely smaller

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
        slide: what is read.
        location: (x, y) in level-0 pixels.
        level: index of the level.
        size: (width, height) in pixels of ``level``.
    """
    try:
        return Salvaged(slide.read_region(location, level, size), (), None)
    except RegionError as error:
        reason = str(error)
    width, height = size
    if max(size) <= SMALLEST_PX:
        return Salvaged(np.full((height, width, 3), 255, np.uint8), ((0, 0, width, height),), reason)
    downsample = slide.levels[level].downsample
    pixels = np.empty((height, width, 3), np.uint8)
    broken: list[Box] = []
    for x0, y0, x1, y1 in _halves(size):
        corner = (location[0] + round(x0 * downsample), location[1] + round(y0 * downsample))
        part = read_salvaging(slide, corner, level, (x1 - x0, y1 - y0))
        pixels[y0:y1, x0:x1] = part.pixels
        broken += [(x0 + a, y0 + b, x0 + c, y0 + d) for a, b, c, d in part.broken]
    return Salvaged(pixels, tuple(broken), reason)


def _halves(size: tuple[int, int]) -> tuple[Box, Box]:
    width, height = size
    if width >= height:
        middle = width // 2
        return (0, 0, middle, height), (middle, 0, width, height)
    middle = height // 2
    return (0, 0, width, middle), (0, middle, width, height)
