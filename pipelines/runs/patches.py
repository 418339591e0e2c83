"""Scores of a folder of patches by a model: a table, and for labelled patches the model's quality."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from models.card import ModelCard
from models.engines import Engine
from models.training.data.places import fit_square
from pipelines.runs.likeness import LOOKED_AT, unlike_note, unlike_patches
from pipelines.runs.pictures import TEMPLATES, png
from pipelines.runs.training_pictures import DPI, contact_sheet_png, roc_png
from wsi.arrays import RgbImage
from wsi.datasets.patch_folder import POSITIVE_LABEL
from wsi.datasets.patch_pictures import PatchPicture, read_patch, sizes_text
from wsi.errors import ModelError, SlideError
from wsi.files import csv_text
from wsi.metrics.calibration import calibration_error, reliability
from wsi.metrics.ranking import auc, auc_interval, roc
from wsi.results.folder import Folder
from wsi.slides.blocks import PatchBlock

log = logging.getLogger(__name__)

AT_ONCE = 64  # patches that are read and given to the engine together
MISTAKES = 48


@dataclass(frozen=True, eq=False, slots=True)
class ScoredPatches:
    """A model's scores of patches.

    Attributes:
        patches: the patches that could be read, in their order.
        scores: (n,) scores of the model's positive class.
        words: what sentences call patches that are not of this class, and patches that are.
        left_out: a sentence for each patch that could not be read.
        note: a sentence about patches that were mirrored or cropped to the model's side; may be empty.
        warning: a warning that they look unlike what the model was trained on; mostly empty.
    """

    patches: tuple[PatchPicture, ...]
    scores: npt.NDArray[np.float32]
    words: tuple[str, str]
    left_out: tuple[str, ...]
    note: str
    warning: str = ""


@dataclass(frozen=True, slots=True)
class Quality:
    """The quality of the scores on labelled patches: AUC with its 95 % interval, calibration error, counts."""

    auc: float
    interval: tuple[float, float]
    calibration_error: float
    positive: int
    negative: int


def score_patches(
    patches: Sequence[PatchPicture],
    engine: Engine,
    *,
    mpp: float | None = None,
    threads: int = 2,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> ScoredPatches:
    """Score every patch that can be read, as the model sees it: mirrored or cropped around its middle to its side.

    Args:
        patches: the patches to score.
        engine: scores them.
        mpp: um per pixel of the patches, which are brought to the model's; None: they have the model's.
        threads: number of threads that read.
        tick: called with (patches done, patches).

    Raises:
        ModelError: a score is not a number.
    """
    card = engine.models.card
    reading = _Reading(patches, card, mpp)
    engine.expect(len(patches))
    parts, done = [np.empty(0, np.float32)], 0
    with ThreadPoolExecutor(threads) as pool:
        for scores in engine.score(reading.blocks(pool)):
            parts.append(scores[:, card.positive_index])
            done += len(scores)
            tick(done + len(reading.left_out), len(patches))
    all_scores = np.concatenate(parts)
    if np.isnan(all_scores).any():
        raise ModelError(
            f"{card.name} gives a score that is not a number; use --precision fp32, or another model"
        )
    return ScoredPatches(
        tuple(reading.readable),
        all_scores,
        card.words,
        tuple(reading.left_out),
        sizes_text(reading.sizes, card.patch_px),
        unlike_note(unlike_patches(reading.sample, engine.models), engine.models, "the patches look"),
    )


class _Reading:
    """Reads patches for an engine, and collects what is known about them."""

    def __init__(self, patches: Sequence[PatchPicture], card: ModelCard, mpp: float | None) -> None:
        self.readable: list[PatchPicture] = []
        self.left_out: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.sample: list[
            RgbImage
        ] = []  # patches evenly over all, to check whether the model knows such tissue
        self._patches, self._card, self._mpp = patches, card, mpp
        self._sample_step = max(1, len(patches) // LOOKED_AT)

    def blocks(self, pool: ThreadPoolExecutor) -> Iterator[PatchBlock]:
        """Blocks of `AT_ONCE` patches, without those that cannot be read."""
        for start in range(0, len(self._patches), AT_ONCE):
            part = self._patches[start : start + AT_ONCE]
            pairs = zip(part, pool.map(_read, part), strict=True)
            fitted = [pixels for pixels in (self._take(*pair) for pair in pairs) if pixels is not None]
            if fitted:
                yield _block(fitted, self._card.patch_px)

    def _take(self, patch: PatchPicture, pixels: RgbImage | str) -> RgbImage | None:
        if isinstance(pixels, str):
            self.left_out.append(pixels)
            return None
        self.readable.append(patch)
        fitted, size = _as_seen(pixels, self._card, self._mpp)
        self.sizes.append(size)
        if len(self.readable) % self._sample_step == 0:
            self.sample.append(fitted)
        return fitted


def _as_seen(pixels: RgbImage, card: ModelCard, mpp: float | None) -> tuple[RgbImage, tuple[int, int]]:
    """A patch as the model sees it, and its size (width, height) at the model's spacing before it was fitted."""
    pixels = at_spacing(pixels, mpp, card.spacing_um, card.spacing_tolerance)
    return fit_square(pixels, card.patch_px), (pixels.shape[1], pixels.shape[0])


def read_fitted(patches: Sequence[PatchPicture], card: ModelCard, mpp: float | None) -> list[RgbImage]:
    """Pixels of the patches that can be read, as the model sees them."""
    pictures = map(_read, patches)
    return [_as_seen(pixels, card, mpp)[0] for pixels in pictures if not isinstance(pixels, str)]


