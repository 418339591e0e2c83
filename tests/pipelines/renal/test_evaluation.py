"""Figures against the truth: worked by hand on a small case, and against what was painted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.training.data.detection import MarkedSlide
from pipelines.renal.evaluate.evaluation import evaluate
from pipelines.renal.evaluate.truth import CLASSES, Case, Cohort
from pipelines.renal.read.report import RenalReport
from tests.pipelines.renal.test_report import LOOSE, reported
from tests.renal_slides import BROWN, SQUARE, Square, scattered, slide_of
from wsi.marks.boxes import Boxes
from wsi.results.export import Feature, write_geojson

Run = Callable[..., tuple[int, str, str]]


def truth_file(path: Path, squares: list[Square]) -> None:
    import shapely

    half = SQUARE / 2
    features = [
        Feature(
            f"{i}",
            shapely.box(s.x - half, s.y - half, s.x + half, s.y + half),
            "annotation",
            "",
            "C4d positive" if s.colour == BROWN else "C4d negative",
            (0, 0, 0),
        )
        for i, s in enumerate(squares)
    ]
    write_geojson(path, features, (0, 0))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> RenalReport:
    """Of a slide with nine feasible fields, 0.5 um per pixel."""
    root = tmp_path_factory.mktemp("evaluation")
    slide_of(root / "s.tif", scattered(20, 0.5, 5))
    return reported(root / "s.tif", root / "s", LOOSE).report


def boxes(*middles: tuple[float, float]) -> np.ndarray:
    at = np.array(middles, np.float64).reshape(-1, 2)
    return np.hstack([at - 10, at + 10])


class TestByHand:
    """Five positive ones are marked. Found: two of them (0.9, 0.7), one false (0.8), one of the third 20 px off (0.6).

    20 px are 10 um: beyond the reach of 8 um. By falling score: hit, false, hit, false; listed in another order.
    Precision made falling at recalls up to 1/5: 1; up to 2/5: 2/3; then 0. AP over 101 recalls: 21 at 1, 20 at 2/3.
    """

    def case(self, report: RenalReport) -> Case:
        found = Boxes(
            boxes((420, 400), (200, 200), (300, 300), (100, 100)),
            np.full(4, CLASSES.index("C4d positive")),
            np.array([0.6, 0.7, 0.8, 0.9], np.float32),
        )
        middles = (100, 100), (200, 200), (400, 400), (800, 800), (900, 300), (1700, 100)
        marked = MarkedSlide(
            Boxes(boxes(*middles), np.ones(6, np.int64))
        )  # the last lies in a field that was left out: it counts for the percentage only
        counted = np.array([False, True, True, True])
        return Case(report, found, counted, marked, {})

    def test_figures(self, report: RenalReport) -> None:
        result = evaluate(Cohort((self.case(report),), ()))
        name = "C4d positive"
        assert result.ap50[name] == pytest.approx((21 * 1 + 20 * 2 / 3) / 101)
        assert math.isnan(result.ap50["C4d negative"])
        a = result.agreement[name]
        assert (a.hits, a.false, a.missed) == (2, 1, 3)  # 0.6 was not counted
        false, hit = result.froc[name]
        assert false.tolist() == pytest.approx([n / report.field_mm2 for n in (0, 0, 1, 1, 2)])
        assert hit.tolist() == [0, 0.2, 0.2, 0.4, 0.4]
        per_mm2 = 1 / report.field_mm2  # 1.7 of one false detection
        at = result.sensitivity_at(name)
        assert at[1] == 0.2
        assert per_mm2 < 2
        assert at[2] == 0.4

    def test_percent_and_grade(self, report: RenalReport) -> None:
        """Machine: 50 % (C4d2) on all slides; truth 100 %, C4d3."""
        case = self.case(report)
        assert case.true_percent == 100
        assert case.true_grade == "C4d3"
        result = evaluate(Cohort((case, case), ()))
        assert result.mean_error == 50
        assert (result.grades_right, result.graded) == (0, 2)
        assert result.bland_altman is not None
        assert (result.bland_altman.bias, result.bland_altman.low) == (-50, -50)

    def test_fields_by_hand(self, report: RenalReport) -> None:
        """All but one of the candidates truly as chosen: 9 feasible by the machine, one of them not in truth."""
        feasible = {(f.x, f.y): not f.why_not for f in report.fields}
        first = next(corner for corner, value in feasible.items() if value)
        case = Case(
            *(getattr(self.case(report), k) for k in ("report", "found", "counted", "marked")),
            feasible | {first: False},
        )
        result = evaluate(Cohort((case,), ()))
        negatives = len(feasible) - 8
        assert result.field_sensitivity == 1
        assert result.field_specificity == pytest.approx((negatives - 1) / negatives)
        # the one wrong field ties with the 8 right ones at 0.9: half a point each
        assert result.field_auc == pytest.approx((negatives - 1 + 0.5) / negatives)


class TestCommand:
    def test_perfect_networks(self, tmp_path: Path, wsi: Run) -> None:
        """Stand-ins that find every square: all figures at their best; a slide without truth is said."""
        for i, share in enumerate((0.02, 0.3, 0.7)):
            squares = scattered(150, share, i)
            slide_of(tmp_path / f"s{i}.tif", squares)
            out = tmp_path / "out" / f"s{i}"
            named = reported(tmp_path / f"s{i}.tif", out)
            value = json.loads((out / "report.json").read_text())
            value["slide"]["name"] = f"s{i}"
            (out / "report.json").write_text(json.dumps(value))
            assert named.report.result.grade is not None
            if i < 2:
                (tmp_path / "truth").mkdir(exist_ok=True)
                truth_file(tmp_path / "truth" / f"s{i}.geojson", squares)
        code, said, noted = wsi("renal", "evaluate", tmp_path / "out", "--truth", tmp_path / "truth")
        assert code == 0
        assert "s2 has no truth and is left out" in noted
        assert "is this the truth of these slides?" not in said
        assert "C4d positive: AP50 1.000; counted: F1 1.000" in said
        assert "percentage: mean absolute error 0.00 points" in said
        assert "grade: right on 2 of 2 slides, weighted kappa 1.000" in said
        names = sorted(p.name for p in (tmp_path / "out" / "evaluation").iterdir())
        assert names == ["agreement.png", "evaluation.json", "froc.png"]
        value = json.loads((tmp_path / "out" / "evaluation" / "evaluation.json").read_text())
        assert value["grade"] == {"right": 2, "slides": 2, "weighted_kappa": 1.0}
        assert value["fields"]["auc"] is None

    def test_truth_of_other_slides_is_noticed(self, tmp_path: Path, wsi: Run) -> None:
        slide_of(tmp_path / "s.tif", scattered(40, 0.5, 1))
        reported(tmp_path / "s.tif", tmp_path / "out" / "s")
        truth_file(
            tmp_path / "s.geojson", [Square(s.x + 30, s.y + 30, s.colour) for s in scattered(40, 0.5, 1)]
        )
        assert (
            "is this the truth of these slides?"
            in wsi("renal", "evaluate", tmp_path / "out", "--truth", tmp_path)[1]
        )

    def test_what_cannot_be_evaluated(self, tmp_path: Path, wsi: Run) -> None:
        (tmp_path / "out").mkdir()
        code, _, said = wsi("renal", "evaluate", tmp_path / "out", "--truth", tmp_path)
        assert (code, "holds no report; give the --out of wsi renal report" in said) == (2, True)
        slide_of(tmp_path / "s.tif", scattered(5, 0.5, 1))
        reported(tmp_path / "s.tif", tmp_path / "out" / "s")
        code, _, said = wsi("renal", "evaluate", tmp_path / "out", "--truth", tmp_path)
        assert (code, "holds no truth of s; name it s.geojson" in said) == (2, True)
        code, _, said = wsi("renal", "evaluate", tmp_path / "out", "--truth", tmp_path / "none")
        assert (code, "is neither a folder nor a slides.csv" in said) == (2, True)
        value = json.loads((tmp_path / "out" / "s" / "report.json").read_text())
        (tmp_path / "out" / "t").mkdir()
        (tmp_path / "out" / "t" / "report.json").write_text(json.dumps(value | {"code": "other"}))
        code, _, said = wsi("renal", "evaluate", tmp_path / "out", "--truth", tmp_path)
        assert (code, "differ in models, settings or code; report all slides by one command" in said) == (
            2,
            True,
        )
        (tmp_path / "out" / "t" / "report.json").unlink()
        (tmp_path / "out" / "s" / "capillaries.csv").write_text("id,class\n1,x\n")
        truth_file(tmp_path / "s.geojson", scattered(5, 0.5, 1))
        code, _, said = wsi("renal", "evaluate", tmp_path / "out", "--truth", tmp_path)
        assert (code, "capillaries.csv cannot be read" in said) == (2, True)
