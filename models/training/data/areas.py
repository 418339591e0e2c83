"""Examples for a segmenter: tiles of slides, and for each of their pixels the class that outlines give it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from shapely import Polygon, STRtree

from models.training.data.splits import digest
from models.training.data.tiles import TRIES, GeneratorState, training_rows
from models.training.recipe import SegmenterTrainConfig
from wsi.arrays import RgbImage
from wsi.errors import AnnotationError, ConfigError, SlideError
from wsi.marks.annotations import read_annotations
from wsi.marks.geojson import read_objects
from wsi.marks.raster import cells_of
from wsi.metrics.segmentation import UNKNOWN
from wsi.slides.manifest import SlideRow
from wsi.slides.slide import Slide
from wsi.slides.tiles import read_square
from wsi.vocabulary import UNKNOWN_AREA

COARSEST = 1.2  # times the recipe's spacing: a coarser slide lacks what is to be learned
ELASTIC_GRID = 3  # points along a side that are moved (Ronneberger et al. 2015)
SEPARATION_PX = 5.0  # sigma of the weight between two objects, in pixels (the same)
ClassMap = npt.NDArray[np.uint8]
Array = TypeVar("Array", npt.NDArray[np.uint8], npt.NDArray[np.float32])


@dataclass(frozen=True, eq=False, slots=True)
class MarkedAreas:
    """Outlines on a slide, in level-0 pixels, in the order in which they are painted.

    Attributes:
        outlines: with holes.
        labels: (n,) number of each outline's class; `UNKNOWN` where nobody knows.
        tree: of the outlines.
    """

    outlines: tuple[Polygon, ...]
    labels: npt.NDArray[np.int64]
    tree: STRtree

    def near(self, corner: tuple[int, int], side: float) -> list[int]:
        """Indices of the outlines that may reach into a square, in the order in which they are painted."""
        x, y = corner
        return sorted(self.tree.query(shapely.box(x, y, x + side, y + side)).tolist())


def read_areas(path: Path, classes: Sequence[str]) -> MarkedAreas:
    """The outlines of an annotation file.

    Args:
        path: GeoJSON or ASAP XML, whose groups are the classes without the first, or ``unknown``: places that are
            neither trained on nor judged.
        classes: in the order in which they are painted; what has no outline is of the first.

    Raises:
        AnnotationError: the file is broken, or holds another class.
    """
    known = {name: number for number, name in enumerate(classes) if number} | {UNKNOWN_AREA: UNKNOWN}
    marks = list(_outlines(path))
    for group, _ in marks:
        if group not in known:
            what = f"the class {group!r}" if group else "an outline without a class"
            raise AnnotationError(f"{path} holds {what}; known are {', '.join(known)}: rename or remove it")
    marks.sort(key=lambda mark: known[mark[0]])
    outlines = tuple(outline for _, outline in marks)
    labels = np.array([known[group] for group, _ in marks], np.int64)
    return MarkedAreas(outlines, labels, STRtree(outlines))


def _outlines(path: Path) -> Iterator[tuple[str, Polygon]]:
    """Class and outline of every area that is marked; the class is empty where an object has none."""
    if path.suffix.lower() == ".xml":
        yield from ((mark.group, mark.outline) for mark in read_annotations(path))
        return
    for found in read_objects(path):
        for part in shapely.get_parts(shapely.force_2d(found.shape)):
            if isinstance(part, Polygon) and not part.area > 0:
                raise AnnotationError(
                    f"{path} holds an outline of {found.group!r} without an area; remove it"
                )
            if not isinstance(part, Polygon):
                raise AnnotationError(
                    f"{path} holds a {part.geom_type} ({found.group!r}): mark each area by an outline"
                )
            yield found.group, part


@dataclass(frozen=True, eq=False, slots=True)
class AreaExample:
    """A tile, and what is known of it.

    Attributes:
        pixels: RGB uint8, (side, side, 3).
        classes: uint8 (side, side), the class of every pixel; `UNKNOWN` where nobody knows.
        weights: float32 (side, side), how much each pixel counts.
    """

    pixels: RgbImage
    classes: ClassMap
    weights: npt.NDArray[np.float32]


def read_area_example(
    slide: Slide,
    marked: MarkedAreas,
    corner: tuple[int, int],
    size_px: int,
    spacing_um: float,
    separation: float = 0.0,
) -> AreaExample:
    """The tile whose top-left corner is there, resampled to a spacing.

    Args:
        slide: what is read.
        marked: what is marked on it.
        corner: level-0 (x, y); may lie off the slide, which is white there, and unknown.
        size_px: side of the tile.
        spacing_um: um per pixel of the tile.
        separation: see `separation_weights`.

    Raises:
        RegionError: the place cannot be decoded.
        MissingMppError: the slide has no spacing.
    """
    step = spacing_um / slide.mpp  # level-0 pixels per pixel of the tile
    pixels = read_square(slide, corner, size_px * step, size_px)
    classes = np.zeros((size_px, size_px), np.uint8)
    near = marked.near(corner, size_px * step)
    for i in near:
        part = cells_of(marked.outlines[i], (step, step), classes.shape, corner=corner)
        classes[part.window][part.inside] = marked.labels[i]
    off = _off_slide(slide.size, corner, step, size_px)
    classes[off] = UNKNOWN
    weights = np.ones((size_px, size_px), np.float32)
    if separation:
        objects = [marked.outlines[i] for i in near if marked.labels[i] != UNKNOWN]
        weights += np.where(
            classes == 0, separation_weights(objects, corner, step, size_px, separation), 0
        ).astype(np.float32)
    return AreaExample(pixels, classes, weights)


def _off_slide(
    size: tuple[int, int], corner: tuple[int, int], step: float, size_px: int
) -> npt.NDArray[np.bool_]:
    """The pixels of a tile whose middle lies off the slide."""
    middles = (np.arange(size_px) + 0.5) * step
    x, y = corner[0] + middles, corner[1] + middles
    off: npt.NDArray[np.bool_] = ((y < 0) | (y >= size[1]))[:, None] | ((x < 0) | (x >= size[0]))
    return off


def separation_weights(
    objects: Sequence[Polygon], corner: tuple[int, int], step: float, size_px: int, most: float
) -> npt.NDArray[np.float64]:
    """``most`` exp(-(d1 + d2)^2 / 2 sigma^2), where d1 and d2 are the distances to the two nearest objects in pixels.

    So a network learns the narrow gaps between objects that touch (Ronneberger et al. 2015; they take 10 for ``most``).
    """
    nearest = np.full((2, size_px, size_px), np.inf)
    for shape in objects:
        outside = np.ones((size_px, size_px), np.uint8)
        part = cells_of(shape, (step, step), outside.shape, corner=corner)
        outside[part.window][part.inside] = 0
        if outside.all():
            continue
        distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        nearest = np.sort(np.concatenate([nearest, distance[None]]), axis=0)[:2]
    weights: npt.NDArray[np.float64] = most * np.exp(-(nearest.sum(axis=0) ** 2) / (2 * SEPARATION_PX**2))
    return weights


def turned_areas(example: AreaExample, orientation: int) -> AreaExample:
    """The tile in orientation 0..7, the same as `models.networks.contract.orient`: transpose, then flips."""

    def turned(array: Array) -> Array:
        array = array.swapaxes(0, 1) if orientation & 1 else array
        array = array[::-1] if orientation & 2 else array
        array = array[:, ::-1] if orientation & 4 else array
        return np.ascontiguousarray(array)

    return AreaExample(turned(example.pixels), turned(example.classes), turned(example.weights))


def bent(example: AreaExample, deviation_px: float, rng: np.random.Generator) -> AreaExample:
    """The tile, bent smoothly.

    A grid of 3 x 3 points is moved by N(0, ``deviation_px``) in x and y, and what lies between follows bicubically.
    """
    side = len(example.classes)
    moves = rng.normal(0, deviation_px, (ELASTIC_GRID, ELASTIC_GRID, 2)).astype(np.float32)
    field_px = cv2.resize(moves, (side, side), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    at = (x + field_px[..., 0], y + field_px[..., 1])

    def moved(array: Array, method: int) -> Array:
        return np.asarray(cv2.remap(array, *at, method, borderMode=cv2.BORDER_REFLECT), array.dtype)

    return AreaExample(
        moved(example.pixels, cv2.INTER_LINEAR),
        moved(example.classes, cv2.INTER_NEAREST),
        moved(example.weights, cv2.INTER_NEAREST),
    )


@dataclass(eq=False)
class AreaSampler(GeneratorState):
    """Draws tiles of marked slides from one generator: a class in turn, a slide that has it, an outline, a place on it.

    A class that no held-out slide has leaves its turn to any outline.
    """

    slides: Sequence[Slide]
    marked: Sequence[MarkedAreas]
    cfg: SegmenterTrainConfig
    rng: np.random.Generator
    unreadable: list[list[int]] = field(default_factory=list)

    @property
    def identity(self) -> str:
        """Hash of the slides' sizes and of all that is marked on them: what decides which tiles are drawn."""
        parts = []
        for slide, marked in zip(self.slides, self.marked, strict=True):
            parts += [repr((slide.size, slide.mpp)).encode(), marked.labels.tobytes()]
            parts += [outline.wkb for outline in marked.outlines]
        return digest(*parts)

    def draw(self, number: int) -> AreaExample:
        """A tile, turned and bent; its number says which class it is drawn around.

        Raises:
            ConfigError: no place can be read.
        """
        label = 1 + number % (len(self.cfg.segmenter.classes) - 1)
        holding = [i for i, marked in enumerate(self.marked) if (marked.labels == label).any()]
        for _ in range(TRIES):
            i = int(self.rng.choice(holding or len(self.slides)))
            corner = self._corner(i, label)
            orientation = int(self.rng.integers(self.cfg.augment.orientations))
            try:
                example = turned_areas(self._read(i, corner), orientation)
            except SlideError:
                self.unreadable.append([i, *corner])
                continue
            return bent(example, self.cfg.elastic_px, self.rng) if self.cfg.elastic_px else example
        raise ConfigError(
            f"none of {TRIES} places in turn could be read, the last on {self.slides[i].path}; check the slides"
        )

    def _corner(self, i: int, label: int) -> tuple[int, int]:
        """The corner of a tile whose core holds a place on an outline of the class; of any class if there is none."""
        marked, cfg = self.marked[i], self.cfg.segmenter
        step = cfg.spacing_um / self.slides[i].mpp
        of_class = np.flatnonzero(marked.labels == label)
        which = of_class if len(of_class) else np.arange(len(marked.labels))
        ring = marked.outlines[int(self.rng.choice(which))].exterior
        x, y = ring.interpolate(self.rng.uniform(), normalized=True).coords[0]
        at = (cfg.margin_px + self.rng.uniform(0, cfg.core_px, 2)) * step
        return round(x - at[0]), round(y - at[1])

    def _read(self, i: int, corner: tuple[int, int]) -> AreaExample:
        cfg = self.cfg.segmenter
        slide, marked = self.slides[i], self.marked[i]
        return read_area_example(slide, marked, corner, cfg.tile_px, cfg.spacing_um, self.cfg.separation)


