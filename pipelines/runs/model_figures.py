"""The quality of a model on labelled patches, and its card in words."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from models.card import DetectorCard, Int8Facts, ModelCard, SegmenterCard
from models.engines import EngineConfig, find_models, load_engine
from pipelines.runs.patches import ScoredPatches, score_patches
from wsi.datasets.patch_folder import POSITIVE_LABEL
from wsi.datasets.patch_pictures import PatchPicture
from wsi.errors import ConfigError
from wsi.metrics.calibration import calibration_error
from wsi.metrics.ranking import auc, auc_interval
from wsi.text import number_of
from wsi.vocabulary import NORMAL, TUMOUR

Tick = Callable[[int, int], None]


def scores_of(
    folder: Path,
    patches: Sequence[PatchPicture],
    orientations: Literal[1, 8],
    mpp: float | None,
    tick: Tick = lambda done, total: None,
) -> ScoredPatches:
    """Scores of labelled patches in fp32, which are the same on every machine except for the last digits."""
    cfg = EngineConfig(precision="fp32", orientations=orientations)
    engine = load_engine(find_models([str(folder)]), cfg)
    return score_patches(patches, engine, mpp=mpp, tick=tick)


def measure_model(
    folder: Path,
    patches: Sequence[PatchPicture],
    called: str,
    *,
    mpp: float | None = None,
    tick: Tick = lambda done, total: None,
) -> tuple[dict[str, Any], ScoredPatches]:
    """AUC with its interval and calibration error, by one orientation and by the mean of eight.

    Args:
        folder: the model's folder.
        patches: patches; those without a label are left out.
        called: a name of the patches, for the card.
        mpp: um per pixel of the patches; None: they have the model's.
        tick: called with (patches scored, patches to be scored); both orientations count.

    Returns:
        A row of figures as a card has it, and the scores by one orientation.

    Raises:
        ConfigError: the patches are not of both classes.
    """
    labelled = [p for p in patches if p.label is not None]
    total = 2 * len(labelled)
    one = scores_of(folder, labelled, 1, mpp, lambda done, _: tick(done, total))
    is_positive = np.array([p.label == POSITIVE_LABEL for p in one.patches], np.bool_)
    if len(np.unique(is_positive)) < 2:
        negative, positive = one.words
        raise ConfigError(
            f"figures need labelled patches of both classes, and there are {int(is_positive.sum())} of {positive} "
            f"and {int((~is_positive).sum())} {negative} ones; put them into folders called {NORMAL} and {TUMOUR}"
        )
    eight = scores_of(folder, labelled, 8, mpp, lambda done, _: tick(len(labelled) + done, total))
    return figures_row(called, is_positive, one.scores, eight.scores) | {"warning": one.warning}, one


def figures_row(
    called: str, positive: npt.NDArray[np.bool_], one: npt.NDArray[np.float32], eight: npt.NDArray[np.float32]
) -> dict[str, Any]:
    """Figures for a card, of scores by one orientation and by the mean of eight."""
    low, high = auc_interval(positive, one)
    return {
        "data": called,
        "normal": int((~positive).sum()),  # whatever the classes are
        "tumour": int(positive.sum()),
        "auc": round(auc(positive, one), 4),
        "interval": [round(low, 4), round(high, 4)],
        "auc_8_orientations": round(auc(positive, eight), 4),
        "calibration_error": round(calibration_error(positive, one), 4),
        "calibration_error_8_orientations": round(calibration_error(positive, eight), 4),
        "date": datetime.date.today().isoformat(),
        "warning": "",
    }


def figures_lines(rows: Sequence[dict[str, Any]], words: tuple[str, str]) -> list[str]:
    """A card's figures for the terminal, two lines for each set of patches; ``words`` are the card's."""
    negative, positive = words
    lines = []
    for row in rows:
        lines.append(
            f"{row['data']} ({row['date']}; {row['tumour']} {positive}, {row['normal']} {negative}):"
        )
        low, high = row["interval"]
        lines.append(
            f"  AUC {row['auc']:.4f} ({low:.4f} to {high:.4f}), with 8 orientations {row['auc_8_orientations']:.4f}; "
            f"calibration error {row['calibration_error']:.3f}, with 8 orientations "
            f"{row['calibration_error_8_orientations']:.3f}"
        )
        if row["warning"]:
            lines.append(f"  {row['warning']}")
    return lines


def int8_line(facts: Int8Facts) -> str:
    """What the int8 form of a model costs, in one sentence."""
    taken = "taken unasked" if facts.cheap else "taken with --precision int8 only"
    return (
        f"Int8 form: AUC {facts.auc:.4f} on {facts.patches} patches, {facts.auc_fp32:.4f} in fp32; a score differs by "
        f"{facts.largest_difference:.3f} at most; {taken}."
    )


def card_lines(card: ModelCard) -> list[str]:
    """A card in words: what it is for, what it has seen, what it has not, how good it was."""
    a, spacing, (negative, positive) = card.architecture, "any spacing", card.words
    if card.spacing_um is not None:
        coarsest = card.spacing_um * (1 + card.spacing_tolerance)
        spacing = f"{card.spacing_um:.4g} um per pixel, of slides up to {coarsest:.3g}"
    side = f", brought to {a.input_px} px inside" if a.input_px else ""
    lines = [
        f"{card.name}: tells {' from '.join(reversed(card.classes))}; {card.intended_use}",
        f"Reads patches of {card.patch_px} px at {spacing}, and speaks for their middle {card.stride_px} px.",
        f"Network: {a.name}, width {a.width:g}{side}; weights sha256 {card.sha256[:16]}; made by {card.code_version}.",
    ]
    if card.demonstration:
        lines.append(
            "A demonstration model: trained on drawings of tissue; what it says of real tissue means nothing."
        )
    lines.append(f"Trained on: {card.training.get('data') or 'not stated'}{_split_text(card)}.")
    start = card.training.get("started_from")
    lines.append(
        f"Started from: {start or 'nothing'}; {card.training.get('examples', 'an unknown number of')} examples seen."
    )
    lines.append(f"Limits: {card.limits or 'not stated'}")
    lines.append(
        "Calibration: none; a score of 0.9 does not mean nine in ten."
        if card.calibration is None
        else f"Calibration: log-odds times {card.calibration[0]:g} plus {card.calibration[1]:g}."
    )
    lines.append(
        "Tissue that it does not know: is not noticed."
        if card.domain is None
        else "Tissue that it does not know: is noticed by its features half-way, and warned of."
    )
    lines.append(
        f"Words for slides (definitely {negative} to definitely {positive}): none, no cut on whole slides was checked."
        if card.confidence is None
        else f"Words for slides change at scores of {', '.join(f'{c:g}' for c in card.confidence)}."
    )
    if card.int8 is not None:
        lines.append(int8_line(card.int8))
    rows = card.metrics.get("figures", [])
    lines += (
        ["Figures:", *(f"  {line}" for line in figures_lines(rows, card.words))]
        if rows
        else _other_metrics(card)
    )
    return lines


def detector_lines(card: DetectorCard) -> list[str]:
    """A detector's card in words."""
    d, threshold_lines = card.detector, []
    for name, threshold, enlarged in zip(d.classes, card.thresholds, card.enlarge_um, strict=True):
        threshold_lines.append(
            f"  {name}: counts from a score of {threshold:.2f} on; it learned boxes {enlarged:g} um larger on each side"
        )
    lines = [
        f"{card.name}: finds capillaries, {' and '.join(d.classes)}; {card.intended_use}",
        f"Reads tiles of {d.tile_px} px at {d.spacing_um:g} um per pixel.",
        *threshold_lines,
        f"Network: Faster R-CNN, {d.backbone}; weights sha256 {card.sha256[:16]}; made by {card.code_version}.",
        f"Trained on: {card.training.get('data') or 'not stated'}.",
        f"Examples seen: {card.training.get('examples', 'not stated')}.",
        f"Limits: {card.limits or 'not stated'}",
    ]
    precision = card.metrics.get("AP50", {})
    figures = ", ".join(f"{name} {value:.3f}" for name, value in precision.items())
    return [*lines, f"Figures: AP50 on its validation slides: {figures or 'not measured'}."]


