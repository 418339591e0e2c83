"""The interface of a slide, its spacing, and the level that is read for a spacing."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt

from wsi.arrays import RgbImage
from wsi.errors import MissingMppError, SpacingError

SANE_MPP = (0.05, 20.0)  # um/px; a TIFF of 72 dpi reads as 25400 / 72 = 352.8
MAX_MPP_DIFFERENCE = 0.05  # relative, between x and y, and between what is given and what the file states
BAND_PX = 1024  # rows read at once
LEVEL_TOLERANCE = 0.01  # stored downsamples read 4.00012 or 2.0034 where 4 and 2 are meant


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the pyramid: its (width, height) and level-0 pixels per pixel."""

    size: tuple[int, int]
    downsample: float


@dataclass(frozen=True, slots=True)
class Spacing:
    """Micrometres per level-0 pixel, and their origin (``--mpp or manifest``, ``openslide``, ``TIFF tags`` ...)."""

    x_um: float
    y_um: float
    origin: str

    @property
    def sane(self) -> bool:
        """Whether both values are possible for a slide scanner."""
        return all(SANE_MPP[0] <= value <= SANE_MPP[1] for value in (self.x_um, self.y_um))

    @property
    def square(self) -> bool:
        """Whether x and y agree within 5 %."""
        low, high = sorted((self.x_um, self.y_um))
        return high <= low * (1 + MAX_MPP_DIFFERENCE)


class Slide(ABC):
    """A pyramid of RGB pixels. Location (x, y) is always in level-0 pixels, origin top-left.

    Readers implement `_read` and `close`; this class guarantees pixels of exactly the requested
    size, uint8 RGB, white off the slide and where nothing was scanned.
    """

    def __init__(
        self,
        path: str,
        levels: Sequence[Level],
        stored: Sequence[Spacing],
        *,
        mpp: float | None = None,
        allow_anisotropic: bool = False,
    ) -> None:
        self.path = path
        self.levels = tuple(levels)
        self.stored = tuple(stored)
        overrides = [] if mpp is None else [Spacing(mpp, mpp, "--mpp or manifest")]
        candidates = overrides or [spacing for spacing in stored if spacing.sane]
        self.spacing = candidates[0] if candidates else None
        self._allow_anisotropic = allow_anisotropic
        self._release: Callable[[], None] = lambda: None

    vendor = "unknown"
    bounds: tuple[int, int, int, int] | None = None
    """(x, y, width, height) of the scanned part, as OpenSlide states it; None where it does not."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of level 0."""
        return self.levels[0].size

    @property
    def mpp(self) -> float:
        """Micrometres per level-0 pixel, the mean of x and y.

        Raises:
            MissingMppError: nothing sane is stored, or x and y differ by more than 5 %.
        """
        if self.spacing is None:
            stored_text = ", ".join(f"{s.origin}: {s.x_um:.5g} um/px" for s in self.stored)
            problem = (
                f"stores only {stored_text}, outside {SANE_MPP[0]} to {SANE_MPP[1]}"
                if stored_text
                else "stores no micron size"
            )
            raise MissingMppError(
                f"{self.path} {problem}; pass --mpp with the micrometres per pixel of level 0"
            )
        if not (self.spacing.square or self._allow_anisotropic):
            raise MissingMppError(
                f"{self.path} has pixels of {self.spacing.x_um:.4g} x {self.spacing.y_um:.4g} um, "
                f"which differ by over 5 %; pass --mpp, or --allow-anisotropic to use their mean"
            )
        return (self.spacing.x_um + self.spacing.y_um) / 2

    @property
    def spacing_doubt(self) -> str:
        """A sentence where the spacing that was given differs from the one that the file states; else empty."""
        stored = next((s for s in self.stored if s.sane), None)
        if stored is None or abs(self.mpp / stored.x_um - 1) <= MAX_MPP_DIFFERENCE:
            return ""
        return f"{self.mpp:.4g} um/px was given, the slide itself says {stored.x_um:.4g}"

    def level_for(self, downsample: float) -> int:
        """Index of the coarsest level that needs no enlarging for this downsample (level-0 px per px); 0 for 1 or less.

        A level counts as fine enough within `LEVEL_TOLERANCE`; every caller gets the same level.
        """
        limit = max(downsample, 1.0) * (1 + LEVEL_TOLERANCE)
        return max(i for i, level in enumerate(self.levels) if level.downsample <= limit)

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> RgbImage:
        """RGB pixels of one region of one level.

        Args:
            location: (x, y) of the top-left corner, in level-0 pixels; may lie off the slide.
            level: index into `levels`.
            size: (width, height) in pixels of ``level``, both positive.

        Raises:
            RegionError: the file cannot be decoded there.
        """
        if not 0 <= level < len(self.levels):
            raise ValueError(f"{self.path} has levels 0 to {len(self.levels) - 1}, got {level}")
        if min(size) <= 0:
            raise ValueError(f"size must be positive, got {size}")
        bands = self._bands(level, size[1])
        if len(bands) == 1:
            image = over_white(self._read(location, level, size))
        else:
            image = np.empty((size[1], size[0], 3), np.uint8)
            for top, bottom in bands:
                corner = (location[0], location[1] + round(top * self.levels[level].downsample))
                image[top:bottom] = over_white(self._read(corner, level, (size[0], bottom - top)))
        return self._whiten_outside(image, location, level)

    def _bands(self, level: int, height: int) -> list[tuple[int, int]]:
        """Bands of rows (top, bottom) that are read one by one, as copies of a large region with alpha fill memory.

        There is more than one band only where each starts at a whole level-0 pixel.
        """
        if height <= 2 * BAND_PX or not self.levels[level].downsample.is_integer():
            return [(0, height)]
        return [(top, min(top + BAND_PX, height)) for top in range(0, height, BAND_PX)]

    def _whiten_outside(self, image: RgbImage, location: tuple[int, int], level: int) -> RgbImage:
        """Paint white every pixel whose corner lies off the slide."""
        downsample = self.levels[level].downsample
        for axis, start in enumerate(location):
            # pixel i covers start + i * downsample onward; a hundredth of a pixel is rounding
            first = max(0, math.ceil(-start / downsample - 0.01))
            last = max(0, math.ceil((self.size[axis] - start) / downsample - 0.01))
            view = image if axis == 1 else image.swapaxes(0, 1)
            view[:first] = 255
            view[last:] = 255
        return image

    @abstractmethod
    def _read(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """RGB or RGBA pixels of exactly ``size``; those off the slide may have any value."""

    @abstractmethod
    def close(self) -> None:
        """Release the file; calling it twice is fine."""
        self._release()

    def when_closed(self, release: Callable[[], None]) -> None:
        """Call a function once, when this slide is closed."""
        self._release = release

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def over_white(pixels: npt.NDArray[np.uint8]) -> RgbImage:
    """Writable RGB pixels of RGB or RGBA ones, with transparent ones laid over white."""
    if pixels.shape[2] == 3:
        return pixels if pixels.flags.owndata and pixels.flags.writeable else np.array(pixels)
    rgb: RgbImage = cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB)
    alpha = pixels[..., 3]
    if alpha.min() < 255:
        translucent = alpha < 255
        opacity = alpha[translucent].astype(np.uint32)[:, None]
        rgb[translucent] = (rgb[translucent] * opacity + 255 * (255 - opacity) + 127) // 255
    return rgb


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """Plan for reading pixels of the model's frame from a slide.

    Attributes:
        level: the level that is read.
        stride_l0: level-0 pixels from cell to cell.
        stride_px: the same distance in the model's pixels.
        size_px: side of the patch the model sees, at least ``stride_px``.
    """

    level: int
    stride_l0: int
    stride_px: int
    size_px: int

    @property
    def scale(self) -> float:
        """Level-0 pixels per model pixel; exactly 1 when level 0 is read as it is."""
        return self.stride_l0 / self.stride_px

    @property
    def halo_px(self) -> int:
        """Model pixels by which a patch reaches beyond its cell on the left and at the top: 85 for 299 around 128."""
        return (self.size_px - self.stride_px) // 2

    @property
    def size_l0(self) -> int:
        """Side of the patch in level-0 pixels."""
        return round(self.size_px * self.scale)


