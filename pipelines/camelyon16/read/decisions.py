"""A person's decisions on the areas of a scored slide, and the truth that comes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from pipelines.camelyon16.read.results import OUTLINE_COLOUR, group_of
from pipelines.runs.made_by import version
from pipelines.runs.review_log import Decision, Groups, Ring, Signature, shape_of
from wsi.errors import AnnotationError, StoreError
from wsi.files import csv_text
from wsi.marks.geojson import MarkedObject, objects_of
from wsi.results.export import Feature, feature_id, geojson
from wsi.results.folder import Folder
from wsi.slides.manifest import COLUMNS
from wsi.text import number_of
from wsi.vocabulary import NORMAL

LESIONS, TRUTH, RECORD, REVIEWED = "lesions.geojson", "truth.geojson", "review.json", "reviewed"
TABLE = "reviewed_slides.csv"  # beside the slides' folders: signed slides with their truth, to train with


@dataclass
class ScoredReading:
    """A scored slide, and its areas at or above the threshold, of which a person decides one after another.

    Attributes:
        folder: of the slide's results.
        facts: what ``slide.json`` holds.
        content: bytes of ``lesions.geojson``.
        areas: by id.
    """

    folder: Folder
    facts: dict[str, Any]
    content: bytes
    areas: dict[str, MarkedObject]

    @classmethod
    def of(cls, folder: Folder) -> ScoredReading:
        """Read a slide's results.

        Raises:
            AnnotationError: they are broken.
        """
        try:
            facts, content = folder.read_json("slide.json"), folder.read(LESIONS)
            features = [
                f for f in json.loads(content)["features"] if f["properties"]["objectType"] == "annotation"
            ]
            objects = objects_of(Path(folder.at(LESIONS)), {"features": features})
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise AnnotationError(
                f"{folder.at(LESIONS)} is missing or broken ({error!r}); score the slide again"
            ) from error
        return cls(folder, facts, content, {o.id: o for o in objects})

    @property
    def identity(self) -> str:
        """Hash of the slide's file."""
        return str(self.facts.get("slide_identity", ""))

    @property
    def groups(self) -> Groups:
        """The classes that a person gives."""
        return Groups(yes=group_of(str(self.facts["positive"])), no="", out=NORMAL)

    def objects(self) -> list[str]:
        """Ids of the areas that a person looks through."""
        return list(self.areas)

    def decision(self, object_id: str, group: str, ring: Ring, decided: Mapping[str, Decision]) -> Decision:
        """A decision that can be used.

        Args:
            object_id: empty for an area that was drawn just now.
            group: its class from now on.
            ring: the outline of such an area, in level-0 pixels; else empty.
            decided: the decisions so far.

        Raises:
            AnnotationError: there is no such area, or it cannot be of this class.
        """
        groups = self.groups
        if not object_id:
            width, height = self.facts["size"]
            shape = shape_of(ring, (int(width), int(height)), float(self.facts["mpp"]))
            object_id = feature_id(f"{self.facts['name']} drawn {np.array(shape.bounds).round(2).tolist()}")
            if group != groups.yes or object_id in decided:
                raise AnnotationError(f"what is drawn is {groups.yes}, and is drawn once")
            return Decision(object_id, "", group, ring)
        is_drawn = object_id in decided and object_id not in self.areas
        if (object_id not in self.areas and not is_drawn) or ring:
            raise AnnotationError(f"there is no area {object_id[:40]!r} on this slide; load the page again")
        if group not in (groups.yes, groups.out):
            raise AnnotationError(f"an area cannot be {group[:40]!r}; give {groups.yes} or {groups.out}")
        machine = "" if is_drawn else groups.yes
        return Decision(object_id, machine, group, decided[object_id].ring if is_drawn else ())

    def figures(self, decisions: Mapping[str, Decision]) -> dict[str, Any]:
        """Number and size of the areas, by the machine and after these decisions."""
        machine = list(self.areas.values())
        features = self._features(decisions)
        rejected = sum(d.group == self.groups.out and not d.ring for d in decisions.values())
        drawn = sum(d.group == self.groups.yes and bool(d.ring) for d in decisions.values())
        result = {"areas": len(features), "rejected": rejected, "drawn": drawn}
        counts = [
            f"machine: {self._size([o.shape for o in machine])}",
            f"now: {self._size([f.shape for f in features])}",
        ]
        return {"result": result, "machine": {"areas": len(machine)}, "counts": counts, "note": ""}

    def _size(self, shapes: list[Any]) -> str:
        mm2 = shapely.union_all(shapes).area * float(self.facts["mpp"]) ** 2 / 1e6  # drawn ones may overlap
        return f"{number_of(len(shapes), 'area')}, {mm2:.3f} mm2"

    def _features(self, decisions: Mapping[str, Decision]) -> list[Feature]:
        """The areas that are of the looked-for class after these decisions."""
        group = self.groups.yes
        shapes = {
            key: o.shape
            for key, o in self.areas.items()
            if key not in decisions or decisions[key].group == group
        }
        shapes |= {
            key: shapely.Polygon(d.ring) for key, d in decisions.items() if d.ring and d.group == group
        }
        return [
            Feature(key, shape, "annotation", f"{group} {i}", group, OUTLINE_COLOUR, id=key)
            for i, (key, shape) in enumerate(shapes.items(), start=1)
        ]

    def sign(self, decisions: Mapping[str, Decision], signature: Signature) -> None:
        """Write ``reviewed/truth.geojson`` and who signed it.

        Raises:
            StoreError: they cannot be written.
        """
        features, target = self._features(decisions), self.folder.inside(REVIEWED)
        target.write(TRUTH, geojson(features, (0, 0)), durable=True)
        record = {
            "program": f"slidewright {version()}",
            "intended_use": "for research use only; not for diagnosis",
            "slide": self.facts["name"],
            "slide_identity": self.identity,
            **asdict(signature),
            **self.figures(decisions)["result"],
            "label": self.groups.yes.lower() if features else NORMAL,
        }
        target.write_json(RECORD, record, durable=True)
        target.write_json("files.json", {"files": target.record([TRUTH, RECORD])}, durable=True)

    def list_signed(self) -> None:
        """Write the table of all signed slides of the run.

        Raises:
            StoreError: it cannot be written.
        """
        out = self.folder.parent
        with out.alone():
            out.write(TABLE, _table(out))

    def signed(self) -> tuple[str, str]:
        """Hash of the log's line that the signature names, and who signed; empty where nobody did."""
        return signed_truth(self.folder)


