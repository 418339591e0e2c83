"""Commands that are imported when they are asked for: `wsi --version` must not wait for a network's libraries."""

from __future__ import annotations

import functools
import inspect
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperGroup
from typer.main import get_command

from pipelines.cli.console import be_quiet, be_verbose

HELP = {"help_option_names": ["-h", "--help"]}

# name: module, what it holds (a function, or a group's app), and what else is added to a group
SOURCES: dict[str, tuple[str, str, dict[str, tuple[str, str]]]] = {
    "score": ("pipelines.cli.score", "score", {}),
    "score-patches": ("pipelines.cli.patches", "patches_command", {}),
    "info": ("pipelines.cli.slides", "info", {}),
    "doctor": ("pipelines.cli.slides", "doctor", {}),
    "verify": ("pipelines.cli.verify", "verify", {}),
    "export": ("pipelines.cli.export", "app", {}),
    "phantom": ("pipelines.cli.phantom", "app", {}),
    "train": (
        "pipelines.cli.train",
        "app",
        {
            "fields": ("pipelines.cli.train_renal", "fields"),
            "capillaries": ("pipelines.cli.train_renal", "capillaries"),
        },
    ),
    "models": ("pipelines.cli.models", "app", {}),
    "camelyon16": (
        "pipelines.cli.camelyon16",
        "app",
        {
            "submit": ("pipelines.cli.submission", "submit_command"),
            "check": ("pipelines.cli.submission", "check_command"),
            "forest": ("pipelines.cli.forest", "forest_command"),
        },
    ),
    "renal": (
        "pipelines.cli.renal",
        "app",
        {
            "review": ("pipelines.cli.renal_review", "review_command"),
            "evaluate": ("pipelines.cli.renal_review", "evaluate_command"),
        },
    ),
}
METAVARS = {
    int: "NUMBER",
    float: "NUMBER",
    Path: "PATH",
    str: "TEXT",
    bool: "",
}  # what a value is, in a user's words

Quiet = Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="Print warnings and errors only.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", metavar="", help="Print more of what the program does.")
]


class LazyGroup(TyperGroup):
    """``wsi`` itself: its commands are imported one by one."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order of the help."""
        return list(SOURCES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command; None for an unknown name."""
        if cmd_name not in self.commands and cmd_name in SOURCES:
            self.commands[cmd_name] = load(cmd_name)
        return self.commands.get(cmd_name)


def load(name: str) -> Any:
    """The command or group of this name, with what all commands share."""
    module, attribute, more = SOURCES[name]
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False, context_settings=HELP)
        alone.command(name, context_settings=HELP)(with_switches(found))
        return get_command(alone)
    known = {info.name for info in found.registered_commands}
    for below, (where, function) in more.items():
        if below not in known:
            found.command(below)(getattr(import_module(where), function))
    for info in found.registered_commands:
        info.context_settings = HELP
        info.callback = with_switches(info.callback)
    found.info.context_settings = HELP
    command = get_command(found)
    command.name = name
    return command


def with_switches(function: Any) -> Any:
    """The same command with ``-q`` and ``-v``, and with a word in capitals for each value it takes."""
    signature = inspect.signature(function, eval_str=True)
    if "quiet" in signature.parameters:
        return function
    for parameter in signature.parameters.values():
        _name_value(parameter.annotation)

    @functools.wraps(function)
    def command(*, quiet: bool, verbose: bool, **values: Any) -> Any:
        if verbose:
            be_verbose()
        if quiet:
            be_quiet()
        return function(**values)

    def switch(name: str, annotation: Any) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)

    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()]
    parameters = [*own, switch("quiet", Quiet), switch("verbose", Verbose)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    del command.__wrapped__
    return command


def _name_value(annotation: Any) -> None:
    """Give an option or argument a metavar that says what it takes, where it has none."""
    metadata = getattr(annotation, "__metadata__", ())
    inside = [annotation.__origin__, *get_args(annotation.__origin__)] if metadata else []
    inside += [kind for part in inside for kind in get_args(part)]
    word = next((METAVARS[kind] for kind in inside if kind in METAVARS), None)
    for info in metadata:
        if isinstance(info, typer.models.ParameterInfo) and info.metavar is None:
            info.metavar = word
