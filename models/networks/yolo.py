"""YOLOv3 (Redmon and Farhadi 2018): boxes, objectness and classes of three scales, each joined to the one above it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_iou

from models.card import DetectorConfig
from models.networks.faster_rcnn import MOST_BOXES, Maps
from models.networks.pyramids import pyramid_of

FIRST_LABEL = 0  # each class has a sigmoid of its own
PER_LEVEL = 3  # anchors
IGNORED_FROM = 0.5  # overlap from which an anchor that is not responsible is not told that it is wrong
# Of an anchor's side, as torchvision limits it, so that exp stays finite
LARGEST_GROWTH = math.log(1000 / 16)
DARKNET = (1, 2, 8, 8, 4)  # residual blocks of the stages of Darknet-53


class Yolo(nn.Module):
    """The network of one configuration; see `models.networks.detector` for how it is called."""

    def __init__(self, cfg: DetectorConfig, classes: int) -> None:
        super().__init__()
        self.cfg, self.classes = cfg, classes
        self.body: nn.Module
        if cfg.backbone == "darknet53":
            self.body, channels = Darknet(), [256, 512, 1024]
        else:
            self.body = pyramid_of(cfg).body
            channels = [48, 96, 160] if cfg.backbone == "small" else [256, 512, 1024, 2048]
        anchors = cfg.anchor_boxes or default_anchors(cfg.anchors_px)
        self.anchors = [anchors[i * PER_LEVEL : (i + 1) * PER_LEVEL] for i in range(len(channels))]
        outputs = PER_LEVEL * (5 + classes)
        self.joins, self.bring, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        above = 0
        for level in reversed(channels):  # coarse to fine
            width = level // 2
            pairs = [(_convolution(width, level, 3), _convolution(level, width, 1)) for _ in range(2)]
            self.joins.append(nn.Sequential(_convolution(level + above, width, 1), *pairs[0], *pairs[1]))
            self.heads.append(nn.Sequential(_convolution(width, level, 3), nn.Conv2d(level, outputs, 1)))
            above = width // 2
            if len(self.joins) < len(channels):  # nothing lies above the finest
                self.bring.append(_convolution(width, above, 1))

    def forward(self, pixels: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses of a batch; see `losses`."""
        batch = torch.stack(list(pixels))
        return losses(self, self.maps(batch), targets, batch.shape[2])

    def maps(self, pixels: Tensor) -> Maps:
        """Outputs (n, 3 * (5 + classes), h, w) of each level, fine to coarse, of pixels in 0..1."""
        features = list(self.body((pixels - 0.5) / 0.5).values())
        outputs: list[Tensor] = []
        above: Tensor | None = None
        for i, level in enumerate(reversed(features)):
            if above is not None:
                enlarged = F.interpolate(above, scale_factor=2.0, mode="nearest")
                level = torch.cat([level, enlarged], dim=1)
            joined = self.joins[i](level)
            outputs.append(self.heads[i](joined))
            if i < len(self.bring):
                above = self.bring[i](joined)
        return tuple(reversed(outputs))


class Convolutions(nn.Module):
    """All of the network: pixels (n, 3, h, w) in 0..1 to the outputs of each level."""

    def __init__(self, network: Yolo) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Maps:
        """See `Yolo.maps`."""
        return self.network.maps(pixels)