def signed_record(folder: Folder) -> dict[str, Any] | None:
    """What a person signed of a scored slide; None where nobody did, or of another slide that had this name before.

    Raises:
        StoreError: it is broken.
    """
    if not folder.exists(f"{REVIEWED}/{RECORD}"):
        return None
    try:
        record, facts = dict(folder.read_json(f"{REVIEWED}/{RECORD}")), folder.read_json("slide.json")
        if record["slide_identity"] != facts.get("slide_identity", ""):
            return None
        return record | {key: str(record[key]) for key in ("by", "date", "label", "log")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{folder.at(REVIEWED)} is broken ({error!r}); sign the slide again") from error


def signed_truth(folder: Folder) -> tuple[str, str]:
    """Hash of the log's line that a slide's signature names, and who signed it; empty where there is none."""
    try:
        record = signed_record(folder) or {}
    except StoreError:
        return "", ""
    return record.get("log", ""), record.get("by", "")


def _table(out: Folder) -> str:
    """A table of slides for ``wsi train``: every signed slide of a run with its truth."""
    rows = []
    for name in out.holding(f"{REVIEWED}/{RECORD}"):
        folder = out.inside(name)
        record = signed_record(folder)
        if record is None:
            continue
        facts = folder.read_json("slide.json")
        is_normal = record["label"] == NORMAL
        truth = "" if is_normal else folder.absolute().at(f"{REVIEWED}/{TRUTH}")
        row = {
            "path": facts["path"],
            "mpp": facts["mpp"],
            "truth": truth,
            "label": record["label"],
        }
        rows.append([(row | {"split": "train"}).get(column, "") for column in COLUMNS])
    return csv_text(COLUMNS, rows)
