"""``wsi explain``: a picture of what in a patch speaks for its score."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from models.card import DEFAULT_MODEL
from models.engines.contract import find_folder
from pipelines.camelyon16.read.explain import explain_places, explained_png
from pipelines.cli.console import out
from pipelines.cli.options import Mpp
from wsi.errors import ConfigError
from wsi.files import write_bytes
from wsi.slides.source import SlideSource

SHOWN = 4  # peaks of a result


def explain(
    slide: Annotated[str, typer.Argument(metavar="SLIDE", help="The slide, or its URL.")],
    file: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The picture to write, a PNG.")],
    at: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y", help="A place in level-0 pixels; give it again for more of them."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="The slide's folder of wsi score: its four strongest peaks are explained."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="A model of patches: a name or a folder.")
    ] = DEFAULT_MODEL,
    mpp: Mpp = None,
) -> None:
    """Show what in a patch speaks for its score, and what against it: class activation maps; of timm's, Grad-CAM.

    The evidence is the model's, and no proof: it says where the network looked, not what is there.

    Examples:
    wsi explain my_slide.svs --at 52000,31400 -o why.png

    wsi explain my_slide.svs --results results/my_slide -o why.png
    """
    from models.engines.explain import Explainer

    if (at is None) == (results is None):
        raise ConfigError("give places by --at, or a slide's results by --results")
    if file.suffix.lower() != ".png":
        raise ConfigError(f"--out {file} must end in .png")
    explainer = Explainer(find_folder(model))
    source = SlideSource(slide, mpp)
    peaks = [] if results is None else _peaks(results, explainer.card.name, source)
    places = [(x, y) for _, x, y in peaks] or [_place(text) for text in at or []]
    with source.open() as opened:
        explained = explain_places(opened, places, explainer)
    write_bytes(file, explained_png(source.name, explained, explainer.card))
    for i, place in enumerate(explained):
        beside = f" ({peaks[i][0]:.3f} in the results)" if peaks else ""
        out.print(f"x {place.x}, y {place.y}: score {place.explanation.score:.3f}{beside}", markup=False)
    out.print(f"{file} shows why; for research use only", markup=False)


def _place(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--at {text} is no place; give X,Y in level-0 pixels, such as 52000,31400"
        ) from error
    return x, y


def _peaks(folder: Path, model: str, source: SlideSource) -> list[tuple[float, float, float]]:
    """Score, x and y of the strongest peaks of a slide's result.

    Raises:
        ConfigError: it has none, or is of another model's name, another slide or another spacing.
    """
    try:
        facts = json.loads((folder / "slide.json").read_bytes())
        made_by, identity, mpp = str(facts["model"]), str(facts["slide_identity"]), float(facts["mpp"])
        peaks = [(float(p["score"]), float(p["x"]), float(p["y"])) for p in facts["lesions"][:SHOWN]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} holds no finished result that can be read ({error}); give a slide's folder in the --out of "
            f"wsi score"
        ) from error
    if made_by != model:
        raise ConfigError(f"{folder} was made by the model {made_by}, not by {model}; pass --model")
    if identity != source.identity():
        raise ConfigError(f"{folder} was made of another slide than {source.label}; check both")
    with source.open() as slide:
        if not math.isclose(slide.mpp, mpp):
            raise ConfigError(
                f"{folder} was made at {mpp:g} um/px, and {slide.mpp:g} is read now; pass --mpp {mpp:g}"
            )
    if not peaks:
        raise ConfigError(f"{folder} has no peak; give a place by --at")
    return peaks
