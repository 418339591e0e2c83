"""What makes YOLOv3 that network: its anchors, who is responsible for a box, its boxes and its losses, by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from models.card import DetectorConfig
from models.networks.detector import CapillaryDetector
from models.networks.yolo import (
    Darknet,
    Yolo,
    anchors_by_kmeans,
    decode,
    default_anchors,
    losses,
    make,
    responsible,
    shape_iou,
)

ANCHORS = ((10.0, 10.0), (20.0, 10.0), (10.0, 20.0), *((s, s) for s in (30.0, 35.0, 40.0, 60.0, 70.0, 80.0)))


def config(**changes: Any) -> DetectorConfig:
    values: dict[str, Any] = {"network": "yolo_v3", "tile_px": 64, "anchors_px": (10.0, 30.0, 60.0)}
    return DetectorConfig(**values | {"anchor_boxes": ANCHORS} | changes)


@pytest.fixture
def network() -> Yolo:
    torch.manual_seed(0)
    return make(config(), 2)


def maps_of(network: Yolo, side: int = 64) -> tuple[torch.Tensor, ...]:
    """Levels of 16, 8 and 4 cells, all zero."""
    return tuple(torch.zeros(1, 3 * 7, side // s, side // s) for s in (4, 8, 16))


def test_three_scales_each_joined_to_the_one_above(network: Yolo) -> None:
    shapes = [level.shape for level in network.eval().maps(torch.zeros(2, 3, 64, 64))]
    assert shapes == [(2, 21, 16, 16), (2, 21, 8, 8), (2, 21, 4, 4)]
    # the finest output depends on what only the coarsest features hold
    pixels = torch.rand(1, 3, 64, 64)
    torch.nn.init.zeros_(network.bring[0][0].weight)  # type: ignore[index,arg-type]
    cut = network.maps(pixels)[0]
    torch.nn.init.ones_(network.bring[0][0].weight)  # type: ignore[index,arg-type]
    assert not torch.equal(network.maps(pixels)[0], cut)


def test_darknet_has_52_convolutions_and_strides_8_16_32() -> None:
    body = Darknet().eval()
    assert sum(isinstance(m, torch.nn.Conv2d) for m in body.modules()) == 52  # and a class layer in the paper
    with torch.inference_mode():
        maps = list(body(torch.zeros(1, 3, 64, 64)).values())
    assert [tuple(m.shape[1:]) for m in maps] == [(256, 8, 8), (512, 4, 4), (1024, 2, 2)]
    assert make(config(backbone="darknet53"), 2).anchors == [ANCHORS[:3], ANCHORS[3:6], ANCHORS[6:]]


class TestBoxes:
    def test_decoding_by_hand(self, network: Yolo) -> None:
        maps = maps_of(network)
        maps[1][0, 7:14, 2, 5] = torch.tensor(
            [0.0, math.log(3), math.log(2), 0, 4.0, -1.0, 2.0]
        )  # its second anchor
        boxes, objects, classes = decode(network, maps, 64)
        index = 16 * 16 * 3 + (2 * 8 + 5) * 3 + 1
        # the middle is (5 + 1/2, 2 + 3/4) cells of 8 px; the anchor is 35 x 35
        x, y, w, h = 44.0, 22.0, 70.0, 35.0
        expected = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        torch.testing.assert_close(boxes[0, index], expected)
        assert float(objects[0, index]) == 4
        assert classes[0, index].tolist() == [-1, 2]
        assert boxes.shape == (1, 3 * (256 + 64 + 16), 4)

    def test_scores_are_objectness_times_class_and_classes_do_not_suppress_each_other(self) -> None:
        detector = CapillaryDetector(config(lowest_score=0.3, iou=0.45))
        network = detector.networks[0]
        assert isinstance(network, Yolo)
        maps = maps_of(network)
        for level in maps:
            level.view(3, 7, *level.shape[2:])[:, 4] = -20.0
        for col, (thing, first, second) in enumerate([(2.0, 3.0, -9.0), (1.0, 3.0, 2.0)]):
            maps[0][0, 4:7, 8, 6 + col] = torch.tensor([thing, first, second])  # 4 px apart, 10 px large
        detections = detector.detect(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), [lambda pixels: maps])[0]  # type: ignore[list-item]
        s = lambda v: 1 / (1 + math.exp(-v))  # noqa: E731
        assert detections.labels.tolist() == [0, 0, 1]
        assert detections.scores == pytest.approx([s(2) * s(3), s(1) * s(3), s(1) * s(2)], rel=1e-5)
        network.cfg = config(lowest_score=0.3, iou=0.4)  # they overlap by 60 of 140
        fewer = detector.detect(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), [lambda pixels: maps])[0]  # type: ignore[list-item]
        assert fewer.labels.tolist() == [0, 1]
        assert detections.boxes[0].tolist() == pytest.approx([26 - 5, 34 - 5, 26 + 5, 34 + 5])


class TestResponsible:
    def test_the_best_shape_at_the_middle_by_hand(self, network: Yolo) -> None:
        boxes = torch.tensor(
            [[2.0, 30, 23, 40], [0, 0, 62, 62]]
        )  # 21 x 10 around (12.5, 35); 62 x 62 around (31, 31)
        index, wanted = responsible(network, maps_of(network), boxes, 64)
        place = (8 * 16 + 3) * 3 + 1  # row 35 // 4, col 12 // 4, the anchor of 20 x 10
        coarse = 16 * 16 * 3 + 8 * 8 * 3 + (1 * 4 + 1) * 3 + 0
        assert index.tolist() == [place, coarse]
        expected = [
            [12.5 / 4 - 3, 35 / 4 - 8, math.log(21 / 20), 0.0],
            [31 / 16 - 1, 31 / 16 - 1, *[math.log(62 / 60)] * 2],
        ]
        torch.testing.assert_close(wanted, torch.tensor(expected))

    def test_what_is_decoded_from_what_is_wanted_is_the_box(self, network: Yolo) -> None:
        box = torch.tensor([[21.0, 13.0, 52.0, 49.0]])
        maps = maps_of(network)
        (index,), (wanted,) = responsible(network, maps, box, 64)
        level = maps[1].view(3, 7, 8, 8)
        rest = int(index) - 16 * 16 * 3
        anchor, cell = rest % 3, rest // 3
        level[anchor, :4, cell // 8, cell % 8] = torch.cat([torch.logit(wanted[:2]), wanted[2:]])
        torch.testing.assert_close(decode(network, maps, 64)[0][0, index], box[0], atol=1e-3, rtol=0)

    def test_a_middle_on_the_edge_stays_on_the_map(self, network: Yolo) -> None:
        index, _ = responsible(network, maps_of(network), torch.tensor([[60.0, 60, 68, 68]]), 64)
        assert int(index) == (15 * 16 + 15) * 3


class TestLosses:
    def test_by_hand(self, network: Yolo) -> None:
        maps = maps_of(network)
        target = [{"boxes": torch.tensor([[2.0, 30, 23, 40]]), "labels": torch.tensor([1])}]
        result = losses(network, maps, target, 64)
        _, wanted = responsible(network, maps, target[0]["boxes"], 64)
        box = ((torch.tensor([0.5, 0.5, 0, 0]) - wanted[0]) ** 2).sum()
        torch.testing.assert_close(result["box"], box)
        torch.testing.assert_close(result["class"], torch.tensor(2 * math.log(2)))
        # a neighbour of the same shape overlaps by more than a half, and is not told that it is wrong
        boxes = decode(network, maps, 64)[0][0]
        from torchvision.ops import box_iou

        near = int((box_iou(boxes, target[0]["boxes"])[:, 0] > 0.5).sum())
        assert near > 1
        torch.testing.assert_close(result["object"], torch.tensor((len(boxes) - near + 1) * math.log(2)))

    def test_a_tile_without_objects_has_objectness_alone(self, network: Yolo) -> None:
        nothing = [{"boxes": torch.empty(0, 4), "labels": torch.empty(0, dtype=torch.int64)}]
        result = losses(network, maps_of(network), nothing, 64)
        assert (float(result["box"]), float(result["class"])) == (0, 0)
        expected = F.binary_cross_entropy_with_logits(torch.zeros(1008), torch.zeros(1008), reduction="sum")
        torch.testing.assert_close(result["object"], expected)


class TestAnchors:
    def test_overlaps_of_shapes_by_hand(self) -> None:
        got = shape_iou(np.array([[4.0, 2.0]]), np.array([[4.0, 2.0], [2.0, 4.0], [8.0, 4.0]]))
        np.testing.assert_allclose(got, [[1, 4 / 12, 8 / 32]])

    def test_three_kinds_of_boxes_give_their_means(self) -> None:
        rng = np.random.default_rng(0)
        kinds = np.array([[10.0, 10.0], [60.0, 20.0], [20.0, 80.0]])
        sizes = np.concatenate([kind * rng.uniform(0.95, 1.05, (40, 2)) for kind in kinds])
        np.testing.assert_allclose(anchors_by_kmeans(sizes, 3), kinds, rtol=0.03)
        assert anchors_by_kmeans(sizes, 3) == anchors_by_kmeans(sizes, 3)

    def test_a_few_odd_boxes_take_no_anchor_from_the_others(self) -> None:
        rng = np.random.default_rng(0)
        sizes = rng.uniform(20, 40, (300, 2))
        odd = np.concatenate([sizes, rng.uniform(300, 900, (3, 2))])
        plain, disturbed = (
            shape_iou(sizes, np.array(anchors_by_kmeans(some, 9))).max(axis=1).mean() for some in (sizes, odd)
        )
        assert disturbed > plain - 0.03

    def test_too_few_boxes(self) -> None:
        with pytest.raises(ValueError, match="2 different boxes cannot give 9 anchors"):
            anchors_by_kmeans(np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]), 9)

    def test_without_any_they_follow_from_the_sides(self) -> None:
        anchors = default_anchors((30.0,))
        assert anchors[0] == (30, 30)
        assert all(w * h == pytest.approx(900, rel=0.01) for w, h in anchors)
        assert sorted(w / h for w, h in anchors) == pytest.approx([0.5, 1, 2], rel=0.01)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"anchor_boxes": ANCHORS[:8]}, "small has 3 levels, so it needs 9 anchor_boxes"),
        ({"anchor_boxes": (*ANCHORS[:8], (0.0, 9.0))}, "must have sides above 0"),
        ({"network": "faster_rcnn"}, "anchor_boxes are of yolo_v3; faster_rcnn takes anchors_px"),
        (
            {"network": "retinanet", "backbone": "darknet53", "anchor_boxes": ()},
            "darknet53 is a backbone of yolo_v3",
        ),
    ],
)
def test_shapes_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config(**changes)
