"""The slide-level task: AUC with its intervals, and operating points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi.metrics.ranking import auc, auc_draws, delong_interval
from wsi.metrics.resample import percentile_interval

WANTED = (0.9, 0.95)  # specificities at which sensitivity is read, and the reverse
KINDS = ((None, "AUC"), ("macro", "AUC, macrometastases"), ("micro", "AUC, micrometastases"))


def figure(value: float, draws: npt.NDArray[np.floating]) -> dict[str, Any]:
    """A value with its 95 % percentile interval; None where it is not defined. Undefined draws are left out."""
    interval = percentile_interval(draws)
    return {
        "value": None if np.isnan(value) else float(value),
        "interval": None if interval is None else list(interval),
    }


def roc_figures(
    kinds: Sequence[str | None],
    scores: npt.NDArray[np.float64],
    weights: npt.NDArray[np.int64],
    at: Sequence[float],
) -> dict[str, Any]:
    """AUC over slides, all and by the class of their longest lesion, and operating points.

    Args:
        kinds: class of each slide's longest lesion; None on a normal slide.
        scores: (slides,) slide scores, 0..1.
        weights: (draws, slides) of a bootstrap; without rows there are no intervals.
        at: scores from which a slide counts as tumour.
    """
    tumour = np.array([kind is not None for kind in kinds])
    figures: dict[str, Any] = {}
    for lesion_class, label in KINDS:
        keep = np.array([kind is None or lesion_class in (None, kind) for kind in kinds])
        low, high = delong_interval(tumour[keep], scores[keep])
        drawn = auc_draws(tumour[keep], scores[keep], weights[:, keep])
        figures[label] = figure(auc(tumour[keep], scores[keep]), drawn) | {
            "DeLong": None if np.isnan(low) else [low, high],
            "tumour slides": int(tumour[keep].sum()),
            "normal slides": int((~tumour).sum()),
        }
    has_two_classes = tumour.any() and not tumour.all()
    figures["operating points"] = operating_points(tumour, scores, weights, at) if has_two_classes else []
    return figures


def operating_points(
    tumour: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.float64],
    weights: npt.NDArray[np.int64],
    at: Sequence[float],
) -> list[dict[str, Any]]:
    """Sensitivity and specificity at fixed scores, and at the score that keeps one of them at a wanted level.

    Each draw chooses the score of the second kind anew; ``from score`` is that of the slides themselves, and None where
    it is above all their scores. Draws in which a class is missing are left out.
    """
    order = np.argsort(-scores, kind="stable")
    run_ends = np.r_[np.flatnonzero(np.diff(scores[order])), len(order) - 1]
    counts = np.vstack([np.ones(len(scores), np.int64), weights])[:, order]
    is_tumour = tumour[order]
    counts = counts[(counts[:, is_tumour].sum(1) > 0) & (counts[:, ~is_tumour].sum(1) > 0)]
    sensitivity = np.cumsum(counts * is_tumour, axis=1)[:, run_ends] / counts[:, is_tumour].sum(
        1, keepdims=True
    )
    specificity = 1 - np.cumsum(counts * ~is_tumour, axis=1)[:, run_ends] / counts[:, ~is_tumour].sum(
        1, keepdims=True
    )
    # a threshold above every score: nothing is called tumour
    sensitivity, specificity = (
        np.c_[np.zeros(len(sensitivity)), sensitivity],
        np.c_[np.ones(len(specificity)), specificity],
    )
    cuts = np.r_[np.inf, scores[order][run_ends]]
    rows = np.arange(len(sensitivity))

    def point(name: str, k: npt.NDArray[np.int64]) -> dict[str, Any]:
        cut = cuts[k[0]]
        return {
            "at": name,
            "from score": None if np.isinf(cut) else float(cut),
            "sensitivity": figure(float(sensitivity[0, k[0]]), sensitivity[rows, k][1:]),
            "specificity": figure(float(specificity[0, k[0]]), specificity[rows, k][1:]),
        }

    points = []
    for threshold in at:
        k = np.full(len(sensitivity), np.flatnonzero(cuts >= threshold)[-1])
        points.append(point(f"slide score >= {threshold:g}", k) | {"from score": threshold})
    for level in WANTED:
        points.append(
            point(f"specificity >= {level:g}", np.where(specificity >= level, sensitivity, -1).argmax(axis=1))
        )
    for level in WANTED:
        points.append(
            point(f"sensitivity >= {level:g}", np.where(sensitivity >= level, specificity, -1).argmax(axis=1))
        )
    return points
