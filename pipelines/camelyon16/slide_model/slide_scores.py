"""Named rules that make a slide's score of its heatmap."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import cv2
import numpy as np

from pipelines.camelyon16.benchmark.predictions import Prediction, Predictions
from pipelines.camelyon16.slide_model.features import read_heatmap
from wsi.errors import StoreError
from wsi.results.heatmap import Heatmap

SlideScore = Literal["maximum", "largest-area"]
AREA_FROM = (
    0.9  # on published heatmaps of Camelyon16 the largest area from here on reaches a slide AUC of 0.984
)
RULES: dict[SlideScore, str] = {
    "maximum": "the heatmap's maximum",
    "largest-area": f"the largest connected area of cells at or above {AREA_FROM}: a / (a + 1) of a in mm2",
}
assert get_args(SlideScore) == tuple(RULES)


def with_slide_score(predictions: Predictions, name: SlideScore) -> Predictions:
    """The same detections with slide scores by another rule; a slide without a score stays so.

    Raises:
        StoreError: there are no heatmaps to make it of, as in a submission.
    """
    if name == "maximum":
        return predictions
    slides = tuple(
        p if p.score is None else replace(p, score=largest_area_score(*_heatmap_of(p)))
        for p in predictions.slides
    )
    return replace(predictions, slides=slides, score_rule=RULES[name])


def largest_area_score(heatmap: Heatmap, mpp: float) -> float:
    """The largest area's score: 0 without a cell at or above `AREA_FROM`, 0.5 for 1 mm2, always below 1."""
    above = (np.nan_to_num(heatmap.scores, nan=0.0) >= AREA_FROM).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    cells = int(stats[1:, cv2.CC_STAT_AREA].max(initial=0))
    area_mm2 = cells * heatmap.placement.step_x * heatmap.placement.step_y * mpp**2 / 1e6
    return float(area_mm2 / (area_mm2 + 1))


def _heatmap_of(p: Prediction) -> tuple[Heatmap, float]:
    if p.folder is None or p.mpp is None:
        raise StoreError(f"{p.name} has no heatmap; --slide-score largest-area needs results of wsi score")
    return read_heatmap(p.folder), p.mpp
