"""What a viewer shows: scored slides, reports, or slides as they are, each by an id that is no path."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from shapely.geometry.base import BaseGeometry

from pipelines.camelyon16.read.decisions import ScoredReading, signed_record
from pipelines.camelyon16.read.results import SlideResult, result_of
from pipelines.renal.read.decisions import MachineReading
from pipelines.renal.read.report import RenalReport
from pipelines.renal.read.run import REVIEWED, read_report
from pipelines.renal.read.tables import capillary_rows
from pipelines.runs.run_folder import kind_of
from pipelines.web.review import Reading, Review
from wsi.errors import ConfigError, StoreError, WsiError
from wsi.marks.annotations import read_annotations
from wsi.results.folder import Folder
from wsi.results.heatmap import Heatmap
from wsi.results.store import HeatmapStore
from wsi.slides.manifest import SlideRow
from wsi.slides.slide import Slide
from wsi.slides.source import SlideSource
from wsi.vocabulary import POSITIVE

log = logging.getLogger(__name__)

TRUTH_SUFFIXES = (".xml", ".geojson", ".json", ".geojson.gz")
OPEN = 8  # slides that are held open
Kind = Literal["scored", "report", "slide"]


@dataclass(frozen=True, eq=False, slots=True)
class Entry:
    """One slide, and what is known of it.

    Attributes:
        kind: what the folder holds: scores, a report, or nothing (only the slide).
        source: the slide's file.
        folder: of its results; None for a slide as it is.
        facts: what ``slide.json`` holds; empty for a slide as it is.
        truth: a file of outlines to draw over it.
    """

    name: str
    kind: Kind
    source: SlideSource
    folder: Folder | None = None
    facts: dict[str, Any] | None = None
    truth: Path | None = None

    @property
    def is_there(self) -> bool:
        """Whether the slide is where the result says; of a URL that is not asked."""
        return self.source.is_url or Path(self.source.path).exists()

    def in_list(self) -> dict[str, Any]:
        """The line of this slide in the list."""
        line: dict[str, Any] = {"id": self.name, "kind": self.kind, "score": None, "word": "", "note": ""}
        if self.kind == "scored":
            result = self._result()
            note = "; ".join(text for text in (result.note, self._signed_note()) if text)
            line |= {"score": result.score, "word": result.confidence or "", "note": note}
        elif self.kind == "report":
            reading = self._last_reading()
            shown = reading or self._report()
            result_facts, c = shown.result, shown.corrections
            by = f"corrected by {c.by or 'a person'} on {c.date}" if c else ""
            broken = "its review is broken: this is the machine's reading" if reading is None else ""
            line |= {
                "score": result_facts.percent,
                "word": result_facts.grade or "not assessable",
                "note": "; ".join(text for text in (result_facts.not_assessable, by, broken) if text),
            }
        return line

    def details(self) -> dict[str, Any]:
        """What the page draws over the slide, in level-0 pixels.

        Raises:
            WsiError: a result or the truth is broken.
        """
        marks = {"scored": self._scored, "report": self._reported, "slide": dict[str, Any]}[self.kind]()
        if self.truth is None:
            return marks
        return marks | {"truth": [_rings(o.outline) for o in read_annotations(self.truth)]}

    def _result(self) -> SlideResult:
        return result_of(self.facts or {})

    def _last_reading(self) -> RenalReport | None:
        """The reading that counts: a person's, where there is one; None where that is broken."""
        assert self.folder is not None
        reviewed = self.folder.inside(REVIEWED)
        if not reviewed.exists("report.json"):
            return self._report()
        try:
            return read_report(reviewed)
        except StoreError as error:
            log.warning("%s", error)
            return None

    def _signed_note(self) -> str:
        """Who reviewed a lymph node, when, and what they say; empty where nobody did."""
        assert self.folder is not None
        try:
            signed = signed_record(self.folder)
        except StoreError as error:
            log.warning("%s", error)
            return "its review is broken"
        return f"reviewed by {signed['by']} on {signed['date']}: {signed['label']}" if signed else ""

    def _report(self) -> RenalReport:
        assert self.folder is not None
        return read_report(self.folder)

    def _scored(self) -> dict[str, Any]:
        assert self.folder is not None
        result, heatmap = self._result(), self.heatmap()
        facts = self.facts or {}
        areas = [
            [*o.shape.bounds, 1, o.measurements["probability max"], key, "", "", _rings(o.shape)]
            for key, o in ScoredReading.of(self.folder).areas.items()
        ]
        return {
            "heat": {
                "rows": heatmap.scores.shape[0],
                "cols": heatmap.scores.shape[1],
                "step": [heatmap.placement.step_x, heatmap.placement.step_y],
            },
            "positive": facts.get("positive", ""),
            "model": facts.get("model", ""),
            "demonstration": bool(facts.get("demonstration_model")),
            "threshold": facts.get("lesion_settings", {}).get("threshold", 0.5),
            "lesions": [[lesion.x, lesion.y, lesion.score] for lesion in result.lesions],
            "areas": areas,
        }

    def _reported(self) -> dict[str, Any]:
        assert self.folder is not None
        report = self._report()
        rows = capillary_rows(self.folder, report)
        return {
            "fields": [[f.x, f.y, report.field_side_px, f.why_not, f.id] for f in report.fields],
            "limits": report.models["capillaries"].threshold,
            "capillaries": [
                [
                    *row["geometry"].bounds,
                    int(row["class"] == POSITIVE),
                    row["score"],
                    row["id"],
                    row["doubts"] or "",
                ]
                for row in rows
                if row["counted"]
            ],
            "demonstration": any(model.demonstration for model in report.models.values()),
            "result": report.result.model_dump(mode="json"),
        }

    def heatmap(self) -> Heatmap:
        """The scores of the class that the model looks for.

        Raises:
            StoreError: the heatmap is broken.
        """
        assert self.folder is not None
        store = HeatmapStore.open(self.folder.inside("heatmap.zarr"))
        return store.read(store.spec.classes.index((self.facts or {})["positive"]))


