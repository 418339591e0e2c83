"""The Banff C4d score of counted capillaries, its interval, and whether it may be given at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from scipy.stats import beta

from wsi.config import Config
from wsi.metrics.resample import draw_weights, percentile_interval
from wsi.text import number_of

COVERS_SAMPLING = "which fields were seen; not the detector's errors"
COVERS_ERRORS = "which fields were seen, and the detector's errors on validation slides"
METHOD = "immunohistochemistry on paraffin"


class GradingConfig(Config):
    """The rules by which counts become a grade.

    Attributes:
        grades: names from no staining upward (Banff 2019: 0 %, above 0 and below 10 %, 10 to 50 %, above 50 %).
        words: what each grade is called (Banff 2019).
        focal_percent: percentage from which the third grade begins: 10 % belongs to it.
        diffuse_percent: percentage up to which the third grade reaches: 50 % belongs to it, more to the fourth.
        min_fields: feasible fields below which the slide is not assessable; Banff 2007 asks for five high-power fields.
        min_capillaries: peritubular capillaries below which the slide is not assessable; of 100, one is a percent.
        draws: number of bootstrap draws over fields.
        seed: seed of the draws.
    """

    grades: tuple[str, str, str, str] = ("C4d0", "C4d1", "C4d2", "C4d3")
    words: tuple[str, str, str, str] = ("none", "minimal", "focal", "diffuse")
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
        """Capillaries of both classes: (fields,)."""
        return self.positive + self.negative


@dataclass(frozen=True, eq=False, slots=True)
class CountingErrors:
    """The errors of a detector's counts on slides with truth, slide by slide: errors of one slide belong together.

    Attributes:
        table: (slides, 6) positive ones hit, false and missed, then negative ones hit, false and missed, after the
            checks, at the thresholds that reports use.
    """

    table: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.table.ndim != 2 or self.table.shape[1] != 6 or len(self.table) == 0 or self.table.min() < 0:
            raise ValueError(f"errors must be rows of six counts, got {self.table.shape}")

    def truth_of(
        self,
        positive: npt.NDArray[np.int64],
        negative: npt.NDArray[np.int64],
        rng: np.random.Generator,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Possible true counts where these numbers were counted: one draw for each pair of counts.

        A draw takes the errors of one slide at random, since slides differ more than chance, and a rate from them
        (Jeffreys' prior: half an event is added). False capillaries are in proportion to all counted ones, as are
        things that look like a capillary; missed ones are in proportion to true ones. Where a slide held fewer than
        `FEW` of a class, its share of missed ones is that of all slides.
        """
        rows = self.table[rng.integers(len(self.table), size=len(positive))]
        slide_counts = np.maximum(rows[:, [0, 1, 3, 4]].sum(axis=1), 1)  # counted on that slide
        truth = []
        for first, counted in ((0, positive), (3, negative)):
            hit, false, missed = rows[:, first], rows[:, first + 1], rows[:, first + 2]
            rate = rng.gamma(false + 0.5) / slide_counts
            false_counts = np.minimum(rng.poisson(rate * (positive + negative)), counted)
            is_small = hit + missed < FEW
            hit = np.where(is_small, self.table[:, first].sum(), hit)
            missed = np.where(is_small, self.table[:, first + 2].sum(), missed)
            sensitivity = np.clip(rng.beta(hit + 0.5, missed + 0.5), 0.05, 1.0)
            true_counts = counted - false_counts
            truth.append(true_counts + rng.negative_binomial(true_counts + 0.5, sensitivity))
        return truth[0], truth[1]


FEW = 20  # true ones of a class below which a slide's own share of missed ones says little


@dataclass(frozen=True, slots=True)
class GradeChange:
    """A threshold of one class at which the grade becomes another, the other class's threshold staying as it is."""

    positive: bool
    threshold: float
    grade: str


@dataclass(frozen=True, slots=True)
class Grade:
    """A slide's C4d score.

    Attributes:
        percent: 100 * positive / (positive + negative); None without any capillary.
        interval: 95 % of the percentage, clustered by field; None without any capillary.
        interval_covers: what the interval takes into account.
        grade: one of the config's names; None where the slide is not assessable.
        grades_in_interval: every grade that the interval touches, lowest first.
        why_not: why the slide is not assessable; empty where it is.
    """

    positive: int
    negative: int
    fields: int
    percent: float | None
    interval: tuple[float, float] | None
    interval_covers: str
    grade: str | None
    grades_in_interval: tuple[str, ...]
    why_not: str

    def summary(self) -> dict[str, Any]:
        """The grade as plain values for reports."""
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
    """A percentage with one digit, or with as many as are needed so that the rounded one has the same grade."""
    grade = grade_of(percent, cfg)
    digits = next((d for d in range(1, 4) if grade_of(round(percent, d), cfg) == grade), 4)
    return f"{percent:.{digits}f}"


def grade_word(grade: str, cfg: GradingConfig) -> str:
    """A grade with its word: ``C4d2 (focal)``."""
    return f"{grade} ({cfg.words[cfg.grades.index(grade)]})" if grade in cfg.grades else grade


