"""Two evaluations of the same slides: is the difference more than chance?"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from pipelines.camelyon16.benchmark.froc import TARGETS, FrocTable, SlideHits, Variant
from pipelines.camelyon16.benchmark.roc import figure
from wsi.errors import ConfigError, StoreError
from wsi.metrics.ranking import auc, auc_draws


@dataclass(frozen=True, eq=False, slots=True)
class Evaluated:
    """What `compare` needs of an ``evaluation.json``.

    Attributes:
        counted: (slides,) which count for FROC.
        hits: of every slide.
        scores: (slides,) of the slides.
        truth: what the slides' truth was, to see that it is the same.
    """

    path: Path
    variant: Variant
    names: tuple[str, ...]
    counted: npt.NDArray[np.bool_]
    hits: tuple[SlideHits, ...]
    scores: npt.NDArray[np.float64]
    truth: tuple[Any, ...]

    @property
    def tumour(self) -> npt.NDArray[np.bool_]:
        """Which slides have tumour."""
        return np.array([h.tumour for h in self.hits])

    @property
    def for_froc(self) -> list[SlideHits]:
        """Hits of the slides that count."""
        return [h for h, counted in zip(self.hits, self.counted, strict=True) if counted]


def read_evaluation(path: Path) -> Evaluated:
    """Read an evaluation back.

    Args:
        path: what ``wsi camelyon16 evaluate`` was given or wrote: RESULTS, its ``evaluation`` folder, or the file.

    Raises:
        StoreError: there is none, or it is broken.
    """
    places = (path / "evaluation" / "evaluation.json", path / "evaluation.json", path)
    found = next((p for p in places if p.is_file()), None)
    if found is None:
        raise StoreError(f"{path} holds no evaluation; run: wsi camelyon16 evaluate {path} --truth TRUTH")
    try:
        value = json.loads(found.read_bytes())
        if isinstance(value, dict) and "ap50" in value:
            raise StoreError(
                f"{found} is an evaluation of capillaries (wsi renal evaluate); wsi camelyon16 compare takes those of "
                f"wsi camelyon16 evaluate"
            )
        if value["variant"] not in get_args(Variant):
            raise ValueError(f"variant {value['variant']!r}")
        rows = value["slides"]
        found_type = np.float32 if value["variant"] == "official" else np.float64
        return Evaluated(
            found,
            value["variant"],
            tuple(row["name"] for row in rows),
            np.array([row["counted"] for row in rows], np.bool_),
            tuple(
                SlideHits(
                    np.array(row["found"], found_type),
                    np.array(row["false"], np.float64),
                    row["lesions"],
                    row["tumour"],
                )
                for row in rows
            ),
            np.array([row["score"] for row in rows], np.float64),
            tuple((row["name"], row["tumour"], row["counted"], tuple(row["lengths_um"])) for row in rows),
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise StoreError(f"{found} is broken ({error!r}); evaluate again") from error


def check_comparable(a: Evaluated, b: Evaluated) -> None:
    """Refuse what must not be compared.

    Raises:
        ConfigError: another variant, other slides or another truth.
    """
    if a.variant != b.variant:
        raise ConfigError(
            f"{a.path} was evaluated by the variant {a.variant!r} and {b.path} by {b.variant!r}; use one for both"
        )
    only = sorted(set(a.names) ^ set(b.names))
    if only:
        where = a.path if only[0] in a.names else b.path
        raise ConfigError(
            f"the two were evaluated on different slides: {only[0]} is only in {where}; evaluate both on the same"
        )
    for mine, other in zip(a.truth, b.truth, strict=True):
        if mine != other:
            raise ConfigError(
                f"the truth of {mine[0]} is not the same in {a.path} and {b.path}; evaluate both again"
            )


def compare(a: Evaluated, b: Evaluated, draws: int, seed: int) -> dict[str, Any]:
    """Differences (first less second) of FROC, its sensitivities, and AUC.

    Intervals are percentiles of a bootstrap over slides, the same draw for both. p is that of a permutation test: under
    the hypothesis that the two programs are equal, each slide's results may be swapped. As two programs' scores need
    not mean the same, they are first put on one scale that leaves each program's own figures as they are: of a
    detection, how many false positives per slide are above it; of a slide, how many normal slides.

    Raises:
        ConfigError: see `check_comparable`.
    """
    check_comparable(a, b)
    rng = np.random.default_rng(seed)
    n = len(a.names)
    weights = np.asarray(rng.multinomial(n, np.full(n, 1 / n), size=draws), np.int64)
    swaps = rng.random((draws, n)) < 0.5
    tables = [FrocTable(run.for_froc, a.variant) for run in (a, b)]
    own = [_sensitivity(table, None) for table in tables]
    drawn = np.stack([[_sensitivity(t, w[a.counted]) for w in weights] for t in tables]).reshape(2, draws, -1)
    swapped = _swapped_froc(a, b, swaps[:, a.counted])
    areas = [auc(run.tumour, run.scores) for run in (a, b)]
    area_draws = [auc_draws(run.tumour, run.scores, weights) for run in (a, b)]
    found: dict[str, Any] = {
        "FROC": _difference([o.mean() for o in own], drawn.mean(axis=2), swapped.mean(axis=1))
    }
    for i, target in enumerate(TARGETS):
        found[f"sensitivity at {target:g} false positives per slide"] = _difference(
            [o[i] for o in own], drawn[:, :, i], swapped[:, i]
        )
    found["AUC"] = _difference(areas, np.stack(area_draws), _swapped_auc(a, b, swaps))
    return found


def _sensitivity(table: FrocTable, weights: npt.NDArray[np.int64] | None) -> npt.NDArray[np.float64]:
    curve = table.curve(weights)
    return np.full(len(TARGETS), np.nan) if curve is None else curve.at(TARGETS)


def _difference(
    own: Sequence[float], drawn: npt.NDArray[np.float64], swapped: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """Both values, their difference with its interval, and the permutation test's p (two-sided)."""
    gap = own[0] - own[1]
    usable = swapped[np.isfinite(swapped)]
    # 1e-12: sums in another order must not make an equal difference a smaller one
    p = (1 + int((np.abs(usable) >= abs(gap) - 1e-12).sum())) / (1 + len(usable))
    values = [None if np.isnan(v) else float(v) for v in own]
    return {
        "values": values,
        "difference": figure(gap, drawn[0] - drawn[1]),
        "p": None if np.isnan(gap) else p,
    }


