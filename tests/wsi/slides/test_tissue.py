from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from tests.slides import real_data
from wsi.placement import Placement
from wsi.slides.overview import Overview, read_overview
from wsi.slides.readers.array import ArraySlide
from wsi.slides.source import SlideSource
from wsi.slides.tissue import METHODS, TissueConfig, find_tissue, tissue_of

MPP = 8.0
PINK = (200, 120, 180)


def glass(height: int = 400, width: int = 600) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 1.5, (height, width, 3))
    return np.clip(243 + noise, 0, 255).astype(np.uint8)


def overview(image: np.ndarray) -> Overview:
    return Overview(image, np.zeros(image.shape[:2], np.bool_), Placement(32, 32), MPP)


def two_ellipses() -> tuple[np.ndarray, float]:
    image = glass()
    cv2.ellipse(image, (150, 200), (100, 60), 20, 0, 360, PINK, -1)
    cv2.ellipse(image, (420, 200), (90, 120), 0, 0, 360, PINK, -1)
    return image, np.pi * (100 * 60 + 90 * 120)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_area_is_that_of_two_known_ellipses(method: str) -> None:
    image, area = two_ellipses()
    mask = tissue_of(overview(image), TissueConfig(method=method))  # type: ignore[arg-type]
    assert mask.pixels.sum() == pytest.approx(area, rel=0.05)
    assert mask.area_um2(MPP / 32) == pytest.approx(area * MPP**2, rel=0.05)


@pytest.mark.parametrize("ink", [(28, 62, 150), (22, 110, 62), (30, 30, 34), (220, 20, 30), (0, 0, 0)])
def test_pen_and_black_are_left_out(ink: tuple[int, int, int]) -> None:
    image, area = two_ellipses()
    cv2.line(image, (20, 350), (580, 370), ink, 12)
    mask = tissue_of(overview(image), TissueConfig())
    assert not mask.pixels[340:].any()
    assert mask.pixels.sum() == pytest.approx(area, rel=0.05)


def test_all_glass_has_no_tissue() -> None:
    assert not tissue_of(overview(glass()), TissueConfig()).pixels.any()


def test_specks_go_and_small_holes_close_by_area() -> None:
    image = glass()
    cv2.circle(image, (300, 200), 80, PINK, -1)
    cv2.circle(image, (300, 200), 5, (243, 243, 243), -1)  # a hole of 5,000 um2
    cv2.circle(image, (50, 50), 6, PINK, -1)  # a speck of 7,200 um2
    kept = tissue_of(overview(image), TissueConfig(min_speck_um2=20_000, max_hole_um2=20_000)).pixels
    assert kept[200, 300]
    assert not kept[50, 50]
    exact = tissue_of(overview(image), TissueConfig(min_speck_um2=0, max_hole_um2=0)).pixels
    assert not exact[200, 300]
    assert exact[50, 50]


def test_glass_of_a_tiny_slide_is_no_hole_and_ink_is_not_filled_back() -> None:
    assert not tissue_of(overview(glass(9, 9)), TissueConfig()).pixels.any()
    image = glass()
    cv2.circle(image, (300, 200), 80, PINK, -1)
    cv2.circle(image, (300, 200), 6, (0, 0, 0), -1)
    assert not tissue_of(overview(image), TissueConfig()).pixels[200, 300]


def test_undecodable_places_count_as_tissue_so_that_they_are_reported() -> None:
    broken = np.zeros((400, 600), np.bool_)
    broken[10:20, 10:20] = True
    mask = tissue_of(Overview(glass(), broken, Placement(32, 32), MPP), TissueConfig())
    assert (mask.pixels == broken).all()


def test_overview_averages_exactly_and_knows_its_place() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (300, 500, 3), dtype=np.uint8)
    seen = read_overview(ArraySlide([image], mpp=0.5), mpp=5.0)
    assert seen.pixels.shape == (30, 50, 3)
    assert seen.placement == Placement(10, 10)
    means = image.reshape(30, 10, 50, 10, 3).mean(axis=(1, 3))
    assert np.abs(seen.pixels - means).max() <= 0.51


def test_deterministic() -> None:
    image, _ = two_ellipses()
    first, second = (tissue_of(overview(image), TissueConfig()).pixels for _ in range(2))
    assert (first == second).all()


def test_real_lymph_node_with_bubbles_and_glass_edge() -> None:
    source = SlideSource(str(real_data("slides", "camelyon_overview_j2k.dcm")), mpp=28.97)
    with source.open() as slide:
        mask = find_tissue(slide, TissueConfig())
    share = mask.pixels.mean()
    assert 0.1 < share < 0.4
    assert not mask.pixels[:, :20].any()  # the glass's left edge


class TestDensity:
    @pytest.mark.parametrize("name", ["dab_weak", "cd68_dab", "dab_tubular_a", "cd34_red_capillaries"])
    def test_pale_immunostains_are_tissue(self, name: str) -> None:
        """Whole pictures of kidney tissue (0.25 um/px or so), laid on glass: the default finds next to nothing of some."""
        picture = cv2.imread(str(real_data("kidney_stains", f"{name}.png")))[..., ::-1]
        small = cv2.resize(picture, None, fx=1 / 8, fy=1 / 8, interpolation=cv2.INTER_AREA)
        image = glass()
        height, width = small.shape[:2]
        image[100 : 100 + height, 200 : 200 + width] = small
        found = tissue_of(overview(image), TissueConfig(method="density")).pixels
        assert found[100 : 100 + height, 200 : 200 + width].mean() > 0.95  # one has a torn corner
        found[95 : 105 + height, 195 : 205 + width] = False
        assert not found.any()

    def test_a_kidney_phantom(self) -> None:
        """Area within 5 % of the drawn outlines; pen is left out."""
        from wsi.phantoms.kidney.layout import KidneyPlanner
        from wsi.phantoms.kidney.paint import KIDNEY_SCANNERS, KidneyPainter

        layout = KidneyPlanner(np.random.default_rng(2), (6144, 5120), 0.25).kidney(20)
        layout = dataclasses.replace(layout, artefacts=())
        image = KidneyPainter(layout, np.random.default_rng(0), KIDNEY_SCANNERS[0]).render(0, 0, 6144, 5120)
        assert image is not None
        small = cv2.resize(image, None, fx=1 / 32, fy=1 / 32, interpolation=cv2.INTER_AREA)
        found = tissue_of(overview(small), TissueConfig(method="density")).pixels
        assert found.sum() * 32**2 == pytest.approx(sum(p.area for p in layout.pieces), rel=0.08)

    def test_glass_has_none(self) -> None:
        assert not tissue_of(overview(glass()), TissueConfig(method="density")).pixels.any()
