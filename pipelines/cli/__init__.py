"""The command line: it parses arguments, calls the program and prints.

Exit codes: 0 all is well; 1 some slide or region could not be read, or nothing was scored; 2 the command could not
start, or a defect; 130, 143 and 129 the command was stopped by Ctrl-C, SIGTERM and SIGHUP.
"""

from __future__ import annotations

import logging
import sys
import traceback
from importlib import metadata
from typing import Annotated, NoReturn

import typer

from pipelines.cli.console import Stopped, err, out, set_up_logging, stop_on_signals
from pipelines.cli.lazy import HELP, LazyGroup
from wsi.errors import WsiError

INTERRUPTED = 130  # typer's exit code for Ctrl-C, the shell's 128 + SIGINT

app = typer.Typer(
    name="wsi",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=HELP,
    help="Reads gigapixel pathology slides and says what is on them, and where. For research use only.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"slidewright {metadata.version('slidewright')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Reads gigapixel pathology slides and says what is on them, and where. For research use only."""


def main() -> None:
    """Run a command, and turn an error that the user can mend into one sentence and an exit code."""
    set_up_logging()
    stop_on_signals()
    try:
        app()
    except WsiError as error:
        _fail(f"{error}")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            advice = (
                "; run the same command again to go on where it stopped"
                if sys.argv[1:2] == ["score"] or sys.argv[1:3] == ["renal", "report"]
                else ""
            )
            err.print(f"wsi: stopped{advice}")
            sys.exit(128 + Stopped.signum)
        raise
    except BrokenPipeError:  # the program that read our output has ended, as `head` does
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # a full disk or a missing right, where nothing raised a better message
        _fail(f"{error}; check space and rights")
    except MemoryError as error:
        _fail(
            f"memory ran out ({error or 'no more is given'}); end other programs, or raise the limit (ulimit -v)"
        )
    except ImportError as error:
        _fail(
            f"a library cannot be loaded ({error}); where memory is limited (ulimit -v), raise the limit, else install "
            f"slidewright again"
        )
    except Exception as error:
        if logging.getLogger("pipelines").isEnabledFor(logging.DEBUG):
            err.print(traceback.format_exc(), markup=False)
        _fail(
            f"{type(error).__name__}: {error} (a defect; please report it with the command, and what the same command "
            f"with --verbose prints)"
        )


def _fail(sentence: str) -> NoReturn:
    err.print(f"wsi: {sentence}", markup=False)
    sys.exit(2)
