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

# command: module, its function or its group's app, and further commands of that group
SOURCES: dict[str, tuple[str, str, dict[str, tuple[str, str]]]] = {
    "score": ("pipelines.cli.score", "score", {}),
    "score-patches": ("pipelines.cli.patches", "patches_command", {}),
    "explain": ("pipelines.cli.explain", "explain", {}),
    "serve": ("pipelines.cli.serve", "serve", {}),
    "submit": ("pipelines.cli.serve", "submit", {}),
    "queue": ("pipelines.cli.serve", "queue", {}),
    "features": ("pipelines.cli.features", "features", {}),
    "segment": ("pipelines.cli.segment", "segment", {}),
    "info": ("pipelines.cli.slides", "info", {}),
    "doctor": ("pipelines.cli.slides", "doctor", {}),
    "view": ("pipelines.cli.view", "view", {}),
    "verify": ("pipelines.cli.verify", "verify", {}),
    "export": ("pipelines.cli.export", "app", {}),
    "cohort": ("pipelines.cli.cohort", "app", {}),
    "cluster": ("pipelines.cli.cluster", "app", {}),
    "phantom": ("pipelines.cli.phantom", "app", {}),
    "train": (
        "pipelines.cli.train",
        "app",
        {
            "fields": ("pipelines.cli.train_renal", "fields"),
            "capillaries": ("pipelines.cli.train_renal", "capillaries"),
            "segmenter": ("pipelines.cli.train_segmenter", "segmenter"),
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
}  # names of types for users

Quiet = Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="Print warnings and errors only.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", metavar="", help="Print more of what the program does.")
]


class LazyGroup(TyperGroup):
    """``wsi`` itself: its commands are imported one by one."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands, in the order of the help."""
        return list(SOURCES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command; None for an unknown name."""
        if cmd_name not in self.commands and cmd_name in SOURCES:
            self.commands[cmd_name] = load(cmd_name)
        return self.commands.get(cmd_name)


def load(name: str) -> Any:
    """The command or group of this name, with the switches that all commands share."""
    module, attribute, additions = SOURCES[name]
    target = getattr(import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        single_app = typer.Typer(add_completion=False, context_settings=HELP)
        single_app.command(name, context_settings=HELP)(with_switches(target))
        return get_command(single_app)
    names = {info.name for info in target.registered_commands}
    for subcommand, (module_name, function) in additions.items():
        if subcommand not in names:
            target.command(subcommand)(getattr(import_module(module_name), function))
    for info in target.registered_commands:
        info.context_settings = HELP
        info.callback = with_switches(info.callback)
    target.info.context_settings = HELP
    command = get_command(target)
    command.name = name
    return command


def with_switches(function: Any) -> Any:
    """The command with ``-q`` and ``-v``, and with a word in capitals for each value that it takes."""
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

    options = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()]
    parameters = [*options, switch("quiet", Quiet), switch("verbose", Verbose)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    del command.__wrapped__
    return command


def _name_value(annotation: Any) -> None:
    """Give an option or argument that has no metavar one that names its type."""
    metadata = getattr(annotation, "__metadata__", ())
    types = [annotation.__origin__, *get_args(annotation.__origin__)] if metadata else []
    types += [kind for part in types for kind in get_args(part)]
    metavar = next((METAVARS[kind] for kind in types if kind in METAVARS), None)
    for info in metadata:
        if isinstance(info, typer.models.ParameterInfo) and info.metavar is None:
            info.metavar = metavar
