"""Cross-validation on a folder of patches: every patch is scored by a network that has not seen its part."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.checkpoint import load_checkpoint
from models.training.classify import score_batches, train
from models.training.data.splits import fold_parts, patch_batches, patch_data
from models.training.progress import Listeners
from models.training.recipe import TrainConfig
from models.training.state import CHECKPOINT
from models.training.team import choose_device
from wsi.datasets.patch_folder import NEGATIVE_LABEL, POSITIVE_LABEL, PatchFolder
from wsi.errors import ConfigError


@dataclass(frozen=True, eq=False, slots=True)
class OutOfFold:
    """Of each patch of the folder, in its order.

    Attributes:
        positive: whether it is of the positive class.
        scores: mean over 8 orientations, 0..1.
        single: score of the patch as it is.
        fold: from 0.
    """

    positive: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32]
    single: npt.NDArray[np.float32]
    fold: npt.NDArray[np.int64]


def cross_validate(
    folder: PatchFolder,
    cfg: TrainConfig,
    out: Path,
    *,
    code_version: str,
    resume: bool,
    listeners: Sequence[Listeners],
) -> OutOfFold:
    """Train one network per fold into ``out/fold_K``, and score its fold, averaged over 8 orientations.

    The number of examples is fixed beforehand and the last network is kept: the fold that is scored
    chooses nothing.

    Raises:
        ConfigError: a fold lacks a class.
        ModelError: see `models.training.classify.train`.
    """
    parts = fold_parts(folder, cfg.folds)
    positive = np.array([file.label == POSITIVE_LABEL for file in folder.files])
    fold = np.zeros(len(positive), np.int64)
    scores, single = (np.full(len(positive), np.nan, np.float32) for _ in range(2))
    for k, part in enumerate(parts):
        if {folder.files[i].label for i in part} != {NEGATIVE_LABEL, POSITIVE_LABEL}:
            raise ConfigError(f"fold {k + 1} of {cfg.folds} lacks a class; use fewer folds, or add patches")
    for k, part in enumerate(parts):
        others = sorted(i for p in parts if p is not part for i in p)
        fold_folder = out / f"fold_{k + 1}"
        data = patch_data(folder, others, cfg)
        data = dataclasses.replace(data, facts=data.facts | {"fold": f"{k + 1} of {cfg.folds}, held out"})
        again = resume and (fold_folder / CHECKPOINT).exists()
        train(data, cfg, fold_folder, code_version=code_version, resume=again, listeners=listeners[k])
        network = load_checkpoint(fold_folder / "model")[0].to(choose_device(cfg.device))
        fold[part] = k
        batches = patch_batches(folder, part, 8, cfg.patch_px)
        scores[part] = score_batches(network, batches, orientations=True)[1]
        single[part] = score_batches(network, batches)[1]
    return OutOfFold(positive, scores, single, fold)
