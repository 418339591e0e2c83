"""Painting of kidneys stained for C4d: concentrations of haematoxylin and DAB, then colour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from shapely import Polygon, STRtree
from shapely.geometry.base import BaseGeometry

from wsi.arrays import RgbImage
from wsi.phantoms.artefacts import BLUR_PX, PAINTERS, near
from wsi.phantoms.kidney.layout import Capillary, KidneyLayout, Round, Tubule, Zone
from wsi.phantoms.kidney.piece import Piece
from wsi.phantoms.textures import Texturer

_NOISE = 1024
THICK = 0.4  # of stained capillaries: walls as thick and smudged as those of the CD34 picture, small lumens closed
_MARGIN = 16  # px around a piece, so that smoothing sees the same on both sides of its border


@dataclass(frozen=True, slots=True)
class KidneyScanner:
    """A scanner and its stain: um per pixel, optical density per unit concentration in R, G, B, colour of glass."""

    name: str
    mpp: float
    haematoxylin: tuple[float, float, float]
    dab: tuple[float, float, float]
    glass: tuple[int, int, int]


# Colours were matched by eye to the DAB stains of data/kidney_stains: pale blue-grey tissue, brown to nearly black
KIDNEY_SCANNERS = (
    KidneyScanner("A", 0.25, (0.47, 0.40, 0.22), (0.36, 0.56, 0.80), (245, 245, 245)),
    KidneyScanner("B", 0.228, (0.52, 0.42, 0.16), (0.30, 0.58, 0.88), (246, 245, 241)),
)


class KidneyPainter:
    """Painter of a layout, piece by piece.

    Each object has its own generator, so pieces agree at their borders (but for some edge pixels: cv2 clips
    outlines before it fills them).
    """

    def __init__(self, layout: KidneyLayout, rng: np.random.Generator, scanner: KidneyScanner) -> None:
        self.layout = layout
        self.mpp = layout.mpp
        self.scanner = scanner
        self.seed = int(rng.integers(1 << 62))
        self.dab = rng.uniform(0.65, 1.25)  # any intensity counts (Banff)
        self.counterstain = rng.uniform(0.8, 1.2)
        self.background = rng.uniform(0.0, 0.07)  # unspecific brown of tubular cells
        texturer = Texturer(rng, layout.mpp)
        self.fine = texturer.noise(_NOISE, 1.2)
        self.grains = texturer.noise(_NOISE, 3.2)  # vacuoles and granules of cytoplasm
        self.coarse = texturer.noise(_NOISE, 14.0)
        self.shot = rng.normal(0, 2.2, (_NOISE, _NOISE)).astype(np.float32)
        self.groups: list[tuple[int, Callable[[Piece, int], None], STRtree]] = []
        r = [shapely.Point(v.x, v.y).buffer(v.radius) for v in (*layout.glomeruli, *layout.arteries)]
        self._add(0, self._tissue, list(layout.pieces))
        self._add(1, self._zone, [z.outline for z in layout.zones])
        self._add(2, self._tubule, [t.outline for t in layout.tubules])
        self._add(3, self._glomerulus, r[: len(layout.glomeruli)])
        self._add(4, self._artery, r[len(layout.glomeruli) :])
        self._add(5, self._capillary, [c.outline for c in layout.capillaries])

    def _add(self, number: int, paint: Callable[[Piece, int], None], shapes: list[Polygon]) -> None:
        reach = 8 / self.mpp  # nuclei and walls may stand out so far
        x0, y0, x1, y1 = shapely.bounds(shapes).reshape(-1, 4).T
        boxes = [
            shapely.box(*box) for box in zip(x0 - reach, y0 - reach, x1 + reach, y1 + reach, strict=True)
        ]
        self.groups.append((number, paint, STRtree(boxes)))

    def render(self, x0: int, y0: int, width: int, height: int) -> RgbImage | None:
        """Pixels of one piece; None where there is only glass."""
        artefacts = [a for a in self.layout.artefacts if near(a, x0, y0, width, height)]
        edge = BLUR_PX * 4 if any(a.kind == "blur" for a in artefacts) else 0
        image = self._paint(x0 - edge, y0 - edge, width + 2 * edge, height + 2 * edge)
        if image is None and not artefacts:
            return None
        if image is None:
            image = np.full((height + 2 * edge, width + 2 * edge, 3), self.scanner.glass, np.uint8)
        for artefact in artefacts:
            PAINTERS[artefact.kind](image, artefact, x0 - edge, y0 - edge)
        return np.ascontiguousarray(image[edge : edge + height, edge : edge + width])

    def _paint(self, x0: int, y0: int, width: int, height: int) -> RgbImage | None:
        m = _MARGIN
        piece = Piece(x0 - m, y0 - m, width + 2 * m, height + 2 * m)
        box = shapely.box(piece.x0, piece.y0, piece.x0 + piece.width, piece.y0 + piece.height)
        for number, paint, tree in self.groups:
            hits = np.sort(tree.query(box))
            if number == 0 and len(hits) == 0:
                return None
            for i in hits:
                piece.rng = np.random.default_rng([self.seed, number, int(i)])
                paint(piece, int(i))
        return self._colour(piece)[m:-m, m:-m]

    def _colour(self, piece: Piece) -> RgbImage:
        rows = np.arange(piece.y0, piece.y0 + piece.height) % _NOISE
        cols = np.arange(piece.x0, piece.x0 + piece.width) % _NOISE
        planes = (self.fine, self.grains, self.coarse, self.shot)
        fine, grains, coarse, shot = (plane[np.ix_(rows, cols)] for plane in planes)
        h = (
            cv2.GaussianBlur(piece.h, (0, 0), 0.7)
            * (1 + 0.2 * fine + 0.2 * grains + 0.12 * coarse)
            * self.counterstain
        )
        d = cv2.GaussianBlur(piece.d, (0, 0), 0.8) * (1 + 0.14 * fine + 0.18 * grains + 0.10 * coarse)
        h, d = np.clip(h, 0, 2.5), np.clip(d, 0, 2.2)
        rgb = np.empty((piece.height, piece.width, 3), np.uint8)
        for i in range(3):
            density = self.scanner.haematoxylin[i] * h + self.scanner.dab[i] * d
            rgb[..., i] = np.clip(self.scanner.glass[i] * np.exp(-np.log(10) * density) + shot, 0, 255)
        return rgb

    def _tissue(self, piece: Piece, i: int) -> None:
        """Paint interstitium, and the brown rim that sections often have."""
        outline = self.layout.pieces[i]
        piece.fill(piece.h, outline, 0.13)
        if piece.rng.random() < 0.5:
            piece.stroke(
                piece.d, outline, piece.rng.uniform(0.2, 0.5), round(piece.rng.uniform(10, 25) / self.mpp)
            )
            piece.clear_outside(outline)

    def _zone(self, piece: Piece, i: int) -> None:
        """Paint a scar, dense and streaky, or an infarct with pale ghosts of tubules."""
        zone: Zone = self.layout.zones[i]
        piece.fill(piece.h, zone.outline, 0.24 if zone.kind == "scar" else 0.07)
        if zone.kind == "scar":
            self._nuclei_in(piece, zone.outline, per_mm2=1500, size_um=(2.0, 5.5))

    def _tubule(self, piece: Piece, i: int) -> None:
        tubule: Tubule = self.layout.tubules[i]
        rng, outline = piece.rng, tubule.outline
        share = {"proximal": (0.22, 0.48), "distal": (0.45, 0.66), "atrophic": (0.15, 0.35)}[tubule.kind]
        cytoplasm = {"proximal": 0.21, "distal": 0.17, "atrophic": 0.2}[tubule.kind]
        middle = outline.centroid
        lumen = _ragged(outline, middle, rng.uniform(*share), rng, 0.22 if tubule.kind == "proximal" else 0.1)
        dead = any(z.kind == "infarct" and z.outline.contains(middle) for z in self.layout.zones)
        piece.stroke(
            piece.h, outline, 0.3 if tubule.kind != "atrophic" else 0.45, max(1, round(1.2 / self.mpp))
        )
        piece.fill(piece.h, outline, cytoplasm * (0.5 if dead else 1))
        piece.fill(piece.d, outline, self.background * rng.uniform(0.5, 1.5))
        if tubule.brown and not dead:
            self._brown(piece, outline, lumen, self.dab * tubule.brown * rng.uniform(0.7, 1.2))
        for plane in (piece.h, piece.d):
            piece.fill(plane, lumen, 0.015)
        if tubule.brown and not dead and rng.random() < 0.2:
            piece.fill(piece.d, lumen, 0.15 * self.dab)  # a cast
        if not dead:
            self._ring_of_nuclei(
                piece, outline, middle, 0.5 * (1 + sum(share) / 2) if tubule.kind != "atrophic" else 0.75
            )

    def _brown(self, piece: Piece, outline: Polygon, lumen: Polygon, strength: float) -> None:
        """Paint stained tubular cells as on data/kidney_stains: whole, by the lumen, with vacuoles, or single cells."""
        rng, middle = piece.rng, outline.centroid
        pattern = rng.choice(["whole", "brush border", "vacuoles", "cells"], p=[0.3, 0.25, 0.25, 0.2])
        if pattern == "cells":
            self._brown_cells(piece, outline, strength)
            return
        if pattern == "brush border":  # darkest towards the lumen
            piece.fill(piece.d, _ragged(outline, middle, 0.8, rng, 0.1), 0.35 * strength)
            border = lumen.buffer(rng.uniform(2.0, 5.0) / self.mpp).intersection(outline)
            piece.fill(piece.d, border, strength)
            return
        piece.fill(piece.d, _ragged(outline, middle, rng.uniform(0.75, 1.0), rng, 0.1), strength)
        if pattern == "vacuoles":  # bright holes in brown resemble a stained capillary
            x0, y0, x1, y1 = outline.bounds
            points = rng.uniform((x0, y0), (x1, y1), (max(4, int(outline.area * self.mpp**2 / 60)), 2))
            for x, y in points[_inside(outline, points)]:
                r = rng.uniform(0.8, 2.6) / self.mpp
                for plane in (piece.h, piece.d):
                    piece.ellipse(plane, x, y, (r, r * rng.uniform(0.7, 1.0)), 0, 0.03)

    def _brown_cells(self, piece: Piece, outline: Polygon, strength: float) -> None:
        """Paint single dark cells along the wall, each with a pale nucleus (as intercalated cells are stained)."""
        rng, middle = piece.rng, outline.centroid
        for share in rng.random(rng.integers(1, 7)):
            p = outline.exterior.interpolate(share, normalized=True)
            k = rng.uniform(0.72, 0.86)
            x, y = middle.x + k * (p.x - middle.x), middle.y + k * (p.y - middle.y)
            r, turn = rng.uniform(3.5, 6.0) / self.mpp, rng.uniform(0, 180)
            piece.ellipse(
                piece.d, x, y, (r, r * rng.uniform(0.6, 0.95)), turn, strength * rng.uniform(0.7, 1.2)
            )
            nucleus_radius = r * rng.uniform(0.4, 0.6)
            piece.ellipse(piece.d, x, y, (nucleus_radius, nucleus_radius * 0.85), turn, 0.05)
            piece.ellipse(piece.h, x, y, (nucleus_radius, nucleus_radius * 0.85), turn, 0.35)

    def _ring_of_nuclei(self, piece: Piece, outline: Polygon, middle: shapely.Point, at: float) -> None:
        """Paint nuclei of the tubule's cells, between its wall and its lumen."""
        rng = piece.rng
        ring = outline.exterior
        count = max(3, round(ring.length * at * self.mpp / rng.uniform(11, 15)))
        for share in (np.arange(count) + rng.uniform(-0.3, 0.3, count)) / count % 1:
            p = ring.interpolate(share, normalized=True)
            k = at + rng.normal(0, 0.05)
            x, y = middle.x + k * (p.x - middle.x), middle.y + k * (p.y - middle.y)
            self._nucleus(piece, x, y, rng.uniform(2.7, 3.4), rng.uniform(0.9, 1.2))

    def _nucleus(
        self, piece: Piece, x: float, y: float, radius_um: float, stretch: float, turn: float = 0.0
    ) -> None:
        """Paint a blue nucleus with a paler middle and nothing brown in it."""
        r = radius_um / self.mpp
        value = piece.rng.uniform(0.55, 0.85)
        piece.ellipse(piece.h, x, y, (r * stretch, r / stretch), turn, value)
        piece.ellipse(piece.h, x, y, (r * stretch - 2.5, r / stretch - 2.5), turn, value * 0.72)
        piece.ellipse(piece.d, x, y, (r * stretch, r / stretch), turn, 0.0)

    def _nuclei_in(
        self, piece: Piece, area: BaseGeometry, per_mm2: float, size_um: tuple[float, float]
    ) -> None:
        x0, y0, x1, y1 = area.bounds
        count = int((x1 - x0) * (y1 - y0) * self.mpp**2 / 1e6 * per_mm2)
        points = piece.rng.uniform((x0, y0), (x1, y1), (count, 2))
        turns = piece.rng.uniform(0, 180, count)
        for (x, y), turn in zip(points[_inside(area, points)], turns, strict=False):
            self._nucleus(piece, x, y, size_um[0], float(np.sqrt(size_um[1] / size_um[0])), turn)

    def _glomerulus(self, piece: Piece, i: int) -> None:
        """Paint Bowman's space around a tuft of capillary loops; stained loops do not count."""
        g: Round = self.layout.glomeruli[i]
        piece.disc(piece.h, g, 1.0, 0.3)
        piece.disc(piece.h, g, 1 - 2.0 / self.mpp / g.radius, 0.02)
        piece.disc(piece.d, g, 1.0, 0.0)
        piece.disc(piece.h, g, 0.9, 0.16)
        rng = piece.rng
        loops = int(1.5 * (g.radius * self.mpp / 6.5) ** 2)
        reach, angle = 0.84 * g.radius * np.sqrt(rng.random(loops)), rng.uniform(0, 2 * np.pi, loops)
        for x, y in zip(g.x + reach * np.cos(angle), g.y + reach * np.sin(angle), strict=True):
            r = rng.uniform(3.0, 5.5) / self.mpp
            piece.ellipse(piece.h, x, y, (r, 0.8 * r), rng.uniform(0, 180), 0.24)
            if g.stained:
                piece.ellipse(piece.d, x, y, (r, 0.8 * r), 0, self.dab * 0.7)
            lumen_radius = r - 1.2 / self.mpp
            piece.ellipse(piece.h, x, y, (lumen_radius, 0.8 * lumen_radius), 0, 0.04)
            piece.ellipse(piece.d, x, y, (lumen_radius, 0.8 * lumen_radius), 0, 0.0)
            if rng.random() < 0.7:
                self._nucleus(piece, x + r, y, rng.uniform(2.2, 3.2), 1.2, rng.uniform(0, 180))

    def _artery(self, piece: Piece, i: int) -> None:
        """Paint a thick wall of muscle around a lumen; a stained lining does not count."""
        a: Round = self.layout.arteries[i]
        lumen_share = 0.55
        piece.disc(piece.h, a, 1.0, 0.22)
        piece.disc(piece.d, a, 1.0, 0.03)
        rng = piece.rng
        for k in np.arange(lumen_share + 0.1, 1.0, 0.13):
            count = max(6, int(2 * np.pi * k * a.radius * self.mpp / 16))
            for turn in rng.uniform(0, 2 * np.pi, count):
                x, y = a.x + k * a.radius * np.cos(turn), a.y + k * a.radius * np.sin(turn)
                self._nucleus(piece, x, y, 2.2, 1.7, np.degrees(turn) + 90)
        if a.stained:
            piece.disc(piece.d, a, lumen_share + 2.5 / self.mpp / a.radius, self.dab * 0.8)
        piece.disc(piece.h, a, lumen_share, 0.02)
        piece.disc(piece.d, a, lumen_share, 0.0)

    def _capillary(self, piece: Piece, i: int) -> None:
        c: Capillary = self.layout.capillaries[i]
        rng = piece.rng
        thick = c.kind == "ring" and rng.random() < THICK
        wall = (rng.uniform(1.9, 3.6) if thick else rng.uniform(1.1, 1.9)) / self.mpp
        lumen = c.outline.buffer(-wall)
        for plane in (piece.h, piece.d):
            piece.fill(plane, c.outline, 0.0)
        piece.fill(piece.h, c.outline, 0.26 if c.kind != "ring" else 0.1)
        strength = self.dab * rng.uniform(0.55, 1.15)
        if thick:  # a smudge around it
            piece.stroke(piece.d, c.outline, 0.3 * strength, round(2 * rng.uniform(0.5, 2.5) / self.mpp))
        if c.kind == "ring":
            piece.fill(piece.d, c.outline, strength)
        if c.kind == "partial":
            start, length = rng.uniform(0, 1), rng.uniform(0.25, 0.6)
            piece.arc(piece.d, c.outline, (start, start + length), strength, max(2, round(wall)))
        for plane in (piece.h, piece.d):
            piece.fill(plane, lumen, 0.03)
        if thick and rng.random() < 0.6:
            piece.fill(piece.d, lumen, strength * rng.uniform(0.1, 0.4))
        if c.kind == "serum":
            piece.fill(piece.d, lumen, strength * rng.uniform(0.25, 0.5))
        for share in rng.random(rng.integers(1, 3) if c.kind != "ring" else rng.integers(0, 2)):
            p = c.outline.exterior.interpolate(share, normalized=True)
            q = c.outline.exterior.interpolate(share + 0.02, normalized=True)
            turn = np.degrees(np.arctan2(q.y - p.y, q.x - p.x))
            self._nucleus(piece, p.x, p.y, rng.uniform(1.8, 2.5), 1.55, float(turn))


def _inside(area: BaseGeometry, points: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """True for each of (n, 2) x, y that lies in an area.

    Two threads may paint one shape where their pieces meet. `shapely.contains_xy` prepares its shape in place,
    and GEOS completes the prepared shape at the first query without a lock: queries of two threads at once damage the
    memory of the process (shapely 2.2.0, GEOS 3.14.1). So each call uses its own copy.
    """
    return np.asarray(shapely.contains_xy(shapely.from_wkb(shapely.to_wkb(area)), points), np.bool_)


def _ragged(
    outline: Polygon, middle: shapely.Point, share: float, rng: np.random.Generator, rough: float
) -> Polygon:
    """The outline drawn towards its middle, with a ragged border."""
    points = shapely.get_coordinates(shapely.segmentize(outline, outline.length / 48))[:-1]
    swing = rng.normal(0, rough, len(points))
    smooth = np.clip(1 + (swing + np.roll(swing, 1) + np.roll(swing, -1)) / 2, 0.5, 1.5)
    centre = np.array([middle.x, middle.y])
    return Polygon(centre + (points - centre) * (np.minimum(share * smooth, 0.97))[:, None])
