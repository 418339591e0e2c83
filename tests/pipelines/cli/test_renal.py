"""``wsi renal`` by command, with the demonstration models that ship."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from models.card import ZOO
from models.checkpoint import load_detector
from pipelines.cli.renal import RenalRun
from pipelines.renal.evaluate.evaluation import evaluate
from pipelines.renal.evaluate.truth import read_cohort
from pipelines.renal.read.reading import RenalConfig
from pipelines.renal.read.report import RenalReport
from pipelines.renal.read.summary import refresh_summary
from tests.renal_slides import readers, scattered, slide_of
from tests.slides import painted, write_pyramid
from wsi.marks.geojson import read_objects
from wsi.results.folder import LocalFolder
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small phantom of some two hundred capillaries, 40 % of them positive, of a seed that nothing was trained on."""
    from wsi.phantoms.kidney.slide import KidneyPhantom, write_kidney

    folder = tmp_path_factory.mktemp("phantom")
    write_kidney(KidneyPhantom("kidney_001", 990_003, 40.0, (5632, 5120), 0), folder)
    return folder


@pytest.fixture(scope="module")
def reported(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its report, by the command line."""
    from typer.testing import CliRunner

    from pipelines.cli import app

    out = tmp_path_factory.mktemp("reported")
    ended = CliRunner().invoke(app, ["renal", "report", str(phantom / "kidney_001.tif"), "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    assert "demonstration models, trained without any real C4d slide" in ended.output
    return out


class TestReport:
    @pytest.mark.slow
    def test_it_counts_what_was_drawn(self, phantom: Path, reported: Path) -> None:
        """Within eight points of the truth, three of four capillaries of the whole slide, AP50 above 0.85 in its fields."""
        report = RenalReport.model_validate_json((reported / "kidney_001" / "report.json").read_bytes())
        truth = json.loads((phantom / "kidney_001_truth.json").read_text())
        assert report.result.percent == pytest.approx(truth["c4d_percent"], abs=8)
        total = report.result.positive + report.result.negative
        assert total > 0.75 * (truth["positive"] + truth["negative"])
        assert report.demonstration == ("renal-fields-demo", "renal-ptc-demo")
        assert sorted(p.name for p in reported.iterdir()) == [
            "grades.csv",
            "index.html",
            "kidney_001",
            "run.json",
        ]
        result = evaluate(read_cohort(reported, phantom))
        assert min(result.ap50.values()) > 0.85
        page = (reported / "index.html").read_text()
        assert 'href="kidney_001/report.html"' in page
        assert "demonstration models" in page

    @pytest.mark.slow
    def test_done_is_kept_and_other_settings_are_refused(
        self, phantom: Path, reported: Path, tmp_path: Path, wsi: Run
    ) -> None:
        before = (reported / "kidney_001" / "report.json").stat().st_mtime_ns
        words = ("renal", "report", phantom / "kidney_001.tif", "--out", reported)
        assert wsi(*words)[0] == 0
        assert (reported / "kidney_001" / "report.json").stat().st_mtime_ns == before
        other = tmp_path / "c.yaml"
        other.write_text("thresholds: [0.5, 0.5]\n")
        code, _, said = wsi(*words, "--config", other)
        assert (
            code,
            "holds results of another model or other settings (renal-fields-demo, renal-ptc-demo" in said,
        ) == (2, True)
        other.write_text("threshold: [0.5, 0.5]\n")
        code, _, said = wsi(*words, "--config", other)
        assert (code, "threshold" in said) == (2, True)

    def test_a_slide_that_fails_now_is_listed_as_what_it_is(self, tmp_path: Path, wsi: Run) -> None:
        """Its earlier grade, and a person's reading, are not lost; but the file may be another now."""
        run = RenalRun([], readers(), RenalConfig(), LocalFolder(tmp_path / "out"), False, False)
        slide_of(tmp_path / "s.tif", scattered(20, 0.5, 1))
        run.slides = [(SlideRow(SlideSource(str(tmp_path / "s.tif"))), "s")]
        assert run.go()
        assert (tmp_path / "out" / "grades.csv").read_text().count("\n") == 2
        corrected = tmp_path / "c.geojson"
        shutil.copy(tmp_path / "out" / "s" / "detections.geojson", corrected)
        assert wsi("renal", "review", tmp_path / "out" / "s", corrected)[0] == 0
        assert 'href="s/reviewed/report.html"' in (tmp_path / "out" / "index.html").read_text()
        (tmp_path / "s.tif").write_bytes(b"no slide any more")
        assert not run.go()
        rows = (tmp_path / "out" / "grades.csv").read_text().splitlines()
        assert (
            len(rows) == 2
        )  # neither the grade nor the person's reading is lost, and the row says what it is
        assert "a result of an earlier run: the last run of this slide failed" in rows[1]
        assert ",2026-" in rows[1]
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        assert [s["name"] for s in record["slides"]] == [f["name"] for f in record["failed"]] == ["s"]
        assert wsi("verify", tmp_path / "out")[0] == 0
        refresh_summary(LocalFolder(tmp_path / "out"))
        assert "a result of an earlier run" in (tmp_path / "out" / "grades.csv").read_text()

    @pytest.mark.slow
    def test_a_broken_slide_costs_itself(
        self, phantom: Path, reported: Path, tmp_path: Path, wsi: Run
    ) -> None:
        shutil.copytree(reported, tmp_path / "out")
        coarse = write_pyramid(
            tmp_path / "coarse.tif", painted(600, 600, (0, 0, 600, 600), (200, 205, 225)), mpp=0.7
        )
        (tmp_path / "broken.tif").write_bytes(b"no slide")
        words = (tmp_path / "broken.tif", phantom / "kidney_001.tif", coarse)
        code, said, noted = wsi("renal", "report", *words, "--out", tmp_path / "out")
        assert code == 1
        assert "kidney_001: C4d" in said
        assert "coarse: failed: " in noted
        assert "has 0.7 um/px, and the detector needs 0.6 or finer" in noted
        assert "broken: failed: " in noted
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        assert [f["name"] for f in record["failed"]] == ["broken", "coarse"]
        assert [s["name"] for s in record["slides"]] == ["kidney_001"]
        assert (tmp_path / "out" / "grades.csv").read_text().count("\n") == 2

    def test_models_of_the_wrong_kind(self, phantom: Path, tmp_path: Path, wsi: Run) -> None:
        words = ("renal", "report", phantom / "kidney_001.tif", "--out", tmp_path / "out")
        for options, reason in (
            (("--model", "lymph-node-demo"), "is a model of patches"),
            (("--model", "none-such"), "there is no model folder none-such"),
            (
                ("--fields-model", "renal-ptc-demo"),
                "is a detector of capillaries: wsi renal takes it as --model",
            ),
        ):
            code, _, said = wsi(*words, *options)
            assert (code, reason in said) == (2, True)
        code, _, said = wsi(*words, "--fields-model", "lymph-node-demo")
        assert (
            code,
            "lymph-node-demo does not tell feasible fields; give one of wsi train fields" in said,
        ) == (2, True)
        assert not (tmp_path / "out").exists()


class TestPropose:
    @pytest.mark.slow
    def test_what_is_proposed_can_be_corrected(self, phantom: Path, tmp_path: Path, wsi: Run) -> None:
        code, said, _ = wsi("renal", "propose", phantom / "kidney_001.tif", "--out", tmp_path / "p.geojson")
        assert code == 0
        assert "for research use only" in said
        value = json.loads((tmp_path / "p.geojson").read_text())
        assert not any(f["properties"].get("isLocked") for f in value["features"])
        assert {o.group for o in read_objects(tmp_path / "p.geojson")} == {"C4d positive", "C4d negative"}
        before = (tmp_path / "p.geojson").read_bytes()
        code, _, said = wsi("renal", "propose", phantom / "kidney_001.tif", "--out", tmp_path / "p.geojson")
        assert (code, "is there already, perhaps corrected" in said) == (2, True)
        assert (tmp_path / "p.geojson").read_bytes() == before


class TestModelsThatShip:
    def test_they_are_called_demonstration_models(self, wsi: Run) -> None:
        code, said, _ = wsi("models", "list")
        assert code == 0
        lines = {line.split()[0]: line for line in said.splitlines()}
        assert "detector, small, 0.5 um/px; demonstration weights" in lines["renal-ptc-demo"]
        assert "demonstration weights, not for real tissue" in lines["renal-fields-demo"]
        code, said, _ = wsi("models", "show", "renal-ptc-demo", "--json")
        assert json.loads(said)["demonstration"] is True

    def test_what_the_card_says(self) -> None:
        card = load_detector(ZOO / "renal-ptc-demo")[1]
        assert "never seen a real C4d slide" in card.limits
        assert all(0 < limit < 1 for limit in card.thresholds)
        assert min(card.metrics["AP50"].values()) > 0.85
