"""Truth of a slide, from outlines or a mask, as the cells that hold tumour."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
import tifffile
from shapely import MultiPolygon

from wsi.arrays import BoolRaster
from wsi.errors import AnnotationError
from wsi.marks.annotations import read_outlines, tumour_regions
from wsi.marks.own_mask import BROKEN_PICTURE, MAX_ASPECT_DIFFERENCE, PICTURES, read_png
from wsi.slides.grid import TileGrid
from wsi.slides.slide import Slide
from wsi.vocabulary import NORMAL

# 0/1 and 0/255 masks have one value besides 0; with 1 and 2 it is 2 (Camelyon16's masks as released with the data)
_TUMOUR_VALUES = {frozenset({1}): 1, frozenset({255}): 255, frozenset({2}): 2, frozenset({1, 2}): 2}


@dataclass(frozen=True, eq=False, slots=True)
class Truth:
    """The cells of a slide that hold tumour.

    Attributes:
        tumour: (rows, cols) of the grid.
        note: a sentence on repaired outlines or the detected value; may be empty.
        mask_value: the mask's value that was detected as tumour; None where the user stated it, or for outlines.
    """

    tumour: BoolRaster
    note: str = ""
    mask_value: int | None = None


def read_truth(path: Path, slide: Slide, grid: TileGrid, *, label: int | None = None) -> Truth:
    """The cells of a grid that share any area with tumour.

    Args:
        path: ASAP or ImageScope XML, GeoJSON, NCRF's JSON, or a mask of the whole slide (PNG, TIFF).
        slide: the slide of the truth.
        grid: all cells of the slide.
        label: the mask's value that means tumour; None detects 0/1, 0/255 and 0/1/2.

    Raises:
        AnnotationError: the file is broken, is of another slide, or marks no tumour.
    """
    truth = _read(path, slide, grid, label)
    if not truth.tumour.any():
        note = f" ({truth.note})" if truth.note else ""
        raise AnnotationError(
            f"{path} marks no tumour on {slide.path}{note}; if the slide has none, write {NORMAL!r} in the "
            f"column 'label'"
        )
    return truth


def refuse_tumour(path: Path, slide: Slide, grid: TileGrid, *, label: int | None = None) -> None:
    """Check the truth of a slide that is labelled as normal: it must not be trained on as normal if it has tumour.

    Raises:
        AnnotationError: the truth marks tumour.
    """
    truth = _read(path, slide, grid, label)
    if truth.tumour.any():
        value = " (truth_label says which value of masks is tumour)" if truth.mask_value else ""
        raise AnnotationError(
            f"{path} marks tumour, though the slide is labelled normal; mend one of them{value}"
        )


def _read(path: Path, slide: Slide, grid: TileGrid, label: int | None) -> Truth:
    if path.suffix.lower() in PICTURES:
        return _from_mask(path, slide, grid, label)
    return _from_outlines(path, slide, grid)


def _from_outlines(path: Path, slide: Slide, grid: TileGrid) -> Truth:
    outlines = read_outlines(path)
    regions = tumour_regions(outlines.annotations, path)
    if not regions.area.is_empty:
        _check_inside(path, slide, regions.area)
    return Truth(outlined_cells(regions.area, grid), named_note(path, outlines.note, regions.note))


def named_note(path: Path, *notes: str) -> str:
    """The notes on a file, after its name; empty where there are none."""
    text = ", ".join(note for note in notes if note)
    return f"{path.name}: {text}" if text else ""


def outlined_cells(area: MultiPolygon, grid: TileGrid) -> BoolRaster:
    """Cells whose square shares area with the outlines, by exact geometry; a shared edge is not enough."""
    marked = np.zeros(grid.shape, np.bool_)
    if area.is_empty:
        return marked
    shapely.prepare(area)
    x0, y0, x1, y1 = np.array(area.bounds) / grid.plan.stride_l0
    rows, cols = grid.cells.T
    candidates = grid.cells[(rows >= y0 - 1) & (rows <= y1) & (cols >= x0 - 1) & (cols <= x1)]
    boxes = shapely.box(*grid.placement.boxes(candidates).T)
    touched = shapely.intersects(area, boxes) & ~shapely.touches(area, boxes)
    marked[tuple(candidates[touched].T)] = True
    return marked


def _check_inside(path: Path, slide: Slide, area: MultiPolygon) -> None:
    x0, y0, x1, y1 = area.bounds
    slack = 2.0 * 128  # an outline drawn along the slide's edge may leave it by a cell or two
    width, height = slide.size
    if x0 < -slack or y0 < -slack or x1 > width + slack or y1 > height + slack:
        raise AnnotationError(
            f"{path} reaches from ({x0:.0f}, {y0:.0f}) to ({x1:.0f}, {y1:.0f}), outside {slide.path} of "
            f"{width} x {height} px: it is the truth of another slide, or of another level"
        )


def _from_mask(path: Path, slide: Slide, grid: TileGrid, label: int | None) -> Truth:
    """The truth from a mask: a cell is tumour if any pixel of the mask in it is."""
    present: dict[int, BoolRaster] = {}
    with mask_errors(path):
        shape = mask_shapes(path)[0]
        step = mask_step(path, shape, slide.size)[::-1]
        for top, left, piece in mask_pieces(path):
            for value in np.unique(piece):
                if value:
                    cells = present.setdefault(int(value), np.zeros(grid.shape, np.bool_))
                    _mark(cells, piece == value, (top, left), step, grid.plan.stride_l0)
    tumour_label = tumour_value(path, present, label, "truth_label in the recipe")
    if label is not None:
        return Truth(present.get(label, np.zeros(grid.shape, np.bool_)))
    tumour = present[tumour_label] if tumour_label is not None else np.zeros(grid.shape, np.bool_)
    return Truth(tumour, mask_note(path, present, tumour_label), tumour_label)


def tumour_value(path: Path, present: Collection[int], label: int | None, option: str) -> int | None:
    """The mask's value that means tumour: ``label``, or detected from the values besides 0; None for an empty mask.

    Args:
        path: the mask.
        present: the mask's values besides 0.
        label: the value that the user states, or None.
        option: name of the option by which the user states it.

    Raises:
        AnnotationError: no convention is known for these values.
    """
    value = _TUMOUR_VALUES.get(frozenset(present)) if label is None else label
    if present and value is None:
        raise AnnotationError(f"{path} holds the values {sorted(present)}; say which is tumour with {option}")
    return value


def mask_note(path: Path, present: Collection[int], meant: int | None) -> str:
    """A sentence about the detected value, for the user; empty for a mask that holds nothing."""
    if meant is None:
        return ""
    values = ", ".join(map(str, sorted(present)))
    return f"{path.name}: a mask of the values 0 and {values}, {meant} is tumour"


def mask_step(path: Path, shape: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Level-0 pixels per pixel of a mask, (x, y).

    Raises:
        AnnotationError: the mask has another shape than its slide.
    """
    step_x, step_y = size[0] / shape[1], size[1] / shape[0]
    if abs(step_x / step_y - 1) > MAX_ASPECT_DIFFERENCE:
        raise AnnotationError(
            f"{path} is {shape[1]} x {shape[0]} px, not the shape of its slide "
            f"({size[0]} x {size[1]}); give the mask of this slide"
        )
    return step_x, step_y


