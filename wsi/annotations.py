"""Outlines on a slide: polygons with holes, read from and written to other programs' files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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

# Compared without regard to case. Camelyon16 uses Tumor, _0, _1 and _2; Camelyon17 metastases and normal.
TUMOUR_GROUPS = frozenset(
    {"tumor", "tumour", "_0", "_1", "metastases", "metastasis", "none", "lesion", "positive"}
)
HOLE_GROUPS = frozenset(
    {"_2", "exclusion", "normal", "negative", "ignore*"}
)  # cut out (NCRF annotation.py; NCRF#61)
AREA_TYPES = frozenset({"Polygon", "Spline", "Rectangle"})  # of ASAP; dots and measurements enclose nothing
GROUP_COLOURS = {"Tumor": "#c80000", "Exclusion": "#0000c8"}


@dataclass(frozen=True, slots=True)
class Annotation:
    """One outline with its group, in level-0 pixels."""

    outline: Polygon
    group: str
    name: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class MarkedObject:
    """One GeoJSON feature, in level-0 pixels.

    Attributes:
        id: as other programs keep it; empty where it has none.
        group: its class; empty where it has none.
        metadata, measurements: what QuPath calls so.
    """

    id: str
    group: str
    name: str
    shape: BaseGeometry
    metadata: dict[str, str]
    measurements: dict[str, float]


@dataclass(frozen=True, eq=False, slots=True)
class Regions:
    """The area an annotation file marks.

    Attributes:
        area: union of the positive outlines less the negative ones; may be empty.
        repaired: rings that crossed themselves and were mended.
    """

    area: MultiPolygon
    repaired: int


def read_annotations(path: Path) -> list[Annotation]:
    """Read ASAP XML, ImageScope XML or GeoJSON; rings as they are in the file.

    Raises:
        AnnotationError: the file is none of these, or broken.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{path} cannot be read ({error.strerror}); check the path") from error
    if path.suffix.lower() == ".xml":
        return _read_xml(path, data)
    if path.suffix.lower() in (".geojson", ".json") or path.name.lower().endswith(".geojson.gz"):
        return _read_geojson(path, data)
    raise AnnotationError(f"{path} has no known suffix; use .xml (ASAP, ImageScope), .geojson or .json")


def _read_xml(path: Path, data: bytes) -> list[Annotation]:
    try:
        root = fromstring(data)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise AnnotationError(f"{path} is not safe, well-formed XML ({error}); export it again") from error
    if root.tag == "ASAP_Annotations":
        found = [_asap(node, path) for node in root.iter("Annotation")]
    else:
        found = [_imagescope(node, path) for node in root.iter("Region")]
        if not found and root.tag != "Annotations":
            raise AnnotationError(f"{path} is XML of kind <{root.tag}>; ASAP or ImageScope was expected")
    return [a for a in found if a is not None]


def _asap(node: Element, path: Path) -> Annotation | None:
    if node.get("Type", "Polygon") not in AREA_TYPES:
        return None
    rows = [(n.get("Order", "0"), n.get("X", ""), n.get("Y", "")) for n in node.iter("Coordinate")]
    points = _numbers(rows, path)
    order = np.argsort(points[:, 0], kind="stable")
    return _polygon(points[order][:, 1:], node.get("PartOfGroup", "None"), node.get("Name", ""))


def _imagescope(node: Element, path: Path) -> Annotation | None:
    rows = [("0", n.get("X", ""), n.get("Y", "")) for n in node.iter("Vertex")]
    group = "Exclusion" if node.get("NegativeROA") == "1" else "Tumor"
    return _polygon(_numbers(rows, path)[:, 1:], group, node.get("Text", ""))


