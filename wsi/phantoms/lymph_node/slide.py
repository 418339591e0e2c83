"""Phantoms of H&E lymph nodes: tissue painted piece by piece, with the truth beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from shapely import MultiPolygon

from wsi.arrays import RgbImage
from wsi.files import csv_text, replacing, write_text
from wsi.marks.annotations import Annotation, write_asap
from wsi.marks.raster import cells_inside
from wsi.phantoms.artefacts import BLUR_PX, PAINTERS, near
from wsi.phantoms.canvas import Canvas, Place
from wsi.phantoms.layout import Artefact, Layout, Planner
from wsi.phantoms.lymph_node.drawn import DrawnTissue
from wsi.phantoms.lymph_node.mosaic import Material, MosaicTissue
from wsi.phantoms.pyramid import write_pyramid
from wsi.phantoms.textures import SCANNERS, Plane
from wsi.vocabulary import NORMAL, TUMOUR, TUMOUR_GROUP

MASK_LEVEL_PX = 32  # truth masks have Camelyon16's evaluation level 5: level-0 pixels per mask pixel
DEEPEST_FAT_UM = -130  # drawn fat reaches this far outside a node


@dataclass(frozen=True, slots=True)
class PhantomSlide:
    """Properties of one phantom that is to be written."""

    name: str
    seed: int
    tumour: bool
    size: tuple[int, int]
    scanner: int = 0


class Tissue(Protocol):
    """Interface of a painter of one slide's tissue."""

    glass: tuple[int, int, int]
    canvas: Canvas

    def paint(self, place: Place, depth: Plane) -> RgbImage:
        """Pixels of a piece that has tissue; ``depth`` is `Canvas.depth` on its coarse grid."""
        ...


class Painter:
    """Painter of any piece of one slide; pieces agree at their borders in any order of painting."""

    def __init__(self, layout: Layout, tissue: Tissue) -> None:
        self.layout = layout
        self.tissue = tissue

    def render(self, x0: int, y0: int, width: int, height: int) -> RgbImage | None:
        """Pixels of one piece; None where there is only glass."""
        artefacts = [a for a in self.layout.artefacts if near(a, x0, y0, width, height)]
        if any(a.kind == "blur" for a in artefacts):
            # the blur needs pixels beyond the piece's border
            edge = BLUR_PX * 4
            image = self._paint(Place(x0 - edge, y0 - edge, width + 2 * edge, height + 2 * edge), artefacts)
            return None if image is None else np.ascontiguousarray(image[edge:-edge, edge:-edge])
        return self._paint(Place(x0, y0, width, height), artefacts)

    def _paint(self, place: Place, artefacts: list[Artefact]) -> RgbImage | None:
        canvas = self.tissue.canvas
        depth = canvas.depth(*canvas.grid(place))
        if depth.max() > DEEPEST_FAT_UM:
            image = self.tissue.paint(place, depth)
        elif artefacts:
            image = np.full((place.height, place.width, 3), self.tissue.glass, np.uint8)
        else:
            return None
        for artefact in artefacts:
            PAINTERS[artefact.kind](image, artefact, place.x0, place.y0)
        return image


def plan_cohort(
    count: int, seed: int, size: tuple[int, int], tumour_share: float = 0.5
) -> list[PhantomSlide]:
    """Slides of one cohort: tumour slides first; every slide of every cohort ``seed`` has another seed."""
    tumours = round(count * tumour_share)
    return [
        PhantomSlide(
            f"tumor_{i + 1:03d}" if i < tumours else f"normal_{i + 1 - tumours:03d}",
            seed * 1_000 + i,
            i < tumours,
            size,
            (i if i < tumours else i - tumours) % len(SCANNERS),  # alternates within each class
        )
        for i in range(count)
    ]


def write_phantom(
    slide: PhantomSlide,
    out: Path,
    *,
    material: Material | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Layout:
    """Write ``NAME.tif``, ``NAME.xml`` (ASAP) and ``NAME_mask.png``; the same bytes for the same seed.

    Args:
        slide: the phantom's properties.
        out: the folder.
        material: real patches and outlines for a mosaic; None makes a drawing.
        progress: called with (pieces done, pieces).

    Returns:
        The layout of the slide.
    """
    layout_seed, paint_seed = np.random.SeedSequence(slide.seed).spawn(2)
    scanner = SCANNERS[slide.scanner]
    outlines = () if material is None else material.outlines
    planner = Planner(np.random.default_rng(layout_seed), slide.size, scanner.mpp, outlines)
    layout = planner.layout(tumour=slide.tumour)
    rng = np.random.default_rng(paint_seed)
    tissue: Tissue = (
        DrawnTissue(layout, rng, scanner)
        if material is None
        else MosaicTissue(layout, rng, material, slide.scanner)
    )
    painter = Painter(layout, tissue)
    path = out / f"{slide.name}.tif"
    write_pyramid(path, slide.size, scanner.mpp, painter.render, background=scanner.glass, progress=progress)
    truth = [Annotation(lesion.outline, TUMOUR_GROUP, name=lesion.kind) for lesion in layout.lesions]
    write_asap(out / f"{slide.name}.xml", truth)
    _write_mask(out / f"{slide.name}_mask.png", layout)
    return layout


def _write_mask(path: Path, layout: Layout) -> None:
    """255 where the centre of a mask pixel lies in a lesion; one pixel is 32 level-0 pixels (level 5)."""
    cols, rows = (-(-n // MASK_LEVEL_PX) for n in layout.size)
    area = MultiPolygon([lesion.outline for lesion in layout.lesions])
    raster = cells_inside(area, (MASK_LEVEL_PX, MASK_LEVEL_PX), (rows, cols)).astype(np.uint8) * 255
    with replacing(path) as partial:
        partial.write_bytes(cv2.imencode(".png", raster)[1].tobytes())


def validation_split(slides: list[PhantomSlide], share: float) -> list[str]:
    """``train`` or ``validation`` for each slide: the share of each class, spread evenly, at least one of two."""
    splits = []
    for i, slide in enumerate(slides):
        same_class = [s.tumour == slide.tumour for s in slides]
        class_count, index_in_class = sum(same_class), sum(same_class[:i])
        validation_count = max(1, round(class_count * share)) if share > 0 and class_count > 1 else 0
        splits.append(
            "validation"
            if (index_in_class + 1) * validation_count // class_count
            > index_in_class * validation_count // class_count
            else "train"
        )
    return splits


def write_manifest(out: Path, slides: list[PhantomSlide], splits: list[str]) -> None:
    """``slides.csv`` with path, truth, label and split, for `wsi score` and `wsi train`."""
    rows = (
        (f"{slide.name}.tif", f"{slide.name}.xml", TUMOUR if slide.tumour else NORMAL, split)
        for slide, split in zip(slides, splits, strict=True)
    )
    write_text(out / "slides.csv", csv_text(("path", "truth", "label", "split"), rows))
