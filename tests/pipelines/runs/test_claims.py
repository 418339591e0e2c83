"""Claims on slides: one of many gets a slide, a living owner keeps it, a dead one loses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from pipelines.runs.claims import FOLDER, Claims, host
from tests.slides import ROOT
from wsi.results.folder import Folder, LocalFolder, folder_at


@pytest.fixture(params=["disk", "memory"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return folder_at(tmp_path / "out" if request.param == "disk" else f"memory://{uuid.uuid4()}/out")


def foreign(out: Folder, name: str, beat: int = 0, *, process: int = 1, machine: str = "elsewhere") -> None:
    """A claim of a process on another machine, whose clock is an hour behind."""
    written = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 3600))
    facts = {"host": machine, "process": process, "beat": beat, "written": written}
    out.write(f"{FOLDER}/{name}", json.dumps(facts))


@pytest.mark.parametrize("value", [None, [], "7", -1, 0, 10**30, 2.5])
def test_a_claim_that_is_damaged_is_somebody_s_until_it_is_stale(out: Folder, value: object) -> None:
    out.write(f"{FOLDER}/a.1.json", json.dumps({"host": host(), "process": value, "beat": 0}))
    claims = Claims(out, stale_s=0.1)
    assert claims.take("a") is None
    assert claims.holder("a") == ""
    time.sleep(0.15)
    assert claims.take("a") is not None


class TestOneProcess:
    def test_a_slide_is_taken_once_until_it_is_released(self, out: Folder) -> None:
        first, second = Claims(out), Claims(out)
        claim = first.take("a")
        assert claim is not None
        assert second.take("a") is None
        assert second.holder("a") == f"process {os.getpid()} on {host()}"
        other = second.take("a.1")  # its name begins as a claim of the first one does
        assert other is not None
        with claim, other:
            assert not second.is_free("a")
        assert second.is_free("a")
        assert out.files() == []
        with second.take("a") as again:  # type: ignore[union-attr]
            assert again is not None

    def test_an_owner_that_shows_no_sign_of_life_loses_it(self, out: Folder) -> None:
        foreign(out, "a.3.json")
        claims = Claims(out, stale_s=0.2)
        assert claims.take("a") is None
        time.sleep(0.25)
        assert claims.dead("a") == out.read(f"{FOLDER}/a.3.json")
        claim = claims.take("a")
        assert claim is not None
        assert [name.split("/")[1] for name in out.files()] == ["a.4.json"]

    def test_an_owner_that_writes_keeps_it_whatever_its_clock_says(self, out: Folder) -> None:
        claims = Claims(out, stale_s=0.2)
        for beat in range(4):
            foreign(out, "a.1.json", beat)
            assert claims.take("a") is None
            time.sleep(0.15)

    def test_a_claim_that_somebody_else_found_dead_is_believed_if_it_is_still_the_latest(
        self, out: Folder
    ) -> None:
        foreign(out, "a.1.json")
        content = out.read(f"{FOLDER}/a.1.json")
        claim = Claims(out).take("a", dead=content)
        assert claim is not None
        foreign(out, "b.1.json")
        content = out.read(f"{FOLDER}/b.1.json")
        foreign(out, "b.1.json", beat=1)  # it was only slow
        assert Claims(out).take("b", dead=content) is None

    def test_a_dead_process_of_this_machine_loses_it_at_once(self, out: Folder) -> None:
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        foreign(out, "a.1.json", process=ended.pid, machine=host())
        assert Claims(out).take("a") is not None
        foreign(out, "b.1.json", process=os.getpid(), machine=host())
        assert Claims(out).take("b") is None

    def test_half_a_claim_is_somebody_s_who_is_writing_it(self, out: Folder) -> None:
        out.write(f"{FOLDER}/a.1.json", '{"host": ')
        claims = Claims(out, stale_s=0.1)
        assert claims.take("a") is None
        assert claims.holder("a") == ""
        time.sleep(0.15)
        assert claims.take("a") is not None

    def test_a_claim_that_was_taken_over_is_neither_written_nor_removed_by_its_first_owner(
        self, out: Folder
    ) -> None:
        claim = Claims(out, beat_s=0.02).take("a")
        assert claim is not None
        with claim:
            foreign(out, "a.1.json")  # another's, under the same name: numbers begin anew
            theirs = out.read(f"{FOLDER}/a.1.json")
            time.sleep(0.1)
        assert out.read(f"{FOLDER}/a.1.json") == theirs

    def test_a_listing_that_missed_a_later_claim_gives_way(
        self, out: Folder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the listing and the creation another process took the slide over."""
        claims, latest = Claims(out), Claims._latest
        answers = [(0, None)]
        monkeypatch.setattr(
            Claims, "_latest", lambda self, name: answers.pop() if answers else latest(self, name)
        )
        foreign(out, "a.2.json")
        assert claims.take("a") is None
        assert out.files() == [f"{FOLDER}/a.2.json"]

    def test_signs_of_life_are_written_and_a_claim_that_was_taken_over_is_not_written_again(
        self, out: Folder
    ) -> None:
        claim = Claims(out, beat_s=0.02).take("a")
        assert claim is not None
        with claim:
            first = out.read(f"{FOLDER}/a.1.json")
            time.sleep(0.2)
            assert out.read(f"{FOLDER}/a.1.json") != first
            out.delete(f"{FOLDER}/a.1.json")
            time.sleep(0.2)
            assert out.files() == []


@pytest.mark.slow
def test_of_four_processes_one_gets_each_slide(tmp_path: Path) -> None:
    """Each takes what it can of the same 400 names, and keeps it until the process ends."""
    script = (
        "import sys, pathlib\n"
        "from pipelines.runs.claims import Claims\n"
        "from wsi.results.folder import LocalFolder\n"
        "claims = Claims(LocalFolder(pathlib.Path(sys.argv[1])))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "names = [str(i) for i in range(400)]\n"
        "taken = [name for name in (names if int(sys.argv[2]) % 2 else names[::-1]) if claims.take(name)]\n"
        "print(' '.join(taken), flush=True); sys.stdin.readline()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    crew = [
        subprocess.Popen([sys.executable, "-c", script, tmp_path, str(i)], text=True, cwd=ROOT, **pipes)  # type: ignore[call-overload]
        for i in range(4)
    ]
    for process in crew:
        assert process.stdout.readline() == "ready\n"
    for process in crew:
        process.stdin.write("go\n")
        process.stdin.flush()
    taken = [process.stdout.readline().split() for process in crew]
    for process in crew:
        process.communicate("end\n")
    everything = [name for names in taken for name in names]
    assert sorted(everything, key=int) == [str(i) for i in range(400)]
    assert sum(bool(names) for names in taken) > 1
    assert len(LocalFolder(tmp_path).files()) == 400
