"""The layout of a phantom of a lymph node: outlines in level-0 pixels, drawn from one seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import shapely
from shapely import MultiPolygon, Polygon, affinity
from shapely.geometry.base import BaseGeometry

from wsi.arrays import PointsXY

ITC_UM = 200.0  # below: isolated tumour cells; AJCC, and Camelyon16's 200 um + 75 um rule
ISOLATED_UM = (40.0, 180.0)  # length of a group of isolated cells with a real outline
MACRO_UM = 2000.0  # above: macrometastasis

LesionClass = Literal["macro", "micro", "isolated"]
ArtefactKind = Literal["fold", "blur", "pen", "bubble", "edge"]
ARTEFACTS: tuple[ArtefactKind, ...] = ("fold", "blur", "pen", "bubble", "edge")


@dataclass(frozen=True, slots=True)
class Lesion:
    """A metastasis: its class by its longest side, and its true outline."""

    kind: LesionClass
    outline: Polygon


@dataclass(frozen=True, slots=True)
class Disc:
    """A follicle or a vessel."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Artefact:
    """An artefact on the slide: a line of points and a width, in level-0 pixels."""

    kind: ArtefactKind
    line: tuple[tuple[float, float], ...]
    width: float
    colour: tuple[int, int, int]


@dataclass(frozen=True, eq=False, slots=True)
class Layout:
    """Everything on one slide."""

    size: tuple[int, int]
    mpp: float
    nodes: tuple[Polygon, ...]
    follicles: tuple[Disc, ...]
    vessels: tuple[Disc, ...]
    lesions: tuple[Lesion, ...]
    cells: PointsXY = field(default_factory=lambda: np.empty((0, 2)))
    """(n, 2) x, y of tumour cells that lie alone or in small groups."""
    artefacts: tuple[Artefact, ...] = ()


