"""``wsi camelyon16 submit`` and ``check``: the challenge's files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.camelyon16.benchmark.cases import Selection, read_truth_table
from pipelines.camelyon16.benchmark.predictions import read_predictions
from pipelines.camelyon16.benchmark.submission import check_submission, write_submission
from pipelines.cli.camelyon16 import (
    DatasetName,
    Exclude,
    OthersNormal,
    ScoreRule,
    SlideModel,
    Slides,
    rescored,
    rules,
)
from pipelines.cli.console import err, out
from pipelines.cli.options import Results
from pipelines.runs.cohort import gather
from pipelines.runs.made_by import code_hash, version
from wsi.errors import ConfigError
from wsi.results.folder import Folder, folder_at


def submit_command(
    results: Results,
    folder: Annotated[Folder, typer.Option("--out", "-o", parser=folder_at, help="The folder to write.")],
    subset: Annotated[bool, typer.Option("--subset", help="Leave out slides that failed.")] = False,
    slide_score: ScoreRule = "maximum",
    slide_model: SlideModel = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier submission in OUT.")
    ] = False,
) -> None:
    """Write the challenge's files: lesions/NAME.csv of every slide, also the empty ones, and classification.csv.

    Examples:
    wsi camelyon16 submit results -o submission
    """
    predictions = rescored(read_predictions(results), slide_score, slide_model)
    made_by = f"slidewright {version()}, code {code_hash()}; slide score: {predictions.score_rule}"
    models = ", ".join(m["name"] for m in predictions.made_by.get("models", []))
    count = write_submission(
        folder,
        predictions,
        subset=subset,
        made_by=f"{made_by}; models: {models or 'not known'}",
        overwrite=overwrite,
    )
    out.print(
        f"{count} slide{'' if count == 1 else 's'} in {folder}; check it with: "
        f"wsi camelyon16 check {folder} --truth TRUTH",
        markup=False,
    )


def check_command(
    submission: Annotated[
        Folder,
        typer.Argument(metavar="SUBMISSION", parser=folder_at, help="The folder of a submission."),
    ],
    truth: Annotated[
        Path | None,
        typer.Option(help="The truth, as for wsi camelyon16 evaluate: it tells which slides must be there."),
    ] = None,
    slides: Slides = None,
    dataset: DatasetName = "camelyon16",
    exclude: Exclude = None,
    others_normal: OthersNormal = False,
) -> None:
    """Say what is missing or out of bounds in a submission; exit code 1 if anything is.

    Examples:
    wsi camelyon16 check submission --truth CAMELYON16/testing
    """
    if not submission.files():
        raise ConfigError(f"{submission} is not a folder with files; give the --out of wsi camelyon16 submit")
    table = None if truth is None else read_truth_table(truth)
    normal_slides_known = table is None or None in table.files.values()
    rows = gather(slides, mpp=None, allow_anisotropic=False) if slides else []
    selection = Selection(rules(dataset), tuple(exclude or ()), others_normal=others_normal)
    problems = check_submission(submission, table, selection, rows)
    for sentence in problems:
        err.print(sentence, markup=False)
    if table is None and not rows:
        err.print("whether slides are missing is not known: pass --truth or --slides", markup=False)
    elif table is not None and None not in table.files.values():
        err.print(
            "which normal slides must be there is not known: reference.csv or slides.csv would say",
            markup=False,
        )
    if not rows:
        err.print("whether coordinates lie on their slides is not known: pass --slides", markup=False)
    count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
    verdict = "all is well" if rows and normal_slides_known else "all is well as far as it was checked"
    out.print(f"{submission}: {count if problems else verdict}", markup=False)
    raise typer.Exit(1 if problems else 0)
