"""From counts to the Banff C4d score."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from pipelines.renal.read.grading import (
    CountingErrors,
    FieldCounts,
    GradingConfig,
    exact_interval,
    grade_changes,
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
    assert few.why_not == "4 evaluated fields, at least 5 are needed"
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


def test_where_the_grade_changes_by_hand() -> None:
    """3 positive of 23 are 13 %, C4d2. Without the weakest two positives 1 of 21, C4d1 (4.8 %); without one, 2 of 22 are
    9.1 %, C4d1 too: so from just above the weakest (0.7) on. Without any: C4d0, further off. More negatives: 3 of 31 are
    9.7 %: the eighth weak one, at 0.22, makes it C4d1. Fewer: no positives' share above half until 2 negatives are left.
    """
    scores = np.array([0.7, 0.8, 0.9, *np.linspace(0.5, 0.69, 20), *np.linspace(0.29, 0.2, 10)])
    positive = np.arange(len(scores)) < 3
    found = grade_changes(scores, positive, np.zeros(len(scores), np.int64), 5, (0.45, 0.65), CFG)
    as_table = {(c.positive, c.grade): round(c.threshold, 3) for c in found}
    assert as_table == {(True, "C4d1"): 0.8, (False, "C4d1"): 0.22, (False, "C4d3"): 0.68}
    for (
        change
    ) in found:  # restated: counting at that threshold gives that grade, and just before it the one now
        limits = [0.45, 0.65]
        limits[change.positive] = change.threshold
        kept = scores >= np.where(positive, limits[1], limits[0])
        assert grade_of(100 * (kept & positive).sum() / kept.sum(), CFG) == change.grade


def test_no_capillary_no_change() -> None:
    none = np.empty(0)
    assert grade_changes(none, none.astype(bool), none.astype(np.int64), 3, (0.5, 0.5), CFG) == ()


class TestDetectorErrors:
    def slides(self, count: int, rng: np.random.Generator) -> list[tuple[float, FieldCounts, list[int]]]:
        """Drawn slides: true percentage, counts of an imperfect detector, its errors.

        Slides differ: in fields, in positive share from field to field, in what the detector misses and invents.
        """
        drawn = []
        for i in range(count):
            share = (0.0, 0.0, 0.01, 0.04, 0.09, 0.2, 0.45, 0.7)[i % 8]
            fields = int(rng.integers(8, 30))
            true = rng.poisson(18, fields)
            by_field = rng.beta(share * 12, (1 - share) * 12, fields) if share else np.zeros(fields)
            positive = rng.binomial(true, by_field)
            negative = true - positive
            missed, invented = rng.beta(8, 100), rng.gamma(1.5, 0.004)
            hit = rng.binomial(positive, 1 - missed)
            hit_negative = rng.binomial(negative, 1 - rng.beta(8, 60))
            false = rng.poisson(invented * true)
            false_negative = rng.poisson(0.03 * true)
            row = [hit.sum(), false.sum(), (positive - hit).sum()]
            row += [hit_negative.sum(), false_negative.sum(), (negative - hit_negative).sum()]
            percent = 100 * positive.sum() / true.sum()
            drawn.append(
                (percent, FieldCounts(hit + false, hit_negative + false_negative), [int(v) for v in row])
            )
        return drawn

    def test_intervals_hold_the_truth(self) -> None:
        """On 200 drawn slides at least 93 % do, with errors from 12 others; without them far fewer."""
        rng = np.random.default_rng(20)
        errors = CountingErrors(np.array([row for _, _, row in self.slides(12, rng)], np.int64))
        slides = self.slides(200, rng)

        def held(known: CountingErrors | None) -> float:
            cfg = GradingConfig(draws=500)
            ends = [percent_interval(c, cfg, known) for _, c, _ in slides]
            return float(
                np.mean([low <= p <= high for (p, _, _), (low, high) in zip(slides, ends, strict=True)])
            )

        assert held(errors) >= 0.93
        assert held(None) < held(errors)

    def test_no_errors_change_little(self) -> None:
        perfect = CountingErrors(np.array([[4000, 0, 0, 9000, 0, 0]] * 5))
        mixed = counts(*[(k % 5, 20 + k) for k in range(20)])
        plain, known = percent_interval(mixed, CFG), percent_interval(mixed, CFG, perfect)
        assert known[0] <= plain[0] and plain[1] <= known[1]  # noqa: PT018 one interval holds the other
        assert known == pytest.approx(plain, abs=0.25)

    def test_false_ones_let_zero_be_true(self) -> None:
        """Eight of 775, as on the slide that was graded C4d1: where some 8 in 775 are false, 0 lies in the interval."""
        errors = CountingErrors(np.array([[30, 8, 2, 700, 20, 30], [10, 6, 1, 500, 10, 20]]))
        eight = counts(*[(1, 95)] * 7, (1, 102))
        assert percent_interval(eight, CFG)[0] > 0
        found = grade_slide(eight, CFG, errors)
        assert found.interval is not None
        assert found.interval[0] == 0
        assert found.grades_in_interval == ("C4d0", "C4d1")
        assert "the detector's errors" in found.interval_covers
        assert "not the detector's errors" in grade_slide(eight, CFG).interval_covers

    def test_missed_ones_raise_the_upper_end(self) -> None:
        misses = CountingErrors(np.array([[50, 0, 50, 900, 0, 0]] * 3))
        mixed = counts(*[(3, 27)] * 10)
        assert percent_interval(mixed, CFG, misses)[1] > percent_interval(mixed, CFG)[1] + 3

    @pytest.mark.parametrize("table", [np.zeros((0, 6)), np.zeros((3, 5)), -np.ones((2, 6))])
    def test_what_is_no_table_of_errors(self, table: np.ndarray) -> None:
        with pytest.raises(ValueError, match="rows of six counts"):
            CountingErrors(table.astype(np.int64))
