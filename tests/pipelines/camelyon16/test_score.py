"""A slide in, lesions out, with an engine that measures redness."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from shapely import box, geometry

from pipelines.camelyon16.read.results import SlideResult
from pipelines.camelyon16.read.score import ScoreConfig, score_slide
from pipelines.runs.cohort import gather, slides_in, unique_names
from tests.slides import MPP, RednessEngine, card, painted, write_pyramid
from wsi.errors import (
    AnnotationError,
    ConfigError,
    ForeignStoreError,
    ModelError,
    SlideError,
    SpacingError,
    StoreError,
)
from wsi.marks.annotations import Annotation, write_asap
from wsi.results.store import HeatmapStore
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource

CFG = ScoreConfig()
SQUARE = box(1280, 1024, 1920, 1664)


def score(
    path: Path, out: Path, engine: RednessEngine | None = None, cfg: ScoreConfig = CFG, **options
) -> SlideResult:  # type: ignore[no-untyped-def]
    row = SlideRow(SlideSource(str(path), options.pop("mpp", None)), mask=options.pop("mask", None))
    return score_slide(row, path.stem, engine or RednessEngine(), out, cfg, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class TestFlow:
    def test_a_red_square_is_one_lesion_inside_the_square(self, red_square: Path, tmp_path: Path) -> None:
        result = score(red_square, tmp_path / "out")
        assert len(result.lesions) == 1
        lesion = result.lesions[0]
        assert SQUARE.contains(geometry.Point(lesion.x, lesion.y))
        assert result.score == pytest.approx(120 / 128, abs=1e-3)
        assert result.confidence == "equivocal"
        assert result.unreadable == 0

    def test_the_heatmap_is_the_redness_of_every_cell(self, red_square: Path, tmp_path: Path) -> None:
        score(red_square, tmp_path / "out")
        heatmap = HeatmapStore.open(tmp_path / "out" / "heatmap.zarr").read(1)
        assert heatmap.scores.shape == (24, 36)
        inside = heatmap.scores[8:13, 10:15]
        assert np.abs(inside - 120 / 128).max() < 1e-3
        assert np.abs(heatmap.scores[5, 20] - 40 / 128) < 1e-3
        assert np.isnan(heatmap.scores[0, 0])  # glass: not scored, which is not 0
        assert np.isnan(heatmap.scores[23]).all()

    def test_outlines_and_lesions_reach_the_files(self, red_square: Path, tmp_path: Path) -> None:
        result = score(red_square, tmp_path / "out")
        out = tmp_path / "out"
        assert out.joinpath("lesions.csv").read_text() == f"{result.score:.6f},1344,1088\n"
        features = json.loads(out.joinpath("lesions.geojson").read_text())["features"]
        area, lesion = features
        assert geometry.shape(area["geometry"]).equals(SQUARE)
        assert area["properties"]["objectType"] == "annotation"
        assert area["properties"]["measurements"]["area um2"] == pytest.approx(640**2 * 0.0625)
        assert lesion["properties"]["objectType"] == "detection"
        with Image.open(out / "preview.png") as picture:
            assert min(picture.size) > 500

    @pytest.mark.parametrize("stride", [64, 256])
    def test_other_strides_find_the_same_lesion(self, red_square: Path, tmp_path: Path, stride: int) -> None:
        result = score(red_square, tmp_path / "out", cfg=ScoreConfig(stride=stride))  # type: ignore[arg-type]
        assert len(result.lesions) == 1
        assert SQUARE.contains(geometry.Point(result.lesions[0].x, result.lesions[0].y))

    def test_a_coarser_model_reads_a_coarser_level(self, red_square: Path, tmp_path: Path) -> None:
        engine = RednessEngine(card(spacing_um=0.5, patch_px=128))
        result = score(red_square, tmp_path / "out", engine)
        assert HeatmapStore.open(tmp_path / "out" / "heatmap.zarr").attributes["stride_level0"] == [256, 256]
        assert SQUARE.contains(geometry.Point(result.lesions[0].x, result.lesions[0].y))

    def test_a_slide_too_coarse_is_refused_and_native_reads_it(
        self, red_square: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(SpacingError, match="--native"):
            score(red_square, tmp_path / "a", mpp=0.5)
        native = score(red_square, tmp_path / "b", mpp=0.5, cfg=ScoreConfig(native=True))
        assert len(native.lesions) == 1
        assert native.confidence is None  # what the model has not learned to read gets no word
        finer = score(red_square, tmp_path / "c", mpp=0.15, cfg=ScoreConfig(native=True))
        assert finer.confidence is None
        assert "read at 0.15 um/px by --native, but the model was trained at 0.25" in finer.note
        assert "it has not learned to read this slide" in native.note


class TestMasks:
    def test_outlines_say_what_is_scored(self, red_square: Path, tmp_path: Path) -> None:
        write_asap(tmp_path / "m.xml", [Annotation(box(1280, 1024, 1664, 1408), "None")])
        result = score(red_square, tmp_path / "out", mask=tmp_path / "m.xml")
        assert result.cells in range(9, 17)  # 3 x 3 cells, and those that the rounded edge touches

    def test_a_picture_of_the_whole_slide(self, red_square: Path, tmp_path: Path) -> None:
        picture = np.zeros((24, 36), np.uint8)
        picture[8:11, 10:12] = 255
        Image.fromarray(picture).save(tmp_path / "m.png")
        assert score(red_square, tmp_path / "out", mask=tmp_path / "m.png").cells == 6

    def test_a_picture_of_16_bits(self, red_square: Path, tmp_path: Path) -> None:
        picture = np.zeros((24, 36), np.uint16)
        picture[8:11, 10:12] = 256  # 0 in its low byte
        Image.fromarray(picture).save(tmp_path / "m.png")
        assert score(red_square, tmp_path / "out", mask=tmp_path / "m.png").cells == 6

    def test_a_pyramid_is_read_at_a_coarse_level(self, red_square: Path, tmp_path: Path) -> None:
        full = np.zeros((3072, 4608), np.uint8)
        full[1024:1408, 1280:1536] = 1
        with tifffile.TiffWriter(tmp_path / "m.tif") as tif:
            tif.write(full, subifds=5, tile=(256, 256), compression="deflate")
            for level in range(1, 6):
                tif.write(
                    full[:: 2**level, :: 2**level], subfiletype=1, tile=(256, 256), compression="deflate"
                )
        assert score(red_square, tmp_path / "out", mask=tmp_path / "m.tif").cells == 6

    def test_a_picture_of_another_shape_is_refused(self, red_square: Path, tmp_path: Path) -> None:
        Image.fromarray(np.zeros((30, 30), np.uint8)).save(tmp_path / "m.png")
        with pytest.raises(AnnotationError, match="not the shape of"):
            score(red_square, tmp_path / "out", mask=tmp_path / "m.png")


class TestResume:
    """With chunks of 8 x 8 cells, of which the slide has fifteen."""

    CFG = CFG

    @pytest.fixture(autouse=True)
    def _small_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("wsi.slides.blocks.BLOCK_PX", 1024)

    @pytest.mark.parametrize("blocks", [0, 1, 7])
    def test_an_interrupted_run_goes_on_to_the_same_bytes(
        self, red_square: Path, tmp_path: Path, blocks: int
    ) -> None:
        whole, stopped = tmp_path / "whole", tmp_path / "stopped"
        score(red_square, whole, cfg=self.CFG)
        with pytest.raises(KeyboardInterrupt):
            score(red_square, stopped, RednessEngine(fail_after=blocks), self.CFG)
        engine = RednessEngine()
        score(red_square, stopped, engine, self.CFG)
        assert contents(stopped) == contents(whole)
        first = RednessEngine()
        score(red_square, tmp_path / "fresh", first, self.CFG)
        assert engine.blocks == first.blocks - blocks  # what was done is not done again

    def test_a_finished_slide_is_not_scored_again(self, red_square: Path, tmp_path: Path) -> None:
        first = score(red_square, tmp_path / "out")
        engine = RednessEngine(fail_after=0)
        assert score(red_square, tmp_path / "out", engine) == first

    def test_other_lesion_settings_need_no_scoring(self, red_square: Path, tmp_path: Path) -> None:
        score(red_square, tmp_path / "out")
        low = ScoreConfig.model_validate({"lesions": {"threshold": 0.2}})
        result = score(red_square, tmp_path / "out", RednessEngine(fail_after=0), low)
        assert len(result.lesions) > 1

    def test_another_model_s_results_are_not_mixed_in(self, red_square: Path, tmp_path: Path) -> None:
        score(red_square, tmp_path / "out")
        other = RednessEngine(card(sha256="1" * 64))
        with pytest.raises(StoreError, match="another slide, model or settings"):
            score(red_square, tmp_path / "out", other)
        assert score(red_square, tmp_path / "out", other, overwrite=True).lesions

    def test_other_orientations_are_another_run(self, red_square: Path, tmp_path: Path) -> None:
        score(red_square, tmp_path / "out")
        turned = RednessEngine()
        turned.description += ", mean of 8 orientations"
        with pytest.raises(ForeignStoreError):
            score(red_square, tmp_path / "out", turned)

    def test_another_positive_class_is_another_run(self, red_square: Path, tmp_path: Path) -> None:
        first = score(red_square, tmp_path / "out")
        other = score(red_square, tmp_path / "out", RednessEngine(card(positive="normal")), overwrite=True)
        assert other.score != first.score
        assert other.confidence is None  # "definitely tumour" is said of tumour only

    def test_an_interrupted_overwrite_leaves_no_old_result(self, red_square: Path, tmp_path: Path) -> None:
        score(red_square, tmp_path / "out")
        with pytest.raises(KeyboardInterrupt):
            score(
                red_square,
                tmp_path / "out",
                RednessEngine(card(sha256="1" * 64), fail_after=1),
                overwrite=True,
            )
        assert not (tmp_path / "out" / "slide.json").exists()

    def test_scores_that_are_no_numbers_end_the_run(self, red_square: Path, tmp_path: Path) -> None:
        class Broken(RednessEngine):
            def score(self, blocks, **options):  # type: ignore[no-untyped-def]
                for scores in super().score(blocks, **options):
                    yield scores * np.nan

        with pytest.raises(ModelError, match="not numbers"):
            score(red_square, tmp_path / "out", Broken())

    def test_another_slide_s_results_are_not_mixed_in(
        self, red_square: Path, broken_tile: Path, tmp_path: Path
    ) -> None:
        score(red_square, tmp_path / "out")
        with pytest.raises(StoreError, match="another slide"):
            score(broken_tile, tmp_path / "out")

    def test_a_full_disk_is_one_sentence(
        self, red_square: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = Path.write_bytes

        def full(path: Path, content: bytes) -> int:
            if "/c/0/" in path.as_posix():
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(path, content)

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(
            StoreError, match=r"cannot write .*heatmap.zarr/c/0/.* \(No space left on device\); free space"
        ):
            score(red_square, tmp_path / "out")


def test_peaks_of_a_coarse_model_lie_as_far_apart_on_the_slide(tmp_path: Path) -> None:
    """Cells of 32 px of 1 um are 128 level-0 px: six of them are blanked, not 24; squares 10 cells apart stay two."""
    image = painted(4096, 2048, (256, 256, 3840, 1792), (190, 150, 185))
    for x in (1024, 1024 + 10 * 128):
        image[768:1152, x : x + 384] = (200, 80, 90)
    path = write_pyramid(tmp_path / "s.tif", image, levels=4, tile=256)
    engine = RednessEngine(card(patch_px=96, stride_px=32, spacing_um=4 * MPP))
    result = score_slide(SlideRow(SlideSource(str(path))), "s", engine, tmp_path / "out", ScoreConfig())
    assert len(result.lesions) == 2
    settings = json.loads((tmp_path / "out" / "slide.json").read_text())["lesion_settings"]
    assert settings["radius_px"] == 192


class TestBadSlides:
    def test_a_broken_tile_costs_its_cells_only(
        self, broken_tile: Path, red_square: Path, tmp_path: Path
    ) -> None:
        result = score(broken_tile, tmp_path / "out")
        assert 0 < result.unreadable < 60
        assert "could not be decoded" in result.note
        facts = json.loads((tmp_path / "out" / "slide.json").read_text())
        assert len(facts["unreadable_cells"]) == result.unreadable
        assert any(2560 - 128 < x < 2816 and 1536 - 128 < y < 1792 for x, y in facts["unreadable_cells"])
        broken = HeatmapStore.open(tmp_path / "out" / "heatmap.zarr").read(1).scores
        score(red_square, tmp_path / "good")
        good = HeatmapStore.open(tmp_path / "good" / "heatmap.zarr").read(1).scores
        both = np.isfinite(broken)
        assert np.abs(broken[both] - good[both]).max() < 0.03  # JPEG against lossless
        assert (np.isfinite(good) & ~both).sum() == result.unreadable

    def test_a_slide_that_was_not_wholly_read_is_never_called_normal(
        self, broken_tile: Path, red_square: Path, tmp_path: Path
    ) -> None:
        """Cuts by which the whole slide is definitely normal; the word in slide.json, with cells missing and without."""
        calm = RednessEngine(card(confidence=(0.96, 0.97, 0.98, 0.99)))
        words = []
        for name, path in (("whole", red_square), ("broken", broken_tile)):
            row = SlideRow(SlideSource(str(path)))
            score_slide(row, name, calm, tmp_path / name, ScoreConfig())
            words.append(json.loads((tmp_path / name / "slide.json").read_text())["confidence"])
        assert words == ["definitely normal", "equivocal"]

    def test_all_glass_is_not_scored_which_is_not_healthy(self, tmp_path: Path) -> None:
        path = write_pyramid(tmp_path / "glass.tif", np.full((2048, 2048, 3), 245, np.uint8), tile=256)
        result = score(path, tmp_path / "out")
        assert (result.score, result.confidence, result.lesions) == (None, None, ())
        assert "no tissue found" in result.note
        assert (tmp_path / "out" / "lesions.csv").read_text() == ""
        assert (tmp_path / "out" / "preview.png").exists()

    def test_one_level_and_odd_downsamples(self, tmp_path: Path) -> None:
        image = painted(2301, 1703, (200, 200, 2000, 1500), (200, 80, 90))
        path = write_pyramid(tmp_path / "one level.tif", image, levels=1)
        assert score(path, tmp_path / "out").score == pytest.approx(120 / 128, abs=1e-3)

    def test_no_part_can_be_decoded(self, tmp_path: Path, broken_tile: Path) -> None:
        import tifffile

        path = tmp_path / "rubbish.tif"
        path.write_bytes(broken_tile.read_bytes())
        with tifffile.TiffFile(path) as tif:
            places = [
                (o, c)
                for page in tif.pages
                for o, c in zip(page.dataoffsets, page.databytecounts, strict=True)
            ]
        with path.open("r+b") as file:
            for offset, count in places:
                file.seek(offset)
                file.write(b"\x55" * count)
        with pytest.raises(SlideError, match=r"rubbish.tif opens but no part of it can be decoded"):
            score(path, tmp_path / "out")


class TestGather:
    def test_folders_are_sorted_and_masks_left_out(self, tmp_path: Path) -> None:
        for name in ("b.svs", "a.tif", "a_mask.png", ".hidden.svs", "notes.txt"):
            (tmp_path / name).touch()
        rows = gather([str(tmp_path)], mpp=None, allow_anisotropic=False)
        assert [Path(r.source.path).name for r in rows] == ["a.tif", "b.svs"]

    def test_each_slide_once_however_it_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.png").touch()
        (tmp_path / "s.csv").write_text("path,mpp\na.png,0.5\n")
        monkeypatch.chdir(tmp_path)
        rows = gather(["a.png", "./a.png", str(tmp_path), "s.csv"], mpp=None, allow_anisotropic=False)
        assert [r.source.mpp for r in rows] == [0.5]  # the manifest knows more

    def test_parts_of_slides_are_no_slides(self, tmp_path: Path) -> None:
        for name in ("a.vms", "a_1.jpg", "a_2.jpg"):
            (tmp_path / name).touch()
        assert [p.name for p in slides_in(tmp_path)] == ["a.vms"]

    def test_the_flag_wins_over_the_manifest(self, tmp_path: Path) -> None:
        (tmp_path / "a.tif").touch()
        (tmp_path / "s.csv").write_text("path,mpp\na.tif,0.5\n")
        sources = [
            gather([str(tmp_path / "s.csv")], mpp=m, allow_anisotropic=False)[0].source for m in (None, 0.3)
        ]
        assert [s.mpp for s in sources] == [0.5, 0.3]

    def test_a_slide_that_a_table_names_twice(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        for name in "ab":
            (tmp_path / f"{name}.tif").touch()
        table = tmp_path / "s.csv"
        table.write_text("path,mpp\na.tif,0.5\nb.tif,\n./a.tif,0.5\n")
        rows = gather([str(table)], mpp=None, allow_anisotropic=False)
        assert [(r.source.name, r.source.mpp) for r in rows] == [("a", 0.5), ("b", None)]
        assert "1 line of a slide that is named before" in caplog.text
        table.write_text("path,mpp\na.tif,0.5\nb.tif,\na.tif,0.25\n")
        with pytest.raises(ConfigError, match=r"s.csv names .*a.tif twice, with other values"):
            gather([str(table)], mpp=None, allow_anisotropic=False)

    def test_a_parquet_table_says_what_the_csv_says(self, tmp_path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        (tmp_path / "a.tif").touch()
        (tmp_path / "s.csv").write_text("path,mpp,label\na.tif,0.5,normal\nhttps://x.org/b.svs,,\n")
        columns = {
            "path": ["a.tif", "https://x.org/b.svs"],
            "mpp": [0.5, None],
            "label": ["normal", None],
        }
        pq.write_table(pa.table(columns), tmp_path / "s.parquet")
        both = [
            gather([str(tmp_path / f"s.{kind}")], mpp=None, allow_anisotropic=False)
            for kind in ("csv", "parquet")
        ]
        assert both[0] == both[1]
        assert [r.source.mpp for r in both[1]] == [0.5, None]

    def test_bad_parquet(self, tmp_path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = tmp_path / "s.parquet"
        pq.write_table(pa.table({"path": ["gone.tif"]}), path)
        (row,) = gather([str(path)], mpp=None, allow_anisotropic=False)  # opening it says that it is gone
        assert row.source.path == str(tmp_path / "gone.tif")
        pq.write_table(pa.table({"slide": ["a.tif"]}), path)
        with pytest.raises(ConfigError, match="s.parquet has the unknown column 'slide'"):
            gather([str(path)], mpp=None, allow_anisotropic=False)
        pq.write_table(pa.table({"path": ["a.tif"], "mpp": ["fine"]}), path)
        with pytest.raises(ConfigError, match="line 2: mpp 'fine' is not a number"):
            gather([str(path)], mpp=None, allow_anisotropic=False)
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(ConfigError, match=r"s.parquet cannot be read as parquet \("):
            gather([str(path)], mpp=None, allow_anisotropic=False)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no slide in"):
            gather([str(tmp_path)], mpp=None, allow_anisotropic=False)

    @pytest.mark.parametrize(
        ("paths", "names"),
        [
            (["x/a.svs", "x/b.svs"], ["a", "b"]),
            (["x/a.svs", "x/a.tif"], ["a.svs", "a.tif"]),
            (["x/a.svs", "y/a.svs", "y/c.svs"], ["x_a.svs", "y_a.svs", "c"]),
            (["x/A.svs", "x/a.tif"], ["A.svs", "a.tif"]),
            (["x/Größe 1.svs"], ["Größe 1"]),
            (["p/x/a.svs", "q/x/a.svs"], ["p_x_a.svs", "q_x_a.svs"]),
        ],
    )
    def test_every_slide_has_a_name_of_its_own(self, paths: list[str], names: list[str]) -> None:
        assert unique_names([SlideRow(SlideSource(p)) for p in paths]) == names


class TestManifest:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("path,colour\na.tif,red\n", r"unknown column 'colour'; known are path, mpp"),
            ("mpp\n0.5\n", "no column 'path'"),
            ("path\ngone.tif\n", r"line 2: path .*gone.tif does not exist"),
            ("path,mpp\na.tif,half\n", "line 2: mpp 'half' is not a number"),
            ("path,mpp\na.tif,-1\n", "mpp must lie between"),
            ("path,truth\na.tif,gone.xml\n", r"line 2: truth .*gone.xml does not exist"),
            ("path\n\n,\n", "has no path"),
            ("path,mpp\na.tif,0,25\n", r"line 2 has more cells than the header; a decimal comma"),
        ],
    )
    def test_mistakes_are_named(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "a.tif").touch()
        (tmp_path / "s.csv").write_text(text)
        with pytest.raises(ConfigError, match=message):
            gather([str(tmp_path / "s.csv")], mpp=None, allow_anisotropic=False)
