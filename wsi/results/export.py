"""Files for other programs: GeoJSON for QuPath, CSV in WSInfer's form, OME-TIFF."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
import tifffile
from shapely.geometry.base import BaseGeometry

from wsi.arrays import BoxesXYXY, Scores
from wsi.files import csv_text, write_bytes
from wsi.results.heatmap import Heatmap

Origin = Literal["auto", "slide", "bounds"]
ObjectType = Literal["annotation", "detection", "tile"]
_NAMESPACE = uuid.UUID(
    "6f1b4bd0-7a0c-4a55-9d57-1f2f0c1d6a10"
)  # drawn once, so that ids are the same in every run


@dataclass(frozen=True, slots=True)
class Feature:
    """One object in QuPath, in level-0 pixels of the slide.

    Attributes:
        key: text that the id is made from: the same key gives the same UUID.
        name: name that QuPath shows; may be empty.
        classification: name of the class; may be empty.
        measurements: numbers by name; those that are NaN or infinite are left out.
        id: a UUID that the object has already, instead of that of its key.
        locked: whether QuPath protects the annotation from being moved; False for annotations that a person corrects.
    """

    key: str
    shape: BaseGeometry
    kind: ObjectType
    name: str
    classification: str
    colour: tuple[int, int, int]
    measurements: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    locked: bool = True
    id: str = ""


def origin_offset(bounds: tuple[int, int, int, int] | None, origin: Origin) -> tuple[int, int]:
    """The offset that is subtracted from level-0 (x, y).

    QuPath's OpenSlide server crops a slide to ``openslide.bounds-*`` where the file states them (MRXS,
    Leica SCN, sparse TIFF); ``auto`` follows it, as does ``bounds``; ``slide`` subtracts nothing.
    """
    if origin == "slide" or bounds is None:
        return 0, 0
    return bounds[0], bounds[1]


def geojson(features: Sequence[Feature], offset: tuple[int, int]) -> str:
    """A FeatureCollection by QuPath's rules: UUIDs, classes with a colour, rings closed, no bare NaN."""
    text = ",\n".join(
        json.dumps(_feature(f, offset), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        for f in features
    )
    return '{"type":"FeatureCollection","features":[\n' + text + "\n]}\n"


def write_geojson(path: Path, features: Sequence[Feature], offset: tuple[int, int]) -> None:
    """Write a FeatureCollection; a name that ends in ``.gz`` is compressed."""
    text = geojson(features, offset)
    write_bytes(path, compressed(text) if path.suffix == ".gz" else text.encode())


def compressed(text: str) -> bytes:
    """Text compressed with gzip, the same bytes every time."""
    return gzip.compress(text.encode(), mtime=0)


def feature_id(key: str) -> str:
    """The UUID of a feature with this key."""
    return str(uuid.uuid5(_NAMESPACE, key))


def _feature(feature: Feature, offset: tuple[int, int]) -> dict[str, Any]:
    moved = shapely.transform(feature.shape, lambda xy: np.round(xy - np.array(offset), 2))
    measurements = {k: round(float(v), 6) for k, v in feature.measurements.items() if np.isfinite(v)}
    properties: dict[str, Any] = {"objectType": feature.kind}
    if feature.name:
        properties["name"] = feature.name
    if feature.classification:
        properties["classification"] = {"name": feature.classification, "color": list(feature.colour)}
    properties["measurements"] = measurements
    properties["metadata"] = feature.metadata | {"origin offset": f"{offset[0]},{offset[1]}"}
    if feature.kind == "annotation" and feature.locked:
        properties["isLocked"] = True
    return {
        "type": "Feature",
        "id": feature.id or feature_id(feature.key),
        "geometry": shapely.geometry.mapping(moved),
        "properties": properties,
    }


def tile_features(
    key: str, boxes: BoxesXYXY, scores: Scores, classification: str, threshold: float
) -> list[Feature]:
    """A tile for every scored cell, for QuPath's measurement maps; only tiles from the threshold on have the class.

    Otherwise QuPath would show all tissue in the colour of the class.
    """
    return [
        Feature(
            f"{key} tile {box[0]:.0f} {box[1]:.0f}",
            shapely.box(*box),
            "tile",
            "",
            classification if score >= threshold else "",
            (200, 0, 0),
            {"probability": float(score)},
        )
        for box, score in zip(boxes, scores, strict=True)
    ]


def cells_csv(boxes: BoxesXYXY, scores: Scores, classes: Sequence[str]) -> str:
    """``minx,miny,width,height,prob_CLASS...`` in level-0 pixels: WSInfer's form, a row per scored cell."""
    header = ["minx", "miny", "width", "height", *(f"prob_{name}" for name in classes)]
    rows = (
        [round(x0), round(y0), round(x1 - x0), round(y1 - y0), *(f"{v:.6f}" for v in values)]
        for (x0, y0, x1, y1), values in zip(boxes, scores, strict=True)
    )
    return csv_text(header, rows)


def ome_tiff(heatmap: Heatmap, mpp: float, name: str) -> bytes:
    """One class as lossless float32 OME-TIFF with physical sizes; NaN where nothing was scored."""
    sizes = {
        "PhysicalSizeX": heatmap.placement.step_x * mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": heatmap.placement.step_y * mpp,
        "PhysicalSizeYUnit": "µm",
    }
    # not a random one, so that the same scores give the same bytes
    identity = uuid.uuid5(_NAMESPACE, hashlib.sha256(heatmap.scores.tobytes()).hexdigest())
    content = io.BytesIO()
    tifffile.imwrite(
        content,
        heatmap.scores,
        ome=True,
        photometric="minisblack",
        compression="deflate",
        tile=(256, 256),
        metadata={"axes": "YX", "Channel": {"Name": name}, "UUID": str(identity), **sizes},
    )
    return content.getvalue()