class Darknet(nn.Module):
    """Darknet-53 without its class layer: features at strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = [_convolution(3, 32, 3)]
        channels = 32
        for count in DARKNET:
            blocks = [_Shortcut(2 * channels) for _ in range(count)]
            stages.append(nn.Sequential(_convolution(channels, 2 * channels, 3, 2), *blocks))
            channels *= 2
        self.stages = nn.ModuleList(stages)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """The maps of the last three stages, fine to coarse."""
        maps = []
        for stage in self.stages:
            pixels = stage(pixels)
            maps.append(pixels)
        return {str(i): level for i, level in enumerate(maps[-3:])}


class _Shortcut(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(channels, channels // 2, 1), _convolution(channels // 2, channels, 3)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        changed: Tensor = self.body(pixels)
        return pixels + changed


def _convolution(before: int, after: int, side: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, side, stride, side // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.LeakyReLU(0.1),
    )


def make(cfg: DetectorConfig, classes: int) -> Yolo:
    """A network of random weights."""
    return Yolo(cfg, classes)


def default_anchors(sides: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """(width, height) of three anchors a level: a square, and two of the same area with sides as 2 to 1."""
    return tuple(
        (round(side * math.sqrt(ratio), 1), round(side / math.sqrt(ratio), 1))
        for side in sides
        for ratio in (1.0, 2.0, 0.5)
    )


def anchors_by_kmeans(
    sizes: npt.NDArray[np.float64], count: int, *, rounds: int = 100
) -> tuple[tuple[float, float], ...]:
    """Anchors for boxes, by k-means with the distance 1 - IoU of boxes with one middle; by rising area.

    The means begin at boxes whose areas divide all boxes evenly: a few of odd sizes get no anchors of their own.

    Args:
        sizes: (n, 2) width and height of each box.
        count: number of anchors.
        rounds: at most.

    Raises:
        ValueError: there are fewer different boxes than anchors.
    """
    different = np.unique(sizes, axis=0)
    if len(different) < count:
        raise ValueError(f"{len(different)} different boxes cannot give {count} anchors")
    ordered = different[np.argsort(different.prod(axis=1), kind="stable")]
    means = ordered[((np.arange(count) + 0.5) * len(ordered) / count).astype(np.int64)]
    for _ in range(rounds):
        nearest = shape_iou(sizes, means).argmax(axis=1)
        moved = np.stack(
            [sizes[nearest == k].mean(axis=0) if (nearest == k).any() else means[k] for k in range(count)]
        )
        if np.allclose(moved, means):
            break
        means = moved
    order = np.argsort(means.prod(axis=1), kind="stable")
    return tuple((round(float(w), 1), round(float(h), 1)) for w, h in means[order])


def shape_iou(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n, m) overlaps of boxes of these widths and heights that share their middle."""
    shared = np.minimum(first[:, None], second[None]).prod(axis=2)
    either = first.prod(axis=1)[:, None] + second.prod(axis=1)[None] - shared
    return np.asarray(shared / either)


