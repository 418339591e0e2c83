"""ROC curves are looked for in the picture's pixels."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipelines.runs.pictures import draw_roc

BLUE = np.array([0x15, 0x65, 0xC0])
FIRST = ("first", np.array([0.0, 0.2, 1.0]), np.array([0.0, 0.7, 0.7]))
SECOND = ("second", np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.4, 0.4]))


def whole_picture() -> tuple[Figure, Axes]:
    """A picture of 400 x 300 px all of which is the square from (0, 0) to (1, 1)."""
    figure = Figure(figsize=(4, 3), dpi=100)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    return figure, axis


def is_blue(figure: Figure, false_rate: float, true_rate: float) -> bool:
    """Whether the first curve's colour lies within 2 px of a place."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    row, col = round(300 * (1 - true_rate)), round(400 * false_rate)
    near = np.asarray(canvas.buffer_rgba())[row - 2 : row + 3, col - 2 : col + 3, :3]
    return bool((np.abs(near.astype(int) - BLUE).max(axis=2) < 20).any())


def test_the_first_curve_is_bold_and_where_its_rates_are() -> None:
    figure, axis = whole_picture()
    draw_roc(axis, [FIRST, SECOND], thin=1.1)
    assert is_blue(figure, 0.2, 0.7)
    assert is_blue(figure, 0.5, 0.7)
    assert not is_blue(figure, 0.7, 0.2)
    assert [line.get_linewidth() for line in axis.lines] == [2.2, 1.1, 1]  # the last is the diagonal
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["first", "second"]


def test_points_lie_at_their_rates_and_stand_in_the_legend() -> None:
    figure, axis = whole_picture()
    draw_roc(axis, [], points=[("from 0.5", 0.3, 0.8)])
    assert is_blue(figure, 0.3, 0.8)
    assert not is_blue(figure, 0.8, 0.3)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["from 0.5"]


def test_without_a_curve_there_is_no_legend() -> None:
    _, axis = whole_picture()
    draw_roc(axis, [])
    assert axis.get_legend() is None
    assert len(axis.lines) == 1
