"""Class activation maps: they sum to the log-odds, lie where the evidence lies, and say what cannot be explained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.card import Architecture
from models.checkpoint import save_checkpoint
from models.engines.contract import find_folder
from models.engines.explain import Explainer
from models.networks.contract import normalise
from models.registry import make_network
from pipelines.camelyon16.read.explain import explain_places, explained_png
from tests.slides import coordinates, write_pyramid
from wsi.errors import ModelError
from wsi.slides.source import SlideSource

Run = Callable[..., tuple[int, str, str]]


def saved(folder: Path, name: str, classes: tuple[str, ...], **changes: Any) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(0)
    architecture = Architecture(name=name, width=0.1 if name == "inception_v3" else 1)  # type: ignore[arg-type]
    network = make_network(architecture, len(classes)).eval()
    torch.nn.init.normal_(network.class_layer.bias)
    torch.nn.init.normal_(network.class_layer.weight, std=0.3)
    fields = {"name": "m", "architecture": architecture, "classes": classes, "positive": classes[-1]}
    fields |= {"patch_px": 299 if name == "inception_v3" else 96, "stride_px": 32, "spacing_um": 0.25}
    save_checkpoint(folder, network, **fields | changes)
    return folder, network


@pytest.mark.parametrize(
    "name",
    [
        "inception_v3",
        "efficientnet_lite0",
        pytest.param("efficientnet_b0", marks=pytest.mark.slow),
        "resnet18",
    ],
)
class TestSums:
    @pytest.mark.parametrize("calibration", [None, (0.7, -0.4)])
    def test_of_two_classes(self, name: str, calibration: tuple[float, float] | None, tmp_path: Path) -> None:
        folder, network = saved(tmp_path, name, ("normal", "tumor"), calibration=calibration)
        explainer = Explainer(folder)
        side = explainer.card.patch_px
        patch = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
        explanation = explainer.explain(patch)
        with torch.inference_mode():
            normal, tumour = network(normalise(torch.from_numpy(patch[None])))[0].tolist()
        odds = float(explanation.evidence.mean()) + explanation.constant
        assert odds == pytest.approx(tumour - normal, abs=1e-4)
        scale, offset = calibration or (1, 0)
        assert explanation.score == pytest.approx(1 / (1 + np.exp(-(scale * odds + offset))), abs=1e-5)
        assert explanation.evidence.ndim == 2
        assert explanation.evidence.std() > 0

    def test_of_one_class_and_of_three(self, name: str, tmp_path: Path) -> None:
        for classes in (("tumor",), ("a", "b", "tumor")):
            folder, network = saved(tmp_path / str(len(classes)), name, classes)
            explainer = Explainer(folder)
            side = explainer.card.patch_px
            patch = np.random.default_rng(1).integers(0, 256, (side, side, 3)).astype(np.uint8)
            explanation = explainer.explain(patch)
            with torch.inference_mode():
                *others, own = network(normalise(torch.from_numpy(patch[None])))[0].tolist()
            odds = own - (float(np.mean(others)) if others else 0)
            assert float(explanation.evidence.mean()) + explanation.constant == pytest.approx(odds, abs=1e-4)


def test_the_patch_is_that_of_the_cell(tmp_path: Path) -> None:
    """Red is x // 4 and green y // 4: the patch of cell (2, 5) begins at level-0 (160 - 32, 64 - 32)."""
    folder, _ = saved(tmp_path / "m", "efficientnet_lite0", ("normal", "tumor"))
    with SlideSource(str(write_pyramid(tmp_path / "s.tif", coordinates()))).open() as slide:
        (place,) = explain_places(slide, [(191.0, 64.0)], Explainer(folder))
    assert (place.x, place.y) == (160, 64)
    assert place.patch.shape == (96, 96, 3)
    assert place.patch[0, 0].tolist() == [128 // 4, 32 // 4, 128]


@pytest.mark.slow
def test_masking_what_speaks_for_tumour_lowers_the_score_more_than_masking_anything_else(
    tmp_path: Path, wsi: Run
) -> None:
    """On drawn tumour, with the model that ships for drawings: the reddest tenth against a random tenth."""
    assert (
        wsi("phantom", "lymph-node", "--count", 2, "--size", "4096x4096", "--seed", 3, "-o", tmp_path)[0] == 0
    )
    slide = next(tmp_path.glob("tumor*.tif"))
    assert wsi("score", slide, "-m", "lymph-node-demo", "-o", tmp_path / "out")[0] == 0
    lines = (tmp_path / "out" / slide.stem / "lesions.csv").read_text().split()[:12]
    places = [tuple(map(float, line.split(",")[1:])) for line in lines]
    explainer = Explainer(find_folder("lymph-node-demo"))
    rng = np.random.default_rng(0)

    def odds(patch: np.ndarray) -> float:
        explanation = explainer.explain(patch)
        return float(explanation.evidence.mean()) + explanation.constant

    drops: dict[str, list[float]] = {"red": [], "random": []}
    with SlideSource(str(slide)).open() as opened:
        explained = explain_places(opened, places, explainer)  # type: ignore[arg-type]
    for place, line in zip(explained, lines, strict=True):
        assert place.explanation.score == pytest.approx(float(line.split(",")[0]), abs=0.03)  # bf16 or fp32
        evidence = place.explanation.evidence
        count = max(1, round(evidence.size / 10))
        order = np.argsort(-evidence, axis=None)[:count]
        for name, chosen in (("red", order), ("random", rng.choice(evidence.size, count, replace=False))):
            mask = np.zeros(evidence.shape, np.uint8)
            mask.flat[chosen] = 1
            side = len(place.patch)
            index = np.arange(side) * evidence.shape[0] // side
            patch = place.patch.copy()
            patch[mask[index][:, index] > 0] = place.patch.mean(axis=(0, 1)).astype(np.uint8)
            drops[name].append(odds(place.patch) - odds(patch))
    assert np.mean(drops["red"]) > np.mean(drops["random"]) + 0.1
    picture = explained_png("a name", explained[:2], explainer.card)
    assert picture.startswith(b"\x89PNG")
    words = ("explain", slide, "-m", "lymph-node-demo", "-o", tmp_path / "why.png")
    code, out, _ = wsi(*words, "--results", tmp_path / "out" / slide.stem)
    assert code == 0
    assert out.count("score ") == out.count(" in the results)") == 4
    x, y = places[0]
    code, out, _ = wsi(*words, "--at", f"{x},{y}", "--mpp", 0.25)
    assert (code, out.count("score ")) == (0, 1)


class TestRefusals:
    def test_models_that_have_no_such_maps(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="is a detector of capillaries"):
            Explainer(find_folder("renal-ptc-demo"))
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "torchscript_model.pt").write_bytes(b"")
        with pytest.raises(ModelError, match="is a TorchScript model, whose last maps cannot be seen"):
            Explainer(tmp_path)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ((), "give places by --at, or a slide's results by --results"),
            (("--at", "1,2", "--results", "x"), "give places by --at"),
            (("--at", "1;2"), "--at 1;2 is no place; give X,Y"),
            (("--at", "9000,2"), "lies off"),
            (("--results", "nowhere"), "holds no finished result that can be read"),
            (("--at", "1,2", "-o", "why.jpg"), "must end in .png"),
        ],
    )
    def test_of_the_command(self, options: tuple[str, ...], said: str, tmp_path: Path, wsi: Run) -> None:
        slide = write_pyramid(tmp_path / "s.tif", coordinates())
        code, _, err = wsi("explain", slide, "-o", tmp_path / "why.png", "-m", "lymph-node-demo", *options)
        assert (code, said in err) == (2, True), err
        assert not (tmp_path / "why.png").exists()

    def test_results_of_others_and_one_without_a_peak(self, tmp_path: Path, wsi: Run) -> None:
        slide = write_pyramid(tmp_path / "s.tif", coordinates())
        facts = {"model": "lymph-node-10x", "slide_identity": SlideSource(str(slide)).identity()}
        facts |= {"mpp": 0.25, "lesions": []}
        words = ("explain", slide, "-o", tmp_path / "why.png", "--results", tmp_path)
        for changes, said in (
            ({"model": "another"}, "was made by the model another, not by lymph-node-10x; pass --model"),
            ({"slide_identity": "0"}, "was made of another slide than"),
            ({"mpp": 0.5}, "was made at 0.5 um/px, and 0.25 is read now; pass --mpp 0.5"),
            ({"lesions": [{"score": 1}]}, "holds no finished result that can be read"),
            ({}, "has no peak; give a place by --at"),
        ):
            (tmp_path / "slide.json").write_text(json.dumps(facts | changes))
            code, _, err = wsi(*words)
            assert (code, said in err) == (2, True), err
