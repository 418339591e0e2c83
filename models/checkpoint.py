"""A model on disk: a folder with ``model.safetensors`` and ``card.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from models.card import (
    CARD,
    WEIGHTS,
    ZOO,
    Architecture,
    C,
    DetectorCard,
    ModelCard,
    SegmenterCard,
    card_json,
    hash_file,
    read_card,
)
from models.forms.timm_folder import timm_model, timm_weights
from models.networks.backbone import Backbone
from models.networks.detector import CapillaryDetector
from models.networks.segmentation import Segmenter
from models.registry import HEADS, imagenet_file, make_network, make_segmenter
from models.tensors import write_tensors
from wsi.errors import ModelError
from wsi.files import write_text

_AUX = "AuxLogits."
_THEIR_HEADS = (
    "body.fc.",
    "body.classifier.",
    "body.head.",
    "body.head_dist.",
)  # class layers of published files


def save_checkpoint(folder: Path, network: nn.Module, **card: Any) -> ModelCard:
    """Write a classifier's weights (without the auxiliary head) and card, each file completely or not at all.

    Args:
        folder: the folder, which is made if it does not exist.
        network: the network to save.
        card: the fields of `ModelCard` except ``sha256``.
    """
    return _save(folder, network, ModelCard, card)


def save_detector(folder: Path, network: CapillaryDetector, **card: Any) -> DetectorCard:
    """Write a detector's weights and card; see `save_checkpoint`."""
    return _save(folder, network, DetectorCard, card)


def save_segmenter(folder: Path, network: Segmenter, **card: Any) -> SegmenterCard:
    """Write a segmenter's weights and card; see `save_checkpoint`."""
    return _save(folder, network, SegmenterCard, card)


def _save(folder: Path, network: nn.Module, kind: type[C], card: dict[str, Any]) -> C:
    state = {k: v for k, v in network.state_dict().items() if not k.startswith(_AUX)}
    write_tensors(folder / WEIGHTS, state)
    result = kind(sha256=hash_file(folder / WEIGHTS), **card)
    write_text(folder / CARD, card_json(result))
    return result


def load_checkpoint(folder: Path) -> tuple[nn.Module, ModelCard]:
    """Read a classifier for scoring (no auxiliary head, evaluation mode, float32).

    Raises:
        ModelError: it is another kind of model, a byte changed, or classes or architecture do not fit.
    """
    card = read_card(folder, ModelCard)
    network = make_network(card.architecture, len(card.classes))
    return _loaded(network, folder, f"an {_kind(card)} with {len(card.classes)} classes"), card


def load_timm(folder: Path) -> nn.Module:
    """Read a published folder of timm, in evaluation mode and float32; its class layer has no meaning.

    Raises:
        ModelError: it is not such a folder, or the weights are of another network.
    """
    model = timm_model(folder)
    network = make_network(Architecture(name="timm", timm=model), 1)
    load_published(network, "timm", timm_weights(folder, model))
    return network.eval()


def load_detector(folder: Path) -> tuple[CapillaryDetector, DetectorCard]:
    """Read a detector in evaluation mode and float32.

    Raises:
        ModelError: it is another kind of model, a byte changed, or the weights are of another shape.
    """
    card = read_card(folder, DetectorCard)
    network = CapillaryDetector(card.detector)
    return _loaded(
        network, folder, f"a {card.detector.network} of the backbone {card.detector.backbone}"
    ), card


def load_segmenter(folder: Path) -> tuple[Segmenter, SegmenterCard]:
    """Read a segmenter in evaluation mode and float32.

    Raises:
        ModelError: it is another kind of model, a byte changed, or the weights are of another shape.
    """
    card = read_card(folder, SegmenterCard)
    description = f"a {card.segmenter.network} of width {card.segmenter.width}"
    return _loaded(make_segmenter(card.segmenter), folder, description), card


N = TypeVar("N", bound=nn.Module)


def _loaded(network: N, folder: Path, description: str) -> N:
    """The network with the weights of a folder."""
    try:
        network.load_state_dict({k: _in_fp32(v) for k, v in load_file(folder / WEIGHTS).items()})
    except (SafetensorError, RuntimeError) as error:
        why = next(
            (line.strip() for line in str(error).splitlines()[1:]), str(error)
        )  # torch's first one is a title
        raise ModelError(
            f"{folder / WEIGHTS} does not hold the weights of {description} ({why[:160]})"
        ) from error
    return network.eval()


