"""Corrections come back by UUID; what is not of this slide, or not clear, is refused."""

from __future__ import annotations

import copy
import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shapely

from models.training.data.detection import read_marked
from models.training.data.fields import labelled_cells
from pipelines.renal.read.report import RenalReport
from pipelines.runs.cohort import named
from tests.pipelines.renal.test_report import reported
from tests.renal_slides import SIDE, SQUARE, scattered, slide_of
from wsi.results.folder import LocalFolder
from wsi.slides.grid import make_grid
from wsi.slides.slide import ReadPlan

Run = Callable[..., tuple[int, str, str]]
SQUARES = scattered(160, 0.25, 3)  # 40 positive


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("review")
    slide_of(root / "s.tif", SQUARES)
    reported(root / "s.tif", root / "s")
    return root


class Editor:
    """A person in QuPath: takes the exported file and changes it."""

    def __init__(self, made: Path) -> None:
        self.value: dict[str, Any] = json.loads((made / "s" / "detections.geojson").read_text())

    @property
    def features(self) -> list[dict[str, Any]]:
        return self.value["features"]  # type: ignore[no-any-return]

    def of(self, group: str) -> list[dict[str, Any]]:
        return [f for f in self.features if f["properties"]["classification"]["name"] == group]

    def call(self, feature: dict[str, Any], group: str) -> None:
        feature["properties"]["classification"] = {"name": group}

    def add(self, x: float, y: float, group: str, own: str) -> None:
        shape = shapely.Point(x, y).buffer(SQUARE / 2)
        properties = {"objectType": "annotation", "classification": {"name": group}}
        self.features.append(
            {
                "type": "Feature",
                "id": own,
                "geometry": shapely.geometry.mapping(shape),
                "properties": properties,
            }
        )

    def save(self, path: Path) -> Path:
        path.write_text(json.dumps(self.value))
        return path


def report_of(folder: Path) -> RenalReport:
    return RenalReport.model_validate_json((folder / "report.json").read_bytes())


