"""OME-TIFF and any fsspec URL (``s3://``, ``https://``, ``memory://``) through tiffslide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import tiffslide
import zarr
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from wsi.errors import RegionError, SlideError
from wsi.slides.readers.tiff_structure import tiff_problem
from wsi.slides.slide import Level, Slide, Spacing
from wsi.text import first_line
from wsi.urls import storage_options

_UNITS_UM = {2: 25_400.0, 3: 10_000.0}  # TIFF's inch and centimetre
_OME_UNITS_UM = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3}


class TiffSlideReader(Slide):
    """A TIFF pyramid, on disk or behind a URL."""

    def __init__(self, path: str, *, mpp: float | None = None, allow_anisotropic: bool = False) -> None:
        try:
            self._handle: Any = tiffslide.TiffSlide(path, storage_options=storage_options(path))
            problem = tiff_problem(self._handle.ts_tifffile)
            sizes = zip(self._handle.level_dimensions, self._handle.level_downsamples, strict=True)
            levels = [Level((int(w), int(h)), float(downsample)) for (w, h), downsample in sizes]
        except Exception as error:  # back ends of fsspec and tifffile raise many classes
            raise SlideError(
                f"{path} cannot be opened as a TIFF slide ({first_line(error)[:200]}); "
                f"check it, and that it is all there"
            ) from error
        if problem:
            self._handle.close()
            raise SlideError(f"{path} {problem}")
        super().__init__(
            path,
            levels,
            _stored_spacings(self._handle.ts_tifffile, self._handle.properties),
            mpp=mpp,
            allow_anisotropic=allow_anisotropic,
        )
        self.vendor = str(self._handle.properties.get("tiffslide.vendor") or "tiff")

    def _read(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        return windowed(self, location, level, size, self._window)

    def _window(self, level: int, corner: tuple[int, int], size: tuple[int, int]) -> npt.NDArray[Any]:
        # level pixel p is requested by the level-0 pixel in its middle, so that rounding down does no harm
        downsample = self.levels[level].downsample
        corner_l0 = tuple(int((p + 0.5) * downsample) if downsample > 1 else p for p in corner)
        return np.asarray(self._handle.read_region(corner_l0, level, size, as_array=True))

    def close(self) -> None:
        """Close the file; calling it twice is fine."""
        self._handle.close()
        super().close()


class PlanarReader(Slide):
    """A TIFF whose red, green and blue are separate planes, as Bio-Formats writes OME-TIFF (axes SYX)."""

    vendor = "planar TIFF"

    def __init__(self, path: str, *, mpp: float | None = None, allow_anisotropic: bool = False) -> None:
        try:
            self._tif = tifffile.TiffFile(path)
        except MemoryError:
            raise
        except Exception as error:  # a broken structure may raise anything in tifffile
            raise _not_opened(path, error) from error
        try:
            series = self._tif.series[0]
            if series.axes != "SYX" or series.shape[0] not in (3, 4):
                raise SlideError(f"{path} holds {series.axes}, not three planes of one picture; convert it")
            count = len(series.levels)
            self._arrays = [zarr.open_array(series.aszarr(level=i), mode="r") for i in range(count)]
        except (SlideError, MemoryError):
            self._tif.close()
            raise
        except Exception as error:
            self._tif.close()
            raise _not_opened(path, error) from error
        height, width = series.shape[1:]
        levels = [
            Level((a.shape[2], a.shape[1]), (width / a.shape[2] + height / a.shape[1]) / 2)
            for a in self._arrays
        ]
        super().__init__(
            path, levels, _stored_spacings(self._tif), mpp=mpp, allow_anisotropic=allow_anisotropic
        )

    def _read(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        return windowed(self, location, level, size, self._window)

    def _window(self, level: int, corner: tuple[int, int], size: tuple[int, int]) -> npt.NDArray[Any]:
        (x, y), (width, height) = corner, size
        return np.moveaxis(np.asarray(self._arrays[level][:, y : y + height, x : x + width]), 0, -1)

    def close(self) -> None:
        """Close the file; calling it twice is fine."""
        self._tif.close()
        super().close()


def _not_opened(path: str, error: Exception) -> SlideError:
    return SlideError(f"{path} cannot be opened as a TIFF slide ({first_line(error)[:200]}); check it")


def windowed(
    slide: Slide,
    location: tuple[int, int],
    level: int,
    size: tuple[int, int],
    window: Callable[[int, tuple[int, int], tuple[int, int]], npt.NDArray[Any]],
) -> npt.NDArray[np.uint8]:
    """A region with white off the slide, for a reader that can read only on the slide.

    Args:
        slide: the slide to read.
        location: (x, y) in level-0 pixels.
        level: index of the level.
        size: (width, height) in pixels of ``level``.
        window: gives the pixels of a level, from a corner and size in pixels of that level.

    Raises:
        RegionError: the file cannot be decoded there.
    """
    downsample = slide.levels[level].downsample
    start = [int(np.floor(c / downsample + 0.5)) for c in location]
    low = [max(0, s) for s in start]
    high = [min(limit, s + n) for s, n, limit in zip(start, size, slide.levels[level].size, strict=True)]
    canvas = np.full((size[1], size[0], 3), 255, np.uint8)
    if min(h - lo for lo, h in zip(low, high, strict=True)) <= 0:
        return canvas
    try:
        pixels = window(level, (low[0], low[1]), (high[0] - low[0], high[1] - low[1]))
    except Exception as error:  # decoders of imagecodecs raise their own classes
        raise RegionError(
            f"{slide.path}: cannot decode {size[0]} x {size[1]} px of level {level} at {location}: "
            f"{first_line(error)[:200]}"
        ) from error
    canvas[low[1] - start[1] : high[1] - start[1], low[0] - start[0] : high[0] - start[0]] = _rgb(
        pixels, slide.path
    )
    return canvas


def _rgb(pixels: npt.NDArray[Any], path: str) -> npt.NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise SlideError(
            f"{path} holds {pixels.dtype} pixels of shape {pixels.shape}; only 8-bit RGB or grey is read"
        )
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return pixels[..., :3]


def _stored_spacings(tif: Any, properties: Mapping[str, Any] = {}) -> list[Spacing]:
    """Spacings that the file states: in the slide's own properties, then in TIFF tags, then in OME metadata."""
    x, y = (properties.get(f"tiffslide.mpp-{axis}") for axis in "xy")
    spacings = [Spacing(float(x), float(y), "tiffslide")] if x and y else []
    page = tif.pages[0]
    unit = _UNITS_UM.get(page.tags.valueof("ResolutionUnit", default=1))
    per_unit = [_ratio(page.tags.valueof(f"{axis}Resolution", default=(0, 1))) for axis in "XY"]
    if unit is not None and min(per_unit) > 0:
        spacings.append(Spacing(unit / per_unit[0], unit / per_unit[1], "TIFF tags"))
    return spacings + _ome_spacings(tif.ome_metadata)


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
