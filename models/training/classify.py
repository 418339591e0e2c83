"""The task of a patch classifier: its loss, its validation, its card."""

from __future__ import annotations

import math
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
from models.networks.backbone import Backbone
from models.networks.contract import Oriented, PatchNetwork
from models.networks.efficientnet import EfficientNetLite0
from models.networks.inception import InceptionV3
from models.registry import HEADS, make_network
from models.training.data.augment import augment, draw_changes, wear
from models.training.data.feed import Batch, Feed
from models.training.data.splits import TrainingData, stride_of
from models.training.loop import Judgement, run
from models.training.optimiser import TensorFlowRMSprop
from models.training.progress import NOBODY, Listeners
from models.training.recipe import TrainConfig
from models.training.state import TrainingState, average_of, use_bf16
from models.training.team import Team, choose_device, join_team, share_batch_norm
from wsi.datasets.patch_folder import POSITIVE_LABEL
from wsi.errors import ModelError, SlideError
from wsi.metrics.ranking import auc

SHEET_PATCHES = 32
# of a recipe, in cards and checkpoints: paths and names, which may tell of patients
HIDDEN = {"slides", "patches", "validation", "init", "hard_negatives", "limits", "training_data", "dataset"}


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
        listeners: the functions that are told of the run's progress.

    Returns:
        The best validation AUC; NaN where nothing is held out.

    Raises:
        ConfigError: this machine cannot run the recipe, or a class has no place left that can be read.
        ModelError: the loss is not finite, or there is nothing to resume; the last checkpoint is kept.
    """
    device = choose_device(cfg.device)
    task = Classify(data, cfg, out, code_version, join_team(cfg.batch, device), device)
    return run(task, begin(task, resume=resume), out, resume=resume, listeners=listeners)


@dataclass(frozen=True, eq=False, slots=True)
class Classify:
    """Telling two classes of patches apart; see `models.training.loop.Task`."""

    data: TrainingData
    cfg: TrainConfig
    out: Path
    code_version: str
    team: Team
    device: torch.device
    measure: str = "auc"
    clip: float | None = None

    @property
    def recipe(self) -> TrainConfig:
        """The recipe."""
        return self.cfg

    @property
    def ends(self) -> tuple[int, ...]:
        """Examples after which each of the two phases ends."""
        return (self.cfg.examples, self.cfg.total)

    @property
    def resumable(self) -> dict[str, Any]:
        """What must be the same to go on with a run: all but paths, names and how fast it goes."""
        recipe = self.cfg.model_dump(
            mode="json", exclude=HIDDEN | {"name", "threads", "device", "checkpoint_every"}
        )
        for later, default in (("timm", None), ("trained", "all")):  # earlier checkpoints do not name them
            if recipe[later] == default:
                del recipe[later]
        return recipe | {"learning_rate": self.cfg.first_rate, "data": self.data.identity}

    def show(self, listeners: Listeners) -> None:
        """Show some of the first examples as the network will see them."""
        listeners.show(*_first_patches(self.data, self.cfg))

    def enter(self, phase: int, state: TrainingState, listeners: Listeners) -> None:
        """Fix all but the output layer in the second phase, and draw at the true class frequencies."""
        if phase == 2 or self.cfg.trained == "head":
            for name, parameter in state.network.named_parameters():
                parameter.requires_grad_(name.startswith(HEADS[self.cfg.architecture][0]))
        if phase == 1:
            return
        sampler = self.data.sampler
        share = sampler.positive_share = sampler.frequency
        if state.phase == 1:
            state.phase, state.best = 2, None
            state.optimiser.state.clear()
            listeners.say(
                f"second phase: the output layer alone, {share:.3%} of the draws are {self.cfg.positive}"
            )

    def feed(self, state: TrainingState) -> Feed:
        """Batches of patches, read ahead by threads."""
        return Feed(self.data.sampler, self.cfg.batch, self.team, threads=self.cfg.threads)

    def loss(self, state: TrainingState, batch: Batch) -> Tensor:
        """Augment this process's share of a batch, and its mean loss."""
        share = self.team.share(self.cfg.batch)
        changes = draw_changes(self.cfg.batch, self.cfg.augment, state.generator).of(share)
        worn = wear(batch.patches, self.cfg.augment, changes)
        pixels = augment(torch.from_numpy(worn).to(self.device), self.cfg.augment, changes)
        return self.loss_of(state, pixels, torch.from_numpy(batch.labels).to(self.device))

    def loss_of(self, state: TrainingState, pixels: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of augmented pixels (n, 3, side, side) and labels (n,)."""
        network: InceptionV3 | EfficientNetLite0 | Backbone = state.network  # type: ignore[assignment]
        network.train()
        if (
            state.phase == 2 or self.cfg.trained == "head"
        ):  # what is fixed must not drift by its running means either
            network.eval()
            network.dropout.train()
        bf16 = use_bf16(self.cfg.precision, self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            main, aux = network.forward_train(pixels.contiguous(memory_format=torch.channels_last))
        loss = classification_loss(main.float(), labels, self.cfg.focal_gamma)
        if state.phase == 1 and aux is not None and self.cfg.trained == "all":
            loss = loss + self.cfg.aux_weight * classification_loss(aux.float(), labels, self.cfg.focal_gamma)
        return loss

    def judge(self, state: TrainingState) -> Judgement:
        """The AUC of the validation patches, and a threshold where the recipe asks for one.

        Raises:
            ModelError: a score is not a number.
        """
        if not self.data.held_out:
            return Judgement(card={"threshold": None, "metrics": {}})
        positive, scores = score_batches(state.judged, self.data.held_out)
        if np.isnan(scores).any():
            raise ModelError(
                f"after {state.seen} examples the network gives scores that are not numbers; lower learning_rate "
                f"({self.cfg.first_rate:g}); what was written before is kept in {self.out}"
            )
        quality = auc(positive, scores)
        fields = self.cfg.task == "fields"
        threshold = sensitive_threshold(positive, scores, self.cfg.sensitivity) if fields else None
        return Judgement(
            quality, {"threshold": threshold, "metrics": {"validation_patch_auc": round(quality, 6)}}
        )

    def keep(self, state: TrainingState, judgement: Judgement) -> None:
        """Write ``model/``."""
        cfg, data = self.cfg, self.data
        save_checkpoint(
            self.out / "model",
            state.judged,
            name=cfg.name,
            architecture=cfg.network,
            classes=cfg.classes,
            positive=cfg.positive,
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
                "examples": state.seen,
                "recipe": cfg.model_dump(mode="json", exclude=HIDDEN),
            },
            code_version=self.code_version,
            **judgement.card,
        )


def begin(task: Classify, *, resume: bool = False) -> TrainingState:
    """The state of a run before its first batch; the weights to start from are not needed to ``resume``."""
    cfg, team = task.cfg, task.team
    torch.manual_seed(cfg.seed)
    network = make_network(cfg.network, 2, dropout=cfg.dropout, train=True)
    if cfg.init is not None and not resume:
        load_start(network, cfg.network, cfg.init)
    share_batch_norm(network, team)
    torch.manual_seed(cfg.seed + team.rank)  # dropout differs between processes
    network = network.to(task.device).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(cfg.seed)
    average = average_of(network, min(1.0, cfg.batch / cfg.average)) if cfg.average else None
    return TrainingState(network, _optimiser(network, cfg), task.data.sampler, generator, average=average)


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


def classification_loss(logits: Tensor, labels: Tensor, gamma: float = 0.0) -> Tensor:
    """Mean cross-entropy, or with ``gamma`` focal loss: -(1 - p)^gamma log p of the true class (Lin et al. 2017)."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    return ((1 - torch.exp(-losses)) ** gamma * losses if gamma else losses).mean()


def score_batches(
    network: nn.Module, batches: Iterable[Batch], *, orientations: bool = False
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Which patches are of the positive class, and their scores; with ``orientations`` the mean over 8."""
    network.eval()
    device = next(network.parameters()).device
    scorer: nn.Module = PatchNetwork(network)
    scorer = Oriented(scorer) if orientations else scorer
    labels, scores = [], []
    with torch.inference_mode():
        for batch in batches:
            labels.append(batch.labels == POSITIVE_LABEL)
            found = scorer(torch.from_numpy(batch.patches).to(device))
            scores.append(found[:, POSITIVE_LABEL].float().cpu().numpy())
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


def sensitive_threshold(
    positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float32], share: float
) -> float:
    """The highest score from which on this share of the positive ones, or more, is kept."""
    positive_scores = np.sort(scores[positive])[::-1]
    return float(positive_scores[math.ceil(share * len(positive_scores)) - 1])
