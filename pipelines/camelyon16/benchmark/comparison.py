"""Two evaluations of the same slides: is the difference more than chance?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from pipelines.camelyon16.benchmark.froc import TARGETS, FrocTable, SlideHits, Variant
from pipelines.camelyon16.benchmark.roc import figure
from wsi.errors import ConfigError, StoreError
from wsi.metrics.ranking import auc, auc_draws
from wsi.metrics.resample import draw_weights
from wsi.results.folder import Place, folder_at


@dataclass(frozen=True, eq=False, slots=True)
class Evaluated:
    """The part of an ``evaluation.json`` that `compare` needs.

    Attributes:
        counted: (slides,) whether each slide counts for FROC.
        hits: detections of every slide, divided into hits and false positives.
        scores: (slides,) slide scores.
        truth: the slides' truth, to check that two evaluations had the same.
    """

    path: str
    variant: Variant
    names: tuple[str, ...]
    counted: npt.NDArray[np.bool_]
    hits: tuple[SlideHits, ...]
    scores: npt.NDArray[np.float64]
    truth: tuple[Any, ...]

    @property
    def tumour(self) -> npt.NDArray[np.bool_]:
        """Whether each slide has tumour: (slides,)."""
        return np.array([h.tumour for h in self.hits])

    @property
    def for_froc(self) -> list[SlideHits]:
        """Hits of the slides that count for FROC."""
        return [h for h, counted in zip(self.hits, self.counted, strict=True) if counted]


def read_evaluation(place: Place) -> Evaluated:
    """Read an evaluation back.

    Args:
        place: what ``wsi camelyon16 evaluate`` was given or wrote: RESULTS, its ``evaluation`` folder, or the file.

    Raises:
        StoreError: there is none, or it is broken.
    """
    folder = folder_at(place)
    names: tuple[str, ...] = ("evaluation/evaluation.json", "evaluation.json")
    if str(place).endswith(".json"):
        folder, names = folder.parent, (folder.name,)
    name = next((name for name in names if folder.exists(name)), None)
    if name is None:
        raise StoreError(f"{place} holds no evaluation; run: wsi camelyon16 evaluate {place} --truth TRUTH")
    file = folder.at(name)
    try:
        value = folder.read_json(name)
        if isinstance(value, dict) and "ap50" in value:
            raise StoreError(
                f"{file} is an evaluation of capillaries (wsi renal evaluate); wsi camelyon16 compare takes those of "
                f"wsi camelyon16 evaluate"
            )
        if value["variant"] not in get_args(Variant):
            raise ValueError(f"variant {value['variant']!r}")
        rows = value["slides"]
        score_type = np.float32 if value["variant"] == "official" else np.float64
        return Evaluated(
            file,
            value["variant"],
            tuple(row["name"] for row in rows),
            np.array([row["counted"] for row in rows], np.bool_),
            tuple(
                SlideHits(
                    np.array(row["found"], score_type),
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
        raise StoreError(f"{file} is broken ({error!r}); evaluate again") from error


def check_comparable(a: Evaluated, b: Evaluated) -> None:
    """Refuse two evaluations that must not be compared.

    Raises:
        ConfigError: another variant, other slides or another truth.
    """
    if a.variant != b.variant:
        raise ConfigError(
            f"{a.path} was evaluated by the variant {a.variant!r} and {b.path} by {b.variant!r}; use one for both"
        )
    unshared = sorted(set(a.names) ^ set(b.names))
    if unshared:
        path = a.path if unshared[0] in a.names else b.path
        raise ConfigError(
            f"the two were evaluated on different slides: {unshared[0]} is only in {path}; evaluate both on the same"
        )
    for truth_a, truth_b in zip(a.truth, b.truth, strict=True):
        if truth_a != truth_b:
            raise ConfigError(
                f"the truth of {truth_a[0]} is not the same in {a.path} and {b.path}; evaluate both again"
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
    weights = draw_weights(rng, n, draws)
    swaps = rng.random((draws, n)) < 0.5
    tables = [FrocTable(run.for_froc, a.variant) for run in (a, b)]
    sensitivities = [_sensitivity(table, None) for table in tables]
    bootstrap = np.stack([[_sensitivity(t, w[a.counted]) for w in weights] for t in tables]).reshape(
        2, draws, -1
    )
    permutations = _swapped_froc(a, b, swaps[:, a.counted])
    areas = [auc(run.tumour, run.scores) for run in (a, b)]
    area_draws = [auc_draws(run.tumour, run.scores, weights) for run in (a, b)]
    figures: dict[str, Any] = {
        "FROC": _difference(
            [o.mean() for o in sensitivities], bootstrap.mean(axis=2), permutations.mean(axis=1)
        )
    }
    for i, target in enumerate(TARGETS):
        figures[f"sensitivity at {target:g} false positives per slide"] = _difference(
            [o[i] for o in sensitivities], bootstrap[:, :, i], permutations[:, i]
        )
    figures["AUC"] = _difference(areas, np.stack(area_draws), _swapped_auc(a, b, swaps))
    return figures


def _sensitivity(table: FrocTable, weights: npt.NDArray[np.int64] | None) -> npt.NDArray[np.float64]:
    curve = table.curve(weights)
    return np.full(len(TARGETS), np.nan) if curve is None else curve.at(TARGETS)


def _difference(
    estimates: Sequence[float], bootstrap: npt.NDArray[np.float64], permutations: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """Both values, their difference with its interval, and the permutation test's p (two-sided)."""
    gap = estimates[0] - estimates[1]
    usable = permutations[np.isfinite(permutations)]
    # 1e-12: sums in another order must not make an equal difference a smaller one
    p = (1 + int((np.abs(usable) >= abs(gap) - 1e-12).sum())) / (1 + len(usable))
    values = [None if np.isnan(v) else float(v) for v in estimates]
    return {
        "values": values,
        "difference": figure(gap, bootstrap[0] - bootstrap[1]),
        "p": None if np.isnan(gap) else p,
    }


