"""``wsi cohort``: the state of a run over many slides, and its results as tables."""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.camelyon16.benchmark.predictions import unusable
from pipelines.camelyon16.read import tables as lymph_node
from pipelines.camelyon16.read.results import result_of
from pipelines.cli.console import err, out, progress
from pipelines.renal.read import tables as renal
from pipelines.runs.claims import FOLDER
from pipelines.runs.cohort import gather, unique_names
from pipelines.runs.finished import FinishedList
from pipelines.runs.parquet import ParquetTable
from wsi.errors import ConfigError, StoreError
from wsi.results.folder import Folder, folder_at
from wsi.text import number_of

app = typer.Typer(
    no_args_is_help=True, help="The state of a run over many slides, and its results as tables."
)
Out = Annotated[
    Folder,
    typer.Argument(metavar="OUT", parser=folder_at, help="The --out of wsi score or wsi renal report."),
]


@app.command("status")
def status(
    folder: Out,
    slides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SLIDES",
            help="What the run was given, to count what is left to do.",
            show_default="not counted",
        ),
    ] = None,
) -> None:
    """Say how many slides are done, failed, being worked on, and left; exit code 1 if any failed or is left.

    Examples:
    wsi cohort status results

    wsi cohort status s3://bucket/run slides.csv
    """
    record = _record(folder)
    done = _done(folder, record["settings_fingerprint"])
    claimed = {name.removeprefix(f"{FOLDER}/").rsplit(".", 2)[0] for name in folder.files(FOLDER)}
    failed = {f["name"]: f["reason"] for f in record["failed"]}
    out.print(f"{folder}: {record['program']}, {record['state']}", markup=False)
    counts = [
        f"{number_of(len(done), 'slide')} done",
        f"{len(failed)} failed",
        f"{len(claimed)} being worked on",
    ]
    left = None
    if slides:
        names = unique_names(gather(slides, mpp=None, allow_anisotropic=False))
        left = [name for name in names if name not in done and name not in failed]
        counts.append(f"{len(left)} of {len(names)} left")
    out.print("; ".join(counts), markup=False)
    for name, reason in failed.items():
        err.print(f"{name}: {reason}", markup=False)
    raise typer.Exit(1 if failed or left else 0)


def _done(folder: Folder, settings: str) -> set[str]:
    """Names of the slides that are done with these settings; of a very large run, those that its list names."""
    parts = FinishedList(folder).read()
    if parts:
        return {line.name for lines in parts.values() for line in lines if line.settings == settings}
    done = set()
    for name, content in folder.each("slide.json"):
        with suppress(ValueError, KeyError, TypeError):  # it is broken: `wsi verify` says so
            if json.loads(content)["settings_fingerprint"] == settings:
                done.add(name)
    return done


def _record(folder: Folder) -> dict[str, Any]:
    try:
        record = folder.read_json("run.json")
        _ = record["program"], record["state"], record["settings_fingerprint"]
        _ = [(f["name"], f["reason"]) for f in record["failed"]]
        return dict(record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(
            f"{folder.at('run.json')} is missing or broken ({reason}); give the --out of wsi score or wsi renal report"
        ) from error


@app.command("export")
def export(
    folder: Out,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The parquet file of the slides; the others lie beside it.")
    ],
) -> None:
    """Write all results as parquet: FILE with a row for each slide, and beside it lesions or capillaries as GeoParquet.

    Geometries are in level-0 pixels of each slide, y downward; mpp gives micrometres.

    Examples:
    wsi cohort export results cohort.parquet
    """
    if file.suffix != ".parquet":
        raise ConfigError(f"{file} must end in .parquet")
    names = folder.holding("slide.json")
    if not names:
        raise StoreError(f"{folder} holds no finished slide; give the --out of wsi score or wsi renal report")
    is_renal = folder.exists(f"{names[0]}/report.json")
    objects = file.with_name(f"{file.stem}-{'capillaries' if is_renal else 'lesions'}.parquet")
    application: Any = renal if is_renal else lymph_node
    columns = renal.CAPILLARY_COLUMNS if is_renal else lymph_node.LESION_COLUMNS
    with ExitStack() as stack:
        slide_table = stack.enter_context(ParquetTable(file, application.SLIDE_COLUMNS))
        shapes = "Polygon" if is_renal else "Point"
        object_table = stack.enter_context(ParquetTable(objects, columns, shapes=shapes))
        tick = stack.enter_context(progress("slides", transient=True))
        for done, name in enumerate(names):
            tick(done, len(names), name)
            (_add_renal if is_renal else _add_lymph_node)(folder.inside(name), slide_table, object_table)
    out.print(
        f"{file}: {number_of(slide_table.count, 'row')}; {objects}: {number_of(object_table.count, 'row')}",
        markup=False,
    )


def _add_renal(folder: Folder, slides: ParquetTable, objects: ParquetTable) -> None:
    for place, report in renal.readings(folder):
        slides.add([renal.slide_row(report)])
        objects.add(renal.capillary_rows(place, report))


def _add_lymph_node(folder: Folder, slides: ParquetTable, objects: ParquetTable) -> None:
    try:
        facts = folder.read_json("slide.json")
        result = result_of(facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise unusable(folder, error) from error
    slides.add([lymph_node.slide_row(result, facts)])
    objects.add(lymph_node.lesion_rows(result))
