from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely import LineString, Polygon, box

from tests.slides import real_data
from wsi.datasets.rules import rows_of_folder
from wsi.errors import AnnotationError
from wsi.marks.annotations import (
    Annotation,
    marked_regions,
    read_annotations,
    read_outlines,
    tumour_regions,
    write_asap,
)
from wsi.marks.geojson import read_objects
from wsi.marks.rings import crossings_exceed


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


class TestWhatEnclosesNothing:
    def test_dots_and_lines_are_counted_and_said(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        text = asap([("Tumor", SQUARE)])
        dot = '<Annotation Name="d" Type="Dot" PartOfGroup="Tumor"><Coordinates><Coordinate Order="0" X="1" Y="2"/></Coordinates></Annotation>'
        (tmp_path / "a.xml").write_text(text.replace("<Annotations>", f"<Annotations>{dot}{dot}"))
        outlines = read_outlines(tmp_path / "a.xml")
        assert len(outlines.annotations) == 1
        assert outlines.note == "2 objects enclose no area and count for nothing (2 x Dot)"
        with caplog.at_level("WARNING"):
            assert len(read_annotations(tmp_path / "a.xml")) == 1
        assert "a.xml: 2 objects enclose no area" in caplog.text

    def test_geojson_points(self, tmp_path: Path) -> None:
        features = [
            {"type": "Feature", "geometry": {"type": "Point", "coordinates": [3, 4]}, "properties": {}},
            {
                "type": "Feature",
                "geometry": {"type": "LineString", "coordinates": [[3, 4], [9, 9]]},
                "properties": {},
            },
        ]
        (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        assert read_outlines(tmp_path / "a.geojson").note == (
            "2 objects enclose no area and count for nothing (1 x LineString, 1 x Point)"
        )

    def test_an_ellipse_of_two_corners(self, tmp_path: Path) -> None:
        """ImageScope's type 2: the area of an ellipse of 60 x 20 px is pi * 30 * 10."""
        text = (
            '<Annotations><Annotation><Regions><Region Type="2" NegativeROA="0"><Vertices>'
            '<Vertex X="100" Y="40"/><Vertex X="160" Y="60"/></Vertices></Region></Regions></Annotation></Annotations>'
        )
        (tmp_path / "a.xml").write_text(text)
        outlines = read_outlines(tmp_path / "a.xml")
        (a,) = outlines.annotations
        assert a.outline.area == pytest.approx(np.pi * 30 * 10, rel=0.01)
        assert a.outline.bounds == pytest.approx((100, 40, 160, 60), abs=0.1)
        assert "ellipses that are given by two corners were read as outlines: 1" in outlines.note

    def test_four_points_of_an_ellipse_are_no_two_corners(self, tmp_path: Path) -> None:
        corners = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ((0, 0), (60, 0), (60, 20), (0, 20)))
        text = f'<Annotations><Regions><Region Type="2"><Vertices>{corners}</Vertices></Region></Regions></Annotations>'
        (tmp_path / "a.xml").write_text(text)
        outlines = read_outlines(tmp_path / "a.xml")
        assert (outlines.annotations[0].outline.area, outlines.note) == (1200, "")

    @pytest.mark.parametrize("ring", [[(0, 0), (30, 10), (60, 20)], [(1, 1), (1, 1), (1, 1), (1, 1)]])
    def test_corners_on_one_line(self, tmp_path: Path, ring: list[tuple[int, int]]) -> None:
        (tmp_path / "a.xml").write_text(asap([("Tumor", ring)]))
        geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
        feature = {"type": "Feature", "geometry": geometry, "properties": {}}
        (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
        for name in ("a.xml", "a.geojson"):
            outlines = read_outlines(tmp_path / name)
            said = "1 object encloses no area and counts for nothing (1 x Polygon)"
            assert (outlines.annotations, outlines.note) == ((), said)

    def test_a_bow_tie_encloses_something(self, tmp_path: Path) -> None:
        """Its two halves cancel in the signed area, which is 0."""
        (tmp_path / "a.xml").write_text(asap([("Tumor", [(0, 0), (10, 10), (10, 0), (0, 10)])]))
        outlines = read_outlines(tmp_path / "a.xml")
        assert tumour_regions(outlines.annotations).area.area == pytest.approx(50)

    def test_halo_s_files_are_found_beside_slides(self, tmp_path: Path) -> None:
        (tmp_path / "tumor_001.tif").write_text("")
        (tmp_path / "tumor_001.annotations").write_text("")
        (row,) = rows_of_folder(tmp_path)
        assert row.truth == tmp_path / "tumor_001.annotations"
        (tmp_path / "a.txt").write_text("")
        with pytest.raises(AnnotationError, match=r"use \.xml .*\.annotations \(HALO\)"):
            read_outlines(tmp_path / "a.txt")

    @pytest.mark.parametrize("suffix", [".annotations", ".xml"])
    def test_halo(self, tmp_path: Path, suffix: str) -> None:
        text = (
            '<Annotations><Annotation Name="Tumor"><Regions><Region Type="Polygon" HasEndcaps="0" NegativeROA="0">'
            '<Vertices><V X="10" Y="20"/><V X="70" Y="20"/><V X="70" Y="50"/></Vertices></Region>'
            '<Region Type="Rectangle" NegativeROA="1"><Vertices><V X="30" Y="22"/><V X="40" Y="25"/></Vertices></Region>'
            "</Regions></Annotation></Annotations>"
        )
        (tmp_path / f"a{suffix}").write_text(text)
        area = tumour_regions(read_outlines(tmp_path / f"a{suffix}").annotations).area
        assert area.area == pytest.approx(60 * 30 / 2 - 10 * 3)

    def test_a_truth_of_dots_says_that_they_are_dots(self, tmp_path: Path) -> None:
        from tests.wsi.datasets.test_truth import grid, slide
        from wsi.datasets.truth import read_truth

        text = asap([("Tumor", SQUARE)]).replace('Type="Polygon"', 'Type="Dot"')
        (tmp_path / "a.xml").write_text(text)
        with pytest.raises(AnnotationError, match=r"marks no tumour .*1 object encloses no area"):
            read_truth(tmp_path / "a.xml", slide(), grid(slide()))


class TestHostile:
    @pytest.mark.parametrize("offset", ["nan,nan", "1e999,0", "1,2,3", "a,b", "5", ""])
    def test_an_origin_offset_that_is_none(self, tmp_path: Path, offset: str) -> None:
        self.refused(tmp_path, [self.feature(properties={"metadata": {"origin offset": offset}})])

    @pytest.mark.parametrize("number", ["1" + "0" * 400, "1e999", "NaN", "-Infinity"])
    def test_a_coordinate_that_is_no_place(self, tmp_path: Path, number: str) -> None:
        text = json.dumps({"type": "FeatureCollection", "features": [self.feature()]}).replace(
            "123456", number
        )
        self.refused(tmp_path, text)

    @pytest.mark.parametrize("depth", [900, 100_000])
    def test_deep_nesting(self, tmp_path: Path, depth: int) -> None:
        nested = "[" * depth + "1,2" + "]" * depth
        self.refused(tmp_path, f'{{"type":"Feature","geometry":{{"type":"Polygon","coordinates":{nested}}}}}')

    def test_any_flipped_bit_of_a_compressed_file(self, tmp_path: Path) -> None:
        text = json.dumps({"type": "FeatureCollection", "features": [self.feature() for _ in range(30)]})
        data = gzip.compress(text.encode(), mtime=0)
        good = read_objects(self.write(tmp_path / "good.geojson.gz", data))
        for place in range(10, len(data)):
            damaged = bytearray(data)
            damaged[place] ^= 16
            try:
                again = read_objects(self.write(tmp_path / "a.geojson.gz", bytes(damaged)))
            except AnnotationError:
                continue
            assert len(again) == len(
                good
            )  # gzip's own checksum is of the text: only its header may change unnoticed

    def test_a_small_file_that_unpacks_to_more_than_memory_holds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from wsi.marks import geojson

        monkeypatch.setattr(geojson, "MOST_BYTES", 10_000)
        self.write(tmp_path / "a.geojson.gz", gzip.compress(b" " * 10_001 + b"[]"))
        with pytest.raises(AnnotationError, match="unpacks to more than 10,000 bytes"):
            read_objects(tmp_path / "a.geojson.gz")

    def test_a_ring_whose_sides_all_cross_is_refused_at_once(self) -> None:
        points = np.random.default_rng(3).uniform(0, 50_000, (3000, 2))
        start = time.perf_counter()
        with pytest.raises(
            AnnotationError, match=r"x\.xml: an outline with 3,000 corners.* crosses itself more than 20,000"
        ):
            tumour_regions([Annotation(Polygon(points), "Tumor")], Path("x.xml"))
        assert time.perf_counter() - start < 20  # it took over a minute; this is no measurement

    @pytest.mark.parametrize("crossings", [0, 1, 7])
    def test_crossings_are_counted_exactly(self, crossings: int) -> None:
        """A zigzag that crosses a straight side once for each of its strokes."""
        strokes = [(10 + 10 * i, 30 if i % 2 else -30) for i in range(crossings + 1)]
        last = strokes[-1][0] + 10
        ring = Polygon(
            [(0, 0), (last, 0), (last, 60 if crossings % 2 else -60), *reversed(strokes), (0, -60)]
        )
        met = 0
        coordinates = np.asarray(ring.exterior.coords)
        sides = [LineString(coordinates[i : i + 2]) for i in range(len(coordinates) - 1)]
        for i, a in enumerate(sides):
            for j in range(i + 2, len(sides)):
                if not (i == 0 and j == len(sides) - 1):
                    met += a.intersects(sides[j])
        assert met == 0 or crossings_exceed(ring, met - 1)
        assert crossings_exceed(ring, met) is False

    def feature(self, **more: object) -> dict[str, object]:
        square = [[[123456, 0], [4, 0], [4, 3], [123456, 0]]]
        return {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": square},
            "properties": {},
        } | more

    def write(self, path: Path, data: bytes) -> Path:
        path.write_bytes(data)
        return path

    def refused(self, tmp_path: Path, value: object) -> None:
        path = tmp_path / "a.geojson"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        with pytest.raises(AnnotationError, match=r"a\.geojson"):
            read_objects(path)
