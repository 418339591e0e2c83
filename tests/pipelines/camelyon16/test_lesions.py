from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from pipelines.camelyon16.read.lesions import (
    Lesion,
    LesionConfig,
    confidence_level,
    find_lesions,
    on_slide,
    outlines,
    slide_score,
)
from wsi.placement import Placement
from wsi.results.heatmap import Heatmap

WORDS = (0.5, 0.8, 0.95, 0.99)  # bounds of the five words, as a model's card brings them
NAN = np.nan


def heatmap(rows: list[list[float]], step: float = 128) -> Heatmap:
    return Heatmap(np.array(rows, np.float32), Placement(step, step), round(step))


def by_the_letter(scores: np.ndarray, threshold: float, radius: float) -> list[tuple[float, int, int]]:
    """Liu et al. 2017 word for word: report the maximum, zero the circle, until nothing reaches t."""
    left = np.where(np.isnan(scores), -1, scores)
    y, x = np.mgrid[0 : scores.shape[0], 0 : scores.shape[1]]
    found = []
    while left.size and left.max() >= threshold:
        row, col = np.unravel_index(np.argmax(left), left.shape)
        found.append((float(scores[row, col]), int(row), int(col)))
        left[(y - row) ** 2 + (x - col) ** 2 <= radius**2] = -1
    return found


steps = st.sampled_from([0.0, 0.2, 0.5, 0.6, 0.75, 0.9, 1.0, NAN])


@given(
    arrays(np.float32, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=steps), st.floats(0.5, 7)
)
def test_suppression_is_the_published_loop(scores: np.ndarray, reach: float) -> None:
    cfg = LesionConfig(threshold=0.5, radius_px=reach * 100)
    found = find_lesions(Heatmap(scores, Placement(100, 100), 100), cfg)
    expected = by_the_letter(scores, 0.5, cfg.radius_px / 100)
    assert found == [Lesion(s, (c + 0.5) * 100, (r + 0.5) * 100) for s, r, c in expected]


def test_two_peaks_six_cells_apart_are_one_and_seven_apart_are_two() -> None:
    row = [0.0] * 10
    row[0], row[6] = 0.9, 0.8
    assert len(find_lesions(heatmap([row]), LesionConfig())) == 1
    row[6], row[7] = 0.0, 0.8
    assert [(v.x, v.y) for v in find_lesions(heatmap([row]), LesionConfig())] == [(64, 64), (960, 64)]


def test_the_circle_is_not_a_square() -> None:
    scores = np.zeros((8, 8), np.float32)
    scores[0, 0], scores[5, 5] = 0.9, 0.8  # 7.07 cells apart, inside a square of 6
    assert len(find_lesions(Heatmap(scores, Placement(128, 128)), LesionConfig())) == 2


def test_radius_is_on_the_slide_whatever_the_stride() -> None:
    row = [0.0] * 20
    row[0], row[12] = 0.9, 0.8
    cfg = LesionConfig().of_model(128)
    assert cfg.radius_px == 768
    assert len(find_lesions(heatmap([row], step=64), cfg)) == 1
    row[12], row[13] = 0.0, 0.8
    assert len(find_lesions(heatmap([row], step=64), cfg)) == 2
    assert LesionConfig(radius_px=100).of_model(128).radius_px == 100


def test_radius_is_in_the_model_s_pixels_whatever_the_slide_s() -> None:
    """A slide of half the spacing: cells of 128 px the model saw are 256 level-0 px, and still 6 are blanked."""
    row = np.zeros((1, 10), np.float32)
    row[0, 0], row[0, 6] = 0.9, 0.8
    assert len(find_lesions(Heatmap(row, Placement(256, 256), 128), LesionConfig())) == 1


def test_the_last_cell_s_lesion_is_moved_onto_the_slide() -> None:
    lesion = Lesion(0.9, 960, 64)
    assert on_slide(lesion, (900, 900)) == Lesion(0.9, 899, 64)
    assert on_slide(lesion, (2000, 2000)) == lesion


def test_threshold_is_reached_by_equality() -> None:
    assert len(find_lesions(heatmap([[0.5]]), LesionConfig())) == 1
    assert find_lesions(heatmap([[0.4999]]), LesionConfig()) == []


def test_nothing_scored_is_not_healthy() -> None:
    empty = heatmap([[NAN, NAN]])
    assert np.isnan(slide_score(empty))
    assert find_lesions(empty, LesionConfig()) == []
    assert outlines(empty, LesionConfig()) == []
    assert confidence_level(float("nan"), LesionConfig(), WORDS) is None


def test_outlines_follow_the_cells_and_keep_holes() -> None:
    ring = heatmap([[0.9, 0.9, 0.9], [0.9, 0.1, 0.6], [0.9, 0.9, 0.9]])
    (area,) = outlines(ring, LesionConfig())
    assert area.shape.area == 8 * 128**2
    assert len(area.shape.interiors) == 1
    assert area.maximum == pytest.approx(0.9)
    assert area.mean == pytest.approx((7 * 0.9 + 0.6) / 8)


def test_cells_that_touch_by_a_corner_are_one_valid_outline() -> None:
    (area,) = outlines(heatmap([[0.9, 0.0], [0.0, 0.7]]), LesionConfig())
    assert area.shape.is_valid
    assert area.shape.area == pytest.approx(2 * 128**2, rel=0.01)


def test_outlines_are_ranked() -> None:
    areas = outlines(heatmap([[0.6, 0.0, 0.9, 0.0, 0.6]]), LesionConfig())
    assert [round(a.maximum, 1) for a in areas] == [0.9, 0.6, 0.6]
    assert areas[1].shape.bounds[0] < areas[2].shape.bounds[0]


@pytest.mark.parametrize(
    ("score", "word"),
    [
        (0.0, "definitely normal"),
        (0.5, "probably normal"),
        (0.9, "equivocal"),
        (0.95, "probably tumour"),
        (0.99, "definitely tumour"),
    ],
)
def test_five_words(score: float, word: str) -> None:
    assert confidence_level(score, LesionConfig(), WORDS) == word


def test_bounds_must_ascend() -> None:
    with pytest.raises(ValidationError, match="must ascend"):
        LesionConfig(confidence=(0.5, 0.4, 0.6, 0.9))


def test_a_model_whose_cuts_nobody_checked_gives_no_words() -> None:
    assert confidence_level(0.999, LesionConfig(), None) is None
    assert confidence_level(0.999, LesionConfig(confidence=WORDS), None) == "definitely tumour"
    assert confidence_level(0.6, LesionConfig(confidence=(0.1, 0.2, 0.3, 0.4)), WORDS) == "definitely tumour"
