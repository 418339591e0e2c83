"""The picture of what a model saw at some places of a slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from models.card import ModelCard
from models.engines.explain import Explainer, Explanation
from pipelines.camelyon16.read.score import ScoreConfig
from pipelines.runs.pictures import png
from wsi.arrays import RgbImage
from wsi.errors import ConfigError, RegionError
from wsi.slides.blocks import plan_cells, read_block
from wsi.slides.slide import Slide, plan_read
from wsi.slides.stain import fit_slide
from wsi.slides.tissue import find_tissue

OPACITY = 0.45
ROW_IN = 3.6  # height of a place on the picture


@dataclass(frozen=True, eq=False, slots=True)
class Explained:
    """A place: its cell's corner in level-0 pixels, the patch that the model saw, and what spoke for the class."""

    x: int
    y: int
    patch: RgbImage
    explanation: Explanation


def explain_places(
    slide: Slide, places: Sequence[tuple[float, float]], explainer: Explainer
) -> list[Explained]:
    """Explain the scores of the cells that hold some places, with the pixels that scoring reads.

    Args:
        slide: an open slide.
        places: level-0 (x, y).
        explainer: of the model.

    Raises:
        ConfigError: a place lies off the slide.
        RegionError: a place cannot be decoded.
        SpacingError: the slide is too coarse for the model.
    """
    card = explainer.card
    plan = plan_read(slide, card.patch_px, card.stride_px, card.spacing_um, tolerance=card.spacing_tolerance)
    recolour = None
    if card.stain_normalisation != "none":
        recolour = fit_slide(slide, find_tissue(slide, ScoreConfig().tissue), card.stain_normalisation)
    explained = []
    for x, y in places:
        if not (0 <= x < slide.size[0] and 0 <= y < slide.size[1]):
            raise ConfigError(
                f"({x:g}, {y:g}) lies off {slide.path}, which is {slide.size[0]} x {slide.size[1]} px; check --at"
            )
        cell = np.array([[int(y // plan.stride_l0), int(x // plan.stride_l0)]], np.int64)
        read = read_block(slide, plan_cells(cell, plan)[0], recolour)
        if not read.readable.all():
            raise RegionError(f"{slide.path} cannot be decoded at ({x:g}, {y:g}); choose another place")
        patch = read.patches.patches(0, 1)[0]
        corner = int(cell[0, 1]) * plan.stride_l0, int(cell[0, 0]) * plan.stride_l0
        explained.append(Explained(*corner, patch, explainer.explain(patch)))
    return explained


def explained_png(name: str, places: Sequence[Explained], card: ModelCard) -> bytes:
    """A row for each place: what the model saw, with its cell marked, and the same under its evidence."""
    figure = Figure(figsize=(8.2, ROW_IN * len(places) + 0.9), dpi=110)
    grid = figure.subplots(len(places), 2, squeeze=False)
    most = max(float(np.abs(place.explanation.evidence).max()) for place in places) or 1.0
    for (left, right), place in zip(grid, places, strict=True):
        side = len(place.patch)
        low = (side - card.stride_px) / 2
        for axes in (left, right):
            axes.imshow(place.patch)
            axes.add_patch(
                Rectangle(
                    (low - 0.5, low - 0.5), card.stride_px, card.stride_px, fill=False, edgecolor="black"
                )
            )
            axes.set_axis_off()
        fine = cv2.resize(place.explanation.evidence, (side, side), interpolation=cv2.INTER_LINEAR)
        shown = right.imshow(fine, cmap="RdBu_r", vmin=-most, vmax=most, alpha=OPACITY)
        left.set_title(f"x {place.x}, y {place.y}", fontsize=10, loc="left")
        right.set_title(f"score {place.explanation.score:.3f}", fontsize=10, loc="left")
    head, foot = 1 - 0.55 / figure.get_figheight(), 0.3 / figure.get_figheight()
    figure.subplots_adjust(
        left=0.01, right=0.88, top=head - 0.2 / figure.get_figheight(), bottom=foot, wspace=0.03
    )
    bar = figure.colorbar(shown, cax=figure.add_axes((0.9, foot, 0.02, head - foot)))
    unit = "Grad-CAM, no unit" if places[0].explanation.constant is None else "log-odds"
    bar.set_label(f"evidence for {card.positive!r} ({unit})", fontsize=9)
    figure.suptitle(
        f"{name}: why these scores? The square is the cell.", x=0.01, ha="left", fontsize=11, parse_math=False
    )
    note = ", trained on phantoms: its scores on real tissue mean nothing" if card.demonstration else ""
    figure.text(
        0.01, 0.004, f"model {card.name}{note}. For research use only.", fontsize=8.5, color="#8c0d18"
    )
    return png(figure)
