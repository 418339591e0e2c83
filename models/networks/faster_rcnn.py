"""Faster R-CNN for capillaries, with all relevant defaults of torchvision set (Ren et al. 2015)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from models.card import SIDE_STEP, DetectorConfig
from wsi.arrays import BoxesXYXY
from wsi.marks.boxes import Boxes, joined

MOST_BOXES = 400  # in one tile of 256 or 320 um, which holds far fewer capillaries
Maps = tuple[Tensor, ...]
"""Features of all levels, then objectness of all levels, then changes of boxes of all levels."""
Convolve = Callable[[Tensor], Maps]


class CapillaryDetector(nn.Module):
    """A detector of capillaries: RGB uint8 tiles in, boxes out; preprocessing is inside."""

    def __init__(self, cfg: DetectorConfig) -> None:
        super().__init__()
        self.cfg = cfg
        indices = tuple(range(len(cfg.classes)))
        self.groups = tuple((i,) for i in indices) if cfg.separate else (indices,)  # classes of each network
        self.networks = nn.ModuleList(_network(cfg, len(group)) for group in self.groups)

    def losses(self, tiles: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, Tensor]:
        """The four losses of every network on a batch, in training mode.

        Args:
            tiles: (n, tile_px, tile_px, 3) RGB uint8, or float (n, 3, tile_px, tile_px) in 0..1 that was recoloured.
            boxes: for each tile (k, 4) x0, y0, x1, y1 in its pixels; k may be 0.
            labels: for each tile (k,) class numbers from 0.
        """
        pixels = self._pixels(tiles)
        side = self.cfg.tile_px
        if tuple(pixels.shape[1:]) != (3, side, side):
            raise ValueError(f"tiles must be {side} x {side} px, RGB, got {tuple(tiles.shape)}")
        losses: dict[str, Tensor] = {}
        for i, (group, network) in enumerate(zip(self.groups, self.networks, strict=True)):
            targets = [_target(b, n, group) for b, n in zip(boxes, labels, strict=True)]
            losses |= {f"{name}.{i}": loss for name, loss in network(list(pixels), targets).items()}
        return losses

    @torch.inference_mode()
    def detect(self, tiles: Tensor, convolve: Sequence[Convolve] | None = None) -> list[Boxes]:
        """Boxes of every tile in its own pixels, in evaluation mode, at most `MOST_BOXES` each, best first.

        Args:
            tiles: (n, side, side, 3) RGB uint8, or float (n, 3, side, side) in 0..1; the side is any multiple of
                `SIDE_STEP`, not only that of training. Nothing is resized.
            convolve: for each network a function to run in place of its `convolutions`; None runs the convolutions.
        """
        pixels = self._pixels(tiles)
        if pixels.shape[2] % SIDE_STEP or pixels.shape[2] != pixels.shape[3]:
            raise ValueError(
                f"tiles must be squares of a multiple of {SIDE_STEP} px, got {tuple(tiles.shape)}"
            )
        parts = []
        runs: Sequence[Convolve] = self.convolutions if convolve is None else convolve
        for group, network, run in zip(self.groups, self.networks, runs, strict=True):
            names = torch.tensor(group)
            parts.append(
                [
                    _detections(result["boxes"], result["scores"].cpu(), names[result["labels"].cpu() - 1])
                    for result in _boxes_of(network, run(pixels), pixels)
                ]
            )
        return [joined(tile_parts).best_first() for tile_parts in zip(*parts, strict=True)]

    @property
    def convolutions(self) -> list[Convolutions]:
        """The part of every network that takes the most time, and that an engine may run in another way."""
        return [Convolutions(network) for network in self.networks]

    def _pixels(self, tiles: Tensor) -> Tensor:
        return tiles.permute(0, 3, 1, 2).float() / 255 if tiles.dtype == torch.uint8 else tiles


class Convolutions(nn.Module):
    """Backbone, pyramid and the head of the region proposals: pixels (n, 3, h, w) in 0..1 to `Maps`."""

    def __init__(self, network: FasterRCNN) -> None:
        super().__init__()
        self.backbone, self.head = network.backbone, network.rpn.head
        self.mean, self.std = network.transform.image_mean[0], network.transform.image_std[0]

    def forward(self, pixels: Tensor) -> Maps:
        """The pyramid's features, then the objectness, then the changes of boxes; of each level, fine to coarse."""
        features = list(self.backbone((pixels - self.mean) / self.std).values())
        objectness, changes = self.head(features)
        return (*features, *objectness, *changes)