@contextmanager
def mask_errors(path: Path) -> Iterator[None]:
    """Turn errors of picture libraries into one sentence."""
    try:
        yield
    except BROKEN_PICTURE as error:
        raise AnnotationError(
            f"{path} cannot be read as a mask ({error}); use PNG, TIFF or outlines"
        ) from error


def _mark(
    marked: BoolRaster,
    piece: BoolRaster,
    corner: tuple[int, int],
    step: tuple[float, float],
    stride_l0: int,
) -> None:
    """Set every cell that a True pixel of a mask's piece reaches into; corner and step are (row, col)."""
    axis_cells = []
    for axis in (0, 1):
        starts = (np.arange(piece.shape[axis]) + corner[axis]) * step[axis]
        offsets = np.linspace(0, 0.999 * step[axis], math.ceil(step[axis] / stride_l0) + 1)
        last = marked.shape[axis] - 1
        axis_cells.append(
            [np.minimum(((starts + offset) // stride_l0).astype(np.int64), last) for offset in offsets]
        )
    for rows in axis_cells[0]:
        first_rows = np.flatnonzero(np.diff(rows, prepend=-1))
        by_row = np.logical_or.reduceat(piece, first_rows, axis=0)
        for cols in axis_cells[1]:
            first_cols = np.flatnonzero(np.diff(cols, prepend=-1))
            marks = np.logical_or.reduceat(by_row, first_cols, axis=1)
            marked[np.ix_(rows[first_rows], cols[first_cols])] |= marks


_Piece = tuple[int, int, npt.NDArray[np.integer]]


def mask_shapes(path: Path) -> list[tuple[int, int]]:
    """(rows, cols) of every level of a mask, finest first; a PNG has one."""
    if path.suffix.lower() == ".png":
        plane = _png(path)
        return [(plane.shape[0], plane.shape[1])]
    with tifffile.TiffFile(path) as tif:
        keys = [level.keyframe for level in tif.series[0].levels]
        if min(min(key.imagelength, key.imagewidth) for key in keys) == 0:
            raise ValueError("a level has no pixels")
        return [(key.imagelength, key.imagewidth) for key in keys]


def mask_pieces(path: Path, level: int = 0) -> Iterator[_Piece]:
    """(top, left, values) of one level of a mask, piece by piece.

    The finest level is the default: the coarser ones may have lost small lesions. An empty piece may be
    given as a single 0.
    """
    if path.suffix.lower() == ".png":
        yield 0, 0, _png(path)
        return
    with tifffile.TiffFile(path) as tif:
        page = tif.series[0].levels[level].keyframe
        for segment, index, _ in page.segments():
            if segment is None or not segment.any():
                yield 0, 0, np.zeros((1, 1), np.uint8)
                continue
            top, left = int(index[2]), int(index[3])
            rows, cols = page.imagelength - top, page.imagewidth - left
            yield top, left, segment[0][..., :3].max(axis=-1)[:rows, :cols]


def _png(path: Path) -> npt.NDArray[np.integer]:
    picture = read_png(path)
    plane: npt.NDArray[np.integer] = picture if picture.ndim == 2 else picture[..., :3].max(axis=2)
    return plane
