"""What a run trains and validates on: slides by their split, or folders of patches."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.training.data.feed import Batch
from models.training.data.places import (
    PatchSampler,
    Place,
    Sampler,
    SlideSampler,
    fit_square,
    read_hard_negatives,
)
from models.training.data.slides import PatchFrame, TrainingSlide, prepare_slide
from models.training.recipe import TrainConfig
from wsi.datasets.patch_folder import PatchFolder
from wsi.errors import ConfigError, SlideError
from wsi.slides.manifest import SlideRow

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class TrainingData:
    """Examples to train on, and to choose the best network by.

    Attributes:
        sampler: draws and reads the examples.
        held_out: fixed batches of the validation set; empty where the last network is kept.
        facts: what the card says of the data; no names, which may tell of patients.
        identity: hash of all that decides which examples are drawn.
    """

    sampler: Sampler
    held_out: tuple[Batch, ...]
    facts: dict[str, Any]
    identity: str


def frame_of(cfg: TrainConfig) -> PatchFrame:
    """What the model of a recipe sees."""
    return PatchFrame(
        cfg.patch_px,
        stride_of(cfg),
        cfg.spacing_um,
        cfg.spacing_tolerance,
        cfg.stain_normalisation,
        cfg.truth_label,
        cfg.task == "fields",
    )


def stride_of(cfg: TrainConfig) -> int:
    """Side of a cell in the model's pixels: a field is its own cell."""
    return cfg.patch_px if cfg.task == "fields" else cfg.stride_px