def grade_slide(counts: FieldCounts, cfg: GradingConfig, errors: CountingErrors | None = None) -> Grade:
    """Compute percentage, interval and grade; without enough fields or capillaries there is no grade.

    Args:
        counts: counts of every feasible field.
        cfg: how counts become a grade.
        errors: the detector's errors on slides with truth; None where a person counted, or where they are not known.
    """
    positive, total = int(counts.positive.sum()), int(counts.total.sum())
    fields = len(counts.total)
    why_not = _why_not(fields, total, cfg)
    if total == 0:
        return Grade(0, 0, fields, None, None, "", None, (), why_not)
    percent = 100 * positive / total
    interval = percent_interval(counts, cfg, errors)
    ends = [cfg.grades.index(grade_of(end, cfg)) for end in interval]
    touched = cfg.grades[ends[0] : ends[1] + 1]
    grade = None if why_not else grade_of(percent, cfg)
    covers = COVERS_SAMPLING if errors is None else COVERS_ERRORS
    return Grade(positive, total - positive, fields, percent, interval, covers, grade, touched, why_not)


def _why_not(fields: int, capillaries: int, cfg: GradingConfig) -> str:
    """The reason why no grade may be given; empty where one may."""
    if fields < cfg.min_fields:
        return f"{number_of(fields, 'evaluated field')}, at least {cfg.min_fields} are needed"
    if capillaries < cfg.min_capillaries:
        return (
            f"{number_of(capillaries, 'capillary', 'capillaries')}, at least {cfg.min_capillaries} are needed"
        )
    return ""


def percent_interval(
    counts: FieldCounts, cfg: GradingConfig, errors: CountingErrors | None = None
) -> tuple[float, float]:
    """95 % interval of the percentage by a bootstrap over fields, as capillaries of one field are alike.

    It is never narrower than the interval of Clopper and Pearson, which takes every capillary by itself: with one
    field, with fields of one share, or with none or all positive, no draw differs, and that must not look certain. If
    the detector's errors are given, the interval also covers the possible true counts.

    Raises:
        ValueError: there is no capillary.
    """
    positive, total = int(counts.positive.sum()), int(counts.total.sum())
    if total == 0:
        raise ValueError("without a capillary there is no percentage")
    rng = np.random.default_rng(cfg.seed)
    weights = draw_weights(rng, len(counts.total), cfg.draws)
    draw_counts = weights @ counts.positive, weights @ counts.negative
    ends = [exact_interval(positive, total)]
    if 0 < positive < total:
        ends.append(_percentiles(*draw_counts))
    if errors is not None:
        ends.append(_percentiles(*errors.truth_of(*draw_counts, rng)))
    return min(low for low, _ in ends), max(high for _, high in ends)


def _percentiles(positive: npt.NDArray[np.integer], negative: npt.NDArray[np.integer]) -> tuple[float, float]:
    """Interval of the percentage over draws with these counts, (draws,); all of 0..100 without a capillary in any."""
    total = positive + negative
    return percentile_interval(100 * positive[total > 0] / total[total > 0]) or (0.0, 100.0)


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
        positive: (n,) whether each is positive.
        fields: (n,) number of the feasible field that each lies in, from 0.
        count: number of feasible fields, also of those without a detection.
        thresholds: lowest scores that count.
        cfg: how counts become a grade.
    """
    grades = []
    for threshold in thresholds:
        is_counted = scores >= threshold
        counts = FieldCounts(
            np.bincount(fields[is_counted & positive], minlength=count).astype(np.int64),
            np.bincount(fields[is_counted & ~positive], minlength=count).astype(np.int64),
        )
        grades.append((threshold, grade_slide(counts, cfg)))
    return tuple(grades)


def grade_changes(
    scores: npt.NDArray[np.floating],
    positive: npt.NDArray[np.bool_],
    fields: npt.NDArray[np.int64],
    count: int,
    limits: tuple[float, float],
    cfg: GradingConfig,
) -> tuple[GradeChange, ...]:
    """The nearest thresholds, up and down, at which the percentage falls into another grade.

    Args:
        scores: (n,) of all detections that the checks leave in.
        positive: (n,) whether each is positive.
        fields: (n,) number of the feasible field that each lies in.
        count: number of feasible fields.
        limits: the thresholds of negative and positive detections.
        cfg: how counts become a grade.
    """
    in_field = (fields >= 0) & (fields < count)
    by_class = [
        np.sort(scores[in_field & (positive == is_positive)].astype(np.float64))
        for is_positive in (False, True)
    ]
    class_counts = [
        len(s) - int(np.searchsorted(s, limit)) for s, limit in zip(by_class, limits, strict=True)
    ]
    if sum(class_counts) == 0:
        return ()
    grade = grade_of(100 * class_counts[1] / sum(class_counts), cfg)
    changes = []
    for is_positive in (True, False):
        values, limit = by_class[is_positive], limits[is_positive]
        for candidates in (values[values > limit], values[values < limit][::-1]):
            for threshold in _steps(candidates, up=len(candidates) > 0 and candidates[0] > limit):
                new_counts = [*class_counts]
                new_counts[is_positive] = len(values) - int(np.searchsorted(values, threshold))
                if (
                    sum(new_counts)
                    and (new_grade := grade_of(100 * new_counts[1] / sum(new_counts), cfg)) != grade
                ):
                    changes.append(GradeChange(is_positive, threshold, new_grade))
                    break
    return tuple(changes)


def _steps(scores: npt.NDArray[np.float64], *, up: bool) -> list[float]:
    """Thresholds, nearest first; each one leaves out one more detection (up), or takes in one more."""
    distinct = list(dict.fromkeys(scores.tolist()))
    if not up:
        return distinct
    above = [*distinct[1:], float(np.nextafter(distinct[-1], 2.0))] if distinct else []
    return [*distinct[:1], *above]
