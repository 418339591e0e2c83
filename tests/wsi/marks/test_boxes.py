"""Boxes on a slide: shared out among tiles, and suppressed, without loss or double count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import batched_nms, nms

from wsi.marks.boxes import (
    Boxes,
    enlarged,
    joined,
    overlaps,
    plan_detection_tiles,
    shrunk,
    suppress,
    suppress_counted,
    within,
)


def random_boxes(seed: int, n: int, area: tuple[int, int, int, int], largest: float = 60) -> Boxes:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(area[:2], np.array(area[2:]) - largest, (n, 2))
    sides = rng.uniform(4, largest, (n, 2))
    scores = np.round(rng.random(n), 2).astype(np.float32)  # with ties
    return Boxes(np.hstack([corners, corners + sides]), rng.integers(0, 2, n), scores)


MARKS = Boxes(np.array([[10.0, 20, 40, 30], [0, 2, 8, 6], [5, 5, 6, 9]]), np.array([1, 0, 1]))
FOUND = replace(MARKS, scores=np.array([0.5, 0.25, 0.75], np.float32))


class TestBoxes:
    def test_a_selection_keeps_labels_and_scores_with_their_boxes(self) -> None:
        for which in (np.array([True, False, True]), np.array([2, 0])):
            chosen = FOUND[which]
            assert chosen.boxes.tolist() == FOUND.boxes[which].tolist()
            assert chosen.labels.tolist() == FOUND.labels[which].tolist()
            assert chosen.known_scores.tolist() == FOUND.known_scores[which].tolist()
        assert len(FOUND[np.array([2, 0])]) == 2

    def test_what_a_person_marked_stays_without_scores(self) -> None:
        kept = MARKS[MARKS.labels == 1]
        for boxes in (
            kept,
            kept[np.array([1, 0])],
            MARKS.shifted((3, 5)),
            enlarged(MARKS, (1, 2)),
            shrunk(MARKS, (1, 2), 1),
            within(MARKS, (0, 0, 100, 100)),
            joined([MARKS, kept]),
        ):
            assert boxes.scores is None
        assert len(joined([MARKS, kept])) == 5

    def test_without_scores_nothing_is_ranked(self) -> None:
        for ranked in (
            lambda: MARKS.known_scores,
            MARKS.best_first,
            lambda: suppress(MARKS, 0.5),
            lambda: suppress_counted(MARKS, (0.5, 0.5), 0.5),
        ):
            with pytest.raises(ValueError, match="these boxes have no scores: a person marked them"):
                ranked()

    def test_marked_and_found_are_not_joined(self) -> None:
        both = joined([FOUND, FOUND[np.array([1])]])
        assert both.known_scores.tolist() == [0.5, 0.25, 0.75, 0.25]
        assert both.labels.tolist() == [1, 0, 1, 0]
        for parts in ([FOUND, MARKS, FOUND], [MARKS[:0], FOUND, FOUND]):
            with pytest.raises(
                ValueError, match="1 of 3 parts have no scores; join what a person marked and"
            ):
                joined(parts)

    def test_shifting_moves_each_axis_by_its_own(self) -> None:
        moved = FOUND.shifted((1000, 30.5))
        assert moved.boxes.tolist() == [
            [1010, 50.5, 1040, 60.5],
            [1000, 32.5, 1008, 36.5],
            [1005, 35.5, 1006, 39.5],
        ]
        assert moved.known_scores.tolist() == FOUND.known_scores.tolist()
        assert FOUND.boxes[0].tolist() == [10, 20, 40, 30]

    def test_centres(self) -> None:
        assert MARKS.centres.tolist() == [[25, 25], [4, 4], [5.5, 7]]

    def test_best_first_and_equal_scores_in_order(self) -> None:
        tied = replace(FOUND, scores=np.array([0.25, 0.75, 0.25], np.float32)).best_first()
        assert tied.boxes.tolist() == MARKS.boxes[[1, 0, 2]].tolist()
        assert tied.labels.tolist() == [0, 1, 1]

    def test_a_middle_on_the_border_lies_in_one_core(self) -> None:
        assert within(MARKS, (4, 4, 25, 25)).boxes.tolist() == MARKS.boxes[[1, 2]].tolist()
        assert within(MARKS, (25, 25, 99, 99)).boxes.tolist() == MARKS.boxes[[0]].tolist()

    def test_overlaps_are_of_every_pair(self) -> None:
        """A box of 8 x 4 px shares 3 x 2 with one of 4 x 4 and with one of 4 x 6: 6 of 32 + 16 - 6, 6 of 32 + 24 - 6."""
        one = Boxes(np.array([[5.0, 0, 9, 4], [5, 4, 9, 10]]), np.array([0, 1]))
        shared = overlaps(MARKS[1:2], one)
        assert shared.tolist() == [[pytest.approx(6 / 42), pytest.approx(6 / 50)]]
        assert overlaps(one, MARKS[:0]).shape == (2, 0)

    def test_enlarging_goes_by_class(self) -> None:
        pair = Boxes(np.array([[10.0, 10, 20, 30]] * 2), np.array([0, 1]))
        assert enlarged(pair, (4, 5)).boxes.tolist() == [[6, 6, 24, 34], [5, 5, 25, 35]]

    def test_by_less_than_nothing_what_is_gone_is_left_out(self) -> None:
        """A recipe may make boxes smaller: 4 px less 2 on each side are nothing, and 1 px less 1 on each side even less."""
        smaller = enlarged(FOUND, (-2, -1))
        assert smaller.boxes.tolist() == [[11, 21, 39, 29]]
        assert smaller.known_scores.tolist() == [0.5]

    def test_taking_off_what_boxes_were_enlarged_by(self) -> None:
        pair = Boxes(np.array([[10.0, 10, 40, 30], [0, 0, 8, 8]]), np.array([0, 1]))
        assert shrunk(pair, (5, 6), 2).boxes.tolist() == [[15, 15, 35, 25], [3, 3, 5, 5]]


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
        boxes = replace(boxes, scores=rng.permutation(150).astype(np.float32) / 150)  # no ties
        mine = suppress(boxes, iou, across_classes=across)
        args = torch.from_numpy(boxes.boxes), torch.from_numpy(boxes.known_scores).double()
        theirs = nms(*args, iou) if across else batched_nms(*args, torch.from_numpy(boxes.labels), iou)
        assert (mine.boxes == boxes.boxes[theirs.numpy()]).all()


@given(st.integers(0, 200), st.floats(0, 0.9))
def test_suppression_far_out_on_the_slide_is_the_same(seed: int, iou: float) -> None:
    """By 200,000 px: in float32 boxes would snap to a 64th of a pixel, in float16 to 128."""
    boxes = random_boxes(seed, 60, (0, 0, 300, 300))
    boxes = replace(boxes, boxes=np.round(boxes.boxes * 8) / 8)  # so that the shift is exact
    far = suppress(boxes.shifted((200_000, 150_000)), iou)
    near = suppress(boxes, iou)
    assert (far.boxes == near.shifted((200_000, 150_000)).boxes).all()
    twice = suppress(near, iou)
    assert (twice.boxes == near.boxes).all()
    assert near.known_scores.max() == boxes.known_scores.max()


def test_nothing_and_what_is_wrong() -> None:
    nothing = joined([])
    assert len(suppress(nothing, 0.5)) == len(nothing) == 0
    assert nothing.known_scores.shape == (0,)
    one, label = np.array([[1.0, 0, 5, 9]]), np.zeros(1, np.int64)
    for boxes, labels, scores, message in (
        (np.array([[5.0, 0, 5, 9]]), label, None, "x0 < x1"),
        (np.array([[1.0, 9, 5, 9]]), label, None, "y0 < y1"),
        (one, label, np.ones(2, np.float32), "of one length"),
        (one, np.zeros(2, np.int64), None, "of one length"),
        (one[:, :3], label, None, "of one length"),
        (one.astype(np.float32), label, None, "boxes must be a 2-d float64"),
        (one, np.ones(1, np.float32), np.zeros(1, np.int64), "labels must be a 1-d int64"),  # swapped
        (one, label, np.ones(1), "scores must be a 1-d float32"),
    ):
        with pytest.raises(ValueError, match=message):
            Boxes(boxes, labels, scores)
    with pytest.raises(ValueError, match="overlap must lie"):
        plan_detection_tiles((0, 0, 10, 10), 64, 64)


def test_what_counts_is_not_hidden_by_what_does_not() -> None:
    """Limits 0.2 and 0.75: a positive of 0.5 does not count, so the negative of 0.45 at its place stays; plain suppression
    would leave the positive alone. The negative of 0.1 and the positive of 0.7 apart are shown and do not count."""
    boxes = np.array([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 0, 60, 10], [80, 0, 90, 10], [80, 1, 90, 11]])
    found = Boxes(boxes, np.array([1, 0, 0, 1, 1]), np.array([0.5, 0.45, 0.1, 0.7, 0.9], np.float32))
    kept = suppress_counted(found, (0.2, 0.75), 0.4)
    assert [round(float(s), 2) for s in kept.known_scores] == [0.9, 0.45, 0.1]
    assert [round(float(s), 2) for s in suppress(found, 0.4).known_scores] == [0.9, 0.5, 0.1]
    everything = suppress_counted(found, (0.0, 0.0), 0.4)
    assert (everything.boxes == suppress(found, 0.4).boxes).all()
    assert len(suppress_counted(found[:0], (0.2, 0.75), 0.4)) == 0
