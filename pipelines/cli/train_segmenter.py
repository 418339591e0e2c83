"""``wsi train segmenter``: networks that name the class of every place on a slide."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from pipelines.cli.console import interruptible, progress
from pipelines.cli.train import (
    has_checkpoint,
    leads,
    refuse_earlier,
    say,
    tile_listeners,
    write_training_run,
)
from pipelines.cli.train_renal import Examples, Folder, Overwrite, Recipe, Resume, Seed
from pipelines.runs.config import load_config
from pipelines.runs.made_by import code_hash, version
from wsi.errors import ConfigError
from wsi.slides.manifest import read_manifest


def segmenter(
    config: Recipe,
    folder: Folder,
    slides: Annotated[
        Path | None,
        typer.Option(
            help="A slides.csv with path, truth and split; the truth's groups are the recipe's classes."
        ),
    ] = None,
    examples: Examples = None,
    seed: Seed = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a segmenter; the best network by mean intersection over union is kept in OUT/model.

    Ctrl-C stops after the batch at hand; the same command with --resume goes on.

    Examples:
    wsi train segmenter configs/kidney_compartments.yaml --slides kidneys/compartments.csv -o runs/compartments
    """
    from models.training.data.areas import read_all_areas
    from models.training.data.tiles import used_rows
    from models.training.recipe import SegmenterTrainConfig
    from models.training.segment import train_segmenter

    cfg = load_config(config, SegmenterTrainConfig, {"slides": slides, "examples": examples, "seed": seed})
    if cfg.slides is None:
        raise ConfigError(f"{config} names no slides; pass --slides slides.csv")
    rows = read_manifest(cfg.slides)
    read_all_areas(used_rows(rows), cfg)  # bad input must not cost what is there
    if leads():
        refuse_earlier(folder, resume=resume, overwrite=overwrite)
    with interruptible("stopping; the same command with --resume goes on") as stop:
        again = resume and has_checkpoint(folder)
        if not again:
            write_training_run(cfg, folder)
        with progress("training") as tick:
            best = train_segmenter(
                rows,
                cfg,
                folder,
                code_version=f"slidewright {version()}, code {code_hash()}",
                resume=again,
                listeners=tile_listeners(cfg.name, folder, tick, stop, "mean_iou", "mean IoU"),
            )
    kept = "the last network" if np.isnan(best) else f"the best network (mean IoU {best:.4f})"
    say(f"{kept} is in {folder / 'model'}; for research use only")