def _boxes_of(network: FasterRCNN, maps: Maps, pixels: Tensor) -> list[dict[str, Tensor]]:
    """Boxes of every tile from the maps, as in torchvision's forward pass but without its resizing there and back."""
    levels = len(maps) // 3
    features, objectness, changes = maps[:levels], maps[levels : 2 * levels], maps[2 * levels :]
    count, _, height, width = pixels.shape
    images = ImageList(pixels, [(height, width)] * count)
    anchors = network.rpn.anchor_generator(images, list(features))
    sizes = [level_objectness[0].numel() for level_objectness in objectness]  # anchors of each level
    flat, coded = concat_box_prediction_layers(list(objectness), list(changes))
    proposals = network.rpn.box_coder.decode(coded, anchors).view(count, -1, 4)
    boxes, _ = network.rpn.filter_proposals(proposals, flat, images.image_sizes, sizes)
    pyramid = {str(i): level for i, level in enumerate(features)}
    results: list[dict[str, Tensor]] = network.roi_heads(pyramid, boxes, images.image_sizes)[0]
    return results


def _target(boxes: Tensor, labels: Tensor, group: tuple[int, ...]) -> dict[str, Tensor]:
    """The target for a network of some of the classes: 0 is its background, 1 the first of its classes."""
    in_group = torch.isin(labels, torch.tensor(group, device=labels.device))
    return {"boxes": boxes[in_group].float(), "labels": labels[in_group] - group[0] + 1}


def _detections(boxes: Tensor, scores: Tensor, labels: Tensor) -> Boxes:
    """Boxes on the CPU with their sides in float64; boxes without an area are left out."""
    boxes_float64: BoxesXYXY = boxes.cpu().numpy().astype(np.float64)
    has_area = (boxes_float64[:, 2:] > boxes_float64[:, :2]).all(axis=1)
    return Boxes(
        boxes_float64[has_area],
        labels.cpu().numpy()[has_area].astype(np.int64),
        scores.float().cpu().numpy()[has_area].astype(np.float32),
    )


def _network(cfg: DetectorConfig, classes: int) -> FasterRCNN:
    backbone = _small() if cfg.backbone == "small" else _resnet50()
    hidden = 256 if cfg.backbone == "small" else 1024  # that of torchvision is 1024
    outputs = classes + 1  # and the background
    names = [str(i) for i in range(len(cfg.anchors_px))]
    return FasterRCNN(
        backbone,
        box_head=TwoMLPHead(backbone.out_channels * 7**2, hidden),
        box_predictor=FastRCNNPredictor(hidden, outputs),
        min_size=cfg.tile_px,  # its default, 800, would be another spacing
        max_size=cfg.tile_px,
        image_mean=[0.5, 0.5, 0.5],  # trained from scratch: no ImageNet statistics
        image_std=[0.5, 0.5, 0.5],
        rpn_anchor_generator=AnchorGenerator(
            tuple((side,) for side in cfg.anchors_px), ((0.5, 1.0, 2.0),) * len(cfg.anchors_px)
        ),
        rpn_pre_nms_top_n_train=1000,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_train=500,
        rpn_post_nms_top_n_test=2 * MOST_BOXES,
        rpn_batch_size_per_image=256,
        rpn_nms_thresh=0.7,
        box_roi_pool=MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        box_batch_size_per_image=128,
        box_score_thresh=cfg.lowest_score,
        box_nms_thresh=cfg.iou,
        box_detections_per_img=MOST_BOXES,  # its default, 100, would cap a count
    )


def _small() -> BackboneWithFPN:
    """Backbone of eight convolutions with a feature pyramid."""
    body = nn.Sequential(
        nn.Sequential(_block(3, 24, 2), _block(24, 32, 1), _block(32, 48, 2), _block(48, 48, 1)),
        nn.Sequential(_block(48, 96, 2), _block(96, 96, 1)),
        nn.Sequential(_block(96, 160, 2), _block(160, 160, 1)),
    )
    return BackboneWithFPN(
        body,
        return_layers={"0": "0", "1": "1", "2": "2"},
        in_channels_list=[48, 96, 160],
        out_channels=96,
        extra_blocks=_NoMore(),
    )


def _block(before: int, after: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


def _resnet50() -> BackboneWithFPN:
    """Backbone that is trained as a whole, with batch normalisation, as there are no weights to keep."""
    return BackboneWithFPN(
        resnet50(weights=None),
        return_layers={"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"},
        in_channels_list=[256, 512, 1024, 2048],
        out_channels=256,
        extra_blocks=_NoMore(),
    )


class _NoMore(ExtraFPNBlock):  # type: ignore[misc]
    """A block that adds nothing, in place of the further, coarser level that `BackboneWithFPN` would add."""

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """The levels without a change."""
        return results, names