def decode(network: Yolo, maps: Maps, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (n, k, 4) as x0, y0, x1, y1 in pixels, objectness (n, k) and class logits (n, k, classes) of all anchors.

    bx = sigmoid(tx) + cx, bw = pw exp(tw), in cells and pixels, as published; anchors of a place lie together.
    """
    boxes, objects, classes = [], [], []
    for output, anchors in zip(maps, network.anchors, strict=True):
        count, _, height, width = output.shape
        values = output.view(count, PER_LEVEL, 5 + network.classes, height, width).permute(0, 3, 4, 1, 2)
        stride = side / width
        y, x = torch.meshgrid(
            torch.arange(height, device=output.device),
            torch.arange(width, device=output.device),
            indexing="ij",
        )
        middle = (values[..., :2].sigmoid() + torch.stack([x, y], dim=-1)[:, :, None]) * stride
        sizes = torch.tensor(anchors, device=output.device) * values[..., 2:4].clamp(max=LARGEST_GROWTH).exp()
        boxes.append(torch.cat([middle - sizes / 2, middle + sizes / 2], dim=-1).reshape(count, -1, 4))
        objects.append(values[..., 4].reshape(count, -1))
        classes.append(values[..., 5:].reshape(count, -1, network.classes))
    return torch.cat(boxes, dim=1), torch.cat(objects, dim=1), torch.cat(classes, dim=1)


def responsible(network: Yolo, maps: Maps, boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """For each box the index of its anchor among all of `decode`, and what its t should be: (k,) and (k, 4).

    One anchor is responsible for a box: that of the best shape, at the place of the box's middle. Of tx and ty the
    sigmoid is given.
    """
    shapes = torch.tensor([shape for anchors in network.anchors for shape in anchors], device=boxes.device)
    sizes = (boxes[:, 2:] - boxes[:, :2]).clamp_min(1e-3)
    shared = torch.minimum(sizes[:, None], shapes).prod(dim=2)
    best = (shared / (sizes.prod(dim=1)[:, None] + shapes.prod(dim=1) - shared)).argmax(dim=1)
    widths = torch.tensor([output.shape[3] for output in maps], device=boxes.device)
    starts = torch.cat([widths.new_zeros(1), (widths**2 * PER_LEVEL).cumsum(0)[:-1]])  # tiles are squares
    level, anchor = best // PER_LEVEL, best % PER_LEVEL
    strides = side / widths[level]
    at = (boxes[:, :2] + boxes[:, 2:]) / 2 / strides[:, None]
    place = torch.minimum(at.floor().clamp_min(0), (widths[level] - 1)[:, None]).long()
    index = starts[level] + (place[:, 1] * widths[level] + place[:, 0]) * PER_LEVEL + anchor
    wanted = torch.cat([at - place, (sizes / shapes[best]).log()], dim=1)
    return index, wanted


def losses(network: Yolo, maps: Maps, targets: Sequence[dict[str, Tensor]], side: int) -> dict[str, Tensor]:
    """Squared error of boxes, logistic losses of objectness and classes; each a sum over the batch per object."""
    maps = tuple(level.float() for level in maps)
    boxes, objects, classes = decode(network, maps, side)
    raw = torch.cat(
        [
            level.view(len(level), PER_LEVEL, 5 + network.classes, *level.shape[2:])
            .permute(0, 3, 4, 1, 2)
            .reshape(len(level), -1, 5 + network.classes)
            for level in maps
        ],
        dim=1,
    )
    total = max(1, sum(len(target["boxes"]) for target in targets))
    result = {name: objects.new_zeros(()) for name in ("box", "object", "class")}
    for i, target in enumerate(targets):
        wrong = torch.ones_like(objects[i], dtype=torch.bool)
        right = torch.zeros_like(objects[i])
        if len(target["boxes"]):
            wrong = box_iou(boxes[i].detach(), target["boxes"]).amax(dim=1) <= IGNORED_FROM
            index, wanted = responsible(network, maps, target["boxes"], side)
            wrong[index], right[index] = True, 1.0
            given = torch.cat([raw[i, index, :2].sigmoid(), raw[i, index, 2:4]], dim=1)
            result["box"] = result["box"] + ((given - wanted) ** 2).sum()
            labels = F.one_hot(target["labels"], network.classes).float()
            result["class"] = result["class"] + F.binary_cross_entropy_with_logits(
                classes[i, index], labels, reduction="sum"
            )
        result["object"] = result["object"] + F.binary_cross_entropy_with_logits(
            objects[i][wrong], right[wrong], reduction="sum"
        )
    return {name: value / total for name, value in result.items()}


def boxes_of(network: Yolo, maps: Maps, pixels: Tensor) -> list[dict[str, Tensor]]:
    """Boxes of every tile, scored by objectness times class; boxes of one class suppress each other."""
    side, cfg = pixels.shape[2], network.cfg
    boxes, objects, classes = decode(network, maps, side)
    scores = objects.sigmoid()[..., None] * classes.sigmoid()
    results = []
    for tile_boxes, tile_scores in zip(boxes.clamp(0, side), scores, strict=True):
        index, labels = (tile_scores > cfg.lowest_score).nonzero(as_tuple=True)
        kept_boxes, kept_scores = tile_boxes[index], tile_scores[index, labels]
        keep = batched_nms(kept_boxes, kept_scores, labels, cfg.iou)[:MOST_BOXES]
        results.append({"boxes": kept_boxes[keep], "scores": kept_scores[keep], "labels": labels[keep]})
    return results
