"""The capillary detector: its borrowed defaults, its examples, and that it learns."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from shapely import box

from models.card import ZOO, DetectorConfig
from models.checkpoint import load_detector, save_detector
from models.engines import EngineConfig, choice
from models.engines.boxes import BoxEngine
from models.engines.openvino import OpenVinoConvolutions
from models.networks.contract import orient
from models.networks.detector import FAMILIES, CapillaryDetector, _target
from models.networks.faster_rcnn import MOST_BOXES
from models.networks.yolo import anchors_by_kmeans
from models.training.data.detection import (
    TRAP,
    Example,
    MarkedSlide,
    _inside,
    draw_corner,
    read_example,
    read_marked,
    turned,
)
from models.training.data.tiles import TileSampler, training_rows, used_rows, validation_tiles
from models.training.detect import _with_anchors, count_thresholds, train_detector
from models.training.progress import Listeners
from models.training.recipe import DetectorTrainConfig
from models.training.trials import Trial, score_trial
from pipelines.runs.config import load_config
from tests.models.networks.test_networks import DEMO
from tests.slides import COMMAND, ROOT, coordinates, painted, write_pyramid
from wsi.errors import AnnotationError, ConfigError, ModelError
from wsi.marks.annotations import Annotation, write_asap
from wsi.marks.boxes import Boxes, suppress
from wsi.slides.manifest import SlideRow, read_manifest
from wsi.slides.source import SlideSource

Run = Callable[..., tuple[int, str, str]]
DEMO_DETECTOR = ZOO / "renal-ptc-demo"
TINY = DetectorConfig(tile_px=128, anchors_px=(16.0, 24.0, 40.0))


def squares(n: int, seed: int, size: int = 128) -> list[Example]:
    """Brown or blue squares of 20 px on grey, two to a tile."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        image = np.clip(rng.normal(205, 6, (size, size, 3)), 0, 255).astype(np.uint8)
        boxes, labels = [], []
        for x in (rng.integers(4, 40), rng.integers(68, 104)):
            y, label = int(rng.integers(4, size - 24)), int(rng.integers(2))
            image[y : y + 20, x : x + 20] = ((40, 70, 190), (120, 70, 30))[label]
            boxes.append((x, y, x + 20, y + 20))
            labels.append(label)
        found.append(Example(image, Boxes(np.array(boxes, np.float64), np.array(labels, np.int64))))
    return found


def batch(examples: list[Example]) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    tiles = torch.from_numpy(np.stack([e.pixels for e in examples]))
    boxes = [torch.from_numpy(e.objects.boxes) for e in examples]
    return tiles, boxes, [torch.from_numpy(e.objects.labels) for e in examples]


def tiles_right(network: CapillaryDetector, tests: list[Example]) -> int:
    """The number of tiles whose two best boxes are their two objects, within 4 px, with their classes."""
    right = 0
    found = network.detect(torch.from_numpy(np.stack([e.pixels for e in tests])))
    for one, truth in zip(found, tests, strict=True):
        best = suppress(one, 0.3)[:2]
        gaps = np.abs(best.centres[:, None] - truth.objects.centres[None]).max(axis=2)
        near = len(best) == 2 and gaps.min(axis=0).max() < 4
        right += bool(near and (best.labels[gaps.argmin(axis=0)] == truth.objects.labels).all())
    return right


