"""Segmenters: one contract for all, and for each what makes it that network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures import ARCHITECTURES
from models.card import VALID_MARGIN, SegmenterCard, SegmenterConfig, SegmenterName, read_card
from models.checkpoint import load_checkpoint, load_segmenter, save_segmenter
from models.engines.contract import EngineConfig
from models.engines.maps import MapEngine
from models.networks.detector import FAMILIES
from models.networks.dilated import CONTEXT, V2_RATES, DeepLabV2, DeepLabV3, context_module
from models.networks.fcn import Fcn, bilinear
from models.networks.refinenet import RefineBlock, RefineNet, ResidualUnit
from models.networks.segmentation import Segmenter
from models.networks.trunk import Trunk
from models.networks.two_path import InputCascade, Maxout, TwoPath
from models.networks.unet import UNet
from models.registry import HEADS, SEGMENTERS, make_segmenter
from models.training.segment import map_loss
from wsi.errors import ConfigError, ModelError

CLASSES = ("glass", "red", "blue")


def config(network: str = "unet", **changes: Any) -> SegmenterConfig:
    """As small as the network allows."""
    sides: dict[str, int] = {"core_px": 32, "margin_px": 16}
    if network in VALID_MARGIN:
        sides = {"core_px": 4 if network == "unet_valid" else 8, "margin_px": VALID_MARGIN[network][0]}
    values: dict[str, Any] = {"classes": CLASSES, "network": network, "width": 8, "pool": 2, **sides}
    return SegmenterConfig(**values | changes)


def tiles_of(cfg: SegmenterConfig, count: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, cfg.tile_px, cfg.tile_px, 3), generator=generator).to(torch.uint8)


def saved(folder: Path, network: Segmenter, **changes: Any) -> SegmenterCard:
    return save_segmenter(folder, network, name="small", segmenter=network.cfg, **changes)


@pytest.mark.parametrize("name", get_args(SegmenterName))
class TestContract:
    def test_probabilities_of_the_core(self, name: str) -> None:
        torch.manual_seed(0)
        cfg = config(name)
        network = make_segmenter(cfg).eval()
        with torch.inference_mode():
            maps = network(tiles_of(cfg, 2))
        assert maps.shape == (2, 3, cfg.core_px // 2, cfg.core_px // 2)
        torch.testing.assert_close(maps.sum(dim=1), torch.ones_like(maps[:, 0]))
        assert (maps > 0).all()

    def test_cells_are_means_of_pixels(self, name: str) -> None:
        torch.manual_seed(0)
        cfg = config(name)
        network = make_segmenter(cfg).eval()
        fine = Segmenter(network.body, config(name, pool=1)).eval()
        with torch.inference_mode():
            pixels = fine(tiles_of(cfg))
            torch.testing.assert_close(network(tiles_of(cfg)), F.avg_pool2d(pixels, 2))
        assert pixels.shape[2] == cfg.core_px

    def test_larger_tiles_are_mapped_too(self, name: str) -> None:
        cfg = config(name)
        network = make_segmenter(cfg).eval()
        step = max(VALID_MARGIN.get(name, (0, 32))[1], cfg.pool)
        side = cfg.tile_px + step
        with torch.inference_mode():
            maps = network(torch.zeros((1, side, side, 3), dtype=torch.uint8))
        assert maps.shape[2] == (cfg.core_px + step) // 2
        assert (cfg.run_core_px - cfg.core_px) % step == 0
        assert abs(cfg.run_core_px - 1024) <= step

    def test_all_weights_learn(self, name: str) -> None:
        torch.manual_seed(0)
        cfg = config(name)
        network = make_segmenter(cfg).train()
        logits = network.logits(tiles_of(cfg, 2).permute(0, 3, 1, 2) / 127.5 - 1)
        target = torch.arange(logits[:, 0].numel()).reshape(logits[:, 0].shape) % 3
        F.cross_entropy(logits, target).backward()  # type: ignore[no-untyped-call]
        still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]

        assert still == []

    def test_it_is_kept_to_the_same_bits(self, name: str, tmp_path: Path) -> None:
        cfg = config(name)
        network = make_segmenter(cfg).eval()
        card = saved(tmp_path, network)
        again, read = load_segmenter(tmp_path)
        assert read == card == read_card(tmp_path, SegmenterCard)
        with torch.inference_mode():
            assert torch.equal(again(tiles_of(cfg)), network(tiles_of(cfg)))

    @pytest.mark.slow
    def test_openvino_gives_the_same(self, name: str, tmp_path: Path) -> None:
        cfg = config(name)
        saved(tmp_path, make_segmenter(cfg).eval())
        engines = [
            MapEngine(tmp_path, EngineConfig(engine=e, precision="fp32")) for e in ("openvino", "torch")
        ]
        step = max(VALID_MARGIN.get(name, (0, 32))[1], cfg.pool)
        for more in (0, step, 0):  # a graph for each size
            side = cfg.tile_px + more
            tile = np.random.default_rng(more).integers(0, 256, (side, side, 3)).astype(np.uint8)
            first, second = (engine.map(tile) for engine in engines)
            assert first.shape == (3, (cfg.core_px + more) // 2, (cfg.core_px + more) // 2)
            np.testing.assert_allclose(first, second, atol=2e-5)

    @pytest.mark.slow
    def test_it_learns_two_tiles_by_heart(self, name: str) -> None:
        torch.manual_seed(0)
        cfg = config(name)
        network = make_segmenter(cfg).train()
        if isinstance(network.body, UNet):
            network.body.dropout = nn.Identity()  # type: ignore[assignment]
        tiles = torch.full((2, cfg.tile_px, cfg.tile_px, 3), 255, dtype=torch.uint8)
        classes = torch.zeros((2, cfg.tile_px, cfg.tile_px), dtype=torch.int64)
        middle = cfg.tile_px // 2
        for i, (colour, label) in enumerate((((200, 40, 60), 1), ((60, 40, 200), 2))):
            tiles[i, : middle + i, :middle] = torch.tensor(colour, dtype=torch.uint8)
            classes[i, : middle + i, :middle] = label
        core = slice(cfg.margin_px, cfg.margin_px + cfg.core_px)
        classes = classes[:, core, core]
        optimiser = torch.optim.Adam(network.parameters(), 4e-3)
        pixels = tiles.permute(0, 3, 1, 2) / 127.5 - 1
        right = 0.0
        for _ in range(400):
            logits = network.logits(pixels)
            right = float((logits.argmax(dim=1) == classes).float().mean())
            if right > 0.97:
                break
            optimiser.zero_grad()
            map_loss(logits, classes, torch.ones(classes.shape)).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        assert right > 0.97


class TestUNet:
    def test_the_published_sides(self) -> None:
        with torch.inference_mode():
            assert UNet(2, 4, valid=True).eval()(torch.zeros(1, 3, 572, 572)).shape == (1, 2, 388, 388)

    def test_five_levels_that_double_the_channels(self) -> None:
        convolutions = [m for m in UNet(2, 64, valid=True).down.modules() if isinstance(m, nn.Conv2d)]
        assert [m.out_channels for m in convolutions[::2]] == [64, 128, 256, 512, 1024]
        assert {m.padding for m in convolutions} == {(0, 0)}

    def test_valid_convolutions_do_not_know_where_a_tile_ends(self) -> None:
        """Overlap-tile: a smaller tile gives what the larger one gives there, to rounding."""
        torch.manual_seed(1)
        network = UNet(2, 4, valid=True).eval()
        pixels = torch.randn(1, 3, 220, 220)
        with torch.inference_mode():
            large, small = network(pixels), network(pixels[:, :, 16:, :-16])
        assert large.shape[2:] == (36, 36)
        torch.testing.assert_close(small, large[:, :, 16:, :-16], atol=1e-5, rtol=1e-4)

    def test_it_sees_what_the_finest_level_saw(self) -> None:
        network = UNet(2, 4).eval()
        for enlarge in network.enlarge:  # nothing from below
            assert isinstance(enlarge, nn.ConvTranspose2d)
            nn.init.zeros_(enlarge.weight)
        pixels = torch.zeros(1, 3, 32, 32)
        changed = pixels.clone()
        changed[0, :, 5, 9] = 3
        with torch.inference_mode():
            difference = (network(changed) - network(pixels)).abs().sum(dim=1)[0]
        rows, cols = torch.nonzero(difference > 0, as_tuple=True)
        assert (int(rows.min()), int(rows.max()), int(cols.min()), int(cols.max())) == (1, 9, 5, 13)


class TestFcn:
    def test_the_enlargement_begins_as_bilinear_interpolation(self) -> None:
        maps = torch.randn(1, 2, 6, 5)
        with torch.inference_mode():
            ours = bilinear(2, 8)(maps)
        theirs = F.interpolate(maps, scale_factor=8, mode="bilinear", align_corners=False)
        inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
        torch.testing.assert_close(ours[inner], theirs[inner])

    @pytest.mark.parametrize(("finest", "strides"), [(32, []), (16, [16]), (8, [16, 8])])
    def test_skips_start_at_zero(self, finest: Any, strides: list[int]) -> None:
        network = Fcn(3, 4, finest=finest)
        channels = dict(zip((4, 8, 16, 32), network.trunk.channels, strict=True))
        assert [skip.in_channels for skip in network.skips] == [channels[s] for s in strides]
        assert all(float(skip.weight.detach().abs().sum()) == 0 for skip in network.skips)
        assert network.last.stride == (finest, finest)


class TestDilation:
    @pytest.mark.parametrize("output_stride", [8, 16, 32])
    def test_the_trunk_dilates_instead_of_striding(self, output_stride: int) -> None:
        trunk = Trunk(4, output_stride).eval()
        with torch.inference_mode():
            sides = [maps.shape[2] for maps in trunk(torch.zeros(1, 3, 64, 64))]
        assert sides == [64 // min(stride, output_stride) for stride in (4, 8, 16, 32)]
        rates = [stage[1].body[0].dilation[0] for stage in trunk.stages]  # type: ignore[index,union-attr]
        assert rates == [max(1, stride // output_stride) for stride in (4, 8, 16, 32)]

    def test_deeplab_v2_sums_four_rates(self) -> None:
        network = DeepLabV2(1, 4)
        assert [b.dilation[0] for b in network.branches] == list(V2_RATES) == [6, 12, 18, 24]  # type: ignore[union-attr,index]
        features = torch.zeros(1, network.trunk.channels[-1], 61, 61)
        features[0, 0, 30, 30] = 1
        with torch.inference_mode():
            for branch, rate in zip(network.branches, V2_RATES, strict=True):
                nn.init.ones_(branch.weight)  # type: ignore[arg-type]
                nn.init.zeros_(branch.bias)  # type: ignore[arg-type]
                places = torch.nonzero(branch(features)[0, 0])
                assert sorted({int(p) - 30 for p in places[:, 0]}) == [-rate, 0, rate]

    def test_deeplab_v3_has_the_published_rates_and_the_mean_of_the_tile(self) -> None:
        network = DeepLabV3(2, 4).eval()
        dilations = [m.dilation[0] for m in network.head[0].modules() if isinstance(m, nn.Conv2d)]
        assert [d for d in dilations if d > 1] == [6, 12, 18]
        pixels = torch.zeros(1, 3, 512, 512)
        far = pixels.clone()
        far[0, :, -64:, -64:] = 2
        with torch.inference_mode():
            assert not torch.equal(network(far)[0, :, 0, 0], network(pixels)[0, :, 0, 0])

    def test_the_context_module_sees_67_and_begins_as_identity(self) -> None:
        module = context_module(2)
        scores = torch.rand(1, 2, 75, 75)
        torch.testing.assert_close(module(scores), scores)
        for layer in module:
            if isinstance(layer, nn.Conv2d):
                nn.init.ones_(layer.weight)
        maps = torch.zeros(1, 2, 75, 75)
        maps[0, 0, 37, 37] = 1
        rows = torch.nonzero(module(maps)[0, 0])[:, 0]
        assert int(rows.max() - rows.min()) + 1 == 67 == 1 + 2 * sum(CONTEXT)


class TestRefineNet:
    def test_four_blocks_from_coarse_to_fine(self) -> None:
        network = RefineNet(2, 64)
        assert [unit.out_channels for unit in network.bring] == [256, 256, 256, 512]  # as published
        assert len(network.blocks) == 3
        assert not any(isinstance(m, nn.BatchNorm2d) for b in network.blocks for m in b.modules())

    def test_a_residual_unit_and_chained_pooling_by_hand(self) -> None:
        unit = ResidualUnit(1)
        for layer in (unit.first, unit.second):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, 2.0)  # type: ignore[arg-type]
        assert float(unit(torch.full((1, 1, 1, 1), -3.0)).detach()) == -1  # -3 + (0 * relu(2) + 2)
        block = RefineBlock([1], 1)
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        maps = torch.zeros(1, 1, 11, 11)
        maps[0, 0, 5, 5] = 1
        # two units of identity make 1 into 4; pooling over 5 x 5, then over 9 x 9, adds 4 and 4; the last unit doubles
        refined = block([maps])[0, 0]
        assert [float(refined[5, i]) for i in (0, 1, 2, 3, 4, 5)] == [0, 8, 8, 16, 16, 24]


class TestTwoPath:
    def test_one_class_for_33_pixels_and_65_of_the_cascade(self) -> None:
        with torch.inference_mode():
            assert TwoPath(5, 4)(torch.zeros(1, 3, 33, 33)).shape == (1, 5, 1, 1)
            assert InputCascade(5, 4)(torch.zeros(1, 3, 65, 65)).shape == (1, 5, 1, 1)

    def test_the_published_channels(self) -> None:
        network = TwoPath(5, 32, channels=4)
        assert [m.after for m in network.modules() if isinstance(m, Maxout)] == [64, 64, 160]
        assert [m.kernel_size[0] for m in network.modules() if isinstance(m, nn.Conv2d)] == [7, 3, 13, 21]

    def test_maxout_by_hand(self) -> None:
        layer = Maxout(1, 2, 1)
        with torch.no_grad():
            layer.convolve.weight[:, 0, 0, 0] = torch.tensor([1.0, 2.0, -1.0, 3.0])
            layer.convolve.bias.zero_()  # type: ignore[union-attr]
        assert layer(torch.tensor([[[[2.0, -2.0]]]])).tolist() == [[[[2, 2]], [[6, -4]]]]

    def test_the_second_network_sees_the_first(self) -> None:
        network = InputCascade(2, 4)
        pixels = torch.randn(1, 3, 65, 65)
        before = network(pixels)
        nn.init.zeros_(network.first.head.weight)
        assert not torch.equal(network(pixels), before)


class TestCards:
    def test_every_name_has_a_network(self) -> None:
        assert set(SEGMENTERS) == set(get_args(SegmenterName))

    def test_the_list_of_architectures_names_all_that_can_be_trained(self, wsi: Any) -> None:
        listed = {(one.task, one.name.split(",")[0]) for one in ARCHITECTURES}
        assert {name for task, name in listed if task == "segment"} == set(SEGMENTERS)
        assert {name for task, name in listed if task == "detect"} == set(FAMILIES)
        assert {name for task, name in listed if task == "classify"} == set(HEADS)
        code, out, _ = wsi("models", "architectures")
        assert code == 0
        assert all(one.name.split(",")[0] in out for one in ARCHITECTURES)
        code, out, _ = wsi("models", "show", "kidney-compartments-demo")
        assert code == 0
        assert "names the class of every place: glass, cortex, medulla, tubule, artery, glomerulus" in out

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"classes": ("a", "a")}, "name one twice"),
            ({"classes": ("glass", "unknown")}, "'unknown' cannot be a class"),
            ({"classes": tuple(map(str, range(256)))}, "at most 255 items"),
            ({"core_px": 33}, r"core_px \+ 2 margin_px is 65, which is no multiple of 32"),
            ({"network": "unet_valid", "margin_px": 16}, "loses 92 px on each side"),
            ({"network": "unet_valid", "core_px": 32}, "4 more than a multiple of 16"),
            ({"core_px": 36, "margin_px": 14, "pool": 8}, "no multiple of pool 8"),
            ({"network": "unknown"}, "Input should be 'unet'"),
        ],
    )
    def test_shapes_that_cannot_be(self, changes: dict[str, Any], said: str) -> None:
        with pytest.raises(ValidationError, match=said):
            config(**changes)

    def test_models_of_other_kinds_and_other_widths(self, tmp_path: Path) -> None:
        saved(tmp_path, make_segmenter(config("unet")))
        with pytest.raises(ModelError, match="is a segmenter: wsi segment takes it"):
            load_checkpoint(tmp_path)
        value = json.loads((tmp_path / "card.json").read_text())
        value["segmenter"]["width"] = 16
        (tmp_path / "card.json").write_text(json.dumps(value))
        with pytest.raises(ModelError, match="does not hold the weights of a unet of width 16"):
            load_segmenter(tmp_path)

    def test_what_an_engine_refuses(self, tmp_path: Path) -> None:
        saved(tmp_path, make_segmenter(config("fcn_8s")))
        with pytest.raises(ConfigError, match="looks at each tile once"):
            MapEngine(tmp_path, EngineConfig(orientations=8))
        with pytest.raises(ConfigError, match="no int8 form"):
            MapEngine(tmp_path, EngineConfig(precision="int8"))
        for engine in ("torch", "openvino"):
            with pytest.raises(ConfigError, match="fp16 needs a GPU"):
                MapEngine(tmp_path, EngineConfig(precision="fp16", engine=engine))

    def test_probabilities_that_are_no_numbers(self, tmp_path: Path) -> None:
        network = make_segmenter(config("fcn_32s"))
        nn.init.constant_(network.body.score.bias, float("nan"))  # type: ignore[arg-type,union-attr]
        saved(tmp_path, network)
        engine = MapEngine(tmp_path, EngineConfig(engine="torch"))
        with pytest.raises(ModelError, match="not numbers"):
            engine.map(np.zeros((64, 64, 3), np.uint8))

    def test_another_process_makes_the_same_engine_or_none(self, tmp_path: Path) -> None:
        saved(tmp_path, make_segmenter(config("fcn_8s")))
        spec = MapEngine(tmp_path, EngineConfig(engine="torch")).spec
        assert spec.make().description == spec.description
        saved(tmp_path, make_segmenter(config("fcn_8s")), limits="others")
        with pytest.raises(ModelError, match="other weights"):
            spec.make()
