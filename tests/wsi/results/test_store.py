from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from wsi.errors import StoreError
from wsi.placement import Placement
from wsi.results.heatmap import Heatmap
from wsi.results.store import HeatmapSpec, HeatmapStore

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
