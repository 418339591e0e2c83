"""``wsi segment``: the class of every place on slides, outlines and areas."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.engines.contract import EngineConfig, find_folder
from pipelines.cli.console import cohort_progress, err, out
from pipelines.cli.options import (
    Anisotropic,
    EngineName,
    Mpp,
    Out,
    Precision,
    Scheduler,
    SchedulerFile,
    ShardText,
    Stream,
    Workers,
    crew_of,
    shard_of,
)
from pipelines.runs.cohort import ALONE, Failure, file_sizes, gather, named, run_cohort
from pipelines.runs.config import load_config
from pipelines.runs.made_by import run_record
from pipelines.runs.run_folder import RunFolder, refuse_other_run
from pipelines.segment.read import SegmentConfig, SegmentJob, run_fingerprint
from pipelines.segment.result import SegmentResult, area_text, earlier_results, write_tables
from wsi.stopwatch import in_words, running

DEFAULT_SEGMENTER = "kidney-compartments-demo"


def segment(
    slides: Annotated[
        list[str],
        typer.Argument(
            metavar="SLIDES", help="Slides, folders of slides, URLs, or a table of slides (slides.csv)."
        ),
    ],
    folder: Out,
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="The segmenter: a name or a folder.")
    ] = DEFAULT_SEGMENTER,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="A YAML file such as configs/segment.yaml."),
    ] = None,
    mpp: Mpp = None,
    engine: EngineName = None,
    precision: Precision = None,
    allow_anisotropic: Anisotropic = False,
    stream: Stream = False,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    scheduler_file: SchedulerFile = None,
    shard: ShardText = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace maps that were made with other settings.")
    ] = False,
) -> None:
    """Name the class of every place on slides: a map, outlines for QuPath, areas by class and a picture of each slide.

    After an interruption run the same command again: it goes on where it stopped.

    Examples:
    wsi segment biopsy.svs -o compartments

    wsi segment biopsies/ -m runs/compartments/model -o compartments
    """
    from models.engines.maps import MapEngine

    cfg = SegmentConfig() if config is None else load_config(config, SegmentConfig)
    rows = gather(slides, mpp=mpp, allow_anisotropic=allow_anisotropic, stream=stream)
    slides_named = shard_of(named(rows), shard)
    settings = {"engine": engine or "auto", "precision": precision or "auto"}
    mapper = MapEngine(find_folder(model), EngineConfig.model_validate(settings))
    card, fingerprint = mapper.card, run_fingerprint(mapper, cfg)
    if not overwrite:
        refuse_other_run(folder, fingerprint)
    out.print(f"model {card.name}; {mapper.description}", markup=False)
    if card.demonstration:
        out.print("a demonstration model, trained on phantoms: what it says of real tissue means nothing")
    models = [{"name": card.name, "sha256": card.sha256, "demonstration": card.demonstration}]
    record = run_record(cfg.model_dump(mode="json"), models, mapper.description, fingerprint)
    job = SegmentJob(folder.absolute(), mapper.spec, cfg, overwrite)
    run = RunFolder(folder, record, earlier_results, write_tables, overwrite)
    with crew_of(workers, scheduler, scheduler_file) as crew, running("rest") as stopwatch:
        left = run.left_of(slides_named)
        with run.work([name for _, name in left]), cohort_progress(file_sizes(left)) as watch:
            outcome = run_cohort(left, job, run.sum_up, crew=crew, watch=watch, finished=(run.note, _say))
    if crew is ALONE:
        out.print(in_words(stopwatch.seconds()), markup=False)
    out.print(f"{folder.at('index.html')} shows them; for research use only", markup=False)
    raise typer.Exit(0 if outcome.complete else 1)


def _say(result: SegmentResult | Failure) -> None:
    if isinstance(result, Failure):
        err.print(f"{result.name}: failed: {result.reason}", markup=False)
        return
    areas = ", ".join(f"{name} {area_text(one.mm2)}" for name, one in list(result.classes.items())[1:])
    if not result.empty:
        out.print(f"{result.name}: {areas}", markup=False)
    if result.note:
        err.print(f"{result.name}: {result.note}", markup=False)
