"""Numbers that say how good scores are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata


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
