"""Tiles for a detector: which slides they are of, where they are drawn, their batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from models.training.data.detection import (
    TRAP,
    Example,
    MarkedSlide,
    draw_corner,
    read_example,
    read_marked,
    turned,
)
from models.training.data.splits import digest
from models.training.recipe import DetectorTrainConfig
from models.training.team import Team
from wsi.errors import ConfigError, SlideError
from wsi.slides.manifest import SlideRow
from wsi.slides.slide import Slide

TRIES = 100  # places drawn in turn that cannot be read before the run gives up


class GeneratorState:
    """What samplers of tiles share: one generator, and the places that could not be read."""

    rng: np.random.Generator
    unreadable: list[list[int]]

    @property
    def state(self) -> Any:
        """The generator's."""
        return self.rng.bit_generator.state

    @state.setter
    def state(self, value: Any) -> None:
        self.rng.bit_generator.state = value

    @property
    def excluded(self) -> list[list[int]]:
        """Places (slide, x, y) that could not be read; they cost themselves."""
        return self.unreadable

    def exclude_all(self, places: Iterable[Sequence[int]]) -> None:
        """Take over what an earlier run lost."""
        self.unreadable = [list(place) for place in places]


@dataclass(eq=False)
class TileSampler(GeneratorState):
    """Draws tiles of marked slides from one generator: a slide, a class in turn, an object, a place around it."""

    slides: Sequence[Slide]
    marked: Sequence[MarkedSlide]
    cfg: DetectorTrainConfig
    rng: np.random.Generator
    unreadable: list[list[int]] = field(default_factory=list)

    @property
    def identity(self) -> str:
        """Hash of the slides' sizes and of all that is marked on them: what decides which tiles are drawn."""
        parts = []
        for slide, marked in zip(self.slides, self.marked, strict=True):
            arrays = (marked.objects.boxes, marked.objects.labels, marked.traps, marked.fields)
            parts += [repr((slide.size, slide.mpp)).encode(), *(array.tobytes() for array in arrays)]
        return digest(*parts)

    @property
    def kinds(self) -> tuple[int, ...]:
        """What tiles are drawn around, in turn."""
        traps = (TRAP,) if any(len(m.traps) for m in self.marked) else ()
        return (*range(len(self.cfg.detector.classes)), *traps)

    def draw(self, number: int) -> Example:
        """A tile, turned; its number says which of the kinds it is drawn around.

        Raises:
            ConfigError: no place can be read.
        """
        label = self.kinds[number % len(self.kinds)]
        for _ in range(TRIES):
            i = int(self.rng.integers(len(self.slides)))
            slide, marked = self.slides[i], self.marked[i]
            scale = 1.0 if self.cfg.scale == 1 else self.cfg.scale ** self.rng.uniform(-1, 1)
            side_l0 = self.cfg.detector.tile_px * self.cfg.detector.spacing_um * scale / slide.mpp
            corner = draw_corner(marked, side_l0, self.rng, label)
            orientation = int(self.rng.integers(self.cfg.augment.orientations))
            try:
                return turned(self._read(i, corner, scale), orientation)
            except SlideError:
                self.unreadable.append([i, *corner])
        raise ConfigError(
            f"none of {TRIES} places in turn could be read, the last on {slide.path}; check the slides"
        )

    def _read(self, i: int, corner: tuple[int, int], scale: float) -> Example:
        d = self.cfg.detector
        enlarge_um = [um * scale for um in self.cfg.enlarge_um]  # as many pixels of the tile
        return read_example(
            self.slides[i], self.marked[i], corner, d.tile_px, d.spacing_um * scale, enlarge_um
        )


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Draws(Protocol[T_co]):
    """What draws one tile after another: `TileSampler`, or `models.training.data.areas.AreaSampler`."""

    @property
    def state(self) -> Any:
        """The generator's."""
        ...

    def draw(self, number: int) -> T_co:
        """A tile of the number of its draw."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class TileBatch(Generic[T]):
    """This process's tiles of one step, and the state of the sampler after it."""

    tiles: tuple[T, ...]
    after: Any


class TileFeed(Generic[T]):
    """Batches in the order of the draws. Every process of a team reads the whole batch, and keeps its own share."""

    def __init__(self, sampler: Draws[T], batch: int, team: Team, seen: int) -> None:
        self._sampler, self._batch, self._team, self._drawn = sampler, batch, team, seen

    def next(self) -> TileBatch[T]:
        """The next batch.

        Raises:
            ConfigError: no place can be read.
        """
        tiles = [self._sampler.draw(self._drawn + i) for i in range(self._batch)]
        self._drawn += self._batch
        return TileBatch(tuple(tiles[i] for i in self._team.share(self._batch)), self._sampler.state)


def training_rows(rows: Sequence[SlideRow]) -> list[SlideRow]:
    """Slides of the split ``train``, or of none; other splits are kept apart.

    Raises:
        ConfigError: a slide is trained on and held out.
    """
    used = [row for row in rows if row.split in (None, "train")]
    both = {row.source.path for row in used} & {row.source.path for row in rows if row.split == "validation"}
    if both:
        raise ConfigError(f"{min(both)} is in both splits, train and validation; remove one of its lines")
    return used


def used_rows(rows: Sequence[SlideRow]) -> list[SlideRow]:
    """Slides that are trained on, then those that are held out."""
    return training_rows(rows) + [row for row in rows if row.split == "validation"]


def read_truths(rows: Sequence[SlideRow], cfg: DetectorTrainConfig) -> list[MarkedSlide]:
    """What is marked on every slide; each is opened once, so that a bad one is named before anything is replaced.

    Raises:
        ConfigError: a slide has no truth.
        WsiError: a truth file or slide that cannot be used.
    """
    truths = []
    for row in rows:
        if row.truth is None:
            raise ConfigError(f"{row.source.label} has no truth; fill in the column 'truth'")
        truths.append(read_marked(row.truth, cfg.detector.classes))
        with row.source.open() as slide:
            _ = slide.mpp  # refuses a slide without a spacing
    return truths


def tile_sampler(
    rows: Sequence[SlideRow], cfg: DetectorTrainConfig, seed: int, stack: ExitStack
) -> TileSampler | None:
    """Draws from these slides, which the stack closes; None where nothing is marked on any of them."""
    usable = [(r, m) for r, m in zip(rows, read_truths(rows, cfg), strict=True) if m.usable]
    slides = [stack.enter_context(row.source.open()) for row, _ in usable]
    return TileSampler(slides, [m for _, m in usable], cfg, np.random.default_rng(seed)) if usable else None


def validation_tiles(rows: Sequence[SlideRow], cfg: DetectorTrainConfig, stack: ExitStack) -> list[Example]:
    """The tiles of held-out slides that networks are measured on: the same for every run of a seed; maybe none.

    Args:
        rows: of all splits.
        cfg: the recipe.
        stack: closes the slides.
    """
    as_stated = cfg.model_copy(update={"scale": 1.0})
    sampler = tile_sampler([r for r in rows if r.split == "validation"], as_stated, cfg.seed + 1, stack)
    if sampler is None:
        return []
    return [sampler.draw(i) for i in range(cfg.validation_tiles)]
