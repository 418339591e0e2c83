"""What people see: lines, progress with time left, errors in one sentence."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
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
    for package in ("wsi", "models", "pipelines"):
        logging.getLogger(package).setLevel(logging.INFO)


@contextmanager
def interruptible(said: str) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C only be noted, so that the work can stop at a whole step; the second one stops at once.

    Yields:
        Whether there was one.
    """
    noted: list[bool] = []

    def note(*_: object) -> None:
        noted.append(True)
        signal.signal(signal.SIGINT, before)
        err.print(f"\n{said}", markup=False)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def progress(title: str, *, transient: bool = False) -> Iterator[Tick]:
    """A bar with time left on a terminal; elsewhere a line every ten seconds."""
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


def duration(seconds: float) -> str:
    """Seconds as ``12 s``, ``3 min 20 s`` or ``1 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
