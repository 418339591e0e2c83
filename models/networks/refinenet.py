"""RefineNet (Lin et al. 2017): coarse features refined by finer ones, level by level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.dilated import enlarged
from models.networks.trunk import Trunk

CHAIN = 2  # poolings in a chain


class ResidualUnit(nn.Module):
    """Two rectified 3 x 3 convolutions without batch normalisation, and a way past them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same shape."""
        changed: Tensor = self.second(F.relu(self.first(F.relu(features))))
        return features + changed


class RefineBlock(nn.Module):
    """Residual units for each input, fusion at the finest input's stride, chained pooling, an output unit."""

    def __init__(self, inputs: Sequence[int], channels: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(nn.Sequential(ResidualUnit(c), ResidualUnit(c)) for c in inputs)
        self.fuse = nn.ModuleList(nn.Conv2d(c, channels, 3, padding=1) for c in inputs)
        self.chain = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(CHAIN))
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.last = ResidualUnit(channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Features (n, channels, h, w) at the stride of the first map."""
        parts = [fuse(unit(m)) for fuse, unit, m in zip(self.fuse, self.units, maps, strict=True)]
        features = torch.stack([enlarged(part, maps[0]) for part in parts]).sum(dim=0)
        features = pooled = F.relu(features)
        for convolve in self.chain:
            pooled = convolve(self.pool(pooled))
            features = features + pooled
        refined: Tensor = self.last(features)
        return refined


class RefineNet(nn.Module):
    """Four blocks on the strides 32, 16, 8 and 4; the coarsest has twice the channels of the others."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.trunk = Trunk(width)
        channels = 4 * width
        sides = (
            channels,
            channels,
            channels,
            2 * channels,
        )  # 256, 256, 256 and 512 at width 64, as published
        self.bring = nn.ModuleList(
            nn.Conv2d(c, side, 3, padding=1) for c, side in zip(self.trunk.channels, sides, strict=True)
        )
        self.coarsest = RefineBlock([sides[3]], sides[3])
        self.blocks = nn.ModuleList(RefineBlock([sides[i], sides[i + 1]], sides[i]) for i in (2, 1, 0))
        self.head = nn.Conv2d(channels, classes, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (n, classes, h, w) of (n, 3, h, w), whose sides are multiples of 32."""
        maps = [bring(m) for bring, m in zip(self.bring, self.trunk(pixels), strict=True)]
        features = self.coarsest([maps.pop()])
        for block in self.blocks:
            features = block([maps.pop(), features])
        return enlarged(self.head(features), pixels)
