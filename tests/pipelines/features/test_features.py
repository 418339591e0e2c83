"""Features of slides, whole: values and places by hand, going on, what is refused, and the command."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from PIL import Image

from pipelines.camelyon16.read.score import ScoreConfig, score_slide
from pipelines.features.read import FeaturesConfig, read_features
from pipelines.features.result import colours
from pipelines.runs.run_folder import refuse_other_kind
from tests.models.networks.test_backbone import published
from tests.slides import RednessEngine, card, coordinates, painted, write_pyramid
from wsi.arrays import Scores
from wsi.errors import ConfigError, ForeignStoreError, SpacingError
from wsi.results.folder import LocalFolder
from wsi.results.store import HeatmapStore
from wsi.slides.blocks import PatchBlock
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource

Run = Callable[..., tuple[int, str, str]]
CFG = FeaturesConfig(min_tissue=0.5)


class ColourEngine(RednessEngine):
    """Features: mean red, green and blue of a patch, and -1000, which is no score."""

    description = "colours, features, fp32, CPU"
    width = 4

    def score(
        self, blocks: Iterable[PatchBlock], *, scored: Callable[[int], None] = lambda patches: None
    ) -> Iterator[Scores]:
        for block in blocks:
            if self.fail_after is not None and self.blocks >= self.fail_after:
                raise KeyboardInterrupt
            self.blocks += 1
            patches = block.patches(0, len(block)).astype(np.float64)
            means = patches.mean(axis=(1, 2))
            yield np.concatenate([means, np.full((len(block), 1), -1000)], axis=1).astype(np.float32)


def engine(**changes: object) -> ColourEngine:
    return ColourEngine(card(patch_px=64, stride_px=32, **changes), None)


@pytest.fixture
def row(tmp_path: Path) -> SlideRow:
    """Red tells x and green y: what is read tells where; blue is dark enough to be tissue."""
    pixels = coordinates(700, 500)
    pixels[..., 2] = 20
    return SlideRow(SlideSource(str(write_pyramid(tmp_path / "places.tif", pixels))), mask_of(tmp_path))


def mask_of(folder: Path) -> Path:
    """Tissue at x 128..448, y 64..320, as the user's own mask."""
    mask = np.zeros((500, 700), np.uint8)
    mask[64:320, 128:448] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder / "mask.png"


