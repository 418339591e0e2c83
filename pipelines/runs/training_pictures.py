"""Pictures of a training run: the patches that the network sees, the loss, the ROC curve, the worst mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from wsi.arrays import RgbImage
from wsi.files import replacing

_COLOURS = ((46, 125, 50), (198, 40, 40))  # of the two labels: green, and red for the positive one
_THUMB, _FRAME, _GAP, _TITLE = 150, 4, 6, 26


def write_contact_sheet(
    path: Path,
    patches: Sequence[RgbImage] | npt.NDArray[np.uint8],
    labels: Sequence[int] | npt.NDArray[np.int64],
    *,
    title: str,
    captions: Sequence[str] = (),
    columns: int = 8,
) -> None:
    """Write a PNG of patches, framed green (label 0) or red (label 1, the positive class), with captions."""
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
    with replacing(path) as partial:
        partial.write_bytes(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())


def _text(sheet: RgbImage, text: str, at: tuple[int, int], size: float) -> None:
    cv2.putText(sheet, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, (40, 40, 40), 1, cv2.LINE_AA)


def write_curves(path: Path, rows: Sequence[dict[str, Any]], name: str, *, measure: str, label: str) -> None:
    """Write a PNG with loss, the validation's figure and learning rate over the examples."""
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
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110, metadata={"Software": None})


def write_roc(
    path: Path,
    curves: Sequence[tuple[str, npt.NDArray[np.float64], npt.NDArray[np.float64]]],
    title: str,
) -> None:
    """Write a PNG of ROC curves: (name, false positive rate, true positive rate); the first is drawn boldly."""
    figure = Figure(figsize=(6.4, 6), layout="constrained")
    axis = figure.subplots()
    for i, (name, false, true) in enumerate(curves):
        style = {"linewidth": 2.2, "color": "#1565c0", "zorder": 5} if i == 0 else {"linewidth": 0.9}
        axis.plot(false, true, label=name, **style)
    axis.plot([0, 1], [0, 1], ":", color="grey", linewidth=1)
    axis.set_xlabel("false positive rate")
    axis.set_ylabel("true positive rate")
    axis.set_xlim(-0.01, 1.01)
    axis.set_ylim(-0.01, 1.01)
    axis.set_title(title, fontsize=10)
    axis.legend(loc="lower right", fontsize=8)
    axis.grid(alpha=0.3)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110, metadata={"Software": None})
