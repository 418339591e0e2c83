"""A detector over the tiles of a slide: chunk by chunk, each box kept by one core, one suppression on the slide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.card import SIDE_STEP, DetectorCard
from wsi.errors import RegionError, SpacingError
from wsi.marks.boxes import (
    Boxes,
    DetectionTile,
    joined,
    plan_detection_tiles,
    shrunk,
    suppress_counted,
    within,
)
from wsi.results.box_store import BoxStore
from wsi.slides.slide import Slide
from wsi.slides.tiles import read_square
from wsi.slides.tissue import Mask

FORMAT = 1  # of what a tile gives; raise it when the golden boxes of the tests change
COARSEST = 1.2  # times the detector's spacing: a slide coarser than this lacks what it has learned to see
OVERLAP_UM = 90.0  # the longest capillaries are some 60 um, and their boxes were enlarged
HALO_UM = 32.0  # half of the longest capillary, with what its box was enlarged by
SLACK = 0.05  # of a step of a tile's side: a field's side was rounded to whole pixels
SMALLEST_UM = 2.0  # side that a box keeps when what it was enlarged by is taken off again
CHUNK = 8  # tiles that are read, looked at and written together: some seconds of work


class Detector(Protocol):
    """What finds boxes on tiles: `models.engines.boxes.BoxEngine`, or a stand-in in tests."""

    @property
    def card(self) -> DetectorCard:
        """Its card."""
        ...

    @property
    def description(self) -> str:
        """Libraries, precision and device."""
        ...

    @property
    def spec(self) -> DetectorSpec:
        """What it was made of."""
        ...

    def detect(self, tiles: npt.NDArray[np.uint8]) -> list[Boxes]:
        """Boxes of (n, side, side, 3) tiles, in their own pixels, with scores."""
        ...


class DetectorSpec(Protocol):
    """What a detector is made of: `models.engines.spec.BoxSpec`, or a stand-in in tests."""

    def make(self) -> Detector:
        """The detector, see `EngineSpec.make`."""
        ...


@dataclass(frozen=True, slots=True)
class TilePlan:
    """Squares of one side that a detector looks at, and that side in its own pixels."""

    tiles: tuple[DetectionTile, ...]
    side_px: int

    @property
    def chunks(self) -> range:
        """Numbers of the chunks of `CHUNK` tiles that are looked at and written together."""
        return range(-(-len(self.tiles) // CHUNK))

    def tiles_of(self, chunk: int) -> tuple[DetectionTile, ...]:
        """The tiles of a chunk."""
        return self.tiles[chunk * CHUNK : (chunk + 1) * CHUNK]


@dataclass(frozen=True, eq=False, slots=True)
class SlideDetections:
    """Boxes of a slide, and level-0 (x, y) of the cores that could not be read."""

    detections: Boxes
    unreadable: tuple[tuple[int, int], ...]
    tiles: int


def tissue_tiles(slide: Slide, mask: Mask, card: DetectorCard) -> TilePlan:
    """Overlapping tiles of the size that the detector was trained on, whose cores hold tissue."""
    side = round(card.detector.tile_px * card.detector.spacing_um / slide.mpp)
    overlap = min(round(OVERLAP_UM / slide.mpp), side // 2)
    tiles = plan_detection_tiles((0, 0, *slide.size), side, overlap)
    return TilePlan(tuple(t for t in tiles if mask.holds_tissue(t.core)), card.detector.tile_px)


def tiles_around(corners: Sequence[tuple[int, int]], side: int, mpp: float, card: DetectorCard) -> TilePlan:
    """One tile for each of some squares that do not overlap, with a halo of at least `HALO_UM`.

    Args:
        corners: level-0 (x, y).
        side: of the squares, in level-0 pixels.
        mpp: um per level-0 pixel.
        card: of the detector.
    """
    spacing = card.detector.spacing_um
    side_px = SIDE_STEP * math.ceil((side * mpp + 2 * HALO_UM) / spacing / SIDE_STEP - SLACK)
    whole = round(side_px * spacing / mpp)
    before = (whole - side) // 2
    tiles = [
        DetectionTile(
            (x - before, y - before, x - before + whole, y - before + whole), (x, y, x + side, y + side)
        )
        for x, y in corners
    ]
    return TilePlan(tuple(tiles), side_px)


def detect_slide(
    slide: Slide,
    plan: TilePlan,
    detector: Detector,
    *,
    lowest_score: float,
    limits: Sequence[float] | None = None,
    store: BoxStore | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> SlideDetections:
    """The detector's boxes in the cores of tiles, in level-0 pixels, best first.

    Boxes are given as large as the capillaries: what they were enlarged by for training is taken off, after the
    suppression, which is done on what the network learned.

    Args:
        slide: read at the detector's spacing.
        plan: the tiles.
        detector: finds boxes on a tile.
        lowest_score: boxes below are left out.
        limits: for each class, the score from which a box counts; it then comes first in the suppression. None: all
            count.
        store: where finished chunks are kept; tiles of chunks that are there are not read again.
        tick: called with (tiles done, tiles).

    Raises:
        SpacingError: the slide is too coarse.
        MissingMppError: it has no usable spacing.
    """
    card, tiles = detector.card, plan.tiles
    check_spacing(slide, card)
    parts: list[Boxes] = []
    unreadable: list[tuple[int, int]] = []
    for number, (boxes, numbers) in detected(slide, plan, plan.chunks, detector, store):
        parts.append(boxes)
        unreadable += [tiles[number * CHUNK + int(i)].core[:2] for i in numbers]
        tick(min((number + 1) * CHUNK, len(tiles)), len(tiles))
    boxes = joined(parts)
    boxes = boxes[boxes.known_scores >= lowest_score]
    boxes = suppress_counted(
        boxes, (0.0,) * len(card.detector.classes) if limits is None else limits, card.detector.iou
    )
    small = shrunk(boxes, [um / slide.mpp for um in card.enlarge_um], SMALLEST_UM / slide.mpp)
    return SlideDetections(small, tuple(unreadable), len(tiles))


def detected(
    slide: Slide, plan: TilePlan, chunks: Iterable[int], detector: Detector, store: BoxStore | None
) -> Iterator[tuple[int, tuple[Boxes, npt.NDArray[np.int64]]]]:
    """Numbers of chunks, each with its boxes and its unreadable tiles; what is not in the store yet is put there."""
    for number in chunks:
        chunk = None if store is None else store.read_chunk(number)
        if chunk is None:
            chunk = _detect_chunk(slide, plan.tiles_of(number), plan.side_px, detector)
            if store is not None:
                store.write_chunk(number, *chunk)
        yield number, chunk


def _detect_chunk(
    slide: Slide, tiles: Sequence[DetectionTile], tile_px: int, detector: Detector
) -> tuple[Boxes, npt.NDArray[np.int64]]:
    """Boxes of some tiles, each within its core, in level-0 pixels; and the numbers of tiles that cannot be read."""
    readable, pixels = [], []
    for i, tile in enumerate(tiles):
        try:
            pixels.append(read_square(slide, tile.box[:2], tile.box[2] - tile.box[0], tile_px))
            readable.append(i)
        except RegionError:  # of this place; what ends the whole slide is told, and nothing is stored
            continue
    parts = []
    for i, boxes in zip(readable, detector.detect(np.stack(pixels)) if pixels else [], strict=True):
        left, top, right, _ = tiles[i].box
        scaled = replace(boxes, boxes=boxes.boxes * ((right - left) / tile_px))
        parts.append(within(scaled.shifted((left, top)), tiles[i].core))
    return joined(parts), np.setdiff1d(np.arange(len(tiles)), readable)


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
