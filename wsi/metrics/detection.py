"""Measures of detections: average precision, and agreement by distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi.marks.boxes import Boxes, overlaps

IOU = 0.5  # COCO's and Pascal VOC's usual overlap
_RECALLS = np.linspace(0, 1, 101)  # COCO reads precision at these


def average_precision(found: Sequence[Boxes], truth: Sequence[Boxes], label: int, iou: float = IOU) -> float:
    """AP of one class over pictures, as COCO computes it: precision made falling, read at 101 recalls.

    Detections by falling score each take the free box of their class that they overlap most, if by ``iou`` or more; a
    second one on the same box is a false alarm.

    Args:
        found: detections of each picture, with scores.
        truth: marks of each picture, in the same pixels.
        label: class number.
        iou: least overlap of a hit.

    Returns:
        0..1; NaN where nothing of the class is marked.
    """
    marked = sum(int((marks.labels == label).sum()) for marks in truth)
    if marked == 0:
        return float("nan")
    scores, hits = [], []
    for picture, marks in zip(found, truth, strict=True):
        detections = picture[picture.labels == label].best_first()
        scores.append(detections.known_scores)
        hits.append(_hits(overlaps(detections, marks[marks.labels == label]), iou))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit = np.concatenate(hits)[order]
    if len(hit) == 0:
        return 0.0
    true = np.cumsum(hit)
    precision = np.maximum.accumulate((true / np.arange(1, len(hit) + 1))[::-1])[::-1]
    recall = true / marked
    first_points = np.searchsorted(recall, _RECALLS, side="left")  # the first point that reaches each recall
    return float(np.mean(np.append(precision, 0.0)[first_points]))


def _hits(overlap: npt.NDArray[np.float64], least: float) -> npt.NDArray[np.bool_]:
    """Which detections hit, (n,): each takes a free box, best detection first; ``overlap`` is (n, m)."""
    untaken = np.ones(overlap.shape[1], np.bool_)
    hit = np.zeros(len(overlap), np.bool_)
    for i, row in enumerate(overlap):
        candidates = np.where(untaken, row, -1.0)
        if len(candidates) and candidates.max() >= least:
            hit[i] = True
            untaken[int(candidates.argmax())] = False
    return hit


@dataclass(frozen=True, slots=True)
class Agreement:
    """Counts of detections against marks: those that agree, are false, are missed."""

    hits: int
    false: int
    missed: int

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN where there is neither detection nor mark."""
        whole = 2 * self.hits + self.false + self.missed
        return 2 * self.hits / whole if whole else float("nan")


def by_distance(found: Boxes, truth: Boxes, reach: float) -> Agreement:
    """Agreement of boxes whose middles lie within a distance; see `hits_by_distance`."""
    hits = int(hits_by_distance(found, truth, reach).sum())
    return Agreement(hits, len(found) - hits, len(truth) - hits)


def hits_by_distance(found: Boxes, truth: Boxes, reach: float) -> npt.NDArray[np.bool_]:
    """Which detections lie near a mark, whatever their classes; each mark is taken once, by the best detection near it.

    Args:
        found: (n) detections, with scores.
        truth: (m) marks, in the same pixels.
        reach: largest distance of two middles, in the same pixels.

    Returns:
        (n,) in the order given.
    """
    order = np.argsort(-found.known_scores, kind="stable")
    gaps = np.hypot(*(found.centres[order][:, None] - truth.centres[None]).transpose(2, 0, 1))  # (n, m)
    hit = np.zeros(len(found), np.bool_)
    hit[order] = _hits(-gaps + 2 * reach, reach)  # nearer is more; at the reach it is still a hit
    return hit
