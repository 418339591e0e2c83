"""Tasks of both applications: whoever runs them, how often and in what order, the bytes are the same."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.card import DEFAULT_MODEL
from models.engines import EngineConfig, ScoreSpec, find_models, load_engine
from pipelines.camelyon16.read.score import ScoreConfig, score_slide
from pipelines.renal.read.reading import RenalConfig
from pipelines.renal.read.run import report_slide
from pipelines.runs.task import Executor, Here, Task, Tick, in_parts
from tests.renal_slides import readers, scattered, slide_of
from tests.slides import RednessEngine, coordinates, write_pyramid
from wsi.errors import ModelError
from wsi.results.folder import LocalFolder
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource


class Elsewhere:
    """As on another machine: tasks travel as bytes, are run last first, and each of them twice."""

    chunks_per_task = 1

    def __init__(self) -> None:
        self.count = 0

    def map(self, tasks: Iterable[Task], tick: Tick) -> Iterator[Task]:
        for content in reversed([pickle.dumps(task) for task in tasks]):
            for _ in range(2):
                pickle.loads(content).run(tick)
            self.count += 1
            yield pickle.loads(content)


def contents(folder: Path) -> dict[str, bytes]:
    place = LocalFolder(folder)
    return {name: place.read(name) for name in place.files()}


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> SlideRow:
    """7 x 5 chunks of tissue at stride 256."""
    pixels = np.clip(coordinates(6900, 4700), 60, 190)
    path = write_pyramid(tmp_path_factory.mktemp("tasks") / "s.tif", pixels, levels=2)
    return SlideRow(SlideSource(str(path)))


def scored(row: SlideRow, out: Path, executor: Executor) -> dict[str, bytes]:
    told: list[tuple[int, int]] = []
    score_slide(
        row,
        "s",
        RednessEngine(),
        out,
        ScoreConfig(stride=16),
        executor=executor,
        progress=lambda done, total, what: told.append((done, total)) if what == "cells" else None,
    )
    assert told[-1][0] == told[-1][1] > 0
    return contents(out)


class TestScores:
    def test_the_same_bytes_whoever_scores(self, tissue: SlideRow, tmp_path: Path) -> None:
        elsewhere = Elsewhere()
        assert scored(tissue, tmp_path / "a", elsewhere) == scored(tissue, tmp_path / "b", Here())
        assert elsewhere.count > 3

    def test_progress_counts_over_all_tasks(self, tissue: SlideRow, tmp_path: Path) -> None:
        class Parts(Here):
            chunks_per_task = 1  # type: ignore[assignment]

        assert scored(tissue, tmp_path / "a", Parts()) == scored(tissue, tmp_path / "b", Here())


class TestBoxes:
    def test_the_same_bytes_whoever_looks(self, tmp_path: Path) -> None:
        slide = slide_of(tmp_path / "k.tif", scattered(60, 0.4, 2), cols=5, rows=4, scar=2)
        row, elsewhere = SlideRow(SlideSource(str(slide))), Elsewhere()
        for name, executor in (("a", elsewhere), ("b", Here())):
            report_slide(row, "k", readers(), tmp_path / name, RenalConfig(), executor=executor)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")
        assert elsewhere.count >= 3  # at least one of fields and two of tiles


def test_runs_are_whole_in_order_and_of_about_one_length() -> None:
    for count in range(30):
        for most in (None, 1, 3, 7):
            parts = list(in_parts(range(count), most))
            assert [i for part in parts for i in part] == list(range(count))
            lengths = {len(part) for part in parts}
            assert not lengths or max(lengths) - min(lengths) <= 1
            assert all(0 < n <= (most or count) for n in lengths)


class TestSpecs:
    def test_an_engine_in_use_is_not_made_again_and_an_unused_one_is_let_go(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = load_engine(find_models([DEFAULT_MODEL]), EngineConfig(precision="fp32"))
        spec = pickle.loads(pickle.dumps(engine.spec))
        assert spec.make() is engine
        other = replace(spec, cfg=EngineConfig(precision="fp32", orientations=8), description="")
        assert other.make() is not engine
        with pytest.raises(
            ModelError, match="would compute with openvino .*, the run was begun with torch on a GPU;"
        ):
            replace(spec, description="torch on a GPU").make()
        first = id(engine)
        del engine
        made: list[object] = []
        monkeypatch.setattr("models.engines.spec.load_engine", lambda models, cfg: made.append(first))
        with pytest.raises(AttributeError):  # nothing has no description
            spec.make()
        assert made == [first]

    def test_other_weights_on_the_other_machine_are_refused_by_name(self) -> None:
        models = find_models([DEFAULT_MODEL])
        begun = replace(models, cards=(models.card.model_copy(update={"sha256": "f" * 64}),))
        with pytest.raises(
            ModelError, match=rf"{DEFAULT_MODEL} holds other weights .* than those .*\(ffffffffffff"
        ):
            ScoreSpec(begun, EngineConfig()).make()
