"""Labelled fields of kidneys as cells of a grid: what tells feasible ones is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import shapely

from wsi.arrays import CellsRC
from wsi.errors import AnnotationError
from wsi.marks.annotations import Annotation, read_annotations
from wsi.marks.c4d import FIELD_UM
from wsi.slides.grid import TileGrid
from wsi.vocabulary import FEASIBLE, NEGATIVE, NOT_COUNTED, NOT_FEASIBLE, POSITIVE

LEAST_SHARED = 0.5  # of a field's cell: a hand may have moved the square a little


def labelled_cells(path: Path, grid: TileGrid) -> tuple[CellsRC, CellsRC]:
    """The cells that a file labels as not feasible, and as feasible; the others are in neither.

    Args:
        path: squares of the classes ``feasible`` and ``not feasible``; capillaries are left out.
        grid: every cell of the slide; a cell is a field.

    Raises:
        AnnotationError: the file is broken, holds another class, or a field that is no cell of the grid or is labelled
            twice.
    """
    groups: dict[tuple[int, int], str] = {}
    for annotation in read_annotations(path):
        if annotation.group in (POSITIVE, NEGATIVE, NOT_COUNTED):
            continue
        if annotation.group not in (FEASIBLE, NOT_FEASIBLE):
            raise AnnotationError(
                f"{path} holds the class {annotation.group!r}; known for fields are {FEASIBLE} and {NOT_FEASIBLE}: "
                f"rename or remove it"
            )
        cell = _cell(path, annotation, grid)
        if groups.setdefault(cell, annotation.group) != annotation.group:
            raise AnnotationError(
                f"{path} labels the field {annotation.name!r} twice, differently; remove one"
            )
    by_class = [
        sorted(cell for cell, group in groups.items() if group == g) for g in (NOT_FEASIBLE, FEASIBLE)
    ]
    negative, positive = (np.array(cells, np.int64).reshape(-1, 2) for cells in by_class)
    return negative, positive


def _cell(path: Path, annotation: Annotation, grid: TileGrid) -> tuple[int, int]:
    """The cell that an annotation covers, row and column."""
    outline = annotation.outline
    middle = np.array([[outline.centroid.x, outline.centroid.y]])
    cells = grid.placement.cells(middle)
    side, (x, y) = grid.plan.size_l0, grid.placement.centers(cells)[0]
    box = shapely.box(x - side / 2, y - side / 2, x + side / 2, y + side / 2)  # the patch around its cell
    row, col = (int(v) for v in cells[0])
    inside = 0 <= row < grid.shape[0] and 0 <= col < grid.shape[1]
    if not inside or outline.intersection(box).area < LEAST_SHARED * max(box.area, outline.area):
        x, y = middle[0]
        raise AnnotationError(
            f"{path}: the field {annotation.name!r} at ({x:.0f}, {y:.0f}) is no field of {FIELD_UM:g} um; "
            f"label the fields of a file that wsi renal report wrote"
        )
    return row, col
