from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely

from wsi.marks.annotations import read_annotations, tumour_regions
from wsi.marks.raster import fill_polygon
from wsi.phantoms.layout import ARTEFACTS, Layout, Planner, longest
from wsi.phantoms.lymph_node.drawn import DrawnTissue
from wsi.phantoms.lymph_node.slide import (
    Painter,
    PhantomSlide,
    plan_cohort,
    validation_split,
    write_manifest,
    write_phantom,
)
from wsi.phantoms.pyramid import TILE_PX, write_pyramid
from wsi.phantoms.textures import SCANNERS, TISSUES, Texturer, wrap_crop
from wsi.slides.readers.openslide import OpenSlideReader
from wsi.slides.readers.tiffslide import TiffSlideReader

SIZE = (4608, 4096)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Layout]:
    out = tmp_path_factory.mktemp("phantom")
    return out, write_phantom(PhantomSlide("tumor_001", 5, True, SIZE, 1), out)


@pytest.fixture(scope="module")
def painter() -> Painter:
    layout = Planner(np.random.default_rng(3), SIZE, 0.243).layout(tumour=True)
    return Painter(layout, DrawnTissue(layout, np.random.default_rng(4), SCANNERS[0]))


def test_openslide_and_tiffslide_read_it_alike(made: tuple[Path, Layout]) -> None:
    path = str(made[0] / "tumor_001.tif")
    with OpenSlideReader(path) as one, TiffSlideReader(path) as other:
        assert one.size == other.size == SIZE
        assert one.mpp == pytest.approx(SCANNERS[1].mpp, rel=1e-4)
        assert [v.downsample for v in one.levels] == pytest.approx([1, 2, 4, 8, 16])
        for level in range(len(one.levels)):
            a, b = (s.read_region((1024, 512), level, (200, 150)).astype(int) for s in (one, other))
            assert np.abs(a - b).max() <= 4


def test_the_same_seed_gives_the_same_bytes(made: tuple[Path, Layout], tmp_path: Path) -> None:
    write_phantom(PhantomSlide("tumor_001", 5, True, SIZE, 1), tmp_path)
    for name in ("tumor_001.tif", "tumor_001.xml", "tumor_001_mask.png"):
        assert (tmp_path / name).read_bytes() == (made[0] / name).read_bytes()


def test_another_seed_gives_another_slide(painter: Painter) -> None:
    other = Planner(np.random.default_rng(4), SIZE, 0.243).layout(tumour=True)
    assert other.nodes[0] != painter.layout.nodes[0]


def test_outlines_and_mask_are_the_same_truth(made: tuple[Path, Layout]) -> None:
    out, layout = made
    area = tumour_regions(read_annotations(out / "tumor_001.xml")).area
    assert area.area == pytest.approx(sum(v.outline.area for v in layout.lesions), rel=1e-3)
    mask = cv2.imread(str(out / "tumor_001_mask.png"), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(mask)) == {0, 255}
    assert (mask > 0).sum() * 32 * 32 == pytest.approx(area.area, rel=0.15)


