"""Published backbones: the publishers' numbers, their files, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from pydantic import ValidationError
from safetensors.torch import save_file

from models.card import Architecture, ModelCard, TimmModel, card_json
from models.checkpoint import load_checkpoint, load_published, load_start, load_timm, save_checkpoint
from models.engines import EngineConfig, find_models, load_engine
from models.engines.contract import FeatureEngineConfig
from models.engines.explain import Explainer
from models.forms.timm_folder import is_timm_folder, timm_card
from models.networks.backbone import TimmBackbone
from models.networks.contract import normalise
from models.registry import make_network
from tests.slides import card
from wsi.errors import ConfigError, ModelError
from wsi.slides.blocks import PatchBlock

VIT = TimmModel(
    name="vit_tiny_patch16_224", args={"depth": 1, "img_size": 64}, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25)
)


def published(folder: Path, model: TimmModel = VIT, side: int = 64, **changes: Any) -> torch.nn.Module:
    """A network of timm as its publishers upload it; the network itself is returned."""
    torch.manual_seed(1)
    network = timm.create_model(model.name, num_classes=0, **model.args).eval()
    folder.mkdir(parents=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": model.name,
        "num_classes": 0,
        "model_args": {**model.args, "num_classes": 0},
        "pretrained_cfg": {"input_size": [3, side, side], "mean": list(model.mean), "std": list(model.std)},
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    return network


def pixels_of(patches: np.ndarray, mean: Any, std: Any) -> torch.Tensor:
    """Patches as publishers normalise them: one number after the other."""
    shares = patches.astype(np.float64) / 255
    return torch.from_numpy(((shares - mean) / std).transpose(0, 3, 1, 2)).float()


def noise(count: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


class TestTorchvision:
    @pytest.mark.parametrize("name", ["resnet18", pytest.param("efficientnet_b0", marks=pytest.mark.slow)])
    def test_a_published_file_gives_the_publishers_features(self, name: str, tmp_path: Path) -> None:
        torch.manual_seed(0)
        theirs = torchvision.models.get_model(name, weights=None).eval()
        torch.save(theirs.state_dict(), tmp_path / "w.pth")
        ours = make_network(Architecture(name=name), 2).eval()  # type: ignore[arg-type]
        load_published(ours, name, tmp_path / "w.pth")
        patches = noise(2, 64)
        head = theirs.classifier[1] if name.startswith("eff") else theirs.fc
        with torch.inference_mode():
            wanted = theirs(pixels_of(patches, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
            features = head(ours.embed(normalise(torch.from_numpy(patches))))
        torch.testing.assert_close(features, wanted, atol=1e-4, rtol=1e-4)

    def test_files_of_before_counts_of_batches_load_and_another_network_s_do_not(
        self, tmp_path: Path
    ) -> None:
        state = torchvision.models.resnet18(weights=None).state_dict()
        old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        torch.save(old, tmp_path / "old.pth")
        network = make_network(Architecture(name="resnet18"), 2)
        load_published(network, "resnet18", tmp_path / "old.pth")
        assert torch.equal(network.body.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
        deeper = make_network(Architecture(name="resnet34"), 2)
        with pytest.raises(
            ModelError, match=r"lacks .* arrays of resnet34, first body.layer1.2.conv1.weight"
        ):
            load_published(deeper, "resnet34", tmp_path / "old.pth")

    def test_it_is_saved_and_learns(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        architecture = Architecture(name="resnet18", input_px=64)
        network = make_network(architecture, 2, train=True)
        patches, labels = torch.from_numpy(noise(8, 48)), torch.tensor([0, 1] * 4)
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
        for _ in range(12):
            loss = torch.nn.functional.cross_entropy(network.forward_train(normalise(patches))[0], labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert loss.item() < 0.1
        fields = card().model_dump(exclude={"sha256", "architecture"})
        save_checkpoint(tmp_path / "m", network, **fields, architecture=architecture)
        again, _ = load_checkpoint(tmp_path / "m")
        network.eval()
        with torch.inference_mode():
            assert torch.equal(again(normalise(patches)), network(normalise(patches)))

    def test_half_way_is_at_stride_8(self) -> None:
        for name, channels in (("resnet18", 128), ("efficientnet_b0", 40)):
            network = make_network(Architecture(name=name), 2).eval()  # type: ignore[arg-type]
            with torch.inference_mode():
                assert network.middle(torch.zeros(1, 3, 64, 64)).shape == (1, 2 * channels)


class TestTimm:
    def test_a_published_folder_gives_the_publishers_features(self, tmp_path: Path) -> None:
        theirs = published(tmp_path / "vit")
        patches = noise(3, 64)
        with torch.inference_mode():
            wanted = theirs(pixels_of(patches, VIT.mean, VIT.std))
            features = load_timm(tmp_path / "vit").embed(normalise(torch.from_numpy(patches)))
        torch.testing.assert_close(features, wanted, atol=1e-5, rtol=1e-5)
        facts = timm_card(tmp_path / "vit", 0.7)
        assert (facts.patch_px, facts.stride_px, facts.spacing_um) == (64, 64, 0.7)
        assert facts.architecture.timm == VIT

    def test_a_recipe_of_another_network_is_told_what_to_write(self, tmp_path: Path) -> None:
        published(tmp_path / "vit")
        other = VIT.model_copy(update={"mean": (0.1, 0.1, 0.1)})
        network = make_network(Architecture(name="timm", timm=other), 2)
        with pytest.raises(
            ModelError, match=r'write architecture: timm, and timm: \{"name":"vit_tiny_patch16_224"'
        ):
            load_start(network, Architecture(name="timm", timm=other), tmp_path / "vit")
        right = Architecture(name="timm", timm=VIT)
        network = make_network(right, 2)
        load_start(network, right, tmp_path / "vit")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "cannot be read"),
            ("[]", "is not a description of timm"),
            ("{}", "KeyError"),
            ('{"architecture": "hf-hub:evil/model"}', "pattern"),
            ('{"architecture": "a", "model_args": {"checkpoint_path": "/etc/passwd"}}', "they load files"),
            ('{"architecture": "no_such_net"}', "cannot make 'no_such_net'"),
            ('{"architecture": "resnet18", "model_args": [1]}', "is not a description of timm"),
            ('{"architecture": "resnet18", "model_args": {"features_only": true}}', "features one row"),
            ('{"architecture": "resnet18", "std": [NaN, 1, 1]}', "must be numbers"),
            ('{"architecture": "resnet18", "model_args": {"no_such": 1}}', "cannot make 'resnet18'"),
        ],
    )
    def test_a_broken_description_is_refused(self, content: str, message: str, tmp_path: Path) -> None:
        published(tmp_path / "vit")
        (tmp_path / "vit" / "config.json").write_text(content)
        with pytest.raises(ModelError, match=message):
            load_timm(tmp_path / "vit")

    @pytest.mark.parametrize("size", ["[3, 0, 0]", "[1, 64, 64]", "[3, 64, 32]", "[64, 64]", "64"])
    def test_a_patch_that_is_no_square_of_rgb_is_refused(self, size: str, tmp_path: Path) -> None:
        published(tmp_path / "vit")
        text = json.dumps({"architecture": "vit_tiny_patch16_224", "input_size": json.loads(size)})
        (tmp_path / "vit" / "config.json").write_text(text)
        with pytest.raises(ModelError, match="does not state an input_size to use"):
            timm_card(tmp_path / "vit")

    def test_weights_of_more_layers_are_refused(self, tmp_path: Path) -> None:
        published(tmp_path / "vit", VIT.model_copy(update={"args": VIT.args | {"depth": 2}}))
        config = json.loads((tmp_path / "vit" / "config.json").read_text())
        config["model_args"]["depth"] = 1
        (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=r"arrays that timm has no place for, first blocks.1"):
            load_timm(tmp_path / "vit")

    def test_the_side_of_a_network_of_fixed_size_is_taken_from_the_description(self, tmp_path: Path) -> None:
        published(tmp_path / "vit")
        config = json.loads((tmp_path / "vit" / "config.json").read_text())
        del config["model_args"]["img_size"]
        config["pretrained_cfg"]["fixed_input_size"] = True
        (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
        load_timm(tmp_path / "vit")

    def test_a_number_that_yaml_takes_for_text_is_one(self) -> None:
        model = TimmModel(name="vit_tiny_patch16_224", args=VIT.args | {"init_values": "1e-5"})
        network = make_network(Architecture(name="timm", timm=model), 2)
        assert network.body.blocks[0].ls1.gamma[0].item() == pytest.approx(1e-5)

    def test_a_folder_of_wsinfer_with_further_weights_stays_one(self, tmp_path: Path) -> None:
        published(tmp_path / "vit")
        (tmp_path / "vit" / "torchscript_model.pt").write_bytes(b"x")
        assert not is_timm_folder(tmp_path / "vit")

    def test_other_commands_say_that_it_names_no_class(self, tmp_path: Path) -> None:
        published(tmp_path / "vit")
        with pytest.raises(ModelError, match="may give features"):
            load_checkpoint(tmp_path / "vit")

    def test_features_of_places_are_refused(self) -> None:
        model = TimmModel(name="vit_tiny_patch16_224", args=VIT.args | {"global_pool": ""})
        network = make_network(Architecture(name="timm", timm=model), 2).eval()
        with pytest.raises(ModelError, match="set global_pool in timm's args to avg or token"):
            network(torch.zeros(1, 3, 64, 64))

    def test_without_timm_the_way_out_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(ModelError, match=r"pip install 'slidewright\[timm\]'"):
            make_network(Architecture(name="timm", timm=VIT), 2)

    def test_the_name_and_the_network_go_together(self) -> None:
        with pytest.raises(ValidationError, match="go together"):
            Architecture(name="timm")
        with pytest.raises(ValidationError, match="go together"):
            Architecture(name="resnet18", timm=VIT)

    def test_cards_and_graphs_of_before_keep_their_hash(self) -> None:
        before = card()
        assert "timm" not in card_json(before)
        assert "timm" not in repr(before.architecture)
        assert ModelCard.model_validate_json(card_json(before)) == before


class TestGradCam:
    def test_with_a_mean_before_the_class_layer_it_is_the_positive_part_of_the_class_activation_map(
        self, tmp_path: Path
    ) -> None:
        model = TimmModel(name="resnet18")
        architecture = Architecture(name="timm", timm=model)
        torch.manual_seed(2)
        network = make_network(architecture, 2).eval()
        torch.nn.init.normal_(network.fc.weight)
        fields = card(patch_px=96, stride_px=32).model_dump(exclude={"sha256", "architecture"})
        save_checkpoint(tmp_path / "m", network, **fields, architecture=architecture)
        explainer = Explainer(tmp_path / "m")
        patch = noise(1, 96)[0]
        explanation = explainer.explain(patch)
        with torch.inference_mode():
            maps = network.body.forward_features(pixels_of(patch[None], model.mean, model.std))[0]
            cam = torch.einsum("c,chw->hw", network.fc.weight[1] - network.fc.weight[0], maps)
        wanted = torch.relu(cam / cam.numel())
        torch.testing.assert_close(torch.from_numpy(explanation.evidence), wanted, atol=1e-5, rtol=1e-3)
        assert explainer.method == "Grad-CAM"
        assert explanation.constant is None
        assert explanation.evidence.max() > 0

    def test_a_network_without_places_says_so(self) -> None:
        model = TimmModel(name="cait_xxs24_224", args={"img_size": 64, "depth": 1})
        network = make_network(Architecture(name="timm", timm=model), 2).eval()
        assert isinstance(network, TimmBackbone)
        with pytest.raises(ModelError, match="cannot be shown"):
            network.at_places(network.inner_and_logits(torch.zeros(1, 3, 64, 64))[0])

    def test_places_of_a_transformer_are_where_its_patches_are(self) -> None:
        network = make_network(Architecture(name="timm", timm=VIT), 2).eval()
        assert isinstance(network, TimmBackbone)
        before = torch.zeros(1, 3, 64, 64)
        after = before.clone()
        after[:, :, 16:32, 48:64] = 1  # row 1, column 3
        with torch.inference_mode():
            inner = [network.inner_and_logits(pixels)[0] for pixels in (after, before)]
            change = network.at_places(inner[0] - inner[1]).abs().sum(-1)
        assert change.shape == (1, 4, 4)
        assert np.argwhere(change[0].numpy() > 1e-6).tolist() == [[1, 3]]


class TestFeatureEngines:
    @pytest.mark.parametrize("engine", ["torch", "openvino"])
    def test_features_are_those_before_the_class_layer(self, engine: str, tmp_path: Path) -> None:
        theirs = published(tmp_path / "vit")
        runner = load_engine(
            find_models([str(tmp_path / "vit")]),
            FeatureEngineConfig(engine=engine, batch=2),  # type: ignore[arg-type]
        )
        patches = noise(3, 64)
        offsets = np.array([(0, 0), (0, 64), (0, 128)], np.int64)
        (found,) = runner.score([PatchBlock(np.concatenate(patches), offsets, 64)])
        with torch.inference_mode():
            wanted = theirs(pixels_of(patches, VIT.mean, VIT.std)).numpy()
        np.testing.assert_allclose(found, wanted, atol=2e-4)
        assert runner.width == 192
        assert "features, fp32" in runner.description

    def test_what_has_no_features_or_no_scores_is_refused(self, tmp_path: Path) -> None:
        published(tmp_path / "vit")
        models = find_models([str(tmp_path / "vit")])
        assert is_timm_folder(tmp_path / "vit")
        with pytest.raises(ModelError, match="gives features and names no class: wsi features takes it"):
            load_engine(models, EngineConfig())
        for cfg in (
            FeatureEngineConfig(orientations=8),
            FeatureEngineConfig(engine="torch", orientations=8),
        ):
            with pytest.raises(ConfigError, match="one model in one orientation"):
                load_engine(models, cfg)
        with pytest.raises(ConfigError, match="features are not computed in int8"):
            load_engine(models, FeatureEngineConfig(engine="openvino", precision="int8"))
