"""A hundred damaged inputs, and all that ever failed: each runs, or is refused by one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fuzz import CORPUS, Workshop, damaged, outcome, run

CASES = sorted(CORPUS.glob("*/*"))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("fuzz") / "whole")


def test_whole_inputs_run(workshop: Workshop, tmp_path: Path) -> None:
    """Else every damaged one would be refused for another reason."""
    for number, target in enumerate(workshop.targets):
        root = workshop.folder / target.file.relative_to(workshop.folder).parts[0]
        copy = tmp_path / str(number)
        shutil.copytree(root, copy)
        if target.kind == "review" and target.file.name == "corrected.geojson":
            path = copy / target.file.relative_to(root)
            path.write_text(path.read_text() + "\n")  # a file of its own
        ended, text = outcome(target, copy / target.file.relative_to(root), "whole")
        assert ended == "ran", (target.kind, target.file.name, text)


@pytest.mark.slow
def test_a_hundred_damaged_inputs() -> None:
    counts, defects = run(100, 11, 300, None)
    assert defects == []
    assert sum(counts.values()) == 100
    assert {ended for _, ended in counts} == {"refused", "ran"}


@pytest.mark.parametrize("case", CASES, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_what_ever_failed(workshop: Workshop, tmp_path: Path, case: Path) -> None:
    """``corpus/KIND/WHAT--FILE``: the contents of FILE, as it was when it failed."""
    name = case.name.split("--", 1)[1]
    target = next(t for t in workshop.targets if t.kind == case.parent.name and t.file.name == name)
    root = workshop.folder / target.file.relative_to(workshop.folder).parts[0]
    shutil.copytree(root, tmp_path / "copy")
    path = tmp_path / "copy" / target.file.relative_to(root)
    shutil.copy(case, path)
    ended, text = outcome(target, path, "cut" if case.name.startswith("truncated") else "corpus")
    assert ended != "defect", text
    if "ran" not in case.name.split("--", 1)[0]:
        assert ended == "refused"


def test_a_planted_defect_is_found(workshop: Workshop, tmp_path: Path) -> None:
    """The harness itself: an exception that is no sentence, a second line, and a truncated slide that is read."""
    from dataclasses import replace

    from wsi.errors import SlideError

    def raises(error: Exception) -> object:
        def use(_path: Path) -> None:
            raise error

        return use

    target = workshop.targets[0]
    path = tmp_path / "s.tif"
    assert outcome(replace(target, use=raises(TypeError("x"))), path, "flip")[0] == "defect"  # type: ignore[arg-type]
    assert outcome(replace(target, use=raises(SlideError("a\nb"))), path, "flip")[0] == "defect"  # type: ignore[arg-type]
    assert outcome(replace(target, use=raises(SlideError("a"))), path, "flip")[0] == "refused"  # type: ignore[arg-type]
    assert outcome(replace(target, use=lambda path: None), path, "cut")[0] == "defect"
    assert outcome(replace(target, use=lambda path: None), path, "flip")[0] == "ran"


def test_the_same_seed_gives_the_same_damage() -> None:
    import numpy as np

    data = b'{"a": 12, "b": [1.5, 2]}' * 5
    first = [damaged(data, True, np.random.default_rng(i)) for i in range(40)]
    assert first == [damaged(data, True, np.random.default_rng(i)) for i in range(40)]
    assert len({kind for _, kind in first}) >= 8
