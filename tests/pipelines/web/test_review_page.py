"""The review in a real browser: keys, drawing at its place, undoing, signing, and two pages at once."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.renal.read.run import report_slide
from pipelines.runs.review_log import LOG
from tests.browser import Browser, needs_browser
from tests.pipelines.renal.test_report import LOOSE
from tests.renal_slides import readers, scattered, slide_of
from tests.slides import COMMAND
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource
from wsi.vocabulary import NEGATIVE, NOT_COUNTED, NOT_FEASIBLE, POSITIVE

pytestmark = [pytest.mark.slow, needs_browser]
Page = tuple[Browser, Path, str, subprocess.Popen[str]]
READY = "typeof state !== 'undefined' && state.slide !== null && review.state !== null && zoomNow() > 0"


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """The page of one report with 40 capillaries, the report's folder, and the page's address."""
    slide = slide_of(tmp_path / "s.tif", scattered(40, 0.4, 3))
    report_slide(SlideRow(SlideSource(str(slide))), "s", readers(), tmp_path / "out" / "s", LOOSE)
    command = [COMMAND, "view", tmp_path / "out", "--no-browser", "--by", "A. Smith"]
    env = {"PYTHONUNBUFFERED": "1", "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    address = process.stdout.readline().split("open ")[1].strip()
    try:
        with Browser(tmp_path / "profile") as browser:
            browser.open(address)
            browser.wait(READY)
            yield browser, tmp_path / "out" / "s", address, process
    finally:
        process.kill()
        process.wait(20)


def lines(folder: Path) -> list[dict[str, object]]:
    path = folder / LOG
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(browser: Browser, name: str) -> None:
    """Press a key, and wait until its decision has been answered."""
    browser.press(name)
    browser.wait("!review.busy && !state.viewer.isAnimating()")


def test_a_slide_is_reviewed_by_keys_alone_and_signed(page: Page) -> None:
    browser, folder, _, _ = page
    before = browser.value("review.state.result")
    key(browser, "1")  # only looking: nothing is decided
    assert lines(folder) == []
    key(browser, "v")
    order = browser.value("review.order")
    margins = browser.value(
        "review.order.map(id => review.machine.find(r => r[6] === id)).map(r => (r[7] ? -1 : 0) + r[5] - state.slide.limits[r[4] ? groups().yes : groups().no])"
    )
    assert margins == sorted(margins)
    assert len(order) == 40
    was = [browser.value(f"rowOf('{k}')[8]") for k in order[:4]]
    for name in ("1", "2", "x", "a"):
        key(browser, name)
    assert [(line["id"], line["group"], line["machine"]) for line in lines(folder)[1:]] == [
        (order[0], POSITIVE, was[0]),
        (order[1], NEGATIVE, was[1]),
        (order[2], NOT_COUNTED, was[2]),
        (order[3], was[3], was[3]),
    ]
    assert browser.value("by('progress-text').textContent") == "4 of 40 seen"
    assert browser.value("state.selected") == order[4]  # the next one is there already
    for _ in range(4):
        key(browser, "z")
    assert browser.value("review.state.result")["positive"] == before["positive"]
    assert browser.value("by('undo').disabled")
    for _ in range(3):
        key(browser, "y")
    now = browser.value("review.state.result")
    assert browser.value("by('counts').lastChild.textContent").startswith(f"now: {now['grade']} (")
    browser.value("by('sign').click()")
    assert "37 of 40 capillaries were not decided" in browser.value("by('sign-text').textContent")
    key(browser, "x")  # belongs to the comment now
    browser.value("by('comment').value = 'two folds'; by('sign-now').click()")
    browser.wait("by('signed').textContent.startsWith('signed by A. Smith')")
    report = json.loads((folder / "reviewed" / "report.json").read_text())
    assert report["result"] == now
    assert (report["corrections"]["by"], report["corrections"]["comment"]) == ("A. Smith", "two folds")
    assert browser.errors == []


def test_what_is_drawn_lies_where_the_mouse_was(page: Page) -> None:
    """A box from (400, 300) to (460, 380) of the page, and an outline by three clicks, at half a pixel a pixel."""
    browser, folder, _, _ = page
    browser.press("v")
    browser.value("goTo(700, 500, 0.5)")
    browser.wait("!state.viewer.isAnimating()")
    left, top, width, height = browser.value(
        "(b => [b.x, b.y, b.width, b.height])(by('view').getBoundingClientRect())"
    )

    def on_slide(x: float, y: float) -> list[float]:
        return [700 + (x - left - width / 2) / 0.5, 500 + (y - top - height / 2) / 0.5]

    place = browser.value("location.hash")
    browser.press("b")
    browser.drag((400, 300), (460, 380))
    browser.wait("review.state.drawn === 1")
    x0, y0, x1, y1 = [*on_slide(400, 300), *on_slide(460, 380)]
    flat = [v for point in lines(folder)[1]["ring"] for v in point]  # type: ignore[attr-defined]
    assert flat == pytest.approx([x0, y0, x1, y0, x1, y1, x0, y1], abs=2)
    assert browser.value("location.hash") == place  # the slide did not move
    browser.value("by('draw-as').value = groups().no")
    browser.press("g")
    corners = [(700, 300), (760, 310), (750, 360)]
    for x, y in corners:
        browser.click(x, y)
        time.sleep(0.5)  # else it is a double click
    browser.press("Enter")
    browser.wait("review.state.drawn === 2")
    ring, group = lines(folder)[2]["ring"], lines(folder)[2]["group"]
    assert [v for p in ring for v in p] == pytest.approx([v for c in corners for v in on_slide(*c)], abs=2)  # type: ignore[attr-defined]
    assert group == NEGATIVE
    browser.wait("state.viewer.world.getItemAt(0).getFullyLoaded()")
    picture = browser.picture().astype(int)
    assert (abs(picture[340, 398:403] - [200, 0, 0]).max(axis=1) < 60).any()  # the box's left side
    assert (abs(picture[303:308, 730] - [30, 80, 200]).max(axis=1) < 60).any()  # the outline's upper side
    browser.press("b")
    browser.press("Escape")
    assert browser.value("review.drawing") is None


def test_the_field_under_the_mouse_is_left_out(page: Page) -> None:
    browser, folder, _, _ = page
    browser.press("v")
    x, y, side, _, field_id = browser.value("state.slide.fields.filter(f => !f[3])[3].slice(0, 5)")
    browser.value(f"goTo({x + side / 2}, {y + side / 2}, 0.5); review.pointer = null")
    browser.wait("!state.viewer.isAnimating()")
    key(browser, "t")
    browser.wait("review.state.last !== ''")
    assert (lines(folder)[1]["id"], lines(folder)[1]["group"]) == (field_id, NOT_FEASIBLE)
    assert browser.value("by('what').textContent") == "field left out: left out by a person"


def test_a_key_that_is_held_decides_once(page: Page) -> None:
    browser, folder, _, _ = page
    browser.press("v")
    browser.wait("Boolean(state.selected)")
    for _ in range(5):
        browser._call("Input.dispatchKeyEvent", type="keyDown", key="x", text="x", autoRepeat=True)
    key(browser, "1")
    assert [line["group"] for line in lines(folder)[1:]] == [POSITIVE]


def test_keys_before_the_answer_are_not_taken(page: Page) -> None:
    """They were meant for what was shown: neither the next capillary nor another slide gets them."""
    browser, folder, _, _ = page
    browser.press("v")
    browser.wait("Boolean(state.selected)")
    first = browser.value("state.selected")
    browser.value(
        "window.slow = fetch; window.fetch = (...a) => new Promise(r => setTimeout(() => r(window.slow(...a)), 700))"
    )
    for name in "12xz":
        browser.press(name)
    browser.value("by('sign').click()")
    assert not browser.value("by('sign-dialog').open")
    key(browser, "u")
    assert [(line["id"], line["group"]) for line in lines(folder)[1:]] == [(first, POSITIVE)]


def test_only_what_the_dialog_showed_is_signed(page: Page) -> None:
    browser, _, _, _ = page
    browser.press("v")
    key(browser, "x")
    browser.value("by('sign').click()")
    browser.value("review.state.last = ''")  # whatever changes behind the dialog
    browser.value("by('sign-now').click()")
    browser.wait("!review.busy && Boolean(review.state?.signed)")
    assert browser.value("review.state.seen") == 1
    browser.value("by('comment').value = 'of this slide only'")
    browser.value("open('s')")
    browser.wait("!review.on && by('comment').value === ''")


def test_a_second_page_is_told_and_shows_what_the_first_decided(page: Page, tmp_path: Path) -> None:
    browser, folder, address, _ = page
    browser.press("v")
    with Browser(tmp_path / "other profile") as other:
        other.open(address)
        other.wait(READY)
        other.press("v")
        key(browser, "x")
        decided = lines(folder)[1]["id"]
        key(other, "1")
        assert "another page" in other.value("by('say').textContent")
        assert other.value("Object.keys(review.state.decisions)") == [decided]
        assert len(lines(folder)) == 2
        key(other, "1")
        assert len(lines(folder)) == 3


def test_a_server_that_dies_is_said_to_and_the_page_keeps_what_was_decided(
    page: Page,
) -> None:
    browser, folder, _, process = page
    browser.press("v")
    key(browser, "x")
    process.kill()
    process.wait(20)
    key(browser, "1")
    assert "this decision is not kept" in browser.value("by('say').textContent")
    assert browser.value("review.state.seen") == 1
    assert len(lines(folder)) == 2
