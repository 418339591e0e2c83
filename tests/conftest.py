from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from pipelines import cli
from tests.slides import coordinates, painted, write_pyramid

Run = Callable[..., tuple[int, str, str]]

settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("quick")

RED = (200, 80, 90)
PINK = (190, 150, 185)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted models go to one temporary folder per test run, never to the user's."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


@pytest.fixture
def wsi(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run ``wsi`` with words; exit code, standard output, standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["wsi", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def coordinate_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pyramid(tmp_path_factory.mktemp("slides") / "coordinates.tif", coordinates())


@pytest.fixture(scope="session")
def red_square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4608 x 3072, pink tissue with a red square at x 1280..1920, y 1024..1664 (5 x 5 cells)."""
    image = painted(4608, 3072, (512, 512, 4096, 2560), PINK)
    image[1024:1664, 1280:1920] = RED
    return write_pyramid(tmp_path_factory.mktemp("slides") / "red square.tif", image, levels=5, tile=256)


@pytest.fixture(scope="session")
def broken_tile(tmp_path_factory: pytest.TempPathFactory, red_square: Path) -> Path:
    """The red square, stored as JPEG, one 256 px tile of level 0 (x 2560, y 1536) overwritten with rubbish."""
    import tifffile

    path = tmp_path_factory.mktemp("slides") / "broken tile.tif"
    image = painted(4608, 3072, (512, 512, 4096, 2560), PINK)
    image[1024:1664, 1280:1920] = RED
    write_pyramid(path, image, levels=5, tile=256, compression="jpeg")
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        index = (1536 // 256) * (4608 // 256) + 2560 // 256
        offset, count = page.dataoffsets[index], page.databytecounts[index]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(np.random.default_rng(0).integers(0, 255, count, dtype=np.uint8).tobytes())
    return path
