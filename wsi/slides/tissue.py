"""Masks of tissue by named, deterministic methods, on an overview near 8 um per pixel."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import BeforeValidator
from skimage.filters import threshold_otsu

from wsi.arrays import BoolRaster, RgbImage
from wsi.config import Config
from wsi.placement import Placement
from wsi.slides.overview import Overview, read_overview
from wsi.slides.slide import Slide

IMMUNO = "immunostains need --tissue density"
MethodName = Literal["otsu-saturation", "liu2017", "ncrf", "density"]


class TissueConfig(Config):
    """Settings for finding tissue.

    Attributes:
        method: a key of `METHODS`.
        mpp: um per pixel of the overview that the method works on.
        min_speck_um2: smaller pieces are dropped.
        max_hole_um2: smaller holes are filled.
    """

    method: MethodName = "otsu-saturation"
    mpp: float = 8.0
    min_speck_um2: float = 20_000.0  # a 160 um disc; the smallest lymph-node fragments are larger
    max_hole_um2: float = 20_000.0


def _by_density(value: Any) -> Any:
    return {"method": "density"} | value if isinstance(value, dict) else value


DENSITY = TissueConfig(method="density")
DensityTissue = Annotated[TissueConfig, BeforeValidator(_by_density)]
"""`TissueConfig` of a configuration whose default is `DENSITY`, also where a file sets other values of it only."""


@dataclass(frozen=True, eq=False, slots=True)
class Mask:
    """A mask that is True where there is tissue, and its placement on the slide."""

    pixels: BoolRaster
    placement: Placement
    why_empty: str = ""
    """Reason why no tissue was found; empty where some was found, or where the reason is not known."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it compressed: the tasks of a large slide carry it to other machines, each of them."""
        packed = zlib.compress(np.packbits(self.pixels).tobytes())
        return _unpacked, (packed, self.pixels.shape, self.placement, self.why_empty)

    def area_um2(self, mpp: float) -> float:
        """Area of tissue for a slide of ``mpp`` um per level-0 pixel."""
        return float(self.pixels.sum()) * self.placement.step_x * self.placement.step_y * mpp**2

    def holds_tissue(self, box: tuple[int, int, int, int]) -> bool:
        """Whether a level-0 box (x0, y0, x1, y1) touches a pixel of the mask that is tissue."""
        step_x, step_y = self.placement.step_x, self.placement.step_y
        rows = np.s_[int(box[1] // step_y) : int(-(-box[3] // step_y))]
        cols = np.s_[int(box[0] // step_x) : int(-(-box[2] // step_x))]
        return bool(self.pixels[rows, cols].any())


def _unpacked(packed: bytes, shape: tuple[int, int], placement: Placement, why_empty: str) -> Mask:
    bits = np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=shape[0] * shape[1])
    return Mask(bits.reshape(shape).astype(np.bool_), placement, why_empty)


def find_tissue(slide: Slide, cfg: TissueConfig | None = None) -> Mask:
    """Find tissue on an overview; pixels that cannot be decoded count as tissue, so that they are reported.

    Args:
        slide: an open slide.
        cfg: the settings; None takes the defaults.

    Raises:
        MissingMppError: the slide has no usable spacing.
        SlideError: no part of the slide can be decoded.
    """
    cfg = cfg or TissueConfig()
    return tissue_of(read_overview(slide, cfg.mpp), cfg)


def tissue_of(overview: Overview, cfg: TissueConfig) -> Mask:
    """The mask of an overview: the method's result without pen, pure black and specks, with holes filled."""
    ink = pen_and_black(overview.pixels)
    pixel_um2 = overview.mpp**2
    stained = METHODS[cfg.method](overview.pixels)
    pieces = drop_small(stained & ~ink, cfg.min_speck_um2 / pixel_um2)
    pieces = fill_small(pieces, cfg.max_hole_um2 / pixel_um2) & ~ink
    tissue = pieces | overview.broken
    reason = "" if tissue.any() else _why_empty(stained, ink, pixel_um2, cfg)
    return Mask(tissue, overview.placement, reason)


def _why_empty(stained: BoolRaster, ink: BoolRaster, pixel_um2: float, cfg: TissueConfig) -> str:
    """Reason why there is no tissue, as a part of a sentence."""
    if not (stained | ink).any():
        return f"no stain, or only in specks of some tens of um: the slide is glass, or too pale; {IMMUNO}"
    if not (stained & ~ink).any():
        return "only pen ink, or pixels without light as around fluorescence"
    _, _, stats, _ = cv2.connectedComponentsWithStats((stained & ~ink).astype(np.uint8), connectivity=8)
    largest = float(stats[1:, cv2.CC_STAT_AREA].max()) * pixel_um2
    return (
        f"every piece is smaller than tissue.min_speck_um2, {cfg.min_speck_um2:,.0f} um2 (the largest has "
        f"{largest:,.0f}); lower it in a --config; {IMMUNO}"
    )


def otsu_saturation(image: RgbImage) -> BoolRaster:
    """Saturation above Otsu's threshold, which is kept between 5 % and 14 %.

    The lower bound keeps an empty slide empty, where Otsu would split the noise of the glass; the
    upper keeps pale fat and stroma beside strongly stained nuclei.
    """
    saturation = cv2.medianBlur(_saturation(image), 5)
    threshold = min(max(_otsu(saturation), 13.0), 36.0)  # of 255
    return np.asarray(saturation > threshold)


def liu2017(image: RgbImage) -> BoolRaster:
    """Grey at most 0.8, pure black counted as white (Liu et al. 2017, as re-implemented in REPATH)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.asarray((grey <= 0.8 * 255) & (image.max(axis=2) > 0))


def ncrf(image: RgbImage) -> BoolRaster:
    """Not brighter than Otsu in R, G and B, saturation above Otsu, all channels above 50 (NCRF tissue_mask.py)."""
    bright = np.logical_and.reduce([image[..., i] > _otsu(image[..., i]) for i in range(3)])
    saturation = _saturation(image)
    return np.asarray(~bright & (saturation > _otsu(saturation)) & (image.min(axis=2) > 50))


def density(image: RgbImage) -> BoolRaster:
    """Optical density against the glass, averaged over some cells: for immunostains, which are pale.

    Density is the sum over R, G, B; its threshold is Otsu's, kept between 0.06 (glass varies by 0.03) and 0.15 (pale
    tissue of data/kidney_stains has 0.2 and more). The average, over 40 um at 8 um per pixel, closes lumens.
    """
    # the glass is the brightest part; where a picture holds no glass, lumens are as bright
    glass = np.percentile(image.reshape(-1, 3), 99.5, axis=0) + 1
    dense = -np.log10((image.astype(np.float32) + 1) / glass.astype(np.float32)).sum(axis=2)
    smooth = cv2.blur(np.clip(dense, 0, 1.5), (5, 5))
    return np.asarray(smooth > min(max(_otsu(smooth), 0.06), 0.15))


METHODS: dict[str, Callable[[RgbImage], BoolRaster]] = {
    "otsu-saturation": otsu_saturation,
    "liu2017": liu2017,
    "ncrf": ncrf,
    "density": density,
}


def pen_and_black(image: RgbImage) -> BoolRaster:
    """Ink of a marker pen, and pixels without light.

    Stains of histology lie between blue-violet and red (hue 225 to 360 degrees) or are brown (DAB, 15 to 45);
    green to blue at high saturation is ink, as is red far more saturated than eosin ever is.
    """
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hue, saturation, value = (hsv[..., i].astype(np.int32) for i in range(3))
    degrees = hue * 360 // 256
    green_blue = (degrees >= 70) & (degrees <= 228) & (saturation > 90) & (value > 40)
    red = ((degrees >= 345) | (degrees <= 12)) & (saturation > 190) & (value > 110)
    black = value < 45
    ink = (green_blue | red | black).astype(np.uint8)
    # a pen's soft edge is two to three overview pixels wide
    core = cv2.morphologyEx(ink, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    return np.asarray(cv2.dilate(core, np.ones((5, 5), np.uint8)) > 0)


def drop_small(raster: BoolRaster, min_pixels: float) -> BoolRaster:
    """Remove 8-connected pieces of fewer than ``min_pixels`` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(raster.astype(np.uint8), connectivity=8)
    large_enough = stats[:, cv2.CC_STAT_AREA] >= min_pixels
    large_enough[0] = False  # label 0 is the background
    return np.asarray(large_enough[labels])


def fill_small(raster: BoolRaster, max_pixels: float) -> BoolRaster:
    """Fill holes of fewer than ``max_pixels`` pixels; an area that reaches the border is no hole."""
    framed = np.pad(~raster, 1, constant_values=True)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(framed.astype(np.uint8), connectivity=8)
    hole = stats[:, cv2.CC_STAT_AREA] < max_pixels
    hole[[0, labels[0, 0]]] = False
    return np.asarray(raster | hole[labels][1:-1, 1:-1]) if count else raster


def _saturation(image: RgbImage) -> cv2.typing.MatLike:
    return cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)[..., 1]


def _otsu(channel: cv2.typing.MatLike) -> float:
    if channel.min() == channel.max():
        return float(channel.max())
    return float(threshold_otsu(channel))
