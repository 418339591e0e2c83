"""Repair of rings that cross themselves; rings with so many crossings that it would take long are refused."""

from __future__ import annotations

import numpy as np
import shapely
from shapely import Polygon, STRtree
from shapely.geometry.base import BaseGeometry

from wsi.errors import AnnotationError

# Repair takes 0.4 s for 15,000 crossings and over a minute for 1.5 million; an outline drawn by hand has a few
MOST_CROSSINGS = 20_000
_AT_ONCE = 512  # segments whose crossings are counted together


def repaired(outline: Polygon, where: str = "an outline") -> BaseGeometry:
    """The area of a ring that crosses itself; parts that collapse to a line enclose nothing.

    Args:
        outline: the outline as it was drawn.
        where: description of the outline for the error.

    Raises:
        AnnotationError: the outline crosses itself more than `MOST_CROSSINGS` times.
    """
    if crossings_exceed(outline, MOST_CROSSINGS):
        x0, y0, x1, y1 = outline.bounds
        raise AnnotationError(
            f"{where} with {len(outline.exterior.coords) - 1:,} corners, from ({x0:.0f}, {y0:.0f}) to "
            f"({x1:.0f}, {y1:.0f}), crosses itself more than {MOST_CROSSINGS:,} times, as no outline of a lesion does; "
            f"draw it again, or remove it"
        )
    return shapely.make_valid(outline, method="structure", keep_collapsed=False)


def crossings_exceed(outline: Polygon, most: int) -> bool:
    """Whether the segments of an outline cross each other more than ``most`` times; neighbours do not count."""
    rings = [np.asarray(ring.coords)[:, :2] for ring in (outline.exterior, *outline.interiors)]
    segments = np.concatenate([shapely.linestrings(np.stack([r[:-1], r[1:]], axis=1)) for r in rings])
    tree = STRtree(segments)
    count = 0
    for start in range(0, len(segments), _AT_ONCE):
        hits = tree.query(segments[start : start + _AT_ONCE], predicate="intersects").shape[1]
        count += hits - 3 * len(segments[start : start + _AT_ONCE])  # itself, the one before, the one after
        if count > 2 * most:  # each crossing is counted from both segments
            return True
    return False
