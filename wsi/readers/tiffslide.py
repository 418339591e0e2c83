"""OME-TIFF and any fsspec URL (``s3://``, ``https://``, ``memory://``) through tiffslide."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tiffslide
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from wsi.errors import RegionError, SlideError
from wsi.slide import Level, Slide, Spacing

_UNITS_UM = {2: 25_400.0, 3: 10_000.0}  # TIFF's inch and centimetre
_OME_UNITS_UM = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3}


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
            _stored_spacings(self._handle),
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


def _stored_spacings(handle: Any) -> list[Spacing]:
    """What the file says of its spacing: the slide's own properties, then TIFF tags, then OME."""
    x, y = (handle.properties.get(f"tiffslide.mpp-{axis}") for axis in "xy")
    found = [Spacing(float(x), float(y), "tiffslide")] if x and y else []
    page = handle.ts_tifffile.pages[0]
    unit = _UNITS_UM.get(page.tags.valueof("ResolutionUnit", default=1))
    per_unit = [_ratio(page.tags.valueof(f"{axis}Resolution", default=(0, 1))) for axis in "XY"]
    if unit is not None and min(per_unit) > 0:
        found.append(Spacing(unit / per_unit[0], unit / per_unit[1], "TIFF tags"))
    return found + _ome_spacings(handle.ts_tifffile.ome_metadata)


def _ratio(value: tuple[int, int]) -> float:
    return value[0] / value[1] if value[1] else 0.0


def _ome_spacings(xml: str | None) -> list[Spacing]:
    """``PhysicalSizeX`` and ``Y`` of the first image; the unit is um where none is stated."""
    try:
        nodes = [n for n in fromstring(xml).iter() if n.tag.endswith("}Pixels")] if xml else []
        values = nodes[0].attrib if nodes else {}
        x, y = (
            float(values[f"PhysicalSize{a}"]) * _OME_UNITS_UM[values.get(f"PhysicalSize{a}Unit", "µm")]
            for a in "XY"
        )
    except (DefusedXmlException, ParseError, KeyError, ValueError):
        return []
    return [Spacing(x, y, "OME")]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
