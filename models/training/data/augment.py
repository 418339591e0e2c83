"""Augmentation of a batch, on the device that trains (Liu et al. 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from models.networks.contract import ORIENTATIONS, normalise, orient
from wsi.config import Config

BLURRED_SHARE = 0.5
WORST_JPEG, BEST_JPEG = 40, 95  # qualities that scanners and archives use lie between
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma, which TensorFlow's and torchvision's saturation use
# RGB to YIQ (NTSC): hue is the angle in the I, Q plane, saturation the distance from grey
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
# Haematoxylin, eosin, DAB: optical density of each channel (Ruifrok and Johnston 2001)
_HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))


class AugmentConfig(Config):
    """Largest change of each kind; the values of Liu et al. 2017.

    Attributes:
        orientations: 8 draws a flip and turn for each patch, 1 leaves them.
        brightness: added, as a share of the full range.
        saturation, contrast: factor between 1 - x and 1 + x.
        hue: turn, as a share of the full circle.
        jitter_px: shift of the patch on the slide, in x and y.
        stain: factor between 1 - x and 1 + x on the amount of haematoxylin, eosin and rest, and an offset up to a tenth
            of x (Tellez et al. 2018, whose "light" is 0.05 and "strong" 0.2); Liu et al. 2017 do without.
        blur: half of the patches are blurred by a Gaussian of a sigma up to so many px: scanners focus differently.
        jpeg: share of patches that are compressed by JPEG again, so that a network does not learn one codec.
    """

    orientations: Literal[1, 8] = 8
    brightness: float = Field(default=64 / 255, ge=0, le=1)
    saturation: float = Field(default=0.25, ge=0, le=1)
    hue: float = Field(default=0.04, ge=0, le=0.5)
    contrast: float = Field(default=0.75, ge=0, le=1)
    jitter_px: int = Field(default=8, ge=0)
    stain: float = Field(default=0.0, ge=0, lt=1)
    blur: float = Field(default=0.0, ge=0)
    jpeg: float = Field(default=0.0, ge=0, le=1)

    @property
    def wears(self) -> bool:
        """Whether `wear` does anything."""
        return self.blur > 0 or self.jpeg > 0


@dataclass(frozen=True, eq=False, slots=True)
class Changes:
    """What is done to each patch of a batch.

    Attributes:
        orientation: 0..7, (n,).
        draws: in -1..1, (n, 10).
        wear: in 0..1, (n, 4): whether and how much it is blurred, and compressed.
    """

    orientation: Tensor
    draws: Tensor
    wear: Tensor

    def of(self, which: range) -> Changes:
        """Those of some patches of the batch."""
        chosen = slice(which.start, which.stop)
        return Changes(self.orientation[chosen], self.draws[chosen], self.wear[chosen])


def draw_changes(n: int, cfg: AugmentConfig, generator: torch.Generator) -> Changes:
    """Draw for a whole batch, on the CPU: every process of a team draws the same."""
    turns = torch.zeros(n, dtype=torch.int64)
    if cfg.orientations == ORIENTATIONS:
        turns = torch.randint(ORIENTATIONS, (n,), generator=generator)
    draws = torch.rand(n, 10, generator=generator) * 2 - 1
    wear = torch.rand(n, 4, generator=generator) if cfg.wears else torch.ones(n, 4)
    return Changes(turns, draws, wear)


def wear(patches: npt.NDArray[np.uint8], cfg: AugmentConfig, changes: Changes) -> npt.NDArray[np.uint8]:
    """Blurred, then compressed by JPEG, as a scanner's optics and its codec do; RGB uint8 (n, size, size, 3)."""
    if not cfg.wears:
        return patches
    done = patches.copy()
    for pixels, (blurs, sigma, compresses, quality) in zip(done, changes.wear.tolist(), strict=True):
        if cfg.blur and blurs < BLURRED_SHARE:
            pixels[:] = cv2.GaussianBlur(pixels, (0, 0), max(0.05, sigma * cfg.blur))
        if compresses < cfg.jpeg:
            level = round(WORST_JPEG + quality * (BEST_JPEG - WORST_JPEG))
            encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, level])[1]
            pixels[:] = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))[..., ::-1]
    return done


def augment(patches: Tensor, cfg: AugmentConfig, changes: Changes) -> Tensor:
    """Turned and recoloured patches.

    Args:
        patches: RGB uint8, (n, size, size, 3).
        cfg: how much.
        changes: which, from `draw_changes`.

    Returns:
        Float (n, 3, size, size) in [-1, 1].
    """
    if cfg.orientations == ORIENTATIONS:
        patches = turn(patches, changes.orientation)
    return recoloured(patches, cfg, changes)


def recoloured(patches: Tensor, cfg: AugmentConfig, changes: Changes) -> Tensor:
    """Recoloured patches, not turned: RGB uint8 (n, size, size, 3) to float (n, 3, size, size) in [-1, 1]."""
    pixels, draws = normalise(patches), changes.draws.to(patches.device)
    if cfg.stain:
        pixels = restain(pixels, 1 + cfg.stain * draws[:, 4:7], 0.1 * cfg.stain * draws[:, 7:10])
    return recolour(pixels, cfg, draws[:, :4])


def turn(patches: Tensor, which: Tensor) -> Tensor:
    """Give patch i of (n, size, size, 3) the orientation ``which[i]`` of 8."""
    out = torch.empty_like(patches)
    for k in range(ORIENTATIONS):
        chosen = (which == k).nonzero()[:, 0].to(patches.device)
        out[chosen] = orient(patches[chosen], k)
    return out


def restain(pixels: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Change the amounts of haematoxylin, eosin and rest (Ruifrok and Johnston 2001) of (n, 3, h, w) in [-1, 1].

    Args:
        pixels: what is recoloured.
        factor: (n, 3), on the amounts.
        offset: (n, 3), added to them; 1 is a well stained structure.
    """
    stains = F.normalize(torch.tensor(_HED, device=pixels.device), dim=1)  # (3 stains, 3 channels)
    back = torch.linalg.inv(stains)
    density = -torch.log(((pixels + 1) / 2).clamp_min(1 / 255)).flatten(2)  # (n, 3, h * w)
    matrix = torch.einsum("ij,nj,jk->nki", back, factor, stains)  # columns are channels: (n, 3, 3)
    moved = torch.baddbmm((offset @ stains)[:, :, None], matrix, density)
    return (2 * torch.exp(-moved) - 1).clamp(-1, 1).view_as(pixels)


def recolour(pixels: Tensor, cfg: AugmentConfig, draws: Tensor) -> Tensor:
    """Brightness, saturation, hue, contrast, in this order, then clip; (n, 3, h, w) in [-1, 1].

    All four are linear in the colour, so they are one 3 x 3 matrix and offset per patch. Hue turns
    the I, Q plane of YIQ, where TensorFlow turns HSV: equal for small turns but for luma.

    Args:
        pixels: what is recoloured.
        cfg: how much.
        draws: (n, 4) in -1..1, of the four in this order.
    """
    brightness = 2 * cfg.brightness * draws[:, 0]  # the range -1..1 is 2 wide
    saturation = 1 + cfg.saturation * draws[:, 1]
    hue, contrast = 2 * math.pi * cfg.hue * draws[:, 2], 1 + cfg.contrast * draws[:, 3]
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
