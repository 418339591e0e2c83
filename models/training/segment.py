"""The task of a segmenter: its loss, validation and card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.checkpoint import load_segmenter, save_segmenter
from models.engines.contract import find_folder
from models.networks.contract import normalise
from models.networks.segmentation import Segmenter
from models.registry import make_segmenter
from models.training.data.areas import AreaExample, area_sampler, check_areas, validation_areas
from models.training.data.augment import draw_changes, recoloured, wear
from models.training.data.tiles import TileBatch, training_rows
from models.training.loop import Judgement, run
from models.training.progress import NOBODY, Listeners
from models.training.recipe import SegmenterTrainConfig
from models.training.state import TrainingState, use_bf16
from models.training.team import choose_device, join_team, share_batch_norm
from models.training.tile_learning import TileLearning
from wsi.errors import ConfigError
from wsi.metrics.segmentation import UNKNOWN, ClassMap, SegmentationScore, compare_maps
from wsi.slides.manifest import SlideRow


def train_segmenter(
    rows: Sequence[SlideRow],
    cfg: SegmenterTrainConfig,
    out: Path,
    *,
    code_version: str,
    resume: bool = False,
    listeners: Listeners = NOBODY,
) -> float:
    """Train, and keep the best network by mean intersection over union in ``out/model``; the last without validation.

    Args:
        rows: slides with truth; those of the split ``validation`` are held out.
        cfg: the recipe.
        out: ``model/``, ``metrics.csv`` and ``checkpoint.safetensors`` go here.
        code_version: stated in the card.
        resume: go on from ``out/checkpoint.safetensors``; on a CPU to the same bits as without the stop.
        listeners: the functions that are told of the run's progress.

    Returns:
        The best mean intersection over union; NaN where nothing is held out.

    Raises:
        ConfigError: no slide to train on, none of its places can be read, or a class that no outline has.
        ModelError: the loss is not finite, or there is nothing to resume.
    """
    check_areas(rows, cfg)
    device = choose_device(cfg.device)
    team = join_team(cfg.batch, device)
    torch.manual_seed(cfg.seed)
    network = _start(cfg)
    share_batch_norm(network, team)
    network = network.to(device).to(memory_format=torch.channels_last)
    with ExitStack() as stack:
        sampler = area_sampler(training_rows(rows), cfg, cfg.seed, stack)
        if sampler is None:
            raise ConfigError("no slide to train on: none is of the split 'train'")
        held_out = validation_areas(rows, cfg, stack)
        task = Segment(sampler, held_out, out, code_version, team, device, cfg)
        optimiser = torch.optim.AdamW(network.parameters(), cfg.learning_rate, weight_decay=cfg.weight_decay)
        state = TrainingState(network, optimiser, sampler, torch.Generator().manual_seed(cfg.seed))
        return run(task, state, out, resume=resume, listeners=listeners)


@dataclass(frozen=True, eq=False, slots=True)
class Segment(TileLearning[AreaExample]):
    """Naming the class of every pixel of tiles; see `models.training.loop.Task`."""

    cfg: SegmenterTrainConfig
    measure: str = "mean_iou"

    def loss(self, state: TrainingState, batch: TileBatch[AreaExample]) -> Tensor:
        """Weighted mean loss of the known pixels of this process's share of a batch."""
        network = _segmenter(state)
        network.train()
        share = self.team.share(self.cfg.batch)
        changes = draw_changes(self.cfg.batch, self.cfg.augment, state.generator).of(share)
        tiles = wear(np.stack([tile.pixels for tile in batch.tiles]), self.cfg.augment, changes)
        pixels = recoloured(torch.from_numpy(tiles), self.cfg.augment, changes).to(self.device)
        bf16 = use_bf16(self.cfg.precision, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            logits = network.logits(pixels.contiguous(memory_format=torch.channels_last))
        margin = self.cfg.segmenter.margin_px
        core = np.s_[margin : margin + logits.shape[2], margin : margin + logits.shape[3]]
        classes = torch.from_numpy(np.stack([tile.classes[core] for tile in batch.tiles])).long()
        weights = torch.from_numpy(np.stack([tile.weights[core] for tile in batch.tiles]))
        return map_loss(
            logits.float(), classes.to(self.device), weights.to(self.device), self.cfg.focal_gamma
        )

    def judge(self, state: TrainingState) -> Judgement:
        """The mean intersection over union of the classes on the held-out tiles."""
        if not self.held_out:
            return Judgement()
        score = score_tiles(_segmenter(state), self.held_out)
        names = self.cfg.segmenter.classes
        ious = {name: round(float(v), 4) for name, v in zip(names, score.ious, strict=True) if np.isfinite(v)}
        quality = score.mean_iou
        return Judgement(quality if math.isfinite(quality) else None, {"metrics": {"IoU": ious}})

    def keep(self, state: TrainingState, judgement: Judgement) -> None:
        """Write ``model/``."""
        cfg = self.cfg
        save_segmenter(
            self.out / "model",
            _segmenter(state),
            name=cfg.name,
            segmenter=cfg.segmenter,
            demonstration=cfg.demonstration,
            limits=cfg.limits,
            training=self.seen(state),
            code_version=self.code_version,
            **judgement.card,
        )


def _segmenter(state: TrainingState) -> Segmenter:
    """The network that `train_segmenter` made."""
    assert isinstance(state.judged, Segmenter)
    return state.judged


def _start(cfg: SegmenterTrainConfig) -> Segmenter:
    """A network of random weights, or of those of the segmenter that the recipe names.

    Raises:
        ConfigError: that segmenter has another shape.
    """
    if cfg.init is None:
        return make_segmenter(cfg.segmenter)
    network, card = load_segmenter(find_folder(cfg.init))
    if card.segmenter != cfg.segmenter:
        raise ConfigError(
            f"init: {cfg.init} has another shape than segmenter: in the recipe; make them the same"
        )
    return network


def map_loss(logits: Tensor, classes: Tensor, weights: Tensor, gamma: float = 0.0) -> Tensor:
    """Mean cross-entropy of the known pixels, each weighted; with ``gamma`` their focal loss (Lin et al. 2017).

    Args:
        logits: (n, classes, h, w), in fp32.
        classes: (n, h, w) of class numbers; `UNKNOWN` does not count.
        weights: (n, h, w).
        gamma: 0 is cross-entropy.

    Returns:
        0 where no pixel is known.
    """
    loss = F.cross_entropy(logits, classes, ignore_index=UNKNOWN, reduction="none")
    if gamma:
        loss = (1 - torch.exp(-loss)) ** gamma * loss
    weights = weights * (classes != UNKNOWN)
    return (loss * weights).sum() / weights.sum().clamp_min(1e-6)


@torch.inference_mode()
def score_tiles(network: Segmenter, tiles: Sequence[AreaExample]) -> SegmentationScore:
    """Agreement of the network with the truth on the cores of tiles, pixel by pixel, whatever the map's cells are."""
    network.eval()
    device = next(network.parameters()).device
    margin = network.cfg.margin_px
    answers: list[ClassMap] = []
    truths: list[ClassMap] = []
    for tile in tiles:
        pixels = torch.from_numpy(tile.pixels[None]).to(device)
        labels = network.logits(normalise(pixels))[0].argmax(dim=0)
        answers.append(labels.to(torch.uint8).cpu().numpy())
        truths.append(tile.classes[margin : margin + len(labels), margin : margin + len(labels)])
    return compare_maps(truths, answers, len(network.cfg.classes))
