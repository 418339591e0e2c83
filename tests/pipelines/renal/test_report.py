"""From slide to report: everything is counted once, in its field; what is uncertain is said."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.renal.read import report as report_module
from pipelines.renal.read.checks import ChecksConfig, brown_around
from pipelines.renal.read.fields import FieldsConfig
from pipelines.renal.read.page import _share_text, check_pdf
from pipelines.renal.read.reading import RenalConfig
from pipelines.renal.read.report import RenalReport
from pipelines.renal.read.run import RenalResult, report_slide
from pipelines.runs.config import load_config
from tests.renal_slides import BLUE, BROWN, PALE_BROWN, SIDE, Square, readers, scattered, slide_of
from tests.slides import ROOT, painted, real_data, write_pyramid
from wsi.errors import ConfigError, ForeignStoreError, ModelError, SpacingError
from wsi.marks.boxes import Boxes
from wsi.marks.geojson import read_objects
from wsi.phantoms.kidney.layout import KidneyPlanner
from wsi.phantoms.kidney.paint import KIDNEY_SCANNERS, KidneyPainter
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource

Run = Callable[..., tuple[int, str, str]]
SCHEMA = ROOT / "docs" / "renal_report.schema.json"
SQUARES = scattered(200, 0.25, 1)
LOOSE = RenalConfig.model_validate({"grading": {"min_fields": 1, "min_capillaries": 1}})


def reported(path: Path, out: Path, cfg: RenalConfig | None = None, **options: object) -> RenalResult:
    """The report of a slide by the stand-ins."""
    row = SlideRow(SlideSource(str(path)))
    return report_slide(row, "s", readers(), out, cfg or RenalConfig(), **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 200 capillaries, 50 of them positive, three pale ones beside them, and its report."""
    root = tmp_path_factory.mktemp("renal")
    pale = [Square(70 + 64 * i, 72, PALE_BROWN) for i in range(3)]
    apart = [s for s in SQUARES if all(abs(s.x - p.x) + abs(s.y - p.y) > 60 for p in pale)]
    slide_of(root / "s.tif", [*apart, *pale])
    reported(root / "s.tif", root / "s")
    (root / "truth.json").write_text(json.dumps([(s.x, s.y, s.colour == BROWN) for s in apart]))
    return root


def truth(folder: Path) -> list[tuple[int, int, bool]]:
    return [tuple(v) for v in json.loads((folder / "truth.json").read_text())]


