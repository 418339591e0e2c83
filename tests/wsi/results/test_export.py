from __future__ import annotations

import csv
import gzip
import io
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from shapely import Polygon, box

from wsi.placement import Placement
from wsi.results.export import (
    Feature,
    cells_csv,
    geojson,
    ome_tiff,
    origin_offset,
    tile_features,
    write_geojson,
)
from wsi.results.heatmap import Heatmap

RING = Polygon([(100, 100), (400, 100), (400, 400), (100, 400)], [[(200, 200), (300, 200), (300, 300)]])


def feature(**changes: Any) -> Feature:
    fields: dict[str, Any] = {
        "key": "slide lesion 1",
        "shape": RING,
        "kind": "annotation",
        "name": 'lesion "1" ü',
        "classification": "Tumor",
        "colour": (200, 0, 0),
        "measurements": {"probability": 0.97, "area um2": float("nan")},
    }
    return Feature(**fields | changes)


def read_as_qupath(text: str) -> list[dict[str, Any]]:
    """The rules of QuPath's parser (QuPathTypeAdapters.java), restated."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"bare {constant}")

    value = json.loads(text, parse_constant=refuse)
    assert value["type"] == "FeatureCollection"
    for item in value["features"]:
        assert item["type"] == "Feature"
        uuid.UUID(item["id"])
        properties = item["properties"]
        assert properties["objectType"] in {"annotation", "detection", "tile"}
        colour = properties["classification"]["color"]
        assert len(colour) == 3
        assert all(0 <= c <= 255 for c in colour)
        assert all(isinstance(v, int | float) for v in properties["measurements"].values())
        assert all(isinstance(v, str) for v in properties["metadata"].values())
        for ring in item["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
    return value["features"]  # type: ignore[no-any-return]


def test_qupath_reads_it() -> None:
    items = read_as_qupath(geojson([feature(), feature(key="other", kind="detection")], (0, 0)))
    assert [i["properties"]["objectType"] for i in items] == ["annotation", "detection"]
    assert items[0]["properties"]["name"] == 'lesion "1" ü'
    assert items[0]["properties"]["measurements"] == {"probability": 0.97}
    assert len(items[0]["geometry"]["coordinates"]) == 2  # the hole
    assert items[0]["id"] != items[1]["id"]


def test_no_feature_is_an_empty_collection() -> None:
    assert read_as_qupath(geojson([], (0, 0))) == []


def test_origin_follows_qupath_s_crop() -> None:
    bounds = (50, 80, 1000, 1000)
    assert origin_offset(bounds, "auto") == origin_offset(bounds, "bounds") == (50, 80)
    assert origin_offset(bounds, "slide") == origin_offset(None, "auto") == (0, 0)
    item = read_as_qupath(geojson([feature()], (50, 80)))[0]
    assert item["geometry"]["coordinates"][0][0] == [50, 20]
    assert item["properties"]["metadata"]["origin offset"] == "50,80"


def test_the_same_bytes_every_time_also_compressed(tmp_path: Path) -> None:
    for name in ("a.geojson", "a.geojson.gz"):
        write_geojson(tmp_path / name, [feature()], (0, 0))
        first = (tmp_path / name).read_bytes()
        write_geojson(tmp_path / name, [feature()], (0, 0))
        assert (tmp_path / name).read_bytes() == first
    assert gzip.decompress(first).decode() == (tmp_path / "a.geojson").read_text()


def test_cells_csv_is_wsinfer_s_form() -> None:
    boxes = np.array([[0.0, 0, 128, 128], [128, 256, 256, 384]])
    scores = np.array([[0.25, 0.75], [1, 0]], np.float32)
    rows = list(csv.DictReader(io.StringIO(cells_csv(boxes, scores, ["normal", "tumor"]))))
    assert rows[1]["minx"] == "128"
    assert (rows[1]["miny"], rows[1]["width"], rows[0]["prob_tumor"]) == ("256", "128", "0.750000")


def test_ome_tiff_keeps_the_numbers_and_the_size() -> None:
    scores = np.random.default_rng(0).random((30, 20)).astype(np.float32)
    scores[3, 4] = np.nan
    content = ome_tiff(Heatmap(scores, Placement(128, 128)), 0.25, "tumor")
    with tifffile.TiffFile(io.BytesIO(content)) as tif:
        np.testing.assert_array_equal(tif.asarray(), scores)
        assert tif.ome_metadata is not None
        assert 'PhysicalSizeX="32.0"' in tif.ome_metadata
        assert "tumor" in tif.ome_metadata
    assert ome_tiff(Heatmap(scores, Placement(128, 128)), 0.25, "tumor") == content


def test_tiles_carry_their_probability() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [10, 0, 20, 10]])
    made = tile_features("s", boxes, np.array([0.5, 0.49], np.float32), "Tumor", 0.5)
    item, below = json.loads(geojson(made, (0, 0)))["features"]
    assert item["properties"]["classification"]["name"] == "Tumor"
    assert "classification" not in below["properties"]
    assert "name" not in item["properties"]  # an empty one would be shown
    assert item["properties"]["objectType"] == "tile"
    assert item["properties"]["measurements"] == {"probability": 0.5}
    assert Polygon(item["geometry"]["coordinates"][0]).equals(box(0, 0, 10, 10))


def test_infinite_measurements_never_reach_the_file() -> None:
    text = geojson([feature(measurements={"a": float("inf"), "b": 1.0})], (0, 0))
    assert "Infinity" not in text
    assert pytest.approx(1.0) == read_as_qupath(text)[0]["properties"]["measurements"]["b"]
