"""Ring, lumen, ink and bubbles: each drawn by hand, off the middle and longer than wide."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines.renal.read.basis import basis_sentences
from pipelines.renal.read.checks import (
    ChecksConfig,
    as_dense_as_the_wall,
    brown_around,
    brown_inside,
    doubt_counts,
    doubt_of,
    grey_share,
    ink_share,
    left_out,
    pen_mask,
)
from pipelines.renal.read.marks import Marks
from pipelines.renal.read.page import ON_A_PAGE, SHOWN, more_pages
from pipelines.renal.read.report import RenalReport
from pipelines.renal.read.run import report_slide
from tests.pipelines.renal.test_report import LOOSE, reported
from tests.renal_slides import BROWN, SIDE, TISSUE, Square, readers, scattered, slide_of
from tests.slides import write_pyramid
from wsi.arrays import RgbImage
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource

BOX = (20.0, 30.0, 80.0, 60.0)  # x0, y0, x1, y1: twice as wide as high, in a picture of 110 x 84


def drawn(
    wall: tuple[int, int, int] = BROWN, inside: tuple[int, int, int] = TISSUE, thickness: int = 6
) -> RgbImage:
    """An ellipse that fills the box, its wall and what is in it."""
    image = np.full((84, 110, 3), TISSUE, np.uint8)
    cv2.ellipse(image, (50, 45), (27, 12), 0, 0, 360, inside, -1)
    cv2.ellipse(image, (50, 45), (27, 12), 0, 0, 360, wall, thickness)
    return image


class TestLumen:
    def test_a_ring_has_one(self) -> None:
        assert brown_inside(drawn(), BOX) == 0.0
        assert brown_around(drawn(), BOX) == 1.0

    def test_a_solid_blob_has_none_though_its_circumference_is_brown(self) -> None:
        blob = drawn(inside=BROWN)
        assert brown_around(blob, BOX) == 1.0
        assert brown_inside(blob, BOX) == 1.0
        assert as_dense_as_the_wall(blob, BOX)

    def test_a_closed_capillary_has_a_denser_wall(self) -> None:
        closed = drawn(wall=(70, 40, 15), inside=(185, 160, 135), thickness=9)
        assert brown_inside(closed, BOX) > 0.9
        assert not as_dense_as_the_wall(closed, BOX)

    def test_both_axes_of_the_box_count(self) -> None:
        """A brown bar across the middle of a box: upright it fills the middle's width, lying its height."""
        lying = np.full((84, 110, 3), TISSUE, np.uint8)
        lying[43:47] = BROWN  # 4 of 6 px of the middle's height
        upright = np.full((84, 110, 3), TISSUE, np.uint8)
        upright[:, 48:52] = BROWN  # 4 of 12 px of the middle's width
        assert brown_inside(lying, BOX) == pytest.approx(0.8, abs=0.2)
        assert brown_inside(upright, BOX) == pytest.approx(0.4, abs=0.1)

    def test_a_narrow_capillary_across_its_box_has_a_lumen(self) -> None:
        image = np.full((84, 110, 3), TISSUE, np.uint8)
        cv2.ellipse(image, (50, 45), (30, 9), 25, 0, 360, BROWN, 4)
        assert brown_inside(image, BOX) == 0.0

    def test_the_box_need_not_lie_in_the_middle_of_the_picture(self) -> None:
        image = np.full((84, 110, 3), TISSUE, np.uint8)
        image[38:52, 40:60] = BROWN
        assert brown_inside(image, BOX) > 0.7
        assert brown_inside(image, (0, 0, 40, 30)) == 0.0


