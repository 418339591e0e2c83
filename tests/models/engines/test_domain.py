"""Tissue that a model was not trained on is noticed: the distance, its limit, and what users are told."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.metrics import roc_auc_score

from models.card import CARD, DOMAIN, ModelCard, card_json, read_card
from models.checkpoint import load_published, save_checkpoint
from models.engines import Models, find_models
from models.engines.domain import RIDGE, Domain, fit_domain, look_unlike, read_domain, write_domain
from models.networks.efficientnet import EfficientNetLite0
from models.registry import make_network
from pipelines.runs.likeness import FEWEST, UNLIKE_FROM, unlike_note, unlike_patches
from tests.models.networks.test_efficientnet import CARD as SMALL
from tests.models.networks.test_efficientnet import LITE0
from tests.slides import real_data
from wsi.errors import ModelError

Run = Callable[..., tuple[int, str, str]]


class TestDistance:
    def test_as_scipy_measures_it(self) -> None:
        rng = np.random.default_rng(0)
        training = (rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4)) + [1, 2, 3, 4]).astype(np.float32)
        others = (training[:50] + 0.7).astype(np.float32)
        domain = fit_domain(training, others)
        covariance = np.cov(training, rowvar=False)
        ridge = RIDGE * np.trace(covariance) / 4 * np.eye(4)
        inverse = np.linalg.inv(covariance + ridge)
        wanted = [mahalanobis(row, training.mean(axis=0), inverse) ** 2 / 4 for row in others]
        np.testing.assert_allclose(domain.distances(others), wanted, rtol=1e-4)

    def test_one_in_twenty_of_the_others_lies_beyond_the_limit(self) -> None:
        rng = np.random.default_rng(1)
        training, others = (rng.normal(size=(400, 3)).astype(np.float32) for _ in range(2))
        domain = fit_domain(training, others)
        assert domain.unlike(others).sum() == 20
        far = others + np.float32(10)
        assert domain.unlike(far).all()

    def test_it_comes_back_and_damage_is_told(self, tmp_path: Path) -> None:
        domain = Domain(np.ones(2, np.float32), np.eye(2, dtype=np.float32), 1.5)
        sha256 = write_domain(tmp_path, domain)
        save_checkpoint(tmp_path, make_network(LITE0, 2), **SMALL, domain=sha256)
        card = read_card(tmp_path, ModelCard)
        found = read_domain(tmp_path, card)
        assert found is not None
        assert (found.limit, found.mean.tolist()) == (1.5, [1, 1])
        assert read_domain(tmp_path, card.model_copy(update={"domain": None})) is None
        data = bytearray((tmp_path / DOMAIN).read_bytes())
        data[-1] ^= 1
        (tmp_path / DOMAIN).write_bytes(data)
        with pytest.raises(ModelError, match=r"domain.safetensors has sha256 .* copy the model again"):
            find_models([str(tmp_path)])  # before a slide is read
        (tmp_path / DOMAIN).unlink()
        with pytest.raises(ModelError, match="cannot be read"):
            find_models([str(tmp_path)])
        (tmp_path / DOMAIN).write_bytes(b"no arrays")
        with pytest.raises(ModelError, match="is not the record of a model's domain"):
            read_domain(tmp_path, card)


def striped(rng: np.random.Generator, tint: tuple[int, int, int], side: int = 48) -> np.ndarray:
    """Noise of one colour with a stripe."""
    image = rng.integers(40, 120, (side, side, 3)) + np.array(tint)
    image[:, int(rng.integers(side - 8)) :][:, :8] += 20
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of violet tissue, ``train`` and ``valid``, and of brown tissue, ``brown``; file colours are BGR."""
    root, rng = tmp_path_factory.mktemp("domain"), np.random.default_rng(5)
    for split, count, tint in (
        ("train", 240, (110, 40, 90)),
        ("valid", 60, (110, 40, 90)),
        ("brown", 15, (10, 60, 110)),
    ):
        for label, more in (("normal", 0), ("tumor", 15)):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                image = striped(rng, (tint[0], tint[1], tint[2] + more))
                cv2.imwrite(str(root / split / label / f"{i}.png"), image)
    return root


