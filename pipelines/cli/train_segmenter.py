"""``wsi train segmenter``: networks that name the class of every place on a slide."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.train import train_on_tiles
from pipelines.cli.train_renal import Examples, Folder, Overwrite, Recipe, Resume, Seed
from pipelines.runs.config import load_config
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
    from models.training.data.areas import check_areas
    from models.training.recipe import SegmenterTrainConfig
    from models.training.segment import train_segmenter

    cfg = load_config(config, SegmenterTrainConfig, {"slides": slides, "examples": examples, "seed": seed})
    if cfg.slides is None:
        raise ConfigError(f"{config} names no slides; pass --slides slides.csv")
    rows = read_manifest(cfg.slides)
    check_areas(rows, cfg)  # bad input must not cost what is there
    train_on_tiles(
        train_segmenter, cfg, rows, folder, "mean_iou", "mean IoU", resume=resume, overwrite=overwrite
    )