class TestArtefacts:
    def test_grey_is_no_stain(self) -> None:
        for colour in (BROWN, (60, 80, 190), (200, 120, 170), (40, 30, 90), TISSUE):
            assert grey_share(np.full((30, 40, 3), colour, np.uint8)) == 0.0, colour
        rim = np.full((30, 40, 3), TISSUE, np.uint8)
        rim[:, 10:20] = (100, 102, 98)
        assert grey_share(rim) == pytest.approx(0.25, abs=0.1)

    def test_ink_is_where_it_was_drawn(self, tmp_path: Path) -> None:
        """A green pen line at x 1200..1360, over the whole height of a slide at 0.5 um/px."""
        image = np.full((1536, 2560, 3), TISSUE, np.uint8)
        image[:, 1200:1360] = (20, 140, 60)
        with SlideSource(str(write_pyramid(tmp_path / "s.tif", image, mpp=0.5, tile=256))).open() as slide:
            ink = pen_mask(slide)
        assert ink_share(ink, np.array([1220.0, 700, 1300, 760])) == 1.0
        assert ink_share(ink, np.array([700.0, 1220, 760, 1300])) == 0.0  # x and y are not exchanged
        assert ink_share(ink, np.array([1500.0, 700, 1580, 760])) == 0.0

    @pytest.mark.parametrize("what", ["pen ink", "bubble or glass edge"])
    def test_capillaries_in_them_do_not_count(self, tmp_path: Path, what: str) -> None:
        squares = scattered(120, 0.5, 5)
        path = slide_of(tmp_path / "s.tif", squares)
        before = reported(path, tmp_path / "a", LOOSE).report
        with SlideSource(str(path)).open() as slide:
            image = slide.read_region((0, 0), 0, slide.size)
        left, right = 2 * SIDE, 2 * SIDE + 300
        if what == "pen ink":
            image[:, left:right] = np.round(0.45 * image[:, left:right] + 0.55 * np.array([10, 150, 60]))
        else:
            image[:, left:right] = (image[:, left:right].min(axis=2, keepdims=True) * 0.45).astype(np.uint8)
        hit = [s for s in squares if left + 30 < s.x < right - 30]
        assert len(hit) > 5
        write_pyramid(path, image, mpp=0.5, tile=256)
        after = reported(path, tmp_path / "b", LOOSE).report
        total = after.result.positive + after.result.negative
        assert total <= before.result.positive + before.result.negative - len(hit)
        if what in after.basis.left_out_by:
            assert f"left out by the checks: {what}" in " ".join(basis_sentences(after))


class TestWhatADoubtDoes:
    def test_which_doubt(self) -> None:
        none = {"partial": False, "filled": False, "ink": False, "grey": False}
        assert doubt_of(True, **none) == ""
        assert doubt_of(True, **none | {"partial": True}) == "partial ring"
        assert doubt_of(True, **none | {"partial": True, "filled": True}) == "no lumen"
        assert doubt_of(False, **none | {"partial": True, "filled": True}) == ""
        assert doubt_of(False, **none | {"grey": True}) == "bubble or glass edge"
        assert doubt_of(True, **none | {"ink": True, "grey": True}) == "pen ink"

    def test_what_it_does_to_the_count(self) -> None:
        """Positive ones count in spite of ring or lumen from `certain` on; ink never; negative ones are not asked."""
        doubts = (
            "",
            "partial ring",
            "partial ring",
            "no lumen",
            "pen ink",
            "pen ink",
            "bubble or glass edge",
        )
        scores = np.array([0.7, 0.98, 0.9, 0.9, 0.999, 0.8, 0.8])
        positive = np.array([True, True, True, True, True, False, False])
        n = len(doubts)
        marks = Marks(
            tuple("abcdefg"),
            np.tile([[0.0, 0, 9, 5]], (n, 1)),
            positive,
            scores,
            np.zeros(n, np.int64),
            np.ones(n, np.bool_),
            np.ones(n),
            np.zeros(n),
            doubts,
            ("machine",) * n,
        )
        out = left_out(marks, ChecksConfig(certain=0.95))
        assert out.tolist() == [False, False, True, True, True, True, True]
        assert marks.flagged.tolist() == [False, True, True, True, True, False, False]
        assert doubt_counts(marks, out) == {
            "partial ring": 1,
            "no lumen": 1,
            "pen ink": 2,
            "bubble or glass edge": 1,
        }
        assert left_out(marks, ChecksConfig(certain=0.0)).tolist() == [False] * 4 + [True] * 3

    @pytest.mark.parametrize(
        ("option", "value"),
        [("partial", 0.0), ("filled", 1.0), ("certain", 0.0), ("ink", 1.0), ("grey", 1.0)],
    )
    def test_every_setting_changes_a_report(self, tmp_path: Path, option: str, value: float) -> None:
        """A slide with a partial ring, a blob and an inked and a grey capillary, read with and without each setting."""
        image = np.full((3 * SIDE, 5 * SIDE, 3), 245, np.uint8)
        image[:, : 4 * SIDE] = TISSUE
        squares = [Square(100 + 90 * i, 150, BROWN) for i in range(8)]
        for s in squares:
            cv2.rectangle(image, (s.x - 12, s.y - 12), (s.x + 11, s.y + 11), BROWN, 5)
        image[130:150, 92:108] = TISSUE  # the top of the first
        image[147:153, 187:191] = BROWN  # the second is filled in its middle
        image[800:1000, 600:900] = (20, 110, 190)
        cv2.rectangle(image, (700, 880), (723, 903), BROWN, 5)
        image[1200:1210, 600:900] = (100, 102, 98)
        cv2.rectangle(image, (700, 1212), (723, 1235), BROWN, 5)
        path = write_pyramid(tmp_path / "s.tif", image, mpp=0.5, tile=256)
        row = SlideRow(SlideSource(str(path)))

        def marks(name: str, checks: ChecksConfig) -> str:
            cfg = LOOSE.model_copy(update={"checks": checks})
            report_slide(row, "s", readers(), tmp_path / name, cfg)
            return (tmp_path / name / "capillaries.csv").read_text()

        base = ChecksConfig(partial=0.85, grey=0.05)
        changed = base.model_copy(update={option: value})
        assert marks("a", base) != marks("b", changed)


class TestHead:
    def report(self, **basis: object) -> RenalReport:
        path = Path(__file__).parent / "does-not-matter"
        assert not path.exists()
        value = json.loads(REPORT)
        value["basis"] |= basis
        return RenalReport.model_validate_json(json.dumps(value))

    def test_what_the_grade_rests_on(self) -> None:
        flagged = {"flagged": 6, "flagged_by": {"partial ring": 2, "no lumen": 4}}
        without = {"grade_without_flagged": "C4d0", "percent_without_flagged": 0.0}
        changes = [
            {"counts": "positive", "threshold": 0.971, "grade": "C4d0"},
            {"counts": "negative", "threshold": 0.5, "grade": "C4d2"},
        ]
        left = {"left_out_by": {"pen ink": 1}}
        assert basis_sentences(self.report(**flagged, **without, **left, changes=changes)) == (
            "C4d1 rests on 8 positive capillaries, 6 of them flagged (partial ring 2, no lumen 4); "
            "without those: C4d0, 0.0 %.",
            "1 more was found and left out by the checks: pen ink 1.",
            "It would be C4d0 if positive ones counted from a score of 0.97 on, instead of 0.62.",
            "It would be C4d2 if negative ones counted from a score of 0.50 on, instead of 0.08.",
        )

    @pytest.mark.parametrize(
        ("positive", "flagged", "said"),
        [
            (
                1,
                1,
                "C4d1 rests on 1 positive capillary, which is flagged (no lumen 1); without it: C4d0, 0.0 %.",
            ),
            (1, 0, "C4d1 rests on 1 positive capillary, which is not flagged."),
            (
                2,
                2,
                "C4d1 rests on 2 positive capillaries, all of them flagged (no lumen 2); without those: C4d0, ",
            ),
            (
                2,
                1,
                "C4d1 rests on 2 positive capillaries, 1 of them flagged (no lumen 1); without it: C4d0, ",
            ),
        ],
    )
    def test_one_and_all(self, positive: int, flagged: int, said: str) -> None:
        report = self.report(
            flagged=flagged,
            flagged_by={"no lumen": flagged} if flagged else {},
            grade_without_flagged="C4d0",
            percent_without_flagged=0.0,
        )
        report = report.model_copy(update={"result": report.result.model_copy(update={"positive": positive})})
        assert basis_sentences(report)[0].startswith(said)

    def test_none_flagged(self) -> None:
        assert basis_sentences(self.report()) == (
            "C4d1 rests on 8 positive capillaries, none of them flagged.",
            "No other threshold up to 0.98 would change it.",
        )
        beyond = [{"counts": "positive", "threshold": 0.9991, "grade": "C4d0"}]
        assert (
            basis_sentences(self.report(changes=beyond))[-1]
            == "No other threshold up to 0.98 would change it."
        )


