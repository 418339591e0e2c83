"""The unit of work that any process on any machine can do, and who does it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, TypeVar

from models.engines import EngineSpec
from models.engines.detect_slide import DetectorSpec, TilePlan, detected
from models.engines.map_slide import MapperSpec, MapPlan, mapped
from pipelines.runs.scoring import score_chunks
from wsi.errors import ForeignStoreError
from wsi.results.box_store import BoxStore
from wsi.results.folder import Folder
from wsi.results.store import HeatmapStore
from wsi.slides.blocks import Block
from wsi.slides.source import SlideSource
from wsi.slides.stain import StainTransform

Tick = Callable[[int, int], None]
"""Called with (done, total) of what a step counts: cells, tiles."""
Part = TypeVar("Part")
Item = TypeVar("Item")
Made = TypeVar("Made")


class Task(Protocol):
    """Some chunks of one slide. It can be pickled, run anywhere, and run twice: the bytes are the same."""

    @property
    def size(self) -> int:
        """The number of cells or tiles in it, those that are done already, too."""
        ...

    @property
    def spec(self) -> EngineSpec | DetectorSpec | MapperSpec:
        """Of the engine that it needs: whoever runs many tasks holds the engine, so that it is made once."""
        ...

    def run(self, tick: Tick) -> None:
        """Do what is not done yet, and write it; ``tick`` is called with (done, `size`).

        Raises:
            WsiError: the slide cannot be read, or the results cannot be written.
        """
        ...


class Executor(Protocol):
    """Who runs tasks: this process, or a cluster."""

    @property
    def chunks_per_task(self) -> int | None:
        """The most chunks that one task should hold; None: all of a slide."""
        ...

    def map(self, tasks: Iterable[Task], tick: Tick) -> Iterator[Task]:
        """Run tasks; give each when it is done, in whatever order.

        Args:
            tasks: each is run at least once.
            tick: called with (done, total) over all tasks.

        Raises:
            WsiError: that of the first task that failed; others may still run, and what they write is good.
        """
        ...


@dataclass(frozen=True, eq=False, slots=True)
class ChunkTask:
    """Chunks of a heatmap.

    Attributes:
        source: the slide.
        blocks: what is read, one for each chunk.
        cells: number of cells of the whole slide, for `Engine.expect`.
        engine: scores the patches.
        heatmap: the folder of a heatmap that was created.
        made_by: its fingerprint.
        recolour: normalises the stain of the pixels.
        threads: number of threads that read.
    """

    source: SlideSource
    blocks: tuple[Block, ...]
    cells: int
    engine: EngineSpec
    heatmap: Folder
    made_by: str
    recolour: StainTransform | None = None
    threads: int = 1

    @property
    def spec(self) -> EngineSpec:
        """Of the engine that scores."""
        return self.engine

    @property
    def size(self) -> int:
        """The number of cells."""
        return sum(len(block.cells) for block in self.blocks)

    def run(self, tick: Tick) -> None:
        """Score the chunks that are not written yet, see `Task.run`."""
        engine, store = self.engine.make(), HeatmapStore.open(self.heatmap)
        _refuse_replaced(store, self.made_by)
        engine.expect(self.cells)
        with self.source.open() as slide:
            score_chunks(
                slide,
                self.blocks,
                engine,
                store,
                recolour=self.recolour,
                threads=self.threads,
                progress=tick,
            )


def _refuse_replaced(store: HeatmapStore, made_by: str) -> None:
    """Do not write into the store of another run.

    Raises:
        ForeignStoreError: another command made it in the meantime.
    """
    if store.attributes.get("fingerprint") != made_by:
        raise ForeignStoreError(
            f"{store.folder} was replaced by another command; run one command at a time with --overwrite"
        )


@dataclass(frozen=True, eq=False, slots=True)
class TileTask:
    """Chunks of a detector's tiles.

    Attributes:
        source: the slide.
        plan: all tiles of the slide.
        chunks: numbers of the chunks of this task.
        detector: finds boxes on a tile.
        boxes: the folder of a store of boxes that was created.
        made_by: its fingerprint.
    """

    source: SlideSource
    plan: TilePlan
    chunks: tuple[int, ...]
    detector: DetectorSpec
    boxes: Folder
    made_by: str

    @property
    def spec(self) -> DetectorSpec:
        """Of the engine that finds boxes."""
        return self.detector

    @property
    def size(self) -> int:
        """The number of tiles."""
        return sum(len(self.plan.tiles_of(number)) for number in self.chunks)

    def run(self, tick: Tick) -> None:
        """Look at the tiles whose chunks are not written yet, see `Task.run`."""
        done = 0
        with self.source.open() as slide:
            chunks = detected(
                slide, self.plan, self.chunks, self.detector.make(), BoxStore(self.boxes, self.made_by)
            )
            for number, _ in chunks:
                done += len(self.plan.tiles_of(number))
                tick(done, self.size)


@dataclass(frozen=True, eq=False, slots=True)
class MapTask:
    """Chunks of a segmenter's map.

    Attributes:
        source: the slide.
        plan: all chunks of the slide.
        chunks: (row, col) of those of this task.
        mapper: maps tiles.
        heatmap: the folder of a map that was created.
    """

    source: SlideSource
    plan: MapPlan
    chunks: tuple[tuple[int, int], ...]
    mapper: MapperSpec
    heatmap: Folder

    @property
    def spec(self) -> MapperSpec:
        """Of the engine that maps."""
        return self.mapper

    @property
    def size(self) -> int:
        """The number of chunks."""
        return len(self.chunks)

    def run(self, tick: Tick) -> None:
        """Map the chunks that are not written yet, see `Task.run`."""
        store = HeatmapStore.open(self.heatmap)
        _refuse_replaced(store, self.plan.spec.fingerprint)
        # the chunks are closed before the slide, also where ``tick`` raises: their thread reads from it
        with (
            self.source.open() as slide,
            closing(mapped(slide, self.plan, self.chunks, self.mapper.make(), store)) as chunks,
        ):
            for done, _ in enumerate(chunks, start=1):
                tick(done, self.size)


class Each(Protocol):
    """Who calls a function for each of many items: this process, or a cluster."""

    def __call__(self, function: Callable[[Item], Made], items: Sequence[Item]) -> Iterator[tuple[int, Made]]:
        """The index of each item and what the function makes of it, in whatever order; what it raises is raised."""
        ...


def each_here(function: Callable[[Item], Made], items: Sequence[Item]) -> Iterator[tuple[int, Made]]:
    """One item after another in this process, see `Each`."""
    return enumerate(map(function, items))


def made_of_each(
    each: Each, function: Callable[[Item], Made], items: Sequence[Item], tick: Tick = lambda done, total: None
) -> list[Made]:
    """What a function makes of each item, in the order of the items; ``tick`` is called after each."""
    made: dict[int, Made] = {}
    tick(0, len(items))
    for index, value in each(function, items):
        made[index] = value
        tick(len(made), len(items))
    return [made[index] for index in range(len(items))]


class Here:
    """Runs tasks in this process, one after another; each uses all cores."""

    chunks_per_task = None

    def map(self, tasks: Iterable[Task], tick: Tick) -> Iterator[Task]:
        """Run tasks in their order, see `Executor.map`."""
        listed = list(tasks)
        total, done = sum(task.size for task in listed), 0
        for task in listed:
            before = done
            task.run(lambda count, _, before=before: tick(before + count, total))  # type: ignore[misc]
            done += task.size
            yield task


HERE = Here()


def in_parts(items: Sequence[Part], most: int | None) -> Iterator[tuple[Part, ...]]:
    """Runs of at most ``most`` items, of about the same length; None: all in one. Nothing gives no run."""
    count = 1 if most is None else math.ceil(len(items) / most)
    for i in range(count if items else 0):
        yield tuple(items[i * len(items) // count : (i + 1) * len(items) // count])
