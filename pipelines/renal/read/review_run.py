"""The review of a slide: a person's corrected file becomes a reviewed report beside the machine's."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from pipelines.renal.read.checks import checked
from pipelines.renal.read.page import more_pages, write_report
from pipelines.renal.read.reading import RenalConfig
from pipelines.renal.read.report import RenalReport, grading_of
from pipelines.renal.read.review import Reviewed, corrected_report, review
from pipelines.renal.read.run import FILES, REVIEWED, read_report, set_aside
from pipelines.runs.made_by import code_hash, version
from pipelines.runs.review_log import Signature
from wsi.errors import ConfigError, SlideError, StoreError
from wsi.results.folder import Folder, Place, folder_at
from wsi.slides.source import SlideSource

RECORD = "files.json"  # size and hash of a review's files: it may be the only copy of a person's work


def review_slide(
    place: Place,
    corrected: Path,
    signature: Signature,
    *,
    slide: str | None = None,
    pdf: bool = False,
    content: bytes | None = None,
) -> RenalReport:
    """Count again what a person corrected, and write ``FOLDER/reviewed``; the machine's own report stays as it is.

    Args:
        place: a slide's folder, or its path or URL, in the ``--out`` of ``wsi renal report``.
        corrected: GeoJSON exported from QuPath after correction.
        signature: name, date and comment of the reviewer.
        slide: the slide's path, if it was moved.
        pdf: whether to print the report to PDF, too.
        content: bytes of the corrected file where they are at hand.

    Raises:
        WsiError: the folder holds no report of the machine's, the file is not of this slide, or cannot be counted.
    """
    folder = folder_at(place)
    report = read_report(folder)
    if report.reading != "machine":
        raise ConfigError(f"{folder} is a reviewed report; give the folder of the machine's")
    reviewed = review(folder, corrected, report, content)
    source = _source(folder, slide)
    if _identity(source) != report.slide.identity:
        raise ConfigError(f"{source.label} is not the slide of this report; give it with --slide")
    with source.open() as open_slide:
        marks = checked(open_slide, reviewed.fields, reviewed.marks, _settings(report).checks)
        corrections = reviewed.corrections.model_copy(update=asdict(signature))
        reviewed = Reviewed(reviewed.fields, marks, corrections)
        area = reviewed.fields.area_mm2(open_slide.mpp)
        program_facts = {"program": f"slidewright {version()}", "code": code_hash()}
        new_report = corrected_report(report, reviewed, grading_of(report), area).model_copy(
            update=program_facts
        )
        target = folder.inside(REVIEWED)
        set_aside(folder)  # an earlier review may be the only copy
        write_report(target, new_report, open_slide, reviewed.fields, marks, pdf=pdf)
    names = [*FILES, *more_pages(new_report.result.positive), *(["report.pdf"] if pdf else [])]
    target.write_json(RECORD, {"files": target.record(names)}, durable=True)
    return new_report


def _settings(report: RenalReport) -> RenalConfig:
    return RenalConfig.model_validate_json(json.dumps(report.settings))


def _identity(source: SlideSource) -> str:
    try:
        return source.identity()
    except SlideError as error:
        raise ConfigError(
            f"{source.label} cannot be read; if the slide was moved, give it with --slide ({error})"
        ) from error


def _source(folder: Folder, slide: str | None) -> SlideSource:
    """The slide of a report, opened with the same settings as for the report."""
    try:
        value = folder.read_json("slide.json")
        recorded = SlideSource(
            value["path"], value["mpp"], value["allow_anisotropic"], value.get("stream", False)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder.at('slide.json')} is missing or broken; make the report again") from error
    return replace(recorded, path=slide or recorded.path)
