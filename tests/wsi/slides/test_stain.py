"""Stain normalisation: what it keeps, what it evens out, what it refuses."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.slides import real_data
from wsi.arrays import RgbImage
from wsi.phantoms.textures import SCANNERS, Staining, Texturer, lymphocytes, sinus
from wsi.slides.stain import HE, LAB_MEAN, StainError, StainTransform, fit_stain, stain_vectors


def tissue(scanner: int, strength: float = 1.0) -> RgbImage:
    """Drawn lymphocytes and sinus in one scanner's stain."""
    rng = np.random.default_rng(0)
    staining = Staining(SCANNERS[scanner], strength, 1.0, 0.8)
    texturer = Texturer(rng, 0.243)
    return np.concatenate([staining.colour(draw(texturer, 256), rng) for draw in (lymphocytes, sinus)])


def fitted(image: RgbImage, method: str = "macenko") -> StainTransform:
    return fit_stain(image.reshape(-1, 3), method, "a test")  # type: ignore[arg-type]


def test_the_stains_of_a_mixture_are_found() -> None:
    """Pixels mixed from known vectors by Beer and Lambert's law."""
    rng = np.random.default_rng(0)
    stains = HE / np.linalg.norm(HE, axis=1, keepdims=True)
    amounts = np.where(rng.random((20_000, 1)) < 0.5, [1.2, 0.1], [0.1, 1.0]) * rng.uniform(
        0.7, 1.0, (20_000, 2)
    )
    pixels = np.round(240 * np.exp(-amounts @ stains)).astype(np.uint8)
    found, strength = stain_vectors(pixels, "a mixture")
    assert np.degrees(np.arccos((found * stains).sum(axis=1))).max() < 6
    assert strength == pytest.approx([1.2, 1.0], rel=0.12)


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_two_scanners_look_alike_afterwards(method: str) -> None:
    images = [tissue(0, 0.9), tissue(1, 1.1)]
    even = [fitted(image, method).apply(image) for image in images]
    before, after = (
        np.abs(a.reshape(-1, 3).mean(0) - b.reshape(-1, 3).mean(0)).max() for a, b in (images, even)
    )
    assert after < 0.5 * before


def test_reinhard_gives_the_reference_s_mean() -> None:
    image = tissue(1)
    lab = cv2.cvtColor(fitted(image, "reinhard").apply(image), cv2.COLOR_RGB2LAB).reshape(-1, 3)
    assert lab.mean(axis=0) == pytest.approx(LAB_MEAN, abs=4)


def test_the_same_pixels_give_the_same_transform_and_glass_stays_bright() -> None:
    image = tissue(0)
    one, other = fitted(image), fitted(image.copy())
    np.testing.assert_array_equal(one.matrix, other.matrix)
    glass = np.full((4, 4, 3), 245, np.uint8)
    assert one.apply(glass).min() >= 238


def test_too_little_tissue_is_said() -> None:
    with pytest.raises(StainError, match="too little stained tissue"):
        fitted(np.full((64, 64, 3), 243, np.uint8))


@pytest.mark.parametrize(
    "name",
    ["cd34_red_capillaries.png", "cd68_dab.png", "dab_tubular_a.png", "dab_tubular_b.png", "dab_weak.png"],
)
def test_real_immunostains_are_refused(name: str) -> None:
    image = cv2.imread(str(real_data("kidney_stains", name)))[..., ::-1]
    with pytest.raises(StainError, match="an immunostain must not be normalised"):
        fitted(image)


def test_real_h_and_e_of_both_laboratories_is_taken() -> None:
    fitted(cv2.imread(str(real_data("kidney_stains", "he.png")))[..., ::-1])
    folder = real_data("lymph_node_patches")
    files = sorted(Path(folder).glob("*/*.jpg"))
    for start in range(0, len(files), 200):
        fitted(np.concatenate([cv2.imread(str(f))[..., ::-1] for f in files[start : start + 12]]))
