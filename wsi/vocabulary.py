"""The class names of both applications: how they are spelled, what else is accepted for them, and their colours."""

from __future__ import annotations

from collections.abc import Sequence

# Lymph nodes. Tables, cards of models and folders of patches write NORMAL and TUMOUR, annotation files of QuPath and
# ASAP write TUMOUR_GROUP and EXCLUSION_GROUP, sentences write British English (`in_words`).
NORMAL, TUMOUR = "normal", "tumor"
TUMOUR_GROUP, EXCLUSION_GROUP = "Tumor", "Exclusion"
GROUP_COLOURS = {TUMOUR_GROUP: "#c80000", EXCLUSION_GROUP: "#0000c8"}
_IN_SENTENCES = "tumour"

# What is accepted for them; all of it is compared without regard to case.
_TUMOUR_WORDS = (TUMOUR, _IN_SENTENCES, "metastasis")
_TUMOUR_CLASSES = (*_TUMOUR_WORDS, "metastases")
NORMAL_LABELS = (NORMAL, "negative", "benign", "0")  # of slides and patches
TUMOUR_LABELS = (*_TUMOUR_WORDS, "positive", "1")  # of patches
# Of outlines: Camelyon16 uses Tumor, _0, _1 and _2; Camelyon17 metastases and normal
TUMOUR_GROUPS = frozenset({*_TUMOUR_CLASSES, "_0", "_1", "none", "lesion", "positive"})
NOT_TISSUE_GROUPS = frozenset({EXCLUSION_GROUP.casefold(), "ignore*"})  # are cut out of a tissue mask, too
HOLE_GROUPS = NOT_TISSUE_GROUPS | {
    "_2",
    NORMAL,
    "negative",
}  # are cut out of tumour (NCRF annotation.py; NCRF#61)
# Of outlines that teach a segmenter: nobody knows what lies there
UNKNOWN_AREA = "unknown"

# Kidneys that are stained for C4d. Every file and every sentence spells these names in the same way.
POSITIVE, NEGATIVE = "C4d positive", "C4d negative"  # peritubular capillaries and vasa recta
# An object that a detector may take for a capillary: marked to train against, or to correct a detection
NOT_COUNTED = "not a capillary"
FEASIBLE, NOT_FEASIBLE = "feasible", "not feasible"  # fields
# brown for stained capillaries, blue for unstained ones
COLOURS = {
    POSITIVE: (150, 75, 0),
    NEGATIVE: (40, 90, 200),
    NOT_COUNTED: (200, 120, 200),
    FEASIBLE: (30, 140, 60),
    NOT_FEASIBLE: (120, 120, 120),
}
# Compartments of a kidney, as a segmenter maps them
COMPARTMENT_COLOURS = {
    "cortex": (120, 170, 220),
    "medulla": (200, 160, 90),
    "tubule": (90, 180, 90),
    "artery": (200, 40, 60),
    "glomerulus": (130, 60, 180),
}


def means_tumour(name: str) -> bool:
    """Whether a class of this name is tumour, in any of the spellings that models and ``reference.csv`` use."""
    return name.casefold() in _TUMOUR_CLASSES


def in_words(classes: Sequence[str], positive: str) -> tuple[str, str]:
    """What sentences call the two labels of a classifier: first what is not of the positive class, then what is.

    Args:
        classes: the names of the classes, of a card or recipe.
        positive: the one of them that is looked for.
    """
    if means_tumour(positive):
        return NORMAL, _IN_SENTENCES
    others = [name for name in classes if name != positive]
    return (others[0] if len(others) == 1 else f"not {positive}"), positive
