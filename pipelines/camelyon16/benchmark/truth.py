"""Lesions of a slide as Camelyon16's evaluation sees them: a labelled raster at level 5."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from scipy.ndimage import binary_fill_holes
from shapely import MultiPolygon, Polygon
from skimage.measure import regionprops

from wsi.arrays import BoolRaster, PointsXY
from wsi.datasets.truth import (
    mask_errors,
    mask_note,
    mask_pieces,
    mask_shapes,
    mask_step,
    named_note,
    tumour_value,
)
from wsi.errors import AnnotationError, WsiError
from wsi.marks.annotations import read_outlines, tumour_regions
from wsi.marks.own_mask import PICTURES
from wsi.marks.raster import cells_of
from wsi.slides.slide import LEVEL_TOLERANCE

# Evaluation_FROC.py (Camelyon16, 2016): level 5, and 0.243 um/px for the slides of both scanners
LEVEL5_PX = 32
L0_UM = 0.243
LEVEL5_UM = L0_UM * LEVEL5_PX
GROW_UM = 75.0  # the width of five tumour cells: half of it on each side, so lesions that are closer merge
ISOLATED_UM = 200.0  # isolated tumour cells are shorter; AJCC
MACRO_UM = 2000.0  # macrometastases are longer; AJCC
SLACK_PX = 256  # an outline drawn along the slide's edge may leave the slide by this much
ROOM_PX = 16 * LEVEL5_PX  # more than lesions grow by

LesionClass = Literal["macro", "micro", "isolated"]


@dataclass(frozen=True, eq=False, slots=True)
class LesionTruth:
    """A slide's lesions, numbered from 1.

    Attributes:
        labels: (rows, cols) of the part of the raster that holds lesions: 0 for none, else the lesion's number; None
            on a normal slide.
        corner: (row, col) of that part in the raster.
        step: level-0 pixels per pixel of the raster, (x, y).
        lengths_um: (lesions,) major axis of the ellipse that has the same moments, less what a lesion was grown by.
        centres: (lesions, 2) level-0 (x, y).
        boxes: slices of rows and columns of ``labels``, for every lesion.
    """

    labels: npt.NDArray[np.int32] | None
    corner: tuple[int, int]
    step: tuple[float, float]
    lengths_um: npt.NDArray[np.float64]
    centres: PointsXY
    boxes: tuple[tuple[slice, slice], ...] = ()

    @property
    def classes(self) -> tuple[LesionClass, ...]:
        """The class of every lesion."""
        return tuple(lesion_class(length) for length in self.lengths_um)

    @property
    def isolated(self) -> npt.NDArray[np.bool_]:
        """Whether each lesion is isolated tumour cells, (lesions,): hits on them count neither way."""
        return np.asarray(self.lengths_um < ISOLATED_UM)

    def numbers_at(self, points: PointsXY, *, nearest: bool = False) -> npt.NDArray[np.int64]:
        """The lesion's number at each level-0 (x, y), 0 where there is none.

        Args:
            points: (n, 2) level-0 (x, y).
            nearest: divide and round, as the script that came with the data does; else divide and truncate, as the
                code of 2016 does.
        """
        if self.labels is None or len(points) == 0:
            return np.zeros(len(points), np.int64)
        cells = points / self.step
        cols, rows = (np.rint(cells) if nearest else np.floor(cells)).astype(np.int64).T
        rows, cols = rows - self.corner[0], cols - self.corner[1]
        height, width = self.labels.shape
        inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        numbers = np.zeros(len(points), np.int64)
        numbers[inside] = self.labels[rows[inside], cols[inside]]
        return numbers

    def outline(self, number: int) -> list[Polygon]:
        """Outlines of a lesion as grown, in level-0 pixels; they have no holes, as the growing has filled them."""
        if self.labels is None:
            return []
        rows, cols = self.boxes[number - 1]
        part = (self.labels[rows, cols] == number).astype(np.uint8)
        contours, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        corner = np.array((self.corner[1] + cols.start, self.corner[0] + rows.start)) + 0.5
        step_x, step_y = self.step
        rings = [(contour[:, 0] + corner) * step_x for contour in contours if len(contour) > 2]
        # the rings pass through the middles of the outermost pixels: buffer them to the pixels' edges while pixels are
        # squares of step_x, then stretch them to step_y
        squares = [Polygon(ring).buffer(step_x / 2, join_style="mitre") for ring in rings]
        return [shapely.transform(square, lambda xy: xy * (1, step_y / step_x)) for square in squares]


def lesion_class(length_um: float) -> LesionClass:
    """Macro above 2 mm, micro from 0.2 mm, isolated tumour cells below."""
    return "macro" if length_um > MACRO_UM else "micro" if length_um >= ISOLATED_UM else "isolated"


@dataclass(frozen=True, eq=False, slots=True)
class TumourRaster:
    """Tumour at level 5.

    Attributes:
        mask: (rows, cols) whether a pixel is tumour.
        step: level-0 pixels per pixel, (x, y).
        note: what was repaired or detected; may be empty.
        value: the mask's value that was detected to mean tumour; None for outlines, or where the user said it.
        why_empty: part of the error message for a file that marks tumour, of which nothing is left at level 5.
    """

    mask: BoolRaster
    step: tuple[float, float]
    note: str = ""
    value: int | None = None
    why_empty: str = ""


def lesion_truth(
    raster: TumourRaster, um_px: float = LEVEL5_UM, step: tuple[float, float] | None = None
) -> LesionTruth:
    """Number the lesions by the official rules: grow, fill holes, 8-connected parts, length by the ellipse.

    A mask without tumour has no lesion; the official code invents one then, as its distances have no meaning.

    Args:
        raster: tumour of one slide.
        um_px: um per pixel of the raster; the official code takes 0.243 * 32 for every slide.
        step: level-0 pixels per pixel to look detections up by; None is 32, as in the official code.
    """
    step = step or (LEVEL5_PX, LEVEL5_PX)
    if not raster.mask.any():
        return LesionTruth(None, (0, 0), step, np.empty(0), np.empty((0, 2)))
    threshold = GROW_UM / (um_px * 2)  # px
    # only the part around the tumour: nothing beyond it is grown or enclosed
    margin = math.ceil(threshold) + 1
    rows, cols = (np.flatnonzero(raster.mask.any(axis=axis)) for axis in (1, 0))
    top, left = max(0, rows[0] - margin), max(0, cols[0] - margin)
    part = raster.mask[top : rows[-1] + margin + 1, left : cols[-1] + margin + 1]
    distance = cv2.distanceTransform((~part).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    grown = binary_fill_holes(distance < threshold).astype(np.uint8)
    _, labels = cv2.connectedComponents(grown, connectivity=8)
    regions = regionprops(labels)
    lengths = np.array([region.axis_major_length for region in regions]) * um_px - GROW_UM
    middles = np.array([region.centroid for region in regions])[:, ::-1] + (left + 0.5, top + 0.5)
    boxes = tuple(region.slice for region in regions)
    return LesionTruth(labels, (int(top), int(left)), step, lengths, middles * raster.step, boxes)


def read_raster(path: Path, size: tuple[int, int] | None, *, label: int | None = None) -> TumourRaster:
    """Read the tumour at level 5 from outlines, or from a mask of level 5 or a finer one; there may be none.

    Args:
        path: ASAP or ImageScope XML, GeoJSON, NCRF's JSON, or a mask of the whole slide (PNG, TIFF).
        size: (width, height) of the slide's level 0; None where it is not known.
        label: the mask's value that means tumour; None detects 0/1, 0/255 and 0/1/2.

    Raises:
        AnnotationError: the file is broken, or of another slide or level.
    """
    picture = path.suffix.lower() in PICTURES
    return _from_mask(path, size, label) if picture else _from_outlines(path, size)


def _from_outlines(path: Path, size: tuple[int, int] | None) -> TumourRaster:
    outlines = read_outlines(path)
    regions = tumour_regions(outlines.annotations, path)
    if size is None:  # beyond the outlines they need room to grow into
        right, bottom = regions.area.bounds[2:] if regions.area else (0, 0)
        size = math.ceil(right) + ROOM_PX, math.ceil(bottom) + ROOM_PX
    elif not regions.area.is_empty:
        _check_inside(path, regions.area, size)
    mask = np.zeros((math.ceil(size[1] / LEVEL5_PX), math.ceil(size[0] / LEVEL5_PX)), np.bool_)
    small_count = 0
    for polygon in regions.area.geoms:
        part = cells_of(polygon, (LEVEL5_PX, LEVEL5_PX), mask.shape)
        small_count += not part.inside.any()
        mask[part.window] |= part.inside
    count_noun = "outline holds" if small_count == 1 else "outlines hold"
    small_note = f"{small_count} {count_noun} no pixel's centre at level 5: no lesion" if small_count else ""
    reasons = "; ".join(text for text in (outlines.note, small_note) if text)
    note = named_note(path, outlines.note, regions.note, small_note)
    return TumourRaster(mask, (LEVEL5_PX, LEVEL5_PX), note, why_empty=f": {reasons}" if reasons else "")


def _check_inside(path: Path, area: MultiPolygon, size: tuple[int, int]) -> None:
    x0, y0, x1, y1 = area.bounds
    if min(x0, y0) < -SLACK_PX or x1 > size[0] + SLACK_PX or y1 > size[1] + SLACK_PX:
        raise AnnotationError(
            f"{path} reaches from ({x0:.0f}, {y0:.0f}) to ({x1:.0f}, {y1:.0f}), outside its slide of "
            f"{size[0]} x {size[1]} px: it is the truth of another slide, or of another level"
        )


def _from_mask(path: Path, size: tuple[int, int] | None, label: int | None) -> TumourRaster:
    with mask_errors(path):
        shapes = mask_shapes(path)
        if size is None and len(shapes) == 1:
            raise AnnotationError(
                f"{path} has one level, and the size of its slide is not known, so neither is its level; pass --slides"
            )
        mask_size = (shapes[0][1], shapes[0][0])
        size_note = (
            ""
            if size
            else f"; its finest level, {mask_size[0]} x {mask_size[1]} px, is taken for the slide's level 0"
        )
        size = size or mask_size
        level, step = _level_for(path, shapes, size)
        values = _sample(path, level, shapes[level], step, size)
    present = sorted(set(np.unique(values).tolist()) - {0})
    tumour_label = tumour_value(path, present, label, "--truth-label")
    note = (mask_note(path, present, tumour_label) if label is None else path.name) + size_note
    note = "" if note == path.name else note
    lookup_step = step if _is_level5(step) else (LEVEL5_PX, LEVEL5_PX)
    return TumourRaster(values == tumour_label, lookup_step, note, tumour_label if label is None else None)


def _is_level5(step: tuple[float, float]) -> bool:
    return all(abs(s / LEVEL5_PX - 1) <= LEVEL_TOLERANCE for s in step)


def _level_for(
    path: Path, shapes: list[tuple[int, int]], size: tuple[int, int]
) -> tuple[int, tuple[float, float]]:
    """The coarsest level of a mask that is level 5 or finer, and its level-0 pixels per pixel."""
    steps = [mask_step(path, shapes[0], size)] + [(size[0] / w, size[1] / h) for h, w in shapes[1:]]
    usable = [i for i, step in enumerate(steps) if max(step) <= LEVEL5_PX * (1 + LEVEL_TOLERANCE)]
    if not usable:
        raise AnnotationError(
            f"{path} has {steps[0][0]:.4g} level-0 pixels per pixel; the evaluation needs level 5 (32) or a finer one"
        )
    return usable[-1], steps[usable[-1]]


def _sample(
    path: Path, level: int, shape: tuple[int, int], step: tuple[float, float], size: tuple[int, int]
) -> npt.NDArray[np.integer]:
    """A mask's values at level 5; those of a finer level are read at the centres of the cells of level 5."""
    if _is_level5(step):
        rows, cols = np.arange(shape[0]), np.arange(shape[1])
    else:
        cols, rows = (
            np.minimum((np.arange(math.ceil(n / LEVEL5_PX)) + 0.5) * LEVEL5_PX // s, side - 1).astype(
                np.int64
            )
            for n, s, side in zip(size, step, shape[::-1], strict=True)
        )
    values = np.zeros((len(rows), len(cols)), np.int64)
    for top, left, piece in mask_pieces(path, level):
        inside = (
            (rows >= top) & (rows < top + piece.shape[0]),
            (cols >= left) & (cols < left + piece.shape[1]),
        )
        part = piece[np.ix_(rows[inside[0]] - top, cols[inside[1]] - left)]
        values[np.ix_(*inside)] = np.maximum(values[np.ix_(*inside)], part)
    return values


def check_detections(points: PointsXY, size: tuple[int, int] | None, name: str) -> None:
    """Refuse a detection that lies off its slide.

    Raises:
        WsiError: names the first.
    """
    if len(points) == 0:
        return
    limit = np.array(size if size is not None else (np.inf, np.inf))
    outside = np.flatnonzero((points < 0).any(axis=1) | (points >= limit).any(axis=1))
    if len(outside):
        x, y = points[outside[0]]
        size_text = f" of {size[0]} x {size[1]} px" if size else ""
        raise WsiError(
            f"{name}: a detection at ({x:.0f}, {y:.0f}) lies outside its slide{size_text}; "
            f"coordinates are level-0 pixels, x first"
        )
