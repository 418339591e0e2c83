"""Kidney mosaics: pictures of real kidney, their stain taken down to haematoxylin, and C4d painted on them.

No C4d-stained slide was at hand. The tissue is real here: tubules, nuclei, interstitium, open lumens. The DAB is
painted, along real lumens and in real interstitium; some of it in tubules and nuclei, where it does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from shapely import Polygon, affinity

from wsi.arrays import BoolRaster, RgbImage
from wsi.files import write_json
from wsi.phantoms.kidney.paint import KIDNEY_SCANNERS, KidneyScanner
from wsi.phantoms.kidney.pictures import GROUND, MPP, Picture, Tissue, collage, fitted
from wsi.phantoms.kidney.slide import KidneyPhantom
from wsi.phantoms.pyramid import TILE_PX, write_pyramid
from wsi.phantoms.textures import Plane
from wsi.results.export import Feature, write_geojson
from wsi.vocabulary import COLOURS, NEGATIVE, NOT_COUNTED, POSITIVE


@dataclass(frozen=True, eq=False, slots=True)
class Mark:
    """Something painted or found: its class (`wsi.marks.c4d`), what it is, and its outline in the tile's pixels."""

    group: str
    kind: str
    outline: Polygon


Mask8 = npt.NDArray[np.uint8]
"""(rows, cols), 1 inside and 0 elsewhere, as OpenCV wants masks."""

# Sizes and shares were chosen by eye beside data/kidney_stains/cd34_red_capillaries.png
LEAST_OPEN_UM2 = 4.0  # of a lumen that a mask shows
CLOSED_UM2 = (25.0, 700.0)  # of a closed capillary's section
HALF_LENGTH_UM, HALF_WIDTH_UM = (3.5, 24.0), (2.2, 7.5)
PER_TILE = (6, 34)  # closed ones on a tile of which `USUAL_SHARE` is interstitium; more where there is more
USUAL_SHARE = 0.18
OPENED = 0.45  # of stained closed ones that show a small lumen
PLASMA = 0.3  # of unstained ones whose lumen holds stained plasma, which does not count: the wall is pale
PLASMA_STRENGTH = (0.2, 0.6)  # of the stain's strength
BROWN_CELLS, HAZY = 0.3, 0.4  # of tiles with brown tubules, of those with brown nuclei; of those with haze
OTHER_STAIN = 0.12  # of a mosaic's tiles that show another immunostain


