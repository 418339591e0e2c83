"""Pictures of real kidney for mosaics, and the anatomy in them that can be recognised by colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from wsi.arrays import BoolRaster, RgbImage, oriented
from wsi.errors import ConfigError
from wsi.phantoms.pyramid import TILE_PX
from wsi.phantoms.textures import Plane
from wsi.slides.tissue import drop_small

PictureKind = Literal["tissue", "lumens", "brown"]

MPP = 0.5  # um per pixel of a mosaic: that of the pictures, and of the detector
# Unit optical densities of haematoxylin and of periodic acid-Schiff: the first after Ruifrok and Johnston 2001, the
# second as the strongest magenta of data/kidney_pas_tiles has it
HAEMATOXYLIN, SCHIFF = (0.650, 0.704, 0.286), (0.26, 0.86, 0.44)
GROUND = 0.30  # of Schiff's amount, kept as haematoxylin: immunostained tissue is pale, not empty
LUMEN_UM2 = (12.0, 260.0)  # of an open lumen that was found by its whiteness
# Limits for recognising the anatomy, chosen by eye on data/kidney_pas_tiles
WHITE_FROM = 195  # darkest channel of a lumen
STRONGEST = 72  # percentile of Schiff's amount from which tissue is interstitium
WIDEST_UM = 8.0  # half width of interstitium; thicker magenta is a cast or a colloid
SMALLEST_GAP_PX = 60  # smaller pieces of strong magenta are granules
RIM_SHARE = 0.6  # of a lumen's rim that is interstitium; a tubule's own lumen has cells around it


@dataclass(frozen=True, slots=True)
class PictureSource:
    """The files of a folder that are pictures of one kind.

    Attributes:
        pattern: pattern of file names, within the folder.
        kind: ``tissue`` of kidney, unlabelled; ``lumens``: kidney with a mask of its capillaries' lumens beside it;
            ``brown``: an immunostain without any capillary that counts.
        mpp: um per pixel, estimated from the size of nuclei: the pictures state none.
    """

    pattern: str
    kind: PictureKind
    mpp: float


SOURCES = (
    PictureSource("kidney_pas_tiles/*.jpg", "tissue", 0.5),
    PictureSource("ptc_masks/im_*.png", "lumens", 0.22),
    PictureSource("ihc_dab_negatives/ki67_*.jpg", "brown", 0.25),
)
MASK_SUFFIX = "_mask_PTC_lumen.png"


@dataclass(frozen=True, eq=False, slots=True)
class Picture:
    """A picture at `MPP`.

    Attributes:
        name: name of the file.
        kind: see `PictureSource`.
        pixels: RGB.
        lumens: True inside lumens of capillaries; None where nobody marked them.
    """

    name: str
    kind: PictureKind
    pixels: RgbImage
    lumens: BoolRaster | None = None


def read_pictures(folder: Path, low: float = 0.0, high: float = 1.0) -> list[Picture]:
    """The pictures of a contiguous share, 0 to 1, of each source's files by name.

    Raises:
        ConfigError: there is no picture of kidney, one cannot be read, a mask has another size than its picture, or
            pictures with masks are not squares of one size.
    """
    pictures = []
    for source in SOURCES:
        files = sorted(p for p in folder.glob(source.pattern) if "_mask" not in p.name)
        pictures += [
            _picture(path, source) for path in files[round(low * len(files)) : round(high * len(files))]
        ]
    if not any(picture.kind == "tissue" for picture in pictures):
        share = "" if (low, high) == (0, 1) else f" from {low:.0%} to {high:.0%} of its files"
        raise ConfigError(
            f"{folder} holds no picture of kidney{share}; it must hold files such as {SOURCES[0].pattern}"
        )
    shapes = {picture.pixels.shape[:2] for picture in pictures if picture.kind == "lumens"}
    side = max((max(shape) for shape in shapes), default=1)
    if len(shapes) > 1 or side > TILE_PX or any(rows != cols for rows, cols in shapes):
        raise ConfigError(
            f"pictures with masks of lumens must be squares of one size, {round(TILE_PX * MPP)} um at most; those of "
            f"{folder} have {', '.join(f'{cols} x {rows} px at {MPP} um' for rows, cols in sorted(shapes))}"
        )
    return pictures


def _picture(path: Path, source: PictureSource) -> Picture:
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ConfigError(f"{path} cannot be read as a picture; remove it or replace it")
    mask = path.with_name(path.stem + MASK_SUFFIX) if source.kind == "lumens" else None
    lumens = None if mask is None else cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
    if mask is not None and lumens is None:
        raise ConfigError(f"{mask} cannot be read as a picture; {path.name} needs it")
    if lumens is not None and lumens.shape != pixels.shape[:2]:
        raise ConfigError(f"{mask} has another size than {path.name}; make the mask of the picture as it is")
    scale = source.mpp / MPP
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    small = cv2.resize(pixels[..., ::-1], size, interpolation=cv2.INTER_AREA)
    lumens_small = None if lumens is None else cv2.resize(lumens, size, interpolation=cv2.INTER_AREA) > 127
    return Picture(path.name, source.kind, np.ascontiguousarray(small), lumens_small)


def fitted(picture: Picture, rng: np.random.Generator) -> Picture:
    """A square of `TILE_PX` out of a picture, in one of 8 orientations; a smaller picture is mirrored at its border."""
    layers = [picture.pixels] if picture.lumens is None else [picture.pixels, picture.lumens.astype(np.uint8)]
    turn = int(rng.integers(8))
    layers = [oriented(layer, turn) for layer in layers]
    missing_px = [max(0, TILE_PX - n) for n in layers[0].shape[:2]]
    layers = [
        cv2.copyMakeBorder(a, 0, missing_px[0], 0, missing_px[1], cv2.BORDER_REFLECT)
        if any(missing_px)
        else a
        for a in layers
    ]
    y, x = (int(rng.integers(n - TILE_PX + 1)) for n in layers[0].shape[:2])
    layers = [np.ascontiguousarray(a[y : y + TILE_PX, x : x + TILE_PX]) for a in layers]
    lumens = layers[1] > 0 if len(layers) > 1 else None
    return Picture(picture.name, picture.kind, np.asarray(layers[0], np.uint8), lumens)


def collage(pictures: Sequence[Picture], rng: np.random.Generator) -> Picture:
    """Small pictures of one size side by side, each turned; the collage is brought to `TILE_PX`."""
    side = pictures[0].pixels.shape[0]
    across = TILE_PX // side
    pixels = np.empty((across * side, across * side, 3), np.uint8)
    lumens = np.zeros(pixels.shape[:2], np.bool_)
    for row, col in np.ndindex(across, across):
        picture, turn = pictures[int(rng.integers(len(pictures)))], int(rng.integers(8))
        place = np.s_[row * side : (row + 1) * side, col * side : (col + 1) * side]
        pixels[place] = oriented(picture.pixels, turn)
        if picture.lumens is not None:
            lumens[place] = oriented(picture.lumens, turn)
    return fitted(Picture("collage", pictures[0].kind, pixels, lumens), rng)


class Tissue:
    """A picture as amounts of stain, and its anatomy as far as it can be recognised by colour."""

    def __init__(self, picture: Picture) -> None:
        self.pixels = picture.pixels
        density = -np.log10((picture.pixels.astype(np.float32) + 1) / 246)
        third = np.cross(HAEMATOXYLIN, SCHIFF)
        stains = np.stack([_unit(HAEMATOXYLIN), _unit(SCHIFF), _unit(third.tolist())])
        amounts = np.clip(density @ np.linalg.inv(stains).astype(np.float32), 0, None)
        self.haematoxylin: Plane = np.ascontiguousarray(amounts[..., 0])
        self.schiff: Plane = np.ascontiguousarray(amounts[..., 1])
        self.white = picture.pixels.min(axis=2) > WHITE_FROM
        self.interstitium = self._interstitium()
        self.lumens = self._lumens() if picture.lumens is None else picture.lumens

    def _interstitium(self) -> BoolRaster:
        """Basement membranes and the space between tubules: the strongest magenta that is as thin as interstitium."""
        smooth = cv2.GaussianBlur(self.schiff, (0, 0), 1.5)
        tissue = smooth[~self.white]
        if tissue.size < 1000:
            return np.zeros(self.white.shape, np.bool_)
        magenta = (smooth > np.percentile(tissue, STRONGEST)).astype(np.uint8)
        magenta = cv2.morphologyEx(magenta, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
        reach = cv2.distanceTransform(magenta, cv2.DIST_L2, 3)
        cores = (reach > WIDEST_UM / MPP).astype(np.uint8)
        thick_parts = cv2.dilate(cores, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (37, 37)))
        return drop_small((magenta > 0) & (thick_parts == 0), SMALLEST_GAP_PX)

    def _lumens(self) -> BoolRaster:
        """Small white gaps that interstitium surrounds; most of them are open capillaries."""
        count, labels, stats, _ = cv2.connectedComponentsWithStats(
            self.white.astype(np.uint8), connectivity=4
        )
        lumens = np.zeros(self.white.shape, np.bool_)
        for i in range(1, count):
            if not LUMEN_UM2[0] < stats[i, cv2.CC_STAT_AREA] * MPP**2 < LUMEN_UM2[1]:
                continue
            gap = (labels == i).astype(np.uint8)
            rim = (cv2.dilate(gap, np.ones((7, 7), np.uint8)) > 0) & (gap == 0)
            if self.interstitium[rim].mean() > RIM_SHARE:
                lumens |= gap > 0
        return lumens


def _unit(vector: Sequence[float]) -> npt.NDArray[np.float64]:
    density = np.asarray(vector, np.float64)
    return np.asarray(density / np.linalg.norm(density))
