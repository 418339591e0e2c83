"""A segmenter over a slide: one tile for each chunk of the map, with a margin around it that is seen and not mapped."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.card import SegmenterCard
from wsi.arrays import RgbImage
from wsi.errors import RegionError, SpacingError
from wsi.results.store import MOST_CELLS, HeatmapSpec, HeatmapStore
from wsi.slides.slide import Slide
from wsi.slides.tiles import read_square
from wsi.slides.tissue import Mask

FORMAT = 1  # of what a tile gives; raise it when the golden maps of the tests change
COARSEST = 1.2  # times the segmenter's spacing: a slide coarser than this lacks what it has learned to see


class Mapper(Protocol):
    """What maps tiles: `models.engines.maps.MapEngine`, or a stand-in in tests."""

    @property
    def card(self) -> SegmenterCard:
        """Its card."""
        ...

    @property
    def description(self) -> str:
        """Libraries, precision and device."""
        ...

    @property
    def spec(self) -> MapperSpec:
        """What it was made of."""
        ...

    @property
    def at_once(self) -> int:
        """Number of threads that may call `map` at once."""
        ...

    def map(self, tile: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Class probabilities (classes, cells, cells) of the core of a tile (side, side, 3)."""
        ...


class MapperSpec(Protocol):
    """What a mapper is made of: `models.engines.spec.MapSpec`, or a stand-in in tests."""

    def make(self) -> Mapper:
        """The mapper, see `EngineSpec.make`."""
        ...


