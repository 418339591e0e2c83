"""Building of one network, which every engine runs, from model folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from models.card import ModelCard, common_card, is_wsinfer
from models.checkpoint import load_checkpoint
from models.forms.wsinfer import load_wsinfer
from models.networks.contract import MeanOf, MiddleOf, Oriented, PatchNetwork, Window


def build_network(folders: Sequence[Path], orientations: int = 1) -> nn.Module:
    """The mean over the models, each averaged over 1 or 8 orientations; fp32, on the CPU.

    Raises:
        ModelError: a folder is not a model.
    """
    loaded = [
        load_wsinfer(folder) if is_wsinfer(folder) else _load_checkpoint_network(folder) for folder in folders
    ]
    frame = common_card([card for _, card in loaded])
    networks: list[nn.Module] = []
    for network, card in loaded:
        network = shown(network, card, frame)
        networks.append(Oriented(network) if orientations > 1 else network)
    combined = networks[0] if len(networks) == 1 else MeanOf(networks)
    return combined.eval()


def build_middle(folder: Path, frame: ModelCard) -> nn.Module:
    """The features half-way through a model, of patches of the side and spacing of ``frame``; fp32, on the CPU.

    Raises:
        ModelError: the folder is not a model of this program's own form.
    """
    network, card = load_checkpoint(folder)
    return MiddleOf(network, shown(nn.Identity(), card, frame)).eval()


def _load_checkpoint_network(folder: Path) -> tuple[nn.Module, ModelCard]:
    body, card = load_checkpoint(folder)
    return PatchNetwork(body, card.calibration, card.positive_index), card


def shown(network: nn.Module, card: ModelCard, frame: ModelCard) -> nn.Module:
    """The model, changed if needed so that it takes patches of the side and spacing of ``frame``."""
    if (card.patch_px, card.spacing_um) == (frame.patch_px, frame.spacing_um):
        return network
    assert card.spacing_um is not None  # models of any spacing are averaged only with each other
    assert frame.spacing_um is not None
    return Window(network, card.patch_px, card.spacing_um / frame.spacing_um)