class TestFeatures:
    def test_values_come_from_where_they_say(self, row: SlideRow, tmp_path: Path) -> None:
        result = read_features(row, "places", engine(), tmp_path / "out", CFG)
        assert (result.cells, result.width, result.unreadable) == (10 * 8, 4, 0)
        with h5py.File(tmp_path / "out" / "features.h5") as h5:
            values, corners, facts = h5["features"][:], h5["coords"][:], dict(h5["coords"].attrs)
            assert h5["features"].attrs["model"] == "redness"
        assert values.dtype == np.float32
        assert corners.dtype == np.int64
        assert corners[0].tolist() == [128 - 16, 64 - 16]  # a patch of 64 around a cell of 32
        assert corners[1].tolist() == [160 - 16, 64 - 16]  # row by row
        middle = corners + 31.5
        np.testing.assert_allclose(values[:, 0], middle[:, 0] / 4, atol=0.5)
        np.testing.assert_allclose(values[:, 1], middle[:, 1] / 4, atol=0.5)
        assert set(values[:, 3]) == {-1000}
        wanted = {
            "name": "places",
            "patch_size": 64,
            "patch_size_level0": 64,
            "patch_level": 0,
            "overlap": 32,
        }
        assert {key: facts[key] for key in wanted} == wanted
        assert (facts["level0_width"], facts["level0_height"]) == (700, 500)
        assert facts["target_magnification"] == pytest.approx(10 / 0.25)

    def test_the_zarr_holds_the_same(self, row: SlideRow, tmp_path: Path) -> None:
        read_features(row, "places", engine(), tmp_path / "out", CFG)
        array = zarr.open_array(tmp_path / "out" / "features.zarr", mode="r")
        assert array.shape == (4, 16, 22)
        assert array.attrs["holds"] == "features"
        values = array[:]
        assert np.argwhere(~np.isnan(values[0])).min(axis=0).tolist() == [2, 4]
        assert values[0, 2, 4] == pytest.approx((128 - 16 + 31.5) / 4, abs=0.5)

    def test_a_slide_read_at_another_spacing_states_both_sides(self, row: SlideRow, tmp_path: Path) -> None:
        read_features(row, "places", engine(spacing_um=0.5), tmp_path / "out", CFG)
        with h5py.File(tmp_path / "out" / "features.h5") as h5:
            facts, corners = dict(h5["coords"].attrs), h5["coords"][:]
        assert (facts["patch_size"], facts["patch_size_level0"]) == (64, 128)
        assert facts["target_magnification"] == pytest.approx(20)
        assert "patch_level" not in facts  # CLAM would read 64 px of level 0
        assert facts["level0_magnification"] == pytest.approx(40)
        assert corners[0].tolist() == [128 - 32, 64 - 32]

    def test_a_stopped_run_goes_on_to_the_same_bytes(
        self, row: SlideRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsi.slides.blocks.BLOCK_PX", 128)
        stopped = engine()
        stopped.fail_after = 3
        with pytest.raises(KeyboardInterrupt):
            read_features(row, "places", stopped, tmp_path / "a", CFG)
        assert not (tmp_path / "a" / "slide.json").exists()
        rest, whole = engine(), engine()
        read_features(row, "places", rest, tmp_path / "a", CFG)
        read_features(row, "places", whole, tmp_path / "b", CFG)
        # a stop loses at most the block that is on its way to the engine
        assert whole.blocks - 3 <= rest.blocks < whole.blocks
        files = [
            {n: LocalFolder(tmp_path / f).read(n) for n in LocalFolder(tmp_path / f).files()} for f in "ab"
        ]
        assert files[0] == files[1]

    def test_what_is_done_is_kept_and_what_changed_is_made_again(self, row: SlideRow, tmp_path: Path) -> None:
        out = tmp_path / "out"
        first = read_features(row, "places", engine(), out, CFG)
        h5 = (out / "features.h5").read_bytes()
        idle = engine()
        assert read_features(row, "places", idle, out, CFG) == first
        (out / "features.h5").write_bytes(h5[:-7])
        assert read_features(row, "places", idle, out, CFG) == first
        assert idle.blocks == 0  # the array is whole: no patch is read again
        assert (out / "features.h5").read_bytes() == h5

    def test_other_settings_and_other_commands_do_not_mix(self, row: SlideRow, tmp_path: Path) -> None:
        out = tmp_path / "out"
        read_features(row, "places", engine(), out, CFG)
        with pytest.raises(ForeignStoreError, match="was made from another slide, model or settings"):
            read_features(row, "places", engine(), out, CFG.model_copy(update={"stride": 64}))
        with pytest.raises(ForeignStoreError, match="holds a result of wsi features"):
            score_slide(row, "places", RednessEngine(), out, ScoreConfig(), overwrite=True)
        result = read_features(
            row, "places", engine(), out, CFG.model_copy(update={"stride": 64}), overwrite=True
        )
        assert result.cells == 5 * 4
        refuse_other_kind(LocalFolder(out), "wsi features")
        with pytest.raises(ConfigError, match="stride 65 is larger"):
            read_features(row, "places", engine(), tmp_path / "x", CFG.model_copy(update={"stride": 65}))

    def test_glass_has_no_features_and_says_so(self, tmp_path: Path) -> None:
        glass = write_pyramid(tmp_path / "glass.tif", np.full((400, 500, 3), 244, np.uint8))
        result = read_features(SlideRow(SlideSource(str(glass))), "g", engine(), tmp_path / "o", CFG)
        assert result.empty
        assert result.note.startswith("no tissue found")
        with h5py.File(tmp_path / "o" / "features.h5") as h5:
            assert h5["features"].shape == (0, 4)
            assert h5["coords"].shape == (0, 2)

    def test_the_picture_shows_each_cell_in_its_place(self, row: SlideRow, tmp_path: Path) -> None:
        read_features(row, "places", engine(), tmp_path / "out", CFG)
        picture = np.asarray(Image.open(tmp_path / "out" / "preview.png").convert("RGB")).astype(int)
        right = picture[:, picture.shape[1] // 2 :]
        rows, cols = np.nonzero(np.ptp(right[70:-60], axis=2) > 40)
        width = right.shape[1]
        assert cols.min() / width == pytest.approx(128 / 700, abs=0.05)
        assert cols.max() / width == pytest.approx(448 / 700, abs=0.05)
        assert (rows.max() - rows.min()) / (cols.max() - cols.min()) == pytest.approx(256 / 320, abs=0.05)

    def test_colours_follow_what_differs_most(self) -> None:
        values = np.zeros((50, 6), np.float32)
        values[:, 4] = np.linspace(-3, 9, 50)
        values[:, 1] = np.tile([0.0, 1.0], 25)
        first = colours(values)
        assert (np.diff(first[2:-2, 0]) >= 0).all()
        assert first[0, 0] == 0
        assert first[-1, 0] == 1
        np.testing.assert_allclose(first[4:-4:2, 1], first[4, 1], atol=0.1)


class TestCommand:
    @pytest.mark.slow
    def test_a_published_folder_on_slides(self, tmp_path: Path, wsi: Run) -> None:
        published(tmp_path / "vit")
        write_pyramid(tmp_path / "s.tif", painted(700, 500, (128, 64, 448, 320), (180, 60, 120)))
        (tmp_path / "first.yaml").write_text("tissue:\n  min_speck_um2: 100\n")
        (tmp_path / "f.yaml").write_text("stride: 32\ntissue:\n  min_speck_um2: 100\n")
        words = [
            "features",
            tmp_path / "s.tif",
            "-m",
            tmp_path / "vit",
            "--spacing",
            "0.25",
            "-o",
            tmp_path / "o",
        ]
        code, out, err = wsi(*words, "--config", tmp_path / "first.yaml")
        assert code == 0, err
        assert "model vit: 192 features of a cell" in out
        record = json.loads((tmp_path / "o" / "run.json").read_text())
        assert record["slides"][0]["width"] == 192
        assert "192 features" in (tmp_path / "o" / "index.html").read_text()
        content = (tmp_path / "o" / "s" / "features.h5").read_bytes()
        with h5py.File(io.BytesIO(content)) as h5:
            assert h5["features"].shape[1] == 192
            assert np.isfinite(h5["features"][:]).all()
        code, _, err = wsi(*words, "--config", tmp_path / "f.yaml")
        assert code == 2
        assert "other settings" in err
        code, _, err = wsi(*words, "--config", tmp_path / "f.yaml", "--overwrite")
        assert code == 0
        with h5py.File(tmp_path / "o" / "s" / "features.h5") as h5:
            assert h5["coords"].attrs["overlap"] == 32
        code, _, err = wsi("verify", tmp_path / "o")
        assert code == 0, err

    def test_other_commands_say_what_such_a_folder_is(self, row: SlideRow, tmp_path: Path, wsi: Run) -> None:
        read_features(row, "places", engine(), tmp_path / "o" / "places", CFG)
        code, _, err = wsi("view", tmp_path / "o", "--no-browser")
        assert code == 2
        assert "features, which are not shown here" in err
        code, _, err = wsi("cohort", "export", tmp_path / "o", tmp_path / "x.parquet")
        assert code == 2
        assert "holds features of wsi features" in err

    def test_a_slide_that_is_too_coarse_is_told_another_spacing(self, row: SlideRow, tmp_path: Path) -> None:
        with pytest.raises(SpacingError, match="a larger --spacing"):
            read_features(row, "places", engine(spacing_um=0.1), tmp_path / "o", CFG)

    def test_a_card_states_its_spacing(self, tmp_path: Path, wsi: Run, red_square: Path) -> None:
        code, _, err = wsi(
            "features", red_square, "-m", "lymph-node-demo", "--spacing", "1", "-o", tmp_path / "o"
        )
        assert code == 2
        assert "the card of lymph-node-demo states its spacing" in err


def test_tissue_that_the_model_does_not_know_is_noted(
    row: SlideRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another stain gives features that look like any others."""
    monkeypatch.setattr("pipelines.features.read.unlike_share", lambda *what, **more: 0.9)
    runner = engine(domain="0" * 64)
    result = read_features(row, "places", runner, tmp_path / "out", CFG)
    assert result.note.startswith("90 % of its tissue looks unlike what redness was trained on")


def test_infinite_features_have_a_colour() -> None:
    values = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    values[3, 2] = np.inf
    assert np.isfinite(colours(values)).all()


def test_scores_are_still_held_to_0_to_1(tmp_path: Path, row: SlideRow) -> None:
    """A store of features takes any value; on going on, one of scores must not."""
    read_features(row, "places", engine(), tmp_path / "out", CFG)
    store = HeatmapStore.open(tmp_path / "out" / "features.zarr")
    store._discard_damaged()
    assert store.chunks_done()
    scores = HeatmapStore.create(tmp_path / "scores", replace(store.spec, holds="scores"))
    scores.write_chunk((0, 0), np.array([[2, 4]]), np.array([[0.5, 0.5, 0.5, 7.0]], np.float32))
    scores._discard_damaged()
    assert not scores.chunks_done()
