"""What a newcomer's walk found: each wrong thing is said as what it is."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from pipelines.camelyon16.benchmark.cases import read_truth_table
from pipelines.cli import score as score_command
from tests.slides import RednessEngine
from wsi.datasets.truth import refuse_tumour
from wsi.errors import AnnotationError
from wsi.files import cannot_write
from wsi.marks.annotations import Annotation, write_asap
from wsi.slides.grid import make_grid
from wsi.slides.slide import ReadPlan
from wsi.slides.source import SlideSource

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def redness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_command, "find_models", lambda names: names)
    monkeypatch.setattr(score_command, "load_engine", lambda models, cfg: RednessEngine())


class TestLabelAgainstTruth:
    @pytest.fixture
    def folder(self, tmp_path: Path, red_square: Path) -> Path:
        shutil.copy(red_square, tmp_path / "a.tif")
        write_asap(tmp_path / "a.xml", [Annotation(shapely.box(1280, 1024, 1920, 1664), "Tumor")])
        (tmp_path / "slides.csv").write_text("path,truth,label\na.tif,a.xml,benign\n")
        return tmp_path

    def test_evaluation_refuses_it(self, folder: Path, wsi: Run) -> None:
        assert read_truth_table(folder).normal == {"a"}
        assert wsi("score", folder, "--out", folder / "out")[0] == 0
        code, _, err = wsi("camelyon16", "evaluate", folder / "out", "--truth", folder)
        assert code == 2
        assert "a.xml marks tumour, though" in err
        assert "slides.csv says that the slide is normal; mend one of them" in err

    def test_training_refuses_it(self, folder: Path, wsi: Run) -> None:
        code, out, _ = wsi("doctor", "--manifest", folder)
        assert code == 1
        assert "a.xml marks tumour, though the slide is labelled normal; mend one of them" in " ".join(
            out.split()
        )

    def test_an_empty_truth_agrees(self, folder: Path) -> None:
        write_asap(folder / "a.xml", [])
        with SlideSource(str(folder / "a.tif")).open() as slide:
            grid = make_grid(slide.size, ReadPlan(0, 128, 128, 299), None)
            refuse_tumour(folder / "a.xml", slide, grid)
            write_asap(folder / "b.xml", [Annotation(shapely.box(10, 10, 20, 20), "Tumor")])
            with pytest.raises(AnnotationError, match="b.xml marks tumour"):
                refuse_tumour(folder / "b.xml", slide, grid)


class TestOneFolder:
    def test_another_threshold_is_another_run(self, red_square: Path, tmp_path: Path, wsi: Run) -> None:
        shutil.copy(red_square, tmp_path / "a.tif")
        shutil.copy(red_square, tmp_path / "b.tif")
        out = tmp_path / "out"
        assert wsi("score", tmp_path / "a.tif", "--out", out)[0] == 0
        chunk = next((out / "a" / "heatmap.zarr" / "c").rglob("0"))
        code, _, err = wsi("score", tmp_path / "b.tif", "--out", out, "--threshold", 0.9)
        assert (code, "holds results of another model or other settings" in err) == (2, True)
        before = chunk.stat().st_mtime_ns
        code, _, err = wsi("score", tmp_path / "a.tif", "--out", out, "--threshold", 0.9, "--overwrite")
        assert code == 0
        assert chunk.stat().st_mtime_ns == before  # the heatmap is the same: it is not scored again

    def test_what_overwrite_leaves_is_said(self, red_square: Path, tmp_path: Path, wsi: Run) -> None:
        for name in ("a", "b"):
            shutil.copy(red_square, tmp_path / f"{name}.tif")
        out = tmp_path / "out"
        assert wsi("score", tmp_path / "a.tif", tmp_path / "b.tif", "--out", out)[0] == 0
        code, _, err = wsi("score", tmp_path / "a.tif", "--out", out, "--threshold", 0.9, "--overwrite")
        assert code == 0
        assert "results of another model or other settings are in no table (b)" in err
        code, _, err = wsi("verify", out)
        assert (code, f"{out / 'b'} is not listed in run.json" in err) == (1, True)

    def test_verify_says_what_is_broken(self, red_square: Path, tmp_path: Path, wsi: Run) -> None:
        out = tmp_path / "out"
        wsi("score", red_square, "--out", out)
        record = out / "red square" / "slide.json"
        good = record.read_text()
        record.write_text(json.dumps(json.loads(good) | {"tissue_mm2": 99}))
        code, _, err = wsi("verify", out)
        assert (code, "slide.json: " in err) == (1, True)
        record.write_text('{"a"')
        code, _, err = wsi("verify", out)
        assert (code, "run.json is broken" in err, "slide.json is broken" in err) == (1, False, True)
        record.unlink()
        code, _, err = wsi("verify", out)
        assert (code, "slide.json is missing, and run.json lists the slide" in err) == (1, True)
        assert wsi("verify", tmp_path / "nosuch")[0] == 2

    def test_an_export_s_new_record_is_no_change(self, red_square: Path, tmp_path: Path, wsi: Run) -> None:
        out = tmp_path / "out"
        wsi("score", red_square, "--out", out)
        assert wsi("export", "geojson", out, "--origin", "slide", "--gz")[0] == 0
        assert wsi("verify", out)[0] == 0


class TestSentences:
    def test_a_text_called_tif(self, tmp_path: Path, wsi: Run) -> None:
        (tmp_path / "notes.tif").write_text("no slide")
        code, _, err = wsi("info", tmp_path / "notes.tif")
        assert (code, "notes.tif is no TIFF inside, whatever its name says; check" in err) == (1, True)

    def test_errors_into_no_detector(self, tmp_path: Path, wsi: Run) -> None:
        code, _, err = wsi("renal", "evaluate", tmp_path, "--truth", tmp_path, "--into", "renal-ptc-demo")
        assert (code, "renal-ptc-demo is not a detector's folder; give one of your own" in err) == (2, True)

    def test_masks(self, red_square: Path, tmp_path: Path, wsi: Run) -> None:
        code, _, err = wsi("score", red_square, "--out", tmp_path / "o", "--mask", tmp_path / "no.png")
        assert (code, err) == (2, f"wsi: {tmp_path / 'no.png'} does not exist; check --mask\n")
        Image.fromarray(np.zeros((96, 144), np.uint8)).save(tmp_path / "black.png")
        code, _, err = wsi("score", red_square, "--out", tmp_path / "o", "--mask", tmp_path / "black.png")
        assert code == 1
        assert "black.png marks no tissue: nothing was scored; mend it, or leave out --mask" in err

    def test_a_threshold_out_of_range_names_the_option(
        self, red_square: Path, tmp_path: Path, wsi: Run
    ) -> None:
        code, _, err = wsi("score", red_square, "--out", tmp_path / "o", "--threshold", 5)
        assert (code, "--threshold" in err) == (2, True)

    @pytest.mark.parametrize(
        ("number", "said"), [(errno.ENOSPC, "free space"), (errno.EACCES, "see that it can be written there")]
    )
    def test_space_is_asked_for_where_it_lacks(self, number: int, said: str) -> None:
        assert said in str(cannot_write(Path("a"), OSError(number, "why")))

    def test_a_report_of_kidneys_is_no_broken_result(self, tmp_path: Path, wsi: Run) -> None:
        own = tmp_path / "out" / "kidney"
        own.mkdir(parents=True)
        for name in ("slide.json", "report.json"):
            (own / name).write_text("{}")
        code, _, err = wsi("export", "csv", tmp_path / "out")
        assert (code, f"{own} is a report of wsi renal report; this command takes" in err) == (2, True)

    def test_reviews(self, tmp_path: Path, wsi: Run) -> None:
        future = date.today() + timedelta(days=9)
        code, _, err = wsi("renal", "review", tmp_path, "--corrected", tmp_path, "--date", future)
        assert (code, "lies in the future" in err) == (2, True)
        (tmp_path / "report.json").write_text("{}")
        code, _, err = wsi("renal", "review", tmp_path, "--corrected", tmp_path)
        assert (code, "is one slide's report; with --corrected give the folder above it" in err) == (2, True)

    def test_no_submission(self, tmp_path: Path, wsi: Run) -> None:
        code, _, err = wsi("camelyon16", "check", tmp_path / "no")
        assert (code, "is not a folder with files; give the --out of wsi camelyon16 submit" in err) == (
            2,
            True,
        )
