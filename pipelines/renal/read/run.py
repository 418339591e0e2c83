"""The report of one slide, made from its file, and the reading of earlier reports."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.engines import EngineSpec
from models.engines.detect_slide import DetectorSpec, check_spacing
from pipelines.renal.read.page import more_pages, write_report
from pipelines.renal.read.reading import Readers, RenalConfig, Stores, read_slide, run_fingerprint
from pipelines.renal.read.report import RenalReport, machine_report
from pipelines.runs.made_by import fingerprint
from pipelines.runs.run_folder import refuse_other_kind
from pipelines.runs.task import HERE, Executor
from wsi.config import first_mistake
from wsi.errors import ForeignStoreError, SlideError, StoreError
from wsi.files import UNREADABLE, read_record
from wsi.marks.own_mask import mask_identity, read_user_mask
from wsi.results.box_store import SPEC, BoxStore
from wsi.results.folder import Folder, Place, folder_at
from wsi.results.store import HeatmapStore
from wsi.slides.manifest import SlideRow
from wsi.slides.tissue import find_tissue
from wsi.stopwatch import during

log = logging.getLogger(__name__)

REVIEWED = "reviewed"  # folder of the corrected reading
MADE_BY = {"program", "code", "libraries"}  # parts that may differ though the reading is the same
FILES = ("report.json", "report.html", "detections.geojson", "capillaries.csv")


@dataclass(frozen=True, slots=True)
class RenalResult:
    """A slide's report, and the number of its tiles and fields that could not be decoded."""

    report: RenalReport
    unreadable: int

    @property
    def name(self) -> str:
        """The slide's name in outputs."""
        return self.report.slide.name

    @property
    def empty(self) -> bool:
        """Whether no capillary was counted."""
        return self.report.result.percent is None

    def summary(self) -> dict[str, Any]:
        """The slide's entry in ``run.json``."""
        result = self.report.result.model_dump(mode="json")
        return {
            "name": self.name,
            **result,
            "warnings": list(self.report.warnings),
            "unreadable": self.unreadable,
        }

    def noted(self, text: str) -> RenalResult:
        """A copy with a warning that readers of its grade must see."""
        report = self.report.model_copy(update={"warnings": (text, *self.report.warnings)})
        return RenalResult(report, self.unreadable)


