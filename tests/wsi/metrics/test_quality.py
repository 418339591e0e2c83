"""Detection quality and agreement, each against another library or a case by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from pipelines.renal.evaluate.agreement import bland_altman, weighted_kappa
from wsi.marks.boxes import Boxes, joined
from wsi.metrics.detection import Agreement, average_precision, by_distance, hits_by_distance


def picture(seed: int) -> tuple[Boxes, Boxes]:
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
    return Boxes(found, classes.astype(np.int64), scores), Boxes(boxes, labels.astype(np.int64))


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
    truth = Boxes(np.array([[0.0, 0, 10, 10], [50, 50, 60, 60]]), np.zeros(2, np.int64))
    boxes = np.array([[0.0, 0, 10, 10], [100, 100, 110, 110], [50, 50, 60, 60]])
    found = Boxes(boxes, np.zeros(3, np.int64), np.array([0.9, 0.8, 0.7], np.float32))
    assert average_precision([found], [truth], 0) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision([joined([])], [truth], 0) == 0
    assert np.isnan(average_precision([found], [truth], 1))
    twice = Boxes(boxes[[0, 0, 2]], found.labels, found.scores)  # the second on one mark is a false alarm
    assert average_precision([twice], [truth], 0) == average_precision([found], [truth], 0)


def around(*middles: tuple[float, float], scores: tuple[float, ...] | None = None) -> Boxes:
    """Boxes of 8 x 4 px around these middles, all of class 0."""
    points = np.array(middles, np.float64).reshape(-1, 2)
    boxes = np.hstack([points - (4, 2), points + (4, 2)])
    known = None if scores is None else np.array(scores, np.float32)
    return Boxes(boxes, np.zeros(len(points), np.int64), known)


def test_by_distance_by_hand() -> None:
    """Marks at 0, 10, 100. Detections at 1 (.9), 2 (.8), 14 (.7), 60 (.6), reach 5: the second finds only taken marks."""
    marks = around((0, 3), (10, 3), (100, 3))
    detections = around((2, 3), (1, 3), (14, 3), (60, 3), scores=(0.8, 0.9, 0.7, 0.6))
    assert hits_by_distance(detections, marks, 5).tolist() == [False, True, True, False]  # as they were given
    found = by_distance(detections, marks, 5)
    assert found == Agreement(hits=2, false=2, missed=1)
    assert found.f1 == pytest.approx(2 * 2 / (4 + 3))
    for x, y, hits in (
        (5, 0, 1),
        (5.1, 0, 0),
        (0, 5, 1),
        (0, 5.1, 0),
        (3, 4, 1),
        (3.1, 4.1, 0),
    ):  # the reach is 5
        assert by_distance(around((x, y), scores=(1,)), around((0, 0)), 5).hits == hits
    nothing = by_distance(around(scores=()), around(), 5)
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
