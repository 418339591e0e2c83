"""Classifiers on published backbones: EfficientNet and ResNet of torchvision, and any network of timm.

The backbone's weights keep their published names behind ``body.``, so that a published file loads as it is. Each
backbone is given the pixels as its publishers normalise them, whatever the contract's own normalisation is.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from models.card import TimmModel
from wsi.errors import ModelError
from wsi.text import first_line

# mean and standard deviation of ImageNet's pixels in 0..1, as torchvision's weights were trained with
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """Logits of one patch; pixels come in as float in [-1, 1], (n, 3, side, side).

    Args:
        body: what makes maps (n, d, h, w) or features (n, d) of pixels that are normalised as it wants them.
        width: d.
        classes: number of classes.
        mean, std: of the pixels in 0..1, as the body's publishers take them.
        input_px: side to which patches are first resized, bilinear; None leaves them as they are.
        dropout: rate of dropout before the class layer.
    """

    def __init__(
        self,
        body: nn.Module,
        width: int,
        classes: int,
        *,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        input_px: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.body = body
        self.input_px = input_px
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)  # (3, 1, 1)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def _enter(self, x: Tensor) -> Tensor:
        """Pixels in [-1, 1] as the body takes them."""
        if self.input_px is not None and x.shape[-1] != self.input_px:
            size = (self.input_px, self.input_px)
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=False)
        assert isinstance(self.mean, Tensor)
        assert isinstance(self.std, Tensor)
        mean, std = self.mean.to(x.dtype), self.std.to(x.dtype)
        return (x * 0.5 + 0.5 - mean) / std

    def embed(self, x: Tensor) -> Tensor:
        """Input of the class layer: (n, d).

        Raises:
            ModelError: the body gives features of places, not of the patch.
        """
        features: Tensor = self.body(self._enter(x))
        if features.ndim != 2:
            raise ModelError(
                f"{type(self.body).__name__} gives features of shape {tuple(features.shape)}, not pooled over the "
                f"patch; set global_pool in timm's args to avg or token"
            )
        return features

    def middle(self, x: Tensor) -> Tensor:
        """Features by which tissue is compared; here those of the class layer: (n, d)."""
        return self.embed(x)

    @property
    def class_layer(self) -> nn.Linear:
        """What makes logits of `embed`."""
        return self.fc

    def forward_train(self, x: Tensor) -> tuple[Tensor, None]:
        """Logits, and None in place of an auxiliary head's, as there is none."""
        return self.forward(x), None

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes)."""
        logits: Tensor = self.fc(self.dropout(self.embed(x)))
        return logits


class TorchvisionBackbone(Backbone):
    """An EfficientNet-B0 to B7 (Tan and Le 2019) or a ResNet (He et al. 2016), whose last maps are averaged."""

    def __init__(self, name: str, classes: int, *, input_px: int | None = None, dropout: float = 0.0) -> None:
        body = torchvision.models.get_model(name, weights=None)
        if name.startswith("efficientnet"):
            width = body.classifier[1].in_features
            body.classifier = nn.Identity()
        else:
            width = body.fc.in_features
            body.fc = nn.Identity()
        super().__init__(body, width, classes, input_px=input_px, dropout=dropout)

    @property
    def _stages(self) -> list[nn.Module]:
        """What the maps go through, one after the other."""
        body = self.body
        if hasattr(body, "features"):
            return list(body.features)  # type: ignore[arg-type]
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        return [getattr(body, name) for name in names]

    def middle(self, x: Tensor) -> Tensor:
        """Mean and standard deviation of each channel after the stages up to stride 8: (n, 2 channels)."""
        x = self._enter(x)
        for stage in self._stages[: 4 if hasattr(self.body, "features") else 6]:
            x = stage(x)
        return torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1)

    def last_maps(self, x: Tensor) -> Tensor:
        """Maps whose mean over all places is the input of the class layer: (n, d, h, w)."""
        x = self._enter(x)
        for stage in self._stages:
            x = stage(x)
        return x


class TimmBackbone(Backbone):
    """A network of timm, made as its ``create_model`` makes it: open pathology models are published in this form."""

    def __init__(
        self,
        model: TimmModel,
        classes: int,
        *,
        input_px: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Build it with random weights.

        Raises:
            ModelError: timm is not installed, does not know the network, or cannot make it with these arguments.
        """
        try:
            import timm
        except ImportError as error:
            raise ModelError(f"{model.name} is a network of timm: pip install 'slidewright[timm]'") from error
        try:
            body = timm.create_model(model.name, pretrained=False, num_classes=0, **_numbers(model.args))
            width = int(getattr(body, "head_hidden_size", None) or body.num_features)  # type: ignore[arg-type]
        except Exception as error:  # it calls the network's own code with the arguments
            raise ModelError(
                f"timm {timm.__version__} cannot make {model.name!r} with {model.args} ({first_line(error)[:160]}); "
                f"check its name and args"
            ) from error
        super().__init__(
            body, width, classes, mean=model.mean, std=model.std, input_px=input_px, dropout=dropout
        )

    @property
    def _prefix(self) -> int | None:
        """Number of tokens before those of places; None where the network has maps instead of tokens."""
        return getattr(self.body, "num_prefix_tokens", None)

    def inner_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last features of all places, as the network has them, and the logits that come of them.

        Of a transformer they are the input of the last block: after it, only the class token counts.
        """
        body, x = self.body, self._enter(x)
        if self._prefix is None:
            features = body.forward_features(x)  # type: ignore[operator]
            return features, self.fc(body.forward_head(features))  # type: ignore[operator]
        kept: list[Tensor] = []
        if not hasattr(body, "blocks"):
            raise ModelError(f"the places of {type(body).__name__} are not known, and cannot be shown")
        hook = body.blocks[-1].register_forward_pre_hook(lambda _, given: kept.append(given[0]))  # type: ignore[index,union-attr]
        try:
            logits = self.fc(body(x))
        finally:
            hook.remove()
        return kept[0], logits

    def at_places(self, inner: Tensor) -> Tensor:
        """The features of `inner_and_logits`, or their gradients, by place: (n, h, w, d).

        Raises:
            ModelError: the network has no places.
        """
        if self._prefix is not None:
            tokens = inner[:, self._prefix :]  # (n, h * w, d)
            rows = round(tokens.shape[1] ** 0.5)  # patches are square
            if tokens.shape[1] != rows**2:
                raise ModelError(
                    f"the last tokens of {type(self.body).__name__} are not those of places, and cannot be shown"
                )
            return tokens.reshape(len(tokens), rows, -1, tokens.shape[-1])
        if inner.ndim != 4:
            raise ModelError(
                f"the last features of {type(self.body).__name__} have no places, and cannot be shown"
            )
        width = int(self.body.num_features)  # type: ignore[arg-type]
        return inner if inner.shape[-1] == width else inner.permute(0, 2, 3, 1)


def _numbers(args: dict[str, Any]) -> dict[str, Any]:
    """Arguments with numbers in place of words like ``1e-5``, which YAML takes for text."""
    return {key: _number(value) if isinstance(value, str) else value for key, value in args.items()}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
