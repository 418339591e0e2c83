"""A small picture of the whole slide, averaged exactly from a coarse level."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from wsi.arrays import BoolRaster, RgbImage
from wsi.errors import SlideError
from wsi.placement import Placement
from wsi.slides.salvage import read_salvaging
from wsi.slides.slide import LEVEL_TOLERANCE, Slide

_TILE_PX = 2048


@dataclass(frozen=True, eq=False, slots=True)
class Overview:
    """The slide at about ``mpp`` um per pixel.

    Attributes:
        pixels: RGB, white where nothing could be decoded.
        broken: True where a pixel holds a region that could not be decoded.
        placement: placement of the pixels on the slide.
        mpp: um per pixel of this picture.
    """

    pixels: RgbImage
    broken: BoolRaster
    placement: Placement
    mpp: float


def read_overview(slide: Slide, mpp: float) -> Overview:
    """Average the coarsest fine-enough level down to at most ``mpp`` um per pixel.

    Raises:
        SlideError: no part of the level can be decoded.
    """
    target_downsample = max(mpp / slide.mpp, 1.0)
    level = slide.level_for(target_downsample)
    downsample = slide.levels[level].downsample
    factor = max(1, math.floor(target_downsample / downsample * (1 + LEVEL_TOLERANCE)))
    width, height = (math.ceil(n / factor) for n in slide.levels[level].size)
    pixels = np.empty((height, width, 3), np.uint8)
    broken = np.zeros((height, width), np.bool_)
    step = max(1, _TILE_PX // factor)
    reason = None
    for top in range(0, height, step):
        for left in range(0, width, step):
            rows, cols = min(step, height - top), min(step, width - left)
            corner = (round(left * factor * downsample), round(top * factor * downsample))
            part = read_salvaging(slide, corner, level, (cols * factor, rows * factor))
            window = np.s_[top : top + rows, left : left + cols]
            pixels[window] = cv2.resize(part.pixels, (cols, rows), interpolation=cv2.INTER_AREA)
            reason = reason or part.reason
            for x0, y0, x1, y1 in part.broken:
                broken[window][
                    y0 // factor : math.ceil(y1 / factor), x0 // factor : math.ceil(x1 / factor)
                ] = True
    if broken.all():
        raise SlideError(
            f"{slide.path} opens but no part of it can be decoded ({reason}); copy or scan it again"
        )
    level_width, level_height = slide.levels[level].size
    placement = Placement(factor * slide.size[0] / level_width, factor * slide.size[1] / level_height)
    return Overview(pixels, broken, placement, slide.mpp * downsample * factor)
