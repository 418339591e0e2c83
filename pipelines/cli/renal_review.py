"""``wsi renal review`` and ``wsi renal evaluate``: corrections by a person, and the machine's quality."""

from __future__ import annotations

import re
from datetime import date as calendar_date
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.console import err, out, progress
from pipelines.cli.options import Reports
from pipelines.renal.evaluate.evaluation import evaluate, write_counting_errors, write_evaluation
from pipelines.renal.evaluate.truth import read_cohort
from pipelines.renal.read.page import check_pdf
from pipelines.renal.read.report import RenalReport, grade_sentence, grading_of
from pipelines.renal.read.review_run import review_slide
from pipelines.renal.read.run import REVIEWED
from pipelines.renal.read.summary import refresh_summary
from pipelines.runs.review_log import Signature
from wsi.errors import ConfigError, WsiError
from wsi.results.folder import Folder, folder_at

SUFFIXES = (".geojson", ".json", ".geojson.gz")


def review_command(
    folder: Annotated[
        Folder,
        typer.Argument(
            metavar="REPORT",
            parser=folder_at,
            help="A slide's folder in the --out of wsi renal report; with --corrected that --out itself.",
        ),
    ],
    corrected: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The GeoJSON exported from QuPath after correction.")
    ] = None,
    many: Annotated[
        Path | None,
        typer.Option(
            "--corrected", help="A folder with a corrected file NAME.geojson for each reviewed slide."
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="Who reviewed; it stands in the report and in grades.csv.", show_default="not stated"
        ),
    ] = "",
    date: Annotated[
        str | None, typer.Option(metavar="YYYY-MM-DD", help="When it was reviewed.", show_default="today")
    ] = None,
    comment: Annotated[
        str, typer.Option(help="What the reviewer wants to say of the slide.", show_default="none")
    ] = "",
    slide: Annotated[str | None, typer.Option(help="Where the slide is, if it was moved.")] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also print the report.")] = False,
) -> None:
    """Count again what a person corrected: REPORT/reviewed holds the new report, with both grades.

    The machine's own report stays as it is; grades.csv and index.html show both side by side. A capillary may be marked
    by an outline or by a point.

    Examples:

    wsi renal review reports/biopsy corrected.geojson --by "A. Smith" --comment "two partial rings deleted"

    wsi renal review reports --corrected corrected/ --by "A. Smith"
    """
    if (corrected is None) == (many is None):
        raise ConfigError("give either one corrected FILE, or a folder of them with --corrected")
    if date is not None and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", date):
        raise ConfigError(f"--date must be YYYY-MM-DD, got {date!r}")
    try:
        calendar_date.fromisoformat(date or "2000-01-01")
    except ValueError as error:
        raise ConfigError(f"--date {date} is no day of the calendar; give one as YYYY-MM-DD") from error
    if date is not None and calendar_date.fromisoformat(date) > calendar_date.today() + timedelta(days=1):
        raise ConfigError(f"--date {date} lies in the future; give the day of the review")
    if pdf:
        check_pdf()
    signature = Signature(by, date or calendar_date.today().isoformat(), comment)
    if corrected is not None:
        with progress("report") as tick:
            tick(0, 1)
            report = review_slide(folder, corrected, signature, slide=slide, pdf=pdf)
        refresh_summary(folder.parent)
        _say(report, folder)
        return
    assert many is not None  # one of the two was given
    if slide is not None:
        raise ConfigError("--slide goes with one FILE; with --corrected every slide must be where it was")
    raise typer.Exit(_review_many(folder, many, signature, pdf))


def _review_many(out_folder: Folder, corrected: Path, signature: Signature, pdf: bool) -> int:
    """Review every corrected file of a folder; a file that cannot be used does not stop the others."""
    files = corrected_files(out_folder, corrected)
    failed = 0
    try:
        with progress("reviews") as tick:
            for done, (name, path) in enumerate(files.items()):
                tick(done, len(files), name)
                folder = out_folder.inside(name)
                try:
                    _say(review_slide(folder, path, signature, pdf=pdf), folder)
                except WsiError as error:
                    failed += 1
                    err.print(f"{name}: {error}", markup=False)
    finally:  # also after a run that was stopped
        refresh_summary(out_folder)
    unreviewed = sum(
        not out_folder.exists(f"{name}/{REVIEWED}") for name in out_folder.holding("report.json")
    )
    out.print(
        f"{len(files) - failed} of {len(files)} corrected files were counted; slides without a review: {unreviewed}",
        markup=False,
    )
    return 1 if failed else 0


