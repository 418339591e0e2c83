"""The contract of `Folder`, for a disk and for a URL; what only one of them can do is tested apart."""

from __future__ import annotations

import hashlib
import os
import pickle
import uuid
from pathlib import Path

import numpy as np
import pytest

from wsi.errors import ConfigError, ForeignStoreError, StoreError
from wsi.files import partial_of
from wsi.results.box_store import BoxStore
from wsi.results.folder import Folder, LocalFolder, RemoteFolder, folder_at
from wsi.results.store import HeatmapSpec, HeatmapStore

SPEC = HeatmapSpec(("normal", "tumor"), (5, 7), 3, 128, 64, 299, 0.25, "abc")


@pytest.fixture(params=["disk", "memory", "file URL"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    places = {
        "disk": str(tmp_path / "out"),
        "memory": f"memory://{uuid.uuid4()}/out",
        "file URL": f"file://{tmp_path}/out",
    }
    return folder_at(places[request.param])


class TestContract:
    def test_what_is_written_is_read(self, folder: Folder) -> None:
        assert not folder.exists()
        folder.write("a/b.txt", "µm\n")
        assert folder.read("a/b.txt") == b"\xc2\xb5m\n"
        assert (folder.exists(), folder.exists("a"), folder.exists("a/b.txt")) == (True, True, True)
        assert not folder.exists("b.txt")
        assert folder.size("a/b.txt") == 4
        folder.write("a/b.txt", b"new", durable=True)
        assert folder.inside("a").read("b.txt") == b"new"

    def test_a_missing_file_is_said_to_be_missing(self, folder: Folder) -> None:
        for ask in (folder.read, folder.size, folder.sha256):
            with pytest.raises(FileNotFoundError):
                ask("none.txt")

    def test_lists_name_files_below_and_folders_directly_in_it(self, folder: Folder) -> None:
        assert (folder.files(), folder.folders()) == ([], [])
        for name in ("z.txt", "b/x/1.txt", "b/slide.json", "a/slide.json", "slide.json", "bb/2.txt"):
            folder.write(name, name)
        assert folder.files() == [
            "a/slide.json",
            "b/slide.json",
            "b/x/1.txt",
            "bb/2.txt",
            "slide.json",
            "z.txt",
        ]
        assert folder.files("b") == ["b/slide.json", "b/x/1.txt"]  # not bb
        assert folder.folders() == ["a", "b", "bb"]
        assert folder.holding("slide.json") == ["a", "b"]

    def test_what_is_deleted_is_gone_and_deleting_it_again_is_no_error(self, folder: Folder) -> None:
        for name in ("a.txt", "b/1.txt", "b/2.txt", "bb/3.txt"):
            folder.write(name, name)
        for _ in range(2):
            folder.delete("a.txt")
            folder.delete("b")
        assert folder.files() == ["bb/3.txt"]
        folder.delete("")
        assert not folder.exists()

    def test_of_two_who_create_a_file_one_does(self, folder: Folder) -> None:
        assert folder.create("a/1", "first")
        assert not folder.create("a/1", "second")
        assert folder.read("a/1") == b"first"
        folder.write("b", "a file")
        folder.inside("a").tidy()
        assert folder.files() == ["a/1", "b"]
        folder.delete("a/1")
        folder.inside("a").tidy()
        assert not folder.exists("a")
        assert folder.create("a/1", "again")

    def test_a_folder_is_moved_whole(self, folder: Folder) -> None:
        folder.write("reviewed/a.txt", "1")
        folder.write("reviewed/b/c.txt", "2")
        folder.move("reviewed", "reviewed-before-1")
        assert folder.files() == ["reviewed-before-1/a.txt", "reviewed-before-1/b/c.txt"]

    def test_a_record_says_what_changed(self, folder: Folder) -> None:
        for name in ("a", "b/1", "b/2"):
            folder.write(name, f"text of {name}")
        record = folder.record(["a", "b"])
        assert record["b/2"] == (11, hashlib.sha256(b"text of b/2").hexdigest())
        assert list(record) == ["a", "b/1", "b/2"]
        assert folder.changes(record) == {}
        folder.write("a", "text of A")
        folder.write("b/1", "text of b")
        folder.delete("b/2")
        assert folder.changes(record) == {
            "a": "changed after it was written",
            "b/1": "holds 9 bytes instead of 11",
            "b/2": "is missing",
        }
        with pytest.raises(StoreError, match="none"):
            folder.record(["none"])

    def test_names_in_messages(self, folder: Folder) -> None:
        below = folder.inside("a").inside("b")
        assert str(below).endswith("out/a/b")
        assert below.at("c.txt") == f"{below}/c.txt"
        assert (below.name, below.parent.name, below.parent.parent.name) == ("b", "a", "out")

    def test_it_travels_to_another_process(self, folder: Folder) -> None:
        folder.write("a.txt", "1")
        assert pickle.loads(pickle.dumps(folder)).read("a.txt") == b"1"

    def test_json_comes_back_and_nan_is_refused(self, folder: Folder) -> None:
        folder.write_json("a.json", {"ü": [1, None]})
        assert folder.read_json("a.json") == {"ü": [1, None]}
        with pytest.raises(ValueError, match="JSON"):
            folder.write_json("a.json", float("nan"))
        assert folder.read_json("a.json") == {"ü": [1, None]}

    def test_stores_go_on_where_they_were(self, folder: Folder) -> None:
        cells, scores = np.array([[3, 4], [4, 5]]), np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
        HeatmapStore.create(folder.inside("h.zarr"), SPEC).write_chunk((1, 1), cells, scores)
        store = HeatmapStore.create(folder.inside("h.zarr"), SPEC)
        assert store.chunks_done() == {(1, 1)}
        assert store.spec == SPEC
        assert store.read(1).scores[4, 5] == np.float32(0.8)
        assert folder.files("h.zarr") == ["h.zarr/c/0/1/1", "h.zarr/zarr.json"]
        BoxStore.create(folder.inside("c.boxes"), "abc")
        with pytest.raises(ForeignStoreError, match="another slide, model or settings"):
            BoxStore.create(folder.inside("c.boxes"), "other")
        folder.write("h.zarr/c/0/1/1", folder.read("h.zarr/c/0/1/1")[:-3])
        assert (
            HeatmapStore.create(folder.inside("h.zarr"), SPEC).chunks_done() == set()
        )  # damaged: made again


class TestDisk:
    def test_a_file_that_is_being_written_is_in_no_list(self, tmp_path: Path) -> None:
        folder = LocalFolder(tmp_path)
        folder.write("a/1", "1")
        partial_of(tmp_path / "a" / "2").write_text("2")
        assert folder.files() == ["a/1"]

    def test_what_lies_behind_a_link_stays(self, tmp_path: Path) -> None:
        LocalFolder(tmp_path / "other").write("1", "1")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "link").symlink_to(tmp_path / "other")
        out = LocalFolder(tmp_path / "out")
        out.delete("link/1")
        out.inside("link").delete("")
        assert (tmp_path / "other" / "1").exists()
        with pytest.raises(ForeignStoreError, match="is a link"):
            out.inside("link").refuse_link()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_without_the_right_to_write(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(StoreError, match="Permission denied"):
            LocalFolder(tmp_path).write("a", "1")


class TestUrl:
    def test_a_protocol_that_nothing_serves(self) -> None:
        with pytest.raises(ConfigError, match=r"nothing://b/run is no place for results \(.*nothing"):
            folder_at("nothing://b/run")

    def test_a_back_end_that_is_not_installed_is_named_with_the_command(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import fsspec

        def missing(*_: object, **__: object) -> None:
            raise ImportError("Install s3fs to access S3")

        monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
        with pytest.raises(
            ConfigError, match=r"s3://b/run needs s3fs, which is not installed \(pip install s3fs\)"
        ):
            folder_at("s3://b/run")

    def test_a_url_that_can_only_be_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = RemoteFolder("memory://read/run")

        def cannot(*_: object) -> None:
            raise NotImplementedError

        monkeypatch.setattr(folder._store, "pipe_file", cannot)
        with pytest.raises(
            StoreError, match=r"cannot write memory://read/run/a: files of this kind of URL can only"
        ):
            folder.write("a", "1")

    def test_a_server_that_is_not_there(self) -> None:
        with pytest.raises(
            StoreError, match=r"cannot write http://localhost:1/run/a \(Cannot connect to host"
        ):
            folder_at("http://localhost:1/run").write("a", "1")

    def test_passwords_and_signatures_are_in_no_message(self) -> None:
        folder = RemoteFolder("memory://user:secret@host/run")
        assert "secret" not in f"{folder} {folder.at('a')}"

    def test_what_a_back_end_raises_becomes_one_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = RemoteFolder("memory://broken/run")

        def fails(*_: object, **__: object) -> None:
            raise RuntimeError("Access denied\nand a second line")

        for name in ("pipe_file", "cat_file", "find", "info"):
            monkeypatch.setattr(folder._store, name, fails)
        with pytest.raises(
            StoreError, match=r"cannot write memory://broken/run/a \(Access denied\); see that"
        ):
            folder.write("a", "1")
        for ask in (folder.read, folder.files, folder.size):
            with pytest.raises(OSError, match="Access denied"):
                ask("a")