class TilePainter:
    """Paints C4d on tiles of real tissue, with one generator."""

    def __init__(self, rng: np.random.Generator, scanner: KidneyScanner, positive: float) -> None:
        self.rng, self.scanner, self.positive = rng, scanner, positive
        self.strength = rng.uniform(0.6, 1.25)  # any intensity counts (Banff)
        self.counterstain = rng.uniform(0.55, 1.1)
        self.background = rng.uniform(0.0, 0.05)

    def paint(self, tissue: Tissue) -> tuple[RgbImage, list[Mark]]:
        """The tile's pixels, and everything marked on it."""
        rng = self.rng
        size = tissue.white.shape
        h = tissue.haematoxylin + GROUND * tissue.schiff
        d: Plane = (self.background * ~tissue.white).astype(np.float32)
        taken = np.zeros(size, np.uint8)
        marks: list[Mark] = []
        if rng.random() < BROWN_CELLS:
            marks += self._brown_tubules(tissue, d)
        if rng.random() < BROWN_CELLS:
            marks += self._brown_nuclei(tissue, d)
        if rng.random() < HAZY:
            self._haze(tissue, d)
        marks += self._open_capillaries(tissue, d, taken)
        marks += self._closed_capillaries(tissue, h, d, taken)
        return self._colour(h, d), marks

    def _open_capillaries(self, tissue: Tissue, d: Plane, taken: Mask8) -> list[Mark]:
        """Rings around real lumens; those that are not painted are negative."""
        marks = []
        count, labels = cv2.connectedComponents(tissue.lumens.astype(np.uint8), connectivity=4)
        for i in range(1, count):
            lumen = (labels == i).astype(np.uint8)
            if lumen.sum() * MPP**2 < LEAST_OPEN_UM2:
                continue
            wall_px = float(self.rng.uniform(1.0, 2.8) / MPP)
            reach = cv2.distanceTransform(1 - lumen, cv2.DIST_L2, 5)
            wall = (reach > 0) & (reach <= wall_px)
            positive = self.rng.random() < self.positive
            if positive:
                strength = self.strength * self.rng.uniform(0.55, 1.15)
                _lay(d, wall, strength, soft=0.8)
                d[lumen > 0] += self.rng.uniform(0, 0.25) * strength
            elif self.rng.random() < PLASMA:
                d[wall] = 0
                _lay(d, lumen > 0, self._plasma(lumen.shape), soft=0.7)
            outline = _outline((wall | (lumen > 0)).astype(np.uint8))
            if outline is not None:
                taken |= cv2.dilate(lumen, np.ones((9, 9), np.uint8))
                marks.append(Mark(POSITIVE if positive else NEGATIVE, "open", outline))
        return marks

    def _closed_capillaries(self, tissue: Tissue, h: Plane, d: Plane, taken: Mask8) -> list[Mark]:
        """Capillaries in interstitium without a lumen to be seen, as most are: painted whole, or with a small lumen."""
        rows, cols = np.nonzero(tissue.interstitium & (taken == 0))
        wanted = int(self.rng.integers(*PER_TILE) * len(rows) / (USUAL_SHARE * tissue.white.size) + 0.5)
        marks: list[Mark] = []
        for at in self.rng.integers(len(rows), size=4 * wanted) if len(rows) else ():
            if len(marks) >= wanted:
                break
            positive = self.rng.random() < self.positive
            region = self._grown(tissue.interstitium, int(rows[at]), int(cols[at]))
            if (region & (taken > 0)).any() or not CLOSED_UM2[0] < region.sum() * MPP**2 < CLOSED_UM2[1]:
                continue
            outline = _outline(region.astype(np.uint8))
            if outline is None:
                continue
            taken |= cv2.dilate(region.astype(np.uint8), np.ones((5, 5), np.uint8))
            if self._fill(region, h, d, positive=positive):
                marks.append(Mark(POSITIVE if positive else NEGATIVE, "closed", outline))
        return marks

    def _grown(self, interstitium: BoolRaster, row: int, col: int) -> BoolRaster:
        """A capillary's section at a place: along the interstitium there, as wide as it or a little wider."""
        rng = self.rng
        side = 56
        r0, c0 = max(0, row - side), max(0, col - side)
        near = interstitium[r0 : row + side + 1, c0 : col + side + 1]
        ys, xs = np.nonzero(near)
        close = np.hypot(ys - (row - r0), xs - (col - c0)) < 14
        spread = np.cov(np.stack([xs[close], ys[close]])) if close.sum() > 8 else np.eye(2)
        _, vectors = np.linalg.eigh(spread)
        turn = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
        half = [float(rng.uniform(*um)) / MPP for um in (HALF_LENGTH_UM, HALF_WIDTH_UM)]
        ellipse = np.zeros(near.shape, np.uint8)
        cv2.ellipse(ellipse, (col - c0, row - r0), (round(half[0]), round(half[1])), turn, 0, 360, 1, -1)
        wide = int(rng.integers(0, 4))
        gap = cv2.dilate(
            near.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * wide + 1,) * 2)
        )
        shape = cv2.GaussianBlur((ellipse & gap).astype(np.float32), (0, 0), 1.5) > 0.45
        _, labels = cv2.connectedComponents(shape.astype(np.uint8), connectivity=4)
        label = labels[row - r0, col - c0]
        region = np.zeros(interstitium.shape, np.bool_)
        if label:
            region[r0 : row + side + 1, c0 : col + side + 1] = labels == label
        return region

    def _fill(self, region: BoolRaster, h: Plane, d: Plane, *, positive: bool) -> bool:
        """Paint a section; whether it can be seen (an unstained one without a lumen cannot)."""
        rng = self.rng
        depth = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, 5)
        wall_px = float(rng.uniform(1.0, 2.6) / MPP)
        lumen = depth > wall_px
        has_lumen = lumen.sum() * MPP**2 > 5 and rng.random() < (OPENED if positive else 1.0)
        if positive:
            strength = self.strength * rng.uniform(0.6, 1.2)
            if rng.random() < 0.5:
                _lay(
                    d,
                    cv2.dilate(region.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0,
                    0.3 * strength,
                    soft=1.5,
                )
            cells = 1 + 0.3 * _noise(rng, region.shape, 2.5)  # red cells in it, each with a dark rim
            _lay(d, region, strength * rng.uniform(0.35, 1.0) * cells, soft=0.8)
            _lay(d, region & ~lumen, strength, soft=0.7)  # the wall is the darkest of a closed one, too
            h[region] *= 0.6
        if has_lumen:
            inside = cv2.GaussianBlur(lumen.astype(np.float32), (0, 0), 0.7)
            h *= 1 - 0.9 * inside
            d *= 1 - (rng.uniform(0.6, 1.0) if positive else 1.0) * inside
            if not positive and rng.random() < PLASMA:
                d[region] = 0
                _lay(d, lumen, self._plasma(region.shape), soft=0.7)
        return positive or has_lumen

    def _plasma(self, shape: tuple[int, ...]) -> Plane:
        """Brown of stained plasma, cloudy."""
        strength = self.strength * self.rng.uniform(*PLASMA_STRENGTH)
        return np.asarray(strength * (1 + 0.15 * _noise(self.rng, shape, 4.0)), np.float32)

    def _haze(self, tissue: Tissue, d: Plane) -> None:
        """Stained plasma and ground substance between capillaries: no mark."""
        rough = np.clip(0.5 + 0.5 * _noise(self.rng, d.shape, 12), 0, 1)
        gaps = cv2.GaussianBlur(tissue.interstitium.astype(np.float32), (0, 0), 2.0)
        d += self.rng.uniform(0.1, 0.45) * self.strength * rough * gaps * (~tissue.white)

    def _brown_tubules(self, tissue: Tissue, d: Plane) -> list[Mark]:
        """Cells of some tubules, granular."""
        walls = cv2.dilate(tissue.interstitium.astype(np.uint8), np.ones((3, 3), np.uint8))
        inside = cv2.distanceTransform(1 - walls, cv2.DIST_L2, 5) > 9
        count, labels, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8))
        fit = [i for i in range(1, count) if 300 < stats[i, cv2.CC_STAT_AREA] < 12_000]
        marks = []
        for i in self.rng.permutation(fit)[: self.rng.integers(1, 6)]:
            one = cv2.dilate((labels == i).astype(np.uint8), np.ones((15, 15), np.uint8))
            cells = (one > 0) & ~tissue.white & (walls == 0)
            grain = np.clip(0.7 + 0.4 * _noise(self.rng, d.shape, 1.0), 0.2, 1)
            look = self.rng.choice(["whole", "brush border", "single cells"], p=[0.4, 0.3, 0.3])
            if look == "brush border":  # darkest towards the lumen
                depth = cv2.distanceTransform(one, cv2.DIST_L2, 5)
                grain *= np.clip(depth / self.rng.uniform(8, 20), 0.15, 1.3)
            elif look == "single cells":  # patches of the wall, each as dark as a wall of a capillary
                grain *= 1.5 * (_noise(self.rng, d.shape, 5.0) > self.rng.uniform(0.3, 1.0))
            d[cells] += (self.strength * self.rng.uniform(0.2, 0.9) * grain)[cells]
            if cells.any() and self.rng.random() < 0.5:  # pale nuclei in it
                nuclei = cv2.GaussianBlur(tissue.haematoxylin, (0, 0), 2.0)
                d *= 1 - 0.85 * cv2.GaussianBlur(
                    (cells & (nuclei > np.percentile(nuclei[cells], 85))).astype(np.float32), (0, 0), 0.8
                )
            outline = _outline(one)
            if outline is not None:
                marks.append(Mark(NOT_COUNTED, "stained tubule", outline))
        return marks

    def _brown_nuclei(self, tissue: Tissue, d: Plane) -> list[Mark]:
        """Some nuclei, as proliferating or inflammatory cells have them."""
        smooth = cv2.GaussianBlur(tissue.haematoxylin, (0, 0), 1.2)
        dark = (smooth > np.percentile(smooth[~tissue.white], 90)) if (~tissue.white).any() else tissue.white
        count, labels, stats, _ = cv2.connectedComponentsWithStats(dark.astype(np.uint8))
        fit = [i for i in range(1, count) if 12 < stats[i, cv2.CC_STAT_AREA] * MPP**2 < 60]
        marks = []
        for i in self.rng.permutation(fit)[: self.rng.integers(3, 25)]:
            nucleus = labels == i
            _lay(d, nucleus, self.strength * self.rng.uniform(0.5, 1.2), soft=0.7)
            outline = _outline(nucleus.astype(np.uint8))
            if outline is not None:
                marks.append(Mark(NOT_COUNTED, "stained nucleus", outline))
        return marks

    def _colour(self, h: Plane, d: Plane) -> RgbImage:
        rng, scanner = self.rng, self.scanner
        d = np.clip(d * (1 + 0.18 * _noise(rng, h.shape, 1.0)), 0, 2.2)
        h = np.clip(h * self.counterstain, 0, 2.5)
        pixels = np.empty((*h.shape, 3), np.uint8)
        for i in range(3):
            density = scanner.haematoxylin[i] * h + scanner.dab[i] * d
            pixels[..., i] = np.clip(scanner.glass[i] * 10**-density, 0, 255)
        return pixels


