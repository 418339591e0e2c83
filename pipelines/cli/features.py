"""``wsi features``: embeddings of slides' cells, for slide-level models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.card import DEFAULT_MODEL
from models.engines import Models, find_models, load_engine
from models.engines.contract import FeatureEngineConfig
from models.forms.timm_folder import EMBEDDING
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
from pipelines.features.read import FeaturesConfig, FeaturesJob, run_fingerprint
from pipelines.features.result import FeatureResult, earlier_results, write_tables
from pipelines.runs.cohort import ALONE, Failure, file_sizes, gather, named, run_cohort
from pipelines.runs.config import load_config
from pipelines.runs.made_by import run_record
from pipelines.runs.run_folder import RunFolder, refuse_other_run
from wsi.errors import ConfigError
from wsi.stopwatch import in_words, running


def features(
    slides: Annotated[
        list[str],
        typer.Argument(
            metavar="SLIDES", help="Slides, folders of slides, URLs, or a table of slides (slides.csv)."
        ),
    ],
    folder: Out,
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", metavar="MODEL", help="A model of patches, or a folder as timm publishes models."
        ),
    ] = DEFAULT_MODEL,
    spacing: Annotated[
        float | None,
        typer.Option(
            min=0.05,
            max=16,
            help="Um per pixel that a published folder, which states none, is run at; 0.5 without.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", metavar="FILE", help="A YAML file: stride, tissue, min_tissue, threads."
        ),
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
        bool, typer.Option("--overwrite", help="Replace features that were made with other settings.")
    ] = False,
) -> None:
    """Write what a model knows of each cell before it names a class: zarr, HDF5 for CLAM and TRIDENT, and a picture.

    After an interruption run the same command again: it goes on where it stopped.

    Examples:
    wsi features slides/ -o features

    wsi features slides/ -m downloads/UNI --spacing 0.5 -o features
    """
    cfg = FeaturesConfig() if config is None else load_config(config, FeaturesConfig)
    rows = gather(slides, mpp=mpp, allow_anisotropic=allow_anisotropic, stream=stream)
    slides_named = shard_of(named(rows), shard)
    settings = {"engine": engine or "auto", "precision": precision or "auto"}
    runner = load_engine(_models(model, spacing), FeatureEngineConfig.model_validate(settings))
    card, fingerprint = runner.models.card, run_fingerprint(runner, cfg)
    if not overwrite:
        refuse_other_run(folder, fingerprint)
    out.print(f"model {card.name}: {runner.width} features of a cell; {runner.description}", markup=False)
    if card.demonstration:
        out.print("a demonstration model, trained on phantoms: what it says of real tissue means nothing")
    models = [{"name": card.name, "sha256": card.sha256, "demonstration": card.demonstration}]
    record = run_record(cfg.model_dump(mode="json"), models, runner.description, fingerprint)
    job = FeaturesJob(folder.absolute(), runner.spec, cfg, overwrite)
    run = RunFolder(folder, record, earlier_results, write_tables, overwrite)
    with crew_of(workers, scheduler, scheduler_file) as crew, running("rest") as stopwatch:
        left = run.left_of(slides_named)
        with run.work([name for _, name in left]), cohort_progress(file_sizes(left)) as watch:
            outcome = run_cohort(left, job, run.sum_up, crew=crew, watch=watch, finished=(run.note, _say))
    if crew is ALONE:
        out.print(in_words(stopwatch.seconds()), markup=False)
    out.print(f"{folder.at('index.html')} shows them; for research use only", markup=False)
    raise typer.Exit(0 if outcome.complete else 1)


def _models(name: str, spacing: float | None) -> Models:
    """The model of a name, or a published folder at a spacing."""
    models = find_models([name])
    if spacing is None:
        return models
    if models.card.classes != (EMBEDDING,):
        raise ConfigError(f"--spacing is for published folders; the card of {name} states its spacing")
    return Models(models.folders, (models.card.model_copy(update={"spacing_um": spacing}),))


def _say(result: FeatureResult | Failure) -> None:
    if isinstance(result, Failure):
        err.print(f"{result.name}: failed: {result.reason}", markup=False)
        return
    if not result.empty:
        out.print(f"{result.name}: {result.cells} cells", markup=False)
    if result.note:
        err.print(f"{result.name}: {result.note}", markup=False)
