"""``wsi camelyon16``: the benchmark, from results of ``wsi score`` or from a submission."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from pipelines.camelyon16.atlas import mistakes, with_views, write_atlas
from pipelines.camelyon16.cases import Cases, Selection, join
from pipelines.camelyon16.curves import interval_text
from pipelines.camelyon16.evaluation import Evaluation, EvaluationConfig, evaluate
from pipelines.camelyon16.predictions import Predictions, read_predictions, with_slides
from pipelines.camelyon16.report import record, write_report
from pipelines.cli.console import err, out, progress
from pipelines.cohort import gather
from wsi.dataset import Dataset, read_dataset

app = typer.Typer(no_args_is_help=True, help="The Camelyon16 benchmark: evaluate, compare, submit.")

Truth = Annotated[
    Path,
    typer.Option(
        help="Folder of annotation files or masks, or slides.csv with the columns path, truth, label."
    ),
]
VariantName = Annotated[
    Literal["official", "dataset", "negatives"], typer.Option(help="Which definition of FROC.")
]
DatasetName = Annotated[
    Literal["camelyon16", "none"],
    typer.Option(
        help="Whose rules by slide name apply where --truth is a folder: exclusions, slides marked in part."
    ),
]
Exclude = Annotated[list[str] | None, typer.Option(help="Leave out this slide; repeat for several.")]
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
TruthLabel = Annotated[int | None, typer.Option(min=1, help="Value of masks that means tumour.")]


@app.callback()
def _group() -> None:
    """The Camelyon16 benchmark: evaluate, compare, submit."""


@app.command("evaluate")
def evaluate_command(
    results: Annotated[Path, typer.Argument(help="OUT of wsi score, or a submission's folder.")],
    truth: Truth,
    folder: Annotated[Path | None, typer.Option("--out", help="Default: RESULTS/evaluation.")] = None,
    variant: VariantName = "official",
    draws: Annotated[
        int, typer.Option(min=0, max=100_000, help="Of the bootstrap; 0 for no intervals.")
    ] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    dataset: DatasetName = "camelyon16",
    exclude: Exclude = None,
    subset: Subset = False,
    others_normal: OthersNormal = False,
    truth_label: TruthLabel = None,
    slides: Slides = None,
    atlas: Annotated[bool, typer.Option(help="Write the page of mistakes.")] = True,
    published: Annotated[
        bool,
        typer.Option("--published", help="Draw published results on the real test slides into the curves."),
    ] = False,
) -> None:
    """FROC, ROC and their intervals, tables of lesions and false positives, curves, and a page of every mistake."""
    cfg = EvaluationConfig(variant=variant, draws=draws, seed=seed, truth_label=truth_label)
    folder = folder or results / "evaluation"
    selection = Selection(_rules(dataset), tuple(exclude or ()), subset, others_normal)
    predictions, cases = _cases(results, truth, selection, slides)
    with progress("slides", transient=True) as tick:
        result = evaluate(cases.cases, cfg, tick)
    real = all(case.prediction.name.casefold().startswith("test_") for case in cases.cases)
    value = record(predictions, cases, result, cfg)
    write_report(folder, value, result, cfg, published=published or real)
    if atlas:
        with progress("pictures", transient=True) as tick:
            cards = with_views(mistakes(result, folder), tick)
        write_atlas(folder / "atlas.html", cards, result, value, variant)
    _say(result, cases, value, folder, atlas)


def _rules(name: str) -> Dataset:
    return Dataset() if name == "none" else read_dataset(name)


def _cases(
    results: Path, truth: Path, selection: Selection, slides: list[str] | None
) -> tuple[Predictions, Cases]:
    predictions = read_predictions(results)
    if slides:
        predictions = with_slides(predictions, gather(slides, mpp=None, allow_anisotropic=False))
    return predictions, join(predictions, truth, selection)


def _say(result: Evaluation, cases: Cases, value: dict[str, Any], folder: Path, atlas: bool) -> None:
    figures = value["figures"]
    for name, why in cases.left_out.items():
        err.print(f"{name} is left out: {why}", markup=False)
    for name in value["not counted for FROC"]:
        err.print(f"{name} does not count for FROC: its tumour is not marked exhaustively", markup=False)
    for name, note in value["notes"].items():
        err.print(note if note.startswith(name) else f"{name}: {note}", markup=False)
    auc = figures["AUC"]
    heading = f"{auc['tumour slides']} tumour and {auc['normal slides']} normal slides"
    table = Table(title=f"{heading}; FROC variant '{value['variant']}'", title_justify="left")
    table.add_column("")
    table.add_column("value (95 % interval)", justify="right")
    table.add_row("FROC score", interval_text(figures["FROC"]))
    for target, shown in figures["sensitivity at false positives per slide"].items():
        table.add_row(f"sensitivity at {target} false positives per slide", interval_text(shown))
    found = figures["lesions to be found"] - figures["lesions without any detection"]
    table.add_row("lesions with any detection", f"{found} of {figures['lesions to be found']}")
    for name in ("AUC", "AUC, macrometastases", "AUC, micrometastases"):
        table.add_row(f"slides: {name}", interval_text(figures[name]))
    out.print(table)
    shows = "atlas.html" if atlas else "froc.png"
    out.print(f"{folder / shows} shows it; for research use only", markup=False)
