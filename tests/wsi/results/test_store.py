from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from wsi.errors import ForeignStoreError, StoreError
from wsi.placement import Placement
from wsi.results import store as store_module
from wsi.results.folder import LocalFolder
from wsi.results.heatmap import Heatmap
from wsi.results.store import PACK, HeatmapSpec, HeatmapStore

SPEC = HeatmapSpec(("normal", "tumor"), (5, 7), 3, 128, 128, 299, 0.25, "abc")
CELLS = np.array([[3, 4], [4, 5]])
SCORES = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)


def test_a_chunk_comes_back_and_the_rest_is_nan(tmp_path: Path) -> None:
    store = HeatmapStore.create(tmp_path / "heatmap.zarr", SPEC)
    assert store.chunks_done() == set()
    store.write_chunk((1, 1), CELLS, SCORES)
    assert store.chunks_done() == {(1, 1)}
    heatmap = HeatmapStore.open(tmp_path / "heatmap.zarr").read(1)
    expected = np.full((5, 7), np.nan, np.float32)
    expected[3, 4], expected[4, 5] = 0.1, 0.8
    np.testing.assert_array_equal(heatmap.scores, expected)
    assert heatmap.placement == Placement(128, 128)
    assert heatmap.scored == 2
    assert heatmap.maximum == pytest.approx(0.8)


def test_an_unreadable_chunk_is_written_so_that_it_is_not_tried_for_ever(tmp_path: Path) -> None:
    store = HeatmapStore.create(tmp_path / "heatmap.zarr", SPEC)
    store.write_chunk((0, 0), np.array([[0, 0]]), np.full((1, 2), np.nan, np.float32))
    assert store.chunks_done() == {(0, 0)}
    assert np.isnan(store.read(0).maximum)


def test_other_programs_can_read_it(tmp_path: Path) -> None:
    HeatmapStore.create(tmp_path / "heatmap.zarr", SPEC).write_chunk((1, 1), CELLS, SCORES)
    array = zarr.open_array(tmp_path / "heatmap.zarr", mode="r")
    assert array.metadata.zarr_format == 3
    assert array.attrs["stride_level0"] == [128, 128]
    assert array.attrs["classes"] == ["normal", "tumor"]


def test_creating_again_goes_on_with_the_same_run_only(tmp_path: Path) -> None:
    path = tmp_path / "heatmap.zarr"
    HeatmapStore.create(path, SPEC).write_chunk((1, 1), CELLS, SCORES)
    assert HeatmapStore.create(path, SPEC).chunks_done() == {(1, 1)}
    with pytest.raises(StoreError, match="--overwrite"):
        HeatmapStore.create(path, replace(SPEC, fingerprint="other"))
    HeatmapStore.discard(path, unless="abc")
    assert path.exists()
    HeatmapStore.discard(path, unless="other")
    assert not path.exists()


def test_what_is_no_heatmap_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a heatmap, or its metadata is damaged"):
        HeatmapStore.open(tmp_path)


def test_heatmap_refuses_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match="must lie in 0..1"):
        Heatmap(np.array([[1.5]], np.float32), Placement(1, 1))
    with pytest.raises(ValueError, match="2-d float32"):
        Heatmap(np.zeros((2, 2)), Placement(1, 1))  # type: ignore[arg-type]


class EndOfProcessError(Exception):
    """The process ends at this point."""


