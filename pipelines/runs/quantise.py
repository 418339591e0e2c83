"""A model's int8 form: made on patches like those of its training, measured on others, written with both figures."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np

from models.card import CARD, DOMAIN, WEIGHTS, Int8Facts, ModelCard, card_json, hash_int8
from models.engines import EngineConfig, find_models, load_engine
from models.engines.int8 import FITTED_ON, int8_graph, write_int8
from pipelines.runs.patches import read_fitted, score_patches
from wsi.datasets.patch_folder import POSITIVE_LABEL
from wsi.datasets.patch_pictures import PatchPicture
from wsi.errors import ConfigError
from wsi.files import write_text
from wsi.metrics.ranking import auc


def _ahead_by(tick: Callable[[int, int], None], before: int, total: int, done: int, _: int) -> None:
    tick(before + done, total)


def quantise_model(
    source: Path,
    training: Sequence[PatchPicture],
    patches: Sequence[PatchPicture],
    out: Path,
    *,
    mpp: float | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> ModelCard:
    """Write a copy of a model with its int8 form, and return its card.

    Args:
        source: a model's folder.
        training: patches like those of the training; `FITTED_ON` of them, evenly taken, fix the ranges of values.
        patches: labelled patches of both classes that the model was not trained on.
        out: the new model's folder.
        mpp: um per pixel of the labelled patches; None: they have the model's.
        tick: called with (patches scored, patches to be scored).

    Raises:
        ConfigError: NNCF is not installed, or patches of a class lack.
        ModelError: the folder holds no model of ours.
    """
    models = find_models([str(source)])
    card = models.card
    if not (source / WEIGHTS).is_file():
        raise ConfigError(f"{source} is in another program's form; only models of this program are quantised")
    labelled = [p for p in patches if p.label is not None]
    positive = [p.label == POSITIVE_LABEL for p in labelled]
    if len(set(positive)) < 2:
        raise ConfigError(
            "figures need labelled patches of both classes; put them into folders normal and tumor"
        )
    if out.exists() and out.samefile(source):
        raise ConfigError(f"--out {out} is the model itself; choose another folder")
    indices = np.linspace(0, len(training) - 1, min(FITTED_ON, len(training))).round().astype(np.int64)
    pixels = read_fitted([training[i] for i in indices], card, None)
    if len(pixels) < FITTED_ON // 10:
        raise ConfigError(
            f"--training holds {len(pixels)} patches that can be read; {FITTED_ON // 10} or more are needed"
        )
    graph = int8_graph(models, pixels)
    out.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, *([DOMAIN] if card.domain is not None else [])):
        shutil.copyfile(source / name, out / name)
    write_int8(out, graph)
    facts = Int8Facts(
        sha256=hash_int8(out),
        made_from=card.graph_fingerprint,
        auc=0.0,
        auc_fp32=1.0,
        largest_difference=1.0,
        patches=0,
        made_by=f"nncf {metadata.version('nncf')}",
    )
    write_text(out / CARD, card_json(card.model_copy(update={"int8": facts})))
    total = 2 * len(labelled)
    scores = {}
    kinds: tuple[Literal["fp32", "int8"], ...] = ("fp32", "int8")
    for before, precision in zip((0, len(labelled)), kinds, strict=True):
        engine = load_engine(find_models([str(out)]), EngineConfig(engine="openvino", precision=precision))
        scored = score_patches(labelled, engine, mpp=mpp, tick=partial(_ahead_by, tick, before, total))
        is_positive = np.array([p.label == POSITIVE_LABEL for p in scored.patches], np.bool_)
        scores[precision] = scored.scores
    measured = {
        "auc": round(auc(is_positive, scores["int8"]), 5),
        "auc_fp32": round(auc(is_positive, scores["fp32"]), 5),
        "largest_difference": round(float(np.abs(scores["int8"] - scores["fp32"]).max()), 4),
        "patches": len(is_positive),
    }
    card = card.model_copy(update={"int8": facts.model_copy(update=measured)})
    write_text(out / CARD, card_json(card))
    return card
