"""The network, its files, and the engines that run it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision
from pydantic import ValidationError
from torch import nn

from models.card import ZOO, Architecture, DetectorCard, ModelCard, read_card, task_of
from models.checkpoint import load_checkpoint, load_published, save_checkpoint
from models.engines import EngineConfig, Models, find_models, load_engine
from models.engines.torch import TorchEngine, cut, fold_batch_norm
from models.forms.build import build_network
from models.forms.wsinfer import weights_digest
from models.networks.contract import Oriented, PatchNetwork, area_weights, orient
from models.networks.inception import InceptionV3
from models.registry import make_network
from tests.slides import card as model_card
from wsi.errors import ConfigError, ModelError
from wsi.slides.blocks import PatchBlock

DEMO = ZOO / "lymph-node-demo"
LITE0 = Architecture(name="efficientnet_lite0", input_px=64)


def block(count: int = 11, seed: int = 0) -> PatchBlock:
    """Tissue-like pixels (smooth colour noise), patches at odd offsets."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 250, (40, 44, 3), dtype=np.uint8)
    pixels = np.asarray(
        torchvision.transforms.v2.functional.resize(torch.from_numpy(coarse).permute(2, 0, 1), [700, 770])
    ).transpose(1, 2, 0)
    offsets = rng.integers(0, [770 - 299, 700 - 299], (count, 2))
    return PatchBlock(np.ascontiguousarray(pixels), offsets.astype(np.int64), 299)


def plain_loop(network: nn.Module, patches: PatchBlock) -> np.ndarray:
    """One patch after another in fp32, nothing clever."""
    scores = []
    with torch.inference_mode():
        for x, y in patches.offsets_px:
            one = patches.pixels[y : y + 299, x : x + 299].astype(np.float32) / 127.5 - 1
            logits = network(torch.from_numpy(one.transpose(2, 0, 1)[None].copy()))
            scores.append(torch.softmax(logits, 1)[0].numpy())
    return np.array(scores)


def tiny(folder: Path, seed: int = 0, **changes: Any) -> ModelCard:
    """A random narrow network, saved."""
    torch.manual_seed(seed)
    network = InceptionV3(2, width=0.0625)
    fields: dict[str, Any] = {
        "name": folder.name,
        "architecture": Architecture(width=0.0625),
        "classes": ("normal", "tumor"),
        "positive": "tumor",
        "patch_px": 299,
        "stride_px": 128,
        "spacing_um": 0.25,
    }
    return save_checkpoint(folder, network, **fields | changes)


