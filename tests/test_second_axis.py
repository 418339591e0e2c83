"""What a sceptic's planted bugs showed no test to see: the second axis, resampled slides, options, places in pictures."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest
import shapely
import tifffile
import torch
from PIL import Image

from models.training.data.augment import AugmentConfig, augment, draw_changes, restain
from models.training.data.places import PatchSampler, SlideSampler
from models.training.data.slides import TrainingSlide
from pipelines.camelyon16.read.lesions import LesionConfig
from pipelines.camelyon16.read.score import ScoreConfig, score_slide
from pipelines.cli import score as score_command
from pipelines.renal.read.checks import brown_around
from pipelines.renal.read.pictures import overview_picture
from pipelines.renal.read.report import RenalReport
from pipelines.renal.read.summary import COLUMNS, grades_csv
from pipelines.runs.scoring import score_chunks
from tests.pipelines.renal.test_checks import REPORT
from tests.pipelines.renal.test_report import LOOSE, reported
from tests.renal_slides import BROWN, SIDE, TISSUE, Square, scattered, slide_of
from tests.slides import MPP, RednessEngine, card, coordinates, painted, write_pyramid
from wsi.arrays import RgbImage
from wsi.datasets.patch_folder import read_patches
from wsi.errors import RegionError
from wsi.placement import Placement
from wsi.results.store import HeatmapSpec, HeatmapStore
from wsi.slides.blocks import plan_blocks, read_block
from wsi.slides.grid import make_grid
from wsi.slides.manifest import SlideRow
from wsi.slides.overview import read_overview
from wsi.slides.readers.array import ArraySlide
from wsi.slides.slide import ReadPlan, plan_read
from wsi.slides.source import SlideSource
from wsi.slides.stain import tissue_pixels
from wsi.slides.tissue import Mask
from wsi.vocabulary import COLOURS, FEASIBLE, NEGATIVE, NOT_FEASIBLE, POSITIVE


class Torn(ArraySlide):
    """A slide of which one box of level 0 cannot be decoded, at any level."""

    def __init__(self, image: RgbImage, box: tuple[int, int, int, int], mpp: float) -> None:
        super().__init__([image], mpp=mpp)
        self.box = box

    def _read(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Any:
        x0, y0, x1, y1 = self.box
        d = self.levels[level].downsample
        if (
            location[0] < x1
            and location[1] < y1
            and location[0] + size[0] * d > x0
            and location[1] + size[1] * d > y0
        ):
            raise RegionError("torn")
        return super()._read(location, level, size)


class TestResampledSlides:
    @pytest.mark.parametrize("mpp", [0.25, 0.1])
    def test_a_torn_place_costs_the_cells_whose_patch_touches_it(self, mpp: float) -> None:
        """Also where a finer level is resampled: 0.1 um/px is read for 0.25. The tear is far off both diagonals."""
        scale = 0.25 / mpp
        width, height = round(2048 * scale), round(1024 * scale)
        tear = tuple(round(v * scale) for v in (1500, 130, 1540, 160))
        slide = Torn(painted(width, height, (0, 0, width, height), (200, 80, 90)), tear, mpp)  # type: ignore[arg-type]
        plan = plan_read(slide, 299, 128, 0.25)
        grid = make_grid(slide.size, plan, None)
        (block,) = plan_blocks(grid, 64)
        read = read_block(slide, block)
        unreadable = {tuple(cell) for cell in block.cells[~read.readable].tolist()}
        touched = set()
        for row, col in grid.cells.tolist():
            x, y = (col * 128 - 85) * plan.scale, (row * 128 - 85) * plan.scale
            side = 299 * plan.scale
            if x < tear[2] and x + side > tear[0] and y < tear[3] and y + side > tear[1]:
                touched.add((row, col))
        # what is torn is told to 256 px of the level that is read: cells beside it may be lost, too, none far away
        assert touched <= unreadable
        assert all(abs(r - 1) <= 2 and abs(c - 11.5) <= 4 for r, c in unreadable)
        assert len(unreadable) < len(grid) / 2


class TestDraws:
    def slides(self) -> list[TrainingSlide]:
        slide = ArraySlide([coordinates(1000, 700)], mpp=0.25)
        plan = ReadPlan(level=0, stride_l0=128, stride_px=128, size_px=299)
        cells = (np.array([[2, 5]]), np.array([[3, 1]]))
        return [TrainingSlide("s", slide, plan, cells, None)]  # type: ignore[call-arg]

    def test_jitter_in_x_and_y_are_two_draws(self, tmp_path: Path) -> None:
        sampler = SlideSampler(self.slides(), np.random.default_rng(0), 8, names=("a", "b"))
        shifts = []
        for _ in range(400):
            place = sampler.draw()
            row, col = place.cell
            shifts.append((place.corner[0] - (col * 128 - 85), place.corner[1] - (row * 128 - 85)))
        x, y = np.array(shifts).T
        for axis in (x, y):
            assert (axis.min(), axis.max()) == (-8, 8)
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.15

    def test_so_they_are_for_patches(self, tmp_path: Path) -> None:
        for label in ("normal", "tumor"):
            (tmp_path / label).mkdir()
            Image.fromarray(coordinates(320, 300) ^ (label == "tumor")).save(tmp_path / label / "1.png")
        sampler = PatchSampler(
            read_patches(tmp_path), [0, 1], 299, np.random.default_rng(0), 8, names=("a", "b")
        )
        x, y = np.array([sampler.draw().corner for _ in range(400)]).T
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.15
        assert (x.min(), y.max()) == (-8, 8)

    def test_stain_factors_and_offsets_are_six_draws(self) -> None:
        """A patch without any stain is moved by the offsets only: restated from their own draws, columns 7 to 9."""
        cfg = AugmentConfig(orientations=1, brightness=0, saturation=0, hue=0, contrast=0, stain=0.3)
        changes = draw_changes(3, cfg, torch.Generator().manual_seed(4))
        white = torch.full((3, 8, 8, 3), 255, dtype=torch.uint8)
        expected = restain(torch.ones(3, 3, 8, 8), torch.ones(3, 3), 0.03 * changes.draws[:, 7:10])
        torch.testing.assert_close(augment(white, cfg, changes), expected)
        assert not torch.allclose(expected[0], expected[1])


class TestStainFit:
    def test_what_cannot_be_decoded_is_not_white_tissue(self) -> None:
        slide = Torn(painted(1600, 896, (0, 0, 1600, 896), (180, 120, 170)), (1024, 0, 1280, 512), 0.5)
        mask = Mask(np.ones((9, 16), np.bool_), Placement(100, 100))
        pixels = tissue_pixels(slide, mask)
        assert read_overview(slide, 4.0).broken.any()
        assert np.abs(pixels.astype(int) - (180, 120, 170)).max() <= 1


class TestPicturesAreWhereTheyMustBe:
    """A mark at an asymmetric place is looked for in the picture's pixels."""

    def test_frames_and_dots_of_the_overview(self, tmp_path: Path) -> None:
        squares = [Square(2 * SIDE + 100, 300, BROWN), Square(200, 2 * SIDE + 60, (60, 80, 190))]
        path = slide_of(tmp_path / "s.tif", squares, cols=5, rows=3)
        from pipelines.renal.read.fields import FieldSet, KidneyField
        from pipelines.renal.read.marks import Marks

        fields = FieldSet(
            (
                KidneyField(0, 0, 1.0, 0.1, "scar"),
                KidneyField(2 * SIDE, 0, 1.0, 0.9, ""),
                KidneyField(0, 2 * SIDE, 1.0, 0.9, ""),
            ),
            SIDE,
            (6 * SIDE, 3 * SIDE),
        )
        boxes = np.array([[s.x - 12, s.y - 12, s.x + 12, s.y + 12] for s in squares], np.float64)
        marks = Marks(
            ("a", "b"),
            boxes,
            np.array([True, False]),
            np.array([0.9, 0.9]),
            np.array([0, 1]),
            np.array([True, True]),
            np.ones(2),
            np.zeros(2),
            ("", ""),
            ("machine", "machine"),
        )
        with SlideSource(str(path)).open() as slide:
            picture = picture_of(overview_picture(slide, fields, marks))
            scale = picture.shape[1] / slide.size[0]
        for (x, y), colour in (((2 * SIDE + 100, 300), POSITIVE), ((200, 2 * SIDE + 60), NEGATIVE)):
            assert like(picture, (x * scale, y * scale), COLOURS[colour], reach=2)
            assert not like(picture, (y * scale, x * scale), COLOURS[colour], reach=4)
        for x, y in ((2.5 * SIDE, 0), (3 * SIDE - 1, SIDE / 2), (SIDE / 2, 3 * SIDE - 1)):
            assert like(picture, (x * scale, y * scale), COLOURS[FEASIBLE], reach=3)
        assert like(
            picture, (SIDE / 4 * scale, SIDE / 4 * scale), COLOURS[NOT_FEASIBLE], reach=3
        )  # the cross
        assert not like(picture, (SIDE / 2 * scale, 2.5 * SIDE * scale), COLOURS[NOT_FEASIBLE], reach=3)

    def test_the_frame_of_one_field_is_not_where_x_and_y_are_swapped(self, tmp_path: Path) -> None:
        from pipelines.renal.read.fields import FieldSet, KidneyField
        from pipelines.renal.read.marks import Marks

        path = slide_of(tmp_path / "s.tif", [], cols=5, rows=3)
        fields = FieldSet((KidneyField(2 * SIDE, 0, 1.0, 0.9, ""),), SIDE, (6 * SIDE, 3 * SIDE))
        none, numbers = np.empty(0, np.bool_), np.empty(0)
        marks = Marks(
            (), np.empty((0, 4)), none, numbers, numbers.astype(np.int64), none, numbers, numbers, (), ()
        )
        with SlideSource(str(path)).open() as slide:
            picture = picture_of(overview_picture(slide, fields, marks))
            scale = picture.shape[1] / slide.size[0]
        assert like(picture, (2.5 * SIDE * scale, (SIDE - 1) * scale), COLOURS[FEASIBLE], reach=3)
        assert not like(picture, ((SIDE - 1) * scale, 2.5 * SIDE * scale), COLOURS[FEASIBLE], reach=3)

    def test_circles_and_heat_of_the_preview(self, tmp_path: Path) -> None:
        """A red square far to the right and near the top of a wide slide; the right panel is the heatmap's."""
        image = painted(6144, 2048, (256, 256, 5888, 1792), (190, 150, 185))
        image[384:768, 4992:5376] = (200, 80, 90)
        path = write_pyramid(tmp_path / "s.tif", image, levels=5, tile=256)
        row = SlideRow(SlideSource(str(path)))
        result = score_slide(row, "s", RednessEngine(), tmp_path / "out", ScoreConfig())
        (peak,) = result.lesions
        assert (peak.x, peak.y) == (5056, 448)
        picture = np.asarray(Image.open(tmp_path / "out" / "preview.png").convert("RGB"))
        panels = panel_boxes(picture)
        assert len(panels) == 2
        x0, y0, x1, y1 = panels[1]

        def at(x: float, y: float) -> tuple[float, float]:
            return x0 + x / 6144 * (x1 - x0), y0 + y / 2048 * (y1 - y0)

        ring = 6144 / 90  # the circle's radius
        assert like(picture, at(peak.x + ring, peak.y), (0, 48, 122), reach=3, tolerance=60)
        assert like(picture, at(peak.x, peak.y + ring), (0, 48, 122), reach=3, tolerance=60)
        assert not like(picture, at(6144 - peak.x, peak.y + ring), (0, 48, 122), reach=3, tolerance=60)
        assert not like(picture, at(peak.x, 2048 - peak.y), (0, 48, 122), reach=6, tolerance=60)
        hot, cold = picture_at(picture, at(5300, 700)), picture_at(picture, at(1200, 700))
        assert int(hot[0]) - int(hot[2]) > 60
        x0, y0, x1, y1 = panels[0]
        assert (
            np.abs(cold.astype(int) - picture_at(picture, at(1200, 700))).max() <= 64
        )  # low scores hide nothing

    def test_crops_show_their_own_capillary(self, tmp_path: Path) -> None:
        """Each thumbnail's middle holds the hollow square it is of, and the frame lies around it, not on it."""
        squares = [Square(300, 120, BROWN), Square(900, 420, BROWN), Square(150, 1100, BROWN)]
        slide_of(tmp_path / "s.tif", [*squares, *scattered(20, 0.0, 2)])
        reported(tmp_path / "s.tif", tmp_path / "s", LOOSE)
        page = (tmp_path / "s" / "report.html").read_text()
        shown = re.findall(
            r'<figure id="c\d+"><img src="([^"]+)".*?<br>\n.*?<br>\s*(\d+), (\d+)</figcaption>', page, re.S
        )
        assert sorted((int(x), int(y)) for _, x, y in shown) == sorted((s.x, s.y) for s in squares)
        for image, _, _ in shown:
            picture = picture_of(image)
            assert picture.shape[:2] == (120, 120)
            scale = 120 / (36 / 0.5)  # 36 um at 0.5 um/px
            assert like(picture, (60 - 12 * scale, 60), BROWN, reach=4, tolerance=70)
            assert like(picture, (60, 60 - 12 * scale), BROWN, reach=4, tolerance=70)
            assert not like(picture, (60, 60), BROWN, reach=3, tolerance=50)


