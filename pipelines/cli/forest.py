"""``wsi camelyon16 forest``: a slide-level model on the heatmaps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.camelyon16.benchmark.cases import Selection, join
from pipelines.camelyon16.benchmark.curves import interval_text
from pipelines.camelyon16.benchmark.predictions import read_predictions
from pipelines.camelyon16.slide_model.features import FEATURES
from pipelines.camelyon16.slide_model.forest import (
    Fitted,
    ForestCard,
    ForestConfig,
    fit,
    slide_key,
    write_forest,
)
from pipelines.cli.camelyon16 import (
    DatasetName,
    Exclude,
    OthersNormal,
    Subset,
    Truth,
    TruthLabel,
    patch_models,
    rules,
)
from pipelines.cli.console import out
from pipelines.cli.options import Results, Scheduler, SchedulerFile, Workers, each_of
from pipelines.runs.made_by import code_hash, version
from pipelines.runs.training_pictures import roc_png
from wsi.files import csv_text, write_bytes, write_text
from wsi.metrics.ranking import roc
from wsi.vocabulary import NORMAL, TUMOUR


def forest_command(
    results: Results,
    truth: Truth,
    folder: Annotated[Path, typer.Option("--out", "-o", help="The folder for the model.")],
    trees: Annotated[int, typer.Option(min=1, max=10_000, help="The number of trees.")] = 500,
    folds: Annotated[
        int, typer.Option(min=2, help="The number of folds of the cross-validation, by slide.")
    ] = 5,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the forest and of the folds.")] = 0,
    dataset: DatasetName = "camelyon16",
    exclude: Exclude = None,
    subset: Subset = False,
    others_normal: OthersNormal = False,
    truth_label: TruthLabel = None,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    scheduler_file: SchedulerFile = None,
) -> None:
    """Grow a slide-level model on 28 features of the heatmaps; cross-validation says what it adds to the maximum.

    Examples:
    wsi camelyon16 forest training_results --truth CAMELYON16 -o forest
    """
    cfg = ForestConfig(trees=trees, folds=folds, seed=seed)
    selection = Selection(rules(dataset), tuple(exclude or ()), subset, others_normal)
    predictions = read_predictions(results)
    cases = join(predictions, truth, selection).cases
    with each_of(workers, scheduler, scheduler_file) as each:
        fitted = fit(cases, cfg, truth_label, each=each)
    card = ForestCard(
        name=folder.name,
        features=FEATURES,
        settings=cfg,
        patch_models=patch_models(predictions),
        demonstration=any(m["demonstration"] for m in predictions.made_by.get("models", [])),
        seen=tuple(sorted(slide_key(case.prediction) for case in cases)),
        slides={"normal": int((~fitted.tumour).sum()), "tumour": int(fitted.tumour.sum())},
        auc=fitted.quality,
        made_by=f"slidewright {version()}, code {code_hash()}",
    )
    write_forest(folder, fitted.forest, card)
    _write_validation(folder / "validation", folder.name, fitted)
    for name, figure in fitted.quality.items():
        out.print(f"{name}: {interval_text(figure)}", markup=False)
    out.print(
        f"{folder} holds the model; its folder 'validation' names slides. For research use only", markup=False
    )


def _write_validation(folder: Path, name: str, fitted: Fitted) -> None:
    """Write the scores of every slide by name, apart from the model: names may be accession numbers."""
    columns = (fitted.names, fitted.tumour, fitted.fold + 1, fitted.scores, fitted.maximum, fitted.features)
    rows = [
        (
            slide,
            TUMOUR if tumour else NORMAL,
            fold,
            f"{score:.6f}",
            f"{top:.6f}",
            *(f"{v:.6g}" for v in values),
        )
        for slide, tumour, fold, score, top, values in zip(*columns, strict=True)
    ]
    header = ("slide", "truth", "fold", "forest_out_of_fold", "maximum", *FEATURES)
    write_text(folder / "scores.csv", csv_text(header, rows))
    curves = [("forest, out of fold", *roc(fitted.tumour, fitted.scores))]
    curves.append(("maximum of the heatmap", *roc(fitted.tumour, fitted.maximum)))
    write_bytes(folder / "roc.png", roc_png(curves, f"{name}: {len(rows)} slides, out of fold"))