def corrected_files(out_folder: Folder, corrected: Path) -> dict[str, Path]:
    """The corrected file of each slide, by its name.

    Raises:
        ConfigError: there is none, or one of a slide that was not reported.
    """
    slides = out_folder.holding("report.json")
    files: dict[str, Path] = {}
    if out_folder.exists("report.json"):
        raise ConfigError(f"{out_folder} is one slide's report; with --corrected give the folder above it")
    if not corrected.is_dir():
        raise ConfigError(
            f"{corrected} is not a folder; give one with a file NAME.geojson for each reviewed slide"
        )
    for path in sorted(corrected.iterdir()):
        suffix = next((s for s in reversed(SUFFIXES) if path.name.endswith(s)), None)
        if suffix is None or path.name.startswith("."):
            continue
        name = path.name.removesuffix(suffix)
        if name not in slides:
            raise ConfigError(
                f"{path} is of no slide in {out_folder}; name it after one of {', '.join(slides)}"
            )
        if name in files:
            raise ConfigError(f"{path} and {files[name]} are of one slide; keep one")
        files[name] = path
    if not files:
        raise ConfigError(
            f"{corrected} holds no corrected file; name them after the slides, such as NAME.geojson"
        )
    return files


def _say(report: RenalReport, folder: Folder) -> None:
    assert report.machine is not None  # a reviewed report holds both
    assert report.corrections is not None
    c = report.corrections
    grading = grading_of(report)
    out.print(f"{report.slide.name}", markup=False)
    out.print(f"  machine:   {grade_sentence(report.machine, grading)}", markup=False)
    out.print(f"  corrected: {grade_sentence(report.result, grading)}", markup=False)
    out.print(
        f"  capillaries: {c.deleted} deleted, {c.added} added, {c.reclassified} reclassified; "
        f"fields: {c.fields_left_out} left out, {c.fields_taken_in} taken in"
    )
    if c.fields_not_searched:
        err.print(f"  fields taken in without a mark in them, which do not count: {c.fields_not_searched}")
    if c.outside_fields:
        is_single = c.outside_fields == 1
        marks_text = "1 marked capillary lies" if is_single else f"{c.outside_fields} marked capillaries lie"
        err.print(f"  {marks_text} in no evaluated field and {'is' if is_single else 'are'} not counted")
    out.print(f"  {folder.at(f'{REVIEWED}/report.html')} shows it; for research use only", markup=False)


def evaluate_command(
    folder: Reports,
    truth: Annotated[
        Path,
        typer.Option(help="A folder with NAME.geojson (capillaries) and NAME_fields.geojson, or slides.csv."),
    ],
    reviewed: Annotated[
        bool,
        typer.Option(
            "--reviewed", help="Evaluate the readings that a person corrected; all slides need one."
        ),
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(
            help="A detector's folder: write into its card how it miscounts on these slides, which then widens the "
            "intervals of its reports. The slides must be others than it was trained on."
        ),
    ] = None,
) -> None:
    """Compare reports with the truth: average precision, FROC per mm2, F1, percentages, grades, fields.

    Examples:

    wsi renal evaluate reports --truth kidneys

    wsi renal evaluate reports --truth kidneys --reviewed
    """
    if reviewed and into is not None:
        raise ConfigError("--into takes the machine's errors; leave out --reviewed")
    if into is not None and not (into / "card.json").is_file():
        raise ConfigError(
            f"{into} is not a detector's folder; give one of your own, such as runs/capillaries/model"
        )
    cohort = read_cohort(folder, truth, reviewed=reviewed)
    for name in cohort.without_truth:
        err.print(f"{name} has no truth and is left out", markup=False)
    with progress("evaluation") as tick:
        result = evaluate(cohort, tick)
    target = folder.inside("evaluation-reviewed" if reviewed else "evaluation")
    write_evaluation(target, result)
    for line in result.lines():
        out.print(line, markup=False)
    if into is not None:
        write_counting_errors(into, result, cohort)
        out.print(f"{into / 'card.json'} states these errors of {len(result.errors)} slides", markup=False)
    out.print(f"{target} holds figures and curves; for research use only", markup=False)
