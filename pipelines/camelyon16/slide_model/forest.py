"""A slide-level model: a random forest over `heatmap_features`, kept as arrays, never pickled."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError
from safetensors.numpy import load, save

from pipelines.camelyon16.benchmark.cases import Case
from pipelines.camelyon16.benchmark.evaluation import read_case
from pipelines.camelyon16.benchmark.predictions import Prediction
from pipelines.camelyon16.benchmark.roc import figure
from pipelines.camelyon16.slide_model.features import FEATURES, features_of
from pipelines.runs.task import Each, each_here
from wsi.config import Config
from wsi.errors import ConfigError, ModelError
from wsi.files import replacing, write_json
from wsi.metrics.ranking import auc, auc_draws
from wsi.metrics.resample import RESAMPLES, draw_weights

WEIGHTS, CARD = "forest.safetensors", "card.json"
Table = npt.NDArray[np.float64]
"""Features of slides: (slides, features)."""


class ForestConfig(Config):
    """Settings of a forest; Wang et al. 2016 state none.

    Attributes:
        trees: number of trees.
        leaf: fewest slides in a leaf.
        folds: number of folds of the cross-validation over slides; each has the same share of tumour slides.
        seed: seed of trees and folds.
    """

    trees: int = Field(default=500, gt=0)
    leaf: int = Field(default=2, gt=0)
    folds: int = Field(default=5, gt=1)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True, eq=False, slots=True)
class Forest:
    """Trees one after the other: node i of tree t is row ``starts[t] + i``.

    Attributes:
        starts: (trees,) the row of each root.
        left, right: (nodes,) rows of the children; -1 in a leaf.
        feature: (nodes,) index of the feature that decides.
        threshold: (nodes,) values up to this one go to the left child.
        tumour: (nodes,) share of tumour in the leaf.
    """

    starts: npt.NDArray[np.int64]
    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    feature: npt.NDArray[np.int64]
    threshold: npt.NDArray[np.float64]
    tumour: npt.NDArray[np.float64]

    def predict(self, features: Table) -> npt.NDArray[np.float64]:
        """Mean share of tumour over the trees, 0..1: (slides,)."""
        values = features.astype(np.float32)  # as scikit-learn compares them
        node = np.repeat(self.starts[None], len(values), axis=0)  # (slides, trees)
        rows = np.arange(len(values))[:, None]
        while (self.left[node] >= 0).any():
            inner = self.left[node] >= 0
            goes_left = values[rows, self.feature[node]] <= self.threshold[node]
            node = np.where(inner, np.where(goes_left, self.left[node], self.right[node]), node)
        return np.asarray(self.tumour[node].mean(axis=1))


class ForestCard(Config):
    """The card of a forest: how it was made, on which slides, and how good it is.

    Attributes:
        features: their names, in order.
        patch_models: sha256 of the patch models whose heatmaps it has seen; on heatmaps of others it means nothing.
        slides: number of slides of each class that it has seen.
        seen: a hash of each of these slides, so that it is not tested on what it was grown on.
        auc: AUC of the cross-validation, with its interval, and of the heatmap's maximum on the same slides.
        sha256: hash of the arrays' file.
    """

    name: str
    features: tuple[str, ...]
    settings: ForestConfig
    patch_models: tuple[str, ...]
    demonstration: bool
    slides: dict[str, int]
    seen: tuple[str, ...]
    auc: dict[str, Any]
    made_by: str
    intended_use: str = "research use only"
    sha256: str = ""


def slide_key(p: Prediction) -> str:
    """A short hash of a slide's name and size: the card must not hold names, which may be accession numbers."""
    return hashlib.sha256(f"{p.name.casefold()} {p.size}".encode()).hexdigest()[:16]


def grow(features: Table, tumour: npt.NDArray[np.bool_], cfg: ForestConfig) -> Forest:
    """Grow a forest on all slides."""
    from sklearn.ensemble import RandomForestClassifier

    classifier = RandomForestClassifier(
        cfg.trees, min_samples_leaf=cfg.leaf, class_weight="balanced", random_state=cfg.seed
    ).fit(features, tumour)
    trees = [tree.tree_ for tree in classifier.estimators_]
    starts = np.cumsum([0, *(tree.node_count for tree in trees)])[:-1]

    def rows(name: str) -> npt.NDArray[np.int64]:
        parts = [
            np.where(getattr(t, name) >= 0, getattr(t, name) + s, -1)
            for t, s in zip(trees, starts, strict=True)
        ]
        return np.concatenate(parts).astype(np.int64)

    def share(tree: Any) -> npt.NDArray[np.float64]:
        votes = tree.value[:, 0, :]
        return np.asarray(votes[:, 1] / votes.sum(axis=1))

    return Forest(
        starts.astype(np.int64),
        rows("children_left"),
        rows("children_right"),
        np.concatenate([t.feature for t in trees]).astype(np.int64),
        np.concatenate([t.threshold for t in trees]).astype(np.float64),
        np.concatenate([share(t) for t in trees]),
    )


