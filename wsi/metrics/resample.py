"""The bootstrap: draws of items with replacement, and the 95 % interval that the draws' values give."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000  # Liu et al. 2017


def draw_weights(rng: np.random.Generator, items: int, draws: int) -> npt.NDArray[np.int64]:
    """How often each draw with replacement takes each item: (draws, items).

    Args:
        rng: the generator; it is left at the place after all draws.
        items: number of items (slides, fields), at least 1; every draw takes as many.
        draws: number of draws; 0 gives no row.
    """
    return np.asarray(rng.multinomial(items, np.full(items, 1 / items), size=draws), np.int64)


def percentile_interval(values: npt.ArrayLike) -> tuple[float, float] | None:
    """The 95 % percentile interval: percentiles 2.5 and 97.5 of the draws' values, in the unit of the values.

    Draws whose value is not finite are undefined and left out.

    Args:
        values: (draws,) of one figure.

    Returns:
        None where no draw is defined.
    """
    drawn = np.asarray(values)
    defined = drawn[np.isfinite(drawn)]
    if len(defined) == 0:
        return None
    low, high = np.percentile(defined, (2.5, 97.5))
    return float(low), float(high)
