"""A submission in the challenge's form, and what is wrong with one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from pipelines.camelyon16.benchmark.cases import NO_RULES, Selection, TruthTable
from pipelines.camelyon16.benchmark.predictions import (
    LESIONS_FOLDER,
    SCORES_FILE,
    Predictions,
    read_predictions,
    slide_name,
    submitted_files,
    with_slides,
)
from pipelines.camelyon16.benchmark.truth import check_detections
from wsi.errors import ConfigError, StoreError, WsiError
from wsi.results.folder import Folder
from wsi.slides.manifest import SlideRow

MADE_BY = "made_by.txt"


def write_submission(
    folder: Folder, predictions: Predictions, *, subset: bool, made_by: str, overwrite: bool = False
) -> int:
    """Write ``lesions/NAME.csv`` of every slide, also of empty ones, and ``classification.csv``; return their number.

    Args:
        folder: the folder to write.
        predictions: results of ``wsi score``.
        subset: leave out slides that failed or were not scored.
        made_by: a line that says what made it; it goes into a file of its own, as the CSVs have no room for it.
        overwrite: replace an earlier submission in the folder.

    Raises:
        ConfigError: a slide has no score or could not be scored, or the run did not finish.
        StoreError: the folder holds something else, or a submission that is not to be replaced.
    """
    unscored = [p.name for p in predictions.slides if p.score is None] + sorted(predictions.failed)
    if predictions.state != "finished" and not subset:
        raise ConfigError(
            f"the run of wsi score did not finish ({predictions.state}), so slides may be missing; run it again, "
            f"or pass --subset to submit what there is"
        )
    if unscored and not subset:
        raise ConfigError(
            f"{', '.join(unscored)}: not scored, and a missing file changes the benchmark's denominators; score all "
            f"slides, or pass --subset to leave them out"
        )
    if folder.files() and not folder.exists(MADE_BY):
        raise StoreError(f"{folder} holds files of something else; choose another --out")
    if folder.exists(MADE_BY) and not overwrite:
        raise StoreError(f"{folder} holds a submission already; choose another --out, or pass --overwrite")
    for stale in submitted_files(folder):
        folder.delete(stale)
    usable = [p for p in predictions.slides if p.score is not None]
    for p in usable:
        lines = [f"{score:.6f},{x:.0f},{y:.0f}\n" for score, (x, y) in zip(p.scores, p.points, strict=True)]
        folder.write(f"{LESIONS_FOLDER}/{p.name}.csv", "".join(lines))
    folder.write(SCORES_FILE, "".join(f"{p.name},{p.score:.6f}\n" for p in usable))
    folder.write(MADE_BY, f"{made_by}\nFor research use only.\n")
    return len(usable)


def check_submission(
    folder: Folder, table: TruthTable | None, selection: Selection, rows: Sequence[SlideRow]
) -> list[str]:
    """Problems of a submission, a sentence for each; none where all is well.

    Args:
        folder: the submission.
        table: the slides that must be there; None takes those of ``rows``, if there are any.
        selection: the same rules by name as in an evaluation.
        rows: the slides themselves, for their sizes; without them coordinates are not checked against the sizes.
    """
    problems: list[str] = []
    if folder.exists("run.json"):
        return [f"{folder} is the --out of wsi score, not a submission; run wsi camelyon16 submit first"]
    try:
        predictions = read_predictions(folder, problems)
    except WsiError as error:
        return [str(error)]
    stems = [slide_name(PurePosixPath(file).stem) for file in submitted_files(folder)]
    submitted = {name.casefold(): name for name in stems}
    submitted |= {p.name.casefold(): p.name for p in predictions.slides}
    slides = {row.source.name.casefold(): row.source.name for row in rows}
    expected = slides if table is None else table.names
    rules = selection.dataset if table is not None and table.by_name else NO_RULES
    excluded = {name.casefold() for name in selection.exclude}
    required = {k: n for k, n in expected.items() if k not in excluded and rules.why_excluded(n) is None}
    problems += [
        f"{name} has no file; a slide without lesions needs an empty one"
        for key, name in sorted(required.items())
        if key not in submitted
    ]
    for key, name in sorted(submitted.items()) if expected else ():
        if key not in expected and not selection.others_normal and not rules.is_normal(name):
            problems.append(f"{name} is none of the slides that must be there")
    if not folder.exists(SCORES_FILE):
        problems.append(f"{folder.at(SCORES_FILE)} is missing: the slides have no probability")
    if slides:
        problems += [
            f"{n} is not among --slides: its coordinates are not checked"
            for k, n in submitted.items()
            if k not in slides
        ]
    try:
        predictions = with_slides(predictions, rows, every=False) if rows else predictions
    except WsiError as error:
        problems.append(str(error))
    for p in predictions.slides:
        try:
            check_detections(p.points, p.size, p.name)
        except WsiError as error:
            problems.append(str(error))
    return problems
