"""Agreement of two readings of the same slides: of percentages, and of grades."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class BlandAltman:
    """Differences of two readings, first less second: their mean, and the limits that hold 95 % of them."""

    bias: float
    low: float
    high: float
    slides: int


def bland_altman(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> BlandAltman:
    """Bias and limits of agreement: mean and 1.96 standard deviations of the differences (Bland and Altman 1986).

    Raises:
        ValueError: fewer than two slides, or arrays of two lengths.
    """
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"two readings of at least two slides are needed, got {first.shape} and {second.shape}"
        )
    differences = first - second
    half_width = 1.96 * float(differences.std(ddof=1))
    return BlandAltman(
        float(differences.mean()),
        float(differences.mean()) - half_width,
        float(differences.mean()) + half_width,
        len(differences),
    )


def weighted_kappa(first: Sequence[int], second: Sequence[int], grades: int) -> float:
    """Cohen's kappa of two gradings with quadratic weights: 1 agrees always, 0 as by chance.

    Args:
        first: grades as numbers from 0.
        second: grades of the same slides.
        grades: number of possible grades.

    Returns:
        The kappa, or NaN where both gave all slides the same grade, so that chance alone would agree.
    """
    table = np.zeros((grades, grades))
    np.add.at(table, (np.asarray(first, np.int64), np.asarray(second, np.int64)), 1)
    if table.sum() == 0:
        raise ValueError("no slide was graded twice")
    numbers = np.arange(grades)
    weight = (numbers[:, None] - numbers) ** 2
    chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    expected = (weight * chance).sum()
    return float(1 - (weight * table).sum() / expected) if expected else float("nan")
