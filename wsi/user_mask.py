"""A user's own tissue mask: outlines, or a picture that covers the slide."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from wsi.annotations import read_annotations, tumour_regions
from wsi.errors import AnnotationError
from wsi.placement import Placement
from wsi.raster import fill_polygon
from wsi.slide import Slide
from wsi.tissue import Mask

PICTURES = (".png", ".tif", ".tiff")
MAX_ASPECT_DIFFERENCE = 0.02  # relative; a rounded level of 50 px is off by 1 %


def mask_identity(path: Path) -> str:
    """A short hash of the mask's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_user_mask(path: Path, slide: Slide, mpp: float) -> Mask:
    """Tissue from GeoJSON, ASAP or ImageScope XML (level-0 pixels), or from a picture of the whole slide.

    Args:
        path: the mask.
        slide: what it is of.
        mpp: um per pixel that outlines are rasterised at.

    Raises:
        AnnotationError: the file cannot be used, or does not have the slide's shape.
    """
    if path.suffix.lower() in PICTURES:
        return _picture(path, slide)
    step = max(1.0, mpp / slide.mpp)
    cols, rows = (math.ceil(n / step) for n in slide.size)
    raster = np.zeros((rows, cols), np.uint8)
    for polygon in tumour_regions(read_annotations(path)).area.geoms:
        own = np.zeros_like(raster)
        fill_polygon(own, polygon, (step, step), 1)
        raster |= own
    return Mask(raster > 0, Placement(step, step))


def _picture(path: Path, slide: Slide) -> Mask:
    """Every pixel that is not 0 is tissue."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    picture: npt.NDArray[np.uint8] | None = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise AnnotationError(f"{path} cannot be read as a picture; use PNG, TIFF, GeoJSON or ASAP XML")
    if picture.ndim == 3:
        picture = picture[..., :3].max(axis=2)
    rows, cols = picture.shape
    step_x, step_y = slide.size[0] / cols, slide.size[1] / rows
    if abs(step_x / step_y - 1) > MAX_ASPECT_DIFFERENCE:
        raise AnnotationError(
            f"{path} is {cols} x {rows} px, not the shape of {slide.path} ({slide.size[0]} x {slide.size[1]}); "
            f"give a mask of the whole slide"
        )
    return Mask(picture > 0, Placement(step_x, step_y))
