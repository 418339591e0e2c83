"""Outlines on a slide: polygons with holes, read from and written to other programs' files."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np
import shapely
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring
from shapely import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from wsi.errors import AnnotationError
from wsi.files import write_text
from wsi.marks.geojson import objects_of, parse_json
from wsi.marks.rings import repaired
from wsi.vocabulary import (
    EXCLUSION_GROUP,
    GROUP_COLOURS,
    HOLE_GROUPS,
    NOT_TISSUE_GROUPS,
    TUMOUR_GROUP,
    TUMOUR_GROUPS,
)

log = logging.getLogger(__name__)

AREA_TYPES = frozenset({"Polygon", "Spline", "Rectangle"})  # of ASAP; dots and measurements enclose nothing
ELLIPSE_TYPES = frozenset({"2", "ellipse"})  # of ImageScope and HALO: two corners of the box around it
BOX_TYPES = frozenset({"1", "rectangle"})  # of the same, where two corners are given
SMALLEST_AREA = 1e-6  # level-0 px2: a line may keep so much by rounding
ELLIPSE_CORNERS = 64  # of the polygon that stands for an ellipse: 0.2 % of its area is lost


@dataclass(frozen=True, slots=True)
class Annotation:
    """One outline with its group, in level-0 pixels."""

    outline: Polygon
    group: str
    name: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class Outlines:
    """The outlines that a file marks.

    Attributes:
        annotations: every outline that encloses an area.
        note: a sentence about objects that enclose nothing, or that were read in a changed form; may be empty.
    """

    annotations: tuple[Annotation, ...]
    note: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class Regions:
    """The area an annotation file marks.

    Attributes:
        area: union of the positive outlines less the negative ones; may be empty.
        repaired: number of rings that crossed themselves and were repaired.
    """

    area: MultiPolygon
    repaired: int

    @property
    def note(self) -> str:
        """A sentence with the number of repaired rings; empty where none was repaired."""
        if self.repaired == 0:
            return ""
        return (
            "1 ring that crossed itself was repaired"
            if self.repaired == 1
            else f"{self.repaired} rings that crossed themselves were repaired"
        )


def read_annotations(path: Path) -> list[Annotation]:
    """The outlines of `read_outlines`; its note on the file goes to the log.

    Raises:
        AnnotationError: the file is none of these, or broken.
    """
    outlines = read_outlines(path)
    if outlines.note:
        log.warning("%s: %s", path, outlines.note)
    return list(outlines.annotations)


def read_outlines(path: Path) -> Outlines:
    """Read ASAP XML, ImageScope or HALO XML, or GeoJSON; rings as they are in the file.

    Dots, lines and measurements enclose nothing: the note counts them, so none is dropped silently.

    Raises:
        AnnotationError: the file is none of these, or broken.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{path} cannot be read ({error.strerror}); check the path") from error
    name = path.name.lower()
    if name.endswith((".xml", ".annotations")):
        return _read_xml(path, data)
    if name.endswith((".geojson", ".json", ".geojson.gz")):
        return _read_geojson(path, data)
    raise AnnotationError(
        f"{path} has no known suffix; use .xml (ASAP, ImageScope), .annotations (HALO), .geojson or .json"
    )


def _outlines(annotations: Iterable[Annotation | None], kinds: Iterable[str], ellipses: int = 0) -> Outlines:
    """Outlines, and a note on the annotations that are None; ``kinds`` has the kind of each, in the same order."""
    pairs = list(zip(annotations, kinds, strict=True))
    empty = Counter(kind for annotation, kind in pairs if annotation is None)
    parts = []
    if empty:
        kinds_text = ", ".join(f"{count} x {kind}" for kind, count in sorted(empty.items()))
        verb_phrase = (
            "object encloses no area and counts"
            if empty.total() == 1
            else "objects enclose no area and count"
        )
        parts.append(f"{empty.total()} {verb_phrase} for nothing ({kinds_text})")
    if ellipses:
        parts.append(f"ellipses that are given by two corners were read as outlines: {ellipses}")
    return Outlines(tuple(a for a, _ in pairs if a is not None), "; ".join(parts))


def _read_xml(path: Path, data: bytes) -> Outlines:
    try:
        root = fromstring(data)
    except (ParseError, DefusedXmlException, ValueError, LookupError, RecursionError) as error:
        raise AnnotationError(f"{path} is not safe, well-formed XML ({error}); export it again") from error
    if root.tag == "ASAP_Annotations":
        nodes = list(root.iter("Annotation"))
        return _outlines([_asap(n, path) for n in nodes], [n.get("Type", "Polygon") for n in nodes])
    nodes = list(root.iter("Region"))
    if not nodes and root.tag != "Annotations":
        raise AnnotationError(f"{path} is XML of kind <{root.tag}>; ASAP or ImageScope was expected")
    outlines = [_imagescope(n, path) for n in nodes]
    ellipses = sum(_is_ellipse(n, a) for n, a in zip(nodes, outlines, strict=True))
    return _outlines(outlines, [f"region of type {n.get('Type', '0')}" for n in nodes], ellipses)


