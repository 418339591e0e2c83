"""Runs a segmenter: by OpenVINO on a CPU, by torch on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.card import SegmenterCard, read_card
from models.engines.choice import engine_for
from models.engines.contract import EngineConfig
from models.engines.spec import MapSpec, keep
from wsi.errors import ConfigError, ModelError

Tiles = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]


class MapEngine:
    """Class probabilities of tiles; what it is made of is in ``card`` and ``description``.

    Attributes:
        card: of the segmenter.
        description: libraries, precision and device, for what is written about a result.
        spec: what it was made of.
        at_once: number of threads that may call `map` at once.
    """

    def __init__(self, folder: Path, cfg: EngineConfig) -> None:
        """Load a segmenter.

        Raises:
            ConfigError: this machine cannot run what was asked for.
            ModelError: the folder holds no segmenter, or a broken one.
        """
        self.card = read_card(folder, SegmenterCard)
        if cfg.orientations != 1:
            raise ConfigError("a segmenter looks at each tile once; leave orientations at 1")
        if cfg.precision == "int8":
            raise ConfigError("segmenters have no int8 form; use --precision bf16 or fp32")
        make = _by_openvino if engine_for(cfg.engine) == "openvino" else _by_torch
        self._run, self.description = make(folder, self.card, cfg)
        self.at_once = int(getattr(self._run, "at_once", 1))
        self.spec = MapSpec(folder, self.card, cfg, self.description)
        keep(self.spec, self)

    def map(self, tile: Tiles) -> Probabilities:
        """Class probabilities (classes, cells, cells) of the core of one tile.

        Args:
            tile: RGB uint8, (side, side, 3), of the side that `models.engines.map_slide.plan_map` gives.

        Raises:
            ModelError: a probability is not a number, or the GPU's memory ran out.
        """
        probabilities: Probabilities = self._run(tile[None])[0]
        if not np.isfinite(probabilities).all():
            raise ModelError("the model gave probabilities that are not numbers; try --precision fp32")
        return probabilities


def _by_openvino(
    folder: Path, card: SegmenterCard, cfg: EngineConfig
) -> tuple[Callable[[Tiles], Probabilities], str]:
    if cfg.precision == "fp16":
        raise ConfigError("precision fp16 needs a GPU; use --precision bf16 or fp32 on a CPU")
    from models.engines.openvino import LIBRARY, OpenVinoMaps

    maps = OpenVinoMaps(folder, card, cfg.precision)
    return maps, f"{LIBRARY}, {maps.precision}, CPU"


def _by_torch(
    folder: Path, card: SegmenterCard, cfg: EngineConfig
) -> tuple[Callable[[Tiles], Probabilities], str]:
    import torch

    from models.checkpoint import load_segmenter

    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    precision = ("fp16" if gpu else "fp32") if cfg.precision == "auto" else cfg.precision
    if precision == "fp16" and not gpu:
        raise ConfigError("precision fp16 needs a GPU; use --precision fp32, or --engine openvino for bf16")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    torch.backends.cudnn.allow_tf32 = precision != "fp32"  # TF32 keeps 10 bits of a mantissa
    network = load_segmenter(folder)[0].to(device, dtype)

    def run(tiles: Tiles) -> Probabilities:
        try:
            with torch.inference_mode():
                probabilities = network(torch.from_numpy(tiles).to(device))
        except torch.cuda.OutOfMemoryError as error:
            raise ModelError(
                "the GPU has no memory for one tile of this segmenter; end other programs on it"
            ) from error
        return np.asarray(probabilities.float().cpu().numpy(), np.float32)

    name = torch.cuda.get_device_name() if gpu else "CPU"
    return run, f"torch {torch.__version__}, {precision}, {name}"
