"""Hard negatives from scored slides, and the command line of training."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from shapely import box

from models.card import ModelCard, read_card
from models.engines import EngineConfig, find_models, load_engine
from models.forms.portable import export_onnx, export_wsinfer
from models.training.recipe import TrainConfig
from pipelines.camelyon16.read.mine import hard_negatives, write_list
from pipelines.camelyon16.read.score import ScoreConfig, score_slide
from tests.models.networks.test_networks import DEMO, tiny
from tests.slides import RednessEngine, card, painted, real_data, write_pyramid
from wsi.errors import ConfigError, ModelError, StoreError
from wsi.marks.annotations import Annotation, write_asap
from wsi.phantoms.textures import SCANNERS, Staining, Texturer, lymphocytes
from wsi.slides.blocks import PatchBlock
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource
from wsi.slides.stain import StainError

Run = Callable[..., tuple[int, str, str]]
CFG = TrainConfig(name="mine", spacing_um=0.25)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[SlideRow], Path]:
    """A red lesion, and far from it two red cells that are not marked: they score as high."""
    out = tmp_path_factory.mktemp("scored")
    image = painted(4608, 3072, (512, 512, 4096, 2560), (190, 150, 185))
    image[1024:1664, 1280:1920] = (200, 80, 90)  # cells 10..14, 8..12
    image[1024:1152, 3072:3200] = (200, 80, 90)  # cell column 24, row 8
    image[1152:1280, 1920:2048] = (200, 80, 90)  # beside the lesion: column 15, row 9
    path = write_pyramid(out / "slide.tif", image, levels=5, tile=256)
    write_asap(out / "slide.xml", [Annotation(box(1280, 1024, 1920, 1664), "Tumor")])
    row = SlideRow(SlideSource(str(path)), truth=out / "slide.xml", label="tumor", split="train")
    score_slide(row, "slide", RednessEngine(), out / "results" / "slide", ScoreConfig())
    return [row], out


def test_the_highest_normal_cells_are_listed_away_from_tumour(scored: tuple[list[SlideRow], Path]) -> None:
    rows, out = scored
    found = hard_negatives(rows, out / "results", CFG, per_slide=5, threshold=0.5, margin=2)
    assert [(h.x, h.y) for h in found] == [(3072, 1024)]
    near = hard_negatives(rows, out / "results", CFG, per_slide=5, threshold=0.5, margin=0)
    assert {(h.x, h.y) for h in near} == {(3072, 1024), (1920, 1152)}  # never a cell of the lesion
    assert found[0].read()[85:213, 85:213].reshape(-1, 3).mean(axis=0) == pytest.approx([200, 80, 90], abs=1)
    picture = write_list(out / "hard.csv", found)
    with (out / "hard.csv").open() as file:
        assert [dict(row) for row in csv.DictReader(file)] == [
            {"slide": "slide", "x": "3072", "y": "1024", "score": "0.937500"}
        ]
    assert cv2.imread(str(picture)) is not None


def test_slides_that_were_not_scored_or_are_marked_in_part(scored: tuple[list[SlideRow], Path]) -> None:
    rows, out = scored
    with pytest.raises(StoreError, match="holds no heatmap of .*slide.tif; run: wsi score"):
        hard_negatives(rows, out / "elsewhere", CFG, per_slide=5, threshold=0.5, margin=2)
    partial = [SlideRow(rows[0].source, truth=rows[0].truth, partial=True)]
    with pytest.raises(ConfigError, match="marked only in part"):
        hard_negatives(partial, out / "results", CFG, per_slide=5, threshold=0.5, margin=2)


class TestStainInScoring:
    def test_a_model_that_wants_normalised_slides_gets_them(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        texture = Staining(SCANNERS[1], 1.0, 1.0, 0.8).colour(lymphocytes(Texturer(rng, 0.243), 1024), rng)
        image = np.full((2048, 2048, 3), 243, np.uint8)
        image[512:1536, 512:1536] = texture
        path = write_pyramid(tmp_path / "s.tif", image, levels=4, tile=256)
        row = SlideRow(SlideSource(str(path)))
        scores = {}
        for method in ("none", "macenko"):
            engine = RednessEngine(card(stain_normalisation=method))
            scores[method] = score_slide(row, "s", engine, tmp_path / method, ScoreConfig()).score
        assert scores["none"] != scores["macenko"]

    def test_an_immunostain_is_refused_for_it(self, tmp_path: Path) -> None:
        image = cv2.imread(str(real_data("kidney_stains", "dab_tubular_a.png")))[..., ::-1]
        path = write_pyramid(tmp_path / "s.tif", np.tile(image, (2, 2, 1)), levels=3, tile=256)
        engine = RednessEngine(card(stain_normalisation="macenko"))
        mask = tmp_path / "mask.png"  # tissue is found for H&E: these pale stains need a mask of their own
        cv2.imwrite(str(mask), np.full((100, 100), 255, np.uint8))
        with pytest.raises(StainError, match="must not be normalised"):
            score_slide(
                SlideRow(SlideSource(str(path)), mask=mask), "s", engine, tmp_path / "o", ScoreConfig()
            )


class TestPortable:
    def test_onnx_and_wsinfer_give_the_same_answers_when_loaded_anew(self, tmp_path: Path) -> None:
        """Beside the export's own check: through another engine, on other patches."""
        import openvino

        patches = np.random.default_rng(1).integers(0, 255, (3, 299, 299, 3), dtype=np.uint8)
        block = PatchBlock(np.concatenate(patches), np.array([[0, 0], [0, 299], [0, 598]]), 299)

        def run(model: str) -> np.ndarray:
            return next(iter(load_engine(find_models([model]), EngineConfig(engine="torch")).score([block])))

        wanted = run(str(DEMO))
        assert export_onnx(DEMO, tmp_path / "o") < 2e-4
        compiled = openvino.Core().compile_model(
            str(tmp_path / "o" / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        assert np.abs(compiled(patches)[0] - wanted).max() < 2e-4
        assert read_card(DEMO, ModelCard).name in (tmp_path / "o" / "card.json").read_text()
        assert export_wsinfer(DEMO, tmp_path / "w") < 2e-4
        assert np.abs(run(str(tmp_path / "w")) - wanted).max() < 2e-4
        with pytest.raises(ModelError, match="is the model itself"):
            export_onnx(DEMO, DEMO)
        with pytest.raises(ModelError, match="in WSInfer's form already"):
            export_onnx(tmp_path / "w", tmp_path / "again")

    def test_answers_that_differ_are_not_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny(tmp_path / "m")
        monkeypatch.setattr("models.forms.portable.LARGEST_DIFFERENCE", -1.0)
        for export, out in ((export_onnx, "o"), (export_wsinfer, "w")):
            with pytest.raises(ModelError, match="it was not kept"):
                export(tmp_path / "m", tmp_path / out)
            assert not any((tmp_path / out).glob("*.onnx"))
            assert not any((tmp_path / out).glob("*.pt"))


class TestCommands:
    def test_models_are_listed_and_shown(self, wsi: Run) -> None:
        code, out, _ = wsi("models", "list")
        assert code == 0
        assert "lymph-node-demo  width 0.1875, 0.243 um/px; demonstration weights" in out
        code, out, _ = wsi("models", "show", "lymph-node-demo", "--json")
        assert json.loads(out)["demonstration"] is True

    def test_a_folder_that_is_not_empty_is_kept(self, wsi: Run, tmp_path: Path) -> None:
        (tmp_path / "x").touch()
        code, _, err = wsi("models", "export", "lymph-node-demo", "--out", tmp_path)
        assert code == 2
        assert "is not empty; choose another --out" in err

    def test_doctor_checks_a_whole_manifest(
        self, wsi: Run, scored: tuple[list[SlideRow], Path], tmp_path: Path
    ) -> None:
        _, out = scored
        slide = out / "slide.tif"
        write_asap(tmp_path / "far.xml", [Annotation(box(9000, 9000, 9900, 9900), "Tumor")])
        (tmp_path / "slides.csv").write_text(
            "path,truth,label,split\n"
            f"{slide},{out / 'slide.xml'},tumor,train\n"
            f"{slide},{tmp_path / 'far.xml'},tumor,train\n"
            f"{slide},nothing.xml,tumor,train\n"
            f"{slide},,normal,validation\n"
        )
        (tmp_path / "c.yaml").write_text("name: x\nspacing_um: 0.25\n")
        code, said, _ = wsi("doctor", "--manifest", tmp_path / "slides.csv", "--recipe", tmp_path / "c.yaml")
        lines = said.splitlines()
        assert code == 1
        assert lines[0].startswith("NO  manifest: ")
        assert "line 4" in lines[0]
        assert lines[1].startswith("ok  slide: train; 4608 x 3072 px, 0.25 um/px; ")
        assert "and 25 tumour cells" in lines[1]
        assert "truth of another slide" in lines[2]
        assert lines[-1].startswith("NO  split validation: 1 slide, ")

    def test_patches_from_a_folder_to_pictures_and_back_on(self, wsi: Run, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        for k, name in enumerate(("normal", "tumor")):
            (tmp_path / "p" / name).mkdir(parents=True)
            for i in range(4):
                cv2.imwrite(
                    str(tmp_path / "p" / name / f"{i}.png"), rng.integers(0, 200, (64, 64, 3)) + 50 * k
                )
        (tmp_path / "p" / "normal" / "9.jpg").write_bytes(b"\xff\xd8nonsense")
        recipe = "name: x\nwidth: 0.0625\nbatch: 4\nexamples: 8\nfolds: 2\nvalidate_every: 4\nlearning_rate: 0.001\n"
        (tmp_path / "c.yaml").write_text(recipe)
        words = (
            "train",
            "classifier",
            tmp_path / "c.yaml",
            "--patches",
            tmp_path / "p",
            "--out",
            tmp_path / "o",
        )
        code, out, err = wsi(*words)
        assert code == 0, err
        assert "left out: " in out
        assert "8 patches: 4 normal, 4 tumour" in out
        assert "pooled out-of-fold AUC" in out
        for name in ("roc.png", "mistakes.png", "fold_2/metrics.png", "fold_1/contact_sheet.png"):
            assert cv2.imread(str(tmp_path / "o" / name)) is not None
        with (tmp_path / "o" / "scores.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["file"] for row in rows][:2] == ["normal/0.png", "normal/1.png"]
        before = (tmp_path / "o" / "scores.csv").read_bytes()
        code, _, err = wsi(*words)
        assert code == 2
        assert "holds a run already" in err
        assert wsi(*words, "--resume")[0] == 0
        assert (tmp_path / "o" / "scores.csv").read_bytes() == before

    def test_bad_input_with_overwrite_costs_nothing(self, wsi: Run, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text("name: x\n")
        tiny(tmp_path / "o" / "model")
        words = ("train", "classifier", tmp_path / "c.yaml", "--out", tmp_path / "o", "--overwrite")
        for more, said in (
            (("--patches", tmp_path / "none"), "holds no labelled patches"),
            (("--slides", tmp_path / "none.csv"), "cannot be read as a CSV manifest"),
            (("--patches", tmp_path, "--init", tmp_path / "none.pth"), "do not exist; check init or --init"),
        ):
            code, _, err = wsi(*words, *more)
            assert code == 2
            assert said in err
            read_card(tmp_path / "o" / "model", ModelCard)

    def test_half_a_mosaic(self, wsi: Run, tmp_path: Path) -> None:
        code, _, err = wsi("phantom", "lymph-node", "--patches", tmp_path, "--out", tmp_path / "o")
        assert code == 2
        assert "needs both --patches and --polygons" in err
        code, _, err = wsi(
            *("phantom", "lymph-node", "--patches", tmp_path, "--polygons", tmp_path),
            *("--part", "70-20", "--out", tmp_path / "o"),
        )
        assert code == 2
        assert "--part must lie between 0-100 and rise" in err
