"""A user's own tissue mask: outlines, or a picture that covers the slide."""

from __future__ import annotations

import hashlib
import math
import struct
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

from wsi.arrays import BoolRaster
from wsi.errors import AnnotationError
from wsi.marks.annotations import marked_regions, read_annotations
from wsi.marks.raster import cells_inside
from wsi.placement import Placement
from wsi.slides.slide import Slide
from wsi.slides.tissue import Mask

PICTURES = (".png", ".tif", ".tiff")
COARSEST_MPP = 16.0  # twice the spacing at which tissue is found by default
LARGEST_PX = 1 << 28
_PNG = b"\x89PNG\r\n\x1a\n"
# errors that picture libraries raise for broken files
BROKEN_PICTURE = (
    *(OSError, ValueError, IndexError, KeyError, TypeError, RuntimeError, ZeroDivisionError, OverflowError),
    *(MemoryError, struct.error, cv2.error, tifffile.TiffFileError),
)
MAX_ASPECT_DIFFERENCE = 0.02  # relative; a rounded level of 50 px is off by 1 %


def mask_identity(path: Path) -> str:
    """A short hash of the mask's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_user_mask(path: Path, slide: Slide, mpp: float) -> Mask:
    """Tissue from GeoJSON, ASAP or ImageScope XML (level-0 pixels), or from a picture of the whole slide.

    Args:
        path: the mask.
        slide: the slide of the mask.
        mpp: um per pixel that outlines are rasterised at.

    Raises:
        AnnotationError: the file cannot be used, or does not have the slide's shape.
    """
    if path.suffix.lower() in PICTURES:
        return _picture(path, slide)
    step = max(1.0, mpp / slide.mpp)
    cols, rows = (math.ceil(n / step) for n in slide.size)
    area = marked_regions(read_annotations(path), path).area
    return Mask(cells_inside(area, (step, step), (rows, cols)), Placement(step, step))


def _picture(path: Path, slide: Slide) -> Mask:
    """A mask from a picture; every pixel that is not 0 is tissue."""
    picture = _read_picture(path, slide)
    rows, cols = picture.shape
    step_x, step_y = slide.size[0] / cols, slide.size[1] / rows
    if abs(step_x / step_y - 1) > MAX_ASPECT_DIFFERENCE:
        raise AnnotationError(
            f"{path} is {cols} x {rows} px, not the shape of {slide.path} ({slide.size[0]} x {slide.size[1]}); "
            f"give a mask of the whole slide"
        )
    return Mask(picture, Placement(step_x, step_y))


def _read_picture(path: Path, slide: Slide) -> BoolRaster:
    """True where a picture is not 0, at any colours and depth; a pyramid's coarsest level within 16 um per pixel."""
    try:
        if path.suffix.lower() == ".png":
            picture = read_png(path)
        else:
            with tifffile.TiffFile(path) as tif:
                least_width = slide.size[0] * slide.mpp / COARSEST_MPP
                levels = [v for v in tif.series[0].levels if v.shape[1] >= least_width] or [tif.series[0]]
                _check_size(path, levels[-1].shape)
                picture = levels[-1].asarray()
    except BROKEN_PICTURE as error:
        raise AnnotationError(
            f"{path} cannot be read as a picture ({error}); use PNG, TIFF, GeoJSON or XML"
        ) from error
    if picture.size == 0:
        raise AnnotationError(f"{path} is a picture of no pixels; use PNG, TIFF, GeoJSON or XML")
    return np.asarray((picture if picture.ndim == 2 else picture[..., :3].max(axis=2)) > 0)


def read_png(path: Path) -> npt.NDArray[np.integer]:
    """The pixels of a PNG, of any colours and depth; its header is checked first, as it may state any size.

    Raises:
        ValueError: the file is not a PNG.
        AnnotationError: the picture is larger than `LARGEST_PX`.
    """
    data = path.read_bytes()
    if data[:8] != _PNG or len(data) < 24:
        raise ValueError("not a PNG file")
    width, height = struct.unpack(">II", data[16:24])  # of the header, which comes first
    _check_size(path, (height, width))
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise ValueError("its pixels are broken")
    return np.asarray(picture)


def _check_size(path: Path, shape: tuple[int, ...]) -> None:
    if shape[0] * shape[1] > LARGEST_PX:
        raise AnnotationError(
            f"{path} has {shape[1]:,} x {shape[0]:,} px in its coarsest level, and {LARGEST_PX:,} px are read at most; "
            f"save it as a pyramid, or smaller"
        )
