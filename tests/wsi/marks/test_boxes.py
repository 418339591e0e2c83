"""Boxes on a slide: shared out among tiles, and suppressed, without loss or double count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import batched_nms, nms

from wsi.marks.boxes import (
    Detections,
    joined,
    no_detections,
    plan_detection_tiles,
    suppress,
    suppress_counted,
    within,
)


def random_boxes(seed: int, n: int, area: tuple[int, int, int, int], largest: float = 60) -> Detections:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(area[:2], np.array(area[2:]) - largest, (n, 2))
    sides = rng.uniform(4, largest, (n, 2))
    scores = np.round(rng.random(n), 2).astype(np.float32)  # with ties
    return Detections(np.hstack([corners, corners + sides]), scores, rng.integers(0, 2, n))


@given(
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.integers(64, 900),
    st.data(),
)
def test_cores_share_out_the_area(
    x0: int, y0: int, width: int, height: int, side: int, data: st.DataObject
) -> None:
    """Every point of the area lies in exactly one core, and well inside that core's tile."""
    overlap = data.draw(st.integers(0, side // 2))
    area = (x0, y0, x0 + width, y0 + height)
    tiles = plan_detection_tiles(area, side, overlap)
    rng = np.random.default_rng(0)
    points = np.vstack(
        [rng.uniform(area[:2], area[2:], (40, 2)), [area[:2]], np.array(area[2:])[None] - 1e-6]
    )
    for x, y in points:
        held = [t for t in tiles if t.core[0] <= x < t.core[2] and t.core[1] <= y < t.core[3]]
        assert len(held) == 1
        box = held[0].box
        assert min(x - box[0], y - box[1]) >= overlap // 2
        assert min(box[2] - x, box[3] - y) >= overlap // 2
    assert sum((t.core[2] - t.core[0]) * (t.core[3] - t.core[1]) for t in tiles) == width * height


@pytest.mark.parametrize("side", [256, 300, 512])
def test_tiles_find_what_one_big_picture_finds(side: int) -> None:
    """A perfect detector that sees only what lies whole in its tile: cores and one suppression give every box once."""
    area = (1000, 500, 3100, 2300)
    truth = random_boxes(1, 400, area, largest=40)
    truth = suppress(truth, 0.0)  # none overlaps another
    parts = []
    for tile in plan_detection_tiles(area, side, 64):
        inside = (truth.boxes[:, :2] >= tile.box[:2]).all(1) & (truth.boxes[:, 2:] <= tile.box[2:]).all(1)
        seen = truth[inside].shifted((-tile.box[0], -tile.box[1]))  # as the detector gives them
        parts.append(within(seen.shifted(tile.box[:2]), tile.core))
    found = suppress(joined(parts), 0.3)
    assert len(found) == len(truth)
    assert sorted(map(tuple, np.round(found.boxes, 6))) == sorted(map(tuple, np.round(truth.boxes, 6)))


@pytest.mark.parametrize("iou", [0.1, 0.5])
@pytest.mark.parametrize("across", [True, False])
def test_suppression_is_torchvision_s(iou: float, across: bool) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        boxes = random_boxes(seed, 150, (0, 0, 400, 400))
        boxes = Detections(
            boxes.boxes, rng.permutation(150).astype(np.float32) / 150, boxes.labels
        )  # no ties
        mine = suppress(boxes, iou, across_classes=across)
        args = torch.from_numpy(boxes.boxes), torch.from_numpy(boxes.scores).double()
        theirs = nms(*args, iou) if across else batched_nms(*args, torch.from_numpy(boxes.labels), iou)
        assert (mine.boxes == boxes.boxes[theirs.numpy()]).all()


@given(st.integers(0, 200), st.floats(0, 0.9))
def test_suppression_far_out_on_the_slide_is_the_same(seed: int, iou: float) -> None:
    """By 200,000 px: in float32 boxes would snap to a 64th of a pixel, in float16 to 128."""
    boxes = random_boxes(seed, 60, (0, 0, 300, 300))
    boxes = Detections(
        np.round(boxes.boxes * 8) / 8, boxes.scores, boxes.labels
    )  # so that the shift is exact
    if not (boxes.boxes[:, 2:] > boxes.boxes[:, :2]).all():
        return
    far = suppress(boxes.shifted((200_000, 150_000)), iou)
    near = suppress(boxes, iou)
    assert (far.boxes == near.shifted((200_000, 150_000)).boxes).all()
    twice = suppress(near, iou)
    assert (twice.boxes == near.boxes).all()
    assert near.scores.max() == boxes.scores.max()


def test_nothing_and_what_is_wrong() -> None:
    assert len(suppress(no_detections(), 0.5)) == len(joined([])) == 0
    with pytest.raises(ValueError, match="x0 < x1"):
        Detections(np.array([[5.0, 0, 5, 9]]), np.ones(1, np.float32), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="of one length"):
        Detections(np.array([[1.0, 0, 5, 9]]), np.ones(2, np.float32), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="float64"):
        Detections(np.ones((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="overlap must lie"):
        plan_detection_tiles((0, 0, 10, 10), 64, 64)


def test_what_counts_is_not_hidden_by_what_does_not() -> None:
    """Limits 0.2 and 0.75: a positive of 0.5 does not count, so the negative of 0.45 at its place stays; plain suppression
    would leave the positive alone. The negative of 0.1 and the positive of 0.7 apart are shown and do not count."""
    boxes = np.array([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 0, 60, 10], [80, 0, 90, 10], [80, 1, 90, 11]])
    found = Detections(boxes, np.array([0.5, 0.45, 0.1, 0.7, 0.9], np.float32), np.array([1, 0, 0, 1, 1]))
    kept = suppress_counted(found, (0.2, 0.75), 0.4)
    assert [round(float(s), 2) for s in kept.scores] == [0.9, 0.45, 0.1]
    assert [round(float(s), 2) for s in suppress(found, 0.4).scores] == [0.9, 0.5, 0.1]
    everything = suppress_counted(found, (0.0, 0.0), 0.4)
    assert (everything.boxes == suppress(found, 0.4).boxes).all()
    assert len(suppress_counted(found[:0], (0.2, 0.75), 0.4)) == 0
