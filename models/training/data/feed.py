"""Batches of training examples, read ahead by threads; one that cannot be read is replaced, repeatably."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from models.training.data.places import Place, Sampler
from models.training.team import Team
from wsi.arrays import RgbImage
from wsi.errors import SlideError


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Examples of one step.

    Attributes:
        patches: RGB uint8 (n, size, size, 3); this process's share of the batch.
        labels: (n,) of the same examples.
        after: the sampler's state from which the next batch is drawn.
    """

    patches: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    after: Any


@dataclass(frozen=True, eq=False, slots=True)
class _Waiting:
    before: Any
    after: Any
    places: list[Place]
    reads: dict[int, Future[RgbImage]]


class Feed:
    """Endless batches in the order of the draws; at most ``ahead`` wait in memory.

    Where a place cannot be read, it is excluded, the sampler goes back to before its batch, and draws
    again: what follows depends on the places that cannot be read, not on when that was noticed.
    Every process of a team draws the whole batch and reads its own share.
    """

    def __init__(self, sampler: Sampler, size: int, team: Team, *, threads: int = 1, ahead: int = 3) -> None:
        self.sampler = sampler
        self.size = size
        self.team = team
        self.ahead = ahead
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="patch")
        self._waiting: deque[_Waiting] = deque()

    def next(self) -> Batch:
        """The next batch.

        Raises:
            ConfigError: so much cannot be read that a class has no place left.
        """
        while True:
            while len(self._waiting) < self.ahead:
                self._waiting.append(self._start())
            batch = self._waiting.popleft()
            patches: dict[int, RgbImage] = {}
            failed, why = self.size, ""
            for i, read in batch.reads.items():
                try:
                    patches[i] = read.result()
                except SlideError as error:
                    failed, why = i, str(error)
                    break
            failed = self.team.lowest(failed)
            if failed == self.size:
                labels = np.array([batch.places[i].label for i in patches], np.int64)
                return Batch(np.stack(list(patches.values())), labels, batch.after)
            self._discard()
            self.sampler.exclude(batch.places[failed], why or "another process could not read it")
            self.sampler.state = batch.before

    def _start(self) -> _Waiting:
        before = self.sampler.state
        places = [self.sampler.draw() for _ in range(self.size)]
        share = self.team.share(self.size)
        reads = {i: self._pool.submit(self.sampler.read, places[i]) for i in share}
        return _Waiting(before, self.sampler.state, places, reads)

    def _discard(self) -> None:
        for batch in self._waiting:
            for read in batch.reads.values():
                read.cancel()
        self._waiting.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()
        self._pool.shutdown()
