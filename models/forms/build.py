"""Building of one network, which every engine runs, from model folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import nn

from models.card import ModelCard, common_card, is_wsinfer
from models.checkpoint import load_checkpoint, load_timm
from models.forms.timm_folder import is_timm_folder
from models.forms.wsinfer import load_wsinfer
from models.networks.contract import FeaturesOf, MeanOf, MiddleOf, Oriented, PatchNetwork, Window
from wsi.errors import ConfigError, ModelError


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


def build_output(
    folders: Sequence[Path], orientations: int, output: Literal["scores", "features"]
) -> nn.Module:
    """The network of scores or of features, see `EngineConfig`; fp32, on the CPU.

    Raises:
        ConfigError: features of several models or orientations, which have no mean.
        ModelError: a folder is not a model.
    """
    if output == "scores":
        return build_network(folders, orientations)
    if len(folders) > 1 or orientations > 1:
        raise ConfigError("features are those of one model in one orientation")
    return build_features(folders[0])


def output_width(network: nn.Module, classes: int) -> int:
    """How many numbers the network of `build_output` gives of a patch."""
    if isinstance(network, FeaturesOf):
        return int(network.network.class_layer.in_features)  # type: ignore[arg-type,union-attr]
    return classes


def build_features(folder: Path) -> nn.Module:
    """The features before a model's class layer; fp32, on the CPU.

    Raises:
        ModelError: the folder is neither a model of this program's own form nor a published one of timm.
    """
    if is_wsinfer(folder):
        raise ModelError(
            f"{folder} is a TorchScript model, which gives scores and no features; choose another model"
        )
    network = load_timm(folder) if is_timm_folder(folder) else load_checkpoint(folder)[0]
    return FeaturesOf(network).eval()


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