def picture_of(uri: str) -> RgbImage:
    data = base64.b64decode(uri.split(",", 1)[1])
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])


def picture_at(picture: RgbImage, place: tuple[float, float]) -> np.ndarray:
    return picture[round(place[1]), round(place[0])]


def like(
    picture: RgbImage,
    place: tuple[float, float],
    colour: tuple[int, int, int],
    *,
    reach: int,
    tolerance: int = 40,
) -> bool:
    """Whether a pixel near (x, y) has a colour."""
    x, y = (round(v) for v in place)
    part = picture[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1].astype(int)
    return bool((np.abs(part - np.array(colour)).max(axis=2) <= tolerance).any())


def panel_boxes(picture: RgbImage) -> list[tuple[int, int, int, int]]:
    """The two panels of a preview, by their thin grey frames."""
    grey = (np.abs(picture.astype(int) - 0xBB).max(axis=2) <= 6).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(grey, connectivity=8)
    found = [(x, y, x + w - 1, y + h - 1) for x, y, w, h, _ in stats[1:].tolist() if w > 300 and h > 80]
    return sorted(found)


class TestTables:
    def test_columns_of_grades(self) -> None:
        """Every number of a report is another, so that no two columns can be exchanged unseen."""
        value = json.loads(REPORT)
        value["result"] |= {
            "positive": 8,
            "negative": 767,
            "fields": 41,
            "percent": 1.0323,
            "interval": [0.4, 2.0],
        }
        value["basis"] |= {"flagged": 6, "grade_without_flagged": "C4d0", "percent_without_flagged": 0.0}
        machine = RenalReport.model_validate_json(json.dumps(value))
        corrections = {
            "file": "c.geojson",
            "sha256": "x",
            "by": "Ada",
            "date": "2026-02-03",
            "comment": "a, b",
        }
        numbers = ("deleted", "added", "reclassified", "outside_fields")
        numbers += ("fields_left_out", "fields_taken_in", "fields_not_searched")
        corrections |= {name: 0 for name in numbers}
        other = value["result"] | {"positive": 97, "negative": 601, "fields": 39, "percent": 13.8968}
        other |= {"interval": [11.4, 16.7], "grade": "C4d2"}
        changed = value | {"reading": "corrected", "machine": value["result"], "result": other}
        person = RenalReport.model_validate_json(json.dumps(changed | {"corrections": corrections}))
        (row,) = csv.DictReader(io.StringIO(grades_csv([machine], {"s": person})))
        assert tuple(row) == COLUMNS
        assert {k: v for k, v in row.items() if k not in ("basis", "warnings")} == {
            "slide": "s",
            "grade": "C4d1",
            "grade_word": "C4d1 (minimal)",
            "percent": "1.0323",
            "low": "0.40",
            "high": "2.00",
            "positive": "8",
            "negative": "767",
            "fields": "41",
            "flagged": "6",
            "grade_without_flagged": "C4d0",
            "not_assessable": "",
            "reviewed_grade": "C4d2",
            "reviewed_grade_word": "C4d2 (focal)",
            "reviewed_percent": "13.8968",
            "reviewed_low": "11.40",
            "reviewed_high": "16.70",
            "reviewed_positive": "97",
            "reviewed_negative": "601",
            "reviewed_fields": "39",
            "reviewed_by": "Ada",
            "reviewed_date": "2026-02-03",
            "reviewed_comment": "a, b",
            "reviewed_not_assessable": "",
        }
        (alone,) = csv.DictReader(io.StringIO(grades_csv([machine], {})))
        assert alone["reviewed_grade"] == alone["reviewed_percent"] == ""


