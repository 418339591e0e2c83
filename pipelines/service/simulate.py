"""The scheduler in virtual time: what each policy makes of an arrival pattern, without slides or networks."""

from __future__ import annotations

import csv
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from pipelines.service.schedule import Job, Pace, Policy, Ready, admit
from wsi.errors import ConfigError

Pattern = Literal["periodic", "poisson", "bursts"]
COLUMNS = ("arrival_s", "cells", "deadline_s")
BURST = 8  # slides that a rack of the scanner gives at once


@dataclass(frozen=True, slots=True)
class Arrival:
    """A slide of a trace.

    Attributes:
        at: second of its arrival.
        cells: number of cells with tissue.
        within: seconds from arrival to deadline; None: there is none.
    """

    at: float
    cells: int
    within: float | None


@dataclass(frozen=True, slots=True)
class Machine:
    """What is simulated.

    Attributes:
        pace: of cells and slides.
        batch: cells that the network takes at once; a batch that is not full takes as long.
        chunk: cells of a full chunk.
        overlap: whether a slide's own work (tissue, pictures) is done beside the network's.
        fuse: whether batches are filled across chunks and slides.
    """

    pace: Pace
    batch: int = 8
    chunk: int = 1024
    overlap: bool = False
    fuse: bool = False

    @property
    def for_promises(self) -> Pace:
        """The pace by which slides are admitted."""
        return replace(self.pace, chunk_s=self.chunk_s(self.chunk), serial=not self.overlap)

    @property
    def beside_s(self) -> float:
        """Seconds of a slide that no worker spends: half before its first chunk, half after its last."""
        return self.pace.slide_s if self.overlap else 0.0

    def chunk_s(self, cells: int) -> float:
        """Seconds of one worker for a chunk."""
        counted = cells if self.fuse else math.ceil(cells / self.batch) * self.batch
        return counted * self.pace.cell_s


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a slide: seconds of its end and of the promise (None: refused, or none was made)."""

    arrival: Arrival
    end: float | None
    promised: float | None

    @property
    def late_s(self) -> float:
        """Seconds past the deadline, 0 in time or without one; infinite if it was refused."""
        if self.arrival.within is None:
            return 0.0
        if self.end is None:
            return math.inf
        return max(0.0, self.end - self.arrival.at - self.arrival.within)


def simulate(
    arrivals: Sequence[Arrival], machine: Machine, policy: Policy, *, admission: bool
) -> tuple[list[Ended], float]:
    """Run a trace.

    Args:
        arrivals: the slides, by their arrival.
        machine: how fast it is, and what it does side by side.
        policy: whose chunk is next.
        admission: whether slides whose deadline cannot be kept are refused; else all are taken.

    Returns:
        What became of each slide, and the share of time in which the workers worked, from the first arrival to the
        last end.
    """
    run = _Run(machine, policy, admission)
    # (second, order among equals, what happened, the slide, or the number of an arrival)
    events: list[tuple[float, int, str, _Slide | int]] = [
        (arrival.at, i, "arrives", i) for i, arrival in enumerate(arrivals)
    ]
    heapq.heapify(events)
    slides: dict[int, _Slide] = {}
    count = len(arrivals)
    while events:
        now, _, what, whose = heapq.heappop(events)
        new: list[tuple[float, str, _Slide]] = []
        if isinstance(whose, int):
            taken = run.arrive(arrivals[whose], whose, now)
            if taken is not None:
                slides[whose] = taken
                new.append((machine.beside_s / 2, "is planned", taken))
        elif what == "is planned":
            run.ready.add(whose.job)
        else:
            run.chunk_done(whose, now)
        new += [(seconds, "is done", slide) for seconds, slide in run.hand_out()]
        for seconds, next_what, slide in new:
            count += 1
            heapq.heappush(events, (now + seconds, count, next_what, slide))
    ended = [
        Ended(arrival, slides[i].end, slides[i].job.promised) if i in slides else Ended(arrival, None, None)
        for i, arrival in enumerate(arrivals)
    ]
    last = max((e.end for e in ended if e.end is not None), default=0.0)
    span = (last - arrivals[0].at) * machine.pace.workers if arrivals else 0.0
    return ended, run.busy / span if span > 0 else 0.0


@dataclass(eq=False, slots=True)
class _Slide:
    """A slide that was taken: its chunks that wait, those that are not done, and the second of its end."""

    job: Job
    waiting: int
    undone: int
    begun: bool = False
    end: float | None = None


class _Run:
    """The state of a simulation."""

    def __init__(self, machine: Machine, policy: Policy, admission: bool) -> None:
        self.ready, self.busy = Ready(policy), 0.0
        self._machine, self._admission = machine, admission
        self._idle = machine.pace.workers
        self._taken: dict[Job, _Slide] = {}  # those that are not done

    def arrive(self, arrival: Arrival, number: int, now: float) -> _Slide | None:
        """Take a slide in; None where it is refused."""
        deadline = None if arrival.within is None else now + arrival.within
        job = Job(f"{number:09d}", now, arrival.cells, deadline)
        if deadline is not None:
            promised = (other for other in self._taken if other.deadline is not None)
            kept, end = admit(job, promised, now, self._machine.for_promises)
            if self._admission and not kept:
                return None
            job.promised = end
        chunks = max(1, math.ceil(arrival.cells / self._machine.chunk))
        self._taken[job] = _Slide(job, chunks, chunks)
        return self._taken[job]

    def hand_out(self) -> list[tuple[float, _Slide]]:
        """Give chunks to idle workers: the seconds that each takes."""
        given = []
        while self._idle and (job := self.ready.next()) is not None:
            slide = self._taken[job]
            cells = min(self._machine.chunk, job.cells)
            seconds = self._machine.chunk_s(cells)
            if not slide.begun and not self._machine.overlap:
                seconds += self._machine.pace.slide_s  # the worker itself finds tissue and draws pictures
            slide.begun = True
            job.cells -= cells
            slide.waiting -= 1
            if slide.waiting == 0:
                self.ready.remove(job)
            self._idle -= 1
            self.busy += seconds
            given.append((seconds, slide))
        return given

    def chunk_done(self, slide: _Slide, now: float) -> None:
        """Note a chunk's end; the last one ends its slide."""
        self._idle += 1
        slide.undone -= 1
        if slide.undone == 0:
            slide.end = now + self._machine.beside_s / 2
            del self._taken[slide.job]


