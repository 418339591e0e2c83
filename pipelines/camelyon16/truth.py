"""Lesions of a slide as Camelyon16's evaluation sees them: a labelled raster at level 5."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_fill_holes
from shapely import MultiPolygon
from skimage.measure import regionprops

from wsi.raster import cells_inside

# Evaluation_FROC.py (Camelyon16, 2016): level 5, and 0.243 um/px for the slides of both scanners
LEVEL5_PX = 32
L0_MPP = 0.243
GROW_PX = 75 / (L0_MPP * LEVEL5_PX * 2)  # 75 um is the width of five tumour cells; closer lesions merge
ISOLATED_PX = 275 / (L0_MPP * LEVEL5_PX)  # 200 um and the 75 um above


@dataclass(frozen=True, eq=False, slots=True)
class LesionTruth:
    """A slide's lesions.

    Attributes:
        labels: (rows, cols) at level 5, 0 for none, else the lesion's number from 1; None on a normal slide.
        count: how many numbers there are.
        isolated: numbers of isolated tumour cells, which count neither way.
    """

    labels: npt.NDArray[np.int32] | None
    count: int
    isolated: frozenset[int]

    @property
    def lesions(self) -> int:
        """Lesions that a detector is asked to find."""
        return self.count - len(self.isolated)


def lesion_truth(area: MultiPolygon, size: tuple[int, int]) -> LesionTruth:
    """Number the lesions of a slide by the official rules, straight from outlines.

    Args:
        area: tumour in level-0 pixels; empty on a normal slide.
        size: (width, height) of level 0.
    """
    if area.is_empty:
        return LesionTruth(None, 0, frozenset())
    cols, rows = (math.ceil(n / LEVEL5_PX) for n in size)
    return label_mask(cells_inside(area, (LEVEL5_PX, LEVEL5_PX), (rows, cols)))


def label_mask(mask: npt.NDArray[np.bool_]) -> LesionTruth:
    """Grow, fill holes, number the 8-connected parts, name those of isolated cells."""
    if not mask.any():
        return LesionTruth(None, 0, frozenset())
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    grown = binary_fill_holes(distance < GROW_PX)
    count, labels = cv2.connectedComponents(grown.astype(np.uint8), connectivity=8)
    isolated = {region.label for region in regionprops(labels) if region.axis_major_length < ISOLATED_PX}
    return LesionTruth(labels, count - 1, frozenset(isolated))