def _in_fp32(value: Tensor) -> Tensor:
    """Weights in float32; counts of batches stay whole numbers."""
    return value.float() if value.is_floating_point() else value


def _kind(card: ModelCard) -> str:
    """Description of a card's network, in words."""
    if card.architecture.name == "inception_v3":
        return f"Inception-v3 of width {card.architecture.width}"
    return card.architecture.name if card.architecture.timm is None else card.architecture.timm.name


def load_start(network: nn.Module, architecture: Architecture, path: Path) -> None:
    """Load weights to start a training from: a model's, without its output layers, or published ones.

    Raises:
        ModelError: the weights are broken or of another architecture.
    """
    if not path.exists() and (ZOO / path).is_dir():
        path = ZOO / path
    if not (path / CARD).is_file():
        if path.is_dir():
            path = timm_weights(path, architecture.timm)
        load_published(network, architecture.name, path)
        return
    body, card = load_checkpoint(path)
    theirs = card.architecture
    if (theirs.name, theirs.width, theirs.timm) != (architecture.name, architecture.width, architecture.timm):
        raise ModelError(
            f"{path} is an {_kind(card)}, the recipe's network is another; set architecture to "
            f"{theirs.name} and width to {theirs.width:g}"
            + ("" if theirs.timm is None else f", and timm to {theirs.timm.model_dump_json()}")
        )
    state = {k: v for k, v in body.state_dict().items() if not k.startswith(HEADS[architecture.name])}
    network.load_state_dict(network.state_dict() | state)


def _fetch_imagenet(name: str) -> dict[str, Tensor]:
    """Torchvision's ImageNet weights of a network: fetched only where a recipe asks for ``imagenet``."""
    weights = get_model_weights(name)["IMAGENET1K_V1"]
    try:
        return dict(weights.get_state_dict(check_hash=True))
    except OSError as error:
        raise ModelError(
            f"{weights.url} cannot be fetched ({error}); fetch it on another machine, and pass the file with --init"
        ) from error


def load_published(network: nn.Module, name: str, path: Path) -> None:
    """Load published weights to start from, except the class layers; their names are torchvision's or timm's.

    Args:
        network: the network, changed in place; an Inception-v3 of width 1.
        name: name of the network's architecture.
        path: a ``.pth``, ``.bin`` or ``.safetensors`` file, or the word ``imagenet`` for torchvision's own download or
            the file that a package brings.

    Raises:
        ModelError: the file is broken or cannot be fetched, or is of another network.
    """
    try:
        state = _published_state(network, name, path)
        heads = HEADS[name]
        own_state = network.state_dict()
        body = {k: v for k, v in state.items() if k in own_state and not k.startswith(heads)}
        missing_keys = [
            k
            for k in own_state
            # files of before 2018 do not count batches
            if k not in body and not k.startswith((*heads, _AUX)) and not k.endswith("num_batches_tracked")
        ]
        if missing_keys:
            raise ModelError(f"{path} lacks {len(missing_keys)} arrays of {name}, first {missing_keys[0]}")
        if isinstance(network, Backbone):
            surplus = [k for k in state if k not in own_state and not k.startswith(_THEIR_HEADS)]
            if surplus:  # a network with fewer layers would load, and give other features
                raise ModelError(
                    f"{path} holds {len(surplus)} arrays that {name} has no place for, first "
                    f"{surplus[0].removeprefix('body.')}; check the network's name and args"
                )
        network.load_state_dict(own_state | body)
    except ModelError:
        raise
    except Exception as error:  # torch.load raises many classes of pickle and zip
        kind = "Inception-v3 of width 1" if name == "inception_v3" else name
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        why = lines[min(1, len(lines) - 1)]  # torch's first one is a title
        raise ModelError(f"{path} is not a weight file for {kind} ({why[:160]})") from error


def _published_state(network: nn.Module, name: str, path: Path) -> dict[str, Tensor]:
    """The arrays of a published file, by their names in this network."""
    state: dict[str, Tensor]
    if str(path) == "imagenet":
        if name == "timm":
            raise ModelError(
                "weights of timm are not fetched: download the model's folder, and pass it with --init"
            )
        path = imagenet_file(name) or path
    if str(path) == "imagenet":
        state = _fetch_imagenet(name)
    elif path.suffix == ".safetensors":
        state = load_file(path)
    else:
        state = torch.load(path, weights_only=True, map_location="cpu")
    return {f"body.{key}": value for key, value in state.items()} if isinstance(network, Backbone) else state


def parameters_of(network: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in network.parameters())
