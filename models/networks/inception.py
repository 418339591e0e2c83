"""Inception-v3 with a width multiplier (Szegedy et al. 2015, arXiv 1512.00567).

At width 1 the parameters have the names and shapes of torchvision's ``inception_v3``, so that its
ImageNet weight file loads. Narrower ones are the "small" towers of Liu et al. 2017: same depth, fewer
filters per layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH_PX = 299
BN_EPS = 0.001  # torchvision's and TensorFlow's value for Inception-v3


class BasicConv2d(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h', w')."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _pool3(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)


class InceptionA(nn.Module):
    """Mixed_5b to 5d: 1x1, 5x5, double 3x3 and pooled branches at stride 8."""

    def __init__(self, inputs: int, pooled: int, c: Widths) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(inputs, c(64), 1)
        self.branch5x5_1 = BasicConv2d(inputs, c(48), 1)
        self.branch5x5_2 = BasicConv2d(c(48), c(64), 5, padding=2)
        self.branch3x3dbl_1 = BasicConv2d(inputs, c(64), 1)
        self.branch3x3dbl_2 = BasicConv2d(c(64), c(96), 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(c(96), c(96), 3, padding=1)
        self.branch_pool = BasicConv2d(inputs, pooled, 1)
        self.outputs = 2 * c(64) + c(96) + pooled

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h, w)."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_pool3(x))], 1)


class InceptionB(nn.Module):
    """Mixed_6a: from stride 8 to stride 16."""

    def __init__(self, inputs: int, c: Widths) -> None:
        super().__init__()
        self.branch3x3 = BasicConv2d(inputs, c(384), 3, stride=2)
        self.branch3x3dbl_1 = BasicConv2d(inputs, c(64), 1)
        self.branch3x3dbl_2 = BasicConv2d(c(64), c(96), 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(c(96), c(96), 3, stride=2)
        self.outputs = c(384) + c(96) + inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h', w'), about half as large."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class InceptionC(nn.Module):
    """Mixed_6b to 6e: factorised 7x7 branches at stride 16."""

    def __init__(self, inputs: int, narrow: int, c: Widths) -> None:
        super().__init__()
        wide, row, column = c(192), (1, 7), (7, 1)
        along, down = (0, 3), (3, 0)
        self.branch1x1 = BasicConv2d(inputs, wide, 1)
        self.branch7x7_1 = BasicConv2d(inputs, narrow, 1)
        self.branch7x7_2 = BasicConv2d(narrow, narrow, row, padding=along)
        self.branch7x7_3 = BasicConv2d(narrow, wide, column, padding=down)
        self.branch7x7dbl_1 = BasicConv2d(inputs, narrow, 1)
        self.branch7x7dbl_2 = BasicConv2d(narrow, narrow, column, padding=down)
        self.branch7x7dbl_3 = BasicConv2d(narrow, narrow, row, padding=along)
        self.branch7x7dbl_4 = BasicConv2d(narrow, narrow, column, padding=down)
        self.branch7x7dbl_5 = BasicConv2d(narrow, wide, row, padding=along)
        self.branch_pool = BasicConv2d(inputs, wide, 1)
        self.outputs = 4 * wide

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h, w)."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_pool3(x))], 1)


class InceptionD(nn.Module):
    """Mixed_7a: from stride 16 to stride 32."""

    def __init__(self, inputs: int, c: Widths) -> None:
        super().__init__()
        self.branch3x3_1 = BasicConv2d(inputs, c(192), 1)
        self.branch3x3_2 = BasicConv2d(c(192), c(320), 3, stride=2)
        self.branch7x7x3_1 = BasicConv2d(inputs, c(192), 1)
        self.branch7x7x3_2 = BasicConv2d(c(192), c(192), (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = BasicConv2d(c(192), c(192), (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = BasicConv2d(c(192), c(192), 3, stride=2)
        self.outputs = c(320) + c(192) + inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h', w'), about half as large."""
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([three, self.branch7x7x3_4(seven), F.max_pool2d(x, 3, stride=2)], 1)


