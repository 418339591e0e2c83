"""Seeded draws of training examples: class, then slide, then place; or class, then patch of a folder."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from models.training.data.slides import TrainingSlide
from wsi.arrays import RgbImage
from wsi.datasets.patch_folder import NEGATIVE_LABEL, POSITIVE_LABEL, PatchFolder
from wsi.errors import ConfigError
from wsi.files import csv_rows

log = logging.getLogger(__name__)

_LABELS = (NEGATIVE_LABEL, POSITIVE_LABEL)
GIVE_UP_AFTER = 64  # places of one slide that cannot be decoded: one broken tile costs some 25


@dataclass(frozen=True, slots=True)
class Place:
    """Where one example lies.

    Attributes:
        source: index of the slide, or of the patch of a folder.
        corner: of the patch, in level-0 pixels of its slide; of a folder's patch its shift in pixels.
        label: `NEGATIVE_LABEL` or `POSITIVE_LABEL`.
        cell: (row, col) in the slide's grid.
    """

    source: int
    corner: tuple[int, int]
    label: int
    cell: tuple[int, int] = (0, 0)


class Sampler(Protocol):
    """Draws places from one generator, and reads them."""

    positive_share: float
    """Chance that a place is of the second class, the one that is looked for."""
    frequency: float
    """The true share of that class among all places."""
    state: Any
    """The generator's state: set it, and the same places are drawn again."""

    def draw(self) -> Place:
        """One place."""
        ...

    def read(self, place: Place) -> RgbImage:
        """Its pixels as the model sees them; raises SlideError."""
        ...

    def exclude(self, place: Place, why: str) -> None:
        """Never draw this place again."""
        ...

    @property
    def excluded(self) -> list[list[int]]:
        """Every place excluded so far, for a checkpoint; `exclude_all` takes it."""
        ...

    def exclude_all(self, places: Iterable[Sequence[int]]) -> None:
        """Exclude what an earlier run excluded."""
        ...


