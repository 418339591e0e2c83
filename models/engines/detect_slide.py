"""A detector over a whole slide: overlapping tiles, each box kept by one core, one suppression on the slide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.detector_card import DetectorCard
from models.networks.faster_rcnn import CapillaryDetector
from wsi.arrays import BoxesXYXY
from wsi.errors import SlideError, SpacingError
from wsi.marks.boxes import (
    Detections,
    DetectionTile,
    enlarged,
    joined,
    plan_detection_tiles,
    suppress_counted,
    within,
)
from wsi.slides.slide import Slide
from wsi.slides.tiles import read_square
from wsi.slides.tissue import Mask

COARSEST = 1.2  # times the detector's spacing: a slide coarser than this lacks what it has learned to see
OVERLAP_UM = 90.0  # the longest capillaries are some 60 um, and their boxes were enlarged
TILES_AT_ONCE = 2
SMALLEST_UM = 2.0  # side that a box keeps when what it was enlarged by is taken off again


@dataclass(frozen=True, eq=False, slots=True)
class SlideDetections:
    """What was found, and level-0 (x, y) of the cores that could not be read."""

    found: Detections
    unreadable: tuple[tuple[int, int], ...]
    tiles: int


def detect_slide(
    slide: Slide,
    mask: Mask,
    network: CapillaryDetector,
    card: DetectorCard,
    *,
    lowest_score: float,
    limits: Sequence[float] | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> SlideDetections:
    """Everything that the detector finds on tissue, in level-0 pixels, best first.

    Boxes are given as large as the capillaries: what they were enlarged by for training is taken off, after the
    suppression, which is done on what the network learned.

    Args:
        slide: read at the detector's spacing.
        mask: where there is tissue; tiles whose core holds none are not looked at.
        network: in evaluation mode.
        card: its own.
        lowest_score: boxes below are left out.
        limits: for each class, the score from which a box counts; it then comes first in the suppression. None: all
            count.
        tick: called with (tiles done, tiles).

    Raises:
        SpacingError: the slide is too coarse.
        MissingMppError: it has no usable spacing.
    """
    check_spacing(slide, card)
    wanted = card.detector.spacing_um
    side = round(card.detector.tile_px * wanted / slide.mpp)
    overlap = min(round(OVERLAP_UM / slide.mpp), side // 2)
    tiles = [t for t in plan_detection_tiles((0, 0, *slide.size), side, overlap) if _has_tissue(mask, t.core)]
    parts: list[Detections] = []
    lost: list[tuple[int, int]] = []
    for start in range(0, len(tiles), TILES_AT_ONCE):
        readable, pixels = _read(
            slide, tiles[start : start + TILES_AT_ONCE], side, card.detector.tile_px, lost
        )
        if readable:
            for tile, one in zip(readable, network.detect(torch.from_numpy(np.stack(pixels))), strict=True):
                scaled = Detections(one.boxes * (side / card.detector.tile_px), one.scores, one.labels)
                on_slide = scaled.shifted(tile.box[:2])
                parts.append(within(on_slide[on_slide.scores >= lowest_score], tile.core))
        tick(min(start + TILES_AT_ONCE, len(tiles)), len(tiles))
    every = (0.0,) * len(card.detector.classes)
    found = suppress_counted(joined(parts), every if limits is None else limits, card.detector.iou)
    boxes = shrunk(
        found.boxes, found.labels, [um / slide.mpp for um in card.enlarge_um], SMALLEST_UM / slide.mpp
    )
    return SlideDetections(Detections(boxes, found.scores, found.labels), tuple(lost), len(tiles))


def check_spacing(slide: Slide, card: DetectorCard) -> None:
    """Refuse a slide that is too coarse.

    Raises:
        SpacingError: it is.
        MissingMppError: it has no usable spacing.
    """
    coarsest = COARSEST * card.detector.spacing_um
    if slide.mpp > coarsest:
        raise SpacingError(
            f"{slide.path} has {slide.mpp:.3g} um/px, and the detector needs {coarsest:.3g} or finer; "
            f"scan it at a higher magnification, or pass --mpp if the file is wrong"
        )


def _has_tissue(mask: Mask, core: tuple[int, int, int, int]) -> bool:
    step_x, step_y = mask.placement.step_x, mask.placement.step_y
    rows = np.s_[int(core[1] // step_y) : int(-(-core[3] // step_y))]
    cols = np.s_[int(core[0] // step_x) : int(-(-core[2] // step_x))]
    return bool(mask.pixels[rows, cols].any())


def _read(
    slide: Slide, tiles: Sequence[DetectionTile], side: int, size_px: int, lost: list[tuple[int, int]]
) -> tuple[list[DetectionTile], list[npt.NDArray[np.uint8]]]:
    """The tiles that can be read, and their pixels; the cores of the others go to ``lost``."""
    readable, pixels = [], []
    for tile in tiles:
        try:
            pixels.append(read_square(slide, (tile.box[0], tile.box[1]), side, size_px))
            readable.append(tile)
        except SlideError:
            lost.append((tile.core[0], tile.core[1]))
    return readable, pixels


def shrunk(
    boxes: BoxesXYXY, labels: npt.NDArray[np.int64], by: Sequence[float], smallest: float
) -> BoxesXYXY:
    """Take off what boxes were enlarged by; none gets smaller than a square around its middle.

    Args:
        boxes: (n, 4).
        labels: (n,) class numbers.
        by: for each class, on each side.
        smallest: side of that square.
    """
    small = enlarged(boxes, labels, [-b for b in by])
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    low = np.minimum(small[:, :2], middle - smallest / 2)
    high = np.maximum(small[:, 2:], middle + smallest / 2)
    return np.asarray(np.hstack([low, high]))
