"""Capillaries of a slide, marked by a machine or a person: place, class, and field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import shapely

from pipelines.renal.read.fields import FieldSet
from pipelines.renal.read.grading import FieldCounts
from wsi.arrays import BoxesXYXY, PointsXY
from wsi.files import csv_text
from wsi.results.export import Feature, feature_id
from wsi.vocabulary import COLOURS, FEASIBLE, NEGATIVE, NOT_FEASIBLE, POSITIVE

Source = Literal["machine", "reclassified", "added"]
COLUMNS = (
    *("id", "class", "counted", "score", "source", "x0", "y0", "x1", "y1"),
    *("field_x", "field_y", "brown_around", "brown_inside", "doubt"),
)


@dataclass(frozen=True, eq=False, slots=True)
class Marks:
    """Capillaries as columns, with one row for each.

    Attributes:
        ids: UUIDs, as in ``detections.geojson``.
        boxes: (n, 4) boxes in level-0 pixels.
        positive: (n,) whether it is C4d-positive; else it is negative.
        scores: (n,) score of the detector, 0..1; NaN where a person marked it.
        field: (n,) number of the feasible field; -1 where it lies in none.
        counted: (n,) whether it counts; the others are only shown, those nearest to their threshold.
        brown: (n,) share of its circumference that is brown, 0..1; NaN where it was not measured.
        inside: (n,) share of its middle that is brown; NaN where it was not measured.
        doubts: its doubt, see `pipelines.renal.read.checks`; empty where there is none.
        source: who marked it.
    """

    ids: tuple[str, ...]
    boxes: BoxesXYXY
    positive: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float64]
    field: npt.NDArray[np.int64]
    counted: npt.NDArray[np.bool_]
    brown: npt.NDArray[np.float64]
    inside: npt.NDArray[np.float64]
    doubts: tuple[str, ...]
    source: tuple[Source, ...]

    def __post_init__(self) -> None:
        arrays = (self.positive, self.scores, self.field, self.counted, self.brown, self.inside)
        lengths = {*map(len, arrays), len(self.doubts), len(self.source)}
        n = len(self.ids)
        if self.boxes.shape != (n, 4) or lengths != {n}:
            raise ValueError(f"every column must hold {n} marks")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def flagged(self) -> npt.NDArray[np.bool_]:
        """Whether each capillary is positive and counts, though it has a doubt: (n,)."""
        has_doubt = np.array([bool(doubt) for doubt in self.doubts], np.bool_)
        return np.asarray(self.counted & self.positive & (self.field >= 0) & has_doubt)

    @property
    def centres(self) -> PointsXY:
        """Middles of the boxes, in level-0 pixels: (n, 2)."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    def counts(self, fields: int) -> FieldCounts:
        """Counts of every feasible field, from 0; also of those without a capillary."""
        is_counted = self.counted & (self.field >= 0)
        positive, negative = (
            np.bincount(self.field[is_counted & is_class], minlength=fields).astype(np.int64)
            for is_class in (self.positive, ~self.positive)
        )
        return FieldCounts(positive, negative)


def mark_key(slide: str, box: npt.NDArray[np.float64]) -> str:
    """The text that a capillary's UUID is made of: its slide and place."""
    return f"{slide} capillary {box.round(2).tolist()}"


def field_key(slide: str, x: int, y: int) -> str:
    """The text that a field's UUID is made of."""
    return f"{slide} field {x} {y}"


def mark_features(
    slide: str, marks: Marks, fields: FieldSet, made_by: dict[str, str], mpp: float
) -> list[Feature]:
    """Fields (locked), and capillaries to correct: those that count, and those that a person marked outside fields."""
    features = []
    for f in fields.fields:
        group = FEASIBLE if f.feasible else NOT_FEASIBLE
        measured = {"tissue": f.tissue} | ({} if f.score is None else {"probability": f.score})
        metadata = made_by | ({"why not": f.why_not} if f.why_not else {})
        box = shapely.box(f.x, f.y, f.x + fields.side, f.y + fields.side)
        key = field_key(slide, f.x, f.y)
        features.append(
            Feature(key, box, "annotation", f"field {f.x},{f.y}", group, COLOURS[group], measured, metadata)
        )
    for i in np.flatnonzero(marks.counted | (marks.field < 0)):
        group = POSITIVE if marks.positive[i] else NEGATIVE
        box = marks.boxes[i]
        measured = {"probability": float(marks.scores[i]), "brown around": float(marks.brown[i])}
        measured |= {"brown inside": float(marks.inside[i])}
        measured |= {"longer side um": float(max(box[2] - box[0], box[3] - box[1]) * mpp)}
        features.append(
            Feature(
                mark_key(slide, box),
                shapely.box(*box),
                "annotation",
                f"capillary {i + 1}",
                group,
                COLOURS[group],
                measured,
                made_by | ({"doubt": marks.doubts[i]} if marks.doubts[i] else {}),
                locked=False,
                id=marks.ids[i],
            )
        )
    return features


def machine_ids(slide: str, boxes: BoxesXYXY) -> tuple[str, ...]:
    """UUIDs of the detector's boxes."""
    return tuple(feature_id(mark_key(slide, box)) for box in boxes)


def marks_csv(marks: Marks, fields: FieldSet) -> str:
    """A table with one row per capillary, counted or not, in level-0 pixels."""
    rows = []
    feasible = fields.feasible
    for i in range(len(marks)):
        field = feasible[marks.field[i]] if marks.field[i] >= 0 else None
        group = POSITIVE if marks.positive[i] else NEGATIVE
        rows.append(
            [
                marks.ids[i],
                group,
                "yes" if marks.counted[i] else "no",
                _number(marks.scores[i]),
                marks.source[i],
                *(f"{v:.2f}" for v in marks.boxes[i]),
                "" if field is None else field.x,
                "" if field is None else field.y,
                _number(marks.brown[i]),
                _number(marks.inside[i]),
                marks.doubts[i],
            ]
        )
    return csv_text(COLUMNS, rows)


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4f}"
