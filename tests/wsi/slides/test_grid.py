from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi.placement import Placement
from wsi.slides.grid import make_grid, tissue_share
from wsi.slides.slide import ReadPlan
from wsi.slides.tissue import Mask

sides = st.integers(1, 700)


def plan(size_px: int, stride: int) -> ReadPlan:
    return ReadPlan(level=0, stride_l0=stride, stride_px=stride, size_px=max(size_px, stride))


@given(sides, sides, st.integers(1, 64), st.integers(1, 100))
def test_cells_cover_the_slide_once(width: int, height: int, stride: int, size_px: int) -> None:
    grid = make_grid((width, height), plan(size_px, stride), None)
    rows, cols = grid.shape
    assert len(grid) == rows * cols == len(np.unique(grid.cells, axis=0))
    assert (rows - 1) * stride < height <= rows * stride
    assert (cols - 1) * stride < width <= cols * stride
    middle = grid.corners + grid.plan.size_px / 2
    assert np.abs(middle - grid.placement.centers(grid.cells)).max() <= 0.5


@given(st.integers(0, 60), st.integers(0, 90), st.floats(0.3, 70), st.floats(0.3, 70))
def test_placement_is_its_own_inverse(row: int, col: int, step_x: float, step_y: float) -> None:
    placement = Placement(step_x, step_y)
    cells = np.array([[row, col]])
    assert (placement.cells(placement.centers(cells)) == cells).all()


def test_placement_puts_x_on_columns() -> None:
    placement = Placement(10, 100)
    assert placement.centers(np.array([[2, 5]])).tolist() == [[55, 250]]
    assert placement.boxes(np.array([[2, 5]])).tolist() == [[50, 200, 60, 300]]
    assert placement.cells(np.array([[-0.25, 99.0]])).tolist() == [[0, -1]]


@given(st.data())
def test_tissue_share_is_exact(data: st.DataObject) -> None:
    """Against a brute force: enlarge the mask to level-0 pixels and count."""
    step_x, step_y = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    rows, cols = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    stride = data.draw(st.integers(1, 20))
    pixels = np.random.default_rng(data.draw(st.integers(0, 99))).random((rows, cols)) < 0.4
    width = max(1, cols * step_x - data.draw(st.integers(0, step_x - 1)))
    height = max(1, rows * step_y - data.draw(st.integers(0, step_y - 1)))
    full = np.repeat(np.repeat(pixels, step_y, axis=0), step_x, axis=1)[:height, :width]
    shape = -(-height // stride), -(-width // stride)
    found = tissue_share(Mask(pixels, Placement(step_x, step_y)), (width, height), stride, shape)
    for row in range(shape[0]):
        for col in range(shape[1]):
            cell = full[row * stride : (row + 1) * stride, col * stride : (col + 1) * stride]
            assert found[row, col] == pytest.approx(cell.mean(), abs=1e-9)


def test_only_cells_with_enough_tissue_are_scored() -> None:
    pixels = np.zeros((4, 4), np.bool_)
    pixels[1, 2] = True  # level-0 x 200..300, y 100..200
    grid = make_grid((400, 400), plan(100, 100), Mask(pixels, Placement(100, 100)))
    assert grid.cells.tolist() == [[1, 2]]
    half = make_grid((400, 400), plan(200, 200), Mask(pixels, Placement(100, 100)), min_tissue=0.25)
    assert half.cells.tolist() == [[0, 1]]
    assert len(make_grid((400, 400), plan(200, 200), Mask(pixels, Placement(100, 100)), min_tissue=0.3)) == 0


def test_patch_of_299_reaches_85_px_left_of_its_cell() -> None:
    grid = make_grid((256, 128), plan(299, 128), None)
    assert grid.corners.tolist() == [[-85, -85], [43, -85]]
