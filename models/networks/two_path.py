"""TwoPathCNN and its input cascade (Havaei et al. 2017): a pixel's class from the 33 x 33 px, or 65 x 65, around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.unet import middle_of

MAXOUT = 2  # maps of which the larger value is taken


class Maxout(nn.Module):
    """A valid convolution to several maps, of which the largest value is taken at every place."""

    def __init__(self, before: int, after: int, side: int) -> None:
        super().__init__()
        self.after = after
        self.convolve = nn.Conv2d(before, after * MAXOUT, side)

    def forward(self, maps: Tensor) -> Tensor:
        """(n, after, h - side + 1, w - side + 1) of (n, before, h, w)."""
        values = self.convolve(maps)
        return torch.maximum(values[:, : self.after], values[:, self.after :])


class TwoPath(nn.Module):
    """A local path of small convolutions and a global one of large ones, joined."""

    def __init__(self, classes: int, width: int, channels: int = 3) -> None:
        super().__init__()
        local, wide = 2 * width, 5 * width  # 64 and 160 at width 32, as published
        self.local = nn.Sequential(
            Maxout(channels, local, 7), nn.MaxPool2d(4, 1), Maxout(local, local, 3), nn.MaxPool2d(2, 1)
        )
        self.wide = Maxout(channels, wide, 13)
        self.head = nn.Conv2d(local + wide, classes, 21)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (n, classes, h - 32, w - 32) of (n, channels, h, w)."""
        logits: Tensor = self.head(torch.cat([self.local(pixels), self.wide(pixels)], dim=1))
        return logits


class InputCascade(nn.Module):
    """Two networks: the second sees the class probabilities of the first beside the pixels."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.first = TwoPath(classes, width)
        self.second = TwoPath(classes, width, 3 + classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (n, classes, h - 64, w - 64) of (n, 3, h, w)."""
        probabilities = torch.softmax(self.first(pixels), dim=1)
        inner = middle_of(pixels, probabilities.shape[2])
        logits: Tensor = self.second(torch.cat([inner, probabilities], dim=1))
        return logits
