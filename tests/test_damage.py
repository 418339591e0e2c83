"""What is broken, cut short, hostile or changed behind our back must be said, and must never look like a result."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipelines.camelyon16.read.lesions import LesionConfig, confidence_level
from pipelines.camelyon16.read.score import ScoreConfig, score_slide
from pipelines.cli import score as score_command
from pipelines.runs.cohort import unique_names
from tests.slides import ROOT, RednessEngine, coordinates, painted, write_pyramid
from wsi.errors import AnnotationError, ConfigError, ForeignStoreError, SlideError
from wsi.files import discard_partials, write_json
from wsi.marks.own_mask import read_user_mask
from wsi.results.folder import LocalFolder
from wsi.results.store import HeatmapStore
from wsi.slides.manifest import SlideRow, read_manifest
from wsi.slides.source import SlideSource, safe_name

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def redness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_command, "find_models", lambda names: names)
    monkeypatch.setattr(score_command, "load_engine", lambda models, cfg: RednessEngine())


class TestTruncated:
    @pytest.mark.parametrize("compression", ["deflate", "jpeg"])
    @pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.92, 0.97, 0.99, 0.999])
    def test_a_tiff_cut_short_is_refused_wherever_it_ends(
        self, tmp_path: Path, share: float, compression: str
    ) -> None:
        whole = write_pyramid(tmp_path / "whole.tif", coordinates(), compression=compression)
        data = whole.read_bytes()
        path = tmp_path / "cut.tif"
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(SlideError, match=r"cut\.tif (is cut short: .*copy it again|cannot be opened)"):
            SlideSource(str(path)).open()
        SlideSource(str(whole)).open().close()

    @pytest.mark.parametrize("form", [{"bigtiff": False}, {"bigtiff": True}, {"byteorder": ">"}])
    def test_a_tiff_whose_pages_were_written_last(self, tmp_path: Path, form: dict[str, object]) -> None:
        """The file's head points beyond its end, as of many scanners' files at nearly any cut."""
        path = tmp_path / "s.tif"
        with tifffile.TiffWriter(path, **form) as tif:  # type: ignore[arg-type]
            tif.write(coordinates(320, 256), tile=(64, 64), photometric="rgb", metadata=None)
        data = bytearray(path.read_bytes())
        big, order = form.get("bigtiff", False), "big" if form.get("byteorder") == ">" else "little"
        start, size = (8, 8) if big else (4, 4)
        data[start : start + size] = (len(data) - 100).to_bytes(size, order)  # type: ignore[arg-type]
        path.write_bytes(data[:-200])
        said = rf"s.tif is cut short: its first page begins at byte {len(data) - 100:,}, and it ends at {len(data) - 200:,}"
        with pytest.raises(SlideError, match=said):
            SlideSource(str(path)).open()
        path.write_bytes(data[:6])
        with pytest.raises(SlideError, match="cut short"):
            SlideSource(str(path)).open()

    def test_a_tiff_whose_first_level_comes_last(self, tmp_path: Path) -> None:
        """Levels in rising order: what is cut off is the finest, and the others read well."""
        path = tmp_path / "s.tif"
        with tifffile.TiffWriter(path) as tif:
            for image in (coordinates(160, 120), coordinates(640, 480)):
                tif.write(image, tile=(64, 64), photometric="rgb", metadata=None)
        data = path.read_bytes()
        path.write_bytes(data[:-200])
        with pytest.raises(SlideError, match="cut short"):
            SlideSource(str(path)).open()

    def test_the_command_line_says_so_and_scores_nothing(
        self, wsi: Run, red_square: Path, tmp_path: Path, redness: None
    ) -> None:
        path = tmp_path / "cut.tif"
        path.write_bytes(red_square.read_bytes()[:-4000])
        code, _, err = wsi("score", path, "--out", tmp_path / "out")
        assert code == 1
        assert "cut short" in err
        assert not (tmp_path / "out" / "cut" / "slide.json").exists()

    def test_a_file_the_first_reader_calls_broken_is_not_given_to_a_second(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from wsi.errors import UnknownFormatError
        from wsi.slides import source

        path = write_pyramid(tmp_path / "s.tif", coordinates())

        def fails(error: SlideError) -> Callable[..., object]:
            def reader(*_: object, **__: object) -> object:
                raise error

            return reader

        monkeypatch.setattr(source, "OpenSlideReader", fails(SlideError("broken inside")))
        with pytest.raises(SlideError, match="broken inside"):
            SlideSource(str(path)).open()
        unknown = fails(UnknownFormatError("not mine"))
        monkeypatch.setattr(source, "OpenSlideReader", unknown)
        with SlideSource(str(path)).open() as slide:
            assert slide.vendor != "unknown"


class TestNames:
    @pytest.mark.parametrize(
        ("name", "safe"),
        [
            ("..", "slide"),
            (".", "slide"),
            ("", "slide"),
            ("...", "slide"),
            ("a/b", "a_b"),
            ("a\\b", "a_b"),
            ("con", "con_"),
            ("LPT1", "LPT1_"),
            ("evaluation", "evaluation_"),
            ("case 1.", "case 1"),
            ("病理 1", "病理 1"),
            ("a\nb", "a_b"),
        ],
    )
    def test_a_name_is_one_folder(self, name: str, safe: str) -> None:
        assert safe_name(name) == safe

    @pytest.mark.parametrize("file", ["...tif", "..tif", "..ome.tif"])
    def test_a_slide_of_any_name_stays_inside_out(
        self, wsi: Run, red_square: Path, tmp_path: Path, redness: None, file: str
    ) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "x" / "other").mkdir(parents=True)
        stranger = tmp_path / "x" / "other" / "work.partial"
        stranger.write_text("a stranger's")
        before = sorted(p.name for p in (tmp_path / "x").iterdir())
        shutil.copy(red_square, tmp_path / "in" / file)
        code, _, _ = wsi("score", tmp_path / "in" / file, "--out", tmp_path / "x" / "OUT")
        assert code == 0
        assert stranger.exists()
        assert sorted(p.name for p in (tmp_path / "x").iterdir()) == sorted([*before, "OUT"])
        assert (tmp_path / "x" / "OUT" / "slide" / "slide.json").exists()

    def test_two_slides_with_unsafe_names_are_told_apart(self, tmp_path: Path) -> None:
        rows = [SlideRow(SlideSource(str(tmp_path / d / "...tif"))) for d in ("a", "b")]
        names = unique_names(rows)
        assert len(set(names)) == 2
        assert all(safe_name(name) == name for name in names)

    def test_only_our_own_partials_of_dead_processes_are_discarded(self, tmp_path: Path) -> None:
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        ours = tmp_path / f".slide.json.{dead.pid}.partial"
        alive = tmp_path / f".lesions.csv.{os.getpid()}.partial"
        theirs = tmp_path / "work.partial"
        below = tmp_path / "notes" / f".x.{dead.pid}.partial"
        below.parent.mkdir()
        for path in (ours, alive, theirs, below):
            path.write_text("x")
        discard_partials(tmp_path)
        assert [p.exists() for p in (ours, alive, theirs, below)] == [False, True, True, True]

    def test_a_link_inside_out_is_not_followed(
        self, wsi: Run, red_square: Path, tmp_path: Path, redness: None
    ) -> None:
        (tmp_path / "victim").mkdir()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "red square").symlink_to(tmp_path / "victim")
        code, _, err = wsi("score", red_square, "--out", tmp_path / "out")
        assert code == 1
        assert "is a link" in err
        assert list((tmp_path / "victim").iterdir()) == []


class TestNotRead:
    def test_what_was_not_seen_is_never_normal(self) -> None:
        cfg = LesionConfig(confidence=(0.5, 0.8, 0.95, 0.99))
        assert confidence_level(0.1, cfg, (0.5, 0.8, 0.95, 0.99)) == "definitely normal"
        assert confidence_level(0.1, cfg, (0.5, 0.8, 0.95, 0.99), missing=1) == "equivocal"
        assert confidence_level(0.999, cfg, (0.5, 0.8, 0.95, 0.99), missing=1) == "definitely tumour"

    def test_cells_not_read_stand_in_the_table_on_the_page_and_on_the_console(
        self, wsi: Run, broken_tile: Path, tmp_path: Path, redness: None
    ) -> None:
        code, _, err = wsi("score", broken_tile, "--out", tmp_path / "out", "--threshold", "1.0")
        missing = len(json.loads((tmp_path / "out/broken tile/slide.json").read_text())["unreadable_cells"])
        assert code == 1
        assert missing > 0
        assert f"{missing} of 448 cells could not be decoded" in err
        row = (tmp_path / "out" / "slide_scores.csv").read_text().splitlines()[1].split(",")
        assert row[3:5] == ["448", str(missing)]
        assert f'<td class="n failed">{missing}</td>' in (tmp_path / "out" / "index.html").read_text()


class TestBitRot:
    @pytest.fixture
    def scored(self, wsi: Run, red_square: Path, tmp_path: Path, redness: None) -> Path:
        assert wsi("score", red_square, "--out", tmp_path / "out")[0] == 0
        return tmp_path / "out" / "red square"

    def test_every_changed_byte_of_a_chunk_is_noticed(self, scored: Path) -> None:
        chunk = scored / "heatmap.zarr" / "c" / "0" / "0" / "0"
        data = chunk.read_bytes()
        rng = np.random.default_rng(5)
        for place in rng.choice(len(data), 60, replace=False):
            damaged = bytearray(data)
            damaged[place] ^= 1 << int(rng.integers(8))
            chunk.write_bytes(bytes(damaged))
            with pytest.raises(ForeignStoreError, match="is broken"):
                HeatmapStore.open(scored / "heatmap.zarr").read(1)

    def test_every_changed_letter_of_the_metadata_is_noticed_or_means_nothing(self, scored: Path) -> None:
        path = scored / "heatmap.zarr" / "zarr.json"
        text = path.read_text()
        good = HeatmapStore.open(scored / "heatmap.zarr").read(1).scores
        rng = np.random.default_rng(6)
        for place in rng.choice(len(text), 150, replace=False):
            path.write_text(text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :])
            try:
                again = HeatmapStore.open(scored / "heatmap.zarr").read(1).scores
            except ForeignStoreError:
                continue
            assert again.shape == good.shape

    @pytest.mark.parametrize(
        "name",
        ["lesions.csv", "lesions.geojson", "preview.png", "heatmap.zarr/c/0/0/0", "heatmap.zarr/zarr.json"],
    )
    @pytest.mark.parametrize("removed", [True, False])
    def test_a_changed_output_is_said_and_made_again_to_the_same_bytes(
        self, wsi: Run, red_square: Path, scored: Path, name: str, removed: bool
    ) -> None:
        before = {str(p): p.read_bytes() for p in sorted(scored.rglob("*")) if p.is_file()}
        if removed:
            (scored / name).unlink()
        else:
            data = bytearray((scored / name).read_bytes())
            data[len(data) // 2] ^= 4
            (scored / name).write_bytes(bytes(data))
        code, out, err = wsi("verify", scored.parent)
        assert code == 1
        assert f"{name}: {'is missing' if removed else 'changed after it was written'}" in err
        assert "1 changed" in out
        code, _, err = wsi("score", red_square, "--out", scored.parent)
        assert code == 0
        assert (
            f"{name}: {'is missing' if removed else 'changed after it was written'}; it is made again" in err
        )
        assert {str(p): p.read_bytes() for p in sorted(scored.rglob("*")) if p.is_file()} == before
        assert wsi("verify", scored.parent)[0] == 0

    def test_a_damaged_chunk_of_an_interrupted_run_is_scored_again(
        self, wsi: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redness: None
    ) -> None:
        image = painted(9216, 1024, (256, 256, 8960, 768), (200, 80, 90))
        slide = write_pyramid(tmp_path / "wide.tif", image, levels=5, tile=256)
        assert wsi("score", slide, "--out", tmp_path / "whole")[0] == 0
        monkeypatch.setattr(score_command, "load_engine", lambda models, cfg: RednessEngine(fail_after=2))
        assert wsi("score", slide, "--out", tmp_path / "out")[0] == 130
        chunk = tmp_path / "out" / "wide" / "heatmap.zarr" / "c" / "0" / "0" / "0"
        data = bytearray(chunk.read_bytes())
        data[-6] ^= 1
        chunk.write_bytes(bytes(data))
        monkeypatch.setattr(score_command, "load_engine", lambda models, cfg: RednessEngine())
        code, _, err = wsi("score", slide, "--out", tmp_path / "out")
        assert code == 0
        assert "was damaged" in err
        assert (
            chunk.read_bytes()
            == (tmp_path / "whole" / "wide" / "heatmap.zarr" / "c" / "0" / "0" / "0").read_bytes()
        )

    def test_a_record_names_what_changed(self, tmp_path: Path) -> None:
        for name in ("a", "b", "c"):
            (tmp_path / name).write_text(f"text of {name}")
        record = LocalFolder(tmp_path).record(["a", "b", "c"])
        (tmp_path / "a").write_text("text of A")
        (tmp_path / "b").unlink()
        assert LocalFolder(tmp_path).changes(record) == {
            "a": "changed after it was written",
            "b": "is missing",
        }

    def test_a_change_in_the_middle_of_a_slide_is_another_slide(self, tmp_path: Path) -> None:
        path = write_pyramid(tmp_path / "s.tif", coordinates(2300, 1900), compression=None, levels=1)
        assert path.stat().st_size > 2.5 * 2**20  # the middle is no edge
        before = SlideSource(str(path)).identity()
        facts = path.stat()
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))
        assert SlideSource(str(path)).identity() != before
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # rot does not change the time
        assert SlideSource(str(path)).read_identity() != before

    def test_verify_misses_a_slide_that_is_gone_and_a_score_that_was_changed(
        self, wsi: Run, red_square: Path, tmp_path: Path, redness: None
    ) -> None:
        shutil.copy(red_square, tmp_path / "s.tif")
        out = tmp_path / "out"
        wsi("score", tmp_path / "s.tif", "--out", out)
        assert wsi("verify", out)[0] == 0
        path = out / "s" / "slide.json"
        value = json.loads(path.read_text())
        was = value["score"]
        for key, other in (("score", 0.125), ("note", "all is well"), ("lesions", [])):
            path.write_text(json.dumps(value | {key: other}))
            code, _, err = wsi("verify", out)
            assert code == 1
            assert f"{out / 's'}: {key} is {0 if key == 'lesions' else other!r}, and " in err
        assert f"score is 0.125, and {was!r} in run.json" not in err
        value["score"] = 0.125
        path.write_text(json.dumps(value))
        assert f"score is 0.125, and {was!r} in run.json" in wsi("verify", out)[2]
        shutil.rmtree(out / "s")
        (out / "t").mkdir()
        (out / "t" / "slide.json").write_text(json.dumps(value | {"name": "t", "files": {}}))
        code, _, err = wsi("verify", out)
        assert code == 1
        assert "slide.json is missing, and run.json lists the slide" in err

    @pytest.mark.parametrize("name", ["slide_scores.csv", "index.html"])
    def test_verify_knows_the_tables_of_the_run(
        self, wsi: Run, red_square: Path, tmp_path: Path, redness: None, name: str
    ) -> None:
        out = tmp_path / "out"
        wsi("score", red_square, "--out", out)
        text = (out / name).read_text()
        assert "0.93" in text
        (out / name).write_text(text.replace("0.93", "0.13"))
        code, _, err = wsi("verify", out)
        assert (code, err) == (1, f"{out / name}: changed after it was written\n")
        assert wsi("score", red_square, "--out", out)[0] == 0
        assert wsi("verify", out)[0] == 0

    def test_verify_says_that_a_run_is_not_finished(
        self, wsi: Run, red_square: Path, tmp_path: Path, redness: None
    ) -> None:
        out = tmp_path / "out"
        wsi("score", red_square, "--out", out)
        value = json.loads((out / "run.json").read_text())
        (out / "run.json").write_text(json.dumps(value | {"state": "running"}))
        code, _, err = wsi("verify", out)
        assert (code, "run.json: a command works in the folder, or was killed" in err) == (1, True)

    def test_verify_finds_slides_from_another_folder(
        self, wsi: Run, red_square: Path, tmp_path: Path, redness: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        shutil.copy(red_square, tmp_path / "s.tif")
        monkeypatch.chdir(tmp_path)
        assert wsi("score", "s.tif", "--out", "out")[0] == 0
        assert (
            str(tmp_path) not in (tmp_path / "out" / "run.json").read_text()
        )  # it goes with reports of defects
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert wsi("verify", "../out", "--slides")[0] == 0

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("memory://gone/s.tif", "memory://gone/s.tif cannot be asked now"),
            ("file:///etc/passwd", "slides are not read through 'file'"),
        ],
    )
    def test_verify_asks_servers_and_no_other_protocol(
        self, wsi: Run, red_square: Path, tmp_path: Path, redness: None, path: str, said: str
    ) -> None:
        out = tmp_path / "out"
        wsi("score", red_square, "--out", out)
        record = out / "red square" / "slide.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"path": path}))
        code, _, err = wsi("verify", out, "--slides")
        assert (code, said in err) == (1, True)
        assert "is not the one that was read" not in err

    def test_verify_reads_slides_when_asked(
        self, wsi: Run, red_square: Path, tmp_path: Path, redness: None
    ) -> None:
        slide = tmp_path / "s.tif"
        shutil.copy(red_square, slide)
        wsi("score", slide, "--out", tmp_path / "out")
        assert wsi("verify", tmp_path / "out", "--slides")[0] == 0
        facts = slide.stat()
        with slide.open("r+b") as file:
            file.seek(slide.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))
        os.utime(slide, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        assert wsi("verify", tmp_path / "out")[0] == 0
        code, _, err = wsi("verify", tmp_path / "out", "--slides")
        assert code == 1
        assert "s.tif: the slide is not the one that was read" in err

    @pytest.mark.parametrize("suffix", [".mrxs", ".vms"])
    @pytest.mark.parametrize("stem", ["s", "s [HE] *1"])  # brackets are no pattern
    def test_data_files_of_a_slide_are_part_of_what_it_is(
        self, tmp_path: Path, suffix: str, stem: str
    ) -> None:
        main = tmp_path / f"{stem}{suffix}"
        main.write_text("index")
        data = tmp_path / stem / "Data0001.dat" if suffix == ".mrxs" else tmp_path / f"{stem}-1.jpg"
        data.parent.mkdir(exist_ok=True)
        data.write_bytes(b"pixels of one kind")
        before = SlideSource(str(main)).identity()
        data.write_bytes(b"pixels of 2nd kind")  # as long
        assert SlideSource(str(main)).identity() != before
        data.write_bytes(b"pixels of one kind")
        assert SlideSource(str(main)).identity() == before

    def test_the_hash_is_kept_so_that_a_slide_is_read_for_it_once(
        self, red_square: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from wsi.slides import source

        first = SlideSource(str(red_square)).identity()
        monkeypatch.setattr(source, "file_sha256", lambda path: pytest.fail("read again"))
        assert SlideSource(str(red_square)).identity() == first


class TestPowerCut:
    def test_bytes_reach_the_disk_before_the_name_that_says_done(
        self, red_square: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        events: list[tuple[str, str]] = []
        fsync, replace = os.fsync, os.replace

        def noted_fsync(handle: int) -> None:
            events.append(("fsync", os.readlink(f"/proc/self/fd/{handle}")))
            fsync(handle)

        def noted_replace(source: object, target: object) -> None:
            events.append(("replace", str(target)))
            replace(source, target)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(os, "replace", noted_replace)
        out = tmp_path / "out"
        score_slide(SlideRow(SlideSource(str(red_square))), "s", RednessEngine(), out, ScoreConfig())
        done = events.index(("replace", str(out / "slide.json")))
        before = {path for kind, path in events[:done] if kind == "fsync"}
        for name in (
            "lesions.csv",
            "lesions.geojson",
            "preview.png",
            "heatmap.zarr/zarr.json",
            "heatmap.zarr/c/0/0/0",
        ):
            assert str(out / name) in before, name
        assert any(path.endswith(".partial") and "slide.json" in path for path in before)
        assert ("fsync", str(out)) in events[done:]

    def test_only_what_says_done_waits_for_the_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "fsync", lambda handle: pytest.fail("not needed"))
        write_json(tmp_path / "a.json", 1)


class TestBombs:
    def _png(self, path: Path, width: int, height: int) -> Path:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
        return path

    def test_a_picture_that_claims_more_than_memory_holds(self, wsi: Run, tmp_path: Path) -> None:
        code, _, err = wsi("info", self._png(tmp_path / "p.png", 20_000, 19_000))
        assert code == 1
        assert "says that it has 20,000 x 19,000 px" in err
        code, _, err = wsi("info", self._png(tmp_path / "q.png", 400_000, 300_000))
        assert code == 1
        assert "claims far more than" in err

    def test_a_mask_that_does(self, red_square: Path, tmp_path: Path) -> None:
        mask = self._png(tmp_path / "m.png", 46_080, 30_720)
        with (
            SlideSource(str(red_square)).open() as slide,
            pytest.raises(AnnotationError, match="46,080 x 30,720 px"),
        ):
            read_user_mask(mask, slide, 8.0)

    @pytest.mark.parametrize("place", range(20, 200, 7))
    def test_a_broken_png_is_one_sentence(self, tmp_path: Path, place: int) -> None:
        path = tmp_path / "p.png"
        Image.fromarray(coordinates(90, 70)).save(path)
        data = bytearray(path.read_bytes())
        data[place : place + 4] = bytes(4)
        path.write_bytes(bytes(data))
        with contextlib.suppress(SlideError):  # anything else is a defect
            SlideSource(str(path)).open().close()

    def test_a_mask_of_no_size(self, red_square: Path, tmp_path: Path) -> None:
        path = tmp_path / "m.tif"
        tifffile.imwrite(path, np.zeros((24, 36), np.uint8))
        data = path.read_bytes()
        with tifffile.TiffFile(path) as tif:
            tag = tif.pages[0].tags["ImageWidth"]
        path.write_bytes(data[: tag.valueoffset] + bytes(2) + data[tag.valueoffset + 2 :])
        with SlideSource(str(red_square)).open() as slide, pytest.raises(AnnotationError, match=r"m\.tif"):
            read_user_mask(path, slide, 8.0)


class TestUrls:
    @pytest.mark.parametrize(
        "url",
        [
            "file:///etc/passwd",
            "local:///etc/passwd",
            "ftp://host/x.tif",
            "simplecache::https://host/x.tif",
            "zip://x.tif::https://host/y.zip",
            "github://a:b@/x.tif",
            "reference://",
        ],
    )
    def test_other_protocols_are_refused_before_anything_is_read(self, tmp_path: Path, url: str) -> None:
        (tmp_path / "s.csv").write_text(f"path\n{url}\n")
        with pytest.raises(ConfigError, match=r"s\.csv line 2: .*(are not read through|does not exist)"):
            read_manifest(tmp_path / "s.csv")

    def test_an_address_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "s.csv").write_text("path\nhttp://[::1/x.tif\n")
        with pytest.raises(ConfigError, match="is not a URL"):
            read_manifest(tmp_path / "s.csv")

    def test_the_command_line_refuses_it_too(self, wsi: Run) -> None:
        code, _, err = wsi("info", "file:///etc/passwd")
        assert code == 2
        assert "not read through 'file'" in err

    @pytest.mark.parametrize("header", ["Location", "URI"])  # aiohttp follows either
    def test_a_server_that_sends_us_to_another_host(self, red_square: Path, header: str) -> None:
        """Loopback has two names here, 127.0.0.1 and localhost: they are two hosts."""
        pytest.importorskip("aiohttp", reason="needs aiohttp, which slidewright[http] brings")
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
        from threading import Thread

        seen: list[str] = []
        data = red_square.read_bytes()

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                seen.append(self.path)
                if self.path != "/slide.tif":
                    host = "localhost" if self.path == "/away.tif" else "127.0.0.1"
                    self.send_response(302)
                    self.send_header(header, f"http://{host}:{server.server_port}/slide.tif")
                    self.end_headers()
                    return
                first, last = 0, len(data) - 1
                if "Range" in self.headers:
                    first, last = (int(v) for v in self.headers["Range"].removeprefix("bytes=").split("-"))
                    last = min(last, len(data) - 1)
                self.send_response(206 if "Range" in self.headers else 200)
                self.send_header("Content-Length", str(last + 1 - first))
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
                self.end_headers()
                if body:
                    self.wfile.write(data[first : last + 1])

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            base = f"http://127.0.0.1:{server.server_port}"
            with SlideSource(f"{base}/near.tif", mpp=0.25).open() as slide:  # the same host is followed
                assert slide.size == (4608, 3072)
            seen.clear()
            with pytest.raises(SlideError, match=r"away\.tif cannot be fetched"):
                SlideSource(f"{base}/away.tif", mpp=0.25).open()
            assert set(seen) == {"/away.tif"}
            server.shutdown()


class TestNoNameIsLookedUp:
    @pytest.mark.slow
    def test_scoring_contacts_nobody(self, red_square: Path, tmp_path: Path) -> None:
        """In a process of its own whose sockets are refused: the converted model, OpenVINO, the lot."""
        script = (
            "import socket, sys\n"
            "def refuse(*a, **k): open(sys.argv[1], 'a').write(repr(a) + '\\n'); raise OSError('refused')\n"
            "socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse\n"
            "socket.socket.connect = refuse\n"
            "import urllib.request; urllib.request.urlopen = refuse\n"
            "sys.argv = ['wsi', 'score', sys.argv[2], '--out', sys.argv[3]]\n"
            "from pipelines.cli import main; main()\n"
        )
        home = tmp_path / "home"
        home.mkdir()
        environment = os.environ | {"HOME": str(home)}
        words = [str(tmp_path / "log"), str(red_square), str(tmp_path / "out")]
        done = subprocess.run(
            [sys.executable, "-c", script, *words],
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        time.sleep(1)  # telemetry was sent by a thread
        assert not (tmp_path / "log").exists()
        assert [p for p in home.rglob("*") if p.is_file()] == []  # above all no lasting id in ~/intel

    def test_openvino_finds_no_telemetry(self) -> None:
        import models  # noqa: F401

        with pytest.raises(ImportError):
            import openvino_telemetry  # noqa: F401


def _heeds_signals() -> None:
    """Tests that run in the background, or under nohup, must not pass on that SIGINT and SIGHUP are ignored."""
    for name in ("SIGINT", "SIGHUP", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


class TestSignals:
    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
    def test_a_run_that_is_told_to_stop_says_so_and_can_go_on(
        self, tmp_path: Path, name: str, code: int
    ) -> None:
        image = painted(16384, 1024, (256, 256, 16128, 768), (200, 80, 90))
        slide = write_pyramid(tmp_path / "wide.tif", image, levels=5, tile=256)
        script = (
            "import sys, time; sys.argv = ['wsi', *sys.argv[1:]]\n"
            "from pipelines import cli; from pipelines.cli import score; from tests.slides import RednessEngine\n"
            "class Slow(RednessEngine):\n"
            "    def score(self, blocks, **options):\n"
            "        for scores in super().score(blocks, **options):\n"
            "            time.sleep(0.7); yield scores\n"
            "score.find_models = lambda names: names; score.load_engine = lambda models, cfg: Slow()\n"
            "cli.main()\n"
        )
        words = ["score", str(slide), "--out", str(tmp_path / "out")]
        root = ROOT
        run = subprocess.Popen(
            [sys.executable, "-c", script, *words],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            preexec_fn=_heeds_signals,
        )
        chunk = tmp_path / "out" / "wide" / "heatmap.zarr" / "c" / "0" / "0" / "0"
        end = time.monotonic() + 60
        while not chunk.exists() and time.monotonic() < end:
            time.sleep(0.05)
        run.send_signal(getattr(signal, name))
        _, err = run.communicate(timeout=60)
        assert run.returncode == code
        assert "wsi: stopped; run the same command again to go on where it stopped" in err
        assert json.loads((tmp_path / "out" / "run.json").read_text())["state"] == "interrupted"
        assert (tmp_path / "out" / "index.html").exists()
        assert chunk.exists()

    def test_nohup_is_heeded(self) -> None:
        """A run that nohup started must live on when its terminal is closed, and end at SIGTERM; in a process of its own."""
        script = (
            "import os, signal\n"
            "from pipelines.cli.console import interruptible, stop_on_signals\n"
            "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
            "stop_on_signals()\n"
            "assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN\n"
            "with interruptible('stopping') as stop:\n"
            "    os.kill(os.getpid(), signal.SIGHUP)\n"
            "    assert not stop()\n"
            "    os.kill(os.getpid(), signal.SIGTERM)\n"
            "    assert stop()\n"
            "try: os.kill(os.getpid(), signal.SIGTERM)\n"
            "except KeyboardInterrupt: print('interrupted')\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            cwd=ROOT,
            preexec_fn=_heeds_signals,
        )
        assert (ended.returncode, ended.stdout) == (0, "interrupted\n"), ended.stderr

    def test_engines_that_are_gone_leave_ctrl_c_as_it_was(self) -> None:
        """Each core of OpenVINO changes the stack of signal handlers; two freed in turn left one that was gone."""
        script = (
            "import gc, os, signal\n"
            "from models.card import ZOO\n"
            "from models.engines import EngineConfig, find_models, load_engine\n"
            "from models.engines.boxes import BoxEngine\n"
            "cfg = EngineConfig(engine='openvino')\n"
            "first = load_engine(find_models(['lymph-node-demo']), cfg)\n"
            "second = BoxEngine(ZOO / 'renal-ptc-demo', cfg)\n"
            "third = load_engine(find_models(['renal-fields-demo']), cfg)\n"
            "del first; gc.collect()\n"
            "del second; gc.collect()\n"
            "del third; gc.collect()\n"
            "signal.signal(signal.SIGTERM, lambda *_: print('handled'))\n"
            "os.kill(os.getpid(), signal.SIGTERM)\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            cwd=ROOT,
            preexec_fn=_heeds_signals,
        )
        assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


class TestTwoAtOnce:
    @pytest.mark.slow
    def test_two_commands_share_a_folder(self, red_square: Path, tmp_path: Path) -> None:
        """One slide of its own each, and one that both are given: nothing lost, nothing broken, in either's summary."""
        for name in ("a", "b", "both"):
            shutil.copy(red_square, tmp_path / f"{name}.tif")
        (tmp_path / "broken.svs").write_text("not a slide")
        script = (
            "import sys; sys.argv = ['wsi', *sys.argv[1:]]\n"
            "from pipelines import cli; from pipelines.cli import score; from tests.slides import RednessEngine\n"
            "score.find_models = lambda names: names; score.load_engine = lambda models, cfg: RednessEngine()\n"
            "cli.main()\n"
        )
        root = ROOT
        runs = [
            subprocess.Popen(
                [sys.executable, "-c", script, "score", *slides, "--out", str(tmp_path / "out")],
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=root,
            )
            for slides in (
                [str(tmp_path / "both.tif"), str(tmp_path / "a.tif"), str(tmp_path / "broken.svs")],
                [str(tmp_path / "both.tif"), str(tmp_path / "b.tif")],
            )
        ]
        ends = [(run.communicate(timeout=120), run.returncode) for run in runs]
        assert [code for _, code in ends] == [1, 0], ends
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        assert [s["name"] for s in record["slides"]] == ["a", "b", "both"]
        assert [f["name"] for f in record["failed"]] == ["broken"]
        lines = (tmp_path / "out" / "slide_scores.csv").read_text().splitlines()
        assert [line.split(",")[0] for line in lines] == ["slide", "a", "b", "both"]
        assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_slide_that_vanishes_is_told_so(
    wsi: Run, red_square: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = painted(9216, 1024, (256, 256, 8960, 768), (200, 80, 90))
    slide = write_pyramid(tmp_path / "wide.tif", image, levels=5, tile=256)

    class Removes(RednessEngine):
        def score(self, blocks, **options):  # type: ignore[no-untyped-def]
            for scores in super().score(blocks, **options):
                slide.unlink(missing_ok=True)
                yield scores

    monkeypatch.setattr(score_command, "find_models", lambda names: names)
    monkeypatch.setattr(score_command, "load_engine", lambda models, cfg: Removes())
    code, _, err = wsi("score", slide, "--out", tmp_path / "out")
    assert code == 1
    assert "wide.tif is gone: it was moved or removed" in err


def test_a_slide_that_changes_while_it_is_scored(
    wsi: Run, red_square: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = tmp_path / "s.tif"
    shutil.copy(red_square, slide)

    class Touches(RednessEngine):
        def score(self, blocks, **options):  # type: ignore[no-untyped-def]
            for scores in super().score(blocks, **options):
                with slide.open("ab") as file:
                    file.write(b"more")
                yield scores

    monkeypatch.setattr(score_command, "find_models", lambda names: names)
    monkeypatch.setattr(score_command, "load_engine", lambda models, cfg: Touches())
    code, _, err = wsi("score", slide, "--out", tmp_path / "out")
    assert code == 1
    assert "changed while it was scored" in err


def test_low_memory_is_one_sentence(wsi: Run, monkeypatch: pytest.MonkeyPatch, red_square: Path) -> None:
    from pipelines.cli import slides

    for error, text in (
        (MemoryError(), "memory ran out"),
        (ImportError("libtorch_cpu.so: failed to map segment"), "a library cannot be loaded"),
        (RuntimeError("odd"), "a defect; please report it"),
    ):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(slides, "gather", fail)
        code, _, err = wsi("info", red_square)
        assert code == 2
        assert text in err


def test_sockets_are_what_the_telemetry_test_thinks() -> None:
    """Guards the test above: the names it replaces are those that Python's own clients use."""
    assert socket.create_connection.__module__ == "socket"


@pytest.mark.parametrize("name", ["../victim", "/victim", "a/../../victim"])
def test_a_record_never_removes_a_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    from pipelines.camelyon16.read.results import discard_changed

    out = tmp_path / "out"
    out.mkdir()
    (out / "slide.json").write_text("{}")
    (tmp_path / "victim").write_text("keep")
    assert discard_changed(
        LocalFolder(out), {"files": {name if name[0] != "/" else str(tmp_path / "victim"): [5, "a"]}}
    )
    assert (tmp_path / "victim").read_text() == "keep"


def test_a_file_that_cannot_be_read_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network disk that fails for a minute must not cost the results."""
    import wsi.results.folder
    from pipelines.camelyon16.read.results import discard_changed
    from wsi.errors import StoreError

    def fails(_path: Path) -> str:
        raise OSError(5, "Input/output error")

    (tmp_path / "a.csv").write_text("12345")
    monkeypatch.setattr(wsi.results.folder, "file_sha256", fails)
    with pytest.raises(StoreError, match=r"a\.csv cannot be read \(Input/output error\); mend that"):
        discard_changed(LocalFolder(tmp_path), {"files": {"a.csv": [5, "x"]}})
    assert (tmp_path / "a.csv").exists()