def segmenter_lines(card: SegmenterCard) -> list[str]:
    """A segmenter's card in words."""
    s = card.segmenter
    figures = ", ".join(f"{name} {value:.3f}" for name, value in card.metrics.get("IoU", {}).items())
    return [
        f"{card.name}: names the class of every place: {', '.join(s.classes)}; {card.intended_use}",
        f"Reads slides at {s.spacing_um:g} um per pixel; a cell of its map is {s.pool * s.spacing_um:g} um wide.",
        f"Network: {s.network}, width {s.width}; weights sha256 {card.sha256[:16]}; made by {card.code_version}.",
        f"Trained on: {card.training.get('data') or 'not stated'}.",
        f"Examples seen: {card.training.get('examples', 'not stated')}.",
        f"Limits: {card.limits or 'not stated'}",
        f"Figures: intersection over union on its validation slides: {figures or 'not measured'}.",
    ]


def _split_text(card: ModelCard) -> str:
    """The number of examples or slides of each part of the training data, in words."""
    parts = []
    for name, counts in (card.training.get("split") or {}).items():
        if isinstance(counts.get("slides"), int):
            parts.append(f"{name} {number_of(counts['slides'], 'slide')}")
        else:
            parts.append(f"{name} " + " and ".join(f"{n:,} {label}" for label, n in counts.items()))
    return f" ({'; '.join(parts)})" if parts else ""


def _other_metrics(card: ModelCard) -> list[str]:
    value = card.metrics.get("validation_patch_auc")
    return (
        ["Figures: none measured."]
        if value is None
        else [f"Figures: AUC {value:.4f} on validation patches, which chose it."]
    )
