"""Checks of the detector's marks by other means: is there a wall all around, a lumen, and no ink or bubble?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field as Setting

from pipelines.renal.read.fields import FieldSet
from pipelines.renal.read.marks import Marks
from wsi.arrays import BoolRaster, RgbImage
from wsi.config import Config
from wsi.errors import RegionError
from wsi.placement import Placement
from wsi.slides.overview import read_overview
from wsi.slides.slide import Slide
from wsi.slides.tissue import Mask, pen_and_black

Doubt = Literal["", "partial ring", "no lumen", "pen ink", "bubble or glass edge"]
DOUBTS: tuple[Doubt, ...] = ("partial ring", "no lumen", "pen ink", "bubble or glass edge")
ARTEFACTS: tuple[Doubt, ...] = ("pen ink", "bubble or glass edge")  # nothing in them is a capillary

BROWN = 0.12  # density of blue less that of red: DAB absorbs blue, haematoxylin red (data/kidney_stains)
SECTORS = 24
REACH = (0.3, 1.5)  # in half boxes: distances at which a wall is looked for
INSIDE = 0.2  # in half boxes: radius of the lumen, also of a capillary that lies across its box
WALL = (0.6, 1.2)  # in half boxes: distances at which the wall's own density is taken
AS_DENSE = 0.8  # share of the wall's density; less inside is a lumen with stained plasma, not a solid blob
MARGIN_UM = 2.0  # margin around a box, whose border may cut the wall
FIELD_MARGIN_UM = 30.0  # margin around a field, so that a capillary at its border is seen whole
INK_MPP = 8.0  # spacing of the overview on which ink is found, as for tissue
# dark in all three colours alike, as the rims of air bubbles and of the glass are; dense DAB is less even
GREY_DENSITY, GREY_EVENNESS = 0.25, 0.8


class ChecksConfig(Config):
    """The limits from which a mark is doubted, and the score from which it counts in spite of a doubt.

    The numbers were chosen on phantoms of seeds 1, 901 and 920 (docs/renal.md), not on real C4d slides: there are none.

    Attributes:
        partial: brown share of the circumference below which a positive mark is a partial ring.
        filled: brown share inside from which a mark has no lumen, if the inside is as dense as the wall.
        certain: score from which a positive mark counts in spite of these two doubts.
        ink: share of pen ink in its box from which a mark is no capillary.
        grey: grey share of its box from which a mark is no capillary; the rims of air bubbles are grey.
    """

    partial: float = Setting(default=0.85, ge=0, le=1)
    filled: float = Setting(default=0.5, ge=0, le=1)
    certain: float = Setting(default=0.975, ge=0, le=1)
    ink: float = Setting(default=0.2, ge=0, le=1)
    grey: float = Setting(default=0.1, ge=0, le=1)


def checked(slide: Slide, fields: FieldSet, marks: Marks, cfg: ChecksConfig) -> Marks:
    """The same capillaries with measurements and doubts; those in no field, or that cannot be decoded, have neither.

    No capillary is taken out of the count here: see `left_out`.
    """
    ink = pen_mask(slide)
    brown, inside = marks.brown.copy(), marks.inside.copy()
    doubts: list[str] = list(marks.doubts)
    for number, pixels, corner in field_pictures(slide, fields, sorted(set(marks.field.tolist()) - {-1})):
        for i in np.flatnonzero(marks.field == number):
            part, box = around(pixels, marks.boxes[i] - np.array([*corner, *corner]), slide.mpp)
            if part.size:
                brown[i], inside[i] = brown_around(part, box), brown_inside(part, box)
                is_solid = inside[i] >= cfg.filled and as_dense_as_the_wall(part, box)
                doubts[i] = doubt_of(
                    bool(marks.positive[i]),
                    partial=brown[i] < cfg.partial,
                    filled=is_solid,
                    ink=ink_share(ink, marks.boxes[i]) > cfg.ink,
                    grey=grey_share(part) > cfg.grey,
                )
    return replace(marks, brown=brown, inside=inside, doubts=tuple(doubts))


def doubt_of(positive: bool, *, partial: bool, filled: bool, ink: bool, grey: bool) -> Doubt:
    """The first doubt that applies; those about ring and lumen apply to positive marks only."""
    if ink:
        return "pen ink"
    if grey:
        return "bubble or glass edge"
    if positive and filled:
        return "no lumen"
    return "partial ring" if positive and partial else ""


def left_out(marks: Marks, cfg: ChecksConfig) -> npt.NDArray[np.bool_]:
    """Whether each of the machine's marks does not count because of its doubt, at any threshold: (n,)."""
    artefact = np.array([doubt in ARTEFACTS for doubt in marks.doubts], np.bool_)
    doubted = np.array([bool(doubt) for doubt in marks.doubts], np.bool_)
    unsure = np.nan_to_num(marks.scores, nan=1.0) < cfg.certain
    return np.asarray(artefact | (marks.positive & doubted & unsure))


def doubt_counts(marks: Marks, chosen: npt.NDArray[np.bool_]) -> dict[str, int]:
    """The number of chosen marks with each doubt; doubts that none of them has are left out."""
    counts = Counter(
        doubt for doubt, is_chosen in zip(marks.doubts, chosen, strict=True) if is_chosen and doubt
    )
    return {doubt: counts[doubt] for doubt in DOUBTS if counts[doubt]}


