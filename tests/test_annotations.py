from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely import Polygon, box

from tests.slides import real_data
from wsi.annotations import (
    Annotation,
    marked_regions,
    read_annotations,
    read_objects,
    tumour_regions,
    write_asap,
)
from wsi.errors import AnnotationError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def asap(rings: list[tuple[str, list[tuple[float, float]]]]) -> str:
    nodes = "".join(
        f'<Annotation Name="a" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58"><Coordinates>'
        + "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(ring))
        + "</Coordinates></Annotation>"
        for group, ring in rings
    )
    return f"<ASAP_Annotations><Annotations>{nodes}</Annotations></ASAP_Annotations>"


SQUARE = [(0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0)]
INNER = [(2.0, 2.0), (4.0, 2.0), (4.0, 4.0), (2.0, 4.0)]


@pytest.mark.parametrize("group", ["Tumor", "_0", "_1", "metastases", "None"])
def test_positive_groups_count(tmp_path: Path, group: str) -> None:
    path = write(tmp_path / "a.xml", asap([(group, SQUARE)]))
    assert tumour_regions(read_annotations(path)).area.area == 100


@pytest.mark.parametrize("group", ["_2", "Exclusion", "normal"])
def test_negative_groups_are_cut_out(tmp_path: Path, group: str) -> None:
    path = write(tmp_path / "a.xml", asap([("Tumor", SQUARE), (group, INNER)]))
    regions = tumour_regions(read_annotations(path))
    assert regions.area.area == 96
    assert len(regions.area.geoms[0].interiors) == 1


def test_groups_are_known_whatever_their_case_and_unknown_ones_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.xml", asap([("tumour", SQUARE), ("EXCLUSION", INNER)]))
    assert tumour_regions(read_annotations(path)).area.area == 96
    path = write(tmp_path / "b.xml", asap([("Stroma", SQUARE)]))
    with pytest.raises(AnnotationError, match=r"b.xml: group 'Stroma' is unknown; tumour is one of _0, _1"):
        tumour_regions(read_annotations(path), path)
    assert marked_regions(read_annotations(path)).area.area == 100  # as a tissue mask it counts


def test_dots_enclose_nothing(tmp_path: Path) -> None:
    text = asap([("Tumor", SQUARE)]).replace('Type="Polygon"', 'Type="PointSet"')
    assert read_annotations(write(tmp_path / "a.xml", text)) == []


def test_an_island_inside_a_hole_survives_asap(tmp_path: Path) -> None:
    ring = box(0, 0, 100, 100).difference(box(20, 20, 80, 80))
    made = [Annotation(ring, "Tumor"), Annotation(box(40, 40, 60, 60), "Tumor")]
    write_asap(tmp_path / "a.xml", made)
    again = tumour_regions(read_annotations(tmp_path / "a.xml")).area
    assert again.area == pytest.approx(100**2 - 60**2 + 20**2)


def test_points_go_by_order_not_by_place_in_the_file(tmp_path: Path) -> None:
    lines = asap([("Tumor", SQUARE)]).split("<Coordinate ")
    lines[1], lines[2] = (
        lines[2].replace("</Coordinates>", ""),
        lines[1],
    )  # the first two points change places
    path = write(tmp_path / "a.xml", "<Coordinate ".join(lines))
    assert tumour_regions(read_annotations(path)).area.area == 100  # else it crosses itself: 50


def test_a_ring_that_crosses_itself_is_repaired_and_counted() -> None:
    bow = Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    regions = tumour_regions([Annotation(bow, "Tumor"), Annotation(box(20, 0, 30, 10), "Tumor")])
    assert regions.repaired == 1
    assert regions.area.area == pytest.approx(50 + 100)
    assert regions.area.is_valid


