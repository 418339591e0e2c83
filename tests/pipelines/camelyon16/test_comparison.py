"""Two runs compared, submissions, the slide-level forest, and the error atlas."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely import box
from sklearn.ensemble import RandomForestClassifier

from pipelines.camelyon16.benchmark import atlas
from pipelines.camelyon16.benchmark.comparison import Evaluated, common_scale, compare, read_evaluation
from pipelines.camelyon16.benchmark.froc import TARGETS, SlideHits, Variant, froc
from pipelines.camelyon16.benchmark.predictions import read_predictions
from pipelines.camelyon16.read.score import ScoreConfig, score_slide
from pipelines.camelyon16.slide_model.features import FEATURES, heatmap_features, read_heatmap
from pipelines.camelyon16.slide_model.forest import ForestConfig, cross_validate, grow, read_forest
from pipelines.camelyon16.slide_model.slide_scores import largest_area_score
from tests.pipelines.camelyon16.test_evaluation import submission
from tests.pipelines.camelyon16.test_froc import VARIANTS, usual
from tests.slides import RednessEngine, painted, write_pyramid
from wsi.errors import ConfigError, ModelError, StoreError
from wsi.files import write_json
from wsi.marks.annotations import Annotation, write_asap
from wsi.placement import Placement
from wsi.results.folder import LocalFolder
from wsi.results.heatmap import Heatmap
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource

Run = Callable[..., tuple[int, str, str]]


def random_run(seed: int, quality: float, slides: int = 24, variant: Variant = "official") -> Evaluated:
    """Slides whose first half has two lesions each; ``quality`` lifts what is on them, and lowers what is not."""
    rng = np.random.default_rng(seed)
    hits = []
    for i in range(slides):
        tumour = i < slides // 2
        found = np.where(rng.random(2 * tumour) < 0.9, rng.random(2 * tumour) ** (1 / quality), 0)
        hits.append(
            SlideHits(found.astype(np.float32), rng.random(rng.poisson(3)) ** quality, 2 * tumour, tumour)
        )
    tumour = np.array([h.tumour for h in hits])
    scores = np.where(tumour, rng.random(slides) ** (1 / quality), rng.random(slides) ** quality)
    names = tuple(f"s{i}" for i in range(slides))
    return Evaluated(
        Path("run"), variant, names, np.ones(slides, bool), tuple(hits), scores, tuple((n,) for n in names)
    )


class TestCompare:
    @pytest.mark.parametrize("variant", VARIANTS)
    @given(slides=usual)
    def test_the_common_scale_leaves_froc_as_it_is(self, variant: Variant, slides: list[SlideHits]) -> None:
        # not on 0: a score of 0 never counts, and is no place on the scale
        lifted = [SlideHits(s.found, np.maximum(s.false, 1 / 128), s.lesions, s.tumour) for s in slides]
        moved = common_scale(lifted, variant)
        assert froc(moved, variant).at(TARGETS) == pytest.approx(froc(lifted, variant).at(TARGETS), abs=1e-12)
        whole = [
            SlideHits(np.maximum(s.found, np.float32(1 / 128)), s.false, s.lesions, s.tumour) for s in lifted
        ]
        moved = common_scale(whole, variant)  # nothing missed: the official code drops a real score
        assert froc(moved, variant).at(TARGETS) == pytest.approx(froc(whole, variant).at(TARGETS), abs=1e-12)

    def test_a_run_with_itself(self) -> None:
        run = random_run(0, 2)
        for shown in compare(run, run, 200, 0).values():
            assert shown["difference"] == {"value": 0.0, "interval": [0.0, 0.0]}
            assert shown["p"] == 1.0

    def test_other_units_change_nothing(self) -> None:
        """The same run with all scores squared, as another program's calibration might give them."""
        run = random_run(0, 2)
        squared = tuple(SlideHits(h.found**2, h.false**2, h.lesions, h.tumour) for h in run.hits)
        other = Evaluated(run.path, run.variant, run.names, run.counted, squared, run.scores**2, run.truth)
        found = compare(run, other, 200, 0)
        assert found["FROC"]["difference"]["value"] == pytest.approx(0, abs=1e-12)
        assert found["FROC"]["p"] == found["AUC"]["p"] == 1.0

    def test_better_is_seen_and_order_only_turns_the_sign(self) -> None:
        good, bad = random_run(1, 12, slides=60), random_run(2, 1, slides=60)
        found, turned = compare(good, bad, 500, 0), compare(bad, good, 500, 0)
        for name in ("FROC", "AUC"):
            assert found[name]["p"] < 0.01
            low, high = found[name]["difference"]["interval"]
            assert 0 < low < found[name]["difference"]["value"] < high
            assert turned[name]["difference"]["value"] == pytest.approx(-found[name]["difference"]["value"])
            assert turned[name]["p"] == pytest.approx(found[name]["p"])

    def test_p_is_that_of_all_swaps(self) -> None:
        """Six slides: all 64 ways to swap, by brute force, against 4,000 drawn ones."""
        a, b = random_run(3, 6, slides=6), random_run(4, 1, slides=6)
        mine, other = (common_scale(run.hits, "official") for run in (a, b))
        gaps = []
        for swap in product([False, True], repeat=6):
            first = [o if s else m for m, o, s in zip(mine, other, swap, strict=True)]
            second = [m if s else o for m, o, s in zip(mine, other, swap, strict=True)]
            gaps.append(froc(first).score - froc(second).score)
        exact = np.mean(np.abs(gaps) >= abs(gaps[0]) - 1e-12)
        assert compare(a, b, 4000, 0)["FROC"]["p"] == pytest.approx(exact, abs=0.03)

    @pytest.mark.slow
    def test_equal_programs_are_seldom_called_different(self) -> None:
        """Under the hypothesis p below 0.1 must come up in about one of ten: here in 3 to 21 of 100 (99.9 %)."""
        low = {"FROC": 0, "AUC": 0}
        for seed in range(100):
            found = compare(random_run(1000 + seed, 2), random_run(2000 + seed, 2), 100, seed)
            for name in low:
                low[name] += found[name]["p"] < 0.1
        assert all(3 <= count <= 21 for count in low.values())

    def test_what_must_not_be_compared(self) -> None:
        a = random_run(0, 2)
        with pytest.raises(
            ConfigError, match="by the variant 'official' and run by 'dataset'; use one for both"
        ):
            compare(a, random_run(0, 2, variant="dataset"), 100, 0)
        with pytest.raises(ConfigError, match="different slides: s24 is only in run"):
            compare(a, random_run(0, 2, slides=26), 100, 0)
        other = Evaluated(a.path, a.variant, a.names, a.counted, a.hits, a.scores, (("s0", 1), *a.truth[1:]))
        with pytest.raises(ConfigError, match="the truth of s0 is not the same"):
            compare(a, other, 100, 0)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results as ``wsi score`` leaves them: 4 tumour slides, red squares on pink, and 4 normal ones, with slides.csv.

    On tumour slides the lesion is at x 1280 ... 2560, y 1024 ... 2304; normal slides have a red cell each.
    """
    folder = tmp_path_factory.mktemp("benchmark")
    engine = RednessEngine()
    lines = ["path,truth,label"]
    for i in range(8):
        name = f"tumor_{i:03d}" if i < 4 else f"normal_{i:03d}"
        image = painted(4608, 3072, (512, 512, 4096, 2560), (190, 150, 185))
        if i < 4:
            image[1024:2304, 1280:2560] = (200, 80, 90)
            write_asap(folder / f"{name}.xml", [Annotation(box(1280, 1024, 2560, 2304), "Tumor")])
        else:
            image[1024:1152, 3072:3200] = (200, 100 + i, 90)
        write_pyramid(folder / f"{name}.tif", image, levels=5, tile=256, compression="deflate")
        lines.append(f"{name}.tif,{name}.xml,tumor" if i < 4 else f"{name}.tif,,normal")
        row = SlideRow(SlideSource(str(folder / f"{name}.tif")))
        score_slide(row, name, engine, folder / "results" / name, ScoreConfig())
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")
    facts = json.loads((folder / "results" / "tumor_000" / "slide.json").read_text())
    models = [{"name": "redness", "sha256": "0" * 64, "demonstration": True}]
    record = {"settings_fingerprint": facts["settings_fingerprint"], "models": models}
    sections = {"state": "finished", "slides": [], "failed": []}
    write_json(folder / "results" / "run.json", record | sections)
    return folder


class TestSubmission:
    def test_what_is_written_is_what_is_evaluated(self, scored: Path, tmp_path: Path, wsi: Run) -> None:
        run, out = scored / "results", tmp_path / "submission"
        assert wsi("camelyon16", "submit", run, "--out", out)[0] == 0
        assert len(list((out / "lesions").glob("*.csv"))) == 8
        assert (out / "lesions" / "tumor_000.csv").read_text() == (
            run / "tumor_000" / "lesions.csv"
        ).read_text()
        assert (out / "classification.csv").read_text().startswith("normal_004,0.")
        code, said, _ = wsi("camelyon16", "check", out, "--truth", scored, "--slides", scored / "slides.csv")
        assert (code, said) == (0, f"{out}: all is well\n")
        texts = []
        for where in (run, out):
            words = (
                "evaluate",
                where,
                "--truth",
                scored,
                "--out",
                tmp_path / f"of-{where.name}",
                "--no-atlas",
            )
            code, said, _ = wsi("camelyon16", *words)
            assert code == 0
            texts.append(said.split("evaluation")[0].split("shows it")[0].rsplit("\n", 1)[0])
        assert texts[0] == texts[1]
        before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
        code, _, said = wsi("camelyon16", "submit", run, "--out", out)
        assert (code, "holds a submission already; choose another --out, or pass --overwrite" in said) == (
            2,
            True,
        )
        assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
        assert wsi("camelyon16", "submit", run, "--out", out, "--overwrite")[0] == 0
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "letter.txt").write_text("dear")
        code, _, said = wsi("camelyon16", "submit", run, "--out", tmp_path / "other")
        assert (code, "holds files of something else" in said) == (2, True)

    def test_everything_wrong_is_said_at_once(self, scored: Path, tmp_path: Path, wsi: Run) -> None:
        out = tmp_path / "s"
        names = [f"tumor_{i:03d}" for i in range(4)] + [f"normal_{i:03d}" for i in range(4, 8)]
        submission(out, {name: [] for name in names}, dict.fromkeys(names, 0.5))
        (out / "lesions" / "tumor_000.csv").unlink()
        (out / "lesions" / "tumor_001.csv").write_text("prob,x,y\n")
        (out / "lesions" / "tumor_002.csv").write_text("0.5,5000,10\n")
        (out / "lesions" / "tumor_003.csv").write_text("1.5,50,10\n")
        (out / "lesions" / "another.csv").write_text("")
        code, said, noted = wsi(
            "camelyon16", "check", out, "--truth", scored, "--slides", scored / "slides.csv"
        )
        assert code == 1
        for sentence in (
            "tumor_000 has no file; a slide without lesions needs an empty one",
            "tumor_001.csv: 'prob' in line 1 is no probability; the challenge's form has no header",
            "tumor_002: a detection at (5000, 10) lies outside its slide of 4608 x 3072 px",
            "tumor_003.csv, line 1: 1.5 is no probability",
            "another is none of the slides that must be there",
            "has no score of another",
        ):
            assert sentence in noted
        assert "problems" in said
        (out / "classification.csv").unlink()
        assert "classification.csv is missing" in wsi("camelyon16", "check", out)[2]

    def test_a_slide_that_failed_is_not_left_out_in_silence(
        self, scored: Path, tmp_path: Path, wsi: Run
    ) -> None:
        run = tmp_path / "run"
        shutil.copytree(scored / "results", run)
        record = json.loads((run / "run.json").read_text())
        # its name says that it is normal, so no truth file would miss it
        record["failed"] = [{"name": "normal_099", "path": "x.tif", "reason": "x.tif is broken"}]
        write_json(run / "run.json", record)
        code, _, said = wsi("camelyon16", "submit", run, "--out", tmp_path / "s")
        assert code == 2
        assert "normal_099: not scored, and a missing file changes the benchmark's denominators" in said
        assert wsi("camelyon16", "submit", run, "--out", tmp_path / "s", "--subset")[0] == 0
        code, _, said = wsi("camelyon16", "evaluate", run, "--truth", scored)
        assert code == 2
        assert "1 slide could not be scored, normal_099 (x.tif is broken); score them, or pass" in said
        words = ("evaluate", run, "--truth", scored, "--subset", "--no-atlas", "--draws", 5)
        assert "normal_099 is left out: failed: x.tif is broken" in wsi("camelyon16", *words)[2]

    def test_a_run_that_did_not_finish(self, scored: Path, tmp_path: Path, wsi: Run) -> None:
        run = tmp_path / "run"
        shutil.copytree(scored / "results", run)
        record = json.loads((run / "run.json").read_text())
        write_json(run / "run.json", record | {"state": "interrupted"})
        for words in (("evaluate", run, "--truth", scored), ("submit", run, "--out", tmp_path / "s")):
            code, _, said = wsi("camelyon16", *words)
            assert (code, "the run of wsi score did not finish (interrupted)" in said) == (2, True)

    @pytest.mark.parametrize("score", ["7.5", "NaN"])
    def test_a_slide_score_that_is_none(self, scored: Path, tmp_path: Path, wsi: Run, score: str) -> None:
        run = tmp_path / "run"
        shutil.copytree(scored / "results", run)
        facts = json.loads((run / "tumor_001" / "slide.json").read_text()) | {"score": float(score)}
        (run / "tumor_001" / "slide.json").write_text(json.dumps(facts))
        code, _, said = wsi("camelyon16", "evaluate", run, "--truth", scored)
        assert (code, "tumor_001/slide.json states the score" in said) == (2, True)

    def test_a_slide_whose_results_are_gone(self, scored: Path, tmp_path: Path, wsi: Run) -> None:
        run = tmp_path / "run"
        shutil.copytree(scored / "results", run)
        record = json.loads((run / "run.json").read_text())
        write_json(
            run / "run.json",
            record | {"slides": [{"name": p.name} for p in sorted(run.iterdir()) if p.is_dir()]},
        )
        shutil.rmtree(run / "normal_005")
        code, _, said = wsi("camelyon16", "submit", run, "--out", tmp_path / "s")
        assert (code, "normal_005: not scored" in said) == (2, True)
        code, _, said = wsi("camelyon16", "evaluate", run / "tumor_001", "--truth", scored)
        assert (code, "holds one slide's results; give the folder above it" in said) == (2, True)
        code, _, said = wsi("camelyon16", "check", run)
        assert (code, "is the --out of wsi score, not a submission" in said) == (1, True)

    def test_a_copied_slide(self, scored: Path, tmp_path: Path, wsi: Run) -> None:
        run = tmp_path / "run"
        shutil.copytree(scored / "results", run)
        shutil.copytree(run / "tumor_001", run / "tumor_001_old")
        code, _, said = wsi("camelyon16", "evaluate", run, "--truth", scored)
        assert (code, "are of the same slide; remove one" in said) == (2, True)

    def test_check_goes_by_the_rules_of_an_evaluation(self, tmp_path: Path, wsi: Run, scored: Path) -> None:
        """Truth of tumour slides only: normal slides are known by name, test_049 is not wanted."""
        truth = tmp_path / "truth"
        truth.mkdir()
        for name in ("tumor_001", "test_049"):
            write_asap(truth / f"{name}.xml", [Annotation(box(0, 0, 900, 900), "Tumor")])
        names = ["tumor_001", "normal_001"]
        out = submission(tmp_path / "s", {n: [] for n in names}, dict.fromkeys(names, 0.5))
        code, said, noted = wsi("camelyon16", "check", out, "--truth", truth)
        assert (code, said) == (0, f"{out}: all is well as far as it was checked\n")
        assert "which normal slides must be there is not known" in noted
        code, _, noted = wsi("camelyon16", "check", out, "--truth", truth, "--dataset", "none")
        assert code == 1
        assert "test_049 has no file" in noted
        assert "normal_001 is none of the slides that must be there" in noted
        code, _, noted = wsi(
            "camelyon16", "check", out, "--truth", truth, "--slides", scored / "tumor_001.tif"
        )
        assert code == 1
        assert "normal_001 is not among --slides: its coordinates are not checked" in noted

    def test_results_of_two_settings_are_refused(self, scored: Path, tmp_path: Path, wsi: Run) -> None:
        run = tmp_path / "run"
        shutil.copytree(scored / "results", run)
        facts = json.loads((run / "tumor_002" / "slide.json").read_text())
        write_json(run / "tumor_002" / "slide.json", facts | {"settings_fingerprint": "other"})
        code, _, said = wsi("camelyon16", "evaluate", run, "--truth", scored)
        assert (code, "tumor_002 was scored with another model or other settings" in said) == (2, True)


class TestSlideScore:
    def test_the_largest_area_by_hand(self) -> None:
        """Cells of 50 x 20 um: three that touch by sides and a corner make 3,000 um2; a pair elsewhere is smaller."""
        scores = np.full((6, 8), 0.89, np.float32)
        scores[0, 0] = np.nan
        scores[1, 1] = scores[1, 2] = scores[2, 3] = 0.9
        scores[5, 6] = scores[5, 7] = 0.99
        heatmap = Heatmap(scores, Placement(100, 40))
        assert largest_area_score(heatmap, 0.5) == pytest.approx(0.003 / 1.003)
        assert largest_area_score(Heatmap(np.full((2, 2), 0.5, np.float32), Placement(9, 9)), 1) == 0
        big = Heatmap(np.ones((10, 10), np.float32), Placement(100, 100))
        assert largest_area_score(big, 1.0) == pytest.approx(0.5)  # 1 mm2

    def test_evaluate_and_submit_take_it(self, scored: Path, tmp_path: Path, wsi: Run) -> None:
        run = scored / "results"
        words = (
            "camelyon16",
            "evaluate",
            run,
            "--truth",
            scored,
            "--draws",
            "0",
            "--slide-score",
            "largest-area",
        )
        assert wsi(*words, "-o", tmp_path / "e")[0] == 0
        value = json.loads((tmp_path / "e" / "evaluation.json").read_text())
        assert value["slide score"].startswith("the largest connected area of cells at or above 0.9")
        with (tmp_path / "e" / "slides.csv").open() as file:
            shown = {row["slide"]: float(row["score"]) for row in csv.DictReader(file)}
        for p in read_predictions(run).slides:
            assert p.folder is not None
            assert p.mpp is not None
            assert shown[p.name] == pytest.approx(largest_area_score(read_heatmap(p.folder), p.mpp), abs=1e-5)
        assert len(set(shown.values())) > 1
        assert wsi("camelyon16", "submit", run, "-o", tmp_path / "s", "--slide-score", "largest-area")[0] == 0
        assert "largest connected area" in (tmp_path / "s" / "made_by.txt").read_text()
        code, _, err = wsi(*words, "-o", tmp_path / "f", "--slide-model", tmp_path)
        assert (code, "both score slides; give one of them" in err) == (2, True)
        code, _, err = wsi(
            *("camelyon16", "evaluate", tmp_path / "s", "--truth", scored, "--slide-score", "largest-area")
        )
        assert (code, "has no heatmap; --slide-score largest-area needs results of wsi score" in err) == (
            2,
            True,
        )


class TestForest:
    def test_features_by_hand(self) -> None:
        """A 3 x 2 block of 0.95 and one cell of 0.6 among 100 scored cells of 128 px at 0.25 um/px (32 um a cell)."""
        scores = np.zeros((10, 20), np.float32)
        scores[:, 10:] = np.nan
        scores[2:5, 1:3] = 0.95
        scores[8, 8] = 0.6
        values = dict(
            zip(FEATURES, heatmap_features(Heatmap(scores, Placement(128, 128)), 0.25), strict=True)
        )
        assert len(values) == 28
        assert values["tumour_share_at_0.5"] == pytest.approx(0.07)
        assert values["score_share_at_0.5"] == pytest.approx((6 * 0.95 + 0.6) / 100)
        assert values["tumour_share_at_0.9"] == pytest.approx(0.06)
        assert values["region_1_area_mm2"] == pytest.approx(6 * 0.032**2)
        assert values["region_1_extent"] == values["region_1_solidity"] == 1
        assert values["region_1_box_aspect"] == pytest.approx(3 / 2)
        assert values["region_1_score_mean"] == pytest.approx(0.95)
        # rows 0 1 2 have the variance 2/3, and 4 * sqrt(2/3) cells is the ellipse's axis
        assert values["region_1_major_axis_um"] == pytest.approx(4 * np.sqrt(2 / 3) * 32)
        assert values["region_2_score_max"] == pytest.approx(0.6)

    @pytest.mark.parametrize(("step_x", "step_y"), [(128, 192), (192, 128)])
    def test_features_of_cells_that_are_not_square(self, step_x: int, step_y: int) -> None:
        """A block of two rows and six columns, by hand; three cells of 0.6, against the same place in cells of 64 px."""
        scores = np.zeros((10, 20), np.float32)
        scores[2:4, 1:7] = 0.95
        scores[7:9, 5] = scores[8, 6] = 0.6
        values = heatmap_features(Heatmap(scores, Placement(step_x, step_y)), 0.25)
        columns, rows = step_x // 64, step_y // 64
        fine = np.repeat(np.repeat(scores, rows, axis=0), columns, axis=1)
        named = dict(zip(FEATURES, values, strict=True))
        on_squares = dict(
            zip(FEATURES, heatmap_features(Heatmap(fine, Placement(64, 64)), 0.25), strict=True)
        )
        width_um, height_um = 6 * step_x * 0.25, 2 * step_y * 0.25
        assert named["region_1_area_mm2"] == pytest.approx(width_um * height_um / 1e6)
        assert named["region_1_box_area_mm2"] == pytest.approx(width_um * height_um / 1e6)
        assert named["region_1_box_aspect"] == pytest.approx(height_um / width_um)
        # columns 0 ... 5 have the variance 35/12, rows 0 and 1 have 1/4
        major, minor = np.sqrt(35 / 12) * step_x, np.sqrt(1 / 4) * step_y
        assert named["region_1_major_axis_um"] == pytest.approx(4 * major * 0.25)
        assert named["region_1_eccentricity"] == pytest.approx(np.sqrt(1 - (minor / major) ** 2))
        for name in ("area_mm2", "box_area_mm2", "box_aspect", "extent", "score_mean"):
            assert named[f"region_2_{name}"] == pytest.approx(on_squares[f"region_2_{name}"])

    def test_a_slide_without_a_region_and_one_without_cells(self) -> None:
        assert not heatmap_features(Heatmap(np.zeros((4, 4), np.float32), Placement(128, 128)), 0.25).any()
        with pytest.raises(ValueError, match="no cell is scored"):
            heatmap_features(Heatmap(np.full((4, 4), np.nan, np.float32), Placement(128, 128)), 0.25)

    def test_it_predicts_as_scikit_learn_does(self) -> None:
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(60, 28)), rng.random(60) < 0.4
        cfg = ForestConfig(trees=30, seed=4)
        theirs = RandomForestClassifier(30, min_samples_leaf=2, class_weight="balanced", random_state=4).fit(
            x, y
        )
        new = rng.normal(size=(50, 28))
        assert grow(x, y, cfg).predict(new) == pytest.approx(theirs.predict_proba(new)[:, 1], abs=1e-12)

    def test_folds_hold_every_slide_once_and_the_truth_out(self) -> None:
        """On noise the out-of-fold scores must not know the labels."""
        rng = np.random.default_rng(1)
        x, y = rng.normal(size=(80, 28)), np.arange(80) % 2 == 0
        scores, fold = cross_validate(x, y, ForestConfig(trees=40))
        assert np.bincount(fold).tolist() == [16] * 5
        assert abs(np.corrcoef(scores, y)[0, 1]) < 0.3
        with pytest.raises(
            ConfigError,
            match="5 folds need as many slides of each class, and there are 4 tumour ones; pass a smaller",
        ):
            cross_validate(x[:44], np.arange(44) < 4, ForestConfig())

    def test_from_results_to_a_scored_benchmark(self, scored: Path, tmp_path: Path, wsi: Run) -> None:
        run, model = scored / "results", tmp_path / "forest"
        words = ("camelyon16", "forest", run, "--truth", scored, "--out", model, "--folds", 3, "--trees", 40)
        code, said, _ = wsi(*words)
        assert code == 0
        assert "AUC of the maximum: 1.000" in said
        first = {p: p.read_bytes() for p in model.rglob("*.*")}
        wsi(*words)
        assert first == {p: p.read_bytes() for p in model.rglob("*.*")}  # the same bytes
        assert "tumor_" not in (model / "card.json").read_text()  # names may be accession numbers
        code, _, said = wsi("camelyon16", "evaluate", run, "--truth", scored, "--slide-model", model)
        assert code == 2
        assert "was grown on 8 of these slides, normal_004 among them, so this would be no test" in said
        assert wsi("camelyon16", "submit", run, "--out", tmp_path / "s", "--slide-model", model)[0] == 0
        assert (
            "the slide-level model forest, demonstration weights"
            in (tmp_path / "s" / "made_by.txt").read_text()
        )
        with pytest.raises(ModelError, match="heatmaps of another patch model"):
            read_forest(model, ["f" * 64])
        (model / "forest.safetensors").write_bytes(
            (model / "forest.safetensors").read_bytes()[:-8] + b"12345678"
        )
        with pytest.raises(ModelError, match="is not the file that its card names"):
            read_forest(model, ["0" * 64])
        with pytest.raises(ModelError, match="is no slide-level model"):
            read_forest(tmp_path, ["0" * 64])


@pytest.fixture(scope="module")
def page(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas with a missed lesion (its CSV was emptied), and false positives on normal slides."""
    run = tmp_path_factory.mktemp("atlas") / "run"
    shutil.copytree(scored / "results", run)
    (run / "tumor_003" / "lesions.csv").write_text("")
    (run / "tumor_002" / "lesions.csv").write_text("0.2,3800,2000\n")
    from typer.testing import CliRunner

    from pipelines.cli import app

    done = CliRunner().invoke(
        app, ["camelyon16", "evaluate", str(run), "--truth", str(scored), "--draws", "20"]
    )
    assert done.exit_code == 0, done.output
    return run / "evaluation" / "atlas.html"


