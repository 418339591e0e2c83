"""The viewer's page in a real browser: what is drawn is where it must be, at several zooms, turned or not."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pipelines.camelyon16.read.score import ScoreConfig, score_slide
from tests.browser import Browser, needs_browser
from tests.slides import COMMAND, RednessEngine
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource

Run = Callable[..., tuple[int, str, str]]
pytestmark = [pytest.mark.slow, needs_browser]
SQUARE = np.array([1280, 1024, 1920, 1664])  # red, on a slide of 4608 x 3072: no mirror image of anything


@contextmanager
def started(*words: object) -> Iterator[str]:
    """A viewer, and its address."""
    env = {"PYTHONUNBUFFERED": "1", "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen([COMMAND, *map(str, words)], stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split("open ")[1].strip()
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def page(red_square: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, str]]:
    """The page of one scored slide, and its address."""
    out = tmp_path_factory.mktemp("view")
    score_slide(SlideRow(SlideSource(str(red_square))), "red", RednessEngine(), out / "red", ScoreConfig())
    with (
        started("view", out / "red", "--no-browser") as address,
        Browser(tmp_path_factory.mktemp("profile")) as browser,
    ):
        browser.open(address)
        browser.wait("typeof state !== 'undefined' && state.slide !== null && zoomNow() > 0")
        yield browser, address


def settled(browser: Browser) -> np.ndarray:
    browser.wait("state.viewer.world.getItemAt(0).getFullyLoaded() && !state.viewer.isAnimating()")
    return browser.picture().astype(int)


def bounds(mask: np.ndarray) -> np.ndarray:
    ys, xs = np.nonzero(mask)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def expected(browser: Browser) -> np.ndarray:
    """Where the page must show the square, by the place in its address: the view's middle and its zoom."""
    x, y, zoom = browser.value(
        "(h => [h.get('x'), h.get('y'), h.get('zoom')].map(Number))(new URLSearchParams(location.hash.slice(1)))"
    )
    left, top, width, height = browser.value(
        "(b => [b.x, b.y, b.width, b.height])(document.getElementById('view').getBoundingClientRect())"
    )
    middle = np.array([left + width / 2, top + height / 2] * 2)
    return middle + (SQUARE - [x, y, x, y]) * zoom


@pytest.mark.parametrize("zoom", [0.15, 0.4, 0.6])
def test_slide_heatmap_and_outline_lie_on_each_other(page: tuple[Browser, str], zoom: float) -> None:
    """Each alone: the red of the slide, the heatmap's colour, the outline; none is moved by half a cell."""
    browser, _ = page
    browser.value(f"goTo(1700, 1300, {zoom})")
    shown = {}
    for name, opacity, marks in (("slide", 0, "false"), ("heat", 1, "false"), ("outline", 0, "true")):
        browser.value(f"by('opacity').value = {opacity}; by('marks').checked = {marks}; draw()")
        picture = settled(browser)[160:770, 230:1010]  # without the map, and the words below
        red, green, blue = np.moveaxis(picture, 2, 0)
        mask = {
            "slide": (red - blue > 60) & (green < 115),
            "heat": (red - green > 105) & (red < 215),
            "outline": np.abs(picture - [200, 0, 0]).max(axis=2) < 40,
        }[name]
        shown[name] = bounds(mask) + [230, 160, 230, 160]
    for name, found in shown.items():
        assert np.abs(found - expected(browser)).max() <= 3, (name, found, expected(browser))


def test_turned_by_ninety_degrees(page: tuple[Browser, str]) -> None:
    """A point to the right of the middle comes to lie below it."""
    browser, _ = page
    browser.value("by('opacity').value = 0; by('marks').checked = true; goTo(1000, 1344, 0.2)")
    before = expected(browser)
    browser.press("]")
    browser.wait("Math.abs(state.viewer.viewport.getRotation(true) - 90) < 0.01")
    picture = settled(browser)[:, 230:1010]
    found = bounds(np.abs(picture - [200, 0, 0]).max(axis=2) < 40) + [230, 0, 230, 0]
    middle = np.array([620, 400])
    low, high = before[:2] - middle, before[2:] - middle
    turned = np.array([-high[1], low[0], -low[1], high[0]]) + [620, 400, 620, 400]
    assert np.abs(found - turned).max() <= 3
    browser.press("[")
    browser.wait("Math.abs(state.viewer.viewport.getRotation(true)) < 0.01")


