"""Corrections by a person: the capillaries and fields that count now, by their UUIDs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import shapely
from shapely import STRtree

from models.card import hash_file
from pipelines.renal.read.fields import FieldSet, KidneyField
from pipelines.renal.read.grading import GradingConfig, grade_slide
from pipelines.renal.read.marks import Marks, Source, mark_key
from pipelines.renal.read.reading import COUNT_WARNINGS, count_warning
from pipelines.renal.read.report import Corrections, RenalReport, density, field_facts, grade_facts
from wsi.arrays import BoxesXYXY
from wsi.errors import AnnotationError
from wsi.marks.geojson import MarkedObject, read_objects
from wsi.results.export import feature_id
from wsi.results.folder import Folder
from wsi.vocabulary import FEASIBLE, NEGATIVE, NOT_COUNTED, NOT_FEASIBLE, POSITIVE

DETECTIONS = "detections.geojson"
KNOWN = (POSITIVE, NEGATIVE, NOT_COUNTED, FEASIBLE, NOT_FEASIBLE)
BY_HAND = "left out by a person"
NOT_SEARCHED = (
    "taken in by a person, but no capillary is marked in it, and the machine did not look for any there"
)
FROM_POINT = "marked by a point"  # metadata of a square that stands for a point
POINT_UM = 12.0  # side of the square that stands for a point: a capillary is 10 to 15 um wide
LONGEST_UM = 100.0  # side of a box; the longest capillaries are some 60 um
MOST_SHARED = 0.5  # intersection over union of two marks above which they are one capillary


@dataclass(frozen=True, eq=False, slots=True)
class Reviewed:
    """The fields and marks that count after a person's corrections."""

    fields: FieldSet
    marks: Marks
    corrections: Corrections


def _content(folder: Folder) -> bytes:
    try:
        return folder.read(DETECTIONS)
    except OSError as error:
        raise AnnotationError(
            f"{folder.at(DETECTIONS)} cannot be read ({error.strerror or error}); check the path"
        ) from error


@dataclass(frozen=True, eq=False, slots=True)
class _Machine:
    """A capillary in the machine's file: its class and score."""

    positive: bool
    score: float


def review(folder: Folder, corrected: Path, report: RenalReport, content: bytes | None = None) -> Reviewed:
    """Compare a corrected GeoJSON with the machine's, object by object.

    A capillary that is gone, or of the class ``not a capillary``, was deleted; one whose id the machine did not give
    was added, a box around its outline; one of another class was reclassified. A field that is gone or of the class
    ``not feasible`` is left out, and one of the class ``feasible`` taken in; fields cannot be added. Objects may be
    moved and reshaped: what counts is where they are now.

    Args:
        folder: that of the machine's report.
        corrected: the person's corrected copy of it.
        report: the machine's report.
        content: bytes of the corrected file where they are at hand; it need not exist then.

    Raises:
        AnnotationError: the corrected file is broken, of another slide, holds an unknown class or none, or an id twice.
    """
    original = Path(folder.at(DETECTIONS))
    if content is None and corrected.resolve() == original.resolve():
        raise AnnotationError(f"{corrected} is the machine's own file; save corrections under another name")
    machine_objects = {o.id: o for o in read_objects(original, _content(folder))}
    counts = [sum(o.group == group for o in machine_objects.values()) for group in (POSITIVE, NEGATIVE)]
    if counts != [report.result.positive, report.result.negative]:
        raise AnnotationError(
            f"{original} is not as the machine wrote it: it holds {counts[0]} positive and {counts[1]} negative "
            f"capillaries; make the report again with --overwrite, and save corrections under another name"
        )
    objects = _checked(corrected, content, machine_objects, report)
    machine_capillaries = {
        key: _Machine(o.group == POSITIVE, o.measurements.get("probability", float("nan")))
        for key, o in machine_objects.items()
        if o.group in (POSITIVE, NEGATIVE)
    }
    fields = _fields(report, objects)
    capillaries = [o for o in objects if o.group in (POSITIVE, NEGATIVE)]
    fields = _searched(fields, report, capillaries)
    marks = _marks(report.slide.name, capillaries, machine_capillaries, fields)
    ids = {o.id for o in capillaries}
    was_feasible = {f.id: not f.why_not for f in report.fields}
    is_feasible = {f.id: g.feasible for f, g in zip(report.fields, fields.fields, strict=True)}
    return Reviewed(
        fields,
        marks,
        Corrections(
            file=corrected.name,
            sha256=hash_file(corrected) if content is None else hashlib.sha256(content).hexdigest(),
            deleted=sum(key not in ids for key in machine_capillaries),
            added=sum(source == "added" for source in marks.source),
            reclassified=sum(source == "reclassified" for source in marks.source),
            outside_fields=int((marks.field < 0).sum()),
            fields_left_out=sum(was_feasible[key] and not is_feasible[key] for key in was_feasible),
            fields_taken_in=sum(is_feasible[key] and not was_feasible[key] for key in was_feasible),
            fields_not_searched=sum(f.why_not == NOT_SEARCHED for f in fields.fields),
        ),
    )


