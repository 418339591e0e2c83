"""Feasible fields: what they are trained on, how they are chosen, which field a capillary lies in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely import box

from models.training.classify import sensitive_threshold
from models.training.data.fields import labelled_cells
from models.training.data.splits import slide_data
from models.training.recipe import TrainConfig
from pipelines.renal.read.fields import (
    FieldsConfig,
    FieldSet,
    KidneyField,
    choose_fields,
    index_of,
    place_fields,
    units_of,
)
from pipelines.runs.config import load_config
from tests.slides import ROOT, RednessEngine, card, painted, write_pyramid
from wsi.errors import AnnotationError, ConfigError, ModelError
from wsi.marks.annotations import Annotation, write_asap
from wsi.marks.c4d import FIELD_UM, field_side
from wsi.placement import Placement
from wsi.results.folder import LocalFolder
from wsi.slides.grid import make_grid
from wsi.slides.manifest import read_manifest
from wsi.slides.slide import ReadPlan
from wsi.slides.source import SlideSource
from wsi.slides.tissue import Mask

Run = Callable[..., tuple[int, str, str]]
CONFIGS = ROOT / "configs"
GRID = make_grid((1000, 700), ReadPlan(level=0, stride_l0=200, stride_px=50, size_px=50), None)


def fields(*rows: tuple[int, int, str]) -> FieldSet:
    """Fields of 100 px on a slide of 360 x 250 px."""
    return FieldSet(tuple(KidneyField(x, y, 0.5, 0.5, why) for x, y, why in rows), 100, (360, 250))


class TestLabels:
    def file(self, path: Path, *marks: tuple[tuple[int, int, int, int], str]) -> Path:
        write_asap(path, [Annotation(box(*b), group) for b, group in marks])
        return path

    def test_squares_of_the_grid(self, tmp_path: Path) -> None:
        """Cells of 200 px: (0, 0), one moved by 20 px that is still (1, 2), and capillaries, which are left out."""
        path = self.file(
            tmp_path / "f.xml",
            ((0, 0, 200, 200), "not feasible"),
            ((420, 220, 620, 420), "feasible"),
            ((3, 3, 9, 9), "C4d positive"),
        )
        negative, positive = labelled_cells(path, GRID)
        assert negative.tolist() == [[0, 0]]
        assert positive.tolist() == [[1, 2]]

    def test_a_field_at_the_border_may_reach_off_the_slide(self, tmp_path: Path) -> None:
        path = self.file(tmp_path / "f.xml", ((800, 600, 1000, 800), "feasible"))
        assert labelled_cells(path, GRID)[1].tolist() == [[3, 4]]

    @pytest.mark.parametrize(
        ("marks", "said"),
        [
            ([((0, 0, 200, 200), "Tumor")], "holds the class 'Tumor'; known for fields are feasible and not"),
            ([((100, 100, 300, 300), "feasible")], "is no field of 256 um"),
            ([((0, 0, 400, 400), "feasible")], "is no field of 256 um"),
            ([((2000, 0, 2200, 200), "feasible")], "is no field of 256 um"),
            ([((0, 0, 200, 200), "feasible"), ((1, 1, 201, 201), "not feasible")], "twice, differently"),
        ],
    )
    def test_what_is_no_field(
        self, tmp_path: Path, marks: list[tuple[tuple[int, int, int, int], str]], said: str
    ) -> None:
        with pytest.raises(AnnotationError, match=said):
            labelled_cells(self.file(tmp_path / "f.xml", *marks), GRID)


class TestThreshold:
    @given(
        st.lists(st.integers(0, 100), min_size=1, max_size=60),
        st.lists(st.integers(0, 100), max_size=20),
        st.floats(0.05, 1),
    )
    def test_it_keeps_the_share_and_is_the_highest_that_does(
        self, positive: list[int], negative: list[int], share: float
    ) -> None:
        scores = np.array(positive + negative, np.float32) / 100
        labels = np.arange(len(scores)) < len(positive)
        limit = sensitive_threshold(labels, scores, share)
        mine = scores[labels]
        assert (mine >= limit).mean() >= share - 1e-9
        higher = mine[mine > limit]
        assert len(higher) == 0 or (mine >= higher.min()).mean() < share


class TestFieldSet:
    def test_which_field_a_point_lies_in(self) -> None:
        """Half-open, only feasible ones are numbered, off the grid is none."""
        found = fields((0, 0, ""), (100, 0, "scar"), (300, 200, ""))
        points = np.array(
            [[0.0, 0], [99.9, 99.9], [100, 50], [300, 200], [399, 299], [-1, 0], [400, 200], [300, 300]]
        )
        assert found.index(points).tolist() == [0, 0, -1, 1, 1, -1, -1, -1]
        mask = found.mask
        rows, cols = mask.placement.cells(points[[0, 3, 2]]).T
        assert mask.pixels[rows, cols].tolist() == [True, True, False]
        assert mask.pixels.sum() * (100 / 13) ** 2 == pytest.approx(100 * 100 + 60 * 50, rel=0.2)

    def test_area_by_hand(self) -> None:
        """Two feasible fields, half of each tissue; the second has 60 x 50 px on the slide; 2 um per pixel."""
        found = fields((0, 0, ""), (100, 0, "scar"), (300, 200, ""))
        assert found.area_mm2(2.0) == pytest.approx(0.5 * (100 * 100 + 60 * 50) * 4 / 1e6)


class TestPlacing:
    """Squares of three units; a slide of 12 rows and 20 columns of units."""

    def place(self, tissue: np.ndarray, least: float = 0.05) -> list[list[int]]:
        return place_fields(tissue.astype(float), np.ones(tissue.shape), 3, least).tolist()  # type: ignore[no-any-return]

    def test_they_begin_where_the_tissue_does(self) -> None:
        """A strip of tissue one row off any grid: a grid of three would split it over two rows of half-empty fields."""
        tissue = np.zeros((12, 20))
        tissue[2:5, 4:13] = 1
        assert self.place(tissue) == [[2, 4], [2, 7], [2, 10]]

    def test_each_piece_has_strips_of_its_own(self) -> None:
        tissue = np.zeros((12, 20))
        tissue[1:4, 2:5] = 1
        tissue[3:9, 10:13] = 1
        assert self.place(tissue) == [[1, 2], [3, 10], [6, 10]]

    def test_a_slanting_edge_is_followed_strip_by_strip(self) -> None:
        tissue = np.zeros((12, 20))
        tissue[0:3, 9:15] = 1
        tissue[3:6, 4:10] = 1
        assert self.place(tissue) == [[0, 9], [0, 12], [3, 4], [3, 7]]

    def test_what_is_left_over_is_shared_by_both_sides(self) -> None:
        """Seven units of tissue: three squares of nine, one empty unit at each end; four units: two squares of six."""
        tissue = np.zeros((12, 20))
        tissue[2:5, 5:12] = 1
        assert self.place(tissue) == [[2, 4], [2, 7], [2, 10]]
        tissue[:] = 0
        tissue[3:6, 5:9] = 1
        assert self.place(tissue) == [[3, 4], [3, 7]]

    def test_slivers_are_no_candidates(self) -> None:
        tissue = np.zeros((12, 20))
        tissue[4, 5] = 0.4  # of nine units: 4 %
        assert self.place(tissue) == []
        assert self.place(tissue, 0.04) == [[3, 4]]  # in its middle

    def test_the_middle_stays_on_the_slide(self) -> None:
        tissue = np.zeros((12, 20))
        tissue[11, 18:] = 1
        ((row, col),) = self.place(tissue)
        assert (row + 1 < 12, col + 1 < 20) == (True, True)

    def test_tissue_at_the_edge_loses_no_strip(self) -> None:
        """Four rows from the top edge: two strips, the second below the first."""
        tissue = np.zeros((12, 20))
        tissue[:4, 4:7] = 1
        assert self.place(tissue, 0.01) == [[0, 4], [3, 4]]

    def test_a_thin_line_takes_no_square_from_the_biopsy(self) -> None:
        """A line of dirt above the biopsy, two columns beside it, comes first on the slide and is three columns' worth."""
        tissue = np.zeros((12, 20))
        tissue[2:11, 4:13] = 1
        tissue[0:12, 14] = 1
        assert [[r, c] for r, c in self.place(tissue) if c < 13] == [
            [r, c] for r in (2, 5, 8) for c in (4, 7, 10)
        ]

    @given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 5, 13]))
    def test_none_overlap_and_little_tissue_is_left(self, seed: int, units: int) -> None:
        rng = np.random.default_rng(seed)
        rows, cols = (int(v) for v in rng.integers(units, 60, 2))
        tissue = np.zeros((rows, cols))
        for _ in range(3):
            y, x = int(rng.integers(rows)), int(rng.integers(cols))
            tissue[y : y + int(rng.integers(1, 30)), x : x + int(rng.integers(1, 30))] = 1
        found = place_fields(tissue, np.ones(tissue.shape), units, 0.05)
        covered = np.zeros((rows + units, cols + units), np.int64)
        for row, col in found.tolist():
            covered[row : row + units, col : col + units] += 1
            assert tissue[row : row + units, col : col + units].mean() >= 0.05
            assert row + units // 2 < rows
            assert col + units // 2 < cols
        assert covered.max() <= 1
        assert found.tolist() == sorted(found.tolist())
        if units == 1:
            assert covered[:rows, :cols].sum() == tissue.sum()

    def test_how_many_units(self) -> None:
        assert [units_of(px) for px in (299, 64, 32, 45)] == [13, 1, 1, 9]

    def test_points_in_squares(self) -> None:
        points = np.array([[10.0, 20], [39.9, 49.9], [40, 20], [9.9, 20], [45, 60]])
        assert index_of([(10, 20), (40, 50)], 30, points).tolist() == [0, 0, -1, -1, 1]

    def test_the_truth_of_a_field_is_what_most_of_it_is(self, tmp_path: Path) -> None:
        """Labels on squares of 100 px; the report's field at (30, 20) lies on four of them."""
        from pipelines.renal.evaluate.truth import true_fields
        from pipelines.renal.read.report import RenalReport
        from tests.pipelines.renal.test_checks import REPORT

        corners = {(0, 0): "feasible", (100, 0): "feasible", (0, 100): "feasible", (100, 100): "not feasible"}
        write_asap(
            tmp_path / "t.xml", [Annotation(box(x, y, x + 100, y + 100), g) for (x, y), g in corners.items()]
        )
        value = json.loads(REPORT) | {"field_side_px": 100}
        one = {"id": "i", "tissue": 1.0, "score": 0.9, "why_not": "", "positive": 0, "negative": 0}
        value["fields"] = [
            one | {"x": x, "y": y} for x, y in ((30, 20), (50, 50), (95, 90), (170, 20), (500, 500))
        ]
        report = RenalReport.model_validate_json(json.dumps(value))
        # 94 % feasible; exactly 75 %; 14 % ; only 30 % labelled; nothing labelled
        assert true_fields(tmp_path / "t.xml", report) == {(30, 20): True, (50, 50): True, (95, 90): False}


