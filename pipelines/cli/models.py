"""``wsi models``: what ships, what a model says of itself, and models for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from models.card import card_json
from models.engines import find_models
from models.engines.contract import shipped
from pipelines.cli.console import out
from wsi.errors import StoreError

app = typer.Typer(no_args_is_help=True, help="List, show and export models.")


@app.command("list")
def list_models() -> None:
    """The models that ship with the program."""
    for name in shipped():
        card = find_models([name]).card
        kind = "demonstration weights, not for real tissue" if card.demonstration else card.intended_use
        spacing = "any spacing" if card.spacing_um is None else f"{card.spacing_um:g} um/px"
        out.print(f"{name}  width {card.architecture.width:g}, {spacing}; {kind}", markup=False)


@app.command("show")
def show(model: Annotated[str, typer.Argument(help="Name of a model that ships, or a folder.")]) -> None:
    """A model's card: data, split, recipe, metrics, intended use, limits."""
    out.print(card_json(find_models([model]).card), end="", markup=False)


@app.command("export")
def export(
    model: Annotated[str, typer.Argument(help="Name of a model that ships, or a folder.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder to write; made if it is not there.")],
    form: Annotated[
        Literal["onnx", "wsinfer"],
        typer.Option("--form", help="onnx: model.onnx and card.json. wsinfer: TorchScript and config.json."),
    ] = "onnx",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model in OUT.")] = False,
) -> None:
    """Write a model for other programs, and check that it gives the same answers."""
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
