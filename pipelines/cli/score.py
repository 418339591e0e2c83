"""``wsi score``: it scores slides and writes heatmaps, lesions and pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from models.card import DEFAULT_MODEL
from models.engines import Engine, EngineConfig, find_models, load_engine
from pipelines.camelyon16.read.page import write_tables
from pipelines.camelyon16.read.preview import count_text
from pipelines.camelyon16.read.results import SlideResult, earlier_results
from pipelines.camelyon16.read.score import ScoreConfig, ScoreJob, run_fingerprint
from pipelines.cli.console import cohort_progress, err, out
from pipelines.cli.options import (
    Anisotropic,
    EngineName,
    ModelNames,
    Mpp,
    Orientations,
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
from pipelines.runs.cohort import ALONE, Crew, Failure, file_sizes, gather, named, run_cohort
from pipelines.runs.config import load_config, parse_config
from pipelines.runs.made_by import run_record
from pipelines.runs.run_folder import RunFolder, refuse_other_run
from wsi.config import Config
from wsi.errors import ConfigError
from wsi.marks.own_mask import PICTURES
from wsi.results.folder import Folder
from wsi.slides.manifest import SlideRow
from wsi.stopwatch import in_words, running


class RunConfig(Config):
    """The settings in a file that ``--config`` reads."""

    score: ScoreConfig = ScoreConfig()
    engine: EngineConfig = EngineConfig()


def score(
    slides: Annotated[
        list[str],
        typer.Argument(
            metavar="SLIDES", help="Slides, folders of slides, URLs, or a table of slides (slides.csv)."
        ),
    ],
    folder: Out,
    model: ModelNames = None,
    positive: Annotated[
        str | None,
        typer.Option(
            "--class",
            help="The class of the model to look for.",
            show_default="what the model's card names",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="A YAML file such as configs/score.yaml; options given here win over it.",
        ),
    ] = None,
    mpp: Mpp = None,
    stride: Annotated[
        Literal["16", "32", "64", "128", "256"] | None,
        typer.Option(
            help="Pixels that the model sees from one cell to the next.", show_default="the model's own"
        ),
    ] = None,
    orientations: Orientations = None,
    engine: EngineName = None,
    precision: Precision = None,
    tissue: Annotated[
        Literal["otsu-saturation", "liu2017", "ncrf", "density"] | None,
        typer.Option(
            help="How tissue is found; 'density' suits immunostains.", show_default="otsu-saturation"
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="Your own tissue mask, or a folder with one for each slide, of the same name."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="The lowest score of a peak and of an area, above 0 and up to 1.",
            show_default="0.5",
        ),
    ] = None,
    native: Annotated[
        bool, typer.Option("--native", help="Read every slide at its own level 0, whatever its spacing.")
    ] = False,
    allow_anisotropic: Anisotropic = False,
    stream: Stream = False,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    scheduler_file: SchedulerFile = None,
    shard: ShardText = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results that were made with other settings.")
    ] = False,
) -> None:
    """Score slides for metastases: a heatmap, ranked peaks, GeoJSON for QuPath and a picture of each slide.

    After an interruption run the same command again: it goes on where it stopped. Two commands at once may share OUT.

    Examples:
    wsi score my_slide.svs -o results

    wsi score slides/ -m my_model --threshold 0.8 -o results

    wsi score slides.csv -m first -m second --orientations 8 -o results
    """
    base = load_config(config, RunConfig) if config else RunConfig()
    cfg = _override(
        base,
        score={"stride": stride and int(stride), "native": native or None, "min_tissue": None},
        engine={"engine": engine, "precision": precision, "orientations": orientations and int(orientations)},
        tissue=tissue,
        threshold=threshold,
    )
    rows = _with_masks(gather(slides, mpp=mpp, allow_anisotropic=allow_anisotropic, stream=stream), mask)
    slides_named = shard_of(named(rows), shard)
    models = find_models(model or [DEFAULT_MODEL])
    if positive is not None:
        models = models.with_positive(positive)
    with crew_of(workers, scheduler, scheduler_file) as crew:
        complete = Run(slides_named, load_engine(models, cfg.engine), cfg, folder, overwrite, crew).go()
    raise typer.Exit(0 if complete else 1)


def _override(
    base: RunConfig,
    *,
    score: dict[str, Any],
    engine: dict[str, Any],
    tissue: str | None,
    threshold: float | None,
) -> RunConfig:
    """The file's settings, replaced by those from the command line where it gives any."""
    value = base.model_dump(mode="json")
    value["score"] |= {k: v for k, v in score.items() if v is not None}
    value["engine"] |= {k: v for k, v in engine.items() if v is not None}
    if tissue is not None:
        value["score"]["tissue"]["method"] = tissue
    if threshold is not None:
        value["score"]["lesions"]["threshold"] = threshold
    return parse_config("options", value, RunConfig)