def _numbers(rows: Sequence[tuple[str, str, str]], path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    try:
        points = np.array(rows, dtype=np.float64).reshape(-1, 3)
    except ValueError as error:
        raise AnnotationError(f"{path} holds a coordinate that is not a number ({error})") from error
    if not np.isfinite(points).all():
        raise AnnotationError(f"{path} holds a coordinate that is not finite; export it again")
    return points


def _polygon(points: np.ndarray[Any, np.dtype[np.float64]], group: str, name: str) -> Annotation | None:
    """A ring of three points at least; dots and lines enclose nothing and are left out."""
    return Annotation(Polygon(points), group, name) if len(points) >= 3 else None


def _read_geojson(path: Path, data: bytes) -> list[Annotation]:
    value = _json(path, data)
    if isinstance(value, dict) and "positive" in value:  # NCRF's form of Camelyon16's outlines
        return _ncrf(value, path)
    return [
        Annotation(part, o.group or "Tumor", o.name)
        for o in _objects(path, value)
        for part in _polygons(o.shape)
    ]


def read_objects(path: Path) -> list[MarkedObject]:
    """Read GeoJSON with what tells one feature from another.

    Coordinates are those of the slide: what our own exports subtracted for QuPath, which says so in the metadata of
    every feature, is added again, to features drawn by hand in the same file, too.

    Raises:
        AnnotationError: the file is not GeoJSON, or its features disagree in what was subtracted.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{path} cannot be read ({error.strerror}); check the path") from error
    return _objects(path, _json(path, data))


def _json(path: Path, data: bytes) -> Any:
    try:
        return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} is not JSON ({error}); export it again") from error


def _objects(path: Path, value: Any) -> list[MarkedObject]:
    found: list[MarkedObject] = []
    try:
        for feature in value.get("features", [value]) if isinstance(value, dict) else value:
            properties = feature.get("properties") or {}
            geometry = feature.get("geometry", feature)
            if geometry is None:  # of an object without a place, such as QuPath's image itself
                continue
            shape = shapely.geometry.shape(geometry)
            label = properties.get("classification") or ""
            group = _class_name(label) if isinstance(label, dict) else str(label)
            metadata = {str(k): str(v) for k, v in (properties.get("metadata") or {}).items()}
            measured = _measurements(properties.get("measurements")).items()
            numbers = {str(k): float(v) for k, v in measured if v is not None}
            own, name = str(feature.get("id") or ""), str(properties.get("name", ""))
            found.append(MarkedObject(own, group, name, shape, metadata, numbers))
        offset = _offset(path, found)
    except (AttributeError, KeyError, TypeError, ValueError, shapely.errors.ShapelyError) as error:
        raise AnnotationError(
            f"{path} is JSON but not GeoJSON of polygons; export the objects again as GeoJSON"
        ) from error
    if not offset.any():
        return found
    return [replace(o, shape=shapely.transform(o.shape, lambda xy: xy + offset)) for o in found]


def _measurements(value: Any) -> dict[str, Any]:
    """QuPath writes an object; before version 0.4 it wrote a list of names and values. NaN may be a string."""
    if isinstance(value, list):
        return {item["name"]: item["value"] for item in value}
    return value or {}


def _class_name(value: dict[str, Any]) -> str:
    """QuPath writes derived classes as a list of names, which it shows with a colon."""
    return str(value["name"]) if "name" in value else ": ".join(value["names"])


def _offset(path: Path, found: Iterable[MarkedObject]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What our exports subtracted from level-0 (x, y); 0 in files of other programs."""
    said = {o.metadata["origin offset"] for o in found if "origin offset" in o.metadata}
    if len(said) > 1:
        raise AnnotationError(
            f"{path} mixes features of several frames ({', '.join(sorted(said))}); export it again"
        )
    return np.array([float(v) for v in said.pop().split(",")] if said else [0.0, 0.0])


def _ncrf(value: dict[str, Any], path: Path) -> list[Annotation]:
    found = []
    try:
        for key, group in (("positive", "Tumor"), ("negative", "Exclusion")):
            for ring in value.get(key, []):
                points = _numbers([("0", x, y) for x, y in ring["vertices"]], path)[:, 1:]
                found.append(_polygon(points, group, str(ring.get("name", ""))))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AnnotationError(f"{path} is not NCRF's form of outlines ({error!r})") from error
    return [a for a in found if a is not None]


def tumour_regions(annotations: Iterable[Annotation], source: Path | None = None) -> Regions:
    """Union of tumour outlines less the excluded ones; rings that cross themselves are repaired.

    Args:
        annotations: their groups must be in `TUMOUR_GROUPS` or `HOLE_GROUPS`.
        source: named in the error.

    Raises:
        AnnotationError: a group that is in neither: it must not count as tumour, nor be left out in silence.
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
    return _union(parts[True], parts[False])


def marked_regions(annotations: Iterable[Annotation]) -> Regions:
    """Union of all outlines, whatever their group, less those named exclusion or ignore: a tissue mask."""
    cut = {"exclusion", "ignore*"}
    every = list(annotations)
    keep = [a for a in every if a.group.casefold() not in cut]
    return _union(keep, [a for a in every if a.group.casefold() in cut])


def _union(positive: Iterable[Annotation], negative: Iterable[Annotation]) -> Regions:
    (area, mended), (holes, mended_too) = (_valid(group) for group in (positive, negative))
    return Regions(MultiPolygon(_polygons(area.difference(holes))), mended + mended_too)


def _valid(annotations: Iterable[Annotation]) -> tuple[BaseGeometry, int]:
    """The union of the outlines, and how many had to be repaired."""
    outlines: list[BaseGeometry] = [a.outline for a in annotations]
    broken = [not outline.is_valid for outline in outlines]
    mended = [
        shapely.make_valid(o, method="structure", keep_collapsed=False) if bad else o
        for o, bad in zip(outlines, broken, strict=True)
    ]
    return shapely.union_all(mended), sum(broken)


def _polygons(shape: BaseGeometry) -> list[Polygon]:
    if isinstance(shape, Polygon):
        return [] if shape.is_empty else [shape]
    return [polygon for part in getattr(shape, "geoms", []) for polygon in _polygons(part)]


def _without_holes(shape: BaseGeometry) -> list[Polygon]:
    """Polygons without holes that cover the same area: cut through each hole, left to right."""
    done = []
    for polygon in _polygons(shape):
        if not polygon.interiors:
            done.append(polygon)
            continue
        x0, y0, x1, y1 = polygon.bounds
        middle = polygon.interiors[0].centroid.x
        for half in (shapely.box(x0, y0, middle, y1), shapely.box(middle, y0, x1, y1)):
            done += _without_holes(polygon.intersection(half))
    return done


def write_asap(path: Path, annotations: Iterable[Annotation]) -> None:
    """Write ASAP XML; holes become rings of the group ``Exclusion``, every group is declared.

    ASAP refuses a whole file when an annotation's group is not declared.
    """
    root = Element("ASAP_Annotations")
    body = SubElement(root, "Annotations")
    groups: dict[str, None] = {}
    index = 0
    every = list(annotations)
    outlines, _ = _valid(every)
    for annotation in every:
        rings = [(annotation.outline.exterior, annotation.group, annotation.name)]
        for hole in annotation.outline.interiors:
            # an island inside a hole is another outline: it must not be cut out with the hole
            parts = _without_holes(Polygon(hole).difference(outlines))
            rings += [(part.exterior, "Exclusion", "") for part in parts]
        for ring, group, name in rings:
            groups.setdefault(group)
            colour = GROUP_COLOURS.get(group, "#f4fa58")
            label = f"{name or 'Annotation'} {index}"
            node = SubElement(body, "Annotation", Name=label, Type="Polygon", PartOfGroup=group, Color=colour)
            coordinates = SubElement(node, "Coordinates")
            for order, (x, y) in enumerate(list(ring.coords)[:-1]):
                SubElement(coordinates, "Coordinate", Order=str(order), X=f"{x:.2f}", Y=f"{y:.2f}")
            index += 1
    declared = SubElement(root, "AnnotationGroups")
    for group in groups:
        colour = GROUP_COLOURS.get(group, "#f4fa58")
        node = SubElement(declared, "Group", Name=group, PartOfGroup="None", Color=colour)
        SubElement(node, "Attributes")
    indent(root, " ")
    write_text(path, '<?xml version="1.0"?>\n' + tostring(root, encoding="unicode") + "\n")
