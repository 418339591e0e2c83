"""Measures of how well scores rank positives above negatives."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from wsi.metrics.resample import RESAMPLES, percentile_interval


def auc(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties as a half.

    Args:
        positive: (n,) True for positive items.
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

    It assumes independent items; patches of one slide are not independent, so the true interval is wider.
    """
    rng = np.random.default_rng(seed)
    groups = [scores[positive], scores[~positive]]
    undefined = float("nan"), float("nan")
    if min(map(len, groups)) == 0:
        return undefined
    labels = np.repeat([True, False], [len(g) for g in groups])
    values = [
        auc(labels, np.concatenate([rng.choice(group, len(group)) for group in groups]))
        for _ in range(RESAMPLES)
    ]
    return percentile_interval(values) or undefined


def auc_draws(
    positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating], weights: npt.NDArray[np.integer]
) -> npt.NDArray[np.float64]:
    """`auc` of many weightings of the same items.

    Args:
        positive: (n,) True for positive items; n is some hundreds, as memory grows with n * n.
        scores: (n,) finite.
        weights: (draws, n) number of times that each item is drawn.

    Returns:
        (draws,); NaN where a draw has one class only.
    """
    wins = (scores[positive][:, None] > scores[~positive]) + 0.5 * (
        scores[positive][:, None] == scores[~positive]
    )
    for_pairs = weights[:, positive] @ wins  # (draws, negatives)
    pairs = weights[:, positive].sum(axis=1) * weights[:, ~positive].sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray((for_pairs * weights[:, ~positive]).sum(axis=1) / pairs)


def delong_interval(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> tuple[float, float]:
    """95 % interval of `auc` after DeLong et al. 1988: normal, cut at 0 and 1.

    It is empty at an AUC of 1, where the estimated variance is 0; NaN with fewer than two items of a class.
    """
    groups = scores[positive], scores[~positive]
    if min(map(len, groups)) < 2:
        return float("nan"), float("nan")
    ranks = rankdata(np.concatenate(groups))
    m, n = map(len, groups)
    above = (ranks[:m] - rankdata(groups[0])) / n  # share of negatives that each positive is above
    below = 1 - (ranks[m:] - rankdata(groups[1])) / m
    spread = 1.959963984540054 * np.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n)
    middle = above.mean()
    return float(max(0.0, middle - spread)), float(min(1.0, middle + spread))


def roc(
    positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """False and true positive rate at every distinct score, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], positive[order]
    last = np.r_[np.flatnonzero(np.diff(ordered)), len(ordered) - 1]
    true, false = np.cumsum(hits)[last], np.cumsum(~hits)[last]
    return np.r_[0, false / max(1, (~positive).sum())], np.r_[0, true / max(1, positive.sum())]
