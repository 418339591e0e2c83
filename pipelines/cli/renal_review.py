"""``wsi renal review`` and ``wsi renal evaluate``: a person's corrections, and how good the machine is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.console import err, out, progress
from pipelines.provenance import code_hash, version
from pipelines.renal.evaluation import evaluate, write_evaluation
from pipelines.renal.grading import GradingConfig, percent_text
from pipelines.renal.page import check_pdf, write_report
from pipelines.renal.read import measured
from pipelines.renal.report import GradeFacts, grading_of
from pipelines.renal.review import Reviewed, corrected_report, review
from pipelines.renal.run import REVIEWED, read_report, refresh_index, set_aside
from pipelines.renal.truth import read_cohort
from wsi.errors import ConfigError, StoreError
from wsi.source import SlideSource


def review_command(
    folder: Annotated[Path, typer.Argument(help="A slide's folder in the --out of wsi renal report.")],
    corrected: Annotated[Path, typer.Argument(help="GeoJSON exported from QuPath after correction.")],
    slide: Annotated[str | None, typer.Option(help="The slide, if it was moved.")] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also print the report.")] = False,
) -> None:
    """Count again what a person corrected: FOLDER/reviewed holds the new report, with both grades.

    The machine's own report stays as it is.
    """
    report = read_report(folder)
    if report.reading != "machine":
        raise ConfigError(f"{folder} is a reviewed report; give the folder of the machine's")
    if pdf:
        check_pdf()
    found = review(folder / "detections.geojson", corrected, report)
    source = _source(folder, slide)
    if _identity(source) != report.slide.identity:
        raise ConfigError(f"{source.label} is not the slide of this report; give it with --slide")
    with progress("report") as tick, source.open() as opened:
        tick(0, 1)
        marks = measured(opened, found.fields, found.marks)
        found = Reviewed(found.fields, marks, found.corrections)
        area = found.fields.area_mm2(opened.size, opened.mpp)
        made = {"program": f"slidewright {version()}", "code": code_hash()}
        new = corrected_report(report, found, grading_of(report), area).model_copy(update=made)
        set_aside(folder / REVIEWED)  # an earlier review may be the only copy
        write_report(folder / REVIEWED, new, opened, found.fields, marks, pdf=pdf)
    refresh_index(folder.parent)
    assert new.machine is not None
    c = found.corrections
    grading = grading_of(report)
    out.print(f"machine:   {_sentence(new.machine, grading)}", markup=False)
    out.print(f"corrected: {_sentence(new.result, grading)}", markup=False)
    out.print(
        f"capillaries: {c.deleted} deleted, {c.added} added, {c.reclassified} reclassified; "
        f"fields: {c.fields_left_out} left out, {c.fields_taken_in} taken in"
    )
    if c.fields_not_searched:
        err.print(f"fields taken in without a mark in them, which do not count: {c.fields_not_searched}")
    if c.outside_fields:
        err.print(f"{c.outside_fields} marked capillaries lie in no feasible field and are not counted")
    out.print(f"{folder / REVIEWED / 'report.html'} shows it; for research use only", markup=False)


def _sentence(g: GradeFacts, grading: GradingConfig) -> str:
    percent = "no capillary" if g.percent is None else f"{percent_text(g.percent, grading)} %"
    grade = g.grade or f"not assessable ({g.not_assessable})"
    return f"{grade}, {percent}, {g.positive} positive and {g.negative} negative in {g.fields} fields"


def _identity(source: SlideSource) -> str:
    try:
        return source.identity()
    except OSError as error:
        raise ConfigError(
            f"{source.label} cannot be read ({error.strerror or error}); if the slide was moved, give it with --slide"
        ) from error


def _source(folder: Path, slide: str | None) -> SlideSource:
    """The slide of a report, as it was read."""
    try:
        value = json.loads((folder / "slide.json").read_bytes())
        known = SlideSource(value["path"], value["mpp"], value["allow_anisotropic"])
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{folder / 'slide.json'} is missing or broken; make the report again") from error
    return SlideSource(slide or known.path, known.mpp, known.allow_anisotropic)


def evaluate_command(
    folder: Annotated[Path, typer.Argument(help="The --out of wsi renal report.")],
    truth: Annotated[
        Path,
        typer.Option(help="Folder with NAME.geojson (capillaries) and NAME_fields.geojson, or slides.csv."),
    ],
) -> None:
    """Compare reports with the truth: average precision, FROC per mm2, F1, percentages, grades, fields."""
    cohort = read_cohort(folder, truth)
    for name in cohort.without_truth:
        err.print(f"{name} has no truth and is left out", markup=False)
    with progress("evaluation") as tick:
        result = evaluate(cohort, tick)
    target = folder / "evaluation"
    write_evaluation(target, result)
    for line in result.lines():
        out.print(line, markup=False)
    out.print(f"{target} holds figures and curves; for research use only", markup=False)
