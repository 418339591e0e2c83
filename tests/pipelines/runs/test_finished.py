"""The list of finished slides of a very large run, and the pages that list them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.camelyon16.read.page import write_tables
from pipelines.camelyon16.read.results import SlideResult
from pipelines.cli import score as score_command
from pipelines.runs import finished, pages, run_folder
from pipelines.runs.cohort import Failure
from pipelines.runs.finished import FOLDER, FinishedList, FinishedSlide
from tests.slides import RednessEngine, write_pyramid
from wsi.results.folder import LocalFolder, folder_at
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource

Run = Callable[..., tuple[int, str, str]]


def slides_of(folder: Path, names: str) -> list[tuple[SlideRow, str]]:
    for name in names:
        (folder / f"{name}.tif").write_bytes(name.encode())
    return [(SlideRow(SlideSource(str(folder / f"{name}.tif"))), name) for name in names]


def noted(out: LocalFolder, slides: list[tuple[SlideRow, str]], settings: str = "s") -> None:
    """As a command that did these slides leaves it."""
    listed = FinishedList(out)
    for row, name in slides:
        listed.add(FinishedSlide.of(row, name, settings))
        out.write(f"{name}/slide.json", "{}")
    listed.write()


def left(out: LocalFolder, slides: list[tuple[SlideRow, str]], settings: str = "s") -> str:
    return "".join(name for _, name in FinishedList(out).left_of(slides, settings))


class TestFinishedList:
    def test_what_is_listed_is_not_left(self, tmp_path: Path) -> None:
        out, slides = LocalFolder(tmp_path / "out"), slides_of(tmp_path, "abcde")
        assert left(out, slides) == "abcde"
        noted(out, slides[1:3])
        noted(out, slides[4:])  # another command
        assert left(out, slides) == "ad"
        assert left(out, slides[2:]) == "d"  # a shard
        assert left(out, slides, "other settings") == "abcde"

    def test_a_slide_that_changed_is_left_and_stays_so_if_it_changes_back(self, tmp_path: Path) -> None:
        """Its folder holds the result of what it was in between."""
        out, slides = LocalFolder(tmp_path / "out"), slides_of(tmp_path, "ab")
        noted(out, slides)
        before = (tmp_path / "a.tif").stat()
        (tmp_path / "a.tif").write_bytes(b"!")
        os.utime(tmp_path / "a.tif", ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
        assert left(out, slides) == "a"
        (tmp_path / "a.tif").write_bytes(b"a")
        os.utime(tmp_path / "a.tif", ns=(before.st_atime_ns, before.st_mtime_ns))
        assert left(out, slides) == "a"

    @pytest.mark.parametrize("change", ["folder", "slide", "mask", "mpp"])
    def test_what_makes_a_slide_left(self, tmp_path: Path, change: str) -> None:
        out, slides = LocalFolder(tmp_path / "out"), slides_of(tmp_path, "ab")
        noted(out, slides)
        row = slides[1][0]
        if change == "folder":
            out.delete("b")
        elif change == "slide":
            (tmp_path / "b.tif").unlink()
        elif change == "mask":
            (tmp_path / "mask.png").write_bytes(b"")
            row = SlideRow(row.source, mask=tmp_path / "mask.png")
        else:
            row = SlideRow(SlideSource(row.source.path, mpp=0.3))
        assert left(out, [slides[0], (row, "b")]) == "b"

    def test_a_damaged_file_loses_only_its_own_lines(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        out, slides = LocalFolder(tmp_path / "out"), slides_of(tmp_path, "ab")
        noted(out, slides[:1])
        (damaged,) = out.files(FOLDER)
        noted(out, slides[1:])
        out.write(damaged, out.read(damaged)[:-9])
        assert left(out, slides) == "a"
        assert "is damaged" in caplog.text

    def test_results_that_were_removed_are_made_again(self, tmp_path: Path) -> None:
        """The folder alone is no result."""
        out, slides = LocalFolder(tmp_path / "out"), slides_of(tmp_path, "abc")
        noted(out, slides)
        out.delete("b/slide.json")
        assert left(out, slides) == "b"

    def test_other_settings_take_a_slide_away(self, tmp_path: Path) -> None:
        """A run with --overwrite, and then the first one again: its results are no longer there."""
        out, slides = LocalFolder(tmp_path / "out"), slides_of(tmp_path, "abc")
        noted(out, slides, "first")
        assert left(out, slides[:2], "second") == "ab"
        noted(out, slides[:1], "second")
        assert left(out, slides, "first") == "ab"

    def test_many_files_become_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A slide a minute is a file a slide."""
        monkeypatch.setattr(finished, "MOST_PARTS", 3)
        out, slides = LocalFolder(tmp_path / "out"), slides_of(tmp_path, "abcde")
        for slide in slides:
            noted(out, [slide])
        assert len(out.files(FOLDER)) == 5
        assert left(out, slides) == ""
        assert len(out.files(FOLDER)) == 1
        assert left(out, slides) == ""

    @pytest.mark.parametrize(
        "line",
        [
            '{"name": ["a"]}',
            "[" * 5000,
            "5",
            '{"name": 1, "settings": "s", "slide": "", "state": "", "whole": true}',
        ],
    )
    def test_lines_of_another_form(self, tmp_path: Path, line: str) -> None:
        out, slides = LocalFolder(tmp_path / "out"), slides_of(tmp_path, "a")
        out.write(f"{FOLDER}/x.jsonl", line + "\n")
        assert left(out, slides) == "a"

    def test_lines_are_written_before_the_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(finished, "PART_LINES", 2)
        out, slides = LocalFolder(tmp_path / "out"), slides_of(tmp_path, "abc")
        listed = FinishedList(out)
        for row, name in slides:
            listed.add(FinishedSlide.of(row, name, "s"))
            out.write(f"{name}/slide.json", "{}")
        assert left(out, slides) == "c"  # of a command that was killed now

    def test_of_a_url_the_server_is_not_asked(self) -> None:
        row = SlideRow(SlideSource("https://nowhere.invalid/a.svs?signature=x"))
        line = FinishedSlide.of(row, "a", "s")
        assert (line.slide, "null" in line.state) == ("https://nowhere.invalid/a.svs", True)


