"""Training of a patch classifier: one run that reads top to bottom."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.checkpoint import load_start, save_checkpoint
from models.networks.contract import Oriented, PatchNetwork
from models.networks.efficientnet import EfficientNetLite0
from models.networks.inception import InceptionV3
from models.registry import HEADS, make_network
from models.training.data.augment import augment, draw_changes, wear
from models.training.data.feed import Batch, Feed
from models.training.data.places import Sampler
from models.training.data.splits import TrainingData, stride_of
from models.training.optimiser import TensorFlowRMSprop
from models.training.progress import NOBODY, Clock, Listeners, Progress, crossed, metrics_csv, progress_row
from models.training.recipe import TrainConfig
from models.training.state import TrainingState, average_of, use_bf16
from models.training.team import Team, join_team, leave_team, share_batch_norm
from wsi.datasets.patch_folder import TUMOUR
from wsi.errors import ConfigError, ModelError, SlideError
from wsi.files import write_text
from wsi.metrics.ranking import auc

SHEET_PATCHES = 32


def train(
    data: TrainingData,
    cfg: TrainConfig,
    out: Path,
    *,
    code_version: str,
    resume: bool = False,
    listeners: Listeners = NOBODY,
) -> float:
    """Train, and keep the best network by validation AUC in ``out/model``; the last where nothing is held out.

    Args:
        data: what to train on.
        cfg: the recipe.
        out: ``model/``, ``metrics.csv`` and ``checkpoint.safetensors`` go here.
        code_version: stated in the card.
        resume: go on from ``out/checkpoint.safetensors``; on a CPU to the same bits as without the stop.
        listeners: who hears of it.

    Returns:
        The best validation AUC; NaN where nothing is held out.

    Raises:
        ConfigError: this machine cannot run the recipe, or a class has no place left that can be read.
        ModelError: the loss is not finite, or there is nothing to resume; the last checkpoint is kept.
    """
    device = choose_device(cfg.device)
    team = join_team(cfg.batch, device)
    run = _Run(data, cfg, out, code_version, team, listeners if team.leads else NOBODY)
    listeners = run.listeners
    state = begin(data, cfg, team, device, resume=resume)
    if resume:
        state.load(out, run.resumable, rank=team.rank)
        listeners.say(f"resumed after {state.seen} examples")
    elif team.leads:
        listeners.show(*_first_patches(data, cfg))
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bf16(cfg.precision, device))
    clock = Clock(state.seen, state.seconds)

    for phase, end in ((1, cfg.examples), (2, cfg.total)):
        if state.seen >= end:
            continue
        _enter_phase(phase, state, cfg, data.sampler, listeners)
        with Feed(data.sampler, cfg.batch, team, threads=cfg.threads) as feed:
            while state.seen < end:
                with clock.waiting():
                    batch = feed.next()
                changes = draw_changes(cfg.batch, cfg.augment, state.generator).of(team.share(cfg.batch))
                worn = wear(batch.patches, cfg.augment, changes)
                pixels = augment(torch.from_numpy(worn).to(device), cfg.augment, changes)
                labels = torch.from_numpy(batch.labels).to(device)
                rate = cfg.rate(state.seen)
                loss = step(state, (pixels, labels), rate, cfg, team, autocast)
                _check_loss(loss, state, cfg, out)
                state.count(cfg.batch, loss, batch.after, clock.elapsed)
                now = clock.progress(state, cfg.total, rate)
                listeners.report(now)
                if crossed(state.seen, cfg.batch, cfg.validate_every) or state.seen >= end:
                    _validate(state, run, now)
                stop = listeners.stop()
                due = stop or crossed(state.seen, cfg.batch, cfg.checkpoint_every) or state.seen >= end
                if due and team.leads:
                    state.save(out, run.resumable)
                if stop:
                    raise KeyboardInterrupt
        data.sampler.state = state.drawn  # the feed has drawn ahead
    leave_team(team)
    return math.nan if state.best is None else state.best


@dataclass(frozen=True, eq=False, slots=True)
class _Run:
    """What stays the same during a run."""

    data: TrainingData
    cfg: TrainConfig
    out: Path
    code_version: str
    team: Team
    listeners: Listeners

    @property
    def resumable(self) -> dict[str, Any]:
        """What must be the same to go on with a run: all but paths, names and how fast it goes."""
        free = {
            "name",
            "slides",
            "patches",
            "validation",
            "init",
            "hard_negatives",
            "threads",
            "device",
            "dataset",
        }
        free |= {"limits", "training_data", "checkpoint_every"}
        recipe = self.cfg.model_dump(mode="json", exclude=free)
        return recipe | {"learning_rate": self.cfg.first_rate, "data": self.data.identity}


def begin(
    data: TrainingData, cfg: TrainConfig, team: Team, device: torch.device, *, resume: bool = False
) -> TrainingState:
    """A run's state before its first batch; the weights to start from are not needed to ``resume``."""
    torch.manual_seed(cfg.seed)
    network = make_network(cfg.network, 2, dropout=cfg.dropout, train=True)
    if cfg.init is not None and not resume:
        load_start(network, cfg.network, cfg.init)
    share_batch_norm(network, team)
    torch.manual_seed(cfg.seed + team.rank)  # dropout differs between processes
    network = network.to(device).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(cfg.seed)
    average = average_of(network, min(1.0, cfg.batch / cfg.average)) if cfg.average else None
    return TrainingState(network, _optimiser(network, cfg), data.sampler, generator, average=average)