class InceptionE(nn.Module):
    """Mixed_7b and 7c: the widest blocks, at stride 32."""

    def __init__(self, inputs: int, c: Widths) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(inputs, c(320), 1)
        self.branch3x3_1 = BasicConv2d(inputs, c(384), 1)
        self.branch3x3_2a = BasicConv2d(c(384), c(384), (1, 3), padding=(0, 1))
        self.branch3x3_2b = BasicConv2d(c(384), c(384), (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = BasicConv2d(inputs, c(448), 1)
        self.branch3x3dbl_2 = BasicConv2d(c(448), c(384), 3, padding=1)
        self.branch3x3dbl_3a = BasicConv2d(c(384), c(384), (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = BasicConv2d(c(384), c(384), (3, 1), padding=(1, 0))
        self.branch_pool = BasicConv2d(inputs, c(192), 1)
        self.outputs = c(320) + 4 * c(384) + c(192)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h, w)."""
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        branches += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([*branches, self.branch_pool(_pool3(x))], 1)


class InceptionAux(nn.Module):
    """The auxiliary head at Mixed_6e; only training uses it."""

    def __init__(self, inputs: int, classes: int, c: Widths) -> None:
        super().__init__()
        self.conv0 = BasicConv2d(inputs, c(128), 1)
        self.conv1 = BasicConv2d(c(128), c(768), 5)
        self.fc = nn.Linear(c(768), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, 17, 17) to logits (n, classes)."""
        x = self.conv1(self.conv0(F.avg_pool2d(x, kernel_size=5, stride=3)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))  # type: ignore[no-any-return]


class Widths:
    """Function that scales a number of channels by the multiplier, to a multiple of 8 and at least 8."""

    def __init__(self, width: float) -> None:
        if not 0 < width <= 1:
            raise ValueError(f"width must lie in (0, 1], got {width}")
        self.width = width

    def __call__(self, channels: int) -> int:
        """The scaled number; at width 1 it is exact, as every number of the paper is a multiple of 16."""
        return max(8, round(channels * self.width / 8) * 8)


class InceptionV3(nn.Module):
    """Logits of one 299 px patch; pixels come in as float in [-1, 1], (n, 3, 299, 299)."""

    def __init__(self, classes: int, *, width: float = 1.0, dropout: float = 0.5, aux: bool = True) -> None:
        super().__init__()
        c = Widths(width)
        self.Conv2d_1a_3x3 = BasicConv2d(3, c(32), 3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(c(32), c(32), 3)
        self.Conv2d_2b_3x3 = BasicConv2d(c(32), c(64), 3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(c(64), c(80), 1)
        self.Conv2d_4a_3x3 = BasicConv2d(c(80), c(192), 3)
        self.Mixed_5b = InceptionA(c(192), c(32), c)
        self.Mixed_5c = InceptionA(self.Mixed_5b.outputs, c(64), c)
        self.Mixed_5d = InceptionA(self.Mixed_5c.outputs, c(64), c)
        self.Mixed_6a = InceptionB(self.Mixed_5d.outputs, c)
        self.Mixed_6b = InceptionC(self.Mixed_6a.outputs, c(128), c)
        self.Mixed_6c = InceptionC(self.Mixed_6b.outputs, c(160), c)
        self.Mixed_6d = InceptionC(self.Mixed_6c.outputs, c(160), c)
        self.Mixed_6e = InceptionC(self.Mixed_6d.outputs, c(192), c)
        self.AuxLogits = InceptionAux(self.Mixed_6e.outputs, classes, c) if aux else None
        self.Mixed_7a = InceptionD(self.Mixed_6e.outputs, c)
        self.Mixed_7b = InceptionE(self.Mixed_7a.outputs, c)
        self.Mixed_7c = InceptionE(self.Mixed_7b.outputs, c)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.Mixed_7c.outputs, classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                # truncated normal, as in TensorFlow's slim; He's width suits the narrow towers
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        for head in [self.fc] + ([self.AuxLogits.fc] if self.AuxLogits is not None else []):
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)

    def features(self, x: Tensor) -> Tensor:
        """Features of Mixed_6e: (n, 3, 299, 299) to (n, 768 * width, 17, 17)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        return self.Mixed_6e(self.Mixed_6d(x))  # type: ignore[no-any-return]

    @property
    def class_layer(self) -> nn.Linear:
        """What makes logits of the mean of `last_maps`."""
        return self.fc

    def last_maps(self, x: Tensor) -> Tensor:
        """Maps whose mean over all places is the input of the class layer: (n, 2048 * width, 8, 8)."""
        return self._last(self.features(x))

    def embed(self, x: Tensor) -> Tensor:
        """Input of the class layer: (n, 2048 * width)."""
        return self.last_maps(x).mean(dim=(2, 3))

    def _last(self, x: Tensor) -> Tensor:
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # type: ignore[no-any-return]

    def head(self, x: Tensor) -> Tensor:
        """Mixed_6e features to logits (n, classes)."""
        x = self._last(x)
        x = torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1)
        return self.fc(self.dropout(x))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes)."""
        return self.head(self.features(x))

    def forward_train(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the main and of the auxiliary head."""
        if self.AuxLogits is None:
            raise ValueError("this network was built without its auxiliary head; pass aux=True to train it")
        x = self.features(x)
        return self.head(x), self.AuxLogits(x)