class TestInception:
    def test_width_1_is_torchvision_s_to_the_last_bit(self) -> None:
        torch.manual_seed(0)
        theirs = torchvision.models.inception_v3(weights=None, init_weights=False, transform_input=False)
        ours = InceptionV3(1000)
        ours.load_state_dict(theirs.state_dict())
        pixels = torch.rand(1, 3, 299, 299) * 2 - 1
        with torch.inference_mode():
            assert torch.equal(theirs.eval()(pixels), ours.eval()(pixels))

    @pytest.mark.parametrize("width", [0.0625, 0.1875, 0.5])
    def test_narrow_ones_keep_the_shape_of_the_answer(self, width: float) -> None:
        network = InceptionV3(3, width=width).eval()
        with torch.inference_mode():
            assert network(torch.zeros(1, 3, 299, 299)).shape == (1, 3)
        assert sum(p.numel() for p in network.parameters()) < 24e6 * (width * 1.3) ** 2 + 2e5

    def test_widths_outside_0_1_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"width must lie in \(0, 1\]"):
            InceptionV3(2, width=1.5)

    @pytest.mark.slow
    def test_a_batch_can_be_overfitted(self) -> None:
        torch.manual_seed(0)
        network = InceptionV3(2, width=0.0625, dropout=0.0)
        optimiser = torch.optim.Adam(network.parameters(), 0.002)
        pixels, labels = torch.rand(8, 3, 299, 299) * 2 - 1, torch.tensor([0, 1] * 4)
        losses = []
        for _ in range(12):
            main, aux = network.forward_train(pixels)
            loss = nn.functional.cross_entropy(main, labels) + nn.functional.cross_entropy(aux, labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.5 * losses[0]


class TestImageNetFile:
    @pytest.fixture(scope="class")
    @classmethod
    def file(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A file of the form of torchvision's ``inception_v3_google-*.pth``."""
        torch.manual_seed(1)
        network = torchvision.models.inception_v3(weights=None, init_weights=False)
        path = tmp_path_factory.mktemp("weights") / "inception_v3_google.pth"
        torch.save(network.state_dict(), path)
        return path

    def test_everything_but_the_class_layers_is_taken(self, file: Path) -> None:
        network = InceptionV3(2)
        own = network.fc.weight.clone()
        load_published(network, "inception_v3", file)
        theirs = torch.load(file, weights_only=True)
        assert torch.equal(network.Mixed_7c.branch1x1.conv.weight, theirs["Mixed_7c.branch1x1.conv.weight"])
        assert torch.equal(network.Conv2d_1a_3x3.bn.running_var, theirs["Conv2d_1a_3x3.bn.running_var"])
        assert torch.equal(network.fc.weight, own)

    def test_another_width_is_refused(self, file: Path) -> None:
        with pytest.raises(ModelError, match="not a weight file for Inception-v3 of width 1"):
            load_published(InceptionV3(2, width=0.5), "inception_v3", file)

    def test_cards_of_0_1_named_no_task(self, tmp_path: Path) -> None:
        """A classifier's had none, a detector's a kind; both are read, and each only as what it is."""
        tiny(tmp_path / "m")
        shutil.copytree(ZOO / "renal-ptc-demo", tmp_path / "d")
        for folder, kind in (("m", None), ("d", "detector")):
            path = tmp_path / folder / "card.json"
            facts = json.loads(path.read_text())
            del facts["task"]
            path.write_text(json.dumps(facts | ({"kind": kind} if kind else {})))
        assert (task_of(tmp_path / "m"), task_of(tmp_path / "d")) == ("classify", "detect")
        assert read_card(tmp_path / "m", ModelCard).positive == "tumor"
        assert read_card(tmp_path / "d", DetectorCard).enlarge_um == (4.0, 4.0)
        with pytest.raises(ModelError, match="d is a detector of capillaries"):
            read_card(tmp_path / "d", ModelCard)
        with pytest.raises(ModelError, match="m is a model of patches"):
            read_card(tmp_path / "m", DetectorCard)

    def test_a_task_of_a_later_version(self, tmp_path: Path) -> None:
        tiny(tmp_path / "m")
        path = tmp_path / "m" / "card.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"task": "convert"}))
        with pytest.raises(
            ModelError, match=r"task 'convert', which this version .*knows classify, detect, segment"
        ):
            read_card(tmp_path / "m", ModelCard)

    def test_a_file_cut_short_is_refused(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "cut.pth").write_bytes(file.read_bytes()[:100_000])
        with pytest.raises(ModelError, match="cut.pth is not a weight file"):
            load_published(InceptionV3(2), "inception_v3", tmp_path / "cut.pth")

    def test_a_pickle_that_runs_code_is_refused(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (tmp_path / "was here",))

        torch.save({"fc.weight": Evil()}, tmp_path / "evil.pth")
        with pytest.raises(ModelError, match="evil.pth"):
            load_published(InceptionV3(2, width=0.0625), "inception_v3", tmp_path / "evil.pth")
        assert not (tmp_path / "was here").exists()


class TestCheckpoint:
    def test_scores_come_back(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        tiny(tmp_path / "m")
        again, card = load_checkpoint(tmp_path / "m")
        torch.manual_seed(0)
        first = InceptionV3(2, width=0.0625).eval()
        pixels = torch.rand(1, 3, 299, 299)
        with torch.inference_mode():
            assert torch.equal(first(pixels), again(pixels))
        assert card.positive_index == 1

    def test_one_changed_byte_is_refused(self, tmp_path: Path) -> None:
        tiny(tmp_path / "m")
        path = tmp_path / "m" / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(ModelError, match=r"has sha256 .*its card says .*copy the model again"):
            load_checkpoint(tmp_path / "m")

    def test_cards_of_0_1_named_no_task(self, tmp_path: Path) -> None:
        """A classifier's had none, a detector's a kind; both are read, and each only as what it is."""
        tiny(tmp_path / "m")
        shutil.copytree(ZOO / "renal-ptc-demo", tmp_path / "d")
        for folder, kind in (("m", None), ("d", "detector")):
            path = tmp_path / folder / "card.json"
            facts = json.loads(path.read_text())
            del facts["task"]
            path.write_text(json.dumps(facts | ({"kind": kind} if kind else {})))
        assert (task_of(tmp_path / "m"), task_of(tmp_path / "d")) == ("classify", "detect")
        assert read_card(tmp_path / "m", ModelCard).positive == "tumor"
        assert read_card(tmp_path / "d", DetectorCard).enlarge_um == (4.0, 4.0)
        with pytest.raises(ModelError, match="d is a detector of capillaries"):
            read_card(tmp_path / "d", ModelCard)
        with pytest.raises(ModelError, match="m is a model of patches"):
            read_card(tmp_path / "m", DetectorCard)

    def test_a_task_of_a_later_version(self, tmp_path: Path) -> None:
        tiny(tmp_path / "m")
        path = tmp_path / "m" / "card.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"task": "convert"}))
        with pytest.raises(
            ModelError, match=r"task 'convert', which this version .*knows classify, detect, segment"
        ):
            read_card(tmp_path / "m", ModelCard)

    def test_a_file_cut_short_is_refused(self, tmp_path: Path) -> None:
        tiny(tmp_path / "m")
        path = tmp_path / "m" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(ModelError, match="sha256"):
            load_checkpoint(tmp_path / "m")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"classes": ["normal"], "positive": "normal"}, "with 1 classes"),
            ({"classes": ["normal", "tumor", "fat"]}, "with 3 classes"),
            ({"architecture": {"name": "inception_v3", "width": 0.5}}, "width 0.5"),
            (
                {"architecture": {"name": "resnet", "width": 0.5}},
                r"card.json is not a valid card: architecture.name",
            ),
            ({"positive": "cat"}, "positive class 'cat' is not among"),
            ({"colour": "red"}, "not a valid card: colour"),
            ({"patch_px": "299"}, "not a valid card: patch_px"),
        ],
    )
    def test_a_card_that_does_not_fit_is_refused(
        self, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        tiny(tmp_path / "m")
        path = tmp_path / "m" / "card.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ModelError, match=message):
            load_checkpoint(tmp_path / "m")

    def test_no_model_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(
            ModelError, match="there is no model folder nowhere; models that ship: .*lymph-node-demo"
        ):
            find_models(["nowhere"])
        with pytest.raises(ModelError, match="is not a model: card.json cannot be read"):
            find_models([str(tmp_path)])


class TestOrientations:
    def test_the_eight_are_all_different_and_closed(self) -> None:
        patch = torch.arange(9).reshape(1, 3, 3, 1)
        seen = {tuple(orient(patch, k).flatten().tolist()) for k in range(8)}
        assert len(seen) == 8
        for k in range(8):
            assert {tuple(orient(orient(patch, k), j).flatten().tolist()) for j in range(8)} == seen

    def test_the_mean_is_over_turned_patches(self) -> None:
        class Corner(nn.Module):
            def forward(self, patches: torch.Tensor) -> torch.Tensor:
                return patches[:, 0, 0, :1].float()

        patch = torch.tensor([[[10, 20], [30, 40]]], dtype=torch.uint8)[..., None]
        # each corner comes to the top left in two of the eight
        assert float(Oriented(Corner())(patch)) == 25


class TestEngines:
    """On the trained weights that ship: random ones magnify every rounding."""

    @pytest.fixture(scope="class")
    @classmethod
    def network(cls) -> nn.Module:
        return load_checkpoint(DEMO)[0]

    @pytest.fixture(scope="class")
    @classmethod
    def expected(cls, network: nn.Module) -> np.ndarray:
        return plain_loop(network, block())

    @pytest.mark.parametrize("name", ["openvino", "torch"])
    def test_fp32_equals_the_plain_loop(self, name: Any, expected: np.ndarray) -> None:
        engine = load_engine(find_models([str(DEMO)]), EngineConfig(engine=name, precision="fp32"))
        assert "fp32" in engine.description
        (scores,) = engine.score([block()])
        assert scores.dtype == np.float32
        assert np.abs(scores - expected).max() < 2e-4

    def test_answers_come_in_order_and_do_not_depend_on_neighbours(self) -> None:
        engine = load_engine(find_models([str(DEMO)]), EngineConfig(engine="openvino"))
        blocks = [block(n, seed) for n, seed in ((3, 1), (0, 2), (17, 3), (8, 4))]
        together = list(engine.score(iter(blocks)))
        assert [len(s) for s in together] == [3, 0, 17, 8]
        for one, scores in zip(blocks, together, strict=True):
            (alone,) = engine.score([one])
            np.testing.assert_array_equal(alone, scores)

    def test_eight_orientations_are_the_mean_of_eight(self, network: nn.Module) -> None:
        small = block(2)
        engine = load_engine(
            find_models([str(DEMO)]), EngineConfig(engine="openvino", precision="fp32", orientations=8)
        )
        (scores,) = engine.score([small])
        patches = torch.from_numpy(small.patches(0, 2))
        with torch.inference_mode():
            eight = torch.stack([PatchNetwork(network)(orient(patches, k)) for k in range(8)])
        assert np.abs(scores - eight.mean(0).numpy()).max() < 2e-4
        assert float(eight.std(0).max()) > 0  # the orientations do differ

    def test_several_models_are_averaged(self, tmp_path: Path) -> None:
        for seed in (1, 2):
            tiny(tmp_path / f"m{seed}", seed)
        names = [str(tmp_path / "m1"), str(tmp_path / "m2")]
        engine = load_engine(find_models(names), EngineConfig(engine="torch", precision="fp32"))
        (scores,) = engine.score([block(3)])
        parts = [plain_loop(load_checkpoint(Path(name))[0], block(3)) for name in names]
        assert np.abs(scores - np.mean(parts, axis=0)).max() < 1e-5
        assert np.abs(parts[0] - parts[1]).max() > 1e-3

    def test_models_of_other_cells_or_questions_are_not_averaged(self, tmp_path: Path) -> None:
        tiny(tmp_path / "a")
        tiny(tmp_path / "b", spacing_um=0.5)
        said = r"speak for different cells \(\d+\.\d um and 64.0 um\); only models of the same cells"
        with pytest.raises(ModelError, match=said):
            find_models([str(tmp_path / "a"), str(tmp_path / "b")])
        tiny(tmp_path / "c", positive="normal")
        with pytest.raises(ModelError, match="differ in positive .* answer the same question"):
            find_models([str(tmp_path / "a"), str(tmp_path / "c")])

    @pytest.mark.parametrize("name", ["torch", "openvino"])
    def test_models_of_two_spacings_see_the_same_cells(self, tmp_path: Path, name: str) -> None:
        """A fine model of 299 px and a coarse one of 96 px of four times the spacing, on one patch that holds both.

        The coarse one must see what OpenCV makes of the whole patch by area, the fine one its middle 299 px.
        """
        tiny(tmp_path / "fine", stride_px=128, spacing_um=0.25)
        coarse = {"name": "c", "classes": ("normal", "tumor"), "positive": "tumor", "architecture": LITE0}
        torch.manual_seed(5)
        body = make_network(LITE0, 2).eval()
        load_published(body, "efficientnet_lite0", Path("imagenet"))
        torch.nn.init.normal_(body._fc.weight, std=0.3)  # type: ignore[operator, union-attr]
        save_checkpoint(tmp_path / "coarse", body, **coarse, patch_px=96, stride_px=32, spacing_um=1.0)  # type: ignore[arg-type]
        models = find_models([str(tmp_path / "coarse"), str(tmp_path / "fine")])
        card = models.card
        assert (card.patch_px, card.stride_px, card.spacing_um) == (385, 128, 0.25)  # 384, and odd as 299 is
        pixels = cv2.GaussianBlur(
            np.random.default_rng(2).integers(0, 256, (385, 385, 3), np.uint8), (0, 0), 4
        )
        engine = load_engine(models, EngineConfig(engine=name, precision="fp32"))  # type: ignore[arg-type]
        (scores,) = engine.score([PatchBlock(pixels, np.array([[0, 0]]), 385)])
        small = cv2.resize(pixels[:384, :384].astype(np.float32), (96, 96), interpolation=cv2.INTER_AREA)
        fine = load_checkpoint(tmp_path / "fine")[0]
        with torch.inference_mode():
            first = PatchNetwork(body)(torch.from_numpy(small[None]))
            second = PatchNetwork(fine)(torch.from_numpy(pixels[None, 43:342, 43:342]))
            other = PatchNetwork(body)(torch.from_numpy(small[None, ::-1].copy()))
        np.testing.assert_allclose(scores, (first + second) / 2, atol=2e-4)
        assert float((first - second).abs().max()) > 0.01
        assert float((first - other).abs().max()) > 0.01  # what is shown matters

    def test_area_weights_are_those_of_opencv(self) -> None:
        row = np.random.default_rng(0).random((1, 383)).astype(np.float32)
        wanted = cv2.resize(row, (96, 1), interpolation=cv2.INTER_AREA)
        found = torch.from_numpy(row) @ area_weights(383, 96).T
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)

    def test_fp16_needs_a_gpu(self, tmp_path: Path) -> None:
        tiny(tmp_path / "m")
        for name in ("openvino", "torch"):
            with pytest.raises(ConfigError, match="fp16 needs a GPU"):
                load_engine(find_models([str(tmp_path / "m")]), EngineConfig(engine=name, precision="fp16"))  # type: ignore[arg-type]

    def test_out_of_memory_halves_the_batch_and_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        tiny(tmp_path / "m")
        engine = load_engine(find_models([str(tmp_path / "m")]), EngineConfig(engine="torch", batch=8))
        assert isinstance(engine, TorchEngine)
        whole = engine._score_batch

        def limited(pixels: torch.Tensor, offsets: torch.Tensor, size: int) -> np.ndarray:
            if engine._batch > 2:
                raise torch.cuda.OutOfMemoryError
            return whole(pixels, offsets, size)

        (expected,) = engine.score([block(5)])
        monkeypatch.setattr(engine, "_score_batch", limited)
        (scores,) = engine.score([block(5)])
        assert np.abs(scores - expected).max() < 1e-5
        assert "batches of 2" in caplog.text

    def test_patches_cut_on_the_device_are_the_block_s(self) -> None:
        patches = block(4)
        found = cut(torch.from_numpy(patches.pixels), torch.from_numpy(patches.offsets_px), 299).numpy()
        np.testing.assert_array_equal(found, patches.patches(0, 4))

    def test_folding_batch_norm_changes_nothing_that_matters(
        self, network: nn.Module, expected: np.ndarray
    ) -> None:
        folded = load_checkpoint(DEMO)[0]
        fold_batch_norm(folded)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        assert np.abs(plain_loop(folded, block()) - expected).max() < 1e-4

    def test_converting_happens_once(self, caplog: pytest.LogCaptureFixture) -> None:
        for _ in range(2):
            load_engine(find_models([str(DEMO)]), EngineConfig(engine="openvino"))
        assert caplog.text.count("converting") <= 1

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_gpu_agrees_with_the_cpu(self, expected: np.ndarray) -> None:
        for precision, tolerance in (("fp32", 2e-4), ("fp16", 2e-2)):
            cfg = EngineConfig(engine="torch", precision=precision)  # type: ignore[arg-type]
            (scores,) = load_engine(find_models([str(DEMO)]), cfg).score([block()])
            assert np.abs(scores - expected).max() < tolerance


