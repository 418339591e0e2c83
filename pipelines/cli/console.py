"""Output for people: lines, progress with the time left, errors in one sentence."""

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
PLAIN_EVERY_S = 10.0  # seconds between two lines of progress where there is no terminal


class _Notes(logging.Handler):
    """A log handler that prints each note as one plain line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the note."""
        err.print(record.getMessage(), markup=False)


class Tick(Protocol):
    """A function that moves the progress bar."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show how much is done, with a note."""
        ...


def set_up_logging() -> None:
    """Print the log notes of our packages to standard error, as plain lines."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Notes()], force=True)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    logging.getLogger("tifffile").setLevel(
        logging.CRITICAL
    )  # our own error messages say what is wrong with a file
    out.quiet = False


def be_quiet() -> None:
    """Print only warnings and errors: no results, no progress, no notes."""
    out.quiet = True
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.WARNING)


def be_verbose() -> None:
    """Print the notes for developers, too."""
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.DEBUG)


STOPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # from Ctrl-C; from SLURM, systemd and docker stop; from a closed terminal


class Stopped(KeyboardInterrupt):
    """The error that a signal raises to stop the program; it is handled like Ctrl-C."""

    signum: int = signal.SIGINT


def stop_on_signals() -> None:
    """Let SIGTERM and SIGHUP end a run as Ctrl-C does: finished work is kept, and the summary is written."""

    def stop(signum: int, _frame: object) -> None:
        for number in STOPS:  # a second signal must not cut off the summary that follows
            signal.signal(number, signal.SIG_IGN)
        Stopped.signum = signum
        raise Stopped

    for number in STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, stop)


@contextmanager
def interruptible(notice: str) -> Iterator[Callable[[], bool]]:
    """Only note the first signal, so that the work can stop after a whole step; the second one stops it at once.

    Args:
        notice: text that is printed at the first signal.

    Yields:
        A function that returns whether there was a signal.
    """
    signals: list[int] = []

    def note(signum: int, _frame: object) -> None:
        signals.append(signum)
        Stopped.signum = signum
        for number, handler in handlers.items():
            signal.signal(number, handler)
        err.print(f"\n{notice}", markup=False)

    stop_signals = [
        number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN
    ]  # nohup ignores SIGHUP
    handlers = {number: signal.signal(number, note) for number in stop_signals}
    try:
        yield lambda: bool(signals)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def progress(title: str, *, transient: bool = False) -> Iterator[Tick]:
    """Show a bar with the time left on a terminal; elsewhere print a line every ten seconds."""
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
    """Lines of progress for logs; work of less than ten seconds gets none."""

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
        time_left = f", {duration((total - done) / speed)} left" if speed > 0 else ""
        err.print(f"{self.title}: {done} of {total}{time_left} {note}".rstrip(), markup=False)


class CohortProgress:
    """The progress of a run over many slides, and the time that is left for all of them.

    A slide counts by the size of its file. Slides that an earlier run finished do not count for the speed.
    """

    def __init__(self, sizes: Sequence[float], show: Callable[[str, float, float | None], None]) -> None:
        self._sizes = [max(size, 1.0) for size in sizes]
        self._show = show
        self._index, self._name = 0, ""
        self._first_share: float | None = None  # share of this slide that was done when this run began it
        self._share_done = 0.0  # share of it that is done now
        self._size_done = 0.0  # size of what this run has done
        self._ended = 0
        self._start = time.monotonic()

    def begin(self, index: int, name: str) -> None:
        """Begin a slide, given its index from 0."""
        self._finish()
        self._index, self._name = index, name
        self._first_share, self._share_done = None, 0.0
        self._say("")

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show how many of ``total`` cells, fields or tiles of this slide are done; or bytes, before the work."""
        if what == "bytes":
            self._say(f"reading its file, {done / 2**20:,.0f} of {total / 2**20:,.0f} MiB")
            return
        self._share_done = done / total if total else 1.0
        self._first_share = (
            self._share_done if self._first_share is None else min(self._first_share, self._share_done)
        )
        self._say(f"{done} of {total} {what}")

    def end(self, index: int) -> None:
        """A slide is done; where nobody began one, several are done at once, and whole slides are counted."""
        if self._name:
            return
        self._ended += 1
        self._size_done += self._sizes[index]
        total = sum(self._sizes)
        left = (time.monotonic() - self._start) * (total - self._size_done) / self._size_done
        self._show(f"{self._ended} of {len(self._sizes)} slides", self._size_done / total, left)

    def _finish(self) -> None:
        if self._first_share is not None:
            self._size_done += self._sizes[self._index] * (1.0 - self._first_share)
        self._first_share = None

    def _left(self) -> float | None:
        """Seconds until all slides are done; None where that is not known yet."""
        size = self._sizes[self._index]
        size_done = self._size_done + (
            0.0 if self._first_share is None else size * (self._share_done - self._first_share)
        )
        if size_done <= 0:
            return None
        size_left = size * (1 - self._share_done) + sum(self._sizes[self._index + 1 :])
        return (time.monotonic() - self._start) * size_left / size_done

    def _say(self, note: str) -> None:
        count = len(self._sizes)
        title = self._name if count == 1 else f"slide {self._index + 1} of {count}, {self._name}"
        share = (sum(self._sizes[: self._index]) + self._sizes[self._index] * self._share_done) / sum(
            self._sizes
        )
        self._show(f"{title}: {note}" if note else title, share, self._left())


@contextmanager
def cohort_progress(sizes: Sequence[float]) -> Iterator[CohortProgress]:
    """Show one bar for all slides, with the time left for them; without a terminal print a line every ten seconds.

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
    total = max(0, round(seconds))
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"
