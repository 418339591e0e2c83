"""Tiles decoded without OpenSlide: the pixels that OpenSlide gives, or left to it."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from tests.slides import real_data, write_pyramid
from wsi.errors import RegionError
from wsi.slides.readers import jpeg_tiles
from wsi.slides.readers.jpeg_tiles import JpegTiles
from wsi.slides.readers.openslide import OpenSlideReader
from wsi.slides.slide import Level, over_white

RGB_INSIDE = {"compressionargs": {"outcolorspace": "rgb", "level": 85}}
FINE_COLOUR = {"subsampling": (1, 1), "compressionargs": {"level": 85}}


def tissue_like(width: int, height: int) -> np.ndarray:
    """Colours that differ everywhere, with edges, so that another decoder's rounding would show."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(60, 250, (height // 8, width // 8, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image.astype(int) + rng.integers(-12, 12, image.shape), 0, 255).astype(np.uint8)


def write(path: Path, **options: Any) -> Path:
    """Three levels of 700 x 500, whose last tiles reach beyond the slide."""
    return write_pyramid(path, tissue_like(704, 504)[:500, :700], tile=112, compression="jpeg", **options)


def by_openslide(path: Path, location: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
    with openslide.OpenSlide(path) as handle:
        return over_white(np.asarray(handle.read_region(location, level, size)))


def regions(slide: OpenSlideReader, count: int) -> Any:
    rng = np.random.default_rng(3)
    for level, (width, height) in enumerate(s.size for s in slide.levels):
        step = int(slide.levels[level].downsample)
        for _ in range(count):
            x, y = rng.integers(-40, width), rng.integers(-40, height)
            w, h = rng.integers(1, 300, 2)
            yield (int(x) * step, int(y) * step), level, (int(w), int(h))


class TestPixels:
    @pytest.mark.parametrize("options", [{}, RGB_INSIDE, FINE_COLOUR], ids=["4:2:0", "RGB", "4:4:4"])
    def test_they_are_openslide_s(self, tmp_path: Path, options: dict[str, Any]) -> None:
        path = write(tmp_path / "s.tif", **options)
        with tifffile.TiffFile(path) as tif:
            assert tif.pages[0].photometric == (2 if options is RGB_INSIDE else 6)
        with OpenSlideReader(str(path)) as slide:
            for location, level, size in regions(slide, 12):
                direct = slide._tiles.read(location, level, size)
                assert direct is not None
                np.testing.assert_array_equal(direct, by_openslide(path, location, level, size))

    @pytest.mark.parametrize(
        "location", [(710, 0), (0, 520), (705, 490), (-400, 10), (5000, 5000), (699, 499)]
    )
    def test_off_the_slide_it_is_white(self, tmp_path: Path, location: tuple[int, int]) -> None:
        """The last tiles reach to x 784 and y 560: a region may begin in what they have too much."""
        path = write(tmp_path / "s.tif")
        with OpenSlideReader(str(path)) as slide:
            found = slide.read_region(location, 0, (100, 90))
            np.testing.assert_array_equal(found, by_openslide(path, location, 0, (100, 90)))

    def test_of_a_real_slide_by_aperio(self) -> None:
        """RGB in JPEG with common tables, as in no other file."""
        path = real_data("slides", "cmu-1-small-region.svs")
        with OpenSlideReader(str(path)) as slide:
            assert slide.vendor == "aperio"
            for location, level, size in regions(slide, 10):
                direct = slide._tiles.read(location, level, size)
                assert direct is not None
                np.testing.assert_array_equal(direct, by_openslide(path, location, level, size))

    def test_a_colour_space_that_is_not_told_would_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The comparison above sees the mistake that is made most often."""
        path = real_data("slides", "cmu-1-small-region.svs")
        monkeypatch.setitem(jpeg_tiles.COLOUR_SPACES, 2, "YCBCR")
        with OpenSlideReader(str(path)) as slide:
            direct = slide._tiles.read((0, 0), 0, (50, 50))
            assert direct is not None
            assert not np.array_equal(direct, by_openslide(path, (0, 0), 0, (50, 50)))

    def test_a_stream_that_contradicts_its_tiff_is_left_to_openslide(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write(tmp_path / "s.tif", **RGB_INSIDE)  # tifffile marks the stream as RGB
        monkeypatch.setitem(jpeg_tiles.COLOUR_SPACES, 2, "YCBCR")
        with OpenSlideReader(str(path)) as slide:
            assert slide._tiles.read((0, 0), 0, (50, 50)) is None


class TestWhatIsLeftToOpenslide:
    def test_places_between_pixels(self, tmp_path: Path) -> None:
        path = write(tmp_path / "s.tif")
        with OpenSlideReader(str(path)) as slide:
            assert slide._tiles.read((2, 4), 1, (30, 30)) is not None
            assert slide._tiles.read((3, 4), 1, (30, 30)) is None
            np.testing.assert_array_equal(
                slide.read_region((3, 4), 1, (30, 30)), by_openslide(path, (3, 4), 1, (30, 30))
            )

    @pytest.mark.parametrize("compression", ["deflate", "lzw"])
    def test_other_compressions(self, tmp_path: Path, compression: str) -> None:
        path = write_pyramid(tmp_path / "s.tif", tissue_like(400, 304), compression=compression)
        with OpenSlideReader(str(path)) as slide:
            assert slide._tiles.read((0, 0), 0, (9, 9)) is None

    def test_tiles_that_were_never_written(self, tmp_path: Path) -> None:
        """Of 7 x 5 tiles the fourth of the second row: x 336 to 448, y 112 to 224."""
        path = write(tmp_path / "s.tif")
        with tifffile.TiffFile(path) as tif:
            tag = tif.pages[0].tags["TileByteCounts"]
            place = tag.valueoffset + (7 + 3) * (tag.valuebytecount // tag.count)
            length = tag.valuebytecount // tag.count
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes(length))
        with OpenSlideReader(str(path)) as slide:
            assert slide._tiles.read((0, 0), 0, (300, 300)) is not None
            assert slide._tiles.read((440, 220), 0, (20, 20)) is None
            image = slide.read_region((300, 100), 0, (200, 200))
            np.testing.assert_array_equal(image, by_openslide(path, (300, 100), 0, (200, 200)))
            assert (image[12:124, 36:148] == 255).all()

    def test_tiles_that_are_damaged(self, broken_tile: Path) -> None:
        with OpenSlideReader(str(broken_tile)) as slide:
            assert slide._tiles.read((2560, 1536), 0, (100, 100)) is None
            assert slide._tiles.read((2260, 1536), 0, (256, 100)) is not None

    @pytest.mark.parametrize("damage", ["tail", "end", "middle", "short"])
    def test_damage_of_which_libjpeg_only_warns(self, tmp_path: Path, damage: str) -> None:
        """Most decoders give rubbish then; OpenSlide refuses it, and so must both ways together."""
        path = write(tmp_path / "s.tif")
        with tifffile.TiffFile(path) as tif:
            page = tif.pages[0]
            offset, count = page.dataoffsets[8], page.databytecounts[8]  # x 112 to 224, y 112 to 224
        data = bytearray(path.read_bytes())
        tile = data[offset : offset + count]
        scan = tile.find(b"\xff\xda") + 14
        if damage == "tail":
            tile[count // 4 :] = bytes(count - count // 4)
        elif damage == "end":
            tile[count // 2 : count // 2 + 2] = b"\xff\xd9"
        elif damage == "middle":
            tile[scan + 200 : scan + 250] = (
                np.random.default_rng(1).integers(0, 255, 50, dtype=np.uint8).tobytes()
            )
        data[offset : offset + count] = tile
        path.write_bytes(data if damage != "short" else data[: offset + count // 2])
        if damage == "short":
            tiles = JpegTiles(str(path), [Level((700, 500), 1.0)], "generic-tiff")
            assert tiles.read((112, 112), 0, (50, 50)) is None  # no page, or no tile
            return
        with OpenSlideReader(str(path)) as slide:
            assert slide._tiles.read((112, 112), 0, (50, 50)) is None
            assert slide._tiles.read((0, 0), 0, (100, 100)) is not None
            try:
                expected = by_openslide(path, (112, 112), 0, (50, 50))
            except openslide.OpenSlideError:
                with pytest.raises(RegionError):
                    slide.read_region((112, 112), 0, (50, 50))
            else:
                np.testing.assert_array_equal(slide.read_region((112, 112), 0, (50, 50)), expected)

    def test_two_pages_of_one_size(self, tmp_path: Path) -> None:
        path = tmp_path / "s.tif"
        with tifffile.TiffWriter(path) as tif:
            for image in (tissue_like(400, 304), tissue_like(400, 304)[::-1]):
                tif.write(image, tile=(112, 112), photometric="rgb", compression="jpeg", metadata=None)
        with OpenSlideReader(str(path)) as slide:
            assert slide._tiles.read((0, 0), 0, (9, 9)) is None


class TestCache:
    def test_each_tile_is_decoded_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, calls = write(tmp_path / "s.tif"), []
        decode = jpeg_tiles.decoded

        def counted(*rest: Any, **options: Any) -> Any:
            calls.append(1)
            return decode(*rest, **options)

        monkeypatch.setattr(jpeg_tiles, "decoded", counted)
        with OpenSlideReader(str(path)) as slide:
            for x in range(0, 700, 100):
                slide.read_region((x, 0), 0, (150, 500))
            assert len(calls) == 7 * 5
            slide._tiles._cached_bytes += jpeg_tiles.CACHE_BYTES  # as if others had filled it
            slide.read_region((0, 0), 1, (10, 10))
            assert len(slide._tiles._cache) == 0

    def test_many_threads(self, tmp_path: Path) -> None:
        path = write(tmp_path / "s.tif")
        wrong: list[int] = []
        with OpenSlideReader(str(path)) as slide:
            expected = by_openslide(path, (0, 0), 0, (700, 500))

            def read(seed: int) -> None:
                rng = np.random.default_rng(seed)
                for _ in range(30):
                    x, y = rng.integers(0, 600), rng.integers(0, 400)
                    pixels = slide.read_region((int(x), int(y)), 0, (100, 100))
                    if not np.array_equal(pixels, expected[y : y + 100, x : x + 100]):
                        wrong.append(seed)

            threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert wrong == []

    def test_a_closed_file_is_not_read(self, tmp_path: Path) -> None:
        slide = OpenSlideReader(str(write(tmp_path / "s.tif")))
        tiles: JpegTiles = slide._tiles
        slide.close()
        tiles.close()
        assert tiles.read((0, 0), 0, (9, 9)) is None

    @pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files by /proc")
    def test_a_slide_that_nobody_closes_holds_no_file(self, tmp_path: Path) -> None:
        path = write(tmp_path / "s.tif")
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            OpenSlideReader(str(path)).read_region((0, 0), 0, (9, 9))
        gc.collect()
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1

    def test_what_is_changed_by_the_caller_is_not_what_is_kept(self, tmp_path: Path) -> None:
        path = write(tmp_path / "s.tif")
        with OpenSlideReader(str(path)) as slide:
            slide.read_region((0, 0), 0, (112, 112))[:] = 0
            np.testing.assert_array_equal(
                slide.read_region((0, 0), 0, (112, 112)), by_openslide(path, (0, 0), 0, (112, 112))
            )
