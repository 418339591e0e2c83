"""A process that is ended, or refused by the disk, at every single write: the next run makes the same bytes.

Each write meets one fault, in turn; with ``EVERY_FAULT=1``, as in ``make fuzz``, each write meets every fault.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from pipelines.camelyon16.read.score import ScoreConfig, score_slide
from pipelines.renal.read.reading import RenalConfig
from pipelines.renal.read.run import report_slide
from pipelines.runs.claims import Claims
from pipelines.segment.read import SegmentConfig, segment_slide
from tests.renal_slides import readers, scattered, slide_of
from tests.slides import RednessEngine, RednessMapper, write_pyramid
from wsi.errors import StoreError
from wsi.results.folder import LocalFolder
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource

pytestmark = pytest.mark.slow
Fault = Literal["killed before", "killed in the middle", "no space", "disk error", "half written, no space"]
FAULTS: tuple[Fault, ...] = (
    "killed before",
    "killed in the middle",
    "no space",
    "disk error",
    "half written, no space",
)
REFUSED, ENDED = 3, 0


def score(slide: Path, out: Path) -> None:
    row = SlideRow(SlideSource(str(slide)))
    with Claims(LocalFolder(out)).take("s"):  # type: ignore[union-attr]
        score_slide(row, "s", RednessEngine(), out / "s", ScoreConfig(stride=128))


def report(slide: Path, out: Path) -> None:
    row = SlideRow(SlideSource(str(slide)))
    with Claims(LocalFolder(out)).take("s"):  # type: ignore[union-attr]
        report_slide(row, "s", readers(), out / "s", RenalConfig())


def segment(slide: Path, out: Path) -> None:
    row = SlideRow(SlideSource(str(slide)))
    with Claims(LocalFolder(out)).take("s"):  # type: ignore[union-attr]
        segment_slide(row, "s", RednessMapper(spacing_um=1.0, pool=4), out / "s", SegmentConfig())


def child(
    work: Callable[[Path, Path], None], slide: Path, out: Path, fault: Fault | None, number: int, count: Any
) -> None:
    """Do the work in this process with a fault at one of its writes; 3 is a refusal by one sentence."""
    if fault is not None:
        break_write(fault, number)
    else:
        count_writes(count)
    try:
        work(slide, out)
    except StoreError as error:
        os._exit(REFUSED if "\n" not in str(error) else ENDED + 1)
    os._exit(ENDED)


def writes() -> list[tuple[Any, str]]:
    """Everything by which this program changes what is on a disk."""
    return [(Path, "write_bytes"), (os, "replace"), (os, "fsync"), (Path, "mkdir"), (Path, "unlink")]


def count_writes(count: Any) -> None:
    for place, name in writes():
        real = getattr(place, name)

        def counted(*args: Any, real: Any = real, **options: Any) -> Any:
            count.value += 1
            return real(*args, **options)

        setattr(place, name, counted)


def break_write(fault: Fault, number: int) -> None:
    done = 0
    for place, name in writes():
        real = getattr(place, name)

        def broken(*args: Any, real: Any = real, name: str = name, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done - 1 != number:
                return real(*args, **options)
            if name == "write_bytes" and fault in ("killed in the middle", "half written, no space"):
                real(args[0], args[1][: len(args[1]) // 2])
            if fault.startswith("killed"):
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.EIO if fault == "disk error" else errno.ENOSPC, "made up")

        setattr(place, name, broken)


def contents(folder: Path) -> dict[str, bytes]:
    place = LocalFolder(folder)
    return {name: place.read(name) for name in place.files()}


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes that have imported everything, and run no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.full((2048, 4608, 3), 255, np.uint8)
    pixels[256:1800, 256:4352] = (240, 200, 220)
    pixels[700:1400, 640:1800] = (220, 100, 100)
    return write_pyramid(tmp_path_factory.mktemp("in") / "s.tif", pixels, levels=2)


@pytest.fixture(scope="module")
def kidney(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slide_of(tmp_path_factory.mktemp("in") / "s.tif", scattered(20, 0.4, 2), cols=2, rows=2, scar=1)


@pytest.mark.parametrize("what", ["score", "report", "segment"])
def test_every_write_may_fail(
    what: str, processes: Any, tissue: Path, kidney: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    works = {"score": (score, tissue), "report": (report, kidney), "segment": (segment, tissue)}
    work, slide = works[what]

    def run(out: Path, fault: Fault | None = None, number: int = 0) -> tuple[int, int]:
        count = processes.Value("i", 0)
        process = processes.Process(target=child, args=(work, slide, out, fault, number, count))
        process.start()
        process.join(60)
        assert process.exitcode is not None, (fault, number)
        return process.exitcode, count.value

    code, total = run(tmp_path / "whole")
    assert (code, total > 15) == (ENDED, True)
    whole, ends = contents(tmp_path / "whole"), set()
    for number in range(total):
        for fault in FAULTS if os.environ.get("EVERY_FAULT") else FAULTS[number % len(FAULTS) :][:1]:
            out = tmp_path / f"{number} {fault}"
            first = run(out, fault, number)[0]
            ends.add((fault, first))
            assert first in (ENDED, REFUSED, -signal.SIGKILL), (number, fault)
            assert run(out)[0] == ENDED, (number, fault)
            assert contents(out) == whole, (number, fault)
    assert ("killed before", -signal.SIGKILL) in ends
    assert ("no space", REFUSED) in ends
    assert ("half written, no space", REFUSED) in ends
