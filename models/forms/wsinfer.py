"""Models in WSInfer's folder form: ``torchscript_model.pt`` and ``config.json``.

TorchScript runs the code that is in the file. Use models only from people whose programs you would run.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from models.card import (
    TORCHSCRIPT,
    WEIGHTS,
    WSINFER_CONFIG,
    ZOO,
    Architecture,
    ModelCard,
    hash_file,
    task_of,
)
from models.networks.contract import cast_like, to_scores
from wsi.errors import ModelError
from wsi.text import first_line

OWN_CARD = "slidewright.json"  # beside WSInfer's files, for facts that its config.json cannot hold


def read_wsinfer(folder: Path) -> tuple[ModelCard, list[dict[str, Any]]]:
    """The card with the content of ``config.json``, and its list of transforms.

    WSInfer cuts patches side by side, so the stride is the patch. The positive class is the last.

    Raises:
        ModelError: a key is missing or of the wrong type.
    """
    path = folder / WSINFER_CONFIG
    try:
        value = json.loads(path.read_bytes())
        size = int(value["patch_size_pixels"])
        names = tuple(str(name) for name in value["class_names"])
        if len(names) != int(value["num_classes"]):
            raise ValueError(f"num_classes is {value['num_classes']}, class_names has {len(names)}")
        transforms = list(value["transform"])
        card = ModelCard(
            name=folder.name,
            architecture=Architecture(name="torchscript"),
            classes=names,
            positive=names[-1],
            patch_px=size,
            stride_px=size,
            spacing_um=float(value["spacing_um_px"]),
            training={"architecture": str(value["architecture"]), "form": "WSInfer", "transform": transforms},
            demonstration=bool(demonstration_of(folder)),
            sha256=hash_file(folder / TORCHSCRIPT),
        )
        return card, transforms
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ModelError(
            f"{path} is not WSInfer's configuration ({error!r}); see its model zoo's schema"
        ) from error


class WSInferNetwork(nn.Module):
    """WSInfer's transforms and the scripted network: uint8 (n, h, w, 3) to scores (n, classes)."""

    def __init__(self, body: nn.Module, transforms: list[dict[str, Any]], path: Path) -> None:
        super().__init__()
        self.body = body
        self.size: list[int] | None = None
        self.mean, self.std = torch.zeros(3), torch.ones(3)
        try:
            for step in transforms:
                self._take(step["name"], step.get("arguments") or {}, path)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{path / WSINFER_CONFIG}: a transform lacks its name or an argument ({error!r})"
            ) from error

    def _take(self, name: str, arguments: dict[str, Any], path: Path) -> None:
        if name == "Resize":
            size = arguments["size"]
            self.size = [size, size] if isinstance(size, int) else list(size)
        elif name == "Normalize":
            self.mean, self.std = (torch.tensor(arguments[key]) for key in ("mean", "std"))
        elif name != "ToTensor":
            raise ModelError(
                f"{path / WSINFER_CONFIG} asks for the transform {name!r}; known are Resize, ToTensor, Normalize"
            )

    def forward(self, patches: Tensor) -> Tensor:
        """Scores of patches, which are resized with antialiasing as in Pillow, scaled to 0..1 and normalised."""
        pixels = patches.permute(0, 3, 1, 2).float() / 255
        if self.size is not None and list(pixels.shape[2:]) != self.size:
            pixels = TF.resize(pixels, self.size, antialias=True)
        mean, std = (v.to(pixels.device)[:, None, None] for v in (self.mean, self.std))
        return to_scores(self.body(cast_like((pixels - mean) / std, self.body)))


def _bytes(value: Tensor) -> bytes:
    array = value.detach().cpu().contiguous()
    if array.dtype == torch.bfloat16:  # numpy has none
        array = array.view(torch.int16)
    return array.numpy().tobytes()


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Hex sha256 of a network's weights by name, the same for a traced and a plain network."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode() + b"\0" + _bytes(value))
    return digest.hexdigest()


def demonstration_of(folder: Path) -> str:
    """Name of the demonstration model that a scripted model is a copy of; empty if it is none.

    The name comes from the model card that ``wsi models export`` writes beside it, or from its weights, so that a copy
    of WSInfer's two files alone keeps the warning, too.
    """
    try:
        value = json.loads((folder / OWN_CARD).read_bytes())
        if value["torchscript_sha256"] == hash_file(folder / TORCHSCRIPT):
            return str(value["name"]) if value["demonstration"] else ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # no card, or one of other weights
    try:
        digest = weights_digest(_scripted(folder).state_dict())
    except RuntimeError:
        return ""  # not TorchScript, which loading it reports
    for path in sorted(ZOO.glob("*/card.json")):
        if (path.parent / WEIGHTS).is_file() and task_of(path.parent) == "classify":
            card = ModelCard.model_validate_json(path.read_bytes())
            if card.demonstration and weights_digest(load_file(path.parent / WEIGHTS)) == digest:
                return card.name
    return ""


def _scripted(folder: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
        body: nn.Module = torch.jit.load(folder / TORCHSCRIPT, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    return body


def load_wsinfer(folder: Path) -> tuple[WSInferNetwork, ModelCard]:
    """Read the scripted network for the CPU.

    Raises:
        ModelError: the file is not TorchScript, or the configuration is wrong.
    """
    card, transforms = read_wsinfer(folder)
    try:
        body = _scripted(folder)
    except RuntimeError as error:
        raise ModelError(
            f"{folder / TORCHSCRIPT} is not a TorchScript file ({first_line(error)[:160]})"
        ) from error
    return WSInferNetwork(body, transforms, folder).eval(), card
