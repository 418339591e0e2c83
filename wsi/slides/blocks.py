"""Blocks of neighbouring cells that are read at once, so that each tile of the file is decoded once."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from wsi.arrays import CellsRC, RgbImage
from wsi.slides.grid import TileGrid
from wsi.slides.salvage import Box, read_salvaging
from wsi.slides.slide import ReadPlan, Slide
from wsi.slides.stain import StainTransform

BLOCK_PX = 4096  # side of a full block without its halo: 55 MB of RGB


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """One chunk's cells with tissue and the region that holds their patches.

    Attributes:
        chunk: (row, col) of the chunk in the heatmap's chunk grid.
        cells: (n, 2) row, col in the heatmap.
        corner_px: (x, y) of the region's corner, in model pixels from the slide's corner.
        size_px: (width, height) of the region in model pixels.
        offsets_px: (n, 2) x, y of each patch's corner inside the region.
        plan: the plan for reading the region.
    """

    chunk: tuple[int, int]
    cells: CellsRC
    corner_px: tuple[int, int]
    size_px: tuple[int, int]
    offsets_px: npt.NDArray[np.int64]
    plan: ReadPlan


@dataclass(frozen=True, eq=False, slots=True)
class PatchBlock:
    """Pixels and the patches in them: the input of an engine.

    Attributes:
        pixels: the region, RGB.
        offsets_px: (n, 2) x, y of each patch's corner in ``pixels``.
        size_px: side of a patch.
    """

    pixels: RgbImage
    offsets_px: npt.NDArray[np.int64]
    size_px: int

    def __len__(self) -> int:
        return len(self.offsets_px)

    def patches(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Patches ``start`` to ``stop`` as one (n, size, size, 3) array."""
        offsets = self.offsets_px[start:stop]
        patches = np.empty((len(offsets), self.size_px, self.size_px, 3), np.uint8)
        for i, (x, y) in enumerate(offsets):
            patches[i] = self.pixels[y : y + self.size_px, x : x + self.size_px]
        return patches


@dataclass(frozen=True, eq=False, slots=True)
class ReadBlock:
    """A block with its pixels: ``readable`` tells which cells could be decoded, ``reason`` why some could not."""

    block: Block
    patches: PatchBlock
    readable: npt.NDArray[np.bool_]
    reason: str | None


def chunk_side(slide: Slide, plan: ReadPlan) -> int:
    """Cells along a chunk's side, so that a block without its halo stays within 4,096 px square: 32 for stride 128."""
    enlargement = plan.scale / slide.levels[plan.level].downsample
    return max(1, int(BLOCK_PX / (plan.stride_px * max(enlargement, 1.0))))


def plan_blocks(grid: TileGrid, chunk: int) -> list[Block]:
    """One block for every chunk of ``chunk`` x ``chunk`` cells that holds a cell to score, row by row."""
    if len(grid) == 0:
        return []
    chunks = grid.cells // chunk
    order = np.lexsort((grid.cells[:, 1], grid.cells[:, 0], chunks[:, 1], chunks[:, 0]))
    cells, chunks = grid.cells[order], chunks[order]
    starts = np.flatnonzero(np.any(np.diff(chunks, axis=0) != 0, axis=1)) + 1
    groups = zip(np.split(cells, starts), chunks[np.r_[0, starts]], strict=True)
    return [_block(group, (int(row), int(col)), grid.plan) for group, (row, col) in groups]


def _block(cells: CellsRC, chunk: tuple[int, int], plan: ReadPlan) -> Block:
    corners = cells[:, ::-1] * plan.stride_px - plan.halo_px  # (n, 2): x, y in model pixels
    low, high = corners.min(axis=0), corners.max(axis=0) + plan.size_px
    width, height = high - low
    return Block(chunk, cells, (int(low[0]), int(low[1])), (int(width), int(height)), corners - low, plan)


def plan_cells(cells: CellsRC, plan: ReadPlan) -> list[Block]:
    """One block for each of these cells, for reading a few cells of many; the blocks belong to no chunk."""
    return [_block(cells[i : i + 1], (0, 0), plan) for i in range(len(cells))]


def read_block(slide: Slide, block: Block, recolour: StainTransform | None = None) -> ReadBlock:
    """Read a block's region once and recolour it; cells whose patch touches broken pixels are not readable."""
    plan = block.plan
    to_level = plan.scale / slide.levels[plan.level].downsample  # level px per model px
    location = (round(block.corner_px[0] * plan.scale), round(block.corner_px[1] * plan.scale))
    size_level = (round(block.size_px[0] * to_level), round(block.size_px[1] * to_level))
    part = read_salvaging(slide, location, plan.level, size_level)
    pixels = part.pixels
    if size_level != block.size_px:
        pixels = cv2.resize(pixels, block.size_px, interpolation=cv2.INTER_AREA)
    if recolour is not None:
        pixels = recolour.apply(pixels)
    readable = _untouched(block, part.broken, to_level)
    patches = PatchBlock(pixels, block.offsets_px[readable], plan.size_px)
    return ReadBlock(block, patches, readable, part.reason)


def _untouched(block: Block, broken: Iterable[Box], to_level: float) -> npt.NDArray[np.bool_]:
    readable = np.ones(len(block.cells), np.bool_)
    x, y = block.offsets_px.T * to_level
    side = block.plan.size_px * to_level
    for x0, y0, x1, y1 in broken:
        readable &= (x + side <= x0) | (x >= x1) | (y + side <= y0) | (y >= y1)
    return readable


def read_ahead(
    slide: Slide,
    blocks: Iterable[Block],
    *,
    recolour: StainTransform | None = None,
    threads: int = 1,
    ahead: int = 2,
) -> Generator[ReadBlock]:
    """Blocks in order, read by ``threads`` threads while the caller works; at most ``ahead`` wait in memory."""
    pending: deque[Future[ReadBlock]] = deque()
    source = iter(blocks)
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:
        try:
            for block in source:
                pending.append(pool.submit(read_block, slide, block, recolour))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
