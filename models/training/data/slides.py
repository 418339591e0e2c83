"""Slides with truth, as cells by class: what training draws its patches from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from models.training.data.fields import labelled_cells
from wsi.arrays import CellsRC
from wsi.datasets.truth import read_truth, refuse_tumour
from wsi.errors import ConfigError
from wsi.marks.c4d import FIELD_UNITS
from wsi.marks.own_mask import read_user_mask
from wsi.slides.grid import make_grid
from wsi.slides.manifest import SlideRow
from wsi.slides.slide import ReadPlan, Slide, plan_read
from wsi.slides.stain import StainMethod, StainTransform, fit_slide
from wsi.slides.tissue import TissueConfig, find_tissue


@dataclass(frozen=True, slots=True)
class PatchFrame:
    """What the model sees: sides of patch and cell in its pixels, spacing, stain; whether cells are labelled fields."""

    size_px: int
    stride_px: int
    spacing_um: float | None
    tolerance: float = 0.1
    stain: StainMethod = "none"
    truth_label: int | None = None
    fields: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class TrainingSlide:
    """A slide and its cells by class: (n, 2) row, col of the grid of ``plan``.

    Attributes:
        note: what was repaired or detected in its truth; may be empty.
        mask_value: of its truth mask, which was detected to mean tumour.
    """

    name: str
    slide: Slide
    plan: ReadPlan
    cells: tuple[CellsRC, CellsRC]
    recolour: StainTransform | None = None
    note: str = ""
    mask_value: int | None = None


def prepare_slide(row: SlideRow, frame: PatchFrame) -> TrainingSlide:
    """Open a slide and sort its tissue cells into normal and tumour.

    A cell is tumour when its square (the centre 128 px of its patch) shares any area with tumour: by exact geometry
    for outlines, by maximum for masks. The other tissue cells are normal, unless the truth is partial.

    Raises:
        WsiError: slide or truth cannot be used.
    """
    slide = row.source.open()
    try:
        return _prepare(row, slide, frame)
    except BaseException:
        slide.close()
        raise


def _prepare(row: SlideRow, slide: Slide, frame: PatchFrame) -> TrainingSlide:
    plan = plan_read(slide, frame.size_px, frame.stride_px, frame.spacing_um, tolerance=frame.tolerance)
    if frame.fields:
        return _prepare_fields(row, slide, plan)
    cfg = TissueConfig()
    mask = find_tissue(slide, cfg) if row.mask is None else read_user_mask(row.mask, slide, cfg.mpp)
    tissue = make_grid(slide.size, plan, mask)
    recolour = fit_slide(slide, mask, frame.stain)
    name, no_cells = row.source.name, np.empty((0, 2), np.int64)
    if row.said_normal and row.truth is not None:
        refuse_tumour(row.truth, slide, make_grid(slide.size, plan, None), label=frame.truth_label)
    if row.checked_truth is None:
        cells = (no_cells if row.partial else tissue.cells, no_cells)
        return TrainingSlide(name, slide, plan, cells, recolour)
    truth = read_truth(row.checked_truth, slide, make_grid(slide.size, plan, None), label=frame.truth_label)
    # a lesion is tissue even where the tissue mask has a hole
    normal = no_cells if row.partial else tissue.cells[~truth.tumour[tuple(tissue.cells.T)]]
    cells = (normal, np.argwhere(truth.tumour).astype(np.int64))
    return TrainingSlide(name, slide, plan, cells, recolour, truth.note, truth.mask_value)


def _prepare_fields(row: SlideRow, slide: Slide, plan: ReadPlan) -> TrainingSlide:
    """Fields have labels of their own: what is not labelled is not drawn, tissue or not."""
    if row.truth is None:
        raise ConfigError(
            f"{row.source.label} has no truth; fill in the column 'truth' with its labelled fields"
        )
    # fields are placed to a unit, an odd part of their side: a cell is the middle unit of its patch
    unit_px = plan.size_px // max(n for n in range(1, FIELD_UNITS + 1, 2) if plan.size_px % n == 0)
    fine = replace(plan, stride_px=unit_px, stride_l0=round(unit_px * plan.scale))
    cells = labelled_cells(row.truth, make_grid(slide.size, fine, None))
    return TrainingSlide(row.source.name, slide, fine, cells)
