"""The layout of a phantom of a kidney stained for C4d: outlines in level-0 pixels, drawn from one seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import shapely
from scipy.spatial import Voronoi
from shapely import Polygon, STRtree
from shapely.geometry.base import BaseGeometry

from wsi.arrays import PointsXY
from wsi.phantoms.layout import ARTEFACTS, Artefact, Planner

CapillaryKind = Literal["ring", "plain", "partial", "serum"]
TubuleKind = Literal["proximal", "distal", "atrophic"]
ZoneKind = Literal["scar", "infarct"]


@dataclass(frozen=True, eq=False, slots=True)
class Capillary:
    """A peritubular capillary, or in the medulla one of the vasa recta.

    Attributes:
        kind: ``ring`` is stained all around, so C4d-positive; the others are negative: ``plain``, ``partial`` (a part
            of the ring is stained) and ``serum`` (stained plasma in the lumen, the wall is not).
        outline: outer border of the wall.
    """

    kind: CapillaryKind
    outline: Polygon

    @property
    def positive(self) -> bool:
        """Whether the staining is linear and circumferential (Banff)."""
        return self.kind == "ring"


@dataclass(frozen=True, eq=False, slots=True)
class Tubule:
    """A tubule's section; ``brown`` is the amount of stain in its cells, which is not C4d of a capillary."""

    kind: TubuleKind
    outline: Polygon
    brown: float


@dataclass(frozen=True, slots=True)
class Round:
    """A section of a glomerulus or artery; ``stained``: its capillaries or wall are brown, which does not count."""

    x: float
    y: float
    radius: float
    stained: bool


@dataclass(frozen=True, eq=False, slots=True)
class Zone:
    """A scar or an infarct, without capillaries that may be counted."""

    kind: ZoneKind
    outline: Polygon


@dataclass(frozen=True, eq=False, slots=True)
class KidneyLayout:
    """Everything on one slide."""

    size: tuple[int, int]
    mpp: float
    pieces: tuple[Polygon, ...]
    medulla: BaseGeometry
    tubules: tuple[Tubule, ...]
    capillaries: tuple[Capillary, ...]
    glomeruli: tuple[Round, ...]
    arteries: tuple[Round, ...]
    zones: tuple[Zone, ...]
    artefacts: tuple[Artefact, ...]

    @property
    def c4d_percent(self) -> float:
        """Percentage of positive capillaries; NaN where there are no capillaries."""
        positive = sum(c.positive for c in self.capillaries)
        return 100 * positive / len(self.capillaries) if self.capillaries else float("nan")


# share of each kind of trap among capillaries that are not positive
TRAPS: tuple[tuple[CapillaryKind, float], ...] = (("partial", 0.04), ("serum", 0.05))
# distance of neighbouring sections in cortex, medulla and scar; it is 40 to 80 um on data/kidney_stains
PITCH_UM = {"cortex": 56.0, "medulla": 40.0, "scar": 46.0}
GAP_UM = (5.0, 9.0)  # interstitium between two tubules


