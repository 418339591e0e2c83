"""Where a run's time goes: seconds by step, of the thread that leads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar


class Stopwatch:
    """Counts each second for one step: a step inside another one stops the outer one's clock."""

    def __init__(self, rest: str) -> None:
        """Start; time outside every step counts for ``rest``."""
        self._steps = [rest]
        self._seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    @contextmanager
    def during(self, step: str) -> Iterator[None]:
        """Count the time of the ``with`` block for a step."""
        self._charge()
        self._steps.append(step)
        try:
            yield
        finally:
            self._charge()
            self._steps.pop()

    def seconds(self) -> dict[str, float]:
        """Seconds of each step so far, largest first."""
        self._charge()
        return dict(sorted(self._seconds.items(), key=lambda item: -item[1]))

    def _charge(self) -> None:
        now = time.perf_counter()
        step = self._steps[-1]
        self._seconds[step] = self._seconds.get(step, 0.0) + now - self._since
        self._since = now


_RUNNING: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


@contextmanager
def running(rest: str) -> Iterator[Stopwatch]:
    """A stopwatch that `during` counts for, until the ``with`` block ends."""
    watch = Stopwatch(rest)
    token = _RUNNING.set(watch)
    try:
        yield watch
    finally:
        _RUNNING.reset(token)


def during(step: str) -> AbstractContextManager[None]:
    """Count the time of a ``with`` block for a step, if a stopwatch is `running` in this thread."""
    watch = _RUNNING.get()
    return nullcontext() if watch is None else watch.during(step)


def seconds() -> dict[str, float]:
    """Seconds of each step so far, if a stopwatch is `running` in this thread; else nothing."""
    watch = _RUNNING.get()
    return {} if watch is None else watch.seconds()


def in_words(taken: dict[str, float]) -> str:
    """``20.5 s: network 84 %, waiting for pixels 12 %``; steps under half a percent are left out."""
    total = sum(taken.values())
    parts = [f"{step} {100 * s / total:.0f} %" for step, s in taken.items() if s >= 0.005 * total]
    return f"{total:.1f} s: {', '.join(parts)}"
