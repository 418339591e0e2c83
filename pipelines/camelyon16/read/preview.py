"""The picture of a scored slide: overview, heatmap over it, scale bar, colour bar, numbered lesions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from matplotlib.patheffects import withStroke

from models.card import ModelCard
from pipelines.camelyon16.read.lesions import Lesion
from pipelines.camelyon16.read.results import SlideResult
from pipelines.runs.pictures import bar_um, png
from wsi.results.heatmap import Heatmap
from wsi.slides.overview import Overview, read_overview
from wsi.slides.slide import Slide

PANEL_PX = 1000  # longer side of the overview
NUMBERED = 30  # lesions that get a number; more would hide the tissue
LEFT, RIGHT, GAP = 0.02, 0.9, 0.03  # shares of the figure's width; GAP is a share of a panel
HEAD_IN, FOOT_IN = 0.5, 0.4
# a lower score is more transparent: tissue with score 0 looks unchanged
COLOURS = LinearSegmentedColormap.from_list(
    "tumour",
    [(1.0, 0.95, 0.4, 0.0), (1.0, 0.75, 0.1, 0.4), (0.9, 0.25, 0.05, 0.62), (0.62, 0.0, 0.1, 0.75)],
)


def preview_png(
    slide: Slide,
    heatmap: Heatmap,
    lesions: Sequence[Lesion],
    result: SlideResult,
    card: ModelCard,
) -> bytes:
    """Draw the slide, and beside it the slide with its heatmap, as PNG."""
    overview = read_overview(slide, max(slide.size) * slide.mpp / PANEL_PX)
    figure = Figure(figsize=_figure_size(slide.size), dpi=130)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        _show(axes, overview, slide)
    heat = np.nan_to_num(COLOURS(heatmap.scores, bytes=True))  # of cells without a score: nothing
    right.imshow(heat, extent=_extent(heatmap), interpolation="nearest")
    _mark_unreadable(right, overview)
    _number(right, lesions, max(slide.size))
    _scale_bar(left, slide)
    figure.suptitle(_title(result), x=0.02, y=0.985, ha="left", va="top", fontsize=12, parse_math=False)
    note = f"model {card.name}. For research use only."
    if card.demonstration:
        note = f"model {card.name}, trained on phantoms: its scores on real tissue mean nothing. For research use only."
    if len(lesions) > NUMBERED:
        note = f"The {NUMBERED} strongest of {len(lesions)} peaks are numbered. {note}"
    figure.text(0.02, 0.012, note, fontsize=9.5, color="#8c0d18", parse_math=False)
    bottom, top = FOOT_IN / figure.get_figheight(), 1 - HEAD_IN / figure.get_figheight()
    figure.subplots_adjust(left=LEFT, right=RIGHT, bottom=bottom, top=top, wspace=GAP)
    box = right.get_position()
    bar_axes = figure.add_axes((0.915, box.y0, 0.014, box.height))
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), COLOURS), cax=bar_axes)
    bar.set_label(f"score of {card.positive!r}", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return png(figure)


def _figure_size(size: tuple[int, int]) -> tuple[float, float]:
    """Width and height in inches of a figure that two panels of the slide's shape fill."""
    aspect = size[1] / size[0]
    panel = min(5.8, 7.2 / aspect)
    across = max(panel * (2 + GAP) / (RIGHT - LEFT), 6.5)  # the title needs 6.5
    return across, panel * aspect + HEAD_IN + FOOT_IN


def _title(result: SlideResult) -> str:
    if result.score is None:
        return f"{result.name}: not scored ({result.note})"
    counts = count_text(result)
    unreadable = f", {result.unreadable} cells unreadable" if result.unreadable else ""
    confidence = f", {result.confidence}" if result.confidence else ""
    return f"{result.name}: score {result.score:.3f}{confidence}, {counts}{unreadable}"


def count_text(result: SlideResult) -> str:
    """``1 area with 3 peaks``: pathologists call an area a lesion; peaks are maxima that lie 6 cells or more apart."""
    peaks, areas = len(result.lesions), result.areas
    if areas == 0:
        return "no area above the threshold"
    return f"{areas} area{'' if areas == 1 else 's'} with {peaks} peak{'' if peaks == 1 else 's'}"


def _show(axes: Axes, overview: Overview, slide: Slide) -> None:
    rows, cols = overview.pixels.shape[:2]
    extent = (0, cols * overview.placement.step_x, rows * overview.placement.step_y, 0)
    pixels = cv2.cvtColor(
        overview.pixels, cv2.COLOR_RGB2RGBA
    )  # matplotlib would take longer to add the fourth channel
    axes.imshow(pixels, extent=extent, interpolation="antialiased")
    axes.set_xlim(0, slide.size[0])
    axes.set_ylim(slide.size[1], 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#bbbbbb")


def _extent(heatmap: Heatmap) -> tuple[float, float, float, float]:
    rows, cols = heatmap.scores.shape
    return 0, cols * heatmap.placement.step_x, rows * heatmap.placement.step_y, 0


def _mark_unreadable(axes: Axes, overview: Overview) -> None:
    for row, col in np.argwhere(overview.broken)[:2000]:
        corner = (col * overview.placement.step_x, row * overview.placement.step_y)
        axes.add_patch(
            Rectangle(corner, overview.placement.step_x, overview.placement.step_y, color="#777777")
        )


def _number(axes: Axes, lesions: Sequence[Lesion], side: int) -> None:
    style: dict[str, Any] = {"fill": False, "edgecolor": "#00307a", "linewidth": 1.1}
    style["path_effects"] = [withStroke(linewidth=2.6, foreground="white")]
    for i, lesion in enumerate(lesions[:NUMBERED], start=1):
        axes.add_patch(Circle((lesion.x, lesion.y), side / 90, **style))
        axes.annotate(
            str(i),
            (lesion.x, lesion.y),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=8,
            color="#00307a",
            fontweight="bold",
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
        )


def _scale_bar(axes: Axes, slide: Slide) -> None:
    length_um = bar_um(slide.size[0] * slide.mpp / 5)
    label = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    x, y = slide.size[0] * 0.03, slide.size[1] * 0.97
    height = slide.size[1] * 0.008
    length = length_um / slide.mpp
    axes.add_patch(Rectangle((x, y - height), length, height, color="black"))
    axes.text(x + length / 2, y - 1.6 * height, label, ha="center", va="bottom", fontsize=9)