class TestNetwork:
    def test_borrowed_defaults_are_set(self) -> None:
        """torchvision's own would resize to 800 px, keep 100 boxes, and take ImageNet's colours."""
        network = CapillaryDetector(DetectorConfig()).networks[0]
        assert (network.transform.min_size, network.transform.max_size) == ((512,), 512)
        assert network.transform.image_mean == [0.5] * 3
        assert network.roi_heads.detections_per_img == MOST_BOXES
        assert network.roi_heads.score_thresh == 0.05
        assert network.roi_heads.nms_thresh == 0.4
        assert network.rpn.anchor_generator.sizes == ((32.0,), (48.0,), (80.0,))
        assert network.roi_heads.box_predictor.cls_score.out_features == 3

    def test_nothing_is_resized_inside(self) -> None:
        network = CapillaryDetector(TINY).networks[0].eval()
        seen, _ = network.transform([torch.zeros(3, 128, 128)])
        assert seen.tensors.shape == (1, 3, 128, 128)

    def test_levels_need_anchors(self) -> None:
        with pytest.raises(ValueError, match="small has 3 levels"):
            DetectorConfig(anchors_px=(32.0,))
        assert DetectorConfig(backbone="resnet50", anchors_px=(24.0, 32.0, 48.0, 80.0)).backbone == "resnet50"

    @pytest.mark.slow
    @pytest.mark.parametrize("name", FAMILIES)
    def test_it_learns_and_restores(self, tmp_path: Path, name: Any) -> None:
        """Blue and brown squares, soon: both of a new tile found best, with their class; labels from 0."""
        torch.manual_seed(0)
        torch.set_num_threads(1)
        cfg = TINY.model_copy(update={"network": name})
        network = CapillaryDetector(cfg)
        optimiser = torch.optim.AdamW(network.parameters(), 1e-3 if name == "retinanet" else 2e-3)
        tests, enough = squares(6, 999), 6 if name == "faster_rcnn" else 5
        for step in range(240):
            losses = network.train().losses(*batch(squares(4, step)))
            optimiser.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimiser.step()
            if step % 20 == 19 and tiles_right(network.eval(), tests) >= enough:
                break
        assert tiles_right(network.eval(), tests) >= enough
        save_file(network.state_dict(), tmp_path / "w.safetensors")
        again = CapillaryDetector(cfg).eval()
        again.load_state_dict(load_file(tmp_path / "w.safetensors"))
        repeated = again.detect(torch.from_numpy(tests[0].pixels[None]))[0]
        assert (repeated.boxes == network.detect(torch.from_numpy(tests[0].pixels[None]))[0].boxes).all()

    def test_a_network_for_each_class(self) -> None:
        """Twice the losses; each network is told of its own class only, and its answers carry that class."""
        separate = CapillaryDetector(TINY.model_copy(update={"separate": True}))
        one = CapillaryDetector(TINY)
        assert len(separate.networks) == 2
        assert all(n.roi_heads.box_predictor.cls_score.out_features == 2 for n in separate.networks)
        losses = separate.train().losses(*batch(squares(1, 0)))
        assert len(losses) == 2 * len(one.train().losses(*batch(squares(1, 0))))
        boxes, labels = torch.tensor([[0.0, 0, 9, 9], [20, 20, 29, 29]]), torch.tensor([1, 0])
        for group, left in (((0,), 20), ((1,), 0)):
            target = _target(boxes, labels, group, 1)
            assert (target["labels"].tolist(), target["boxes"][0, 0].item()) == ([1], left)
        assert _target(boxes, labels, (0, 1), 1)["labels"].tolist() == [2, 1]
        for i, network in enumerate(separate.eval().networks):
            scores = network.roi_heads.box_predictor.cls_score
            torch.nn.init.zeros_(scores.weight)
            scores.bias.data = torch.tensor([0.0, 5.0 if i == 1 else -5.0])  # only the second is sure
        found = separate.detect(torch.zeros(1, 128, 128, 3, dtype=torch.uint8))[0]
        assert set(found.labels.tolist()) == {1}
        assert (np.diff(found.scores) <= 0).all()

    @pytest.mark.parametrize("name", FAMILIES)
    def test_a_tile_without_objects_has_losses(self, name: Any) -> None:
        network = CapillaryDetector(TINY.model_copy(update={"network": name})).train()
        tiles = torch.full((2, 128, 128, 3), 200, dtype=torch.uint8)
        nothing = [torch.empty(0, 4)] * 2, [torch.empty(0, dtype=torch.int64)] * 2
        assert all(torch.isfinite(v) for v in network.losses(tiles, *nothing).values())

    def test_tiles_of_another_size(self) -> None:
        """Training wants its own; detection any side that every level of the pyramid divides, and no other."""
        network = CapillaryDetector(TINY)
        odd = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
        with pytest.raises(ValueError, match="tiles must be 128 x 128 px"):
            network.train().losses(odd, [torch.empty(0, 4)], [torch.empty(0, dtype=torch.int64)])
        network.eval()
        assert len(network.detect(odd)) == 1
        for rows, cols in ((100, 100), (64, 96)):
            with pytest.raises(ValueError, match="squares of a multiple of 32"):
                network.detect(torch.zeros(1, rows, cols, 3, dtype=torch.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_networks_graph_is_right_for_tiles_of_other_sizes(name: Any) -> None:
    """A graph is converted once, with a small tile: nothing of its size may stay in it."""
    torch.manual_seed(0)
    convolutions = CapillaryDetector(TINY.model_copy(update={"network": name})).eval().convolutions[0].eval()
    graph = OpenVinoConvolutions(convolutions, "fp32", name)
    for side in (64, 224, 96):
        pixels = torch.rand(1, 3, side, side)
        with torch.inference_mode():
            expected = convolutions(pixels)
        for level, wanted in zip(graph(pixels), expected, strict=True):
            torch.testing.assert_close(level, wanted, atol=2e-5, rtol=1e-4)


def farthest(boxes: np.ndarray, labels: np.ndarray, others: np.ndarray, their_labels: np.ndarray) -> float:
    """The farthest that a box lies from the nearest of the others of its class: equal scores come in any order."""
    apart = np.abs(boxes[:, None] - others[None]).max(axis=2)  # (n, m)
    return float(np.where(labels[:, None] == their_labels[None], apart, np.inf).min(axis=1).max())


class TestRetinaNet:
    """What makes it that network, and that it is torchvision's."""

    cfg = TINY.model_copy(update={"network": "retinanet"})

    def test_the_published_constants(self) -> None:
        network = CapillaryDetector(self.cfg).networks[0]
        anchors = network.anchor_generator
        assert anchors.num_anchors_per_location() == [9, 9, 9]
        np.testing.assert_allclose(
            np.array(anchors.sizes[0]) / anchors.sizes[0][0], [1, 2 ** (1 / 3), 2 ** (2 / 3)]
        )
        matcher = network.proposal_matcher
        assert (matcher.high_threshold, matcher.low_threshold) == (0.5, 0.4)
        assert network.head.regression_head._loss_type == "smooth_l1"
        bias = network.head.classification_head.cls_logits.bias
        torch.testing.assert_close(torch.sigmoid(bias), torch.full_like(bias, 0.01))
        convolutions = [
            m for m in network.head.classification_head.conv.modules() if isinstance(m, torch.nn.Conv2d)
        ]
        assert len(convolutions) == 4

    def test_its_loss_is_focal_by_hand(self) -> None:
        """One anchor matches; alpha 0.25 and gamma 2, summed over the classes, shared by the matches."""
        head = CapillaryDetector(self.cfg).networks[0].head.classification_head
        logits = torch.tensor([[[2.0, -1.0], [0.5, -3.0]]])  # two anchors, two classes
        targets = [{"labels": torch.tensor([1])}]
        loss = head.compute_loss(targets, {"cls_logits": logits}, [torch.tensor([0, -1])])
        p = 1 / (1 + np.exp(-logits[0].numpy()))
        own = -0.25 * (1 - p[0, 1]) ** 2 * np.log(p[0, 1])
        others = sum(-0.75 * q**2 * np.log(1 - q) for q in (p[0, 0], p[1, 0], p[1, 1]))
        assert float(loss) == pytest.approx(own + others, rel=1e-4)

    def test_boxes_are_those_of_torchvision_and_of_openvino(
        self, tissue_like: np.ndarray, tmp_path: Path
    ) -> None:
        torch.manual_seed(0)
        cfg = self.cfg.model_copy(update={"tile_px": 160, "lowest_score": 0.011})
        network = CapillaryDetector(cfg).eval()
        plain = network.networks[0]
        for layer in (plain.head.classification_head.cls_logits, plain.head.regression_head.bbox_reg):
            torch.nn.init.normal_(layer.weight, std=0.05)
            torch.nn.init.zeros_(layer.bias)  # else no score is above the prior of 0.01
        with torch.inference_mode():
            theirs = plain(list(torch.from_numpy(tissue_like).permute(0, 3, 1, 2).float() / 255))
        ours = network.detect(torch.from_numpy(tissue_like))
        assert sum(len(d) for d in ours) > 4
        for boxes, one in zip(ours, theirs, strict=True):
            assert len(boxes) == len(one["boxes"])
            np.testing.assert_allclose(boxes.scores, one["scores"].numpy(), atol=1e-5)
            assert farthest(boxes.boxes, boxes.labels, one["boxes"].numpy(), one["labels"].numpy()) < 1e-3
            assert farthest(one["boxes"].numpy(), one["labels"].numpy(), boxes.boxes, boxes.labels) < 1e-3
        card = {"name": "r", "enlarge_um": (4.0, 4.0), "thresholds": (0.5, 0.5)}
        assert save_detector(tmp_path, network, detector=cfg, **card).detector.network == "retinanet"
        engines = [
            BoxEngine(tmp_path, EngineConfig(engine=e, precision="fp32")) for e in ("openvino", "torch")
        ]
        for a, b in zip(*(engine.detect(tissue_like) for engine in engines), strict=True):
            assert len(a) > 2
            assert farthest(a.boxes[:50], a.labels[:50], b.boxes, b.labels) < 1e-2
            np.testing.assert_allclose(a.scores[:50], b.scores[:50], atol=1e-4)

    def test_a_card_that_names_no_network_is_a_faster_rcnn_with_the_hash_it_had(self) -> None:
        assert "network" not in TINY.model_dump(mode="json")
        assert "network" not in DetectorConfig().model_dump_json()
        assert self.cfg.model_dump()["network"] == "retinanet"
        assert DetectorConfig.model_validate(TINY.model_dump()) == TINY
        assert DetectorConfig.model_validate(self.cfg.model_dump()) == self.cfg


@pytest.fixture(scope="module")
def tissue_like() -> np.ndarray:
    """(2, 160, 160, 3): rings of brown and blue on noise, at uneven places."""
    tiles = np.stack([e.pixels for e in squares(2, 5, size=160)])
    tiles[:, 30:50, 100:131] = (150, 100, 60)
    return tiles


class TestEngines:
    """The detector that ships, by every engine: as torchvision's own forward pass has it."""

    def test_boxes_are_those_of_torchvision(self, tissue_like: np.ndarray) -> None:
        network, _ = load_detector(DEMO_DETECTOR)
        plain = network.networks[0]
        plain.transform.min_size, plain.transform.max_size = (160,), 160
        with torch.inference_mode():
            theirs = plain(list(torch.from_numpy(tissue_like).permute(0, 3, 1, 2).float() / 255))
        ours = network.detect(torch.from_numpy(tissue_like))
        assert sum(len(d) for d in ours) > 4
        for boxes, one in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(boxes.boxes, one["boxes"].numpy(), atol=1e-3)
            np.testing.assert_allclose(boxes.scores, one["scores"].numpy(), atol=1e-4)
            assert (boxes.labels == one["labels"].numpy() - 1).all()

    def test_openvino_and_torch_agree_in_fp32(self, tissue_like: np.ndarray) -> None:
        first, second = (
            BoxEngine(DEMO_DETECTOR, EngineConfig(engine=name, precision="fp32"))
            for name in ("openvino", "torch")
        )
        assert first.description.startswith("openvino")
        assert second.description.startswith("torch")
        for a, b in zip(first.detect(tissue_like), second.detect(tissue_like), strict=True):
            np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
            assert (a.labels == b.labels).all()
        smaller = tissue_like[:, :96, :96]  # another side: compiled anew
        assert [len(d) for d in first.detect(smaller)] == [len(d) for d in second.detect(smaller)]

    @pytest.mark.parametrize("engine", ["torch", "openvino"])
    def test_no_int8(self, engine: Any) -> None:
        with pytest.raises(ConfigError, match="detectors have no int8 form"):
            BoxEngine(DEMO_DETECTOR, EngineConfig(engine=engine, precision="int8"))

    def test_a_batch_gives_what_single_tiles_give(self, tissue_like: np.ndarray) -> None:
        both, single = (
            BoxEngine(DEMO_DETECTOR, EngineConfig(engine="torch", batch=count)) for count in (2, 1)
        )
        for a, b in zip(both.detect(tissue_like), single.detect(tissue_like), strict=True):
            np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)

    def test_half_precision_changes_the_maps_and_is_named(self, tissue_like: np.ndarray) -> None:
        half = BoxEngine(DEMO_DETECTOR, EngineConfig(engine="torch", precision="bf16"))
        whole = BoxEngine(DEMO_DETECTOR, EngineConfig(engine="torch", precision="fp32"))
        assert "bf16" in half.description
        a, b = half.detect(tissue_like)[0], whole.detect(tissue_like)[0]
        assert a.scores.max() == pytest.approx(b.scores.max(), abs=0.1)
        assert a.scores[0] != b.scores[0]

    @pytest.mark.parametrize("engine", ["torch", "openvino"])
    def test_what_a_cpu_cannot_do(self, engine: str) -> None:
        with pytest.raises(ConfigError, match="fp16 needs a GPU"):
            BoxEngine(DEMO_DETECTOR, EngineConfig(engine=engine, precision="fp16"))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="leave orientations at 1"):
            BoxEngine(DEMO_DETECTOR, EngineConfig(engine=engine, orientations=8))  # type: ignore[arg-type]

    def test_a_driver_without_a_gpu_that_torch_can_use(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(choice, "_has_driver", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        choice.engine_for.cache_clear()
        assert choice.engine_for("auto") == "openvino"
        assert "this torch cannot use it" in caplog.text
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        choice.engine_for.cache_clear()
        assert choice.engine_for("auto") == "torch"
        assert choice.engine_for("openvino") == "openvino"
        choice.engine_for.cache_clear()


class TestExamples:
    @pytest.mark.parametrize("k", range(8))
    def test_boxes_turn_with_the_tile(self, k: int) -> None:
        """A painted square is where its box says, in every orientation; the pixels are those of `orient`."""
        image = painted(64, 64, (5, 12, 25, 20), (10, 20, 30))
        example = turned(Example(image, Boxes(np.array([[5.0, 12, 25, 20]]), np.array([1]))), k)
        rows, cols = np.nonzero(example.pixels[..., 0] == 10)
        assert example.objects.boxes[0].tolist() == [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
        assert (example.pixels == orient(torch.from_numpy(image)[None], k)[0].numpy()).all()

    def test_reading_by_hand(self, tmp_path: Path) -> None:
        """A slide of 0.25 um/px read at 0.5: a box of 40 x 20 px at (200, 100), 5 um larger on each side.

        From the corner (160, 60), in pixels of 0.5 um: ((200 - 160) / 2, (100 - 60) / 2) less 10, plus 10 beyond.
        """
        path = write_pyramid(tmp_path / "s.tif", coordinates())
        marked = MarkedSlide(Boxes(np.array([[200.0, 100, 240, 120], [0, 0, 4, 4]]), np.array([1, 0])))
        with SlideSource(str(path)).open() as slide:
            example = read_example(slide, marked, (160, 60), 64, 0.5, (0.0, 5.0))
        assert example.objects.boxes.tolist() == [[10, 10, 50, 40]]
        assert example.objects.labels.tolist() == [1]
        # red is x // 4: the tile's first and last columns
        assert example.pixels[0, [0, 63], 0].tolist() == pytest.approx([160 // 4, (160 + 126) // 4], abs=1)
        assert example.pixels[[0, 63], 0, 1].tolist() == pytest.approx([60 // 4, (60 + 126) // 4], abs=1)

    def test_boxes_at_the_border_are_cut_or_left_out(self) -> None:
        boxes = np.array([[-10.0, 20, 10, 40], [-16, 20, 4, 40], [90, 90, 130, 130], [200, 5, 210, 9]])
        cut = _inside(boxes, np.array([0, 1, 2, 3]), 100)
        assert cut.boxes.tolist() == [[0, 20, 10, 40]]  # half of the first is left, a fifth of the second
        assert cut.labels.tolist() == [0]
        assert cut.scores is None

    def test_a_drawn_tile_holds_an_object_of_the_class(self) -> None:
        rng = np.random.default_rng(0)
        objects = Boxes(np.array([[1000.0, 1000, 1020, 1020], [5000, 300, 5030, 320]]), np.array([0, 1]))
        marked = MarkedSlide(objects)
        corners = [draw_corner(marked, 512, rng, 1) for _ in range(40)]
        assert all(x <= 5015 < x + 512 and y <= 310 < y + 512 for x, y in corners)
        assert len(set(corners)) > 30
        only = MarkedSlide(objects[:1])
        x, _ = draw_corner(only, 512, rng, 1)  # there is none of the class
        assert x <= 1010 < x + 512
        with pytest.raises(ValueError, match="nothing is marked"):
            draw_corner(MarkedSlide(objects[:0]), 512, rng)

    def test_traps_are_drawn_and_are_no_objects(self, tmp_path: Path) -> None:
        marks = [
            Annotation(box(10, 20, 30, 50), "C4d positive"),
            Annotation(box(900, 900, 960, 960), "not a capillary"),
        ]
        write_asap(tmp_path / "t.xml", [*marks, Annotation(box(0, 0, 500, 500), "feasible")])
        marked = read_marked(tmp_path / "t.xml", DetectorConfig().classes)
        assert marked.objects.boxes.tolist() == [[10, 20, 30, 50]]
        assert marked.traps.tolist() == [[900, 900, 960, 960]]
        rng = np.random.default_rng(0)
        corners = [draw_corner(marked, 100, rng, TRAP) for _ in range(20)]
        assert all(x <= 930 < x + 100 and y <= 930 < y + 100 for x, y in corners)
        only = MarkedSlide(marked.objects[:0], marked.traps)
        assert only.usable
        assert draw_corner(only, 100, rng, 1)[0] > 800  # there is nothing else

    def test_beyond_the_fields_nothing_is_known(self, tmp_path: Path) -> None:
        """A corrected report marks what is in feasible fields: the rest of a tile is white and unmarked."""
        marks = [
            Annotation(box(0, 0, 300, 200), "feasible"),
            Annotation(box(300, 0, 600, 200), "not feasible"),
            Annotation(box(250, 100, 270, 120), "C4d positive"),
            Annotation(box(320, 100, 340, 120), "C4d positive"),
        ]
        write_asap(tmp_path / "t.xml", marks)
        marked = read_marked(tmp_path / "t.xml", DetectorConfig().classes)
        assert marked.fields.tolist() == [[0, 0, 300, 200]]
        path = write_pyramid(tmp_path / "s.tif", coordinates())
        with SlideSource(str(path)).open() as slide:
            example = read_example(slide, marked, (200, 50), 200, 0.25, (0.0, 0.0))
        assert example.objects.boxes.tolist() == [[50, 50, 70, 70]]
        assert (example.pixels[:150, :100] != 255).any(axis=2).all()
        assert (example.pixels[150:] == 255).all()
        assert (example.pixels[:, 100:] == 255).all()

    def test_objects_that_cannot_be_used(self, tmp_path: Path) -> None:
        square = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]}
        for geometry, properties, said in (
            (square, {"classification": None}, "holds an object without a class at \\(0, 0\\)"),
            (
                {"type": "Point", "coordinates": [3, 3]},
                {"classification": {"name": "C4d positive"}},
                "holds a Point .*mark each object by an outline",
            ),
            (
                square,
                {"classification": {"names": ["C4d positive", "weak"]}},
                "the class 'C4d positive: weak'",
            ),
            (
                {
                    "type": "Polygon",
                    "coordinates": [[[5, 0], [5, 9], [5, 0], [5, 0]], square["coordinates"][0]],
                },
                {"classification": {"name": "C4d positive"}},
                "holds a Polygon .*mark each object by an outline",  # a line around a hole
            ),
        ):
            value = {"type": "Feature", "geometry": geometry, "properties": properties}
            (tmp_path / "t.geojson").write_text(
                json.dumps({"type": "FeatureCollection", "features": [value]})
            )
            with pytest.raises(AnnotationError, match=said):
                read_marked(tmp_path / "t.geojson", DetectorConfig().classes)

    def test_tiles_are_drawn_in_turn(self, coordinate_slide: Path) -> None:
        """Two classes, and traps where there are any."""
        some = MarkedSlide(Boxes(np.array([[10.0, 10, 20, 20], [300, 300, 310, 310]]), np.array([0, 1])))
        trapped = MarkedSlide(some.objects, np.array([[600.0, 400, 610, 410]]))
        cfg = small_recipe(detector=DetectorConfig(tile_px=64, spacing_um=0.25, anchors_px=(8.0, 12.0, 20.0)))
        with SlideSource(str(coordinate_slide)).open() as slide:
            assert TileSampler([slide], [some], cfg, np.random.default_rng(0)).kinds == (0, 1)
            sampler = TileSampler([slide], [trapped], cfg, np.random.default_rng(0))
            assert sampler.kinds == (0, 1, TRAP)
            labels = [sampler.draw(i).objects.labels.tolist() for i in range(6)]
        assert labels == [[0], [1], [], [0], [1], []]

    def test_files_of_a_phantom_and_unknown_classes(self, tmp_path: Path) -> None:
        write_asap(tmp_path / "t.xml", [Annotation(box(10, 20, 30, 50), "C4d positive")])
        marked = read_marked(tmp_path / "t.xml", DetectorConfig().classes)
        assert marked.objects.boxes.tolist() == [[10, 20, 30, 50]]
        assert marked.objects.labels.tolist() == [1]
        assert marked.objects.scores is None
        write_asap(tmp_path / "u.xml", [Annotation(box(10, 20, 30, 50), "Tumor")])
        with pytest.raises(
            AnnotationError, match="holds the class 'Tumor'; known are C4d negative, C4d positive"
        ):
            read_marked(tmp_path / "u.xml", DetectorConfig().classes)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides to train on and one held out: brown and blue squares of 20 um on grey, with truth."""
    folder = tmp_path_factory.mktemp("cohort")
    lines = ["path,truth,split"]
    for i, split in enumerate(("train", "train", "validation")):
        rng = np.random.default_rng(i)
        image = np.clip(rng.normal(205, 6, (700, 900, 3)), 0, 255).astype(np.uint8)
        marks = []
        for y in range(30, 620, 110):
            for x in range(30, 820, 110):
                label = int(rng.integers(2))
                image[y : y + 40, x : x + 40] = ((40, 70, 190), (120, 70, 30))[label]
                marks.append(Annotation(box(x, y, x + 40, y + 40), ("C4d negative", "C4d positive")[label]))
        write_pyramid(folder / f"s{i}.tif", image, mpp=0.5, compression="deflate")
        write_asap(folder / f"s{i}.xml", marks)
        lines.append(f"s{i}.tif,s{i}.xml,{split}")
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")
    return folder


def small_recipe(**changes: object) -> DetectorTrainConfig:
    fields: dict[str, object] = {
        "name": "t",
        "detector": TINY,
        "examples": 16,
        "validation_tiles": 4,
        "enlarge_um": (0.0, 0.0),
    }
    fields |= {"validate_every": 16, "checkpoint_every": 8}
    return DetectorTrainConfig(**fields | changes)  # type: ignore[arg-type]


class TestThresholds:
    def test_as_many_as_are_marked(self) -> None:
        """Three of class 1 are marked and found with 0.9, 0.8, 0.6 and falsely 0.7: the third highest is 0.7."""
        apart = np.array([[20.0 * i, 0, 20 * i + 9, 9] for i in range(5)])
        found = Boxes(apart, np.array([1, 1, 1, 1, 0]), np.array([0.9, 0.8, 0.6, 0.7, 0.3], np.float32))
        marked = Boxes(apart, np.array([1, 1, 1, 0, 0]))
        assert count_thresholds([found], [marked], TINY) == (
            0.05,
            0.7,
        )  # of class 0 fewer are found than are marked
        assert count_thresholds([found], [marked[:0]], TINY) == (0.5, 0.5)
        assert count_thresholds([], [], TINY) == (0.5, 0.5)
        same = Boxes(
            np.vstack([apart, apart[:1]]),
            np.append(found.labels, 0),
            np.append(found.known_scores, np.float32(0.95)),
        )
        assert count_thresholds([same], [marked], TINY) == (
            0.3,
            0.6,
        )  # one of class 0 hides the best of class 1


class TestTrials:
    @pytest.mark.slow
    def test_a_sweep_by_command(self, cohort: Path, tmp_path: Path, wsi: Run) -> None:
        recipe = tmp_path / "r.yaml"
        recipe.write_text(
            "name: r\ndetector: {tile_px: 128, anchors_px: [16.0, 24.0, 40.0]}\nexamples: 4\nvalidation_tiles: 2\n"
        )
        words = (
            "train",
            "capillaries",
            recipe,
            "--slides",
            cohort / "slides.csv",
            "--out",
            tmp_path / "sweep",
        )
        code, said, _ = wsi(*words, "--sweep-enlargement", "0..10")
        assert code == 0
        assert "enlarged_10px: labels enlarged by 2.5, 2.5 um" in said
        with (tmp_path / "sweep" / "trials.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [(r["trial"], r["class"], r["enlarged_um"]) for r in rows] == [
            (trial, name, um)
            for trial, um in (("enlarged_00px", "0"), ("enlarged_10px", "2.5"))
            for name in ("C4d negative", "C4d positive")
        ]
        assert load_detector(tmp_path / "sweep" / "enlarged_10px" / "model")[1].enlarge_um == (2.5, 2.5)
        weights = (tmp_path / "sweep" / "enlarged_00px" / "model" / "model.safetensors").read_bytes()
        code, _, said = wsi(*words, "--sweep-enlargement", "0..10")
        assert (code, "holds a run already" in said) == (2, True)
        assert wsi(*words, "--sweep-enlargement", "0..10", "--resume")[0] == 0  # all is done
        assert (tmp_path / "sweep" / "enlarged_00px" / "model" / "model.safetensors").read_bytes() == weights
        for text in ("5", "10..0", "0..999"):
            assert wsi(*words, "--sweep-enlargement", text)[0] == 2

    @pytest.mark.slow
    def test_what_corrected_labels_add(self, cohort: Path, tmp_path: Path, wsi: Run) -> None:
        """Trained without and with a second data set, compared on the same held-out slide."""
        recipe = tmp_path / "r.yaml"
        recipe.write_text(
            "name: r\ndetector: {tile_px: 128, anchors_px: [16.0, 24.0, 40.0]}\nexamples: 4\nvalidation_tiles: 2\n"
        )
        (cohort / "first.csv").write_text("path,truth,split\ns0.tif,s0.xml,train\ns2.tif,s2.xml,validation\n")
        (cohort / "more.csv").write_text("path,truth\ns1.tif,s1.xml\n")
        words = ("train", "capillaries", recipe, "--slides", cohort / "first.csv", "--out", tmp_path / "both")
        code, said, _ = wsi(*words, "--corrected", cohort / "more.csv")
        assert code == 0
        with (tmp_path / "both" / "trials.csv").open() as file:
            assert [r["trial"] for r in csv.DictReader(file)] == ["without", "without", "with", "with"]
        for name, line in (("held", "s1.tif,s1.xml,validation"), ("twice", "s0.tif,s0.xml,train")):
            (cohort / f"{name}.csv").write_text(f"path,truth,split\n{line}\n")
        code, _, said = wsi(*words, "--corrected", cohort / "twice.csv", "--overwrite")
        assert (code, "s0.tif is in both data sets; give each slide once" in said) == (2, True)
        code, _, said = wsi(*words, "--corrected", cohort / "held.csv", "--overwrite")
        assert (code, "s1.tif is of the split 'validation': corrected slides are trained on" in said) == (
            2,
            True,
        )
        code, _, said = wsi(*words, "--corrected", cohort / "more.csv", "--sweep-enlargement", "0..10")
        assert (code, "are two experiments; give one at a time" in said) == (2, True)

    def test_how_a_trial_is_measured(
        self, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A network that answers with the boxes it was to learn is right in both frames, whatever the enlargement."""
        cfg = small_recipe(enlarge_um=(6.0, 7.0), validation_tiles=16)
        rows = tuple(read_manifest(cohort / "slides.csv"))
        save_detector(
            tmp_path / "model",
            CapillaryDetector(TINY),
            name="t",
            detector=TINY,
            enlarge_um=(6.0, 7.0),
            thresholds=(0.5, 0.5),
        )

        def perfect(network: object, tiles: list[Example]) -> list[Boxes]:
            marks = [tile.objects for tile in tiles]
            return [replace(boxes, scores=np.full(len(boxes), 0.9, np.float32)) for boxes in marks]

        monkeypatch.setattr("models.training.trials.detect_tiles", perfect)
        for score in score_trial(Trial("t", cfg, rows), tmp_path):
            assert score.ap50_learned == 1.0
            assert score.ap50_capillary > 0.7  # what a tile's border cuts is told with its enlargement
            assert score.agreement.f1 > 0.8


class TestTraining:
    def run(self, cohort: Path, out: Path, cfg: DetectorTrainConfig, **options: object) -> float:
        torch.set_num_threads(1)
        return train_detector(read_manifest(cohort / "slides.csv"), cfg, out, code_version="test", **options)  # type: ignore[arg-type]

    @pytest.mark.slow
    def test_stopped_and_resumed_to_the_same_bits(self, cohort: Path, tmp_path: Path) -> None:
        cfg = small_recipe()
        self.run(cohort, tmp_path / "whole", cfg)
        seen: list[int] = []

        def stop() -> bool:
            seen.append(1)
            return len(seen) == 3

        with pytest.raises(KeyboardInterrupt):
            self.run(cohort, tmp_path / "parts", cfg, listeners=Listeners(stop=stop))
        self.run(cohort, tmp_path / "parts", cfg, resume=True)
        first, second = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
        assert all((first[key] == second[key]).all() for key in first)
        with pytest.raises(ModelError, match="was written with examples 16, the recipe now says 20"):
            self.run(cohort, tmp_path / "parts", small_recipe(examples=20), resume=True)

    @pytest.mark.slow
    def test_it_learns_slides(self, cohort: Path, tmp_path: Path) -> None:
        """Squares of a slide that it has not seen: AP50 above 0.9 after 240 tiles, and the model reads back."""
        cfg = small_recipe(examples=240, batch=4, learning_rate=2e-3, validate_every=240, validation_tiles=12)
        best = self.run(cohort, tmp_path, cfg)
        assert best > 0.9
        network, card = load_detector(tmp_path / "model")
        assert card.metrics["AP50"].keys() == {"C4d negative", "C4d positive"}
        assert card.enlarge_um == (0.0, 0.0)
        with SlideSource(str(cohort / "s2.tif")).open() as slide:
            tile = slide.read_region((20, 20), 0, (128, 128))
        assert len(network.detect(torch.from_numpy(tile[None]))[0]) >= 1
        data = (tmp_path / "model" / "model.safetensors").read_bytes()
        (tmp_path / "model" / "model.safetensors").write_bytes(data[:-4] + b"0000")
        with pytest.raises(ModelError, match=r"has sha256 .*its card says"):
            load_detector(tmp_path / "model")
        with pytest.raises(ModelError, match="is a model of patches"):
            load_detector(DEMO)
        with pytest.raises(ModelError, match="card.json cannot be read"):
            load_detector(tmp_path)

    def test_only_the_training_split_is_trained_on(self) -> None:
        rows = [
            SlideRow(SlideSource(n), split=s)
            for n, s in (("a", "train"), ("b", None), ("c", "test"), ("d", "validation"))
        ]
        assert [r.source.path for r in training_rows(rows)] == ["a", "b"]
        assert [r.source.path for r in used_rows(rows)] == ["a", "b", "d"]
        with pytest.raises(ConfigError, match="a is in both splits, train and validation; remove one"):
            training_rows([*rows, SlideRow(SlideSource("a"), split="validation")])

    def test_an_enlargement_for_each_class(self) -> None:
        with pytest.raises(ValueError, match="one number for each of C4d negative, C4d positive"):
            small_recipe(enlarge_um=(1.0,))

    def test_tiles_at_other_spacings(self, cohort: Path) -> None:
        """Squares of 40 px of 0.5 um, read up to twice as coarse or fine: from 20 to 80 px, and each lies in its box."""
        rows = read_manifest(cohort / "slides.csv")[:2]
        with rows[0].source.open() as a, rows[1].source.open() as b:
            marked = [read_marked(row.truth, TINY.classes) for row in rows if row.truth]
            cfg = small_recipe(scale=2.0, enlarge_um=(1.0, 1.0))
            sampler = TileSampler([a, b], marked, cfg, np.random.default_rng(0))
            examples = [sampler.draw(i) for i in range(60)]
        sides = []
        for example in examples:
            boxes = example.objects.boxes
            for x0, y0, x1, y1 in boxes[((boxes > 0) & (boxes < 128)).all(axis=1)]:
                assert x1 - x0 == pytest.approx(y1 - y0)
                sides.append(x1 - x0 - 4)  # 1 um of 0.5 um on each side, whatever the scale
                core = example.pixels[round(y0) + 4 : round(y1) - 4, round(x0) + 4 : round(x1) - 4]
                assert (
                    np.ptp(core.reshape(-1, 3).astype(int), axis=0) < 60
                ).all()  # the square, without its ground
        assert 19 < min(sides) < 27
        assert 60 < max(sides) < 81

    def test_spacing_is_as_stated_without_scale_and_in_validation(self, cohort: Path) -> None:
        rows = read_manifest(cohort / "slides.csv")
        for cfg in (small_recipe(), small_recipe(scale=2.0)):
            with contextlib.ExitStack() as stack:
                for tile in validation_tiles(rows, cfg, stack):
                    sides = tile.objects.boxes[:, 2:] - tile.objects.boxes[:, :2]
                    assert sides.max() == pytest.approx(40, abs=0.01)

    def test_a_start_from_another_detector(self, cohort: Path, tmp_path: Path) -> None:
        rows = read_manifest(cohort / "slides.csv")
        train_detector(rows, small_recipe(), tmp_path / "a", code_version="t")
        begun = load_file(tmp_path / "a" / "model" / "model.safetensors")
        cfg = small_recipe(init=str(tmp_path / "a" / "model"), examples=2, learning_rate=1e-9)
        train_detector(rows, cfg, tmp_path / "b", code_version="t")
        after = load_file(tmp_path / "b" / "model" / "model.safetensors")
        weights = [k for k in begun if "running" not in k and "num_batches" not in k]
        assert all(torch.allclose(begun[k], after[k], atol=1e-6) for k in weights)
        with pytest.raises(
            ConfigError, match="has another shape than detector: in the recipe; make them the same"
        ):
            train_detector(rows, small_recipe(init="renal-ptc-demo"), tmp_path / "c", code_version="t")

    def test_yolo_takes_its_anchors_from_the_training_boxes(self, tmp_path: Path) -> None:
        """In the tile's pixels, with what boxes are enlarged by: 0.25 um/px to 0.5, and 2 um on each side."""
        rng = np.random.default_rng(0)
        sizes = rng.uniform(20, 120, (60, 2))
        boxes = np.concatenate([np.zeros((60, 2)), sizes], axis=1)
        marked = MarkedSlide(Boxes(boxes, np.zeros(60, np.int64)))
        cfg = small_recipe(detector=TINY.model_copy(update={"network": "yolo_v3"}), enlarge_um=(2.0, 2.0))
        sampler: Any = SimpleNamespace(slides=[SimpleNamespace(mpp=0.25)], marked=[marked])
        anchors = _with_anchors(cfg, sampler).detector.anchor_boxes
        assert anchors == anchors_by_kmeans(sizes / 2 + 8, 9)
        stated = _with_anchors(cfg, sampler)
        assert _with_anchors(stated, sampler) == stated
        assert _with_anchors(small_recipe(), sampler) == small_recipe()
        begun = tmp_path / "begun"
        shape = TINY.model_copy(update={"network": "yolo_v3", "anchor_boxes": anchors})
        card = {"name": "b", "enlarge_um": (2.0, 2.0), "thresholds": (0.5, 0.5)}
        save_detector(begun, CapillaryDetector(shape), detector=shape, **card)
        from_it = cfg.model_copy(update={"init": str(begun)})
        few: Any = SimpleNamespace(slides=sampler.slides, marked=[MarkedSlide(marked.objects[:5])])
        with pytest.raises(
            ConfigError, match="5 different boxes cannot give 9 anchors; mark more capillaries"
        ):
            _with_anchors(cfg, few)
        assert _with_anchors(from_it, few).detector.anchor_boxes == anchors  # of the one that it starts from

    @pytest.mark.slow
    def test_yolo_is_trained_by_the_same_loop_and_its_card_keeps_the_anchors(
        self, cohort: Path, tmp_path: Path
    ) -> None:
        anchors = tuple((s, s) for s in (12.0, 16.0, 20.0, 24.0, 28.0, 32.0, 40.0, 48.0, 56.0))
        shape = TINY.model_copy(update={"network": "yolo_v3", "anchor_boxes": anchors})
        self.run(cohort, tmp_path, small_recipe(detector=shape))
        network, card = load_detector(tmp_path / "model")
        assert card.detector.anchor_boxes == anchors
        assert network.networks[0].anchors == [anchors[:3], anchors[3:6], anchors[6:]]
        tile = squares(1, 0)[0].pixels
        first, second = (
            BoxEngine(tmp_path / "model", EngineConfig(engine=e, precision="fp32")).detect(tile[None])[0]
            for e in ("openvino", "torch")
        )
        assert len(first) == len(second)
        np.testing.assert_allclose(first.scores, second.scores, atol=1e-4)

    def test_precision_is_that_of_the_forward_pass(self, cohort: Path, tmp_path: Path) -> None:
        rows = read_manifest(cohort / "slides.csv")
        losses = {}
        for precision in ("fp32", "bf16"):
            cfg = small_recipe(precision=precision, examples=2)
            train_detector(rows, cfg, tmp_path / precision, code_version="t")
            with (tmp_path / precision / "metrics.csv").open() as file:
                losses[precision] = float(next(csv.DictReader(file))["loss"])
        assert losses["fp32"] != losses["bf16"]
        assert losses["fp32"] == pytest.approx(losses["bf16"], rel=0.02)

    def test_several_manifests(self, cohort: Path, tmp_path: Path) -> None:
        several = tmp_path / "r.yaml"
        several.write_text(f"name: r\nslides: [{cohort / 'slides.csv'}, other.csv]\n")
        assert load_config(several, DetectorTrainConfig).manifests == (
            cohort / "slides.csv",
            Path("other.csv"),
        )
        several.write_text(f"name: r\nslides: {cohort / 'slides.csv'}\n")
        assert load_config(several, DetectorTrainConfig).manifests == (cohort / "slides.csv",)
        assert small_recipe().manifests == ()
        several.write_text("name: r\nslides: 3\n")
        with pytest.raises(ConfigError, match=r"r.yaml: slides: input should be a valid string \(got 3\)"):
            load_config(several, DetectorTrainConfig)

    def test_what_cannot_be_trained_on(self, cohort: Path, tmp_path: Path) -> None:
        rows = read_manifest(cohort / "slides.csv")
        with pytest.raises(ConfigError, match="none of the split 'train' has anything marked on it"):
            train_detector(rows[2:], small_recipe(), tmp_path, code_version="t")
        with pytest.raises(ConfigError, match="s0.tif has no truth; fill in the column 'truth'"):
            train_detector([SlideRow(rows[0].source)], small_recipe(), tmp_path, code_version="t")

    def test_the_recipe_that_ships(self) -> None:
        cfg = load_config(ROOT / "configs" / "renal_ptc.yaml", DetectorTrainConfig)
        free = {"name", "demonstration", "training_data", "limits", "scale"}
        assert cfg.model_dump(exclude=free) == DetectorTrainConfig(name="x").model_dump(exclude=free)
        assert cfg.demonstration

    @pytest.mark.slow
    @pytest.mark.slow
    def test_two_processes_train_one_detector(self, cohort: Path, tmp_path: Path) -> None:
        """Two by torchrun (gloo) share batches of 2; what they learn first is what one process learns."""
        recipe = tmp_path / "r.yaml"
        text = (ROOT / "configs" / "renal_ptc.yaml").read_text()
        for key in ("examples", "validate_every", "validation_tiles"):
            text = re.sub(rf"^{key}: \d+", f"{key}: 2", text, flags=re.MULTILINE)
        recipe.write_text(text.replace("tile_px: 512", "tile_px: 128") + "precision: fp32\n")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
        losses = []
        for out, launcher in (("one", []), ("two", torchrun)):
            words = [COMMAND, "train", "capillaries", str(recipe), "--slides", str(cohort / "slides.csv")]
            ended = subprocess.run(
                [*launcher, *words, "--out", str(tmp_path / out)],
                capture_output=True,
                text=True,
                timeout=300,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            assert ended.returncode == 0, ended.stderr
            with (tmp_path / out / "metrics.csv").open() as file:
                losses.append([float(row["loss"]) for row in csv.DictReader(file)])
            assert (tmp_path / out / "model" / "card.json").exists()
        assert losses[1] == pytest.approx(
            losses[0], rel=0.2
        )  # each process draws its own negatives for the loss

    def test_other_truth_is_another_run(self, cohort: Path, tmp_path: Path) -> None:
        cfg = small_recipe(examples=4, batch=2, validation_tiles=2)
        self.run(cohort, tmp_path, cfg)
        rows = read_manifest(cohort / "slides.csv")
        fewer = [row for row in rows if row.source.name != "s0"]
        assert len(fewer) == len(rows) - 1
        with pytest.raises(ModelError, match="was written with data"):
            train_detector(fewer, cfg, tmp_path, code_version="v", resume=True)

    def test_by_command(self, cohort: Path, tmp_path: Path, wsi: Run) -> None:
        recipe = tmp_path / "r.yaml"
        recipe.write_text(
            "name: r\ndetector: {tile_px: 128, anchors_px: [16.0, 24.0, 40.0]}\nexamples: 4\nvalidation_tiles: 2\n"
        )
        words = ("train", "capillaries", recipe, "--slides", cohort / "slides.csv", "--out", tmp_path / "out")
        code, said, _ = wsi(*words)
        assert code == 0
        assert "the best network (mean AP50" in said
        for name in ("run.json", "metrics.csv", "metrics.png", "model/card.json"):
            assert (tmp_path / "out" / name).exists()
        code, _, said = wsi(*words)
        assert (code, "holds a run already; pass --resume or --overwrite" in said) == (2, True)
        weights = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
        more = tmp_path / "more.csv"  # only to hold out: with the first alone it is not read
        more.write_text(f"path,truth,split\n{cohort / 's0.tif'},{cohort / 's0.xml'},validation\n")
        code, _, said = wsi(*words, "--slides", more, "--overwrite")
        assert (code, "is in both splits" in said) == (2, True)
        bad = tmp_path / "bad.csv"
        (tmp_path / "bad.xml").write_text("no XML")
        bad.write_text(f"path,truth\n{cohort / 's0.tif'},bad.xml\n")
        code, _, said = wsi(*words, "--slides", bad, "--overwrite")
        assert (code, "bad.xml" in said) == (2, True)
        assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == weights  # nothing was lost
        assert wsi(*words, "--overwrite")[0] == 0
        code, _, said = wsi("train", "capillaries", recipe, "--out", tmp_path / "n")
        assert (code, "names no slides; pass --slides" in said) == (2, True)
