"""Pictures of a renal report: the slide with its fields, and single capillaries."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.renal.read.checks import field_pictures
from pipelines.renal.read.fields import FieldSet
from pipelines.renal.read.marks import Marks
from pipelines.runs.pictures import bar_um, jpeg_uri
from wsi.arrays import RgbImage
from wsi.errors import RegionError
from wsi.slides.overview import read_overview
from wsi.slides.slide import Slide
from wsi.slides.tiles import read_square
from wsi.vocabulary import COLOURS, FEASIBLE, NEGATIVE, NOT_FEASIBLE, POSITIVE

OVERVIEW_PX = 1400  # longer side
CROP_PX = 120  # side of a capillary's picture
CROP_UM = 36.0  # least side of the region in it: a capillary and the tubules beside it
FIELD_PX = 240  # side of a field's picture
EXCLUDED = 60  # fields left out that are shown; the others are in detections.geojson
UNCERTAIN = 48  # largest number of capillaries nearest to their threshold
CROP_BAR_UM = 10.0  # length of the scale bar in a crop
MARK_UM = 3.0  # gap between a capillary and the line around it, which must not hide the wall
QUALITY = 85


@dataclass(frozen=True, slots=True)
class Crop:
    """One capillary of the gallery: its JPEG as a data URI, its number in QuPath, and its measurements."""

    image: str
    number: int
    id: str
    x: int
    y: int
    positive: bool
    counted: bool
    score: float | None
    brown: float | None
    doubt: str
    source: str


@dataclass(frozen=True, slots=True)
class FieldPicture:
    """A field that was left out: JPEG as a data URI (empty where it cannot be decoded), corner and reason."""

    image: str
    x: int
    y: int
    score: float | None
    why_not: str


def overview_picture(slide: Slide, fields: FieldSet, marks: Marks) -> str:
    """A picture of the slide: feasible fields framed, others crossed out, a dot for each capillary that counts."""
    overview = read_overview(slide, max(slide.size) * slide.mpp / OVERVIEW_PX)
    image = overview.pixels.copy()
    scale = 1 / overview.placement.step_x
    for f in fields.fields:
        corners = (
            [round(f.x * scale), round(f.y * scale)],
            [
                round((f.x + fields.side) * scale) - 1,
                round((f.y + fields.side) * scale) - 1,
            ],
        )
        colour = COLOURS[FEASIBLE if f.feasible else NOT_FEASIBLE]
        cv2.rectangle(image, corners[0], corners[1], colour, 2 if f.feasible else 1, cv2.LINE_AA)
        if not f.feasible:
            cv2.line(image, corners[0], corners[1], colour, 2, cv2.LINE_AA)
            cv2.line(
                image, (corners[0][0], corners[1][1]), (corners[1][0], corners[0][1]), colour, 2, cv2.LINE_AA
            )
    for positive in (False, True):  # the rarer ones on top
        is_shown = marks.counted & (marks.field >= 0) & (marks.positive == positive)
        for x, y in marks.centres[is_shown]:
            position = (round(x * scale), round(y * scale))
            cv2.circle(image, position, 5, (255, 255, 255), -1, cv2.LINE_AA)
            cv2.circle(image, position, 4, COLOURS[POSITIVE if positive else NEGATIVE], -1, cv2.LINE_AA)
    length, height = round(overview_bar_um(slide) / slide.mpp * scale), image.shape[0]
    cv2.rectangle(image, (12, height - 18), (12 + length, height - 12), (0, 0, 0), -1)
    return jpeg_uri(image, QUALITY)


def overview_bar_um(slide: Slide) -> float:
    """Length of the overview's scale bar: at most a fifth of the width."""
    return bar_um(slide.size[0] * slide.mpp / 5)


