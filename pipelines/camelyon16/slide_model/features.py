"""A slide's heatmap in 28 numbers, for a slide-level model after Wang et al. 2016 (arXiv 1606.05718)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from skimage.measure import regionprops

from pipelines.camelyon16.benchmark.predictions import Prediction
from pipelines.runs.task import Each, each_here, made_of_each
from wsi.errors import StoreError
from wsi.results.folder import Folder
from wsi.results.heatmap import Heatmap
from wsi.results.store import HeatmapStore

# The paper gives their number and kinds (tumour area over tissue, longest axis, prediction and shape of regions), not
# the list. This one follows REPATH's reading (repath/postprocess/slide_level_metrics.py), which has 30: its threshold
# 0.6 is left out.
THRESHOLDS = (0.5, 0.7, 0.8, 0.9)
REGION_THRESHOLD = 0.5
REGIONS = 2  # the largest
OF_REGION = (
    "area_mm2",
    "eccentricity",
    "extent",
    "box_area_mm2",
    "major_axis_um",
    "score_max",
    "score_mean",
    "score_min",
    "box_aspect",
    "solidity",
)
FEATURES = (
    *(f"{what}_at_{t:g}" for t in THRESHOLDS for what in ("tumour_share", "score_share")),
    *(f"region_{i + 1}_{name}" for i in range(REGIONS) for name in OF_REGION),
)


def heatmap_features(heatmap: Heatmap, mpp: float) -> npt.NDArray[np.float64]:
    """The 28 features of a heatmap in the order of `FEATURES`; those of a region that does not exist are 0.

    Shares are of the scored cells: of those at or above the threshold, and of their summed scores. Regions are
    8-connected cells at or above 0.5, by falling area. ``box_aspect`` is height over width. Lengths, areas and shapes
    are those on the slide, where a cell need not be square.

    Args:
        heatmap: at least one cell of it must be scored.
        mpp: um per level-0 pixel.

    Raises:
        ValueError: no cell is scored.
    """
    if heatmap.scored == 0:
        raise ValueError("no cell is scored")
    scores = np.nan_to_num(heatmap.scores, nan=0.0).astype(np.float64)
    values: list[float] = []
    for threshold in THRESHOLDS:
        above = scores >= threshold
        values += [above.sum() / heatmap.scored, scores[above].sum() / heatmap.scored]
    _, labels = cv2.connectedComponents((scores >= REGION_THRESHOLD).astype(np.uint8), connectivity=8)
    # regions are measured in widths of a cell
    cell_height = heatmap.placement.step_y / heatmap.placement.step_x
    measured = regionprops(labels, intensity_image=scores, spacing=(cell_height, 1.0))
    regions = sorted(measured, key=lambda r: (-r.area, r.label))
    um = heatmap.placement.step_x * mpp  # per width of a cell
    for region in regions[:REGIONS]:
        top, left, bottom, right = region.bbox
        values += [
            region.area * um**2 / 1e6,
            region.eccentricity,
            region.extent,
            region.area_bbox * um**2 / 1e6,
            region.axis_major_length * um,
            region.intensity_max,
            region.intensity_mean,
            region.intensity_min,
            (bottom - top) * cell_height / (right - left),
            region.solidity,
        ]
    return np.array(values + [0.0] * (len(FEATURES) - len(values)))


def features_of(slides: Sequence[Prediction], *, each: Each = each_here) -> npt.NDArray[np.float64]:
    """The features of slides that ``wsi score`` scored: (slides, 28); ``each`` does the slides.

    Raises:
        StoreError: a slide has no heatmap, as in a submission.
    """
    return np.array(made_of_each(each, _features, slides)).reshape(-1, len(FEATURES))


def _features(p: Prediction) -> npt.NDArray[np.float64]:
    if p.folder is None or p.mpp is None:
        raise StoreError(f"{p.name} has no heatmap; the slide-level model needs results of wsi score")
    return heatmap_features(read_heatmap(p.folder), p.mpp)


def read_heatmap(folder: Folder) -> Heatmap:
    """The heatmap of the positive class in a slide's folder of ``wsi score``.

    Raises:
        StoreError: it is broken.
    """
    try:
        positive = folder.read_json("slide.json")["positive"]
        store = HeatmapStore.open(folder.inside("heatmap.zarr"))
        return store.read(store.attributes["classes"].index(positive))
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{folder} is broken ({error!r}); score the slide again") from error
