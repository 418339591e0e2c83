"""Camelyon16's evaluation: lesions from every kind of truth, what belongs together, figures, and bad input."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from scipy import ndimage
from shapely import MultiPolygon, Point, box
from sklearn.metrics import roc_auc_score, roc_curve

from pipelines.camelyon16.benchmark.cases import Selection, join, read_truth_table
from pipelines.camelyon16.benchmark.evaluation import EvaluationConfig, evaluate
from pipelines.camelyon16.benchmark.froc import froc
from pipelines.camelyon16.benchmark.predictions import Prediction, read_lesions, read_predictions
from pipelines.camelyon16.benchmark.report import lesion_mistake
from pipelines.camelyon16.benchmark.roc import operating_points, roc_figures
from pipelines.camelyon16.benchmark.truth import (
    LEVEL5_UM,
    LesionTruth,
    TumourRaster,
    lesion_truth,
    read_raster,
)
from tests.slides import real_data
from wsi.datasets.rules import Dataset, read_dataset
from wsi.errors import AnnotationError, ConfigError, WsiError
from wsi.marks.annotations import Annotation, write_asap
from wsi.metrics.ranking import auc, auc_draws, delong_interval
from wsi.metrics.resample import draw_weights
from wsi.results.folder import LocalFolder

Run = Callable[..., tuple[int, str, str]]
SIZE = (12800, 9600)  # level 5: 400 x 300


def raster(mask: np.ndarray) -> TumourRaster:
    return TumourRaster(mask, (32, 32))


def of(area: MultiPolygon, tmp_path: Path, size: tuple[int, int] = SIZE):
    write_asap(tmp_path / "t.xml", [Annotation(part, "Tumor") for part in area.geoms])
    return lesion_truth(read_raster(tmp_path / "t.xml", size))


class TestLesions:
    def test_nearer_than_75_um_merge(self, tmp_path: Path) -> None:
        """Two squares of 640 px; 75 um are 308 level-0 px, 9.6 of level 5."""

        def pair(gap: int) -> MultiPolygon:
            return MultiPolygon([box(640, 640, 1280, 1280), box(1280 + gap, 640, 1920 + gap, 1280)])

        assert len(of(pair(224), tmp_path).classes) == 1
        assert len(of(pair(416), tmp_path).classes) == 2

    def test_isolated_cells_go_by_the_ellipse(self) -> None:
        """A disc of 180 um grows by 37.5 um on each side to 255 um, below 275; one of 230 um to 305."""

        def kinds(um: float) -> tuple[str, ...]:
            y, x = np.mgrid[0:700, 0:700]
            return lesion_truth(raster(np.hypot(x - 350, y - 350) * LEVEL5_UM <= um / 2)).classes

        assert [kinds(um) for um in (180, 230, 1900, 2100)] == [
            ("isolated",),
            ("micro",),
            ("micro",),
            ("macro",),
        ]

    def test_length_and_centre_are_those_of_the_lesion(self, tmp_path: Path) -> None:
        area = MultiPolygon([Point(6400, 4800).buffer(2057.6)])  # radius 500 um
        truth = of(area, tmp_path)
        assert truth.lengths_um == pytest.approx([1000], rel=0.01)
        assert truth.centres[0] == pytest.approx([6400, 4800], abs=16)
        outline = truth.outline(1)[0]
        assert outline.area == pytest.approx(Point(0, 0).buffer(2057.6 + 154.3).area, rel=0.03)
        assert outline.centroid.coords[0] == pytest.approx((6400, 4800), abs=20)

    @pytest.mark.parametrize("step", [(32.0, 40.0), (40.0, 32.0), (32.0, 32.0)])
    def test_an_outline_follows_the_pixels_edges_on_both_axes(self, step: tuple[float, float]) -> None:
        """Pixels of 32 x 40 level-0 px: columns 10 to 29 and rows 20 to 25 are x 320 ... 960 and y 800 ... 1040."""
        labels = np.zeros((7, 22), np.int32)
        labels[1:7, 2:22] = 1
        boxes = ((slice(1, 7), slice(2, 22)),)
        truth = LesionTruth(labels, (19, 8), step, np.array([500.0]), np.zeros((1, 2)), boxes)
        (outline,) = truth.outline(1)
        x0, y0, x1, y1 = np.array([10, 20, 30, 26]) * (*step, *step)
        assert outline.bounds == pytest.approx((x0, y0, x1, y1))
        assert outline.equals_exact(box(x0, y0, x1, y1).normalize(), 1e-6, normalize=True)

    def test_a_mask_without_tumour_has_no_lesion(self) -> None:
        """The official code makes one up: 3 lesions become one phantom of 17 px in the corner (facts/users.md)."""
        truth = lesion_truth(raster(np.zeros((300, 400), np.bool_)))
        assert truth.classes == ()
        assert truth.numbers_at(np.array([[5.0, 5.0]])).tolist() == [0]

    def test_equals_the_official_steps_on_the_whole_raster(self) -> None:
        """Restated with scipy on the whole mask, without cropping: EDT, threshold, holes, 8-neighbours, ellipse."""
        rng = np.random.default_rng(3)
        for _ in range(25):
            blobs = ndimage.gaussian_filter(rng.normal(size=(90, 120)), rng.uniform(1, 5))
            mask = blobs > np.quantile(blobs, rng.uniform(0.8, 0.995))  # some reach over the slide's edge
            distance = ndimage.distance_transform_edt(255 - mask.astype(np.uint8) * 255)
            binary = ndimage.binary_fill_holes(distance < 75 / (0.243 * 2**5 * 2))
            expected, count = ndimage.label(binary, np.ones((3, 3)))
            truth = lesion_truth(raster(mask))
            assert len(truth.classes) == count
            y, x = np.mgrid[0:90, 0:120]
            numbers = truth.numbers_at(np.stack([x.ravel() * 32.0, y.ravel() * 32.0], axis=1)).reshape(
                90, 120
            )
            pairs = set(zip(numbers.ravel().tolist(), expected.ravel().tolist(), strict=True))
            assert len(pairs) == count + 1  # one to one, background with background
            assert (0, 0) in pairs
            for mine, theirs in pairs - {(0, 0)}:
                rows, cols = np.nonzero(expected == theirs)
                spread = np.cov(np.stack([rows, cols]), bias=True)
                axis = 4 * np.sqrt(np.linalg.eigvalsh(spread)[-1])  # regionprops: ellipse of the same moments
                assert (truth.classes[mine - 1] == "isolated") == (axis < 275 / (0.243 * 32))

    def test_real_outlines(self) -> None:
        """Tumor_001 of Camelyon16: NCRF's JSON."""
        path = real_data("camelyon16", "train_polygons", "Tumor_001.json")
        truth = lesion_truth(read_raster(path, None))
        assert len(truth.classes) > 0
        value = json.loads(path.read_text())
        x, y = np.mean(value["positive"][0]["vertices"], axis=0)
        assert truth.numbers_at(np.array([[x, y]]))[0] > 0


