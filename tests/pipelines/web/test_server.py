"""The viewer's server: what it gives, what it refuses, and that it tells nothing that it should not."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image
from starlette.testclient import TestClient

from pipelines.camelyon16.read.score import ScoreConfig, score_slide
from pipelines.renal.read.run import report_slide
from pipelines.web import collection as module
from pipelines.web.collection import Collection, Entry, entries_of
from pipelines.web.review import ReviewRequest
from pipelines.web.server import GREY, TILE_PX, application, cookie_of, levels_of
from tests.pipelines.renal.test_report import LOOSE
from tests.renal_slides import readers, scattered, slide_of
from tests.slides import COMMAND, RednessEngine, coordinates, write_pyramid
from wsi.errors import StoreError
from wsi.files import csv_rows
from wsi.results.folder import LocalFolder
from wsi.results.store import HeatmapStore
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource
from wsi.vocabulary import POSITIVE

Run = Callable[..., tuple[int, str, str]]
TOKEN, ADDRESS = "the-token", "http://127.0.0.1:8000"
HOSTS = frozenset({"127.0.0.1:8000", "localhost:8000"})


@pytest.fixture(scope="module")
def results(red_square: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One scored slide whose file is there, one whose file was moved, one result that is broken."""
    out = tmp_path_factory.mktemp("results")
    moved = out / "moved.tif"
    shutil.copy(red_square, moved)
    for name, path in (("red", red_square), ("moved", moved)):
        score_slide(SlideRow(SlideSource(str(path))), name, RednessEngine(), out / name, ScoreConfig())
    moved.unlink()
    (out / "broken").mkdir()
    (out / "broken" / "slide.json").write_text("{}")
    return out


@pytest.fixture
def client(results: Path) -> Iterator[TestClient]:
    collection = Collection(entries_of(LocalFolder(results)))
    with TestClient(application(collection, TOKEN, HOSTS), base_url=ADDRESS) as client:
        client.cookies.set(cookie_of(TOKEN), TOKEN)
        yield client
    collection.close()


def of(entries: list[Entry]) -> TestClient:
    client = TestClient(application(Collection(entries), TOKEN, HOSTS), base_url=ADDRESS)
    client.cookies.set(cookie_of(TOKEN), TOKEN)
    return client


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_only_two_runs_may_be_framed_and_only_by_their_own_page() -> None:
    entry = Entry("x", "slide", SlideSource("x.tif"))
    for beside, ancestors, frame in ((None, "'none'", "DENY"), (Collection([entry]), "'self'", "SAMEORIGIN")):
        client = TestClient(application(Collection([entry]), TOKEN, HOSTS, beside), base_url=ADDRESS)
        assert client.get("/b/api/slides").status_code == 403  # no token
        client.cookies.set(cookie_of(TOKEN), TOKEN)
        headers = client.get("/").headers
        assert f"frame-ancestors {ancestors};" in headers["content-security-policy"]
        assert headers["x-frame-options"] == frame
        assert client.get("/b/api/slides").status_code == (404 if beside is None else 200)


