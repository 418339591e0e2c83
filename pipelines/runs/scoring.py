"""Scoring of a slide chunk by chunk, for both applications: pixels go to an engine, its scores to a store."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import numpy as np
import numpy.typing as npt

from models.engines import Engine
from wsi.errors import ModelError
from wsi.results.store import HeatmapStore
from wsi.slides.blocks import Block, PatchBlock, read_ahead
from wsi.slides.slide import Slide
from wsi.slides.stain import StainTransform
from wsi.stopwatch import during


def score_chunks(
    slide: Slide,
    blocks: Sequence[Block],
    engine: Engine,
    store: HeatmapStore,
    *,
    recolour: StainTransform | None = None,
    threads: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Score every block whose chunk is not in the store yet; cells that cannot be decoded stay NaN.

    Args:
        slide: the slide to read.
        blocks: all blocks of the slide.
        engine: scores the patches.
        store: takes the scores, each chunk whole.
        recolour: normalises the stain of the pixels.
        threads: number of threads that read.
        progress: called with (cells done, cells).

    Raises:
        ModelError: a score is not a number.
    """
    total = sum(len(block.cells) for block in blocks)
    written = store.chunks_done()
    open_blocks = [block for block in blocks if block.chunk not in written]
    done = total - sum(len(block.cells) for block in open_blocks)
    progress(done, total)
    count = _Count(done, total, progress)
    unscored: deque[tuple[Block, npt.NDArray[np.bool_]]] = deque()  # without the pixels, which are large

    def feed() -> Iterator[PatchBlock]:
        while True:
            with during("waiting for pixels"):
                read = next(reads, None)
            if read is None:
                return
            unscored.append((read.block, read.readable))
            yield read.patches

    # always closed here: a thread must not read from a slide that is closed already
    with (
        during("network"),
        closing(read_ahead(slide, open_blocks, recolour=recolour, threads=threads, ahead=threads)) as reads,
    ):
        for scores in engine.score(feed(), scored=count.add):
            block, readable = unscored.popleft()
            if np.isnan(scores).any():
                raise ModelError("the model gave scores that are not numbers; try --precision fp32")
            chunk_scores = np.full((len(block.cells), scores.shape[1]), np.nan, np.float32)
            chunk_scores[readable] = scores
            with during("writing scores"):
                store.write_chunk(block.chunk, block.cells, chunk_scores)
            count.finish(len(block.cells), int(readable.sum()))


class _Count:
    """The number of cells that are done: those of written chunks, and those that an engine has scored since."""

    def __init__(self, written: int, total: int, progress: Callable[[int, int], None]) -> None:
        self._written, self._total, self._progress = written, total, progress
        self._ahead = 0
        self._lock = threading.Lock()

    def add(self, patches: int) -> None:
        """Add patches that a thread of the engine has scored."""
        with self._lock:
            self._ahead += patches
            self._progress(min(self._written + self._ahead, self._total), self._total)

    def finish(self, cells: int, scored: int) -> None:
        """Count a written chunk of ``cells`` cells; `add` has already counted the ``scored`` readable ones."""
        with self._lock:
            self._written += cells
            self._ahead = max(0, self._ahead - scored)
            self._progress(min(self._written + self._ahead, self._total), self._total)