def _checked(
    path: Path, content: bytes | None, machine_objects: dict[str, MarkedObject], report: RenalReport
) -> list[MarkedObject]:
    """Read the person's objects, and check that they are of this slide and can be counted."""
    objects = _with_points(read_objects(path, content), report.slide.um_per_px)
    _check_slide(path, machine_objects, objects, report)
    if not any(o.group in (FEASIBLE, NOT_FEASIBLE) for o in objects):
        raise AnnotationError(f"{path} holds no field: export all objects, not only the selected ones")
    double_ids = [key for key, count in Counter(o.id for o in objects if o.id).items() if count > 1]
    if double_ids:
        raise AnnotationError(
            f"{path} holds the id {double_ids[0]} more than once; delete the copies and export it again"
        )
    for o in objects:
        if o.group not in KNOWN:
            fault = f"the class {o.group!r}" if o.group else "an object without a class"
            x, y = shapely.get_coordinates(shapely.centroid(o.shape))[0]
            raise AnnotationError(
                f"{path} holds {fault}, at ({x:.0f}, {y:.0f}); set one of {', '.join(KNOWN)}, or delete it"
            )
        if o.shape.geom_type != "Polygon" or o.shape.area == 0:
            x, y = shapely.get_coordinates(o.shape).mean(axis=0) if not o.shape.is_empty else (0, 0)
            raise AnnotationError(
                f"{path} holds a {o.shape.geom_type} at ({x:.0f}, {y:.0f}): mark each capillary by one outline, or by "
                f"one point"
            )
        x0, y0, x1, y1 = o.shape.bounds
        width, height = report.slide.size_px
        if o.group in (POSITIVE, NEGATIVE) and (x1 < 0 or y1 < 0 or x0 > width or y0 > height):
            raise AnnotationError(
                f"{path} marks a capillary at ({x0:.0f}, {y0:.0f}), off the slide; delete it"
            )
    _refuse_twice(path, [o for o in objects if o.group in (POSITIVE, NEGATIVE)])
    return objects


def _with_points(objects: Sequence[MarkedObject], mpp: float) -> list[MarkedObject]:
    """The same objects; a point of a capillary's class becomes a small square, as a point is enough to count."""
    outlines = []
    for o in objects:
        if o.group not in (POSITIVE, NEGATIVE, NOT_COUNTED) or o.shape.geom_type not in (
            "Point",
            "MultiPoint",
        ):
            outlines.append(o)
            continue
        half = POINT_UM / mpp / 2
        points = shapely.get_coordinates(o.shape)
        for i, (x, y) in enumerate(points):
            object_id = o.id if len(points) == 1 or not o.id else f"{o.id} {i + 1}"
            square = shapely.box(x - half, y - half, x + half, y + half)
            outlines.append(replace(o, id=object_id, shape=square, metadata=o.metadata | {FROM_POINT: "yes"}))
    return outlines


def _check_slide(
    path: Path, machine_objects: dict[str, MarkedObject], objects: Sequence[MarkedObject], report: RenalReport
) -> None:
    """Refuse corrections of another slide, or of another slide file of the same name."""
    slide = report.slide.name
    names = sorted({o.metadata["slide"] for o in objects if o.metadata.get("slide", slide) != slide})
    identity = report.slide.identity
    mistake = ""
    if names:
        mistake = f"it is of {names[0]!r}"
    elif any(o.metadata.get("slide identity", identity) != identity for o in objects):
        mistake = "it is of another file of that name"
    elif not any(o.id in machine_objects for o in objects):
        mistake = "it holds none of the report's objects"
    if mistake:
        raise AnnotationError(
            f"{path} is not the corrected file of {slide}: {mistake}; give the one that was exported from it"
        )


def _refuse_twice(path: Path, capillaries: Sequence[MarkedObject]) -> None:
    """Refuse two marks of one capillary: a copy, or an outline or point on the machine's box."""
    if len(capillaries) < 2:
        return
    boxes = [shapely.box(*o.shape.bounds) for o in capillaries]
    first, second = STRtree(boxes).query(boxes, predicate="intersects")
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        shared_area = boxes[i].intersection(boxes[j]).area
        is_point = [FROM_POINT in capillaries[k].metadata for k in (i, j)]
        is_inside = (is_point[0] and boxes[j].contains(boxes[i].centroid)) or (
            is_point[1] and boxes[i].contains(boxes[j].centroid)
        )
        if i < j and (is_inside or shared_area > MOST_SHARED * (boxes[i].area + boxes[j].area - shared_area)):
            middle = boxes[i].centroid
            raise AnnotationError(
                f"{path} marks the capillary at ({middle.x:.0f}, {middle.y:.0f}) twice; delete one of the two"
            )


