"""The words of both applications: what is accepted, and what a sentence calls a class."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import wsi.vocabulary
from wsi.vocabulary import (
    COLOURS,
    HOLE_GROUPS,
    NORMAL_LABELS,
    NOT_TISSUE_GROUPS,
    TUMOUR_GROUPS,
    TUMOUR_LABELS,
    in_words,
    means_tumour,
)


def test_accepted_spellings_stay() -> None:
    """Files of users hold them: none may be lost, and none may begin to mean something else."""
    assert NORMAL_LABELS == ("normal", "negative", "benign", "0")
    assert TUMOUR_LABELS == ("tumor", "tumour", "metastasis", "positive", "1")
    assert sorted(TUMOUR_GROUPS) == [
        "_0", "_1", "lesion", "metastases", "metastasis", "none", "positive", "tumor", "tumour",
    ]  # fmt: skip
    assert sorted(HOLE_GROUPS) == ["_2", "exclusion", "ignore*", "negative", "normal"]
    assert sorted(NOT_TISSUE_GROUPS) == ["exclusion", "ignore*"]


def test_accepted_spellings_are_written_as_they_are_compared() -> None:
    words = {*NORMAL_LABELS, *TUMOUR_LABELS, *TUMOUR_GROUPS, *HOLE_GROUPS}
    assert words == {word.casefold() for word in words}
    assert not set(NORMAL_LABELS) & set(TUMOUR_LABELS)
    assert not TUMOUR_GROUPS & HOLE_GROUPS


@pytest.mark.parametrize("name", ["tumor", "Tumour", "METASTASIS", "metastases"])
def test_spellings_of_a_class_that_is_tumour(name: str) -> None:
    assert means_tumour(name)


@pytest.mark.parametrize("name", ["normal", "positive", "feasible", "C4d positive", "no tumor", ""])
def test_other_classes_are_not_tumour(name: str) -> None:
    assert not means_tumour(name)


@pytest.mark.parametrize(
    ("classes", "positive", "words"),
    [
        (("normal", "tumor"), "tumor", ("normal", "tumour")),
        (("Other", "Metastases", "benign"), "Metastases", ("normal", "tumour")),
        (("not feasible", "feasible"), "feasible", ("not feasible", "feasible")),
        (("lymphocytes", "stroma"), "lymphocytes", ("stroma", "lymphocytes")),
        (("fat", "stroma", "vessel"), "stroma", ("not stroma", "stroma")),
        (("stroma",), "stroma", ("not stroma", "stroma")),
    ],
)
def test_words_of_sentences(classes: tuple[str, ...], positive: str, words: tuple[str, str]) -> None:
    assert in_words(classes, positive) == words


def test_colours_tell_classes_apart() -> None:
    assert len(set(COLOURS.values())) == len(COLOURS) == 5


def test_it_imports_nothing_of_the_project() -> None:
    """Every room may import it, so it may import none."""
    tree = ast.parse(Path(wsi.vocabulary.__file__).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"__future__", "collections.abc"}
