"""``wsi renal``: C4d capillaries in kidney transplants."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from models.engines import EngineConfig, find_models, load_engine
from pipelines.cli.console import cohort_progress, err, out, progress
from pipelines.cli.options import (
    Anisotropic,
    Mpp,
    Out,
    Scheduler,
    SchedulerFile,
    ShardText,
    Stream,
    Workers,
    crew_of,
    shard_of,
)
from pipelines.renal.read.basis import basis_sentences
from pipelines.renal.read.fields import field_threshold
from pipelines.renal.read.grading import grade_word, percent_text
from pipelines.renal.read.labels import proposed_labels
from pipelines.renal.read.page import check_pdf
from pipelines.renal.read.reading import Readers, RenalConfig, run_fingerprint
from pipelines.renal.read.report import grading_of
from pipelines.renal.read.run import RenalResult, ReportJob, earlier_reports
from pipelines.renal.read.summary import write_results
from pipelines.runs.cohort import ALONE, Crew, Failure, file_sizes, gather, named, run_cohort
from pipelines.runs.config import load_config
from pipelines.runs.made_by import code_hash, run_record, version
from pipelines.runs.run_folder import RunFolder, refuse_other_run
from wsi.errors import ConfigError, StoreError
from wsi.results.export import Origin, origin_offset, write_geojson
from wsi.results.folder import Folder
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource
from wsi.slides.tissue import TissueConfig, find_tissue
from wsi.stopwatch import in_words, running
from wsi.text import number_of

DETECTOR, FIELDS = "renal-ptc-demo", "renal-fields-demo"
Detector = Annotated[
    str,
    typer.Option("--model", "-m", metavar="MODEL", help="The detector of capillaries: a name or a folder."),
]

app = typer.Typer(
    no_args_is_help=True, help="C4d capillaries in kidney transplants: counted, graded, reported."
)


@app.callback()
def _group() -> None:
    """C4d capillaries in kidney transplants: counted, graded, reported."""


@app.command("propose")
def propose(
    slide: Annotated[str, typer.Argument(metavar="SLIDE", help="A C4d-immunostained slide.")],
    file: Annotated[Path, typer.Option("--out", "-o", help="The GeoJSON file to write.")],
    model: Detector = DETECTOR,
    confidence: Annotated[
        float, typer.Option(min=0, max=1, help="The lowest score of a box that is proposed.")
    ] = 0.5,
    origin: Annotated[
        Origin, typer.Option(help="Where the coordinates begin; auto is what QuPath shows.")
    ] = "auto",
    mpp: Mpp = None,
    allow_anisotropic: Anisotropic = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file, corrected or not.")
    ] = False,
) -> None:
    """Propose capillaries for a person to correct in QuPath: boxes with class and score, not locked.

    Examples:
    wsi renal propose biopsy.svs -o capillaries.geojson
    """
    from models.engines.boxes import BoxEngine
    from models.engines.contract import find_folder
    from models.engines.detect_slide import detect_slide, tissue_tiles

    if file.suffix != ".geojson" and not file.name.endswith(".geojson.gz"):
        raise ConfigError(f"--out {file} must end in .geojson, so that QuPath reads it")
    if file.exists() and not overwrite:
        raise StoreError(
            f"{file} is there already, perhaps corrected; choose another --out, or pass --overwrite"
        )
    detector = BoxEngine(find_folder(model), EngineConfig())
    card = detector.card
    source = SlideSource(slide, mpp, allow_anisotropic)
    with source.open() as open_slide:
        mask = find_tissue(open_slide, TissueConfig(method="density"))
        if not mask.pixels.any():
            raise ConfigError(f"{slide} shows no tissue; check that it is the right slide")
        with progress("tiles") as tick:
            plan = tissue_tiles(open_slide, mask, card)
            result = detect_slide(open_slide, plan, detector, lowest_score=confidence, tick=tick)
        offset = origin_offset(open_slide.bounds, origin)
    made_by = {"model": card.name, "sha256": card.sha256[:16], "program": f"slidewright {version()}"}
    made_by |= {"code": code_hash(), "intended use": "research use only"}
    features = proposed_labels(source.name, result.detections, card.detector.classes, made_by)
    write_geojson(file, features, offset)
    counts = [
        f"{int((result.detections.labels == i).sum())} {name}" for i, name in enumerate(card.detector.classes)
    ]
    out.print(f"{file}: {' and '.join(counts)}, on {result.tiles} tiles; for research use only", markup=False)
    if card.demonstration:
        out.print(
            "a demonstration model, trained without any real C4d slide: what it proposes on real tissue means nothing"
        )
    if result.unreadable:
        x, y = result.unreadable[0]
        err.print(
            f"{len(result.unreadable)} tiles could not be decoded, the first at ({x}, {y})", markup=False
        )
        raise typer.Exit(1)


@app.command("report")
def report(
    slides: Annotated[
        list[str],
        typer.Argument(
            metavar="SLIDES",
            help="C4d-immunostained slides, folders of slides, or a table of slides (slides.csv).",
        ),
    ],
    folder: Out,
    model: Detector = DETECTOR,
    fields_model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="The model that chooses evaluable fields: a name or a folder."),
    ] = FIELDS,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="A YAML file such as configs/renal_report.yaml."),
    ] = None,
    pdf: Annotated[
        bool,
        typer.Option(
            "--pdf",
            help="Also print each report to PDF; this needs pip install 'slidewright\\[pdf]' and, on Debian, "
            "apt install libpangoft2-1.0-0.",
        ),
    ] = False,
    mpp: Mpp = None,
    allow_anisotropic: Anisotropic = False,
    stream: Stream = False,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    scheduler_file: SchedulerFile = None,
    shard: ShardText = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace reports that were made with other settings.")
    ] = False,
) -> None:
    """Choose the fields of each slide, count C4d-positive and negative capillaries, grade, and write a report.

    After an interruption run the same command again: it goes on inside the slide, field by field.

    Examples:

    wsi renal report biopsy.svs -o reports

    wsi renal report biopsies/ --pdf -o reports
    """
    from models.engines.boxes import BoxEngine
    from models.engines.contract import find_folder

    cfg = RenalConfig() if config is None else load_config(config, RenalConfig)
    if pdf:
        check_pdf()
    rows = gather(slides, mpp=mpp, allow_anisotropic=allow_anisotropic, stream=stream)
    slides_named = shard_of(named(rows), shard)
    engine = EngineConfig()
    readers = Readers(load_engine(find_models([fields_model]), engine), BoxEngine(find_folder(model), engine))
    readers.limits(cfg)  # this and the next line refuse models of another kind
    field_threshold(readers.fields.models.card, cfg.fields)
    with crew_of(workers, scheduler, scheduler_file) as crew:
        complete = RenalRun(slides_named, readers, cfg, folder, pdf, overwrite, crew).go()
    raise typer.Exit(0 if complete else 1)


@dataclass
class RenalRun:
    """One run of ``wsi renal report``: slides, networks and the folder of the reports."""

    slides: list[tuple[SlideRow, str]]
    readers: Readers
    cfg: RenalConfig
    folder: Folder
    pdf: bool
    overwrite: bool
    crew: Crew = ALONE

    def go(self) -> bool:
        """Read all slides; return whether every slide was read to the last field."""
        fingerprint = run_fingerprint(self.readers, self.cfg)
        if not self.overwrite:
            refuse_other_run(self.folder, fingerprint)
        demonstration = [m["name"] for m in self.readers.models if m["demonstration"]]
        if demonstration:
            out.print(
                "demonstration models, trained without any real C4d slide: what they say of real tissue means nothing"
            )
        settings = self.cfg.model_dump(mode="json")
        engine = (
            f"fields: {self.readers.fields.description}; capillaries: {self.readers.detector.description}"
        )
        record = run_record(settings, self.readers.models, engine, fingerprint)
        record["demonstration"] = demonstration
        specs = self.readers.fields.spec, self.readers.detector.spec
        job = ReportJob(self.folder.absolute(), *specs, self.cfg, self.pdf, self.overwrite)
        run = RunFolder(self.folder, record, earlier_reports, write_results, self.overwrite)
        with running("rest") as stopwatch:
            # a list of what is done does not know whether it was printed to PDF, too
            slides = self.slides if self.pdf else run.left_of(self.slides)
            with run.work([name for _, name in slides]), cohort_progress(file_sizes(slides)) as watch:
                outcome = run_cohort(
                    slides, job, run.sum_up, crew=self.crew, watch=watch, finished=(run.note, _say)
                )
        if self.crew is ALONE:
            out.print(in_words(stopwatch.seconds()), markup=False)
        out.print(f"{self.folder.at('index.html')} lists them; for research use only", markup=False)
        return outcome.complete


def _say(result: RenalResult | Failure) -> None:
    if isinstance(result, Failure):
        err.print(f"{result.name}: failed: {result.reason}", markup=False)
        return
    g = result.report.result
    counts = f"{g.positive} positive and {g.negative} negative in {number_of(g.fields, 'field')}"
    if g.percent is not None and g.interval is not None:
        percent = percent_text(g.percent, grading_of(result.report))
        counts = f"{percent} % ({g.interval[0]:.1f} to {g.interval[1]:.1f}), {counts}"
    grade = (
        grade_word(g.grade, grading_of(result.report)) if g.grade else f"not assessable: {g.not_assessable}"
    )
    out.print(f"{result.name}: {grade}; {counts}", markup=False)
    for sentence in basis_sentences(result.report):
        out.print(f"  {sentence}", markup=False)
    for warning in result.report.warnings:
        err.print(f"{result.name}: {warning}", markup=False)