AREA = MultiPolygon([box(3200, 3200, 5760, 4480), box(8000, 6400, 8960, 8960)])


def pixels(step: int, value: int = 1, other: int = 0) -> np.ndarray:
    """The area as a mask of one level; ``other`` is written where there is tissue without tumour."""
    mask = np.zeros((SIZE[1] // step, SIZE[0] // step), np.uint8)
    mask[20 * 32 // step : 280 * 32 // step, 20 * 32 // step : 380 * 32 // step] = other
    for part in AREA.geoms:
        x0, y0, x1, y1 = (round(v / step) for v in part.bounds)
        mask[y0:y1, x0:x1] = value
    return mask


class TestMasks:
    @pytest.mark.parametrize(("value", "other", "said"), [(1, 0, "1 is"), (255, 0, "255 is"), (2, 1, "2 is")])
    @pytest.mark.parametrize("step", [32, 16, 8])
    def test_every_convention_and_level_is_the_same_truth(
        self, tmp_path: Path, value: int, other: int, said: str, step: int
    ) -> None:
        cv2.imwrite(str(tmp_path / "m_mask.png"), pixels(step, value, other))
        found = read_raster(tmp_path / "m_mask.png", SIZE)
        assert said in found.note
        write_asap(tmp_path / "m.xml", [Annotation(part, "Tumor") for part in AREA.geoms])
        assert (found.mask == read_raster(tmp_path / "m.xml", SIZE).mask).all()

    def test_a_pyramid_is_read_at_level_5(self, tmp_path: Path) -> None:
        """Level 5 of the file is what the official code opens; its finer levels are not read."""
        with tifffile.TiffWriter(tmp_path / "m_mask.tif") as tif:
            for level in range(7):
                image = (
                    pixels(2**level, 255)
                    if level == 5
                    else np.zeros((SIZE[1] >> level, SIZE[0] >> level), np.uint8)
                )
                tif.write(image, tile=(256, 256), subfiletype=int(level > 0), compression="deflate")
        assert (read_raster(tmp_path / "m_mask.tif", SIZE).mask == (pixels(32) > 0)).all()
        alone = read_raster(tmp_path / "m_mask.tif", None)
        assert (alone.mask == (pixels(32) > 0)).all()
        assert "its finest level, 12800 x 9600 px, is taken for the slide's level 0" in alone.note

    def test_a_full_size_mask_of_one_level(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "m_mask.tif", pixels(1, 255), tile=(512, 512), compression="deflate")
        assert (read_raster(tmp_path / "m_mask.tif", SIZE).mask == (pixels(32) > 0)).all()

    def test_wrong_levels_shapes_and_values_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "m_mask.png"
        cv2.imwrite(str(path), pixels(32)[::2, ::2])
        with pytest.raises(
            AnnotationError, match="64 level-0 pixels per pixel; the evaluation needs level 5"
        ):
            read_raster(path, SIZE)
        with pytest.raises(AnnotationError, match="one level, and the size of its slide is not known"):
            read_raster(path, None)
        cv2.imwrite(str(path), pixels(32)[:, :200])
        with pytest.raises(AnnotationError, match="200 x 300 px, not the shape of its slide"):
            read_raster(path, SIZE)
        cv2.imwrite(str(path), pixels(32, 7, 3))
        with pytest.raises(AnnotationError, match=r"values \[3, 7\]; say which is tumour with --truth-label"):
            read_raster(path, SIZE)
        assert (read_raster(path, SIZE, label=7).mask == (pixels(32) > 0)).all()
        cv2.imwrite(str(path), pixels(32, 0))
        assert not read_raster(path, SIZE).mask.any()  # whether that may be is for the evaluation to say

    def test_outlines_of_another_slide(self, tmp_path: Path) -> None:
        write_asap(tmp_path / "t.xml", [Annotation(box(100, 100, 90000, 5000), "Tumor")])
        with pytest.raises(AnnotationError, match="outside its slide of 12800 x 9600"):
            read_raster(tmp_path / "t.xml", SIZE)


class TestMetrics:
    def test_auc_of_draws_is_that_of_repeated_slides(self) -> None:
        rng = np.random.default_rng(0)
        positive, scores = rng.random(40) < 0.4, rng.integers(0, 9, 40) / 9
        weights = rng.multinomial(40, np.full(40, 1 / 40), size=30)
        expected = [roc_auc_score(np.repeat(positive, w), np.repeat(scores, w)) for w in weights]
        assert auc_draws(positive, scores, weights) == pytest.approx(expected, abs=1e-12)

    def test_delong_is_the_jackknife(self) -> None:
        """Its variance equals that of leaving out one positive, and one negative, at a time (two samples)."""
        rng = np.random.default_rng(1)
        positive = np.repeat([True, False], [13, 21])
        scores = np.round(rng.normal(size=34) + positive, 1)
        parts = []
        for group in (positive, ~positive):
            left_out = [auc(np.delete(positive, i), np.delete(scores, i)) for i in np.flatnonzero(group)]
            n = len(left_out)
            parts.append((n - 1) / n * np.sum((left_out - np.mean(left_out)) ** 2))
        half = 1.959963984540054 * np.sqrt(sum(parts))
        low, high = delong_interval(positive, scores)
        middle = auc(positive, scores)
        assert (low, high) == pytest.approx((middle - half, min(1, middle + half)), abs=1e-12)

    def test_operating_points(self) -> None:
        """Tumour .9 .8 .3, normal .7 .4 .2 .1: from .5 on 2 of 3 and 3 of 4; specificity 1 allows 2 of 3."""
        tumour = np.array([True] * 3 + [False] * 4)
        scores = np.array([0.9, 0.8, 0.3, 0.7, 0.4, 0.2, 0.1])
        weights = np.zeros((0, 7), np.int64)
        points = {
            p["at"]: (p["sensitivity"]["value"], p["specificity"]["value"])
            for p in operating_points(tumour, scores, weights, (0.5,))
        }
        assert points["slide score >= 0.5"] == pytest.approx((2 / 3, 3 / 4))
        assert points["specificity >= 0.95"] == pytest.approx((2 / 3, 1))
        assert points["sensitivity >= 0.9"] == pytest.approx((1, 0.5))

    def test_operating_points_of_draws_are_those_of_repeated_slides(self) -> None:
        rng = np.random.default_rng(5)
        tumour, scores = rng.random(30) < 0.5, rng.integers(0, 12, 30) / 12
        for w in rng.multinomial(30, np.full(30, 1 / 30), size=20):
            mine = operating_points(tumour, scores, np.stack([w, w]), (0.5,))[2]  # specificity >= 0.95
            false, true, _ = roc_curve(np.repeat(tumour, w), np.repeat(scores, w), drop_intermediate=False)
            assert mine["sensitivity"]["interval"][0] == pytest.approx(true[1 - false >= 0.95].max())

    def test_draws_of_one_class_are_left_out(self) -> None:
        """4 perfect tumour slides and 2 normal ones: of the draws that have both, none has a mistake."""
        rng = np.random.default_rng(0)
        tumour, scores = np.arange(6) < 4, np.array([0.9, 0.8, 0.7, 0.6, 0.2, 0.1])
        weights = rng.multinomial(6, np.full(6, 1 / 6), size=500)
        assert (weights[:, ~tumour].sum(1) == 0).any()
        for point in operating_points(tumour, scores, weights, (0.5,)):
            assert point["sensitivity"]["interval"] == point["specificity"]["interval"] == [1, 1]

    def test_auc_by_the_longest_lesion(self) -> None:
        """Macro .9 and .2, micro .4, isolated .1; normal .3 .05: macro wins 3 of 4, micro 2 of 2, all 6 of 8."""
        kinds = ["macro", "macro", "micro", "isolated", None, None]
        found = roc_figures(kinds, np.array([0.9, 0.2, 0.4, 0.1, 0.3, 0.05]), np.zeros((0, 6), np.int64), ())
        assert found["AUC, macrometastases"]["value"] == pytest.approx(3 / 4)
        assert found["AUC, micrometastases"]["value"] == pytest.approx(1)
        assert found["AUC"]["value"] == pytest.approx(6 / 8)
        counts = [found[k]["tumour slides"] for k in ("AUC, macrometastases", "AUC, micrometastases", "AUC")]
        assert counts == [2, 1, 4]


def submission(
    folder: Path, slides: dict[str, list[tuple[float, int, int]]], scores: dict[str, float] | None = None
) -> Path:
    (folder / "lesions").mkdir(parents=True, exist_ok=True)
    for name, rows in slides.items():
        (folder / "lesions" / f"{name}.csv").write_text("".join(f"{p},{x},{y}\n" for p, x, y in rows))
    if scores is not None:
        (folder / "classification.csv").write_text("".join(f"{n},{p}\n" for n, p in scores.items()))
    return folder


@pytest.fixture
def benchmark(tmp_path: Path) -> tuple[Path, Path]:
    """A submission of four slides and a truth folder: test_001 (two lesions), test_002 (one), two normal slides.

    test_001: one lesion found at 0.9, a false positive of 0.8. test_002: found at 0.5. Normal: 0.6, and nothing.
    """
    truth = tmp_path / "truth"
    truth.mkdir()
    write_asap(truth / "test_001.xml", [Annotation(part, "Tumor") for part in AREA.geoms])
    write_asap(truth / "test_002.xml", [Annotation(AREA.geoms[0], "Tumor")])
    (truth / "reference.csv").write_text(
        "test_001,Tumor,IDC,Macro\ntest_002,Tumor,IDC,Micro\ntest_003,Normal,None,None\ntest_004,Normal,None,None\n"
    )
    found = {
        "test_001": [(0.9, 4000, 4000), (0.7, 4200, 4000), (0.8, 100, 100)],
        "test_002": [(0.5, 4000, 4000)],
        "test_003": [(0.6, 50, 60)],
        "test_004": [],
    }
    scores = {"test_001": 0.9, "test_002": 0.5, "test_003": 0.6, "test_004": 0.1}
    return submission(tmp_path / "run", found, scores), truth


class TestEvaluate:
    def test_by_hand(self, benchmark: tuple[Path, Path]) -> None:
        """Three lesions; scores 0 .5 .6 .8 .9, 0 dropped. .5: FP 2/4, TP 2/3. .6: 2/4, 1/3. .8: 1/4, 1/3. .9: 0, 1/3.

        At 1/4: the last point there, 1/3. From 1/2 on: 2/3. AUC: .9 above both normals, .5 above one: 3/4.
        """
        run, truth = benchmark
        predictions = read_predictions(run)
        cases = join(predictions, truth, Selection(read_dataset("camelyon16")))
        result = evaluate(cases.cases, EvaluationConfig(draws=200))
        at = [v["value"] for v in result.figures["sensitivity at false positives per slide"].values()]
        assert at == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])
        assert result.figures["FROC"]["value"] == pytest.approx(np.mean(at))
        low, high = result.figures["FROC"]["interval"]
        assert 0 <= low < result.figures["FROC"]["value"] < high <= 1
        assert result.figures["AUC"]["value"] == pytest.approx(3 / 4)
        assert result.figures["lesions without any detection"] == 1
        missed = [lesion for lesion in result.lesions if not lesion.found]
        assert [(m.slide, round(m.x), round(m.y)) for m in missed] == [("test_001", 8480, 7680)]
        assert [(f.slide, f.score) for f in result.false] == [("test_001", 0.8), ("test_003", 0.6)]
        rows = [row for row in result.figures["lesions by length"] if row["lesions"]]
        assert [(row["from um"], row["lesions"], row["with a detection"]) for row in rows] == [(500, 3, 2)]

    def test_late_lesions_and_those_at_1_per_slide(self, tmp_path: Path) -> None:
        """A lesion behind 20 false positives on 2 slides (10 per slide) is late: found, not at 8, not at 1.

        Another behind 4 of them (2 per slide) is found at 8 and not at 1, a third is first.
        """
        truth = tmp_path / "truth"
        truth.mkdir()
        areas = [box(1000 + 3000 * i, 1000, 3000 + 3000 * i, 3000) for i in range(3)]
        write_asap(truth / "t.xml", [Annotation(area, "Tumor") for area in areas])
        places = [(0.9, 2000, 2000), (0.6, 5000, 2000), (0.1, 8000, 2000)]
        false = [(0.8 if i < 4 else 0.5, 9000, 100 + i) for i in range(20)]
        run = submission(tmp_path / "run", {"t": [*places, *false], "n": []})
        cases = join(read_predictions(run), truth, Selection(others_normal=True)).cases
        result = evaluate(cases, EvaluationConfig(draws=0))
        row = next(r for r in result.figures["lesions by length"] if r["lesions"])
        keys = (
            "lesions",
            "with a detection",
            "at 8 false positives per slide",
            "at 1 false positive per slide",
        )
        assert [row[k] for k in keys] == [3, 3, 2, 1]
        assert [lesion_mistake(lesion, result.curve) for lesion in result.lesions] == ["", "", "late"]

    def test_the_bootstrap_draws_slides_and_counts_those_that_count(
        self, benchmark: tuple[Path, Path]
    ) -> None:
        """Restated: each draw evaluated anew on the repeated slides, a slide that is marked in part taken out."""
        run, truth = benchmark
        write_asap(truth / "test_000.xml", [Annotation(AREA.geoms[0], "Tumor")])
        (run / "lesions" / "test_000.csv").write_text("0.95,100,100\n")
        with (run / "classification.csv").open("a") as file:
            file.write("test_000,0.95\n")
        rules = Dataset(partial=("test_000",))
        cases = join(read_predictions(run), truth, Selection(rules)).cases
        cfg = EvaluationConfig(draws=60, seed=3)
        result = evaluate(cases, cfg)
        assert result.figures["false positives"] == len(result.false) == 2  # that of test_000 is none
        hits = [s.hits for s in result.slides]
        scores = []
        for weight in draw_weights(np.random.default_rng(3), 5, 60):
            drawn = [
                h for h, n, s in zip(hits, weight, result.slides, strict=True) for _ in range(n) if s.counted
            ]
            if sum(h.lesions for h in drawn):
                scores.append(froc(drawn).score)
        assert result.figures["FROC"]["interval"] == pytest.approx(np.percentile(scores, (2.5, 97.5)))

    def test_files(self, benchmark: tuple[Path, Path], wsi: Run) -> None:
        run, truth = benchmark
        code, said, _ = wsi("camelyon16", "evaluate", run, "--truth", truth, "--draws", 50)
        assert code == 0
        assert "0.611" in said
        out = run / "evaluation"
        value = json.loads((out / "evaluation.json").read_text())
        assert value["variant"] == "official"
        assert value["slides evaluated"] == 4
        assert value["slide score"] == "as classification.csv states it"
        rows = list(csv.DictReader((out / "lesions.csv").open()))
        assert [(r["slide"], r["class"], r["best_score"], r["found_at_false_per_slide"]) for r in rows] == [
            ("test_001", "micro", "0.900000", "0.0000"),
            ("test_001", "micro", "", ""),
            ("test_002", "micro", "0.500000", "0.5000"),
        ]
        rows = list(csv.DictReader((out / "false_positives.csv").open()))
        assert [(r["slide"], r["x"], r["slide_has_tumour"]) for r in rows] == [
            ("test_001", "100", "yes"),
            ("test_003", "50", "no"),
        ]
        geo = json.loads((out / "mistakes" / "test_001.geojson").read_text())
        assert [f["properties"]["classification"]["name"] for f in geo["features"]] == [
            "Missed",
            "False positive",
        ]
        for name in ("froc.png", "roc.png", "atlas.html"):
            assert (out / name).stat().st_size > 1000
        first = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
        wsi("camelyon16", "evaluate", run, "--truth", truth, "--draws", 50)
        assert first == {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}  # the same bytes

    def test_variants_differ_where_they_must(self, benchmark: tuple[Path, Path]) -> None:
        """``negatives``: 0.6 on one of two normal slides is 1/2 per slide; 0.8 on a tumour slide does not count."""
        run, truth = benchmark
        cases = join(read_predictions(run), truth, Selection()).cases
        result = evaluate(cases, EvaluationConfig(variant="negatives", draws=0))
        at = [v["value"] for v in result.figures["sensitivity at false positives per slide"].values()]
        assert at == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])
        assert result.curve.false_per_slide.max() == 0.5
        assert result.figures["FROC"]["interval"] is None
        with pytest.raises(ConfigError, match="spacing, and that of test_001 is not known; pass --slides"):
            evaluate(cases, EvaluationConfig(variant="dataset"))

    def test_the_variant_dataset_goes_by_the_slide_s_spacing(self) -> None:
        """At twice the spacing, 75 um are half as many pixels: what merges at 0.243 um/px stays apart."""
        gap = MultiPolygon([box(640, 640, 1280, 1280), box(1504, 640, 2144, 1280)])
        mask = np.zeros((60, 80), np.bool_)
        for part in gap.geoms:
            x0, y0, x1, y1 = (int(v // 32) for v in part.bounds)
            mask[y0:y1, x0:x1] = True
        assert len(lesion_truth(raster(mask)).classes) == 1
        assert len(lesion_truth(raster(mask), 0.486 * 32, (32, 32)).classes) == 2

    def test_slides_marked_in_part_count_for_slides_only(
        self, benchmark: tuple[Path, Path], wsi: Run
    ) -> None:
        run, truth = benchmark
        for name in ("test_114", "test_049"):
            write_asap(truth / f"{name}.xml", [Annotation(AREA.geoms[0], "Tumor")])
            (run / "lesions" / f"{name}.csv").write_text("0.95,100,100\n")
        with (run / "classification.csv").open("a") as file:
            file.write("test_114,0.95\ntest_049,0.95\n")
        code, said, noted = wsi("camelyon16", "evaluate", run, "--truth", truth, "--draws", 10, "--no-atlas")
        assert code == 0
        assert "0.611" in said  # as without them: its false positive of 0.95 does not count
        assert "test_049 is left out: a duplicate" in noted
        assert "test_114 does not count for FROC" in noted
        value = json.loads((run / "evaluation" / "evaluation.json").read_text())
        assert (value["slides evaluated"], value["slides that count for FROC"]) == (5, 4)
        assert value["figures"]["AUC"]["tumour slides"] == 3

    def test_without_a_normal_slide_roc_is_not_defined(self, benchmark: tuple[Path, Path], wsi: Run) -> None:
        run, truth = benchmark
        left_out = ("--exclude", "test_003", "--exclude", "TEST_004")
        code, said, _ = wsi("camelyon16", "evaluate", run, "--truth", truth, *left_out, "--draws", 5)
        assert code == 0
        assert said.count("not defined") == 3
        value = json.loads((run / "evaluation" / "evaluation.json").read_text())
        assert value["figures"]["operating points"] == []
        assert value["left out"] == {"test_003": "--exclude", "TEST_004": "--exclude"}

    def test_nothing_of_an_earlier_evaluation_stays(self, benchmark: tuple[Path, Path], wsi: Run) -> None:
        run, truth = benchmark
        wsi("camelyon16", "evaluate", run, "--truth", truth, "--draws", 5)
        out = run / "evaluation"
        assert (out / "mistakes" / "test_003.geojson").exists()
        words = ("--exclude", "test_003", "--draws", 5, "--no-atlas")
        assert wsi("camelyon16", "evaluate", run, "--truth", truth, *words)[0] == 0
        assert not (out / "mistakes" / "test_003.geojson").exists()
        assert not (out / "atlas.html").exists()


class TestBadInput:
    def refused(self, wsi: Run, *words: object) -> str:
        code, _, said = wsi("camelyon16", *words)
        assert code == 2
        assert said.startswith("wsi: ")
        return said

    def test_a_detection_off_its_slide(self, benchmark: tuple[Path, Path], wsi: Run, tmp_path: Path) -> None:
        run, truth = benchmark
        (run / "lesions" / "test_003.csv").write_text("0.6,-5,60\n")
        assert "test_003: a detection at (-5, 60) lies outside its slide" in self.refused(
            wsi, "evaluate", run, "--truth", truth
        )

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("confidence,x,y\n0.5,1,2\n", "in line 1 is no probability; the challenge's form has no header"),
            ("0.5,1,2\n1.5,1,2\n", "line 2: 1.5 is no probability; it must lie in 0..1"),
            ("0.5,1,2\nnan,1,2\n", "line 2: nan is no probability"),
            ("0.5,1,2\nhigh,1,2\n", "line 2: 'high' is no probability"),
            ("0.5,1.5,2\n", "x and y must be whole level-0 pixels (round them), got '1.5' and '2'"),
            ("0.5,1\n", "line 1: '0.5,1' is not confidence,x,y"),
        ],
    )
    def test_a_broken_file_of_lesions(self, tmp_path: Path, text: str, said: str) -> None:
        (tmp_path / "s.csv").write_text(text)
        with pytest.raises(WsiError, match="s.csv") as caught:
            read_lesions(LocalFolder(tmp_path), "s.csv")
        assert said in str(caught.value)

    def test_a_slide_without_truth(self, benchmark: tuple[Path, Path], wsi: Run) -> None:
        run, truth = benchmark
        (run / "lesions" / "other.csv").write_text("")
        with (run / "classification.csv").open("a") as file:
            file.write("other,0.2\n")
        said = self.refused(wsi, "evaluate", run, "--truth", truth)
        assert "1 slide has results but no truth" in said
        assert "other; add their truth" in said
        code, said, _ = wsi(
            "camelyon16", "evaluate", run, "--truth", truth, "--others-normal", "--draws", 5, "--no-atlas"
        )
        assert code == 0
        assert "2 tumour and 3 normal" in said

    def test_truth_without_a_slide(self, benchmark: tuple[Path, Path], wsi: Run) -> None:
        run, truth = benchmark
        (run / "lesions" / "test_004.csv").unlink()
        (run / "classification.csv").unlink()
        said = self.refused(wsi, "evaluate", run, "--truth", truth)
        assert "1 slide has truth but no results: test_004; score them, or pass --subset" in said
        code, _, noted = wsi(
            "camelyon16", "evaluate", run, "--truth", truth, "--subset", "--draws", 5, "--no-atlas"
        )
        assert code == 0
        assert "test_004 is left out: no results (--subset)" in noted

    def test_the_same_slide_twice(self, benchmark: tuple[Path, Path], wsi: Run) -> None:
        run, truth = benchmark
        (run / "lesions" / "Test_001.csv").write_text("")
        assert "are of the same slide; keep one" in self.refused(wsi, "evaluate", run, "--truth", truth)
        (run / "lesions" / "Test_001.csv").unlink()
        with (run / "classification.csv").open("a") as file:
            file.write("test_001.tif,0.2\n")
        assert "line 5: test_001.tif is there twice" in self.refused(wsi, "evaluate", run, "--truth", truth)
        with (truth / "reference.csv").open("a") as file:
            file.write("test_001,Tumor\n")
        (run / "classification.csv").unlink()
        assert "line 5: test_001 is there twice" in self.refused(wsi, "evaluate", run, "--truth", truth)

    def test_two_files_of_truth(self, benchmark: tuple[Path, Path], wsi: Run) -> None:
        run, truth = benchmark
        (truth / "test_001.geojson").write_text("{}")
        assert "are truth of the same slide; keep one" in self.refused(wsi, "evaluate", run, "--truth", truth)

    def test_an_empty_truth_of_a_normal_slide_is_normal(self, benchmark: tuple[Path, Path], wsi: Run) -> None:
        run, truth = benchmark
        write_asap(truth / "test_003.xml", [])
        words = ("camelyon16", "evaluate", run, "--truth", truth, "--draws", 5, "--no-atlas")
        assert "2 tumour and 2 normal" in wsi(*words)[1]
        (truth / "reference.csv").unlink()
        said = self.refused(
            wsi,
            "evaluate",
            run,
            "--truth",
            truth,
            "--others-normal",
            "--exclude",
            "test_001",
            "--variant",
            "dataset",
        )
        assert "spacing" in said  # of test_002: the empty one was taken as normal
        code, said, _ = wsi(*words, "--others-normal")
        assert (code, "2 tumour and 2 normal" in said) == (0, True)
        assert "test_003.xml marks no tumour; if its slide has none" in self.refused(
            wsi, "evaluate", run, "--truth", truth, "--exclude", "test_004"
        )

    def test_labels_and_files_must_agree(self, benchmark: tuple[Path, Path], wsi: Run) -> None:
        run, truth = benchmark
        write_asap(truth / "test_003.xml", [Annotation(AREA.geoms[0], "Tumor")])
        said = self.refused(wsi, "evaluate", run, "--truth", truth)
        assert "test_003.xml marks tumour, though reference.csv says that the slide is normal" in said
        (truth / "test_003.xml").unlink()
        (truth / "more").mkdir()
        (truth / "more" / "reference.csv").write_text("test_003,Normal\n")
        assert "both tell labels; keep one" in self.refused(wsi, "evaluate", run, "--truth", truth)

    def test_outlines_win_over_a_mask(self, benchmark: tuple[Path, Path]) -> None:
        _, truth = benchmark
        cv2.imwrite(str(truth / "test_001_mask.png"), pixels(32))
        assert read_truth_table(truth).files["test_001"] == truth / "test_001.xml"

    def test_results_below_the_truth_are_no_truth(self, benchmark: tuple[Path, Path], wsi: Run) -> None:
        run, truth = benchmark
        words = (
            "camelyon16",
            "evaluate",
            run,
            "--truth",
            truth,
            "--out",
            truth / "evaluation",
            "--draws",
            5,
            "--no-atlas",
        )
        assert wsi(*words)[0] == 0
        assert (truth / "evaluation" / "mistakes" / "test_001.geojson").exists()
        assert wsi(*words)[0] == 0

    def test_a_folder_of_something_else_is_left_alone(self, benchmark: tuple[Path, Path], wsi: Run) -> None:
        run, truth = benchmark
        before = {p: p.read_bytes() for p in truth.iterdir()}
        said = self.refused(wsi, "evaluate", run, "--truth", truth, "--out", truth, "--draws", 5)
        assert "holds files of something else; choose another --out" in said
        assert before == {p: p.read_bytes() for p in truth.iterdir()}

    def test_an_outline_too_small_for_level_5(self, benchmark: tuple[Path, Path], wsi: Run) -> None:
        run, truth = benchmark
        speck = Annotation(box(20, 20, 26, 26), "Tumor")
        write_asap(truth / "test_002.xml", [speck])
        said = self.refused(wsi, "evaluate", run, "--truth", truth)
        assert "test_002.xml marks no tumour: 1 outline holds no pixel's centre at level 5" in said
        write_asap(truth / "test_002.xml", [speck, Annotation(AREA.geoms[0], "Tumor")])
        _, _, noted = wsi("camelyon16", "evaluate", run, "--truth", truth, "--draws", 5, "--no-atlas")
        assert "test_002.xml: 1 outline holds no pixel's centre at level 5: no lesion" in noted

    def test_tumour_without_a_file(self, benchmark: tuple[Path, Path], wsi: Run) -> None:
        run, truth = benchmark
        (truth / "test_002.xml").unlink()
        assert "says that test_002 has tumour, and no outlines or mask of it" in self.refused(
            wsi, "evaluate", run, "--truth", truth
        )

    def test_tumour_without_a_file_that_is_left_out(self, benchmark: tuple[Path, Path], wsi: Run) -> None:
        run, truth = benchmark
        (truth / "test_002.xml").unlink()
        words = ("camelyon16", "evaluate", run, "--truth", truth, "--draws", 5, "--no-atlas")
        code, _, err = wsi(*words, "--exclude", "test_002")
        assert code == 0
        assert "test_002 is left out: --exclude" in err

    def test_the_rules_leave_out_test_049_before_its_truth_is_asked_for(
        self, benchmark: tuple[Path, Path], wsi: Run
    ) -> None:
        run, truth = benchmark
        with (truth / "reference.csv").open("a") as file:
            file.write("test_049,Tumor,Ductal,Macro\n")
        assert wsi("camelyon16", "evaluate", run, "--truth", truth, "--draws", 5, "--no-atlas")[0] == 0

    def test_test_114_keeps_its_slide_score_without_outlines(
        self, benchmark: tuple[Path, Path], wsi: Run
    ) -> None:
        """It is marked in part, so that its lesions do not count: the AUC needs to know only that it has tumour."""
        run, truth = benchmark
        for path in [p for p in run.rglob("*") if p.is_file()]:
            text = path.read_text().replace("test_002", "test_114")
            path.unlink()
            path.with_name(path.name.replace("test_002", "test_114")).write_text(text)
        (truth / "test_002.xml").unlink()
        reference = (truth / "reference.csv").read_text()
        (truth / "reference.csv").write_text(reference.replace("test_002", "test_114"))
        code, _, err = wsi("camelyon16", "evaluate", run, "--truth", truth, "--draws", 5, "--no-atlas")
        assert code == 0, err
        assert "test_114: it has tumour, and no outlines: only its slide score counts" in err
        value = json.loads((run / "evaluation" / "evaluation.json").read_text())
        assert value["not counted for FROC"] == ["test_114"]
        assert value["figures"]["AUC"]["tumour slides"] == 2
        assert [s["tumour"] for s in value["slides"] if s["name"] == "test_114"] == [True]

    def test_masks_that_disagree(self, benchmark: tuple[Path, Path], tmp_path: Path) -> None:
        """test_002 lacks tumour at level 5 by mistake: its 1 (tissue) must not read as tumour beside a 0/1/2 mask."""
        run, truth = benchmark
        for name, mask in (("test_001", pixels(32, 2, 1)), ("test_002", pixels(32, 1, 1))):
            (truth / f"{name}.xml").unlink()
            cv2.imwrite(str(truth / f"{name}_mask.png"), mask)
        cases = join(read_predictions(run), truth, Selection()).cases
        for case in cases:
            object.__setattr__(case.prediction, "size", SIZE)
        with pytest.raises(
            AnnotationError, match="tumour reads as 1, in .*test_001_mask.png as 2; say which with"
        ):
            evaluate(cases, EvaluationConfig(draws=0))

    def test_slides_that_are_others(self, benchmark: tuple[Path, Path], wsi: Run, red_square: Path) -> None:
        run, truth = benchmark
        said = self.refused(wsi, "evaluate", run, "--truth", truth, "--slides", red_square)
        assert "--slides has no slide called test_001; give all of them" in said

    def test_what_was_taken_as_normal_is_said(self, benchmark: tuple[Path, Path], wsi: Run) -> None:
        """A misnamed file must not become a normal slide in silence; a slide's ending is no part of its name."""
        run, truth = benchmark
        (run / "classification.csv").unlink()
        (run / "lesions" / "test_001.csv").rename(run / "lesions" / "test_001.tif.csv")
        (run / "lesions" / "test_001_lesions.csv").write_text("")
        words = ("camelyon16", "evaluate", run, "--truth", truth, "--draws", 5, "--no-atlas")
        code, said, noted = wsi(*words, "--others-normal")
        assert (code, "2 tumour and 3 normal" in said) == (0, True)
        assert "taken as normal, by --others-normal: test_001_lesions" in noted
        assert "slide score: the highest detection, 0 without one" in noted
        (run / "lesions" / "test_002.csv").unlink()
        assert "test_002 (results that no truth names: test_001_lesions); score them" in wsi(*words)[2]

    def test_each_variant_has_its_own_folder(self, benchmark: tuple[Path, Path], wsi: Run) -> None:
        run, truth = benchmark
        words = ("camelyon16", "evaluate", run, "--truth", truth, "--draws", 5, "--no-atlas")
        wsi(*words)
        wsi(*words, "--variant", "negatives")
        for folder, variant in (("evaluation", "official"), ("evaluation-negatives", "negatives")):
            assert json.loads((run / folder / "evaluation.json").read_text())["variant"] == variant

    def test_files_in_two_places(self, benchmark: tuple[Path, Path], wsi: Run) -> None:
        run, truth = benchmark
        (run / "test_001.csv").write_text("")
        assert "test_001.csv lies beside" in self.refused(wsi, "evaluate", run, "--truth", truth)

    def test_nothing_there(self, tmp_path: Path, wsi: Run, benchmark: tuple[Path, Path]) -> None:
        run, truth = benchmark
        assert "holds neither results of wsi score nor CSVs" in self.refused(
            wsi, "evaluate", tmp_path / "no", "--truth", truth
        )
        assert "does not exist; give a folder" in self.refused(
            wsi, "evaluate", run, "--truth", tmp_path / "no"
        )
        (tmp_path / "empty").mkdir()
        assert "no annotation file, no mask" in self.refused(
            wsi, "evaluate", run, "--truth", tmp_path / "empty"
        )
        assert "--exclude nobody: no slide has this name" in self.refused(
            wsi, "evaluate", run, "--truth", truth, "--exclude", "nobody"
        )

    def test_a_slide_that_was_not_scored(self, benchmark: tuple[Path, Path]) -> None:
        run, truth = benchmark
        predictions = read_predictions(run)
        blank = Prediction("test_004", None, np.empty((0, 2)), np.empty(0), note="no tissue found")
        slides = (*[p for p in predictions.slides if p.name != "test_004"], blank)
        object.__setattr__(predictions, "slides", slides)
        with pytest.raises(
            ConfigError, match=r"1 slide has no score, test_004 among them \(not scored: no tissue found\)"
        ):
            join(predictions, truth, Selection())
        for selection in (Selection(exclude=("Test_004",)), Selection(subset=True)):
            cases = join(predictions, truth, selection)
            assert len(cases.cases) == 3
            assert [name.casefold() for name in cases.left_out] == ["test_004"]

    def test_a_manifest_says_everything(self, tmp_path: Path) -> None:
        """Names that Camelyon16's rules know mean nothing in another cohort's manifest."""
        for name in ("tumor_010", "normal_001"):
            (tmp_path / f"{name}.tif").write_bytes(b"")
        write_asap(tmp_path / "tumor_010.xml", [Annotation(AREA.geoms[0], "Tumor")])
        (tmp_path / "slides.csv").write_text(
            "path,truth,label\ntumor_010.tif,tumor_010.xml,tumor\nnormal_001.tif,,normal\n"
        )
        run = submission(tmp_path / "run", {"tumor_010": [], "normal_001": []})
        cases = join(read_predictions(run), tmp_path, Selection(read_dataset("camelyon16")))
        assert [(c.prediction.name, c.partial) for c in cases.cases] == [
            ("normal_001", False),
            ("tumor_010", False),
        ]
        assert read_truth_table(tmp_path).files["normal_001"] is None
