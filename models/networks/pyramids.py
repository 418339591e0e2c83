"""Backbones with a feature pyramid, which the detectors share; trained from random weights."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from models.card import DetectorConfig


def pyramid_of(cfg: DetectorConfig) -> BackboneWithFPN:
    """The backbone that a detector's configuration names."""
    return _small() if cfg.backbone == "small" else _resnet50()


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
