"""CornerNet (Law and Deng 2018): a box is a pair of corners that carry the same embedding; no anchors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from models.card import DetectorConfig
from models.networks.faster_rcnn import MOST_BOXES, Maps
from models.networks.trunk import Residual

FIRST_LABEL = 0  # each class has heatmaps of its own
STRIDE = 4  # pixels along a cell of the heatmaps
WIDTH = 48  # channels at that stride; the paper's hourglasses have 256
DEPTH = 3  # halvings of the hourglass: tiles are multiples of 32 px
LONGEST = 1024  # cells along a row that corner pooling looks through, which is a tile of 4,096 px
ALPHA, BETA = 2, 4  # of the focal loss
LEAST_IOU = 0.3  # that a box keeps whose corners move by the radius of the Gaussian
PULL, PUSH, OFFSET = 0.1, 0.1, 1.0  # weights of the losses
APART = 1.0  # that the embeddings of two boxes should be
TOP = 100  # corners of each kind
NEAREST = 0.5  # two corners whose embeddings are further apart are not of one box
PRIOR = 0.1  # of a corner at every place, as the authors' code begins


class Hourglass(nn.Module):
    """Down and up again, with a way past at each size."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.past = Residual(channels, channels)
        self.down = Residual(channels, 2 * channels, 2)
        self.inner = Hourglass(2 * channels, depth - 1) if depth > 1 else Residual(2 * channels, 2 * channels)
        self.back = Residual(2 * channels, channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the same shape."""
        inner = self.back(self.inner(self.down(maps)))
        past: Tensor = self.past(maps)
        return past + F.interpolate(inner, scale_factor=2.0, mode="nearest")


class Corner(nn.Module):
    """Corner pooling and what follows it, for one kind of corner."""

    def __init__(self, channels: int, classes: int, *, top_left: bool) -> None:
        super().__init__()
        self.top_left = top_left
        self.across, self.along = Residual(channels, channels), Residual(channels, channels)
        self.joined = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.past = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, outputs, 1)
            )
            for outputs in (classes, 1, 2)
        )
        last = self.heads[0][2]  # type: ignore[index]
        nn.init.constant_(last.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, maps: Tensor) -> list[Tensor]:
        """Logits of corners (n, classes, h, w), embeddings (n, 1, h, w), offsets (n, 2, h, w) as x, y in cells."""
        pooled = running_maximum(self.across(maps), 3, backwards=self.top_left) + running_maximum(
            self.along(maps), 2, backwards=self.top_left
        )
        features = F.relu(self.joined(pooled) + self.past(maps))
        return [head(features) for head in self.heads]


def running_maximum(maps: Tensor, dim: int, *, backwards: bool) -> Tensor:
    """The maximum of each place and of all before it along a dimension, or of all after it.

    A top-left corner looks to the right and down, where its box lies: backwards. Steps of 1, 2, 4, ... take as many
    operations whatever the size, so that a converted graph is right for every tile.
    """
    step = 1
    while step < LONGEST:
        pad = (0, step) if backwards else (step, 0)
        padded = F.pad(maps, pad if dim == 3 else (0, 0, *pad), value=-math.inf)
        side = maps.shape[dim]
        maps = torch.maximum(maps, padded.narrow(dim, step if backwards else 0, side))
        step *= 2
    return maps


class CornerNet(nn.Module):
    """The network of one configuration; see `models.networks.detector` for how it is called."""

    def __init__(self, cfg: DetectorConfig, classes: int) -> None:
        super().__init__()
        self.cfg, self.classes = cfg, classes
        self.stem = nn.Sequential(
            nn.Conv2d(3, WIDTH // 2, 7, 2, 3, bias=False),
            nn.BatchNorm2d(WIDTH // 2),
            nn.ReLU(inplace=True),
            Residual(WIDTH // 2, WIDTH, 2),
        )
        self.hourglass = Hourglass(WIDTH, DEPTH)
        self.corners = nn.ModuleList(Corner(WIDTH, classes, top_left=top_left) for top_left in (True, False))

    def forward(self, pixels: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses of a batch; see `losses`."""
        return losses(self.maps(torch.stack(list(pixels))), targets)

    def maps(self, pixels: Tensor) -> Maps:
        """Logits, embeddings and offsets of top-left corners, then of bottom-right ones, of pixels in 0..1."""
        features = self.hourglass(self.stem((pixels - 0.5) / 0.5))
        return tuple(one for corner in self.corners for one in corner(features))


class Convolutions(nn.Module):
    """All of the network: pixels (n, 3, h, w) in 0..1 to the maps of both kinds of corners."""

    def __init__(self, network: CornerNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Maps:
        """See `CornerNet.maps`."""
        return self.network.maps(pixels)


def make(cfg: DetectorConfig, classes: int) -> CornerNet:
    """A network of random weights."""
    return CornerNet(cfg, classes)


def radius_of(width: float, height: float, least: float = LEAST_IOU) -> float:
    """How far both corners of a box may move so that what remains overlaps it by ``least`` at the worst, in its units.

    The worst of three cases: both corners move inwards, both outwards, or the box shifts; each is a quadratic equation.
    """
    s, p = width + height, width * height
    inwards = (s - math.sqrt(s**2 - 4 * p * (1 - least))) / 4
    outwards = (math.sqrt(s**2 + 4 * p * (1 / least - 1)) - s) / 4
    shifted = (s - math.sqrt(s**2 - 4 * p * (1 - least) / (1 + least))) / 2
    return min(inwards, outwards, shifted)


def heat_of(corners: Tensor, labels: Tensor, radii: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The wanted heatmaps (classes, h, w): 1 at each corner's cell, and around it a Gaussian with sigma = radius / 3.

    Args:
        corners: (k, 2) whole numbers x, y.
        labels: (k,) classes.
        radii: (k,) in cells.
        shape: (classes, h, w).
    """
    heat = torch.zeros(shape, device=corners.device)
    y = torch.arange(shape[1], device=corners.device)[:, None]
    x = torch.arange(shape[2], device=corners.device)
    for (corner_x, corner_y), label, radius in zip(corners, labels, radii, strict=True):
        sigma = (radius / 3).clamp_min(1 / 3)
        bump = torch.exp(-((x - corner_x) ** 2 + (y - corner_y) ** 2) / (2 * sigma**2))
        near = ((x - corner_x).abs() <= radius) & ((y - corner_y).abs() <= radius)
        bump = torch.where(near, bump, torch.zeros_like(bump))
        bump[corner_y, corner_x] = 1.0
        heat[label] = torch.maximum(heat[label], bump)
    return heat


def losses(maps: Maps, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Focal loss of the corners, pull and push of embeddings, smooth L1 of offsets; each per object of the batch."""
    maps = tuple(one.float() for one in maps)
    total = max(1, sum(len(target["boxes"]) for target in targets))
    zero = maps[0].new_zeros(())
    result = {name: zero for name in ("corners", "pull", "push", "offsets")}
    height, width = maps[0].shape[2:]
    ends = torch.tensor([width - 1, height - 1], device=maps[0].device)
    for i, target in enumerate(targets):
        boxes = target["boxes"] / STRIDE
        sides = (boxes[:, 2:] - boxes[:, :2]).tolist()
        radii = torch.tensor([radius_of(w, h) for w, h in sides], device=boxes.device)
        embedded = []
        for kind in (0, 1):
            logits, embedding, offsets = (one[i] for one in maps[3 * kind : 3 * kind + 3])
            exact = boxes[:, 2 * kind : 2 * kind + 2]
            cells = torch.minimum(exact.floor().clamp_min(0), ends).long()
            heat = heat_of(cells, target["labels"], radii, (len(logits), height, width))
            result["corners"] = result["corners"] + focal(logits, heat)
            x, y = cells[:, 0], cells[:, 1]
            embedded.append(embedding[0, y, x])
            result["offsets"] = result["offsets"] + F.smooth_l1_loss(
                offsets[:, y, x].T, exact - cells, reduction="sum"
            )
        first, second = embedded
        middle = (first + second) / 2
        result["pull"] = result["pull"] + ((first - middle) ** 2 + (second - middle) ** 2).sum()
        count = len(middle)
        if count > 1:
            near = (APART - (middle[:, None] - middle).abs()).clamp_min(0)
            # of each box to all others, so that many boxes do not outweigh the pull
            result["push"] = result["push"] + (near.sum() - near.diagonal().sum()) / (count - 1)
    weights = {"corners": 1.0, "pull": PULL, "push": PUSH, "offsets": OFFSET}
    return {name: weights[name] * value / total for name, value in result.items()}


def focal(logits: Tensor, heat: Tensor) -> Tensor:
    """The sum of (1 - p)^alpha log p at corners, and of (1 - heat)^beta p^alpha log(1 - p) elsewhere, negated."""
    p, right = logits.sigmoid(), heat == 1
    at = (1 - p) ** ALPHA * F.logsigmoid(logits)
    elsewhere = (1 - heat) ** BETA * p**ALPHA * F.logsigmoid(-logits)
    return -torch.where(right, at, elsewhere).sum()


def boxes_of(network: CornerNet, maps: Maps, pixels: Tensor) -> list[dict[str, Tensor]]:
    """Boxes of every tile: pairs of the best corners of one class whose embeddings lie near each other.

    The score is the mean of both corners', each of which must reach the lowest score: else a sure corner would make a
    box with any place. Boxes of one class suppress each other (the paper weakens their scores).
    """
    side, cfg = pixels.shape[2], network.cfg
    results = []
    for i in range(len(pixels)):
        first, second = (_best_corners([one[i] for one in maps[3 * kind : 3 * kind + 3]]) for kind in (0, 1))
        low, high = first.points[:, None] * STRIDE, second.points[None] * STRIDE
        pairs = (
            (first.labels[:, None] == second.labels)
            & ((first.embeddings[:, None] - second.embeddings).abs() <= NEAREST)
            & (high > low).all(dim=2)
        )
        scores = (first.scores[:, None] + second.scores) / 2
        lower = torch.minimum(first.scores[:, None], second.scores)
        a, b = (pairs & (lower > cfg.lowest_score)).nonzero(as_tuple=True)
        boxes = torch.cat([low[a, 0], high[0, b]], dim=1).clamp(0, side)
        keep = batched_nms(boxes, scores[a, b], first.labels[a], cfg.iou)[:MOST_BOXES]
        results.append({"boxes": boxes[keep], "scores": scores[a, b][keep], "labels": first.labels[a][keep]})
    return results


class _Corners:
    """The best corners of one kind: points (k, 2) in cells, scores, labels and embeddings (k,)."""

    def __init__(self, points: Tensor, scores: Tensor, labels: Tensor, embeddings: Tensor) -> None:
        self.points, self.scores, self.labels, self.embeddings = points, scores, labels, embeddings


def _best_corners(maps: Sequence[Tensor]) -> _Corners:
    """The `TOP` highest maxima of 3 x 3 cells, with their offsets."""
    logits, embedding, offsets = (one.float() for one in maps)
    heat = logits.sigmoid()
    heat = torch.where(heat == F.max_pool2d(heat[None], 3, 1, 1)[0], heat, torch.zeros_like(heat))
    _, height, width = heat.shape
    scores, index = heat.flatten().topk(min(TOP, heat.numel()))
    label, place = index // (height * width), index % (height * width)
    y, x = place // width, place % width
    points = torch.stack([x, y], dim=1) + offsets[:, y, x].T
    return _Corners(points, scores, label, embedding[0, y, x])
