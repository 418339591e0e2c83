"""Agreement of maps of classes: by hand, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score, recall_score

from wsi.metrics.segmentation import UNKNOWN, boundary_f1, compare_maps

TRUTH = np.array([[0, 0, 0, 1], [0, 1, 1, 1], [2, 2, UNKNOWN, 1]], np.uint8)
GIVEN = np.array([[0, 0, 1, 1], [0, 1, 1, 0], [2, 0, 2, 1]], np.uint8)


def test_by_hand() -> None:
    # 11 places are known: of the four 0 three are right, of the five 1 four, of the two 2 one
    score = compare_maps([TRUTH], [GIVEN], 3)
    assert score.counts.tolist() == [[3, 1, 0], [1, 4, 0], [1, 0, 1]]
    assert score.pixel_accuracy == pytest.approx(8 / 11)
    assert score.accuracies == pytest.approx([3 / 4, 4 / 5, 1 / 2])
    assert score.mean_accuracy == pytest.approx((3 / 4 + 4 / 5 + 1 / 2) / 3)
    assert score.ious == pytest.approx([3 / 6, 4 / 6, 1 / 2])
    assert score.mean_iou == pytest.approx((3 / 6 + 4 / 6 + 1 / 2) / 3)
    assert score.frequency_weighted_iou == pytest.approx((4 * 3 / 6 + 5 * 4 / 6 + 2 / 2) / 11)
    assert score.dice == pytest.approx([6 / 9, 8 / 10, 2 / 3])


@pytest.mark.parametrize("seed", range(5))
def test_as_scikit_learn_counts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = [rng.integers(0, 4, (9, 7)).astype(np.uint8) for _ in range(3)]
    given = [
        np.where(rng.random((9, 7)) < 0.6, t, rng.integers(0, 4, (9, 7))).astype(np.uint8) for t in truth
    ]
    score = compare_maps(truth, given, 4)
    a, b = (np.concatenate([m.ravel() for m in maps]) for maps in (truth, given))
    np.testing.assert_array_equal(score.counts, confusion_matrix(a, b))
    assert score.pixel_accuracy == pytest.approx(accuracy_score(a, b))
    assert score.ious == pytest.approx(jaccard_score(a, b, average=None))
    assert score.frequency_weighted_iou == pytest.approx(jaccard_score(a, b, average="weighted"))
    assert score.dice == pytest.approx(f1_score(a, b, average=None))
    assert score.mean_accuracy == pytest.approx(recall_score(a, b, average="macro"))


def test_a_class_that_neither_map_has_is_left_out_of_the_mean() -> None:
    score = compare_maps([TRUTH], [GIVEN], 4)
    assert np.isnan(score.ious[3])
    assert score.mean_iou == compare_maps([TRUTH], [GIVEN], 3).mean_iou
    nothing = compare_maps([np.full((2, 2), UNKNOWN, np.uint8)], [np.zeros((2, 2), np.uint8)], 2)
    assert np.isnan(nothing.mean_iou)
    assert np.isnan(nothing.pixel_accuracy)


def test_maps_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) and \(4, 3\)"):
        compare_maps([TRUTH], [GIVEN.T], 3)
    with pytest.raises(ValueError, match="beyond the 2 that are known"):
        compare_maps([TRUTH], [GIVEN], 2)


class TestBoundaries:
    def square(self, left: int) -> np.ndarray:
        raster = np.zeros((12, 20), np.uint8)
        raster[3:9, left : left + 6] = 1
        return raster

    def test_a_shift_within_the_tolerance_costs_nothing(self) -> None:
        assert boundary_f1(self.square(4), self.square(5), 1, tolerance=1) == 1
        assert boundary_f1(self.square(4), self.square(4), 1, tolerance=0) == 1

    def test_beyond_it_by_hand(self) -> None:
        # 20 places each; moved by one, the rows 3 and 8 share five places; the side columns share none but those
        assert boundary_f1(self.square(4), self.square(5), 1, tolerance=0) == pytest.approx(10 / 20)
        assert boundary_f1(self.square(0), self.square(12), 1, tolerance=3) == 0

    def test_where_there_is_no_boundary(self) -> None:
        empty, full = np.zeros((12, 20), np.uint8), np.ones((12, 20), np.uint8)
        assert boundary_f1(empty, empty, 1, tolerance=1) == 1
        assert boundary_f1(full, full, 1, tolerance=1) == 1  # the end of a map is no boundary
        assert boundary_f1(self.square(4), empty, 1, tolerance=1) == 0
