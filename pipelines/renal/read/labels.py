"""Labels that a machine makes and a person corrects."""

from __future__ import annotations

from collections.abc import Sequence

import shapely

from wsi.marks.boxes import Boxes
from wsi.results.export import Feature
from wsi.vocabulary import COLOURS

OTHER = (110, 110, 110)


def proposed_labels(
    slide: str, found: Boxes, classes: Sequence[str], made_by: dict[str, str]
) -> list[Feature]:
    """One annotation for each box, with its score; not locked, as it is to be corrected.

    Args:
        slide: the slide's name; ids are made of it, the place and the class.
        found: the boxes, in level-0 pixels, with scores.
        classes: names of the labels, from 0.
        made_by: metadata of every feature.
    """
    features = []
    for i, (box, score, label) in enumerate(
        zip(found.boxes, found.known_scores, found.labels, strict=True), start=1
    ):
        name = classes[label]
        key = f"{slide} proposed {name} {box.round(2).tolist()}"
        colour = COLOURS.get(name, OTHER)
        measured = {"probability": float(score)}
        shape = shapely.box(*box)
        features.append(
            Feature(key, shape, "annotation", f"proposed {i}", name, colour, measured, made_by, locked=False)
        )
    return features