def _asap(node: Element, path: Path) -> Annotation | None:
    if node.get("Type", "Polygon") not in AREA_TYPES:
        return None
    rows = [(n.get("Order", "0"), n.get("X", ""), n.get("Y", "")) for n in node.iter("Coordinate")]
    points = _numbers(rows, path)
    order = np.argsort(points[:, 0], kind="stable")
    return _polygon(points[order][:, 1:], node.get("PartOfGroup", "None"), node.get("Name", ""))


def _imagescope(node: Element, path: Path) -> Annotation | None:
    """A region of ImageScope, or of HALO, which calls its vertices ``V``."""
    vertices = [n for n in node.iter() if n.tag in ("Vertex", "V")]
    points = _numbers([("0", n.get("X", ""), n.get("Y", "")) for n in vertices], path)[:, 1:]
    group = EXCLUSION_GROUP if node.get("NegativeROA") == "1" else TUMOUR_GROUP
    kind = node.get("Type", "0").casefold()
    if len(points) == 2 and kind in ELLIPSE_TYPES:
        points = _ellipse(points)
    elif len(points) == 2 and kind in BOX_TYPES:
        (x0, y0), (x1, y1) = points
        points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    return _polygon(points, group, node.get("Text", ""))


def _is_ellipse(node: Element, annotation: Annotation | None) -> bool:
    corners = sum(1 for n in node.iter() if n.tag in ("Vertex", "V"))
    return annotation is not None and corners == 2 and node.get("Type", "0").casefold() in ELLIPSE_TYPES