class TestChoice:
    """Fields of 256 um on a slide of 8 um/px: 32 px; red ones are feasible to the stand-in."""

    @pytest.fixture
    def slide(self, tmp_path: Path) -> Path:
        image = painted(96, 64, (32, 0, 64, 32), (255, 0, 0))
        return write_pyramid(tmp_path / "s.tif", image, mpp=8.0, levels=1)

    def engine(self, **changes: object) -> RednessEngine:
        fields: dict[str, object] = {"classes": ("not feasible", "feasible"), "positive": "feasible"}
        fields |= {"patch_px": 32, "stride_px": 32, "spacing_um": 8.0, "threshold": 0.5}
        return RednessEngine(card(**fields | changes))

    def choose(self, slide: Path, out: Path, cfg: FieldsConfig, **changes: object) -> FieldSet:
        everything = Mask(np.ones((8, 12), np.bool_), Placement(8, 8))
        with SlideSource(str(slide)).open() as opened:
            return choose_fields(
                opened,
                SlideSource(str(slide)),
                everything,
                self.engine(**changes),
                LocalFolder(out / "f.zarr"),
                cfg,
                fingerprint="x",
            )

    def test_by_score(self, slide: Path, tmp_path: Path) -> None:
        found = self.choose(slide, tmp_path, FieldsConfig())
        assert [(f.x, f.y) for f in found.fields] == [(0, 0), (32, 0), (64, 0), (0, 32), (32, 32), (64, 32)]
        assert [(f.x, f.y) for f in found.feasible] == [(32, 0)]
        assert "the network does not say which" in found.fields[0].why_not

    def test_a_threshold_of_ones_own(self, slide: Path, tmp_path: Path) -> None:
        assert len(self.choose(slide, tmp_path, FieldsConfig(threshold=0.0)).feasible) == 6

    def test_a_seeded_sample(self, slide: Path, tmp_path: Path) -> None:
        drawn = [
            [(f.x, f.y) for f in self.choose(slide, tmp_path / str(i), FieldsConfig(sample=3, seed=s)).fields]
            for i, s in enumerate((0, 0, 1, 2))
        ]
        assert drawn[0] == drawn[1]
        assert len({tuple(d) for d in drawn}) > 1
        assert all(len(set(d)) == 3 for d in drawn)

    def test_other_models_are_refused(self, slide: Path, tmp_path: Path) -> None:
        for changes in ({"positive": "not feasible"}, {"threshold": None}, {"spacing_um": None}):
            with pytest.raises(ModelError, match="does not tell feasible fields"):
                self.choose(slide, tmp_path, FieldsConfig(), **changes)
        with pytest.raises(ModelError, match="sees fields of another size than 256 um"):
            self.choose(slide, tmp_path, FieldsConfig(), spacing_um=8.2)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides of 3 x 2 fields at 0.8 um/px: red fields are feasible."""
    folder = tmp_path_factory.mktemp("fields")
    lines = ["path,truth,split"]
    side = field_side(0.8)
    for i, split in enumerate(("train", "validation")):
        image = np.full((2 * side, 3 * side, 3), 235, np.uint8)
        marks = []
        for row in range(2):
            for col in range(3):
                red = (row + col + i) % 2 == 0
                y, x = row * side, col * side
                image[y : y + side, x : x + side] = (220, 40, 40) if red else (200, 200, 235)
                group = "feasible" if red else "not feasible"
                marks.append(Annotation(box(x, y, x + side, y + side), group))
        write_pyramid(folder / f"s{i}.tif", image, mpp=0.8, levels=1)
        write_asap(folder / f"s{i}.xml", marks)
        lines.append(f"s{i}.tif,s{i}.xml,{split}")
    (folder / "fields.csv").write_text("\n".join(lines) + "\n")
    return folder


class TestTraining:
    def test_the_recipe_that_ships(self) -> None:
        cfg = load_config(CONFIGS / "renal_fields.yaml", TrainConfig)
        assert cfg.task == "fields"
        assert cfg.spacing_um is not None
        assert 299 * cfg.spacing_um == pytest.approx(FIELD_UM, abs=0.01)
        assert cfg.classes == ("not feasible", "feasible")

    @pytest.mark.slow
    def test_by_command(self, cohort: Path, tmp_path: Path, wsi: Run) -> None:
        """What is learned is a model of fields: its classes, a whole patch as its cell, and a threshold."""
        text = (CONFIGS / "renal_fields.yaml").read_text()
        for line in ("examples: 24000", "batch: 32", "validate_every: 4000", "validation_patches: 800"):
            text = text.replace(line, f"{line.split(':')[0]}: 8")
        recipe = tmp_path / "r.yaml"
        recipe.write_text(text)
        words = ("train", "fields", recipe, "--out", tmp_path / "out")
        code, said, _ = wsi(*words, "--slides", cohort / "fields.csv")
        assert code == 0
        assert "train: 1 slides, 3 not feasible and 3 feasible cells" in said
        made = json.loads((tmp_path / "out" / "model" / "card.json").read_text())
        assert (made["classes"], made["positive"]) == (["not feasible", "feasible"], "feasible")
        assert made["patch_px"] == made["stride_px"] == 299
        assert 0 <= made["threshold"] <= 1
        code, _, said = wsi(*words)
        assert (code, "names no slides; pass --slides fields.csv" in said) == (2, True)
        code, _, said = wsi("train", "fields", CONFIGS / "camelyon16.yaml", "--out", tmp_path / "n")
        assert (code, "is a recipe of the task 'tumour'; give one of 'fields'" in said) == (2, True)

    def test_what_is_said_names_the_recipe_s_classes(self, cohort: Path, tmp_path: Path, wsi: Run) -> None:
        """Not a word of lymph nodes: of the data, of hard negatives, of a class without cells, by the doctor."""
        side = field_side(0.8)
        (tmp_path / "hard.csv").write_text(f"slide,x,y,score\ns0,{side + side // 2},{side // 2},0.9\n")
        cfg = load_config(
            CONFIGS / "renal_fields.yaml",
            TrainConfig,
            {"hard_negatives": tmp_path / "hard.csv", "validation_patches": 8},
        )
        said: list[str] = []
        data = slide_data(read_manifest(cohort / "fields.csv"), cfg, say=said.append)
        assert "train: 1 of 1 hard negatives lie on not feasible cells of these slides" in said
        assert data.facts["split"]["validation"]["cells"] == {"not feasible": 3, "feasible": 3}
        with pytest.raises(ConfigError, match="none of the 1 slides has a not feasible cell"):
            data.sampler.exclude_all([[0, 0, *cell] for cell in data.sampler.cells[0][0].tolist()])
        recipe, manifest = CONFIGS / "renal_fields.yaml", cohort / "fields.csv"
        code, out, _ = wsi("doctor", "--manifest", manifest, "--recipe", recipe)
        assert code == 0
        assert out.splitlines()[0].endswith("0.8 um/px; 3 not feasible and 3 feasible cells")
        assert out.splitlines()[-1] == "ok  split validation: 1 slide, 3 not feasible and 3 feasible cells"
        assert not any(word in out + " ".join(said) for word in ("tumour", "normal"))

    def test_without_labels(self, cohort: Path, tmp_path: Path) -> None:
        (tmp_path / "f.csv").write_text(
            f"path,split\n{cohort / 's0.tif'},train\n{cohort / 's1.tif'},validation\n"
        )
        cfg = load_config(CONFIGS / "renal_fields.yaml", TrainConfig)
        with pytest.raises(
            ConfigError, match="has no truth; fill in the column 'truth' with its labelled fields"
        ):
            slide_data(read_manifest(tmp_path / "f.csv"), cfg)