def _with_masks(rows: list[SlideRow], mask: Path | None) -> list[SlideRow]:
    if mask is None:
        return rows
    if not mask.exists():
        raise ConfigError(f"{mask} does not exist; check --mask")
    if mask.is_file() and len(rows) > 1:
        raise ConfigError(f"{mask} is one mask, for {len(rows)} slides; give a folder with a mask for each")
    return [replace(row, mask=_mask_of(row, mask)) for row in rows]


def _mask_of(row: SlideRow, mask: Path) -> Path:
    if mask.is_file():
        return mask
    slide = Path(row.source.path).resolve()
    for stem in (row.source.name, f"{row.source.name}_mask"):
        for suffix in (*PICTURES, ".geojson", ".json", ".xml", ".annotations"):
            path = mask / f"{stem}{suffix}"
            if path.is_file() and path.resolve() != slide:
                return path
    raise ConfigError(
        f"{mask} holds no mask for {row.source.path}; name it {row.source.name}.png, .geojson or .xml"
    )


@dataclass
class Run:
    """One run of ``wsi score``: slides, engine and the folder of the results."""

    slides: list[tuple[SlideRow, str]]
    engine: Engine
    cfg: RunConfig
    folder: Folder
    overwrite: bool
    crew: Crew = ALONE

    def go(self) -> bool:
        """Score all slides; return whether every slide was scored to the last cell."""
        fingerprint = run_fingerprint(self.engine, self.cfg.score)
        if not self.overwrite:
            refuse_other_run(self.folder, fingerprint)
        count = f"{len(self.slides)} slide{'' if len(self.slides) == 1 else 's'}"
        cards = self.engine.models.cards
        model_names = " and ".join(card.name for card in cards)
        out.print(f"{count}; model {model_names}; {self.engine.description}", markup=False)
        if any(card.demonstration for card in cards):
            out.print("a demonstration model, trained on phantoms: its scores on real tissue mean nothing")
        models = [{"name": c.name, "sha256": c.sha256, "demonstration": c.demonstration} for c in cards]
        record = run_record(self.cfg.model_dump(mode="json"), models, self.engine.description, fingerprint)
        job = ScoreJob(self.folder.absolute(), self.engine.spec, self.cfg.score, self.overwrite)
        run = RunFolder(self.folder, record, earlier_results, write_tables, self.overwrite)
        with running("rest") as stopwatch:
            slides = run.left_of(self.slides)
            with run.work([name for _, name in slides]), cohort_progress(file_sizes(slides)) as watch:
                outcome = run_cohort(
                    slides, job, run.sum_up, crew=self.crew, watch=watch, finished=(run.note, _say)
                )
        if outcome.results and all(result.empty for result in outcome.results):
            err.print("nothing was scored; the lines above say why", markup=False)
        if self.crew is ALONE:
            out.print(in_words(stopwatch.seconds()), markup=False)
        out.print(f"{self.folder.at('index.html')} shows them; for research use only", markup=False)
        return outcome.complete


def _say(result: SlideResult | Failure) -> None:
    if isinstance(result, Failure):
        err.print(f"{result.name}: failed: {result.reason}", markup=False)
        return
    if result.score is None:
        err.print(f"{result.name}: {result.note}", markup=False)
        return
    reading = f", {result.confidence}" if result.confidence else ""
    text = f"{result.name}: score {result.score:.3f}{reading}, {count_text(result)}"
    out.print(text, markup=False)
    if result.note:
        err.print(f"{result.name}: {result.note}", markup=False)