def test_keys_and_the_address(page: tuple[Browser, str]) -> None:
    browser, _ = page
    browser.press("0")
    settled(browser)
    browser.press("n")
    settled(browser)
    x, y = browser.value("state.slide.lesions[0].slice(0, 2)")
    hash_ = browser.value("location.hash")
    assert f"x={round(x)}&y={round(y)}" in hash_
    assert browser.value("document.querySelector('#found [aria-current=true]').textContent").startswith("1. ")
    browser.press("w")  # 10x is 1 um a pixel
    settled(browser)
    assert browser.value("zoomNow() / state.slide.mpp") == pytest.approx(1, rel=0.01)
    browser.press("h")
    assert browser.value("by('opacity').value") == "0.6"
    browser.press("?")
    assert browser.value("by('help').open")
    browser.press("?")


def test_distances_are_those_of_the_slide(page: tuple[Browser, str]) -> None:
    """300 px to the right and 400 down at 0.5 screen pixels a pixel: 1,000 px of 0.25 um."""
    browser, _ = page
    browser.value("goTo(2000, 1500, 0.5)")
    settled(browser)
    browser.click(400, 200)
    assert browser.value("state.ruler") is None
    browser.press("d")
    browser.click(400, 200)
    time.sleep(0.5)  # else it is a double click
    browser.click(700, 600)
    browser.wait("state.ruler.length === 2")
    assert browser.value("rulerText()") == "250.0 µm"
    first = browser.value("[state.ruler[0].x, state.ruler[0].y]")
    assert first == pytest.approx([2000 + (400 - 620) / 0.5, 1500 + (200 - 400) / 0.5], abs=2)
    picture = settled(browser)
    assert (np.abs(picture[398:403, 548:553] - [255, 230, 0]).max(axis=2) < 40).any()  # the line's middle
    browser.press("d")
    assert browser.value("state.ruler") is None


def test_a_deep_link_opens_its_place(page: tuple[Browser, str]) -> None:
    browser, address = page
    browser.open("about:blank")
    browser.wait("location.href === 'about:blank'")
    browser.open(address.split("?")[0] + "#slide=red&x=2000&y=900&zoom=0.5")
    browser.wait("typeof state !== 'undefined' && state.slide !== null && Math.abs(zoomNow() - 0.5) < 0.01")
    middle = browser.value(
        "(p => [p.x, p.y])(state.viewer.world.getItemAt(0).viewportToImageCoordinates(state.viewer.viewport.getCenter(true)))"
    )
    assert middle == pytest.approx([2000, 900], abs=2)


def test_the_threshold_hides_what_lies_below(page: tuple[Browser, str]) -> None:
    browser, _ = page
    script = (
        "by('threshold').value = {}; by('threshold').dispatchEvent(new Event('input'));"
        "state.heat.getContext('2d').getImageData(0, 0, state.heat.width, state.heat.height).data.filter((v, i) => i % 4 === 3 && v > 0).length"
    )
    over = browser.value("state.scores.filter(s => s >= 0.5).length")
    assert browser.value(script.format(0.5)) == over == 25
    assert browser.value(script.format(0)) > over


def test_a_picture_holds_slide_marks_and_scale_bar(page: tuple[Browser, str]) -> None:
    """The saved PNG is what the page shows at the same places, without the page's own parts."""
    browser, _ = page
    browser.value("by('marks').checked = true; by('opacity').value = 0; goTo(1700, 1300, 0.4); draw()")
    shown = settled(browser)[:, 230:1010]
    browser.press("s")
    browser.wait("Boolean(state.lastPicture)")
    script = """new Promise(done => { const image = new Image(); image.onload = () => {
        const canvas = new OffscreenCanvas(image.width, image.height), pen = canvas.getContext("2d");
        pen.drawImage(image, 0, 0);
        done([image.width, image.height, [...pen.getImageData(0, 0, image.width, image.height).data]]);
    }; image.src = state.lastPicture; })"""
    width, height, data = browser.value(script)
    picture = np.array(data, np.uint8).reshape(height, width, 4)[..., :3].astype(int)
    assert picture.shape == shown.shape
    inside = picture[170:740], shown[170:740]  # below the map, above the words
    assert np.abs(inside[0] - inside[1]).max() <= 3
    assert (np.abs(picture[-60:, :200].sum(axis=2)) < 30).any()  # the scale bar is black


