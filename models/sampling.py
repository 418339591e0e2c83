"""Seeded draws of training patches: class, then slide, then place; read by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import shapely

from wsi.annotations import read_annotations, tumour_regions
from wsi.arrays import CellsRC
from wsi.errors import ConfigError
from wsi.grid import make_grid
from wsi.manifest import SlideRow
from wsi.slide import ReadPlan, Slide, plan_read
from wsi.tissue import TissueConfig, detect_tissue
from wsi.user_mask import read_user_mask

NORMAL, TUMOUR = 0, 1


@dataclass(frozen=True, eq=False, slots=True)
class TrainingSlide:
    """A slide and its cells by class: (n, 2) row, col of the grid of ``plan``."""

    slide: Slide
    plan: ReadPlan
    cells: tuple[CellsRC, CellsRC]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one training patch lies: its corner in level-0 pixels, and its class."""

    slide: int
    corner: tuple[int, int]
    label: int


def prepare_slide(
    row: SlideRow, size_px: int, stride_px: int, spacing_um: float | None, tolerance: float = 0.1
) -> TrainingSlide:
    """Open a slide and sort its tissue cells into normal and tumour.

    A cell is tumour when its square (the centre 128 px of its patch) shares any area with a tumour
    outline, by exact geometry; every tissue cell of a slide without truth is normal.

    Raises:
        WsiError: slide or truth cannot be used.
    """
    slide = row.source.open()
    plan = plan_read(slide, size_px, stride_px, spacing_um, tolerance=tolerance)
    cfg = TissueConfig()
    mask = detect_tissue(slide, cfg) if row.mask is None else read_user_mask(row.mask, slide, cfg.mpp)
    tissue = make_grid(slide.size, plan, mask)
    if row.truth is None and (row.label or "normal").casefold() != "normal":
        raise ConfigError(
            f"{row.source.path} is labelled {row.label!r} but has no truth; fill in the column 'truth'"
        )
    if row.truth is None:
        return TrainingSlide(slide, plan, (tissue.cells, np.empty((0, 2), np.int64)))
    area = tumour_regions(read_annotations(row.truth), row.truth).area
    every = make_grid(slide.size, plan, None)
    shapely.prepare(area)
    boxes = every.placement.boxes(every.cells)
    touched = shapely.intersects(area, shapely.box(*boxes.T)) & ~shapely.touches(area, shapely.box(*boxes.T))
    marked = np.zeros(every.shape, np.bool_)
    marked[tuple(every.cells[touched].T)] = True
    # a lesion is tissue even where the tissue mask has a hole
    return TrainingSlide(slide, plan, (tissue.cells[~marked[tuple(tissue.cells.T)]], every.cells[touched]))


class Sampler:
    """Draws places: each class with equal chance, a slide that has it, one of its cells."""

    def __init__(self, slides: Sequence[TrainingSlide], rng: np.random.Generator, jitter_px: int = 0) -> None:
        self.slides = slides
        self.rng = rng
        self.jitter_px = jitter_px
        self.having = [[i for i, s in enumerate(slides) if len(s.cells[label])] for label in (NORMAL, TUMOUR)]
        for name, having in zip(("normal", "tumour"), self.having, strict=True):
            if not having:
                raise ConfigError(
                    f"none of the {len(slides)} slides has a {name} cell; add slides or truth files"
                )

    def draw(self) -> Place:
        """One place."""
        label = int(self.rng.integers(2))
        index = self.having[label][int(self.rng.integers(len(self.having[label])))]
        slide = self.slides[index]
        row, col = slide.cells[label][int(self.rng.integers(len(slide.cells[label])))]
        shift = self.rng.integers(-self.jitter_px, self.jitter_px + 1, 2)
        plan = slide.plan
        x = (int(col) * plan.stride_px - plan.halo_px + int(shift[0])) * plan.scale
        y = (int(row) * plan.stride_px - plan.halo_px + int(shift[1])) * plan.scale
        return Place(index, (round(x), round(y)), label)


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """RGB uint8 (n, size, size, 3) and labels (n,)."""

    patches: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def read_patch(training: TrainingSlide, corner: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """One patch as the model sees it."""
    plan = training.plan
    side = round(plan.size_l0 / training.slide.levels[plan.level].downsample)
    pixels = training.slide.read_region(corner, plan.level, (side, side))
    if side != plan.size_px:
        pixels = cv2.resize(pixels, (plan.size_px, plan.size_px), interpolation=cv2.INTER_AREA)
    return pixels


def batches(
    slides: Sequence[TrainingSlide], draw: Callable[[], Place], size: int, *, threads: int = 1, ahead: int = 3
) -> Generator[Batch]:
    """Endless batches in the order of the draws, read ahead by threads."""

    def start() -> tuple[list[Future[npt.NDArray[np.uint8]]], npt.NDArray[np.int64]]:
        places = [draw() for _ in range(size)]
        futures = [pool.submit(read_patch, slides[p.slide], p.corner) for p in places]
        return futures, np.array([p.label for p in places], np.int64)

    with ThreadPoolExecutor(threads, thread_name_prefix="patch") as pool:
        waiting = deque(start() for _ in range(ahead))
        try:
            while True:
                futures, labels = waiting.popleft()
                waiting.append(start())
                yield Batch(np.stack([future.result() for future in futures]), labels)
        finally:
            for futures, _ in waiting:
                for future in futures:
                    future.cancel()