@dataclass(frozen=True, slots=True)
class Figures:
    """What a policy made of a trace.

    Attributes:
        taken: share of the slides that were taken.
        late_taken: share of those with a deadline, and taken, that were late.
        late_all: share of all with a deadline that were late or refused.
        tardiness_s: seconds past the deadline of those that were taken, at the median and the 99th percentile.
        slides_h: slides ended in an hour, from the first arrival to the last end.
        busy: share of time in which the workers worked.
        broken: share of the promised slides that ended later than promised, by more than a tenth of the seconds that
            were promised.
    """

    taken: float
    late_taken: float
    late_all: float
    tardiness_s: tuple[float, float]
    slides_h: float
    busy: float
    broken: float


def figures(ended: Sequence[Ended], busy: float) -> Figures:
    """The figures of a simulation, or of a real run.

    Raises:
        ValueError: there is no slide.
    """
    if not ended:
        raise ValueError("no slides, no figures")
    due = [e for e in ended if e.arrival.within is not None]
    taken_due = [e for e in due if e.end is not None]
    late = [e.late_s for e in taken_due]
    ends = [e.end for e in ended if e.end is not None]
    span = max(ends, default=0.0) - min(e.arrival.at for e in ended)
    broken = [
        e.end - e.promised > 0.1 * (e.promised - e.arrival.at)
        for e in taken_due
        if e.end is not None and e.promised is not None
    ]
    median, worst = (float(v) for v in np.percentile(late, [50, 99])) if late else (0.0, 0.0)
    return Figures(
        len(ends) / len(ended),
        sum(s > 0 for s in late) / len(late) if late else 0.0,
        sum(e.late_s > 0 for e in due) / len(due) if due else 0.0,
        (median, worst),
        len(ends) / span * 3600 if span > 0 else 0.0,
        busy,
        sum(broken) / len(broken) if broken else 0.0,
    )


