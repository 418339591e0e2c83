"""Copies of remote slides: fetched once, kept while they are used, removed when room is needed."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.slides import coordinates, write_pyramid
from wsi.errors import SlideError
from wsi.slides.readers.tiffslide import TiffSlideReader
from wsi.slides.source import SlideSource
from wsi.slides.staging import Staged, _lock, make_room, staging_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def put(name: str, content: bytes) -> str:
    url = f"memory://staging/{name}"
    with fsspec.open(url, "wb") as file:
        file.write(content)
    return url


def copies() -> list[str]:
    return sorted(p.name for p in staging_folder().glob("*/*"))


def test_it_is_fetched_once_and_again_when_it_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    url = put("a.svs", b"first")
    first, second = Staged(url), Staged(url)
    assert first.path == second.path
    assert first.path.read_bytes() == b"first"
    assert first.path.stat().st_ino == second.path.stat().st_ino
    assert os.stat(staging_folder()).st_mode & 0o077 == 0  # slides of patients, for their user alone
    time.sleep(0.01)
    put("a.svs", b"second")
    assert Staged(url).path.read_bytes() == b"second"


def test_room_is_made_by_removing_what_was_not_used_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIDEWRIGHT_STAGING_GB", str(250e-9))
    urls = [put(f"{i}.svs", bytes([i]) * 100) for i in range(4)]
    for i in (0, 1):
        copy = Staged(urls[i])
        copy.release()
        os.utime(copy.path.parent, (1000 + i, 1000 + i))
    again = Staged(urls[0])  # used now, and so the one that was used last
    Staged(urls[2]).release()
    assert copies() == ["0.svs", "2.svs"]
    again.release()


def test_copies_in_use_stay_and_the_lack_of_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIDEWRIGHT_STAGING_GB", str(150e-9))
    held = Staged(put("held.svs", b"x" * 100))
    with pytest.raises(
        SlideError, match="has no room for a slide of .* set SLIDEWRIGHT_STAGING_GB, or pass --stream"
    ):
        Staged(put("more.svs", b"y" * 100))
    assert held.path.read_bytes() == b"x" * 100
    held.release()
    held.release()
    Staged(put("more.svs", b"y" * 100)).release()
    assert copies() == ["more.svs"]


def test_a_copy_is_free_once_its_slide_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pyramid(tmp_path / "s.tif", coordinates(600, 400))
    url = put("s.tif", path.read_bytes())
    slide = SlideSource(url).open()
    monkeypatch.setenv("SLIDEWRIGHT_STAGING_GB", str((path.stat().st_size + 50) / 1e9))
    with pytest.raises(SlideError, match="has no room"):
        Staged(put("b.svs", b"z" * 100))
    slide.close()
    Staged(put("b.svs", b"z" * 100)).release()
    assert copies() == ["b.svs"]


def test_what_cannot_be_fetched_is_one_sentence() -> None:
    with pytest.raises(SlideError, match=r"memory://staging/none\.svs cannot be fetched \(.*\); check it"):
        Staged("memory://staging/none.svs")
    with pytest.raises(SlideError, match=r"^memory://staging/no\.tif"):  # never the name of the copy
        SlideSource(put("no.tif", b"no slide")).open()


def test_streaming_copies_nothing_and_is_another_identity(tmp_path: Path) -> None:
    url = put("t.tif", write_pyramid(tmp_path / "t.tif", coordinates(600, 400)).read_bytes())
    with SlideSource(url, stream=True).open() as slide:
        assert isinstance(slide, TiffSlideReader)
    assert copies() == []
    assert SlideSource(url).identity() != SlideSource(url, stream=True).identity()


class TestAhead:
    def test_it_is_there_when_the_block_ends_and_may_then_be_removed(self) -> None:
        source = SlideSource(put("ahead.svs", b"slide"))
        with source.copied_ahead():
            pass
        assert copies() == ["ahead.svs"]
        (folder,) = staging_folder().iterdir()
        make_room(0, but=folder.parent)
        lock = _lock(folder, shared=False)
        assert lock is not None  # nobody holds it
        os.close(lock)

    def test_while_it_is_copied_another_slide_can_be_opened(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first copy is held up until the second one, begun later, is whole."""
        whole = threading.Event()
        get_file = MemoryFileSystem.get_file

        def slow(system: Any, remote: str, *rest: Any, **options: Any) -> Any:
            if "later" in remote:
                assert whole.wait(20)
            return get_file(system, remote, *rest, **options)

        monkeypatch.setattr(MemoryFileSystem, "get_file", slow)
        with SlideSource(put("later.svs", b"b")).copied_ahead():
            Staged(put("now.svs", b"a")).release()
            assert copies() == ["now.svs"]
            whole.set()
        assert copies() == ["later.svs", "now.svs"]

    def test_a_command_that_ends_does_not_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        end = threading.Event()
        monkeypatch.setattr(MemoryFileSystem, "get_file", lambda *rest, **options: end.wait(20))
        with pytest.raises(KeyboardInterrupt), SlideSource(put("b.svs", b"b")).copied_ahead():
            raise KeyboardInterrupt
        end.set()

    def test_a_fault_is_left_to_whoever_opens_it(self) -> None:
        source = SlideSource("memory://staging/none.svs")
        with source.copied_ahead():
            pass
        with pytest.raises(SlideError, match=r"none.svs cannot be fetched"):
            source.open()

    def test_what_needs_no_copy(self, tmp_path: Path) -> None:
        for source in (SlideSource(str(tmp_path / "a.svs")), SlideSource(put("s.svs", b"s"), stream=True)):
            with source.copied_ahead():
                pass
        assert copies() == []
