"""An exported folder: it shows in a browser, from a disk, what the server shows, and tells no path."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.camelyon16.read.score import ScoreConfig, score_slide
from pipelines.renal.read.run import report_slide
from pipelines.web.collection import Collection, entries_of
from pipelines.web.export import SIGN
from pipelines.web.review import ReviewRequest
from pipelines.web.server import levels_of, tile_jpeg
from tests.browser import Browser, needs_browser
from tests.pipelines.renal.test_report import LOOSE
from tests.renal_slides import readers, scattered, slide_of
from tests.slides import RednessEngine
from wsi.results.folder import LocalFolder
from wsi.results.store import HeatmapStore
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource
from wsi.vocabulary import NOT_COUNTED

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def results(red_square: Path, tmp_path: Path) -> Path:
    row = SlideRow(SlideSource(str(red_square)))
    score_slide(row, "red 'x'", RednessEngine(), tmp_path / "out" / "red 'x'", ScoreConfig())
    return tmp_path / "out"


def value_of(path: Path) -> dict[str, object]:
    """What a data script assigns."""
    return dict(json.loads(path.read_text().split(" = ", 1)[1].removesuffix(";\n")))


def test_tiles_heatmap_and_list_are_those_of_the_server(results: Path, tmp_path: Path, wsi: Run) -> None:
    code, said, _ = wsi("view", results, "--export", tmp_path / "site", "--export-mpp", 1.1)
    assert code == 0
    assert "site/index.html shows 1 slide" in "".join(said.split("\n"))
    site = tmp_path / "site"
    (line,) = value_of(site / "data.js")["list"]  # type: ignore[misc]
    folder = site / line["place"]  # type: ignore[index]
    value = value_of(folder / "data.js")
    scores = np.frombuffer(base64.b64decode(str(value["heat"])), "<f4")
    expected = HeatmapStore.open(LocalFolder(results / "red 'x'" / "heatmap.zarr")).read(1).scores
    np.testing.assert_array_equal(scores, expected.ravel())
    with Collection(entries_of(LocalFolder(results))).slide("red 'x'") as slide:
        finest = levels_of(slide.size)
        levels = sorted(int(p.name) for p in (folder / "tiles").iterdir())
        assert levels == list(
            range(finest - 1)
        )  # 1.1 um: reduced twice is 1.0 um, four times 0.5 would be too fine
        for level in levels[-2:]:
            names = sorted(p.name for p in (folder / "tiles" / str(level)).iterdir())
            scale = 2 ** (finest - level)
            cols, rows = (math.ceil(math.ceil(side / scale) / 512) for side in slide.size)
            assert len(names) == cols * rows
            assert (folder / "tiles" / str(level) / names[-1]).read_bytes() == tile_jpeg(
                slide, level, *(int(v) for v in names[-1].removesuffix(".jpg").split("_"))
            )
    assert max(Image.open(io.BytesIO((folder / "thumbnail.jpg").read_bytes())).size) in range(160, 321)
    for path in site.rglob("*"):
        assert not path.is_file() or str(tmp_path).encode() not in path.read_bytes(), path


def test_an_export_is_replaced_but_nothing_else(results: Path, tmp_path: Path, wsi: Run) -> None:
    site = tmp_path / "site"
    assert wsi("view", results, "--export", site)[0] == 0
    (site / "index.html").write_text("old")
    assert wsi("view", results, "--export", site)[0] == 0
    assert "slidewright" in (site / "index.html").read_text()
    (site / "slides" / "2").mkdir()  # a slide of an earlier export, which was not meant to go out now
    (site / "slides" / "2" / "thumbnail.jpg").touch()
    (site / "data.js").write_text(SIGN)  # that export was stopped
    assert wsi("view", results, "--export", site)[0] == 0
    assert [p.name for p in (site / "slides").iterdir()] == ["1"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    code, _, noted = wsi("view", results, "--export", tmp_path / "mine")
    assert code == 2
    assert "holds something else" in noted
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    (tmp_path / "mine" / "slides").mkdir()  # somebody's own web site, with files of the same names
    (tmp_path / "mine" / "slides" / "talk.html").touch()
    (tmp_path / "mine" / "data.js").write_text("const EXPORTED = 3;")
    code, _, noted = wsi("view", results, "--export", tmp_path / "mine")
    assert (code, "holds something else" in noted) == (2, True)
    assert (tmp_path / "mine" / "slides" / "talk.html").exists()


@pytest.mark.slow
@needs_browser
def test_it_opens_from_a_disk_and_shows_what_a_person_decided(tmp_path: Path, wsi: Run) -> None:
    slide = slide_of(tmp_path / "s.tif", scattered(40, 0.4, 3))
    report_slide(SlideRow(SlideSource(str(slide))), "s", readers(), tmp_path / "out" / "s", LOOSE)
    collection = Collection(entries_of(LocalFolder(tmp_path / "out")), "A")
    deleted = collection["s"].details()["capillaries"][0]
    review = collection.review("s")
    assert review is not None
    review.do(
        ReviewRequest(
            what="decide", by="A", subject=review.subject, after="", id=deleted[6], group=NOT_COUNTED
        )
    )
    collection.close()
    assert wsi("view", tmp_path / "out", "--export", tmp_path / "site", "--export-mpp", 0.5)[0] == 0
    slide.unlink()
    with Browser(tmp_path / "profile") as browser:
        browser.open(f"file://{tmp_path}/site/index.html#slide=s&x=1100&y=700&zoom=1")
        browser.wait("typeof state !== 'undefined' && review.state !== null && zoomNow() > 0.9")
        browser.wait("state.viewer.world.getItemAt(0).getFullyLoaded() && !state.viewer.isAnimating()")
        x0, y0, x1, y1 = browser.value(
            "state.slide.objects.find(r => r[8] !== groups().out && r[0] > 950 && r[0] < 1250 && r[1] > 550 && r[1] < 850).slice(0, 4)"
        )
        left, top, width, height = browser.value(
            "(b => [b.x, b.y, b.width, b.height])(by('view').getBoundingClientRect())"
        )
        browser.value("by('marks').checked = false; draw()")
        picture = browser.picture().astype(int)
        column, row = round(left + width / 2 + x0 + 3 - 1100), round(top + height / 2 + (y0 + y1) / 2 - 700)
        assert picture[row, column - 12].min() > 180  # tissue beside the square
        assert picture[row, column].min() < 130  # the square itself
        assert browser.value(f"rowOf('{deleted[6]}')[8]") == NOT_COUNTED
        assert browser.value("by('counts').textContent").count("in 9 fields") == 2
        assert browser.value("by('review-on').hidden")
        browser.press("v")
        assert not browser.value("review.on")
        assert browser.errors == []
        assert x1 > x0
