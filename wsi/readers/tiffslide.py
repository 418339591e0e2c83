"""OME-TIFF and any fsspec URL (``s3://``, ``https://``, ``memory://``) through tiffslide."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tiffslide

from wsi.errors import RegionError, SlideError
from wsi.slide import Level, Slide, Spacing


class TiffSlideReader(Slide):
    """A TIFF pyramid, on disk or behind a URL."""

    def __init__(self, path: str, *, mpp: float | None = None, allow_anisotropic: bool = False) -> None:
        try:
            self._handle: Any = tiffslide.TiffSlide(path)
            sizes = zip(self._handle.level_dimensions, self._handle.level_downsamples, strict=True)
            levels = [Level((int(w), int(h)), float(downsample)) for (w, h), downsample in sizes]
        except Exception as error:  # fsspec and tifffile raise whatever their back ends raise
            raise SlideError(f"{path} cannot be opened as a TIFF slide ({_first_line(error)})") from error
        super().__init__(
            path,
            levels,
            _stored_spacings(self._handle.properties),
            mpp=mpp,
            allow_anisotropic=allow_anisotropic,
        )
        self.vendor = str(self._handle.properties.get("tiffslide.vendor") or "tiff")

    def _read(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        downsample = self.levels[level].downsample
        start = [int(np.floor(c / downsample + 0.5)) for c in location]
        low = [max(0, s) for s in start]
        high = [min(limit, s + n) for s, n, limit in zip(start, size, self.levels[level].size, strict=True)]
        canvas = np.full((size[1], size[0], 3), 255, np.uint8)
        if min(h - lo for lo, h in zip(low, high, strict=True)) <= 0:
            return canvas
        # level pixel p is asked for by the level-0 pixel in its middle, safe from rounding down
        corner = tuple(int((p + 0.5) * downsample) if downsample > 1 else p for p in low)
        try:
            pixels = self._handle.read_region(
                corner, level, (high[0] - low[0], high[1] - low[1]), as_array=True
            )
        except Exception as error:  # decoders of imagecodecs raise their own classes
            raise RegionError(
                f"{self.path}: cannot decode {size[0]} x {size[1]} px of level {level} at {location}: "
                f"{_first_line(error)}"
            ) from error
        canvas[low[1] - start[1] : high[1] - start[1], low[0] - start[0] : high[0] - start[0]] = _rgb(
            np.asarray(pixels), self.path
        )
        return canvas

    def close(self) -> None:
        """Close the file; calling it twice is fine."""
        self._handle.close()


def _rgb(pixels: npt.NDArray[Any], path: str) -> npt.NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise SlideError(
            f"{path} holds {pixels.dtype} pixels of shape {pixels.shape}; only 8-bit RGB or grey is read"
        )
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return pixels[..., :3]


def _stored_spacings(properties: Any) -> list[Spacing]:
    pairs = [(properties.get("tiffslide.mpp-x"), properties.get("tiffslide.mpp-y"))]
    return [Spacing(float(x), float(y), "tiffslide") for x, y in pairs if x and y]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
