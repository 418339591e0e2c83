"""From counts to the Banff C4d score."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from pipelines.renal.grading import (
    FieldCounts,
    GradingConfig,
    exact_interval,
    grade_of,
    grade_slide,
    percent_interval,
    stability,
)

CFG = GradingConfig()


def counts(*pairs: tuple[int, int]) -> FieldCounts:
    positive, negative = np.array(pairs, np.int64).reshape(-1, 2).T
    return FieldCounts(positive, negative)


@pytest.mark.parametrize(
    ("percent", "grade"),
    [(0, 0), (1e-9, 1), (0.4, 1), (9.999, 1), (10, 2), (33, 2), (50, 2), (50.001, 3), (100, 3)],
)
def test_banff(percent: float, grade: int) -> None:
    """Banff: 0 %; above 0 and below 10; 10 to 50, both ends included; above 50 (facts/papers.md section 5)."""
    assert grade_of(percent, CFG) == f"C4d{grade}"


def test_a_slide_by_hand() -> None:
    """10 fields of 3 positive and 27 negative: 10 % exactly, C4d2; every draw gives 10 %, so the interval is Clopper and Pearson's."""
    found = grade_slide(counts(*[(3, 27)] * 10), CFG)
    assert (found.positive, found.negative, found.fields) == (30, 270, 10)
    assert found.percent == 10
    exact = binomtest(30, 300).proportion_ci(method="exact")
    assert found.interval == pytest.approx((100 * exact.low, 100 * exact.high))
    assert found.grade == "C4d2"
    assert found.grades_in_interval == ("C4d1", "C4d2")
    assert found.summary()["method"] == "immunohistochemistry on paraffin"


def test_one_positive_capillary_makes_it_positive() -> None:
    found = grade_slide(counts((1, 60), *[(0, 60)] * 9), CFG)
    assert found.grade == "C4d1"
    assert found.grades_in_interval == ("C4d0", "C4d1")  # the draws without that field see none


def test_too_little_is_not_graded() -> None:
    few = grade_slide(counts(*[(5, 45)] * 4), CFG)
    assert few.grade is None
    assert few.percent == 10  # what was seen is still said
    assert few.why_not == "4 feasible fields, at least 5 are needed"
    assert grade_slide(counts(*[(1, 9)] * 6), CFG).why_not == "60 capillaries, at least 100 are needed"
    nothing = grade_slide(counts(), CFG)
    assert (nothing.percent, nothing.interval, nothing.grade) == (None, None, None)
    assert grade_slide(counts(*[(0, 0)] * 8), CFG).percent is None


def test_clustered_capillaries_give_wider_intervals() -> None:
    """100 of 400 positive: all in a quarter of the fields, or spread evenly with some noise."""
    rng = np.random.default_rng(0)
    spread = counts(*[(int(k), 20 - int(k)) for k in rng.binomial(20, 0.25, 20)])
    focal = counts(*[(20, 0)] * 5, *[(0, 20)] * 15)
    widths = [np.diff(percent_interval(c, CFG))[0] for c in (focal, spread)]
    assert widths[0] > 2.5 * widths[1]


def test_the_interval_covers_the_truth() -> None:
    """Fields whose share varies around 30 %: 95 % intervals of 30 fields hold it in 88 to 99 of 100 slides."""
    cfg = GradingConfig(draws=300)
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        shares = rng.beta(3, 7, 30)
        positive = rng.binomial(25, shares)
        low, high = percent_interval(FieldCounts(positive, 25 - positive), cfg)
        held += low <= 30 <= high
    assert 88 <= held <= 99


def test_none_positive_is_not_certainty() -> None:
    """0 of 300: Clopper and Pearson, up to 1.22 %; scipy's own test says the same."""
    low, high = percent_interval(counts(*[(0, 30)] * 10), CFG)
    assert (low, high) == (0, pytest.approx(100 * (1 - 0.025 ** (1 / 300))))
    for positive, total in ((0, 50), (3, 50), (50, 50)):
        theirs = binomtest(positive, total).proportion_ci(method="exact")
        assert exact_interval(positive, total) == pytest.approx((100 * theirs.low, 100 * theirs.high))
    found = grade_slide(counts(*[(0, 30)] * 10), CFG)
    assert (found.grade, found.grades_in_interval) == ("C4d0", ("C4d0", "C4d1"))


def test_the_same_seed_gives_the_same_interval() -> None:
    mixed = counts(*[(k * k % 17, 20 + 7 * k) for k in range(23)])
    assert percent_interval(mixed, CFG) == percent_interval(mixed, CFG)
    assert percent_interval(mixed, CFG) != percent_interval(mixed, GradingConfig(seed=1))


def test_stability_by_hand() -> None:
    """Two fields and a third without anything. From .5: 2 of 4 positive; from .8: 2 of 2."""
    scores = np.array([0.9, 0.85, 0.6, 0.55, 0.3])
    positive = np.array([True, True, False, False, True])
    cfg = GradingConfig(min_fields=3, min_capillaries=1)
    found = stability(scores, positive, np.array([0, 1, 0, 1, 1]), 3, (0.5, 0.8, 0.95), cfg)
    assert [(t, g.percent, g.grade, g.fields) for t, g in found] == [
        (0.5, 50, "C4d2", 3),
        (0.8, 100, "C4d3", 3),
        (0.95, None, None, 3),
    ]


def test_what_has_no_meaning_is_refused() -> None:
    for percent in (-0.1, 100.1, float("nan")):
        with pytest.raises(ValueError, match="0..100"):
            grade_of(percent, CFG)
    with pytest.raises(ValueError, match="must be below diffuse_percent"):
        GradingConfig(focal_percent=60)
    with pytest.raises(ValueError, match="must not be negative"):
        counts((-1, 5))
    with pytest.raises(ValueError, match="without a capillary"):
        percent_interval(counts((0, 0)), CFG)
