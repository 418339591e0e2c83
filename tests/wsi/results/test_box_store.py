"""Boxes on disk: what comes back, and what is refused or made again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from wsi.errors import ForeignStoreError, StoreError
from wsi.files import discard_partials
from wsi.marks.boxes import Boxes, joined
from wsi.results.box_store import SPEC, BoxStore

DETECTIONS = Boxes(
    np.array([[200_000.25, 3, 200_010.5, 7], [1, 2, 3, 5]]),
    np.array([1, 0]),
    np.array([0.9, 0.125], np.float32),
)


@pytest.fixture
def store(tmp_path: Path) -> BoxStore:
    made = BoxStore.create(tmp_path / "a.boxes", "abc")
    made.write_chunk(3, DETECTIONS, np.array([5, 7]))
    return made


def test_a_chunk_comes_back_to_the_last_bit(store: BoxStore) -> None:
    chunk = BoxStore.create(store.folder, "abc").read_chunk(3)
    assert chunk is not None
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(chunk[0], name), getattr(DETECTIONS, name))
    assert chunk[1].tolist() == [5, 7]
    assert store.read_chunk(0) is None


def test_a_chunk_without_boxes_is_not_a_missing_one(store: BoxStore) -> None:
    store.write_chunk(0, joined([]), np.array([], np.int64))
    chunk = store.read_chunk(0)
    assert chunk is not None
    assert (len(chunk[0]), len(chunk[1])) == (0, 0)


def test_a_file_holds_the_arrays_that_earlier_versions_wrote(store: BoxStore) -> None:
    """Their names, order and types, so that a run goes on with the chunks of another version."""
    with np.load(store.folder.path / "00003.npz") as arrays:
        assert [(name, arrays[name].dtype.name) for name in arrays] == [
            ("boxes", "float64"),
            ("scores", "float32"),
            ("labels", "int64"),
            ("unreadable", "int64"),
        ]
        assert arrays["scores"].tolist() == pytest.approx([0.9, 0.125])
        assert arrays["labels"].tolist() == [1, 0]


def test_boxes_of_a_person_are_not_stored_as_a_detector_s(store: BoxStore) -> None:
    with pytest.raises(ValueError, match="have no scores"):
        store.write_chunk(0, Boxes(DETECTIONS.boxes, DETECTIONS.labels), np.array([], np.int64))
    assert store.read_chunk(0) is None


def test_the_same_boxes_give_the_same_bytes(store: BoxStore) -> None:
    before = (store.folder.path / "00003.npz").read_bytes()
    store.write_chunk(3, DETECTIONS, np.array([5, 7]))
    assert (store.folder.path / "00003.npz").read_bytes() == before


def test_another_run_s_store_is_refused_and_can_be_discarded(store: BoxStore) -> None:
    with pytest.raises(ForeignStoreError, match=r"another slide, model or settings; .*--overwrite"):
        BoxStore.create(store.folder, "other")
    BoxStore.discard(store.folder, unless="abc")
    assert store.folder.exists()
    BoxStore.discard(store.folder, unless="other")
    assert not store.folder.exists()


def test_a_link_is_not_written_through(store: BoxStore, tmp_path: Path) -> None:
    (tmp_path / "link.boxes").symlink_to(store.folder.path)
    with pytest.raises(ForeignStoreError, match="is a link"):
        BoxStore.create(tmp_path / "link.boxes", "abc")
    BoxStore.discard(tmp_path / "link.boxes", unless="other")
    assert store.read_chunk(3) is not None


def test_whatever_byte_is_changed_the_chunk_is_made_again_or_as_it_was(
    store: BoxStore, caplog: pytest.LogCaptureFixture
) -> None:
    """In the zip's headers, in an array's header, in the boxes: never a traceback, never other boxes than were written."""
    path = store.folder.path / "00003.npz"
    whole = path.read_bytes()
    again = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        caplog.clear()
        chunk = store.read_chunk(3)
        if chunk is None:
            assert "was damaged" in caplog.text
            again += 1
            continue
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(chunk[0], name), getattr(DETECTIONS, name))
        assert chunk[1].tolist() == [5, 7]
    assert again > len(whole) / 2


def test_a_folder_that_a_killed_run_had_only_made_is_a_new_store(tmp_path: Path) -> None:
    (tmp_path / "a.boxes").mkdir()
    BoxStore.create(tmp_path / "a.boxes", "abc").write_chunk(0, DETECTIONS, np.array([], np.int64))
    assert BoxStore.create(tmp_path / "a.boxes", "abc").read_chunk(0) is not None
    (tmp_path / "a.boxes" / SPEC).unlink()  # chunks of nobody knows what
    with pytest.raises(ForeignStoreError):
        BoxStore.create(tmp_path / "a.boxes", "abc")


def test_a_cut_chunk_is_made_again(store: BoxStore) -> None:
    path = store.folder.path / "00003.npz"
    whole = path.read_bytes()
    for size in (0, 10, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert store.read_chunk(3) is None


def test_a_chunk_that_cannot_be_read_now_is_kept(store: BoxStore) -> None:
    (store.folder.path / "00004.npz").mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        store.read_chunk(4)


def test_what_a_killed_process_began_is_removed(store: BoxStore, tmp_path: Path) -> None:
    left, living = (store.folder.path / f".00004.npz.{number}.partial" for number in (999999, os.getpid()))
    left.write_bytes(b"half")
    living.write_bytes(b"half")
    discard_partials(tmp_path)
    assert not left.exists()
    assert living.exists()
    assert (store.folder.path / SPEC).exists()