def _optimiser(network: nn.Module, cfg: TrainConfig) -> torch.optim.Optimizer:
    if cfg.optimiser == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=cfg.first_rate, weight_decay=cfg.weight_decay)
    return TensorFlowRMSprop(
        network.parameters(),
        lr=cfg.first_rate,
        decay=cfg.decay,
        momentum=cfg.momentum,
        epsilon=cfg.epsilon,
        weight_decay=cfg.weight_decay,
    )


def _enter_phase(
    phase: int, state: TrainingState, cfg: TrainConfig, sampler: Sampler, listeners: Listeners
) -> None:
    """Set what the second phase changes; done again after a resume."""
    if phase == 1:
        return
    share = sampler.tumour_share = sampler.frequency
    for name, parameter in state.network.named_parameters():
        parameter.requires_grad_(name.startswith(HEADS[cfg.architecture][0]))
    if state.phase == 1:
        state.phase, state.best = 2, None
        state.optimiser.state.clear()
        listeners.say(f"second phase: the output layer alone, {share:.3%} of the draws are tumour")


def step(
    state: TrainingState,
    examples: tuple[Tensor, Tensor],
    rate: float,
    cfg: TrainConfig,
    team: Team,
    autocast: torch.autocast,
) -> float:
    """One update by augmented pixels (n, 3, side, side) and labels (n,); the loss of the whole batch."""
    pixels, labels = examples
    network: InceptionV3 | EfficientNetLite0 = state.network  # type: ignore[assignment]
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    network.train()
    if state.phase == 2:  # what is fixed must not drift by its running means either
        network.eval()
        network.dropout.train()
    with autocast:
        main, aux = network.forward_train(pixels.contiguous(memory_format=torch.channels_last))
    loss = classification_loss(main.float(), labels, cfg.focal_gamma)
    if state.phase == 1 and aux is not None:
        loss = loss + cfg.aux_weight * classification_loss(aux.float(), labels, cfg.focal_gamma)
    value = float(team.mean(loss.detach()))
    if math.isfinite(value):
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        team.average_gradients(network)
        state.optimiser.step()
    return value


