"""Every option of every command is named by a test; here are those that no other file holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import pytest
import typer

from models.training.recipe import DetectorTrainConfig, TrainConfig
from pipelines.cli import app, train, train_renal
from tests.pipelines.camelyon16.test_evaluation import benchmark  # noqa: F401  (a fixture)
from tests.slides import ROOT
from wsi.slides.manifest import read_manifest

Run = Callable[..., tuple[int, str, str]]


def options(command: Any, context: click.Context, path: str = "wsi") -> Iterator[tuple[str, list[str]]]:
    """Each command's options, with all their spellings."""
    if not hasattr(command, "list_commands"):
        for parameter in command.params:
            if parameter.param_type_name == "option":
                yield path, [*parameter.opts, *parameter.secondary_opts]
        return
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        inner = click.Context(below, parent=context, info_name=name)
        yield from options(below, inner, f"{path} {name}")


def test_every_option_is_named_by_a_test() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    command = typer.main.get_command(app)
    forgotten = [
        (path, names)
        for path, names in options(command, click.Context(command))
        if not any(re.search(rf"[\"' ]{re.escape(name)}[\"' =]", text) for name in names)
    ]
    assert not forgotten


class TestTraining:
    """What a recipe becomes by the options; training itself has its own tests."""

    @pytest.fixture
    def started(self, monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
        found: list[TrainConfig] = []
        monkeypatch.setattr(train, "start", lambda cfg, folder, **_: found.append(cfg))
        monkeypatch.setattr(train_renal, "start", lambda cfg, folder, **_: found.append(cfg))
        return found

    def test_classifier(self, tmp_path: Path, wsi: Run, started: list[TrainConfig]) -> None:
        (tmp_path / "r.yaml").write_text("name: r\nexamples: 50\nfolds: 3\npatches: p\nseed: 4\n")
        base = ("train", "classifier", tmp_path / "r.yaml", "-o", tmp_path / "o")
        for words in (
            (),
            ("--examples", "70", "--seed", "5", "--folds", "0", "--hard", "h.csv", "--init", "m"),
            ("--folds", "0", "--validation", "v"),
        ):
            assert wsi(*base, *words)[0] == 0
        plain, changed, chosen = started
        assert (plain.examples, plain.seed, plain.folds, plain.hard_negatives) == (50, 4, 3, None)
        assert (changed.examples, changed.seed, changed.folds) == (70, 5, 0)
        assert (changed.hard_negatives, changed.init) == (Path("h.csv"), Path("m"))
        assert (plain.validation, chosen.validation) == (None, Path("v"))

    def test_fields(self, tmp_path: Path, wsi: Run, started: list[TrainConfig]) -> None:
        (tmp_path / "r.yaml").write_text("name: r\ntask: fields\nslides: s.csv\nexamples: 50\n")
        code, _, err = wsi("train", "fields", tmp_path / "r.yaml", "-o", tmp_path / "o", "--examples", "70")
        assert code == 0, err
        assert started[0].examples == 70

    def test_capillaries(self, tmp_path: Path, wsi: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        found: list[DetectorTrainConfig] = []
        monkeypatch.setattr(train_renal, "_train", lambda cfg, *_, **__: found.append(cfg))
        (tmp_path / "s.csv").write_text("path,truth,split\n")
        (tmp_path / "r.yaml").write_text(f"name: r\nslides: {tmp_path / 's.csv'}\nexamples: 50\n")
        monkeypatch.setattr(train_renal, "read_manifest", lambda path: [])
        monkeypatch.setattr("models.training.data.tiles.used_rows", lambda rows: rows)
        monkeypatch.setattr("models.training.data.tiles.read_truths", lambda rows, cfg: None)
        code, _, err = wsi(
            "train", "capillaries", tmp_path / "r.yaml", "-o", tmp_path / "o", "--examples", "70"
        )
        assert code == 0, err
        assert found[0].examples == 70

    def test_mine(self, tmp_path: Path, wsi: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        from wsi.slides.manifest import SlideRow
        from wsi.slides.source import SlideSource

        found: list[dict[str, Any]] = []
        monkeypatch.setattr(train, "_rows", lambda cfg: [SlideRow(SlideSource("s.tif"))])
        monkeypatch.setattr(train, "hard_negatives", lambda *_, **options: found.append(options) or [])
        monkeypatch.setattr(train, "write_list", lambda listing, rows: listing)
        base = ("train", "mine", tmp_path, "--slides", "s.csv", "-o", tmp_path / "h.csv")
        for words in ((), ("--per-slide", "7", "--threshold", "0.8", "--margin", "3")):
            code, out, err = wsi(*base, *words)
            assert code == 0, err
            assert "0 hard negatives of 1 slide;" in out
        assert [(f["per_slide"], f["threshold"], f["margin"]) for f in found] == [(50, 0.5, 2), (7, 0.8, 3)]


@pytest.mark.slow
def test_the_share_of_phantoms_with_tumour(tmp_path: Path, wsi: Run) -> None:
    for share, label in (("0", "normal"), ("1", "tumor")):
        words = ("--count", "2", "--size", "4096x4096", "--tumour-share", share, "-o", tmp_path / share)
        assert wsi("phantom", "lymph-node", *words)[0] == 0
        rows = read_manifest(tmp_path / share / "slides.csv")
        assert [row.label for row in rows] == [label] * 2


def test_the_form_of_an_export(tmp_path: Path, wsi: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for form in ("onnx", "wsinfer"):
        monkeypatch.setattr(
            f"models.forms.portable.export_{form}", lambda model, folder, form=form: made.append(form) or 0.0
        )
    for words in ((), ("--form", "wsinfer")):
        assert wsi("models", "export", "lymph-node-demo", "-o", tmp_path / "o", *words)[0] == 0
    assert made == ["onnx", "wsinfer"]


class TestEvaluation:
    def test_operating_points(self, benchmark: tuple[Path, Path], wsi: Run) -> None:  # noqa: F811
        """Slide scores .9 and .5 with tumour, .6 and .1 without: at 0.55 one of two is found, one normal is called."""
        run, truth = benchmark
        words = ("--truth", truth, "--draws", "0", "--at", "0.55", "--at", "0.05")
        code, _, err = wsi("camelyon16", "evaluate", run, *words)
        assert code == 0, err
        import json

        value = json.loads((run / "evaluation" / "evaluation.json").read_text())
        points = value["figures"]["operating points"][:2]
        assert [p["from score"] for p in points] == [0.55, 0.05]
        assert [p["sensitivity"]["value"] for p in points] == [0.5, 1.0]
        assert [p["specificity"]["value"] for p in points] == [0.5, 0.0]

    def test_published_results_are_drawn_where_asked(self, benchmark: tuple[Path, Path], wsi: Run) -> None:  # noqa: F811
        run, truth = benchmark
        pictures = {}
        for word in ("--published", "--no-published"):
            out = run.parent / word
            words = ("--truth", truth, "--draws", "0", "--out", out, word)
            assert wsi("camelyon16", "evaluate", run, *words)[0] == 0
            pictures[word] = [cv2.imread(str(out / f"{name}.png")) for name in ("froc", "roc")]
        for first, second in zip(*pictures.values(), strict=True):
            assert first.shape != second.shape or np.any(first != second)


def test_pdf_goes_with_report_and_review(tmp_path: Path, wsi: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both commands ask for what prints before they read a slide."""
    from wsi.errors import ConfigError

    def absent() -> None:
        raise ConfigError("no printer here")

    for command, words in (
        ("renal", ("renal", "report", tmp_path / "s.tif", "-o", tmp_path / "o")),
        ("renal_review", ("renal", "review", tmp_path, tmp_path / "c.geojson")),
    ):
        (tmp_path / "s.tif").touch()
        monkeypatch.setattr(f"pipelines.cli.{command}.check_pdf", absent)
        code, _, err = wsi(*words, "--pdf")
        assert (code, "no printer here" in err) == (2, True), err
