"""Whose chunk is next, and what can be promised: numbers only, no slides, no clock.

Earliest deadline first is optimal for one worker that may change jobs between chunks (Liu and Layland 1973), so whether
all promises can be kept is one sum over the jobs in the order of their deadlines.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Policy = Literal["fifo", "slide", "edf"]
POLICIES: tuple[Policy, ...] = ("fifo", "slide", "edf")
TURN = 20  # of so many chunks one is of a job without a deadline, if any waits: it comes to its end, too


@dataclass(eq=False, slots=True)
class Job:
    """A slide as the scheduler sees it.

    Attributes:
        name: of the slide.
        arrived: second at which it was submitted.
        cells: number of its cells that are not scored yet.
        deadline: second by which it must be done; None: nothing is promised.
        promised: second that was promised for its end; None: nothing was.
    """

    name: str
    arrived: float
    cells: int
    deadline: float | None = None
    promised: float | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast this engine is on this machine.

    Attributes:
        cell_s: seconds of the network for a cell.
        slide_s: seconds of a slide besides its cells: finding tissue, lesions, pictures.
        workers: how many work at once.
        chunk_s: seconds of a full chunk, which nothing interrupts.
        serial: whether a slide's own seconds are spent by the workers, too, and not beside them.
        beside: number of slides whose own seconds are spent at once.
    """

    cell_s: float
    slide_s: float = 0.0
    workers: int = 1
    chunk_s: float = 0.0
    serial: bool = False
    beside: int = 1_000_000

    def seconds(self, jobs: Iterable[Job]) -> float:
        """Seconds that jobs take when all workers work on them, with the turns of jobs without a deadline."""
        work = sum(job.cells * self.cell_s + (self.slide_s if self.serial else 0.0) for job in jobs)
        return work / self.workers * TURN / (TURN - 1)

    @property
    def latency_s(self) -> float:
        """Seconds of a job besides its turn: the chunk that is under way when it comes, one of a job without a
        deadline whose turn it is, and its own ones beside."""
        return 2 * self.chunk_s + (0.0 if self.serial else self.slide_s)


class Ready:
    """The jobs that have chunks left, in the order of a policy.

    ``fifo`` takes them as they arrived; ``slide`` takes the earliest deadline, and finishes it first; ``edf`` asks
    after every chunk which deadline is the earliest.
    """

    def __init__(self, policy: Policy = "edf") -> None:
        self._policy = policy
        self._due: list[tuple[float, float, str, Job]] = []
        self._free: list[tuple[float, float, str, Job]] = []  # jobs without a deadline
        self._begun: Job | None = None
        self._turns = 0

    def __len__(self) -> int:
        return len(self._due) + len(self._free)

    def add(self, job: Job) -> None:
        """Take a job in."""
        is_free = job.deadline is None and self._policy != "fifo"
        first = job.arrived if self._policy == "fifo" or job.deadline is None else job.deadline
        insort(self._free if is_free else self._due, (first, job.arrived, job.name, job))

    def remove(self, job: Job) -> None:
        """Let a job go, if it is there."""
        self._due = [entry for entry in self._due if entry[3] is not job]
        self._free = [entry for entry in self._free if entry[3] is not job]
        if self._begun is job:
            self._begun = None

    def next(self) -> Job | None:
        """The job whose chunk is next; None where nothing waits."""
        if self._policy == "slide" and self._begun is not None:
            return self._begun
        self._turns += 1
        is_free_turn = bool(self._free) and self._turns % TURN == 0 and self._policy == "edf"
        entries = self._free if is_free_turn or not self._due else self._due
        if not entries:
            return None
        self._begun = entries[0][3]
        return self._begun

    @property
    def due(self) -> list[Job]:
        """The jobs with a deadline, in the order of their ends."""
        return [entry[3] for entry in self._due]


def finishes(jobs: Iterable[Job], now: float, pace: Pace) -> list[tuple[Job, float]]:
    """Jobs with a deadline, by their deadlines, and the second at which each is expected to end."""
    ordered = sorted(jobs, key=lambda job: (_deadline(job), job.arrived, job.name))
    ends, at = [], now
    for place, job in enumerate(ordered):
        at += pace.seconds([job])
        queued_s = 0.0 if pace.serial else place // pace.beside * pace.slide_s
        ends.append((job, at + pace.latency_s + queued_s))
    return ends


def admit(job: Job, promised: Iterable[Job], now: float, pace: Pace) -> tuple[bool, float]:
    """Whether a job's deadline and those of all others can be kept, and when it would end.

    Args:
        job: with a deadline.
        promised: the jobs that were admitted and have cells left.
        now: second.
        pace: of this machine.

    Returns:
        Whether it is admitted; and the second of its end among the others, or where its deadline cannot be kept, the
        earliest second that could be promised: after all others.
    """
    others = list(promised)
    before = {id(one): at for one, at in finishes(others, now, pace)}
    ends = finishes([*others, job], now, pace)
    end = next(at for one, at in ends if one is job)
    # a job that is late in any case is no reason to refuse another
    if all(at <= max(_deadline(one), before.get(id(one), 0.0)) for one, at in ends):
        return True, end
    queued_s = 0.0 if pace.serial else len(others) // pace.beside * pace.slide_s
    return False, now + pace.seconds([*others, job]) + pace.latency_s + queued_s


def _deadline(job: Job) -> float:
    return math.inf if job.deadline is None else job.deadline
