"""Detection quality and agreement, each against another library or a case by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from pipelines.renal.evaluate.agreement import bland_altman, weighted_kappa
from wsi.marks.boxes import Detections, no_detections
from wsi.metrics.detection import Agreement, Marked, average_precision, by_distance


def picture(seed: int) -> tuple[Detections, Marked]:
    """Marks, detections near some of them, and false alarms."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 9))
    corners = rng.uniform(0, 300, (n, 2))
    boxes = np.hstack([corners, corners + rng.uniform(15, 40, (n, 2))])
    labels = rng.integers(0, 2, n)
    near = boxes[rng.random(n) < 0.8]
    moved = near + np.repeat(rng.normal(0, 5, (len(near), 2)), 2, axis=0).reshape(len(near), 4)
    false = rng.uniform(0, 300, (int(rng.integers(0, 5)), 2))
    found = np.vstack([moved, near + rng.normal(0, 1, near.shape), np.hstack([false, false + 25])])
    scores = rng.permutation(len(found)).astype(np.float32) / max(1, len(found)) + np.float32(seed * 1e-6)
    classes = np.where(rng.random(len(found)) < 0.8, np.resize(labels if n else 0, len(found)), 1)
    return Detections(found, scores, classes.astype(np.int64)), Marked(boxes, labels.astype(np.int64))


@pytest.mark.filterwarnings("ignore")
def test_average_precision_is_torchmetrics() -> None:
    from torchmetrics.detection import MeanAveragePrecision

    recalls = np.linspace(0, 1, 101).tolist()  # COCO's; torchmetrics' own are rounded to float32
    for start in range(0, 60, 12):
        pairs = [picture(seed) for seed in range(start, start + 12)]
        metric = MeanAveragePrecision(iou_thresholds=[0.5], rec_thresholds=recalls, class_metrics=True)
        metric.update(
            [
                {
                    "boxes": torch.from_numpy(d.boxes),
                    "scores": torch.from_numpy(d.scores),
                    "labels": torch.from_numpy(d.labels),
                }
                for d, _ in pairs
            ],
            [{"boxes": torch.from_numpy(t.boxes), "labels": torch.from_numpy(t.labels)} for _, t in pairs],
        )
        theirs = metric.compute()["map_per_class"].tolist()
        mine = [average_precision([d for d, _ in pairs], [t for _, t in pairs], label) for label in (0, 1)]
        assert mine == pytest.approx(theirs, abs=1e-6)


def test_average_precision_by_hand() -> None:
    """Two marks. Scores .9 hit, .8 false, .7 hit: precision 1 up to recall 1/2, then 2/3: 51 of 101 recalls at 1."""
    truth = Marked(np.array([[0.0, 0, 10, 10], [50, 50, 60, 60]]), np.zeros(2, np.int64))
    boxes = np.array([[0.0, 0, 10, 10], [100, 100, 110, 110], [50, 50, 60, 60]])
    found = Detections(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int64))
    assert average_precision([found], [truth], 0) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision([no_detections()], [truth], 0) == 0
    assert np.isnan(average_precision([found], [truth], 1))
    twice = Detections(
        boxes[[0, 0, 2]], found.scores, found.labels
    )  # the second on one mark is a false alarm
    assert average_precision([twice], [truth], 0) == average_precision([found], [truth], 0)


def test_by_distance_by_hand() -> None:
    """Marks at 0, 10, 100. Detections at 1 (.9), 2 (.8), 14 (.7), 60 (.6), reach 5: the second finds only taken marks."""
    points = np.array([[1.0, 0], [2, 0], [14, 0], [60, 0]])
    marks = np.array([[0.0, 0], [10, 0], [100, 0]])
    found = by_distance(points, np.array([0.9, 0.8, 0.7, 0.6]), marks, 5)
    assert found == Agreement(hits=2, false=2, missed=1)
    assert found.f1 == pytest.approx(2 * 2 / (4 + 3))
    assert by_distance(np.array([[5.0, 0]]), np.ones(1), np.zeros((1, 2)), 5).hits == 1  # at the reach
    assert by_distance(np.array([[5.1, 0]]), np.ones(1), np.zeros((1, 2)), 5).hits == 0
    nothing = by_distance(np.empty((0, 2)), np.empty(0), np.empty((0, 2)), 5)
    assert np.isnan(nothing.f1)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30))
def test_kappa_is_scikit_learn_s(pairs: list[tuple[int, int]]) -> None:
    first, second = zip(*pairs, strict=True)
    if len(set(first) | set(second)) == 1:
        assert np.isnan(weighted_kappa(first, second, 4))
        return
    theirs = cohen_kappa_score(first, second, labels=[0, 1, 2, 3], weights="quadratic")
    assert weighted_kappa(first, second, 4) == pytest.approx(theirs, abs=1e-12)


def test_bland_altman_by_hand() -> None:
    """Differences 1, 3, 2: mean 2, standard deviation 1."""
    found = bland_altman(np.array([11.0, 23, 32]), np.array([10.0, 20, 30]))
    assert (found.bias, found.low, found.high, found.slides) == pytest.approx((2, 0.04, 3.96, 3))
    with pytest.raises(ValueError, match="at least two slides"):
        bland_altman(np.array([1.0]), np.array([1.0]))
    with pytest.raises(ValueError, match="no slide was graded"):
        weighted_kappa([], [], 4)