class TestAtlas:
    def test_what_is_on_it(self, page: Path) -> None:
        text = page.read_text()
        assert "For research use only" in text
        assert "demonstration weights" in text
        assert text.count('data-kind="missed"') == 2
        assert text.count('data-kind="false positive"') == 5
        assert text.count("data:image/jpeg") == 2 * 7
        assert text.count("http") == text.count("http-equiv")  # self-contained
        links = set(re.findall(r'href="(mistakes/[^"]+)"', text))
        assert links
        assert all((page.parent / link).is_file() for link in links)

    def test_thumbnails_show_the_place(self, page: Path, scored: Path) -> None:
        """The close view of the missed lesion is red all over; its outline encloses the middle of the wide one."""
        import base64

        import cv2

        text = page.read_text()
        card = text[text.index('data-slide="tumor_003"') :]
        pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", card)[:2]
        wide, close = (
            cv2.imdecode(np.frombuffer(base64.b64decode(p), np.uint8), 1)[..., ::-1] for p in pictures
        )
        assert close.reshape(-1, 3).mean(axis=0) == pytest.approx([200, 80, 90], abs=6)
        assert wide[130, 130] == pytest.approx([200, 80, 90], abs=12)
        # 1,280 px of 0.25 um are 320 um: a fifth of 1,600
        red = (wide[..., 1].astype(int) < 115) & (wide[..., 0] > 150)
        assert red.mean() == pytest.approx(0.04, abs=0.003)
        path = re.search(r'<path d="M([^"]+)Z"', card)
        assert path is not None
        points = np.array([p.split() for p in path[1].split("L")], np.float64)
        assert points.mean(axis=0) == pytest.approx([130, 130], abs=6)
        # 40 px of level 5 grow by the 4 that are nearer than 4.82: 48 * 8 of 1,600 um, in 260 px
        assert np.ptp(points, axis=0) == pytest.approx([62.4, 62.4], abs=1)

    def test_a_slide_of_one_level_shows_less(self, scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is read for a thumbnail is bounded, and its caption says how wide it is."""
        monkeypatch.setattr(atlas, "LARGEST_READ_PX", 400)
        source = SlideSource(str(scored / "tumor_000.tif"))
        card = atlas.Mistake(
            "missed", "s", "", "", 0, 0, None, 1900, 1600, (box(1280, 1024, 2560, 2304),), "", source
        )
        wide, close = atlas.with_views([card])[0].views
        assert wide.side_um == pytest.approx(400 * 0.25 * 16)  # at the coarsest level, 16
        assert close.side_um == pytest.approx(400 * 0.25 * 2)

    def test_names_are_escaped(self, page: Path, tmp_path: Path, scored: Path) -> None:
        result = json.loads((page.parent / "evaluation.json").read_text())
        result |= {"left out": {"<b>name</b>": "<script>why</script>"}, "truth": "<i>here</i>"}
        cards = [
            atlas.Mistake(
                "missed",
                '<img src=x onerror="alert(1)">',
                "micro",
                "micro",
                1.0,
                0.0,
                None,
                1,
                1,
                (),
                "m",
                None,
                (),
                "no picture: the slide is not known; pass --slides",
            )
        ]

        class Fake:
            false = ()

        shutil.copytree(page.parent, tmp_path / "escaped")
        out = tmp_path / "escaped" / "atlas.html"
        atlas.write_atlas(LocalFolder(out.parent), cards, Fake(), result, "official")  # type: ignore[arg-type]
        assert "<img src=x" not in out.read_text()
        assert "&lt;img src=x" in out.read_text()
        assert not any(tag in out.read_text() for tag in ("<b>name", "<script>why", "<i>here"))
        assert "no picture: the slide is not known" in out.read_text()

    def test_the_page_stays_small(self, scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Beyond the budget cards have no pictures, and say so."""
        monkeypatch.setattr(atlas, "BUDGET", 20_000)
        source = SlideSource(str(scored / "tumor_000.tif"))
        cards = [
            atlas.Mistake("false positive", "s", "", "", 0, 0.9, 1.0, 1500 + i, 1300, (), "", source)
            for i in range(9)
        ]
        seen = atlas.with_views(cards)
        assert [c.x for c in seen] == [c.x for c in cards]
        assert 0 < sum(bool(c.views) for c in seen) < 9
        assert "over 20 MB" in seen[-1].why_blank
        gone = atlas.Mistake("missed", "s", "", "", 0, 0, None, 1, 1, (), "", SlideSource("/gone.tif"))
        assert "does not exist" in atlas.with_views([gone])[0].why_blank

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
    def test_in_chromium(self, page: Path, tmp_path: Path) -> None:
        """The page's own script filters and sorts; what is chosen stands in the address, so it can be shared."""

        def dom(fragment: str) -> str:
            flags = [
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-sync",
            ]
            flags += [
                "--no-first-run",
                "--disable-component-update",
                f"--user-data-dir={tmp_path / 'profile'}",
            ]
            command = ["chromium", *flags, "--dump-dom", f"file://{page}{fragment}"]
            return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

        def shown(text: str) -> list[str]:
            articles = re.findall(r"<article([^>]*)>", text)
            return [re.search(r'data-slide="([^"]+)"', a)[1] for a in articles if "hidden" not in a]  # type: ignore[index]

        assert "7 of 7 shown" in dom("")
        missed = dom("#kind=missed")
        assert "2 of 7 shown" in missed
        assert shown(missed) == ["tumor_002", "tumor_003"]
        assert shown(dom("#slide=NORMAL_00&sort=slide")) == [f"normal_00{i}" for i in (4, 5, 6, 7)]
        by_score = shown(dom("#kind=false+positive&sort=score"))
        assert by_score[-1] == "tumor_002"  # 0.2, the lowest
        assert by_score[0] == "normal_004"  # the reddest
        assert shown(dom("#class=macro")) == []


def test_an_evaluation_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no evaluation; run: wsi camelyon16 evaluate"):
        read_evaluation(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"variant": "mine"}')
    with pytest.raises(StoreError, match="evaluation.json is broken"):
        read_evaluation(tmp_path)


@given(st.integers(0, 10_000))
def test_what_is_read_back_is_what_was_evaluated(seed: int) -> None:
    """Scores survive JSON to the last bit."""
    hits = random_run(seed, 2, slides=4).hits
    back = json.loads(json.dumps([[float(v) for v in h.found] for h in hits]))
    assert all((np.array(b, np.float32) == h.found).all() for b, h in zip(back, hits, strict=True))


def test_an_evaluation_of_kidneys_is_told_so(wsi: Run, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps({"ap50": {}, "slides": []}))
    code, _, err = wsi("camelyon16", "compare", tmp_path, tmp_path)
    assert code == 2
    assert "is an evaluation of capillaries (wsi renal evaluate)" in err
