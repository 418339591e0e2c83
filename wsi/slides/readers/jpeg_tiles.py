"""Tiles of a TIFF that are JPEG, decoded without OpenSlide: the same pixels, several times as fast.

OpenSlide stays the reference: whatever is unusual here is left to it, and the tests compare both pixel for pixel.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import simplejpeg
import tifffile

from wsi.arrays import RgbImage
from wsi.slides.slide import Level

log = logging.getLogger(__name__)

VENDORS = ("generic-tiff", "aperio")  # whose levels are pages of the same size, one for one
CACHE_BYTES = 64 << 20  # decoded tiles that the next block may need: about those of one block
JPEG = 7  # TIFF's number of the compression
COLOUR_SPACES = {
    2: "RGB",
    6: "YCBCR",
}  # by TIFF's photometric number; Aperio has RGB in JPEG, which is unusual


@dataclass(frozen=True, eq=False, slots=True)
class _Page:
    """The tiles of one level.

    Attributes:
        index: of the level.
        size: (width, height) of the level.
        tile: (width, height) of a tile.
        offsets: byte at which each tile begins, row by row.
        counts: bytes of each tile; 0: it was never written.
        tables: what the tiles' JPEG streams have in common, or None.
        space: the colour space inside the JPEG.
    """

    index: int
    size: tuple[int, int]
    tile: tuple[int, int]
    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    tables: bytes | None
    space: str


class JpegTiles:
    """The tiled JPEG levels of one file; safe to read from several threads."""

    def __init__(self, path: str, levels: Sequence[Level], vendor: str) -> None:
        """Find the pages of the levels; where there are none that are understood, every `read` gives None.

        Args:
            path: of the TIFF.
            levels: as OpenSlide states them.
            vendor: as OpenSlide names the form of the file.
        """
        self._levels = levels
        self._pages: dict[int, _Page] = {}
        self._cache: OrderedDict[tuple[int, int], RgbImage] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None  # which closes itself where nobody closes the slide
        if vendor not in VENDORS or not hasattr(os, "pread"):  # Windows has none
            return
        try:
            with tifffile.TiffFile(path) as tif:
                self._pages = _pages_of(tif, levels)
            if self._pages:
                self._file = open(path, "rb", buffering=0)
        except Exception as error:  # an unusual structure may raise anything in tifffile: OpenSlide reads it
            log.debug("%s: its tiles are read by OpenSlide (%r)", path, error)
            self._pages = {}

    def read(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> RgbImage | None:
        """RGB pixels of a region, white off the slide; None where OpenSlide must read it.

        Args:
            location: (x, y) in level-0 pixels.
            level: index of the level.
            size: (width, height) in pixels of the level.
        """
        page = self._pages.get(level)
        downsample = self._levels[level].downsample
        x, y = (v / downsample for v in location)
        # between whole pixels OpenSlide mixes them
        if page is None or not (x.is_integer() and y.is_integer()):
            return None
        return self._paste(page, (int(x), int(y)), size)

    def _paste(self, page: _Page, corner: tuple[int, int], size: tuple[int, int]) -> RgbImage | None:
        """The part of a level from ``corner`` on."""
        (x0, y0), (tile_width, tile_height) = corner, page.tile
        x1, y1 = min(x0 + size[0], page.size[0]), min(y0 + size[1], page.size[1])
        if x1 <= max(x0, 0) or y1 <= max(y0, 0):  # all of it lies off the slide
            return np.full((size[1], size[0], 3), 255, np.uint8)
        across = -(-page.size[0] // tile_width)
        inside = min(corner) >= 0 and (x1 - x0, y1 - y0) == size
        pixels: RgbImage = np.empty((size[1], size[0], 3), np.uint8)
        if not inside:
            pixels[:] = 255
        for row in range(max(y0, 0) // tile_height, -(-y1 // tile_height)):
            for col in range(max(x0, 0) // tile_width, -(-x1 // tile_width)):
                tile = self._tile(page, row * across + col)
                if tile is None:
                    return None
                left, top = col * tile_width, row * tile_height
                a, b = max(left, x0, 0), min(left + tile_width, x1)
                c, d = max(top, y0, 0), min(top + tile_height, y1)
                pixels[c - y0 : d - y0, a - x0 : b - x0] = tile[c - top : d - top, a - left : b - left]
        return pixels

    def _tile(self, page: _Page, number: int) -> RgbImage | None:
        """One tile's pixels; None if it was never written, or is damaged."""
        key = (page.index, number)
        with self._lock:
            tile = self._cache.get(key)
            if tile is not None:
                self._cache.move_to_end(key)
                return tile
        count = int(page.counts[number])
        if self._file is None or count == 0:
            return None
        try:
            data = os.pread(self._file.fileno(), count, int(page.offsets[number]))
            tile = decoded(data, page.tables, page.space)
        except (OSError, ValueError) as error:  # OpenSlide says what is wrong
            log.debug("tile %d of level %d is left to OpenSlide (%r)", number, page.index, error)
            return None
        if len(data) != count or tile is None or tile.shape != (page.tile[1], page.tile[0], 3):
            return None
        self._keep(key, tile)
        return tile

    def _keep(self, key: tuple[int, int], tile: RgbImage) -> None:
        with self._lock:
            if key not in self._cache:
                self._cache[key] = tile
                self._cached_bytes += tile.nbytes
            while self._cached_bytes > CACHE_BYTES:
                _, old = self._cache.popitem(last=False)
                self._cached_bytes -= old.nbytes

    def close(self) -> None:
        """Close the file; calling it twice is fine."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None
            self._pages = {}
            self._cache.clear()


def decoded(data: bytes, tables: bytes | None, space: str) -> RgbImage | None:
    """The pixels of a JPEG stream whose colour space its TIFF states; None where it says otherwise itself.

    Raises:
        ValueError: it is damaged, also where most decoders only warn and give rubbish; OpenSlide refuses it, too.
    """
    head = (tables or b"") + data[:512]
    transform = 0 if space == "RGB" else 1
    place = head.find(b"Adobe")
    if (space == "RGB" and b"JFIF" in head) or (
        place >= 0 and head[place + 11 : place + 12] != bytes([transform])
    ):
        return None
    common = b"" if tables is None else tables[2:].removesuffix(b"\xff\xd9")
    marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes(
        [transform]
    )  # the colour space, as JPEG says it
    pixels: RgbImage = simplejpeg.decode_jpeg(b"\xff\xd8" + marker + common + data[2:], "RGB", strict=True)
    return pixels


def _pages_of(tif: tifffile.TiffFile, levels: Sequence[Level]) -> dict[int, _Page]:
    """The page of each level that has exactly one of its size, in tiles of JPEG, 8-bit RGB."""
    pages = {}
    for index, level in enumerate(levels):
        same = [p for p in tif.pages if (p.imagewidth, p.imagelength) == level.size and p.is_tiled]
        if len(same) != 1:
            continue
        (page,) = same
        space = COLOUR_SPACES.get(int(page.photometric))
        plain = page.samplesperpixel == 3 and page.bitspersample == 8 and int(page.planarconfig) == 1
        if int(page.compression) != JPEG or space is None or not plain:
            continue
        tile = (int(page.tilewidth), int(page.tilelength))
        offsets = np.asarray(page.dataoffsets, np.int64)
        counts = np.asarray(page.databytecounts, np.int64)
        if len(offsets) == len(counts) == -(-level.size[0] // tile[0]) * -(-level.size[1] // tile[1]):
            pages[index] = _Page(index, level.size, tile, offsets, counts, page.jpegtables, space)
    return pages
