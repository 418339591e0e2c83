"""What people see: lines, progress with time left, errors in one sentence."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

PACKAGES = ("wsi", "models", "pipelines")
PLAIN_EVERY_S = 10.0  # between two lines of progress where there is no terminal


class _Notes(logging.Handler):
    """A library's note as one plain line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print it."""
        err.print(record.getMessage(), markup=False)


class Tick(Protocol):
    """Moves the bar."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Say how far it is."""
        ...


def set_up_logging() -> None:
    """The libraries' notes go to standard error, plainly."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Notes()], force=True)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    logging.getLogger("tifffile").setLevel(
        logging.CRITICAL
    )  # what it says of a file stands in our own sentence
    out.quiet = False


def be_quiet() -> None:
    """Print warnings and errors only: no results, no progress, no notes."""
    out.quiet = True
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.WARNING)


def be_verbose() -> None:
    """Print what the libraries note for their developers, too."""
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.DEBUG)


STOPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Ctrl-C; what SLURM, systemd and docker stop send; a terminal that is closed


class Stopped(KeyboardInterrupt):
    """A signal asked the program to stop; whatever handles Ctrl-C handles it."""

    signum: int = signal.SIGINT


def stop_on_signals() -> None:
    """Let SIGTERM and SIGHUP end a run as Ctrl-C does: what was done is kept, and the summary is written."""

    def stop(signum: int, _frame: object) -> None:
        for again in STOPS:  # the summary that follows must not be cut by a second one
            signal.signal(again, signal.SIG_IGN)
        Stopped.signum = signum
        raise Stopped

    for known in STOPS:
        if signal.getsignal(known) is not signal.SIG_IGN:  # nohup
            signal.signal(known, stop)


@contextmanager
def interruptible(notice: str) -> Iterator[Callable[[], bool]]:
    """Let the first signal only be noted, so that the work can stop at a whole step; the second one stops at once.

    Args:
        notice: is printed at the first one.

    Yields:
        Whether there was one.
    """
    noted: list[int] = []

    def note(signum: int, _frame: object) -> None:
        noted.append(signum)
        Stopped.signum = signum
        for known, handler in before.items():
            signal.signal(known, handler)
        err.print(f"\n{notice}", markup=False)

    heard = [
        known for known in STOPS if signal.getsignal(known) is not signal.SIG_IGN
    ]  # nohup ignores SIGHUP
    before = {known: signal.signal(known, note) for known in heard}
    try:
        yield lambda: bool(noted)
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)


@contextmanager
def progress(title: str, *, transient: bool = False) -> Iterator[Tick]:
    """A bar with time left on a terminal; elsewhere a line every ten seconds."""
    if out.quiet:
        yield lambda done, total, note="": None
        return
    if not err.is_terminal:
        yield _Plain(title)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, transient=transient) as bar:
        task = bar.add_task(title, total=None, note="")

        def tick(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield tick


class _Plain:
    """Lines of progress for logs; none for what is over sooner."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.start = self.last = time.monotonic()
        self.first: int | None = None

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = done
        if now - self.last < PLAIN_EVERY_S:
            return
        self.last = now
        speed = (done - self.first) / (now - self.start)
        left = f", {duration((total - done) / speed)} left" if speed > 0 else ""
        err.print(f"{self.title}: {done} of {total}{left} {note}".rstrip(), markup=False)


class CohortProgress:
    """How far a run over many slides is, and how long all of it will still take.

    A slide counts by the size of its file. Slides that were done before say nothing of the speed.
    """

    def __init__(self, sizes: Sequence[float], show: Callable[[str, float, float | None], None]) -> None:
        self._sizes = [max(size, 1.0) for size in sizes]
        self._show = show
        self._index, self._name = 0, ""
        self._first: float | None = None  # share of this slide that was done when it began
        self._done = 0.0  # share of it that is done now
        self._worked = 0.0  # size of what this run has done
        self._start = time.monotonic()

    def begin(self, index: int, name: str) -> None:
        """Say which slide is worked on, by its index from 0."""
        self._finish()
        self._index, self._name = index, name
        self._first, self._done = None, 0.0
        self._say("")

    def __call__(self, done: int, total: int, what: str) -> None:
        """Say how far this slide is: so many of ``total`` cells, fields or tiles; or bytes, before the work begins."""
        if what == "bytes":
            self._say(f"reading its file, {done / 2**20:,.0f} of {total / 2**20:,.0f} MiB")
            return
        self._done = done / total if total else 1.0
        self._first = self._done if self._first is None else min(self._first, self._done)
        self._say(f"{done} of {total} {what}")

    def _finish(self) -> None:
        if self._first is not None:
            self._worked += self._sizes[self._index] * (1.0 - self._first)
        self._first = None

    def _left(self) -> float | None:
        """Seconds until all slides are done; None where nothing tells yet."""
        here = self._sizes[self._index]
        worked = self._worked + (0.0 if self._first is None else here * (self._done - self._first))
        if worked <= 0:
            return None
        ahead = here * (1 - self._done) + sum(self._sizes[self._index + 1 :])
        return (time.monotonic() - self._start) * ahead / worked

    def _say(self, note: str) -> None:
        count = len(self._sizes)
        title = self._name if count == 1 else f"slide {self._index + 1} of {count}, {self._name}"
        share = (sum(self._sizes[: self._index]) + self._sizes[self._index] * self._done) / sum(self._sizes)
        self._show(f"{title}: {note}" if note else title, share, self._left())


@contextmanager
def cohort_progress(sizes: Sequence[float]) -> Iterator[CohortProgress]:
    """One bar for all slides, with the time left for all of them; without a terminal a line every ten seconds.

    Args:
        sizes: bytes of each slide's file, or 1 where it is not known.
    """
    if out.quiet:
        yield CohortProgress(sizes, lambda text, share, left: None)
        return
    if not err.is_terminal:
        last = time.monotonic()

        def line(text: str, share: float, left: float | None) -> None:
            nonlocal last
            if time.monotonic() - last >= PLAIN_EVERY_S:
                last = time.monotonic()
                err.print(f"{text}; {_left_text(left)}", markup=False)

        yield CohortProgress(sizes, line)
        return
    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.description}"))
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=1.0)

        def move(text: str, share: float, left: float | None) -> None:
            bar.update(task, completed=share, description=f"{escape(text)}; {_left_text(left)}")

        yield CohortProgress(sizes, move)


def _left_text(left: float | None) -> str:
    return "time left not known yet" if left is None else f"{duration(left)} left"


def duration(seconds: float) -> str:
    """Seconds as ``12 s``, ``3 min 20 s`` or ``1 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