class _Draws:
    """The generator that every draw comes from."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.positive_share = 0.5  # Liu et al. 2017: both classes with equal chance

    @property
    def state(self) -> Any:
        return self.rng.bit_generator.state

    @state.setter
    def state(self, value: Any) -> None:
        self.rng.bit_generator.state = value

    def label(self) -> int:
        return POSITIVE_LABEL if self.rng.random() < self.positive_share else NEGATIVE_LABEL

    def one(self, count: int) -> int:
        return int(self.rng.integers(count))


class SlideSampler(_Draws):
    """Each class with its chance, a slide that has it, one of its cells, a shift of up to ``jitter_px``."""

    def __init__(
        self,
        slides: Sequence[TrainingSlide],
        rng: np.random.Generator,
        jitter_px: int = 0,
        *,
        names: tuple[str, str],
        hard: Sequence[tuple[str, int, int]] = (),
        hard_share: float = 0.0,
    ) -> None:
        """Take slides, hard negatives as (slide's name, level-0 x, y), and what errors call the two classes.

        Hard negatives get a share of the draws of the first class.
        """
        super().__init__(rng)
        self.names = names
        self.slides = slides
        self.jitter_px = jitter_px
        self.cells = [list(slide.cells) for slide in slides]
        self.hard = _hard_cells(slides, hard)
        self.hard_share = hard_share if self.hard else 0.0
        self._failures: Counter[int] = Counter()
        self._excluded: list[list[int]] = []
        self._recount()
        # the others are marked in part
        whole = [slide for slide in slides if len(slide.cells[NEGATIVE_LABEL])]
        counts = [sum(len(slide.cells[label]) for slide in whole) for label in _LABELS]
        self.frequency = counts[POSITIVE_LABEL] / max(1, sum(counts))

    def _recount(self) -> None:
        self.having = [[i for i, c in enumerate(self.cells) if len(c[label])] for label in _LABELS]
        for name, having in zip(self.names, self.having, strict=True):
            if not having:
                raise ConfigError(
                    f"none of the {len(self.slides)} slides has a {name} cell; add slides or truth files"
                )

    def draw(self) -> Place:
        """One place."""
        label = self.label()
        if label == NEGATIVE_LABEL and self.hard_share and self.rng.random() < self.hard_share:
            index, row, col = self.hard[self.one(len(self.hard))]
        else:
            index = self.having[label][self.one(len(self.having[label]))]
            row, col = (int(v) for v in self.cells[index][label][self.one(len(self.cells[index][label]))])
        shift = self.rng.integers(-self.jitter_px, self.jitter_px + 1, 2)
        plan = self.slides[index].plan
        x = (col * plan.stride_px - plan.halo_px + int(shift[0])) * plan.scale
        y = (row * plan.stride_px - plan.halo_px + int(shift[1])) * plan.scale
        return Place(index, (round(x), round(y)), label, (row, col))

    def read(self, place: Place) -> RgbImage:
        """One patch as the model sees it."""
        training = self.slides[place.source]
        plan = training.plan
        side = round(plan.size_l0 / training.slide.levels[plan.level].downsample)
        pixels = training.slide.read_region(place.corner, plan.level, (side, side))
        if side != plan.size_px:
            pixels = np.asarray(
                cv2.resize(pixels, (plan.size_px, plan.size_px), interpolation=cv2.INTER_AREA), np.uint8
            )
        return pixels if training.recolour is None else training.recolour.apply(pixels)

    def exclude(self, place: Place, why: str) -> None:
        """Leave this cell out; the whole slide after `GIVE_UP_AFTER` of them.

        Raises:
            ConfigError: no cell of a class is left.
        """
        index = place.source
        name = self.slides[index].name
        self._excluded.append([index, place.label, *place.cell])
        self._failures[index] += 1
        if self._failures[index] == 1:
            log.warning("%s: a place cannot be decoded and is left out (%s)", name, why)
        if self._failures[index] >= GIVE_UP_AFTER:
            log.warning("%s: %d places cannot be decoded; the slide is dropped", name, GIVE_UP_AFTER)
            self.cells[index] = [cells[:0] for cells in self.cells[index]]
            self.hard = [h for h in self.hard if h[0] != index]
        else:
            cells = self.cells[index][place.label]
            self.cells[index][place.label] = cells[(cells != place.cell).any(axis=1)]
            self.hard = [h for h in self.hard if h != (index, *place.cell)]
        self.hard_share = self.hard_share if self.hard else 0.0
        self._recount()

    @property
    def excluded(self) -> list[list[int]]:
        """Slide, label, row, col of every place left out."""
        return self._excluded

    def exclude_all(self, places: Iterable[Sequence[int]]) -> None:
        """Leave out what an earlier run left out."""
        for index, label, row, col in places:
            self.exclude(Place(index, (0, 0), label, (row, col)), "in the run that is resumed")


def _hard_cells(
    slides: Sequence[TrainingSlide], hard: Sequence[tuple[str, int, int]]
) -> list[tuple[int, int, int]]:
    """(slide, row, col) of hard negatives that are cells of the first class on these slides."""
    index = {slide.name: i for i, slide in enumerate(slides)}
    negative = [{(int(r), int(c)) for r, c in slide.cells[NEGATIVE_LABEL]} for slide in slides]
    cells = []
    for name, x, y in hard:
        if name in index:
            i = index[name]
            stride = slides[i].plan.stride_l0
            if (cell := (y // stride, x // stride)) in negative[i]:
                cells.append((i, *cell))
    return cells


class PatchSampler(_Draws):
    """Each class with its chance, one of its patches, a shift of up to ``jitter_px``."""

    def __init__(
        self,
        folder: PatchFolder,
        chosen: Sequence[int],
        size_px: int,
        rng: np.random.Generator,
        jitter_px: int,
        *,
        names: tuple[str, str],
    ) -> None:
        """Take the patches ``chosen`` of a folder, mirrored or cropped around their middle to ``size_px``.

        An error calls the two classes by their ``names``.
        """
        super().__init__(rng)
        self.folder = folder
        self.size_px = size_px
        self.jitter_px = jitter_px
        self.chosen = [[i for i in chosen if folder.files[i].label == label] for label in _LABELS]
        for name, having in zip(names, self.chosen, strict=True):
            if not having:
                raise ConfigError(f"none of the {len(chosen)} patches is {name}; add patches of this class")
        self.frequency = len(self.chosen[POSITIVE_LABEL]) / len(chosen)

    def draw(self) -> Place:
        """One patch and its shift."""
        label = self.label()
        index = self.chosen[label][self.one(len(self.chosen[label]))]
        shift = self.rng.integers(-self.jitter_px, self.jitter_px + 1, 2)
        return Place(index, (int(shift[0]), int(shift[1])), label)

    def read(self, place: Place) -> RgbImage:
        """One patch as the model sees it."""
        return fit_square(self.folder.pixels[place.source], self.size_px, place.corner)

    def exclude(self, place: Place, why: str) -> None:
        """Never happens: the patches are in memory."""
        raise ConfigError(f"{self.folder.files[place.source].path} cannot be read ({why})")

    @property
    def excluded(self) -> list[list[int]]:
        """Always empty."""
        return []

    def exclude_all(self, places: Iterable[Sequence[int]]) -> None:
        """Nothing to do."""


def fit_square(pixels: RgbImage, side: int, shift: tuple[int, int] = (0, 0)) -> RgbImage:
    """The square of ``side`` around a patch's middle plus ``shift`` (x, y); what is missing is its mirror image."""
    top, left = ((n - side) // 2 + s for n, s in zip(pixels.shape[:2], shift[::-1], strict=True))
    before = [max(0, -top), max(0, -left)]
    after = [max(0, start + side - n) for start, n in zip((top, left), pixels.shape[:2], strict=True)]
    if any(before + after):
        pixels = np.pad(pixels, ((before[0], after[0]), (before[1], after[1]), (0, 0)), mode="reflect")
    top, left = top + before[0], left + before[1]
    return pixels[top : top + side, left : left + side]


def read_hard_negatives(path: Path) -> list[tuple[str, int, int]]:
    """The list that ``wsi train mine`` writes, as (slide's name, level-0 x, y).

    Raises:
        ConfigError: it is not such a list.
    """
    try:
        return [(row["slide"], int(row["x"]), int(row["y"])) for row in csv_rows(path.read_bytes())]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not a list of hard negatives (columns slide, x, y, score)") from error
