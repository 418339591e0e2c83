"""``wsi train``: the published recipes on a user's slides or patches."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from models.engines.contract import shipped
from pipelines.camelyon16.read.mine import hard_negatives, write_list
from pipelines.cli.console import Tick, interruptible, out, progress
from pipelines.runs.config import load_config
from pipelines.runs.made_by import code_hash, commit, libraries, machine, version
from pipelines.runs.training_pictures import contact_sheet_png, curves_png, roc_png
from wsi.config import Config
from wsi.datasets.patch_folder import PatchFolder, read_patches
from wsi.datasets.rules import apply_dataset, rows_of_folder
from wsi.errors import ConfigError, StoreError
from wsi.files import csv_text, write_bytes, write_json, write_text
from wsi.metrics.ranking import auc, auc_interval, roc
from wsi.slides.manifest import SlideRow, read_manifest
from wsi.text import number_of

if TYPE_CHECKING:
    from models.training.cross_validation import OutOfFold
    from models.training.progress import Listeners, Progress
    from models.training.recipe import DetectorTrainConfig, SegmenterTrainConfig, TrainConfig

MISTAKES = 24  # on the picture of the worst

app = typer.Typer(no_args_is_help=True, help="Train networks on slides with truth, or on labelled patches.")


@app.callback()
def _group() -> None:
    """Train networks on slides with truth, or on labelled patches."""


@app.command("classifier")
def classifier(
    config: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML recipe, such as configs/camelyon16.yaml.")
    ],
    folder: Annotated[
        Path, typer.Option("--out", "-o", help="The folder for the model, metrics.csv and pictures.")
    ],
    slides: Annotated[
        Path | None,
        typer.Option(help="A slides.csv, or a folder of slides and truth files of the same names."),
    ] = None,
    patches: Annotated[
        Path | None, typer.Option(help="A folder of labelled patches, instead of slides.")
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            help="With --patches: a further folder of labelled patches, which chooses the best network."
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Weights to start from: a model's folder or name, a file of ImageNet weights, 'imagenet' to fetch "
            "them, or 'none'."
        ),
    ] = None,
    hard: Annotated[
        Path | None, typer.Option(help="A list of hard negatives that 'wsi train mine' wrote.")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Cross-validate on --patches by so many parts; with 0 one model is trained on all of them.",
            show_default="the recipe's",
        ),
    ] = None,
    examples: Annotated[
        int | None, typer.Option(help="The number of patches to train on.", show_default="the recipe's")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The seed of everything that is drawn.", show_default="the recipe's")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that stopped in OUT.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is in OUT.")] = False,
) -> None:
    """Train the patch classifier; the best network by validation AUC is kept in OUT/model.

    Ctrl-C stops after the batch at hand; the same command with --resume goes on. For several GPUs:
    torchrun --nproc-per-node N --no-python wsi train classifier ...

    Examples:
    wsi train classifier configs/camelyon16.yaml --slides CAMELYON16 -o runs/camelyon16

    wsi train classifier configs/camelyon16.yaml --slides CAMELYON16 -o runs/camelyon16 --resume
    """
    from models.training.recipe import TrainConfig

    overrides: dict[str, Any] = {"init": init, "hard_negatives": hard, "examples": examples, "seed": seed}
    overrides |= {"slides": slides, "patches": patches, "validation": validation, "folds": folds}
    cfg = load_config(config, TrainConfig, overrides, reset=("slides", "patches"))
    if str(cfg.init) == "none":
        cfg = cfg.model_copy(update={"init": None})
    if cfg.slides is None and cfg.patches is None:
        raise ConfigError(f"{config} names no slides; pass --slides slides.csv, or --patches FOLDER")
    start(cfg, folder, resume=resume, overwrite=overwrite)


def start(cfg: TrainConfig, folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Train by a recipe, after what is there already was looked at."""
    if leads():
        refuse_earlier(folder, resume=resume, overwrite=overwrite)
    _check_start(cfg.init)
    with interruptible("stopping; the same command with --resume goes on") as stop:
        _run(cfg, folder, resume and has_checkpoint(folder), stop)


