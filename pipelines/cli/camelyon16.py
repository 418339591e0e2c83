"""``wsi camelyon16``: the benchmark, from results of ``wsi score`` or from a submission."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from pipelines.camelyon16.benchmark.atlas import mistakes, with_views, write_atlas
from pipelines.camelyon16.benchmark.cases import Cases, Selection, join
from pipelines.camelyon16.benchmark.comparison import compare, read_evaluation
from pipelines.camelyon16.benchmark.curves import interval_text
from pipelines.camelyon16.benchmark.evaluation import Evaluation, EvaluationConfig, evaluate
from pipelines.camelyon16.benchmark.predictions import Predictions, read_predictions, with_slides
from pipelines.camelyon16.benchmark.report import record, write_report
from pipelines.camelyon16.benchmark.roc import KINDS
from pipelines.camelyon16.slide_model.features import features_of
from pipelines.camelyon16.slide_model.forest import (
    CARD,
    read_forest,
    slide_key,
)
from pipelines.camelyon16.slide_model.slide_scores import SlideScore, with_slide_score
from pipelines.cli.console import err, out, progress
from pipelines.cli.options import Scheduler, SchedulerFile, Workers, each_of
from pipelines.runs.cohort import gather
from pipelines.runs.made_by import code_hash, version
from pipelines.runs.task import Each, each_here
from wsi.datasets.rules import Dataset, read_dataset
from wsi.errors import ConfigError
from wsi.files import write_json
from wsi.results.folder import Folder, folder_at

NOTES = 5  # largest number of printed notes; all notes are in slides.csv
PER_SLIDE = " false positives per slide"

app = typer.Typer(no_args_is_help=True, help="The Camelyon16 benchmark: evaluate, compare, submit.")

Truth = Annotated[
    Path,
    typer.Option(
        help="A folder of annotation files or masks, or a slides.csv with the columns path, truth, label."
    ),
]
VariantName = Annotated[
    Literal["official", "dataset", "negatives"],
    typer.Option(help="Which definition of FROC is used; docs/camelyon16.md tells them apart."),
]
DatasetName = Annotated[
    Literal["camelyon16", "none"],
    typer.Option(
        help="Whose rules by slide name apply where --truth is a folder: exclusions, slides marked in part."
    ),
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Leave out this slide; give it several times for several.")
]
Slides = Annotated[
    list[str] | None,
    typer.Option(help="The slides, where the results do not know them: folder or slides.csv."),
]
Subset = Annotated[
    bool, typer.Option("--subset", help="Evaluate the slides there are, though truth names more.")
]
OthersNormal = Annotated[
    bool, typer.Option("--others-normal", help="Slides without a truth file have no tumour.")
]
SlideModel = Annotated[
    Path | None,
    typer.Option(help="Score slides by this forest (wsi camelyon16 forest), not by their maximum."),
]
ScoreRule = Annotated[
    Literal["maximum", "largest-area"],
    typer.Option(
        "--slide-score",
        help="A slide's score: its highest cell, or its largest area of cells of 0.9 and more.",
    ),
]
TruthLabel = Annotated[int | None, typer.Option(min=1, help="The value of masks that means tumour.")]


@app.callback()
def _group() -> None:
    """The Camelyon16 benchmark: evaluate, compare, submit."""


@app.command("evaluate")
def evaluate_command(
    results: Annotated[
        Folder,
        typer.Argument(
            metavar="RESULTS", parser=folder_at, help="The --out of wsi score, or a submission's folder."
        ),
    ],
    truth: Truth,
    folder: Annotated[
        Folder | None,
        typer.Option(
            "--out",
            "-o",
            parser=folder_at,
            help="The folder for the evaluation.",
            show_default="RESULTS/evaluation, or evaluation-VARIANT",
        ),
    ] = None,
    variant: VariantName = "official",
    draws: Annotated[
        int,
        typer.Option(min=0, max=100_000, help="The number of bootstrap draws; 0 leaves the intervals out."),
    ] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the bootstrap draws.")] = 0,
    at: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            max=1,
            help="The slide score from which a slide counts as tumour; give it several times for several.",
            show_default="0.5",
        ),
    ] = None,
    dataset: DatasetName = "camelyon16",
    exclude: Exclude = None,
    subset: Subset = False,
    others_normal: OthersNormal = False,
    truth_label: TruthLabel = None,
    slides: Slides = None,
    atlas: Annotated[bool, typer.Option(help="Write the page of mistakes.")] = True,
    slide_score: ScoreRule = "maximum",
    slide_model: SlideModel = None,
    published: Annotated[
        bool | None,
        typer.Option(
            help="Draw published results on the real test slides. ",
            show_default="if all slides are called test_*",
        ),
    ] = None,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    scheduler_file: SchedulerFile = None,
) -> None:
    """Compute FROC, ROC and their intervals, with tables of lesions and false positives and a page of every mistake.

    Examples:
    wsi camelyon16 evaluate results --truth CAMELYON16/testing

    wsi camelyon16 evaluate results --truth slides.csv --variant negatives
    """
    cfg = EvaluationConfig(
        variant=variant, draws=draws, seed=seed, at=tuple(at or (0.5,)), truth_label=truth_label
    )
    folder = folder or results.inside("evaluation" if variant == "official" else f"evaluation-{variant}")
    selection = Selection(rules(dataset), tuple(exclude or ()), subset, others_normal)
    with each_of(workers, scheduler, scheduler_file) as each:
        predictions = rescored(_predictions(results, slides), slide_score, slide_model, test=True, each=each)
        cases = join(predictions, truth, selection)
        with progress("slides", transient=True) as tick:
            result = evaluate(cases.cases, cfg, tick, each=each)
    real = all(case.prediction.name.casefold().startswith("test_") for case in cases.cases)
    value = record(predictions, cases, result, cfg)
    write_report(folder, value, result, cfg, published=real if published is None else published)
    if atlas:
        with progress("pictures", transient=True) as tick:
            cards = with_views(mistakes(result), tick)
        write_atlas(folder, cards, result, value, variant)
    _say(result, cases, value, folder, atlas)


def rules(name: str) -> Dataset:
    """The rules of the data set that ``--dataset`` names."""
    return Dataset() if name == "none" else read_dataset(name)


def _predictions(results: Folder, slides: list[str] | None) -> Predictions:
    predictions = read_predictions(results)
    return (
        with_slides(predictions, gather(slides, mpp=None, allow_anisotropic=False)) if slides else predictions
    )


def rescored(
    predictions: Predictions,
    rule: SlideScore,
    forest: Path | None,
    *,
    test: bool = False,
    each: Each = each_here,
) -> Predictions:
    """The same detections with slide scores by a rule or by a forest.

    Raises:
        ConfigError: both are asked for.
    """
    if forest is not None and rule != "maximum":
        raise ConfigError(f"--slide-score {rule} and --slide-model both score slides; give one of them")
    return with_slide_model(with_slide_score(predictions, rule), forest, test=test, each=each)


def with_slide_model(
    predictions: Predictions, folder: Path | None, *, test: bool = False, each: Each = each_here
) -> Predictions:
    """The same detections with slide scores by a forest; in a test it must not have seen any of the slides."""
    if folder is None:
        return predictions
    forest, card = read_forest(folder, patch_models(predictions))
    scored_slides = [p for p in predictions.slides if p.score is not None]
    overlap = [p.name for p in scored_slides if slide_key(p) in card.seen]
    if test and overlap:
        raise ConfigError(
            f"{folder} was grown on {len(overlap)} of these slides, {overlap[0]} among them, so this would be no test; "
            f"take other slides, or the cross-validated figures in its {CARD}"
        )
    scores = forest.predict(features_of(scored_slides, each=each))
    values = dict(zip([p.name for p in scored_slides], scores, strict=True))
    slides = tuple(
        replace(p, score=float(values[p.name]) if p.name in values else None) for p in predictions.slides
    )
    demonstration = ", demonstration weights" if card.demonstration else ""
    return replace(predictions, slides=slides, score_rule=f"the slide-level model {card.name}{demonstration}")


def patch_models(predictions: Predictions) -> tuple[str, ...]:
    """Hashes of the models that scored the slides."""
    return tuple(model["sha256"] for model in predictions.made_by.get("models", []))


def _say(result: Evaluation, cases: Cases, value: dict[str, Any], folder: Folder, atlas: bool) -> None:
    figures = value["figures"]
    if cases.taken_as_normal:
        err.print(f"taken as normal, by --others-normal: {', '.join(cases.taken_as_normal)}", markup=False)
    if any(case.prediction.size is None for case in cases.cases):
        err.print(
            "whether detections lie on their slides is not known, and there are no pictures: pass --slides"
        )
        err.print(f"slide score: {value['slide score']}", markup=False)
    for name, reason in cases.left_out.items():
        err.print(f"{name} is left out: {reason}", markup=False)
    for name in value["not counted for FROC"]:
        err.print(f"{name} does not count for FROC: its tumour is not marked exhaustively", markup=False)
    notes = [note if note.startswith(name) else f"{name}: {note}" for name, note in value["notes"].items()]
    for note in notes[:NOTES]:
        err.print(note, markup=False)
    if len(notes) > NOTES:
        err.print(f"and {len(notes) - NOTES} more such notes, all in {folder.at('slides.csv')}", markup=False)
    auc = figures["AUC"]
    heading = f"{auc['tumour slides']} tumour and {auc['normal slides']} normal slides"
    table = Table(title=f"{heading}; FROC variant '{value['variant']}'", title_justify="left")
    table.add_column("")
    table.add_column("value (95 % interval)", justify="right")
    table.add_row("FROC score", interval_text(figures["FROC"]))
    for target, sensitivity in figures["sensitivity at false positives per slide"].items():
        table.add_row(f"sensitivity at {target}{PER_SLIDE}", interval_text(sensitivity))
    hit_count = figures["lesions to be found"] - figures["lesions without any detection"]
    table.add_row("lesions with any detection", f"{hit_count} of {figures['lesions to be found']}")
    table.add_row("false positives", str(figures["false positives"]))
    for _, name in KINDS:
        table.add_row(f"slides: {name}", interval_text(figures[name]))
    out.print(table)
    if any(figures[name]["value"] in (0, 1) for name in ("FROC", "AUC")):
        out.print("a figure of exactly 0 or 1 has an empty interval, which is no certainty")
    file_name = "atlas.html" if atlas else "froc.png"
    out.print(f"{folder.at(file_name)} shows it; for research use only", markup=False)


@app.command("compare")
def compare_command(
    first: Annotated[
        str, typer.Argument(metavar="FIRST", help="Results that wsi camelyon16 evaluate has evaluated.")
    ],
    second: Annotated[
        str, typer.Argument(metavar="SECOND", help="Other results of the same slides, evaluated, too.")
    ],
    draws: Annotated[
        int, typer.Option(min=100, max=100_000, help="The number of bootstrap draws and of permutations.")
    ] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the bootstrap and of the permutations.")] = 0,
    file: Annotated[
        Path | None, typer.Option("--out", "-o", help="A JSON file to write the comparison to.")
    ] = None,
) -> None:
    """Tell whether one run is better than the other, by a paired bootstrap and a paired permutation test.

    Examples:
    wsi camelyon16 compare first_results second_results
    """
    a, b = read_evaluation(first), read_evaluation(second)
    differences = compare(a, b, draws, seed)
    if file is not None:
        origin = {
            "program": f"slidewright {version()}",
            "code": code_hash(),
            "intended_use": "research use only",
        }
        settings = {
            "first": a.path,
            "second": b.path,
            "variant": a.variant,
            "draws": draws,
            "seed": seed,
        }
        write_json(file, origin | settings | {"differences, first less second": differences})
    heading = f"{len(a.names)} slides; FROC variant '{a.variant}'; sensitivities at so many{PER_SLIDE}"
    out.print(f"first: {a.path}\nsecond: {b.path}", markup=False)
    table = Table(title=heading, title_justify="left")
    for heading in ("", "first", "second", "difference (95 % interval)", "p"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, difference in differences.items():
        values = ["not defined" if v is None else f"{v:.3f}" for v in difference["values"]]
        p = "" if difference["p"] is None else f"{difference['p']:.4f}"
        table.add_row(name.removesuffix(PER_SLIDE), *values, interval_text(difference["difference"]), p)
    out.print(table)
    out.print(
        "p of a permutation test, two-sided, for each line by itself; for research use only", markup=False
    )