def test_an_entity_bomb_is_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><ASAP_Annotations>&b;</ASAP_Annotations>'
    with pytest.raises(AnnotationError, match=r"a.xml is not safe, well-formed XML"):
        read_annotations(write(tmp_path / "a.xml", bomb))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.xml", "<html/>", "ASAP or ImageScope was expected"),
        ("a.xml", "no xml", "not safe, well-formed"),
        ("a.xml", asap([("Tumor", SQUARE)]).replace('X="0.0"', 'X="left"'), "not a number"),
        ("a.xml", asap([("Tumor", SQUARE)]).replace('X="0.0"', 'X="nan"'), "not finite"),
        ("a.json", "{", "not JSON"),
        ("a.geojson", '{"features": [{"geometry": {"type": "Blob"}}]}', "not GeoJSON"),
        ("a.json", '{"positive": [{"name": "x"}]}', "not NCRF's form"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.xml", '<?xml version="1.0" encoding="klingon"?><a/>', "not safe, well-formed"),
        ("a.txt", "", "no known suffix"),
    ],
)
def test_broken_files_are_refused_by_name(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as caught:
        read_annotations(write(tmp_path / name, text))
    assert name in str(caught.value)


def test_imagescope(tmp_path: Path) -> None:
    def region(points: list[tuple[float, float]], negative: int) -> str:
        vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
        return f'<Region Id="1" NegativeROA="{negative}"><Vertices>{vertices}</Vertices></Region>'

    text = f"<Annotations><Annotation><Regions>{region(SQUARE, 0)}{region(INNER, 1)}</Regions></Annotation></Annotations>"
    assert tumour_regions(read_annotations(write(tmp_path / "i.xml", text))).area.area == 96


@pytest.mark.parametrize("classification", ["Tumor", {"name": "Tumor", "color": [200, 0, 0]}])
def test_geojson_with_holes(tmp_path: Path, classification: object) -> None:
    rings = [[*SQUARE, SQUARE[0]], [*INNER, INNER[0]]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {"classification": classification},
    }
    for value in (
        {"type": "FeatureCollection", "features": [feature]},
        [feature],
        feature,
        feature["geometry"],
    ):
        path = write(tmp_path / "a.geojson", json.dumps(value))
        assert tumour_regions(read_annotations(path)).area.area == 96


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(4, 30)), min_size=1, max_size=4)
)
def test_asap_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, squares) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("asap") / "a.xml"
    made = []
    for i, (x, y, side) in enumerate(squares):
        outer = box(100 * i + x, y, 100 * i + x + side, y + side)
        made.append(
            Annotation(outer.difference(box(100 * i + x + 1, y + 1, 100 * i + x + 2, y + 2)), "Tumor")
        )
    write_asap(path, made)
    text = path.read_text()
    for group in ("Tumor", "Exclusion"):  # ASAP refuses a file whose groups are not declared
        assert f'<Group Name="{group}"' in text
    again = tumour_regions(read_annotations(path)).area
    wanted = tumour_regions(made).area
    assert again.symmetric_difference(wanted).area == pytest.approx(0, abs=1e-6)


def test_real_outlines_of_camelyon16() -> None:
    folder = real_data("camelyon16", "train_polygons")
    repaired = 0
    for path in sorted(folder.glob("*.json"))[:12]:
        regions = tumour_regions(read_annotations(path))
        repaired += regions.repaired
        assert regions.area.is_valid
        assert regions.area.area > 0
        assert np.isfinite(regions.area.bounds).all()
    assert repaired > 0


def test_geojson_as_other_versions_write_it(tmp_path: Path) -> None:
    """A list of measurements, one that is null, an object without a geometry, and a compressed file."""
    square = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]]}
    features = [
        {
            "type": "Feature",
            "id": "a",
            "geometry": square,
            "properties": {"measurements": [{"name": "p", "value": 0.5}]},
        },
        {
            "type": "Feature",
            "id": "b",
            "geometry": square,
            "properties": {"measurements": {"p": None, "q": "NaN"}},
        },
        {"type": "Feature", "id": "c", "geometry": None, "properties": {}},
    ]
    data = json.dumps({"type": "FeatureCollection", "features": features}).encode()
    (tmp_path / "f.geojson.gz").write_bytes(gzip.compress(data))
    found = read_objects(tmp_path / "f.geojson.gz")
    assert [o.id for o in found] == ["a", "b"]
    assert found[0].measurements == {"p": 0.5}
    assert set(found[1].measurements) == {"q"}
    assert len(read_annotations(tmp_path / "f.geojson.gz")) == 2
    (tmp_path / "g.geojson.gz").write_bytes(b"not compressed")
    with pytest.raises(AnnotationError, match="is not JSON"):
        read_objects(tmp_path / "g.geojson.gz")
