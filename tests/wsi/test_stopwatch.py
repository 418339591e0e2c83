"""Seconds by step: each counts once, and all together are the run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.cli import score as score_command
from tests.slides import RednessEngine
from wsi import stopwatch
from wsi.stopwatch import during, in_words, running, seconds

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that moves only when it is told to."""
    now = [100.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])

    def move(by: float) -> None:
        now[0] += by

    return move


def test_an_inner_step_stops_the_outer_one(clock: Callable[[float], None]) -> None:
    with running("rest") as watch:
        clock(1)
        with during("network"):
            clock(10)
            with during("waiting"):
                clock(2)
            clock(4)
        with suppress(KeyError), during("waiting"):
            clock(3)
            raise KeyError
        assert seconds() == {"network": 14, "waiting": 5, "rest": 1}
        clock(0.1)
    assert list(watch.seconds()) == ["network", "waiting", "rest"]  # largest first
    assert in_words(watch.seconds()) == "20.1 s: network 70 %, waiting 25 %, rest 5 %"
    assert in_words({"a": 200.0, "b": 0.9}) == "200.9 s: a 100 %"


def test_without_a_stopwatch_and_in_other_threads_nothing_is_counted() -> None:
    with during("network"):
        pass
    assert seconds() == {}
    found = []
    with running("rest"):
        thread = threading.Thread(target=lambda: found.append(seconds()))
        thread.start()
        thread.join()
    assert found == [{}]


def test_a_run_says_where_its_time_went(
    red_square: Path, tmp_path: Path, wsi: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_command, "load_engine", lambda models, cfg: RednessEngine())
    code, out, _ = wsi("score", red_square, "-o", tmp_path)
    assert code == 0
    (line,) = [line for line in out.splitlines() if " s: " in line]
    noted = json.loads((tmp_path / "run.json").read_bytes())["seconds"]
    steps = {"network", "waiting for pixels", "writing scores", "finding tissue", "hashing the slides"}
    assert steps | {"results and pictures", "comparing the tissue"} <= noted.keys()
    assert all(s >= 0 for s in noted.values())
    assert max(noted, key=lambda step: noted[step]) in line
