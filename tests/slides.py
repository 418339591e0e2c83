"""Tiny slides whose pixels say where they are, and an engine that needs no network."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from models.card import Architecture, ModelCard, SegmenterCard, SegmenterConfig
from models.engines import Models
from wsi.arrays import RgbImage, Scores
from wsi.slides.blocks import PatchBlock

MPP = 0.25
ROOT = Path(__file__).resolve().parents[1]
COMMAND = str(Path(sys.executable).with_name("wsi"))  # as it was installed


def write_pyramid(
    path: Path, level0: RgbImage, levels: int = 3, tile: int = 64, mpp: float | None = MPP, **options: object
) -> Path:
    """A tiled pyramidal TIFF that OpenSlide reads as generic-tiff, losslessly."""
    with tifffile.TiffWriter(path) as tif:
        image = level0
        for level in range(levels):
            settings: dict[str, object] = {"compression": "deflate", "metadata": None, **options}
            if mpp is not None:
                per_cm = 1e4 / mpp / 2**level
                settings |= {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
            tif.write(
                image,
                tile=(tile, tile),
                photometric="rgb",
                subfiletype=0 if level == 0 else 1,
                **settings,
            )
            image = image[::2, ::2]
    return path


def coordinates(width: int = 700, height: int = 500) -> RgbImage:
    """Red holds x // 4 and green y // 4 of every pixel, so a crop tells where it came from."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x // 4, y // 4, np.full_like(x, 128)], axis=-1).astype(np.uint8)


def painted(
    width: int, height: int, box: tuple[int, int, int, int], colour: tuple[int, int, int]
) -> RgbImage:
    """White with one rectangle (x0, y0, x1, y1) of a colour."""
    image = np.full((height, width, 3), 255, np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = colour
    return image


def card(**changes: object) -> ModelCard:
    """A card for an engine that measures redness."""
    fields: dict[str, object] = {
        "name": "redness",
        "architecture": Architecture(width=1.0),
        "classes": ("normal", "tumor"),
        "positive": "tumor",
        "patch_px": 299,
        "stride_px": 128,
        "spacing_um": MPP,
        "confidence": (0.5, 0.8, 0.95, 0.99),
        "sha256": "0" * 64,
    }
    return ModelCard(**fields | changes)  # type: ignore[arg-type]


class RednessEngine:
    """Scores the centre 128 px of a patch: (red - green) / 128. Red is 0.9375, pink 0.3125."""

    description = "redness, fp32, CPU"
    width = 2

    def __init__(self, own: ModelCard | None = None, fail_after: int | None = None) -> None:
        self.models = Models((Path("redness"),), (own or card(),))
        self.fail_after = fail_after
        self.blocks = 0

    @property
    def spec(self) -> RednessEngine:
        """It stands in for what it is made of, too."""
        return self

    def make(self) -> RednessEngine:
        return self

    def expect(self, patches: int) -> None:
        pass

    def score(
        self, blocks: Iterable[PatchBlock], *, scored: Callable[[int], None] = lambda patches: None
    ) -> Iterator[Scores]:
        size, stride = self.models.card.patch_px, self.models.card.stride_px
        low = (size - stride) // 2
        for block in blocks:
            if self.fail_after is not None and self.blocks >= self.fail_after:
                raise KeyboardInterrupt
            self.blocks += 1
            scores = np.empty((len(block), 2), np.float32)
            for i in range(len(block)):
                centre = block.patches(i, i + 1)[0, low : low + stride, low : low + stride].astype(np.float32)
                scores[i, 1] = np.clip((centre[..., 0] - centre[..., 1]).mean() / 128, 0, 1)
            scores[:, 0] = 1 - scores[:, 1]
            scored(len(block))
            yield scores


class RednessMapper:
    """Maps the class 'red' where a pixel's red exceeds its green, 'dark' where it is dark, and 'glass' elsewhere."""

    description = "redness, fp32, CPU"
    at_once = 1

    def __init__(self, fail_after: int | None = None, **shape: object) -> None:
        values: dict[str, object] = {"classes": ("glass", "dark", "red"), "spacing_um": 0.5, "core_px": 64}
        values |= {"margin_px": 16, "pool": 2}
        segmenter = SegmenterConfig(**values | shape)  # type: ignore[arg-type]
        self.card = SegmenterCard(name="redness", segmenter=segmenter, sha256="0" * 64)
        self.fail_after = fail_after
        self.seen: list[RgbImage] = []

    @property
    def spec(self) -> RednessMapper:
        """It stands in for what it is made of, too."""
        return self

    def make(self) -> RednessMapper:
        return self

    def map(self, tile: RgbImage) -> np.ndarray:
        if self.fail_after is not None and len(self.seen) >= self.fail_after:
            raise KeyboardInterrupt
        self.seen.append(tile)
        cfg = self.card.segmenter
        core = tile[cfg.margin_px : len(tile) - cfg.margin_px, cfg.margin_px : len(tile) - cfg.margin_px]
        pixels = core.astype(np.int64)
        red = pixels[..., 0] - pixels[..., 1] > 60
        dark = (pixels.max(axis=2) < 100) & ~red
        maps = np.stack([~red & ~dark, dark, red]).astype(np.float32)
        side = maps.shape[1] // cfg.pool
        return maps.reshape(3, side, cfg.pool, side, cfg.pool).mean(axis=(2, 4))


def real_data(*parts: str) -> Path:
    """A file of the real test data, or a skip that says where it was looked for."""
    base = Path(os.environ.get("WSI_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    path = base.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real data not found at {path}; set WSI_TEST_DATA")
    return path
