"""SVS, NDPI, MRXS, SCN, BIF, DICOM and generic TIFF through OpenSlide."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openslide

from wsi.errors import RegionError, SlideError, UnknownFormatError
from wsi.slides.readers.jpeg_tiles import JpegTiles
from wsi.slides.slide import Level, Slide, Spacing

# parts of OpenSlide's messages about files that it cannot use, and what helps
_WAYS_OUT = (
    (
        "image flavor",
        "it is DICOM, but its ImageType tells no flavour such as VOLUME: export it as a whole slide again",
    ),
    (
        "transfer syntax",
        "its pixels are compressed in a way that OpenSlide does not decode: convert it to JPEG",
    ),
    ("Unsupported TIFF compression", "convert it to a TIFF with JPEG tiles"),
)
TIFF_UNITS_UM = {"inch": 25_400.0, "centimeter": 10_000.0}


class OpenSlideReader(Slide):
    """One OpenSlide handle, safe to read from several threads.

    After its first error an OpenSlide handle answers every call with that error. So the region
    is tried once more on a new handle, which then replaces the broken one.
    """

    def __init__(self, path: str, *, mpp: float | None = None, allow_anisotropic: bool = False) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._file = path
        self._handle = open_handle(path)
        properties = self._handle.properties
        sizes = zip(self._handle.level_dimensions, self._handle.level_downsamples, strict=True)
        super().__init__(
            path,
            [Level(size, downsample) for size, downsample in sizes],
            stored_spacings(properties),
            mpp=mpp,
            allow_anisotropic=allow_anisotropic,
        )
        self.vendor = str(properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown"))
        self.objective = properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)
        self.bounds = stored_bounds(properties)
        self._tiles = JpegTiles(path, self.levels, self.vendor)

    def _read(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        pixels = self._tiles.read(location, level, size)
        if pixels is not None:
            return pixels
        handle = self._handle
        try:
            return np.asarray(handle.read_region(location, level, size))
        except (openslide.OpenSlideError, OSError) as error:
            with self._lock:
                return self._retry(handle, location, level, size, error)

    def _retry(
        self,
        broken_handle: openslide.OpenSlide,
        location: tuple[int, int],
        level: int,
        size: tuple[int, int],
        error: Exception,
    ) -> npt.NDArray[np.uint8]:
        new_handle = open_handle(self._file)
        try:
            pixels = np.asarray(new_handle.read_region(location, level, size))
        except (openslide.OpenSlideError, OSError):
            new_handle.close()
            raise RegionError(
                f"{self.path}: cannot decode {size[0]} x {size[1]} px of level {level} at {location}: {error}"
            ) from error
        if self._handle is broken_handle:
            self._handle = (
                new_handle  # another thread may still read from the old one, so it is not closed here
            )
        return pixels

    def close(self) -> None:
        """Close the handle; calling it twice is fine."""
        if not self._closed:
            self._closed = True
            self._handle.close()
            self._tiles.close()
        super().close()


def open_handle(path: str) -> openslide.OpenSlide:
    """Open, turning OpenSlide's errors into one sentence.

    Raises:
        UnknownFormatError: OpenSlide does not know the form.
        SlideError: the file no longer exists, or is broken.
    """
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        if not Path(path).exists():
            raise gone(path) from error
        if path.lower().endswith((".tif", ".tiff", ".svs")) and not _begins_as_tiff(path):
            raise SlideError(
                f"{path} is no TIFF inside, whatever its name says; check that it is the slide's own file"
            ) from error
        raise UnknownFormatError(
            f"{path} is not a slide that OpenSlide can read; convert it to a pyramidal TIFF"
        ) from error
    except (openslide.OpenSlideError, OSError) as error:
        if not Path(path).exists():
            raise gone(path) from error
        reason = str(error)
        way_out = next(
            (text for sign, text in _WAYS_OUT if sign in reason), "check that the copy is complete"
        )
        raise SlideError(f"{path} cannot be opened ({reason}); {way_out}") from error


def gone(path: str) -> SlideError:
    """The error for a slide that existed when the run began and no longer does."""
    return SlideError(f"{path} is gone: it was moved or removed, or its disk was taken away; check the path")


def stored_spacings(properties: Mapping[str, str]) -> list[Spacing]:
    """Spacings that the file states: in the slide's own properties, then in the TIFF tags."""
    keys = (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
    spacings = []
    if all(key in properties for key in keys):
        spacings.append(Spacing(float(properties[keys[0]]), float(properties[keys[1]]), "openslide"))
    unit = TIFF_UNITS_UM.get(properties.get("tiff.ResolutionUnit", ""))
    per_unit = [float(properties.get(f"tiff.{axis}Resolution", 0)) for axis in "XY"]
    if unit is not None and min(per_unit) > 0:
        spacings.append(Spacing(unit / per_unit[0], unit / per_unit[1], "TIFF tags"))
    return spacings


def stored_bounds(properties: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    """``openslide.bounds-*`` as (x, y, width, height)."""
    try:
        x, y, width, height = (
            int(properties[f"openslide.bounds-{k}"]) for k in ("x", "y", "width", "height")
        )
    except KeyError:
        return None
    return x, y, width, height


def _begins_as_tiff(path: str) -> bool:
    """Whether the first bytes are those of a TIFF or BigTIFF of either byte order."""
    try:
        with Path(path).open("rb") as file:
            return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    except OSError:
        return True  # a file that cannot be read gets its own message


def dicom_series(path: str) -> str | None:
    """The UID of the series that a DICOM file belongs to; None where it cannot be read."""
    try:
        with openslide.OpenSlide(path) as handle:
            series: str | None = handle.properties.get("dicom.SeriesInstanceUID")
            return series
    except (openslide.OpenSlideError, OSError):
        return None
