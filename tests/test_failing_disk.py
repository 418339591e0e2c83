"""Disks that fail, caches that cannot be written, links, two processes at one file: said, and nothing good is lost."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
import zarr
from safetensors.torch import save_file
from torch import nn

import wsi.files
from models.engines import EngineConfig, Models
from models.engines import openvino as engine_module
from models.engines.openvino import OpenVinoEngine
from pipelines.camelyon16.read.results import discard_changed
from tests.slides import card, coordinates, write_pyramid
from wsi.errors import ConfigError, ForeignStoreError, ModelError
from wsi.files import discard_partials, file_sha256, flush, partial_of, replacing, write_text
from wsi.results.folder import LocalFolder
from wsi.results.store import HeatmapSpec, HeatmapStore
from wsi.slides.source import SlideSource

SPEC = HeatmapSpec(("normal", "tumor"), (5, 7), 4, 128, 128, 299, 0.25, "f")


def filled(path: Path) -> HeatmapStore:
    store = HeatmapStore.create(path, SPEC)
    cells = np.array([(r, c) for r in range(4) for c in range(4)])
    store.write_chunk((0, 0), cells, np.full((16, 2), 0.5, np.float32))
    return store


class TestHeatmap:
    @pytest.mark.parametrize("raised", [OSError(errno.EIO, "Input/output error"), MemoryError()])
    def test_a_chunk_that_cannot_be_read_now_is_not_thrown_away(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException
    ) -> None:
        filled(tmp_path / "h.zarr")

        class Fails:
            shape, chunks, shards = (2, 5, 7), (2, 4, 4), None
            attrs = SPEC.attributes()

            def __getitem__(self, key: Any) -> Any:
                raise raised

        monkeypatch.setattr(HeatmapStore, "open", classmethod(lambda cls, folder: cls(folder, Fails())))  # type: ignore[arg-type]
        expected = MemoryError if isinstance(raised, MemoryError) else ForeignStoreError
        with pytest.raises(
            expected, match=None if expected is MemoryError else r"c/0/0/0 cannot be read \(Input"
        ):
            HeatmapStore.create(tmp_path / "h.zarr", SPEC)
        assert (tmp_path / "h.zarr" / "c" / "0" / "0" / "0").is_file()

    def test_another_process_that_makes_the_store_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The other one's store appears after ours was not found there; its chunk must stay."""
        filled(tmp_path / "theirs" / "h.zarr")
        create_array = zarr.create_array

        def late(*args: Any, **options: Any) -> Any:
            shutil.copytree(tmp_path / "theirs" / "h.zarr", tmp_path / "h.zarr")
            return create_array(*args, **options)

        monkeypatch.setattr(zarr, "create_array", late)
        store = HeatmapStore.create(tmp_path / "h.zarr", SPEC)
        assert store.chunks_done() == {(0, 0)}
        assert sorted(p.name for p in tmp_path.iterdir()) == ["h.zarr", "theirs"]
        shutil.rmtree(tmp_path / "h.zarr")
        with pytest.raises(ForeignStoreError, match="another slide, model or settings"):
            HeatmapStore.create(tmp_path / "h.zarr", replace(SPEC, fingerprint="ours"))

    def test_what_a_killed_process_began_is_removed(self, tmp_path: Path) -> None:
        ours = partial_of(tmp_path / "h.zarr")
        dead = tmp_path / ".h.zarr.99999999.partial"
        for folder in (ours, dead):
            (folder / "c").mkdir(parents=True)
        discard_partials(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == [ours.name]

    def test_what_lies_behind_a_link_is_not_removed(self, tmp_path: Path) -> None:
        """A record that finds another heatmap behind a link must not take its chunks for changed ones of its own."""
        filled(tmp_path / "other.zarr")
        out = tmp_path / "out"
        out.mkdir()
        (out / "heatmap.zarr").symlink_to(tmp_path / "other.zarr")
        record = {"heatmap.zarr/c/0/0/0": [5, "x"], "heatmap.zarr/zarr.json": [5, "x"]}
        assert discard_changed(LocalFolder(out), {"files": record})
        assert (tmp_path / "other.zarr" / "c" / "0" / "0" / "0").is_file()
        assert (tmp_path / "other.zarr" / "zarr.json").is_file()


class TestFlush:
    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
    def test_a_disk_that_cannot_do_it_for_a_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        def fails(handle: int) -> None:
            raise OSError(number, "no")

        monkeypatch.setattr(os, "fsync", fails)
        flush(tmp_path)
        (tmp_path / "a").write_text("")
        with pytest.raises(OSError, match="no"):
            flush(tmp_path / "a")

    def test_a_disk_that_fails_is_said_of_a_folder_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(handle: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="Input/output"):
            flush(tmp_path)

    def test_windows_needs_a_handle_that_may_write(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened: list[int] = []
        really = os.open

        def noting(path: Path, flags: int) -> int:
            opened.append(flags)
            return really(path, flags)

        (tmp_path / "a").write_text("")
        monkeypatch.setattr(wsi.files, "fcntl", None)
        monkeypatch.setattr(os, "open", noting)
        flush(tmp_path / "a")
        flush(tmp_path)  # there is no handle for a folder there
        assert opened == [os.O_RDWR]


class TestIdentity:
    def test_bytes_are_told_while_a_file_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(bytes(10_000_000))
        told: list[int] = []
        digest = file_sha256(tmp_path / "a", told.append)
        assert sum(told) == 10_000_000
        assert len(told) > 2
        import hashlib

        assert digest == hashlib.sha256(bytes(10_000_000)).hexdigest()

    def test_all_of_a_slide_is_told_also_where_its_hash_was_kept(self, tmp_path: Path) -> None:
        path = write_pyramid(tmp_path / "s.tif", coordinates())
        ends = []
        for _ in range(2):
            told: list[tuple[int, int]] = []
            SlideSource(str(path)).identity(lambda done, total: told.append((done, total)))  # noqa: B023
            ends.append(told[-1])
        assert ends == [(path.stat().st_size, path.stat().st_size)] * 2


class Mean(nn.Module):
    """A network of one line, quick to convert: the second class's score is the patch's mean."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        mean = pixels.float().mean(dim=(1, 2, 3)) / 255
        return torch.stack([1 - mean, mean], dim=1)


class TestConvertedModel:
    @pytest.fixture
    def models(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Models:
        import models.forms.build

        monkeypatch.setattr(models.forms.build, "build_network", lambda folders, orientations: Mean())
        return Models((tmp_path,), (card(),))

    def scores(self, models: Models) -> float:
        from wsi.slides.blocks import PatchBlock

        size = models.card.patch_px
        pixels = np.full((size, size, 3), 51, np.uint8)
        block = PatchBlock(pixels, np.zeros((1, 2), np.int64), size)
        (scores,) = OpenVinoEngine(models, EngineConfig(precision="fp32")).score([block])
        return float(scores[0, 1])

    def test_a_cache_that_is_a_file_costs_a_conversion_only(
        self,
        models: Models,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        (tmp_path / "cache").write_text("a file")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert self.scores(models) == pytest.approx(0.2, abs=1e-3)
        assert "cannot keep the converted model in" in caplog.text
        assert "it is for this run only" in caplog.text

    def test_nowhere_to_write_is_one_sentence(
        self, models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise RuntimeError("Check 'file' failed at serialize.cpp:\nCan't open file")

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(ov, "save_model", full)
        with pytest.raises(
            ConfigError, match=r"can be written neither to .*cache.* nor to .* \(Can't open file\); free"
        ):
            self.scores(models)

    def test_a_network_that_openvino_does_not_know(
        self, models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """It is not the disk's fault, and converting it once more would not help."""
        calls = []

        def fails(*_: object, **__: object) -> None:
            calls.append(1)
            raise RuntimeError("No conversion rule found for operations: aten::new")

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(engine_module.ov, "convert_model", fails)
        with pytest.raises(
            ModelError, match=r"cannot be converted for OpenVINO \(No conversion rule .*; use --engine torch"
        ):
            self.scores(models)
        assert calls == [1]


def test_a_waiting_block_is_not_left_alone_when_telling_fails() -> None:
    """The queue's thread calls `put`; whoever waits for the block must come to an end."""

    def broken(count: int) -> None:
        raise BrokenPipeError

    answer = engine_module._Answer(2, 2, 1, broken)
    with pytest.raises(BrokenPipeError):
        answer.put(0, np.ones((2, 2), np.float32))
    assert answer.result().tolist() == [[1, 1], [1, 1]]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_new_file_is_for_whom_the_mask_says(tmp_path: Path) -> None:
    """safetensors makes files of mode 600: a model that a colleague cannot read."""
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a") as partial:
            save_file({"x": torch.zeros(1)}, partial)
            assert partial.stat().st_mode & 0o777 == 0o600
        write_text(tmp_path / "b", "")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o640, 0o640]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
