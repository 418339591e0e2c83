"""Stain normalisation of H&E slides: fitted once per slide on its tissue, applied to every pixel alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from wsi.arrays import RgbImage
from wsi.errors import SlideError
from wsi.slides.overview import read_overview
from wsi.slides.slide import Slide
from wsi.slides.tissue import Mask

StainMethod = Literal["none", "macenko", "reinhard"]

# The reference of Macenko's published code: optical density of haematoxylin and eosin, and their strengths
HE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
HE_STRENGTH = np.array([1.9705, 1.0308])
LIGHT = 240.0  # of empty glass (Macenko et al. 2009)
FAINTEST = 0.15  # optical density below which a pixel is glass (Macenko et al. 2009)
# Mean and deviation in L*a*b* (OpenCV's scale, 0..255) that tissue is matched to: the method is Reinhard et al.'s
# (2001), the values are our own choice
LAB_MEAN, LAB_STD = np.array([148.0, 170.0, 105.0]), np.array([41.0, 12.0, 11.0])
# Brown and red chromogens absorb more blue than green, haematoxylin and eosin do not. Real
# patches and immunostains are in tests/wsi/slides/test_stain.py. Sparse red chromogens may pass at 4 um.
MOST_CHROMOGEN = 0.01
# Pink pixels of a slide that is no DAB stain: 0.94 of data/kidney_stains/he.png, 0.16 of its red CD34, none of its DAB
MOST_EOSIN = 0.02
FIT_MPP = 4.0
FEWEST_PIXELS = 200


class StainError(SlideError):
    """A slide whose stain is not haematoxylin and eosin, or that has too little tissue to tell."""


@dataclass(frozen=True, eq=False, slots=True)
class StainTransform:
    """Transform of a slide's colours into those of the reference.

    Attributes:
        method: the method that `matrix` and `offset` belong to.
        matrix: (3, 3) on optical density (Macenko), or the diagonal on L*a*b* (Reinhard).
        offset: (3,) added after the matrix.
    """

    method: StainMethod
    matrix: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]

    def apply(self, pixels: RgbImage) -> RgbImage:
        """Recolour RGB pixels."""
        affine = np.hstack([self.matrix, self.offset[:, None]]).astype(np.float32)
        if self.method == "reinhard":
            lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB).astype(np.float32)
            recoloured = np.clip(np.round(cv2.transform(lab, affine)), 0, 255).astype(np.uint8)
            return np.asarray(cv2.cvtColor(recoloured, cv2.COLOR_LAB2RGB), np.uint8)
        density = cv2.transform(_DENSITY[pixels], affine)
        return np.asarray(np.clip(np.round(LIGHT * np.exp(-density)), 0, 255), np.uint8)


_DENSITY = -np.log(np.maximum(np.arange(256), 1) / LIGHT).astype(np.float32)


def fit_slide(slide: Slide, mask: Mask, method: StainMethod) -> StainTransform | None:
    """Fit on the tissue of an overview at 4 um per pixel; None for the method ``none``.

    Raises:
        StainError: the slide is not stained with haematoxylin and eosin, or shows too little tissue.
    """
    if method == "none":
        return None
    return fit_stain(tissue_pixels(slide, mask), method, slide.path)


def tissue_pixels(slide: Slide, mask: Mask) -> npt.NDArray[np.uint8]:
    """(n, 3) RGB of the tissue at 4 um per pixel, without pixels that cannot be decoded."""
    overview = read_overview(slide, FIT_MPP)
    rows, cols = overview.pixels.shape[:2]
    tissue = cv2.resize(mask.pixels.astype(np.uint8), (cols, rows), interpolation=cv2.INTER_NEAREST) > 0
    return np.asarray(overview.pixels[tissue & ~overview.broken])


def fit_stain(tissue: npt.NDArray[np.uint8], method: StainMethod, source: str) -> StainTransform:
    """Fit on (n, 3) RGB pixels of tissue; the same pixels give the same transform.

    Raises:
        StainError: the pixels are too few, or not of haematoxylin and eosin.
    """
    stains, strength = stain_vectors(tissue, source)
    if method == "macenko":
        # density = concentrations @ stains; new density = (concentrations * ratio) @ HE
        to_concentration = np.linalg.pinv(stains)  # (3, 2)
        matrix = to_concentration @ np.diag(HE_STRENGTH / strength) @ _unit(HE)
        return StainTransform(method, matrix.T, np.zeros(3))
    lab = cv2.cvtColor(tissue[None], cv2.COLOR_RGB2LAB)[0].astype(np.float64)
    scale = LAB_STD / np.maximum(lab.std(axis=0), 1.0)
    return StainTransform(method, np.diag(scale), LAB_MEAN - scale * lab.mean(axis=0))


def eosin_share(tissue: npt.NDArray[np.uint8]) -> float:
    """Share of stained pixels that are pink: eosin absorbs green far more than red or blue, unlike other stains here.

    Args:
        tissue: (n, 3) RGB.

    Returns:
        0..1; NaN where nothing is stained.
    """
    density = -np.log10((tissue.astype(np.float32) + 1) / 246)
    density = density[density.sum(axis=1) > 0.2]
    if len(density) == 0:
        return float("nan")
    red, green, blue = density.T
    return float(((green > 1.2 * blue) & (green > 1.8 * red) & (green > 0.08)).mean())


def stain_vectors(
    tissue: npt.NDArray[np.uint8], source: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Unit densities of haematoxylin and eosin (2, 3), and the 99th percentile of their amounts (2,).

    Macenko et al. 2009: the extreme directions, at the 1st and 99th percentile of the angle, in the plane of the two
    first principal directions of optical density.

    Raises:
        StainError: see `fit_stain`.
    """
    density = _DENSITY[tissue].astype(np.float64)
    density = density[(density > FAINTEST).all(axis=1)]
    if len(density) < FEWEST_PIXELS:
        raise StainError(f"{source} shows too little stained tissue to normalise its stain; turn that off")
    chromogen = float((density[:, 2] > density[:, 1]).mean())
    if chromogen > MOST_CHROMOGEN:
        raise StainError(
            f"{source} is not stained with haematoxylin and eosin alone ({chromogen:.1%} of its stained pixels are "
            f"brown or red as chromogens are): an immunostain must not be normalised; turn that off"
        )
    _, vectors = np.linalg.eigh(np.cov(density.T))
    plane = vectors[:, [2, 1]]
    plane *= np.where(plane.sum(axis=0) < 0, -1, 1)
    angles = np.arctan2(*(density @ plane).T[::-1])
    stains = np.array([plane @ [np.cos(a), np.sin(a)] for a in np.percentile(angles, [1, 99])])
    stains *= np.sign(stains.sum(axis=1, keepdims=True))
    if stains[0, 0] < stains[1, 0]:  # haematoxylin absorbs more red
        stains = stains[::-1]
    amounts = np.linalg.lstsq(stains.T, density.T, rcond=None)[0]
    return stains, np.percentile(amounts, 99, axis=1)


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
