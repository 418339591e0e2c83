"""Folders in which models of timm are published: ``config.json`` and the weights, as on Hugging Face."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.card import CARD, WEIGHTS, Architecture, ModelCard, TimmModel, hash_file, is_wsinfer
from wsi.config import first_mistake
from wsi.errors import ModelError

CONFIG = "config.json"
FILES = (WEIGHTS, "pytorch_model.bin")
EMBEDDING = "embedding"  # the one class of a card of a model without classes
TILE_UM_PX = 0.5  # most pathology models are trained on tiles of a 20x objective


def is_timm_folder(folder: Path) -> bool:
    """Whether a folder is a published model of timm, which has features and no classes."""
    return (
        not (folder / CARD).is_file()
        and not is_wsinfer(folder)
        and (folder / CONFIG).is_file()
        and any((folder / name).is_file() for name in FILES)
    )


def timm_weights(folder: Path, model: TimmModel | None) -> Path:
    """The weight file of a published folder, whose network must be the one that a recipe names.

    Raises:
        ModelError: it is another network, or no such folder.
    """
    published = timm_model(folder)
    if model != published:
        raise ModelError(
            f"{folder / CONFIG} describes another network than the recipe; write architecture: timm, and "
            f"timm: {published.model_dump_json()}"
        )
    return next(folder / name for name in FILES if (folder / name).is_file())


def timm_model(folder: Path) -> TimmModel:
    """The network that a published folder describes.

    Raises:
        ModelError: it is not such a folder.
    """
    facts = _facts(folder)
    pixels = facts.get("pretrained_cfg", facts)
    try:
        args = dict(facts.get("model_args") or {})
        args.pop("num_classes", None)  # the class layer is made here
        if pixels.get("fixed_input_size"):
            args.setdefault("img_size", int(pixels["input_size"][-1]))
        value: dict[str, Any] = {"name": facts["architecture"], "args": args}
        value |= {key: tuple(map(float, pixels[key])) for key in ("mean", "std") if key in pixels}
        return TimmModel.model_validate(value)
    except ValidationError as error:
        raise ModelError(f"{folder / CONFIG} is not a description of timm: {first_mistake(error)}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(f"{folder / CONFIG} is not a description of timm ({error!r})") from error


def timm_card(folder: Path, spacing_um: float = TILE_UM_PX) -> ModelCard:
    """The card of a published folder, whose patches lie side by side.

    Args:
        folder: it states the side of the patch, and no spacing.
        spacing_um: um per pixel of the patches.

    Raises:
        ModelError: it is not such a folder, or does not state the side.
    """
    model, facts = timm_model(folder), _facts(folder)
    try:
        channels, height, side = map(int, facts.get("pretrained_cfg", facts)["input_size"])
        if channels != 3 or height != side or side <= 0:
            raise ValueError(f"it is {[channels, height, side]}, and not three channels of a square")
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{folder / CONFIG} does not state an input_size to use ({error}); mend it"
        ) from error
    return ModelCard(
        name=folder.name,
        architecture=Architecture(name="timm", timm=model),
        classes=(EMBEDDING,),
        positive=EMBEDDING,
        patch_px=side,
        stride_px=side,
        spacing_um=spacing_um,
        sha256=hash_file(timm_weights(folder, model)),
    )


def _facts(folder: Path) -> dict[str, Any]:
    if not is_timm_folder(folder):
        raise ModelError(
            f"{folder} is no published model of timm: such a folder holds {CONFIG}, and {' or '.join(FILES)}"
        )
    try:
        facts = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder / CONFIG} cannot be read ({error}); download it again") from error
    if not isinstance(facts, dict):
        raise ModelError(f"{folder / CONFIG} is not a description of timm; download it again")
    return facts
