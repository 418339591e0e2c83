"""Phantoms of kidneys: the truth is what is painted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shapely
from shapely import STRtree
from shapely.geometry.base import BaseGeometry

from tests.slides import real_data
from wsi.marks.annotations import read_annotations
from wsi.marks.c4d import field_side
from wsi.phantoms.kidney.fields import fields_of
from wsi.phantoms.kidney.layout import KidneyLayout, KidneyPlanner
from wsi.phantoms.kidney.paint import KIDNEY_SCANNERS, KidneyPainter
from wsi.phantoms.kidney.slide import KidneyPhantom, plan_kidneys, write_kidney
from wsi.slides.source import SlideSource
from wsi.vocabulary import NOT_COUNTED

Run = Callable[..., tuple[int, str, str]]
SIZE = (6144, 5120)
FIELD_PX = field_side(0.25)


@pytest.fixture(scope="module")
def layout() -> KidneyLayout:
    return KidneyPlanner(np.random.default_rng(4), SIZE, 0.25).kidney(30)


def plain(layout: KidneyLayout, **changes: object) -> KidneyPainter:
    """A painter of the layout without artefacts, in a fixed stain."""
    painter = KidneyPainter(
        dataclasses.replace(layout, artefacts=(), **changes), np.random.default_rng(0), KIDNEY_SCANNERS[0]
    )
    painter.dab, painter.counterstain, painter.background = 1.0, 1.0, 0.0
    return painter


def test_painting_prepares_no_shape_that_threads_share(layout: KidneyLayout) -> None:
    """A prepared shape that two threads ask at once damages memory; see `wsi.phantoms.kidney.paint._inside`."""
    shapes = [shape for _, shape in every_shape(layout)]
    before = shapely.is_prepared(shapes)
    painter = plain(layout)
    for y in range(0, SIZE[1], 512):
        painter.render(0, y, SIZE[0], 512)
    assert (shapely.is_prepared(shapes) == before).all()
    assert len(shapes) > 300


def every_shape(value: object, name: str = "") -> list[tuple[str, BaseGeometry]]:
    """Every geometry below a dataclass, with its place."""
    if isinstance(value, BaseGeometry):
        return [(name, value)]
    if isinstance(value, list | tuple):
        return [found for i, part in enumerate(value) for found in every_shape(part, f"{name}[{i}]")]
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    return [found for f in fields for found in every_shape(getattr(value, f.name), f"{name}.{f.name}")]


def brownness(image: np.ndarray) -> np.ndarray:
    """Blue absorbed more than red: DAB, not haematoxylin."""
    density = -np.log10((image.astype(np.float64) + 1) / 246)
    return density[..., 2] - density[..., 0]


class TestLayout:
    @pytest.mark.parametrize("percent", [0, 7.5, 100])
    def test_the_share_is_the_one_asked_for(self, percent: float) -> None:
        layout = KidneyPlanner(np.random.default_rng(9), SIZE, 0.25).kidney(percent)
        n = len(layout.capillaries)
        assert n > 100
        assert sum(c.positive for c in layout.capillaries) == round(percent / 100 * n)
        assert layout.c4d_percent == pytest.approx(percent, abs=50 / n)

    def test_traps_are_negative(self, layout: KidneyLayout) -> None:
        kinds = Counter(c.kind for c in layout.capillaries)
        assert kinds["partial"] > 0
        assert kinds["serum"] > 0
        assert {c.kind for c in layout.capillaries if c.positive} == {"ring"}

    def test_capillaries_lie_apart_in_the_tissue_and_not_where_none_are(self) -> None:
        for seed in range(4):
            layout = KidneyPlanner(np.random.default_rng(seed), SIZE, 0.25).kidney(30)
            shapes = [c.outline for c in layout.capillaries]
            assert all(s.is_valid and not s.is_empty for s in shapes)
            pairs = STRtree(shapes).query(shapes, predicate="intersects")
            assert (pairs[0] == pairs[1]).all()  # each meets itself only
            tissue = shapely.union_all(layout.pieces)
            assert shapely.within(shapes, tissue).all()
            for zone in layout.zones:
                assert not shapely.intersects(shapes, zone.outline).any()
            rounds = [shapely.Point(r.x, r.y).buffer(r.radius) for r in (*layout.glomeruli, *layout.arteries)]
            assert not shapely.intersects(shapes, shapely.union_all(rounds)).any()

    def test_sizes_are_those_of_capillaries(self, layout: KidneyLayout) -> None:
        """Real lumens (data/ptc_masks, 0.25 um/px or so) are 1 to 11 um across, slits up to 50 um long."""
        sides = np.array(
            [np.ptp(shapely.get_coordinates(c.outline), axis=0).max() * 0.25 for c in layout.capillaries]
        )
        areas = np.array([c.outline.area for c in layout.capillaries]) * 0.25**2
        assert 8 < np.median(sides) < 20
        assert sides.max() < 60
        assert 40 < np.median(areas) < 200
        tubules = np.array([t.outline.area for t in layout.tubules]) * 0.25**2
        assert 30 < np.sqrt(np.median(tubules)) < 70

    def test_positive_ones_lie_in_groups(self) -> None:
        """C4d is often focal: a positive capillary's neighbours are positive more often than others'."""
        layout = KidneyPlanner(np.random.default_rng(3), (12288, 8192), 0.25).kidney(30)
        middles = shapely.get_coordinates(shapely.centroid([c.outline for c in layout.capillaries]))
        positive = np.array([c.positive for c in layout.capillaries])
        gaps = np.hypot(*(middles[:, None] - middles[None]).transpose(2, 0, 1))
        np.fill_diagonal(gaps, np.inf)
        near = positive[np.argsort(gaps, axis=1)[:, :5]].mean(axis=1)
        assert near[positive].mean() > near[~positive].mean() + 0.1


class TestFields:
    def test_by_hand(self, layout: KidneyLayout) -> None:
        """One square of tissue; a scar over three quarters of the first field; no capillary in the third."""
        tissue = shapely.box(0, 0, 3 * FIELD_PX, FIELD_PX)
        scar = dataclasses.make_dataclass("Z", ["kind", "outline"])(
            "scar", shapely.box(0, 0, 0.75 * FIELD_PX, FIELD_PX)
        )
        one = dataclasses.replace(layout.capillaries[0], outline=shapely.Point(1500, 500).buffer(20))
        other = dataclasses.replace(layout.capillaries[0], outline=shapely.Point(900, 500).buffer(20))
        made = dataclasses.replace(
            layout,
            size=(4 * FIELD_PX, FIELD_PX),
            pieces=(tissue,),
            zones=(scar,),
            capillaries=(one, other),
            glomeruli=(),
            arteries=(),
            artefacts=(),
        )
        assert [(f.x, f.why_not) for f in fields_of(made)] == [
            (0, "scar or infarct"),
            (FIELD_PX, ""),
            (2 * FIELD_PX, "no capillary"),
        ]
        smaller = dataclasses.replace(
            scar, outline=shapely.box(0, 0, 0.6 * FIELD_PX, FIELD_PX)
        )  # below two thirds
        assert fields_of(dataclasses.replace(made, zones=(smaller,)))[0].why_not == ""

    def test_both_kinds_occur(self) -> None:
        layout = KidneyPlanner(np.random.default_rng(1), (12288, 8192), 0.25).kidney(10)
        reasons = Counter(bool(f.why_not) for f in fields_of(layout))
        assert min(reasons[True], reasons[False]) > 3


class TestPaint:
    def test_only_rings_are_brown_all_around(self, layout: KidneyLayout) -> None:
        """Along the middle of the wall: rings are brown on nearly all of it, partial ones on a part, plain ones nowhere."""
        painter = plain(layout, tubules=(), glomeruli=(), arteries=())
        share: dict[str, list[float]] = {}
        for c in layout.capillaries[:160]:
            x0, y0, x1, y1 = (int(v) for v in c.outline.bounds)
            image = painter.render(x0 - 20, y0 - 20, x1 - x0 + 40, y1 - y0 + 40)
            assert image is not None
            wall = c.outline.buffer(-2.2).boundary
            points = [wall.interpolate(w, normalized=True) for w in np.linspace(0, 1, 60)]
            at = np.array([(p.y - y0 + 20, p.x - x0 + 20) for p in points]).astype(int)
            share.setdefault(c.kind, []).append(float((brownness(image)[at[:, 0], at[:, 1]] > 0.12).mean()))
        assert np.median(share["ring"]) > 0.8
        assert max(share["plain"]) < 0.15
        assert 0.1 < np.median(share["partial"]) < 0.75

    def test_brown_tubules_are_brown_and_others_are_not(self, layout: KidneyLayout) -> None:
        tubules = [dataclasses.replace(t, brown=float(i % 2)) for i, t in enumerate(layout.tubules[:20])]
        painter = plain(layout, tubules=tuple(tubules), capillaries=(), glomeruli=(), arteries=(), zones=())
        means = []
        for tubule in tubules:
            x0, y0, x1, y1 = (int(v) for v in tubule.outline.bounds)
            image = painter.render(x0, y0, x1 - x0, y1 - y0)
            assert image is not None
            means.append(np.percentile(brownness(image), 80))
        assert min(means[1::2]) > max(means[::2])

    def test_pieces_agree_at_their_borders(self, layout: KidneyLayout) -> None:
        painter = plain(layout)
        x, y = (int(v) for v in layout.pieces[0].centroid.coords[0])
        whole = painter.render(x - 300, y - 200, 600, 400)
        left, right = painter.render(x - 300, y - 200, 300, 400), painter.render(x, y - 200, 300, 400)
        assert whole is not None
        assert left is not None
        assert right is not None
        gap = np.abs(np.hstack([left, right]).astype(int) - whole).max(axis=2)
        assert (gap > 6).mean() < 0.002  # edge pixels of outlines that cv2 clips

    def test_glass_is_not_painted(self, layout: KidneyLayout) -> None:
        assert plain(layout).render(0, 0, 64, 64) is None

    def test_it_looks_like_the_real_stains(self, layout: KidneyLayout) -> None:
        """Colours of tissue and of brown, beside strongly DAB-positive tubules (data/kidney_stains)."""
        import cv2

        real = cv2.imread(str(real_data("kidney_stains", "dab_tubular_b.png")))[..., ::-1]
        layout = KidneyPlanner(np.random.default_rng(4), SIZE, 0.25).kidney(60)
        tubules = tuple(dataclasses.replace(t, brown=float(i % 3 == 0)) for i, t in enumerate(layout.tubules))
        x, y = (int(v) for v in layout.pieces[0].centroid.coords[0])
        made = plain(layout, tubules=tubules).render(x - 500, y - 500, 1000, 1000)
        assert made is not None
        for image in (real, made):
            brown = brownness(image) > 0.25
            assert 0.02 < brown.mean() < 0.5
        pale = [np.median(i[(brownness(i) < 0.05) & (i.max(axis=2) < 235)], axis=0) for i in (real, made)]
        assert np.abs(pale[0] - pale[1]).max() < 30


class TestFiles:
    def test_the_same_bytes_and_truth_that_reads_back(self, tmp_path: Path) -> None:
        slide = KidneyPhantom("kidney_001", 77, 25, (4096, 4096), 1)
        sums = []
        for folder in ("a", "b"):
            layout = write_kidney(slide, tmp_path / folder)
            files = sorted((tmp_path / folder).iterdir())
            sums.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
        assert sums[0] == sums[1]
        with SlideSource(str(tmp_path / "a" / "kidney_001.tif")).open() as opened:
            assert opened.size == (4096, 4096)
            assert opened.mpp == pytest.approx(0.228, rel=1e-3)
        truth = json.loads((tmp_path / "a" / "kidney_001_truth.json").read_text())
        marked = Counter(a.group for a in read_annotations(tmp_path / "a" / "kidney_001.geojson"))
        traps = sum(truth[f"stained_{kind}"] for kind in ("tubules", "glomeruli", "arteries"))
        counts = {"C4d positive": truth["positive"], "C4d negative": truth["negative"], NOT_COUNTED: traps}
        assert marked == counts
        assert truth["c4d_percent"] == pytest.approx(layout.c4d_percent, abs=1e-3)
        fields = Counter(a.group for a in read_annotations(tmp_path / "a" / "kidney_001_fields.geojson"))
        assert fields["feasible"] == truth["feasible_fields"]
        assert sum(fields.values()) == truth["fields"]

    def test_a_cohort_by_command(self, tmp_path: Path, wsi: Run) -> None:
        words = (
            "phantom",
            "kidney",
            "--count",
            2,
            "--size",
            "4096x4096",
            "--c4d",
            "0,50",
            "--validation-share",
            0.5,
        )
        code, said, _ = wsi(*words, "--out", tmp_path / "k")
        assert code == 0
        assert "0 of them C4d-positive (0.0 %)" in said
        lines = (tmp_path / "k" / "slides.csv").read_text().splitlines()
        assert lines == [
            "path,truth,split",
            "kidney_001.tif,kidney_001.geojson,train",
            "kidney_002.tif,kidney_002.geojson,validation",
        ]
        code, _, said = wsi(*words, "--seed", 5, "--out", tmp_path / "k")
        assert (code, "holds other phantoms" in said) == (2, True)
        for text, reason in (
            ("0,x", "must be percentages such as"),
            ("120", "between 0 and 100"),
            ("nan", "between 0"),
        ):
            code, _, said = wsi("phantom", "kidney", "--out", tmp_path / "n", "--c4d", text)
            assert (code, reason in said) == (2, True)

    def test_seeds_and_scanners(self) -> None:
        slides = plan_kidneys(6, 2, SIZE, [0, 10])
        assert len({s.seed for s in slides}) == 6
        assert {(s.percent, s.scanner) for s in slides} == {
            (0, 0),
            (0, 1),
            (10, 0),
            (10, 1),
        }  # neither tells the other
        assert not {s.seed for s in slides} & {s.seed for s in plan_kidneys(6, 3, SIZE, [0])}
