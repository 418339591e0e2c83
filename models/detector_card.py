"""A detector on disk: a folder with ``model.safetensors`` and ``card.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.card import CARD, WEIGHTS, hash_file
from models.networks.faster_rcnn import CapillaryDetector, DetectorConfig
from wsi.config import Config, first_mistake
from wsi.errors import ModelError
from wsi.files import replacing, write_json


class DetectorCard(Config):
    """Properties of a detector that a run needs, and information for readers.

    Attributes:
        enlarge_um: for each class, the margin on each side by which boxes in training were larger than capillaries.
        thresholds: for each class, the score from which a detection counts; with it the validation tiles have as many
            detections as marks.
        counting_errors: for each validation slide, the numbers of hit, false and missed positive capillaries in its
            report, then those of negative ones (wsi renal evaluate --into); empty where not measured.
        demonstration: trained without a real C4d slide; not for real tissue.
        sha256: hex sha256 of the weight file.
    """

    kind: Literal["detector"] = "detector"
    name: str
    detector: DetectorConfig
    enlarge_um: tuple[float, ...]
    thresholds: tuple[float, ...]
    counting_errors: tuple[tuple[int, int, int, int, int, int], ...] = ()
    demonstration: bool = False
    intended_use: str = "Research use only; not for diagnosis."
    limits: str = ""
    training: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    code_version: str = ""
    sha256: str


def save_detector(folder: Path, network: CapillaryDetector, **card: Any) -> DetectorCard:
    """Write the weights and the card; each file is written completely or not at all.

    Args:
        folder: the folder, which is made if it does not exist.
        network: the detector to save.
        card: the fields of `DetectorCard` except ``sha256``.
    """
    with replacing(folder / WEIGHTS) as partial:
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}, partial)
        except SafetensorError as error:  # safetensors raises it for a full disk
            raise OSError(str(error)) from error
    result = DetectorCard(sha256=hash_file(folder / WEIGHTS), **card)
    write_json(folder / CARD, result.model_dump(mode="json"))
    return result


def load_detector(folder: Path) -> tuple[CapillaryDetector, DetectorCard]:
    """Read a detector, in evaluation mode.

    Raises:
        ModelError: a file is missing or broken, a byte changed, or the folder holds another kind of model.
    """
    try:
        value = json.loads((folder / CARD).read_bytes())
        if value.get("kind") != "detector":
            raise ModelError(
                f"{folder} is not a detector but another kind of model; give one of wsi train capillaries"
            )
        card = DetectorCard.model_validate_json(json.dumps(value))
    except OSError as error:
        raise ModelError(
            f"{folder} is not a model: {CARD} cannot be read ({error.strerror}); check the path"
        ) from error
    except ValidationError as error:
        raise ModelError(
            f"{folder / CARD} is not a valid card: {first_mistake(error)}; copy it again"
        ) from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{folder / CARD} is not a valid card ({error}); copy the model again") from error
    if hash_file(folder / WEIGHTS) != card.sha256:
        raise ModelError(f"{folder / WEIGHTS} is not the file that its card names; copy the model again")
    network = CapillaryDetector(card.detector)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise ModelError(f"{folder / WEIGHTS} does not hold this detector; copy the model again") from error
    return network.eval(), card
