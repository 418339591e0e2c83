"""Pictures and pages of results, as bytes and text: what every application draws in the same way."""

from __future__ import annotations

import base64
import io
import warnings

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from wsi.arrays import RgbImage

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
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks
        figure.savefig(content, format="png", dpi=dpi or "figure", metadata={"Software": None})
    return content.getvalue()


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