def cross_validate(
    features: Table, tumour: npt.NDArray[np.bool_], cfg: ForestConfig
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Every slide's score by a forest that has not seen it, and its fold.

    Raises:
        ConfigError: fewer slides of a class than folds.
    """
    from sklearn.model_selection import StratifiedKFold

    smaller_class = min(int(tumour.sum()), int((~tumour).sum()))
    if smaller_class < cfg.folds:
        kind = "tumour" if tumour.sum() == smaller_class else "normal"
        advice = "pass a smaller --folds, or add slides" if smaller_class > 1 else "add slides"
        raise ConfigError(
            f"{cfg.folds} folds need as many slides of each class, and there are {smaller_class} {kind} ones; {advice}"
        )
    scores, fold = np.empty(len(tumour)), np.empty(len(tumour), np.int64)
    parts = StratifiedKFold(cfg.folds, shuffle=True, random_state=cfg.seed).split(features, tumour)
    for k, (training, validation) in enumerate(parts):
        scores[validation] = grow(features[training], tumour[training], cfg).predict(features[validation])
        fold[validation] = k
    return scores, fold


def write_forest(folder: Path, forest: Forest, card: ForestCard) -> None:
    """Write the arrays, then the card that names their hash."""
    data = save({name: getattr(forest, name) for name in Forest.__dataclass_fields__})
    with replacing(folder / WEIGHTS) as partial:
        partial.write_bytes(data)
    complete_card = card.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
    write_json(folder / CARD, complete_card.model_dump(mode="json"))


def read_forest(folder: Path, patch_models: Sequence[str]) -> tuple[Forest, ForestCard]:
    """Read a forest that is to be used on heatmaps of these patch models.

    Raises:
        ModelError: it is broken, of other features, or was grown on another model's heatmaps.
    """
    try:
        card = ForestCard.model_validate_json((folder / CARD).read_bytes())
        data = (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(data).hexdigest() != card.sha256:
            raise ModelError(f"{folder / WEIGHTS} is not the file that its card names; copy the folder again")
        forest = Forest(**load(data))
    except (OSError, ValueError, TypeError, ValidationError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{folder} is no slide-level model ({reason}); see wsi camelyon16 forest") from error
    if card.features != FEATURES:
        raise ModelError(f"{folder} was grown on other features than this version computes; grow it again")
    if tuple(patch_models) != card.patch_models:
        raise ModelError(
            f"{folder} was grown on heatmaps of another patch model; its scores mean nothing on these results"
        )
    return forest, card


def beside_the_maximum(
    tumour: npt.NDArray[np.bool_],
    forest: npt.NDArray[np.float64],
    maximum: npt.NDArray[np.float64],
    seed: int,
) -> dict[str, Any]:
    """AUC of both slide scores, and their difference, by the same 2,000 draws of slides."""
    weights = draw_weights(np.random.default_rng(seed), len(tumour), RESAMPLES)
    drawn = [auc_draws(tumour, s, weights) for s in (forest, maximum)]
    values = [auc(tumour, s) for s in (forest, maximum)]
    return {
        "AUC of the forest, out of fold": figure(values[0], drawn[0]),
        "AUC of the maximum": figure(values[1], drawn[1]),
        "difference": figure(values[0] - values[1], drawn[0] - drawn[1]),
    }


@dataclass(frozen=True, eq=False, slots=True)
class Fitted:
    """A forest of all slides, and what its cross-validation says.

    Attributes:
        tumour: (slides,) whether each slide has tumour.
        features: (slides, features) of the heatmaps.
        scores: (slides,) of forests that have not seen the slide (out of fold).
        maximum: (slides,) maxima of the heatmaps.
        fold: (slides,) number of the slide's fold, from 0.
        quality: AUC of both scores, and their difference.
    """

    names: tuple[str, ...]
    forest: Forest
    tumour: npt.NDArray[np.bool_]
    features: Table
    scores: npt.NDArray[np.float64]
    maximum: npt.NDArray[np.float64]
    fold: npt.NDArray[np.int64]
    quality: dict[str, Any]


def fit(
    cases: Sequence[Case], cfg: ForestConfig, truth_label: int | None, *, each: Each = each_here
) -> Fitted:
    """Cross-validate over slides, then grow a forest on all; ``each`` computes the features of the slides.

    Raises:
        WsiError: truth or heatmaps that cannot be used, too few slides.
    """
    # a slide whose truth file marks nothing is normal, as in an evaluation
    tumour = np.array([case.tumour_unmarked or read_case(case, truth_label) is not None for case in cases])
    features = features_of([case.prediction for case in cases], each=each)
    maximum = np.array([case.prediction.score for case in cases], np.float64)
    scores, fold = cross_validate(features, tumour, cfg)
    quality = beside_the_maximum(tumour, scores, maximum, cfg.seed)
    names = tuple(case.prediction.name for case in cases)
    return Fitted(names, grow(features, tumour, cfg), tumour, features, scores, maximum, fold, quality)
