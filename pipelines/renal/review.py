"""A person's corrections: which capillaries and fields count now, by their UUIDs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import shapely

from pipelines.renal.fields import FieldSet, KidneyField
from pipelines.renal.grading import GradingConfig, grade_slide
from pipelines.renal.marks import Marks, Source, mark_key
from pipelines.renal.report import Corrections, RenalReport, density, field_facts, grade_facts
from wsi.annotations import MarkedObject, read_objects
from wsi.arrays import BoxesXYXY
from wsi.c4d import FEASIBLE, NEGATIVE, NOT_COUNTED, NOT_FEASIBLE, POSITIVE
from wsi.errors import AnnotationError
from wsi.export import feature_id

KNOWN = (POSITIVE, NEGATIVE, NOT_COUNTED, FEASIBLE, NOT_FEASIBLE)
BY_HAND = "left out by a person"


@dataclass(frozen=True, eq=False, slots=True)
class Reviewed:
    """What counts after a person's corrections."""

    fields: FieldSet
    marks: Marks
    corrections: Corrections


@dataclass(frozen=True, eq=False, slots=True)
class _Machine:
    """A capillary of the machine's file: its class and score."""

    positive: bool
    score: float


def review(original: Path, corrected: Path, report: RenalReport) -> Reviewed:
    """Compare a corrected GeoJSON with the machine's, object by object.

    A capillary that is gone, or of the class ``not a capillary``, was deleted; one whose id the machine did not give
    was added, a box around its outline; one of another class was reclassified. A field that is gone or of the class
    ``not feasible`` is left out, and one of the class ``feasible`` taken in; fields cannot be added. Objects may be
    moved and reshaped: what counts is where they are now.

    Args:
        original: the machine's ``detections.geojson``.
        corrected: the person's.
        report: the machine's.

    Raises:
        AnnotationError: the corrected file is broken, of another slide, holds an unknown class or none, or an id twice.
    """
    before = {o.id: o for o in read_objects(original)}
    after = _checked(corrected, before, report.slide.name)
    machine = {
        key: _Machine(o.group == POSITIVE, o.measurements.get("probability", float("nan")))
        for key, o in before.items()
        if o.group in (POSITIVE, NEGATIVE)
    }
    fields = _fields(report, after)
    kept = [o for o in after if o.group in (POSITIVE, NEGATIVE)]
    marks = _marks(report.slide.name, kept, machine, fields)
    ids = {o.id for o in kept}
    was = {f.id: not f.why_not for f in report.fields}
    now = {f.id: g.feasible for f, g in zip(report.fields, fields.fields, strict=True)}
    return Reviewed(
        fields,
        marks,
        Corrections(
            deleted=sum(key not in ids for key in machine),
            added=sum(source == "added" for source in marks.source),
            reclassified=sum(source == "reclassified" for source in marks.source),
            outside_fields=int((marks.field < 0).sum()),
            fields_left_out=sum(was[key] and not now[key] for key in was),
            fields_taken_in=sum(now[key] and not was[key] for key in was),
        ),
    )


def _checked(path: Path, before: dict[str, MarkedObject], slide: str) -> list[MarkedObject]:
    """The person's objects, if they are of this slide and can be counted."""
    after = read_objects(path)
    others = sorted({o.metadata["slide"] for o in after if o.metadata.get("slide", slide) != slide})
    if others or not any(o.id in before for o in after):
        said = f"it says {others[0]!r}" if others else "it holds none of the report's objects"
        raise AnnotationError(
            f"{path} is not the corrected file of {slide}: {said}; give the one that was exported from it"
        )
    twice = [key for key, count in Counter(o.id for o in after if o.id).items() if count > 1]
    if twice:
        raise AnnotationError(
            f"{path} holds the id {twice[0]} more than once; delete the copies and export it again"
        )
    for o in after:
        if o.group not in KNOWN:
            what = f"the class {o.group!r}" if o.group else "an object without a class"
            x, y = shapely.get_coordinates(shapely.centroid(o.shape))[0]
            raise AnnotationError(
                f"{path} holds {what}, at ({x:.0f}, {y:.0f}); set one of {', '.join(KNOWN)}, or delete it"
            )
        if o.shape.area == 0:
            x, y = shapely.get_coordinates(o.shape).mean(axis=0) if not o.shape.is_empty else (0, 0)
            raise AnnotationError(
                f"{path} holds a {o.shape.geom_type} at ({x:.0f}, {y:.0f}): mark a capillary by an outline"
            )
    return after


def _fields(report: RenalReport, after: Sequence[MarkedObject]) -> FieldSet:
    """The report's fields as the person leaves them.

    Raises:
        AnnotationError: a field was added.
    """
    said = {o.id: o.group for o in after if o.group in (FEASIBLE, NOT_FEASIBLE)}
    known = {f.id for f in report.fields}
    new = [key for key in said if key not in known]
    if new:
        raise AnnotationError(
            f"a field was added ({new[0] or 'without an id'}), but fields lie on the report's grid: "
            f"reclassify one that was left out"
        )
    found = []
    for f in report.fields:
        group = said.get(f.id, NOT_FEASIBLE)
        why_not = "" if group == FEASIBLE else f.why_not or BY_HAND
        found.append(KidneyField(f.x, f.y, f.tissue, f.score, why_not))
    side = report.field_side_px
    width, height = report.slide.size_px
    return FieldSet(tuple(found), side, (-(-height // side), -(-width // side)))


def _marks(slide: str, kept: Sequence[MarkedObject], machine: dict[str, _Machine], fields: FieldSet) -> Marks:
    boxes: BoxesXYXY = np.array([o.shape.bounds for o in kept], np.float64).reshape(-1, 4)
    positive = np.array([o.group == POSITIVE for o in kept], np.bool_)
    n = len(kept)
    marks = Marks(
        tuple(o.id or feature_id(mark_key(slide, np.array(o.shape.bounds))) for o in kept),
        boxes,
        positive,
        np.array([machine[o.id].score if o.id in machine else np.nan for o in kept], np.float64),
        np.full(n, -1, np.int64),
        np.ones(n, np.bool_),
        np.full(n, np.nan),
        tuple(_source(o, machine) for o in kept),
    )
    field = fields.index(marks.centres)
    return replace(marks, field=field, counted=field >= 0)


def _source(o: MarkedObject, machine: dict[str, _Machine]) -> Source:
    if o.id not in machine:
        return "added"
    return "machine" if machine[o.id].positive == (o.group == POSITIVE) else "reclassified"


def corrected_report(
    report: RenalReport, reviewed: Reviewed, grading: GradingConfig, field_mm2: float
) -> RenalReport:
    """The report of a corrected reading, which holds the machine's result beside its own."""
    counts = reviewed.marks.counts(len(reviewed.fields.feasible))
    result = grade_facts(grade_slide(counts, grading))
    return report.model_copy(
        update={
            "reading": "corrected",
            "result": result,
            "machine": report.result,
            "corrections": reviewed.corrections,
            "field_mm2": round(field_mm2, 4),
            "positive_per_mm2": density(result.positive, field_mm2),
            "capillaries_per_mm2": density(result.positive + result.negative, field_mm2),
            "fields": field_facts(report.slide.name, reviewed.fields, reviewed.marks),
        }
    )