def gallery(
    slide: Slide, fields: FieldSet, marks: Marks, limits: dict[str, float]
) -> tuple[list[Crop], list[Crop]]:
    """Crops of the positive capillaries, flagged ones and then the least certain first; and of uncertain ones.

    Args:
        slide: the slide to read.
        fields: the fields that the marks lie in.
        marks: the capillaries; those in no field are not shown.
        limits: threshold of each class.

    Returns:
        Positive capillaries that count, and other capillaries, those nearest to their threshold first.
    """
    inside = marks.field >= 0
    positive = np.flatnonzero(inside & marks.counted & marks.positive)
    threshold = np.where(marks.positive, limits[POSITIVE], limits[NEGATIVE])
    distance = np.where(np.isnan(marks.scores), np.inf, np.abs(marks.scores - threshold))
    others = np.flatnonzero(inside & ~(marks.counted & marks.positive) & np.isfinite(distance))
    uncertain = others[np.argsort(distance[others], kind="stable")][:UNCERTAIN]
    # flagged ones first, then the least certain; a person's mark is certain
    score = np.nan_to_num(marks.scores, nan=2.0) - 10.0 * marks.flagged
    positive = positive[np.argsort(score[positive], kind="stable")]
    crops = _crops(slide, fields, marks, [*positive.tolist(), *uncertain.tolist()])
    return [crops[i] for i in positive.tolist() if i in crops], [
        crops[i] for i in uncertain.tolist() if i in crops
    ]


def _crops(slide: Slide, fields: FieldSet, marks: Marks, indices: list[int]) -> dict[int, Crop]:
    numbers = sorted({int(marks.field[i]) for i in indices})
    crops = {}
    for number, pixels, corner in field_pictures(slide, fields, numbers):
        for i in indices:
            if marks.field[i] == number:
                crops[i] = _crop(marks, i, pixels, corner, slide.mpp)
    return crops


def _crop(marks: Marks, i: int, pixels: RgbImage, corner: tuple[int, int], mpp: float) -> Crop:
    box = marks.boxes[i] - np.array([*corner, *corner])
    middle = (box[:2] + box[2:]) / 2
    side = round(max(CROP_UM / mpp, 1.4 * (box[2:] - box[:2]).max()))
    left, top = (int(v) for v in np.round(middle - side / 2))
    padded = np.full((side, side, 3), 255, np.uint8)
    rows = slice(max(0, top), min(pixels.shape[0], top + side))
    cols = slice(max(0, left), min(pixels.shape[1], left + side))
    padded[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left] = pixels[rows, cols]
    scale = CROP_PX / side
    image = cv2.resize(
        padded, (CROP_PX, CROP_PX), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    )
    m = MARK_UM / mpp
    low = tuple(round(float(v)) for v in (box[:2] - (left, top) - m) * scale)
    high = tuple(round(float(v)) for v in (box[2:] - (left, top) + m) * scale)
    colour = COLOURS[POSITIVE if marks.positive[i] else NEGATIVE]
    cv2.rectangle(image, low, high, colour, 1, cv2.LINE_AA)
    bar = round(CROP_BAR_UM / mpp * scale)
    cv2.line(image, (5, CROP_PX - 6), (5 + bar, CROP_PX - 6), (0, 0, 0), 2)
    x, y = (round(float(v)) for v in marks.centres[i])
    return Crop(
        jpeg_uri(np.asarray(image, np.uint8), QUALITY),
        i + 1,
        marks.ids[i],
        x,
        y,
        bool(marks.positive[i]),
        bool(marks.counted[i]),
        None if np.isnan(marks.scores[i]) else float(marks.scores[i]),
        None if np.isnan(marks.brown[i]) else float(marks.brown[i]),
        marks.doubts[i],
        marks.source[i],
    )


def excluded_pictures(slide: Slide, fields: FieldSet) -> list[FieldPicture]:
    """At most `EXCLUDED` fields that were left out, for a person to judge; those of the highest scores come first."""
    order = sorted((f for f in fields.fields if not f.feasible), key=lambda f: -(f.score or 0.0))[:EXCLUDED]
    return [
        FieldPicture(_thumbnail(slide, f.x, f.y, fields.side), f.x, f.y, f.score, f.why_not) for f in order
    ]


def _thumbnail(slide: Slide, x: int, y: int, side: int) -> str:
    try:
        return jpeg_uri(read_square(slide, (x, y), side, FIELD_PX), QUALITY)
    except RegionError:
        return ""
