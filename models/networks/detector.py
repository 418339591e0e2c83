"""The detector of capillaries, whatever network it is: RGB uint8 tiles in, boxes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from models.card import SIDE_STEP, DetectorConfig, DetectorName
from models.networks import cornernet, faster_rcnn, retinanet, yolo
from models.networks.faster_rcnn import Maps
from wsi.arrays import BoxesXYXY
from wsi.marks.boxes import Boxes, joined

Convolve = Callable[[Tensor], Maps]
# each has make(cfg, classes), Convolutions(network), boxes_of(network, maps, pixels), and its FIRST_LABEL
FAMILIES: dict[DetectorName, ModuleType] = {
    "faster_rcnn": faster_rcnn,
    "retinanet": retinanet,
    "yolo_v3": yolo,
    "cornernet": cornernet,
}


class CapillaryDetector(nn.Module):
    """A detector of capillaries: RGB uint8 tiles in, boxes out; preprocessing is inside."""

    def __init__(self, cfg: DetectorConfig) -> None:
        super().__init__()
        self.cfg = cfg
        indices = tuple(range(len(cfg.classes)))
        self.groups = tuple((i,) for i in indices) if cfg.separate else (indices,)  # classes of each network
        self.networks = nn.ModuleList(self.family.make(cfg, len(group)) for group in self.groups)

    def losses(self, tiles: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, Tensor]:
        """The losses of every network on a batch, in training mode.

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
            targets = [
                _target(b, n, group, self.family.FIRST_LABEL) for b, n in zip(boxes, labels, strict=True)
            ]
            losses |= {f"{name}.{i}": loss for name, loss in network(list(pixels), targets).items()}
        return losses

    @torch.inference_mode()
    def detect(self, tiles: Tensor, convolve: Sequence[Convolve] | None = None) -> list[Boxes]:
        """Boxes of every tile in its own pixels, in evaluation mode, best first; each network gives at most 400.

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
                    _detections(
                        result["boxes"],
                        result["scores"].cpu(),
                        names[result["labels"].cpu() - self.family.FIRST_LABEL],
                    )
                    for result in self.family.boxes_of(network, run(pixels), pixels)
                ]
            )
        return [joined(tile_parts).best_first() for tile_parts in zip(*parts, strict=True)]

    @property
    def family(self) -> ModuleType:
        """The module of its networks."""
        return FAMILIES[self.cfg.network]

    @property
    def convolutions(self) -> list[nn.Module]:
        """The part of every network that takes the most time, and that an engine may run in another way."""
        return [self.family.Convolutions(network) for network in self.networks]

    def _pixels(self, tiles: Tensor) -> Tensor:
        return tiles.permute(0, 3, 1, 2).float() / 255 if tiles.dtype == torch.uint8 else tiles


def _target(boxes: Tensor, labels: Tensor, group: tuple[int, ...], first: int) -> dict[str, Tensor]:
    """The target for a network of some of the classes, whose first class it calls ``first``."""
    in_group = torch.isin(labels, torch.tensor(group, device=labels.device))
    return {"boxes": boxes[in_group].float(), "labels": labels[in_group] - group[0] + first}


def _detections(boxes: Tensor, scores: Tensor, labels: Tensor) -> Boxes:
    """Boxes on the CPU with their sides in float64; boxes without an area are left out."""
    boxes_float64: BoxesXYXY = boxes.cpu().numpy().astype(np.float64)
    has_area = (boxes_float64[:, 2:] > boxes_float64[:, :2]).all(axis=1)
    return Boxes(
        boxes_float64[has_area],
        labels.cpu().numpy()[has_area].astype(np.int64),
        scores.float().cpu().numpy()[has_area].astype(np.float32),
    )
