"""Pictures of a training run: the patches that the network sees, the loss, the ROC curve, the worst mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from pipelines.runs.pictures import RocCurve, draw_roc, png
from wsi.arrays import RgbImage

_COLOURS = ((46, 125, 50), (198, 40, 40))  # of the two labels: green, and red for the positive one
DPI = 110
_THUMB, _FRAME, _GAP, _TITLE = 150, 4, 6, 26


def contact_sheet_png(
    patches: Sequence[RgbImage] | npt.NDArray[np.uint8],
    labels: Sequence[int] | npt.NDArray[np.int64],
    *,
    title: str,
    captions: Sequence[str] = (),
    columns: int = 8,
) -> bytes:
    """A picture of patches, framed green (label 0) or red (label 1, the positive class), with captions."""
    below = 16 if captions else 0
    side = _THUMB + 2 * _FRAME
    rows = -(-len(patches) // columns)
    height, width = rows * (side + below + _GAP) + _GAP + _TITLE, columns * (side + _GAP) + _GAP
    sheet = np.full((height, width, 3), 255, np.uint8)
    _text(sheet, title, (_GAP, 18), 0.5)
    for i, (patch, label) in enumerate(zip(patches, labels, strict=True)):
        top = _TITLE + _GAP + i // columns * (side + below + _GAP)
        left = _GAP + i % columns * (side + _GAP)
        sheet[top : top + side, left : left + side] = _COLOURS[int(label)]
        small = cv2.resize(np.ascontiguousarray(patch), (_THUMB, _THUMB), interpolation=cv2.INTER_AREA)
        sheet[top + _FRAME : top + side - _FRAME, left + _FRAME : left + side - _FRAME] = small
        if captions:
            _text(sheet, captions[i], (left, top + side + 12), 0.38)
    return bytes(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())


def _text(sheet: RgbImage, text: str, at: tuple[int, int], size: float) -> None:
    cv2.putText(sheet, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, (40, 40, 40), 1, cv2.LINE_AA)


def curves_png(rows: Sequence[dict[str, Any]], name: str, *, measure: str, label: str) -> bytes:
    """A picture of loss, the validation's figure and learning rate over the examples."""
    examples = [row["examples"] for row in rows]
    figure = Figure(figsize=(8, 6), layout="constrained")
    loss, score, rate = figure.subplots(3, 1, sharex=True)
    loss.plot(examples, [row["loss"] for row in rows], "o-", color="#1565c0", markersize=3)
    loss.set_ylabel("loss")
    loss.set_title(f"{name}: training")
    points = [(row["examples"], row[measure]) for row in rows if row[measure] is not None]
    score.plot(*zip(*points, strict=True) if points else ([], []), "o-", color="#2e7d32", markersize=3)
    score.set_ylabel(label)
    if not points:
        score.text(0.5, 0.5, "nothing is held out", ha="center", transform=score.transAxes)
    rate.plot(examples, [row["learning_rate"] for row in rows], "o-", color="#6a1b9a", markersize=3)
    rate.set_ylabel("learning rate")
    rate.set_xlabel("examples")
    for axis in (loss, score, rate):
        axis.grid(alpha=0.3)
    return png(figure, DPI)


def roc_png(curves: Sequence[RocCurve], title: str) -> bytes:
    """A picture of ROC curves; the first is drawn boldly."""
    figure = Figure(figsize=(6.4, 6), layout="constrained")
    axis = figure.subplots()
    draw_roc(axis, curves)
    axis.set_xlabel("false positive rate")
    axis.set_ylabel("true positive rate")
    axis.set_xlim(-0.01, 1.01)
    axis.set_ylim(-0.01, 1.01)
    axis.set_title(title, fontsize=10)
    return png(figure, DPI)
