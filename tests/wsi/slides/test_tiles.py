"""One way to the pixels of a square: the level that everybody chooses, its place, and its size."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tests.slides import coordinates
from wsi.slides.overview import read_overview
from wsi.slides.readers.array import ArraySlide
from wsi.slides.slide import plan_read
from wsi.slides.tiles import read_square


@pytest.fixture
def slide() -> ArraySlide:
    """Levels of 1, 2.005, 4.01 and 8.3 level-0 pixels, as scanners round them; each level has its number in blue."""
    whole = coordinates(1000, 800)
    levels = []
    for i, side in enumerate(((1000, 800), (499, 399), (249, 200), (120, 97))):
        level = cv2.resize(whole, side, interpolation=cv2.INTER_AREA)
        level[..., 2] = 40 * i
        levels.append(level)
    return ArraySlide(levels, mpp=0.25)


@pytest.mark.parametrize(
    ("downsample", "level"),
    [(0.3, 0), (1, 0), (1.9, 0), (2, 1), (3.9, 1), (4, 2), (8, 2), (8.3, 3), (100, 3)],
)
def test_the_coarsest_level_that_needs_no_enlarging(slide: ArraySlide, downsample: float, level: int) -> None:
    assert slide.level_for(downsample) == level


@pytest.mark.parametrize(("downsample", "level"), [(2, 1), (4, 2), (8, 2)])
def test_all_choose_the_same_level(slide: ArraySlide, downsample: int, level: int) -> None:
    assert plan_read(slide, 64, 32, 0.25 * downsample).level == level
    for pixels in (
        read_square(slide, (80, 160), 40 * downsample, 40),
        read_overview(slide, 0.25 * downsample).pixels,
    ):
        assert (pixels[5:-20, 5:-20, 2] == 40 * level).all()


@pytest.mark.parametrize("size_px", [30, 75, 150, 300, 600])
def test_a_square_shows_its_place(slide: ArraySlide, size_px: int) -> None:
    """Red is x / 4 and green y / 4, so the middle of pixel i of n is at corner + (i + 0.5) * side / n."""
    pixels = read_square(slide, (200, 320), 300, size_px).astype(float)
    assert pixels.shape == (size_px, size_px, 3)
    along = (np.arange(size_px) + 0.5) * 300 / size_px
    inner = slice(size_px // 10, -(size_px // 10))  # the border of a level is a pixel of it off at most
    np.testing.assert_allclose(4 * pixels[0, inner, 0] + 1.5, (200 + along)[inner], atol=7)
    np.testing.assert_allclose(4 * pixels[inner, 0, 1] + 1.5, (320 + along)[inner], atol=7)


def test_off_the_slide_is_white(slide: ArraySlide) -> None:
    pixels = read_square(slide, (-100, 700), 200, 50)
    assert (pixels[:, :24] == 255).all()
    assert (pixels[27:] == 255).all()
    assert (pixels[:22, 27:, 2] == 40 * 2).all()
