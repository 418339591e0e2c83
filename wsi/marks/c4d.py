"""Sizes on C4d-stained kidneys: of a field, and how near two marks of one capillary lie."""

from __future__ import annotations

# 1,024 px at 0.25 um/px: Kim et al. 2019's field is 1,024 px, of a spacing they do not state
FIELD_UM = 256.0
FIELD_UNITS = 13  # of a field's side at most: fields are placed to a thirteenth of it, 20 um
# Distance of middles within which two marks agree: half a capillary's median length (tests/wsi/phantoms/test_kidney.py)
REACH_UM = 8.0


def field_side(mpp: float) -> int:
    """Side of a field in level-0 pixels."""
    return round(FIELD_UM / mpp)
