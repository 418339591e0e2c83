"""A detector over a whole slide, with one that needs no network: brown and blue squares."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.card import DetectorCard, DetectorConfig
from models.checkpoint import save_detector
from models.engines import detect_slide as module
from models.engines.detect_slide import (
    CHUNK,
    SlideDetections,
    detect_slide,
    tiles_around,
    tissue_tiles,
)
from models.networks.detector import CapillaryDetector
from tests.slides import painted, write_pyramid
from wsi.errors import SlideError, SpacingError
from wsi.marks.annotations import read_annotations
from wsi.marks.boxes import Boxes
from wsi.placement import Placement
from wsi.results.box_store import BoxStore
from wsi.slides.slide import Slide
from wsi.slides.source import SlideSource
from wsi.slides.tissue import Mask

Run = Callable[..., tuple[int, str, str]]
BROWN, BLUE, GREY = (120, 70, 30), (40, 70, 190), (205, 205, 205)
CFG = DetectorConfig(tile_px=128, anchors_px=(16.0, 24.0, 40.0))
CARD = DetectorCard(
    name="squares", detector=CFG, enlarge_um=(2.0, 3.0), thresholds=(0.5, 0.5), sha256="0" * 64
)


class SquareDetector:
    """Finds whole squares of a tile, brown or blue, and gives them enlarged, as a trained one would."""

    description = "colour, CPU"

    def __init__(self, card: DetectorCard = CARD) -> None:
        self.card = card
        self.tiles = 0

    def detect(self, tiles: np.ndarray) -> list[Boxes]:
        found = []
        self.tiles += len(tiles)
        for tile in tiles:
            parts = [self._of(tile, colour, label) for label, colour in ((0, BLUE), (1, BROWN))]
            boxes = np.array([b for p, _ in parts for b in p], np.float64).reshape(-1, 4)
            labels = np.array([n for _, p in parts for n in p], np.int64)
            scores = (0.99 - 0.001 * np.arange(len(labels))).astype(np.float32)
            found.append(Boxes(boxes, labels, scores))
        return found

    def _of(
        self, tile: np.ndarray, colour: tuple[int, int, int], label: int
    ) -> tuple[list[list[float]], list[int]]:
        near = (np.abs(tile.astype(int) - colour).max(axis=2) < 40).astype(np.uint8)
        count, _, stats, _ = cv2.connectedComponentsWithStats(near)
        grow = CARD.enlarge_um[label] / CFG.spacing_um
        boxes = [
            [x - grow, y - grow, x + w + grow, y + h + grow]
            for x, y, w, h, area in stats[1:count].tolist()
            if area > 30 and x > 0 and y > 0 and x + w < len(tile) and y + h < len(tile)  # whole in the tile
        ]
        return boxes, [label] * len(boxes)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """2,000 x 1,600 px at 0.25 um/px: squares of 24 px at random, also across the borders of tiles; boxes and labels."""
    rng = np.random.default_rng(0)
    image = painted(2000, 1600, (100, 100, 1900, 1500), GREY)
    boxes, labels = [], []
    for y in range(120, 1460, 48):
        for x in range(120, 1860, 48):
            if rng.random() < 0.4:
                left, top = x + int(rng.integers(0, 16)), y + int(rng.integers(0, 16))
                label = int(rng.integers(2))
                image[top : top + 24, left : left + 24] = (BLUE, BROWN)[label]
                boxes.append((left, top, left + 24, top + 24))
                labels.append(label)
    path = tmp_path_factory.mktemp("squares") / "squares.tif"
    write_pyramid(path, image, levels=3, mpp=0.25, compression="deflate")
    return path, np.array(boxes, np.float64), np.array(labels)


def everywhere(side: int = 200) -> Mask:
    return Mask(np.ones((side, side), np.bool_), Placement(32, 32))


def found_on(
    slide: Slide, mask: Mask, card: DetectorCard = CARD, lowest_score: float = 0.1
) -> SlideDetections:
    return detect_slide(
        slide, tissue_tiles(slide, mask, card), SquareDetector(card), lowest_score=lowest_score
    )


def test_every_square_once_where_it_is(squares: tuple[Path, np.ndarray, np.ndarray]) -> None:
    """Over two hundred squares, many across the borders of tiles and cores: none lost, none twice, in level-0 pixels."""
    path, boxes, labels = squares
    assert len(boxes) > 200
    with SlideSource(str(path)).open() as slide:
        result = found_on(slide, everywhere())
    assert result.unreadable == ()
    assert len(result.detections) == len(boxes)
    gaps = np.abs(result.detections.boxes[:, None] - boxes[None]).max(axis=2)
    assert gaps.min(axis=0).max() <= 3  # a pixel of 0.5 um is two of level 0
    assert (result.detections.labels[gaps.argmin(axis=0)] == labels).all()


def test_tiles_without_tissue_are_not_looked_at(squares: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, boxes, _ = squares
    mask = np.zeros((50, 63), np.bool_)
    mask[5:20, 5:20] = True  # level-0 160 to 640
    with SlideSource(str(path)).open() as slide:
        some = found_on(slide, Mask(mask, Placement(32, 32)))
        whole = found_on(slide, everywhere())
    assert 0 < some.tiles < whole.tiles
    assert 0 < len(some.detections) < len(whole.detections)
    inside = (boxes[:, :2] >= 160).all(axis=1) & (boxes[:, 2:] <= 640).all(axis=1)
    assert len(some.detections) >= inside.sum()


def test_scores_below_are_left_out(squares: tuple[Path, np.ndarray, np.ndarray]) -> None:
    with SlideSource(str(squares[0])).open() as slide:
        assert len(found_on(slide, everywhere(), lowest_score=1.0).detections) == 0


class TestTilesAround:
    """Squares of 100 x 100 level-0 px at 0.25 um/px, not on a lattice, each with a halo."""

    CORNERS = ((120, 220), (220, 220), (700, 333))

    def test_sides_and_places(self) -> None:
        plan = tiles_around(self.CORNERS, 100, 0.25, CARD)
        assert plan.side_px == 192  # 25 um and twice 32 um at 0.5 um/px are 178 px; a multiple of 32
        first = plan.tiles[0]
        assert first.core == (120, 220, 220, 320)
        assert first.box == (-22, 78, 362, 462)  # 384 level-0 px, 142 of them before the core

    def test_a_field_of_256_um_at_an_uneven_spacing(self) -> None:
        card = CARD.model_copy(update={"detector": DetectorConfig()})
        for mpp, side in ((0.25, 1024), (0.228, 1123), (0.2431, 1053), (0.5, 512)):
            assert tiles_around([(0, 0)], side, mpp, card).side_px == 640

    def test_boxes_in_the_squares_are_those_of_the_whole(
        self, squares: tuple[Path, np.ndarray, np.ndarray]
    ) -> None:
        with SlideSource(str(squares[0])).open() as slide:
            plan = tiles_around(self.CORNERS, 100, slide.mpp, CARD)
            few = detect_slide(slide, plan, SquareDetector(), lowest_score=0.1).detections
            whole = found_on(slide, everywhere()).detections
        x, y = whole.centres.T
        inside = np.any(
            [(x >= a) & (x < a + 100) & (y >= b) & (y < b + 100) for a, b in self.CORNERS], axis=0
        )
        assert inside.sum() >= 3
        assert len(few) == inside.sum()
        gaps = np.abs(few.boxes[:, None] - whole.boxes[inside][None]).max(axis=2).min(axis=1)
        assert gaps.max() <= 2  # a tile's pixels lie elsewhere by a part of one


class TestGoingOn:
    def test_a_stopped_run_reads_no_tile_twice(
        self, squares: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
    ) -> None:
        class Stops(SquareDetector):
            def detect(self, tiles: np.ndarray) -> list[Boxes]:
                if self.tiles >= 2 * CHUNK:
                    raise KeyboardInterrupt
                return super().detect(tiles)

        with SlideSource(str(squares[0])).open() as slide:
            plan = tissue_tiles(slide, everywhere(), CARD)
            total = len(plan.tiles)
            assert total > 4 * CHUNK
            once = detect_slide(slide, plan, SquareDetector(), lowest_score=0.1).detections
            store = BoxStore.create(tmp_path / "a.boxes", "abc")
            with pytest.raises(KeyboardInterrupt):
                detect_slide(slide, plan, Stops(), lowest_score=0.1, store=store)
            rest, told = SquareDetector(), []
            again = BoxStore.create(tmp_path / "a.boxes", "abc")
            resumed = detect_slide(
                slide, plan, rest, lowest_score=0.1, store=again, tick=lambda done, _: told.append(done)
            ).detections
        assert rest.tiles == total - 2 * CHUNK
        assert (told[0], told[-1]) == (CHUNK, total)
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(resumed, name), getattr(once, name))

    def test_a_slide_that_vanishes_ends_the_run_and_stores_nothing_of_it(
        self, squares: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only a region that cannot be decoded is an unreadable tile: a lost disk must not be remembered as one."""
        store = BoxStore.create(tmp_path / "a.boxes", "abc")
        with SlideSource(str(squares[0])).open() as slide:
            plan = tissue_tiles(slide, everywhere(), CARD)

            def vanished(*_: object) -> np.ndarray:
                raise SlideError("is gone")

            monkeypatch.setattr(module, "read_square", vanished)
            with pytest.raises(SlideError, match="is gone"):
                detect_slide(slide, plan, SquareDetector(), lowest_score=0.1, store=store)
        assert store.read_chunk(0) is None

    def test_unreadable_tiles_are_remembered(self, broken_tile: Path, tmp_path: Path) -> None:
        fine = CARD.model_copy(
            update={"detector": CFG.model_copy(update={"spacing_um": 0.25})}
        )  # reads level 0
        store = BoxStore.create(tmp_path / "a.boxes", "abc")
        with SlideSource(str(broken_tile)).open() as slide:
            plan = tissue_tiles(slide, everywhere(), fine)
            first = detect_slide(slide, plan, SquareDetector(fine), lowest_score=0.1, store=store)
            none = SquareDetector(fine)
            second = detect_slide(slide, plan, none, lowest_score=0.1, store=store)
        assert none.tiles == 0
        assert second.unreadable == first.unreadable
        assert len(first.unreadable) > 0


