"""``wsi score-patches``: a folder of patches in, a table and a page out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from models.card import ModelCard
from models.engines import EngineConfig, find_models, load_engine
from pipelines.cli.console import err, out, progress
from pipelines.cli.options import DEFAULT_MODEL, ModelNames, Out
from pipelines.patches import score_patches, write_patch_results
from pipelines.provenance import fingerprint, run_record
from pipelines.run_folder import refuse_other_run
from wsi.errors import ConfigError
from wsi.patch_pictures import list_patches


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
    mpp: Annotated[
        float | None,
        typer.Option(
            "--mpp",
            min=0.01,
            max=1000,
            help="Micrometres per pixel of the patches, which are then brought to the model's spacing.",
            show_default="the model's own",
        ),
    ] = None,
    orientations: Annotated[
        Literal["1", "8"], typer.Option(help="With 8, scores are the mean over all flips and turns.")
    ] = "1",
    engine: Annotated[
        Literal["auto", "openvino", "torch"], typer.Option(help="The library that runs the model.")
    ] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        typer.Option(help="The numbers that the network computes in."),
    ] = "auto",
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
    cfg = EngineConfig(engine=engine, precision=precision, orientations=8 if orientations == "8" else 1)
    listed = list_patches(patches)
    runner = load_engine(find_models(model or [DEFAULT_MODEL]), cfg)
    cards = runner.models.cards
    made_by = fingerprint(models=[card.sha256 for card in cards], engine=runner.description, mpp=mpp)
    if not overwrite:
        refuse_other_run(folder, made_by)
    names = " and ".join(card.name for card in cards)
    out.print(f"{len(listed)} patches; model {names}; {runner.description}", markup=False)
    if any(card.demonstration for card in cards):
        out.print("a demonstration model, trained on phantoms: its scores on real tissue mean nothing")
    _check_spacing(mpp, cards[0])
    with progress("patches") as tick:
        scored = score_patches(listed, runner, mpp=mpp, tick=tick)
    for sentence in scored.left_out:
        err.print(f"left out: {sentence}", markup=False)
    if not scored.patches:
        err.print(f"none of the {len(listed)} patches of {patches} can be read; see above why", markup=False)
        raise typer.Exit(1)
    models = [{"name": c.name, "sha256": c.sha256, "demonstration": c.demonstration} for c in cards]
    record = run_record(cfg.model_dump(mode="json") | {"mpp": mpp}, models, runner.description, made_by)
    quality = write_patch_results(folder, scored, record)
    if scored.note:
        out.print(scored.note, markup=False)
    if quality is not None:
        low, high = quality.interval
        out.print(
            f"{quality.tumour} tumour and {quality.normal} normal: AUC {quality.auc:.4f} ({low:.4f} to {high:.4f}), "
            f"expected calibration error {quality.calibration_error:.3f}",
            markup=False,
        )
    out.print(f"{folder / 'index.html'} shows them; for research use only", markup=False)
    raise typer.Exit(1 if scored.left_out else 0)


def _check_spacing(mpp: float | None, card: ModelCard) -> None:
    """Say which spacing the patches are taken to have; refuse what cannot be brought to the model's."""
    if card.spacing_um is None:
        return
    if mpp is None:
        said = f"the patches are taken to have {card.spacing_um:g} um/px, the model's spacing; --mpp says otherwise"
        err.print(said, markup=False)
    elif mpp > card.spacing_um * (1 + card.spacing_tolerance):
        raise ConfigError(
            f"patches of {mpp:g} um/px are coarser than the model's {card.spacing_um:g}; use a model of their spacing"
        )
