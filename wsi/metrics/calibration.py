"""Calibration of scores: of patches with a score near 0.9, nine in ten should be positive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Patches whose scores lie in one tenth of 0..1: their number, mean score and share of positive ones."""

    count: int
    score: float
    share: float


def reliability(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> list[Bin]:
    """The bins that hold a patch, lowest score first; bins are equally wide (Guo et al. 2017)."""
    bin_numbers = np.minimum((np.asarray(scores, np.float64) * BINS).astype(np.int64), BINS - 1)
    members = [bin_numbers == b for b in range(BINS)]
    return [Bin(int(c.sum()), float(scores[c].mean()), float(positive[c].mean())) for c in members if c.any()]


def calibration_error(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float:
    """Expected calibration error: the mean of |score - share of positive patches| over the bins, by their counts."""
    bins = reliability(positive, scores)
    return sum(b.count * abs(b.score - b.share) for b in bins) / len(scores)


def fit_calibration(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Scale and offset of the log-odds with the greatest likelihood (Platt 1999); (1, 0) changes nothing.

    Args:
        positive: (n,) the truth; both classes occur.
        scores: (n,) 0..1.
    """
    odds, sign = log_odds(scores), np.where(positive, 1.0, -1.0)
    columns = np.stack([odds, np.ones_like(odds)], axis=1)
    parameters = np.array([1.0, 0.0])
    for _ in range(100):  # Newton's steps on a convex loss; a ridge keeps classes that lie apart finite
        wrong = 1 / (1 + np.exp(sign * (columns @ parameters)))
        slope = -(columns * (sign * wrong)[:, None]).mean(axis=0)
        curve = (columns.T * (wrong * (1 - wrong))) @ columns / len(odds) + 1e-6 * np.eye(2)
        step = np.linalg.solve(curve, slope)
        parameters -= np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-9:
            break
    return float(parameters[0]), float(parameters[1])


def calibrated(scores: npt.NDArray[np.floating], scale: float, offset: float) -> npt.NDArray[np.float64]:
    """Scores whose log-odds are scaled and moved by the values of `fit_calibration`."""
    return np.asarray(1 / (1 + np.exp(-(scale * log_odds(scores) + offset))))


def log_odds(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The logarithm of score / (1 - score), finite also at 0 and 1."""
    s = np.clip(np.asarray(scores, np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(s / (1 - s)))
