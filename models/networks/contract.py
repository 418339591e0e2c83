"""The form of a network that every engine runs: RGB uint8 patches in, scores in 0..1 out.

Preprocessing, softmax, the 8 orientations and the mean over several models are all part of the
module, so that an engine only runs or converts one graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ORIENTATIONS = 8


def normalise(patches: Tensor) -> Tensor:
    """RGB uint8 (n, h, w, 3) to float (n, 3, h, w) in [-1, 1], as in the training of Inception-v3."""
    return patches.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_scores(logits: Tensor) -> Tensor:
    """Scores of logits: softmax over the classes, or sigmoid where there is only one class."""
    logits = logits.float()
    return torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, dim=1)


def cast_like(pixels: Tensor, body: nn.Module) -> Tensor:
    """Pixels in the precision of a network's weights, channels last on a GPU."""
    parameter = next(body.parameters(), None)
    if parameter is None:
        return pixels
    if parameter.dtype != torch.float32:
        pixels = pixels.to(parameter.dtype)
    return pixels.contiguous(memory_format=torch.channels_last) if parameter.is_cuda else pixels


class PatchNetwork(nn.Module):
    """Scores (n, classes) of uint8 patches (n, size, size, 3)."""

    def __init__(
        self, body: nn.Module, calibration: tuple[float, float] | None = None, positive: int = 1
    ) -> None:
        """Take a network of logits, and for two classes the scale and offset of the positive class's log-odds."""
        super().__init__()
        self.body = body
        self.calibration = calibration
        self.positive = positive

    def forward(self, patches: Tensor) -> Tensor:
        """Normalise the patches, run the network, and turn its logits into scores."""
        logits = self.body(cast_like(normalise(patches), self.body)).float()
        if self.calibration is not None:
            scale, offset = self.calibration
            odds = scale * (logits[:, self.positive] - logits[:, 1 - self.positive]) + offset
            logits = torch.stack([-odds / 2, odds / 2] if self.positive else [odds / 2, -odds / 2], dim=1)
        return to_scores(logits)


class Oriented(nn.Module):
    """Mean score over the 8 flips and turns of each patch (Liu et al. 2017)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: Tensor) -> Tensor:
        """Run all eight orientations as one batch, which is eight times as large."""
        scores: Tensor = self.network(torch.cat([orient(patches, k) for k in range(ORIENTATIONS)]))
        return scores.reshape(ORIENTATIONS, -1, scores.shape[1]).mean(dim=0)


class Window(nn.Module):
    """A model behind larger patches of a finer spacing: it gets their middle, reduced to the model's own spacing."""

    def __init__(self, network: nn.Module, side: int, factor: float) -> None:
        """Take the model, the side of its patch, and the number of given pixels, 1 or more, along one of its own."""
        super().__init__()
        self.network = network
        self.seen = round(side * factor)
        self.register_buffer(
            "weights", area_weights(self.seen, side) if self.seen != side else None, persistent=False
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Scores of uint8 patches (n, given side, given side, 3)."""
        start = (patches.shape[1] - self.seen) // 2
        middle = patches[:, start : start + self.seen, start : start + self.seen]
        if self.weights is not None:
            assert isinstance(self.weights, Tensor)
            weights = self.weights.to(patches.device)
            planes = middle.permute(0, 3, 1, 2).float()
            # two products, as OpenVINO needs gigabytes for one einsum
            middle = (weights @ planes @ weights.T).permute(0, 2, 3, 1)
        scores: Tensor = self.network(middle)
        return scores


class MiddleOf(nn.Module):
    """Features (n, d) half-way through a network that has ``middle``, of uint8 patches (n, side, side, 3)."""

    def __init__(self, network: nn.Module, window: nn.Module | None = None) -> None:
        """Take the network, and what brings patches to its side, if anything must."""
        super().__init__()
        self.network = network
        self.window = nn.Identity() if window is None else window

    def forward(self, patches: Tensor) -> Tensor:
        """Bring the patches to the network's side, normalise them, and go half-way."""
        features: Tensor = self.network.middle(normalise(self.window(patches)))  # type: ignore[operator]
        return features


class FeaturesOf(nn.Module):
    """Features (n, d) before a network's class layer, of uint8 patches (n, side, side, 3)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: Tensor) -> Tensor:
        """Normalise the patches, and go as far as the class layer."""
        features: Tensor = self.network.embed(cast_like(normalise(patches), self.network))  # type: ignore[operator]
        return features


def area_weights(before: int, after: int) -> Tensor:
    """(after, before) weights that average pixels into fewer ones, by the length of each that lies in the new pixel."""
    edges = torch.arange(after + 1, dtype=torch.float64) * before / after
    starts = torch.arange(before, dtype=torch.float64)
    high = torch.minimum(edges[1:, None], starts + 1)
    low = torch.maximum(edges[:-1, None], starts)
    return ((high - low).clamp_min(0) * after / before).float()  # (after, before)


class MeanOf(nn.Module):
    """Mean score of several networks of the same patches and classes."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, patches: Tensor) -> Tensor:
        """Mean of the scores of all networks."""
        return torch.stack([network(patches) for network in self.networks]).mean(dim=0)


def orient(patches: Tensor, k: int) -> Tensor:
    """Patches (n, h, w, c) in orientation ``k`` of 8: transposed for odd ``k``, then flipped by its other bits."""
    if k & 1:
        patches = patches.transpose(1, 2)
    dims = [dim for bit, dim in ((2, 1), (4, 2)) if k & bit]
    return patches.flip(dims) if dims else patches