class TestCounting:
    def test_every_capillary_once_in_its_field(self, folder: Path) -> None:
        report = RenalReport.model_validate_json((folder / "s" / "report.json").read_bytes())
        true = truth(folder)
        positive = sum(p for _, _, p in true)
        assert (report.result.positive, report.result.negative) == (positive, len(true) - positive)
        by_field = Counter((x // SIDE * SIDE, y // SIDE * SIDE, p) for x, y, p in true)
        for f in report.fields:
            assert f.positive == by_field[f.x, f.y, True]
            assert f.negative == by_field[f.x, f.y, False]
        assert report.result.percent == pytest.approx(100 * positive / len(true), abs=0.01)
        assert report.result.grade == "C4d2"

    def test_fields(self, folder: Path) -> None:
        """Nine fields of tissue, three of scar, three of glass at the tissue's edge; the area is that of the nine."""
        report = RenalReport.model_validate_json((folder / "s" / "report.json").read_bytes())
        assert Counter(f.why_not.split(":")[0] for f in report.fields) == {
            "": 9,
            "scar, artefact, poor stain, large vessel or glomerulus": 3,
            "mostly empty": 3,
        }
        assert report.field_mm2 == pytest.approx(9 * 0.256**2, rel=0.03)
        assert report.capillaries_per_mm2 == pytest.approx(len(truth(folder)) / report.field_mm2, rel=0.001)

    def test_stability_counts_what_the_threshold_lets_in(self, folder: Path) -> None:
        """Pale ones have 0.4, blue ones 0.8, brown ones 0.9."""
        report = RenalReport.model_validate_json((folder / "s" / "report.json").read_bytes())
        by = {s.threshold: s for s in report.stability}
        assert by[0.4].positive == report.result.positive + 3
        assert by[0.5].positive == report.result.positive
        assert by[0.8].negative == report.result.negative

    def test_rows_of_the_table(self, folder: Path) -> None:
        with (folder / "s" / "capillaries.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert Counter(row["counted"] for row in rows) == {"yes": len(truth(folder)), "no": 3}
        assert {row["score"] for row in rows if row["counted"] == "no"} == {"0.4000"}
        objects = {o.id: o for o in read_objects(folder / "s" / "detections.geojson")}
        counted = [row for row in rows if row["counted"] == "yes"]
        assert all(objects[row["id"]].group == row["class"] for row in counted)
        assert all(objects[row["id"]].shape.bounds[0] == float(row["x0"]) for row in counted)
        assert Counter(o.group for o in objects.values())["not feasible"] == 6
        value = json.loads((folder / "s" / "detections.geojson").read_text())
        locked = {
            f["properties"]["name"].split()[0]: bool(f["properties"].get("isLocked"))
            for f in value["features"]
        }
        assert locked == {"field": True, "capillary": False}
        for row in counted:  # the squares are drawn whole
            assert float(row["brown_around"]) == (1.0 if row["class"] == "C4d positive" else 0.0)

    def test_too_little_is_not_assessable(self, tmp_path: Path) -> None:
        slide_of(tmp_path / "s.tif", scattered(30, 0.5, 2))
        result = reported(tmp_path / "s.tif", tmp_path / "s").report.result
        assert (result.grade, result.not_assessable) == (None, "30 capillaries, at least 100 are needed")
        assert result.percent == 50
        assert "not assessable" in (tmp_path / "s" / "report.html").read_text()

    def test_the_settings_that_ship_are_the_defaults(self) -> None:
        assert load_config(SCHEMA.parents[1] / "configs" / "renal_report.yaml", RenalConfig) == RenalConfig()

    def test_thresholds_of_ones_own(self, tmp_path: Path) -> None:
        slide_of(
            tmp_path / "s.tif",
            [Square(100, 100, PALE_BROWN), Square(200, 100, BLUE), Square(300, 100, BROWN)],
        )
        cfg = LOOSE.model_copy(update={"thresholds": (0.85, 0.3)})
        result = reported(tmp_path / "s.tif", tmp_path / "s", cfg).report.result
        assert (result.positive, result.negative) == (2, 0)

    def test_a_detector_of_something_else(self, tmp_path: Path) -> None:
        from models.card import DetectorConfig

        other = readers(detector=DetectorConfig(classes=("nucleus", "mitosis")))
        with pytest.raises(
            ModelError, match="finds nucleus, mitosis; a report needs C4d negative and C4d positive"
        ):
            other.limits(RenalConfig())


class TestFiles:
    def test_json_follows_the_published_schema(self, folder: Path) -> None:
        schema = json.loads(SCHEMA.read_text())
        assert schema == json.loads(json.dumps(RenalReport.model_json_schema())), (
            "write model_json_schema() to docs/renal_report.schema.json"
        )
        value = json.loads((folder / "s" / "report.json").read_text())
        jsonschema.validate(value, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(value | {"reading": "someone"}, schema)

    def test_the_same_bytes_again_and_kept_when_done(self, folder: Path, tmp_path: Path) -> None:
        reported(folder / "s.tif", tmp_path / "again")
        names = sorted(p.name for p in (folder / "s").iterdir() if p.is_file())
        assert names == ["capillaries.csv", "detections.geojson", "report.html", "report.json", "slide.json"]
        for name in names:
            assert (tmp_path / "again" / name).read_bytes() == (folder / "s" / name).read_bytes()
        (tmp_path / "again" / "capillaries.csv").unlink()
        reported(folder / "s.tif", tmp_path / "again")  # what is missing comes back
        assert (tmp_path / "again" / "capillaries.csv").exists()
        before = (tmp_path / "again" / "report.html").stat().st_mtime_ns
        reported(folder / "s.tif", tmp_path / "again")
        assert (tmp_path / "again" / "report.html").stat().st_mtime_ns == before
        other = LOOSE.model_copy(update={"thresholds": (0.6, 0.6)})
        (tmp_path / "again" / "reviewed").mkdir()
        with pytest.raises(ForeignStoreError):
            reported(folder / "s.tif", tmp_path / "again", other)
        assert reported(folder / "s.tif", tmp_path / "again", other, overwrite=True).report.settings[
            "thresholds"
        ] == [0.6, 0.6]

    def test_a_review_stays_when_the_same_report_is_written_again(self, tmp_path: Path) -> None:
        """A damaged page is made again; what a person corrected is still of this reading."""
        slide_of(tmp_path / "s.tif", SQUARES[:20])
        reported(tmp_path / "s.tif", tmp_path / "s", LOOSE)
        (tmp_path / "s" / "reviewed").mkdir()
        (tmp_path / "s" / "reviewed" / "report.json").write_text("a review")
        whole = (tmp_path / "s" / "report.html").read_bytes()
        (tmp_path / "s" / "report.html").write_bytes(whole[:100])
        reported(tmp_path / "s.tif", tmp_path / "s", LOOSE)
        assert (tmp_path / "s" / "report.html").read_bytes() == whole
        assert (tmp_path / "s" / "reviewed" / "report.json").read_text() == "a review"
        assert not (tmp_path / "s" / "reviewed-before-1").exists()

    def test_a_damaged_store_of_fields_is_made_again(self, tmp_path: Path) -> None:
        slide_of(tmp_path / "s.tif", SQUARES[:20])
        reported(tmp_path / "s.tif", tmp_path / "s", LOOSE)
        store = tmp_path / "s" / "fields.zarr" / "zarr.json"
        whole = store.read_bytes()
        store.write_bytes(whole[:-9])
        reported(tmp_path / "s.tif", tmp_path / "s", LOOSE)
        assert store.read_bytes() == whole

    def test_killed_again_and_again_it_goes_on_inside_the_slide(self, tmp_path: Path) -> None:
        """After every SIGKILL the next run begins at the first chunk that is missing, to the same bytes."""

        def one_chunk_and_then_killed() -> None:
            made = readers()
            detect = made.detector.detect
            calls: list[int] = []

            def killed(tiles: np.ndarray) -> list[Boxes]:
                if calls:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls.append(len(tiles))
                with (tmp_path / "log").open("a") as log:
                    log.write(f"{len(tiles)}\n")
                return detect(tiles)

            made.detector.detect = killed  # type: ignore[method-assign]
            report_slide(SlideRow(SlideSource(str(tmp_path / "s.tif"))), "s", made, tmp_path / "s", LOOSE)

        slide_of(tmp_path / "s.tif", scattered(120, 0.3, 5, cols=6, rows=5), cols=7, rows=5)
        reported(tmp_path / "s.tif", tmp_path / "whole", LOOSE)
        codes = []
        for _ in range(8):
            child = multiprocessing.get_context("fork").Process(target=one_chunk_and_then_killed)
            child.start()
            child.join(60)
            codes.append(child.exitcode)
            if child.exitcode == 0:
                break
        assert codes == [-signal.SIGKILL] * 3 + [0]
        assert (tmp_path / "log").read_text().split() == ["8", "8", "8", "6"]  # 30 fields, none twice
        names = sorted(
            p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file()
        )
        assert len(names) > 8
        for name in names:
            assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name

    def test_other_thresholds_and_checks_look_at_no_field_again(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder / "s", tmp_path / "s")
        other = LOOSE.model_copy(update={"thresholds": (0.6, 0.95), "checks": ChecksConfig(certain=1.0)})
        made = readers()
        made.detector.detect = None  # type: ignore[assignment, method-assign]
        row = SlideRow(SlideSource(str(folder / "s.tif")))
        with pytest.raises(ForeignStoreError, match=r"holds a report of another .*--overwrite"):
            report_slide(row, "s", made, tmp_path / "s", other)
        again = report_slide(row, "s", made, tmp_path / "s", other, overwrite=True).report
        assert again.result.positive == 0  # brown ones have 0.9
        fields = LOOSE.model_copy(update={"fields": FieldsConfig(threshold=0.2)})
        with pytest.raises(TypeError):  # other fields: the detector is asked again
            report_slide(row, "s", made, tmp_path / "s", fields, overwrite=True)

    def test_a_new_version_keeps_a_review_of_the_same_reading(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(folder / "s", tmp_path / "s")
        (tmp_path / "s" / "reviewed").mkdir()
        (tmp_path / "s" / "report.html").unlink()
        monkeypatch.setattr(report_module, "code_hash", lambda: "another")
        reported(folder / "s.tif", tmp_path / "s")
        assert (tmp_path / "s" / "reviewed").exists()
        assert json.loads((tmp_path / "s" / "report.json").read_text())["code"] == "another"

    def test_a_review_is_set_aside_when_its_report_is_replaced(self, tmp_path: Path) -> None:
        slide_of(tmp_path / "s.tif", SQUARES[:20])
        reported(tmp_path / "s.tif", tmp_path / "s", LOOSE)
        for number in (1, 2):
            (tmp_path / "s" / "reviewed").mkdir()
            (tmp_path / "s" / "reviewed" / "report.json").write_text(str(number))
            cfg = LOOSE.model_copy(update={"thresholds": (0.1 * number, 0.5)})
            reported(tmp_path / "s.tif", tmp_path / "s", cfg, overwrite=True)
            assert not (tmp_path / "s" / "reviewed").exists()
            assert (tmp_path / "s" / f"reviewed-before-{number}" / "report.json").read_text() == str(number)

    @pytest.mark.parametrize(
        ("percent", "text"),
        [
            (0.0, "0.0"),
            (1 / 30, "0.03"),
            (0.0004, "0.0004"),
            (9.9667, "9.97"),
            (10.0, "10.0"),
            (50.04, "50.04"),
            (33.3333, "33.3"),
        ],
    )
    def test_a_rounded_percentage_does_not_contradict_its_grade(self, percent: float, text: str) -> None:
        assert _share_text(percent, RenalConfig().grading.model_dump(mode="json")) == text

    def test_settings_are_checked(self) -> None:
        for bad in ({"thresholds": [5, -1]}, {"stability": [float("nan")]}, {"stability": []}):
            with pytest.raises(ValidationError):
                RenalConfig.model_validate_json(json.dumps(bad))

    def test_the_page_holds_everything_and_escapes(self, tmp_path: Path) -> None:
        slide_of(tmp_path / "a<b>&.tif", SQUARES[:60])
        row = SlideRow(SlideSource(str(tmp_path / "a<b>&.tif")))
        result = report_slide(row, "a<b>&", readers(), tmp_path / "out", LOOSE)
        page = (tmp_path / "out" / "report.html").read_text()
        assert "<b>&" not in page
        assert "a&lt;b&gt;&amp;" in page
        # nothing outside the run's own folder
        assert not re.search(r"""(src|href)=["'](?!data:|\.\./index\.html)""", page)
        assert len(re.findall(r'<figure(?: id="c\d+")?>', page)) == result.report.result.positive + min(
            48, result.report.result.negative
        )
        assert "For research use only" in page
        assert str(tmp_path) not in page

    def test_no_path_in_what_is_passed_on(self, folder: Path) -> None:
        for name in ("report.json", "report.html", "detections.geojson", "capillaries.csv"):
            assert str(folder) not in (folder / "s" / name).read_text()

    def test_pdfs_do_not_make_cut_slides_readable(self) -> None:
        """WeasyPrint tells PIL for the whole process to take what is cut short; a slide must not be read so."""
        script = (
            "from pipelines.renal.read.page import check_pdf\n"
            "try: check_pdf()\n"
            "except Exception as error: print('skip', error)\n"
            "from PIL import ImageFile; print(ImageFile.LOAD_TRUNCATED_IMAGES)"
        )
        ended = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
        )
        if ended.stdout.startswith("skip"):
            pytest.skip(ended.stdout)
        assert ended.stdout.strip() == "False"

    @pytest.mark.slow
    def test_pdf(self, tmp_path: Path) -> None:
        try:
            check_pdf()
        except ConfigError as error:
            pytest.skip(str(error))
        slide_of(tmp_path / "s.tif", SQUARES[:20])
        for out in ("a", "b"):
            reported(tmp_path / "s.tif", tmp_path / out, LOOSE, pdf=True)
            time.sleep(1.1)  # what is embedded must not state the second
        data = (tmp_path / "a" / "report.pdf").read_bytes()
        assert data.startswith(b"%PDF-")
        assert data == (tmp_path / "b" / "report.pdf").read_bytes()


class TestBadInput:
    def test_haematoxylin_and_eosin(self, tmp_path: Path) -> None:
        """A real H&E picture is warned of; five real DAB pictures are not."""
        import cv2

        said = {}
        for name in ("he", "dab_tubular_a", "dab_tubular_b", "dab_weak", "cd68_dab", "cd34_red_capillaries"):
            image = cv2.imread(str(real_data("kidney_stains", f"{name}.png")))[..., ::-1]
            write_pyramid(tmp_path / f"{name}.tif", np.ascontiguousarray(image), mpp=0.5)
            warnings = reported(tmp_path / f"{name}.tif", tmp_path / name, LOOSE).report.warnings
            said[name] = any("not a DAB stain" in w for w in warnings)
            report = RenalReport.model_validate_json((tmp_path / name / "report.json").read_bytes())
            result = report.result
            if said[name]:  # no grade anywhere, at no threshold
                assert not any(row.grade for row in report.stability)
                assert report.basis.grade_without_flagged is None
                assert report.basis.changes == ()
            assert (result.not_assessable == "not a DAB stain") == said[name]
            assert not (said[name] and result.grade)
        assert said == {
            "he": True,
            "dab_tubular_a": False,
            "dab_tubular_b": False,
            "dab_weak": False,
            "cd68_dab": False,
            "cd34_red_capillaries": True,
        }

    def test_no_feasible_field(self, tmp_path: Path) -> None:
        slide_of(tmp_path / "s.tif", SQUARES[:10], scar=4)
        result = reported(tmp_path / "s.tif", tmp_path / "s").report
        assert result.result.percent is None
        assert result.result.grade is None
        assert result.warnings == (
            "no field is feasible: nothing was counted; look at the fields that were left out",
        )
        assert "no percentage can be given" in (tmp_path / "s" / "report.html").read_text()

    def test_no_capillary(self, tmp_path: Path) -> None:
        slide_of(tmp_path / "s.tif", [])
        result = reported(tmp_path / "s.tif", tmp_path / "s").report
        assert result.result.percent is None
        assert result.result.not_assessable == "0 capillaries, at least 100 are needed"
        assert result.warnings == ("no capillary was found in the feasible fields; check stain and focus",)

    def test_no_tissue(self, tmp_path: Path) -> None:
        write_pyramid(tmp_path / "s.tif", np.full((1024, 1024, 3), 245, np.uint8), mpp=0.5)
        result = reported(tmp_path / "s.tif", tmp_path / "s").report
        assert result.warnings == ("no tissue was found: check that it is the right slide",)
        assert result.result.fields == 0
        assert result.pink_share is None

    def test_too_coarse(self, tmp_path: Path) -> None:
        write_pyramid(tmp_path / "s.tif", painted(600, 600, (0, 0, 600, 600), (200, 205, 225)), mpp=0.7)
        with pytest.raises(SpacingError, match=r"has 0.7 um/px, and the detector needs 0.6 or finer"):
            reported(tmp_path / "s.tif", tmp_path / "s")


class TestBrownAround:
    def ring(self, share: float) -> np.ndarray:
        """A brown ring around (50, 40), of which so much is drawn, from the right on."""
        image = np.full((80, 100, 3), (205, 208, 226), np.uint8)
        rows, cols = np.mgrid[0:80, 0:100] + 0.5
        radius, angle = np.hypot(cols - 50, rows - 40), np.arctan2(rows - 40, cols - 50) % (2 * np.pi)
        image[(radius > 14) & (radius < 18) & (angle < share * 2 * np.pi)] = (110, 70, 40)
        return image

    @pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
    def test_it_is_the_share_of_the_circumference(self, share: float) -> None:
        assert brown_around(self.ring(share), (32, 22, 68, 58)) == pytest.approx(share, abs=1.5 / 24)

    def test_what_lies_further_off_does_not_count(self) -> None:
        assert brown_around(self.ring(1.0), (46, 36, 54, 44)) == 0.0

    def test_blue_is_not_brown(self) -> None:
        image = self.ring(1.0)
        image[(image == (110, 70, 40)).all(axis=2)] = (60, 80, 190)
        assert brown_around(image, (32, 22, 68, 58)) == 0.0

    @pytest.mark.slow
    def test_on_phantoms_it_tells_rings_from_parts(self) -> None:
        """Of drawn capillaries: median above 0.9 for rings, below 0.7 for partial ones, near 0 for plain ones."""
        layout = KidneyPlanner(np.random.default_rng(4), (6144, 5120), 0.25).kidney(30)
        painter = KidneyPainter(layout, np.random.default_rng(0), KIDNEY_SCANNERS[0])
        found: dict[str, list[float]] = {}
        for c in layout.capillaries[:250]:
            x0, y0, x1, y1 = c.outline.bounds
            corner = int(x0) - 12, int(y0) - 12
            image = painter.render(*corner, int(x1 - x0) + 26, int(y1 - y0) + 26)
            assert image is not None
            box = (x0 - corner[0], y0 - corner[1], x1 - corner[0], y1 - corner[1])
            found.setdefault(c.kind, []).append(brown_around(image, box))
        assert np.median(found["ring"]) > 0.9
        assert np.median(found["partial"]) < 0.7
        assert np.median(found["plain"]) < 0.1
