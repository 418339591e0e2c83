"""Segmentation of slides, whole: areas by hand, outlines where they are, going on, and the command."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from PIL import Image

import models.card as card_module
from models.card import SegmenterConfig
from models.checkpoint import save_segmenter
from models.engines.map_slide import plan_map
from models.registry import make_segmenter
from pipelines.camelyon16.read.score import ScoreConfig, score_slide
from pipelines.runs.config import load_config
from pipelines.runs.task import MapTask
from pipelines.segment.read import SegmentConfig, SegmentJob, outlines, segment_slide
from pipelines.segment.result import PALETTE, colours_of, write_tables
from tests.slides import RednessEngine, RednessMapper, painted, write_pyramid
from wsi.errors import ForeignStoreError
from wsi.marks.geojson import read_objects
from wsi.marks.raster import areas_of
from wsi.metrics.segmentation import UNKNOWN
from wsi.placement import Placement
from wsi.results.folder import LocalFolder
from wsi.results.store import HeatmapStore
from wsi.slides.manifest import SlideRow
from wsi.slides.readers.openslide import OpenSlideReader
from wsi.slides.source import SlideSource
from wsi.slides.tissue import Mask, TissueConfig, find_tissue
from wsi.vocabulary import COMPARTMENT_COLOURS

Run = Callable[..., tuple[int, str, str]]
CFG = SegmentConfig(tissue=TissueConfig(method="density", min_speck_um2=0))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_module, "RUN_CORE_PX", 64)


@pytest.fixture
def row(tmp_path: Path) -> SlideRow:
    """A red ring with a hole, and a dark square: 0.25 um/px, so that a cell of 4 px is one um."""
    pixels = painted(1200, 800, (200, 120, 600, 400), (200, 60, 110))
    pixels[200:280, 300:420] = 255
    pixels[600:680, 800:880] = (60, 40, 90)
    return SlideRow(SlideSource(str(write_pyramid(tmp_path / "ring.tif", pixels))))


class TestAreas:
    def test_outlines_have_holes_and_lie_where_the_cells_lie(self) -> None:
        inside = np.zeros((8, 12), np.bool_)
        inside[1:6, 2:9] = True
        inside[3, 4:6] = False
        inside[6, 9] = True  # touches by a corner: another area
        first, second = areas_of(inside, 4)
        hole = shapely.box(16, 12, 24, 16)
        assert first.equals(shapely.box(8, 4, 36, 24) - hole)
        assert second.equals(shapely.box(36, 24, 40, 28))

    @pytest.mark.parametrize("seed", range(4))
    def test_they_cover_exactly_the_cells(self, seed: int) -> None:
        inside = np.random.default_rng(seed).random((30, 40)) < 0.55
        areas = areas_of(inside, 1)
        assert all(area.is_valid for area in areas)
        x, y = np.meshgrid(np.arange(40) + 0.5, np.arange(30) + 0.5)
        covered = np.sum([shapely.contains_xy(area, x, y) for area in areas], axis=0)
        np.testing.assert_array_equal(covered, inside)
        assert sum(area.area for area in areas) == inside.sum()

    def test_areas_of_fewer_cells_are_left_out(self) -> None:
        inside = np.zeros((8, 12), np.bool_)
        inside[1:3, 1:3], inside[5, 5] = True, True
        assert [a.area for a in areas_of(inside, 2, 2)] == [16]

    def test_small_ones_get_no_outline_and_nothing_is_made_of_what_is_not_known(self) -> None:
        labels = np.zeros((10, 10), np.uint8)
        labels[1:4, 1:4], labels[6, 6], labels[8:, 8:] = 2, 2, UNKNOWN
        labels[5:7, 1:3] = 1
        found = outlines(labels, 4, 0.25, 4.0)  # a cell is one um2
        assert [(label, area.area / 16) for label, area in found] == [(1, 4), (2, 9)]


class TestSlide:
    def test_areas_by_hand(self, row: SlideRow, tmp_path: Path) -> None:
        mapper = RednessMapper()
        result = segment_slide(row, "ring", mapper, tmp_path / "out", CFG)
        ring = (400 * 280 - 120 * 80) / 16 / 1e6  # mm2
        assert result.classes["red"].mm2 == pytest.approx(ring)
        assert result.classes["dark"].mm2 == pytest.approx(400 / 1e6)
        assert (result.classes["red"].objects, result.classes["dark"].objects) == (1, 1)
        assert (result.unreadable, result.note) == (0, "")
        objects = {o.group: o.shape for o in read_objects(tmp_path / "out" / "areas.geojson")}
        assert objects["red"].equals(shapely.box(200, 120, 600, 400) - shapely.box(300, 200, 420, 280))
        assert objects["dark"].equals(shapely.box(800, 600, 880, 680))
        assert (tmp_path / "out" / "preview.png").read_bytes().startswith(b"\x89PNG")

    def test_a_stopped_run_goes_on_to_the_same_bytes(self, row: SlideRow, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            segment_slide(row, "ring", RednessMapper(fail_after=3), tmp_path / "a", CFG)
        assert not (tmp_path / "a" / "slide.json").exists()
        mapper, whole = RednessMapper(), RednessMapper()
        segment_slide(row, "ring", mapper, tmp_path / "a", CFG)
        segment_slide(row, "ring", whole, tmp_path / "b", CFG)
        assert len(mapper.seen) == len(whole.seen) - 3
        files = [
            {n: LocalFolder(tmp_path / f).read(n) for n in LocalFolder(tmp_path / f).files()} for f in "ab"
        ]
        assert files[0] == files[1]

    def test_no_thread_reads_on_when_a_listener_has_stopped_the_run(
        self, row: SlideRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A read of a closed slide ends the whole process."""
        mapper = RednessMapper()
        mapper.at_once = 3
        late: list[bool] = []
        real_read, real_close = OpenSlideReader._read, OpenSlideReader.close
        closed: set[int] = set()

        def read(self: OpenSlideReader, *place: Any) -> Any:
            time.sleep(0.02)
            late.append(id(self) in closed)
            return real_read(self, *place)

        def close(self: OpenSlideReader) -> None:
            closed.add(id(self))
            real_close(self)

        def tick(done: int, total: int, what: str) -> None:
            if what == "tiles" and done:
                raise KeyboardInterrupt

        monkeypatch.setattr(OpenSlideReader, "_read", read)
        monkeypatch.setattr(OpenSlideReader, "close", close)
        with pytest.raises(KeyboardInterrupt):
            segment_slide(row, "ring", mapper, tmp_path / "a", CFG, tick=tick)
        time.sleep(0.2)
        assert late
        assert not any(late)

    def test_what_is_done_is_kept_and_what_changed_is_made_again(self, row: SlideRow, tmp_path: Path) -> None:
        out = tmp_path / "out"
        first = segment_slide(row, "ring", RednessMapper(), out, CFG)
        again = RednessMapper(fail_after=0)
        assert segment_slide(row, "ring", again, out, CFG) == first
        (out / "areas.geojson").write_text("{}")
        assert segment_slide(row, "ring", again, out, CFG) == first  # the map is whole: no tile is looked at
        assert len(read_objects(out / "areas.geojson")) == 2
        chunk = next((out / "classes.zarr" / "c").rglob("1"))
        chunk = chunk if chunk.is_file() else next(p for p in chunk.rglob("*") if p.is_file())
        chunk.write_bytes(chunk.read_bytes()[:-3] + b"xyz")
        mapper = RednessMapper()
        assert segment_slide(row, "ring", mapper, out, CFG) == first
        assert len(mapper.seen) == 1

    def test_other_settings_are_refused_or_replace_it(self, row: SlideRow, tmp_path: Path) -> None:
        out = tmp_path / "out"
        segment_slide(row, "ring", RednessMapper(), out, CFG)
        other = RednessMapper(pool=4)
        with pytest.raises(ForeignStoreError, match="was made from another slide, model or settings"):
            segment_slide(row, "ring", other, out, CFG)
        result = segment_slide(row, "ring", other, out, CFG, overwrite=True)
        assert result.classes["dark"].mm2 == pytest.approx(400 / 1e6)
        assert json.loads((out / "classes.zarr" / "zarr.json").read_text())["attributes"][
            "stride_level0"
        ] == [8, 8]

    def test_a_slide_of_glass_says_so(self, tmp_path: Path) -> None:
        glass = write_pyramid(tmp_path / "glass.tif", np.full((400, 500, 3), 244, np.uint8))
        result = segment_slide(SlideRow(SlideSource(str(glass))), "g", RednessMapper(), tmp_path / "o", CFG)
        assert result.empty
        assert {(one.mm2, one.objects) for one in result.classes.values()} == {
            (None, None)
        }  # which is not zero
        write_tables(LocalFolder(tmp_path), [result], [], {"models": []})
        lines = (tmp_path / "areas.csv").read_text().splitlines()[1:]
        assert [line.split(",")[:4] for line in lines] == [
            ["g", name, "", ""] for name in ("glass", "dark", "red")
        ]
        assert result.note.startswith("no tissue found")

    def test_elsewhere_than_on_the_users_own_mask_nothing_is_mapped(
        self, row: SlideRow, tmp_path: Path
    ) -> None:
        mask = np.zeros((100, 150), np.uint8)
        mask[20:30, 60:70] = 255  # level-0 (480, 160) to (560, 240): on the ring alone
        Image.fromarray(mask).save(tmp_path / "mask.png")
        own = replace(row, mask=tmp_path / "mask.png")
        result = segment_slide(own, "ring", RednessMapper(), tmp_path / "out", CFG)
        total = sum(one.mm2 or 0 for one in result.classes.values())
        assert total == pytest.approx(80 * 80 / 16 / 1e6)
        assert result.classes["red"].mm2 == pytest.approx(total)

    def test_a_task_does_not_write_into_the_map_of_another_run(self, row: SlideRow, tmp_path: Path) -> None:
        with row.source.open() as slide:
            mask = find_tissue(slide, CFG.tissue)
            plan, other = (plan_map(slide, mask, RednessMapper().card, made) for made in ("old", "new"))
        HeatmapStore.create(tmp_path / "classes.zarr", other.spec)
        task = MapTask(row.source, plan, plan.chunks, RednessMapper(), LocalFolder(tmp_path / "classes.zarr"))
        with pytest.raises(ForeignStoreError, match="was replaced by another command"):
            task.run(lambda done, total: None)
        assert HeatmapStore.open(tmp_path / "classes.zarr").chunks_done() == set()

    def test_the_result_of_another_command_is_not_replaced(self, row: SlideRow, tmp_path: Path) -> None:
        """Not even with --overwrite: files of both would lie beside each other, and one be taken for the other."""
        cfg = ScoreConfig(tissue=CFG.tissue)
        score_slide(row, "ring", RednessEngine(), tmp_path / "scored", cfg)
        segment_slide(row, "ring", RednessMapper(), tmp_path / "mapped", CFG)
        for name, said, replace_it in (
            (
                "scored",
                "holds a result of wsi score; choose another --out",
                lambda out: segment_slide(row, "ring", RednessMapper(), out, CFG, overwrite=True),
            ),
            (
                "mapped",
                "holds a result of wsi segment; choose another --out",
                lambda out: score_slide(row, "ring", RednessEngine(), out, cfg, overwrite=True),
            ),
        ):
            before = {n: LocalFolder(tmp_path / name).read(n) for n in LocalFolder(tmp_path / name).files()}
            with pytest.raises(ForeignStoreError, match=said):
                replace_it(tmp_path / name)
            assert {n: LocalFolder(tmp_path / name).read(n) for n in before} == before

    def test_a_spacing_that_the_file_contradicts_is_noted(self, row: SlideRow, tmp_path: Path) -> None:
        other = replace(row, source=replace(row.source, mpp=0.5))
        result = segment_slide(other, "ring", RednessMapper(), tmp_path / "out", CFG)
        assert result.note == "0.5 um/px was given, the slide itself says 0.25"

    def test_a_mask_is_pickled_small_and_whole(self) -> None:
        pixels = np.zeros((1000, 901), np.bool_)
        pixels[200:700, 100:333] = True
        mask = Mask(pixels, Placement(32.0, 33.0), "why")
        packed = pickle.dumps(mask)
        again = pickle.loads(packed)
        np.testing.assert_array_equal(again.pixels, pixels)
        assert (again.placement, again.why_empty, len(packed) < pixels.size / 100) == (
            mask.placement,
            "why",
            True,
        )

    def test_a_file_that_sets_a_part_of_the_tissue_keeps_the_method(self) -> None:
        given = SegmentConfig.model_validate({"tissue": {"min_speck_um2": 5.0}})
        assert (given.tissue.method, given.tissue.min_speck_um2) == ("density", 5)
        assert SegmentConfig.model_validate({"tissue": {"method": "ncrf"}}).tissue.method == "ncrf"
        assert load_config(Path("configs/segment.yaml"), SegmentConfig) == SegmentConfig()

    def test_a_job_can_be_pickled_and_names_its_engine(self, tmp_path: Path) -> None:
        job = SegmentJob(LocalFolder(tmp_path), RednessMapper(), CFG)
        assert [type(spec) for spec in job.specs] == [RednessMapper]


