"""The review in the viewer: what is decided counts as from QuPath, is kept at once, and is refused where it must be."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from starlette.testclient import TestClient

from pipelines.camelyon16.read.score import ScoreConfig, score_slide
from pipelines.renal.read.decisions import MachineReading
from pipelines.renal.read.review_run import review_slide
from pipelines.renal.read.run import report_slide
from pipelines.runs.review_log import LOG, Signature
from pipelines.web.collection import Collection, entries_of
from pipelines.web.server import application, cookie_of
from tests.pipelines.renal.test_report import LOOSE
from tests.renal_slides import TISSUE, readers, scattered, slide_of
from tests.slides import COMMAND, RednessEngine, write_pyramid
from wsi.errors import StoreError
from wsi.files import csv_rows
from wsi.marks.annotations import read_annotations
from wsi.results.folder import LocalFolder
from wsi.slides.manifest import SlideRow, read_manifest
from wsi.slides.source import SlideSource
from wsi.vocabulary import COLOURS, FEASIBLE, NEGATIVE, NOT_COUNTED, NOT_FEASIBLE, POSITIVE

Run = Callable[..., tuple[int, str, str]]
TOKEN, ADDRESS, URL = "the-token", "http://127.0.0.1:8000", "/api/slides/s/review"
RING = [[700.0, 300.0], [731.5, 302.25], [728.0, 340.0], [702.0, 333.0]]  # a place without a square


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    slide = slide_of(folder / "s.tif", scattered(40, 0.4, 3))
    report_slide(SlideRow(SlideSource(str(slide))), "s", readers(), folder / "s", LOOSE)
    return folder


@pytest.fixture
def reports(machine: Path, tmp_path: Path) -> Path:
    """A copy of a reports folder, whose slide stays where it is."""
    subprocess.run(["cp", "-r", machine / "s", tmp_path / "s"], check=True)
    return tmp_path


def page_of(reports: Path, reviewer: str | None = "") -> TestClient:
    collection = Collection(entries_of(LocalFolder(reports)), reviewer)
    client = TestClient(application(collection, TOKEN, frozenset({"127.0.0.1:8000"})), base_url=ADDRESS)
    client.cookies.set(cookie_of(TOKEN), TOKEN)
    return client


class Page:
    """A page that knows the log's last line, and posts decisions."""

    def __init__(self, reports: Path, name: str = "s") -> None:
        self.client, self.url = page_of(reports), f"/api/slides/{name}/review"
        self.state: dict[str, Any] = self.client.get(self.url).json()

    def post(self, what: str = "decide", **facts: Any) -> tuple[int, dict[str, Any]]:
        known = {"subject": self.state["subject"], "after": self.state["last"]}
        body = {"what": what, "by": "A. Smith"} | known | facts
        response = self.client.post(self.url, json=body)
        if response.status_code == 200:
            self.state = response.json()
        return response.status_code, response.json()

    def counts(self) -> list[int]:
        return [self.state["result"][key] for key in ("positive", "negative", "fields")]


@pytest.fixture
def page(reports: Path) -> Iterator[Page]:
    page = Page(reports)
    with page.client:
        yield page


def objects(reports: Path, group: str) -> list[dict[str, Any]]:
    features = json.loads((reports / "s" / "detections.geojson").read_text())["features"]
    return [f for f in features if f["properties"]["classification"]["name"] == group]


def report_of(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "reviewed" / "report.json").read_text()))