class Scripted(nn.Module):
    """Stands for a WSInfer model: the mean of each channel, scaled."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=[2, 3])[:, : self.classes] * 2.0


class TestWSInfer:
    def folder(self, path: Path, classes: int = 2, **changes: Any) -> Path:
        path.mkdir()
        torch.jit.script(Scripted(classes)).save(str(path / "torchscript_model.pt"))
        config = {
            "architecture": "resnet34",
            "num_classes": classes,
            "class_names": ["Other", "Tumor"][-classes:],
            "patch_size_pixels": 350,
            "spacing_um_px": 0.25,
            "transform": [
                {"name": "Resize", "arguments": {"size": 224}},
                {"name": "ToTensor"},
                {"name": "Normalize", "arguments": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5]}},
            ],
        }
        (path / "config.json").write_text(json.dumps(config | changes))
        return path

    @pytest.mark.parametrize("name", ["torch", "openvino"])
    @pytest.mark.parametrize("classes", [1, 2])
    def test_answers_are_those_of_the_transforms_by_hand(
        self, tmp_path: Path, name: Any, classes: int
    ) -> None:
        models = find_models([str(self.folder(tmp_path / "m", classes))])
        assert models.card.positive == "Tumor"
        assert (models.card.patch_px, models.card.stride_px, models.card.spacing_um) == (350, 350, 0.25)
        pixels = np.full((350, 350, 3), (100, 150, 200), np.uint8)
        engine = load_engine(models, EngineConfig(engine=name, precision="fp32"))
        (scores,) = engine.score([PatchBlock(pixels, np.zeros((1, 2), np.int64), 350)])
        logits = 2 * (np.array([100, 150]) / 255 - [0.5, 0.4]) / [0.2, 0.25]
        by_hand = 1 / (1 + np.exp(-logits[:1])) if classes == 1 else np.exp(logits) / np.exp(logits).sum()
        assert np.abs(scores[0] - by_hand).max() < 1e-4  # one output: sigmoid; more: softmax

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_classes": 3}, "num_classes is 3"),
            ({"class_names": None}, "not WSInfer's configuration"),
            ({"transform": [{"name": "Solarize"}]}, "asks for the transform 'Solarize'"),
            ({"transform": [{"name": "Resize"}]}, "lacks its name or an argument"),
        ],
    )
    def test_broken_configurations_are_refused(
        self, tmp_path: Path, changes: dict[str, Any], message: str
    ) -> None:
        folder = self.folder(tmp_path / "m", **changes)
        with pytest.raises(ModelError, match=message):
            build_network(find_models([str(folder)]).folders)

    def test_other_transforms_are_another_model_also_in_the_cache(self, tmp_path: Path) -> None:
        pixels = PatchBlock(
            np.full((350, 350, 3), (100, 150, 200), np.uint8), np.zeros((1, 2), np.int64), 350
        )
        answers = []
        for mean in (0.5, 0.1):
            normalise = {"name": "Normalize", "arguments": {"mean": [mean] * 3, "std": [0.2] * 3}}
            folder = self.folder(tmp_path / f"m{mean}", 1, transform=[{"name": "ToTensor"}, normalise])
            engine = load_engine(
                find_models([str(folder)]), EngineConfig(engine="openvino", precision="fp32")
            )
            answers.append(float(next(iter(engine.score([pixels])))[0, 0]))
        assert abs(answers[0] - answers[1]) > 0.2

    def test_a_file_that_is_no_torchscript(self, tmp_path: Path) -> None:
        folder = self.folder(tmp_path / "m")
        (folder / "torchscript_model.pt").write_bytes(b"nothing")
        with pytest.raises(ModelError, match="is not a TorchScript file"):
            build_network([folder])


def test_the_model_that_ships_says_that_it_is_a_demonstration() -> None:
    models: Models = find_models(["lymph-node-demo"])
    assert models.card.demonstration
    assert "real" in models.card.limits
    assert sum(f.stat().st_size for f in DEMO.iterdir()) < 4e6


def test_models_are_found_by_folder_or_name(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "copy")
    assert find_models([str(tmp_path / "copy")]).weights == find_models(["lymph-node-demo"]).weights


class TestCards:
    @pytest.mark.parametrize(
        "cuts", [[0.5, 0.4, 0.6, 0.9], [0.5, 0.5, 0.6, 0.9], [-0.1, 0.5, 0.6, 0.9], [0.1, 0.2, 0.3, 2]]
    )
    def test_cuts_that_do_not_ascend(self, cuts: list[float]) -> None:
        value = model_card().model_dump(mode="json") | {"confidence": cuts}
        with pytest.raises(ValidationError, match="must ascend within 0..1"):
            ModelCard.model_validate_json(json.dumps(value))

    def test_several_models_have_words_only_where_all_were_checked_alike(self) -> None:
        one, other = model_card(), model_card(confidence=(0.1, 0.2, 0.3, 0.4))
        unchecked = model_card(confidence=None)
        folders = (Path("a"), Path("b"))
        assert Models(folders, (one, one)).confidence == one.confidence
        assert Models(folders, (one, other)).confidence is None
        assert Models(folders, (one, unchecked)).confidence is None
        assert Models(folders, (unchecked, one)).confidence is None

    def test_a_digest_of_bf16_weights(self) -> None:
        """numpy has no bf16: the bytes count, so 1.0 and 2.0 differ and the same weights do not."""
        one, two = (torch.full((2, 3), v, dtype=torch.bfloat16) for v in (1.0, 2.0))
        assert weights_digest({"w": one}) == weights_digest({"w": one.clone()})
        assert weights_digest({"w": one}) != weights_digest({"w": two})


class TestDemonstrationWarning:
    @pytest.fixture(scope="class")
    @classmethod
    def exported(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        from models.forms.portable import export_wsinfer

        out = tmp_path_factory.mktemp("exported") / "ts"
        export_wsinfer(ZOO / "lymph-node-demo", out)
        return out

    @pytest.mark.slow
    def test_it_survives_the_export(self, exported: Path, tmp_path: Path) -> None:
        """By the card beside it; and by the weights, where only WSInfer's own two files were copied."""
        assert find_models([str(exported)]).card.demonstration
        assert "trained on drawings" in (exported / "README.md").read_text()
        for name in ("torchscript_model.pt", "config.json"):
            shutil.copy(exported / name, tmp_path / name)
        card = find_models([str(tmp_path)]).card
        assert card.demonstration
        assert card.confidence is None  # nobody checked the words for it

    def test_another_model_does_not_get_it(self, exported: Path, tmp_path: Path) -> None:
        """Weights of its own, though a demonstration model's card lies beside them."""
        network = torch.jit.load(exported / "torchscript_model.pt")
        with torch.no_grad():
            next(network.parameters()).mul_(1.01)
        for name in ("config.json", "slidewright.json"):
            shutil.copy(exported / name, tmp_path / name)
        network.save(str(tmp_path / "torchscript_model.pt"))
        assert not find_models([str(tmp_path)]).card.demonstration
