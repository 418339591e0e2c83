"""The likeness of a slide's tissue to the tissue that the model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.engines import Models
from wsi.arrays import RgbImage
from wsi.slides.blocks import plan_cells, read_ahead
from wsi.slides.grid import TileGrid
from wsi.slides.slide import Slide
from wsi.slides.stain import StainTransform

LOOKED_AT, FEWEST = 200, 20  # checked cells, evenly over the slide; fewer than FEWEST say nothing
# Normal mosaics of lymph nodes have 0.6 to 0.7, skin and a kidney in H&E 0.93 and more (benchmarks/controls.py).
UNLIKE_FROM = 0.7


def unlike_share(
    slide: Slide, grid: TileGrid, models: Models, *, recolour: StainTransform | None = None, threads: int = 1
) -> float | None:
    """Share of a slide's cells that look unlike the model's training patches; about 0.05 for slides of the same kind.

    Returns:
        0..1; None where no model has a record of its domain, or fewer than `FEWEST` cells can be read.
    """
    model_folder = _with_domain(models)
    if model_folder is None or len(grid) < FEWEST:
        return None
    indices = np.unique(np.linspace(0, len(grid) - 1, LOOKED_AT).round().astype(np.int64))
    blocks = plan_cells(grid.cells[indices], grid.plan)
    patches: list[RgbImage] = []
    for block in read_ahead(slide, blocks, recolour=recolour, threads=threads, ahead=8):
        patches.extend(block.patches.patches(0, len(block.patches)))
    return unlike_patches(patches, models)


def unlike_patches(patches: Sequence[RgbImage], models: Models) -> float | None:
    """Share of patches that look unlike the training patches; RGB uint8, as the engine of these models takes them."""
    model_folder = _with_domain(models)
    if model_folder is None or len(patches) < FEWEST:
        return None
    from models.engines.domain import look_unlike  # loads torch, which takes seconds

    return float(look_unlike(model_folder, patches, models.card).mean())


def unlike_note(share: float | None, models: Models, of: str = "its tissue looks") -> str:
    """A warning for readers of the scores; empty where the tissue looks known, or ``share`` is None."""
    if share is None or share < UNLIKE_FROM:
        return ""
    name = next(card.name for card in models.cards if card.domain is not None)
    return (
        f"{100 * share:.0f} % of {of} unlike what {name} was trained on (5 % is usual): another organ, "
        f"stain or scanner, or out of focus; the scores may mean nothing"
    )


def _with_domain(models: Models) -> Path | None:
    """The folder of the first model that has a record of its domain; None where none has."""
    pairs = zip(models.folders, models.cards, strict=True)
    return next((folder for folder, card in pairs if card.domain is not None), None)
