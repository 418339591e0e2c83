"""Pictures and pages of results, as bytes and text: what every application draws in the same way."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Sequence
from itertools import cycle

import cv2
import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wsi.arrays import RgbImage

# as small as Pillow's files, and sooner
PNG_SETTINGS = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_FILTERED, cv2.IMWRITE_PNG_COMPRESSION, 2)
TEMPLATES = Environment(
    loader=PackageLoader("pipelines"),
    autoescape=select_autoescape(default=True),
    trim_blocks=True,
    lstrip_blocks=True,
)


def png(figure: Figure, dpi: int | None = None) -> bytes:
    """A figure as PNG, the same bytes for the same figure.

    Args:
        figure: what is drawn.
        dpi: pixels per inch; None is the figure's own.
    """
    if dpi is not None:
        figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks
        canvas.draw()  # type: ignore[no-untyped-call]
    drawn = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    pixels = cv2.cvtColor(drawn, cv2.COLOR_RGBA2BGR)
    return cv2.imencode(".png", pixels, PNG_SETTINGS)[1].tobytes()


def jpeg_uri(pixels: RgbImage, quality: int) -> str:
    """Pixels as the data URI of a JPEG, for the text of a page; ``quality`` is 1 to 100."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    success, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert success  # a picture of this size always encodes
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def png_uri(content: bytes) -> str:
    """The bytes of a PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def bar_um(longest_um: float) -> float:
    """Length of a scale bar: 1, 2 or 5 times a power of ten, and at most ``longest_um``."""
    power = 10.0 ** np.floor(np.log10(longest_um))
    return float(max(step * power for step in (1, 2, 5) if step * power <= longest_um))


RocCurve = tuple[str, npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""A curve's name in the legend, its false positive rates and its true positive rates, both 0..1."""
_BLUE = "#1565c0"


def draw_roc(
    axis: Axes,
    curves: Sequence[RocCurve],
    *,
    points: Sequence[tuple[str, float, float]] = (),
    thin: float = 0.9,
) -> None:
    """Draw ROC curves with the diagonal of chance, a grid and a legend; the caller sets labels, limits and title.

    Args:
        axis: where to draw.
        curves: the first is drawn boldly.
        points: operating points on the first curve: name, false and true positive rate, 0..1.
        thin: width of the other curves' lines, in points of 1/72 inch.
    """
    for i, (name, false, true) in enumerate(curves):
        style = {"linewidth": 2.2, "color": _BLUE, "zorder": 5} if i == 0 else {"linewidth": thin}
        axis.plot(false, true, label=name, **style)
    for (name, false_rate, true_rate), marker in zip(points, cycle("osD^v"), strict=False):
        axis.plot(false_rate, true_rate, marker, color=_BLUE, markersize=6, zorder=6, label=name)
    axis.plot([0, 1], [0, 1], ":", color="grey", linewidth=1)
    if curves or points:
        axis.legend(loc="lower right", fontsize=8)
    axis.grid(alpha=0.3)
