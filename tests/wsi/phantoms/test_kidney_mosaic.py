"""Kidney mosaics: what is told by colour, that brown lies where it is marked, and that parts share no picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely

from wsi.errors import ConfigError
from wsi.phantoms.kidney import mosaic
from wsi.phantoms.kidney.mosaic import KidneyMosaic, TilePainter, write_kidney_mosaic
from wsi.phantoms.kidney.paint import KIDNEY_SCANNERS
from wsi.phantoms.kidney.pictures import MPP, Picture, Tissue, collage, fitted, read_pictures
from wsi.phantoms.kidney.slide import KidneyPhantom
from wsi.slides.source import SlideSource
from wsi.vocabulary import NEGATIVE, NOT_COUNTED, POSITIVE

Run = Callable[..., tuple[int, str, str]]
MAGENTA, PINK, NUCLEUS, WHITE = (150, 40, 120), (225, 180, 210), (70, 60, 140), (245, 245, 245)
GAP = (211, 171)  # x, y of the middle of a small white gap between tubules
TUBULES = [(x, y) for x in range(31, 512, 60) for y in range(31, 512, 60)]  # middles


def drawn(shift: int = 0) -> np.ndarray:
    """Tubules with a lumen and a nucleus, magenta between them, and a gap of 21 x 9 px where one is shorter."""
    image = np.full((512, 512, 3), MAGENTA, np.uint8)
    for x, y in TUBULES:
        low = y + 7 if (x, y) == (211, 151) else y + 26
        cv2.rectangle(image, (x - 25 + shift, y - 26), (x + 24 + shift, low), PINK, -1)
        cv2.circle(image, (x - 8 + shift, y - 8), 9, WHITE, -1)
        cv2.circle(image, (x + 14 + shift, y - 12), 5, NUCLEUS, -1)
    cv2.rectangle(image, (GAP[0] - 10 + shift, GAP[1] - 4), (GAP[0] + 10 + shift, GAP[1] + 4), WHITE, -1)
    return image


@pytest.fixture(scope="module")
def tissue() -> Tissue:
    return Tissue(Picture("drawn", "tissue", drawn()))


def brown(pixels: np.ndarray) -> np.ndarray:
    density = -np.log10((pixels.astype(np.float64) + 1) / 246)
    return np.asarray(density[..., 2] - density[..., 0] > 0.15)


def covered(outlines: list[shapely.Polygon], shape: tuple[int, ...], by: float) -> np.ndarray:
    rows, cols = np.mgrid[: shape[0], : shape[1]] + 0.5
    whole = shapely.union_all([o.buffer(by) for o in outlines])
    return np.asarray(shapely.contains_xy(whole, cols, rows))


class TestTissue:
    def test_interstitium_is_what_lies_between_tubules(self, tissue: Tissue) -> None:
        magenta = (drawn() == MAGENTA).all(axis=2)
        assert (tissue.interstitium & magenta).sum() > 0.8 * magenta.sum()
        assert (tissue.interstitium & magenta).sum() > 0.9 * tissue.interstitium.sum()

    def test_a_small_gap_between_tubules_is_a_lumen_and_a_tubules_own_is_not(self, tissue: Tissue) -> None:
        count, _, stats, middles = cv2.connectedComponentsWithStats(tissue.lumens.astype(np.uint8))
        assert count == 2
        np.testing.assert_allclose(middles[1], GAP, atol=1)
        assert stats[1, cv2.CC_STAT_AREA] == 9 * 21

    def test_marked_lumens_are_taken_as_they_are(self) -> None:
        mask = np.zeros((512, 512), np.bool_)
        mask[30:40, 400:430] = True
        assert (Tissue(Picture("p", "lumens", drawn(), mask)).lumens == mask).all()

    def test_haematoxylin_and_schiff_are_told_apart(self, tissue: Tissue) -> None:
        assert tissue.haematoxylin[79, 105] == pytest.approx(
            0.82, abs=0.01
        )  # a nucleus; by numpy's solve: 0.820
        assert tissue.schiff[79, 105] == pytest.approx(0.03, abs=0.01)
        assert tissue.haematoxylin[100, 121] == pytest.approx(0, abs=0.01)  # interstitium
        assert tissue.schiff[100, 121] == pytest.approx(0.86, abs=0.01)


class TestPainter:
    def painter(self, positive: float, seed: int = 0) -> TilePainter:
        return TilePainter(np.random.default_rng(seed), KIDNEY_SCANNERS[0], positive)

    @pytest.mark.parametrize("seed", range(4))
    def test_brown_lies_where_it_is_marked(
        self, tissue: Tissue, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(TilePainter, "_haze", lambda *_: None)  # is marked nowhere
        painter = self.painter(1.0, seed)
        painter.background = 0.0
        pixels, marks = painter.paint(tissue)
        stained = [m.outline for m in marks if m.group in (POSITIVE, NOT_COUNTED)]
        assert sum(m.group == POSITIVE for m in marks) > 5
        is_brown = brown(pixels)
        assert (
            is_brown[covered(stained, is_brown.shape, 5)].sum() > 0.99 * is_brown.sum()
        )  # a smudge reaches so far
        for mark in marks:
            if mark.group == POSITIVE:
                assert is_brown[covered([mark.outline], is_brown.shape, 0)].mean() > 0.05

    def test_nothing_is_brown_where_nothing_is_positive(
        self, tissue: Tissue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("_haze", "_brown_tubules", "_brown_nuclei"):
            monkeypatch.setattr(TilePainter, name, lambda *_: [])
        monkeypatch.setattr(mosaic, "PLASMA", 0.0)
        painter = self.painter(0.0)
        painter.background = 0.0
        pixels, marks = painter.paint(tissue)
        assert {m.group for m in marks} == {NEGATIVE}
        assert not brown(pixels).any()

    @pytest.mark.parametrize("seed", range(3))
    def test_plasma_is_brown_within_a_pale_wall_and_makes_no_positive(
        self, tissue: Tissue, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("_haze", "_brown_tubules", "_brown_nuclei"):
            monkeypatch.setattr(TilePainter, name, lambda *_: [])
        monkeypatch.setattr(mosaic, "PLASMA", 1.0)
        painter = self.painter(0.0, seed)
        painter.background = 0.0
        pixels, marks = painter.paint(tissue)
        assert {m.group for m in marks} == {NEGATIVE}
        is_brown = brown(pixels)
        outlines = [m.outline for m in marks]
        assert is_brown[covered(outlines, is_brown.shape, 2)].sum() > 0.99 * is_brown.sum() > 0
        density = -np.log10((pixels.astype(np.float64) + 1) / 246)
        brownness = density[..., 2] - density[..., 0]
        gap = min(outlines, key=lambda o: o.distance(shapely.Point(GAP)))  # the open one
        inside = covered([shapely.Point(GAP).buffer(3)], is_brown.shape, 0)
        rim = covered([gap], is_brown.shape, 0) & ~covered([gap.buffer(-1.5)], is_brown.shape, 0)
        assert brownness[inside].mean() > brownness[rim].mean() + 0.05

    def test_a_ring_leaves_its_lumen_open(self, tissue: Tissue, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("_haze", "_brown_tubules", "_brown_nuclei", "_closed_capillaries"):
            monkeypatch.setattr(TilePainter, name, lambda *_: [])
        painter = self.painter(1.0)
        pixels, (ring,) = painter.paint(tissue)
        assert ring.kind == "open"
        np.testing.assert_allclose(ring.outline.centroid.coords[0], np.array(GAP) + 0.5, atol=1)
        d = -np.log10((pixels.astype(np.float64) + 1) / 246)[..., 2]
        assert d[GAP[1] - 6, GAP[0]] > 2 * d[GAP[1], GAP[0]]  # the wall above it, and its middle

    def test_brown_tubules_are_traps(self, tissue: Tissue) -> None:
        painter = self.painter(0.0)
        d = np.zeros(tissue.white.shape, np.float32)
        marks = painter._brown_tubules(tissue, d)
        assert marks
        assert {m.group for m in marks} == {NOT_COUNTED}
        assert (d > 0).any()
        assert not d[tissue.white].any()
        assert covered([m.outline for m in marks], d.shape, 1)[d > 0].all()

    def test_brown_nuclei_are_nuclei(self, tissue: Tissue) -> None:
        d = np.zeros(tissue.white.shape, np.float32)
        marks = self.painter(0.0)._brown_nuclei(tissue, d)
        nuclei = [(x + 14, y - 12) for x, y in TUBULES]
        assert marks
        for mark in marks:
            x, y = mark.outline.centroid.coords[0]
            assert min(np.hypot(x - a, y - b) for a, b in nuclei) < 3


class TestPictures:
    def test_a_square_keeps_lumens_on_their_pixels(self) -> None:
        pixels = drawn()[:300, :400]
        mask = (pixels == WHITE).all(axis=2)
        for seed in range(8):
            got = fitted(Picture("p", "lumens", pixels, mask), np.random.default_rng(seed))
            assert got.pixels.shape == (512, 512, 3)
            assert got.lumens is not None
            assert ((got.pixels == WHITE).all(axis=2) == got.lumens).all()

    def test_a_collage_keeps_lumens_on_their_pixels(self) -> None:
        parts = [
            Picture(f"{i}", "lumens", p, (p == WHITE).all(axis=2))
            for i, p in enumerate((drawn()[40:153, 60:173], drawn()[200:313, 220:333]))
        ]
        got = collage(parts, np.random.default_rng(1))
        assert got.lumens is not None
        assert 0.02 < got.lumens.mean() < 0.9
        assert ((got.pixels == WHITE).all(axis=2) == got.lumens).all()

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("kidney_pas_tiles", "ptc_masks", "ihc_dab_negatives"):
            (tmp_path / name).mkdir()
        for i in range(4):
            cv2.imwrite(str(tmp_path / f"kidney_pas_tiles/t{i}.jpg"), drawn(i)[..., ::-1])
        for i in range(2):
            cv2.imwrite(str(tmp_path / f"ptc_masks/im_{i}.png"), drawn()[:256, :256, ::-1])
            mask = np.zeros((256, 256), np.uint8)
            mask[20:60, 100:200] = 255
            cv2.imwrite(str(tmp_path / f"ptc_masks/im_{i}_mask_PTC_lumen.png"), mask)
            cv2.imwrite(
                str(tmp_path / f"ihc_dab_negatives/ki67_{i}.jpg"),
                np.full((800, 900, 3), (60, 90, 140), np.uint8),
            )
        return tmp_path

    def test_parts_share_no_picture_and_make_up_all(self, folder: Path) -> None:
        low, high, every = (
            [p.name for p in read_pictures(folder, *share)] for share in ((0, 0.5), (0.5, 1), (0, 1))
        )
        assert low == ["t0.jpg", "t1.jpg", "im_0.png", "ki67_0.jpg"]
        assert sorted(low + high) == sorted(every)

    def test_all_are_brought_to_one_spacing(self, folder: Path) -> None:
        sizes = {p.kind: p.pixels.shape for p in read_pictures(folder)}
        assert sizes == {"tissue": (512, 512, 3), "lumens": (113, 113, 3), "brown": (400, 450, 3)}
        (lumens,) = {int(p.lumens.sum()) for p in read_pictures(folder) if p.lumens is not None}
        assert lumens == pytest.approx(40 * 100 * 0.44**2, rel=0.05)

    def test_bad_folders_are_named(self, folder: Path, tmp_path: Path) -> None:
        (folder / "ptc_masks" / "im_1_mask_PTC_lumen.png").unlink()
        with pytest.raises(
            ConfigError, match="im_1_mask_PTC_lumen.png cannot be read as a picture; im_1.png needs it"
        ):
            read_pictures(folder)
        (folder / "kidney_pas_tiles" / "t2.jpg").write_bytes(b"none")
        with pytest.raises(ConfigError, match="t2.jpg cannot be read as a picture; remove it or replace it"):
            read_pictures(folder)
        with pytest.raises(ConfigError, match="holds no picture of kidney; it must hold files such as"):
            read_pictures(tmp_path / "ptc_masks")

    def test_a_share_without_a_picture_is_told_from_a_folder_without_one(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="holds no picture of kidney from 90% to 95% of its files"):
            read_pictures(folder, 0.9, 0.95)

    def test_a_mask_of_another_size_is_not_stretched(self, folder: Path) -> None:
        cv2.imwrite(str(folder / "ptc_masks" / "im_1_mask_PTC_lumen.png"), np.full((128, 256), 255, np.uint8))
        with pytest.raises(ConfigError, match="im_1_mask_PTC_lumen.png has another size than im_1.png"):
            read_pictures(folder)

    @pytest.mark.parametrize("shape", [(200, 200), (256, 300), (2400, 2400)])
    def test_pictures_with_masks_are_squares_of_one_size(self, folder: Path, shape: tuple[int, int]) -> None:
        """Another square beside those of 256 px, an oblong, and one larger than a tile."""
        for i in (0, 1) if shape == (2400, 2400) else (0,):
            cv2.imwrite(str(folder / f"ptc_masks/im_{i}.png"), np.zeros((*shape, 3), np.uint8))
            cv2.imwrite(str(folder / f"ptc_masks/im_{i}_mask_PTC_lumen.png"), np.zeros(shape, np.uint8))
        with pytest.raises(
            ConfigError, match="must be squares of one size, 256 um at most; those of .* have "
        ):
            read_pictures(folder)

    @pytest.mark.slow
    def test_by_command(self, folder: Path, tmp_path: Path, wsi: Run) -> None:
        words = (
            "phantom",
            "kidney",
            "--count",
            2,
            "--size",
            "4096x4096",
            "--c4d",
            70,
            "--validation-share",
            0.5,
        )
        code, said, _ = wsi(*words, "--pictures", folder, "--out", tmp_path / "out")
        assert (code, "0.5 um/px" in said) == (0, True)
        assert not (tmp_path / "out" / "fields.csv").exists()
        assert (tmp_path / "out" / "slides.csv").read_text().splitlines()[1:] == [
            "kidney_001.tif,kidney_001.geojson,train",
            "kidney_002.tif,kidney_002.geojson,test",
        ]
        truth = json.loads((tmp_path / "out" / "kidney_001_truth.json").read_bytes())
        assert truth["positive"] / (truth["positive"] + truth["negative"]) == pytest.approx(0.7, abs=0.1)
        code, _, said = wsi(*words, "--out", tmp_path / "out")  # drawings are other phantoms
        assert (code, "holds other phantoms" in said) == (2, True)
        for i in (1, 2, 3):  # one picture is left: enough for slides of which none is held out
            (folder / "kidney_pas_tiles" / f"t{i}.jpg").unlink()
        one = ("phantom", "kidney", "--count", 1, "--size", "4096x4096", "--pictures", folder)
        code, said, problem = wsi(*one, "--out", tmp_path / "one")
        assert (code, "1 of 1" in said or "kidney_001.tif" in said) == (0, True), problem
        code, _, said = wsi(*words, "--pictures", tmp_path / "none", "--out", tmp_path / "n")
        assert (code, "holds no picture of kidney" in said) == (2, True)


class TestMosaic:
    def pictures(self) -> list[Picture]:
        other = np.full((600, 700, 3), (140, 90, 60), np.uint8)
        return [
            Picture("a", "tissue", drawn()),
            Picture("b", "tissue", drawn(9)),
            Picture("c", "brown", other),
        ]

    def test_pieces_agree_whatever_their_size(self) -> None:
        one, two = (KidneyMosaic(self.pictures(), 3, 0.5, KIDNEY_SCANNERS[1]) for _ in range(2))
        whole = one.render(512, 512, 1024, 512)
        parts = [two.render(1024, 512, 512, 512), two.render(512, 512, 512, 512)]
        assert (whole == np.hstack(parts[::-1])).all()
        assert [f.shape.wkt for f in one.features("s")] == [f.shape.wkt for f in two.features("s")]

    def test_the_file_has_brown_where_its_truth_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(TilePainter, "_haze", lambda *_: None)
        slide = KidneyPhantom("k", 8, 100.0, (1600, 1100), 0)
        counts = write_kidney_mosaic(slide, tmp_path, self.pictures()[:2])
        with SlideSource(str(tmp_path / "k.tif")).open() as opened:
            assert opened.size == (1536, 1024)
            assert opened.mpp == pytest.approx(MPP)
            is_brown = brown(opened.read_region((0, 0), 0, opened.size))
        objects = json.loads((tmp_path / "k.geojson").read_bytes())["features"]
        groups = [o["properties"]["classification"]["name"] for o in objects]
        assert counts == {"positive": groups.count(POSITIVE), "negative": groups.count(NEGATIVE)}
        assert counts["positive"] > 30
        shapes = [shapely.from_geojson(json.dumps(o["geometry"])) for o in objects]
        marked = covered([s for s, g in zip(shapes, groups, strict=True) if g != NEGATIVE], is_brown.shape, 5)
        assert is_brown[marked].sum() > 0.97 * is_brown.sum()
        again = tmp_path / "again"
        again.mkdir()
        write_kidney_mosaic(slide, again, self.pictures()[:2])
        for name in ("k.tif", "k.geojson", "k_truth.json"):
            assert (again / name).read_bytes() == (tmp_path / name).read_bytes()

    def test_another_immunostain_is_a_trap_and_not_painted(self) -> None:
        mosaic = KidneyMosaic(self.pictures()[2:] + self.pictures()[:1], 0, 1.0, KIDNEY_SCANNERS[0])
        shown = {}
        for row, col in np.ndindex(6, 6):
            shown[row, col] = mosaic.render(col * 512, row * 512, 512, 512)
        traps = {p for p, marks in mosaic.marks.items() if [m.kind for m in marks] == ["other immunostain"]}
        assert 1 <= len(traps) <= 12
        assert traps == {p for p, pixels in shown.items() if (pixels == (140, 90, 60)).all()}
        row, col = min(traps)
        assert mosaic.marks[row, col][0].outline.centroid.coords[0] == (col * 512 + 256, row * 512 + 256)
