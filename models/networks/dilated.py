"""Networks that see far by dilation: DeepLab v2 and v3 (Chen et al. 2016, 2017), context module (Yu, Koltun 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP

from models.networks.trunk import Trunk

V2_RATES = (6, 12, 18, 24)  # of the four parallel convolutions, at stride 8
V3_RATES = (6, 12, 18)  # at stride 16; a 1 x 1 convolution and the mean of the tile stand beside them
CONTEXT = (1, 1, 2, 4, 8, 16, 1)  # dilations of the context module: 67 x 67 in all


class DeepLabV2(nn.Module):
    """Atrous pyramid whose branches are summed, at stride 8, enlarged bilinearly."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.trunk = Trunk(width, output_stride=8)
        last = self.trunk.channels[-1]
        self.branches = nn.ModuleList(
            nn.Conv2d(last, classes, 3, padding=rate, dilation=rate) for rate in V2_RATES
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (n, classes, h, w) of (n, 3, h, w)."""
        features = self.trunk(pixels)[-1]
        scores = torch.stack([branch(features) for branch in self.branches]).sum(dim=0)
        return enlarged(scores, pixels)


class DeepLabV3(nn.Module):
    """Atrous pyramid with batch normalisation and the mean of the tile, torchvision's, at stride 16."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.trunk = Trunk(width, output_stride=16)
        channels = 4 * width
        self.head = nn.Sequential(
            ASPP(self.trunk.channels[-1], list(V3_RATES), channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, classes, 1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (n, classes, h, w) of (n, 3, h, w); they depend on the whole tile, by its mean."""
        return enlarged(self.head(self.trunk(pixels)[-1]), pixels)


class DilatedContext(nn.Module):
    """A front end without its last two poolings, and a module that begins as identity and adds context."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.trunk = Trunk(width, output_stride=8)
        self.score = nn.Conv2d(self.trunk.channels[-1], classes, 1)
        self.context = context_module(classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (n, classes, h, w) of (n, 3, h, w)."""
        return enlarged(self.context(self.score(self.trunk(pixels)[-1])), pixels)


def context_module(channels: int) -> nn.Sequential:
    """Seven dilated 3 x 3 convolutions and a 1 x 1 convolution, each the identity at first.

    The rectifiers would cut negative scores, so the module's identity holds for scores above zero, as in the paper.
    """
    layers: list[nn.Module] = []
    for dilation in CONTEXT:
        layer = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        nn.init.dirac_(layer.weight)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU(inplace=True)]
    last = nn.Conv2d(channels, channels, 1)
    nn.init.dirac_(last.weight)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def enlarged(scores: Tensor, pixels: Tensor) -> Tensor:
    """Scores brought to the size of the pixels."""
    side = (pixels.shape[2], pixels.shape[3])
    return F.interpolate(scores, size=side, mode="bilinear", align_corners=False)
