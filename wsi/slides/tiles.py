"""Squares of a slide, resampled to any size."""

from __future__ import annotations

import cv2
import numpy as np

from wsi.arrays import RgbImage
from wsi.slides.slide import Slide


def read_square(slide: Slide, corner: tuple[int, int], side_l0: float, size_px: int) -> RgbImage:
    """A square of the slide, resampled to ``size_px``, from the coarsest level that needs no enlarging.

    Args:
        slide: the slide to read.
        corner: level-0 (x, y); may lie off the slide, which is white there.
        side_l0: side on the slide, in level-0 pixels.
        size_px: side of the result.

    Returns:
        RGB uint8, (size_px, size_px, 3): averaged where the level has more pixels than the result, else interpolated.

    Raises:
        RegionError: the place cannot be decoded.
    """
    level = slide.level_for(side_l0 / size_px)
    side_level = max(1, round(side_l0 / slide.levels[level].downsample))
    pixels = slide.read_region(corner, level, (side_level, side_level))
    if side_level == size_px:
        return pixels
    method = cv2.INTER_AREA if side_level > size_px else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (size_px, size_px), interpolation=method), np.uint8)