def _fields(report: RenalReport, objects: Sequence[MarkedObject]) -> FieldSet:
    """The report's fields after the person's corrections.

    Raises:
        AnnotationError: a field was added.
    """
    groups = {o.id: o.group for o in objects if o.group in (FEASIBLE, NOT_FEASIBLE)}
    field_ids = {f.id for f in report.fields}
    new_ids = [key for key in groups if key not in field_ids]
    if new_ids:
        raise AnnotationError(
            f"a field was added ({new_ids[0] or 'without an id'}), but fields are those of the report: "
            f"reclassify one that was left out"
        )
    fields = []
    for f in report.fields:
        group = groups.get(f.id, NOT_FEASIBLE)
        why_not = "" if group == FEASIBLE else f.why_not or BY_HAND
        fields.append(KidneyField(f.x, f.y, f.tissue, f.score, why_not))
    return FieldSet(tuple(fields), report.field_side_px, report.slide.size_px)


def _searched(fields: FieldSet, report: RenalReport, capillaries: Sequence[MarkedObject]) -> FieldSet:
    """Leave out fields that the person took in and in which nothing is marked, as nobody has counted there."""
    middles = np.array([o.shape.envelope.centroid.coords[0] for o in capillaries]).reshape(-1, 2)
    marked_numbers = set(fields.index(middles).tolist())
    number = {(f.x, f.y): i for i, f in enumerate(fields.feasible)}
    machine_left_out = {(f.x, f.y) for f in report.fields if f.why_not}
    new_fields = tuple(
        replace(f, why_not=NOT_SEARCHED)
        if f.feasible and (f.x, f.y) in machine_left_out and number[f.x, f.y] not in marked_numbers
        else f
        for f in fields.fields
    )
    return replace(fields, fields=new_fields)


def _marks(
    slide: str, capillaries: Sequence[MarkedObject], machine: dict[str, _Machine], fields: FieldSet
) -> Marks:
    boxes: BoxesXYXY = np.array([o.shape.bounds for o in capillaries], np.float64).reshape(-1, 4)
    positive = np.array([o.group == POSITIVE for o in capillaries], np.bool_)
    n = len(capillaries)
    marks = Marks(
        tuple(o.id or feature_id(mark_key(slide, np.array(o.shape.bounds))) for o in capillaries),
        boxes,
        positive,
        np.array([machine[o.id].score if o.id in machine else np.nan for o in capillaries], np.float64),
        np.full(n, -1, np.int64),
        np.ones(n, np.bool_),
        np.full(n, np.nan),
        np.full(n, np.nan),
        ("",) * n,
        tuple(_source(o, machine) for o in capillaries),
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
    grade = grade_slide(counts, grading)
    result = grade_facts(grade)
    warnings = [w for w in report.warnings if w not in COUNT_WARNINGS]
    empty_note = "no capillary is left after the correction: no percentage can be given"
    is_emptied = result.percent is None and report.result.percent is not None and result.fields > 0
    count_note = empty_note if is_emptied else count_warning(result.fields, result.percent)
    notes = [count_note, _large(reviewed.marks, report.slide.um_per_px)]
    return report.model_copy(
        update={
            "reading": "corrected",
            "result": result,
            "warnings": (*warnings, *(text for text in notes if text)),
            "machine": report.result,
            "corrections": reviewed.corrections,
            "field_mm2": round(field_mm2, 4),
            "positive_per_mm2": density(result.positive, field_mm2),
            "capillaries_per_mm2": density(result.positive + result.negative, field_mm2),
            "fields": field_facts(report.slide.name, reviewed.fields, reviewed.marks),
        }
    )


def _large(marks: Marks, mpp: float) -> str:
    """The warning of outlines that are too large for a capillary; empty where there are none."""
    sides = (marks.boxes[:, 2:] - marks.boxes[:, :2]).max(axis=1, initial=0) * mpp
    large = np.flatnonzero(sides > LONGEST_UM)
    if len(large) == 0:
        return ""
    x, y = marks.centres[large[0]]
    where = f"the first at ({x:.0f}, {y:.0f})"
    if len(large) == 1:
        return (
            f"1 marked outline is longer than {LONGEST_UM:g} um, at ({x:.0f}, {y:.0f}): is it one capillary"
        )
    return f"{len(large)} marked outlines are longer than {LONGEST_UM:g} um, {where}: is each one capillary"
