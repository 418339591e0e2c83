"""The summary of a run over many slides: ``grades.csv`` and the pages, with machine and person side by side."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.renal.read.basis import basis_sentences
from pipelines.renal.read.grading import grade_word
from pipelines.renal.read.page import write_index
from pipelines.renal.read.report import RenalReport, grading_of
from pipelines.renal.read.run import RenalResult, corrected_readings, read_report
from pipelines.runs.cohort import Failure
from pipelines.runs.run_folder import note_tables
from wsi.errors import StoreError
from wsi.files import csv_text
from wsi.results.folder import Folder

log = logging.getLogger(__name__)
_COUNTS = ("grade", "grade_word", "percent", "low", "high", "positive", "negative", "fields")
COLUMNS = (
    *("slide", *_COUNTS, "flagged", "grade_without_flagged", "basis", "not_assessable", "warnings"),
    *(f"reviewed_{name}" for name in (*_COUNTS, "by", "date", "comment", "not_assessable")),
)


def write_results(
    out: Folder, results: Sequence[RenalResult], failures: Sequence[Failure], record: dict[str, Any]
) -> Sequence[str]:
    """Write ``grades.csv`` and the pages, and return their names."""
    return write_summary(out, [result.report for result in results], failures, record)


def write_summary(
    out: Folder, reports: Sequence[RenalReport], failures: Sequence[Failure], record: dict[str, Any]
) -> Sequence[str]:
    """Write the table and the pages, with the corrected reading of every slide that has one, and return their names."""
    corrected = corrected_readings(out, reports)
    out.write("grades.csv", grades_csv(reports, corrected))
    return "grades.csv", *write_index(out, reports, failures, record, corrected)


def refresh_summary(out: Folder) -> None:
    """Write table and pages anew after a review; without a run do nothing, and warn if one of its reports is broken."""
    if not out.exists("run.json"):
        return
    with out.alone():
        try:
            record = out.read_json("run.json")
            reports = [
                read_report(out.inside(slide["name"])).model_copy(
                    update={"warnings": tuple(slide["warnings"])}
                )
                for slide in record["slides"]
            ]
            failures = [Failure(**failure) for failure in record["failed"]]
        except (OSError, ValueError, KeyError, TypeError, StoreError) as error:
            log.warning("%s: grades.csv and index.html do not show this review yet (%s)", out, error)
            return
        note_tables(out, write_summary(out, reports, failures, record))


def grades_csv(reports: Sequence[RenalReport], corrected: Mapping[str, RenalReport]) -> str:
    """A table with one row per slide: the machine's reading, then a person's; unknown values are empty, never 0."""
    rows = []
    for report in reports:
        corrected_report = corrected.get(report.slide.name)
        b = report.basis
        machine_cells = [b.flagged, b.grade_without_flagged or "", " ".join(basis_sentences(report))]
        rows.append(
            [
                report.slide.name,
                *_counts(report),
                *machine_cells,
                report.result.not_assessable,
                "; ".join(report.warnings),
                *_reviewed(corrected_report),
            ]
        )
    return csv_text(COLUMNS, rows)


def _counts(report: RenalReport) -> list[object]:
    g = report.result
    ends = ["", ""] if g.interval is None else [f"{v:.2f}" for v in g.interval]
    percent = "" if g.percent is None else f"{g.percent:.4f}"
    word = "" if g.grade is None else grade_word(g.grade, grading_of(report))
    return [g.grade or "", word, percent, *ends, g.positive, g.negative, g.fields]


def _reviewed(report: RenalReport | None) -> list[object]:
    if report is None or report.corrections is None:
        return [""] * (len(_COUNTS) + 4)
    c = report.corrections
    return [*_counts(report), c.by, c.date, c.comment, report.result.not_assessable]
