"""What several commands leave in one folder: states, failures, hashes of tables."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.console import CohortProgress
from pipelines.runs.cohort import ALONE, Failure, named, run_cohort
from pipelines.runs.run_folder import RunFolder, note_tables
from wsi.errors import SlideError, StoreError
from wsi.files import AtWork, alone_in, file_sha256
from wsi.results.folder import Folder, LocalFolder
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource


@dataclass
class Scored:
    name: str
    unreadable: int = 0
    empty: bool = False
    note: str = ""

    def summary(self) -> dict[str, Any]:
        return {"name": self.name}

    def noted(self, text: str) -> Scored:
        return Scored(self.name, note=text)


def _earlier(out: Folder, fingerprint: str, but: Collection[str]) -> list[Scored]:
    names = [name for name in out.files() if name.endswith(f".{fingerprint}")]
    return [Scored(name[0]) for name in names if name[0] not in but]


def _table(out: Folder, results: Sequence[Scored], failures: Any, record: Any) -> Sequence[str]:
    lines = [f"{r.name}: {r.note}\n" if r.note else f"{r.name}\n" for r in results]
    out.write("table.csv", "".join(lines))
    return ["table.csv"]


def run_in(out: Path, fingerprint: str = "f") -> RunFolder[Scored]:
    return RunFolder(
        LocalFolder(out), {"settings_fingerprint": fingerprint}, _earlier, _table, overwrite=True
    )


def noted(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "run.json").read_text()))


def test_the_last_of_two_commands_says_finished(tmp_path: Path) -> None:
    first, second = run_in(tmp_path), run_in(tmp_path)
    with first.work(["a"]):
        assert noted(tmp_path)["state"] == "running"
        with second.work(["b"]):
            second.sum_up("finished", [Scored("b")], [])
            assert noted(tmp_path)["state"] == "running"
        first.sum_up("finished", [Scored("a")], [])
    assert noted(tmp_path)["state"] == "finished"
    assert not (tmp_path / ".at-work").exists()


def test_a_command_that_was_stopped_is_not_forgotten_by_one_beside_it(tmp_path: Path) -> None:
    first, second = run_in(tmp_path), run_in(tmp_path)
    with first.work(["a"]), second.work(["b"]):
        second.sum_up("interrupted", [], [])
        third = run_in(tmp_path)
        with third.work(["c"]):  # it begins while the first goes on
            assert noted(tmp_path)["state"] == "interrupted"
            third.sum_up("finished", [Scored("c")], [])
        first.sum_up("finished", [Scored("a")], [])
    assert noted(tmp_path)["state"] == "interrupted"
    again = run_in(tmp_path)
    with again.work(["b"]):
        assert noted(tmp_path)["state"] == "running"
        again.sum_up("finished", [Scored("b")], [])
    assert noted(tmp_path)["state"] == "finished"


def test_a_command_that_was_killed_works_no_more(tmp_path: Path) -> None:
    script = "import sys, os, pathlib; from wsi.files import AtWork; AtWork(pathlib.Path(sys.argv[1])); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)]).returncode == 9
    with alone_in(tmp_path):
        sign = AtWork(tmp_path)
        assert not sign.others
        sign.leave()


def test_a_failure_is_noted_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a command in another folder would take the slide for a removed one, and drop the failure."""
    (tmp_path / "a.svs").write_text("no slide")
    monkeypatch.chdir(tmp_path)

    class Fails:
        out, specs = LocalFolder(tmp_path), ()

        def run(self, row: SlideRow, name: str, executor: object, tick: object) -> Scored:
            raise SlideError("broken")

    rows, job = [SlideRow(SlideSource("a.svs"))], Fails()
    outcome = run_cohort(
        named(rows), job, lambda *_: None, crew=ALONE, watch=CohortProgress([1.0], lambda *_: None)
    )
    assert [f.path for f in outcome.failures] == [str(tmp_path / "a.svs")]


