"""The bootstrap against cases by hand, the binomial distribution, and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi.metrics.resample import RESAMPLES, draw_weights, percentile_interval

floats = st.floats(-1e6, 1e6)


class TestDraws:
    def test_every_draw_takes_as_many_items_as_there_are(self) -> None:
        weights = draw_weights(np.random.default_rng(0), 20, 7)
        assert weights.shape == (7, 20)
        assert weights.dtype == np.int64
        assert weights.sum(axis=1).tolist() == [20] * 7

    def test_one_item_is_taken_once_in_every_draw(self) -> None:
        assert draw_weights(np.random.default_rng(0), 1, 3).tolist() == [[1], [1], [1]]
        assert draw_weights(np.random.default_rng(0), 4, 0).shape == (0, 4)

    def test_they_are_seeded_and_the_generator_goes_on(self) -> None:
        first, again, other = (draw_weights(np.random.default_rng(seed), 20, 5) for seed in (1, 1, 2))
        assert (first == again).all()
        assert (first != other).any()
        rng = np.random.default_rng(1)
        parts = [draw_weights(rng, 20, 2), draw_weights(rng, 20, 3)]
        assert (np.concatenate(parts) == first).all()

    def test_every_item_is_taken_alike(self) -> None:
        """How often an item is taken is binomial: 5 times with probability 1/5, mean 1, variance 4/5."""
        weights = draw_weights(np.random.default_rng(0), 5, 20_000)
        assert weights.mean(axis=0) == pytest.approx([1] * 5, abs=0.03)
        assert weights.var(axis=0) == pytest.approx([0.8] * 5, abs=0.04)


class TestInterval:
    def test_one_slide_is_a_point(self) -> None:
        """One slide with 3 of 4 lesions found: every draw is that slide, so certain it looks."""
        weights = draw_weights(np.random.default_rng(0), 1, 50)
        shares = (weights @ [3]) / (weights @ [4])
        assert percentile_interval(shares) == (0.75, 0.75)

    def test_by_hand(self) -> None:
        """Values 0 to 40: the percentiles 2.5 and 97.5 lie at 0.025 * 40 = 1 and 39, in any order."""
        values = np.random.default_rng(0).permutation(41)
        assert percentile_interval(values) == (1.0, 39.0)
        assert percentile_interval([2.0, 6.0]) == pytest.approx((2.1, 5.9))

    def test_a_known_binomial(self) -> None:
        """4 of 10 positive. Of the binomial (10, 0.4), 0.6 % lie below 1 and 4.6 % below 2; 95 % below 7, 99 % below 8."""
        positive = np.arange(10) < 4
        drawn = draw_weights(np.random.default_rng(0), 10, 10 * RESAMPLES) @ positive
        assert percentile_interval(drawn) == (1.0, 7.0)

    def test_undefined_draws_are_left_out(self) -> None:
        values = [np.nan, *range(41), np.nan, np.inf]
        assert percentile_interval(values) == (1.0, 39.0)
        assert percentile_interval([np.nan, np.nan]) is None
        assert percentile_interval([]) is None

    @given(st.lists(floats, min_size=1, max_size=50), st.integers(0, 5))
    def test_it_lies_within_the_values_and_turns_with_their_sign(
        self, values: list[float], undefined: int
    ) -> None:
        interval = percentile_interval(values + [np.nan] * undefined)
        assert interval is not None
        low, high = interval
        assert min(values) <= low <= high <= max(values)
        turned = percentile_interval([-v for v in values])
        assert turned == pytest.approx((-high, -low), rel=1e-9, abs=1e-6)