def slide_data(
    rows: Sequence[SlideRow],
    cfg: TrainConfig,
    say: Callable[[str], None] = lambda text: None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> TrainingData:
    """Open the slides of the splits ``train`` and ``validation``, and draw the validation patches.

    Args:
        rows: slides with truth.
        cfg: the recipe.
        say: called with one line for people, now and then.
        tick: called with (slides done, slides).

    Raises:
        ConfigError: no slides of a split, or of a class.
        WsiError: a slide or its truth cannot be used.
    """
    splits = {split: [row for row in rows if row.split == split] for split in ("train", "validation")}
    for split, chosen in splits.items():
        if not chosen:
            raise ConfigError(f"no slide's split is {split!r}; fill in the column 'split' of the manifest")
    both = {row.source.path for row in splits["train"]} & {row.source.path for row in splits["validation"]}
    if both:
        raise ConfigError(f"{min(both)} is in both splits, train and validation; remove one of its lines")
    prepared: dict[str, list[TrainingSlide]] = {}
    done, total = 0, sum(map(len, splits.values()))
    for split, chosen in splits.items():
        slides = prepared[split] = []
        for row in chosen:
            slides.append(prepare_slide(row, frame_of(cfg)))
            done += 1
            tick(done, total)
            if slides[-1].note:
                say(slides[-1].note)
        counts = _cell_counts(slides, cfg)
        text = " and ".join(f"{count} {name}" for name, count in counts.items())
        say(f"{split}: {len(slides)} slides, {text} cells")
    slides_of_all = [slide for slides in prepared.values() for slide in slides]
    _check_mask_values(slides_of_all)
    rng, validation_rng = _generators(cfg)
    hard = () if cfg.hard_negatives is None else read_hard_negatives(cfg.hard_negatives)
    sampler = SlideSampler(
        prepared["train"], rng, cfg.augment.jitter_px, names=cfg.words, hard=hard, hard_share=cfg.hard_share
    )
    if hard:
        say(
            f"train: {len(sampler.hard)} of {len(hard)} hard negatives lie on {cfg.words[0]} cells of these slides"
        )
    say(f"reading {cfg.validation_patches} validation patches")
    held_out = _draw_held_out(SlideSampler(prepared["validation"], validation_rng, names=cfg.words), cfg)
    facts: dict[str, Any] = {
        split: {
            "slides": len(slides),
            "names_sha256": digest(*(slide.name.encode() for slide in slides)),
            "cells": _cell_counts(slides, cfg),
        }
        for split, slides in prepared.items()
    }
    cells = [slide.name.encode() + b"".join(c.tobytes() for c in slide.cells) for slide in slides_of_all]
    identity = digest(*cells, repr(sampler.hard).encode())
    return TrainingData(sampler, tuple(held_out), {"split": facts}, identity)


def _cell_counts(slides: Sequence[TrainingSlide], cfg: TrainConfig) -> dict[str, int]:
    """The number of cells of each class, by its name."""
    return {name: sum(len(s.cells[c]) for s in slides) for c, name in enumerate(cfg.classes)}


def _check_mask_values(slides: Sequence[TrainingSlide]) -> None:
    """A mask of the values 0 and 1 may be one of 0, 1, 2 without tumour: masks must agree."""
    by_value = {slide.mask_value: slide.name for slide in slides if slide.mask_value is not None}
    if len(by_value) > 1:
        values = " and ".join(f"{value} ({name})" for value, name in sorted(by_value.items()))
        raise ConfigError(
            f"the masks differ in the value that means tumour: {values}; say it with truth_label"
        )


def digest(*parts: bytes) -> str:
    """A short hash of parts, which tells where one ends."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()[:16]


def patch_data(
    folder: PatchFolder, train: Sequence[int], cfg: TrainConfig, held_out: PatchFolder | None = None
) -> TrainingData:
    """Patches of a folder by their indices; with none held out the last network is kept.

    Raises:
        ConfigError: a patch is in both folders.
    """
    if held_out is not None:
        check_apart(folder, held_out)
    rng, _ = _generators(cfg)
    sampler = PatchSampler(folder, train, cfg.patch_px, rng, cfg.augment.jitter_px, names=cfg.words)
    counts = {
        split: {name: labels.count(c) for c, name in enumerate(cfg.words)}
        for split, labels in (
            ("train", [folder.files[i].label for i in train]),
            ("held out", [file.label for file in held_out.files] if held_out else []),
        )
    }
    used = [folder.pixels[i].tobytes() + bytes([folder.files[i].label]) for i in train]
    batches: list[Batch] = []
    if held_out is not None:
        batches = patch_batches(held_out, range(len(held_out.files)), cfg.batch, cfg.patch_px)
        used += [p.tobytes() + bytes([f.label]) for p, f in zip(held_out.pixels, held_out.files, strict=True)]
    return TrainingData(sampler, tuple(batches), {"split": counts}, digest(*used))


def patch_batches(folder: PatchFolder, chosen: Sequence[int], size: int, side: int) -> list[Batch]:
    """Every one of these patches, as a model of patches of ``side`` px sees it, in batches of ``size``."""
    batches = []
    for start in range(0, len(chosen), size):
        part = chosen[start : start + size]
        pixels = np.stack([fit_square(folder.pixels[i], side) for i in part])
        batches.append(Batch(pixels, np.array([folder.files[i].label for i in part], np.int64), None))
    return batches


def check_apart(first: PatchFolder, second: PatchFolder) -> None:
    """Refuse to choose a network by patches that it was trained on.

    Raises:
        ConfigError: a picture is in both.
    """
    known = {hashlib.sha256(p.tobytes()).digest(): f for p, f in zip(first.pixels, first.files, strict=True)}
    for pixels, file in zip(second.pixels, second.files, strict=True):
        same = known.get(hashlib.sha256(pixels.tobytes()).digest())
        if same is not None:
            raise ConfigError(
                f"{file.path} is the same picture as {same.path}; remove it from one of the folders"
            )


def fold_parts(folder: PatchFolder, folds: int) -> list[list[int]]:
    """Indices of each fold: contiguous in the patches' order within each class."""
    return [folder.part(k / folds, (k + 1) / folds) for k in range(folds)]


def _generators(cfg: TrainConfig) -> list[np.random.Generator]:
    return [np.random.default_rng(s) for s in np.random.SeedSequence(cfg.seed).spawn(2)]


def _draw_held_out(sampler: SlideSampler, cfg: TrainConfig) -> list[Batch]:
    """Fixed validation patches; places that cannot be read are left out."""
    places = [sampler.draw() for _ in range(cfg.validation_patches)]

    def read(place: Place) -> Any:
        try:
            return sampler.read(place)
        except SlideError as error:
            log.warning("a validation patch is left out (%s)", error)
            return None

    with ThreadPoolExecutor(cfg.threads) as pool:
        pixels = list(pool.map(read, places))
    kept = [i for i, patch in enumerate(pixels) if patch is not None]
    labels = np.array([place.label for place in places], np.int64)
    if len(np.unique(labels[kept])) < 2:
        raise ConfigError("the validation slides gave no patch of one class that can be read; check them")
    parts = [kept[i : i + cfg.batch] for i in range(0, len(kept), cfg.batch)]
    return [Batch(np.stack([pixels[i] for i in part]), labels[part], None) for part in parts]