def report_slide(
    row: SlideRow,
    name: str,
    readers: Readers,
    place: Place,
    cfg: RenalConfig,
    *,
    executor: Executor = HERE,
    pdf: bool = False,
    overwrite: bool = False,
    tick: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> RenalResult:
    """Read one slide and write its report into a folder; a report that was made with the same settings is kept.

    Args:
        row: the slide, and the user's own tissue mask if there is one.
        name: the slide's name in outputs.
        readers: the networks.
        place: this slide's folder, or its path or URL.
        cfg: how the slide is read.
        executor: who looks at fields and tiles.
        pdf: whether to print the report to PDF, too.
        overwrite: whether to replace a report that was made with other settings.
        tick: called with (steps done, steps, name of the steps).

    Raises:
        WsiError: the slide cannot be read, or the folder belongs to another run.
    """
    folder = folder_at(place)
    folder.refuse_link()
    file_state = row.source.state()
    with row.source.open() as slide:
        check_spacing(slide, readers.card)  # before any pixel is read
        run = run_fingerprint(readers, cfg)
        with during("hashing the slides"):
            source_identity = row.source.identity(lambda done, total: tick(done, total, "bytes"))
        pixels = {
            "slide": source_identity,
            "mpp": slide.mpp,
            "mask": None if row.mask is None else mask_identity(row.mask),
        }
        identity = fingerprint(**pixels, run=run)
        earlier = finished(folder, identity)
        if earlier is not None and all(folder.exists(n) for n in (*FILES, *(["report.pdf"] if pdf else []))):
            return earlier
        stores = Stores.of(folder, pixels, readers, cfg)
        _make_way(folder, stores, identity, overwrite=overwrite)
        mask = (
            find_tissue(slide, cfg.tissue)
            if row.mask is None
            else read_user_mask(row.mask, slide, cfg.tissue.mpp)
        )
        reading = read_slide(
            slide, row.source, name, mask, readers, stores, cfg, executor=executor, tick=tick
        )
        if row.source.state() != file_state:
            raise SlideError(f"{row.source.label} changed while it was read; run the same command again")
        file = Path(row.source.label).name
        report = machine_report(slide, name, file, source_identity, readers, cfg, reading)
        if not _same_report(folder, report):
            set_aside(folder)  # it is a review of the report that is replaced now
        with during("reports"):
            write_report(folder, report, slide, reading.fields, reading.marks, pdf=pdf)
        names = [*FILES, *more_pages(report.result.positive), *(["report.pdf"] if pdf else [])]
        record = {
            "name": name,
            "fingerprint": identity,
            "settings_fingerprint": run,
            "path": row.source.place,
            "mpp": row.source.mpp,
            "allow_anisotropic": row.source.allow_anisotropic,
            "stream": row.source.stream,
            "unreadable": reading.unreadable,
            "slide_identity": source_identity,
            "files": folder.record([*names, stores.fields.name, stores.boxes.name]),
        }
        folder.write_json("slide.json", record, durable=True)
        return RenalResult(report, reading.unreadable)


@dataclass(frozen=True, slots=True)
class ReportJob:
    """What ``wsi renal report`` does with each slide, see `SlideJob`."""

    out: Folder
    fields: EngineSpec
    detector: DetectorSpec
    cfg: RenalConfig
    pdf: bool = False
    overwrite: bool = False

    @property
    def specs(self) -> tuple[EngineSpec, DetectorSpec]:
        """Of the engines that it needs."""
        return self.fields, self.detector

    def run(
        self, row: SlideRow, name: str, executor: Executor, tick: Callable[[int, int, str], None]
    ) -> RenalResult:
        """Report on a slide, see `report_slide`."""
        readers, place = Readers(self.fields.make(), self.detector.make()), self.out.inside(name)
        return report_slide(
            row,
            name,
            readers,
            place,
            self.cfg,
            executor=executor,
            pdf=self.pdf,
            overwrite=self.overwrite,
            tick=tick,
        )


def _make_way(folder: Folder, stores: Stores, identity: str, *, overwrite: bool) -> None:
    """Remove what killed runs left, and with ``overwrite`` what was made otherwise.

    Raises:
        ForeignStoreError: the folder holds another report, which is not to be replaced.
    """
    refuse_other_kind(folder, "wsi renal report")
    folder.discard_partials()
    if overwrite:
        folder.delete("slide.json")  # it says that all files are there
        stores.discard_others()
    elif _made_by(folder) not in (None, identity):
        raise ForeignStoreError(
            f"{folder} holds a report of another slide, model or settings; "
            f"choose another --out, or pass --overwrite"
        )


def set_aside(folder: Folder) -> None:
    """Keep a review of an earlier reading under another name: it is not of the new one, and may be the only copy."""
    if folder.exists(REVIEWED):
        number = 1
        while folder.exists(aside := f"{REVIEWED}-before-{number}"):
            number += 1
        folder.move(REVIEWED, aside)
        log.warning("%s: the earlier review is kept as %s", folder.at(REVIEWED), aside)


def _same_report(folder: Folder, report: RenalReport) -> bool:
    """Whether the folder's report holds the same reading; then its review stays."""
    try:
        earlier, new = (r.model_dump(exclude=MADE_BY) for r in (read_report(folder), report))
        return earlier == new
    except StoreError:
        return False


def _made_by(folder: Folder) -> str | None:
    """The fingerprint of the report in a folder; None without a readable report."""
    try:
        return str(folder.read_json("slide.json")["fingerprint"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    except OSError as error:  # the report may be good
        raise StoreError(
            f"{folder.at('slide.json')} cannot be read ({error.strerror or error}); mend that and run the same "
            f"command again"
        ) from error


def finished(folder: Folder, identity: str) -> RenalResult | None:
    """The report of an earlier run with the same fingerprint."""
    try:
        value = folder.read_json("slide.json")
        if value["fingerprint"] != identity:
            return None
        changes = folder.changes(read_record(value))
        for name, change in changes.items():
            log.warning("%s: %s; the report is made again", folder.at(name), change)
            if not change.startswith(UNREADABLE):
                folder.delete(name)
        gone = {name for name, change in changes.items() if not change.startswith(UNREADABLE)}
        if "fields.zarr/zarr.json" in gone:  # without it the chunks cannot be read
            HeatmapStore.discard(folder.inside("fields.zarr"), unless="")
        if f"capillaries.boxes/{SPEC}" in gone:
            BoxStore.discard(folder.inside("capillaries.boxes"), unless="")
        if changes:
            return None
        return RenalResult(read_report(folder), value["unreadable"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StoreError):
        return None


def read_report(folder: Folder) -> RenalReport:
    """The report in a slide's folder.

    Raises:
        StoreError: there is none, or it is of another version.
    """
    try:
        return RenalReport.model_validate_json(folder.read("report.json"))
    except OSError as error:
        raise StoreError(
            f"{folder} holds no report (report.json cannot be read: {error.strerror or error}); give a slide's "
            f"folder in the --out of wsi renal report"
        ) from error
    except ValidationError as error:
        raise StoreError(
            f"{folder.at('report.json')} is not a report of this version ({first_mistake(error)}); make it again"
        ) from error


def earlier_reports(out: Folder, settings: str, but: Collection[str]) -> list[RenalResult]:
    """Reports that other commands wrote into the same folder with the same settings, by name."""
    results = []
    for name, content in out.each("slide.json"):
        try:
            value = json.loads(content)
            if value["settings_fingerprint"] == settings and name not in but:
                results.append(RenalResult(read_report(out.inside(name)), value["unreadable"]))
        except (OSError, ValueError, KeyError, TypeError, StoreError):
            continue  # not one of ours, or of another version
    return results


def corrected_readings(out: Folder, reports: Sequence[RenalReport]) -> dict[str, RenalReport]:
    """The corrected reading of each slide that has one, by the slide's name."""
    readings = {}
    for report in reports:
        folder = out.inside(report.slide.name).inside(REVIEWED)
        if not folder.exists("report.json"):
            continue
        try:
            readings[report.slide.name] = read_report(folder)
        except StoreError as error:
            log.warning("%s; the tables show the slide as not reviewed", error)
    return readings
