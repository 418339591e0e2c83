"""A segmenter over a slide: where each cell lies, what a tile sees around its core, what cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import models.card as card_module
import models.engines.map_slide as module
from models.engines.map_slide import mapped, mirrored, plan_map
from tests.slides import RednessMapper, coordinates, painted, write_pyramid
from wsi.errors import RegionError, SpacingError
from wsi.placement import Placement
from wsi.results.store import NOT_SCORED, HeatmapStore
from wsi.slides.slide import Slide
from wsi.slides.source import SlideSource
from wsi.slides.tissue import Mask


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_module, "RUN_CORE_PX", 64)


def everywhere(slide: Slide) -> Mask:
    return Mask(np.ones((1, 1), np.bool_), Placement(*map(float, slide.size)))


def labels_of(slide: Slide, mapper: RednessMapper, folder: Path, mask: Mask | None = None) -> np.ndarray:
    plan = plan_map(slide, mask or everywhere(slide), mapper.card, "f")
    store = HeatmapStore.create(folder, plan.spec)
    assert list(mapped(slide, plan, plan.chunks, mapper, store)) == list(plan.chunks)
    return store.labels()


def opened(folder: Path, pixels: np.ndarray, **options: object) -> Slide:
    return SlideSource(str(write_pyramid(folder / "s.tif", pixels)), **options).open()  # type: ignore[arg-type]


@pytest.mark.parametrize("corner", [(0, 0), (300, 160), (252, 124)])
def test_every_cell_has_the_class_of_its_place(tmp_path: Path, corner: tuple[int, int]) -> None:
    """A cell is 4 level-0 px: two pixels of 0.5 um. A chunk is 128 px, so that the mark lies across their borders."""
    x, y = corner
    pixels = painted(700, 500, (x, y, x + 88, y + 40), (220, 40, 60))
    pixels[y : y + 12, x : x + 8] = 20  # so that no turn or flip goes unnoticed
    with opened(tmp_path, pixels) as slide:
        labels = labels_of(slide, RednessMapper(), tmp_path / "map.zarr")
    expected = np.zeros((125, 175), np.uint8)
    expected[y // 4 : (y + 40) // 4, x // 4 : (x + 88) // 4] = 2
    expected[y // 4 : (y + 12) // 4, x // 4 : (x + 8) // 4] = 1
    np.testing.assert_array_equal(labels, expected)


def test_the_margin_shows_what_lies_around_and_mirrors_at_the_edge(tmp_path: Path) -> None:
    mapper = RednessMapper()
    with opened(tmp_path, coordinates()) as slide:
        plan = plan_map(slide, everywhere(slide), mapper.card, "f")
        assert (plan.core_l0, plan.margin_l0, plan.side_px) == (128, 32, 96)
        store = HeatmapStore.create(tmp_path / "m.zarr", plan.spec)
        list(mapped(slide, plan, [(1, 2), (0, 0)], mapper, store))
    inner, corner = mapper.seen
    # the tile of chunk (1, 2) begins at level-0 (256 - 32, 128 - 32): red is x // 4, green y // 4
    assert inner[0, 0].tolist() == [(256 - 32) // 4, (128 - 32) // 4, 128]
    assert inner[16, 16].tolist() == [256 // 4, 128 // 4, 128]
    np.testing.assert_array_equal(corner[:16], corner[31:15:-1])  # mirrored at row 16, where the slide begins
    np.testing.assert_array_equal(corner[:, :16], corner[:, 31:15:-1])
    assert corner[16, 16].tolist() == [0, 0, 128]


def test_mirroring_on_the_far_side_and_of_a_strip() -> None:
    pixels = np.arange(6 * 6, dtype=np.uint8).reshape(6, 6, 1).repeat(3, axis=2)
    # the slide ends 4 px into the square of 6, at 2 level-0 px a px
    out = mirrored(pixels, (90, 10), 12.0, (98, 1000))
    assert out[0, :, 0].tolist() == [0, 1, 2, 3, 3, 2]
    assert out[5, :, 0].tolist() == [30, 31, 32, 33, 33, 32]
    strip = mirrored(pixels, (-10, 0), 12.0, (1000, 1000))  # one column lies on the slide
    assert (strip[..., 0] == pixels[:, 5:, 0]).all()
    assert mirrored(pixels, (0, 0), 12.0, (1000, 1000)) is pixels


def test_only_chunks_with_tissue_are_looked_at(tmp_path: Path) -> None:
    mapper = RednessMapper()
    tissue = np.zeros((50, 70), np.bool_)
    tissue[30, 40] = True  # level-0 (400, 300): chunk (2, 3)
    with opened(tmp_path, painted(700, 500, (0, 0, 700, 500), (220, 40, 60))) as slide:
        labels = labels_of(slide, mapper, tmp_path / "m.zarr", Mask(tissue, Placement(10.0, 10.0)))
    assert len(mapper.seen) == 1
    inside = np.zeros((125, 175), np.bool_)
    inside[75:77, 100:102] = True  # whose middles, 302 and 306, 402 and 406, lie on the mask's pixel
    assert (labels[inside] == 2).all()
    assert (labels[~inside] == NOT_SCORED).all()


def test_the_spacing_is_that_of_the_model(tmp_path: Path) -> None:
    """At 0.2 um/px a cell of 1 um is 5 level-0 px."""
    with opened(tmp_path, coordinates(), mpp=0.2) as slide:
        plan = plan_map(slide, everywhere(slide), RednessMapper().card, "f")
        assert (plan.spec.stride_l0, plan.spec.shape, plan.core_l0, plan.side_px) == (5, (100, 140), 160, 96)
    with opened(tmp_path, coordinates(), mpp=0.55) as slide:
        plan = plan_map(slide, everywhere(slide), RednessMapper().card, "f")
        assert plan.spec.stride_l0 == pytest.approx(1 / 0.55)  # as exactly as the training's tiles
        assert plan.core_l0 * 0.55 == pytest.approx(32)
    with (
        opened(tmp_path, coordinates(), mpp=0.7) as slide,
        pytest.raises(SpacingError, match=r"0.7 um/px, and the segmenter needs 0.6 or finer"),
    ):
        plan_map(slide, everywhere(slide), RednessMapper().card, "f")


def test_a_map_that_would_be_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CELLS", 10_000)
    with opened(tmp_path, coordinates()) as slide, pytest.raises(SpacingError, match="21,875 cells of 1 um"):
        plan_map(slide, everywhere(slide), RednessMapper().card, "f")


def test_a_chunk_that_cannot_be_read_has_no_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path, painted(700, 500, (0, 0, 700, 500), (220, 40, 60))) as slide:
        real = slide.read_region

        def breaks(corner: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
            if corner[0] <= 150 < corner[0] + size[0] and corner[1] <= 20:  # pixels of level 1
                raise RegionError("a broken tile")
            return real(corner, level, size)

        monkeypatch.setattr(slide, "read_region", breaks)
        labels = labels_of(slide, RednessMapper(), tmp_path / "m.zarr")
    assert (labels[:32, 32:64] == NOT_SCORED).all()
    assert (labels[:32, 96:] == 2).all()
    assert (labels[64:] == 2).all()


def test_what_is_written_is_not_mapped_again(tmp_path: Path) -> None:
    first, second = RednessMapper(fail_after=5), RednessMapper()
    with opened(tmp_path, coordinates()) as slide:
        with pytest.raises(KeyboardInterrupt):
            labels_of(slide, first, tmp_path / "m.zarr")
        again = labels_of(slide, second, tmp_path / "m.zarr")
        whole = labels_of(slide, RednessMapper(), tmp_path / "w.zarr")
    assert len(first.seen) + len(second.seen) == 4 * 6
    np.testing.assert_array_equal(again, whole)
