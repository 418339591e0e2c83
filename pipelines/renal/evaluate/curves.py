"""Pictures of an evaluation: percentages against the truth, and capillaries found against false ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipelines.renal.evaluate.agreement import BlandAltman
from pipelines.runs.pictures import png
from wsi.vocabulary import COLOURS

BOUNDS = (10, 50)  # percent: between C4d1 and C4d2, and between C4d2 and C4d3


def agreement_png(slides: Sequence[dict[str, Any]], limits: BlandAltman | None, demonstration: bool) -> bytes:
    """Draw percentages with their intervals against the truth, and their differences (Bland and Altman 1986)."""
    rows = [s for s in slides if s["percent"] is not None and s["true_percent"] is not None]
    figure = _figure(11.0)
    left, right = figure.subplots(1, 2)
    for s in rows:
        left.plot([s["true_percent"]] * 2, s["interval"], color="#c9a37a", linewidth=1.2, zorder=1)
    truth, percent = (np.array([s[k] for s in rows]) for k in ("true_percent", "percent"))
    left.plot([0, 100], [0, 100], color="#999999", linewidth=0.8, zorder=0)
    for bound in BOUNDS:
        left.axvline(bound, color="#dddddd", linewidth=0.8, zorder=0)
        left.axhline(bound, color="#dddddd", linewidth=0.8, zorder=0)
    left.scatter(truth, percent, s=22, color="#8a4500", zorder=2)
    left.set(
        xlabel="true C4d-positive capillaries (%)", ylabel="counted (%), with 95 % interval", xlim=(-2, 102)
    )
    left.set_ylim(-2, 102)
    right.axhline(0, color="#999999", linewidth=0.8)
    right.scatter((truth + percent) / 2, percent - truth, s=22, color="#8a4500")
    if limits is not None:
        for value, text in ((limits.bias, "mean"), (limits.low, "-1.96 s.d."), (limits.high, "+1.96 s.d.")):
            right.axhline(value, color="#40608a", linewidth=1.0, linestyle="-" if text == "mean" else "--")
            right.annotate(f"{text} {value:+.1f}", (101, value), fontsize=8, va="bottom", ha="right")
    right.set(xlabel="mean of both (%)", ylabel="counted minus true (percentage points)", xlim=(-2, 102))
    return _titled(figure, f"C4d percentage, {len(rows)} slides", demonstration)


def froc_png(
    curves: dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]],
    demonstration: bool,
) -> bytes:
    """Draw sensitivity against false detections per mm2 of tissue in evaluated fields, for each class."""
    figure = _figure(6.0)
    axes = figure.subplots()
    for name, (false_per_mm2, sensitivity) in curves.items():
        colour = tuple(v / 255 for v in COLOURS[name])
        axes.plot(false_per_mm2, sensitivity, drawstyle="steps-post", color=colour, label=name)
    axes.set(
        xlabel="false detections per mm² of tissue in evaluated fields", ylabel="sensitivity", ylim=(0, 1.02)
    )
    axes.set_xlim(left=0)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    return _titled(figure, "Capillaries found", demonstration)


def _figure(width: float) -> Figure:
    figure = Figure(figsize=(width, 4.9), dpi=130)
    FigureCanvasAgg(figure)
    return figure


def _titled(figure: Figure, title: str, demonstration: bool) -> bytes:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.02, ha="left", fontsize=12)
    note = "For research use only."
    if demonstration:
        note = "Demonstration models, trained on drawings: this says nothing of real slides. For research use only."
    figure.text(0.02, 0.015, note, fontsize=8.5, color="#8c0d18")
    figure.tight_layout(rect=(0, 0.035, 1, 0.98))
    return png(figure)
