"""Tiles and the classes of their pixels: where an outline lies, what is unknown, what is drawn."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from shapely import STRtree

from models.card import SegmenterConfig
from models.networks.contract import orient
from models.training.data.areas import (
    AreaExample,
    MarkedAreas,
    area_sampler,
    bent,
    check_areas,
    read_all_areas,
    read_area_example,
    read_areas,
    separation_weights,
    turned_areas,
)
from models.training.recipe import SegmenterTrainConfig
from tests.slides import coordinates, write_pyramid
from wsi.errors import AnnotationError, ConfigError
from wsi.metrics.segmentation import UNKNOWN
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource

CLASSES = ("glass", "cortex", "tubule")


def outline(group: str, *corners: tuple[float, float], hole: Any = None) -> dict[str, Any]:
    rings = [[*corners, corners[0]]] + ([[*hole, hole[0]]] if hole else [])
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {"objectType": "annotation", "classification": {"name": group}} if group else {},
    }


def square(x: float, y: float, side: float) -> list[tuple[float, float]]:
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]


def truth(path: Path, *features: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def config(**changes: Any) -> SegmenterTrainConfig:
    shape = SegmenterConfig(classes=CLASSES, width=8, spacing_um=0.5, core_px=32, margin_px=16)
    return SegmenterTrainConfig.model_validate({"name": "t", "segmenter": shape} | changes)


class TestTruth:
    def test_the_later_class_lies_on_top_whatever_the_order_in_the_file(self, tmp_path: Path) -> None:
        path = truth(
            tmp_path / "t.geojson",
            outline("tubule", *square(100, 40, 40)),
            outline("cortex", *square(80, 20, 120), hole=square(160, 100, 20)),
        )
        marked = read_areas(path, CLASSES)
        assert marked.labels.tolist() == [1, 2]
        slide = SlideSource(str(write_pyramid(tmp_path / "s.tif", coordinates()))).open()
        with slide:
            tile = read_area_example(slide, marked, (60, 10), 80, 0.5)  # 2 level-0 pixels along a pixel
        at = lambda x, y: int(tile.classes[(y - 10) // 2, (x - 60) // 2])  # noqa: E731
        assert [at(70, 50), at(90, 50), at(120, 50), at(120, 90), at(170, 110), at(150, 110)] == [
            0,
            1,
            2,
            1,
            0,
            1,
        ]
        # the pixels are those of the place: red is x // 4, green y // 4
        assert tile.pixels[20, 30].tolist() == [(60 + 60) // 4, (10 + 40) // 4, 128]
        assert (tile.weights == 1).all()
        area = (tile.classes == 2).sum() * 4
        assert area == 1600

    def test_what_lies_off_the_slide_or_is_marked_so_is_unknown(self, tmp_path: Path) -> None:
        path = truth(
            tmp_path / "t.geojson",
            outline("unknown", *square(40, 60, 20)),
            outline("tubule", *square(0, 0, 200)),
        )
        marked = read_areas(path, CLASSES)
        with SlideSource(str(write_pyramid(tmp_path / "s.tif", coordinates()))).open() as slide:
            tile = read_area_example(slide, marked, (-20, -40), 64, 0.5)
        assert (tile.classes[:20] == UNKNOWN).all()  # 40 level-0 pixels
        assert (tile.classes[:, :10] == UNKNOWN).all()
        assert (tile.classes[51:59, 31:39] == UNKNOWN).all()
        assert tile.classes[40, 20] == 2
        assert tile.pixels[0, 0].tolist() == [255, 255, 255]

    @pytest.mark.parametrize(
        ("feature", "said"),
        [
            (outline("cortx", *square(0, 0, 9)), "the class 'cortx'; known are cortex, tubule, unknown"),
            (outline("glass", *square(0, 0, 9)), "the class 'glass'"),
            (outline("", *square(0, 0, 9)), "an outline without a class"),
            (
                outline("cortex", *square(0, 0, 9)) | {"geometry": {"type": "Point", "coordinates": [1, 2]}},
                r"holds a Point \('cortex'\): mark each area by an outline",
            ),
        ],
    )
    def test_another_class(self, tmp_path: Path, feature: dict[str, Any], said: str) -> None:
        with pytest.raises(AnnotationError, match=said):
            read_areas(truth(tmp_path / "t.geojson", feature), CLASSES)

    def test_a_third_coordinate_is_left_out(self, tmp_path: Path) -> None:
        corners = [(x, y, 0.0) for x, y in square(0, 0, 9)]
        marked = read_areas(truth(tmp_path / "t.geojson", outline("cortex", *corners)), CLASSES)  # type: ignore[arg-type]
        assert marked.outlines[0].has_z is False

    def test_slides_that_cannot_teach(self, tmp_path: Path) -> None:
        slide = write_pyramid(tmp_path / "s.tif", coordinates())
        row = SlideRow(SlideSource(str(slide)))
        with pytest.raises(ConfigError, match="has no truth"):
            read_all_areas([row], config())
        empty = SlideRow(SlideSource(str(slide)), truth=truth(tmp_path / "e.geojson"))
        with pytest.raises(ConfigError, match="marks nothing of a class"):
            read_all_areas([empty], config())
        unknown = truth(tmp_path / "u.geojson", outline("unknown", *square(0, 0, 9)))
        with pytest.raises(ConfigError, match="marks nothing of a class"):
            read_all_areas([SlideRow(SlideSource(str(slide)), truth=unknown)], config())
        path = truth(tmp_path / "t.geojson", outline("cortex", *square(0, 0, 99)))
        coarse = SlideRow(SlideSource(str(slide), mpp=0.7), truth=path)
        with pytest.raises(ConfigError, match=r"has 0.7 um/px, and the recipe wants 0.5"):
            read_all_areas([coarse], config())

    def test_a_class_that_nobody_marked(self, tmp_path: Path) -> None:
        slide = SlideSource(str(write_pyramid(tmp_path / "s.tif", coordinates())))
        cortex = truth(tmp_path / "c.geojson", outline("cortex", *square(0, 0, 99)))
        both = truth(
            tmp_path / "b.geojson", outline("cortex", *square(0, 0, 99)), outline("tubule", *square(9, 9, 9))
        )
        other = SlideSource(str(write_pyramid(tmp_path / "o.tif", coordinates())))
        held_out = SlideRow(other, truth=cortex, split="validation")
        check_areas([SlideRow(slide, truth=both), held_out], config())
        with pytest.raises(
            ConfigError, match="no training slide has an outline of the class 'tubule'; mark some"
        ):
            check_areas([SlideRow(slide, truth=cortex)], config())


class TestWeights:
    def test_a_gap_between_two_objects_by_hand(self) -> None:
        objects = [shapely.box(0, 0, 20, 40), shapely.box(24, 0, 40, 40)]  # four pixels apart
        weights = separation_weights(objects, (0, 0), 1.0, 40, most=10)
        nearest = (21 - 19, 24 - 21)  # from pixel 21 to the last pixel of one and the first of the other
        assert weights[20, 21] == pytest.approx(10 * np.exp(-(sum(nearest) ** 2) / 50), rel=1e-5)
        assert weights[20, 5] < weights[20, 21]

    def test_one_object_has_nobody_to_be_told_from(self) -> None:
        assert (separation_weights([shapely.box(0, 0, 20, 40)], (0, 0), 1.0, 40, most=10) == 0).all()

    def test_only_the_first_class_gets_them(self, tmp_path: Path) -> None:
        path = truth(
            tmp_path / "t.geojson",
            outline("tubule", *square(20, 20, 40)),
            outline("tubule", *square(66, 20, 40)),
        )
        with SlideSource(str(write_pyramid(tmp_path / "s.tif", coordinates()))).open() as slide:
            tile = read_area_example(slide, read_areas(path, CLASSES), (0, 0), 64, 0.5, separation=10)
        assert (tile.weights[tile.classes == 2] == 1).all()
        assert tile.weights[20, 31] > 5  # in the gap
        assert tile.weights[60, 60] == pytest.approx(1, abs=0.01)


class TestChanges:
    def example(self) -> AreaExample:
        rng = np.random.default_rng(0)
        return AreaExample(
            rng.integers(0, 256, (12, 12, 3)).astype(np.uint8),
            rng.integers(0, 3, (12, 12)).astype(np.uint8),
            rng.random((12, 12)).astype(np.float32),
        )

    @pytest.mark.parametrize("orientation", range(8))
    def test_turns_are_those_of_the_networks(self, orientation: int) -> None:
        example = self.example()
        turned = turned_areas(example, orientation)
        for ours, theirs in (
            (turned.pixels, example.pixels[None]),
            (turned.classes, example.classes[None, ..., None]),
            (turned.weights, example.weights[None, ..., None]),
        ):
            expected = orient(torch.from_numpy(np.ascontiguousarray(theirs)), orientation)[0].numpy()
            np.testing.assert_array_equal(ours, expected.reshape(ours.shape))

    def test_bending_moves_pixels_and_classes_alike(self) -> None:
        classes = np.zeros((96, 96), np.uint8)
        classes[30:70, 20:60] = 2
        pixels = np.repeat((classes * 100)[..., None], 3, axis=2)
        moved = bent(AreaExample(pixels, classes, classes.astype(np.float32)), 6.0, np.random.default_rng(3))
        assert set(np.unique(moved.classes)) == {0, 2}  # none between
        assert 0.05 < (moved.classes != classes).mean() < 0.4
        agree = (moved.pixels[..., 0] > 100) == (moved.classes == 2)
        assert agree.mean() > 0.98
        np.testing.assert_array_equal(moved.weights, moved.classes)
        same = bent(AreaExample(pixels, classes, classes.astype(np.float32)), 6.0, np.random.default_rng(3))
        np.testing.assert_array_equal(same.classes, moved.classes)


class TestSampler:
    def rows(self, tmp_path: Path) -> list[SlideRow]:
        path = truth(
            tmp_path / "t.geojson",
            outline("cortex", *square(100, 100, 300)),
            outline("tubule", *square(500, 60, 30)),
        )
        slide = write_pyramid(tmp_path / "s.tif", coordinates())
        return [SlideRow(SlideSource(str(slide)), truth=path)]

    def test_every_core_holds_the_edge_of_its_class_in_turn(self, tmp_path: Path) -> None:
        with ExitStack() as stack:
            sampler = area_sampler(self.rows(tmp_path), config(), 0, stack)
            assert sampler is not None
            for number in range(40):
                tile = sampler.draw(number)
                core = tile.classes[15:49, 15:49]
                wanted = (1, 2)[number % 2]
                assert {0, wanted} <= set(np.unique(core)), number

    def test_a_class_is_looked_for_on_the_slides_that_have_it(self, tmp_path: Path) -> None:
        path = truth(tmp_path / "c.geojson", outline("cortex", *square(100, 100, 300)))
        rows = self.rows(tmp_path)
        others = [SlideRow(rows[0].source, truth=path)] * 9
        with ExitStack() as stack:
            sampler = area_sampler([*others, *rows], config(), 0, stack)
            assert sampler is not None
            assert all((sampler.draw(2 * i + 1).classes == 2).any() for i in range(20))

    def test_the_same_state_draws_the_same(self, tmp_path: Path) -> None:
        with ExitStack() as stack:
            sampler = area_sampler(self.rows(tmp_path), config(elastic_px=3.0), 0, stack)
            assert sampler is not None
            sampler.draw(0)
            state = sampler.state
            first = sampler.draw(1)
            sampler.state = state
            np.testing.assert_array_equal(sampler.draw(1).pixels, first.pixels)

    def test_its_identity_is_what_is_marked(self, tmp_path: Path) -> None:
        with ExitStack() as stack:
            sampler = area_sampler(self.rows(tmp_path), config(), 0, stack)
            assert sampler is not None
            before = sampler.identity
            marked = sampler.marked[0]
            moved = (shapely.affinity.translate(marked.outlines[0], 1, 0), *marked.outlines[1:])
            sampler.marked = [MarkedAreas(moved, marked.labels, STRtree(moved))]
            assert sampler.identity != before

    def test_places_that_cannot_be_read_cost_themselves(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from models.training.data import areas

        real, calls = areas.read_area_example, []

        def fails_at_first(*values: Any) -> AreaExample:
            calls.append(values[2])
            if len(calls) == 1:
                raise areas.SlideError("a broken tile")
            return real(*values)

        monkeypatch.setattr(areas, "read_area_example", fails_at_first)
        with ExitStack() as stack:
            sampler = area_sampler(self.rows(tmp_path), config(), 0, stack)
            assert sampler is not None
            sampler.draw(0)
            assert sampler.excluded == [[0, *calls[0]]]
            monkeypatch.setattr(
                areas, "read_area_example", lambda *_: (_ for _ in ()).throw(areas.SlideError("x"))
            )
            with pytest.raises(ConfigError, match="none of 100 places"):
                sampler.draw(1)
