"""Objects of GeoJSON as QuPath and others write it, with their ids, classes, metadata and measurements."""

from __future__ import annotations

import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from wsi.errors import AnnotationError

MOST_BYTES = 1 << 30  # of a compressed file's text, which may claim more than memory holds


@dataclass(frozen=True, eq=False, slots=True)
class MarkedObject:
    """One GeoJSON feature, in level-0 pixels.

    Attributes:
        id: the id that other programs keep; empty where there is none.
        group: class of the object; empty where there is none.
        metadata, measurements: QuPath's properties of these names.
    """

    id: str
    group: str
    name: str
    shape: BaseGeometry
    metadata: dict[str, str]
    measurements: dict[str, float]


def read_objects(path: Path, data: bytes | None = None) -> list[MarkedObject]:
    """Read the objects of a GeoJSON file; ``data`` are its bytes where they have been read already.

    Coordinates are those of the slide: the offset that our own exports subtracted for QuPath, and state in the metadata
    of every feature, is added again, also to features that were drawn by hand in the same file.

    Raises:
        AnnotationError: the file is not GeoJSON, or its features state different offsets.
    """
    try:
        data = path.read_bytes() if data is None else data
    except OSError as error:
        raise AnnotationError(f"{path} cannot be read ({error.strerror}); check the path") from error
    return objects_of(path, parse_json(path, data))


def parse_json(path: Path, data: bytes) -> Any:
    """The value of a JSON file, which is compressed if its name ends in ``.gz``.

    Raises:
        AnnotationError: the file is not JSON, or nested too deeply.
    """
    try:
        if path.suffix == ".gz":
            data = _unpacked(data)
        return json.loads(data)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error, MemoryError) as error:
        raise AnnotationError(f"{path} is not JSON ({error}); export it again") from error


def _unpacked(data: bytes) -> bytes:
    """Unpacked gzip data, up to a limit: a small file may unpack to more than memory holds."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")
    return text


# errors that come from reading parts of a file that is not GeoJSON
_NOT_GEOJSON = (
    *(AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError),
    shapely.errors.ShapelyError,
)


def objects_of(path: Path, value: Any) -> list[MarkedObject]:
    """The objects of parsed GeoJSON: a collection, a list of features, or one geometry; see `read_objects`."""
    try:
        parsed = [_object(feature) for feature in (_features(value))]
        objects = [o for o in parsed if o is not None]
        offset = _offset(path, objects)
        if not all(np.isfinite(shapely.get_coordinates(o.shape)).all() for o in objects):
            raise AnnotationError(f"{path} holds a coordinate that is not finite; export it again")
        if not offset.any():
            return objects
        return [replace(o, shape=shapely.transform(o.shape, lambda xy: xy + offset)) for o in objects]
    except _NOT_GEOJSON as error:
        raise AnnotationError(
            f"{path} is JSON but not GeoJSON of polygons; export the objects again as GeoJSON"
        ) from error


def _features(value: Any) -> Any:
    return value.get("features", [value]) if isinstance(value, dict) else value


def _object(feature: Any) -> MarkedObject | None:
    """The object of a feature; None if it has no geometry, as QuPath's entry for the image itself."""
    properties = feature.get("properties") or {}
    geometry = feature.get("geometry", feature)
    if geometry is None:
        return None
    shape = shapely.geometry.shape(geometry)
    label = properties.get("classification") or ""
    group = _class_name(label) if isinstance(label, dict) else str(label)
    metadata = {str(k): str(v) for k, v in (properties.get("metadata") or {}).items()}
    measurements = _measurements(properties.get("measurements")).items()
    numbers = {str(k): float(v) for k, v in measurements if v is not None}
    identifier, name = str(feature.get("id") or ""), str(properties.get("name", ""))
    return MarkedObject(identifier, group, name, shape, metadata, numbers)


def _measurements(value: Any) -> dict[str, Any]:
    """Measurements by name: QuPath writes an object, before version 0.4 a list of names and values; NaN may be text."""
    if isinstance(value, list):
        return {item["name"]: item["value"] for item in value}
    return value or {}


def _class_name(value: dict[str, Any]) -> str:
    """Name of a class; QuPath writes derived classes as a list of names, and shows them with a colon."""
    return str(value["name"]) if "name" in value else ": ".join(value["names"])


def _offset(path: Path, objects: Iterable[MarkedObject]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The offset that our exports subtracted from level-0 (x, y); 0 in files of other programs."""
    offsets = {o.metadata["origin offset"] for o in objects if "origin offset" in o.metadata}
    if len(offsets) > 1:
        raise AnnotationError(
            f"{path} mixes features of several frames ({', '.join(sorted(offsets))}); export it again"
        )
    if not offsets:
        return np.zeros(2)
    text = offsets.pop()
    try:
        x, y = (float(v) for v in text.split(","))
    except ValueError as error:
        raise AnnotationError(
            f"{path}: the origin offset {text!r} is not two numbers; export it again"
        ) from error
    if not (math.isfinite(x) and math.isfinite(y)):
        raise AnnotationError(f"{path}: the origin offset {text!r} is not finite; export it again")
    return np.array([x, y])