def _rings(shape: BaseGeometry) -> list[list[list[float]]]:
    parts = getattr(shape, "geoms", [shape])
    rings = [ring for polygon in parts for ring in (polygon.exterior, *polygon.interiors)]
    return [[[x, y] for x, y in ring.coords] for ring in rings]


class Collection:
    """The slides that one viewer shows; some of them are held open.

    Attributes:
        reviewer: the name that pages propose for whoever decides; None where nobody may.
    """

    def __init__(self, entries: Iterable[Entry], reviewer: str | None = None) -> None:
        self.reviewer = reviewer
        self._reviews: dict[str, Review] = {}
        self._entries = {entry.name: entry for entry in entries}
        self._lines = [entry.in_list() for entry in self._entries.values()]
        self._open: OrderedDict[str, Slide] = OrderedDict()
        self._lock = threading.Lock()
        self._opening = {name: threading.Lock() for name in self._entries}  # a remote slide may take minutes

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def lines(self) -> list[dict[str, Any]]:
        """The list of slides."""
        return self._lines

    def slide(self, name: str) -> Slide:
        """An open slide; those that were not used for longest are closed.

        Raises:
            SlideError: its file is gone, or broken.
        """
        with self._opening[name]:
            slide = self._open.get(name) or self._entries[name].source.open()
            with self._lock:
                self._open[name] = slide
                self._open.move_to_end(name)
                while len(self._open) > OPEN:
                    self._open.popitem(last=False)  # it closes once no thread reads from it any more
        return slide

    def review(self, name: str) -> Review | None:
        """The review of a result; None of a slide as it is, and of a report without any field.

        Raises:
            WsiError: the result or the log is broken.
        """
        entry = self.fresh(name)
        if entry.folder is None:
            return None
        with self._opening[name]:
            if name not in self._reviews:
                reading = _reading(entry.folder, entry)
                if reading is None:
                    return None
                self._reviews[name] = Review(entry.folder, reading)
            return self._reviews[name]

    def fresh(self, name: str) -> Entry:
        """A slide with its results as they are now: a command may have made them again.

        Raises:
            OSError, ValueError: they are being made, or broken.
        """
        entry = self._entries[name]
        if entry.folder is None:
            return entry
        facts = entry.folder.read_json("slide.json")
        if facts == entry.facts:
            return entry
        new = _entry(name, entry.folder, facts)
        is_same = facts["path"] == (entry.facts or {}).get("path")
        new = replace(new, truth=entry.truth, source=entry.source if is_same else new.source)
        with self._lock:
            self._entries[name] = new
            self._reviews.pop(name, None)
            self._open.pop(name, None)  # it closes once no thread reads from it any more
        self.look_again(name)
        return new

    def look_again(self, name: str) -> None:
        """Make a slide's line in the list anew, after its review was signed."""
        line = self._entries[name].in_list()
        self._lines = [line if other["id"] == name else other for other in self._lines]

    def close(self) -> None:
        """Close all slides."""
        with self._lock, ExitStack() as stack:
            for slide in self._open.values():
                stack.enter_context(slide)
            self._open.clear()


