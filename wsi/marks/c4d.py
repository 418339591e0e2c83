"""Names and colours of marks on C4d-stained kidneys: one vocabulary for phantoms, training and reports."""

from __future__ import annotations

POSITIVE, NEGATIVE = "C4d positive", "C4d negative"  # peritubular capillaries and vasa recta
# An object that a detector may take for a capillary: marked to train against, or to correct a detection
NOT_COUNTED = "not a capillary"
FEASIBLE, NOT_FEASIBLE = "feasible", "not feasible"  # fields
# 1,024 px at 0.25 um/px: Kim et al. 2019's field is 1,024 px, of a spacing they do not state
FIELD_UM = 256.0
FIELD_UNITS = 13  # of a field's side at most: fields are placed to a thirteenth of it, 20 um
# Distance of middles within which two marks agree: half a capillary's median length (tests/wsi/phantoms/test_kidney.py)
REACH_UM = 8.0

# brown for stained capillaries, blue for unstained ones
COLOURS = {
    POSITIVE: (150, 75, 0),
    NEGATIVE: (40, 90, 200),
    NOT_COUNTED: (200, 120, 200),
    FEASIBLE: (30, 140, 60),
    NOT_FEASIBLE: (120, 120, 120),
}


def field_side(mpp: float) -> int:
    """Side of a field in level-0 pixels."""
    return round(FIELD_UM / mpp)