def test_colours_are_apart_and_compartments_have_their_own() -> None:
    names = ("glass", "cortex", *"abcdefg")
    colours = colours_of(names)
    assert colours[1] == COMPARTMENT_COLOURS["cortex"]
    assert colours[2:] == list(PALETTE)
    assert len(set(colours)) == len(names)


@pytest.mark.slow
class TestCommand:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        """A segmenter whose only weight says red where red exceeds green."""
        import torch

        shape = SegmenterConfig(classes=("glass", "red"), network="fcn_8s", width=8, core_px=64, margin_px=16)
        torch.manual_seed(0)
        save_segmenter(
            tmp_path / "model", make_segmenter(shape).eval(), name="mine", segmenter=shape, demonstration=True
        )
        (tmp_path / "all.yaml").write_text(
            "tissue: {min_speck_um2: 0}\n"
        )  # the slide is a third of a mm wide
        return tmp_path / "model"

    def test_slides_to_a_page(self, row: SlideRow, model: Path, tmp_path: Path, wsi: Run) -> None:
        out_folder = tmp_path / "out"
        words = ("segment", row.source.path, "-m", model, "-o", out_folder, "-c", tmp_path / "all.yaml")
        code, out, err = wsi(*words, "--engine", "torch", "--precision", "fp32")
        assert (code, err) == (0, "")
        assert "a demonstration model" in out
        assert "ring: red " in out
        table = (out_folder / "areas.csv").read_text().splitlines()
        assert table[0] == "slide,class,mm2,objects,note"
        assert [line.split(",")[:2] for line in table[1:]] == [["ring", "glass"], ["ring", "red"]]
        page = (out_folder / "index.html").read_text()
        assert "ring/preview.png" in page
        assert "For research use only" in page
        run = json.loads((out_folder / "run.json").read_text())
        assert (run["state"], run["slides"][0]["name"], run["models"][0]["name"]) == (
            "finished",
            "ring",
            "mine",
        )
        code, _, err = wsi(*words)  # another precision
        assert (code, "holds results of another model or other settings" in err) == (2, True)
        assert wsi(*words, "--overwrite")[0] == 0
        assert wsi("verify", out_folder)[0] == 0

    def test_settings_in_a_file(self, row: SlideRow, model: Path, tmp_path: Path, wsi: Run) -> None:
        (tmp_path / "c.yaml").write_text("smallest_um2: 1.0e+9\ntissue: {min_speck_um2: 0}\n")
        words = ("segment", row.source.path, "-m", model, "-o", tmp_path / "out")
        assert wsi(*words, "--config", tmp_path / "c.yaml")[0] == 0
        assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["smallest_um2"] == 1e9
        assert read_objects(tmp_path / "out" / "ring" / "areas.geojson") == []

    def test_a_bad_slide_costs_itself(self, row: SlideRow, model: Path, tmp_path: Path, wsi: Run) -> None:
        (tmp_path / "bad.tif").write_bytes(b"no slide")
        code, out, err = wsi(
            *("segment", tmp_path / "bad.tif", row.source.path, "-m", model, "-o", tmp_path / "out"),
            *("-c", tmp_path / "all.yaml"),
        )
        assert code == 1
        assert "bad: failed" in err
        assert "ring: red" in out
        assert "bad: failed" in (tmp_path / "out" / "index.html").read_text()

    def test_two_workers_write_the_same(self, row: SlideRow, model: Path, tmp_path: Path, wsi: Run) -> None:
        for name, options in (("a", ()), ("b", ("--workers", 2))):
            words: tuple[Any, ...] = ("segment", row.source.path, "-m", model, "-o", tmp_path / name)
            assert wsi(*words, "-c", tmp_path / "all.yaml", *options)[0] == 0
        files = [
            {n: LocalFolder(tmp_path / f).read(n) for n in LocalFolder(tmp_path / f).files()} for f in "ab"
        ]
        assert {n for n in files[0] if files[0][n] != files[1].get(n)} <= {"run.json"}

    def test_other_commands_say_what_it_is(
        self, row: SlideRow, model: Path, tmp_path: Path, wsi: Run
    ) -> None:
        out = tmp_path / "out"
        assert wsi("segment", row.source.path, "-m", model, "-o", out, "-c", tmp_path / "all.yaml")[0] == 0
        for words in (
            ("export", "csv", out),
            ("cohort", "export", out, tmp_path / "t.parquet"),
            ("camelyon16", "evaluate", out, "--truth", tmp_path, "--others-normal"),
        ):
            code, _, err = wsi(*words)
            assert (code, "is a segmentation of wsi segment" in err) == (2, True), err
        code, _, err = wsi("view", out, "--no-browser")
        assert (code, "segmentations or features, which are not shown here" in err) == (2, True), err
        assert wsi("cohort", "status", out)[0] == 0

    @pytest.mark.parametrize(
        ("model_name", "said"),
        [
            ("lymph-node-demo", "is a model of patches: wsi score takes it"),
            ("renal-ptc-demo", "is a detector of capillaries"),
            ("nothing", "there is no model folder nothing"),
        ],
    )
    def test_models_of_other_kinds(
        self, row: SlideRow, tmp_path: Path, wsi: Run, model_name: str, said: str
    ) -> None:
        code, _, err = wsi("segment", row.source.path, "-m", model_name, "-o", tmp_path / "out")
        assert (code, said in err) == (2, True), err

    def test_a_segmenter_given_to_other_commands(
        self, row: SlideRow, model: Path, tmp_path: Path, wsi: Run
    ) -> None:
        for command in ("score", ("renal", "report")):
            words = (command,) if isinstance(command, str) else command
            code, _, err = wsi(*words, row.source.path, "--model", model, "-o", tmp_path / "out")
            assert (code, "is a segmenter: wsi segment takes it as --model" in err) == (2, True), err