def at_spacing(pixels: RgbImage, mpp: float | None, wanted: float | None, tolerance: float) -> RgbImage:
    """A patch resized from ``mpp`` to ``wanted`` um per pixel; unchanged within the tolerance, or if one is None."""
    if mpp is None or wanted is None or abs(mpp / wanted - 1) <= tolerance:
        return pixels
    height, width = (max(1, round(n * mpp / wanted)) for n in pixels.shape[:2])
    method = cv2.INTER_AREA if mpp < wanted else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=method), np.uint8)


def _read(patch: PatchPicture) -> RgbImage | str:
    try:
        return read_patch(patch.path)
    except SlideError as error:
        return str(error)


def _block(pixels: Sequence[RgbImage], side: int) -> PatchBlock:
    """One block for an engine, with the patches below each other."""
    offsets = np.array([(0, i * side) for i in range(len(pixels))], np.int64)
    return PatchBlock(np.concatenate(pixels), offsets, side)


def quality_of(scored: ScoredPatches) -> Quality | None:
    """The quality of the scores; None unless there are labelled patches of both classes."""
    labels = np.array([-1 if p.label is None else p.label for p in scored.patches], np.int64)
    is_labelled = labels >= 0
    positive = labels[is_labelled] == POSITIVE_LABEL
    if len(np.unique(positive)) < 2:
        return None
    scores = scored.scores[is_labelled]
    low, high = auc_interval(positive, scores)
    error = calibration_error(positive, scores)
    return Quality(auc(positive, scores), (low, high), error, int(positive.sum()), int((~positive).sum()))


def write_patch_results(out: Folder, scored: ScoredPatches, record: dict[str, Any]) -> Quality | None:
    """Write the results of patches, and return the quality of the scores.

    The files are ``scores.csv``, ``run.json`` and ``index.html``, and for labelled patches also ``roc.png``,
    ``calibration.png`` and ``mistakes.png``.

    Raises:
        StoreError: a file cannot be written.
    """
    rows = [(p.name, p.label_text, f"{s:.6f}") for p, s in zip(scored.patches, scored.scores, strict=True)]
    out.write("scores.csv", csv_text(("file", "label", "score"), rows))
    quality = quality_of(scored)
    mistakes = 0
    pictures = ("roc.png", "calibration.png", "mistakes.png")
    for name in pictures:
        out.delete(name)  # pictures of an earlier run
    if quality is not None:
        mistakes = _write_pictures(out, scored, quality, record["models"][0]["name"])
    page = TEMPLATES.get_template("patches.html").render(
        scored=scored, quality=quality, mistakes=mistakes, record=record
    )
    out.write("index.html", page)
    figures = None
    if quality is not None:
        figures = {
            "auc": round(quality.auc, 6),
            "interval": [round(v, 6) for v in quality.interval],
            "calibration_error": round(quality.calibration_error, 6),
            "tumour": quality.positive,  # whatever the classes are
            "normal": quality.negative,
        }
    summary = {
        "patches": len(scored.patches),
        "left_out": list(scored.left_out),
        "warning": scored.warning,
        "quality": figures,
    }
    out.write_json("run.json", record | summary)
    return quality


def _write_pictures(out: Folder, scored: ScoredPatches, quality: Quality, name: str) -> int:
    """Write the three pictures, and return how many mistakes are shown."""
    labelled = [i for i, p in enumerate(scored.patches) if p.label is not None]
    is_positive = np.array([scored.patches[i].label == POSITIVE_LABEL for i in labelled])
    negative, positive = scored.words
    scores = scored.scores[labelled]
    low, high = quality.interval
    curve = (f"AUC {quality.auc:.4f} ({low:.4f} to {high:.4f})", *roc(is_positive, scores))
    title = f"{name}: {quality.positive} {positive} and {quality.negative} {negative} patches"
    out.write("roc.png", roc_png([curve], title))
    out.write("calibration.png", _calibration_png(is_positive, scores, name, positive))
    error = np.where(is_positive, 1 - scores, scores)
    worst_indices = [int(i) for i in np.argsort(-error, kind="stable")[:MISTAKES] if error[i] > 0.5]
    if worst_indices:
        worst_patches = [scored.patches[labelled[i]] for i in worst_indices]
        mistakes = contact_sheet_png(
            [read_patch(p.path) for p in worst_patches],
            [int(p.label == POSITIVE_LABEL) for p in worst_patches],
            title=f"{name}: the worst mistakes (red: {positive}, green: {negative}; score is that of {positive})",
            captions=[
                f"{Path(p.name).stem[:16]} {scores[i]:.2f}"
                for p, i in zip(worst_patches, worst_indices, strict=True)
            ],
        )
        out.write("mistakes.png", mistakes)
    return len(worst_indices)


def _calibration_png(
    truth: npt.NDArray[np.bool_], scores: npt.NDArray[np.float32], name: str, positive: str
) -> bytes:
    """Draw the share of the positive class against the mean score, in tenths of the score, with counts of patches."""
    bins = reliability(truth, scores)
    figure = Figure(figsize=(6.4, 6), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], ":", color="grey", linewidth=1)
    axis.plot([b.score for b in bins], [b.share for b in bins], "o-", color="#1565c0")
    for b in bins:
        axis.annotate(
            str(b.count), (b.score, b.share), textcoords="offset points", xytext=(6, -12), fontsize=8
        )
    axis.set_xlabel("mean score of the patches in a tenth of 0 to 1 (number of patches beside it)")
    axis.set_ylabel(f"share of them that is {positive}")
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    axis.set_title(f"{name}: expected calibration error {calibration_error(truth, scores):.3f}", fontsize=10)
    axis.grid(alpha=0.3)
    return png(figure, DPI)
