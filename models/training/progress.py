"""Where a training run stands, whom it tells, and how its time is counted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.training.state import TrainingState
from wsi.files import csv_text


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands; one row of ``metrics.csv`` after each validation.

    Attributes:
        loss: running mean over some fifty batches.
        examples_per_s: since this process began.
        waiting: share of the time in which the network waited for pixels, 0 to 1.
        seconds: of training so far, those before a resume counted.
        quality: the figure that networks are compared by, such as the AUC of the validation patches; None between
            validations.
    """

    examples: int
    total: int
    loss: float
    learning_rate: float
    examples_per_s: float
    waiting: float
    seconds: float
    quality: float | None = None


def _silent(*_: Any) -> None:
    """Nobody listens."""


def _never() -> bool:
    """Nobody stops it."""
    return False


@dataclass(frozen=True, slots=True)
class Listeners:
    """Functions that a run tells of its progress; the leading process alone calls them.

    Attributes:
        report: after every batch, and with the quality after every validation.
        metrics: with all rows of ``metrics.csv`` after every validation.
        show: once, with what the network sees first: RGB uint8 (n, side, side, 3) and labels (n,).
        say: one line for people, now and then.
        stop: asked after every batch; True writes a checkpoint and raises KeyboardInterrupt.
    """

    report: Callable[[Progress], None] = _silent
    metrics: Callable[[list[dict[str, Any]]], None] = _silent
    show: Callable[[npt.NDArray[np.uint8], npt.NDArray[np.int64]], None] = _silent
    say: Callable[[str], None] = _silent
    stop: Callable[[], bool] = _never


NOBODY = Listeners()


class Clock:
    """Time of this process: all of it, and what was spent waiting for pixels."""

    def __init__(self, seen: int, seconds: float) -> None:
        self.seen = seen
        self.before = seconds
        self.start = time.monotonic()
        self.waited = 0.0
        self._from = 0.0

    def waiting(self) -> Clock:
        """Count the time inside a ``with`` as waiting."""
        return self

    def __enter__(self) -> None:
        self._from = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.waited += time.monotonic() - self._from

    @property
    def elapsed(self) -> float:
        """Seconds of training, those before a resume counted."""
        return self.before + time.monotonic() - self.start

    def progress(self, state: TrainingState, total: int, rate: float) -> Progress:
        """Where the run stands now."""
        elapsed = max(self.elapsed - self.before, 1e-9)
        return Progress(
            examples=state.seen,
            total=total,
            loss=math.nan if state.loss is None else state.loss,
            learning_rate=rate,
            examples_per_s=(state.seen - self.seen) / elapsed,
            waiting=self.waited / elapsed,
            seconds=state.seconds,
        )


def crossed(seen: int, batch: int, every: int) -> bool:
    """Whether the last batch passed a multiple of ``every`` examples."""
    return seen // every > (seen - batch) // every


def progress_row(now: Progress, measure: str, quality: float | None) -> dict[str, Any]:
    """One row of ``metrics.csv``, whose last column is named after the figure that networks are compared by."""
    names = [name for name in Progress.__dataclass_fields__ if name != "quality"]
    return {name: getattr(now, name) for name in names} | {measure: quality}


def metrics_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The text of ``metrics.csv``; there is one row at least."""
    values = [[f"{v:.6g}" if isinstance(v, float) else v for v in row.values()] for row in rows]
    return csv_text(list(rows[0]), [["" if v is None else v for v in row] for row in values])