def test_lesions_look_other_than_what_surrounds_them(painter: Painter) -> None:
    """Nuclei of lymphocytes are small and dark: tumour is brighter than they are on average."""
    lesion = max(painter.layout.lesions, key=lambda v: v.outline.area).outline
    x0, y0, x1, y1 = (int(v) // TILE_PX * TILE_PX for v in lesion.bounds)
    image = painter.render(x0, y0, x1 - x0 + TILE_PX, y1 - y0 + TILE_PX)
    assert image is not None
    inside = np.zeros(image.shape[:2], np.uint8)
    fill_polygon(inside, lesion.buffer(-40), (1, 1), 1, corner=(x0, y0))
    assert (
        abs(image[inside > 0].mean() - painter.tissue.atlas["tumour"].mean()) < 20
    )  # thickness: 15 % of the density
    assert painter.tissue.atlas["tumour"].mean() > painter.tissue.atlas["lymphocytes"].mean() + 8


def test_pieces_agree_whatever_their_size(painter: Painter) -> None:
    plain = Layout(**{n: getattr(painter.layout, n) for n in Layout.__dataclass_fields__} | {"artefacts": ()})
    painter.layout, kept = plain, painter.layout
    try:
        whole = painter.render(1024, 1024, 1024, 512)
        left, right = painter.render(1024, 1024, 512, 512), painter.render(1536, 1024, 512, 512)
    finally:
        painter.layout = kept
    assert whole is not None
    assert left is not None
    assert right is not None
    np.testing.assert_array_equal(whole, np.concatenate([left, right], axis=1))


@pytest.mark.parametrize("seed", range(60))
def test_small_slides_have_a_layout_too(seed: int) -> None:
    assert Planner(np.random.default_rng(seed), (4096, 4096), 0.243).layout(tumour=True).nodes


@pytest.mark.parametrize("seed", range(12))
def test_layouts_keep_their_promises(seed: int) -> None:
    layout = Planner(np.random.default_rng(seed), (14336, 12288), 0.243).layout(tumour=True)
    assert any(lesion.kind != "isolated" for lesion in layout.lesions)
    tissue = shapely.union_all(layout.nodes)
    for lesion in layout.lesions:
        length = longest(lesion.outline) * layout.mpp
        assert lesion.outline.is_valid
        assert tissue.buffer(20 / layout.mpp).contains(lesion.outline)
        limits = {"macro": (2000, 9000), "micro": (200, 2000), "isolated": (0, 200)}[lesion.kind]
        assert limits[0] <= length <= limits[1]
    for a, b in zip(layout.lesions, layout.lesions[1:], strict=False):
        assert a.outline.distance(b.outline) > 0
    x0, y0, x1, y1 = tissue.bounds
    assert min(x0, y0) > 0
    assert x1 < 14336
    assert y1 < 12288


def test_normal_slides_have_no_lesion() -> None:
    layout = Planner(np.random.default_rng(0), SIZE, 0.243).layout(tumour=False)
    assert layout.lesions == ()
    assert len(layout.cells) == 0


def test_every_artefact_is_painted(painter: Painter) -> None:
    planner = Planner(np.random.default_rng(8), SIZE, 0.243)
    for kind in ARTEFACTS:
        artefact = planner.artefact(kind)
        marked = Layout(
            **{n: getattr(painter.layout, n) for n in Layout.__dataclass_fields__}
            | {"artefacts": (artefact,)}
        )
        plain = Layout(
            **{n: getattr(painter.layout, n) for n in Layout.__dataclass_fields__} | {"artefacts": ()}
        )
        pictures = []
        for layout in (plain, marked):
            painter.layout, kept = layout, painter.layout
            try:
                pieces = [
                    painter.render(x, y, 512, 512)
                    for y in range(0, SIZE[1], 512)
                    for x in range(0, SIZE[0], 512)
                ]
            finally:
                painter.layout = kept
            pictures.append([np.full((512, 512, 3), 0, np.uint8) if p is None else p for p in pieces])
        assert any((a != b).any() for a, b in zip(*pictures, strict=True)), kind


@pytest.mark.parametrize("name", sorted(set(TISSUES) - {"tumour_cells"}))
def test_textures_have_no_seam(name: str) -> None:
    """The step across the border is no larger than the steps inside."""
    draw, side = TISSUES[name]
    texture = draw(Texturer(np.random.default_rng(0), 0.243), side).eosin
    for axis in (0, 1):
        steps = np.abs(np.diff(texture, axis=axis)).mean()
        seam = np.abs(np.take(texture, 0, axis) - np.take(texture, -1, axis)).mean()
        assert seam < 2.5 * steps + 0.01


def test_wrap_crop_is_the_endless_plane() -> None:
    texture = np.random.default_rng(0).integers(0, 255, (7, 7, 3), dtype=np.uint8)
    plane = np.tile(texture, (6, 6, 1))
    np.testing.assert_array_equal(wrap_crop(texture, 5, 9, 17, 11), plane[9:20, 5:22])


def test_pyramid_of_an_odd_size_holds_every_pixel(tmp_path: Path) -> None:
    def render(x0: int, y0: int, width: int, height: int) -> np.ndarray | None:
        if x0 >= 2048:
            return None
        y, x = np.mgrid[y0 : y0 + height, x0 : x0 + width]
        return np.stack([x // 16, y // 16, np.full_like(x, 90)], axis=-1).astype(np.uint8)

    write_pyramid(tmp_path / "odd.tif", (2701, 1303), 0.25, render, background=(240, 240, 240))
    with OpenSlideReader(str(tmp_path / "odd.tif")) as slide:
        assert slide.size == (2701, 1303)
        for level, downsample in enumerate(v.downsample for v in slide.levels):
            for x, y in [(160, 320), (2000, 1200), (1030, 64)]:
                pixel = slide.read_region((x, y), level, (1, 1))[0, 0].astype(int)
                assert np.abs(pixel - [x / 16, y / 16, 90]).max() <= 3 + downsample / 8
        assert np.abs(slide.read_region((2600, 600), 0, (5, 5)).astype(int) - 240).max() <= 1


def test_cohorts_alternate_scanners_and_split(tmp_path: Path) -> None:
    slides = plan_cohort(10, 7, SIZE)
    assert [s.name for s in slides][:1] + [s.name for s in slides][-1:] == ["tumor_001", "normal_005"]
    assert len({s.seed for s in slides}) == 10
    assert [s.scanner for s in slides] == [0, 1, 0, 1, 0] * 2  # a scanner does not tell the class
    assert {s.seed for s in slides}.isdisjoint(s.seed for s in plan_cohort(10, 8, SIZE))
    splits = validation_split(slides, 0.4)
    assert [splits[:5].count("validation"), splits[5:].count("validation")] == [2, 2]
    assert validation_split(slides, 0.0) == ["train"] * 10
    assert (
        validation_split(plan_cohort(4, 7, SIZE), 0.2).count("validation") == 2
    )  # one of each class at least
    write_manifest(tmp_path, slides, splits)
    assert (tmp_path / "slides.csv").read_text().splitlines()[1] == "tumor_001.tif,tumor_001.xml,tumor,train"
