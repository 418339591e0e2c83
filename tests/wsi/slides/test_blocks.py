from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.slides import coordinates
from wsi.slides.blocks import Block, chunk_side, plan_blocks, read_ahead, read_block
from wsi.slides.grid import make_grid
from wsi.slides.readers.array import ArraySlide
from wsi.slides.slide import ReadPlan, plan_read
from wsi.slides.source import SlideSource


@given(st.integers(1, 900), st.integers(1, 900), st.integers(10, 60), st.integers(0, 80), st.integers(1, 7))
def test_blocks_hold_every_cell_once_with_its_patch_inside(
    width: int, height: int, stride: int, extra: int, chunk: int
) -> None:
    plan = ReadPlan(0, stride, stride, stride + extra)
    grid = make_grid((width, height), plan, None)
    blocks = plan_blocks(grid, chunk)
    cells = np.concatenate([b.cells for b in blocks])
    assert len(cells) == len(grid)
    assert len(np.unique(cells, axis=0)) == len(grid)
    for block in blocks:
        assert (block.cells // chunk == block.chunk).all()
        assert block.offsets_px.min() == 0
        assert (block.offsets_px.max(axis=0) + plan.size_px == block.size_px).all()
        corners = block.cells[:, ::-1] * stride - plan.halo_px
        assert (block.offsets_px + block.corner_px == corners).all()


def test_patches_are_the_pixels_that_reading_each_alone_gives(coordinate_slide: Path) -> None:
    with SlideSource(str(coordinate_slide)).open() as slide:
        plan = ReadPlan(0, 128, 128, 299)
        grid = make_grid(slide.size, plan, None)
        corners = {
            tuple(cell): corner for cell, corner in zip(grid.cells.tolist(), grid.corners, strict=True)
        }
        seen = 0
        for block in plan_blocks(grid, 3):
            read = read_block(slide, block)
            for i, cell in enumerate(block.cells.tolist()):
                x, y = corners[tuple(cell)].astype(int)
                alone = slide.read_region((x, y), 0, (299, 299))
                assert (read.patches.patches(i, i + 1)[0] == alone).all()
                seen += 1
        assert seen == len(grid)


def test_resampled_patches_lie_where_they_should() -> None:
    """A slide of 0.25 um read at 0.6: each cell's centre shows the colour of its place, within a pixel."""
    slide = ArraySlide([coordinates(1000, 800)], mpp=0.25)
    plan = plan_read(slide, 64, 32, 0.6, tolerance=0.01)
    grid = make_grid(slide.size, plan, None)
    for block in plan_blocks(grid, chunk_side(slide, plan)):
        read = read_block(slide, block)
        assert read.patches.pixels.shape[:2] == block.size_px[::-1]
        for i, cell in enumerate(block.cells):
            x, y = grid.placement.centers(cell[None])[0]
            if 40 < x < 960 and 40 < y < 760:
                red, green, _ = read.patches.patches(i, i + 1)[0, 30:34, 30:34].mean(axis=(0, 1))
                assert abs(red * 4 + 1.5 - x) < 4
                assert abs(green * 4 + 1.5 - y) < 4


@pytest.mark.parametrize(
    ("stride", "scale", "side"), [(128, 1, 32), (64, 1, 64), (256, 1, 16), (5000, 1, 1), (128, 3, 10)]
)
def test_chunks_bound_what_is_read_at_once(stride: int, scale: int, side: int) -> None:
    slide = ArraySlide([coordinates()], mpp=0.25)
    assert chunk_side(slide, ReadPlan(0, stride * scale, stride, stride)) == side


def test_a_broken_tile_costs_the_cells_that_touch_it(broken_tile: Path) -> None:
    with SlideSource(str(broken_tile)).open() as slide:
        plan = ReadPlan(0, 128, 128, 299)
        grid = make_grid(slide.size, plan, None)
        lost = []
        for block in plan_blocks(grid, 32):
            read = read_block(slide, block)
            lost += block.cells[~read.readable].tolist()
            assert len(read.patches) == read.readable.sum()
            if not read.readable.all():
                assert read.reason is not None
                assert "broken tile.tif" in read.reason
    must = {
        (r, c)
        for r, c in grid.cells.tolist()
        if c * 128 - 85 < 2816 and c * 128 + 214 > 2560 and r * 128 - 85 < 1792 and r * 128 + 214 > 1536
    }
    assert must <= {tuple(cell) for cell in lost}  # everything that sees the tile
    assert len(lost) <= 3 * len(must)  # and not much more: pieces of 256 px that straddle it


def test_read_ahead_keeps_the_order_and_bounds_what_waits() -> None:
    class Counting(ArraySlide):
        open_blocks = 0
        most = 0
        lock = threading.Lock()

        def _read(self, location, level, size):  # type: ignore[no-untyped-def]
            with self.lock:
                Counting.open_blocks += 1
                Counting.most = max(Counting.most, Counting.open_blocks)
            return super()._read(location, level, size)

    slide = Counting([coordinates()], mpp=0.25)
    blocks: list[Block] = plan_blocks(make_grid(slide.size, ReadPlan(0, 20, 20, 20), None), 5)
    seen = []
    for read in read_ahead(slide, blocks, threads=2, ahead=3):
        seen.append(read.block.chunk)
        with Counting.lock:
            Counting.open_blocks -= 1
    assert seen == [block.chunk for block in blocks]
    assert Counting.most <= 3 + 1 + 1  # waiting, in hand, just submitted
