"""``wsi models``: the models that ship, their cards, and models for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from models.card import (
    CARD,
    WEIGHTS,
    Card,
    DetectorCard,
    ModelCard,
    SegmenterCard,
    card_in,
    card_json,
    is_wsinfer,
)
from models.engines import find_models
from models.engines.contract import find_folder, shipped
from pipelines.cli.console import err, out, progress
from pipelines.cli.options import PatchMpp, check_patch_spacing
from wsi.datasets.patch_pictures import list_patches
from wsi.errors import ConfigError, StoreError
from wsi.files import write_text

app = typer.Typer(no_args_is_help=True, help="List, show, test, calibrate, quantise and export models.")


@app.command("list")
def list_models() -> None:
    """List the models that ship with the program."""
    for name in shipped():
        card = card_in(find_folder(name))
        out.print(f"{name}  {_kind(card)}; {_use(card)}", markup=False)


def _kind(card: Card) -> str:
    """Task, network and spacing."""
    if isinstance(card, DetectorCard):
        return f"detector, {card.detector.backbone}, {card.detector.spacing_um:g} um/px"
    if isinstance(card, SegmenterCard):
        return f"segmenter, {card.segmenter.network}, {card.segmenter.spacing_um:g} um/px"
    assert isinstance(card, ModelCard)
    architecture = card.architecture
    network = f"width {architecture.width:g}" if architecture.name == "inception_v3" else architecture.name
    if architecture.timm is not None:
        network = f"timm, {architecture.timm.name}"
    spacing = "any spacing" if card.spacing_um is None else f"{card.spacing_um:g} um/px"
    return f"{network}, {spacing}"


def _use(card: Card) -> str:
    return "demonstration weights, not for real tissue" if card.demonstration else card.intended_use


@app.command("show")
def show(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The name of a model that ships, or a model's folder.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the card as it is stored, with the whole recipe.")
    ] = False,
) -> None:
    """Print a model's card in words: what it is for, what it has seen and what not, how good it was on what.

    Examples:
    wsi models show lymph-node-10x
    """
    from pipelines.runs.model_figures import card_lines, detector_lines, segmenter_lines

    folder = find_folder(model)
    card = find_models([model]).card if is_wsinfer(folder) else card_in(folder)
    if isinstance(card, DetectorCard):
        lines = detector_lines(card)
    elif isinstance(card, SegmenterCard):
        lines = segmenter_lines(card)
    else:
        assert isinstance(card, ModelCard)
        lines = card_lines(card)
    out.print(card_json(card) if as_json else "\n".join(lines) + "\n", end="", markup=False)


@app.command("architectures")
def architectures() -> None:
    """List the networks that can be trained: task, source, licence, and where they differ from the source.

    Examples:
    wsi models architectures
    """
    from models.architectures import ARCHITECTURES

    for one in ARCHITECTURES:
        note = f"; {one.note}" if one.note else ""
        out.print(f"{one.name}  {one.task}; {one.source}; {one.licence}{note}", markup=False)


@app.command("test")
def measure(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The name of a model that ships, or a model's folder.")
    ],
    patches: Annotated[
        Path,
        typer.Option(help="A folder of labelled patches: subfolders normal and tumor, or a patches.csv."),
    ],
    mpp: PatchMpp = None,
    called: Annotated[
        str | None, typer.Option(help="What the patches are.", show_default="the folder's name")
    ] = None,
    write: Annotated[
        bool,
        typer.Option("--write", help="Add the figures to the card of the model, which must be a folder."),
    ] = False,
) -> None:
    """Measure a model on your own labelled patches, and print the figures below those of its card.

    For pictures of the mistakes: wsi score-patches.

    Examples:
    wsi models test lymph-node-10x --patches our_patches/ --mpp 0.25
    """
    from pipelines.runs.model_figures import figures_lines, measure_model

    card = find_models([model]).card
    folder = Path(model)
    if write and not (folder / WEIGHTS).is_file():
        raise ConfigError(
            f"--write changes the card of a model's folder, and {model} is none of ours; give its folder"
        )
    check_patch_spacing(mpp, card)
    with progress("patches") as tick:
        row, scored = measure_model(
            find_folder(model), list_patches(patches), called or patches.resolve().name, mpp=mpp, tick=tick
        )
    for sentence in scored.left_out:
        err.print(f"left out: {sentence}", markup=False)
    old_rows = card.metrics.get("figures", [])
    out.print("\n".join(figures_lines([*old_rows, row], card.words)), markup=False)
    if write:
        other_rows = [r for r in old_rows if r["data"] != row["data"]]
        new_card = card.model_copy(update={"metrics": card.metrics | {"figures": [*other_rows, row]}})
        write_text(folder / CARD, card_json(new_card))
    raise typer.Exit(1 if scored.left_out else 0)


@app.command("export")
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The name of a model that ships, or a model's folder.")
    ],
    folder: Annotated[
        Path, typer.Option("--out", "-o", help="The folder to write; it is made if it is not there.")
    ],
    form: Annotated[
        Literal["onnx", "wsinfer"],
        typer.Option(
            "--form", help="onnx writes model.onnx and card.json, wsinfer writes TorchScript and config.json."
        ),
    ] = "onnx",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model in OUT.")] = False,
) -> None:
    """Write a model for other programs, and check that it gives the same answers.

    Examples:
    wsi models export lymph-node-demo --form onnx -o my_export
    """
    from models.forms.portable import export_onnx, export_wsinfer

    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise StoreError(f"{folder} is not empty; choose another --out, or pass --overwrite")
    source = find_models([model]).folders[0]
    difference = (export_onnx if form == "onnx" else export_wsinfer)(source, folder)
    out.print(
        f"{folder} holds {model} for {'ONNX' if form == 'onnx' else 'WSInfer'}; on 16 patches its scores differ "
        f"from the model's by at most {difference:.1e}",
        markup=False,
    )


@app.command("quantise")
def quantise(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The name of a model that ships, or a model's folder.")
    ],
    folder: Annotated[
        Path, typer.Option("--out", "-o", help="The folder for the copy; it is made if it is not there.")
    ],
    training: Annotated[
        Path, typer.Option(help="A folder of patches like those that the model was trained on.")
    ],
    patches: Annotated[
        Path,
        typer.Option(help="A folder of labelled patches that it was not trained on, to measure the cost."),
    ],
    mpp: PatchMpp = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model in OUT.")] = False,
) -> None:
    """Write a copy of a model that also computes in int8: faster on CPUs with VNNI, at a measured cost.

    It needs pip install 'slidewright\\[int8]'; whoever runs the copy does not.

    Examples:
    wsi models quantise my_model --training patches/train --patches patches/valid -o my_model_int8
    """
    from pipelines.runs.model_figures import int8_line
    from pipelines.runs.quantise import quantise_model

    if (folder / CARD).exists() and not overwrite:
        raise StoreError(f"{folder} holds a model already; choose another --out, or pass --overwrite")
    source = find_folder(model)
    check_patch_spacing(mpp, find_models([model]).card)
    with progress("patches") as tick:
        card = quantise_model(
            source, list_patches(training), list_patches(patches), folder, mpp=mpp, tick=tick
        )
    assert card.int8 is not None
    out.print(int8_line(card.int8), markup=False)
    out.print(f"{folder} holds the model; for research use only", markup=False)


@app.command("calibrate")
def calibrate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The name of a model that ships, or a model's folder.")
    ],
    folder: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="The folder for the calibrated model; it is made if it is not there."
        ),
    ],
    patches: Annotated[
        Path | None,
        typer.Option(
            help="A folder of labelled patches that the model was not trained on; without it only the weights change."
        ),
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(
            help="The folder of patches that it was trained on: with it the model notices tissue it does not know."
        ),
    ] = None,
    mpp: PatchMpp = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model in OUT.")] = False,
) -> None:
    """Write a copy of a model whose scores mean what they say: of these patches with 0.9, nine in ten are tumour.

    Weights are stored in half precision; without --patches that is all that changes. The card states AUC and
    calibration error on the patches, the error of scores that were calibrated on the other half of them.

    Examples:
    wsi models calibrate runs/lymph-node-10x/model --patches PCAM/valid --training PCAM/train -o lymph-node-10x
    """
    from pipelines.runs.calibrate import calibrate_model, halve_model
    from pipelines.runs.model_figures import figures_lines

    if (folder / "card.json").exists() and not overwrite:
        raise StoreError(f"{folder} holds a model already; choose another --out, or pass --overwrite")
    source = find_folder(model)
    card = find_models([model]).card
    if patches is None:
        if training is not None or mpp is not None:
            raise ConfigError("--training and --mpp speak of --patches; give these, too")
        halve_model(source, folder)
        out.print(f"{folder} holds the model, not calibrated; for research use only", markup=False)
        return
    check_patch_spacing(mpp, card)

    def say(sentence: str) -> None:
        err.print(sentence, markup=False)

    with progress("patches") as tick:
        training_patches = list_patches(training) if training is not None else ()
        card = calibrate_model(
            source, list_patches(patches), folder, training=training_patches, mpp=mpp, say=say, tick=tick
        )
    row = card.metrics["figures"][0]
    error_before = card.metrics["calibration_error_before"]
    out.print("\n".join(figures_lines([row], card.words)), markup=False)
    out.print(f"  before, the calibration error was {error_before:.3f}", markup=False)
    out.print(f"{folder} holds the model; for research use only", markup=False)