def test_failures_of_another_command(tmp_path: Path) -> None:
    """One of a slide that is there stays, as does one that vanished; one of a slide that was removed since does not."""
    slide = tmp_path / "x.tif"
    slide.write_text("")
    failures = [
        Failure("x", str(slide), "broken"),
        Failure("y", str(tmp_path / "y.tif"), "is gone", gone=True),
    ]
    failures += [Failure("z", "/no/such/folder/z.tif", "broken"), Failure("u", "s3://b/u.tif", "broken")]
    run = run_in(tmp_path)
    with run.work(["x", "y", "z", "u"]):
        run.sum_up("finished", [], failures)

    def failed(run: RunFolder[Scored], names: Sequence[str]) -> list[str]:
        with run.work(names):
            assert not {f["name"] for f in noted(tmp_path)["failed"]} & set(names)
            run.sum_up("finished", [Scored(name) for name in names], [])
        return [f["name"] for f in noted(tmp_path)["failed"]]

    assert failed(run_in(tmp_path), ["a"]) == ["u", "x", "y", "z"]
    slide.unlink()
    assert failed(run_in(tmp_path), ["z"]) == ["u", "y"]
    assert failed(run_in(tmp_path, "other"), ["a"]) == []


def test_results_of_other_commands_stand_beside_ours(tmp_path: Path) -> None:
    for name in ("c.f", "a.f", "b.f", "d.other"):
        (tmp_path / name).write_text("")
    run = run_in(tmp_path)
    with run.work(["b"]):
        assert [s["name"] for s in noted(tmp_path)["slides"]] == ["a", "b", "c"]
        run.sum_up("finished", [Scored("c")], [Failure("b", "b.tif", "broken")])
    assert [s["name"] for s in noted(tmp_path)["slides"]] == ["a", "b", "c"]
    assert [s["name"] for s in noted(tmp_path)["failed"]] == ["b"]
    assert (
        tmp_path / "table.csv"
    ).read_text() == "a\nb: a result of an earlier run: the last run of this slide failed\nc\n"


def test_a_failure_beside_an_earlier_result_stays_until_the_slide_is_done(tmp_path: Path) -> None:
    """A command on another slide must not make the earlier result look like one of now."""
    (tmp_path / "b.f").write_text("")
    note = "b: a result of an earlier run: the last run of this slide failed"
    for name, failures in (("b", [Failure("b", "s3://x/b.tif", "broken")]), ("a", [])):
        run = run_in(tmp_path)
        with run.work([name]):
            run.sum_up("finished", [] if failures else [Scored(name)], failures)
        assert [f["name"] for f in noted(tmp_path)["failed"]] == ["b"]
        assert note in (tmp_path / "table.csv").read_text()
    run = run_in(tmp_path)
    with run.work(["b"]):
        run.sum_up("finished", [Scored("b")], [])
    assert noted(tmp_path)["failed"] == []
    assert note not in (tmp_path / "table.csv").read_text()


def test_tables_are_noted_with_their_hashes(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    with run.work(["a"]):
        run.sum_up("finished", [Scored("a")], [])
    assert noted(tmp_path)["files"] == {"table.csv": [2, file_sha256(tmp_path / "table.csv")]}
    (tmp_path / "table.csv").write_text("a, reviewed\n")
    note_tables(LocalFolder(tmp_path), ["table.csv"])
    assert noted(tmp_path)["files"]["table.csv"] == [12, file_sha256(tmp_path / "table.csv")]
    with run_in(tmp_path).work(["b"]):  # until it ends the earlier table stays, and can be verified
        assert noted(tmp_path)["files"]["table.csv"][0] == 12
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(StoreError, match=r"run\.json is broken .*run the command that made it again"):
        note_tables(LocalFolder(tmp_path), ["table.csv"])


def test_a_command_of_other_settings_that_began_meanwhile_is_noticed(tmp_path: Path) -> None:
    """Both asked before either had written: the second must not mix its results with the first's."""
    first, second = run_in(tmp_path, "f"), run_in(tmp_path, "g")
    second.overwrite = False
    with (
        first.work(["a"]),
        pytest.raises(StoreError, match="holds results of another model"),
        second.work(["b"]),
    ):
        pass
    assert noted(tmp_path)["settings_fingerprint"] == "f"
