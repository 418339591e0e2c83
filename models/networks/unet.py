"""U-Net: a contracting path, an expanding one, and at each level what the one saw given to the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 5  # Ronneberger et al. 2015
DROPOUT = 0.5  # at the end of the contracting path


class UNet(nn.Module):
    """Logits of classes; five levels, each of two 3 x 3 convolutions, as Ronneberger et al. 2015 published it.

    ``valid`` convolutions are theirs: 572 px give 388. Padded ones with batch normalisation give as many pixels as they
    get.
    """

    def __init__(self, classes: int, width: int, *, valid: bool = False) -> None:
        super().__init__()
        self.valid = valid
        channels = [width * 2**level for level in range(LEVELS)]
        self.down = nn.ModuleList(self._double(a, b) for a, b in zip([3, *channels], channels, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, 2) for c in reversed(channels[:-1]))
        self.up = nn.ModuleList(self._double(2 * c, c) for c in reversed(channels[:-1]))
        self.head = nn.Conv2d(width, classes, 1)

    def _double(self, before: int, after: int) -> nn.Sequential:
        padding = 0 if self.valid else 1
        layers: list[nn.Module] = []
        for channels in (before, after):
            layers.append(nn.Conv2d(channels, after, 3, padding=padding, bias=self.valid))
            if not self.valid:
                layers.append(nn.BatchNorm2d(after))
            layers.append(nn.ReLU(inplace=True))
        return nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of (n, 3, h, w): of the middle of the tile where convolutions are valid, else of all of it."""
        seen: list[Tensor] = []
        for level, double in enumerate(self.down):
            pixels = double(self.pool(pixels) if level else pixels)
            seen.append(pixels)
        pixels = self.dropout(seen.pop())
        for enlarge, double in zip(self.enlarge, self.up, strict=True):
            pixels = enlarge(pixels)
            pixels = double(torch.cat([middle_of(seen.pop(), pixels.shape[2]), pixels], dim=1))
        logits: Tensor = self.head(pixels)
        return logits


def middle_of(maps: Tensor, side: int) -> Tensor:
    """The middle (side, side) of maps (n, c, h, w)."""
    before = (maps.shape[2] - side) // 2
    return maps[:, :, before : before + side, before : before + side]