@pytest.fixture(scope="module")
def model(patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that scores the redder patches of ``train`` higher, not calibrated."""
    torch.manual_seed(0)
    network = make_network(LITE0, 2)
    assert isinstance(network, EfficientNetLite0)
    load_published(network, "efficientnet_lite0", Path("imagenet"))
    means = []
    for label in ("normal", "tumor"):
        images = [
            cv2.imread(str(p))[..., ::-1] for p in sorted((patches / "train" / label).glob("*.png"))[:60]
        ]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            means.append(network.eval().embed(pixels).mean(dim=0))
    network._fc.weight.data = torch.stack([means[0] - means[1], means[1] - means[0]]).clone()
    network._fc.bias.data = -network._fc.weight.data @ ((means[0] + means[1]) / 2)
    folder = tmp_path_factory.mktemp("known") / "m"
    save_checkpoint(folder, network, **SMALL)
    return folder


@pytest.fixture(scope="module")
def knowing(model: Path, patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a record of what it knows."""
    from pipelines.runs.calibrate import calibrate_model
    from wsi.datasets.patch_pictures import list_patches

    folder = tmp_path_factory.mktemp("knowing") / "m"
    calibrate_model(model, list_patches(patches / "valid"), folder, training=list_patches(patches / "train"))
    return folder


@pytest.mark.slow
class TestWarning:
    def test_patches_of_other_tissue_are_warned_of(
        self, knowing: Path, patches: Path, tmp_path: Path, wsi: Run
    ) -> None:
        said = {}
        for split in ("valid", "brown"):
            out = tmp_path / split
            code, _, err = wsi("score-patches", patches / split, "-m", knowing, "-o", out)
            assert code == 0
            said[split] = "look unlike what small was trained on" in err
            record = json.loads((out / "run.json").read_text())
            assert bool(record["warning"]) == said[split]
            assert ("unlike what small" in (out / "index.html").read_text()) == said[split]
        assert said == {"valid": False, "brown": True}

    def test_a_slide_of_other_tissue_is_warned_of(
        self, knowing: Path, patches: Path, tmp_path: Path, wsi: Run
    ) -> None:
        """The word goes, although the card brings cuts; share and note stand in slide.json, on the page, in the table."""
        shutil.copytree(knowing, tmp_path / "m")
        card = read_card(knowing, ModelCard).model_copy(update={"confidence": (0.1, 0.2, 0.3, 0.4)})
        (tmp_path / "m" / CARD).write_text(card_json(card))
        rng = np.random.default_rng(1)
        found = {}
        for name, tint in (("violet", (110, 40, 90)), ("brown", (10, 60, 110))):
            rows = [np.hstack([striped(rng, tint) for _ in range(12)]) for _ in range(9)]
            cv2.imwrite(str(tmp_path / f"{name}.png"), np.vstack(rows))
            out = tmp_path / f"{name}_out"
            args = ("--mpp", "0.97", "-m", tmp_path / "m", "-o", out)
            code, _, err = wsi("score", tmp_path / f"{name}.png", *args)
            assert code == 0, err
            value = json.loads((out / name / "slide.json").read_text())
            found[name] = (value["unlike"], value["confidence"])
            told = ("looks unlike" in err, "looks unlike" in value["note"])
            page, table = (
                "looks unlike" in (out / f).read_text() for f in ("index.html", "slide_scores.csv")
            )
            assert {*told, page, table} == {name == "brown"}
        assert found["violet"][0] < UNLIKE_FROM < found["brown"][0]
        assert found["violet"][1] is not None
        assert found["brown"][1] is None

    def test_a_second_calibration_keeps_the_record(
        self, knowing: Path, patches: Path, tmp_path: Path, wsi: Run
    ) -> None:
        args = ("models", "calibrate", knowing, "--patches", patches / "valid")
        code, _, err = wsi(*args, "-o", tmp_path / "again")
        assert code == 0, err
        assert (tmp_path / "again" / DOMAIN).read_bytes() == (knowing / DOMAIN).read_bytes()
        assert read_card(tmp_path / "again", ModelCard).domain == read_card(knowing, ModelCard).domain
        code, _, err = wsi(*args, "--training", patches / "brown", "-o", tmp_path / "few")
        assert (code, "takes 448 training patches or more, and there are 30" in err) == (2, True), err

    def test_few_patches_say_nothing(self, knowing: Path, patches: Path) -> None:
        brown = [cv2.imread(str(p)) for p in sorted((patches / "brown").rglob("*.png"))]
        models = find_models([str(knowing)])
        assert unlike_patches(brown[: FEWEST - 1], models) is None
        assert unlike_patches(brown[:FEWEST], models) is not None
        own = look_unlike(knowing, brown[:3], models.card)
        assert own.all()
        finer = models.card.model_copy(
            update={"patch_px": 112, "spacing_um": 0.485}
        )  # as beside a finer model
        large = [np.pad(p.repeat(2, 0).repeat(2, 1), ((8, 8), (8, 8), (0, 0))) for p in brown[:3]]
        assert look_unlike(knowing, large, finer).tolist() == own.tolist()


@pytest.mark.slow
def test_openvino_and_torch_give_the_same_features(knowing: Path) -> None:
    """Of the model's own patches, and of larger ones of half the spacing; 11 patches are no whole batches."""
    from models.engines.domain import middle_features
    from models.engines.openvino import OpenVinoFeatures
    from models.forms.build import build_middle

    card = read_card(knowing, ModelCard)
    rng = np.random.default_rng(0)
    for update in ({}, {"patch_px": 112, "spacing_um": 0.485}):
        frame = card.model_copy(update=update)
        patches = [striped(rng, (150, 90, 160 - i), frame.patch_px) for i in range(11)]
        expected = middle_features(build_middle(knowing, frame), patches)
        found = OpenVinoFeatures(knowing, card, frame)(patches)
        assert found.shape == expected.shape == (11, 224)
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())