def refuse_earlier(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Do not replace a run unless asked to.

    Raises:
        StoreError: the folder holds one.
    """
    begun = any((folder / name).exists() for name in ("run.json", "model"))
    if begun and not (overwrite or resume):
        raise StoreError(
            f"{folder} holds a run already; pass --resume or --overwrite, or choose another --out"
        )


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something to go on from; a run that was ended before its first checkpoint begins anew.

    Raises:
        StoreError: there is no run at all.
    """
    from models.training.state import CHECKPOINT

    if any(folder.glob(f"**/{CHECKPOINT}")):
        return True
    if not (folder / "run.json").exists():
        raise StoreError(f"{folder} holds no run to resume; check --out, or leave out --resume")
    say("the run was stopped before its first checkpoint: it begins anew")
    return False


def _check_start(init: Path | None) -> None:
    """Before anything of an earlier run is replaced."""
    if init is not None and str(init) not in ("imagenet", *shipped()) and not init.exists():
        raise ConfigError(f"the weights to start from, {init}, do not exist; check init or --init")


def _discard_run(folder: Path) -> None:
    """Remove the files of earlier runs, so that none of them is taken for this run's."""
    for own in (folder, *folder.glob("fold_*")):
        names = ("checkpoint.safetensors", "metrics.csv", "model/card.json", "model/model.safetensors")
        for name in (*names, "run.json", "scores.csv", "validation.json"):
            (own / name).unlink(missing_ok=True)


def _run(cfg: TrainConfig, folder: Path, resume: bool, stop: Callable[[], bool]) -> None:
    from models.training.classify import train
    from models.training.data.splits import patch_data, slide_data

    code = f"slidewright {version()}, code {code_hash()}"
    if cfg.patches is not None:
        found = _read_patches(cfg.patches, cfg)
        if cfg.folds:
            if "WORLD_SIZE" in os.environ:
                raise ConfigError("cross-validation runs in one process; leave out torchrun, or set folds: 0")
            _cross_validate(found, cfg, folder, code, resume, stop)
            return
        held_out = None if cfg.validation is None else _read_patches(cfg.validation, cfg)
        data = patch_data(found, range(len(found.files)), cfg, held_out)
    else:
        rows = _rows(cfg)
        with progress("slides") as tick:
            data = slide_data(rows, cfg, say=say, tick=_stopping(tick, stop))
    if not resume:
        write_training_run(cfg, folder)
    with progress("training") as tick:
        best = train(
            data,
            cfg,
            folder,
            code_version=code,
            resume=resume,
            listeners=_listeners(cfg, folder, tick, stop),
        )
    kept = "the last network" if np.isnan(best) else f"the best network (validation AUC {best:.4f})"
    say(f"{kept} is in {folder / 'model'}")


def _read_patches(folder: Path, cfg: TrainConfig) -> PatchFolder:
    found = read_patches(folder)
    for sentence in found.left_out:
        say(f"left out: {sentence}")
    counts = (f"{len(found.of(label))} {name}" for label, name in enumerate(cfg.words))
    say(f"{len(found.files)} patches: {', '.join(counts)}")
    return found


def _rows(cfg: TrainConfig) -> list[SlideRow]:
    """The recipe's slides, by manifest or folder, with what the recipe knows of them by name."""
    assert cfg.slides is not None
    rows = rows_of_folder(cfg.slides) if cfg.slides.is_dir() else read_manifest(cfg.slides)
    known = apply_dataset(rows, cfg.rules)
    for sentence in known.left_out:
        say(sentence)
    return list(known.rows)


def _stopping(tick: Tick, stop: Callable[[], bool]) -> Callable[[int, int], None]:
    """Move the bar, and end where Ctrl-C was pressed."""

    def move(done: int, total: int) -> None:
        tick(done, total)
        if stop():
            raise KeyboardInterrupt

    return move


def leads() -> bool:
    """Whether this is the process that writes and speaks, of those that ``torchrun`` started."""
    return os.environ.get("RANK", "0") == "0"


def write_training_run(cfg: Config, folder: Path) -> None:
    """Write ``run.json``, and remove what an earlier run left."""
    if not leads():
        return
    _discard_run(folder)  # only now: bad input must not cost what is there
    record: dict[str, Any] = {"config": cfg.model_dump(mode="json"), "code": code_hash(), "commit": commit()}
    record |= {"program": f"slidewright {version()}", "intended_use": "research use only"}
    write_json(folder / "run.json", record | {"libraries": libraries(), "machine": machine()})


def say(text: str) -> None:
    """Print a line, of one process."""
    if leads():
        out.print(text, markup=False)


def _listeners(
    cfg: TrainConfig, folder: Path, tick: Tick, stop: Callable[[], bool], title: str = ""
) -> Listeners:
    from models.training.progress import Listeners

    def report(p: Progress) -> None:
        note = f"loss {p.loss:.3f}, rate {p.learning_rate:.2g}, {p.examples_per_s:.0f} examples/s"
        tick(p.examples, p.total, f"{note}, waiting {p.waiting:.0%}")
        if p.quality is not None:
            say(f"{title}{p.examples} examples: loss {p.loss:.4f}, validation AUC {p.quality:.4f}")

    def show(patches: Any, labels: Any) -> None:
        heading = f"{cfg.name}: what the network sees first (red: {cfg.classes[1]}, green: {cfg.classes[0]})"
        write_bytes(folder / "contact_sheet.png", contact_sheet_png(patches, labels, title=heading))

    def metrics(rows: list[dict[str, Any]]) -> None:
        picture = curves_png(rows, cfg.name, measure="auc", label="validation AUC")
        write_bytes(folder / "metrics.png", picture)

    return Listeners(report=report, metrics=metrics, show=show, say=say, stop=stop)


def train_on_tiles(
    train: Callable[..., float],
    cfg: DetectorTrainConfig | SegmenterTrainConfig,
    rows: Sequence[SlideRow],
    folder: Path,
    measure: str,
    label: str,
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Train a network that learns from tiles, after what is there already was looked at.

    Args:
        train: `models.training.detect.train_detector` or `models.training.segment.train_segmenter`.
        cfg: the recipe.
        rows: slides with truth.
        folder: of the run.
        measure: the column of ``metrics.csv`` by which networks are compared.
        label: what sentences and the picture call it.
        resume: go on with the run that stopped there.
        overwrite: replace the model that is there.
    """
    if leads():
        refuse_earlier(folder, resume=resume, overwrite=overwrite)
    with interruptible("stopping; the same command with --resume goes on") as stop:
        again = resume and has_checkpoint(folder)
        if not again:
            write_training_run(cfg, folder)
        with progress("training") as tick:
            best = train(
                rows,
                cfg,
                folder,
                code_version=f"slidewright {version()}, code {code_hash()}",
                resume=again,
                listeners=_tile_listeners(cfg.name, folder, tick, stop, measure, label),
            )
    kept = "the last network" if np.isnan(best) else f"the best network ({label} {best:.4f})"
    say(f"{kept} is in {folder / 'model'}; for research use only")


def _tile_listeners(
    name: str, folder: Path, tick: Tick, stop: Callable[[], bool], measure: str, label: str
) -> Listeners:
    from models.training.progress import Listeners

    def report(p: Progress) -> None:
        tick(p.examples, p.total, f"loss {p.loss:.3f}, {p.examples_per_s:.1f} tiles/s")
        if p.quality is not None:
            say(f"{p.examples} tiles: loss {p.loss:.4f}, validation {label} {p.quality:.4f}")

    def metrics(rows: list[dict[str, Any]]) -> None:
        picture = curves_png(rows, name, measure=measure, label=f"validation {label}")
        write_bytes(folder / "metrics.png", picture)

    return Listeners(report=report, metrics=metrics, say=say, stop=stop)


def _cross_validate(
    found: PatchFolder, cfg: TrainConfig, folder: Path, code: str, resume: bool, stop: Callable[[], bool]
) -> None:
    from models.training.cross_validation import cross_validate

    if not resume:
        write_training_run(cfg, folder)
    with progress("training") as tick:

        def shifted(k: int) -> Any:
            return lambda done, total, note: tick(
                k * total + done, cfg.folds * total, f"fold {k + 1}: {note}"
            )

        listeners = [
            _listeners(cfg, folder / f"fold_{k + 1}", shifted(k), stop, f"fold {k + 1}: ")
            for k in range(cfg.folds)
        ]
        result = cross_validate(found, cfg, folder, code_version=code, resume=resume, listeners=listeners)
    _write_validation(found, result, cfg, folder)


def _write_validation(found: PatchFolder, result: OutOfFold, cfg: TrainConfig, folder: Path) -> None:
    """Scores, the table, the ROC curves, and the worst mistakes."""
    names = [file.name for file in found.files]
    rows = (
        (name, cfg.classes[int(positive)], fold + 1, f"{score:.6f}")
        for name, positive, fold, score in zip(
            names, result.positive, result.fold, result.scores, strict=True
        )
    )
    write_text(folder / "scores.csv", csv_text(("file", "label", "fold", "score"), rows))
    whole = auc(result.positive, result.scores)
    low, high = auc_interval(result.positive, result.scores)
    curves = [(f"pooled, AUC {whole:.4f}", *roc(result.positive, result.scores))]
    folds: list[dict[str, Any]] = []
    negative, positive = cfg.words
    for k in range(cfg.folds):
        mine = result.fold == k
        value = auc(result.positive[mine], result.scores[mine])
        low_k, high_k = auc_interval(result.positive[mine], result.scores[mine])
        counts = [int((result.positive[mine] == label).sum()) for label in (False, True)]
        folds.append({negative: counts[0], positive: counts[1], "auc": value, "interval": [low_k, high_k]})
        curves.append((f"fold {k + 1}, AUC {value:.4f}", *roc(result.positive[mine], result.scores[mine])))
        say(
            f"fold {k + 1}: {counts[0]} {negative}, {counts[1]} {positive}, AUC {value:.4f} "
            f"({low_k:.4f} to {high_k:.4f})"
        )
    say(f"pooled out-of-fold AUC {whole:.4f} (95 % interval {low:.4f} to {high:.4f})")
    say(f"without the mean over 8 orientations {auc(result.positive, result.single):.4f}")
    write_json(folder / "validation.json", {"auc": whole, "interval": [low, high], "folds": folds})
    roc_title = f"{cfg.name}: {cfg.folds} folds, {len(names)} patches"
    write_bytes(folder / "roc.png", roc_png(curves, roc_title))
    error = np.where(result.positive, 1 - result.scores, result.scores)
    worst = np.argsort(-error, kind="stable")[:MISTAKES]
    mistakes = contact_sheet_png(
        [found.pixels[i] for i in worst],
        [int(result.positive[i]) for i in worst],
        title=f"{cfg.name}: the worst mistakes (red: {positive}, green: {negative}; score is that of {positive})",
        captions=[f"{names[i]} {result.scores[i]:.2f}" for i in worst],
    )
    write_bytes(folder / "mistakes.png", mistakes)
    say(f"{folder / 'roc.png'} and {folder / 'mistakes.png'} show it; for research use only")


@app.command("mine")
def mine(
    scored: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="The --out of wsi score on the training slides.")
    ],
    slides: Annotated[Path, typer.Option(help="The training slides: slides.csv, or their folder.")],
    listing: Annotated[Path, typer.Option("--out", "-o", help="The CSV to write; a picture goes beside it.")],
    config: Annotated[Path | None, typer.Option(help="The recipe, for what it knows of the slides.")] = None,
    per_slide: Annotated[
        int, typer.Option(min=1, help="The most cells that are listed from one slide.")
    ] = 50,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="The lowest score of a cell that is listed.")
    ] = 0.5,
    margin: Annotated[int, typer.Option(min=0, help="Cells around tumour that are left out.")] = 2,
) -> None:
    """List the highest-scoring normal cells: hard negatives for 'wsi train classifier --hard'.

    Examples:
    wsi train mine runs/scored --slides slides.csv -o hard.csv
    """
    from models.training.recipe import TrainConfig

    base = TrainConfig(name="mine") if config is None else load_config(config, TrainConfig)
    cfg = base.model_copy(update={"slides": slides})
    rows = [row for row in _rows(cfg) if (row.split or "train") == "train"]
    if not rows:
        raise ConfigError(f"{slides} has no slide whose split is 'train'")
    with progress("mining") as tick:
        found = hard_negatives(
            rows,
            scored,
            cfg,
            per_slide=per_slide,
            threshold=threshold,
            margin=margin,
            tick=tick,
        )
    picture = write_list(listing, found)
    total = f"{number_of(len(found), 'hard negative')} of {number_of(len(rows), 'slide')}"
    say(f"{listing} lists {total}; {picture} shows the highest")