class TestReview:
    def run(self, made: Path, tmp_path: Path, editor: Editor, wsi: Run) -> tuple[RenalReport, str, str]:
        path = editor.save(tmp_path / "corrected.geojson")
        code, said, noted = wsi("renal", "review", made / "s", path)
        assert code == 0
        return report_of(made / "s" / "reviewed"), said, noted

    def test_unchanged_it_counts_the_same(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        report, said, _ = self.run(made, tmp_path, Editor(made), wsi)
        assert report.result == report.machine == report_of(made / "s").result
        assert report.reading == "corrected"
        assert report.corrections is not None
        numbers = report.corrections.model_dump(
            exclude={"file", "sha256", "by", "date", "comment", "signed_at", "log"}
        )
        assert set(numbers.values()) == {0}
        assert report.corrections.file == "corrected.geojson"
        assert "machine:   C4d2 (focal), 25.0 %, 40 positive and 120 negative in 9 fields" in said
        assert "corrected: C4d2 (focal), 25.0 %, 40 positive and 120 negative in 9 fields" in said

    def test_deleted_added_reclassified(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        """40 positive and 120 negative; 2 positive deleted, 1 called no capillary, 30 called negative, 2 added."""
        editor = Editor(made)
        positive = editor.of("C4d positive")
        for feature in positive[:2]:
            editor.features.remove(feature)
        editor.call(positive[2], "not a capillary")
        for feature in positive[3:33]:
            editor.call(feature, "C4d negative")
        editor.add(300, 300, "C4d positive", "aaaaaaaa-0000-4000-8000-000000000001")
        editor.add(310, 340, "C4d negative", "aaaaaaaa-0000-4000-8000-000000000002")
        report, said, _ = self.run(made, tmp_path, editor, wsi)
        assert (report.result.positive, report.result.negative) == (40 - 2 - 1 - 30 + 1, 120 + 30 + 1)
        assert report.result.grade == "C4d1"
        assert report.machine is not None
        assert report.machine.grade == "C4d2"
        c = report.corrections
        assert c is not None
        assert (c.deleted, c.added, c.reclassified, c.outside_fields) == (3, 2, 30, 0)
        assert "capillaries: 3 deleted, 2 added, 30 reclassified; fields: 0 left out, 0 taken in" in said
        page = (made / "s" / "reviewed" / "report.html").read_text()
        assert "Read by the machine, and corrected by a person who is not named" in page
        assert "marked by a person" in page
        rows = (made / "s" / "reviewed" / "capillaries.csv").read_text()
        assert rows.count(",added,") == 2
        assert rows.count(",reclassified,") == 30
        assert "aaaaaaaa-0000-4000-8000-000000000001,C4d positive,yes,,added" in rows

    def test_fields_left_out_and_taken_in(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        """A field's capillaries leave with it; one marked where no field is feasible counts when the field is taken in."""
        editor = Editor(made)
        field = editor.of("feasible")[4]
        inside = shapely.geometry.shape(field["geometry"])
        gone = sum(inside.contains(shapely.Point(s.x, s.y)) for s in SQUARES)
        editor.call(field, "not feasible")
        scar = next(f for f in editor.of("not feasible") if f["properties"]["name"] == f"field {3 * SIDE},0")
        editor.add(3 * SIDE + 200, 200, "C4d positive", "aaaaaaaa-0000-4000-8000-000000000003")
        report, _, noted = self.run(made, tmp_path, editor, wsi)
        assert report.result.positive + report.result.negative == 160 - gone
        rows = (made / "s" / "reviewed" / "capillaries.csv").read_text()
        assert rows.count(",no,") == gone + 1
        assert f"{gone + 1} marked capillaries lie in no evaluated field and are not counted" in noted
        editor.call(scar, "feasible")
        report, _, _ = self.run(made, tmp_path, editor, wsi)
        assert report.result.positive + report.result.negative == 160 - gone + 1
        assert report.corrections is not None
        assert (report.corrections.fields_left_out, report.corrections.fields_taken_in) == (1, 1)
        assert report.field_mm2 == pytest.approx(report_of(made / "s").field_mm2, rel=0.05)

    def test_a_deleted_field_is_left_out(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        editor = Editor(made)
        editor.features.remove(editor.of("feasible")[4])
        report, _, _ = self.run(made, tmp_path, editor, wsi)
        assert report.result.fields == 8
        assert report.corrections is not None
        assert report.corrections.fields_left_out == 1

    def test_a_field_nobody_looked_at_does_not_count(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        """Taken in without a mark in it: the machine did not search there, so it adds neither a field nor area."""
        editor = Editor(made)
        for field in editor.of("not feasible"):
            editor.call(field, "feasible")
        report, _, _ = self.run(made, tmp_path, editor, wsi)
        assert report.result == report.machine
        assert report.field_mm2 == report_of(made / "s").field_mm2
        assert sum("the machine did not look" in f.why_not for f in report.fields) == 6
        assert report.corrections is not None
        assert report.corrections.fields_not_searched == 6

    def test_an_outline_that_is_no_capillarys(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        editor = Editor(made)
        editor.add(300, 300, "C4d positive", "aaaaaaaa-0000-4000-8000-000000000001")
        shape = shapely.Point(300, 300).buffer(150)
        editor.features[-1]["geometry"] = shapely.geometry.mapping(shape)
        report, _, _ = self.run(made, tmp_path, editor, wsi)
        assert report.warnings == (
            "1 marked outline is longer than 100 um, at (300, 300): is it one capillary",
        )

    def test_the_summary_is_the_first_printed_page(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        """Of the machine's report, and of the reviewed one, which has a result more."""
        pytest.importorskip("weasyprint", reason="needs WeasyPrint and Pango")
        from weasyprint import HTML

        shutil.copytree(made / "s", tmp_path / "s")
        Editor(made).save(tmp_path / "c.geojson")
        comment = "Two doubtful rings beside a vein were left out after looking at the next section."
        code, _, err = wsi(
            "renal",
            "review",
            tmp_path / "s",
            tmp_path / "c.geojson",
            "--by",
            "A. Smith",
            "--comment",
            comment,
        )
        assert code == 0, err
        for page in (tmp_path / "s" / "report.html", tmp_path / "s" / "reviewed" / "report.html"):
            pages = HTML(str(page)).render().pages
            assert ["appendix" in p.anchors for p in pages[:2]] == [False, True], page

    def test_an_earlier_review_is_kept(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        self.run(made, tmp_path, Editor(made), wsi)
        before = (made / "s" / "reviewed" / "report.json").read_bytes()
        count = len(list((made / "s").glob("reviewed-before-*")))
        editor = Editor(made)
        editor.features.remove(editor.of("C4d positive")[0])
        self.run(made, tmp_path, editor, wsi)
        assert (made / "s" / f"reviewed-before-{count + 1}" / "report.json").read_bytes() == before

    def test_left_out_and_taken_back(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        """What lies in a field that was left out stays in the reviewed file, and comes back with its field."""
        editor = Editor(made)
        editor.call(editor.of("feasible")[4], "not feasible")
        first, _, _ = self.run(made, tmp_path, editor, wsi)
        assert first.result.fields == 8
        editor.value = json.loads((made / "s" / "reviewed" / "detections.geojson").read_text())
        for field in editor.of("not feasible"):
            if field["properties"]["metadata"].get("why not") == "left out by a person":
                editor.call(field, "feasible")
        second, _, _ = self.run(made, tmp_path, editor, wsi)
        assert second.result == second.machine

    def test_warnings_are_those_of_what_counts_now(self, tmp_path: Path, wsi: Run) -> None:
        slide_of(tmp_path / "s.tif", SQUARES, scar=4)
        reported(tmp_path / "s.tif", tmp_path / "s")
        editor = Editor(tmp_path)
        field = editor.of("not feasible")[0]
        editor.call(field, "feasible")
        x, y = field["geometry"]["coordinates"][0][0]
        box = shapely.geometry.shape(field["geometry"]).bounds
        editor.add(box[0] + 100, box[1] + 100, "C4d positive", "aaaaaaaa-0000-4000-8000-000000000001")
        report, _, _ = self.run(tmp_path, tmp_path, editor, wsi)
        assert (x >= 0, y >= 0) == (True, True)
        assert report.result.positive == 1
        assert report.warnings == ()

    def test_a_reviewed_file_can_be_reviewed_again(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        """What was added keeps its id, so that a second look is against the machine, too."""
        editor = Editor(made)
        editor.add(300, 300, "C4d positive", "aaaaaaaa-0000-4000-8000-000000000001")
        self.run(made, tmp_path, editor, wsi)
        again = made / "s" / "reviewed" / "detections.geojson"
        assert "aaaaaaaa-0000-4000-8000-000000000001" in again.read_text()
        code, said, _ = wsi("renal", "review", made / "s", again)
        assert (code, "0 deleted, 1 added, 0 reclassified" in said) == (0, True)

    def test_the_file_trains_both_networks(self, made: Path) -> None:
        """One corrected file is truth for capillaries and for fields."""
        path = made / "s" / "detections.geojson"
        marked = read_marked(path, ("C4d negative", "C4d positive"))
        assert (len(marked.objects), int(marked.objects.labels.sum())) == (160, 40)
        grid = make_grid(
            (5 * SIDE, 3 * SIDE), ReadPlan(level=0, stride_l0=SIDE, stride_px=64, size_px=64), None
        )
        negative, positive = labelled_cells(path, grid)
        assert (len(negative), len(positive)) == (6, 9)

    def test_points_count(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        """One point, and QuPath's points annotation, which holds several."""
        editor = Editor(made)
        for number, (x, y) in enumerate([(300, 300), (420, 900)]):
            editor.add(x, y, "C4d positive", f"aaaaaaaa-0000-4000-8000-00000000001{number}")
        editor.features[-2]["geometry"] = {"type": "Point", "coordinates": [300, 300]}
        places = [[420, 900], [20, 940], [20, 700]]
        editor.features[-1]["geometry"] = {"type": "MultiPoint", "coordinates": places}
        report, _, _ = self.run(made, tmp_path, editor, wsi)
        assert (report.result.positive, report.result.negative) == (40 + 1 + 3, 120)
        with (made / "s" / "reviewed" / "capillaries.csv").open() as file:
            added = [row for row in csv.DictReader(file) if row["source"] == "added"]
        middles = [
            [(float(r["x0"]) + float(r["x1"])) / 2, (float(r["y0"]) + float(r["y1"])) / 2] for r in added
        ]
        assert sorted(middles) == sorted([[300, 300], *places])

    def test_every_capillary_deleted(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        editor = Editor(made)
        for feature in editor.of("C4d positive") + editor.of("C4d negative"):
            editor.features.remove(feature)
        report, said, _ = self.run(made, tmp_path, editor, wsi)
        assert (report.result.positive, report.result.negative, report.result.percent) == (0, 0, None)
        assert report.corrections is not None
        assert report.corrections.deleted == 160
        assert "not assessable (0 capillaries, at least 100 are needed), no capillary" in said

    def test_who_when_and_what_they_say(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        path = Editor(made).save(tmp_path / "corrected.geojson")
        words = ("--by", "A. <Smith>", "--date", "2026-03-04", "--comment", "two rings, cut")
        assert wsi("renal", "review", made / "s", path, *words)[0] == 0
        c = report_of(made / "s" / "reviewed").corrections
        assert c is not None
        assert (c.by, c.date, c.comment) == ("A. <Smith>", "2026-03-04", "two rings, cut")
        page = (made / "s" / "reviewed" / "report.html").read_text()
        assert "corrected by A. &lt;Smith&gt; on 2026-03-04" in page
        assert "Comment: two rings, cut" in page
        code, _, err = wsi("renal", "review", made / "s", path, "--date", "4.3.2026")
        assert (code, "must be YYYY-MM-DD, got '4.3.2026'" in err) == (2, True)

    def test_a_review_is_verified_too(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        self.run(made, tmp_path, Editor(made), wsi)
        assert wsi("verify", made)[0] == 0
        path = made / "s" / "reviewed" / "capillaries.csv"
        text = path.read_text()
        path.write_text(text.replace("C4d positive", "C4d negative", 1))
        code, _, err = wsi("verify", made)
        path.write_text(text)
        assert code == 1
        assert "capillaries.csv: changed" in err or "capillaries.csv: holds" in err

    def test_coordinates_of_qupath(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        """Where our export subtracted bounds, the whole file is moved back, what was drawn by hand, too."""
        editor = Editor(made)
        editor.add(300, 300, "C4d positive", "aaaaaaaa-0000-4000-8000-000000000001")
        moved = copy.deepcopy(editor)
        for f in moved.features:
            shape = shapely.geometry.shape(f["geometry"])
            f["geometry"] = shapely.geometry.mapping(shapely.transform(shape, lambda xy: xy - (100, 50)))
            if "metadata" in f["properties"]:
                f["properties"]["metadata"]["origin offset"] = "100,50"
        first = self.run(made, tmp_path, editor, wsi)[0]
        second = self.run(made, tmp_path, moved, wsi)[0]
        assert second.model_copy(update={"corrections": None}) == first.model_copy(
            update={"corrections": None}
        )


class TestRefused:
    def said(self, made: Path, tmp_path: Path, editor: Editor, wsi: Run) -> str:
        before = sorted(
            (p, p.read_bytes()) for p in made.rglob("*") if p.is_file() and "reviewed" not in p.parts
        )
        code, _, said = wsi("renal", "review", made / "s", editor.save(tmp_path / "c.geojson"))
        assert code == 2
        after = sorted(
            (p, p.read_bytes()) for p in made.rglob("*") if p.is_file() and "reviewed" not in p.parts
        )
        assert after == before  # nothing was lost
        return said

    def test_another_slide(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        editor = Editor(made)
        for f in editor.features:
            f["properties"]["metadata"]["slide"] = "t"
        assert "is not the corrected file of s: it is of 't'" in self.said(made, tmp_path, editor, wsi)
        editor = Editor(made)
        for f in editor.features:
            f["properties"]["metadata"]["slide identity"] = "another of the same name"
        assert "it is of another file of that name" in self.said(made, tmp_path, editor, wsi)
        editor = Editor(made)
        editor.value["features"] = []
        editor.add(300, 300, "C4d positive", "aaaaaaaa-0000-4000-8000-000000000001")
        assert "it holds none of the report's objects" in self.said(made, tmp_path, editor, wsi)

    def test_selected_objects_only_and_off_the_slide(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        editor = Editor(made)
        editor.value["features"] = editor.of("C4d positive")
        assert "holds no field: export all objects" in self.said(made, tmp_path, editor, wsi)
        editor = Editor(made)
        editor.add(90_000, 300, "C4d positive", "aaaaaaaa-0000-4000-8000-000000000001")
        assert "marks a capillary at (89988, 288), off the slide; delete it" in self.said(
            made, tmp_path, editor, wsi
        )

    def test_unknown_class(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        editor = Editor(made)
        editor.call(editor.of("C4d positive")[0], "Tumor")
        assert "holds the class 'Tumor', at (" in self.said(made, tmp_path, editor, wsi)
        editor = Editor(made)
        del editor.of("C4d positive")[0]["properties"]["classification"]
        assert "holds an object without a class, at (" in self.said(made, tmp_path, editor, wsi)

    def test_duplicate_ids(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        editor = Editor(made)
        editor.features.append(copy.deepcopy(editor.of("C4d positive")[0]))
        assert "more than once; delete the copies" in self.said(made, tmp_path, editor, wsi)

    def test_a_line_and_a_field_drawn_by_hand(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        editor = Editor(made)
        editor.add(300, 300, "C4d positive", "aaaaaaaa-0000-4000-8000-000000000001")
        editor.features[-1]["geometry"] = {"type": "LineString", "coordinates": [[300, 280], [300, 320]]}
        assert (
            "holds a LineString at (300, 300): mark each capillary by one outline, or by one point"
            in self.said(made, tmp_path, editor, wsi)
        )
        editor = Editor(made)
        editor.add(300, 300, "feasible", "aaaaaaaa-0000-4000-8000-000000000001")
        assert "a field was added" in self.said(made, tmp_path, editor, wsi)

    def test_a_point_on_a_capillary_that_is_counted_already(
        self, made: Path, tmp_path: Path, wsi: Run
    ) -> None:
        editor = Editor(made)
        editor.add(300, 300, "C4d negative", "aaaaaaaa-0000-4000-8000-000000000009")
        for right, down in (
            (2, 0),
            (-7, 8),
            (10, 10),
        ):  # anywhere in the box of 24 px, not only at its middle
            x, y = SQUARES[0].x + right, SQUARES[0].y + down
            editor.features[-1]["geometry"] = {"type": "Point", "coordinates": [x, y]}
            assert "twice; delete one of the two" in self.said(made, tmp_path, editor, wsi)

    def test_one_capillary_twice(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        """A copy has a new id in QuPath; an outline drawn over a box is the same capillary; so are merged ones one object."""
        editor = Editor(made)
        editor.features.append(copy.deepcopy(editor.of("C4d positive")[0]))
        editor.features[-1]["id"] = "aaaaaaaa-0000-4000-8000-000000000009"
        assert "twice; delete one of the two" in self.said(made, tmp_path, editor, wsi)
        editor = Editor(made)
        editor.add(SQUARES[0].x + 1, SQUARES[0].y, "C4d negative", "aaaaaaaa-0000-4000-8000-000000000009")
        assert "twice; delete one of the two" in self.said(made, tmp_path, editor, wsi)
        editor = Editor(made)
        shapes = [shapely.geometry.shape(f["geometry"]) for f in editor.of("C4d positive")[:2]]
        editor.of("C4d positive")[0]["geometry"] = shapely.geometry.mapping(shapely.union_all(shapes))
        assert "holds a MultiPolygon at (" in self.said(made, tmp_path, editor, wsi)

    def test_the_machines_own_file(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        """Corrections saved over it would be compared with themselves."""
        own = made / "s" / "detections.geojson"
        code, _, said = wsi("renal", "review", made / "s", own)
        assert (code, "is the machine's own file; save corrections under another name" in said) == (2, True)
        before = own.read_bytes()
        editor = Editor(made)
        for feature in editor.of("C4d positive")[:3]:
            editor.features.remove(feature)
        editor.save(own)
        code, _, said = wsi("renal", "review", made / "s", editor.save(tmp_path / "c.geojson"))
        own.write_bytes(before)
        assert (code, "is not as the machine wrote it: it holds 37 positive and 120 negative" in said) == (
            2,
            True,
        )

    def test_a_moved_slide(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        path = Editor(made).save(tmp_path / "c.geojson")
        (made / "s.tif").rename(made / "moved.tif")
        code, _, said = wsi("renal", "review", made / "s", path)
        assert (code, "if the slide was moved, give it with --slide" in said) == (2, True)
        assert wsi("renal", "review", made / "s", path, "--slide", made / "moved.tif")[0] == 0
        (made / "moved.tif").rename(made / "s.tif")

    def test_no_geojson_and_no_report(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        (tmp_path / "x.geojson").write_text("{")
        code, _, said = wsi("renal", "review", made / "s", tmp_path / "x.geojson")
        assert (code, "is not JSON" in said) == (2, True)
        code, _, said = wsi("renal", "review", tmp_path, tmp_path / "x.geojson")
        assert (code, "holds no report" in said) == (2, True)

    def test_the_slide_was_replaced(self, made: Path, tmp_path: Path, wsi: Run) -> None:
        other = slide_of(tmp_path / "other.tif", SQUARES[:5])
        path = Editor(made).save(tmp_path / "c.geojson")
        code, _, said = wsi("renal", "review", made / "s", path, "--slide", other)
        assert (code, "is not the slide of this report" in said) == (2, True)


class TestMany:
    """Two reported slides, s and t, with truth; both reviewed by one command."""

    @pytest.fixture
    def run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        from pipelines.cli.renal import RenalRun
        from pipelines.renal.read.reading import RenalConfig
        from tests.renal_slides import readers
        from wsi.slides.manifest import SlideRow
        from wsi.slides.source import SlideSource

        rows = []
        for name, seed in (("s", 3), ("t", 4)):
            path = slide_of(tmp_path / f"{name}.tif", scattered(160, 0.25, seed))
            rows.append(SlideRow(SlideSource(str(path))))
        RenalRun(named(rows), readers(), RenalConfig(), LocalFolder(tmp_path / "out"), False, False).go()
        return tmp_path / "out"

    def corrected(self, run: Path, folder: Path, name: str, delete: int) -> None:
        value = json.loads((run / name / "detections.geojson").read_text())
        positive = [
            f for f in value["features"] if f["properties"]["classification"]["name"] == "C4d positive"
        ]
        value["features"] = [f for f in value["features"] if f not in positive[:delete]]
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.geojson").write_text(json.dumps(value))

    def test_a_folder_of_corrections(self, run: Path, tmp_path: Path, wsi: Run) -> None:
        for name, delete in (("s", 5), ("t", 11)):
            self.corrected(run, tmp_path / "c", name, delete)
        code, said, _ = wsi("renal", "review", run, "--corrected", tmp_path / "c", "--by", "Ada")
        assert code == 0
        assert "2 of 2 corrected files were counted; slides without a review: 0" in said
        with (run / "grades.csv").open() as file:
            rows = {row["slide"]: row for row in csv.DictReader(file)}
        assert {n: (r["positive"], r["reviewed_positive"], r["reviewed_by"]) for n, r in rows.items()} == {
            "s": ("40", "35", "Ada"),
            "t": ("40", "29", "Ada"),
        }
        page = (run / "index.html").read_text()
        assert page.count("Ada, ") == 2
        assert "not reviewed" not in page

    def test_one_that_cannot_be_used_costs_itself(self, run: Path, tmp_path: Path, wsi: Run) -> None:
        self.corrected(run, tmp_path / "c", "s", 5)
        (tmp_path / "c" / "t.geojson").write_text("{}")
        code, said, noted = wsi("renal", "review", run, "--corrected", tmp_path / "c")
        assert code == 1
        assert "1 of 2 corrected files were counted; slides without a review: 1" in said
        assert noted.startswith("t: ")
        assert report_of(run / "s" / "reviewed").result.positive == 35
        assert "not reviewed" in (run / "index.html").read_text()

    def test_what_was_reviewed_before_a_stop_is_in_the_tables(
        self, run: Path, tmp_path: Path, wsi: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pipelines.cli import renal_review

        for name in ("s", "t"):
            self.corrected(run, tmp_path / "c", name, 5)
        really = renal_review.review_slide

        def stopped(folder: Path, *words: Any, **options: Any) -> RenalReport:
            if folder.name == "t":
                raise KeyboardInterrupt
            return really(folder, *words, **options)

        monkeypatch.setattr(renal_review, "review_slide", stopped)
        assert wsi("renal", "review", run, "--corrected", tmp_path / "c", "--by", "Ada")[0] == 130
        assert (run / "grades.csv").read_text().count(",Ada,") == 1
        assert wsi("verify", run)[0] == 0

    def test_a_review_that_cannot_be_read_is_said(self, run: Path, tmp_path: Path, wsi: Run) -> None:
        for name in ("s", "t"):
            self.corrected(run, tmp_path / "c", name, 5)
        assert wsi("renal", "review", run, "--corrected", tmp_path / "c", "--by", "Ada")[0] == 0
        (run / "s" / "reviewed" / "report.json").write_text("{}")
        code, _, noted = wsi("renal", "review", run / "t", tmp_path / "c" / "t.geojson", "--by", "Ada")
        assert code == 0
        assert "the tables show the slide as not reviewed" in noted
        assert (run / "grades.csv").read_text().count(",Ada,") == 1

    def test_a_table_that_cannot_be_renewed_is_said(self, run: Path, tmp_path: Path, wsi: Run) -> None:
        self.corrected(run, tmp_path / "c", "s", 5)
        before = (run / "grades.csv").read_text()
        (run / "t" / "report.json").unlink()
        code, _, noted = wsi("renal", "review", run / "s", tmp_path / "c" / "s.geojson")
        assert (code, "grades.csv and index.html do not show this review yet" in noted) == (0, True)
        assert (run / "grades.csv").read_text() == before

    @pytest.mark.parametrize(
        ("date", "said"),
        [
            ("2026-02-30", "is no day of the calendar"),
            ("30.2.2026", "must be YYYY-MM-DD"),
            ("2026-2-3", "must be"),
        ],
    )
    def test_a_date_that_is_none(self, run: Path, tmp_path: Path, wsi: Run, date: str, said: str) -> None:
        self.corrected(run, tmp_path / "c", "s", 5)
        code, _, noted = wsi("renal", "review", run, "--corrected", tmp_path / "c", "--date", date)
        assert (code, said in noted) == (2, True)
        assert not (run / "s" / "reviewed").exists()

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            ([], "holds no corrected file"),
            (["u.geojson"], "is of no slide in"),
            (["s.geojson", "s.json"], "are of one slide; keep one"),
        ],
    )
    def test_what_is_no_folder_of_corrections(
        self, run: Path, tmp_path: Path, wsi: Run, files: list[str], said: str
    ) -> None:
        (tmp_path / "c").mkdir()
        for name in files:
            (tmp_path / "c" / name).write_text("{}")
        code, _, noted = wsi("renal", "review", run, "--corrected", tmp_path / "c")
        assert (code, said in noted) == (2, True), noted

    def test_one_file_or_a_folder(self, run: Path, tmp_path: Path, wsi: Run) -> None:
        for words in ((run,), (run, tmp_path / "a.geojson", "--corrected", tmp_path)):
            code, _, noted = wsi("renal", "review", *words)
            assert (code, "give either one corrected FILE, or a folder" in noted) == (2, True)

    def test_evaluation_of_reviewed_readings_and_errors_into_the_card(
        self, run: Path, tmp_path: Path, wsi: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The truth is what the machine found; the person deleted 5 and 11 true positives."""
        truth = tmp_path / "truth"
        truth.mkdir()
        for name in ("s", "t"):
            value = json.loads((run / name / "detections.geojson").read_text())
            value["features"] = [
                f for f in value["features"] if f["properties"]["name"].startswith("capillary")
            ]
            (truth / f"{name}.geojson").write_text(json.dumps(value))
            self.corrected(run, tmp_path / "c", name, 5 if name == "s" else 11)
        code, _, noted = wsi("renal", "evaluate", run, "--truth", truth, "--reviewed")
        assert (code, "s, t have no review" in noted) == (2, True)
        assert wsi("renal", "review", run, "--corrected", tmp_path / "c")[0] == 0
        code, said, _ = wsi("renal", "evaluate", run, "--truth", truth, "--reviewed")
        assert code == 0
        assert "C4d positive: AP50" in said
        assert "(64 hits, 0 false, 16 missed)" in said
        assert (run / "evaluation-reviewed" / "evaluation.json").exists()
        code, said, _ = wsi("renal", "evaluate", run, "--truth", truth)
        assert "(80 hits, 0 false, 0 missed)" in said
        code, _, noted = wsi("renal", "evaluate", run, "--truth", truth, "--into", tmp_path, "--reviewed")
        assert (code, "leave out --reviewed" in noted) == (2, True)
        from models.card import ZOO

        code, _, noted = wsi("renal", "evaluate", run, "--truth", truth, "--into", ZOO / "renal-ptc-demo")
        assert (code, "is not the detector that made these reports" in noted) == (2, True)

    def test_errors_are_written_slide_by_slide(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pipelines.renal.evaluate.evaluation import evaluate, write_counting_errors
        from pipelines.renal.evaluate.truth import read_cohort
        from tests.renal_slides import readers

        truth = tmp_path / "truth"
        truth.mkdir()
        for name, drop in (("s", 3), ("t", 0)):
            value = json.loads((run / name / "detections.geojson").read_text())
            marks = [f for f in value["features"] if f["properties"]["name"].startswith("capillary")]
            positive = [f for f in marks if f["properties"]["classification"]["name"] == "C4d positive"]
            value["features"] = [f for f in marks if f not in positive[:drop]]
            (truth / f"{name}.geojson").write_text(json.dumps(value))
        cohort = read_cohort(run, truth)
        result = evaluate(cohort)
        assert result.errors == ((37, 3, 0, 120, 0, 0), (40, 0, 0, 120, 0, 0))
        model = tmp_path / "model"
        model.mkdir()
        card = readers().card
        (model / "card.json").write_text(json.dumps(card.model_dump(mode="json")))
        from models import card as card_module

        monkeypatch.setattr(card_module, "hash_file", lambda path: card.sha256)
        write_counting_errors(model, result, cohort)
        written = json.loads((model / "card.json").read_text())
        assert written["counting_errors"] == [[37, 3, 0, 120, 0, 0], [40, 0, 0, 120, 0, 0]]
        assert written["sha256"] == card.sha256
