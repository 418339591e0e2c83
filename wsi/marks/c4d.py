"""Names and colours of what is marked on C4d-stained kidneys: one vocabulary for phantoms, training and reports."""

from __future__ import annotations

POSITIVE, NEGATIVE = "C4d positive", "C4d negative"  # peritubular capillaries and vasa recta
NOT_COUNTED = (
    "not a capillary"  # what a detector may take for one: marked to train against, or to take one back
)
FEASIBLE, NOT_FEASIBLE = "feasible", "not feasible"  # fields
FIELD_UM = (
    256.0  # 1,024 px at 0.25 um/px: Kim et al. 2019's field is 1,024 px, of a spacing they do not state
)
FIELD_UNITS = 13  # of a field's side at most: fields are placed to a thirteenth of it, 20 um
REACH_UM = (
    8.0  # between middles of what agrees: half a capillary's median length (tests/test_kidney_phantom.py)
)

# brown for what is stained, blue for what is not
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
