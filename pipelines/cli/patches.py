"""``wsi score-patches``: it scores a folder of patches and writes a table and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.card import DEFAULT_MODEL
from models.engines import EngineConfig, find_models, load_engine
from pipelines.cli.console import err, out, progress
from pipelines.cli.options import (
    EngineName,
    ModelNames,
    Orientations,
    Out,
    PatchMpp,
    Precision,
    check_patch_spacing,
)
from pipelines.runs.made_by import fingerprint, run_record
from pipelines.runs.patches import score_patches, write_patch_results
from pipelines.runs.run_folder import refuse_other_run
from wsi.datasets.patch_pictures import list_patches
from wsi.text import number_of


def patches_command(
    patches: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="A folder of pictures; subfolders normal and tumor, or a patches.csv (file, label), give labels.",
        ),
    ],
    folder: Out,
    model: ModelNames = None,
    mpp: PatchMpp = None,
    orientations: Orientations = None,
    engine: EngineName = None,
    precision: Precision = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace scores of another model or other settings.")
    ] = False,
) -> None:
    """Score patches: scores.csv, and with labels AUC, calibration and the worst mistakes on a page.

    Pictures state no spacing: --mpp does, else they are taken to have the model's. They are mirrored or cropped around
    their middle to its side, as in training.

    Examples:
    wsi score-patches patches/ -m my_model -o patch_scores

    wsi score-patches patches/ -m lymph-node-10x --mpp 0.243 --orientations 8 -o patch_scores
    """
    cfg = EngineConfig(
        engine=engine or "auto", precision=precision or "auto", orientations=8 if orientations == "8" else 1
    )
    pictures = list_patches(patches)
    runner = load_engine(find_models(model or [DEFAULT_MODEL]), cfg)
    cards = runner.models.cards
    made_by = fingerprint(models=[card.sha256 for card in cards], engine=runner.description, mpp=mpp)
    if not overwrite:
        refuse_other_run(folder, made_by)
    names = " and ".join(card.name for card in cards)
    out.print(
        f"{number_of(len(pictures), 'patch', 'patches')}; model {names}; {runner.description}", markup=False
    )
    if any(card.demonstration for card in cards):
        out.print("a demonstration model, trained on phantoms: its scores on real tissue mean nothing")
    check_patch_spacing(mpp, cards[0])
    with progress("patches") as tick:
        scored = score_patches(pictures, runner, mpp=mpp, tick=tick)
    for sentence in scored.left_out:
        err.print(f"left out: {sentence}", markup=False)
    if not scored.patches:
        err.print(
            f"none of the {len(pictures)} patches of {patches} can be read; see above why", markup=False
        )
        raise typer.Exit(1)
    models = [{"name": c.name, "sha256": c.sha256, "demonstration": c.demonstration} for c in cards]
    settings = cfg.model_dump(mode="json") | {"mpp": mpp or cards[0].spacing_um}
    record = run_record(settings, models, runner.description, made_by)
    quality = write_patch_results(folder, scored, record)
    if scored.warning:
        err.print(scored.warning, markup=False)
    if scored.note:
        out.print(scored.note, markup=False)
    if quality is not None:
        low, high = quality.interval
        negative, positive = scored.words
        out.print(
            f"{quality.positive} {positive} and {quality.negative} {negative}: AUC {quality.auc:.4f} "
            f"({low:.4f} to {high:.4f}), expected calibration error {quality.calibration_error:.3f}",
            markup=False,
        )
    out.print(f"{folder.at('index.html')} shows them; for research use only", markup=False)
    raise typer.Exit(1 if scored.left_out else 0)
