from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely import MultiPolygon, Point, box, contains_xy

from wsi.marks.raster import cells_inside, fill_polygon


def test_a_square_sets_the_cells_whose_centre_it_holds() -> None:
    assert cells_inside(MultiPolygon([box(0, 0, 10, 10)]), (1, 1), (20, 20)).sum() == 100
    assert (
        cells_inside(MultiPolygon([box(2.6, 2.6, 5.4, 5.4)]), (1, 1), (20, 20)).sum() == 4
    )  # 3 and 4, both ways


@given(st.floats(5, 60), st.floats(5, 60), st.floats(3, 40), st.floats(0, 2))
def test_centres_decide_but_for_those_at_the_edge(x: float, y: float, radius: float, hole: float) -> None:
    shape = Point(x, y).buffer(radius).difference(Point(x, y).buffer(hole))
    found = cells_inside(MultiPolygon([shape]), (2, 2), (40, 40))
    rows, cols = np.mgrid[0:40, 0:40]
    sure_in = contains_xy(shape.buffer(-0.3), cols * 2 + 1, rows * 2 + 1)
    maybe = contains_xy(shape.buffer(0.3), cols * 2 + 1, rows * 2 + 1)
    assert found[sure_in].all()
    assert not found[~maybe].any()


def test_outlines_off_the_raster_are_cut() -> None:
    area = MultiPolygon([box(-50, -50, 5, 5), box(100, 100, 120, 120)])
    assert cells_inside(area, (1, 1), (10, 10)).sum() == 25


def test_filling_takes_the_edge_along() -> None:
    raster = np.zeros((20, 20), np.uint8)
    fill_polygon(raster, box(2, 2, 12, 12), (1, 1), 7)
    assert set(np.unique(raster)) == {0, 7}
    assert raster[2:12, 2:12].all()
    assert (raster > 0).sum() == pytest.approx(110, abs=12)
