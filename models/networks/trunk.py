"""A small residual trunk that the segmenters share, so that they differ in what makes each of them that network."""

from __future__ import annotations

from torch import Tensor, nn

STAGES = 4  # at strides 4, 8, 16 and 32, unless later ones are dilated instead
GROWTH = (2, 4, 8, 8)  # channels of the stages, in widths


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, and a way past them (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, dilation, dilation, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, 1, dilation, dilation, bias=False),
            nn.BatchNorm2d(after),
        )
        self.past = (
            nn.Identity()
            if before == after and stride == 1
            else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        )
        self.last = nn.ReLU(inplace=True)

    def forward(self, pixels: Tensor) -> Tensor:
        """The block's features, at its stride."""
        features: Tensor = self.last(self.body(pixels) + self.past(pixels))
        return features


class Trunk(nn.Module):
    """The features of four stages; from ``output_stride`` on, dilation takes the place of the stride."""

    def __init__(self, width: int, output_stride: int = 32) -> None:
        super().__init__()
        self.channels = tuple(width * growth for growth in GROWTH)
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        stages, before, stride, dilation = [], width, 2, 1
        for after in self.channels:
            step = 2 if stride < output_stride else 1
            stride, dilation = stride * step, dilation * (2 // step)
            stages.append(
                nn.Sequential(Residual(before, after, step, dilation), Residual(after, after, 1, dilation))
            )
            before = after
        self.stages = nn.ModuleList(stages)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """The features of all stages, fine to coarse, of (n, 3, h, w) whose sides are multiples of 32."""
        features, maps = self.stem(pixels), []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps
