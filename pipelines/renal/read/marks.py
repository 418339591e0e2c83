"""Capillaries of a slide, whoever marked them: where they are, what they count as, in which field."""

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
from wsi.marks.c4d import COLOURS, FEASIBLE, NEGATIVE, NOT_FEASIBLE, POSITIVE
from wsi.results.export import Feature, feature_id

Source = Literal["machine", "reclassified", "added"]
COLUMNS = (
    *("id", "class", "counted", "score", "source", "x0", "y0", "x1", "y1"),
    *("field_x", "field_y", "brown_around", "brown_inside", "doubt"),
)


@dataclass(frozen=True, eq=False, slots=True)
class Marks:
    """Capillaries, one row each.

    Attributes:
        ids: UUIDs, as in ``detections.geojson``.
        boxes: (n, 4) in level-0 pixels.
        positive: (n,) C4d-positive; else negative.
        scores: (n,) of the detector, 0..1; NaN where a person marked it.
        field: (n,) number of the feasible field; -1 where it lies in none.
        counted: (n,) whether it counts; others are shown only, as the nearest to do so.
        brown: (n,) share of its circumference that is brown, 0..1; NaN where it was not measured.
        inside: (n,) share of its middle that is brown; NaN where it was not measured.
        doubts: what speaks against it, see `pipelines.renal.read.checks`; empty where nothing does.
        source: who said so.
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
        """(n,) positive ones that count, though something speaks against them."""
        doubted = np.array([bool(doubt) for doubt in self.doubts], np.bool_)
        return np.asarray(self.counted & self.positive & (self.field >= 0) & doubted)

    @property
    def centres(self) -> PointsXY:
        """(n, 2) middles of the boxes."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    def counts(self, fields: int) -> FieldCounts:
        """Of every feasible field, from 0; also those without a capillary."""
        kept = self.counted & (self.field >= 0)
        positive, negative = (
            np.bincount(self.field[kept & which], minlength=fields).astype(np.int64)
            for which in (self.positive, ~self.positive)
        )
        return FieldCounts(positive, negative)


def mark_key(slide: str, box: npt.NDArray[np.float64]) -> str:
    """What a capillary's UUID is made of: its slide and place."""
    return f"{slide} capillary {box.round(2).tolist()}"


def field_key(slide: str, x: int, y: int) -> str:
    """What a field's UUID is made of."""
    return f"{slide} field {x} {y}"


def mark_features(
    slide: str, marks: Marks, fields: FieldSet, made_by: dict[str, str], mpp: float
) -> list[Feature]:
    """Fields (locked), and capillaries to be corrected: those that count, and those a person marked in other fields."""
    found = []
    for f in fields.fields:
        group = FEASIBLE if f.feasible else NOT_FEASIBLE
        measured = {"tissue": f.tissue} | ({} if f.score is None else {"probability": f.score})
        metadata = made_by | ({"why not": f.why_not} if f.why_not else {})
        box = shapely.box(f.x, f.y, f.x + fields.side, f.y + fields.side)
        key = field_key(slide, f.x, f.y)
        found.append(
            Feature(key, box, "annotation", f"field {f.x},{f.y}", group, COLOURS[group], measured, metadata)
        )
    for i in np.flatnonzero(marks.counted | (marks.field < 0)):
        group = POSITIVE if marks.positive[i] else NEGATIVE
        box = marks.boxes[i]
        measured = {"probability": float(marks.scores[i]), "brown around": float(marks.brown[i])}
        measured |= {"brown inside": float(marks.inside[i])}
        measured |= {"longer side um": float(max(box[2] - box[0], box[3] - box[1]) * mpp)}
        found.append(
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
    return found


def machine_ids(slide: str, boxes: BoxesXYXY) -> tuple[str, ...]:
    """UUIDs of what the detector found."""
    return tuple(feature_id(mark_key(slide, box)) for box in boxes)


def marks_csv(marks: Marks, fields: FieldSet) -> str:
    """One row per capillary, in level-0 pixels; those not counted are there, too, and say so."""
    rows = []
    feasible = fields.feasible
    for i in range(len(marks)):
        at = feasible[marks.field[i]] if marks.field[i] >= 0 else None
        group = POSITIVE if marks.positive[i] else NEGATIVE
        rows.append(
            [
                marks.ids[i],
                group,
                "yes" if marks.counted[i] else "no",
                _number(marks.scores[i]),
                marks.source[i],
                *(f"{v:.2f}" for v in marks.boxes[i]),
                "" if at is None else at.x,
                "" if at is None else at.y,
                _number(marks.brown[i]),
                _number(marks.inside[i]),
                marks.doubts[i],
            ]
        )
    return csv_text(COLUMNS, rows)


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4f}"
