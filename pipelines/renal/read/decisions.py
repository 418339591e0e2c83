"""A person's decisions on single objects, as the corrected file that `pipelines.renal.read.review` counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from pipelines.renal.read.marks import mark_key
from pipelines.renal.read.report import RenalReport, grade_sentence, grading_of
from pipelines.renal.read.review import DETECTIONS, corrected_report, review
from pipelines.renal.read.review_run import review_slide
from pipelines.renal.read.run import REVIEWED, read_report
from pipelines.renal.read.summary import refresh_summary
from pipelines.runs.review_log import Decision, Groups, Ring, Signature, shape_of
from wsi.errors import AnnotationError, StoreError
from wsi.results.export import Feature, feature_id, geojson
from wsi.results.folder import Folder
from wsi.text import number_of
from wsi.vocabulary import COLOURS, FEASIBLE, NEGATIVE, NOT_COUNTED, NOT_FEASIBLE, POSITIVE

CORRECTED = "corrected.geojson"
_FEATURES = '{"type":"FeatureCollection","features":[\n'
CAPILLARY_GROUPS, FIELD_GROUPS = (POSITIVE, NEGATIVE, NOT_COUNTED), (FEASIBLE, NOT_FEASIBLE)


@dataclass
class MachineReading:
    """A report of the machine's, and the objects in its file, of which a person decides one after another.

    Attributes:
        folder: of the report.
        report: the report.
        content: bytes of its ``detections.geojson``.
        features: the features of that file, by id.
        slide: path of the slide, if it was moved.
    """

    folder: Folder
    report: RenalReport
    content: bytes
    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    slide: str | None = None

    @classmethod
    def of(cls, folder: Folder, slide: str | None = None) -> MachineReading:
        """Read a report; ``slide`` is the path of its slide, if that was moved.

        Raises:
            WsiError: it is broken, or of another version.
        """
        report = read_report(folder)
        try:
            content = folder.read(DETECTIONS)
            features = {str(f["id"]): f for f in json.loads(content)["features"]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise AnnotationError(
                f"{folder.at(DETECTIONS)} is missing or broken ({error!r}); make it again"
            ) from error
        return cls(folder, report, content, features, slide)

    def group(self, object_id: str) -> str:
        """The class that the machine gave an object; empty where it has none of this id."""
        feature = self.features.get(object_id)
        return "" if feature is None else str(feature["properties"]["classification"]["name"])

    @property
    def identity(self) -> str:
        """Hash of the slide's file."""
        return self.report.slide.identity

    @property
    def groups(self) -> Groups:
        """The classes that a person gives."""
        return Groups(yes=POSITIVE, no=NEGATIVE, out=NOT_COUNTED)

    def objects(self) -> list[str]:
        """Ids of the capillaries that a person looks through."""
        return [key for key in self.features if self.group(key) in (POSITIVE, NEGATIVE)]

    def decision(self, object_id: str, group: str, ring: Ring, drawn: Mapping[str, Decision]) -> Decision:
        """A decision that can be counted.

        Args:
            object_id: empty for an object that was drawn just now.
            group: its class from now on.
            ring: the outline of such an object, in level-0 pixels; else empty.
            drawn: the decisions so far.

        Raises:
            AnnotationError: there is no such object, or it cannot be of this class.
        """
        if not object_id:
            return self._drawn(group, ring, drawn)
        machine = self.group(object_id)
        is_drawn = object_id in drawn and not machine
        if (not machine and not is_drawn) or ring:
            raise AnnotationError(
                f"there is no object {object_id[:40]!r} in this report; load the page again"
            )
        groups = FIELD_GROUPS if machine in FIELD_GROUPS else CAPILLARY_GROUPS
        if group not in groups:
            raise AnnotationError(f"this object cannot be {group[:40]!r}; give one of {', '.join(groups)}")
        return Decision(object_id, machine, group, drawn[object_id].ring if is_drawn else ())

    def _drawn(self, group: str, ring: Ring, drawn: Mapping[str, Decision]) -> Decision:
        if group not in (POSITIVE, NEGATIVE):
            raise AnnotationError(f"what is drawn is {POSITIVE} or {NEGATIVE}, not {group[:40]!r}")
        shape = shape_of(ring, self.report.slide.size_px, self.report.slide.um_per_px)
        object_id = feature_id(mark_key(self.report.slide.name, np.array(shape.bounds)))
        if object_id in self.features or object_id in drawn:
            raise AnnotationError(
                "a mark with these bounds is there already; change its class instead of marking twice"
            )
        return Decision(object_id, "", group, ring)

    def corrected(self, decisions: Mapping[str, Decision]) -> bytes:
        """The machine's file after these decisions: what a person would export from QuPath after the same ones."""
        lines = []
        for key, feature in self.features.items():
            decision = decisions.get(key)
            if decision is None or decision.group == self.group(key):
                lines.append(feature)
            elif decision.group != NOT_COUNTED:
                classification = {"name": decision.group, "color": list(COLOURS[decision.group])}
                lines.append(
                    feature | {"properties": feature["properties"] | {"classification": classification}}
                )
        text = _FEATURES + ",\n".join(map(_line, [*lines, *self._drawn_features(decisions)])) + "\n]}\n"
        return text.encode()

    def _drawn_features(self, decisions: Mapping[str, Decision]) -> list[dict[str, Any]]:
        any_metadata = next(iter(self.features.values()))["properties"]["metadata"]
        x, y = (round(float(v)) for v in any_metadata["origin offset"].split(","))
        made_by = {k: v for k, v in any_metadata.items() if k in ("slide", "slide identity")}
        drawn = [d for d in decisions.values() if d.ring and d.group != NOT_COUNTED]
        features = [
            Feature(
                key=d.id,
                shape=shapely.Polygon(d.ring),
                kind="annotation",
                name="drawn by a person",
                classification=d.group,
                colour=COLOURS[d.group],
                metadata=made_by,
                locked=False,
                id=d.id,
            )
            for d in drawn
        ]
        return list(json.loads(geojson(features, (x, y)))["features"])

    def counted(self, decisions: Mapping[str, Decision]) -> RenalReport:
        """The reading after these decisions, as `review_slide` would count it; nothing is written.

        Raises:
            AnnotationError: it cannot be counted: two marks are of one capillary.
        """
        reviewed = review(self.folder, Path(CORRECTED), self.report, self.corrected(decisions))
        area = reviewed.fields.area_mm2(self.report.slide.um_per_px)
        return corrected_report(self.report, reviewed, grading_of(self.report), area)

    def figures(self, decisions: Mapping[str, Decision]) -> dict[str, Any]:
        """Counts and grade, by the machine and after these decisions; it raises as `counted` does."""
        report = self.counted(decisions)
        before, now, grading = self.report.result, report.result, grading_of(self.report)
        assert report.corrections is not None  # it is a corrected one
        outside, not_searched = report.corrections.outside_fields, report.corrections.fields_not_searched
        notes = [text for text in report.warnings if text not in self.report.warnings]
        if now.interval:
            low, high = now.interval
            notes.append(f"interval {low:.1f} to {high:.1f} %: it covers {now.interval_covers}")
        if outside:
            notes.append(f"{outside} marked outside evaluated fields: not counted")
        if not_searched:
            words = number_of(not_searched, "field")
            notes.append(f"{words} taken in without a mark in them: not counted, as nobody looked there")
        return {
            "result": now.model_dump(mode="json"),
            "machine": before.model_dump(mode="json"),
            "counts": [f"machine: {grade_sentence(before, grading)}", f"now: {grade_sentence(now, grading)}"],
            "note": "; ".join(notes),
        }

    def sign(self, decisions: Mapping[str, Decision], signature: Signature) -> None:
        """Write the corrected file, and from it the reviewed report, as ``wsi renal review`` writes it.

        Raises:
            WsiError: the slide cannot be read, or the folder not be written.
        """
        content = self.corrected(decisions)
        self.folder.write(CORRECTED, content, durable=True)
        review_slide(self.folder, Path(CORRECTED), signature, slide=self.slide, content=content)

    def list_signed(self) -> None:
        """Show the signed reading in the run's table and pages.

        Raises:
            StoreError: they cannot be written.
        """
        refresh_summary(self.folder.parent)

    def signed(self) -> tuple[str, str]:
        """Hash of the log's line that the signed report names, and who signed; empty where nobody did."""
        return signed_report(self.folder)


def signed_report(folder: Folder) -> tuple[str, str]:
    """Hash of the log's line that a slide's signed report names, and who signed it; empty where there is none."""
    try:
        corrections = read_report(folder.inside(REVIEWED)).corrections
    except StoreError:
        return "", ""
    return (corrections.log, corrections.by) if corrections else ("", "")


def _line(feature: dict[str, Any]) -> str:
    return json.dumps(feature, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