def drawn(
    pattern: Pattern, count: int, load: float, machine: Machine, *, cells: tuple[int, int], seed: int
) -> list[Arrival]:
    """An arrival pattern of slides of unlike size.

    A tenth is urgent (a deadline of 3 times its own work), three tenths have no deadline, the others 20 times.

    Args:
        pattern: ``periodic``, ``poisson``, or ``bursts`` of `BURST` at once.
        count: number of slides.
        load: work that arrives in a second, as a share of what the machine does in one.
        machine: how fast it is.
        cells: fewest and most cells of a slide; their logarithm is uniform.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(math.log(cells[0]), math.log(cells[1]), count)).round().astype(int)
    work = sizes * machine.pace.cell_s / machine.pace.workers + machine.pace.slide_s / machine.pace.workers
    gap = float(work.mean()) / load
    if pattern == "periodic":
        times = np.arange(count) * gap
    elif pattern == "poisson":
        times = np.cumsum(rng.exponential(gap, count))
    else:
        times = np.arange(count) // BURST * BURST * gap
    alone = sizes * machine.pace.cell_s + machine.pace.slide_s
    kinds = rng.random(count)
    arrivals = []
    for at, size, own_s, kind in zip(times, sizes, alone, kinds, strict=True):
        within = 3 * own_s if kind < 0.1 else 20 * own_s if kind < 0.7 else None
        arrivals.append(Arrival(float(at), int(size), None if within is None else float(within)))
    return arrivals


def read_trace(path: Path) -> list[Arrival]:
    """A recorded trace: a CSV with the columns `COLUMNS`; an empty deadline is none.

    Raises:
        ConfigError: the file cannot be read, or a line is wrong.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); it is a CSV with {', '.join(COLUMNS)}"
        ) from error
    arrivals = []
    for number, line in enumerate(lines, start=2):
        try:
            at, cells, text = float(line["arrival_s"]), int(line["cells"]), line["deadline_s"]
            within = float(text) if text else None
            if not (
                math.isfinite(at) and at >= 0 and cells >= 0 and (within is None or 0 < within < math.inf)
            ):
                raise ValueError("a value is out of range")
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path}, line {number}: {error}; it needs {', '.join(COLUMNS)}: seconds from 0, cells from 0, and "
                f"seconds above 0 or nothing"
            ) from error
        arrivals.append(Arrival(at, cells, within))
    if not arrivals:
        raise ConfigError(f"{path} holds no slide")
    return sorted(arrivals, key=lambda a: a.at)


def compared(arrivals: Sequence[Arrival], pace: Pace, *, batch: int, chunk: int) -> dict[str, Figures]:
    """The figures of each policy, each adding one part to the one before."""
    plain = Machine(pace, batch, chunk)
    rows: dict[str, tuple[Policy, Machine, bool]] = {
        "first come, first served": ("fifo", plain, False),
        "slide at a time": ("slide", plain, False),
        "earliest deadline first": ("edf", plain, False),
        "with admission": ("edf", plain, True),
        "with overlap": ("edf", replace(plain, overlap=True), True),
        "with fusion": ("edf", replace(plain, overlap=True, fuse=True), True),
    }
    return {
        name: figures(*simulate(arrivals, machine, policy, admission=admission))
        for name, (policy, machine, admission) in rows.items()
    }