def test_the_note_begins_at_seven_tenths() -> None:
    from tests.slides import card

    cards = (card(name="blind"), card(name="x", domain="0" * 64))  # it names the one that can tell
    known = Models((Path("blind"), Path("x")), cards)
    assert unlike_note(0.69, known) == ""
    assert unlike_note(None, known) == ""
    assert unlike_note(0.7, known).startswith("70 % of its tissue looks unlike what x was trained")


@pytest.mark.slow
class TestFigures:
    def test_figures_are_those_of_the_scores_and_go_into_the_card(
        self, knowing: Path, patches: Path, tmp_path: Path, wsi: Run
    ) -> None:
        shutil.copytree(knowing, tmp_path / "m")
        code, _, err = wsi(
            "score-patches", patches / "brown", "-m", knowing, "-o", tmp_path / "o", "--precision", "fp32"
        )
        assert code == 0, err
        with (tmp_path / "o" / "scores.csv").open() as file:
            rows = list(csv.DictReader(file))
        wanted = roc_auc_score([r["label"] == "tumor" for r in rows], [float(r["score"]) for r in rows])
        words = ("models", "test", tmp_path / "m", "--patches", patches / "brown")
        code, out, err = wsi(*words)
        assert code == 0, err
        lines = out.splitlines()
        assert "the patches that it is calibrated on" in lines[0]
        assert lines[2].startswith("brown (20")
        assert lines[2].endswith("; 15 tumour, 15 normal):")
        assert lines[3].startswith(f"  AUC {wanted:.4f} (")
        assert "look unlike" in lines[4]
        assert len(read_card(tmp_path / "m", ModelCard).metrics["figures"]) == 1
        for _ in range(2):  # the second replaces the first
            assert wsi(*words, "--write", "--called", "brown tissue")[0] == 0
        rows = read_card(tmp_path / "m", ModelCard).metrics["figures"]
        assert [(r["data"], r["auc"]) for r in rows][1:] == [("brown tissue", round(wanted, 4))]
        code, out, _ = wsi("models", "show", tmp_path / "m")
        assert "brown tissue (20" in out
        assert "Calibration: log-odds times " in out
        assert json.loads(wsi("models", "show", tmp_path / "m", "--json")[1])["name"] == "small"

    def test_what_cannot_be_measured(self, patches: Path, wsi: Run) -> None:
        words = ("models", "test", "lymph-node-10x", "--patches")
        code, _, err = wsi(*words, patches / "brown", "--write")
        assert (code, "lymph-node-10x is none of ours; give its folder" in err) == (2, True), err
        code, _, err = wsi(*words, patches / "brown" / "tumor")
        assert (code, "0 of tumour and 0 normal ones; put them into folders" in err) == (2, True), err


@pytest.mark.slow
class TestTheModelThatShips:
    @pytest.mark.parametrize(
        ("folder", "mpp", "warned"),
        [("lymph_node_patches", 0.243, False), ("ihc_dab_negatives", 0.5, True)],
    )
    def test_real_patches(self, folder: str, mpp: float, warned: bool, tmp_path: Path, wsi: Run) -> None:
        args = ("-m", "lymph-node-10x", "--mpp", mpp, "-o", tmp_path / "out")
        code, _, err = wsi("score-patches", real_data(folder), *args)
        assert code == 0, err
        assert ("look unlike what lymph-node-10x" in err) == warned

    @pytest.mark.parametrize(
        ("parts", "mpp"), [(("slides", "cmu-1-small-region.svs"), None), (("kidney_stains", "he.png"), 0.5)]
    )
    def test_skin_and_kidney_are_warned_of(
        self, parts: tuple[str, ...], mpp: float | None, tmp_path: Path, wsi: Run
    ) -> None:
        spacing = () if mpp is None else ("--mpp", mpp)
        code, _, err = wsi(
            "score", real_data(*parts), *spacing, "-m", "lymph-node-10x", "-o", tmp_path / "out"
        )
        assert code == 0, err
        assert "looks unlike what lymph-node-10x was trained on" in err