def test_a_slide_too_coarse_is_refused(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "coarse.tif", painted(400, 400, (0, 0, 400, 400), GREY), mpp=0.61)
    with (
        SlideSource(str(path)).open() as slide,
        pytest.raises(SpacingError, match=r"has 0.61 um/px, .* needs 0.6 or"),
    ):
        found_on(slide, everywhere())


def test_a_broken_tile_costs_itself(broken_tile: Path) -> None:
    fine = CARD.model_copy(update={"detector": CFG.model_copy(update={"spacing_um": 0.25})})  # reads level 0
    with SlideSource(str(broken_tile)).open() as slide:
        result = found_on(slide, everywhere(), fine)
    assert 0 < len(result.unreadable) < result.tiles / 4


class TestPropose:
    def test_by_command(self, squares: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, wsi: Run) -> None:
        """An untrained network: what counts is the file, the message, and that the same bytes come out."""
        torch.manual_seed(0)
        network = CapillaryDetector(CFG)
        save_detector(
            tmp_path / "model",
            network,
            name="untrained",
            detector=CFG,
            enlarge_um=(2.0, 3.0),
            thresholds=(0.5, 0.5),
            demonstration=True,
        )
        out = tmp_path / "labels.geojson"
        words = (
            "renal",
            "propose",
            squares[0],
            "--model",
            tmp_path / "model",
            "--out",
            out,
            "--confidence",
            0.3,
        )
        code, said, _ = wsi(*words)
        assert code == 0
        assert "C4d negative and" in said
        assert "a demonstration model, trained without any real C4d slide" in said
        first = out.read_bytes()
        wsi(*words)
        assert out.read_bytes() == first
        features = json.loads(first)["features"]
        assert features
        assert not any("isLocked" in f["properties"] for f in features)  # a person is to correct them
        assert len({f["id"] for f in features}) == len(features)
        assert all(0.3 <= f["properties"]["measurements"]["probability"] <= 1 for f in features)
        groups = Counter(a.group for a in read_annotations(out))
        assert set(groups) <= set(CFG.classes)

    def test_what_cannot_be(
        self, squares: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, wsi: Run
    ) -> None:
        words = ("renal", "propose", squares[0], "--model", tmp_path)
        code, _, said = wsi(*words, "--out", tmp_path / "x.geojson")
        assert (code, "card.json cannot be read" in said) == (2, True)
        code, _, said = wsi(*words, "--out", tmp_path / "x.txt")
        assert (code, "must end in .geojson" in said) == (2, True)