def common_scale(hits: Sequence[SlideHits], variant: Variant) -> list[SlideHits]:
    """Hits whose scores say how many false positives per slide are above: falling, at most 1; 0 stays 0 (missed).

    FROC of one run is the same on this scale: scores that differ stay apart, ties stay ties (also those that the
    official code makes by float32).
    """
    counted = [h for h in hits if not (variant == "negatives" and h.tumour)]
    false = np.sort(np.concatenate([h.false[h.false > 0] for h in counted]))
    lesions = np.concatenate([_as_counted(h.found, false) for h in hits])
    every = np.unique(np.concatenate([false, lesions]))
    above = len(false) - (np.searchsorted(false, every, "left") + np.searchsorted(false, every, "right")) / 2
    # lesions between the same two false positives: apart by less than half a rank, in their order
    between = np.isin(above, np.arange(len(false) + 1)) & ~np.isin(every, false)
    first = np.searchsorted(-above, -above, side="left")
    count = np.searchsorted(-above, -above, side="right") - first
    above = above + np.where(between, 0.4 * (0.5 - (np.arange(len(every)) - first + 1) / (count + 1)), 0.0)

    def moved(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        place = np.minimum(np.searchsorted(every, scores), max(0, len(every) - 1))
        return np.where(scores > 0, 1 / (2 + above[place] / len(hits)), 0.0) if len(every) else 0.0 * scores

    return [
        SlideHits(moved(_as_counted(h.found, false)), _known(h, variant, moved), h.lesions, h.tumour)
        for h in hits
    ]


def _known(
    h: SlideHits, variant: Variant, moved: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """False positives on the scale; those that the variant does not count are left out, as they have no place on it."""
    return moved(h.false[:0] if variant == "negatives" and h.tumour else h.false)


def _as_counted(found: npt.NDArray[np.floating], false: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Lesions' scores as `FrocTable` takes them: a float32 goes with the false positives that it equals as float32."""
    exact = found.astype(np.float64)
    level = np.searchsorted(false.astype(found.dtype), found, side="right")
    return np.asarray(np.maximum(exact, np.append(0.0, false)[level]))


def _swapped_froc(a: Evaluated, b: Evaluated, swaps: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """(draws, targets): differences when the slides of each draw are swapped."""
    both = [*common_scale(a.for_froc, a.variant), *common_scale(b.for_froc, b.variant)]
    table = FrocTable(both, a.variant)
    found = np.empty((len(swaps), len(TARGETS)))
    for i, swap in enumerate(swaps):
        first = np.concatenate([~swap, swap]).astype(np.int64)
        found[i] = _sensitivity(table, first) - _sensitivity(table, 1 - first)
    return found


def _swapped_auc(a: Evaluated, b: Evaluated, swaps: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    tumour = a.tumour
    scales = []
    for run in (a, b):
        normal = np.sort(run.scores[~tumour])
        scales.append(
            np.searchsorted(normal, run.scores, "left") + np.searchsorted(normal, run.scores, "right")
        )
    first, second = (np.float64(scale) for scale in scales)
    return np.array(
        [
            auc(tumour, np.where(swap, second, first)) - auc(tumour, np.where(swap, first, second))
            for swap in swaps
        ]
    )
