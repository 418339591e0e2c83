"""Ranked lesions of a heatmap, their outlines, and the slide's score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
import shapely
from pydantic import Field, model_validator
from shapely import Polygon

from wsi.arrays import BoolRaster, CellsRC
from wsi.config import Config
from wsi.results.heatmap import Heatmap

RADIUS_CELLS = 6  # Liu et al. 2017: 768 px of 0.243 um, 187 um
ConfidenceLevel = Literal[
    "definitely normal", "probably normal", "equivocal", "probably tumour", "definitely tumour"
]
LEVELS: tuple[ConfidenceLevel, ...] = (
    "definitely normal",
    "probably normal",
    "equivocal",
    "probably tumour",
    "definitely tumour",
)


class LesionConfig(Config):
    """Settings of the search for lesions.

    Attributes:
        threshold: lowest score of a lesion; 0.5 in Liu et al. 2017.
        radius_px: radius that is blanked around a maximum, in pixels as the model sees them; None is `RADIUS_CELLS` of
            the model's own cells.
        confidence: scores from which a slide is probably normal, equivocal, probably and definitely
            tumour; the five words are those of Camelyon16's pathologists. None takes the bounds that the model's card
            brings; a model whose card brings none gives no words, as nobody has checked any.
    """

    threshold: float = Field(default=0.5, gt=0, le=1)
    radius_px: float | None = Field(default=None, gt=0)
    confidence: tuple[float, float, float, float] | None = None

    @model_validator(mode="after")
    def _ascending(self) -> LesionConfig:
        if self.confidence is not None and list(self.confidence) != sorted(self.confidence):
            raise ValueError(f"confidence bounds must ascend, got {list(self.confidence)}")
        return self

    def of_model(self, stride_px: int) -> LesionConfig:
        """These settings with the radius as a number, for a model whose own cells have this side."""
        radius_px = self.radius_px or RADIUS_CELLS * float(stride_px)
        return self.model_copy(update={"radius_px": radius_px})


@dataclass(frozen=True, slots=True)
class Lesion:
    """A maximum of the heatmap: its score and its cell's centre in level-0 pixels."""

    score: float
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Outline:
    """A connected area above the threshold: its shape in level-0 pixels, its highest and mean score."""

    shape: Polygon
    maximum: float
    mean: float


def find_lesions(heatmap: Heatmap, cfg: LesionConfig | None = None) -> list[Lesion]:
    """Non-maximum suppression (Liu et al. 2017).

    Take the maximum, report its cell's centre, blank a circle around it, until nothing reaches the
    threshold. Of equal maxima the first by row, then column, is taken. Visiting the cells once by
    falling score and skipping the blanked ones gives the same answer.

    Returns:
        Lesions by falling score; none where no cell was scored.
    """
    cfg = cfg or LesionConfig()
    scores = heatmap.scores
    candidates = np.argwhere(scores >= cfg.threshold)  # NaN compares false
    order = np.argsort(-scores[tuple(candidates.T)], kind="stable")
    reach = (cfg.radius_px or RADIUS_CELLS * heatmap.cell_px) / heatmap.cell_px  # cells
    blanked = np.zeros(scores.shape, np.bool_)
    disc = _disc(reach)
    lesions = []
    for row, col in candidates[order]:
        if blanked[row, col]:
            continue
        x, y = heatmap.placement.centers(np.array([[row, col]]))[0]
        lesions.append(Lesion(float(scores[row, col]), float(x), float(y)))
        _blank(blanked, int(row), int(col), disc)
    return lesions


def _disc(reach: float) -> BoolRaster:
    side = int(np.floor(reach))
    y, x = np.mgrid[-side : side + 1, -side : side + 1]
    return np.asarray(x**2 + y**2 <= reach**2)


def _blank(blanked: BoolRaster, row: int, col: int, disc: BoolRaster) -> None:
    side = disc.shape[0] // 2
    top, left = max(0, row - side), max(0, col - side)
    bottom, right = min(blanked.shape[0], row + side + 1), min(blanked.shape[1], col + side + 1)
    window = disc[top - row + side : bottom - row + side, left - col + side : right - col + side]
    blanked[top:bottom, left:right] |= window


def outlines(heatmap: Heatmap, cfg: LesionConfig) -> list[Outline]:
    """8-connected areas at or above the threshold as polygons along the cells' edges, with holes.

    Returns:
        Outlines by falling maximum, then from top to bottom and left to right.
    """
    above = (heatmap.scores >= cfg.threshold).astype(np.uint8)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    areas = []
    for label in range(1, count):
        left, top, width, height, _ = boxes[label]
        window = np.s_[top : top + height, left : left + width]
        cells = np.argwhere(labels[window] == label) + [top, left]
        values = heatmap.scores[tuple(cells.T)]
        shape = _trace(cells, heatmap)
        areas.append(Outline(shape, float(values.max()), float(values.mean(dtype=np.float64))))
    return sorted(areas, key=lambda o: (-o.maximum, o.shape.bounds[1], o.shape.bounds[0]))


def _trace(cells: CellsRC, heatmap: Heatmap) -> Polygon:
    """The union of the cells; cells that touch by a corner only are bridged by a thousandth of a cell."""
    boxes = heatmap.placement.boxes(cells)
    sliver = heatmap.placement.step_x / 1000
    grown = shapely.union_all(shapely.box(boxes[:, 0], boxes[:, 1], boxes[:, 2], boxes[:, 3]))
    if isinstance(grown, Polygon):
        return grown
    bridged = grown.buffer(sliver, join_style="mitre")
    assert isinstance(bridged, Polygon)  # 8-connected cells overlap once each is grown
    return bridged


def slide_score(heatmap: Heatmap) -> float:
    """The heatmap's maximum (Liu et al. 2017); NaN where no cell was scored."""
    return heatmap.maximum


def on_slide(lesion: Lesion, size: tuple[int, int]) -> Lesion:
    """The lesion with its centre moved onto the slide: the last cells of a row or column may reach over its edge."""
    return replace(lesion, x=min(lesion.x, size[0] - 1.0), y=min(lesion.y, size[1] - 1.0))


def confidence_level(
    score: float,
    cfg: LesionConfig,
    checked: tuple[float, float, float, float] | None,
    *,
    missing: int = 0,
) -> ConfidenceLevel | None:
    """One of five words for a slide's score; None where nothing was scored, or where no bounds are known.

    Args:
        score: the slide's score, 0..1, or NaN.
        cfg: holds the user's bounds, if there are any; they win.
        checked: the bounds of the model's card; None where it has none.
        missing: number of cells with tissue that could not be read. Nobody knows that they are normal, so if there are
            any, the word is "equivocal" or a higher one.
    """
    bounds = cfg.confidence or checked
    if np.isnan(score) or bounds is None:
        return None
    level = sum(score >= bound for bound in bounds)
    return LEVELS[max(level, LEVELS.index("equivocal")) if missing else level]
