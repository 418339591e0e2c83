"""A model whose scores mean what they say: fitted on labelled patches, and written with its figures."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.card import ModelCard
from models.checkpoint import load_checkpoint, save_checkpoint
from models.engines.domain import fit_domain, middle_features, read_domain, write_domain
from models.networks.contract import MiddleOf
from pipelines.runs.model_figures import figures_row, scores_of
from pipelines.runs.patches import read_fitted
from wsi.datasets.patch_folder import POSITIVE_LABEL
from wsi.datasets.patch_pictures import PatchPicture
from wsi.errors import ConfigError
from wsi.metrics.calibration import calibrated, calibration_error, fit_calibration
from wsi.metrics.ranking import auc

Scores = npt.NDArray[np.float32]
FEATURES_OF = 5_000  # training patches that the record is made of, or fewer
CALLED = "the patches that it is calibrated on; if they chose it, too, expect less on others"
FEWEST = 50  # least number of patches of each class: two numbers are fitted


def calibrate_model(
    source: Path,
    patches: Sequence[PatchPicture],
    out: Path,
    *,
    training: Sequence[PatchPicture] = (),
    mpp: float | None = None,
    say: Callable[[str], None] = lambda text: None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> ModelCard:
    """Write the calibrated model with weights in half precision, and return its card.

    Args:
        source: a model's folder.
        patches: labelled patches of both classes that the model was not trained on.
        out: the new model's folder.
        training: patches that the model was trained on, at its spacing, by which it notices tissue that it does not
            know; without them the model keeps its earlier record, if it has one.
        mpp: um per pixel of the patches; None: they have the model's.
        say: called with a sentence for each patch that cannot be read.
        tick: called with (patches scored, patches to be scored).

    Raises:
        ConfigError: the model has more than two classes, a class has too few patches, or the scores of the positive
            class are not the higher ones.
        ModelError: the folder holds no model of ours.
    """
    network, card = load_checkpoint(source)
    if len(card.classes) != 2:
        raise ConfigError(f"{source} has {len(card.classes)} classes; only models of two are calibrated")
    labelled = [p for p in patches if p.label is not None]
    card_fields = card.model_dump(exclude={"sha256", "int8"}) | {
        "calibration": None,
        "domain": None,
        "architecture": card.architecture,
    }
    total = 3 * len(labelled)
    with tempfile.TemporaryDirectory(prefix="slidewright-") as folder:
        trial_folder = Path(folder) / "half"
        save_checkpoint(trial_folder, network.half(), **card_fields)
        one = scores_of(trial_folder, labelled, 1, mpp, lambda done, _: tick(done, total))
        for sentence in one.left_out:
            say(f"left out: {sentence}")
        positive = np.array([p.label == POSITIVE_LABEL for p in one.patches], np.bool_)
        card_fields |= {"calibration": _fit(positive, one.scores, card)}
        save_checkpoint(trial_folder, network, **card_fields)
        eight = scores_of(
            trial_folder, labelled, 8, mpp, lambda done, _: tick(len(labelled) + 2 * done, total)
        )
        if training:
            card_fields["domain"] = _record_domain(trial_folder, training, labelled, mpp, out)
        elif (domain := read_domain(source, card)) is not None:
            card_fields["domain"] = write_domain(out, domain)
    error = calibration_error(positive, _by_halves(positive, one.scores))
    row = figures_row(CALLED, positive, one.scores, eight.scores) | {"calibration_error": round(error, 4)}
    error_before = round(calibration_error(positive, one.scores), 4)
    card_fields["metrics"] = card.metrics | {"calibration_error_before": error_before, "figures": [row]}
    return save_checkpoint(out, network, **card_fields)


def halve_model(source: Path, out: Path) -> ModelCard:
    """Write the model with weights in half precision and unchanged scores, and return its card.

    Raises:
        ModelError: the folder holds no model of ours.
    """
    network, card = load_checkpoint(source)
    card_fields = card.model_dump(exclude={"sha256", "int8"}) | {"architecture": card.architecture}
    if (domain := read_domain(source, card)) is not None:
        card_fields["domain"] = write_domain(out, domain)
    return save_checkpoint(out, network.half(), **card_fields)


def _fit(is_positive: npt.NDArray[np.bool_], scores: Scores, card: ModelCard) -> tuple[float, float]:
    """Fit scale and offset of the log-odds.

    Raises:
        ConfigError: a class has too few patches, or the positive one does not score higher.
    """
    negative, positive = card.words
    if min(is_positive.sum(), (~is_positive).sum()) < FEWEST:
        raise ConfigError(
            f"calibration needs {FEWEST} patches of each class, and there are {int(is_positive.sum())} of "
            f"{positive} and {int((~is_positive).sum())} {negative} ones; add patches"
        )
    scale, offset = fit_calibration(is_positive, scores)
    if scale <= 0 or auc(is_positive, scores) <= 0.5:
        raise ConfigError(
            f"{card.name} scores {positive} no higher than {negative} patches (AUC {auc(is_positive, scores):.3f}); "
            f"check the labels, and the spacing of the patches with --mpp"
        )
    return round(scale, 4), round(offset, 4)


def _record_domain(
    model: Path,
    training: Sequence[PatchPicture],
    labelled: Sequence[PatchPicture],
    mpp: float | None,
    out: Path,
) -> str:
    """Write the record of the tissue that a model knows into ``out``, and return its sha256."""
    network, card = load_checkpoint(model)
    sample = training[:: max(1, len(training) // FEATURES_OF)]
    features = [
        middle_features(MiddleOf(network).eval(), read_fitted(part, card, spacing))
        for part, spacing in ((sample, None), (labelled, mpp))
    ]
    if len(features[0]) <= 2 * features[0].shape[1]:
        raise ConfigError(
            f"what a model knows takes {2 * features[0].shape[1]} training patches or more, and there are "
            f"{len(features[0])}; add patches, or leave out --training"
        )
    return write_domain(out, fit_domain(*features))


def _by_halves(positive: npt.NDArray[np.bool_], scores: Scores) -> npt.NDArray[np.float64]:
    """Scores of each half of the patches, calibrated on the other half; a half is every second patch."""
    scaled = np.empty(len(scores), np.float64)
    is_even = np.arange(len(scores)) % 2 == 0
    for half in (is_even, ~is_even):
        scaled[half] = calibrated(scores[half], *fit_calibration(positive[~half], scores[~half]))
    return scaled
