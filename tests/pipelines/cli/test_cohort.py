"""``wsi cohort`` and ``wsi cluster``: counts by hand, tables read back by pyarrow, a script read by a shell."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from pipelines.cli import score as score_command
from pipelines.cli.renal import RenalRun
from pipelines.renal.read.reading import RenalConfig
from pipelines.runs.claims import FOLDER
from tests.renal_slides import readers, scattered, slide_of
from tests.slides import RednessEngine, write_pyramid
from wsi.results.folder import LocalFolder
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def scored(tmp_path: Path, red_square: Path, wsi: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three slides: one with a lesion, one without tissue, one that is none."""
    monkeypatch.setattr(score_command, "load_engine", lambda models, cfg: RednessEngine())
    (tmp_path / "in").mkdir()
    shutil.copy(red_square, tmp_path / "in" / "red.tif")
    write_pyramid(tmp_path / "in" / "blank.tif", np.full((900, 1100, 3), 245, np.uint8))
    (tmp_path / "in" / "no.tif").write_bytes(b"no slide")
    assert wsi("score", tmp_path / "in", "-o", tmp_path / "out")[0] == 1
    return tmp_path / "out"


class TestStatus:
    def test_done_failed_claimed_and_left(self, scored: Path, wsi: Run) -> None:
        shutil.copy(scored.parent / "in" / "no.tif", scored.parent / "in" / "later.tif")
        shutil.copy(scored.parent / "in" / "no.tif", scored.parent / "in" / "now.tif")
        claim = {"host": "elsewhere", "process": 1, "beat": 0}
        LocalFolder(scored).write(f"{FOLDER}/now.1.json", json.dumps(claim))
        code, out, err = wsi("cohort", "status", scored, scored.parent / "in")
        assert code == 1
        assert "2 slides done; 1 failed; 1 being worked on; 2 of 5 left" in out
        assert err.startswith("no: ")
        code, out, _ = wsi("cohort", "status", scored)
        assert (code, "left" in out) == (1, False)

    def test_what_is_no_run_is_said(self, tmp_path: Path, wsi: Run) -> None:
        (tmp_path / "run.json").write_text("[1]")
        for folder in (tmp_path, tmp_path / "none"):
            code, _, err = wsi("cohort", "status", folder)
            assert (code, "run.json is missing or broken" in err) == (2, True)


class TestExport:
    def test_lymph_nodes(self, scored: Path, tmp_path: Path, wsi: Run) -> None:
        code, out, err = wsi("cohort", "export", scored, tmp_path / "t" / "all.parquet")
        assert (code, "all.parquet: 2 rows; " in out) == (0, True), err
        table = pq.read_table(tmp_path / "t" / "all.parquet").to_pylist()
        facts = {name: json.loads((scored / name / "slide.json").read_bytes()) for name in ("blank", "red")}
        assert [row["slide"] for row in table] == ["blank", "red"]
        assert (table[0]["score"], table[0]["lesions"]) == (None, 0)  # never a silent zero
        assert table[1]["score"] == facts["red"]["score"] > 0.9
        assert (table[1]["width"], table[1]["height"]) == (4608, 3072)
        lesions = pq.read_table(tmp_path / "t" / "all-lesions.parquet")
        (peak,) = lesions.to_pylist()
        point = shapely.from_wkb(peak["geometry"])
        assert (
            (point.x, point.y) == (peak["x"], peak["y"]) == tuple(facts["red"]["lesions"][0][k] for k in "xy")
        )
        geo = json.loads(lesions.schema.metadata[b"geo"])
        assert geo["columns"]["geometry"] == {"encoding": "WKB", "geometry_types": ["Point"], "crs": None}
        assert lesions.schema.metadata[b"intended use"] == b"research use only"
        assert sorted(p.name for p in (tmp_path / "t").iterdir()) == ["all-lesions.parquet", "all.parquet"]

    def test_kidneys_by_machine_and_by_person(self, tmp_path: Path, wsi: Run) -> None:
        row = SlideRow(SlideSource(str(slide_of(tmp_path / "s.tif", scattered(20, 0.5, 1)))))
        out = tmp_path / "out"
        RenalRun([(row, "s")], readers(), RenalConfig(), LocalFolder(out), False, False).go()
        corrected = json.loads((out / "s" / "detections.geojson").read_text())
        kinds = [f["properties"]["classification"]["name"] for f in corrected["features"]]
        del corrected["features"][kinds.index("C4d positive")]
        (tmp_path / "c.geojson").write_text(json.dumps(corrected))
        assert wsi("renal", "review", out / "s", tmp_path / "c.geojson", "--by", "A. Smith")[0] == 0
        code, _, err = wsi("cohort", "export", out, tmp_path / "k.parquet")
        assert code == 0, err
        machine, person = pq.read_table(tmp_path / "k.parquet").to_pylist()
        assert (machine["reading"], machine["by"], person["by"]) == ("machine", None, "A. Smith")
        assert person["positive"] == machine["positive"] - 1
        capillaries = pq.read_table(tmp_path / "k-capillaries.parquet").to_pylist()
        counted = [c for c in capillaries if c["reading"] == "machine" and c["counted"]]
        assert len(counted) == machine["positive"] + machine["negative"]
        first = counted[0]
        line = next(
            x for x in (out / "s" / "capillaries.csv").read_text().splitlines() if x.startswith(first["id"])
        )
        assert [f"{v:.2f}" for v in shapely.from_wkb(first["geometry"]).bounds] == line.split(",")[5:9]

    def test_refusals(self, scored: Path, tmp_path: Path, wsi: Run) -> None:
        code, _, err = wsi("cohort", "export", scored, tmp_path / "t.csv")
        assert (code, "must end in .parquet" in err) == (2, True)
        code, _, err = wsi("cohort", "export", tmp_path / "in", tmp_path / "t.parquet")
        assert (code, "holds no finished slide" in err) == (2, True)
        (scored / "red" / "slide.json").write_text('{"lesions": 3}')
        code, _, err = wsi("cohort", "export", scored, tmp_path / "t.parquet")
        assert (code, "slide.json is broken" in err) == (2, True)
        assert list(tmp_path.glob("*t*.parquet*")) == []  # no half table


def test_the_script_for_slurm_is_one_that_a_shell_reads(wsi: Run) -> None:
    code, script, _ = wsi("cluster", "slurm", "--nodes", "8", "--gpus", "2", "--cores", "12", "--hours", "3")
    assert code == 0
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    for line in (
        "#SBATCH --cpus-per-task=12\n",
        "#SBATCH --time=3:00:00\n",
        "#SBATCH --nodes=8\n",
        "#SBATCH --ntasks-per-node=2\n",
        "#SBATCH --gpus-per-node=2\n",
        "export DASK_DISTRIBUTED__DIAGNOSTICS__COMPUTATIONS__MAX_HISTORY=0\n",
    ):
        assert line in script
    assert "gpus" not in wsi("cluster", "slurm")[1]
