"""``wsi models``: what ships, what a model says of itself, and models for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from models.card import ModelCard, card_json, is_detector
from models.engines import find_models
from models.engines.contract import find_folder, shipped
from pipelines.cli.console import out
from wsi.errors import StoreError

if TYPE_CHECKING:
    from models.detector_card import DetectorCard

app = typer.Typer(no_args_is_help=True, help="List, show and export models.")


@app.command("list")
def list_models() -> None:
    """List the models that ship with the program."""
    for name in shipped():
        if is_detector(find_folder(name)):
            detector = _detector_card(name)
            d = detector.detector
            out.print(
                f"{name}  detector, {d.backbone}, {d.spacing_um:g} um/px; {_use(detector)}", markup=False
            )
            continue
        card = find_models([name]).card
        spacing = "any spacing" if card.spacing_um is None else f"{card.spacing_um:g} um/px"
        out.print(f"{name}  width {card.architecture.width:g}, {spacing}; {_use(card)}", markup=False)


def _use(card: ModelCard | DetectorCard) -> str:
    return "demonstration weights, not for real tissue" if card.demonstration else card.intended_use


def _detector_card(model: str) -> DetectorCard:
    from models.detector_card import load_detector

    return load_detector(find_folder(model))[1]


@app.command("show")
def show(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The name of a model that ships, or a model's folder.")
    ],
) -> None:
    """Print a model's card: data, split, recipe, metrics, intended use, limits.

    Examples:
    wsi models show lymph-node-demo
    """
    card = _detector_card(model) if is_detector(find_folder(model)) else find_models([model]).card
    out.print(card_json(card), end="", markup=False)


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
    from models.portable import export_onnx, export_wsinfer

    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise StoreError(f"{folder} is not empty; choose another --out, or pass --overwrite")
    source = find_models([model]).folders[0]
    difference = (export_onnx if form == "onnx" else export_wsinfer)(source, folder)
    out.print(
        f"{folder} holds {model} for {'ONNX' if form == 'onnx' else 'WSInfer'}; on 16 patches its scores differ "
        f"from the model's by at most {difference:.1e}",
        markup=False,
    )
