"""One stream of an engine for the chunks of many slides, in the order of the scheduler.

A slide is worked on by its own thread, with the same steps as wsi score; only its chunks come here. Chunks are read
ahead by two threads, small ones are joined so that batches are full, and a chunk that was begun is never thrown away.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np

from models.engines import Engine
from models.engines.contract import COMPILE_FROM
from pipelines.runs.task import ChunkTask, Task
from pipelines.service.schedule import Job, Policy, Ready
from wsi.arrays import Scores
from wsi.errors import ModelError
from wsi.results.store import HeatmapStore
from wsi.slides.blocks import PatchBlock, ReadBlock, read_block
from wsi.slides.slide import Slide

AHEAD = 2  # chunks that are read while others are scored
JOIN_BELOW = 64  # patches: blocks of fewer are joined, as their last batch would be half empty
IDLE_S = 0.2  # between two looks for work or for the end


class CancelledError(BaseException):
    """A slide that is not wanted any more; what was scored stays on the disk. No handler takes it for a fault."""


@dataclass(eq=False)
class Part:
    """A task of one chunk, and who waits for it."""

    task: Task
    served: Served
    cells: int


@dataclass(eq=False)
class Served:
    """The executor of one slide: its tasks go to the governor, and come back when they are done.

    Attributes:
        governor: runs them.
        job: the slide, as the scheduler sees it.
        done: tasks that are done, or why one failed.
        seconds: spent on tasks so far, with waiting for those of other slides.
    """

    governor: Governor
    job: Job
    chunks_per_task: int = 1
    done: queue.SimpleQueue[Task | BaseException] = field(default_factory=queue.SimpleQueue)
    seconds: float = 0.0
    store: HeatmapStore | None = None
    slide: Slide | None = None

    def map(self, tasks: Iterable[Task], tick: Callable[[int, int], None]) -> Iterator[Task]:
        """Run tasks; give each when it is done, see `Executor.map`.

        Raises:
            CancelledError: the slide is not wanted any more.
        """
        listed = list(tasks)
        total = sum(task.size for task in listed)
        chunks = [task for task in listed if isinstance(task, ChunkTask)]
        written: set[tuple[int, int]] = set()
        began = time.monotonic()
        try:
            if chunks:
                self.store = HeatmapStore.open(chunks[0].heatmap)
                written = self.store.chunks_done()
                self.slide = chunks[0].source.open()
            waiting = [t for t in listed if not (isinstance(t, ChunkTask) and t.blocks[0].chunk in written)]
            done = total - sum(task.size for task in waiting)
            tick(done, total)
            yield from (task for task in listed if task not in waiting)
            self.governor.add(self, waiting)
            for _ in waiting:
                result = self.done.get()
                if isinstance(result, BaseException):
                    raise result
                done += result.size
                tick(done, total)
                yield result
        finally:
            self.governor.forget(self)
            self.seconds += time.monotonic() - began
            if self.slide is not None:
                self.slide.close()


class Governor:
    """Runs the chunks of all slides by one thread."""

    def __init__(
        self,
        engine: Engine,
        policy: Policy = "edf",
        *,
        fuse: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep the engine; nothing runs before `start`.

        Args:
            engine: scores patches.
            policy: whose chunk is next.
            fuse: whether small blocks are joined, and slides follow each other without a pause.
            clock: seconds.
        """
        self.engine, self.policy, self._fuse, self._clock = engine, policy, fuse, clock
        self.cells, self.busy_s = 0, 0.0
        self._since = 0.0  # second up to which the time at work is counted
        self._ready = Ready(policy)
        self._parts: dict[Job, deque[Part]] = {}
        self._given: dict[Served, int] = {}  # parts that are under way
        self._change = threading.Condition()
        self._stopped = False
        self._readers = ThreadPoolExecutor(AHEAD, thread_name_prefix="read")
        self._thread = threading.Thread(target=self._run, name="governor", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End after the chunks that are under way; slides that wait are told that they are not wanted."""
        with self._change:
            self._stopped = True
            for job in list(self._parts):
                self._drop(
                    job, CancelledError("the service was stopped; it goes on when it is started again")
                )
            self._change.notify_all()
        self._thread.join()
        self._readers.shutdown()

    def add(self, served: Served, tasks: list[Task]) -> None:
        """Take a slide's tasks."""
        with self._change:
            if self._stopped:
                raise CancelledError("the service was stopped; it goes on when it is started again")
            parts = deque(Part(task, served, task.size) for task in tasks)
            served.job.cells = sum(part.cells for part in parts)
            if parts:
                self._parts[served.job] = parts
                self._ready.add(served.job)
            self._change.notify_all()

    def cancel(self, job: Job) -> None:
        """Let a slide's waiting chunks go."""
        with self._change:
            self._drop(job, CancelledError("cancelled"))

    def hasten(self, job: Job, deadline: float) -> None:
        """Give a slide another deadline."""
        with self._change:
            waits = job in self._parts
            self._ready.remove(job)
            job.deadline = deadline
            if waits:
                self._ready.add(job)

    def forget(self, served: Served) -> None:
        """Wait until nothing of a slide is under way; its waiting chunks go."""
        with self._change:
            self._ready.remove(served.job)
            self._parts.pop(served.job, None)
            while self._given.get(served, 0):
                self._change.wait(IDLE_S)
            self._given.pop(served, None)

    @property
    def cell_s(self) -> float | None:
        """Seconds of a cell so far; None before the first."""
        return self.busy_s / self.cells if self.cells else None

    def _drop(self, job: Job, why: CancelledError) -> None:
        parts = self._parts.pop(job, None)
        self._ready.remove(job)
        if parts:
            parts[0].served.done.put(why)

    def _take(self, like: Part | None = None) -> Part | None:
        """The next part, if it can go into the stream of another one."""
        with self._change:
            job = self._ready.next()
            if job is None or (like is not None and not self._together(like, self._parts[job][0])):
                return None
            parts = self._parts[job]
            part = parts.popleft()
            if not parts:
                del self._parts[job]
                self._ready.remove(job)
            job.cells -= part.cells
            self._given[part.served] = self._given.get(part.served, 0) + 1
            return part

    def _together(self, first: Part, second: Part) -> bool:
        """Whether both go into one stream: a GPU computes large slides by compiled code."""
        one, other = first.task, second.task
        if not (isinstance(one, ChunkTask) and isinstance(other, ChunkTask)) or one.engine != other.engine:
            return False
        if not self._fuse and first.served is not second.served:
            return False
        return (one.cells >= COMPILE_FROM) == (other.cells >= COMPILE_FROM)

    def _end(self, part: Part, outcome: Task | BaseException) -> None:
        with self._change:
            self._given[part.served] -= 1
            self._change.notify_all()
        part.served.done.put(outcome)

    def _count(self, cells: int) -> None:
        """Count cells, and the time at work since the last count."""
        now = self._clock()
        self.busy_s, self.cells, self._since = self.busy_s + now - self._since, self.cells + cells, now

    def _run(self) -> None:
        while True:
            with self._change:
                while not len(self._ready) and not self._stopped:
                    self._change.wait(IDLE_S)
                if self._stopped:
                    return
            part = self._take()
            if part is not None:
                self._since = self._clock()
                self._stream(part)
                self._count(0)

    def _stream(self, part: Part) -> None:
        """Run a part, and all that follow it without a pause."""
        if not isinstance(part.task, ChunkTask) or part.task.engine != self.engine.spec:
            try:
                part.task.run(lambda done, total: None)
                self._count(part.cells)
                self._end(part, part.task)
            except Exception as error:
                self._end(part, error)
            return
        stream = _Stream(self, part, self._readers)
        try:
            self.engine.expect(part.task.cells)
            for scores in self.engine.score(stream.blocks()):
                stream.take(scores)
        except Exception as error:  # of the engine: nothing of this stream is scored
            stream.fail(error)


class _Stream:
    """What goes through the engine without a pause."""

    def __init__(self, governor: Governor, first: Part, readers: ThreadPoolExecutor) -> None:
        self._governor, self._first, self._pool = governor, first, readers
        self._reading: deque[tuple[Part, Future[ReadBlock]]] = deque()
        self._scoring: deque[list[tuple[Part, ReadBlock]]] = deque()
        self._read(first)

    def blocks(self) -> Iterator[PatchBlock]:
        """Blocks for the engine, until no chunk waits."""
        while True:
            together = self._next_together()
            if not together:
                return
            blocks = [read.patches for _, read in together]
            self._scoring.append([(part, _without_pixels(read)) for part, read in together])
            yield blocks[0] if len(blocks) == 1 else _joined(blocks)

    def _next_together(self) -> list[tuple[Part, ReadBlock]]:
        """The next chunk; small ones with those that follow."""
        together: list[tuple[Part, ReadBlock]] = []
        while sum(len(read.patches) for _, read in together) < JOIN_BELOW:
            while len(self._reading) < AHEAD and (part := self._governor._take(self._first)) is not None:
                self._read(part)
            if not self._reading:
                return together
            part, future = self._reading.popleft()
            try:
                together.append((part, future.result()))
            except Exception as error:  # of the slide: the others are not touched
                self._governor._end(part, error)
                continue
            if not self._governor._fuse:
                return together
        return together

    def _read(self, part: Part) -> None:
        task, slide = part.task, part.served.slide
        assert isinstance(task, ChunkTask)
        assert slide is not None
        self._reading.append((part, self._pool.submit(read_block, slide, task.blocks[0], task.recolour)))

    def take(self, scores: Scores) -> None:
        """Write the scores of a block to the slides that they belong to."""
        start = 0
        for part, read in self._scoring.popleft():
            count = int(read.readable.sum())
            try:
                _write(part, read, scores[start : start + count])
                self._governor._count(part.cells)
                self._governor._end(part, part.task)
            except Exception as error:  # a full disk, a score that is no number: its slide fails
                self._governor._end(part, error)
            start += count

    def fail(self, error: Exception) -> None:
        """Tell all that are under way why they are not done."""
        for part, _ in (pair for together in self._scoring for pair in together):
            self._governor._end(part, error)
        for part, future in self._reading:
            if not future.cancel():
                wait([future])  # its slide must not be closed while it is read
            self._governor._end(part, error)
        self._scoring.clear()
        self._reading.clear()


def _write(part: Part, read: ReadBlock, scores: Scores) -> None:
    store = part.served.store
    assert store is not None
    if np.isnan(scores).any():
        raise ModelError("the model gave scores that are not numbers; try --precision fp32")
    chunk_scores = np.full((len(read.block.cells), scores.shape[1]), np.nan, np.float32)
    chunk_scores[read.readable] = scores
    store.write_chunk(read.block.chunk, read.block.cells, chunk_scores)


def _without_pixels(read: ReadBlock) -> ReadBlock:
    """What must be known until the scores come; pixels are large."""
    empty = PatchBlock(np.empty((0, 0, 3), np.uint8), read.patches.offsets_px, read.patches.size_px)
    return ReadBlock(read.block, empty, read.readable, read.reason)


def _joined(blocks: list[PatchBlock]) -> PatchBlock:
    """One block of the patches of several, below each other."""
    side = blocks[0].size_px
    patches = np.concatenate([block.patches(0, len(block)) for block in blocks])
    offsets = np.stack([np.zeros(len(patches), np.int64), np.arange(len(patches)) * side], axis=1)
    return PatchBlock(patches.reshape(-1, side, 3), offsets, side)
