"""What a run's numbers are, held by their hashes: a change of them is a decision, and raises a FORMAT.

Results of an earlier version are taken over where settings, weights, engine and FORMAT are the same. So whoever changes
what the code computes must say so, or old and new numbers end up in one table. When a test here fails and the change is
meant: raise the constant that it names by one, and put the new hash beside it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest

from models.card import ZOO
from models.engines import EngineConfig, detect_slide, find_models, load_engine, map_slide
from models.engines.boxes import BoxEngine
from pipelines.camelyon16.read import results
from pipelines.camelyon16.read import score as scoring
from pipelines.renal.read import fields, reading
from pipelines.renal.read.run import report_slide
from pipelines.segment import result as segment_result
from pipelines.segment.read import SegmentConfig, segment_slide
from tests.renal_slides import BLUE, BROWN, PALE_BROWN, Square, readers, scattered, slide_of
from tests.slides import RednessEngine, RednessMapper, write_pyramid
from wsi.results.box_store import BoxStore
from wsi.results.folder import LocalFolder
from wsi.results.store import HeatmapStore
from wsi.slides.blocks import PatchBlock
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource

# FORMAT, then the hash of what the code gives; one line for each thing that later runs take over
GOLDEN = {
    "heatmap": (1, "b7c7500d0334516c"),
    "lesions": (1, "015c9b795b16ce3f"),
    "fields": (1, "f29930b6474c4b0b"),
    "boxes": (1, "68362a787ec8e0bc"),
    "report": (1, "fb58fa0cd3652803"),
    "map": (1, "8c840a7ead4202f2"),
    "areas": (1, "ab962e92ce7e0a95"),
}
NOW = {
    "heatmap": scoring.HEATMAP_FORMAT,
    "lesions": results.RESULT_FORMAT,
    "fields": fields.FORMAT,
    "boxes": detect_slide.FORMAT,
    "report": reading.REPORT_FORMAT,
    "map": map_slide.FORMAT,
    "areas": segment_result.RESULT_FORMAT,
}


def digest(content: str | bytes) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else content.encode()).hexdigest()[:16]


def rounded(values: np.ndarray) -> bytes:
    """To thousandths: processors round the resampling of a pixel differently, by 1 of 255."""
    return (np.round(np.nan_to_num(values, nan=-1), 3) + 0.0).astype(np.float32).tobytes()


@pytest.fixture(scope="module")
def hashes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("golden")
    return _lymph_node(root) | _kidney(root) | _segmented(root)


def _lymph_node(root: Path) -> dict[str, str]:
    """An uneven slide of 0.21 um/px, read at 0.25: every patch is resampled."""
    rng = np.random.default_rng(16)
    image = np.full((2500, 3700, 3), 244, np.uint8)
    cv2.ellipse(image, (1900, 1200), (1500, 900), 20, 0, 360, (205, 160, 190), -1)
    cv2.ellipse(image, (1200, 1000), (420, 260), -30, 0, 360, (190, 70, 100), -1)
    cv2.ellipse(image, (2700, 1500), (130, 200), 0, 0, 360, (190, 90, 100), -1)
    image -= rng.integers(0, 12, image.shape).astype(np.uint8)
    path = write_pyramid(root / "golden.tif", image, levels=4, tile=256, mpp=0.21)
    row = SlideRow(SlideSource(str(path)))
    scoring.score_slide(row, "golden", RednessEngine(), root / "out", scoring.ScoreConfig())
    heatmap = HeatmapStore.open(root / "out" / "heatmap.zarr").read(1)
    assert heatmap.scored > 200
    lesions = [line.split(",") for line in (root / "out" / "lesions.csv").read_text().splitlines()]
    assert len(lesions) == 2
    places = [(round(float(score), 3), x, y) for score, x, y in lesions]
    features = json.loads((root / "out" / "lesions.geojson").read_text())["features"]
    areas = [round(f["properties"]["measurements"].get("area um2", 0)) for f in features]
    assert sum(area > 0 for area in areas) == 2
    slide = json.loads((root / "out" / "slide.json").read_text())
    facts = [places, areas, slide["confidence"], slide["note"], slide["tissue_mm2"]]
    return {"heatmap": digest(rounded(heatmap.scores)), "lesions": digest(json.dumps(facts))}


def _segmented(root: Path) -> dict[str, str]:
    """The same uneven slide by a segmenter of 0.5 um/px, across the borders of two chunks."""
    row = SlideRow(SlideSource(str(root / "golden.tif")))
    mapper = RednessMapper(core_px=256, margin_px=32)
    result = segment_slide(row, "golden", mapper, root / "areas", SegmentConfig())
    store = HeatmapStore.open(root / "areas" / "classes.zarr")
    assert len(store.chunks_done()) > 1
    features = json.loads((root / "areas" / "areas.geojson").read_text())["features"]
    areas = [(f["properties"]["classification"]["name"], f["geometry"]["coordinates"]) for f in features]
    facts = [{name: (one.mm2, one.objects) for name, one in result.classes.items()}, areas]
    assert result.classes["red"].objects > 1
    return {"map": digest(rounded(store.read(2).scores)), "areas": digest(json.dumps(facts))}


def _kidney(root: Path) -> dict[str, str]:
    """Capillaries across the borders of fields, too; all kinds of colours."""
    squares = [
        *scattered(150, 0.3, 7),
        Square(512, 300, BROWN),
        Square(700, 514, BLUE),
        Square(70, 72, PALE_BROWN),
    ]
    slide_of(root / "kidney.tif", squares)  # 9 feasible fields: two chunks
    row = SlideRow(SlideSource(str(root / "kidney.tif")))
    report = report_slide(row, "kidney", readers(), root / "kidney", reading.RenalConfig()).report
    scores = HeatmapStore.open(root / "kidney" / "fields.zarr").read(1).scores
    places = [(f.x, f.y, f.tissue, f.why_not) for f in report.fields]
    store = BoxStore(LocalFolder(root / "kidney" / "capillaries.boxes"), "")
    chunks = [chunk[0] for i in range(3) if (chunk := store.read_chunk(i)) is not None]
    assert len(chunks) == 2
    assert sum(map(len, chunks)) > 140
    boxes = b"|".join(rounded(c.boxes) + rounded(c.scores) + c.labels.tobytes() for c in chunks)
    reading_facts = report.model_dump(
        mode="json", include={"result", "basis", "stability", "warnings", "field_mm2"}
    )
    return {
        "fields": digest(rounded(scores) + json.dumps(places).encode()),
        "boxes": digest(boxes),
        "report": digest(
            json.dumps(reading_facts, sort_keys=True) + (root / "kidney" / "capillaries.csv").read_text()
        ),
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_numbers_are_as_they_were_or_the_format_says_so(hashes: dict[str, str], name: str) -> None:
    assert (NOW[name], hashes[name]) == GOLDEN[name], (
        f"the {name} of a run have changed: if that is meant, raise the constant in NOW that belongs to it and put "
        f"{hashes[name]!r} here"
    )


@pytest.fixture(scope="module")
def tile() -> np.ndarray:
    """(320, 320, 3): three brown rings and a blue one on pale noise, uneven in place, size and turn."""
    image = np.full((320, 320, 3), (205, 210, 225), np.uint8)
    for middle, axes, turn, colour in (
        ((90, 70), (16, 10), 20, (110, 70, 40)),
        ((220, 130), (14, 9), 70, (90, 60, 35)),
        ((120, 240), (18, 11), 140, (120, 80, 45)),
        ((250, 260), (15, 10), 10, (150, 160, 200)),
    ):
        cv2.ellipse(image, middle, axes, turn, 0, 360, (244, 244, 244), -1)
        cv2.ellipse(image, middle, axes, turn, 0, 360, colour, 4)
    noise = np.random.default_rng(3).integers(-6, 7, image.shape)
    return np.clip(image.astype(int) + noise, 0, 255).astype(np.uint8)


# New weights give new numbers, and are told by their hash; a change of code that gives new ones raises a FORMAT.
@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("lymph-node-10x", [0.6366, 0.6640]),
        ("lymph-node-demo", [0.0005, 0.5468]),
        ("renal-fields-demo", [0.9423, 0.0005]),
    ],
)
@pytest.mark.parametrize("library", ["torch", "openvino"])
def test_classifiers_that_ship_score_as_they_did(
    tile: np.ndarray, name: str, scores: list[float], library: Literal["torch", "openvino"]
) -> None:
    """In fp32, to what processors differ by."""
    engine = load_engine(find_models([name]), EngineConfig(engine=library, precision="fp32"))
    side = engine.models.card.patch_px
    patches = np.hstack([cv2.resize(tile, (side, side)), cv2.resize(255 - tile // 2, (side, side))])
    block = PatchBlock(patches, np.array([[0, 0], [side, 0]]), side)
    assert next(engine.score([block]))[:, 1] == pytest.approx(scores, abs=0.003)


@pytest.mark.parametrize("library", ["torch", "openvino"])
def test_the_detector_that_ships_finds_what_it_did(
    tile: np.ndarray, library: Literal["torch", "openvino"]
) -> None:
    engine = BoxEngine(ZOO / "renal-ptc-demo", EngineConfig(engine=library, precision="fp32"))
    boxes = engine.detect(tile[None])[0]
    expected = [
        [225.16, 242.82, 275.21, 277.45],
        [94.8, 216.47, 145.63, 262.93],
        [65.85, 50.49, 115.42, 91.08],
    ]
    np.testing.assert_allclose(boxes.boxes[:3], expected, atol=0.2)
    assert boxes.scores[:4] == pytest.approx([1.0, 0.9988, 0.9978, 0.9909], abs=0.002)
    assert boxes.labels[:4].tolist() == [0, 1, 1, 1]