@pytest.mark.slow
def test_a_second_run_opens_only_what_is_left(
    tmp_path: Path, red_square: Path, wsi: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the list, and with the same tables and pages as without."""
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.tif").write_bytes(red_square.read_bytes())
    write_pyramid(tmp_path / "in" / "empty.tif", np.full((900, 1100, 3), 245, np.uint8))
    monkeypatch.setattr(score_command, "load_engine", lambda models, cfg: RednessEngine())
    assert wsi("score", tmp_path / "in", "-o", tmp_path / "plain")[0] == 1  # one is empty
    assert not (tmp_path / "plain" / FOLDER).exists()
    monkeypatch.setattr(run_folder, "MANY", 3)
    assert wsi("score", tmp_path / "in", "-o", tmp_path / "out")[0] == 1
    code, out, _ = wsi("cohort", "status", tmp_path / "out", tmp_path / "in")
    assert "3 slides done; 0 failed; 0 being worked on; 0 of 3 left" in out
    opened = []
    really = SlideSource.open
    monkeypatch.setattr(SlideSource, "open", lambda source: opened.append(source.name) or really(source))
    code, out, _ = wsi("score", tmp_path / "in", "-o", tmp_path / "out")
    assert (code, opened) == (1, ["empty"])  # what was not whole is looked at again
    for name in ("slide_scores.csv", "index.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    runs = [json.loads((tmp_path / o / "run.json").read_bytes()) for o in ("plain", "out")]
    assert [r["slides"] for r in runs[:1]] == [r["slides"] for r in runs[1:]]
    assert wsi("verify", tmp_path / "out")[0] == 0


@pytest.mark.slow
def test_a_slide_that_loses_its_result_meanwhile_is_not_called_done(
    tmp_path: Path, red_square: Path, wsi: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.tif").write_bytes(red_square.read_bytes())
    monkeypatch.setattr(score_command, "load_engine", lambda models, cfg: RednessEngine())
    monkeypatch.setattr(run_folder, "MANY", 2)
    words = ("score", tmp_path / "in", "-o", tmp_path / "out")
    assert wsi(*words)[0] == 0
    really = FinishedList.left_of

    def and_then_it_goes(self: FinishedList, *rest: Any) -> Any:
        left = really(self, *rest)
        (tmp_path / "out" / "a" / "slide.json").unlink()
        return left

    with monkeypatch.context() as patch:
        patch.setattr(FinishedList, "left_of", and_then_it_goes)
        _, _, err = wsi(*words)
    assert "1 slides that were listed as done have no result (a)" in err
    assert json.loads((tmp_path / "out" / "run.json").read_bytes())["state"].startswith("stopped: 1 slides")
    assert wsi(*words)[0] == 0
    assert json.loads((tmp_path / "out" / "run.json").read_bytes())["state"] == "finished"


def result_of(name: str, score: float) -> SlideResult:
    return SlideResult(name, f"/{name}.tif", score, None, (), 0, 1, (), 0.25, (100, 200))


class TestPages:
    def test_every_slide_is_on_one_page_and_each_page_leads_to_the_next(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pages, "PAGE_SLIDES", 3)
        out = folder_at(tmp_path)
        results = [result_of(f"s{i}", i / 10) for i in range(5)]
        failures = [Failure(f"f{i}", f"/f{i}.tif", "broken") for i in range(3)]
        record = {"models": [], "program": "p", "code": "c", "engine": "e"}
        names = write_tables(out, results, failures, record)
        assert list(names) == ["slide_scores.csv", "index.html", "index-2.html", "index-3.html"]
        texts = [(tmp_path / name).read_text() for name in names[1:]]
        shown = [re.findall(r"<h2>(s\d)</h2>|<td>(f\d)</td>", text) for text in texts]
        assert ["".join(a + b for a, b in page) for page in shown] == [
            "s4s3s2",
            "f0s1s0",
            "f1f2",
        ]  # the table of a page before its pictures
        assert all("5 of 8 slides scored, 3 failed; page" in text for text in texts)
        links = [sorted(set(re.findall(r'href="(index[^"]*)"', text))) for text in texts]
        assert links == [
            ["index-2.html", "index-3.html"],
            ["index-3.html", "index.html"],
            ["index-2.html", "index.html"],
        ]
        assert list(write_tables(out, results[:2], [], record)) == ["slide_scores.csv", "index.html"]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["index.html", "slide_scores.csv"]
        assert ">next page<" not in (tmp_path / "index.html").read_text()
