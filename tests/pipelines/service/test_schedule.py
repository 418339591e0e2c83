"""Whose chunk is next, what can be promised, and the simulator: by hand, and by properties."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.service.schedule import TURN, Job, Pace, Ready, admit, finishes
from pipelines.service.simulate import (
    Arrival,
    Ended,
    Machine,
    compared,
    drawn,
    figures,
    read_trace,
    simulate,
)
from wsi.errors import ConfigError

SHARE = TURN / (TURN - 1)  # what turns of jobs without a deadline add


def order(policy: str, jobs: list[Job], chunks: dict[str, int]) -> str:
    """The names of the jobs, chunk by chunk."""
    ready = Ready(policy)  # type: ignore[arg-type]
    for job in jobs:
        ready.add(job)
    names = ""
    while (job := ready.next()) is not None:
        names += job.name
        chunks[job.name] -= 1
        if chunks[job.name] == 0:
            ready.remove(job)
    return names


class TestReady:
    JOBS = [Job("a", 0, 9, 90.0), Job("b", 1, 9, 50.0), Job("c", 2, 9, None), Job("d", 3, 9, 70.0)]

    @pytest.mark.parametrize(
        ("policy", "names"), [("fifo", "aabbccdd"), ("slide", "bbddaacc"), ("edf", "bbddaacc")]
    )
    def test_order(self, policy: str, names: str) -> None:
        assert order(policy, self.JOBS, dict.fromkeys("abcd", 2)) == names

    def test_a_more_urgent_one_comes_between_chunks_and_not_into_a_begun_slide(self) -> None:
        for policy, names in (("edf", "axa"), ("slide", "aax")):
            ready = Ready(policy)  # type: ignore[arg-type]
            late, soon = Job("a", 0, 9, 90.0), Job("x", 1, 9, 10.0)
            ready.add(late)
            seen = ready.next().name  # type: ignore[union-attr]
            ready.add(soon)
            while (job := ready.next()) is not None:
                seen += job.name
                if job is soon or seen.count("a") == 2:
                    ready.remove(job)
            assert seen == names

    def test_one_turn_in_twenty_is_of_those_without_a_deadline(self) -> None:
        names = order("edf", [Job("a", 0, 9, 90.0), Job("c", 2, 9, None)], {"a": 100, "c": 100})
        assert names[: 2 * TURN].count("c") == 2
        assert names.rstrip("c").count("c") == 100 // (TURN - 1)


class TestAdmission:
    PACE = Pace(1.0, 5.0, chunk_s=2.0)

    def test_by_hand(self) -> None:
        promised = [Job("a", 0, 19, 60.0)]  # 20 s of work with its turns; ends at 29
        assert finishes(promised, 0, self.PACE) == [(promised[0], pytest.approx(20 + 9))]
        taken, end = admit(Job("b", 0, 38, 70.0), promised, 0, self.PACE)
        assert (taken, end) == (True, pytest.approx(20 + 40 + 9))
        taken, end = admit(Job("b", 0, 38, 68.0), promised, 0, self.PACE)
        assert (taken, end) == (False, pytest.approx(69))

    def test_a_more_urgent_one_is_refused_where_it_would_make_another_late(self) -> None:
        promised = [Job("a", 0, 19, 60.0)]
        assert admit(Job("b", 0, 19, 50.0), promised, 0, self.PACE)[0]
        assert not admit(Job("b", 0, 38, 50.0), promised, 0, self.PACE)[
            0
        ]  # b itself would be in time: a would not

    def test_serial_slides_and_many_workers(self) -> None:
        job = Job("a", 0, 38, 100.0)
        assert Pace(1.0, 5.0, serial=True).seconds([job]) == pytest.approx(43 * SHARE)
        assert Pace(1.0, 5.0, workers=4).seconds([job]) == pytest.approx(38 * SHARE / 4)
        assert Pace(1.0, 5.0, serial=True, chunk_s=3).latency_s == 6

    @given(st.lists(st.tuples(st.integers(1, 50), st.floats(1, 500)), max_size=8), st.integers(1, 50))
    def test_what_is_offered_instead_is_taken(self, others: list[tuple[int, float]], cells: int) -> None:
        promised: list[Job] = []
        for i, (size, deadline) in enumerate(others):
            job = Job(str(i), 0, size, deadline)
            if admit(job, promised, 0, self.PACE)[0]:
                promised.append(job)
        taken, earliest = admit(Job("x", 0, cells, 1.0), promised, 0, self.PACE)
        assert not taken
        assert admit(Job("x", 0, cells, earliest + 1e-6), promised, 0, self.PACE)[0]


def trace(*slides: tuple[float, int, float | None]) -> list[Arrival]:
    return [Arrival(*slide) for slide in slides]


class TestSimulator:
    PLAIN = Machine(Pace(1.0, 10.0), batch=8, chunk=8)

    def test_by_hand(self) -> None:
        """Chunks of 8 s; a slide's own 10 s come with its first chunk."""
        slides = trace((0, 24, 200.0), (5, 8, 30.0))
        fifo, busy = simulate(slides, self.PLAIN, "fifo", admission=False)
        assert [e.end for e in fifo] == [34, 52]
        assert fifo[1].late_s == 52 - 35
        assert busy == pytest.approx(1.0)
        edf, _ = simulate(slides, self.PLAIN, "edf", admission=False)
        assert [e.end for e in edf] == [52, 36]  # the first chunk ends at 18, then the urgent slide

    def test_what_is_done_beside_takes_no_worker(self) -> None:
        machine = Machine(Pace(1.0, 10.0), batch=8, chunk=8, overlap=True)
        ended, busy = simulate(trace((0, 24, None), (0, 8, None)), machine, "fifo", admission=False)
        assert [e.end for e in ended] == [5 + 24 + 5, 5 + 32 + 5]
        assert busy == pytest.approx(32 / 42)

    def test_batches_that_are_not_full_cost_as_much_unless_they_are_joined(self) -> None:
        for fuse, seconds in ((False, 24), (True, 9)):
            machine = Machine(Pace(1.0), batch=8, chunk=8, fuse=fuse)
            ended, _ = simulate(
                trace((0, 3, None), (0, 3, None), (0, 3, None)), machine, "fifo", admission=False
            )
            assert max(e.end or 0 for e in ended) == seconds

    def test_many_workers_share_one_slide(self) -> None:
        machine = Machine(Pace(1.0, workers=3), batch=8, chunk=8)
        ended, busy = simulate(trace((0, 24, None)), machine, "edf", admission=True)
        assert ended[0].end == 8
        assert busy == pytest.approx(1)

    def test_a_deadline_that_cannot_be_kept_is_refused_and_nobody_else_is_late(self) -> None:
        slides = trace((0, 40, 100.0), (1, 40, 60.0), (2, 8, None))
        ended, _ = simulate(slides, self.PLAIN, "edf", admission=True)
        assert ended[1].end is None
        assert ended[1].late_s == math.inf
        assert ended[0].late_s == 0
        assert ended[2].end is not None

    @pytest.mark.parametrize("pattern", ["periodic", "poisson", "bursts"])
    @pytest.mark.parametrize("load", [0.5, 0.95, 1.2])
    def test_no_slide_that_was_admitted_is_late(self, pattern: str, load: float) -> None:
        pace = Pace(0.012, 3.0)
        slides = drawn(pattern, 300, load, Machine(pace), cells=(60, 6000), seed=3)  # type: ignore[arg-type]
        rows = compared(slides, pace, batch=8, chunk=1024)
        assert rows["with overlap"].late_taken == 0
        assert rows["with fusion"].late_taken == 0

    def test_every_slide_without_a_deadline_comes_to_its_end(self) -> None:
        slides = drawn("poisson", 200, 1.5, self.PLAIN, cells=(8, 80), seed=0)
        ended, _ = simulate(slides, self.PLAIN, "edf", admission=True)
        assert all(e.end is not None for e in ended if e.arrival.within is None)

    def test_load_is_what_it_says(self) -> None:
        for pattern in ("periodic", "poisson", "bursts"):
            slides = drawn(pattern, 2000, 0.5, self.PLAIN, cells=(10, 1000), seed=1)  # type: ignore[arg-type]
            _, busy = simulate(slides, self.PLAIN, "fifo", admission=False)
            assert busy == pytest.approx(0.5, abs=0.05)


