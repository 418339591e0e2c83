"""FROC against the published algorithm restated in plain Python, cases worked by hand, and properties."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.camelyon16.benchmark.froc import TARGETS, FrocTable, SlideHits, Variant, froc, slide_hits
from pipelines.camelyon16.benchmark.truth import LesionTruth
from wsi.errors import WsiError

VARIANTS: tuple[Variant, ...] = ("official", "dataset", "negatives")
Detection = tuple[float, int, int]


def hits(found: list[float], false: list[float], lesions: int, tumour: bool | None = None) -> SlideHits:
    has = lesions > 0 if tumour is None else tumour
    return SlideHits(np.array(found, np.float32), np.array(false, np.float64), lesions, has)


THREE = [hits([0.9, 0], [0.8], 2), hits([0.5], [], 1), hits([], [0.6], 0)]


class TestByHand:
    def test_official(self) -> None:
        """Slide 1: lesions at 0.9 and missed, one false positive of 0.8. Slide 2: a lesion at 0.5. Slide 3, normal: 0.6.

        Scores 0 .5 .6 .8 .9; the first is dropped. Threshold .5: FP 2/3, TP 2/3. .6: 2/3, 1/3. .8: 1/3, 1/3.
        .9: 0, 1/3. Then (0, 0). Interpolation at 1/4: between the points (0, 1/3) and (1/3, 1/3): 1/3. At 1/2:
        between (1/3, 1/3) and (2/3, 1/3), the first of the two at 2/3: 1/3. From 1 on: the last point, 2/3.
        """
        curve = froc(THREE)
        assert curve.false_per_slide == pytest.approx([2 / 3, 2 / 3, 1 / 3, 0, 0])
        assert curve.sensitivity == pytest.approx([2 / 3, 1 / 3, 1 / 3, 1 / 3, 0])
        assert curve.at(8) == pytest.approx(2 / 3)
        assert curve.score == pytest.approx((2 * (1 / 3) + 4 * (2 / 3)) / 6)
        assert curve.false_at([0.9, 0.5, 0.7, 0.95]) == pytest.approx([0, 2 / 3, 1 / 3, 0])

    def test_dataset(self) -> None:
        """The same points, read as steps. At 1/4 the first with FP >= 1/4 is (1/3, 1/3); at 1/2 it is the first at
        2/3, where threshold .6 gives 1/3; beyond the curve the last, 2/3.
        """
        curve = froc(THREE, "dataset")
        assert curve.at(TARGETS) == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])

    def test_negatives(self) -> None:
        """Only slide 3 is normal: its 0.6 is 1 false positive per normal slide; slide 1's 0.8 does not count.

        .5: FP 1, TP 2/3. .6: 1, 1/3. .9: 0, 1/3. At 1/4 and 1/2: between (0, 1/3) and (1, 1/3), the first at 1: 1/3.
        At 1 and beyond: the last of those at 1: 2/3.
        """
        curve = froc(THREE, "negatives")
        assert curve.at(TARGETS) == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])

    def test_a_perfect_run(self) -> None:
        """Two lesions at 0.9 and 0.8, no false positive. ``all_probs[1:]`` drops 0.8: official sees one lesion found."""
        perfect = [hits([0.9, 0.8], [], 2), hits([], [], 0)]
        assert froc(perfect).score == pytest.approx(0.5)
        assert froc(perfect, "dataset").score == froc(perfect, "negatives").score == 1.0
        assert froc([hits([0.9, 0.9], [], 2)]).score == 0.0  # one score only: nothing is left

    def test_nothing_found(self) -> None:
        for variant in VARIANTS:
            assert froc([hits([0, 0], [0.5], 2), hits([], [], 0)], variant).score == 0


def by_the_letter(
    slides: list[tuple[list[list[int]] | None, set[int], list[Detection]]], variant: str
) -> list[float]:
    """The published code restated in plain Python, from masks and CSV rows to the six sensitivities.

    Evaluation_FROC.py (2016), the script that came with the data, and the definition by tumour-free slides.
    """
    fp_probs: list[float] = []
    tp_probs: list[np.float32 | float] = []
    lesions, normals = 0, 0
    for mask, isolated, rows in slides:
        real = np.float32 if variant == "official" else float
        highest = max((v for line in mask for v in line), default=0) if mask is not None else 0
        best: list[np.float32 | float] = [real(0)] * highest
        for prob, x, y in rows:
            if mask is None:
                fp_probs.append(prob)
                continue
            r, c = (round(y / 32), round(x / 32)) if variant == "dataset" else (int(y / 32), int(x / 32))
            label = mask[min(r, len(mask) - 1)][min(c, len(mask[0]) - 1)]
            if label == 0:
                if variant != "negatives":
                    fp_probs.append(prob)
            elif label not in isolated and prob > best[label - 1]:
                best[label - 1] = real(prob)
        tp_probs += best
        lesions += highest - len(isolated)
        normals += mask is None
    every = sorted({float(v) for v in fp_probs} | {float(v) for v in tp_probs})
    thresholds = every[1:] if variant == "official" else [v for v in every if v != 0.0]
    slides_counted = normals if variant == "negatives" else len(slides)
    fps = [sum(v >= t for v in fp_probs) / slides_counted for t in thresholds] + [0.0]
    # NumPy compares float32 values with a Python float as float32
    sens = [sum(v >= type(v)(t) for v in tp_probs) / lesions for t in thresholds] + [0.0]
    fps, sens = fps[::-1], sens[::-1]
    if variant == "dataset":
        return [sens[min(bisect_left(fps, target), len(fps) - 1)] for target in TARGETS]
    return [float(v) for v in np.interp(TARGETS, fps, sens)]


# values that float32 rounds up, rounds down, and confuses with each other
near = [0.9, 0.9 + 1e-9, 0.99999999, 0.999999995, 0.30000000001]
scores = st.one_of(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.7, 1.0, *near]), st.floats(0, 1, width=16))
detections = st.lists(st.tuples(scores, st.integers(0, 5 * 32 - 1), st.integers(0, 4 * 32 - 1)), max_size=8)
masks = st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=4, max_size=4)


def numbered(mask: list[list[int]]) -> list[list[int]]:
    """The numbers 1 ... n without gaps, as labels are."""
    present = sorted({v for line in mask for v in line if v})
    return [[present.index(v) + 1 if v else 0 for v in line] for line in mask]


@st.composite
def cohort(draw: st.DrawFn) -> list[tuple[list[list[int]] | None, set[int], list[Detection]]]:
    slides: list[tuple[list[list[int]] | None, set[int], list[Detection]]] = []
    for _ in range(draw(st.integers(1, 4))):
        mask = numbered(draw(masks))
        n = max(v for line in mask for v in line)
        isolated = draw(st.sets(st.integers(1, n), max_size=2)) if n else set()
        slides.append((mask if n else None, isolated, draw(detections)))
    slides.append((None, set(), draw(detections)))
    slides.append(([[1, 1, 0, 0, 0]] * 4, set(), draw(detections)))  # something to find
    return slides


def truth_of(mask: list[list[int]] | None, isolated: set[int]) -> LesionTruth:
    if mask is None:
        return LesionTruth(None, (0, 0), (32, 32), np.empty(0), np.empty((0, 2)))
    labels = np.array(mask, np.int32)
    lengths = np.array([100.0 if i + 1 in isolated else 900.0 for i in range(labels.max())])
    return LesionTruth(labels, (0, 0), (32, 32), lengths, np.zeros((len(lengths), 2)))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=1500)
@given(slides=cohort())
def test_equals_the_published_algorithm(variant: Variant, slides: list) -> None:
    # a point rounded off the raster is none of the published code's cases: it raises IndexError there
    inside = [
        (m, i, [d for d in rows if variant != "dataset" or (round(d[1] / 32) < 5 and round(d[2] / 32) < 4)])
        for m, i, rows in slides
    ]
    found = []
    for mask, isolated, rows in inside:
        points = np.array([row[1:] for row in rows], np.float64).reshape(-1, 2)
        found.append(
            slide_hits(points, np.array([row[0] for row in rows]), truth_of(mask, isolated), variant)
        )
    curve = froc(found, variant)
    expected = by_the_letter(inside, variant)
    assert curve.at(TARGETS) == pytest.approx(expected, abs=1e-12)
    assert curve.score == pytest.approx(np.mean(expected), abs=1e-12)
    assert (np.diff(curve.sensitivity) <= 0).all()
    assert (np.diff(curve.false_per_slide) <= 0).all()


simple = st.one_of(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.7, 0.9, 1.0]), st.floats(0, 1, width=16))
slide = st.builds(
    lambda found, false: hits(found, false, len(found)),
    st.lists(simple, max_size=4),
    st.lists(simple, max_size=6),
)
# a missed lesion and a normal slide: every variant is defined, and the official one drops no real score
usual = st.lists(slide, min_size=1, max_size=5).map(
    lambda s: [*s, hits([0, 0.5], [0.4], 2), hits([], [0.3], 0)]
)


@pytest.mark.parametrize("variant", VARIANTS)
@given(slides=usual, score=st.integers(1, 256).map(lambda i: i / 256), at=st.integers(0, 6))
def test_a_new_false_positive_never_raises_it(
    variant: Variant, slides: list[SlideHits], score: float, at: int
) -> None:
    before = froc(slides, variant)
    i = at % len(slides)
    s = slides[i]
    worse = [
        *slides[:i],
        SlideHits(s.found, np.append(s.false, score), s.lesions, s.tumour),
        *slides[i + 1 :],
    ]
    after = froc(worse, variant)
    assert (after.at(TARGETS) <= before.at(TARGETS) + 1e-12).all()


@pytest.mark.parametrize("variant", VARIANTS)
@given(slides=usual)
def test_rescaling_scores_changes_nothing(variant: Variant, slides: list[SlideHits]) -> None:
    halved = [SlideHits(s.found / 2, s.false / 2, s.lesions, s.tumour) for s in slides]
    assert froc(halved, variant).at(TARGETS) == pytest.approx(froc(slides, variant).at(TARGETS), abs=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
@given(slides=usual, seed=st.integers(0, 1000))
def test_weights_are_repeated_slides(variant: Variant, slides: list[SlideHits], seed: int) -> None:
    """A bootstrap draw counted once equals one evaluated anew."""
    weights = np.random.default_rng(seed).integers(0, 4, len(slides))
    drawn = FrocTable(slides, variant).curve(weights)
    repeated = [s for s, n in zip(slides, weights, strict=True) for _ in range(n)]
    try:
        expected = froc(repeated, variant)
    except WsiError:
        assert drawn is None
        return
    assert drawn is not None
    assert drawn.at(TARGETS) == pytest.approx(expected.at(TARGETS), abs=1e-12)


def test_hits_on_one_lesion_count_once_and_on_isolated_cells_never() -> None:
    truth = truth_of([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0] * 5, [0, 0, 0, 2, 2]], {2})
    points = np.array([[40, 40], [70, 10], [110, 100], [150, 5]], np.float64)
    found = slide_hits(points, np.array([0.6, 0.9, 0.8, 0.3]), truth, "official")
    assert found.found.tolist() == pytest.approx([0.9, 0])
    assert found.false.tolist() == [0.3]
    assert found.lesions == 1


def test_points_are_truncated_or_rounded() -> None:
    """x = 60 is cell 1 by truncation, and 1.875, so cell 2, by rounding."""
    truth = truth_of([[0, 0, 1, 0, 0]] * 4, set())
    at = np.array([[60.0, 0.0]])
    assert slide_hits(at, np.ones(1), truth, "official").false.tolist() == [1]
    assert slide_hits(at, np.ones(1), truth, "dataset").found.tolist() == [1]


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(WsiError, match="no lesion"):
        froc([hits([], [0.5], 0)])
    with pytest.raises(WsiError, match="no slide is free of tumour"):
        froc([hits([0.5], [0.5], 1)], "negatives")
    with pytest.raises(WsiError, match="no slide is left"):
        froc([])
