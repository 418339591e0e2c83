"""Numbers that say how good scores are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

RESAMPLES = 2000  # Liu et al. 2017


def auc(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties as a half.

    Args:
        positive: (n,) which are positive.
        scores: (n,) finite.

    Returns:
        0..1; NaN where one of the classes is empty.
    """
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    ranks = rankdata(scores)
    wins = ranks[positive].sum() - n_positive * (n_positive + 1) / 2
    return float(wins / (n_positive * n_negative))


def auc_interval(
    positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating], *, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of `auc`: percentiles of a bootstrap within each class, the same for the same seed.

    It takes the items as independent; patches of one slide are not, so the truth is wider.
    """
    rng = np.random.default_rng(seed)
    groups = [scores[positive], scores[~positive]]
    if min(map(len, groups)) == 0:
        return float("nan"), float("nan")
    labels = np.repeat([True, False], [len(g) for g in groups])
    drawn = [
        auc(labels, np.concatenate([rng.choice(group, len(group)) for group in groups]))
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def roc(
    positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """False and true positive rate at every distinct score, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], positive[order]
    last = np.r_[np.flatnonzero(np.diff(ordered)), len(ordered) - 1]
    true, false = np.cumsum(hits)[last], np.cumsum(~hits)[last]
    return np.r_[0, false / max(1, (~positive).sum())], np.r_[0, true / max(1, positive.sum())]