def common_scale(hits: Sequence[SlideHits], variant: Variant) -> list[SlideHits]:
    """Hits with new scores that depend only on the number of false positives per slide above the old score.

    A new score falls as that number rises, and is below 1; 0 (missed) stays 0. FROC of one run is the same on this
    scale: scores that differ stay apart, ties stay ties (also those that the official code makes by float32).
    """
    counted_hits = [h for h in hits if not (variant == "negatives" and h.tumour)]
    false = np.sort(np.concatenate([h.false[h.false > 0] for h in counted_hits]))
    lesions = np.concatenate([_as_counted(h.found, false) for h in hits])
    unique_scores = np.unique(np.concatenate([false, lesions]))
    above = (
        len(false)
        - (np.searchsorted(false, unique_scores, "left") + np.searchsorted(false, unique_scores, "right")) / 2
    )
    # lesions between the same two false positives are put apart by less than half a rank, in their order
    between = np.isin(above, np.arange(len(false) + 1)) & ~np.isin(unique_scores, false)
    first = np.searchsorted(-above, -above, side="left")
    count = np.searchsorted(-above, -above, side="right") - first
    above = above + np.where(
        between, 0.4 * (0.5 - (np.arange(len(unique_scores)) - first + 1) / (count + 1)), 0.0
    )

    def to_scale(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        index = np.minimum(np.searchsorted(unique_scores, scores), max(0, len(unique_scores) - 1))
        return (
            np.where(scores > 0, 1 / (2 + above[index] / len(hits)), 0.0)
            if len(unique_scores)
            else 0.0 * scores
        )

    return [
        SlideHits(
            to_scale(_as_counted(h.found, false)), _false_on_scale(h, variant, to_scale), h.lesions, h.tumour
        )
        for h in hits
    ]


def _false_on_scale(
    h: SlideHits, variant: Variant, to_scale: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """False positives on the common scale, without those that the variant does not count: they have no place on it."""
    return to_scale(h.false[:0] if variant == "negatives" and h.tumour else h.false)


def _as_counted(scores: npt.NDArray[np.floating], false: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Lesions' scores as `FrocTable` takes them: a float32 ties with the false positives that equal it as float32."""
    exact = scores.astype(np.float64)
    rank = np.searchsorted(false.astype(scores.dtype), scores, side="right")
    return np.asarray(np.maximum(exact, np.append(0.0, false)[rank]))


def _swapped_froc(a: Evaluated, b: Evaluated, swaps: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Differences of the sensitivities after the slides of each draw are swapped: (draws, targets)."""
    scaled_hits = [*common_scale(a.for_froc, a.variant), *common_scale(b.for_froc, b.variant)]
    table = FrocTable(scaled_hits, a.variant)
    differences = np.empty((len(swaps), len(TARGETS)))
    for i, swap in enumerate(swaps):
        first = np.concatenate([~swap, swap]).astype(np.int64)
        differences[i] = _sensitivity(table, first) - _sensitivity(table, 1 - first)
    return differences


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
