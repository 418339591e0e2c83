"""``wsi renal``: C4d capillaries in kidney transplants."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.console import err, out, progress
from pipelines.cli.options import Anisotropic, Mpp
from pipelines.provenance import code_hash, version
from pipelines.renal.labels import proposed_labels
from wsi.errors import ConfigError
from wsi.export import Origin, origin_offset, write_geojson
from wsi.source import SlideSource
from wsi.tissue import TissueConfig, detect_tissue

app = typer.Typer(no_args_is_help=True, help="C4d capillaries in kidney transplants (in the making).")


@app.callback()
def _group() -> None:
    """C4d capillaries in kidney transplants (in the making)."""


@app.command("propose")
def propose(
    slide: Annotated[str, typer.Argument(help="A C4d-immunostained slide.")],
    model: Annotated[Path, typer.Option(help="Folder of a detector (wsi train capillaries).")],
    file: Annotated[Path, typer.Option("--out", help="GeoJSON to write.")],
    confidence: Annotated[float, typer.Option(min=0, max=1, help="Lowest score that is proposed.")] = 0.5,
    origin: Annotated[Origin, typer.Option(help="Of the coordinates; auto is what QuPath shows.")] = "auto",
    mpp: Mpp = None,
    allow_anisotropic: Anisotropic = False,
) -> None:
    """Propose capillaries for a person to correct in QuPath: boxes with class and score, not locked."""
    from models.detect_slide import detect_slide
    from models.detector_card import load_detector

    if file.suffix != ".geojson" and not file.name.endswith(".geojson.gz"):
        raise ConfigError(f"--out {file} must end in .geojson, so that QuPath reads it")
    network, card = load_detector(model)
    source = SlideSource(slide, mpp, allow_anisotropic)
    with source.open() as opened:
        mask = detect_tissue(opened, TissueConfig(method="density"))
        if not mask.pixels.any():
            raise ConfigError(f"{slide} shows no tissue; check that it is the right slide")
        with progress("tiles") as tick:
            result = detect_slide(opened, mask, network, card, lowest_score=confidence, tick=tick)
        offset = origin_offset(opened.bounds, origin)
    made_by = {"model": card.name, "sha256": card.sha256[:16], "program": f"slidewright {version()}"}
    made_by |= {"code": code_hash(), "intended use": "research use only"}
    features = proposed_labels(source.name, result.found, card.detector.classes, made_by)
    write_geojson(file, features, offset)
    counts = [
        f"{int((result.found.labels == i).sum())} {name}" for i, name in enumerate(card.detector.classes)
    ]
    out.print(f"{file}: {' and '.join(counts)}, on {result.tiles} tiles; for research use only", markup=False)
    if card.demonstration:
        out.print("a demonstration model, trained on phantoms: what it proposes on real tissue means nothing")
    if result.unreadable:
        x, y = result.unreadable[0]
        err.print(
            f"{len(result.unreadable)} tiles could not be decoded, the first at ({x}, {y})", markup=False
        )
        raise typer.Exit(1)
