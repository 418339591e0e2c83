"""The service: slides are planned when they come, admitted or refused, worked on by their deadlines, and written."""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pipelines.runs.claims import Claims
from pipelines.runs.cohort import Failure, Result, SlideJob, attempt
from pipelines.service.governor import CancelledError, Governor, Served
from pipelines.service.jobs import OPEN, JobRecord, JobStore, State, new_id
from pipelines.service.schedule import Job, Pace, admit, finishes
from wsi.errors import SlideError, StoreError, WsiError
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource

log = logging.getLogger(__name__)

AT_ONCE = 4  # slides that are open: one is scored, the others are planned before it or written after it
MOST_WAITING = 10_000
PLANNED_AT_ONCE = 2  # slides whose tissue is looked for at once; more take memory, and are not faster
PAUSE_S = 30.0  # after the disk failed
CLAIMED_S = 2.0  # between two looks at a slide that another command works on
SMOOTH = 0.2  # weight of the newest slide in the mean of what slides take besides their cells


class RefusedError(WsiError):
    """A slide that is not taken; ``status`` is HTTP's, ``earliest`` the second that could be promised."""

    def __init__(self, sentence: str, status: int, earliest: float | None = None) -> None:
        super().__init__(sentence)
        self.status, self.earliest = status, earliest


@dataclass(frozen=True, slots=True)
class Work:
    """What a service does with slides.

    Attributes:
        job: as the command over many slides does it.
        cells: number of a slide's cells with tissue; raises `WsiError` where it cannot be read.
        sum_up: writes the tables and pages of the folder; given the failures.
        predictable: whether a slide's cells tell its end; else deadlines order slides, and nothing is promised.
    """

    job: SlideJob[Any]
    cells: Callable[[SlideRow], int]
    sum_up: Callable[[Sequence[Failure]], None]
    predictable: bool = True


