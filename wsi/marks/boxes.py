"""Boxes with classes on a slide, and tiles that share them so that none is lost or counted twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import shapely
from shapely import STRtree

from wsi.arrays import BoxesXYXY, PointsXY, Scores, check_array


@dataclass(frozen=True, eq=False, slots=True)
class Boxes:
    """Boxes with their classes, found by a detector or marked by a person.

    They lie in level-0 pixels of a slide, or in the pixels of a tile where the name or the docstring says so.

    Attributes:
        boxes: (n, 4) x0, y0, x1, y1, half-open, float64: slide coordinates never pass through half precision.
        labels: (n,) class numbers from 0, int64.
        scores: (n,) 0..1, float32; None where a person marked the boxes and nothing is known of a score.
    """

    boxes: BoxesXYXY
    labels: npt.NDArray[np.int64]
    scores: Scores | None = None

    def __post_init__(self) -> None:
        check_array("boxes", self.boxes, ndim=2, dtype=np.float64)
        check_array("labels", self.labels, ndim=1, dtype=np.int64)
        lengths = {len(self.labels)}
        if self.scores is not None:
            check_array("scores", self.scores, ndim=1, dtype=np.float32)
            lengths.add(len(self.scores))
        if lengths != {len(self.boxes)} or self.boxes.shape[1] != 4:
            raise ValueError(
                f"boxes, labels and scores must be of one length, got {self.boxes.shape}, {self.labels.shape}, "
                f"{None if self.scores is None else self.scores.shape}"
            )
        if not (self.boxes[:, 2:] > self.boxes[:, :2]).all():
            raise ValueError("boxes must have x0 < x1 and y0 < y1")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Boxes:
        """The boxes that a mask or an index array selects."""
        scores = None if self.scores is None else self.scores[which]
        return Boxes(self.boxes[which], self.labels[which], scores)

    @property
    def known_scores(self) -> Scores:
        """The scores of a detector's boxes: (n,), 0..1.

        Raises:
            ValueError: a person marked the boxes, so they have no scores.
        """
        if self.scores is None:
            raise ValueError(
                "these boxes have no scores: a person marked them; only a detector's can be ranked"
            )
        return self.scores

    @property
    def centres(self) -> PointsXY:
        """Middles of the boxes, in their pixels: (n, 2) x, y."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    def shifted(self, corner: tuple[float, float]) -> Boxes:
        """The boxes of a tile, moved to slide coordinates; ``corner`` is the tile's level-0 (x, y)."""
        return replace(self, boxes=self.boxes + np.array([*corner, *corner], np.float64))

    def best_first(self) -> Boxes:
        """A detector's boxes by falling score; boxes of equal scores keep their order."""
        return self[np.argsort(-self.known_scores, kind="stable")]


def joined(parts: Sequence[Boxes]) -> Boxes:
    """The boxes of all parts, in the order of the parts; without any part no boxes, as of a detector that finds none.

    Raises:
        ValueError: some parts have scores and some have none.
    """
    if not parts:
        return Boxes(np.empty((0, 4)), np.empty(0, np.int64), np.empty(0, np.float32))
    scores = [part.scores for part in parts if part.scores is not None]
    if len(scores) not in (0, len(parts)):
        raise ValueError(
            f"{len(parts) - len(scores)} of {len(parts)} parts have no scores; join what a person marked and what a "
            f"detector found apart"
        )
    return Boxes(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate(scores) if scores else None,
    )


@dataclass(frozen=True, slots=True)
class DetectionTile:
    """A square that a detector reads: its box, and the core whose boxes are kept; x0, y0, x1, y1 in level-0 px."""

    box: tuple[int, int, int, int]
    core: tuple[int, int, int, int]


def plan_detection_tiles(
    area: tuple[int, int, int, int], side: int, overlap: int
) -> tuple[DetectionTile, ...]:
    """Overlapping squares whose cores cover an area exactly once, row by row.

    A core is its tile less half the overlap on each side, cut at the area's border.

    Args:
        area: (x0, y0, x1, y1); tiles may reach beyond it, and then also show its surroundings.
        side: side of a tile.
        overlap: overlap of neighbouring tiles: at least the largest object, so that each object lies whole in the tile
            whose core holds its middle.
    """
    if not 0 <= overlap < side:
        raise ValueError(f"overlap must lie in 0..{side - 1}, got {overlap}")
    step, half = side - overlap, overlap // 2
    cuts = [
        [(start - half, start, min(start + step, high)) for start in range(low, high, step)]
        for low, high in ((area[0], area[2]), (area[1], area[3]))
    ]
    return tuple(
        DetectionTile((left, top, left + side, top + side), (x0, y0, x1, y1))
        for top, y0, y1 in cuts[1]
        for left, x0, x1 in cuts[0]
    )


def within(boxes: Boxes, core: tuple[float, float, float, float]) -> Boxes:
    """The boxes whose middle lies in a half-open box, so that each middle lies in one core only."""
    x, y = boxes.centres.T
    return boxes[(x >= core[0]) & (x < core[2]) & (y >= core[1]) & (y < core[3])]


