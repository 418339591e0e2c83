"""Fully convolutional networks (Long et al. 2015): scores of coarse features, enlarged in one step or in three."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from models.networks.trunk import Trunk


class Fcn(nn.Module):
    """FCN-32s, -16s or -8s: scores at stride 32, joined by those of stride 16, and of stride 8."""

    def __init__(self, classes: int, width: int, finest: Literal[8, 16, 32]) -> None:
        super().__init__()
        self.trunk = Trunk(width)
        *_, eighth, sixteenth, last = self.trunk.channels
        self.score = nn.Conv2d(last, classes, 1)
        skips = {32: [], 16: [sixteenth], 8: [sixteenth, eighth]}[finest]
        self.skips = nn.ModuleList(nn.Conv2d(channels, classes, 1) for channels in skips)
        for skip in self.skips:  # so that each finer network begins as the coarser one
            assert isinstance(skip, nn.Conv2d)
            assert skip.bias is not None
            nn.init.zeros_(skip.weight)
            nn.init.zeros_(skip.bias)
        self.enlarge = nn.ModuleList(bilinear(classes, 2) for _ in skips)
        self.last = bilinear(classes, finest)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (n, classes, h, w) of (n, 3, h, w), whose sides are multiples of 32."""
        maps = self.trunk(pixels)
        scores = self.score(maps.pop())
        for enlarge, skip in zip(self.enlarge, self.skips, strict=True):
            scores = enlarge(scores) + skip(maps.pop())
        logits: Tensor = self.last(scores)
        return logits


def bilinear(channels: int, factor: int) -> nn.ConvTranspose2d:
    """A transposed convolution, to be trained, that begins as bilinear interpolation of each channel."""
    layer = nn.ConvTranspose2d(channels, channels, 2 * factor, factor, factor // 2, bias=False)
    away = (torch.arange(2 * factor) + 0.5) / factor - 1  # of each weight, in input pixels
    weights = (1 - away.abs())[:, None] * (1 - away.abs())
    with torch.no_grad():
        layer.weight.zero_()
        for channel in range(channels):
            layer.weight[channel, channel] = weights
    return layer
