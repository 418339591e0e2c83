"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from models.card import DEFAULT_MODEL, ModelCard
from pipelines.cli.console import err, out
from pipelines.runs.cluster import Cluster, ClusterConfig, connected, each_on, workers_of
from pipelines.runs.cohort import ALONE, Crew
from pipelines.runs.task import Each, each_here
from wsi.errors import ConfigError
from wsi.results.folder import Folder, folder_at
from wsi.slides.manifest import SlideRow

Mpp = Annotated[
    float | None,
    typer.Option(
        "--mpp",
        min=0.01,
        max=1000,
        help="Micrometres per pixel of level 0.",
        show_default="what the slide's file says",
    ),
]
Anisotropic = Annotated[
    bool,
    typer.Option(
        "--allow-anisotropic",
        help="Accept pixels whose width and height differ by over 5 %, and use the mean.",
    ),
]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Read slides at URLs part by part (TIFF only), instead of copying each to this machine first.",
    ),
]
PatchMpp = Annotated[
    float | None,
    typer.Option(
        "--mpp",
        min=0.01,
        max=1000,
        help="Micrometres per pixel of the patches, which are then brought to the model's spacing.",
        show_default="the model's own",
    ),
]
Orientations = Annotated[
    Literal["1", "8"] | None,
    typer.Option(help="With 8, scores are the mean over all flips and turns.", show_default="1"),
]
EngineName = Annotated[
    Literal["auto", "openvino", "torch"] | None,
    typer.Option(help="The library that runs the model.", show_default="auto: torch on a GPU, else openvino"),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16", "int8"] | None,
    typer.Option(
        help="The numbers that the network computes in.",
        show_default="auto: fp16 on a GPU; on a CPU int8 if the model has it, else bf16 if the CPU has it",
    ),
]
ModelNames = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A model that ships (wsi models list), or a model's folder; scores of several are averaged.",
        show_default=DEFAULT_MODEL,
    ),
]
Results = Annotated[
    Folder, typer.Argument(metavar="RESULTS", parser=folder_at, help="The --out of wsi score.")
]
Reports = Annotated[
    Folder, typer.Argument(metavar="REPORTS", parser=folder_at, help="The --out of wsi renal report.")
]
Out = Annotated[
    Folder,
    typer.Option(
        "--out",
        "-o",
        metavar="OUT",
        parser=folder_at,
        help="The folder for the results; it is made if it is not there. A URL such as s3://bucket/run works, too.",
    ),
]


Workers = Annotated[
    int,
    typer.Option(
        min=0,
        max=1000,
        help="Processes to start on this machine, which share its cores and the slides.",
        show_default="none: this process does it",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="A Dask scheduler that runs, such as tcp://host:8786.", show_default="none"
    ),
]
SchedulerFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="The file in which a Dask scheduler wrote its address.", show_default="none"
    ),
]
ShardText = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Only every N-th slide, from the I-th on: for array jobs without a scheduler.",
        show_default="all slides",
    ),
]


@contextmanager
def crew_of(workers: int, scheduler: str | None, scheduler_file: Path | None) -> Iterator[Crew]:
    """Who does the slides of a run, see `_client_of`."""
    with _client_of(workers, scheduler, scheduler_file) as client:
        yield ALONE if client is None else Cluster(client)


@contextmanager
def each_of(workers: int, scheduler: str | None, scheduler_file: Path | None) -> Iterator[Each]:
    """Who computes something of each of many slides, see `_client_of`."""
    with _client_of(workers, scheduler, scheduler_file) as client:
        yield each_here if client is None else each_on(client)


@contextmanager
def _client_of(workers: int, scheduler: str | None, scheduler_file: Path | None) -> Iterator[Any]:
    """A client of the cluster that these options name; None: this process does it all.

    Raises:
        ConfigError: two of them were given, or no scheduler answers.
    """
    if sum([workers > 0, scheduler is not None, scheduler_file is not None]) > 1:
        raise ConfigError("give one of --workers, --scheduler and --scheduler-file")
    cfg = ClusterConfig(workers, scheduler, scheduler_file)
    if not cfg.wanted:
        yield None
        return
    with connected(cfg) as client:
        board = f"; {client.dashboard_link} shows them" if client.dashboard_link else ""
        out.print(
            f"{workers_of(client)} workers of {client.scheduler_info()['address']}{board}", markup=False
        )
        yield client


def shard_of(slides: list[tuple[SlideRow, str]], text: str | None) -> list[tuple[SlideRow, str]]:
    """The slides of a shard.

    Args:
        slides: all slides, with the names that they have whatever the shard.
        text: ``3/16``: the third of sixteen; None: all slides.

    Raises:
        ConfigError: there is no such shard.
    """
    if text is None:
        return slides
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--shard {text} is no shard; give I/N with I from 1 to N, such as 3/16")
    return slides[int(match[1]) - 1 :: int(match[2])]


def check_patch_spacing(mpp: float | None, card: ModelCard) -> None:
    """Print the spacing that is assumed for the patches; refuse patches that are coarser than the model's spacing."""
    if card.spacing_um is None:
        return
    if mpp is None:
        sentence = f"the patches are taken to have {card.spacing_um:g} um/px, the model's spacing; --mpp says otherwise"
        err.print(sentence, markup=False)
    elif mpp > card.spacing_um * (1 + card.spacing_tolerance):
        raise ConfigError(
            f"patches of {mpp:g} um/px are coarser than the model's {card.spacing_um:g}; use a model of their spacing"
        )
