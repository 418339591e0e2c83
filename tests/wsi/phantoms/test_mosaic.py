"""Mosaics of patches: the pieces agree, the truth is the outline, the parts share nothing."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from shapely import Polygon

from wsi.datasets.patch_folder import read_patches
from wsi.errors import ConfigError
from wsi.marks.annotations import read_annotations, tumour_regions
from wsi.phantoms.layout import Planner, longest
from wsi.phantoms.lymph_node.mosaic import (
    Material,
    MosaicTissue,
    _apart,
    chroma,
    load_material,
    match_chroma,
    read_outlines,
)
from wsi.phantoms.lymph_node.slide import Painter, PhantomSlide, write_phantom

SIZE = (4608, 4096)
LEAF = Polygon([(-0.5, 0), (-0.1, 0.22), (0.5, 0.03), (0.1, -0.2)])


@pytest.fixture(scope="module")
def material() -> Material:
    """Normal patches dark, tumour ones pale; each with its own grey level in the red channel."""
    rng = np.random.default_rng(0)

    def patches(n: int, level: int) -> np.ndarray:
        grain = rng.integers(-25, 25, (n, 64, 64, 1))
        base = np.array([level, level - 40, level]) + rng.integers(-8, 8, (n, 1, 1, 1))
        return (
            np.clip(cv2.blur((base + grain).astype(np.float32).reshape(n * 64, 64, 3), (3, 3)), 0, 255)
            .reshape(n, 64, 64, 3)
            .astype(np.uint8)
        )

    return Material(patches(60, 110), patches(40, 190), (LEAF,))


@pytest.fixture(scope="module")
def painter(material: Material) -> Painter:
    layout = Planner(np.random.default_rng(3), SIZE, 0.243, material.outlines).layout(tumour=True)
    return Painter(layout, MosaicTissue(layout, np.random.default_rng(4), material, 0))


def test_pieces_agree_whatever_their_size(painter: Painter) -> None:
    x, y = (int(v) // 512 * 512 for v in painter.layout.lesions[0].outline.centroid.coords[0])
    whole = painter.render(x - 512, y, 1024, 512)
    halves = [painter.render(x - 512, y, 512, 512), painter.render(x, y, 512, 512)]
    assert whole is not None
    assert all(half is not None for half in halves)
    np.testing.assert_array_equal(whole, np.concatenate(halves, axis=1))  # type: ignore[arg-type]


def test_lesions_show_tumour_patches_and_the_rest_normal_ones(painter: Painter) -> None:
    lesion = max(painter.layout.lesions, key=lambda v: v.outline.area).outline
    x, y = (int(v) for v in lesion.representative_point().coords[0])
    inside = painter.render(x - 16, y - 16, 32, 32)
    node = max(painter.layout.nodes, key=lambda v: v.area).buffer(-200)
    free = node.difference(shapely.union_all([v.outline for v in painter.layout.lesions]).buffer(200))
    x, y = (int(v) for v in free.representative_point().coords[0])
    outside = painter.render(x - 16, y - 16, 32, 32)
    assert inside is not None
    assert outside is not None
    assert inside.mean() > outside.mean() + 40


@pytest.mark.parametrize("seed", range(6))
def test_lesions_have_the_outlines_and_their_sizes(seed: int) -> None:
    layout = Planner(np.random.default_rng(seed), (14336, 12288), 0.243, (LEAF,)).layout(tumour=True)
    assert len(layout.cells) == 0
    for lesion in layout.lesions:
        length = longest(lesion.outline) * layout.mpp
        assert {"macro": 2000, "micro": 200, "isolated": 0}[lesion.kind] <= length
        box = shapely.oriented_envelope(lesion.outline)
        whole = len(lesion.outline.exterior.coords) == 5  # not cut by the node's border
        if whole and lesion.kind != "isolated":
            assert lesion.outline.area / box.area == pytest.approx(
                LEAF.area / shapely.oriented_envelope(LEAF).area, rel=0.05
            )


def test_no_patch_lies_twice_within_5_x_5_places() -> None:
    table = _apart(30, np.random.default_rng(0))
    for dr in range(-2, 3):
        for dc in range(-2, 3):
            if (dr, dc) != (0, 0):
                assert (table != np.roll(table, (dr, dc), (0, 1))).all()


def test_stains_are_matched_and_densities_kept(material: Material) -> None:
    target = np.array([0.36, 0.40, 0.24])
    matched = match_chroma(material.normal, target)
    assert np.abs(chroma(matched) - target).max() < 0.01
    before, after = (
        -np.log10((p.astype(float) + 1) / 256).sum(axis=3).mean() for p in (material.normal, matched)
    )
    assert after == pytest.approx(before, rel=0.03)


def test_the_same_seed_gives_the_same_bytes_and_its_truth(material: Material, tmp_path: Path) -> None:
    slide = PhantomSlide("tumor_001", 9, True, SIZE, 1)
    layout = write_phantom(slide, tmp_path / "a", material=material)
    write_phantom(slide, tmp_path / "b", material=material)
    for name in ("tumor_001.tif", "tumor_001.xml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    area = tumour_regions(read_annotations(tmp_path / "a" / "tumor_001.xml")).area
    assert area.area == pytest.approx(sum(v.outline.area for v in layout.lesions), rel=1e-3)


def test_parts_share_neither_patch_nor_outline(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k, name in enumerate(("normal", "tumor")):
        (tmp_path / name).mkdir()
        for i in range(10):
            cv2.imwrite(str(tmp_path / name / f"{i}.png"), rng.integers(0, 255, (16, 16, 3)) // 2 + 60 * k)
    outlines = [LEAF.buffer(i / 100) for i in range(10)]
    one, other = (load_material(read_patches(tmp_path), outlines, *part) for part in ((0, 0.6), (0.6, 1)))
    assert (len(one.normal), len(other.tumour), len(one.outlines)) == (6, 4, 6)
    assert {p.tobytes() for p in one.normal}.isdisjoint(p.tobytes() for p in other.normal)
    assert set(one.outlines).isdisjoint(other.outlines)
    with pytest.raises(ConfigError, match="take a larger --part"):
        load_material(read_patches(tmp_path), outlines, 0.0, 0.01)


def test_outlines_are_the_largest_of_each_file(tmp_path: Path) -> None:
    rings = [[[0, 0], [1000, 0], [1000, 500], [0, 500]], [[5000, 5000], [5100, 5000], [5100, 5100]]]
    value = {"positive": [{"name": "t", "vertices": r} for r in rings], "negative": []}
    (tmp_path / "a.json").write_text(json.dumps(value))
    (found,) = read_outlines(tmp_path)
    assert longest(found) == pytest.approx(1)
    assert found.area == pytest.approx(0.5)
    assert found.centroid.coords[0] == pytest.approx((0, 0))
    with pytest.raises(ConfigError, match="holds no outline"):
        read_outlines(tmp_path / "nothing")
