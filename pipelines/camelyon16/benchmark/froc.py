"""FROC as Camelyon16's code computes it, in three variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipelines.camelyon16.benchmark.truth import LesionTruth
from wsi.arrays import PointsXY
from wsi.errors import WsiError

TARGETS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per slide at which sensitivity is read

Variant = Literal["official", "dataset", "negatives"]
VARIANTS: dict[Variant, str] = {
    "official": "the code of 2016: false positives of all slides over all slides; the smallest of all scores is "
    "dropped (all_probs[1:]); read by linear interpolation",
    "dataset": "the script that came with the data: each mask's own spacing, coordinates rounded, no score dropped, "
    "read at the first point that reaches the target",
    "negatives": "false positives of tumour-free slides only, per tumour-free slide (JAMA 2017 and Liu et al. 2017); "
    "no score dropped; read by linear interpolation",
}


@dataclass(frozen=True, eq=False, slots=True)
class SlideHits:
    """One slide's detections, divided into hits on lesions and false positives.

    Attributes:
        found: best score of each lesion, in the order of their numbers; 0 for missed ones and isolated cells. float32
            in the variant ``official``, as in its code; float64 in the others.
        false: scores of false positives.
        lesions: how many lesions are to be found, without isolated cells.
        tumour: whether the slide has tumour.
    """

    found: npt.NDArray[np.floating]
    false: npt.NDArray[np.float64]
    lesions: int
    tumour: bool


@dataclass(frozen=True, eq=False, slots=True)
class FrocCurve:
    """Sensitivity against false positives per slide, most permissive point first, (0, 0) last.

    Attributes:
        thresholds: the score from which detections count at each point; infinity last.
        stepwise: read at the first point that reaches the target, instead of between points.
    """

    thresholds: npt.NDArray[np.float64]
    false_per_slide: npt.NDArray[np.float64]
    sensitivity: npt.NDArray[np.float64]
    stepwise: bool = False

    @property
    def score(self) -> float:
        """Mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives per slide."""
        return float(np.mean(self.at(TARGETS)))

    def at(self, targets: float | Sequence[float]) -> npt.NDArray[np.float64]:
        """Sensitivity at a number of false positives per slide; beyond the curve's end it is that of the last point."""
        false_per_slide, sensitivity = self.false_per_slide[::-1], self.sensitivity[::-1]
        if not self.stepwise:
            return np.asarray(np.interp(targets, false_per_slide, sensitivity))
        return np.asarray(
            sensitivity[
                np.minimum(np.searchsorted(false_per_slide, targets, side="left"), len(false_per_slide) - 1)
            ]
        )

    def false_at(self, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """False positives per slide if detections count from this score on, for each of the scores."""
        return np.asarray(self.false_per_slide[np.searchsorted(self.thresholds, scores, side="left")])


def slide_hits(
    points: PointsXY, scores: npt.NDArray[np.float64], truth: LesionTruth, variant: Variant
) -> SlideHits:
    """Divide a slide's detections: on a lesion the best one counts once, on isolated cells none counts.

    Args:
        points: (n, 2) level-0 (x, y), on the slide.
        scores: (n,) of the detections, 0..1.
        truth: the slide's lesions.
        variant: ``dataset`` looks points up by rounding; ``official`` keeps lesions' scores as float32.
    """
    numbers = truth.numbers_at(points, nearest=variant == "dataset")
    precision: type[np.floating] = np.float32 if variant == "official" else np.float64
    best_scores: npt.NDArray[np.floating] = np.zeros(len(truth.lengths_um), precision)
    on_lesion = numbers > 0
    np.maximum.at(best_scores, numbers[on_lesion] - 1, scores[on_lesion].astype(precision))
    best_scores[truth.isolated] = 0
    return SlideHits(best_scores, scores[~on_lesion], int((~truth.isolated).sum()), truth.labels is not None)


class FrocTable:
    """A table of slides that gives the curve of any weighting of them cheaply: a bootstrap draw, a permutation."""

    def __init__(self, slides: Sequence[SlideHits], variant: Variant) -> None:
        if not slides:
            raise WsiError("no slide is left to compute FROC of; check --truth and the exclusions")
        self.variant = variant
        self.lesions = np.array([s.lesions for s in slides])
        self.counted = (
            np.array([not s.tumour for s in slides]) if variant == "negatives" else np.ones(len(slides))
        )
        if self.lesions.sum() == 0:
            raise WsiError("the slides have no lesion to be found, so FROC is not defined; add tumour slides")
        if self.counted.sum() == 0:
            raise WsiError(
                "no slide is free of tumour, so the variant 'negatives' is not defined; use 'official'"
            )
        false_by_slide = [
            s.false if counted else s.false[:0] for s, counted in zip(slides, self.counted, strict=True)
        ]
        found_by_slide = [s.found for s in slides]
        self._false_slide = np.repeat(np.arange(len(slides)), [len(f) for f in false_by_slide])
        self._lesion_slide = np.repeat(np.arange(len(slides)), [len(f) for f in found_by_slide])
        false_scores = np.concatenate(false_by_slide).astype(np.float64)
        lesion_scores = np.concatenate(found_by_slide)
        self.thresholds = np.unique(np.concatenate([false_scores, lesion_scores.astype(np.float64)]))
        self._present = np.searchsorted(
            self.thresholds, np.concatenate([false_scores, lesion_scores.astype(np.float64)])
        )
        # how many thresholds each score reaches; lesions' scores are compared in their own precision
        self._false_reach = np.searchsorted(self.thresholds, false_scores, side="right")
        self._lesion_reach = np.searchsorted(
            self.thresholds.astype(lesion_scores.dtype), lesion_scores, side="right"
        )

    def curve(self, weights: npt.NDArray[np.integer] | None = None) -> FrocCurve | None:
        """The curve over all slides, each taken ``weights`` times; None where it is not defined for these weights."""
        weight = np.ones(len(self.lesions)) if weights is None else weights.astype(np.float64)
        lesions, slides = weight @ self.lesions, weight @ self.counted
        if lesions == 0 or slides == 0:
            return None
        false_weight = _reaching(self._false_reach, weight[self._false_slide], len(self.thresholds))
        found_weight = _reaching(self._lesion_reach, weight[self._lesion_slide], len(self.thresholds))
        first = self._first(weight)
        return FrocCurve(
            np.append(self.thresholds[first:], np.inf),
            np.append(false_weight[first:] / slides, 0.0),
            np.append(found_weight[first:] / lesions, 0.0),
            stepwise=self.variant == "dataset",
        )

    def _first(self, weight: npt.NDArray[np.float64]) -> int:
        """The index of the first threshold that counts.

        ``all_probs[1:]`` of the official code is meant to drop the 0 of missed lesions, and drops a real score where
        none was missed and no slide has isolated cells. The other variants drop only 0.
        """
        if self.variant != "official":
            return int(np.searchsorted(self.thresholds, 0.0, side="right"))
        in_draw = weight[np.concatenate([self._false_slide, self._lesion_slide])] > 0
        return int(self._present[in_draw].min(initial=len(self.thresholds) - 1)) + 1


def _reaching(
    reach: npt.NDArray[np.int64], weight: npt.NDArray[np.float64], thresholds: int
) -> npt.NDArray[np.float64]:
    """Summed weight of the scores that reach each threshold: (thresholds,)."""
    counts = np.bincount(reach, weights=weight, minlength=thresholds + 1)
    return np.asarray(counts[::-1].cumsum()[::-1][1:])


def froc(slides: Sequence[SlideHits], variant: Variant = "official") -> FrocCurve:
    """The curve over slides.

    Raises:
        WsiError: no lesion is to be found, or (``negatives``) no slide is free of tumour.
    """
    curve = FrocTable(slides, variant).curve()
    assert curve is not None  # the table has checked that there are lesions and slides
    return curve
