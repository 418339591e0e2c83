"""FROC as Camelyon16's official code computes it (Evaluation_FROC.py, 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.camelyon16.lesions import Lesion
from pipelines.camelyon16.truth import LEVEL5_PX, LesionTruth
from wsi.errors import WsiError

TARGETS = (0.25, 0.5, 1, 2, 4, 8)  # false positives per slide at which sensitivity is read


@dataclass(frozen=True, eq=False, slots=True)
class SlideHits:
    """One slide's detections, sorted out.

    Attributes:
        found: best score of each lesion number from 1 on; 0 for the missed and for isolated cells.
        false: scores of false positives.
        lesions: lesions to be found.
    """

    found: npt.NDArray[np.float32]
    false: npt.NDArray[np.float32]
    lesions: int


@dataclass(frozen=True, eq=False, slots=True)
class FrocCurve:
    """Sensitivity against false positives per slide, most permissive point first, (0, 0) last."""

    false_per_slide: npt.NDArray[np.float64]
    sensitivity: npt.NDArray[np.float64]

    @property
    def score(self) -> float:
        """Mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives per slide."""
        return float(np.mean([self.at(target) for target in TARGETS]))

    def at(self, target: float) -> float:
        """Sensitivity at this many false positives per slide, interpolated; the last point beyond the curve."""
        return float(np.interp(target, self.false_per_slide[::-1], self.sensitivity[::-1]))


def slide_hits(lesions: Sequence[Lesion], truth: LesionTruth) -> SlideHits:
    """Sort a slide's detections: on a lesion the best counts once, on isolated cells none counts.

    Raises:
        WsiError: a detection lies outside the slide.
    """
    found = np.zeros(truth.count, np.float32)
    false = []
    for lesion in lesions:
        label = _label(lesion, truth)
        if label == 0:
            false.append(lesion.score)
        elif label not in truth.isolated:
            found[label - 1] = max(found[label - 1], lesion.score)
    return SlideHits(found, np.array(false, np.float32), truth.lesions)


def _label(lesion: Lesion, truth: LesionTruth) -> int:
    if truth.labels is None:
        return 0
    row, col = int(lesion.y / LEVEL5_PX), int(lesion.x / LEVEL5_PX)  # truncated, as the official code does
    rows, cols = truth.labels.shape
    if not (0 <= row < rows and 0 <= col < cols):
        raise WsiError(
            f"a detection at ({lesion.x}, {lesion.y}) lies outside its slide; check the truth's slide"
        )
    return int(truth.labels[row, col])


def froc(slides: Sequence[SlideHits]) -> FrocCurve:
    """The curve over all slides, by the official code to the letter.

    The smallest of all scores is dropped (``all_probs[1:]``): it is meant to be the 0 of missed lesions, and
    is a real score where none was missed and no slide has isolated cells.
    """
    false = np.sort(np.concatenate([s.false for s in slides]))
    found = np.sort(np.concatenate([s.found for s in slides]))
    thresholds = np.unique(np.concatenate([false, found]))[1:]
    false_at = len(false) - np.searchsorted(false, thresholds, side="left")
    found_at = len(found) - np.searchsorted(found, thresholds, side="left")
    lesions = sum(s.lesions for s in slides)
    if lesions == 0:
        raise WsiError("the slides have no lesion to be found, so FROC is not defined; add tumour slides")
    return FrocCurve(
        np.append(false_at / len(slides), 0.0),
        np.append(found_at / lesions, 0.0),
    )
