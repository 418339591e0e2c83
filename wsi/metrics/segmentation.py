"""How well a map of classes agrees with the true one: accuracies and overlaps (Long et al. 2015), Dice, boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

UNKNOWN = 255  # in a map of truth: a place that does not count
ClassMap = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False, slots=True)
class SegmentationScore:
    """Agreement of maps, from the counts of all their places. What no place can tell is NaN.

    Attributes:
        counts: (classes, classes): places of the true class in the row that were given the class in the column.
    """

    counts: npt.NDArray[np.int64]

    @property
    def pixel_accuracy(self) -> float:
        """Share of the places whose class is right."""
        return _share(np.trace(self.counts), self.counts.sum())

    @property
    def accuracies(self) -> npt.NDArray[np.float64]:
        """For each class the share of its true places that were given it."""
        return _shares(np.diag(self.counts), self.counts.sum(axis=1))

    @property
    def ious(self) -> npt.NDArray[np.float64]:
        """For each class the places on which both maps agree, as a share of those on which either has it."""
        either = self.counts.sum(axis=0) + self.counts.sum(axis=1) - np.diag(self.counts)
        return _shares(np.diag(self.counts), either)

    @property
    def dice(self) -> npt.NDArray[np.float64]:
        """For each class twice the places on which both maps agree, as a share of the places of both together."""
        return _shares(2 * np.diag(self.counts), self.counts.sum(axis=0) + self.counts.sum(axis=1))

    @property
    def mean_accuracy(self) -> float:
        """Mean of `accuracies` over the classes that the truth has."""
        return _mean(self.accuracies)

    @property
    def mean_iou(self) -> float:
        """Mean of `ious` over the classes that either map has."""
        return _mean(self.ious)

    @property
    def frequency_weighted_iou(self) -> float:
        """`ious`, each weighted by the share of its true places."""
        true = self.counts.sum(axis=1)
        return _share(np.nansum(true * self.ious), true.sum())


def compare_maps(truth: Sequence[ClassMap], given: Sequence[ClassMap], classes: int) -> SegmentationScore:
    """Count the places of all pairs of maps together; places that are `UNKNOWN` in the truth do not count.

    Args:
        truth: uint8 maps of class numbers.
        given: the maps that are judged, of the same shapes.
        classes: number of the classes.

    Raises:
        ValueError: two maps differ in shape, or hold another class.
    """
    counts = np.zeros((classes, classes), np.int64)
    for right, answer in zip(truth, given, strict=True):
        if right.shape != answer.shape:
            raise ValueError(f"maps of shapes {right.shape} and {answer.shape} cannot be compared")
        known = right != UNKNOWN
        pairs = right[known].astype(np.int64) * classes + answer[known]
        if known.any() and (right[known].max() >= classes or answer[known].max() >= classes):
            raise ValueError(f"a map holds a class beyond the {classes} that are known")
        counts += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return SegmentationScore(counts)


def boundary_f1(truth: ClassMap, given: ClassMap, label: int, tolerance: float) -> float:
    """F1 of the boundaries of a class: each place of one that lies within ``tolerance`` of the other is right.

    Args:
        truth: a map of class numbers.
        given: the map that is judged, of the same shape.
        label: the class.
        tolerance: distance in cells, from middle to middle.

    Returns:
        0..1; 1 where neither map has a boundary, 0 where only one has.
    """
    edges = [_boundary(m == label) for m in (truth, given)]
    if not (edges[0].any() or edges[1].any()):
        return 1.0
    if not (edges[0].any() and edges[1].any()):
        return 0.0
    recall, precision = (
        float((_distance_to(other)[edge] <= tolerance).mean()) for edge, other in (edges, edges[::-1])
    )
    return 0.0 if recall + precision == 0 else 2 * recall * precision / (recall + precision)


def _boundary(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Cells inside that have a neighbour outside to the left, right, above or below; the map's end is no boundary."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inner = cv2.erode(inside.astype(np.uint8), cross, borderType=cv2.BORDER_CONSTANT, borderValue=1)
    return np.asarray(inside & (inner == 0))


def _distance_to(edge: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Distance of every cell to the nearest one of an edge."""
    distances = cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distances, np.float32)


def _shares(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0))


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _mean(values: npt.NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