class Clock:
    """Seconds since 1970 that never run backwards, whoever sets the machine's clock."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        """Now."""
        return time.monotonic() + self._offset


class Service:
    """Takes slides, and works on them until it is stopped."""

    def __init__(
        self,
        folder: Path,
        work: Work,
        governor: Governor,
        pace: Pace,
        *,
        at_once: int = AT_ONCE,
        admission: bool = True,
        ended: Callable[[JobRecord], None] = lambda record: None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Open the queue of a results folder; slides that a killed server left are worked on again after `start`.

        Args:
            folder: the results folder.
            work: what is done with slides.
            governor: runs their chunks.
            pace: measured before, on a few patches; corrected by every slide.
            at_once: slides that are open at once; with 1 each is finished before the next one is opened.
            admission: whether slides whose deadline cannot be kept are refused.
            ended: called with every slide that is done, or failed.
            clock: seconds since 1970.

        Raises:
            StoreError: the folder cannot be written.
        """
        self.store = JobStore(folder / ".service")
        self.clock = clock or Clock()
        self._work, self._governor, self._pace = work, governor, pace
        self._at_once, self._admission, self._tell = at_once, admission, ended
        self._jobs: dict[str, Job] = {}  # those that are not done, by their id
        self._running: dict[str, threading.Thread] = {}
        self._cancelled: set[str] = set()
        self._progress: dict[str, tuple[int, int]] = {}
        self._lock = threading.RLock()
        self._planning = threading.Semaphore(PLANNED_AT_ONCE)
        self._change = threading.Condition(self._lock)
        self._stopped = False
        self._changed_tables = False
        self._paused_until = 0.0
        self._thread = threading.Thread(target=self._run, name="service", daemon=True)
        for record in self.store.all(OPEN):
            self.store.change(record.id, state="waiting")
            self._jobs[record.id] = _job_of(record)

    def start(self) -> None:
        """Begin to work."""
        self._governor.start()
        self._thread.start()

    def stop(self) -> None:
        """End after the chunks that are under way; slides that are not done go on at the next start."""
        with self._change:
            self._stopped = True
            self._change.notify_all()
        self._governor.stop()
        self._thread.join()
        for thread in list(self._running.values()):
            thread.join()
        self._sum_up()
        self.store.close()

    @property
    def pace(self) -> Pace:
        """The pace by which slides are admitted."""
        cell_s = self._governor.cell_s or self._pace.cell_s
        chunk_s = self._pace.chunk_s / self._pace.cell_s * cell_s
        return Pace(cell_s, self._pace.slide_s, chunk_s=chunk_s, beside=self._at_once)

    def submit(
        self,
        path: str,
        *,
        deadline: float | None = None,
        or_later: bool = False,
        mpp: float | None = None,
    ) -> tuple[JobRecord, bool]:
        """Plan a slide, and take it if its deadline and everybody else's can be kept.

        Args:
            path: of the slide, on this machine.
            deadline: second since 1970; None: it is done when nothing else waits.
            or_later: whether it is to be taken without a promise where the deadline cannot be kept.
            mpp: um per pixel; None: the file states it.

        Returns:
            The job, and whether it is new: the same file is worked on once.

        Raises:
            RefusedError: the deadline cannot be kept, the slide cannot be read, or too many wait.
        """
        if len(self._jobs) >= MOST_WAITING:
            raise RefusedError(f"{MOST_WAITING:,} slides wait; submit it again later", 429)
        if deadline is not None and deadline <= self.clock():
            raise RefusedError("the deadline lies in the past; give a later one", 422)
        row = SlideRow(SlideSource(str(Path(path).absolute()), mpp))
        state = _file_state(row)
        earlier = self._earlier(row, state)
        if earlier is not None:
            return self._hastened(earlier, deadline, or_later), False
        cells = self._planned(row)
        with self._change:  # from here to its entry nobody else is admitted
            earlier = self._earlier(row, state)
            if earlier is not None:
                return self._hastened(earlier, deadline, or_later), False
            job = Job(new_id(), self.clock(), cells, deadline)
            if deadline is not None:
                self._admit(job, or_later)
            record = JobRecord(
                job.name,
                self._name(row),
                row.source.path,
                mpp,
                state,
                job.arrived,
                job.deadline,
                job.promised,
                cells,
            )
            self.store.put(record)
            self._jobs[record.id] = job
            self._change.notify_all()
        return record, True

    def knows(self, path: Path) -> bool:
        """Whether a file, as it is now, was submitted before, whatever became of it."""
        row = SlideRow(SlideSource(str(path.absolute())))
        return self.store.same(row.source.path, _file_state(row), None, get_args(State)) is not None

    def _earlier(self, row: SlideRow, state: str) -> JobRecord | None:
        """The job of the same file, unless its result was removed since."""
        record = self.store.same(row.source.path, state, row.source.mpp)
        if record is None or record.state in OPEN:
            return record
        is_there = self._work.job.out.exists(f"{record.name}/slide.json")
        return record if is_there else None

    def _hastened(self, record: JobRecord, deadline: float | None, or_later: bool) -> JobRecord:
        """The job of a slide that is submitted once more: its earlier deadline holds, if the new one can be kept.

        Raises:
            RefusedError: it cannot, and must be.
        """
        with self._change:
            if record.state in OPEN and record.id not in self._jobs:  # the disk failed when it ended
                self._jobs[record.id] = _job_of(record)
                self._change.notify_all()
            job = self._jobs.get(record.id)
            if deadline is None or job is None or (job.deadline is not None and job.deadline <= deadline):
                return record
            wanted = Job(job.name, job.arrived, job.cells, deadline)
            self._admit(wanted, or_later, but=job)
            if wanted.deadline is None:
                return record
            record = self.store.change(record.id, deadline=deadline, promised=wanted.promised)
            self._governor.hasten(job, deadline)
            job.promised = wanted.promised
            return record

    def _planned(self, row: SlideRow) -> int:
        if not self._planning.acquire(timeout=60):
            raise RefusedError("many slides are planned at this moment; submit it again later", 429)
        try:
            return self._work.cells(row)
        except WsiError as error:
            raise RefusedError(str(error), 422) from error
        except Exception as error:  # a defect of ours on one slide must not stop whoever asks
            log.exception("%s", row.source.label)
            raise RefusedError(
                f"{row.source.label}: {type(error).__name__}: {error} (a defect)", 422
            ) from error
        finally:
            self._planning.release()

    def _admit(self, job: Job, or_later: bool, *, but: Job | None = None) -> None:
        if not self._work.predictable:
            return
        due = [other for other in self._jobs.values() if other.deadline is not None and other is not but]
        kept, end = admit(job, due, self.clock(), self.pace)
        if kept or not self._admission:
            job.promised = end
        elif or_later:
            job.deadline = None
        else:
            minutes = (end - self.clock()) / 60
            raise RefusedError(
                f"the deadline cannot be kept; the slide could be done in {minutes:.1f} minutes, or without a promise",
                409,
                end,
            )

    def _name(self, row: SlideRow) -> str:
        """The slide's name in outputs: its own, unless another slide has it."""
        name = row.source.name
        if self.store.named(name) in (None, row.source.path):
            return name
        return f"{name}-{hashlib.sha256(row.source.path.encode()).hexdigest()[:6]}"

    def cancel(self, key: str) -> JobRecord:
        """Let a slide go; what was scored stays on the disk.

        Raises:
            KeyError: there is no such job.
        """
        with self._change:
            record = self.store.change(key, OPEN, state="cancelled", ended=self.clock())
            if record.state != "cancelled":
                return record
            self._cancelled.add(key)
            job = self._jobs.get(key)
            if key not in self._running:
                self._jobs.pop(key, None)
            self._change.notify_all()
        if job is not None:
            self._governor.cancel(job)
        return record

    @property
    def cells(self) -> int:
        """Number of cells scored since the start."""
        return self._governor.cells

    @property
    def busy_s(self) -> float:
        """Seconds since the start in which something was scored."""
        return self._governor.busy_s

    def expected(self) -> dict[str, float]:
        """Second at which each slide with a deadline is expected to end, by its id."""
        with self._lock:
            due = [job for job in self._jobs.values() if job.deadline is not None]
            return {job.name: end for job, end in finishes(due, self.clock(), self.pace)}

    def progress(self, key: str) -> tuple[int, int] | None:
        """Cells done, and cells, of a slide that is worked on."""
        return self._progress.get(key)

    def _run(self) -> None:
        """Give slides their threads, and write the tables when nothing is left to do."""
        while True:
            with self._change:
                if self._stopped:
                    return
                for key in self._next():
                    thread = threading.Thread(target=self._slide, args=(key,), name=key, daemon=True)
                    self._running[key] = thread
                    thread.start()
                is_idle = not self._running
                if not is_idle or not self._changed_tables:
                    self._change.wait(1.0)
                    continue
            self._sum_up()

    def _next(self) -> list[str]:
        """Slides that get a thread: the most urgent ones; urgent ones do not wait for the places of others."""
        if self.clock() < self._paused_until:
            return []
        running = [self._urgency(self._jobs[key]) for key in self._running if key in self._jobs]
        most = self._at_once if self._at_once == 1 else 2 * self._at_once
        chosen: list[str] = []
        waiting = [job for key, job in self._jobs.items() if key not in self._running]
        for job in sorted(waiting, key=self._urgency):
            urgency = self._urgency(job)
            ahead = sum(other <= urgency for other in running) if job.deadline is not None else len(running)
            if ahead < self._at_once and len(running) < most:
                chosen.append(job.name)
                running.append(urgency)
        return chosen

    def _urgency(self, job: Job) -> tuple[float, float]:
        if job.deadline is None or self._governor.policy == "fifo":
            return (math.inf, job.arrived)
        return (job.deadline, job.arrived)

    def _slide(self, key: str) -> None:
        """Work on one slide from its first byte to its last file."""
        is_over = True
        try:
            record = self.store.change(key, OPEN, state="running")
            if record.state != "running":  # cancelled before it began
                return
            is_over = self._ended(record)
        except CancelledError:  # by its caller, or the service stops
            is_over = key in self._cancelled
            with suppress(WsiError):
                self.store.change(key, OPEN, state="waiting")
        except StoreError as error:  # the disk fails: all slides would fail alike
            log.error("%s; going on in %.0f s", error, PAUSE_S)
            is_over = False
            with suppress(WsiError):
                self.store.change(key, OPEN, state="waiting")
            self._paused_until = self.clock() + PAUSE_S
        except Exception as error:  # a defect of ours must not leave a job open for ever
            log.exception("%s", key)
            self._fail(key, f"{type(error).__name__}: {error} (a defect)")
        finally:
            with self._change:
                self._running.pop(key, None)
                if is_over and not self._stopped:
                    self._jobs.pop(key, None)
                self._progress.pop(key, None)
                self._changed_tables = True
                self._change.notify_all()

    def _ended(self, record: JobRecord) -> bool:
        """Work on a slide, and note what became of it."""
        try:
            outcome = self._attempted(record)
        except StoreError:
            raise
        except WsiError as error:  # a model that is broken
            self._fail(record.id, str(error))
            return True
        if isinstance(outcome, Failure):
            self._fail(record.id, outcome.reason)
            return True
        note = str(getattr(outcome, "note", ""))
        self._tell(self.store.change(record.id, OPEN, state="done", ended=self.clock(), reason=note))
        return True

    def _fail(self, key: str, reason: str) -> None:
        with suppress(WsiError):
            self._tell(self.store.change(key, OPEN, state="failed", ended=self.clock(), reason=reason))

    def _attempted(self, record: JobRecord) -> Result | Failure:
        row = SlideRow(SlideSource(record.path, record.mpp))
        served = Served(self._governor, self._jobs[record.id])
        claims = Claims(self._work.job.out)

        def tick(done: int, total: int, what: str) -> None:
            if record.id in self._cancelled or self._stopped:
                raise CancelledError("cancelled")
            if what != "bytes":
                self._progress[record.id] = (done, total)

        while True:
            began = self.clock()
            outcome = attempt(row, record.name, self._work.job, claims, tick, executor=served)
            if outcome is not None:
                break
            if record.id in self._cancelled or self._stopped:
                raise CancelledError("cancelled")
            time.sleep(CLAIMED_S)  # another command works on it
        if served.seconds and not isinstance(outcome, Failure):
            self._learn(self.clock() - began - served.seconds)
        return outcome

    def _learn(self, slide_s: float) -> None:
        with self._lock:
            mean = (1 - SMOOTH) * self._pace.slide_s + SMOOTH * max(0.0, slide_s)
            self._pace = Pace(self._pace.cell_s, mean, chunk_s=self._pace.chunk_s)

    def _sum_up(self) -> None:
        """Write the tables, with the slides whose newest job failed."""
        with self._lock:
            self._changed_tables = False
        try:
            newest = {record.name: record for record in self.store.all()}
            self._work.sum_up(
                [Failure(r.name, r.path, r.reason) for r in newest.values() if r.state == "failed"]
            )
        except WsiError as error:
            log.error("%s", error)
        except Exception:  # the slides are written all the same
            log.exception("the tables cannot be written")


def _job_of(record: JobRecord) -> Job:
    return Job(record.id, record.submitted, record.cells, record.deadline, record.promised)


def _file_state(row: SlideRow) -> str:
    try:
        return repr(row.source.state())
    except (SlideError, ValueError) as error:  # a path may hold what no path can
        raise RefusedError(str(error), 422) from error