def _ellipse(corners: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The ellipse that fills the box between two corners, as a polygon."""
    middle, half = corners.mean(axis=0), np.abs(corners[1] - corners[0]) / 2
    turn = np.arange(ELLIPSE_CORNERS) * 2 * np.pi / ELLIPSE_CORNERS
    return np.asarray(middle + half * np.stack([np.cos(turn), np.sin(turn)], axis=1))


def _numbers(rows: Sequence[tuple[str, str, str]], path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    try:
        points = np.array(rows, dtype=np.float64).reshape(-1, 3)
    except (ValueError, OverflowError) as error:
        raise AnnotationError(f"{path} holds a coordinate that is not a number ({error})") from error
    if not np.isfinite(points).all():
        raise AnnotationError(f"{path} holds a coordinate that is not finite; export it again")
    return points


def _polygon(points: np.ndarray[Any, np.dtype[np.float64]], group: str, name: str) -> Annotation | None:
    """A ring of at least three points that encloses an area; None for dots and lines."""
    if len(points) < 3 or not _encloses(Polygon(points)):
        return None
    return Annotation(Polygon(points), group, name)


def _encloses(outline: Polygon) -> bool:
    """Whether the corners span an area; corners on one line do not, however many there are."""
    return bool(outline.convex_hull.area > SMALLEST_AREA)


def _read_geojson(path: Path, data: bytes) -> Outlines:
    value = parse_json(path, data)
    if isinstance(value, dict) and "positive" in value:  # NCRF's form of Camelyon16's outlines
        return _ncrf(value, path)
    annotations: list[Annotation | None] = []
    kinds = []
    for o in objects_of(path, value):
        parts = [part for part in _polygons(o.shape) if _encloses(part)]
        annotations += [Annotation(part, o.group or TUMOUR_GROUP, o.name) for part in parts] or [None]
        kinds += [o.shape.geom_type] * max(1, len(parts))
    return _outlines(annotations, kinds)


def _ncrf(value: dict[str, Any], path: Path) -> Outlines:
    annotations = []
    try:
        for key, group in (("positive", TUMOUR_GROUP), ("negative", EXCLUSION_GROUP)):
            for ring in value.get(key, []):
                points = _numbers([("0", x, y) for x, y in ring["vertices"]], path)[:, 1:]
                annotations.append(_polygon(points, group, str(ring.get("name", ""))))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise AnnotationError(f"{path} is not NCRF's form of outlines ({error!r})") from error
    return _outlines(annotations, ["ring"] * len(annotations))


def tumour_regions(annotations: Iterable[Annotation], source: Path | None = None) -> Regions:
    """Union of tumour outlines less the excluded ones; rings that cross themselves are repaired.

    Args:
        annotations: their groups must be in `TUMOUR_GROUPS` or `HOLE_GROUPS`.
        source: the file that the error names.

    Raises:
        AnnotationError: a group is in neither; it must neither count as tumour nor be left out silently.
    """
    parts: dict[bool, list[Annotation]] = {True: [], False: []}
    for annotation in annotations:
        group = annotation.group.strip().casefold()
        if group not in TUMOUR_GROUPS | HOLE_GROUPS:
            raise AnnotationError(
                f"{source or 'the annotations'}: group {annotation.group!r} is unknown; tumour is one of "
                f"{', '.join(sorted(TUMOUR_GROUPS))}, what is cut out one of {', '.join(sorted(HOLE_GROUPS))}"
            )
        parts[group in TUMOUR_GROUPS].append(annotation)
    return _union(parts[True], parts[False], source)


def marked_regions(annotations: Iterable[Annotation], source: Path | None = None) -> Regions:
    """Union of all outlines, whatever their group, less those named exclusion or ignore: a tissue mask."""
    outlines = list(annotations)
    included_outlines = [a for a in outlines if a.group.casefold() not in NOT_TISSUE_GROUPS]
    return _union(included_outlines, [a for a in outlines if a.group.casefold() in NOT_TISSUE_GROUPS], source)


def _union(positive: Iterable[Annotation], negative: Iterable[Annotation], source: Path | None) -> Regions:
    (area, repaired_area), (holes, repaired_holes) = (_valid(group, source) for group in (positive, negative))
    return Regions(MultiPolygon(_polygons(area.difference(holes))), repaired_area + repaired_holes)


def _valid(annotations: Iterable[Annotation], source: Path | None = None) -> tuple[BaseGeometry, int]:
    """The union of the outlines, and the number of those that had to be repaired."""
    outlines = [a.outline for a in annotations]
    broken = [not outline.is_valid for outline in outlines]
    where = f"{source}: an outline" if source else "an outline"
    valid = [repaired(o, where) if bad else o for o, bad in zip(outlines, broken, strict=True)]
    return shapely.union_all(valid), sum(broken)


def _polygons(shape: BaseGeometry) -> list[Polygon]:
    if isinstance(shape, Polygon):
        return [] if shape.is_empty else [shape]
    return [polygon for part in getattr(shape, "geoms", []) for polygon in _polygons(part)]


def _without_holes(shape: BaseGeometry) -> list[Polygon]:
    """Polygons without holes that cover the same area: cut through each hole, left to right."""
    polygons = []
    for polygon in _polygons(shape):
        if not polygon.interiors:
            polygons.append(polygon)
            continue
        x0, y0, x1, y1 = polygon.bounds
        middle = polygon.interiors[0].centroid.x
        for side in (shapely.box(x0, y0, middle, y1), shapely.box(middle, y0, x1, y1)):
            polygons += _without_holes(polygon.intersection(side))
    return polygons


def write_asap(path: Path, annotations: Iterable[Annotation]) -> None:
    """Write `asap_xml` to a file."""
    write_text(path, asap_xml(annotations))


def asap_xml(annotations: Iterable[Annotation]) -> str:
    """ASAP's XML; holes become rings of the group ``Exclusion``, every group is declared.

    ASAP refuses a whole file when an annotation's group is not declared.
    """
    root = Element("ASAP_Annotations")
    body = SubElement(root, "Annotations")
    groups: dict[str, None] = {}
    index = 0
    marks = list(annotations)
    outlines, _ = _valid(marks)
    for annotation in marks:
        rings = [(annotation.outline.exterior, annotation.group, annotation.name)]
        for hole in annotation.outline.interiors:
            # an island inside a hole is another outline: it must not be cut out with the hole
            parts = _without_holes(Polygon(hole).difference(outlines))
            rings += [(part.exterior, EXCLUSION_GROUP, "") for part in parts]
        for ring, group, name in rings:
            groups.setdefault(group)
            colour = GROUP_COLOURS.get(group, "#f4fa58")
            label = f"{name or 'Annotation'} {index}"
            node = SubElement(body, "Annotation", Name=label, Type="Polygon", PartOfGroup=group, Color=colour)
            coordinates = SubElement(node, "Coordinates")
            for order, (x, y) in enumerate(list(ring.coords)[:-1]):
                SubElement(coordinates, "Coordinate", Order=str(order), X=f"{x:.2f}", Y=f"{y:.2f}")
            index += 1
    group_list = SubElement(root, "AnnotationGroups")
    for group in groups:
        colour = GROUP_COLOURS.get(group, "#f4fa58")
        node = SubElement(group_list, "Group", Name=group, PartOfGroup="None", Color=colour)
        SubElement(node, "Attributes")
    indent(root, " ")
    return '<?xml version="1.0"?>\n' + tostring(root, encoding="unicode") + "\n"
