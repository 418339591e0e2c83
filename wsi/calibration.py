"""How far scores can be taken at their word: of patches with a score near 0.9, nine in ten should be tumour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Patches whose scores lie in one tenth of 0..1: how many, their mean score, their share of tumour."""

    count: int
    score: float
    share: float


def reliability(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> list[Bin]:
    """The bins that hold a patch, lowest score first; bins are equally wide (Guo et al. 2017)."""
    which = np.minimum((np.asarray(scores, np.float64) * BINS).astype(np.int64), BINS - 1)
    chosen = [which == b for b in range(BINS)]
    return [Bin(int(c.sum()), float(scores[c].mean()), float(positive[c].mean())) for c in chosen if c.any()]


def calibration_error(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float:
    """Expected calibration error: the mean of |score - share of tumour| over the bins, by their counts."""
    bins = reliability(positive, scores)
    return sum(b.count * abs(b.score - b.share) for b in bins) / len(scores)


def fit_temperature(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float:
    """What logits are divided by so that scores are as likely as can be (Guo et al. 2017); 1 changes nothing.

    Args:
        positive: (n,) the truth, of both classes.
        scores: (n,) of two classes' softmax, 0..1.
    """
    s = np.clip(np.asarray(scores, np.float64), 1e-7, 1 - 1e-7)
    logits = np.log(s / (1 - s))
    sign = np.where(positive, 1.0, -1.0)

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0, -sign * logits / np.exp(log_t)).mean())

    low, high = np.log(0.05), np.log(20.0)
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(60):  # the loss has one minimum in the temperature
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return float(np.exp((low + high) / 2))
