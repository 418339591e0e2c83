"""Augmentation of a batch, on the device that trains (Liu et al. 2017)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.network import ORIENTATIONS, normalise, orient
from wsi.config import Config

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma, which TensorFlow's and torchvision's saturation use
# RGB to YIQ (NTSC): hue is the angle in the I, Q plane, saturation the distance from grey
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


class AugmentConfig(Config):
    """Largest change of each kind; the values of Liu et al. 2017.

    Attributes:
        orientations: 8 draws a flip and turn for each patch, 1 leaves them.
        brightness: added, as a share of the full range.
        saturation, contrast: factor between 1 - x and 1 + x.
        hue: turn, as a share of the full circle.
        jitter_px: shift of the patch on the slide, in x and y.
    """

    orientations: Literal[1, 8] = 8
    brightness: float = Field(default=64 / 255, ge=0, le=1)
    saturation: float = Field(default=0.25, ge=0, le=1)
    hue: float = Field(default=0.04, ge=0, le=0.5)
    contrast: float = Field(default=0.75, ge=0, le=1)
    jitter_px: int = Field(default=8, ge=0)


def augment(patches: Tensor, cfg: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Turned and recoloured patches.

    Args:
        patches: RGB uint8, (n, size, size, 3).
        cfg: how much.
        generator: every draw comes from it; on the CPU.

    Returns:
        Float (n, 3, size, size) in [-1, 1].
    """
    if cfg.orientations == ORIENTATIONS:
        patches = turn(patches, torch.randint(ORIENTATIONS, (len(patches),), generator=generator))
    return recolour(normalise(patches), cfg, generator)


def turn(patches: Tensor, which: Tensor) -> Tensor:
    """Give patch i of (n, size, size, 3) the orientation ``which[i]`` of 8."""
    out = torch.empty_like(patches)
    for k in range(ORIENTATIONS):
        chosen = (which == k).nonzero()[:, 0].to(patches.device)
        out[chosen] = orient(patches[chosen], k)
    return out


def recolour(pixels: Tensor, cfg: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Brightness, saturation, hue, contrast, in this order, then clip; (n, 3, h, w) in [-1, 1].

    All four are linear in the colour, so they are one 3 x 3 matrix and offset per patch. Hue turns
    the I, Q plane of YIQ, where TensorFlow turns HSV: equal for small turns but for luma.
    """
    n, device = len(pixels), pixels.device

    def draw(limit: float) -> Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1).mul_(limit).to(device)

    brightness, saturation = 2 * draw(cfg.brightness), 1 + draw(cfg.saturation)  # range -1..1 is 2 wide
    hue, contrast = 2 * math.pi * draw(cfg.hue), 1 + draw(cfg.contrast)
    matrix = _hue_matrix(hue) @ _saturation_matrix(saturation)  # (n, 3, 3)
    mean = torch.einsum("nij,nj->ni", matrix, pixels.mean(dim=(2, 3)))  # before the offset
    matrix = matrix * contrast[:, None, None]
    offset = mean * (1 - contrast)[:, None] + brightness[:, None]  # contrast keeps each channel's mean
    flat = torch.baddbmm(offset[:, :, None], matrix, pixels.flatten(2))  # (n, 3, h * w)
    return flat.view_as(pixels).clamp_(-1, 1)


def _saturation_matrix(factor: Tensor) -> Tensor:
    grey = torch.tensor(_GREY, device=factor.device).expand(3, 3)
    eye = torch.eye(3, device=factor.device)
    return factor[:, None, None] * eye + (1 - factor)[:, None, None] * grey


def _hue_matrix(angle: Tensor) -> Tensor:
    to_yiq = torch.tensor(_YIQ, device=angle.device)
    cos, sin = torch.cos(angle), torch.sin(angle)
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = [torch.stack(r, -1) for r in ((one, zero, zero), (zero, cos, -sin), (zero, sin, cos))]
    matrix: Tensor = torch.linalg.inv(to_yiq) @ torch.stack(rows, dim=1) @ to_yiq
    return matrix