class TestDecisions:
    def test_counts_and_grade_follow_each_decision_and_its_undoing(self, page: Page, reports: Path) -> None:
        positive, negative = objects(reports, POSITIVE), objects(reports, NEGATIVE)
        fields = [f for f in objects(reports, FEASIBLE)]
        p, n, f = len(positive), len(negative), len(fields)
        assert page.counts() == [p, n, f]
        assert (page.state["seen"], page.state["total"]) == (0, p + n)
        steps: list[tuple[dict[str, Any], list[int]]] = [
            ({"id": positive[0]["id"], "group": NEGATIVE}, [p - 1, n + 1, f]),
            ({"id": positive[1]["id"], "group": NOT_COUNTED}, [p - 2, n + 1, f]),
            ({"id": negative[0]["id"], "group": NEGATIVE}, [p - 2, n + 1, f]),  # right as it is
            ({"group": POSITIVE, "ring": RING}, [p - 1, n + 1, f]),
        ]
        for facts, counts in steps:
            assert page.post(**facts)[0] == 200
            assert page.counts() == counts
        assert (page.state["seen"], page.state["drawn"]) == (3, 1)
        for counts in [steps[2][1], steps[1][1], steps[0][1], [p, n, f]]:
            assert page.post("undo")[0] == 200
            assert page.counts() == counts
        assert page.post("undo") == (409, {"error": "there is nothing to undo"})
        for _, counts in steps:
            assert page.post("redo")[0] == 200
            assert page.counts() == counts

    def test_a_field_is_left_out_and_taken_in(self, page: Page, reports: Path) -> None:
        field = objects(reports, FEASIBLE)[0]
        inside = [
            f
            for group in (POSITIVE, NEGATIVE)
            for f in objects(reports, group)
            if shapely.geometry.shape(field["geometry"]).contains(
                shapely.geometry.shape(f["geometry"]).centroid
            )
        ]
        before = page.counts()
        assert inside
        page.post(id=field["id"], group=NOT_FEASIBLE)
        assert page.counts()[2] == before[2] - 1
        assert sum(page.counts()[:2]) == sum(before[:2]) - len(inside)
        assert f"{len(inside)} marked outside evaluated fields" in page.state["note"]
        page.post(id=field["id"], group=FEASIBLE)
        assert page.counts() == before

    def test_a_drawn_one_is_changed_and_deleted_like_any_other(self, page: Page) -> None:
        before = page.counts()
        page.post(group=NEGATIVE, ring=RING)
        (drawn,) = [key for key, (_, ring) in page.state["decisions"].items() if ring]
        page.post(id=drawn, group=POSITIVE)
        assert page.counts() == [before[0] + 1, *before[1:]]
        assert page.state["decisions"][drawn] == [POSITIVE, RING]
        page.post(id=drawn, group=NOT_COUNTED)
        assert (page.counts(), page.state["drawn"]) == (before, 0)

    @pytest.mark.parametrize(
        ("facts", "sentence"),
        [
            ({"id": "nothing", "group": POSITIVE}, "no object 'nothing'"),
            ({"group": NOT_COUNTED, "ring": RING}, "what is drawn is"),
            ({"group": POSITIVE}, "no area"),
            ({"group": POSITIVE, "ring": [[0, 0], [10, 10], [10, 0], [0, 10]]}, "crosses itself"),
            ({"group": POSITIVE, "ring": [[-50, 0], [10, 0], [10, 30]]}, "leaves the slide"),
        ],
    )
    def test_what_cannot_be_counted_is_refused(
        self, page: Page, facts: dict[str, Any], sentence: str
    ) -> None:
        status, answer = page.post(**facts)
        assert status == 409
        assert sentence in answer["error"]
        assert page.client.get(URL).json() == page.state | {"reviewer": ""}

    def test_classes_of_fields_are_not_those_of_capillaries(self, page: Page, reports: Path) -> None:
        for group, other in ((POSITIVE, FEASIBLE), (FEASIBLE, POSITIVE), (NEGATIVE, "Tumor")):
            assert page.post(id=objects(reports, group)[0]["id"], group=other)[0] == 409
        assert page.post(id=objects(reports, POSITIVE)[0]["id"], group=NEGATIVE, ring=RING)[0] == 409

    def test_two_marks_of_one_capillary_are_refused_before_they_are_noted(
        self, page: Page, reports: Path
    ) -> None:
        x0, y0, x1, y1 = shapely.geometry.shape(objects(reports, POSITIVE)[0]["geometry"]).bounds
        status, answer = page.post(group=POSITIVE, ring=[[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        assert status == 409
        assert "instead of marking twice" in answer["error"]
        status, answer = page.post(group=POSITIVE, ring=[[x0 + 1, y0], [x1, y0], [x1, y1], [x0 + 1, y1]])
        assert status == 409
        assert "marks the capillary" in answer["error"]
        assert answer["error"].endswith("twice; delete one of the two")
        assert not (reports / "s" / LOG).exists()

    def test_a_second_page_is_told_and_sees_the_first(self, page: Page, reports: Path) -> None:
        other = Page(reports)
        first, second = (f["id"] for f in objects(reports, POSITIVE)[:2])
        page.post(id=first, group=NEGATIVE)
        status, answer = other.post(id=second, group=NEGATIVE)
        assert (status, answer["stale"]) == (409, True)
        other.state = other.client.get(URL).json()
        assert list(other.state["decisions"]) == [first]
        assert other.post(id=second, group=NEGATIVE)[0] == 200


class TestSigning:
    def test_the_report_is_that_of_the_same_corrections_in_qupath(
        self, page: Page, reports: Path, tmp_path: Path
    ) -> None:
        """QuPath's part is played by hand: classes changed, one object gone, one drawn, in the machine's file."""
        positive, negative = objects(reports, POSITIVE), objects(reports, NEGATIVE)
        field = objects(reports, FEASIBLE)[1]
        page.post(id=positive[0]["id"], group=NEGATIVE)
        page.post(id=negative[3]["id"], group=NOT_COUNTED)
        page.post(id=field["id"], group=NOT_FEASIBLE)
        page.post(group=POSITIVE, ring=RING)
        status, state = page.post("sign", comment="two folds")
        assert (status, state["signed"]["by"]) == (200, "A. Smith")

        collection = json.loads((reports / "s" / "detections.geojson").read_text())
        kept = [f for f in collection["features"] if f["id"] != negative[3]["id"]]
        for feature in kept:
            for key, group in ((positive[0]["id"], NEGATIVE), (field["id"], NOT_FEASIBLE)):
                if feature["id"] == key:
                    feature["properties"]["classification"] = {"name": group, "color": list(COLOURS[group])}
        ring = {"type": "Polygon", "coordinates": [[*RING, RING[0]]]}
        drawn = {"type": "Feature", "geometry": ring, "properties": {"classification": {"name": POSITIVE}}}
        path = tmp_path / "from_qupath.geojson"
        path.write_text(json.dumps({"type": "FeatureCollection", "features": [*kept, drawn]}))
        here = report_of(reports / "s")
        subprocess.run(["mv", reports / "s" / "reviewed", tmp_path / "viewer"], check=True)
        review_slide(reports / "s", path, Signature("A. Smith", here["corrections"]["date"], "two folds"))
        there = report_of(reports / "s")
        for name in ("capillaries.csv", "detections.geojson"):
            assert (tmp_path / "viewer" / name).read_bytes() == (
                reports / "s" / "reviewed" / name
            ).read_bytes()
        own = {"file", "sha256", "signed_at", "log"}
        assert {k: v for k, v in here["corrections"].items() if k not in own} == {
            k: v for k, v in there["corrections"].items() if k not in own
        }
        assert here | {"corrections": None} == there | {"corrections": None}
        assert here["result"] == state["result"]
        c = here["corrections"]
        assert [c[k] for k in ("deleted", "added", "reclassified", "fields_left_out")] == [1, 1, 1, 1]

    def test_the_corrected_file_alone_gives_the_same_bytes(self, page: Page, reports: Path, wsi: Run) -> None:
        page.post(id=objects(reports, POSITIVE)[2]["id"], group=NEGATIVE)
        page.post("sign")
        first = report_of(reports / "s")
        assert (
            wsi("renal", "review", reports / "s", reports / "s" / "corrected.geojson", "--by", "A. Smith")[0]
            == 0
        )
        again = report_of(reports / "s")
        for report in (first, again):
            for key in ("signed_at", "log", "date"):
                report["corrections"].pop(key)
        assert first == again

    def test_the_report_names_the_last_line_and_verify_looks_at_it(
        self, page: Page, reports: Path, wsi: Run
    ) -> None:
        page.post(id=objects(reports, POSITIVE)[0]["id"], group=NEGATIVE)
        last = page.state["last"]
        page.post("sign")
        assert report_of(reports / "s")["corrections"]["log"] == last
        html = (reports / "s" / "reviewed" / "report.html").read_text()
        assert last[:16] in html
        assert wsi("verify", reports / "s")[0] == 0
        log = reports / "s" / LOG
        text = log.read_text()
        log.write_text(text.replace("A. Smith", "B. Smith"))
        code, _, err = wsi("verify", reports / "s")
        assert code == 1
        assert "was changed after it was written" in " ".join(err.split())
        log.write_text(text.splitlines()[0] + "\n")
        code, _, err = wsi("verify", reports / "s")
        assert code == 1
        assert "does not hold the line" in " ".join(err.split())

    def test_the_list_shows_the_signed_reading(self, page: Page, reports: Path) -> None:
        for feature in objects(reports, POSITIVE):
            page.post(id=feature["id"], group=NEGATIVE)
        page.post("sign")
        (line,) = page.client.get("/api/slides").json()
        assert (line["word"], line["score"]) == ("C4d0", 0.0)
        assert "corrected by A. Smith on 20" in line["note"]
        (line,) = page_of(reports).get("/api/slides").json()
        assert line["score"] == 0.0

    def test_a_second_signature_keeps_the_first_review(self, page: Page, reports: Path) -> None:
        page.post(id=objects(reports, POSITIVE)[0]["id"], group=NEGATIVE)
        page.post("sign")
        page.post("undo")
        assert page.state["signed"]["changed"]
        page.post("sign")
        assert report_of(reports / "s")["corrections"]["reclassified"] == 0
        kept = json.loads((reports / "s" / "reviewed-before-1" / "report.json").read_text())
        assert kept["corrections"]["reclassified"] == 1

    def test_a_slide_that_was_moved_cannot_be_signed_and_nothing_is_lost(self, tmp_path: Path) -> None:
        slide = slide_of(tmp_path / "s.tif", scattered(30, 0.4, 3))
        report_slide(SlideRow(SlideSource(str(slide))), "s", readers(), tmp_path / "out" / "s", LOOSE)
        page = Page(tmp_path / "out")
        page.post(id=objects(tmp_path / "out", POSITIVE)[0]["id"], group=NEGATIVE)
        slide.rename(tmp_path / "moved.tif")
        status, answer = page.post("sign")
        assert status == 409
        assert str(tmp_path) not in answer["error"]
        assert len(page.client.get(URL).json()["decisions"]) == 1


class TestTwoAtOnce:
    def test_a_stale_signature_writes_nothing(self, page: Page, reports: Path) -> None:
        other = Page(reports)
        other.post(id=objects(reports, POSITIVE)[0]["id"], group=NEGATIVE)
        status, answer = page.post("sign")
        assert (status, answer["stale"]) == (409, True)
        assert not (reports / "s" / "reviewed").exists()

    def test_a_page_that_knows_less_is_told_so_before_anything_else(self, page: Page, reports: Path) -> None:
        """Its undo would have nothing to undo: it must hear that it is behind, else it never looks again."""
        page.post(id=objects(reports, POSITIVE)[0]["id"], group=NEGATIVE)
        other = Page(reports)
        page.post("undo")
        status, answer = other.post("undo")
        assert (status, answer["stale"]) == (409, True)

    def test_a_report_that_was_made_again_is_shown_and_reviewed_anew(
        self, page: Page, reports: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Nothing that was decided on the earlier one is signed onto it."""
        page.post(id=objects(reports, POSITIVE)[0]["id"], group=NEGATIVE)
        before = len(page.client.get("/api/slides/s").json()["capillaries"])
        slide = slide_of(tmp_path_factory.mktemp("other") / "s.tif", scattered(17, 0.4, 8))
        row = SlideRow(SlideSource(str(slide)))
        report_slide(row, "s", readers(), reports / "s", LOOSE, overwrite=True)
        for what in ("sign", "undo", "decide"):
            status, answer = page.post(what, id=objects(reports, POSITIVE)[0]["id"], group=NEGATIVE)
            assert (status, answer["stale"]) == (409, True)
        assert not (reports / "s" / "reviewed").exists()
        assert len(page.client.get("/api/slides/s").json()["capillaries"]) < before
        page.state = page.client.get(URL).json()
        assert (page.state["decisions"], page.state["total"]) == (
            {},
            len(page.client.get("/api/slides/s").json()["capillaries"]),
        )
        assert not list((reports / "s").glob("review-before*"))  # to look changes nothing
        assert page.post(id=objects(reports, POSITIVE)[0]["id"], group=NEGATIVE)[0] == 200
        assert (reports / "s" / "review-before-1.jsonl").exists()

    def test_a_table_that_cannot_be_written_does_not_undo_a_signature(
        self, page: Page, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reports: Path
    ) -> None:
        def fail(self: MachineReading) -> None:
            raise StoreError("grades.csv cannot be written")

        monkeypatch.setattr(MachineReading, "list_signed", fail)
        assert page.post("sign")[0] == 200
        assert page.state["signed"]["by"] == "A. Smith"
        assert "do not show this review yet" in caplog.text
        assert not list((reports / "s").glob("reviewed-before*"))

    def test_what_was_signed_is_gone_or_changed_since(self, page: Page, reports: Path) -> None:
        page.post("sign")
        assert page.state["signed"]["changed"] is False
        page.post(id=objects(reports, POSITIVE)[0]["id"], group=NEGATIVE)
        assert page.state["signed"]["changed"] is True
        (reports / "s" / "reviewed").rename(reports / "s" / "reviewed-before-1")
        assert page.client.get(URL).json()["signed"] is None

    def test_a_broken_review_leaves_the_slide_in_the_list(self, page: Page, reports: Path) -> None:
        page.post("sign")
        (reports / "s" / "reviewed" / "report.json").write_text("{}")
        (line,) = page_of(reports).get("/api/slides").json()
        assert "its review is broken" in line["note"]


class TestNotes:
    def test_a_field_that_was_taken_in_without_a_mark_is_said_not_to_count(
        self, page: Page, reports: Path
    ) -> None:
        fields = page.counts()[2]
        page.post(id=objects(reports, NOT_FEASIBLE)[0]["id"], group=FEASIBLE)
        assert page.counts()[2] == fields
        assert "1 field taken in without a mark in them: not counted" in page.state["note"]

    def test_a_mark_as_large_as_a_field_is_asked_about(self, page: Page) -> None:
        page.post(group=POSITIVE, ring=[[600, 600], [900, 600], [900, 900], [600, 900]])
        assert "longer than 100 um" in page.state["note"]

    def test_a_click_that_slipped_is_no_capillary(self, page: Page) -> None:
        status, answer = page.post(group=POSITIVE, ring=[[700, 300], [703, 300], [703, 340], [700, 340]])
        assert status == 409
        assert "less than 2 um" in answer["error"]

    @pytest.mark.parametrize("kind", ["glass", "crumb"])
    def test_a_report_without_fields_is_shown_but_not_reviewed(
        self, tmp_path: Path, wsi: Run, kind: str
    ) -> None:
        image = np.full((1024, 1536, 3), 245, np.uint8)
        if kind == "crumb":
            image[300:420, 500:650] = TISSUE
        slide = write_pyramid(tmp_path / "e.tif", image, mpp=0.5, tile=256)
        report_slide(SlideRow(SlideSource(str(slide))), "e", readers(), tmp_path / "out" / "e", LOOSE)
        client = page_of(tmp_path / "out")
        assert client.get("/api/slides/e").status_code == 200
        response = client.get("/api/slides/e/review")
        assert (response.status_code, response.json()) == (404, {"error": "there is nothing to review"})
        assert wsi("view", tmp_path / "out", "--export", tmp_path / "site")[0] == 0


class TestWhoMay:
    def test_read_only_means_read_only(self, reports: Path) -> None:
        client = page_of(reports, None)
        body = {
            "what": "decide",
            "by": "x",
            "after": "",
            "id": objects(reports, POSITIVE)[0]["id"],
            "group": NEGATIVE,
        }
        assert client.get(URL).json()["reviewer"] is None
        assert client.post(URL, json=body).status_code == 403
        assert not (reports / "s" / LOG).exists()

    def test_other_sites_and_strangers_write_nothing(self, page: Page, reports: Path) -> None:
        body = json.dumps(
            {
                "what": "decide",
                "by": "x",
                "after": "",
                "id": objects(reports, POSITIVE)[0]["id"],
                "group": NEGATIVE,
            }
        )
        kind = {"content-type": "application/json"}
        evil = page.client.post(URL, content=body, headers=kind | {"origin": "http://evil.example"})
        form = page.client.post(
            URL, content=body, headers={"content-type": "text/plain"}
        )  # a form of another site can
        rebound = page.client.post(URL, content=body, headers=kind | {"host": "evil.example"})
        page.client.cookies.clear()
        stranger = page.client.post(URL, content=body, headers=kind)
        assert [r.status_code for r in (evil, form, rebound, stranger)] == [403, 415, 400, 403]
        assert not (reports / "s" / LOG).exists()

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b'{"what": "decide"}',
            b'{"what": "sign", "by": " ", "subject": "", "after": ""}',
            b'{"what": "decide", "by": "x", "subject": "", "after": "", "id": 5, "group": "feasible"}',
            b'{"what": "decide", "by": "x", "subject": "", "after": "", "group": "C4d positive", "ring": [[NaN, 1], [2, 3], [4, 9]]}',
            b'{"what": "remove", "by": "x", "subject": "", "after": ""}',
            b'{"what": "undo", "by": "x", "subject": "", "after": "", "path": "/etc/passwd"}',
        ],
    )
    def test_what_is_no_request_is_refused(self, page: Page, reports: Path, body: bytes) -> None:
        response = page.client.post(URL, content=body, headers={"content-type": "application/json"})
        assert response.status_code in (409, 413, 422), response.text
        assert "error" in response.json()
        assert not (reports / "s" / LOG).exists()

    def test_a_request_that_is_too_long_is_refused(self, page: Page) -> None:
        assert page.post(group=POSITIVE, ring=[[0, 0]] * 100_000)[0] == 413

    def test_a_broken_report_is_said_to_be(self, reports: Path) -> None:
        client = page_of(reports)
        (reports / "s" / "detections.geojson").write_text("{}")
        response = client.get(URL)
        assert response.status_code == 409
        assert "broken" in response.json()["error"]
        assert str(reports) not in response.text


@contextmanager
def served(reports: Path, *words: str) -> Iterator[tuple[urllib.request.OpenerDirector, str]]:
    """A browser's part without a browser, and the address; the server is killed at the end."""
    process = subprocess.Popen(
        [COMMAND, "view", reports, "--no-browser", *words],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONUNBUFFERED": "1", "PATH": "/usr/bin:/bin"},
    )
    try:
        assert process.stdout is not None
        found = re.search(r"open (http://\S+?)/\?(token=\S+)", process.stdout.readline())
        assert found is not None
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        opener.open(f"{found[1]}/?{found[2]}").read()
        yield opener, found[1] + URL
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(20)


def posted(url: str, **body: str) -> urllib.request.Request:
    return urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})


@pytest.mark.slow
def test_a_killed_server_has_kept_every_decision(reports: Path) -> None:
    """SIGKILL right after each answer: the next server goes on from there."""
    ids = [f["id"] for f in objects(reports, POSITIVE)[:3]]
    for number, key in enumerate(ids):
        with served(reports, "--by", "A. Smith") as (opener, url):
            state = json.load(opener.open(url))
            assert (len(state["decisions"]), state["reviewer"]) == (number, "A. Smith")
            body = {"what": "decide", "by": "A. Smith", "id": key, "group": NEGATIVE}
            body |= {"subject": state["subject"], "after": state["last"]}
            assert opener.open(posted(url, **body)).status == 200
    with served(reports, "--read-only") as (opener, url):
        state = json.load(opener.open(url))
        assert len(state["decisions"]) == 3
        with pytest.raises(urllib.error.HTTPError, match="403"):
            opener.open(posted(url, what="undo", by="x", subject=state["subject"], after=state["last"]))


class TestLymphNodes:
    """Areas are accepted or rejected, missed ones drawn; what is signed is truth to train with."""

    RING = ((300.0, 400.0), (900.0, 420.0), (860.0, 1000.0))

    @pytest.fixture
    def results(self, red_square: Path, tmp_path: Path) -> Path:
        row = SlideRow(SlideSource(str(red_square)))
        score_slide(row, "red square", RednessEngine(), tmp_path / "out" / "red square", ScoreConfig())
        return tmp_path / "out"

    def test_a_rejected_area_and_a_drawn_one(self, results: Path) -> None:
        page = Page(results, "red square")
        (area,) = page.client.get("/api/slides/red square").json()["areas"]
        assert page.state["groups"] == {"yes": "Tumor", "no": "", "out": "normal"}
        assert (page.state["total"], page.state["result"]["areas"]) == (1, 1)
        assert page.post(id=area[6], group="normal")[0] == 200
        assert page.state["result"] == {"areas": 0, "rejected": 1, "drawn": 0}
        assert page.post(group="Tumor", ring=self.RING)[0] == 200
        assert page.state["result"] == {"areas": 1, "rejected": 1, "drawn": 1}
        mm2 = shapely.Polygon(self.RING).area * 0.25**2 / 1e6
        assert page.state["counts"][1] == f"now: 1 area, {mm2:.3f} mm2"
        page.post("undo")
        page.post("undo")
        assert page.state["counts"][0].removeprefix("machine") == page.state["counts"][1].removeprefix("now")

    @pytest.mark.parametrize(
        ("facts", "sentence"),
        [
            ({"id": "nothing", "group": "normal"}, "no area 'nothing'"),
            ({"group": "normal", "ring": RING}, "what is drawn is Tumor"),
            ({"group": "Tumor", "ring": ((0, 0), (5000, 0), (0, 10))}, "leaves the slide"),
        ],
    )
    def test_what_cannot_be_used_is_refused(
        self, results: Path, facts: dict[str, Any], sentence: str
    ) -> None:
        status, answer = Page(results, "red square").post(**facts)
        assert status == 409
        assert sentence in answer["error"]

    def test_signed_slides_are_truth_that_training_reads(
        self, results: Path, red_square: Path, wsi: Run
    ) -> None:
        page = Page(results, "red square")
        (area,) = page.client.get("/api/slides/red square").json()["areas"]
        page.post(id=area[6], group="normal")
        page.post(group="Tumor", ring=self.RING)
        assert page.post("sign", comment="a fold")[0] == 200
        (annotation,) = read_annotations(results / "red square" / "reviewed" / "truth.geojson")
        assert annotation.outline.equals(shapely.Polygon(self.RING))
        assert annotation.group == "Tumor"
        (row,) = read_manifest(results / "reviewed_slides.csv")
        assert row.source.path == str(red_square)
        assert (row.label, row.split, row.truth) == (
            "tumor",
            "train",
            results / "red square" / "reviewed" / "truth.geojson",
        )
        (line,) = [line for line in page.client.get("/api/slides").json() if line["id"] == "red square"]
        assert line["note"].startswith("reviewed by A. Smith on 20")
        assert wsi("verify", results / "red square")[0] == 0
        # what the person rejected is a hard negative now: it scores high, and no truth says tumour
        hard = results / "hard.csv"
        assert wsi("train", "mine", results, "--slides", results / "reviewed_slides.csv", "-o", hard)[0] == 0
        places = [(float(r["x"]), float(r["y"])) for r in csv_rows(hard.read_bytes())]
        assert len(places) == 25  # the square's cells
        assert all(1280 - 128 <= x < 1920 and 1024 - 128 <= y < 1664 for x, y in places)

    def test_areas_that_overlap_count_once(self, results: Path) -> None:
        page = Page(results, "red square")
        page.post(group="Tumor", ring=self.RING)
        once = page.state["counts"][1].split(", ")[1]
        assert (
            page.post(group="Tumor", ring=((500, 500), (700, 510), (690, 700)))[0] == 200
        )  # inside the first
        assert page.state["counts"][1] == f"now: 3 areas, {once}"

    def test_another_slide_of_the_same_name_has_no_review(self, results: Path, tmp_path: Path) -> None:
        """Signed as normal; then a slide with tumour is scored under its name: it must not be learned as normal."""
        page = Page(results, "red square")
        (area,) = page.client.get("/api/slides/red square").json()["areas"]
        page.post(id=area[6], group="normal")
        page.post("sign")
        image = np.full((2048, 2560, 3), 255, np.uint8)
        image[256:1800, 256:2300] = (240, 200, 220)
        image[600:1300, 600:1500] = (220, 100, 100)
        slide = write_pyramid(tmp_path / "red square.tif", image, levels=2)
        row = SlideRow(SlideSource(str(slide)))
        folder = results / "red square"
        score_slide(row, "red square", RednessEngine(), folder, ScoreConfig(), overwrite=True)
        (line,) = page_of(results).get("/api/slides").json()
        assert "reviewed" not in line["note"]
        other = Page(results, "red square")
        assert other.state["signed"] is None
        assert page.post("sign")[1]["stale"] is True
        score_slide(row, "again", RednessEngine(), results / "again", ScoreConfig())
        third = Page(results, "again")
        third.post("sign")
        assert [r.source.path for r in read_manifest(results / "reviewed_slides.csv")] == [str(slide)]

    def test_what_was_drawn_on_one_slide_is_not_shown_on_another_of_its_name(self, tmp_path: Path) -> None:
        """Nothing was found on either, so that their results are the same bytes."""
        folder = tmp_path / "out" / "n"
        for side, overwrite in ((2048, False), (2304, True)):
            image = np.full((1536, side, 3), 255, np.uint8)
            image[256:1300, 256:1800] = (240, 200, 220)
            slide = write_pyramid(tmp_path / f"{side}.tif", image, levels=2)
            row = SlideRow(SlideSource(str(slide)))
            score_slide(row, "n", RednessEngine(), folder, ScoreConfig(), overwrite=overwrite)
            page = Page(tmp_path / "out", "n")
            assert page.state["decisions"] == {}
            assert page.state["total"] == 0
            assert page.post(group="Tumor", ring=self.RING)[0] == 200
        assert (folder / "review-before-1.jsonl").exists()

    def test_verify_looks_at_the_log_of_a_lymph_node_too(self, results: Path, wsi: Run) -> None:
        page = Page(results, "red square")
        page.post(group="Tumor", ring=self.RING)
        page.post("sign")
        assert wsi("verify", results / "red square")[0] == 0
        (results / "red square" / LOG).unlink()
        code, _, noted = wsi("verify", results / "red square")
        assert (code, "is missing" in noted) == (1, True)

    def test_a_slide_without_any_area_left_is_normal(self, results: Path) -> None:
        page = Page(results, "red square")
        (area,) = page.client.get("/api/slides/red square").json()["areas"]
        page.post(id=area[6], group="normal")
        page.post("sign")
        (row,) = read_manifest(results / "reviewed_slides.csv")
        assert row.said_normal
        assert row.truth is None
