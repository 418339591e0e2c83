"""`wsi score-patches`: what is read, what is left out, what the figures are."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import roc_auc_score

from models.forms.build import build_network
from models.networks.contract import PatchNetwork
from pipelines.cli import patches as patches_command
from pipelines.runs import model_figures
from pipelines.runs import patches as patch_runs
from pipelines.runs.calibrate import _fit
from tests.slides import RednessEngine
from tests.slides import card as model_card
from wsi.datasets.patch_pictures import PatchPicture, list_patches, read_patch
from wsi.errors import ConfigError, SlideError
from wsi.metrics.calibration import calibrated, calibration_error, fit_calibration, reliability
from wsi.slides.blocks import PatchBlock

Run = Callable[..., tuple[int, str, str]]


def picture(path: Path, red: int, side: tuple[int, int] = (299, 299), channels: int = 3) -> Path:
    image = np.full((*side, 3), (90, 80, red), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image if channels == 3 else np.dstack([image, np.full(side, 255, np.uint8)]))
    return path


class VesselEngine(RednessEngine):
    """Redness as the score of the first of two classes."""

    def score(
        self, blocks: Iterable[PatchBlock], *, scored: Callable[[int], None] = lambda patches: None
    ) -> Iterator[npt.NDArray[np.float32]]:
        for scores in super().score(blocks, scored=scored):
            yield scores[:, ::-1]


@pytest.fixture
def redness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches_command, "find_models", lambda names: names)
    monkeypatch.setattr(
        patches_command, "load_engine", lambda models, cfg: RednessEngine(model_card(patch_px=299))
    )


@pytest.mark.usefixtures("redness")
class TestScorePatches:
    def test_scores_labels_and_figures(self, tmp_path: Path, wsi: Run) -> None:
        for label, reds in (("normal", (90, 120, 150, 230)), ("tumor", (140, 220, 240))):
            for red in reds:
                picture(tmp_path / "p" / label / f"{red}.png", red)
        code, out, _ = wsi("score-patches", tmp_path / "p", "-o", tmp_path / "out")
        assert code == 0
        with (tmp_path / "out" / "scores.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [r["file"] for r in rows] == sorted(f"normal/{r}.png" for r in (90, 120, 150, 230)) + [
            f"tumor/{r}.png" for r in (140, 220, 240)
        ]
        assert [r["label"] for r in rows] == ["normal"] * 4 + ["tumor"] * 3
        truth = [r["label"] == "tumor" for r in rows]
        scores = [float(r["score"]) for r in rows]
        figures = json.loads((tmp_path / "out" / "run.json").read_text())["quality"]
        assert figures["auc"] == pytest.approx(roc_auc_score(truth, scores))
        assert f"3 tumour and 4 normal: AUC {figures['auc']:.4f}" in out
        for name in ("roc.png", "calibration.png", "index.html"):
            assert (tmp_path / "out" / name).stat().st_size > 1000

    def test_what_is_said_names_the_card_s_classes(
        self, tmp_path: Path, wsi: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A model of other tissue: sentences and page have its classes, the files the form that they always have."""
        titles = []

        def roc(curves: object, title: str) -> bytes:
            titles.append(title)
            return b""

        def sheet(*_: object, title: str, captions: object) -> bytes:
            titles.append(title)
            return b""

        monkeypatch.setattr(patch_runs, "roc_png", roc)
        monkeypatch.setattr(patch_runs, "contact_sheet_png", sheet)
        vessels = model_card(patch_px=299, classes=("vessel", "stroma"), positive="vessel")
        engine = VesselEngine(vessels)
        monkeypatch.setattr(patches_command, "load_engine", lambda models, cfg: engine)
        for label, reds in (("negative", (90, 120, 200)), ("positive", (220, 100))):
            for red in reds:
                picture(tmp_path / "p" / label / f"{red}.png", red)
        code, out, _ = wsi("score-patches", tmp_path / "p", "-o", tmp_path / "out")
        assert code == 0
        assert "2 vessel and 3 stroma: AUC 0.6667" in out
        page = (tmp_path / "out" / "index.html").read_text()
        assert "<th>vessel and stroma patches with a label</th><td>2 and 3</td>" in page
        assert "nine in ten are vessel)" in page
        assert "tumour" not in out + page
        assert titles == [
            "redness: 2 vessel and 3 stroma patches",
            "redness: the worst mistakes (red: vessel, green: stroma; score is that of vessel)",
        ]
        lines = (tmp_path / "out" / "scores.csv").read_text().splitlines()
        assert [line.split(",")[1] for line in lines] == ["label"] + ["normal"] * 3 + ["tumor"] * 2
        figures = json.loads((tmp_path / "out" / "run.json").read_text())["quality"]
        assert (figures["tumour"], figures["normal"]) == (2, 3)

    def test_without_labels_nothing_is_claimed(self, tmp_path: Path, wsi: Run) -> None:
        picture(tmp_path / "p" / "a.png", 200)
        picture(tmp_path / "p" / "case 7" / "b.png", 90)
        code, out, _ = wsi("score-patches", tmp_path / "p", "-o", tmp_path / "out")
        assert code == 0
        assert "AUC" not in out
        lines = (tmp_path / "out" / "scores.csv").read_text().splitlines()
        assert [line.split(",")[:2] for line in lines[1:]] == [["a.png", ""], ["case 7/b.png", ""]]
        page = (tmp_path / "out" / "index.html").read_text()
        assert "nothing is said of how good the scores are" in page
        assert not (tmp_path / "out" / "roc.png").exists()

    def test_what_cannot_be_read_is_said_and_the_rest_is_scored(self, tmp_path: Path, wsi: Run) -> None:
        picture(tmp_path / "p" / "a.png", 200)
        (tmp_path / "p" / "b.png").write_bytes(b"no picture")
        cv2.imwrite(str(tmp_path / "p" / "c.png"), np.zeros((299, 299, 3), np.uint16))
        whole = picture(tmp_path / "p" / "d.jpg", 150).read_bytes()
        (tmp_path / "p" / "d.jpg").write_bytes(whole[: len(whole) // 2])
        code, _, err = wsi("score-patches", tmp_path / "p", "-o", tmp_path / "out")
        assert code == 1
        for words in (
            "b.png is not a whole picture",
            "c.png holds pixels of 16 bits",
            "d.jpg is not a whole picture",
        ):
            assert words in err
        assert (tmp_path / "out" / "scores.csv").read_text().count("\n") == 2
        (tmp_path / "p" / "a.png").unlink()
        code, _, err = wsi("score-patches", tmp_path / "p", "-o", tmp_path / "out2")
        assert (code, "none of the 3 patches" in err) == (1, True)
        assert not (tmp_path / "out2" / "scores.csv").exists()

    def test_other_sides_are_fitted_and_said(self, tmp_path: Path, wsi: Run) -> None:
        picture(tmp_path / "p" / "a.png", 200, (96, 96))
        picture(tmp_path / "p" / "b.png", 200, (400, 310))
        picture(tmp_path / "p" / "c.png", 200)
        _, out, _ = wsi("score-patches", tmp_path / "p", "-o", tmp_path / "out")
        assert (
            "patches: 3; 1 smaller than 299 px, mirrored at the border; 1 larger, cropped to the middle"
            in out
        )
        scores = {
            line.rsplit(",", 1)[1] for line in (tmp_path / "out" / "scores.csv").read_text().splitlines()[1:]
        }
        assert len(scores) == 1

    def test_patches_of_another_spacing(self, tmp_path: Path, wsi: Run) -> None:
        """A patch of twice the resolution whose middle is red: at the model's spacing the red is half as wide."""
        image = np.full((598, 598, 3), (90, 80, 90), np.uint8)
        image[199:399, 199:399] = (90, 80, 240)
        (tmp_path / "p").mkdir()
        cv2.imwrite(str(tmp_path / "p" / "a.png"), image)
        found = []
        for words in ((), ("--mpp", 0.125)):
            code, _, err = wsi("score-patches", tmp_path / "p", "-o", tmp_path / "out", "--overwrite", *words)
            assert code == 0
            assert ("are taken to have 0.25 um/px, the model's spacing; --mpp says otherwise" in err) == (
                not words
            )
            found.append(float((tmp_path / "out" / "scores.csv").read_text().split(",")[-1]))
        assert found[1] < found[0] - 0.1
        code, _, err = wsi("score-patches", tmp_path / "p", "-o", tmp_path / "o2", "--mpp", 0.5)
        assert (code, "are coarser than the model's 0.25" in err) == (2, True)

    def test_another_run_s_scores_are_not_replaced_in_silence(
        self, tmp_path: Path, wsi: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        picture(tmp_path / "p" / "a.png", 200)
        assert wsi("score-patches", tmp_path / "p", "-o", tmp_path / "out")[0] == 0
        other = RednessEngine(model_card(sha256="1" * 64))
        monkeypatch.setattr(patches_command, "load_engine", lambda models, cfg: other)
        code, _, err = wsi("score-patches", tmp_path / "p", "-o", tmp_path / "out")
        assert (code, "holds results of another model" in err) == (2, True)
        assert wsi("score-patches", tmp_path / "p", "-o", tmp_path / "out", "--overwrite")[0] == 0


class TestErrorsOfAModelOfOtherTissue:
    """They name the classes of its card, and those of a model of tumour as ever."""

    VESSELS = model_card(classes=("stroma", "vessel"), positive="vessel")

    def test_too_few_patches_for_calibration(self) -> None:
        truth, scores = np.arange(100) < 40, np.full(100, 0.5, np.float32)
        for card, words in (
            (self.VESSELS, "40 of vessel and 60 stroma ones"),
            (model_card(), "40 of tumour and 60 normal ones"),
        ):
            with pytest.raises(ConfigError, match=f"of each class, and there are {words}; add patches"):
                _fit(truth, scores, card)

    def test_scores_that_are_the_wrong_way_round(self) -> None:
        truth = np.arange(100) < 50
        scores = np.where(truth, 0.2, 0.8).astype(np.float32)
        for card, words in (
            (self.VESSELS, "redness scores vessel no higher than stroma patches"),
            (model_card(), "redness scores tumour no higher than normal patches"),
        ):
            with pytest.raises(ConfigError, match=words):
                _fit(truth, scores, card)

    def test_figures_need_both_classes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = RednessEngine(self.VESSELS)
        monkeypatch.setattr(model_figures, "find_models", lambda names: names)
        monkeypatch.setattr(model_figures, "load_engine", lambda models, cfg: engine)
        patches = [PatchPicture(picture(tmp_path / "a.png", 200), "a.png", 1)]
        with pytest.raises(
            ConfigError, match=r"there are 1 of vessel and 0 stroma ones; put them into folders"
        ):
            model_figures.measure_model(tmp_path, patches, "some")

    def test_figures_and_card_in_words(self) -> None:
        row = model_figures.figures_row(
            "some", np.array([True, False, False]), *(np.ones(3, np.float32),) * 2
        )
        vessels, lymph_nodes = self.VESSELS, model_card(confidence=None)
        assert "1 vessel, 2 stroma):" in model_figures.figures_lines([row], vessels.words)[0]
        assert "1 tumour, 2 normal):" in model_figures.figures_lines([row], lymph_nodes.words)[0]
        said = "\n".join(model_figures.card_lines(vessels.model_copy(update={"confidence": None})))
        assert "Words for slides (definitely stroma to definitely vessel): none" in said
        said = "\n".join(model_figures.card_lines(lymph_nodes))
        assert "Words for slides (definitely normal to definitely tumour): none" in said


class TestRead:
    def test_grey_and_transparent_pictures(self, tmp_path: Path) -> None:
        grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
        cv2.imwrite(str(tmp_path / "g.png"), grey)
        np.testing.assert_array_equal(read_patch(tmp_path / "g.png"), np.dstack([grey] * 3))
        clear = np.zeros((2, 3, 4), np.uint8)
        clear[0] = (10, 20, 200, 255)
        cv2.imwrite(str(tmp_path / "t.png"), clear)
        found = read_patch(tmp_path / "t.png")
        assert found[0, 0].tolist() == [200, 20, 10]
        assert found[1, 2].tolist() == [255, 255, 255]  # what is transparent lies on white

    def test_a_list_gives_the_order_and_labels(self, tmp_path: Path) -> None:
        for name in ("b", "a", "c"):
            picture(tmp_path / f"{name}.png", 100)
        (tmp_path / "patches.csv").write_text("file,label\nb.png,tumour\na.png,\n")
        assert [(p.name, p.label) for p in list_patches(tmp_path)] == [("b.png", 1), ("a.png", None)]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("name\nb.png\n", "needs the column file"),
            ("file,label\nb.png,grade 3\n", "label 'grade 3' is unknown"),
            ("file\nb.png\nb.png\n", "lists b.png twice"),
        ],
    )
    def test_a_list_that_cannot_be_used(self, tmp_path: Path, text: str, said: str) -> None:
        (tmp_path / "patches.csv").write_text(text)
        with pytest.raises(ConfigError, match=said):
            list_patches(tmp_path)

    def test_no_folder_and_no_patch(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="is not a folder"):
            list_patches(tmp_path / "no")
        with pytest.raises(ConfigError, match="holds no patch"):
            list_patches(tmp_path)
        with pytest.raises(SlideError, match="cannot be read"):
            read_patch(tmp_path / "no.png")


class TestCalibration:
    def test_by_hand(self) -> None:
        """Four patches near 0.9, three of them tumour; one of 0.2, which is: |0.9-0.75| * 0.8 + |0.2-1| * 0.2."""
        tumour = np.array([1, 1, 1, 0, 1], np.bool_)
        scores = np.array([0.9, 0.9, 0.9, 0.9, 0.2])
        assert calibration_error(tumour, scores) == pytest.approx(0.15 * 0.8 + 0.8 * 0.2)
        assert [(b.count, round(b.share, 2)) for b in reliability(tumour, scores)] == [(1, 1.0), (4, 0.75)]

    @pytest.mark.parametrize("wanted", [(1.0, 0.0), (0.5, 0.0), (1.0, 1.5), (2.5, -0.7)])
    def test_what_was_done_to_scores_is_undone(self, wanted: tuple[float, float]) -> None:
        rng = np.random.default_rng(0)
        odds = rng.normal(0, 2, 40_000)
        tumour = rng.random(40_000) < 1 / (1 + np.exp(-odds))  # these odds are right
        told = 1 / (1 + np.exp(-(odds - wanted[1]) / wanted[0]))
        assert fit_calibration(tumour, told) == pytest.approx(wanted, rel=0.05, abs=0.05)
        assert calibration_error(tumour, calibrated(told, *wanted)) < 0.012

    def test_classes_that_lie_apart_stay_finite(self) -> None:
        scale, offset = fit_calibration(np.array([1, 1, 0, 0], np.bool_), np.array([0.9, 0.8, 0.2, 0.1]))
        assert np.isfinite([scale, offset]).all()
        assert scale > 1

    @pytest.mark.slow
    def test_a_calibrated_model(self, tmp_path: Path, wsi: Run) -> None:
        """The network's last layer is moved by 1.5: calibration on labelled patches moves it back, in the graph too."""
        from models.checkpoint import load_checkpoint, load_published, save_checkpoint
        from models.networks.efficientnet import EfficientNetLite0
        from models.registry import make_network
        from tests.models.networks.test_efficientnet import CARD, LITE0

        torch.manual_seed(0)
        network = make_network(LITE0, 2)
        assert isinstance(network, EfficientNetLite0)
        load_published(network, "efficientnet_lite0", Path("imagenet"))
        torch.nn.init.normal_(network._fc.weight, std=0.3)
        rng = np.random.default_rng(0)
        for i in range(120):
            label = "tumor" if i % 2 else "normal"
            red = int(np.clip(rng.normal(190 if i % 2 else 120, 40), 0, 255))
            picture(tmp_path / "p" / label / f"{i}.png", red, (48, 48))
        files = sorted((tmp_path / "p").rglob("*.png"))
        pixels = torch.from_numpy(np.stack([read_patch(path) for path in files]))
        with torch.inference_mode():
            scores = PatchNetwork(network.eval())(pixels)[:, 1].numpy()
        if roc_auc_score([path.parent.name == "tumor" for path in files], scores) < 0.5:
            network._fc.weight.data.neg_()
        save_checkpoint(tmp_path / "m", network, **CARD)
        code, _, err = wsi(
            "models", "calibrate", tmp_path / "m", "--patches", tmp_path / "p", "-o", tmp_path / "c"
        )
        assert code == 0, err
        assert wsi("models", "calibrate", tmp_path / "m", "-o", tmp_path / "h")[0] == 0  # half precision only
        half, plain = load_checkpoint(tmp_path / "h")
        assert (plain.calibration, plain.metrics) == (None, {})
        body, card = load_checkpoint(tmp_path / "c")
        assert all(torch.equal(half.state_dict()[k], v) for k, v in body.state_dict().items())
        code, _, err = wsi("models", "calibrate", tmp_path / "m", "--mpp", 0.5, "-o", tmp_path / "x")
        assert (code, "--training and --mpp speak of --patches" in err) == (2, True)
        code, _, err = wsi("models", "calibrate", "renal-ptc-demo", "-o", tmp_path / "x")
        assert (code, "is a detector of capillaries" in err) == (2, True)
        assert card.calibration is not None
        (row,) = card.metrics["figures"]
        assert (row["normal"], row["tumour"]) == (60, 60)
        assert card.metrics["calibration_error_before"] > row["calibration_error"]
        assert (tmp_path / "c" / "model.safetensors").stat().st_size < 0.51 * (
            tmp_path / "m" / "model.safetensors"
        ).stat().st_size
        pixels = torch.randint(0, 256, (3, 48, 48, 3), dtype=torch.uint8)
        with torch.inference_mode():
            raw = PatchNetwork(body)(pixels)[:, 1].numpy()
            both = build_network([tmp_path / "c"])(pixels).numpy()
        np.testing.assert_allclose(both[:, 1], calibrated(raw, *card.calibration), atol=1e-5)
        np.testing.assert_allclose(both.sum(axis=1), 1, atol=1e-6)
        code, _, err = wsi(
            "models", "calibrate", tmp_path / "m", "--patches", tmp_path / "p", "-o", tmp_path / "c"
        )
        assert (code, "holds a model already" in err) == (2, True)
        (tmp_path / "p" / "tumor" / "cut.png").write_bytes(b"no picture")
        shutil.move(tmp_path / "p" / "tumor", tmp_path / "p" / "swap")
        shutil.move(tmp_path / "p" / "normal", tmp_path / "p" / "tumor")
        shutil.move(tmp_path / "p" / "swap", tmp_path / "p" / "normal")
        code, _, err = wsi(
            "models", "calibrate", tmp_path / "c", "--patches", tmp_path / "p", "-o", tmp_path / "e"
        )
        assert (code, "scores tumour no higher than normal patches (AUC 0." in err) == (2, True), err
        assert "left out: " in err
        assert "cut.png is not a whole picture" in err
        assert "are taken to have 0.97 um/px" in err
        shutil.rmtree(tmp_path / "p" / "tumor")
        code, _, err = wsi(
            "models", "calibrate", tmp_path / "m", "--patches", tmp_path / "p", "-o", tmp_path / "d"
        )
        assert (code, "calibration needs 50 patches of each class" in err) == (2, True)