def plan_read(
    slide: Slide, size_px: int, stride_px: int, spacing_um: float | None, *, tolerance: float = 0.1
) -> ReadPlan:
    """Choose the level and the step for reading a slide at the model's spacing.

    Args:
        slide: the slide to read; its `mpp` is used only when ``spacing_um`` is given.
        size_px: side of a patch, in pixels the model sees.
        stride_px: side of a cell, in the same pixels.
        spacing_um: um per pixel the model was trained at; None reads level 0 as it is.
        tolerance: relative difference within which level 0 is read as it is.

    Raises:
        SpacingError: the slide is coarser than the tolerance allows.
    """
    if stride_px <= 0 or size_px < stride_px:
        raise ValueError(f"need 0 < stride_px <= size_px, got {stride_px} and {size_px}")
    if spacing_um is None or abs(slide.mpp / spacing_um - 1) <= tolerance:
        return ReadPlan(level=0, stride_l0=stride_px, stride_px=stride_px, size_px=size_px)
    if slide.mpp > spacing_um:
        raise SpacingError(
            f"{slide.path} has {slide.mpp:.4g} um/px, the model needs {spacing_um * (1 + tolerance):.3g} or finer; "
            f"use a model trained at this spacing, or pass --native to read level 0 as it is"
        )
    downsample = spacing_um / slide.mpp
    return ReadPlan(slide.level_for(downsample), round(stride_px * downsample), stride_px, size_px)
