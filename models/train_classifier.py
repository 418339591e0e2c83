"""Training of a patch classifier: one run that reads top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from models.augment import AugmentConfig, augment
from models.card import Architecture
from models.checkpoint import load_imagenet, save_checkpoint
from models.inception import PATCH_PX, InceptionV3
from models.network import PatchNetwork
from models.optimiser import TensorFlowRMSprop
from models.sampling import NORMAL, TUMOUR, Batch, Place, Sampler, TrainingSlide, batches, prepare_slide
from wsi.config import Config
from wsi.errors import ConfigError, ModelError
from wsi.files import write_text
from wsi.manifest import SlideRow
from wsi.metrics import auc

STRIDE_PX = 128  # the centre square that a patch speaks for (Liu et al. 2017)


class TrainConfig(Config):
    """The recipe; defaults are those of Liu et al. 2017 where they state one.

    Attributes:
        width: multiplier of the channels; 1 is the full Inception-v3.
        init: ImageNet weight file to start from, at width 1; ``imagenet`` lets torchvision download it.
        examples: patches to train on.
        halve_every: examples after which the learning rate is halved.
        validate_every: examples between validations.
        validation_patches: patches, half of each class, drawn once from the validation slides.
        aux_weight: share of the auxiliary head's loss (Szegedy et al. 2015 use 0.3; REPATH 0.4).
        precision: of the forward pass; weights and optimiser stay in fp32.
    """

    name: str
    slides: Path | None = None
    width: float = Field(default=1.0, gt=0, le=1)
    init: Path | None = None
    spacing_um: float | None = 0.243
    spacing_tolerance: float = Field(default=0.1, ge=0, lt=1)
    seed: int = 0
    batch: int = Field(default=32, gt=1)
    examples: int = Field(default=10_000_000, gt=0)
    learning_rate: float = Field(default=0.05, gt=0)
    halve_every: int = Field(default=2_000_000, gt=0)
    momentum: float = 0.9
    decay: float = 0.9
    epsilon: float = 1.0
    weight_decay: float = 0.0
    aux_weight: float = 0.4
    dropout: float = Field(default=0.5, ge=0, lt=1)
    validate_every: int = Field(default=100_000, gt=0)
    validation_patches: int = Field(default=4_000, gt=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, gt=0)
    augment: AugmentConfig = AugmentConfig()
    demonstration: bool = False
    training_data: str = ""
    limits: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands; one row of ``metrics.csv`` when ``auc`` is set."""

    examples: int
    total: int
    loss: float
    learning_rate: float
    examples_per_s: float
    auc: float | None = None