class TestManyPictures:
    def test_how_many_pages(self) -> None:
        assert more_pages(SHOWN) == []
        assert more_pages(SHOWN + 1) == ["positive-2.html"]
        assert more_pages(SHOWN + ON_A_PAGE) == ["positive-2.html"]
        assert more_pages(5000) == [f"positive-{i}.html" for i in range(2, 12)]

    def test_the_report_shows_the_first_and_links_to_the_others(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pipelines.renal.read import page

        monkeypatch.setattr(page, "SHOWN", 10)
        monkeypatch.setattr(page, "ON_A_PAGE", 12)
        slide_of(tmp_path / "s.tif", scattered(60, 0.5, 7))
        result = reported(tmp_path / "s.tif", tmp_path / "s", LOOSE).report.result
        assert result.positive == 30
        pages = [
            (tmp_path / "s" / n).read_text() for n in ("report.html", "positive-2.html", "positive-3.html")
        ]
        assert "capillaries 11 to 22 of 30" in pages[1]
        assert "capillaries 23 to 30 of 30" in pages[2]
        numbers = [re.findall(r'<figure id="c(\d+)">', text) for text in pages]
        assert [len(n) for n in numbers] == [10, 12, 8]
        assert len({number for part in numbers for number in part}) == 30
        assert re.findall(r'href="(positive-\d\.html)"', pages[0]) == ["positive-2.html", "positive-3.html"]
        objects = json.loads((tmp_path / "s" / "detections.geojson").read_text())["features"]
        named = {f["properties"]["name"] for f in objects}
        assert {f"capillary {n}" for part in numbers for n in part} <= named  # the number that QuPath shows


REPORT = """
{"format": 2, "program": "p", "code": "c", "libraries": {}, "slide": {"name": "s", "file": "s.tif", "identity": "i",
 "size_px": [100, 90], "um_per_px": 0.25, "tissue_mm2": 1.0},
 "models": {"fields": {"name": "f", "sha256": "0", "demonstration": true, "threshold": {"feasible": 0.5}},
  "capillaries": {"name": "d", "sha256": "0", "demonstration": true,
   "threshold": {"C4d negative": 0.0757, "C4d positive": 0.6248}}},
 "settings": {}, "reading": "machine",
 "result": {"positive": 8, "negative": 767, "fields": 41, "percent": 1.0323, "interval": [0.4, 2.0],
  "interval_covers": "", "grade": "C4d1", "grades_in_interval": ["C4d1"], "not_assessable": ""},
 "basis": {"flagged": 0, "flagged_by": {}, "left_out_by": {}, "grade_without_flagged": "C4d1",
  "percent_without_flagged": 1.0323, "changes": []},
 "warnings": [], "pink_share": null, "field_side_px": 1024, "field_mm2": 1.0, "positive_per_mm2": 8.0,
 "capillaries_per_mm2": 700.0, "fields": [], "stability": []}
"""
