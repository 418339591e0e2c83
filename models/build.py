"""From model folders to one network that every engine runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from models.checkpoint import load_checkpoint
from models.network import MeanOf, Oriented, PatchNetwork
from models.wsinfer import is_wsinfer, load_wsinfer


def build_network(folders: Sequence[Path], orientations: int = 1) -> nn.Module:
    """The mean over the models, each averaged over 1 or 8 orientations; fp32, on the CPU.

    Raises:
        ModelError: a folder is not a model.
    """
    networks: list[nn.Module] = []
    for folder in folders:
        network = load_wsinfer(folder)[0] if is_wsinfer(folder) else _own(folder)
        networks.append(Oriented(network) if orientations > 1 else network)
    whole = networks[0] if len(networks) == 1 else MeanOf(networks)
    return whole.eval()


def _own(folder: Path) -> nn.Module:
    body, card = load_checkpoint(folder)
    return PatchNetwork(body, card.calibration, card.positive_index)