def test_the_height_of_a_box_counts() -> None:
    """A wide ellipse of brown: measured with the box's own height it is all around, with a square box it is not."""
    image = np.full((84, 110, 3), TISSUE, np.uint8)
    cv2.ellipse(image, (50, 45), (40, 8), 0, 0, 360, BROWN, 3)
    assert brown_around(image, (10, 37, 90, 53)) == 1.0
    assert brown_around(image, (10, 5, 90, 85)) < 0.9


class TestOptionsOfScore:
    """Every option of ``wsi score`` changes what it says it changes."""

    @pytest.fixture
    def slide(self, tmp_path: Path) -> Path:
        """Tissue that scores 0.31, a square of 0.94, one of 0.7, a speck of 100 um, and a green pen line."""
        image = painted(5120, 2560, (512, 512, 4608, 2048), (190, 150, 185))
        image[768:1152, 3072:3456] = (200, 80, 90)
        image[1280:1664, 1024:1408] = (190, 100, 140)
        image[2100:2500, 600:2600] = (195, 195, 195)  # grey: tissue to liu2017 only
        return write_pyramid(tmp_path / "s.tif", image, levels=5, tile=256)

    def run(self, wsi: Any, slide: Path, out: Path, *words: object) -> dict[str, Any]:
        code, _, err = wsi("score", slide, "--out", out, *words)
        assert code == 0, err
        return json.loads((out / "s" / "slide.json").read_text())  # type: ignore[no-any-return]

    @pytest.fixture(autouse=True)
    def engine(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
        calls: list[tuple[Any, Any]] = []

        def load(models: Any, cfg: Any) -> RednessEngine:
            calls.append((models, cfg))
            return RednessEngine()

        monkeypatch.setattr(score_command, "find_models", lambda names: names)
        monkeypatch.setattr(score_command, "load_engine", load)
        return calls

    def test_threshold(self, wsi: Any, slide: Path, tmp_path: Path) -> None:
        assert len(self.run(wsi, slide, tmp_path / "a")["lesions"]) == 2
        high = self.run(wsi, slide, tmp_path / "b", "--threshold", "0.8")
        assert len(high["lesions"]) == 1
        assert high["areas"] == 1
        assert high["lesion_settings"]["threshold"] == 0.8
        assert len((tmp_path / "b" / "s" / "lesions.csv").read_text().splitlines()) == 1

    def test_stride(self, wsi: Any, slide: Path, tmp_path: Path) -> None:
        self.run(wsi, slide, tmp_path / "a", "--stride", "64")
        assert HeatmapStore.open(tmp_path / "a/s/heatmap.zarr").attributes["stride_level0"] == [64, 64]

    def test_mpp_and_native(self, wsi: Any, slide: Path, tmp_path: Path) -> None:
        finer = self.run(wsi, slide, tmp_path / "a", "--mpp", "0.125")
        assert HeatmapStore.open(tmp_path / "a/s/heatmap.zarr").attributes["stride_level0"] == [256, 256]
        assert finer["mpp"] == 0.125
        self.run(wsi, slide, tmp_path / "b", "--mpp", "0.125", "--native")
        assert HeatmapStore.open(tmp_path / "b/s/heatmap.zarr").attributes["stride_level0"] == [128, 128]

    def test_tissue_and_mask(self, wsi: Any, slide: Path, tmp_path: Path) -> None:
        base = self.run(wsi, slide, tmp_path / "a")
        assert self.run(wsi, slide, tmp_path / "b", "--tissue", "liu2017")["cells"] != base["cells"]
        mask = np.zeros((20, 40), np.uint8)
        mask[4:8, 24:30] = 255
        Image.fromarray(mask).save(tmp_path / "m.png")
        masked = self.run(wsi, slide, tmp_path / "c", "--mask", tmp_path / "m.png")
        assert masked["cells"] == 24
        heatmap = HeatmapStore.open(tmp_path / "c/s/heatmap.zarr").read(1).scores
        assert np.argwhere(np.isfinite(heatmap)).min(axis=0).tolist() == [4, 24]

    def test_what_goes_to_the_engine(
        self, wsi: Any, slide: Path, tmp_path: Path, engine: list[tuple[Any, Any]]
    ) -> None:
        words = ("-m", "a", "--model", "b", "--orientations", "8", "--engine", "torch", "--precision", "fp32")
        self.run(wsi, slide, tmp_path / "a", *words)
        models, cfg = engine[-1]
        assert models == ["a", "b"]
        assert (cfg.orientations, cfg.engine, cfg.precision) == (8, "torch", "fp32")

    def test_config_and_what_wins_over_it(
        self, wsi: Any, slide: Path, tmp_path: Path, engine: list[tuple[Any, Any]]
    ) -> None:
        text = "score: {min_tissue: 0.9, threads: 2, lesions: {threshold: 0.8}}\nengine: {batch: 3}"
        (tmp_path / "c.yaml").write_text(text)
        base = self.run(wsi, slide, tmp_path / "a")
        value = self.run(wsi, slide, tmp_path / "b", "--config", tmp_path / "c.yaml")
        assert engine[-1][1].batch == 3
        assert value["cells"] < base["cells"]
        assert len(value["lesions"]) == 1
        over = self.run(wsi, slide, tmp_path / "c", "-c", tmp_path / "c.yaml", "--threshold", "0.5")
        assert len(over["lesions"]) == 2

    def test_anisotropic_pixels(self, wsi: Any, tmp_path: Path) -> None:
        image = painted(2560, 1536, (256, 256, 2304, 1280), (200, 80, 90))
        path = tmp_path / "s.tif"
        tifffile.imwrite(
            path,
            image,
            tile=(256, 256),
            photometric="rgb",
            resolution=(1e4 / 0.24, 1e4 / 0.26),
            resolutionunit=3,
        )
        code, _, err = wsi("score", path, "--out", tmp_path / "a")
        assert (code, "--allow-anisotropic" in err) == (1, True)
        value = self.run(wsi, path, tmp_path / "b", "--allow-anisotropic")
        assert value["mpp"] == pytest.approx(0.25)

    def test_class(self, wsi: Any, slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from models.engines import Models

        models = Models((Path("x"),), (card(),))
        monkeypatch.setattr(score_command, "find_models", lambda names: models)
        monkeypatch.setattr(score_command, "load_engine", lambda found, cfg: RednessEngine(found.card))
        assert self.run(wsi, slide, tmp_path / "a", "--class", "normal")["positive"] == "normal"
        assert self.run(wsi, slide, tmp_path / "b")["positive"] == "tumor"


class TestManyThreads:
    def test_they_give_the_same_bytes(self, tmp_path: Path) -> None:
        """Five chunks of other values each, read by one thread and by three."""
        image = np.zeros((2304, 20480, 3), np.uint8)
        rng = np.random.default_rng(3)
        for i in range(0, 20480, 512):
            image[:, i : i + 512] = (200, int(rng.integers(60, 160)), int(rng.integers(80, 160)))
        path = write_pyramid(tmp_path / "s.tif", image, levels=5, tile=256)
        for threads in (1, 3):
            row, out = SlideRow(SlideSource(str(path))), tmp_path / str(threads)
            score_slide(row, "s", RednessEngine(), out, ScoreConfig(threads=threads))
        names = sorted(p.relative_to(tmp_path / "1") for p in (tmp_path / "1").rglob("*") if p.is_file())
        assert sum("heatmap.zarr/c/" in str(n) for n in names) == 5
        for name in names:
            assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes(), name


class TestInMemory:
    def test_a_whole_run_on_a_slide_behind_a_url(self, red_square: Path, tmp_path: Path) -> None:
        """The same scores, lesions and areas as from the disk; what fsspec says of the file is its identity."""
        with fsspec.open("memory://folder/red.tif", "wb") as file:
            file.write(red_square.read_bytes())
        results = []
        for source in (SlideSource("memory://folder/red.tif"), SlideSource(str(red_square))):
            out = tmp_path / source.name
            results.append(score_slide(SlideRow(source), source.name, RednessEngine(), out, ScoreConfig()))
        assert results[0].name == "red"
        assert results[0].path == "memory://folder/red.tif"
        assert results[0].lesions == results[1].lesions
        assert results[0].cells == results[1].cells
        a, b = (
            HeatmapStore.open(tmp_path / n / "heatmap.zarr").read(1).scores for n in ("red", "red square")
        )
        np.testing.assert_array_equal(a, b)


class TestGolden:
    """The bytes of a tiny slide's results: if this fails, results changed; say so in CHANGELOG.md, then write anew."""

    LESIONS = "0.937500,576,1472\n"
    AREA = (512, 1408, 640, 1664)

    def test_lesions_areas_and_scores(self, tmp_path: Path) -> None:
        image = painted(1536, 2304, (256, 128, 1408, 2176), (190, 150, 185))
        image[1408:1664, 512:640] = (200, 80, 90)
        path = write_pyramid(tmp_path / "s.tif", image, levels=5, tile=256)
        out = tmp_path / "out"
        score_slide(SlideRow(SlideSource(str(path))), "s", RednessEngine(), out, ScoreConfig())
        assert (out / "lesions.csv").read_text() == self.LESIONS
        area = json.loads((out / "lesions.geojson").read_text())["features"][0]
        assert shapely.geometry.shape(area["geometry"]).equals(shapely.box(*self.AREA))
        scores = HeatmapStore.open(out / "heatmap.zarr").read(1).scores
        assert scores.shape == (18, 12)
        assert scores[11:13, 4].tolist() == [0.9375, 0.9375]
        assert scores[4, 9] == pytest.approx(0.3125)
        assert np.isnan(scores[0]).all()
        assert np.isnan(scores[:, 0]).all()


def test_a_chunk_s_place_is_row_then_column(tmp_path: Path) -> None:
    """A wide heatmap of three chunks in a row: files lie at c/0/0/0, c/0/0/1, c/0/0/2."""
    slide = ArraySlide([painted(1152, 384, (0, 0, 1152, 384), (200, 80, 90))], mpp=MPP)
    grid = make_grid(slide.size, ReadPlan(level=0, stride_l0=128, stride_px=128, size_px=299), None)
    store = HeatmapStore.create(
        tmp_path / "h.zarr", HeatmapSpec.of_grid(grid, 3, MPP, ("normal", "tumor"), "f")
    )
    score_chunks(slide, plan_blocks(grid, 3), RednessEngine(), store)
    found = sorted(
        str(p.relative_to(tmp_path / "h.zarr")) for p in (tmp_path / "h.zarr" / "c").rglob("*") if p.is_file()
    )
    assert found == ["c/0/0/0", "c/0/0/1", "c/0/0/2"]


def test_words_depend_on_the_bounds_one_by_one() -> None:
    """Each bound moves the word of one score between two others."""
    from pipelines.camelyon16.read.lesions import LEVELS, confidence_level

    bounds = (0.2, 0.4, 0.6, 0.8)
    assert [confidence_level(v, LesionConfig(), bounds) for v in (0.1, 0.3, 0.5, 0.7, 0.9)] == list(LEVELS)