def train(
    rows: Sequence[SlideRow],
    cfg: TrainConfig,
    out: Path,
    *,
    code_version: str,
    report: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda text: None,
) -> float:
    """Train and keep the best network by validation AUC in ``out/model``.

    Args:
        rows: slides with truth; their split is ``train`` or ``validation``.
        cfg: the recipe.
        out: ``model/`` and ``metrics.csv`` go here.
        code_version: stated in the card.
        report: called after every batch, and with an AUC after every validation.
        say: called with one line for people, now and then.

    Returns:
        The best validation AUC.

    Raises:
        ConfigError: no slides of a split, or of a class.
        ModelError: the loss is not finite; the best network so far is kept.
    """
    torch.manual_seed(cfg.seed)
    rng, validation_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(cfg.seed).spawn(2))
    generator = torch.Generator().manual_seed(cfg.seed)
    device = _device(cfg.device)

    training = _prepare(rows, "train", cfg, say)
    validation = _prepare(rows, "validation", cfg, say)
    sampler = Sampler(training, rng, cfg.augment.jitter_px)
    held_out = _draw_validation(validation, validation_rng, cfg)

    network = InceptionV3(2, width=cfg.width, dropout=cfg.dropout)
    if cfg.init is not None:
        load_imagenet(network, cfg.init)
    network = network.to(device).to(memory_format=torch.channels_last)
    optimiser = TensorFlowRMSprop(
        network.parameters(),
        lr=cfg.learning_rate,
        decay=cfg.decay,
        momentum=cfg.momentum,
        epsilon=cfg.epsilon,
        weight_decay=cfg.weight_decay,
    )
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=cfg.precision == "bf16")

    best, seen, running, started = -math.inf, 0, math.nan, time.monotonic()
    validate_at = cfg.validate_every
    log = _Log(out / "metrics.csv")
    for batch in batches(training, sampler.draw, cfg.batch, threads=cfg.threads):
        rate = cfg.learning_rate * 0.5 ** (seen // cfg.halve_every)
        for group in optimiser.param_groups:
            group["lr"] = rate
        network.train()
        pixels = augment(torch.from_numpy(batch.patches).to(device), cfg.augment, generator)
        labels = torch.from_numpy(batch.labels).to(device)
        with autocast:
            main, aux = network.forward_train(pixels.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(main.float(), labels) + cfg.aux_weight * F.cross_entropy(aux.float(), labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ModelError(
                f"the loss became {value} after {seen} examples; lower learning_rate "
                f"({cfg.learning_rate}); the best network so far is in {out / 'model'}"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

        seen += len(labels)
        running = value if math.isnan(running) else 0.98 * running + 0.02 * value
        speed = seen / (time.monotonic() - started)
        report(Progress(seen, cfg.examples, running, rate, speed))
        if seen >= min(validate_at, cfg.examples):
            validate_at += cfg.validate_every
            score = validate(network, held_out, device)
            progress = Progress(seen, cfg.examples, running, rate, speed, score)
            log.add(progress)
            report(progress)
            if score > best:
                best = score
                _save(out / "model", network, cfg, training, progress, code_version)
        if seen >= cfg.examples:
            break
    return best


def validate(network: InceptionV3, held_out: Sequence[Batch], device: torch.device) -> float:
    """AUC of the tumour score over fixed patches."""
    network.eval()
    scorer = PatchNetwork(network)
    with torch.inference_mode():
        scores = [scorer(torch.from_numpy(b.patches).to(device))[:, TUMOUR].cpu().numpy() for b in held_out]
    return auc(np.concatenate([b.labels for b in held_out]) == TUMOUR, np.concatenate(scores))


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch sees no GPU; use device: auto or cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _prepare(
    rows: Sequence[SlideRow], split: str, cfg: TrainConfig, say: Callable[[str], None]
) -> list[TrainingSlide]:
    chosen = [row for row in rows if row.split == split]
    if not chosen:
        raise ConfigError(f"the manifest has no slide whose split is {split!r}; fill in the column 'split'")
    say(f"{split}: finding tissue and truth of {len(chosen)} slides")
    slides = [
        prepare_slide(row, PATCH_PX, STRIDE_PX, cfg.spacing_um, cfg.spacing_tolerance) for row in chosen
    ]
    normal, tumour = (sum(len(s.cells[label]) for s in slides) for label in (NORMAL, TUMOUR))
    say(f"{split}: {len(slides)} slides, {normal} normal and {tumour} tumour cells")
    return slides


def _draw_validation(
    slides: Sequence[TrainingSlide], rng: np.random.Generator, cfg: TrainConfig
) -> list[Batch]:
    sampler = Sampler(slides, rng)
    places: list[Place] = [sampler.draw() for _ in range(cfg.validation_patches)]
    source = iter(places)
    size = min(cfg.batch, cfg.validation_patches)
    wanted = cfg.validation_patches // size
    stream = batches(slides, lambda: next(source, places[-1]), size, threads=cfg.threads)
    held_out = [batch for _, batch in zip(range(wanted), stream, strict=False)]
    stream.close()
    return held_out


def _save(
    folder: Path,
    network: InceptionV3,
    cfg: TrainConfig,
    training: Sequence[TrainingSlide],
    progress: Progress,
    code_version: str,
) -> None:
    recipe: dict[str, Any] = cfg.model_dump(
        mode="json", exclude={"slides", "init", "limits", "training_data"}
    )
    save_checkpoint(
        folder,
        network,
        name=cfg.name,
        architecture=Architecture(width=cfg.width),
        classes=("normal", "tumor"),
        positive="tumor",
        patch_px=PATCH_PX,
        stride_px=STRIDE_PX,
        spacing_um=cfg.spacing_um,
        spacing_tolerance=cfg.spacing_tolerance,
        demonstration=cfg.demonstration,
        limits=cfg.limits,
        training={
            "data": cfg.training_data,
            "slides": len(training),
            "examples": progress.examples,
            "recipe": recipe,
        },
        metrics={"validation_patch_auc": round(progress.auc or 0.0, 6)},
        code_version=code_version,
    )


class _Log:
    """``metrics.csv``: a row after every validation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = ",".join(f.name for f in fields(Progress)) + "\n"

    def add(self, progress: Progress) -> None:
        values = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in asdict(progress).values()]
        self.text += ",".join(values) + "\n"
        write_text(self.path, self.text)