def classification_loss(logits: Tensor, labels: Tensor, gamma: float = 0.0) -> Tensor:
    """Mean cross-entropy, or with ``gamma`` focal loss: -(1 - p)^gamma log p of the true class (Lin et al. 2017)."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    return ((1 - torch.exp(-losses)) ** gamma * losses if gamma else losses).mean()


def _check_loss(loss: float, state: TrainingState, cfg: TrainConfig, out: Path) -> None:
    if not math.isfinite(loss):
        raise ModelError(
            f"the loss became {loss} after {state.seen} examples; lower learning_rate ({cfg.first_rate:g}); "
            f"the last checkpoint and the best network so far, if there are any, are kept in {out}"
        )


def _validate(state: TrainingState, run: _Run, now: Progress) -> None:
    """Measure, log, and keep the network if it is the best; with nothing held out the last is kept."""
    if not run.team.leads:
        return
    score, threshold = None, None
    if run.data.held_out:
        tumour, scores = score_batches(state.judged, run.data.held_out)
        if np.isnan(scores).any():
            raise ModelError(
                f"after {state.seen} examples the network gives scores that are not numbers; lower learning_rate "
                f"({run.cfg.first_rate:g}); what was written before is kept in {run.out}"
            )
        score = auc(tumour, scores)
        if run.cfg.task == "fields":
            threshold = sensitive_threshold(tumour, scores, run.cfg.sensitivity)
        run.listeners.report(dataclasses.replace(now, auc=score))
    state.rows.append(progress_row(now) | {"auc": score})
    write_text(run.out / "metrics.csv", metrics_csv(state.rows))
    run.listeners.metrics(state.rows)
    if score is None or state.best is None or score > state.best:
        state.best = score
        _save(state.judged, run, now, score, threshold)


def score_batches(
    network: nn.Module, batches: Iterable[Batch], *, orientations: bool = False
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Which patches are tumour, and their scores; with ``orientations`` the mean over 8."""
    network.eval()
    device = next(network.parameters()).device
    scorer: nn.Module = PatchNetwork(network)
    scorer = Oriented(scorer) if orientations else scorer
    labels, scores = [], []
    with torch.inference_mode():
        for batch in batches:
            labels.append(batch.labels == TUMOUR)
            scores.append(scorer(torch.from_numpy(batch.patches).to(device))[:, TUMOUR].float().cpu().numpy())
    return np.concatenate(labels), np.concatenate(scores)


def _first_patches(
    data: TrainingData, cfg: TrainConfig
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Some of the first examples as the network will see them; leaves the run's generators as they are."""
    before = data.sampler.state
    places = [data.sampler.draw() for _ in range(SHEET_PATCHES)]
    data.sampler.state = before
    patches, labels = [], []
    for place in places:
        with suppress(SlideError):  # the run itself will say so
            patches.append(data.sampler.read(place))
            labels.append(place.label)
    if not patches:
        return np.empty((0, cfg.patch_px, cfg.patch_px, 3), np.uint8), np.empty(0, np.int64)
    changes = draw_changes(len(patches), cfg.augment, torch.Generator().manual_seed(cfg.seed))
    worn = wear(np.stack(patches), cfg.augment, changes)
    pixels = augment(torch.from_numpy(worn), cfg.augment, changes)
    shown = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return shown, np.array(labels, np.int64)


def choose_device(wanted: str) -> torch.device:
    """The device a recipe asks for; under ``torchrun`` each process's own GPU."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch sees no GPU; use device: auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"there are more processes than GPUs ({torch.cuda.device_count()}); start fewer, or set device: cpu"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def sensitive_threshold(
    positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float32], share: float
) -> float:
    """The highest score from which on this share of the positive ones, or more, is kept."""
    mine = np.sort(scores[positive])[::-1]
    return float(mine[math.ceil(share * len(mine)) - 1])


def _save(network: nn.Module, run: _Run, now: Progress, score: float | None, threshold: float | None) -> None:
    cfg, data = run.cfg, run.data
    hidden = {
        "slides",
        "patches",
        "validation",
        "init",
        "hard_negatives",
        "limits",
        "training_data",
        "dataset",
    }  # paths, names
    recipe = cfg.model_dump(mode="json", exclude=hidden)
    save_checkpoint(
        run.out / "model",
        network,
        name=cfg.name,
        architecture=cfg.network,
        classes=cfg.classes,
        positive=cfg.classes[TUMOUR],
        patch_px=cfg.patch_px,
        stride_px=stride_of(cfg),
        spacing_um=cfg.spacing_um,
        spacing_tolerance=cfg.spacing_tolerance,
        stain_normalisation=cfg.stain_normalisation,
        demonstration=cfg.demonstration,
        limits=cfg.limits,
        training={
            "data": cfg.training_data,
            **data.facts,
            "places_that_could_not_be_read": len(data.sampler.excluded),
            "started_from": None if cfg.init is None else cfg.init.name,
            "examples": now.examples,
            "recipe": recipe,
        },
        threshold=threshold,
        metrics={} if score is None else {"validation_patch_auc": round(score, 6)},
        code_version=run.code_version,
    )