class TestWhoIsLetIn:
    ROUTES = (
        "/",
        "/static/view.js",
        "/api/slides",
        "/api/slides/red",
        "/api/slides/red/heat",
        "/api/slides/red/thumbnail.jpg",
        "/api/slides/red/tiles/0/0_0.jpg",
        "/nothing",
    )

    def test_the_token_becomes_a_cookie_that_no_script_and_no_other_site_gets(
        self, client: TestClient
    ) -> None:
        client.cookies.clear()
        response = client.get(f"/?token={TOKEN}", follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (303, "/")
        cookie = response.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert client.get("/").status_code == 200

    @pytest.mark.parametrize("route", ROUTES)
    def test_without_it_nothing_is_given(self, client: TestClient, route: str) -> None:
        for cookie, query in (
            ("", ""),
            ("wrong", ""),
            ("", "?token=wrong"),
            ("", "?token="),
            (TOKEN + "x", ""),
        ):
            client.cookies.clear()
            if cookie:
                client.cookies.set(cookie_of(TOKEN), cookie)
            response = client.get(route + query, follow_redirects=False)
            assert (response.status_code, set(response.json())) == (403, {"error"})

    def test_the_token_in_the_address_opens_the_page_only(self, client: TestClient) -> None:
        client.cookies.clear()
        assert client.get(f"/api/slides?token={TOKEN}").status_code == 403

    @pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1:8001", "", "127.0.0.1"])
    def test_another_name_of_this_machine_is_refused(self, client: TestClient, host: str) -> None:
        """A page of evil.example whose name is changed to 127.0.0.1 (DNS rebinding) sends its own Host."""
        assert client.get("/api/slides", headers={"host": host}).status_code == 400
        assert client.get("/api/slides", headers={"host": "localhost:8000"}).status_code == 200

    @pytest.mark.parametrize(
        "origin", ["http://evil.example", "null", "http://127.0.0.1:9000", "https://127.0.0.1:8000"]
    )
    def test_requests_of_other_sites_are_refused(self, client: TestClient, origin: str) -> None:
        assert client.get("/api/slides", headers={"origin": origin}).status_code == 403
        assert client.get("/api/slides", headers={"origin": ADDRESS}).status_code == 200

    def test_nothing_can_be_changed(self, client: TestClient) -> None:
        for route in self.ROUTES[:-1]:
            for method in ("post", "put", "delete", "patch"):
                assert getattr(client, method)(route).status_code == 405

    @pytest.mark.parametrize("route", ROUTES)
    def test_every_answer_has_the_headers(self, client: TestClient, route: str) -> None:
        for cookie in (TOKEN, "wrong"):
            client.cookies.set(cookie_of(TOKEN), cookie)
            headers = client.get(route).headers
            policy = headers["content-security-policy"]
            assert "default-src 'self'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe-inline" not in policy
            assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")

    def test_the_page_has_no_script_and_no_style_inside(self, client: TestClient) -> None:
        page = client.get("/").text
        assert re.findall(r"<script(?![^>]*src=)|<style|style=|onclick=|http://|https://", page) == []


class TestWhatIsNotTold:
    @pytest.mark.parametrize(
        "name",
        [
            "..",
            "%2e%2e",
            "..%2f..%2fetc%2fpasswd",
            "red%2f..%2fmoved",
            "nobody",
            "broken",
            "%00",
            "red%00",
        ],
    )
    def test_names_that_are_no_ids(self, client: TestClient, name: str) -> None:
        for tail in ("", "/heat", "/thumbnail.jpg", "/tiles/0/0_0.jpg"):
            response = client.get(f"/api/slides/{name}{tail}")
            assert response.status_code == 404

    @pytest.mark.parametrize("name", ["..%2fserver.py", "../server.py", "server.py", "", "view.html%00.js"])
    def test_files_that_are_not_for_the_page(self, client: TestClient, name: str) -> None:
        assert client.get(f"/static/{name}").status_code == 404

    def test_no_path_of_this_machine_is_in_any_answer(
        self, client: TestClient, results: Path, red_square: Path
    ) -> None:
        routes = [
            "/",
            "/api/slides",
            *(f"/api/slides/{n}{t}" for n in ("red", "moved") for t in ("", "/thumbnail.jpg")),
        ]
        for route in routes:
            content = client.get(route).content
            for secret in (results.parent, red_square.parent):
                assert str(secret).encode() not in content


class TestTiles:
    def test_the_finest_level_is_the_slide(self, client: TestClient, red_square: Path) -> None:
        """4608 x 3072: 9 x 6 whole tiles; JPEG changes a pixel by little."""
        finest = levels_of((4608, 3072))
        assert 2**finest >= 4608 > 2 ** (finest - 1)
        for x, y in ((0, 0), (2, 2), (8, 5)):
            tile = pixels(client.get(f"/api/slides/red/tiles/{finest}/{x}_{y}.jpg").content)
            with SlideSource(str(red_square)).open() as slide:
                expected = slide.read_region((x * TILE_PX, y * TILE_PX), 0, (TILE_PX, TILE_PX))
            assert tile.shape == expected.shape
            assert np.abs(tile.astype(int) - expected).mean() < 3

    def test_a_mark_is_where_it_must_be_at_every_level(self, client: TestClient) -> None:
        """The red square, x 1280 to 1920, y 1024 to 1664, is no mirror image of anything."""
        finest = levels_of((4608, 3072))
        for level in range(finest - 3, finest + 1):
            scale = 2 ** (finest - level)
            cols, rows = (-(-side // (scale * TILE_PX)) for side in (4608, 3072))
            whole = np.vstack(
                [
                    np.hstack(
                        [
                            pixels(client.get(f"/api/slides/red/tiles/{level}/{x}_{y}.jpg").content)
                            for x in range(cols)
                        ]
                    )
                    for y in range(rows)
                ]
            )
            assert whole.shape[:2] == (-(-3072 // scale), -(-4608 // scale))
            red = np.argwhere((whole[..., 0].astype(int) - whole[..., 2] > 60) & (whole[..., 1] < 115))
            (top, left), (bottom, right) = red.min(axis=0), red.max(axis=0) + 1
            assert (
                np.abs(np.array([left, top, right, bottom]) * scale - [1280, 1024, 1920, 1664]).max()
                <= 2 * scale
            )

    def test_tiles_at_the_edge_end_with_the_slide(self, tmp_path: Path) -> None:
        path = write_pyramid(tmp_path / "s.tif", coordinates(700, 500), levels=2)
        client = of([Entry("s", "slide", SlideSource(str(path)))])
        sizes = {}
        for level, x, y in ((10, 0, 0), (10, 1, 0), (9, 0, 0), (0, 0, 0)):
            sizes[level, x, y] = pixels(client.get(f"/api/slides/s/tiles/{level}/{x}_{y}.jpg").content).shape[
                1::-1
            ]
        assert sizes == {
            (10, 0, 0): (512, 500),
            (10, 1, 0): (188, 500),
            (9, 0, 0): (350, 250),
            (0, 0, 0): (1, 1),
        }
        for level, x, y in ((10, 2, 0), (10, 0, 1), (11, 0, 0), (0, 1, 0)):
            assert client.get(f"/api/slides/s/tiles/{level}/{x}_{y}.jpg").status_code == 404
        assert pixels(client.get("/api/slides/s/thumbnail.jpg").content).shape[1::-1] == (175, 125)
        details = client.get("/api/slides/s").json()
        assert (details["width"], details["height"], details["kind"]) == (700, 500, "slide")

    def test_what_cannot_be_decoded_is_grey(
        self, broken_tile: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = of([Entry("b", "slide", SlideSource(str(broken_tile)))])
        finest = levels_of((4608, 3072))
        broken = pixels(client.get(f"/api/slides/b/tiles/{finest}/5_3.jpg").content)
        assert np.abs(broken.astype(int) - GREY).max() <= 2
        assert "cannot decode" in caplog.text
        good = pixels(client.get(f"/api/slides/b/tiles/{finest}/4_3.jpg").content)
        assert np.abs(good.astype(int) - GREY).max() > 20


class TestScored:
    def test_the_heatmap_is_the_one_on_the_disk(self, client: TestClient, results: Path) -> None:
        heat = client.get("/api/slides/red").json()["heat"]
        values = np.frombuffer(client.get("/api/slides/red/heat").content, "<f4").reshape(
            heat["rows"], heat["cols"]
        )
        stored = HeatmapStore.open(results / "red" / "heatmap.zarr").read(1)
        np.testing.assert_array_equal(values, stored.scores)
        assert heat["step"] == [128, 128]

    def test_peaks_and_areas_lie_where_the_result_says(self, client: TestClient, results: Path) -> None:
        facts = json.loads((results / "red" / "slide.json").read_bytes())
        details = client.get("/api/slides/red").json()
        assert details["lesions"] == [[v["x"], v["y"], v["score"]] for v in facts["lesions"]]
        ((*_, rings),) = details["areas"]
        assert shapely.Polygon(rings[0]).bounds == (1280, 1024, 1920, 1664)

    @pytest.mark.parametrize("origin", ["auto", "slide", "bounds"])
    def test_where_qupath_s_coordinates_begin_elsewhere(
        self, results: Path, tmp_path: Path, wsi: Run, origin: str
    ) -> None:
        """The file's areas are moved for QuPath, or not, as wsi export was told; over the slide they must not be."""
        shutil.copytree(results / "red", tmp_path / "red")
        path = tmp_path / "red" / "slide.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"bounds": [100, 40, 4000, 3000]}))
        assert wsi("export", "geojson", tmp_path / "red", "--origin", origin)[0] == 0
        ((*_, rings),) = of(entries_of(LocalFolder(tmp_path / "red"))).get("/api/slides/red").json()["areas"]
        assert shapely.Polygon(rings[0]).bounds == (1280, 1024, 1920, 1664)

    def test_the_list(self, client: TestClient) -> None:
        lines = {line["id"]: line for line in client.get("/api/slides").json()}
        assert sorted(lines) == ["moved", "red"]  # the broken one is left out
        assert lines["red"]["score"] > 0.9

    def test_a_slide_that_was_moved(self, client: TestClient) -> None:
        for tail in ("", "/thumbnail.jpg"):
            response = client.get(f"/api/slides/moved{tail}")
            assert (response.status_code, "file was moved or removed" in response.json()["error"]) == (
                409,
                True,
            )
        assert client.get("/api/slides/moved/heat").status_code == 200

    def test_a_heatmap_that_is_broken(self, results: Path, tmp_path: Path) -> None:
        shutil.copytree(results / "red", tmp_path / "red")
        (tmp_path / "red" / "heatmap.zarr" / "zarr.json").write_text("{")
        (tmp_path / "red" / "lesions.geojson").write_text("{")
        client = of(entries_of(LocalFolder(tmp_path / "red")))
        said = client.get("/api/slides/red/heat").json()["error"]
        assert said.startswith("red/heatmap.zarr is not a heatmap")
        assert client.get("/api/slides/red").status_code == 409


class TestReport:
    def test_capillaries_fields_and_counts_are_the_report_s(self, tmp_path: Path) -> None:
        slide = slide_of(tmp_path / "k.tif", scattered(20, 0.4, 3), cols=2, rows=2, scar=1)
        result = report_slide(
            SlideRow(SlideSource(str(slide))), "k", readers(), tmp_path / "out" / "k", LOOSE
        )
        table = tmp_path / "out" / "k" / "capillaries.csv"
        header, first_row, *others = table.read_text().splitlines()
        table.write_text("\n".join([header, first_row + "no lumen", *others]) + "\n")  # the last column
        client = of(entries_of(LocalFolder(tmp_path / "out")))
        details = client.get("/api/slides/k").json()
        counted = [box for box in details["capillaries"] if box[4]]
        assert len(counted) == result.report.result.positive > 0
        assert len(details["capillaries"]) - len(counted) == result.report.result.negative
        first = json.loads((tmp_path / "out" / "k" / "detections.geojson").read_text())["features"]
        names = [
            f["properties"]["classification"]["name"] for f in first if "classification" in f["properties"]
        ]
        assert any(POSITIVE in name for name in names)
        assert [f[:2] for f in details["fields"]] == [[f.x, f.y] for f in result.report.fields]
        (line,) = client.get("/api/slides").json()
        assert (line["score"], line["note"]) == (result.report.result.percent, "")
        rows = csv_rows(table.read_bytes())
        wanted = {(r["id"], r["doubt"]) for r in rows if r["counted"] == "yes"}
        assert {(box[6], box[7]) for box in details["capillaries"]} == wanted
        assert "no lumen" in {doubt for _, doubt in wanted}
        assert {f[4] for f in details["fields"]} == {f.id for f in result.report.fields}
        assert any(f[3] for f in details["fields"])
        assert client.get("/api/slides/k/heat").status_code == 404


class TestWhatIsToldByOptions:
    def test_a_slide_that_was_moved_is_found_by_its_content(
        self, red_square: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Another file has its name, and it has another name: the hash decides."""
        slide = tmp_path / "a.tif"
        shutil.copy(red_square, slide)
        score_slide(
            SlideRow(SlideSource(str(slide))), "a", RednessEngine(), tmp_path / "out" / "a", ScoreConfig()
        )
        (tmp_path / "new").mkdir()
        slide.rename(tmp_path / "new" / "z.tif")
        write_pyramid(tmp_path / "new" / "a.tif", coordinates(600, 400), levels=1)
        entries = entries_of(LocalFolder(tmp_path / "out"))
        response = of(entries).get("/api/slides/a")
        assert response.status_code == 409
        assert "--slides" in response.json()["error"]
        rows = [SlideRow(SlideSource(str(p))) for p in sorted((tmp_path / "new").iterdir())]
        assert of(module.found_again(entries, rows)).get("/api/slides/a").json()["width"] == 4608
        assert module.found_again(entries, rows[:1]) == entries
        assert "not among those of --slides" in caplog.text

    def test_the_option_finds_it_and_its_review_can_be_signed(self, tmp_path: Path, wsi: Run) -> None:
        slide = slide_of(tmp_path / "s.tif", scattered(30, 0.4, 3))
        report_slide(SlideRow(SlideSource(str(slide))), "s", readers(), tmp_path / "out" / "s", LOOSE)
        (tmp_path / "new").mkdir()
        slide.rename(tmp_path / "new" / "s.tif")
        entries = module.found_again(
            entries_of(LocalFolder(tmp_path / "out")),
            [SlideRow(SlideSource(str(tmp_path / "new" / "s.tif")))],
        )
        review = Collection(entries, "A").review("s")
        assert review is not None
        review.do(ReviewRequest(what="sign", by="A", subject=review.subject, after=review.state()["last"]))
        assert (tmp_path / "out" / "s" / "reviewed" / "report.json").exists()
        assert (
            wsi("view", tmp_path / "out", "--slides", tmp_path / "new", "--export", tmp_path / "site")[0] == 0
        )

    def test_truth_lies_over_the_slide(self, red_square: Path, tmp_path: Path, wsi: Run) -> None:
        score_slide(
            SlideRow(SlideSource(str(red_square))),
            "r",
            RednessEngine(),
            tmp_path / "out" / "r",
            ScoreConfig(),
        )
        ring = [[100, 200], [900, 220], [500, 700], [100, 200]]
        (tmp_path / "truth").mkdir()
        feature = {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"classification": {"name": "Tumor"}},
        }
        (tmp_path / "truth" / "r.geojson").write_text(json.dumps({"features": [feature]}))
        (entry,) = module.with_truth(entries_of(LocalFolder(tmp_path / "out")), tmp_path / "truth")
        assert of([entry]).get("/api/slides/r").json()["truth"] == [[ring]]
        site = tmp_path / "site"
        assert wsi("view", tmp_path / "out", "--truth", tmp_path / "truth", "--export", site)[0] == 0
        assert '"truth": [[[[100.0, 200.0]' in (site / "slides" / "1" / "data.js").read_text()
        code, _, noted = wsi("view", tmp_path / "out", "--truth", tmp_path, "--export", site)
        assert code == 2
        assert "no truth of these slides" in noted


class TestCollection:
    def test_few_slides_are_open_at_a_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "OPEN", 2)
        paths = [write_pyramid(tmp_path / f"{i}.tif", coordinates(300, 200), levels=1) for i in range(3)]
        collection = Collection([Entry(p.stem, "slide", SlideSource(str(p))) for p in paths])
        first = collection.slide("0")
        assert collection.slide("0") is first
        collection.slide("1")
        collection.slide("0")
        collection.slide("2")
        assert list(collection._open) == ["0", "2"]
        collection.close()

    def test_a_folder_without_results(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="holds no finished slide; give the --out of wsi score"):
            entries_of(LocalFolder(tmp_path))


@pytest.mark.slow
class TestCommand:
    def test_it_serves_until_it_is_ended(self, results: Path) -> None:
        import httpx

        command = [COMMAND, "view", results / "red", "--no-browser", "--port", "0"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={"PYTHONUNBUFFERED": "1", "PATH": "/usr/bin:/bin"}
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.search(r"1 slide; open (http://127\.0\.0\.1:\d+/\?token=\S+)", line)
        assert match, line
        with httpx.Client(follow_redirects=True) as client:
            assert "<title>slidewright</title>" in client.get(match[1]).text
            assert client.get(match[1].split("?")[0] + "api/slides").json()[0]["id"] == "red"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0

    def test_a_port_that_is_taken_and_things_that_are_not_there(
        self, results: Path, tmp_path: Path, wsi: Run
    ) -> None:
        import socket

        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            code, _, err = wsi("view", results, "--no-browser", "--port", port)
            assert (code, f"cannot listen at 127.0.0.1, port {port}" in err) == (2, True)
        code, _, err = wsi("view", results, "--no-browser", "--host", "203.0.113.7")
        assert (code, "cannot listen at 203.0.113.7" in err) == (2, True)
        code, _, err = wsi("view", tmp_path / "none.svs", "--no-browser")
        assert (code, "none.svs does not exist" in err) == (2, True)

    def test_a_browser_is_opened_unless_told_otherwise(
        self, results: Path, wsi: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pipelines.cli import view

        opened: list[str] = []
        read: list[str] = []

        def browse(address: str) -> None:
            opened.append(address)
            page = Path(address.removeprefix("file://"))
            assert page.parent.stat().st_mode & 0o077 == 0
            read.append(page.read_text())

        monkeypatch.setattr(view.webbrowser, "open", browse)
        monkeypatch.setattr(view, "serve", lambda *rest: None)
        assert wsi("view", results, "--no-browser")[0] == 0
        assert opened == []
        code, out, _ = wsi("view", results, "--browser")
        token = re.search(r"token=(\S+)", out)
        assert token is not None
        assert (code, token[1] in read[0], token[1] in opened[0]) == (
            0,
            True,
            False,
        )  # others can read a command line
        assert not Path(opened[0].removeprefix("file://")).exists()
        code, _, err = wsi("view", results, "--no-browser", "--host", "0.0.0.0")
        assert (code, "whoever reaches this machine and knows the address below" in err) == (0, True)

    def test_what_cannot_be_shown_is_said_at_once(self, results: Path, tmp_path: Path, wsi: Run) -> None:
        (tmp_path / "not.svs").write_bytes(b"no slide")
        code, _, err = wsi("view", tmp_path / "not.svs", "--no-browser")
        assert (code, "not.svs is no TIFF inside" in err) == (2, True)
        code, _, err = wsi("view", results, tmp_path / "not.svs", "--no-browser")
        assert (code, "a second one with --beside" in err) == (2, True)
        (tmp_path / "begun" / "s" / "heatmap.zarr").mkdir(parents=True)
        code, _, err = wsi("view", tmp_path / "begun", "--no-browser")
        assert (code, "these slides are not done, and left out: s" in err) == (2, True)
