"""Fields of a kidney phantom; a field is feasible if a reader would count capillaries in it."""

from __future__ import annotations

from dataclasses import dataclass

import shapely
from shapely import Polygon, STRtree
from shapely.geometry.base import BaseGeometry

from wsi.marks.c4d import field_side
from wsi.phantoms.kidney.layout import KidneyLayout
from wsi.phantoms.layout import Artefact

MOST_UNFIT = 2 / 3  # a field with more of it unfit is not feasible (Kim's thesis; facts/papers.md section 4)


@dataclass(frozen=True, slots=True)
class KidneyField:
    """A square field: corner and side in level-0 pixels, and the reason why it is not feasible; empty if it is."""

    x: int
    y: int
    side: int
    why_not: str

    @property
    def box(self) -> Polygon:
        """The square of the field, in level-0 pixels."""
        return shapely.box(self.x, self.y, self.x + self.side, self.y + self.side)


def fields_of(layout: KidneyLayout) -> tuple[KidneyField, ...]:
    """Every field of the grid that tissue reaches into, row by row, and whether it is feasible.

    The grid begins at the slide's corner; a field at its right or lower border may reach off the slide, which is empty.
    Not feasible: more than two thirds are empty, artefact, scar or infarct, glomerulus or large vessel; or it holds no
    capillary at all.
    """
    tissue = shapely.union_all(layout.pieces)
    unfit_areas = [("scar or infarct", shapely.union_all([z.outline for z in layout.zones]))]
    rounds = [shapely.Point(r.x, r.y).buffer(r.radius) for r in (*layout.glomeruli, *layout.arteries)]
    unfit_areas.append(("glomerulus or large vessel", shapely.union_all(rounds)))
    unfit_areas.append(("artefact", shapely.union_all([_covered(a) for a in layout.artefacts])))
    middles = STRtree(shapely.centroid([c.outline for c in layout.capillaries]))
    fields = []
    side = field_side(layout.mpp)
    for y in range(0, layout.size[1], side):
        for x in range(0, layout.size[0], side):
            box = shapely.box(x, y, x + side, y + side)
            inside = tissue.intersection(box)
            if inside.area < 0.05 * box.area:
                continue
            why_not = _why_not(box, inside, unfit_areas, len(middles.query(box, "contains")))
            fields.append(KidneyField(x, y, side, why_not))
    return tuple(fields)


def _why_not(
    box: Polygon, inside: BaseGeometry, unfit: list[tuple[str, BaseGeometry]], capillaries: int
) -> str:
    shares = {"empty": 1 - inside.area / box.area}
    shares |= {name: shape.intersection(inside).area / box.area for name, shape in unfit}
    covered = shapely.union_all([shape for _, shape in unfit]).intersection(inside).area / box.area
    if shares["empty"] + covered > MOST_UNFIT:
        return max(shares, key=lambda name: shares[name])
    return "" if capillaries else "no capillary"


def _covered(artefact: Artefact) -> BaseGeometry:
    if len(artefact.line) == 1:
        return shapely.Point(artefact.line[0]).buffer(artefact.width)
    return shapely.LineString(artefact.line).buffer(artefact.width / 2)