@dataclass(frozen=True, slots=True)
class MapPlan:
    """The chunks of a slide's map, and the tiles that give them.

    Attributes:
        spec: of the map.
        chunks: (row, col) of those that hold tissue, from top to bottom and left to right.
        mask: cells whose middle it leaves out get no class.
        core_l0: side of a chunk, in level-0 pixels.
        margin_l0: what is seen around it.
        side_px: side of the tile that the network sees.
    """

    spec: HeatmapSpec
    chunks: tuple[tuple[int, int], ...]
    mask: Mask
    core_l0: float
    margin_l0: float
    side_px: int

    def wanted(self, chunk: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """The cells of a chunk, (rows, cols), whose middle is tissue; fewer rows and columns at the far ends."""
        rows, cols = (
            np.arange(n * self.spec.chunk, min((n + 1) * self.spec.chunk, side))
            for n, side in zip(chunk, self.spec.shape, strict=True)
        )
        placement, pixels = self.mask.placement, self.mask.pixels
        y, x = (rows + 0.5) * self.spec.stride_l0, (cols + 0.5) * self.spec.stride_l0
        row = np.minimum((y // placement.step_y).astype(np.int64), pixels.shape[0] - 1)
        col = np.minimum((x // placement.step_x).astype(np.int64), pixels.shape[1] - 1)
        return np.asarray(pixels[np.ix_(row, col)])


def plan_map(slide: Slide, mask: Mask, card: SegmenterCard, fingerprint: str) -> MapPlan:
    """The chunks of a map that hold tissue; tiles are resampled to exactly the spacing of the segmenter.

    Raises:
        SpacingError: the slide is too coarse, or so large that its map would have more than `MOST_CELLS` cells.
        MissingMppError: it has no usable spacing.
    """
    cfg = card.segmenter
    if slide.mpp > COARSEST * cfg.spacing_um:
        raise SpacingError(
            f"{slide.path} has {slide.mpp:.3g} um/px, and the segmenter needs {COARSEST * cfg.spacing_um:.3g} or "
            f"finer; scan it at a higher magnification, or pass --mpp if the file is wrong"
        )
    step = cfg.spacing_um / slide.mpp  # level-0 pixels along a pixel of the network
    stride = cfg.pool * step
    cells = cfg.run_core_px // cfg.pool  # along a chunk
    width, height = slide.size
    shape = (math.ceil(height / stride), math.ceil(width / stride))
    if shape[0] * shape[1] > MOST_CELLS:
        raise SpacingError(
            f"{slide.path} would have {shape[0] * shape[1]:,} cells of {stride * slide.mpp:g} um, more than a map can "
            f"hold; take a segmenter with larger cells (pool in its recipe)"
        )
    core = cells * stride
    spec = HeatmapSpec(
        cfg.classes,
        shape,
        cells,
        stride,
        cfg.pool,
        round(core + 2 * cfg.margin_px * step),
        slide.mpp,
        fingerprint,
    )
    chunks = [(row, col) for row in range(-(-shape[0] // cells)) for col in range(-(-shape[1] // cells))]
    side = cfg.run_core_px + 2 * cfg.margin_px
    plan = MapPlan(spec, tuple(chunks), mask, core, cfg.margin_px * step, side)
    return replace(plan, chunks=tuple(chunk for chunk in chunks if plan.wanted(chunk).any()))


def mapped(
    slide: Slide, plan: MapPlan, chunks: Sequence[tuple[int, int]], mapper: Mapper, store: HeatmapStore
) -> Generator[tuple[int, int]]:
    """Map chunks that are not in the store yet, and write each; gives every chunk when it is there.

    Cells without tissue are NaN, and so is a chunk whose pixels cannot be decoded.

    Raises:
        WsiError: the slide or the store fails as a whole.
    """
    written = store.chunks_done()
    left = [chunk for chunk in chunks if chunk not in written]
    yield from (chunk for chunk in chunks if chunk in written)
    # always closed here: a thread must not read from a slide that is closed already
    with (
        closing(_tiles(slide, plan, left)) as tiles,
        closing(_probabilities(tiles, mapper)) as mapped_tiles,
    ):
        for chunk, probabilities in mapped_tiles:
            cells = np.argwhere(plan.wanted(chunk))  # counted from the chunk's corner
            if probabilities is None:
                scores = np.full((len(cells), len(plan.spec.classes)), np.nan, np.float32)
            else:
                scores = probabilities[:, cells[:, 0], cells[:, 1]].T.clip(0, 1)
            store.write_chunk(chunk, cells + np.array(chunk) * plan.spec.chunk, scores)
            yield chunk


def _probabilities(
    tiles: Iterator[tuple[tuple[int, int], RgbImage | None]], mapper: Mapper
) -> Generator[tuple[tuple[int, int], npt.NDArray[np.float32] | None]]:
    """Chunks with the probabilities of their cells, in their order; as many tiles are mapped at once as can be."""
    if mapper.at_once == 1:
        for chunk, tile in tiles:
            yield chunk, None if tile is None else mapper.map(tile)
        return
    waiting: deque[tuple[tuple[int, int], Future[npt.NDArray[np.float32]] | None]] = deque()
    with ThreadPoolExecutor(mapper.at_once, thread_name_prefix="map") as pool:
        for chunk, tile in tiles:
            waiting.append((chunk, None if tile is None else pool.submit(mapper.map, tile)))
            if len(waiting) > mapper.at_once:
                first, future = waiting.popleft()
                yield first, None if future is None else future.result()
        for last, future in waiting:
            yield last, None if future is None else future.result()


def _tiles(
    slide: Slide, plan: MapPlan, chunks: Iterable[tuple[int, int]]
) -> Generator[tuple[tuple[int, int], RgbImage | None]]:
    """Chunks with their tiles, the next of which is read while one is mapped; None where it cannot be decoded."""
    with ThreadPoolExecutor(1, thread_name_prefix="tile") as reader:
        waiting = None
        for chunk in chunks:
            following = (chunk, reader.submit(_tile, slide, plan, chunk))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def _tile(slide: Slide, plan: MapPlan, chunk: tuple[int, int]) -> RgbImage | None:
    """The tile of a chunk; what lies off the slide mirrors what lies on it (Ronneberger et al. 2015)."""
    corner = tuple(round(n * plan.core_l0 - plan.margin_l0) for n in (chunk[1], chunk[0]))
    side_l0 = plan.core_l0 + 2 * plan.margin_l0
    try:
        pixels = read_square(slide, (corner[0], corner[1]), side_l0, plan.side_px)
    except RegionError:  # of this place; what ends the whole slide is told
        return None
    return mirrored(pixels, (corner[0], corner[1]), side_l0, slide.size)


def mirrored(pixels: RgbImage, corner: tuple[int, int], side_l0: float, size: tuple[int, int]) -> RgbImage:
    """A square of a slide with what lies off the slide replaced by the mirror image of what lies on it.

    Args:
        pixels: (side, side, 3).
        corner: level-0 (x, y) of the square.
        side_l0: its side.
        size: (width, height) of the slide.
    """
    side = len(pixels)
    per_px = side_l0 / side
    before = [max(0, min(side - 1, round(-start / per_px))) for start in corner]
    after = [
        max(before[i] + 1, min(side, round((size[i] - corner[i]) / per_px))) for i in (0, 1)
    ]  # at least one pixel
    if before == [0, 0] and after == [side, side]:
        return pixels
    on_slide = pixels[before[1] : after[1], before[0] : after[0]]
    widths = ((before[1], side - after[1]), (before[0], side - after[0]), (0, 0))
    return np.pad(on_slide, widths, mode="symmetric")