class KidneyPlanner(Planner):
    """Planner of a kidney's layout, which draws all random numbers from one generator."""

    def kidney(self, percent: float) -> KidneyLayout:
        """A slide on which ``percent`` of the capillaries are positive, as far as their number allows."""
        pieces = self.nodes()
        medulla = shapely.union_all([self.medulla(piece) for piece in pieces])
        zones = tuple(self.zone(kind, pieces) for kind in ("scar", "infarct") if self.rng.random() < 0.35)
        glomeruli = self.rounds(pieces, per_mm2=3.2, radius_um=(75, 110), inset_um=130, leave_out=medulla)
        arteries = self.rounds(pieces, per_mm2=0.9, radius_um=(35, 170), inset_um=180)
        arteries = _apart(arteries, glomeruli, self.px(20))
        round_areas = [shapely.Point(r.x, r.y).buffer(r.radius + self.px(4)) for r in (*glomeruli, *arteries)]
        large_structures = shapely.union_all(round_areas)
        scar = shapely.union_all([zone.outline for zone in zones])
        tubules: list[Tubule] = []
        places: list[tuple[PointsXY, PointsXY]] = []
        for piece in pieces:
            section_tubules, section_places = self.tubules(piece, large_structures, medulla, scar)
            tubules += section_tubules
            places.append(section_places)
        capillaries = self.capillaries(places, pieces, large_structures, scar, percent / 100)
        present = [kind for kind in ARTEFACTS if self.rng.random() < 0.35]
        artefacts = tuple(self.artefact(kind) for kind in present)
        return KidneyLayout(
            self.size,
            self.mpp,
            pieces,
            medulla,
            tuple(tubules),
            capillaries,
            glomeruli,
            arteries,
            zones,
            artefacts,
        )

    def medulla(self, piece: Polygon) -> BaseGeometry:
        """The part of the piece beyond a line across it: from none to two fifths."""
        x0, y0, x1, y1 = piece.bounds
        share = self.rng.choice([0.0, self.rng.uniform(0.15, 0.4)])
        return piece.intersection(shapely.box(x1 - share * (x1 - x0), y0, x1, y1))

    def zone(self, kind: ZoneKind, pieces: tuple[Polygon, ...]) -> Zone:
        """A scar or an infarct inside a piece."""
        piece = pieces[int(self.rng.integers(len(pieces)))]
        x, y = self.point_in(piece)
        reach = self.px(self.rng.uniform(350, 700))
        return Zone(kind, _largest(self.blob(x, y, (reach, 0.7 * reach), 0.25, 8).intersection(piece)))

    def rounds(
        self,
        pieces: tuple[Polygon, ...],
        *,
        per_mm2: float,
        radius_um: tuple[float, float],
        inset_um: float,
        leave_out: BaseGeometry | None = None,
    ) -> tuple[Round, ...]:
        """Glomeruli or arteries that do not touch each other; on one slide in three some of them are stained."""
        stained = self.rng.random() < 0.33
        rounds: list[Round] = []
        for disc in self.discs(pieces, per_mm2=per_mm2, radius_um=radius_um, inset_um=inset_um):
            candidate = Round(disc.x, disc.y, disc.radius, bool(stained and self.rng.random() < 0.6))
            outside = leave_out is None or not shapely.contains_xy(leave_out, disc.x, disc.y)
            if outside and _apart([candidate], rounds, self.px(15)):
                rounds.append(candidate)
        return tuple(rounds)

    def tubules(
        self, piece: Polygon, big: BaseGeometry, medulla: BaseGeometry, scar: BaseGeometry
    ) -> tuple[list[Tubule], tuple[PointsXY, PointsXY]]:
        """Tubules as rounded Voronoi cells, and the places between them: corners (x, y), and sides (x0, y0, x1, y1)."""
        sites, region = self.sites(piece, big, medulla, scar)
        if len(sites) < 8:
            return [], (np.empty((0, 2)), np.empty((0, 4)))
        turn = self.rng.uniform(0, np.pi)
        stretch = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.diag(
            [1.0, 0.72]
        )
        diagram = Voronoi(sites @ stretch)  # cells of the stretched plane are longer one way
        corners = diagram.vertices @ np.linalg.inv(stretch)
        rings = [[] if -1 in ring else ring for ring in (diagram.regions[r] for r in diagram.point_region)]
        closed_cells = [i for i, ring in enumerate(rings) if len(ring) > 3]
        cells = shapely.polygons([shapely.linearrings(corners[rings[i]]) for i in closed_cells])
        gap = self.rng.uniform(*GAP_UM, len(closed_cells)) / 2 / self.mpp
        round_px = self.px(9)
        shapes = shapely.buffer(shapely.buffer(cells, -gap - round_px), round_px, quad_segs=3)
        interior = piece.buffer(-self.px(12))
        shapely.prepare(interior)
        fitting = (shapely.area(shapes) > self.px(14) ** 2) & shapely.within(shapes, interior)
        fitting &= shapely.area(shapes) < self.px(110) ** 2
        brown = self.brown(sites[closed_cells])
        tubules = [
            Tubule(self.kind(region[i]), shape, float(b))
            for i, shape, b, ok in zip(closed_cells, shapes, brown, fitting, strict=True)
            if ok and isinstance(shape, Polygon)
        ]
        return tubules, self.between(diagram, corners, sites)

    def sites(
        self, piece: Polygon, big: BaseGeometry, medulla: BaseGeometry, scar: BaseGeometry
    ) -> tuple[PointsXY, npt.NDArray[np.str_]]:
        """Middles of tubules, and the region that each lies in."""
        points_by_region, names_by_region = [], []
        cortex = piece.difference(shapely.union_all([medulla, scar]))
        areas = {
            "cortex": cortex,
            "medulla": piece.intersection(medulla).difference(scar),
            "scar": piece.intersection(scar),
        }
        for name, area in areas.items():
            if area.is_empty:
                continue
            pitch = self.px(PITCH_UM[name])
            x0, y0, x1, y1 = area.bounds
            cols, rows = int((x1 - x0) / pitch) + 1, int((y1 - y0) / (0.866 * pitch)) + 1
            row, col = np.mgrid[0:rows, 0:cols]
            points = np.stack(
                [(col + 0.5 * (row % 2)) * pitch + x0, row * 0.866 * pitch + y0], axis=-1
            ).reshape(-1, 2)
            points += self.rng.uniform(-0.3, 0.3, points.shape) * pitch
            inside = shapely.contains_xy(area, points) & ~shapely.contains_xy(big, points)
            points_by_region.append(points[inside])
            names_by_region.append(np.full(int(inside.sum()), name))
        if not points_by_region:
            return np.empty((0, 2)), np.empty(0, np.str_)
        return np.concatenate(points_by_region), np.concatenate(names_by_region)

    def kind(self, region: str) -> TubuleKind:
        """A random kind for a tubule, by the region that it lies in."""
        shares = {"cortex": (0.66, 0.27, 0.07), "medulla": (0.05, 0.85, 0.1), "scar": (0.05, 0.15, 0.8)}[
            region
        ]
        kinds: tuple[TubuleKind, ...] = ("proximal", "distal", "atrophic")
        return kinds[int(self.rng.choice(3, p=shares))]

    def brown(self, sites: PointsXY) -> npt.NDArray[np.float64]:
        """The amount of stain in each tubule's cells: on some slides groups of tubules are stained, on others none."""
        amount = np.zeros(len(sites))
        if self.rng.random() < 0.55:
            for _ in range(self.rng.integers(1, 4)):
                middle = sites[int(self.rng.integers(len(sites)))]
                in_group = np.hypot(*(sites - middle).T) < self.px(self.rng.uniform(120, 320))
                amount[in_group] = np.where(
                    self.rng.random(int(in_group.sum())) < 0.5, self.rng.uniform(0.3, 1.0), amount[in_group]
                )
        return amount

    def between(
        self, diagram: Voronoi, corners: PointsXY, sites: PointsXY
    ) -> tuple[PointsXY, npt.NDArray[np.float64]]:
        """Corners where cells meet, and sides between two cells of usual size."""
        ridges = np.array([r for r in diagram.ridge_vertices if -1 not in r])
        sides = np.concatenate([corners[ridges[:, 0]], corners[ridges[:, 1]]], axis=1)
        length = np.hypot(sides[:, 2] - sides[:, 0], sides[:, 3] - sides[:, 1])
        x0, y0 = sites.min(axis=0)
        x1, y1 = sites.max(axis=0)
        inside = (corners[:, 0] > x0) & (corners[:, 0] < x1) & (corners[:, 1] > y0) & (corners[:, 1] < y1)
        return corners[inside], sides[(length > self.px(24)) & (length < self.px(90))]

    def capillaries(
        self,
        places: list[tuple[PointsXY, npt.NDArray[np.float64]]],
        pieces: tuple[Polygon, ...],
        big: BaseGeometry,
        scar: BaseGeometry,
        share: float,
    ) -> tuple[Capillary, ...]:
        """Capillaries between tubules, apart from each other; positive ones lie in groups."""
        shapes: list[Polygon] = []
        for corners, sides in places:
            for x, y in corners[self.rng.random(len(corners)) < 0.42]:
                r = self.px(self.rng.uniform(4.0, 8.5))
                shapes.append(self.blob(x, y, (r, r * self.rng.uniform(0.55, 0.95)), 0.22, 3))
            for x0, y0, x1, y1 in sides[self.rng.random(len(sides)) < 0.3]:
                shapes.append(self.slit(np.array([x0, y0]), np.array([x1, y1])))
        area = shapely.union_all(pieces).buffer(-self.px(15)).difference(shapely.union_all([big, scar]))
        shapely.prepare(area)
        capillary_shapes = _spread(
            [s for s, ok in zip(shapes, shapely.within(shapes, area), strict=True) if ok], self.px(3)
        )
        return self.stained(capillary_shapes, share)

    def slit(self, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> Polygon:
        """A long capillary along the side between two tubules."""
        middle, direction = (a + b) / 2, b - a
        half = min(np.hypot(*direction) * 0.42, self.px(self.rng.uniform(8, 24)))
        width = self.px(self.rng.uniform(2.4, 4.6))
        direction = direction / np.hypot(*direction)
        normal = np.array([-direction[1], direction[0]])
        angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        width_factor = (
            1 + 0.18 * np.sin(2 * angle + self.rng.uniform(0, 6)) + self.rng.normal(0, 0.05, len(angle))
        )
        bend = self.px(self.rng.normal(0, 1.5)) * np.cos(angle) ** 2
        points = middle + np.outer(half * np.cos(angle), direction)
        points += np.outer(width * np.sin(angle) * width_factor + bend, normal)
        return _largest(shapely.make_valid(Polygon(np.round(points, 1))))

    def stained(self, shapes: list[Polygon], share: float) -> tuple[Capillary, ...]:
        """Capillaries with their kinds: exactly the rounded share is positive, in groups of a quarter millimetre."""
        if not shapes:
            return ()
        middles = shapely.get_coordinates(shapely.centroid(shapes))
        waves = self.rng.normal(0, 1 / self.px(250), (6, 2))
        field = np.cos(middles @ waves.T + self.rng.uniform(0, 2 * np.pi, 6)).sum(axis=1)
        rank = np.argsort(-(field + self.rng.normal(0, 1.2, len(shapes))), kind="stable")
        kinds: list[CapillaryKind] = ["plain"] * len(shapes)
        for i in rank[: round(share * len(shapes))]:
            kinds[i] = "ring"
        draws = self.rng.random(len(shapes))
        for i, draw in enumerate(draws):
            if kinds[i] == "plain":
                kinds[i] = "partial" if draw < TRAPS[0][1] else "serum" if draw > 1 - TRAPS[1][1] else "plain"
        return tuple(Capillary(kind, shape) for kind, shape in zip(kinds, shapes, strict=True))


def _largest(shape: BaseGeometry) -> Polygon:
    parts = [p for p in getattr(shape, "geoms", [shape]) if isinstance(p, Polygon)]
    return max(parts, key=lambda p: p.area) if parts else Polygon()


def _apart(
    rounds: tuple[Round, ...] | list[Round], others: tuple[Round, ...] | list[Round], gap: float
) -> tuple[Round, ...]:
    """The rounds that are at least ``gap`` away from all others."""
    return tuple(
        r for r in rounds if all(np.hypot(r.x - o.x, r.y - o.y) > r.radius + o.radius + gap for o in others)
    )


def _spread(shapes: list[Polygon], gap: float) -> list[Polygon]:
    """The shapes without those that come nearer than ``gap`` to a shape before them."""
    if not shapes:
        return []
    pairs = STRtree(shapes).query(shapes, predicate="dwithin", distance=gap)
    dropped = np.zeros(len(shapes), np.bool_)
    for i, j in sorted(zip(*pairs, strict=True)):
        if j < i and not dropped[j]:
            dropped[i] = True
    return [shape for shape, is_dropped in zip(shapes, dropped, strict=True) if not is_dropped]
