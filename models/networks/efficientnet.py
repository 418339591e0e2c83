"""EfficientNet-lite (Tan and Le 2019, arXiv 1905.11946; lite: TensorFlow's tpu repository, 2020).

The lite form has ReLU6 and no squeeze-and-excitation, so that it runs fast in 8 bits and on a CPU. Padding is
TensorFlow's "same", as the ImageNet weights were trained with it: for an even side and a stride of 2, one pixel more at
the right and below.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BN_EPS, BN_MOMENTUM = 1e-3, 0.01  # values of the authors' code; momentum by PyTorch's definition
# expansion, channels, blocks, stride of the first, kernel: table 1 of the paper
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
STEM, HEAD = 32, 1280  # channels; the lite form does not scale them
MIDDLE = 11  # blocks up to the last of 112 channels: they tell foreign tissue best (docs/models.md)
DROP_PATH = 0.2  # share of the last block's outputs that are dropped in training; earlier blocks have less


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding in pixels before and after one axis, by the rule of TensorFlow's "same"."""
    total = max((-(side // -stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow does."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, ceil(h / stride), ceil(w / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        left, right = same_padding(x.shape[-1], kernel, stride)
        top, bottom = same_padding(x.shape[-2], kernel, stride)
        if (left, top) == (right, bottom):
            return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), groups=self.groups)
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)


class MBConv(nn.Module):
    """Mobile inverted bottleneck: widen, filter each channel, narrow; with a shortcut where shapes allow it."""

    def __init__(
        self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int, drop_path: float
    ) -> None:
        super().__init__()
        width = inputs * expansion
        self._expand_conv = SameConv2d(inputs, width, 1) if expansion > 1 else None
        self._bn0 = _norm(width) if expansion > 1 else None
        self._depthwise_conv = SameConv2d(width, width, kernel, stride, groups=width)
        self._bn1 = _norm(width)
        self._project_conv = SameConv2d(width, outputs, 1)
        self._bn2 = _norm(outputs)
        self._around = stride == 1 and inputs == outputs
        self._drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        y: Tensor = x
        if self._expand_conv is not None and self._bn0 is not None:
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        if not self._around:
            return y
        if self.training and self._drop_path:  # stochastic depth (Huang et al. 2016)
            keep_mask = torch.rand(len(y), 1, 1, 1, device=y.device) >= self._drop_path
            y = y * keep_mask / (1 - self._drop_path)
        result: Tensor = x + y
        return result


class EfficientNetLite0(nn.Module):
    """Logits of one patch of any side; pixels come in as float in [-1, 1], (n, 3, side, side).

    Parameters have the names and shapes of the ``efficientnet-lite-pytorch`` package, so that its ImageNet file loads.

    Args:
        classes: number of classes.
        input_px: side to which patches are first resized, bilinear; None leaves them as they are.
        dropout: rate of dropout before the class layer.
    """

    def __init__(self, classes: int, *, input_px: int | None = None, dropout: float = 0.2) -> None:
        super().__init__()
        self.input_px = input_px
        self._conv_stem = SameConv2d(3, STEM, 3, 2)
        self._bn0 = _norm(STEM)
        blocks: list[nn.Module] = []
        inputs = STEM
        total = sum(count for _, _, count, _, _ in STAGES)
        for expansion, outputs, count, stride, kernel in STAGES:
            for i in range(count):
                drop = DROP_PATH * len(blocks) / total
                blocks.append(MBConv(inputs, outputs, expansion, kernel, stride if i == 0 else 1, drop))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(inputs, HEAD, 1)
        self._bn1 = _norm(HEAD)
        self.dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(HEAD, classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self._fc.weight, std=0.01)
        nn.init.zeros_(self._fc.bias)

    def _enter(self, x: Tensor) -> Tensor:
        if self.input_px is not None and x.shape[-1] != self.input_px:
            size = (self.input_px, self.input_px)
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=False)
        return F.relu6(self._bn0(self._conv_stem(x)))

    def middle(self, x: Tensor) -> Tensor:
        """Mean and standard deviation of each channel half-way through the network: (n, 224)."""
        x = self._enter(x)
        for block in self._blocks[:MIDDLE]:
            x = block(x)
        return torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1)

    @property
    def class_layer(self) -> nn.Linear:
        """What makes logits of the mean of `last_maps`."""
        return self._fc

    def last_maps(self, x: Tensor) -> Tensor:
        """Maps whose mean over all places is the input of the class layer: (n, 1280, h, w)."""
        x = self._enter(x)
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x)))

    def embed(self, x: Tensor) -> Tensor:
        """Input of the class layer: (n, 1280)."""
        return self.last_maps(x).mean(dim=(2, 3))

    def forward_train(self, x: Tensor) -> tuple[Tensor, None]:
        """Logits, and None in place of an auxiliary head's, as there is none."""
        return self.forward(x), None

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes)."""
        logits: Tensor = self._fc(self.dropout(self.embed(x)))
        return logits
