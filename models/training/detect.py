"""The task of the capillary detector: its recipe, tiles, losses, validation and card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.card import DetectorCard, DetectorConfig, read_card
from models.checkpoint import load_detector, save_detector
from models.engines.contract import find_folder
from models.networks.detector import CapillaryDetector
from models.networks.yolo import PER_LEVEL, anchors_by_kmeans
from models.training.data.augment import AugmentConfig, draw_changes, recoloured
from models.training.data.detection import Example
from models.training.data.tiles import (
    TileBatch,
    TileSampler,
    tile_sampler,
    training_rows,
    validation_tiles,
)
from models.training.loop import Judgement, run
from models.training.progress import NOBODY, Listeners
from models.training.recipe import DetectorTrainConfig
from models.training.state import TrainingState, use_bf16
from models.training.team import choose_device, join_team, share_batch_norm
from models.training.tile_learning import TileLearning
from wsi.errors import ConfigError
from wsi.marks.boxes import Boxes, enlarged, joined, suppress
from wsi.metrics.detection import average_precision
from wsi.slides.manifest import SlideRow


def train_detector(
    rows: Sequence[SlideRow],
    cfg: DetectorTrainConfig,
    out: Path,
    *,
    code_version: str,
    resume: bool = False,
    listeners: Listeners = NOBODY,
) -> float:
    """Train, and keep the best network by mean average precision in ``out/model``; the last where nothing is held out.

    Args:
        rows: slides with truth; those of the split ``validation`` are held out.
        cfg: the recipe.
        out: ``model/``, ``metrics.csv`` and ``checkpoint.safetensors`` go here.
        code_version: stated in the card.
        resume: go on from ``out/checkpoint.safetensors``; on a CPU to the same bits as without the stop.
        listeners: the functions that are told of the run's progress.

    Returns:
        The best mean average precision at an overlap of 0.5; NaN where nothing is held out.

    Raises:
        ConfigError: no slide to train on, or none of its places can be read.
        ModelError: the loss is not finite, or there is nothing to resume.
    """
    device = choose_device(cfg.device)
    team = join_team(cfg.batch, device)
    with ExitStack() as stack:
        sampler = tile_sampler(training_rows(rows), cfg, cfg.seed, stack)
        if sampler is None:
            raise ConfigError("no slide to train on: none of the split 'train' has anything marked on it")
        cfg = _with_anchors(cfg, sampler)
        torch.manual_seed(cfg.seed)
        network = _start(cfg)
        share_batch_norm(network, team)
        network = network.to(device).to(memory_format=torch.channels_last)
        held_out = validation_tiles(rows, cfg, stack)
        task = Detect(sampler, held_out, out, code_version, team, device, cfg)
        optimiser = torch.optim.AdamW(network.parameters(), cfg.learning_rate, weight_decay=cfg.weight_decay)
        state = TrainingState(network, optimiser, sampler, torch.Generator().manual_seed(cfg.seed))
        return run(task, state, out, resume=resume, listeners=listeners)


@dataclass(frozen=True, eq=False, slots=True)
class Detect(TileLearning[Example]):
    """Finding capillaries on tiles; see `models.training.loop.Task`."""

    cfg: DetectorTrainConfig
    measure: str = "ap50"

    def loss(self, state: TrainingState, batch: TileBatch[Example]) -> Tensor:
        """Sum of the network's losses on this process's share of a batch."""
        network = _detector(state)
        network.train()
        share = self.team.share(self.cfg.batch)
        pixels = np.stack([tile.pixels for tile in batch.tiles])
        tiles = _recoloured(pixels, self.cfg.augment, state.generator, self.cfg.batch, share).to(self.device)
        boxes = [torch.from_numpy(tile.objects.boxes).to(self.device) for tile in batch.tiles]
        labels = [torch.from_numpy(tile.objects.labels).to(self.device) for tile in batch.tiles]
        bf16 = use_bf16(self.cfg.precision, self.device)
        # RetinaNet's loss has 1 - p, which bf16 rounds away; the other networks compute theirs in fp32
        bf16 = bf16 and self.cfg.detector.network != "retinanet"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            losses = network.losses(tiles, boxes, labels)
        return torch.stack(list(losses.values())).sum()

    def judge(self, state: TrainingState) -> Judgement:
        """The mean of the classes' average precisions at an overlap of 0.5 on the held-out tiles, and thresholds."""
        tiles = self.held_out
        detections = detect_tiles(_detector(state), tiles)
        truth = [tile.objects for tile in tiles]
        names = self.cfg.detector.classes if tiles else ()
        precisions = {name: average_precision(detections, truth, i) for i, name in enumerate(names)}
        known = {name: value for name, value in precisions.items() if math.isfinite(value)}
        card = {
            "thresholds": count_thresholds(detections, truth, self.cfg.detector),
            "metrics": {"AP50": {name: round(value, 4) for name, value in known.items()}},
        }
        return Judgement(sum(known.values()) / len(known) if known else None, card)

    def keep(self, state: TrainingState, judgement: Judgement) -> None:
        """Write ``model/``."""
        cfg = self.cfg
        save_detector(
            self.out / "model",
            _detector(state),
            name=cfg.name,
            detector=cfg.detector,
            enlarge_um=cfg.enlarge_um,
            demonstration=cfg.demonstration,
            limits=cfg.limits,
            training=self.seen(state),
            code_version=self.code_version,
            **judgement.card,
        )


