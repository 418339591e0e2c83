"""From counted capillaries to the Banff C4d score, its interval, and whether it may be given at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from scipy.stats import beta

from wsi.config import Config

METHOD = "immunohistochemistry on paraffin"


class GradingConfig(Config):
    """How counts become a grade.

    Attributes:
        grades: names from no staining upward (Banff 2019: 0 %, above 0 and below 10 %, 10 to 50 %, above 50 %).
        focal_percent: from which the third grade begins: 10 % belongs to it.
        diffuse_percent: up to which it reaches: 50 % belongs to it, more to the fourth.
        min_fields: feasible fields below which the slide is not assessable; Banff 2007 asks for five high-power fields.
        min_capillaries: peritubular capillaries below which it is not: with 100, one more or less is a percent.
        draws: of the bootstrap over fields.
        seed: of its draws.
    """

    grades: tuple[str, str, str, str] = ("C4d0", "C4d1", "C4d2", "C4d3")
    focal_percent: float = Field(default=10.0, gt=0, lt=100)
    diffuse_percent: float = Field(default=50.0, gt=0, lt=100)
    min_fields: int = Field(default=5, gt=0)
    min_capillaries: int = Field(default=100, gt=0)
    draws: int = Field(default=2000, gt=0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _ascending(self) -> GradingConfig:
        if self.focal_percent >= self.diffuse_percent:
            raise ValueError(
                f"focal_percent {self.focal_percent} must be below diffuse_percent {self.diffuse_percent}"
            )
        return self


@dataclass(frozen=True, eq=False, slots=True)
class FieldCounts:
    """Capillaries of every feasible field.

    Attributes:
        positive, negative: (fields,) peritubular capillaries and vasa recta; nothing else may be counted.
    """

    positive: npt.NDArray[np.int64]
    negative: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.positive.shape != self.negative.shape or self.positive.ndim != 1:
            raise ValueError(
                f"one count per field is needed, got {self.positive.shape} and {self.negative.shape}"
            )
        if min(self.positive.min(initial=0), self.negative.min(initial=0)) < 0:
            raise ValueError("counts must not be negative")

    @property
    def total(self) -> npt.NDArray[np.int64]:
        """(fields,) all of them."""
        return self.positive + self.negative


@dataclass(frozen=True, slots=True)
class Grade:
    """A slide's C4d score.

    Attributes:
        percent: 100 * positive / (positive + negative); None without any capillary.
        interval: 95 % of the percentage, clustered by field; None without any capillary.
        grade: one of the config's names; None where the slide is not assessable.
        grades_in_interval: every grade that the interval touches, lowest first.
        why_not: why it is not assessable; empty where it is.
    """

    positive: int
    negative: int
    fields: int
    percent: float | None
    interval: tuple[float, float] | None
    grade: str | None
    grades_in_interval: tuple[str, ...]
    why_not: str

    def summary(self) -> dict[str, Any]:
        """As reports state it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"method": METHOD}


def grade_of(percent: float, cfg: GradingConfig) -> str:
    """The grade of a percentage: exactly 0 is the first, however little above it the second (Banff).

    Raises:
        ValueError: it lies outside 0..100.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"a percentage must lie in 0..100, got {percent}")
    if percent == 0:
        return cfg.grades[0]
    return cfg.grades[1 if percent < cfg.focal_percent else 2 if percent <= cfg.diffuse_percent else 3]


def percent_text(percent: float, cfg: GradingConfig) -> str:
    """A percentage with one digit, or as many more as it takes to lie on the same side of every grade's border."""
    grade = grade_of(percent, cfg)
    digits = next((d for d in range(1, 4) if grade_of(round(percent, d), cfg) == grade), 4)
    return f"{percent:.{digits}f}"


def grade_slide(counts: FieldCounts, cfg: GradingConfig) -> Grade:
    """Percentage, interval, grade, and whether there is enough to give one."""
    positive, total = int(counts.positive.sum()), int(counts.total.sum())
    fields = len(counts.total)
    why_not = _why_not(fields, total, cfg)
    if total == 0:
        return Grade(0, 0, fields, None, None, None, (), why_not)
    percent = 100 * positive / total
    interval = percent_interval(counts, cfg)
    ends = [cfg.grades.index(grade_of(end, cfg)) for end in interval]
    touched = cfg.grades[ends[0] : ends[1] + 1]
    grade = None if why_not else grade_of(percent, cfg)
    return Grade(positive, total - positive, fields, percent, interval, grade, touched, why_not)


def _why_not(fields: int, capillaries: int, cfg: GradingConfig) -> str:
    """Why no grade may be given."""
    if fields < cfg.min_fields:
        return f"{fields} feasible fields, at least {cfg.min_fields} are needed"
    if capillaries < cfg.min_capillaries:
        return f"{capillaries} capillaries, at least {cfg.min_capillaries} are needed"
    return ""


def percent_interval(counts: FieldCounts, cfg: GradingConfig) -> tuple[float, float]:
    """95 % of the percentage: percentiles of a bootstrap over fields, as capillaries of one field are alike.

    It is never narrower than Clopper and Pearson's with every capillary by itself: with one field, fields of one share,
    or none or all positive, no draw differs, and that must not look certain.

    Raises:
        ValueError: there is no capillary.
    """
    positive, total = int(counts.positive.sum()), int(counts.total.sum())
    if total == 0:
        raise ValueError("without a capillary there is no percentage")
    exact = exact_interval(positive, total)
    if positive in (0, total):
        return exact
    rng = np.random.default_rng(cfg.seed)
    n = len(counts.total)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=cfg.draws)  # (draws, fields)
    drawn_total = weights @ counts.total
    drawn = 100 * (weights @ counts.positive)[drawn_total > 0] / drawn_total[drawn_total > 0]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return min(float(low), exact[0]), max(float(high), exact[1])


def exact_interval(positive: int, total: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a percentage."""
    low = 0.0 if positive == 0 else float(beta.ppf(0.025, positive, total - positive + 1))
    high = 1.0 if positive == total else float(beta.ppf(0.975, positive + 1, total - positive))
    return 100 * low, 100 * high


def stability(
    scores: npt.NDArray[np.floating],
    positive: npt.NDArray[np.bool_],
    fields: npt.NDArray[np.int64],
    count: int,
    thresholds: Sequence[float],
    cfg: GradingConfig,
) -> tuple[tuple[float, Grade], ...]:
    """The grade at several thresholds of the detector.

    Args:
        scores: (n,) of all detections.
        positive: (n,) their class.
        fields: (n,) which feasible field each lies in, from 0.
        count: how many feasible fields there are: also those without a detection count.
        thresholds: lowest score that counts, one after the other.
        cfg: how counts become a grade.
    """
    found = []
    for threshold in thresholds:
        kept = scores >= threshold
        counts = FieldCounts(
            np.bincount(fields[kept & positive], minlength=count).astype(np.int64),
            np.bincount(fields[kept & ~positive], minlength=count).astype(np.int64),
        )
        found.append((threshold, grade_slide(counts, cfg)))
    return tuple(found)
