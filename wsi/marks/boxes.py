"""Boxes with scores and classes on a slide, and tiles that share them so that none is lost or counted twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from shapely import STRtree

from wsi.arrays import BoxesXYXY, PointsXY, Scores, check_array


@dataclass(frozen=True, eq=False, slots=True)
class Detections:
    """Detections of a detector, in level-0 pixels.

    Attributes:
        boxes: (n, 4) x0, y0, x1, y1, half-open, float64: slide coordinates never pass through half precision.
        scores: (n,) 0..1.
        labels: (n,) class numbers from 0.
    """

    boxes: BoxesXYXY
    scores: Scores
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        check_array("boxes", self.boxes, ndim=2, dtype=np.float64)
        check_array("scores", self.scores, ndim=1, dtype=np.float32)
        check_array("labels", self.labels, ndim=1, dtype=np.int64)
        if self.boxes.shape != (len(self.scores), 4) or len(self.labels) != len(self.scores):
            raise ValueError(
                f"boxes, scores and labels must be of one length, got {self.boxes.shape}, {self.scores.shape}, "
                f"{self.labels.shape}"
            )
        if not (self.boxes[:, 2:] > self.boxes[:, :2]).all():
            raise ValueError("boxes must have x0 < x1 and y0 < y1")

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Detections:
        """The detections that a mask or an index array selects."""
        return Detections(self.boxes[which], self.scores[which], self.labels[which])

    @property
    def centres(self) -> PointsXY:
        """(n, 2) middles of the boxes."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    def shifted(self, corner: tuple[float, float]) -> Detections:
        """The boxes of a tile, moved to slide coordinates; ``corner`` is the tile's level-0 (x, y)."""
        return Detections(self.boxes + np.array([*corner, *corner], np.float64), self.scores, self.labels)


def no_detections() -> Detections:
    """Detections without any box."""
    return Detections(np.empty((0, 4)), np.empty(0, np.float32), np.empty(0, np.int64))


def joined(parts: Sequence[Detections]) -> Detections:
    """The detections of all parts, in the order of the parts."""
    if not parts:
        return no_detections()
    return Detections(
        np.concatenate([p.boxes for p in parts]),
        np.concatenate([p.scores for p in parts]),
        np.concatenate([p.labels for p in parts]),
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


def within(detections: Detections, core: tuple[float, float, float, float]) -> Detections:
    """Detections whose middle lies in a half-open box, so that each middle lies in one core only."""
    x, y = detections.centres.T
    return detections[(x >= core[0]) & (x < core[2]) & (y >= core[1]) & (y < core[3])]


def suppress(detections: Detections, iou: float, *, across_classes: bool = True) -> Detections:
    """Non-maximum suppression in float64: keep the best box, drop those that overlap it by over ``iou``, and so on.

    Args:
        detections: those of one slide.
        iou: largest intersection over union of two boxes that stay.
        across_classes: a box also suppresses boxes of other classes, as one capillary has one class only.

    Returns:
        By falling score; of equal scores the one further up, then further left, comes first.
    """
    if len(detections) == 0:
        return detections
    order = np.lexsort((detections.boxes[:, 0], detections.boxes[:, 1], -detections.scores))
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


def suppress_counted(detections: Detections, limits: Sequence[float], iou: float) -> Detections:
    """Suppression in two groups: a box below its class's limit never suppresses a box that reaches its own limit.

    Args:
        detections: those of one slide or tile.
        limits: for each class, the score from which a box counts.
        iou: see `suppress`.

    Returns:
        By falling score; boxes below their limit are kept where no box that reaches its limit overlaps them.
    """
    reaches_limit = detections.scores >= np.asarray(limits)[detections.labels]
    counted_detections = suppress(detections[reaches_limit], iou)
    other_detections = suppress(detections[~reaches_limit], iou)
    if len(counted_detections) and len(other_detections):
        unhidden = np.ones(len(other_detections), np.bool_)
        tree = STRtree([shapely.box(*box) for box in counted_detections.boxes])
        i, j = tree.query([shapely.box(*box) for box in other_detections.boxes], predicate="intersects")
        unhidden[i[_iou(other_detections.boxes[i], counted_detections.boxes[j]) > iou]] = False
        other_detections = other_detections[unhidden]
    all_detections = joined([counted_detections, other_detections])
    return all_detections[np.argsort(-all_detections.scores, kind="stable")]


def overlaps(a: BoxesXYXY, b: BoxesXYXY) -> npt.NDArray[np.float64]:
    """Intersection over union of every box of ``a`` (n, 4) with every box of ``b`` (m, 4): (n, m)."""
    pairs = np.repeat(a, len(b), axis=0), np.tile(b, (len(a), 1))
    return _iou(*pairs).reshape(len(a), len(b))


def _iou(a: BoxesXYXY, b: BoxesXYXY) -> npt.NDArray[np.float64]:
    """Intersection over union, pair by pair: (n,)."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=1)
    whole = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1)
    return np.asarray(shared / (whole - shared))


def enlarged(boxes: BoxesXYXY, labels: npt.NDArray[np.int64], by: Sequence[float]) -> BoxesXYXY:
    """Boxes with each side moved outward, so that a detector sees the surroundings of a capillary (Kim et al. 2019).

    The paper states by how many pixels label masks were enlarged (50 for positive, 40 for negative capillaries), not
    whether in all or on each side; here it is each side.

    Args:
        boxes: (n, 4).
        labels: (n,) class numbers.
        by: enlargement of each class, in the unit of the boxes.
    """
    margins = np.asarray(by, np.float64)[labels][:, None]
    return np.asarray(boxes + margins * np.array([-1, -1, 1, 1]))
