"""The slide-level task: AUC with its intervals, and operating points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi.metrics.ranking import auc, auc_draws, delong_interval

WANTED = (0.9, 0.95)  # specificities, and sensitivities, at which the other is read
KINDS = ((None, "AUC"), ("macro", "AUC, macrometastases"), ("micro", "AUC, micrometastases"))


def figure(value: float, draws: npt.NDArray[np.floating]) -> dict[str, Any]:
    """A value with its 95 % percentile interval; None for what is not defined, and draws that are not are left out."""
    usable = draws[np.isfinite(draws)]
    interval = [float(v) for v in np.percentile(usable, (2.5, 97.5))] if len(usable) else None
    return {"value": None if np.isnan(value) else float(value), "interval": interval}


def roc_figures(
    kinds: Sequence[str | None],
    scores: npt.NDArray[np.float64],
    weights: npt.NDArray[np.int64],
    at: Sequence[float],
) -> dict[str, Any]:
    """AUC over slides, all and by the class of their longest lesion, and operating points.

    Args:
        kinds: of each slide the class of its longest lesion; None on a normal slide.
        scores: (slides,) 0..1.
        weights: (draws, slides) of a bootstrap; no rows: no intervals.
        at: scores from which a slide counts as tumour.
    """
    tumour = np.array([kind is not None for kind in kinds])
    found: dict[str, Any] = {}
    for wanted, label in KINDS:
        keep = np.array([kind is None or wanted in (None, kind) for kind in kinds])
        low, high = delong_interval(tumour[keep], scores[keep])
        drawn = auc_draws(tumour[keep], scores[keep], weights[:, keep])
        found[label] = figure(auc(tumour[keep], scores[keep]), drawn) | {
            "DeLong": None if np.isnan(low) else [low, high],
            "tumour slides": int(tumour[keep].sum()),
            "normal slides": int((~tumour).sum()),
        }
    both = tumour.any() and not tumour.all()
    found["operating points"] = operating_points(tumour, scores, weights, at) if both else []
    return found


def operating_points(
    tumour: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.float64],
    weights: npt.NDArray[np.int64],
    at: Sequence[float],
) -> list[dict[str, Any]]:
    """Sensitivity and specificity at fixed scores, and at the score that keeps one of them at a wanted level.

    The last choose their score anew in each draw; ``from score`` is that of the slides themselves, None where it is
    above all of them. Draws without a class are left out.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(scores[order])), len(order) - 1]
    everyone = np.vstack([np.ones(len(scores), np.int64), weights])[:, order]
    mine = tumour[order]
    everyone = everyone[(everyone[:, mine].sum(1) > 0) & (everyone[:, ~mine].sum(1) > 0)]
    hit = np.cumsum(everyone * mine, axis=1)[:, last] / everyone[:, mine].sum(1, keepdims=True)
    spared = 1 - np.cumsum(everyone * ~mine, axis=1)[:, last] / everyone[:, ~mine].sum(1, keepdims=True)
    # a threshold above every score: nothing is called tumour
    hit, spared = np.c_[np.zeros(len(hit)), hit], np.c_[np.ones(len(spared)), spared]
    cuts = np.r_[np.inf, scores[order][last]]
    rows = np.arange(len(hit))

    def point(name: str, k: npt.NDArray[np.int64]) -> dict[str, Any]:
        cut = cuts[k[0]]
        return {
            "at": name,
            "from score": None if np.isinf(cut) else float(cut),
            "sensitivity": figure(float(hit[0, k[0]]), hit[rows, k][1:]),
            "specificity": figure(float(spared[0, k[0]]), spared[rows, k][1:]),
        }

    points = []
    for threshold in at:
        k = np.full(len(hit), np.flatnonzero(cuts >= threshold)[-1])
        points.append(point(f"slide score >= {threshold:g}", k) | {"from score": threshold})
    for wanted in WANTED:
        points.append(point(f"specificity >= {wanted:g}", np.where(spared >= wanted, hit, -1).argmax(axis=1)))
    for wanted in WANTED:
        points.append(point(f"sensitivity >= {wanted:g}", np.where(hit >= wanted, spared, -1).argmax(axis=1)))
    return points
