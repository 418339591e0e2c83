"""Domain of a model: the tissue that it knows, by the distance of features from those of its training patches.

A network gives a score to any tissue: skin, a kidney, another stain. The features half-way through it separate such
tissue from known tissue better than those at its end, which hold little but the classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from models.card import CARD, DOMAIN, ModelCard, hash_file, read_card
from models.engines.choice import engine_for
from wsi.arrays import RgbImage
from wsi.errors import ModelError
from wsi.files import replacing

if TYPE_CHECKING:
    from torch import nn

USUAL = 0.95  # share of patches of known tissue that lie within the limit
RIDGE = (
    1e-3  # share of the mean variance that is added to all, so that features that hardly vary do not dominate
)
BATCH = 64

Features = npt.NDArray[np.float32]  # (n, features)


@dataclass(frozen=True, eq=False, slots=True)
class Domain:
    """The features of the patches that a model knows.

    Attributes:
        mean: (d,) mean of the training patches' features.
        whiten: (d, d) matrix that turns differences from the mean into uncorrelated ones of variance 1.
        limit: distance that one in twenty patches of other slides of the same kind exceeds.
    """

    mean: Features
    whiten: Features
    limit: float

    def distances(self, features: Features) -> npt.NDArray[np.float64]:
        """Squared Mahalanobis distance divided by the number of features, (n,): about 1 for training patches."""
        deviations = (features.astype(np.float64) - self.mean) @ self.whiten
        distances: npt.NDArray[np.float64] = (deviations**2).mean(axis=1)
        return distances

    def unlike(self, features: Features) -> npt.NDArray[np.bool_]:
        """True for each patch that lies beyond the limit, (n,)."""
        return self.distances(features) > self.limit


def fit_domain(training: Features, others: Features) -> Domain:
    """The domain of ``training`` patches' features; the limit comes from ``others``, of slides not trained on.

    Both are (n, d), and ``training`` needs more than d rows.
    """
    mean = training.mean(axis=0, dtype=np.float64)
    covariance = np.cov(training.astype(np.float64), rowvar=False)
    variances, axes = np.linalg.eigh(
        covariance + RIDGE * np.trace(covariance) / len(mean) * np.eye(len(mean))
    )
    whiten = (axes / np.sqrt(variances)).astype(np.float32)
    domain = Domain(mean.astype(np.float32), whiten, 0.0)
    return Domain(domain.mean, whiten, float(np.quantile(domain.distances(others), USUAL)))


def middle_features(middle: nn.Module, patches: Sequence[RgbImage]) -> Features:
    """The features that a `MiddleOf` gives of uint8 patches, (n, d), by torch."""
    import torch

    parts = []
    with torch.inference_mode():
        for start in range(0, len(patches), BATCH):
            parts.append(middle(torch.from_numpy(np.stack(patches[start : start + BATCH]))).numpy())
    return np.concatenate(parts)


def write_domain(folder: Path, domain: Domain) -> str:
    """Write ``domain.safetensors`` into a model's folder, and return its sha256."""
    arrays = {
        "mean": domain.mean,
        "whiten": domain.whiten,
        "limit": np.array([domain.limit], np.float64),
    }
    with replacing(folder / DOMAIN) as partial_file:
        try:
            save_file(arrays, partial_file)
        except SafetensorError as error:  # safetensors raises it for a full disk
            raise OSError(str(error)) from error
    return hash_file(folder / DOMAIN)


def read_domain(folder: Path, card: ModelCard) -> Domain | None:
    """The domain of the model in ``folder``; None where its card, which `read_card` has checked, names no record of it.

    Raises:
        ModelError: the file is not the record of a domain.
    """
    if card.domain is None:
        return None
    path = folder / DOMAIN
    try:
        arrays = load_file(path)
        return Domain(arrays["mean"], arrays["whiten"], float(arrays["limit"][0]))
    except (SafetensorError, KeyError, IndexError, ValueError) as error:
        raise ModelError(f"{path} is not the record of a model's domain; copy the model again") from error


def look_unlike(folder: Path, patches: Sequence[RgbImage], frame: ModelCard) -> npt.NDArray[np.bool_]:
    """True for each patch that looks unlike the tissue that the model in ``folder`` knows, (n,).

    Args:
        folder: folder of the model.
        patches: RGB uint8, of the side and spacing of ``frame``.
        frame: card of the model, or the common card of several.

    Raises:
        ModelError: the model has no record of its domain, or one of its files is damaged.
    """
    card_time = (folder / CARD).stat().st_mtime_ns
    with _LOADING:  # threads of a service must not load it twice
        features, domain = _loaded(folder, card_time, frame.patch_px, frame.spacing_um)
    return domain.unlike(features(patches))


_LOADING = Lock()


@lru_cache(maxsize=1)
def _loaded(
    folder: Path, _card_time: int, side: int, spacing_um: float | None
) -> tuple[Callable[[Sequence[RgbImage]], Features], Domain]:
    """Half of a network for patches of this side and spacing, and the model's domain, kept from slide to slide.

    A card that is written anew has another time, and is read anew.
    """
    card = read_card(folder, ModelCard)
    frame = card.model_copy(update={"patch_px": side, "spacing_um": spacing_um})
    domain = read_domain(folder, card)
    if domain is None:
        raise ModelError(
            f"{folder} has no record of what its model knows; make one: wsi models calibrate --training"
        )
    if engine_for("auto") == "openvino":
        from models.engines.openvino import OpenVinoFeatures

        return OpenVinoFeatures(folder, card, frame), domain
    from models.forms.build import build_middle  # loads torch, which takes seconds

    return partial(middle_features, build_middle(folder, frame)), domain