class Planner:
    """Planner of a layout, which draws all random numbers from one generator.

    Lesions have random outlines, or those of ``outlines``, which lie around the origin and have a longest side of 1.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        size: tuple[int, int],
        mpp: float,
        outlines: Sequence[Polygon] = (),
    ) -> None:
        self.outlines = outlines
        self.rng = rng
        self.size = size
        self.mpp = mpp

    def px(self, um: float) -> float:
        """Micrometres to pixels."""
        return um / self.mpp

    def layout(self, *, tumour: bool) -> Layout:
        """A slide with nodes, and lesions if it is a tumour slide."""
        nodes = self.nodes()
        lesions, cells = self.lesions(nodes) if tumour else ((), np.empty((0, 2)))
        follicles = self.discs(nodes, per_mm2=2.2, radius_um=(90, 240), inset_um=170)
        vessels = self.discs(nodes, per_mm2=1.5, radius_um=(15, 55), inset_um=60)
        # a slide that is out of focus is so in several places
        counts = {kind: int(self.rng.integers(1, 5)) if kind == "blur" else 1 for kind in ARTEFACTS}
        present = [kind for kind in ARTEFACTS if self.rng.random() < 0.5]
        artefacts = tuple(self.artefact(kind) for kind in present for _ in range(counts[kind]))
        return Layout(self.size, self.mpp, nodes, follicles, vessels, lesions, cells, artefacts)

    def blob(self, x: float, y: float, radius: tuple[float, float], rough: float, waves: int) -> Polygon:
        """A closed outline around (x, y): an ellipse with ``waves`` harmonics of falling size."""
        angle = np.linspace(0, 2 * np.pi, 16 * waves, endpoint=False)
        deviation = np.zeros_like(angle)
        for k in range(2, waves + 2):
            deviation += self.rng.normal(0, rough / k) * np.cos(k * angle + self.rng.uniform(0, 2 * np.pi))
        factor = np.maximum(1 + deviation, 0.35)
        turn = self.rng.uniform(0, np.pi)
        u, v = radius[0] * factor * np.cos(angle), radius[1] * factor * np.sin(angle)
        points = np.stack(
            [x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn)], axis=1
        )
        return _largest(shapely.make_valid(Polygon(np.round(points, 1))))

    def nodes(self) -> tuple[Polygon, ...]:
        """Outlines of one to three sections beside each other, each well inside the slide."""
        width, height = self.size
        count = int(self.rng.integers(1, 4)) if width * self.mpp > 6000 else int(self.rng.integers(1, 3))
        along_x = width >= height
        outlines = []
        frame = shapely.box(0.03 * width, 0.03 * height, 0.97 * width, 0.97 * height)
        shares = self.rng.dirichlet(np.full(count, 8.0))
        start = 0.0
        for share in shares:
            w, h = (width * share, height) if along_x else (width, height * share)
            x = (start * width if along_x else 0) + w / 2
            y = (0 if along_x else start * height) + h / 2
            side = self.rng.uniform(0.36, 0.43)
            node = self.blob(x, y, (side * min(w, 1.6 * h), side * min(h, 1.6 * w)), 0.13, 5)
            slot = shapely.box(x - 0.47 * w, y - 0.47 * h, x + 0.47 * w, y + 0.47 * h)
            outlines.append(_largest(node.intersection(slot).intersection(frame)))
            start += share
        return tuple(outlines)

    def point_in(self, area: BaseGeometry) -> tuple[float, float]:
        """A uniform point of the area; its representative point where 200 draws all miss."""
        x0, y0, x1, y1 = area.bounds
        for _ in range(200):
            x, y = self.rng.uniform(x0, x1), self.rng.uniform(y0, y1)
            if shapely.contains_xy(area, x, y):
                return float(x), float(y)
        middle = area.representative_point()
        return float(middle.x), float(middle.y)

    def discs(
        self, nodes: tuple[Polygon, ...], *, per_mm2: float, radius_um: tuple[float, float], inset_um: float
    ) -> tuple[Disc, ...]:
        """Discs inside the nodes, some way from the border."""
        discs = []
        for node in nodes:
            interior = node.buffer(-self.px(inset_um))
            if interior.is_empty:
                continue
            for _ in range(self.rng.poisson(per_mm2 * node.area * self.mpp**2 / 1e6)):
                x, y = self.point_in(interior)
                discs.append(Disc(x, y, self.px(self.rng.uniform(*radius_um))))
        return tuple(discs)

    def lesions(self, nodes: tuple[Polygon, ...]) -> tuple[tuple[Lesion, ...], PointsXY]:
        """At least one macro- or micrometastasis, up to two more, and up to three groups of isolated cells."""
        lengths_um: list[float] = [self.rng.uniform(2100, 3200)] if self.rng.random() < 0.35 else []
        more_count = self.rng.integers(0 if lengths_um else 1, 3)
        lengths_um += [float(np.exp(self.rng.uniform(np.log(260), np.log(1500)))) for _ in range(more_count)]
        lesions: list[Lesion] = []
        for length_um in lengths_um:
            outline = self.metastasis(nodes, length_um, [lesion.outline for lesion in lesions])
            if outline is not None:
                lesions.append(Lesion(size_class(outline, self.mpp), outline))
        cells = []
        for _ in range(self.rng.integers(0, 4)):
            group, outline = self.isolated(nodes)
            if all(outline.distance(lesion.outline) > self.px(120) for lesion in lesions):
                cells.append(group)
                lesions.append(Lesion("isolated", outline))
        return tuple(lesions), np.concatenate(cells) if cells else np.empty((0, 2))

    def metastasis(
        self, nodes: tuple[Polygon, ...], length_um: float, others: list[Polygon]
    ) -> Polygon | None:
        """An outline of about this length inside a node, apart from the others; None if it finds no room."""
        half = self.px(length_um) / 2
        for _ in range(30):
            node = nodes[int(self.rng.integers(len(nodes)))]
            x, y = self.point_in(node.buffer(-min(half * 0.5, self.px(300))) or node)
            if self.outlines:
                shape = self.real_outline(x, y, 2 * half)
            else:
                aspect = self.rng.uniform(0.45, 0.85)
                shape = self.blob(x, y, (half * 0.85, half * aspect), 0.35, 14)
            shape = _largest(shape.intersection(node.buffer(-self.px(25))))
            if shape.is_empty or longest(shape) * self.mpp < ITC_UM * 1.15:
                continue
            if all(shape.distance(other) > self.px(150) for other in others):
                return shape if self.outlines else self.with_islands(shape)
        return None

    def real_outline(self, x: float, y: float, length: float) -> Polygon:
        """One of the given outlines, turned, around (x, y), with a longest side of ``length`` pixels."""
        shape = self.outlines[int(self.rng.integers(len(self.outlines)))]
        angle, flip = self.rng.uniform(0, 360), self.rng.choice([-1, 1])
        turned = affinity.rotate(affinity.scale(shape, length * flip, length, origin=(0, 0)), angle, (0, 0))
        return _largest(shapely.set_precision(affinity.translate(turned, x, y), 0.1))

    def with_islands(self, shape: Polygon) -> Polygon:
        """The lesion with islands of lymphoid tissue if it is large: they are holes of the truth."""
        for _ in range(self.rng.integers(0, 3) if longest(shape) * self.mpp > 900 else 0):
            radius = self.px(self.rng.uniform(50, 110))
            x, y = self.point_in(shape)
            island = self.blob(x, y, (radius, radius * 0.7), 0.2, 5)
            if shape.buffer(-self.px(40)).contains(island):
                shape = _largest(shape.difference(island))
        return shape

    def isolated(self, nodes: tuple[Polygon, ...]) -> tuple[PointsXY, Polygon]:
        """2 to 20 tumour cells within less than 0.2 mm, and the outline around them."""
        node = nodes[int(self.rng.integers(len(nodes)))]
        interior = node.buffer(-self.px(80))
        x, y = self.point_in(node if interior.is_empty else interior)
        if self.outlines:
            length_um = self.rng.uniform(*ISOLATED_UM)
            return np.empty((0, 2)), self.real_outline(x, y, self.px(length_um))
        count = int(self.rng.integers(2, 21))
        spread = self.px(min(9.0 * np.sqrt(count), 70.0))
        angle, reach = self.rng.uniform(0, 2 * np.pi, count), spread * np.sqrt(self.rng.random(count))
        cells = np.stack([x + reach * np.cos(angle), y + reach * np.sin(angle)], axis=1)
        hull = shapely.MultiPoint(cells).buffer(self.px(9)).buffer(self.px(12)).buffer(-self.px(12))
        return cells, _largest(shapely.convex_hull(hull) if hull.geom_type != "Polygon" else hull)

    def artefact(self, kind: ArtefactKind) -> Artefact:
        """A line across part of the slide, or a disc as a line of one point."""
        width, height = self.size
        x, y = self.rng.uniform(0.1, 0.9) * width, self.rng.uniform(0.1, 0.9) * height
        angle = self.rng.uniform(0, 2 * np.pi)
        if kind == "edge":
            on_left = self.rng.random() < 0.5
            edge_x = self.rng.uniform(0.004, 0.015) * width
            edge_x = edge_x if on_left else width - edge_x
            return Artefact(kind, ((edge_x, -100.0), (edge_x, height + 100.0)), self.px(14), (150, 158, 156))
        steps = 1 if kind in ("blur", "bubble") else 24
        length = {"fold": 900.0, "pen": 1800.0}.get(kind, 0.0)
        points = []
        for _ in range(steps):
            points.append((round(x, 1), round(y, 1)))
            angle += self.rng.normal(0, 0.25)
            x += self.px(length / steps) * np.cos(angle)
            y += self.px(length / steps) * np.sin(angle)
        um = {"fold": (18, 40), "blur": (250, 600), "pen": (60, 130), "bubble": (120, 380)}[kind]
        colours = [(28, 62, 150), (22, 110, 62), (30, 30, 34)]
        return Artefact(
            kind, tuple(points), self.px(self.rng.uniform(*um)), colours[int(self.rng.integers(3))]
        )


def longest(shape: Polygon) -> float:
    """Longest side of the smallest enclosing rectangle, in the outline's unit."""
    points = shapely.get_coordinates(shapely.oriented_envelope(shape))
    return float(np.hypot(*np.diff(points[:3], axis=0).T).max())


def size_class(shape: Polygon, mpp: float) -> LesionClass:
    """Macro above 2 mm, micro from 0.2 mm, isolated cells below."""
    length_um = longest(shape) * mpp
    return "macro" if length_um > MACRO_UM else "micro" if length_um >= ITC_UM else "isolated"


def _largest(shape: BaseGeometry) -> Polygon:
    """The largest polygon of a geometry; an empty polygon if it has none."""
    if isinstance(shape, Polygon):
        return shape
    parts = [g for g in getattr(shape, "geoms", []) if isinstance(g, Polygon | MultiPolygon)]
    flat = [p for part in parts for p in getattr(part, "geoms", [part])]
    return max(flat, key=lambda p: p.area, default=Polygon())
