"""Artefacts on a slide: folds, places out of focus, pen, air bubbles, the edge of the cover glass."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from wsi.arrays import RgbImage
from wsi.phantoms.layout import Artefact

BLUR_PX = 6  # standard deviation of the blur where the slide is out of focus


def near(artefact: Artefact, x0: int, y0: int, width: int, height: int) -> bool:
    """Whether an artefact may reach into a piece of the slide, in level-0 pixels."""
    points, reach = np.array(artefact.line), artefact.width * 1.2 + 4
    low, high = points.min(axis=0) - reach, points.max(axis=0) + reach
    return bool(low[0] < x0 + width and high[0] > x0 and low[1] < y0 + height and high[1] > y0)


def _stroke(image: RgbImage, artefact: Artefact, x0: int, y0: int, width: float) -> npt.NDArray[np.uint8]:
    mask = np.zeros(image.shape[:2], np.uint8)
    points = np.round((np.array(artefact.line) - [x0, y0]) * 16).astype(np.int32)
    if len(points) == 1:
        cv2.circle(mask, (int(points[0, 0]), int(points[0, 1])), round(width * 16), 255, -1, cv2.LINE_8, 4)
    else:
        cv2.polylines(mask, [points], False, 255, max(1, round(width)), cv2.LINE_8, 4)
    return mask


def _fold(image: RgbImage, artefact: Artefact, x0: int, y0: int) -> None:
    """Paint a fold: tissue lies twice, so its density doubles; glass stays as it is."""
    tissue = cv2.blur(image, (9, 9)).min(axis=2) < 228
    mask = (_stroke(image, artefact, x0, y0, artefact.width) > 0) & tissue
    light = image[mask].astype(np.float32) / 255
    image[mask] = np.round(255 * light * light).astype(np.uint8)


def _blur(image: RgbImage, artefact: Artefact, x0: int, y0: int) -> None:
    """Blur the inside of a disc."""
    mask = _stroke(image, artefact, x0, y0, artefact.width)
    cv2.copyTo(cv2.GaussianBlur(image, (0, 0), BLUR_PX), mask, image)


def _pen(image: RgbImage, artefact: Artefact, x0: int, y0: int) -> None:
    """Paint ink on the cover glass, which absorbs most of the light."""
    mask = _stroke(image, artefact, x0, y0, artefact.width) > 0
    ink = np.array(artefact.colour, np.float32)
    image[mask] = np.round(0.18 * image[mask] * (ink / 255) + 0.82 * ink).astype(np.uint8)


def _bubble(image: RgbImage, artefact: Artefact, x0: int, y0: int) -> None:
    """Paint an air bubble under the cover glass: paler inside, with a dark rim."""
    inside = _stroke(image, artefact, x0, y0, artefact.width) > 0
    rim = (_stroke(image, artefact, x0, y0, artefact.width * 1.03) > 0) & ~inside
    image[inside] = (image[inside].astype(np.uint16) * 3 // 5 + 95).astype(np.uint8)
    image[rim] = (image[rim] * 0.45).astype(np.uint8)


def _edge(image: RgbImage, artefact: Artefact, x0: int, y0: int) -> None:
    """Paint the edge of the cover glass: a grey line."""
    image[_stroke(image, artefact, x0, y0, artefact.width) > 0] = artefact.colour


PAINTERS: dict[str, Callable[[RgbImage, Artefact, int, int], None]] = {
    "fold": _fold,
    "blur": _blur,
    "pen": _pen,
    "bubble": _bubble,
    "edge": _edge,
}