def test_figures_by_hand() -> None:
    ended = [
        Ended(Arrival(0, 1, 10), 8, 5),  # in time, 3 s after a promise of 5: broken
        Ended(Arrival(0, 1, 10), 14, 14),  # 4 s late
        Ended(Arrival(0, 1, 10), None, None),  # refused
        Ended(Arrival(2, 1, None), 36, None),
    ]
    f = figures(ended, 0.25)
    assert (f.taken, f.late_taken, f.late_all) == (0.75, 0.5, pytest.approx(2 / 3))
    assert f.tardiness_s == (2.0, pytest.approx(3.96))
    assert (f.slides_h, f.busy, f.broken) == (300, 0.25, 0.5)


class TestTrace:
    def test_read(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("arrival_s,cells,deadline_s\n9,30,\n2.5,40,600\n")
        assert read_trace(tmp_path / "t.csv") == [Arrival(2.5, 40, 600), Arrival(9, 30, None)]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("arrival_s,cells,deadline_s\n", "holds no slide"),
            ("arrival_s,cells\n1,2\n", "line 2"),
            ("arrival_s,cells,deadline_s\n1,2,3\n1,x,3\n", "line 3"),
            ("arrival_s,cells,deadline_s\n-1,2,3\n", "out of range"),
            ("arrival_s,cells,deadline_s\n1,2,nan\n", "out of range"),
        ],
    )
    def test_wrong(self, text: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_trace(tmp_path / "t.csv")