class TestPack:
    """A store of 2 x 3 chunks; one is missing, one was tried in vain."""

    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HeatmapStore:
        monkeypatch.setattr(store_module, "PACK_FROM", 3)
        store = HeatmapStore.create(tmp_path / "h.zarr", SPEC)
        store.write_chunk((1, 1), CELLS, SCORES)
        store.write_chunk((0, 0), np.array([[0, 0]]), np.full((1, 2), np.nan, np.float32))
        store.write_chunk((0, 2), np.array([[1, 6]]), np.array([[0.25, 0.75]], np.float32))
        return store

    def files(self, tmp_path: Path) -> list[str]:
        return LocalFolder(tmp_path / "h.zarr").files()

    def test_the_same_values_and_metadata_in_two_files(self, tmp_path: Path, store: HeatmapStore) -> None:
        before, facts = [store.read(i).scores for i in (0, 1)], (store.spec, store.attributes)
        store.pack()
        assert self.files(tmp_path) == ["c.0.0.0", "zarr.json"]
        again = HeatmapStore.open(tmp_path / "h.zarr")
        for one in (store, again):
            for i in (0, 1):
                np.testing.assert_array_equal(one.read(i).scores, before[i])
            assert (one.spec, one.attributes) == facts
            assert one.chunks_done() == {
                (r, c) for r in range(2) for c in range(3)
            }  # nothing is scored again
        array = zarr.open_array(tmp_path / "h.zarr", mode="r")  # as other programs read it
        np.testing.assert_array_equal(array[1], before[1])

    def test_it_is_the_same_bytes_each_time(self, tmp_path: Path, store: HeatmapStore) -> None:
        shutil.copytree(tmp_path / "h.zarr", tmp_path / "copy.zarr")
        store.pack()
        HeatmapStore.open(tmp_path / "copy.zarr").pack()
        assert (tmp_path / "h.zarr" / PACK).read_bytes() == (tmp_path / "copy.zarr" / PACK).read_bytes()

    def test_few_chunks_stay_as_they_are(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: HeatmapStore
    ) -> None:
        monkeypatch.setattr(store_module, "PACK_FROM", 4)
        before = self.files(tmp_path)
        store.pack()
        assert self.files(tmp_path) == before

    @pytest.mark.parametrize("step", [1, 2, 3])
    def test_a_kill_at_any_step_loses_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: HeatmapStore, step: int
    ) -> None:
        expected = store.read(1).scores
        shutil.copytree(tmp_path / "h.zarr", tmp_path / "copy.zarr")
        HeatmapStore.open(tmp_path / "copy.zarr").pack()
        steps = []

        def stop(really: Any) -> Any:
            def change(folder: LocalFolder, name: str, *rest: Any, **options: Any) -> None:
                steps.append(name)
                if len(steps) == step:
                    raise EndOfProcessError
                really(folder, name, *rest, **options)

            return change

        with monkeypatch.context() as patch:
            patch.setattr(LocalFolder, "write", stop(LocalFolder.write))
            patch.setattr(LocalFolder, "delete", stop(LocalFolder.delete))
            with pytest.raises(EndOfProcessError):
                store.pack()
        np.testing.assert_array_equal(HeatmapStore.open(tmp_path / "h.zarr").read(1).scores, expected)
        again = HeatmapStore.create(tmp_path / "h.zarr", SPEC)
        assert {(0, 0), (0, 2), (1, 1)} <= again.chunks_done()
        again.pack()
        assert self.files(tmp_path) == ["c.0.0.0", "zarr.json"]
        for name in self.files(tmp_path):
            assert (tmp_path / "h.zarr" / name).read_bytes() == (tmp_path / "copy.zarr" / name).read_bytes()

    @pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
    def test_damage_is_said_and_made_again(
        self, tmp_path: Path, store: HeatmapStore, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        store.pack()
        path = tmp_path / "h.zarr" / PACK
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 16
        path.write_bytes(content if damage == "bit" else content[:-7])
        if damage == "gone":
            path.unlink()
        with pytest.raises(ForeignStoreError, match="h.zarr is broken"):  # never a silent NaN
            HeatmapStore.open(tmp_path / "h.zarr").read(1)
        again = HeatmapStore.create(tmp_path / "h.zarr", SPEC)
        assert again.chunks_done() == set()
        assert "it is made again" in caplog.text

    def test_a_process_that_is_late_writes_nothing_more(self, tmp_path: Path, store: HeatmapStore) -> None:
        late = HeatmapStore.open(tmp_path / "h.zarr")
        store.pack()
        late.write_chunk((1, 1), CELLS, SCORES)
        assert self.files(tmp_path) == ["c.0.0.0", "zarr.json"]

    def test_a_store_that_was_opened_before_sees_what_another_packed(
        self, tmp_path: Path, store: HeatmapStore
    ) -> None:
        """Never a silent NaN, and never NaN written over what is good."""
        expected = store.read(1).scores
        late, later = HeatmapStore.open(tmp_path / "h.zarr"), HeatmapStore.open(tmp_path / "h.zarr")
        store.pack()
        before = (tmp_path / "h.zarr" / PACK).read_bytes()
        np.testing.assert_array_equal(late.read(1).scores, expected)
        later.pack()
        np.testing.assert_array_equal(later.read(1).scores, expected)
        assert (tmp_path / "h.zarr" / PACK).read_bytes() == before

    def test_it_is_packed_by_another_while_this_one_reads(
        self, tmp_path: Path, store: HeatmapStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected, slow = store.read(1).scores, HeatmapStore.open(tmp_path / "h.zarr")
        really = HeatmapStore.chunks_done

        def and_then_the_other(self: HeatmapStore) -> set[tuple[int, int]]:
            done = really(self)
            monkeypatch.setattr(HeatmapStore, "chunks_done", really)
            store.pack()
            return done

        monkeypatch.setattr(HeatmapStore, "chunks_done", and_then_the_other)
        slow.pack()
        np.testing.assert_array_equal(HeatmapStore.open(tmp_path / "h.zarr").read(1).scores, expected)

    def test_cells_that_all_could_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_module, "PACK_FROM", 1)
        store = HeatmapStore.create(tmp_path / "n.zarr", SPEC)
        store.write_chunk((0, 0), np.array([[0, 0]]), np.full((1, 2), np.nan, np.float32))
        store.pack()
        assert store.packed
        assert np.isnan(HeatmapStore.open(tmp_path / "n.zarr").read(1).scores).all()
        assert HeatmapStore.create(tmp_path / "n.zarr", SPEC).packed  # it is whole


def test_more_scores_than_any_slide_has_are_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    """A damaged number in the metadata: 144 GiB would be asked for, or given where there is that much."""
    HeatmapStore.create(tmp_path / "h.zarr", HeatmapSpec(("a", "b"), (9, 7), 2, 128, 128, 299, 0.25, "f"))
    path = tmp_path / "h.zarr" / "zarr.json"
    facts = json.loads(path.read_text())
    facts["shape"][2] = 2147483648
    path.write_text(json.dumps(facts))
    with pytest.raises(ForeignStoreError, match="more than any slide has"):
        HeatmapStore.open(tmp_path / "h.zarr")