def test_the_grid_finds_what_looking_at_all_objects_finds(page: tuple[Browser, str]) -> None:
    """Small and very large objects, on and off the slide's edges, and boxes of every size."""
    browser, _ = page
    script = """(() => {
        let seed = 11;
        const draw = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
        const boxes = Array.from({ length: 700 }, (_, i) => {
            const x = draw() * 4600, y = draw() * 3000, side = i % 50 ? 30 : 3000;
            return [x, y, x + side * draw(), y + 0.5 * side * draw()];
        });
        const grid = new Grid(boxes, 4608, 3072), wrong = [];
        let most = 0;
        for (let k = 0; k < 300; k += 1) {
            const x = draw() * 5000 - 200, y = draw() * 3400 - 200, w = k % 3 ? draw() * 900 : 0, h = k % 3 ? draw() * 300 : 0;
            const all = boxes.flatMap((b, i) => (b[2] >= x && b[3] >= y && b[0] <= x + w && b[1] <= y + h ? [i] : []));
            const found = grid.inside(x, y, x + w, y + h);
            if (JSON.stringify(found) !== JSON.stringify(all)) wrong.push([x, y, w, h, found, all]);
            if ((grid.inside(x, y, x + w, y + h, 5) === null) !== all.length > 5) wrong.push(k);
            most = Math.max(most, all.length);
        }
        return [wrong, most, new Grid([], 10, 10).inside(0, 0, 9, 9)];
    })()"""
    wrong, most, none = browser.value(script)
    assert wrong == []
    assert most > 10
    assert none == []


def test_two_runs_beside_each_other_show_the_same_place(
    page: tuple[Browser, str], red_square: Path, tmp_path: Path, wsi: Run
) -> None:
    """What is moved, zoomed or turned in one is in the other, in both directions, and so is another slide."""
    browser, _ = page
    row = SlideRow(SlideSource(str(red_square)))
    for run, threshold in (("one", 0.5), ("two", 0.9)):
        for name in ("red", "again"):
            cfg = ScoreConfig.model_validate({"lesions": {"threshold": threshold}})
            score_slide(row, name, RednessEngine(), tmp_path / run / name, cfg)
    code, _, noted = wsi(
        "view", tmp_path / "one", "--beside", tmp_path / "two", "--export", tmp_path / "site"
    )
    assert (code, "leave out --beside" in noted) == (2, True)
    (tmp_path / "two" / "red").rename(tmp_path / "red elsewhere")
    (tmp_path / "two" / "again").rename(tmp_path / "two" / "other")
    code, _, noted = wsi("view", tmp_path / "one", "--beside", tmp_path / "two", "--no-browser")
    assert (code, "no slide in common" in noted) == (2, True)
    (tmp_path / "two" / "other").rename(tmp_path / "two" / "again")
    (tmp_path / "red elsewhere").rename(tmp_path / "two" / "red")
    with started("view", tmp_path / "one", "--beside", tmp_path / "two", "--no-browser") as address:
        browser.open(address)
        ready = "[...document.querySelectorAll('iframe')].every(f => f.contentWindow.here?.())"
        browser.wait(f"document.querySelectorAll('iframe').length === 2 && {ready}")
        frame = "document.querySelectorAll('iframe')[{}].contentWindow".format
        assert browser.value(
            "[0, 1].map(i => document.querySelectorAll('iframe')[i].contentWindow.location.pathname)"
        ) == ["/a/", "/b/"]
        for source, target, place in ((0, 1, (2000, 900, 0.5)), (1, 0, (1400, 1600, 0.3))):
            browser.value(f"{frame(source)}.goTo({', '.join(map(str, place))})")
            browser.wait(f"Math.abs({frame(target)}.here().zoom - {place[2]}) < 0.001")
            there = browser.value(f"{frame(target)}.here()")
            assert [there["x"], there["y"]] == pytest.approx(place[:2], abs=2)
        other = next(name for name in ("red", "again") if name != browser.value(f"{frame(0)}.here().slide"))
        browser.value(f"{frame(1)}.open('{other}')")
        browser.wait(f"{frame(0)}.here()?.slide === '{other}'")


def test_nothing_was_complained_of(page: tuple[Browser, str]) -> None:
    """It comes last: no script failed, and nothing was against the page's own policy."""
    browser, _ = page
    assert browser.errors == []