def _reading(folder: Folder, entry: Entry) -> Reading | None:
    if entry.kind == "scored":
        return ScoredReading.of(folder)
    report = MachineReading.of(folder, entry.source.place)
    return report if report.features else None


def entries_of(folder: Folder) -> list[Entry]:
    """The slides of a results folder, or of one slide's folder in it; broken ones are left out.

    Raises:
        StoreError: there is none.
    """
    folder = folder.absolute()
    if folder.exists("slide.json"):
        pairs: Iterable[tuple[str, bytes]] = [(folder.name, folder.read("slide.json"))]
        places = {folder.name: folder}
    else:
        pairs = list(folder.each("slide.json"))
        places = {name: folder.inside(name) for name, _ in pairs}
    entries, broken, segmented = [], [], []
    for name, content in pairs:
        try:
            facts = json.loads(content)
            if kind_of(facts) in ("wsi segment", "wsi features"):
                segmented.append(name)
            else:
                entries.append(_entry(name, places[name], facts))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, WsiError):
            broken.append(name)
    begun = [n for n in folder.folders() if n not in places and _is_begun(folder.inside(n))]
    segments = (
        "segmentations or features, which are not shown here (open index.html, or areas.geojson in QuPath)"
    )
    for names, what in (
        (broken, "broken (wsi verify tells more)"),
        (begun, "not done"),
        (segmented, segments),
    ):
        if names:
            some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            log.warning("%s: these slides are %s, and left out: %s", folder, what, some)
    if not entries:
        raise StoreError(
            f"{folder} holds no finished slide; give the --out of wsi score or wsi renal report, or slides"
        )
    return entries


def _is_begun(folder: Folder) -> bool:
    return folder.exists("heatmap.zarr") or folder.exists("fields.zarr")


def _entry(name: str, folder: Folder, facts: dict[str, Any]) -> Entry:
    kind: Kind = "report" if folder.exists("report.json") else "scored"
    is_anisotropic = bool(facts.get("allow_anisotropic", True))
    source = SlideSource(
        str(facts["path"]), facts.get("mpp"), is_anisotropic, bool(facts.get("stream", False))
    )
    entry = Entry(name, kind, source, folder, facts)
    entry.in_list()  # it raises where a part is missing
    return entry


def with_truth(entries: Iterable[Entry], folder: Path) -> list[Entry]:
    """The same slides, each with the file of outlines that has its name.

    Raises:
        ConfigError: there is none for any slide.
    """
    marked = []
    for entry in entries:
        names = {entry.name, Path(entry.source.label).stem}
        paths = (folder / f"{name}{suffix}" for name in sorted(names) for suffix in TRUTH_SUFFIXES)
        marked.append(replace(entry, truth=next((path for path in paths if path.is_file()), None)))
    if not any(entry.truth for entry in marked):
        raise ConfigError(f"{folder} holds no truth of these slides; name the files NAME.xml or NAME.geojson")
    return marked


def found_again(entries: Iterable[Entry], rows: Sequence[SlideRow]) -> list[Entry]:
    """The same results, those whose slide is not where it was with the slide of the same content among others.

    Files of the same name are looked at first, then all others; a file is known by the hash of its bytes.
    """
    return [entry if entry.is_there else _found_again(entry, rows) for entry in entries]


def _found_again(entry: Entry, rows: Sequence[SlideRow]) -> Entry:
    name, identity = Path(entry.source.label).name, (entry.facts or {}).get("slide_identity")
    for row in sorted(rows, key=lambda row: Path(row.source.label).name != name):
        source = replace(entry.source, path=row.source.path)
        with suppress(WsiError):  # it cannot be read, so it is not the one
            if source.identity() == identity:
                log.info("%s: its slide is %s now", entry.name, source.label)
                return replace(entry, source=source)
    log.warning("%s: its slide is not among those of --slides; only its list is shown", entry.name)
    return entry


def float_bytes(heatmap: Heatmap) -> bytes:
    """Scores as little-endian float32, row by row; NaN where there is none."""
    return np.ascontiguousarray(heatmap.scores, "<f4").tobytes()
