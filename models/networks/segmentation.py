"""The form of a segmenter that every engine runs: RGB uint8 tiles in, class probabilities of the core's cells out."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.card import SegmenterConfig
from models.networks.contract import cast_like, normalise
from models.networks.unet import middle_of


class Segmenter(nn.Module):
    """A network of logits with what stands before and after it."""

    def __init__(self, body: nn.Module, cfg: SegmenterConfig) -> None:
        """Take a network, padded or not, that gives logits of a tile, or of all but its margin."""
        super().__init__()
        self.body = body
        self.cfg = cfg

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits (n, classes, core, core) of normalised pixels (n, 3, side, side), where core is side less margins."""
        scores: Tensor = self.body(pixels)
        return middle_of(scores, pixels.shape[2] - 2 * self.cfg.margin_px)

    def forward(self, tiles: Tensor) -> Tensor:
        """Probabilities (n, classes, cells, cells) of uint8 tiles (n, side, side, 3), in fp32.

        A cell is ``pool`` pixels of the core along each side, and has the mean of their probabilities.
        """
        scores = self.logits(cast_like(normalise(tiles), self.body)).float()
        return F.avg_pool2d(scores.softmax(dim=1), self.cfg.pool)
