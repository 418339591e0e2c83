"""The command line: parse, call, print. Exit codes: 0 well, 1 some slide failed, 2 could not start."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pipelines import provenance
from pipelines.cli import (
    camelyon16,
    export,
    forest,
    models,
    phantom,
    renal,
    renal_review,
    score,
    slides,
    submission,
    train,
    train_renal,
)
from pipelines.cli.console import err, out, set_up_logging
from wsi.errors import WsiError

INTERRUPTED = 130  # typer's exit code for Ctrl-C, the shell's 128 + SIGINT

app = typer.Typer(
    name="wsi",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reads gigapixel pathology slides and says what is on them, and where. For research use only.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"slidewright {provenance.version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Reads gigapixel pathology slides and says what is on them, and where. For research use only."""


app.command("score")(score.score)
app.command("info")(slides.info)
app.command("doctor")(slides.doctor)
app.add_typer(export.app, name="export")
app.add_typer(phantom.app, name="phantom")
train.app.command("fields")(train_renal.fields)
train.app.command("capillaries")(train_renal.capillaries)
app.add_typer(train.app, name="train")
app.add_typer(models.app, name="models")
camelyon16.app.command("submit")(submission.submit_command)
camelyon16.app.command("check")(submission.check_command)
camelyon16.app.command("forest")(forest.forest_command)
app.add_typer(camelyon16.app, name="camelyon16")
renal.app.command("review")(renal_review.review_command)
renal.app.command("evaluate")(renal_review.evaluate_command)
app.add_typer(renal.app, name="renal")


def main() -> None:
    """Run, and turn what a user can mend into one sentence and an exit code."""
    set_up_logging()
    try:
        app()
    except WsiError as error:
        err.print(f"wsi: {error}", markup=False)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            again = (
                "; run the same command again to go on where it stopped"
                if sys.argv[1:2] == ["score"] or sys.argv[1:3] == ["renal", "report"]
                else ""
            )
            err.print(f"wsi: stopped{again}")
        raise
    except OSError as error:  # a full disk or a missing right, where no better sentence was found
        err.print(f"wsi: {error}; check space and rights", markup=False)
        sys.exit(2)