def suppress(detections: Boxes, iou: float, *, across_classes: bool = True) -> Boxes:
    """Non-maximum suppression in float64: keep the best box, drop those that overlap it by over ``iou``, and so on.

    Args:
        detections: those of one slide, with scores.
        iou: largest intersection over union of two boxes that stay.
        across_classes: a box also suppresses boxes of other classes, as one capillary has one class only.

    Returns:
        By falling score; of equal scores the one further up, then further left, comes first.
    """
    if len(detections) == 0:
        return detections
    order = np.lexsort((detections.boxes[:, 0], detections.boxes[:, 1], -detections.known_scores))
    ranked = detections[order]
    boxes = [shapely.box(*box) for box in ranked.boxes]
    first, second = STRtree(boxes).query(boxes, predicate="intersects")
    later = second > first
    first, second = first[later], second[later]
    overlapping = _iou(ranked.boxes[first], ranked.boxes[second]) > iou
    if not across_classes:
        overlapping &= ranked.labels[first] == ranked.labels[second]
    first, second = first[overlapping], second[overlapping]
    by_first = np.argsort(first, kind="stable")
    first, second = first[by_first], second[by_first]
    starts = np.searchsorted(first, np.arange(len(ranked) + 1))
    keep_mask = np.ones(len(ranked), np.bool_)
    for i in range(len(ranked)):
        if keep_mask[i]:
            keep_mask[second[starts[i] : starts[i + 1]]] = False
    return ranked[keep_mask]


def suppress_counted(detections: Boxes, limits: Sequence[float], iou: float) -> Boxes:
    """Suppression in two groups: a box below its class's limit never suppresses a box that reaches its own limit.

    Args:
        detections: those of one slide or tile, with scores.
        limits: for each class, the score from which a box counts.
        iou: see `suppress`.

    Returns:
        By falling score; boxes below their limit are kept where no box that reaches its limit overlaps them.
    """
    reaches_limit = detections.known_scores >= np.asarray(limits)[detections.labels]
    counted_detections = suppress(detections[reaches_limit], iou)
    other_detections = suppress(detections[~reaches_limit], iou)
    if len(counted_detections) and len(other_detections):
        unhidden = np.ones(len(other_detections), np.bool_)
        tree = STRtree([shapely.box(*box) for box in counted_detections.boxes])
        i, j = tree.query([shapely.box(*box) for box in other_detections.boxes], predicate="intersects")
        unhidden[i[_iou(other_detections.boxes[i], counted_detections.boxes[j]) > iou]] = False
        other_detections = other_detections[unhidden]
    return joined([counted_detections, other_detections]).best_first()


def overlaps(a: Boxes, b: Boxes) -> npt.NDArray[np.float64]:
    """Intersection over union of every box of ``a`` (n) with every box of ``b`` (m), whatever their classes: (n, m)."""
    pairs = np.repeat(a.boxes, len(b), axis=0), np.tile(b.boxes, (len(a), 1))
    return _iou(*pairs).reshape(len(a), len(b))


def _iou(a: BoxesXYXY, b: BoxesXYXY) -> npt.NDArray[np.float64]:
    """Intersection over union, pair by pair: (n,)."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=1)
    whole = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1)
    return np.asarray(shared / (whole - shared))


def enlarged(boxes: Boxes, by: Sequence[float]) -> Boxes:
    """Boxes with each side moved outward, so that a detector sees the surroundings of a capillary (Kim et al. 2019).

    The paper states by how many pixels label masks were enlarged (50 for positive, 40 for negative capillaries), not
    whether in all or on each side; here it is each side.

    Args:
        boxes: in pixels.
        by: enlargement of each class, in the same pixels; may be negative, and boxes of which nothing remains are then
            left out.
    """
    sides = _moved_outward(boxes, by)
    has_area = np.asarray((sides[:, 2:] > sides[:, :2]).all(axis=1))
    return replace(boxes[has_area], boxes=sides[has_area])


def shrunk(boxes: Boxes, by: Sequence[float], smallest: float) -> Boxes:
    """Take off what boxes were enlarged by; none gets smaller than a square around its middle.

    Args:
        boxes: in pixels.
        by: for each class, on each side, in the same pixels.
        smallest: side of that square, in the same pixels.
    """
    small = _moved_outward(boxes, [-margin for margin in by])
    low = np.minimum(small[:, :2], boxes.centres - smallest / 2)
    high = np.maximum(small[:, 2:], boxes.centres + smallest / 2)
    return replace(boxes, boxes=np.hstack([low, high]))


def _moved_outward(boxes: Boxes, by: Sequence[float]) -> BoxesXYXY:
    """Sides of the boxes (n, 4), each moved outward by the margin of its class; margins may be negative."""
    margins = np.asarray(by, np.float64)[boxes.labels][:, None]
    return np.asarray(boxes.boxes + margins * np.array([-1, -1, 1, 1]))
