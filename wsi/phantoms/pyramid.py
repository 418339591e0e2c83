"""Writing of a pyramidal JPEG TIFF piece by piece, so that memory does not grow with the slide's height."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import cv2
import imagecodecs
import numpy as np
import tifffile

from wsi.arrays import RgbImage
from wsi.files import replacing

TILE_PX = 512  # Camelyon16's tile side
PIECE_TILES = 4  # tiles rendered at once, side by side
JPEG_QUALITY = 80  # that of Camelyon16
SMALLEST_LEVEL_PX = 512

Render = Callable[[int, int, int, int], RgbImage | None]
"""Function from (x0, y0, width, height) in level-0 pixels to the pixels; None stands for plain background."""


@dataclass(slots=True)
class _Level:
    """Encoded tiles of one level, kept in a temporary file until they are written."""

    size: tuple[int, int]
    spool: IO[bytes]
    lengths: list[int] = field(default_factory=list)
    waiting: dict[int, RgbImage] = field(default_factory=dict)  # upper halves of tiles, by column

    @property
    def cols(self) -> int:
        return -(-self.size[0] // TILE_PX)

    @property
    def rows(self) -> int:
        return -(-self.size[1] // TILE_PX)

    def tiles(self) -> Iterator[bytes]:
        self.spool.seek(0)
        for length in self.lengths:
            yield self.spool.read(length)


class PyramidWriter:
    """Builder of the pyramid's levels from rows of tiles; each level is half as large as the one before."""

    def __init__(self, size: tuple[int, int], background: tuple[int, int, int], stack: ExitStack) -> None:
        sizes = [size]
        while max(sizes[-1]) > SMALLEST_LEVEL_PX:
            sizes.append((max(1, sizes[-1][0] // 2), max(1, sizes[-1][1] // 2)))
        self.levels = [_Level(s, stack.enter_context(tempfile.TemporaryFile())) for s in sizes]
        self._blank = np.full((TILE_PX, TILE_PX, 3), background, np.uint8)
        self._blank_bytes = encode(self._blank)

    def add_row(self, level: int, row: int, tiles: dict[int, tuple[bytes, RgbImage]]) -> None:
        """Take one row of tiles (by column: JPEG and the tile at half size); absent ones are background."""
        current = self.levels[level]
        for col in range(current.cols):
            encoded = tiles[col][0] if col in tiles else self._blank_bytes
            current.spool.write(encoded)
            current.lengths.append(len(encoded))
        if level + 1 == len(self.levels):
            return
        coarser = self.levels[level + 1]
        for col, (_, half) in tiles.items():
            tile = coarser.waiting.setdefault(col // 2, self._blank.copy())
            y, x = (row % 2) * (TILE_PX // 2), (col % 2) * (TILE_PX // 2)
            tile[y : y + TILE_PX // 2, x : x + TILE_PX // 2] = half
        last = row + 1 == current.rows
        if (row % 2 == 1 or last) and row // 2 < coarser.rows:
            finished_tiles = {c: finish_tile(tile) for c, tile in coarser.waiting.items() if c < coarser.cols}
            coarser.waiting.clear()
            self.add_row(level + 1, row // 2, finished_tiles)


def encode(tile: RgbImage) -> bytes:
    """One tile as a whole JPEG stream, YCbCr with halved chroma."""
    return bytes(imagecodecs.jpeg8_encode(tile, level=JPEG_QUALITY, subsampling="420"))


def finish_tile(tile: RgbImage) -> tuple[bytes, RgbImage]:
    """A tile's JPEG and its half-size average."""
    half = cv2.resize(tile, (TILE_PX // 2, TILE_PX // 2), interpolation=cv2.INTER_AREA)
    return encode(tile), half


def write_pyramid(
    path: Path,
    size: tuple[int, int],
    mpp: float,
    render: Render,
    *,
    background: tuple[int, int, int] = (255, 255, 255),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a tiled BigTIFF that OpenSlide and tiffslide read, with levels halved down to 512 px.

    Args:
        path: the file; it is written beside this path and renamed.
        size: (width, height) of level 0.
        mpp: um per pixel, stored as the TIFF's resolution.
        render: gives the pixels of each piece; called from two threads.
        background: colour of pieces for which `render` gives None.
        progress: called with (pieces done, pieces).
    """
    with replacing(path) as partial, ExitStack() as stack:
        writer = PyramidWriter(size, background, stack)
        _render_rows(writer, render, progress)
        with tifffile.TiffWriter(partial, bigtiff=True) as tif:
            for index, level in enumerate(writer.levels):
                per_cm = 1e4 / mpp * level.size[0] / size[0]
                tif.write(
                    level.tiles(),
                    shape=(level.size[1], level.size[0], 3),
                    dtype=np.uint8,
                    photometric="ycbcr",
                    subsampling=(2, 2),
                    compression="jpeg",
                    tile=(TILE_PX, TILE_PX),
                    resolution=(per_cm, per_cm),
                    resolutionunit="CENTIMETER",
                    subfiletype=0 if index == 0 else 1,
                    metadata=None,
                    software="slidewright phantom",
                )


def _render_rows(writer: PyramidWriter, render: Render, progress: Callable[[int, int], None] | None) -> None:
    base = writer.levels[0]
    per_row = -(-base.cols // PIECE_TILES)
    total = base.rows * per_row
    jobs: deque[Future[dict[int, tuple[bytes, RgbImage]]]] = deque()
    finished = 0
    with ThreadPoolExecutor(2, thread_name_prefix="render") as pool:
        places = iter([(row, piece) for row in range(base.rows) for piece in range(per_row)])
        for row in range(base.rows):
            tiles: dict[int, tuple[bytes, RgbImage]] = {}
            for _ in range(per_row):
                while len(jobs) < 4 and (place := next(places, None)) is not None:
                    jobs.append(pool.submit(_render_piece, render, base.size, *place))
                tiles |= jobs.popleft().result()
                finished += 1
                if progress is not None:
                    progress(finished, total)
            writer.add_row(0, row, tiles)


def _render_piece(
    render: Render, size: tuple[int, int], row: int, piece: int
) -> dict[int, tuple[bytes, RgbImage]]:
    x0, y0 = piece * PIECE_TILES * TILE_PX, row * TILE_PX
    cols = min(PIECE_TILES, -(-(size[0] - x0) // TILE_PX))
    pixels = render(x0, y0, cols * TILE_PX, TILE_PX)
    if pixels is None:
        return {}
    tiles = (np.ascontiguousarray(pixels[:, i * TILE_PX : (i + 1) * TILE_PX]) for i in range(cols))
    return {piece * PIECE_TILES + i: finish_tile(tile) for i, tile in enumerate(tiles)}