def read_all_areas(rows: Sequence[SlideRow], cfg: SegmenterTrainConfig) -> list[MarkedAreas]:
    """What is marked on every slide; each is opened once, so that a bad one is named before anything is replaced.

    Raises:
        ConfigError: a slide has no truth, nothing is marked on it, or it is too coarse.
        WsiError: a truth file or slide that cannot be used.
    """
    marked = []
    for row in rows:
        if row.truth is None:
            raise ConfigError(f"{row.source.label} has no truth; fill in the column 'truth'")
        areas = read_areas(row.truth, cfg.segmenter.classes)
        if not (areas.labels != UNKNOWN).any():
            raise ConfigError(f"{row.truth} marks nothing of a class; leave out its slide")
        with row.source.open() as slide:
            if slide.mpp > cfg.segmenter.spacing_um * COARSEST:
                raise ConfigError(
                    f"{row.source.label} has {slide.mpp:.3g} um/px, and the recipe wants {cfg.segmenter.spacing_um:g}; "
                    f"use finer slides, or set segmenter.spacing_um"
                )
        marked.append(areas)
    return marked


def check_areas(rows: Sequence[SlideRow], cfg: SegmenterTrainConfig) -> None:
    """Refuse slides that cannot teach or judge, before anything is replaced.

    Raises:
        ConfigError: see `read_all_areas`, or no training slide has an outline of a class.
        WsiError: a truth file or slide that cannot be used.
    """
    read_all_areas([row for row in rows if row.split == "validation"], cfg)
    marked = read_all_areas(training_rows(rows), cfg)
    for label, name in enumerate(cfg.segmenter.classes):
        if marked and label and not any((areas.labels == label).any() for areas in marked):
            raise ConfigError(
                f"no training slide has an outline of the class {name!r}; mark some, or leave it out of the recipe"
            )


def area_sampler(
    rows: Sequence[SlideRow], cfg: SegmenterTrainConfig, seed: int, stack: ExitStack
) -> AreaSampler | None:
    """Draws from these slides, which the stack closes; None where there are none."""
    marked = read_all_areas(rows, cfg)
    slides = [stack.enter_context(row.source.open()) for row in rows]
    return AreaSampler(slides, marked, cfg, np.random.default_rng(seed)) if rows else None


def validation_areas(
    rows: Sequence[SlideRow], cfg: SegmenterTrainConfig, stack: ExitStack
) -> list[AreaExample]:
    """The tiles of held-out slides that networks are measured on: the same for every run of a seed; maybe none."""
    plain = cfg.model_copy(update={"elastic_px": 0.0, "separation": 0.0})
    sampler = area_sampler([r for r in rows if r.split == "validation"], plain, cfg.seed + 1, stack)
    return [] if sampler is None else [sampler.draw(i) for i in range(cfg.validation_tiles)]
