"""Export of models for other programs: ONNX, and WSInfer's folder form; each is compared before it is written."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import torch

from models.card import TORCHSCRIPT, WSINFER_CONFIG, ModelCard, card_json, hash_file, is_wsinfer
from models.checkpoint import load_checkpoint
from models.forms.build import build_network
from models.forms.wsinfer import OWN_CARD, load_wsinfer
from wsi.errors import ModelError
from wsi.files import replacing, write_json, write_text

ONNX = "model.onnx"
LARGEST_DIFFERENCE = 2e-4  # fp32 programs differ among themselves by up to 1.2e-4 (facts/performance.md)
_PATCHES = 16


def export_onnx(source: Path, out: Path) -> float:
    """Write ``model.onnx`` (uint8 patches in, scores out, normalisation inside) and ``card.json``.

    Returns:
        The largest difference between the scores of both forms, over random tissue-like patches.

    Raises:
        ModelError: the model cannot be exported, or its answers differ.
    """
    card = _card_of_source(source, out)
    network = build_network([source])
    example = torch.zeros((2, card.patch_px, card.patch_px, 3), dtype=torch.uint8)
    with replacing(out / ONNX) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's notes on its two exporters
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            network,
            (example,),
            str(partial),
            input_names=["patches"],
            output_names=["scores"],
            dynamic_axes={"patches": {0: "n"}, "scores": {0: "n"}},
            dynamo=False,
        )
        compiled = ov.Core().compile_model(str(partial), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        patches = _patches(card.patch_px)
        difference = _compare(source, patches, np.asarray(compiled(patches)[0]))
    write_text(out / "card.json", card_json(card))
    return difference


def export_wsinfer(source: Path, out: Path) -> float:
    """Write ``torchscript_model.pt`` and ``config.json``; WSInfer and QuPath's extension read them.

    WSInfer cuts patches side by side: its heatmap has one cell per patch of 299 px.

    Returns:
        The largest difference between the scores of both forms.

    Raises:
        ModelError: the model cannot be exported, or its answers differ.
    """
    card = _card_of_source(source, out)
    if card.spacing_um is None:
        raise ModelError(f"{source} states no spacing, which WSInfer needs; set spacing_um and train again")
    if card.stain_normalisation != "none":
        raise ModelError(
            f"{source} wants slides normalised by {card.stain_normalisation}, which WSInfer does not do; "
            f"train without stain_normalisation to export"
        )
    if card.calibration is not None:
        raise ModelError(
            f"{source} is calibrated, which WSInfer's form cannot hold; export it with --form onnx"
        )
    body, _ = load_checkpoint(source)
    size = card.patch_px
    with tempfile.TemporaryDirectory(prefix="slidewright-") as folder:
        trial = Path(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(body, torch.zeros((2, 3, size, size)))  # type: ignore[no-untyped-call]
            traced.save(str(trial / TORCHSCRIPT))
        write_json(trial / WSINFER_CONFIG, _wsinfer_config(card))
        patches = _patches(size)
        with torch.inference_mode():
            exported_scores = load_wsinfer(trial)[0](torch.from_numpy(patches)).numpy()
        difference = _compare(source, patches, exported_scores)
        for name in (TORCHSCRIPT, WSINFER_CONFIG):
            with replacing(out / name) as partial:
                shutil.copyfile(trial / name, partial)
    own_card = {"name": card.name, "demonstration": card.demonstration, "intended_use": card.intended_use}
    own_card |= {
        "limits": card.limits,
        "sha256": card.sha256,
        "torchscript_sha256": hash_file(out / TORCHSCRIPT),
    }
    write_json(out / OWN_CARD, own_card)
    write_text(out / "README.md", _model_card(card))
    return difference


def _model_card(card: ModelCard) -> str:
    """Information for a person who finds the exported files, as Markdown."""
    warning = (
        "**A demonstration model, trained on drawings of tissue: its scores on real tissue mean nothing.**\n\n"
        if card.demonstration
        else ""
    )
    size = f"{card.patch_px} x {card.patch_px} px at {card.spacing_um:g} um per pixel"
    return (
        f"# {card.name}\n\n{warning}{card.intended_use}\n\n{card.limits}\n\n"
        f"Exported by slidewright for WSInfer and QuPath's extension: patches of {size}, classes "
        f"{', '.join(card.classes)}. `{OWN_CARD}` beside this file keeps the warning when slidewright runs the model.\n"
    )


def _wsinfer_config(card: ModelCard) -> dict[str, Any]:
    scale = [0.5, 0.5, 0.5]  # 0..1 to -1..1
    return {
        "spec_version": "1.0",
        "architecture": card.architecture.name,
        "num_classes": len(card.classes),
        "class_names": list(card.classes),
        "name": card.name,
        "patch_size_pixels": card.patch_px,
        "spacing_um_px": card.spacing_um,
        "transform": [
            {"name": "Resize", "arguments": {"size": card.patch_px}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": scale, "std": scale}},
        ],
    }


def _card_of_source(source: Path, out: Path) -> ModelCard:
    if out.resolve() == source.resolve():
        raise ModelError(f"{out} is the model itself; choose another --out")
    if is_wsinfer(source):
        raise ModelError(f"{source} is in WSInfer's form already; only models of our own are exported")
    return load_checkpoint(source)[1]


def _patches(size: int) -> npt.NDArray[np.uint8]:
    """Patches of smooth colour noise in the range of tissue."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(60, 250, (_PATCHES, 3, 40, 40)))
    enlarged = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return enlarged.permute(0, 2, 3, 1).round().to(torch.uint8).contiguous().numpy()


def _compare(source: Path, patches: npt.NDArray[np.uint8], exported_scores: npt.NDArray[np.float32]) -> float:
    with torch.inference_mode():
        model_scores = build_network([source])(torch.from_numpy(patches)).numpy()
    difference = float(np.abs(model_scores - exported_scores).max())
    if not difference <= LARGEST_DIFFERENCE:
        raise ModelError(
            f"the exported {source.name} differs from the model by {difference:.1e} in a score; it was not kept"
        )
    return difference