def _detector(state: TrainingState) -> CapillaryDetector:
    """The network that `train_detector` made."""
    assert isinstance(state.judged, CapillaryDetector)
    return state.judged


def _start(cfg: DetectorTrainConfig) -> CapillaryDetector:
    """A network of random weights, or of those of the detector that the recipe names.

    Raises:
        ConfigError: that detector has another shape.
    """
    if cfg.init is None:
        return CapillaryDetector(cfg.detector)
    network, card = load_detector(find_folder(cfg.init))
    if card.detector != cfg.detector:
        raise ConfigError(
            f"init: {cfg.init} has another shape than detector: in the recipe; make them the same"
        )
    return network


def _with_anchors(cfg: DetectorTrainConfig, sampler: TileSampler) -> DetectorTrainConfig:
    """The recipe with the anchors of YOLOv3, unless it states some: of the detector to start from, else of the boxes.

    Raises:
        ConfigError: there are too few boxes.
    """
    shape = cfg.detector
    if shape.network != "yolo_v3" or shape.anchor_boxes:
        return cfg
    if cfg.init is not None:
        begun = read_card(find_folder(cfg.init), DetectorCard).detector.anchor_boxes
        return cfg.model_copy(update={"detector": shape.model_copy(update={"anchor_boxes": begun})})
    sizes = []
    for slide, marked in zip(sampler.slides, sampler.marked, strict=True):
        objects = enlarged(marked.objects, [um / slide.mpp for um in cfg.enlarge_um])
        sizes.append((objects.boxes[:, 2:] - objects.boxes[:, :2]) * slide.mpp / shape.spacing_um)
    try:
        anchors = anchors_by_kmeans(np.concatenate(sizes), PER_LEVEL * len(shape.anchors_px))
    except ValueError as error:
        raise ConfigError(
            f"{error}; mark more capillaries, or set detector.anchor_boxes in the recipe"
        ) from error
    return cfg.model_copy(update={"detector": shape.model_copy(update={"anchor_boxes": anchors})})


def _recoloured(
    pixels: npt.NDArray[np.uint8], cfg: AugmentConfig, generator: torch.Generator, batch: int, share: range
) -> Tensor:
    """Float (n, 3, h, w) in 0..1 of a share of a batch; orientations were drawn with the boxes."""
    changes = draw_changes(batch, cfg, generator).of(share)
    tiles = (recoloured(torch.from_numpy(pixels), cfg, changes) + 1) / 2
    return tiles.contiguous(memory_format=torch.channels_last)


def detect_tiles(network: CapillaryDetector, tiles: Sequence[Example]) -> list[Boxes]:
    """What the network finds on each tile, in the tile's pixels, with scores."""
    network.eval()
    device = next(network.parameters()).device
    return [network.detect(torch.from_numpy(tile.pixels[None]).to(device))[0] for tile in tiles]


def count_thresholds(
    detections: Sequence[Boxes], truth: Sequence[Boxes], cfg: DetectorConfig
) -> tuple[float, ...]:
    """For each class the score above which as many are found as are marked, so that counts are not biased.

    Boxes of all classes suppress each other first, as they do on a slide.

    Where fewer are found at all it is the network's own lowest score; where none is marked, 0.5.
    """
    boxes = joined([suppress(one, cfg.iou) for one in detections])
    chosen = []
    for label in range(len(cfg.classes)):
        marked = sum(int((t.labels == label).sum()) for t in truth)
        scores = np.sort(boxes.known_scores[boxes.labels == label])[::-1]
        if marked == 0:
            chosen.append(0.5)
        else:
            chosen.append(float(scores[marked - 1]) if len(scores) >= marked else cfg.lowest_score)
    return tuple(round(value, 4) for value in chosen)