def field_pictures(
    slide: Slide, fields: FieldSet, numbers: list[int]
) -> Iterator[tuple[int, RgbImage, tuple[int, int]]]:
    """Feasible fields with their surroundings at level 0: number, pixels, level-0 corner; broken ones are left out."""
    margin = round(FIELD_MARGIN_UM / slide.mpp)
    side = fields.side + 2 * margin
    for number in numbers:
        f = fields.feasible[number]
        corner = (f.x - margin, f.y - margin)
        try:
            yield number, slide.read_region(corner, 0, (side, side)), corner
        except RegionError:
            continue


def around(
    pixels: RgbImage, box: npt.NDArray[np.float64], mpp: float
) -> tuple[RgbImage, tuple[float, float, float, float]]:
    """The pixels around a box, and the box in their frame.

    Args:
        pixels: a field.
        box: x0, y0, x1, y1 in the field's frame.
        mpp: um per pixel.
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    m = MARGIN_UM / mpp
    left, top = max(0, round(x0 - m)), max(0, round(y0 - m))
    part = pixels[top : max(0, round(y1 + m)), left : max(0, round(x1 + m))]
    return part, (x0 - left, y0 - top, x1 - left, y1 - top)


def brown_around(pixels: RgbImage, box: Sequence[float]) -> float:
    """Share of the directions from a box's middle in which there is a brown wall.

    Linear, circumferential staining gives 1, a partial ring its part, an unstained capillary 0; a solid blob also gives
    1: see `brown_inside`.

    Args:
        pixels: the pixels around the box.
        box: x0, y0, x1, y1 in their frame.
    """
    u, v = _from_middle(pixels, box)
    reach = np.hypot(u, v)
    wall = (_brownness(pixels) > BROWN) & (reach > REACH[0]) & (reach < REACH[1])
    sector = np.floor((np.arctan2(v[wall], u[wall]) / (2 * np.pi) + 0.5) * SECTORS).astype(np.int64) % SECTORS
    return float((np.bincount(sector, minlength=SECTORS) > 0).mean())


def brown_inside(pixels: RgbImage, box: Sequence[float]) -> float:
    """Share of the middle of a box, where a capillary has its lumen, that is brown: 0 in a ring, 1 in a blob."""
    inner = np.hypot(*_from_middle(pixels, box)) < INSIDE
    return float((_brownness(pixels)[inner] > BROWN).mean()) if inner.any() else 0.0


def as_dense_as_the_wall(pixels: RgbImage, box: Sequence[float]) -> bool:
    """Whether the middle is about as brown as the wall, as in a blob; a closed capillary has a denser wall."""
    reach = np.hypot(*_from_middle(pixels, box))
    brown = _brownness(pixels)
    inner, wall = reach < INSIDE, (reach > WALL[0]) & (reach < WALL[1])
    return bool(inner.any() and wall.any() and brown[inner].mean() > AS_DENSE * brown[wall].mean())


def _brownness(pixels: RgbImage) -> npt.NDArray[np.float32]:
    density = -np.log10((pixels.astype(np.float32) + 1) / 246)
    return np.asarray(density[..., 2] - density[..., 0], np.float32)


def _from_middle(
    pixels: RgbImage, box: Sequence[float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Offsets of every pixel's middle from the box's middle, in half boxes: x and y, each (rows, cols)."""
    x0, y0, x1, y1 = box
    u = (np.arange(pixels.shape[1]) + 0.5 - (x0 + x1) / 2) / (x1 - x0) * 2
    v = (np.arange(pixels.shape[0]) + 0.5 - (y0 + y1) / 2) / (y1 - y0) * 2
    return np.meshgrid(u, v)


def grey_share(pixels: RgbImage) -> float:
    """Share of pixels that are equally dark in all colours, as rims of air bubbles and of the glass, unlike stains."""
    density = -np.log10((cv2.blur(pixels, (5, 5)).astype(np.float32) + 1) / 246)
    high, low = density.max(axis=2), density.min(axis=2)
    return float(((high > GREY_DENSITY) & (low > GREY_EVENNESS * high)).mean())


def pen_mask(slide: Slide) -> Mask:
    """Mask of pen ink, by the same rule as in the search for tissue."""
    overview = read_overview(slide, INK_MPP)
    return Mask(pen_and_black(overview.pixels), overview.placement)


def ink_share(ink: Mask, box: npt.NDArray[np.float64]) -> float:
    """Share of ink among the overview's pixels that a box touches."""
    window = _window(ink.placement, box, ink.pixels)
    return float(window.mean()) if window.size else 0.0


def _window(placement: Placement, box: npt.NDArray[np.float64], pixels: BoolRaster) -> BoolRaster:
    rows = slice(max(0, int(box[1] // placement.step_y)), max(0, int(-(-box[3] // placement.step_y))))
    cols = slice(max(0, int(box[0] // placement.step_x)), max(0, int(-(-box[2] // placement.step_x))))
    return pixels[rows, cols]
