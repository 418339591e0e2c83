from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely import MultiPolygon, box

from pipelines.camelyon16.froc import SlideHits, froc, slide_hits
from pipelines.camelyon16.lesions import Lesion
from pipelines.camelyon16.truth import LesionTruth, label_mask, lesion_truth
from wsi.errors import WsiError


def hits(found: list[float], false: list[float], lesions: int) -> SlideHits:
    return SlideHits(np.array(found, np.float32), np.array(false, np.float32), lesions)


def test_three_slides_by_hand() -> None:
    """Slide 1: lesions at 0.9 and missed, one false positive of 0.8. Slide 2: a lesion at 0.5. Slide 3, normal: 0.6.

    Scores 0 .5 .6 .8 .9; the first is dropped. Threshold .5: FP 2/3, TP 2/3. .6: 2/3, 1/3. .8: 1/3, 1/3.
    .9: 0, 1/3. Then (0, 0). Interpolation at 1/4: between the points (0, 1/3) and (1/3, 1/3): 1/3. At 1/2:
    between (1/3, 1/3) and (2/3, 1/3), the first of the two at 2/3: 1/3. From 1 on: the last point, 2/3.
    """
    curve = froc([hits([0.9, 0], [0.8], 2), hits([0.5], [], 1), hits([], [0.6], 0)])
    assert curve.false_per_slide == pytest.approx([2 / 3, 2 / 3, 1 / 3, 0, 0])
    assert curve.sensitivity == pytest.approx([2 / 3, 1 / 3, 1 / 3, 1 / 3, 0])
    assert curve.at(8) == pytest.approx(2 / 3)
    assert curve.score == pytest.approx((2 * (1 / 3) + 4 * (2 / 3)) / 6)


def by_the_letter(slides: list[SlideHits]) -> tuple[list[float], list[float], float]:
    """The published code restated in plain Python."""
    fp = [float(v) for s in slides for v in s.false]
    tp = [float(v) for s in slides for v in s.found]
    total = sum(s.lesions for s in slides)
    fps, sens = [], []
    for threshold in sorted(set(fp + tp))[1:]:
        fps.append(sum(v >= threshold for v in fp) / len(slides))
        sens.append(sum(v >= threshold for v in tp) / total)
    fps.append(0.0)
    sens.append(0.0)
    score = float(np.mean(np.interp([0.25, 0.5, 1, 2, 4, 8], fps[::-1], sens[::-1])))
    return fps, sens, score


scores = st.sampled_from([i / 16 for i in range(17)])
slide = st.builds(
    lambda found, false: hits(found, false, len(found)),
    st.lists(scores, max_size=4),
    st.lists(scores, max_size=6),
)


@given(st.lists(slide, min_size=1, max_size=6).filter(lambda s: sum(v.lesions for v in s) > 0))
def test_equals_the_published_algorithm(slides: list[SlideHits]) -> None:
    curve = froc(slides)
    fps, sens, score = by_the_letter(slides)
    assert curve.false_per_slide == pytest.approx(fps, abs=1e-12)
    assert curve.sensitivity == pytest.approx(sens, abs=1e-12)
    assert curve.score == pytest.approx(score, abs=1e-12)
    assert (np.diff(curve.sensitivity) <= 0).all()


def test_lesions_nearer_than_75_um_merge() -> None:
    """Two squares of 640 px; 75 um are 308 level-0 px, 9.6 of level 5."""

    def pair(gap: int) -> MultiPolygon:
        return MultiPolygon([box(640, 640, 1280, 1280), box(1280 + gap, 640, 1920 + gap, 1280)])

    assert lesion_truth(pair(224), (4096, 4096)).count == 1
    assert lesion_truth(pair(416), (4096, 4096)).count == 2


def test_isolated_cells_go_by_the_ellipse() -> None:
    """A disc of 180 um grows by 37.5 um on each side to 255 um, below 275; one of 230 um to 305."""

    def disc(um: float) -> LesionTruth:
        y, x = np.mgrid[0:120, 0:120]
        return label_mask(np.hypot(x - 60, y - 60) * 32 * 0.243 <= um / 2)

    assert (disc(180).lesions, disc(180).count) == (0, 1)
    assert disc(230).lesions == 1


def test_a_normal_slide_has_no_phantom_lesion() -> None:
    truth = lesion_truth(MultiPolygon(), (4096, 4096))
    assert (truth.count, truth.lesions, truth.labels) == (0, 0, None)
    assert label_mask(np.zeros((9, 9), np.bool_)).count == 0
    assert slide_hits([Lesion(0.7, 10, 10)], truth).false.tolist() == pytest.approx([0.7])


def test_hits_on_one_lesion_count_once_and_on_isolated_cells_never() -> None:
    labels = np.zeros((10, 10), np.int32)
    labels[0:3, 0:3], labels[6:8, 6:8] = 1, 2
    truth = LesionTruth(labels, 2, frozenset({2}))
    at = [Lesion(0.6, 40, 40), Lesion(0.9, 70, 10), Lesion(0.8, 220, 220), Lesion(0.3, 310, 5)]
    found = slide_hits(at, truth)
    assert found.found.tolist() == pytest.approx([0.9, 0])
    assert found.false.tolist() == pytest.approx([0.3])
    assert found.lesions == 1


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(WsiError, match="outside its slide"):
        slide_hits([Lesion(0.9, 5000, 10)], LesionTruth(np.ones((4, 4), np.int32), 1, frozenset()))
    with pytest.raises(WsiError, match="no lesion"):
        froc([hits([], [0.5], 0)])
