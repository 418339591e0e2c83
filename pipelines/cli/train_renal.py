"""``wsi train fields`` and ``wsi train capillaries``: the two networks of C4d-stained kidneys."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pipelines.cli.console import out
from pipelines.cli.train import refuse_earlier, say, start, train_on_tiles
from pipelines.runs.config import load_config
from wsi.errors import ConfigError
from wsi.files import csv_text, write_text
from wsi.slides.manifest import SlideRow, read_manifest

if TYPE_CHECKING:
    from models.training.recipe import DetectorTrainConfig
    from models.training.trials import Trial, TrialScore

STEP_PX = 10  # between the enlargements of a sweep, as in the paper's table

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.")]
Folder = Annotated[
    Path, typer.Option("--out", "-o", help="The folder for the model, metrics.csv and metrics.png.")
]
Examples = Annotated[
    int | None, typer.Option(help="The number of examples to train on.", show_default="the recipe's")
]
Seed = Annotated[
    int | None, typer.Option(help="The seed of everything that is drawn.", show_default="the recipe's")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that stopped in OUT.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the model that is in OUT.")]


def fields(
    config: Recipe,
    folder: Folder,
    slides: Annotated[
        Path | None, typer.Option(help="A fields.csv with path, truth (labelled fields) and split.")
    ] = None,
    examples: Examples = None,
    seed: Seed = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train what tells feasible fields from others; the best network by validation AUC is kept in OUT/model.

    Its threshold is chosen on the validation fields so that it keeps the recipe's share of feasible ones.

    Examples:
    wsi train fields configs/renal_fields.yaml --slides kidneys/fields.csv -o runs/fields
    """
    from models.training.recipe import TrainConfig

    cfg = load_config(config, TrainConfig, {"slides": slides, "examples": examples, "seed": seed})
    if cfg.task != "fields":
        raise ConfigError(f"{config} is a recipe of the task {cfg.task!r}; give one of 'fields'")
    if cfg.slides is None:
        raise ConfigError(f"{config} names no slides; pass --slides fields.csv")
    start(cfg, folder, resume=resume, overwrite=overwrite)


def capillaries(
    config: Recipe,
    folder: Folder,
    slides: Annotated[
        list[Path] | None,
        typer.Option(help="A slides.csv with path, truth and split; give it again for more of them."),
    ] = None,
    corrected: Annotated[
        Path | None,
        typer.Option(
            help="A further slides.csv whose truth a person corrected: trained without and with it."
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            "--sweep-enlargement",
            help="Train several times, with labels enlarged by so many px: 0..60 is 0, 10, ... 60.",
        ),
    ] = None,
    examples: Examples = None,
    seed: Seed = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train the capillary detector; the best network by mean average precision is kept in OUT/model.

    Ctrl-C stops after the batch at hand; the same command with --resume goes on. --sweep-enlargement (in steps of
    10 px of 0.25 um, Kim et al.'s table) and --corrected train several networks, each in a folder of its own, and
    compare them on the held-out slides.

    Examples:
    wsi train capillaries configs/renal_ptc.yaml --slides kidneys/slides.csv -o runs/capillaries
    """
    from models.training.data.tiles import read_truths, used_rows
    from models.training.recipe import DetectorTrainConfig
    from models.training.trials import corrected_trials, sweep_trials

    cfg = load_config(
        config, DetectorTrainConfig, {"slides": slides or None, "examples": examples, "seed": seed}
    )
    if not cfg.manifests:
        raise ConfigError(f"{config} names no slides; pass --slides slides.csv")
    if sweep and corrected:
        raise ConfigError("--sweep-enlargement and --corrected are two experiments; give one at a time")
    if (sweep or corrected) and "WORLD_SIZE" in os.environ:
        raise ConfigError("--sweep-enlargement and --corrected run in one process; leave out torchrun")
    rows = [row for path in cfg.manifests for row in read_manifest(path)]
    read_truths(used_rows(rows), cfg)  # bad input must not cost what is there
    if not (sweep or corrected):
        _train(cfg, rows, folder, resume=resume, overwrite=overwrite)
        return
    if sweep:
        trials = sweep_trials(cfg, rows, _range(sweep))
    else:
        assert corrected is not None
        more = read_manifest(corrected)
        read_truths(more, cfg)
        trials = corrected_trials(cfg, rows, more)
    _compare(trials, folder, resume=resume, overwrite=overwrite)


def _range(text: str) -> list[int]:
    """``0..60`` as 0, 10, ... 60.

    Raises:
        ConfigError: it is no such range.
    """
    try:
        low, high = (int(part) for part in text.split(".."))
    except ValueError as error:
        raise ConfigError(
            f"--sweep-enlargement must be FROM..TO in px such as 0..60, got {text!r}"
        ) from error
    if not 0 <= low <= high <= 200:
        raise ConfigError(f"--sweep-enlargement must rise within 0..200, got {text!r}")
    return list(range(low, high + 1, STEP_PX))


def _train(
    cfg: DetectorTrainConfig, rows: Sequence[SlideRow], folder: Path, *, resume: bool, overwrite: bool
) -> None:
    from models.training.detect import train_detector

    train_on_tiles(train_detector, cfg, rows, folder, "ap50", "mean AP50", resume=resume, overwrite=overwrite)


def _compare(trials: Sequence[Trial], folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Train trial after trial, then measure all; a trial that is complete is not trained again by --resume."""
    from models.training.trials import score_trial

    if not resume:
        for trial in trials:
            refuse_earlier(folder / trial.name, resume=False, overwrite=overwrite)
    scores: list[TrialScore] = []
    for trial in trials:
        say(f"{trial.name}: labels enlarged by {', '.join(f'{um:g}' for um in trial.cfg.enlarge_um)} um")
        begun = resume and (folder / trial.name / "run.json").exists()
        _train(trial.cfg, trial.rows, folder / trial.name, resume=begun, overwrite=True)
        scores += score_trial(trial, folder / trial.name)
        _write_table(folder, scores)  # what is done stays if the next one is stopped
    _show_table(scores)
    say(f"{folder / 'trials.csv'} holds the table; for research use only")


def _write_table(folder: Path, scores: Sequence[TrialScore]) -> None:
    header = (
        "trial",
        "class",
        "enlarged_um",
        "ap50_learned",
        "ap50_capillary",
        "f1",
        "hits",
        "false",
        "missed",
    )
    rows = []
    for s in scores:
        a = s.agreement
        values = [f"{v:.4f}" for v in (s.ap50_learned, s.ap50_capillary, a.f1)]
        rows.append([s.trial, s.label, f"{s.enlarged_um:g}", *values, a.hits, a.false, a.missed])
    write_text(folder / "trials.csv", csv_text(header, rows))


def _show_table(scores: Sequence[TrialScore]) -> None:
    table = Table("trial", "class", "AP50 as learned", "AP50 of the capillary", "F1", "hits/false/missed")
    for s in scores:
        a = s.agreement
        values = [f"{v:.3f}" for v in (s.ap50_learned, s.ap50_capillary, a.f1)]
        table.add_row(s.trial, s.label, *values, f"{a.hits}/{a.false}/{a.missed}")
    out.print(table)
