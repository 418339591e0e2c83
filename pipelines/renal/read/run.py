"""The report of one slide, made from its file, and the reading of earlier reports."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.engines.detect_slide import check_spacing
from pipelines.renal.read.page import more_pages, write_report
from pipelines.renal.read.reading import Readers, RenalConfig, Stores, read_slide, run_fingerprint
from pipelines.renal.read.report import RenalReport, machine_report
from pipelines.runs.made_by import fingerprint
from wsi.config import first_mistake
from wsi.errors import ForeignStoreError, SlideError, StoreError
from wsi.files import (
    UNREADABLE,
    changed_files,
    discard_inside,
    discard_partials,
    read_record,
    record_files,
    write_json,
)
from wsi.marks.own_mask import mask_identity, read_user_mask
from wsi.results.box_store import SPEC, BoxStore
from wsi.results.store import HeatmapStore
from wsi.slides.manifest import SlideRow
from wsi.slides.tissue import find_tissue

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
    folder: Path,
    cfg: RenalConfig,
    *,
    pdf: bool = False,
    overwrite: bool = False,
    tick: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> RenalResult:
    """Read one slide and write its report into a folder; a report that was made with the same settings is kept.

    Args:
        row: the slide, and the user's own tissue mask if there is one.
        name: the slide's name in outputs.
        readers: the networks.
        folder: this slide's folder.
        cfg: how the slide is read.
        pdf: whether to print the report to PDF, too.
        overwrite: whether to replace a report that was made with other settings.
        tick: called with (steps done, steps, name of the steps).

    Raises:
        WsiError: the slide cannot be read, or the folder belongs to another run.
    """
    with row.source.open() as slide:
        check_spacing(slide, readers.card)  # before any pixel is read
        run = run_fingerprint(readers, cfg)
        file_state = row.source.state()
        source_identity = row.source.identity(lambda done, total: tick(done, total, "bytes"))
        pixels = {
            "slide": source_identity,
            "mpp": slide.mpp,
            "mask": None if row.mask is None else mask_identity(row.mask),
        }
        identity = fingerprint(**pixels, run=run)
        earlier = finished(folder, identity)
        if earlier is not None and all(
            (folder / n).exists() for n in (*FILES, *(["report.pdf"] if pdf else []))
        ):
            return earlier
        stores = Stores.of(folder, pixels, readers, cfg)
        _make_way(folder, stores, identity, overwrite=overwrite)
        mask = (
            find_tissue(slide, cfg.tissue)
            if row.mask is None
            else read_user_mask(row.mask, slide, cfg.tissue.mpp)
        )
        reading = read_slide(slide, name, mask, readers, stores, cfg, tick=tick)
        if row.source.state() != file_state:
            raise SlideError(f"{row.source.label} changed while it was read; run the same command again")
        file = Path(row.source.label).name
        report = machine_report(slide, name, file, source_identity, readers, cfg, reading)
        if not _same_report(folder, report):
            set_aside(folder / REVIEWED)  # it is a review of the report that is replaced now
        write_report(folder, report, slide, reading.fields, reading.marks, pdf=pdf)
        names = [*FILES, *more_pages(report.result.positive), *(["report.pdf"] if pdf else [])]
        record = {
            "name": name,
            "fingerprint": identity,
            "settings_fingerprint": run,
            "path": row.source.place,
            "mpp": row.source.mpp,
            "allow_anisotropic": row.source.allow_anisotropic,
            "unreadable": reading.unreadable,
            "slide_identity": source_identity,
            "files": record_files(folder, [*names, stores.fields.name, stores.boxes.name]),
        }
        write_json(folder / "slide.json", record, durable=True)
        return RenalResult(report, reading.unreadable)


def _make_way(folder: Path, stores: Stores, identity: str, *, overwrite: bool) -> None:
    """Remove what killed runs left, and with ``overwrite`` what was made otherwise.

    Raises:
        ForeignStoreError: the folder holds another report, which is not to be replaced.
    """
    discard_partials(folder)
    if overwrite:
        (folder / "slide.json").unlink(missing_ok=True)  # it says that all files are there
        stores.discard_others()
    elif _made_by(folder) not in (None, identity):
        raise ForeignStoreError(
            f"{folder} holds a report of another slide, model or settings; "
            f"choose another --out, or pass --overwrite"
        )


def set_aside(reviewed: Path) -> None:
    """Keep a review of an earlier reading under another name: it is not of the new one, and may be the only copy."""
    if reviewed.exists():
        number = 1
        while (aside := reviewed.with_name(f"{reviewed.name}-before-{number}")).exists():
            number += 1
        reviewed.rename(aside)
        log.warning("%s: the earlier review is kept as %s", reviewed, aside.name)


def _same_report(folder: Path, report: RenalReport) -> bool:
    """Whether the folder's report holds the same reading; then its review stays."""
    try:
        earlier, new = (r.model_dump(exclude=MADE_BY) for r in (read_report(folder), report))
        return earlier == new
    except StoreError:
        return False


def _made_by(folder: Path) -> str | None:
    """The fingerprint of the report in a folder; None without a readable report."""
    try:
        return str(json.loads((folder / "slide.json").read_bytes())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def finished(folder: Path, identity: str) -> RenalResult | None:
    """The report of an earlier run with the same fingerprint."""
    try:
        value = json.loads((folder / "slide.json").read_bytes())
        if value["fingerprint"] != identity:
            return None
        changes = changed_files(folder, read_record(value))
        for name, change in changes.items():
            log.warning("%s: %s; the report is made again", folder / name, change)
            if not change.startswith(UNREADABLE):
                discard_inside(folder, name)
        gone = {name for name, change in changes.items() if not change.startswith(UNREADABLE)}
        if "fields.zarr/zarr.json" in gone:  # without it the chunks cannot be read
            HeatmapStore.discard(folder / "fields.zarr", unless="")
        if f"capillaries.boxes/{SPEC}" in gone:
            BoxStore.discard(folder / "capillaries.boxes", unless="")
        if changes:
            return None
        return RenalResult(read_report(folder), value["unreadable"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StoreError):
        return None


def read_report(folder: Path) -> RenalReport:
    """The report in a slide's folder.

    Raises:
        StoreError: there is none, or it is of another version.
    """
    path = folder / "report.json"
    try:
        return RenalReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StoreError(
            f"{folder} holds no report ({path.name} cannot be read: {error.strerror}); give a slide's folder in the "
            f"--out of wsi renal report"
        ) from error
    except ValidationError as error:
        raise StoreError(
            f"{path} is not a report of this version ({first_mistake(error)}); make it again"
        ) from error


def earlier_reports(out: Path, settings: str, but: Collection[str]) -> list[RenalResult]:
    """Reports that other commands wrote into the same folder with the same settings, by name."""
    results = []
    for path in sorted(out.glob("*/slide.json")):
        try:
            value = json.loads(path.read_bytes())
            if value["settings_fingerprint"] == settings and path.parent.name not in but:
                results.append(RenalResult(read_report(path.parent), value["unreadable"]))
        except (OSError, ValueError, KeyError, TypeError, StoreError):
            continue  # not one of ours, or of another version
    return results


def corrected_readings(out: Path, reports: Sequence[RenalReport]) -> dict[str, RenalReport]:
    """The corrected reading of each slide that has one, by the slide's name."""
    readings = {}
    for report in reports:
        folder = out / report.slide.name / REVIEWED
        if not (folder / "report.json").exists():
            continue
        try:
            readings[report.slide.name] = read_report(folder)
        except StoreError as error:
            log.warning("%s; the tables show the slide as not reviewed", error)
    return readings
