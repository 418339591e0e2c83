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
from wsi.config import Config
from wsi.errors import ConfigError, ModelError
from wsi.files import replacing, write_json
from wsi.metrics.ranking import RESAMPLES, auc, auc_draws

WEIGHTS, CARD = "forest.safetensors", "card.json"
Table = npt.NDArray[np.float64]
"""(slides, features)."""


class ForestConfig(Config):
    """How the forest is grown; Wang et al. 2016 state no settings.

    Attributes:
        trees: how many.
        leaf: fewest slides in a leaf.
        folds: of the cross-validation, by slide, each with the same share of tumour slides.
        seed: of trees and folds.
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
        feature: (nodes,) which feature is asked.
        threshold: (nodes,) up to which value the answer is left.
        tumour: (nodes,) share of tumour in the leaf.
    """

    starts: npt.NDArray[np.int64]
    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    feature: npt.NDArray[np.int64]
    threshold: npt.NDArray[np.float64]
    tumour: npt.NDArray[np.float64]

    def predict(self, features: Table) -> npt.NDArray[np.float64]:
        """(slides,) mean share of tumour over the trees, 0..1."""
        values = features.astype(np.float32)  # as scikit-learn compares them
        node = np.repeat(self.starts[None], len(values), axis=0)  # (slides, trees)
        rows = np.arange(len(values))[:, None]
        while (self.left[node] >= 0).any():
            inner = self.left[node] >= 0
            goes_left = values[rows, self.feature[node]] <= self.threshold[node]
            node = np.where(inner, np.where(goes_left, self.left[node], self.right[node]), node)
        return np.asarray(self.tumour[node].mean(axis=1))


class ForestCard(Config):
    """What a forest is: how it was made, on what, how good.

    Attributes:
        features: their names, in order.
        patch_models: sha256 of the patch models whose heatmaps it has seen; it means nothing on others'.
        slides: how many of each class it has seen.
        seen: a hash of each of them, so that it is not tested on what it was grown on.
        auc: of the cross-validation, with its interval; and of the heatmap's maximum on the same slides.
        sha256: of the arrays' file.
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

    grown = RandomForestClassifier(
        cfg.trees, min_samples_leaf=cfg.leaf, class_weight="balanced", random_state=cfg.seed
    ).fit(features, tumour)
    trees = [tree.tree_ for tree in grown.estimators_]
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

    few = min(int(tumour.sum()), int((~tumour).sum()))
    if few < cfg.folds:
        kind = "tumour" if tumour.sum() == few else "normal"
        way_out = "pass a smaller --folds, or add slides" if few > 1 else "add slides"
        raise ConfigError(
            f"{cfg.folds} folds need as many slides of each class, and there are {few} {kind} ones; {way_out}"
        )
    scores, fold = np.empty(len(tumour)), np.empty(len(tumour), np.int64)
    parts = StratifiedKFold(cfg.folds, shuffle=True, random_state=cfg.seed).split(features, tumour)
    for k, (rest, held) in enumerate(parts):
        scores[held] = grow(features[rest], tumour[rest], cfg).predict(features[held])
        fold[held] = k
    return scores, fold


def write_forest(folder: Path, forest: Forest, card: ForestCard) -> None:
    """Write the arrays, then the card that names their hash."""
    data = save({name: getattr(forest, name) for name in Forest.__dataclass_fields__})
    with replacing(folder / WEIGHTS) as partial:
        partial.write_bytes(data)
    stated = card.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
    write_json(folder / CARD, stated.model_dump(mode="json"))


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
        why = getattr(error, "strerror", None) or error
        raise ModelError(f"{folder} is no slide-level model ({why}); see wsi camelyon16 forest") from error
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
    n = len(tumour)
    weights = np.asarray(
        np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES), np.int64
    )
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
        tumour: (slides,)
        features: (slides, features)
        scores: (slides,) out of fold.
        maximum: (slides,) of the heatmaps.
        fold: (slides,) from 0.
        quality: AUC of both, and the difference.
    """

    names: tuple[str, ...]
    forest: Forest
    tumour: npt.NDArray[np.bool_]
    features: Table
    scores: npt.NDArray[np.float64]
    maximum: npt.NDArray[np.float64]
    fold: npt.NDArray[np.int64]
    quality: dict[str, Any]


def fit(cases: Sequence[Case], cfg: ForestConfig, truth_label: int | None) -> Fitted:
    """Cross-validate by slide, then grow on all.

    Raises:
        WsiError: truth or heatmaps that cannot be used, too few slides.
    """
    # a truth file that marks nothing is not tumour: classes are as an evaluation takes them
    tumour = np.array([case.tumour_unmarked or read_case(case, truth_label) is not None for case in cases])
    features = features_of([case.prediction for case in cases])
    maximum = np.array([case.prediction.score for case in cases], np.float64)
    scores, fold = cross_validate(features, tumour, cfg)
    quality = beside_the_maximum(tumour, scores, maximum, cfg.seed)
    names = tuple(case.prediction.name for case in cases)
    return Fitted(names, grow(features, tumour, cfg), tumour, features, scores, maximum, fold, quality)