@dataclass(eq=False)
class KidneyMosaic:
    """Tiles of painted pictures, side by side; each tile is drawn from a generator of its own.

    Attributes:
        pictures: what tiles are made of.
        seed: of the slide.
        positive: share of capillaries that are stained, 0..1.
        scanner: its colours; the spacing is `MPP`.
        marks: of the tiles painted so far, by row and column, in level-0 pixels.
    """

    pictures: Sequence[Picture]
    seed: int
    positive: float
    scanner: KidneyScanner
    marks: dict[tuple[int, int], list[Mark]] = field(default_factory=dict)

    def render(self, x0: int, y0: int, width: int, height: int) -> RgbImage:
        """Pixels of a piece, whose corner and sides are multiples of `TILE_PX`."""
        rows = [
            np.hstack([self._tile(y // TILE_PX, x // TILE_PX) for x in range(x0, x0 + width, TILE_PX)])
            for y in range(y0, y0 + height, TILE_PX)
        ]
        return np.vstack(rows)

    def _tile(self, row: int, col: int) -> RgbImage:
        rng = np.random.default_rng([self.seed, row, col])
        kidney = [p for p in self.pictures if p.kind == "tissue"]
        open_ones = [p for p in self.pictures if p.kind == "lumens"]
        brown = [p for p in self.pictures if p.kind == "brown"]
        marks: list[Mark] = []
        if brown and rng.random() < OTHER_STAIN:
            pixels = fitted(brown[int(rng.integers(len(brown)))], rng).pixels
            middle = shapely.box(0.25 * TILE_PX, 0.25 * TILE_PX, 0.75 * TILE_PX, 0.75 * TILE_PX)
            marks = [Mark(NOT_COUNTED, "other immunostain", middle)]
        else:
            if open_ones and rng.random() < len(open_ones) / (len(open_ones) + 4 * len(kidney)):
                picture = collage(open_ones, rng)
            else:
                picture = fitted(kidney[int(rng.integers(len(kidney)))], rng)
            pixels, marks = TilePainter(rng, self.scanner, self.positive).paint(Tissue(picture))
        self.marks[row, col] = [
            Mark(m.group, m.kind, affinity.translate(m.outline, col * TILE_PX, row * TILE_PX)) for m in marks
        ]
        return pixels

    def features(self, name: str) -> list[Feature]:
        """Everything that is marked, tile by tile."""
        marks = [mark for place in sorted(self.marks) for mark in self.marks[place]]
        return [
            Feature(
                f"{name} mark {i}",
                m.outline,
                "annotation",
                m.kind,
                m.group,
                COLOURS[m.group],
                {},
                {"kind": m.kind},
            )
            for i, m in enumerate(marks, start=1)
        ]


def write_kidney_mosaic(
    slide: KidneyPhantom,
    out: Path,
    pictures: Sequence[Picture],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Write ``NAME.tif``, ``NAME.geojson`` and ``NAME_truth.json``; the same bytes for the same seed and pictures.

    Args:
        slide: its size is rounded down to whole tiles.
        out: the folder.
        pictures: see `wsi.phantoms.kidney.pictures.read_pictures`.
        progress: called with (pieces done, pieces).

    Returns:
        How many capillaries of each class there are.
    """
    scanner = KIDNEY_SCANNERS[slide.scanner]
    mosaic = KidneyMosaic(pictures, slide.seed, slide.percent / 100, scanner)
    size = (slide.size[0] // TILE_PX * TILE_PX, slide.size[1] // TILE_PX * TILE_PX)
    write_pyramid(
        out / f"{slide.name}.tif", size, MPP, mosaic.render, background=scanner.glass, progress=progress
    )
    features = mosaic.features(slide.name)
    write_geojson(out / f"{slide.name}.geojson", features, (0, 0))
    groups = Counter(f.classification for f in features)
    counts = {"positive": groups[POSITIVE], "negative": groups[NEGATIVE]}
    note = "real tissue of other stains; the C4d is painted"
    write_json(out / f"{slide.name}_truth.json", {"slide": slide.name, **counts, "mpp": MPP, "note": note})
    return counts


def _noise(rng: np.random.Generator, shape: tuple[int, ...], grain: float) -> Plane:
    """Smooth noise of mean 0 and deviation 1."""
    rough = cv2.GaussianBlur(rng.normal(0, 1, shape).astype(np.float32), (0, 0), grain)
    return np.asarray(rough / rough.std(), np.float32)


def _lay(plane: Plane, where: BoolRaster, value: float | Plane, *, soft: float) -> None:
    """Raise a plane to at least a value there, with a soft border."""
    np.maximum(plane, value * cv2.GaussianBlur(where.astype(np.float32), (0, 0), soft), out=plane)


def _outline(mask: npt.NDArray[np.uint8]) -> Polygon | None:
    """Around the largest part of a mask, in pixels; None where it has no area."""
    parts, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    largest = max(parts, key=cv2.contourArea, default=None)
    if largest is None or len(largest) < 4:
        return None
    polygon = Polygon(largest[:, 0, :].astype(np.float64) + 0.5).buffer(0.5, quad_segs=1).simplify(0.3)
    return polygon if isinstance(polygon, Polygon) and polygon.area > 0 else None
