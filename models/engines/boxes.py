"""Runs a detector: its convolutions by whatever is fastest here, what follows them in fp32 by torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.checkpoint import load_detector
from models.engines.choice import engine_for
from models.engines.contract import EngineConfig
from models.engines.spec import BoxSpec, keep
from models.networks.detector import Convolve
from models.networks.faster_rcnn import Maps
from wsi.errors import ConfigError, ModelError
from wsi.marks.boxes import Boxes

BATCH_CPU, BATCH_GPU = 1, 16


class BoxEngine:
    """Boxes of tiles; what it is made of is in ``card`` and ``description``.

    Attributes:
        card: of the detector.
        description: libraries, precision and device, for what is written about a result.
        batch: tiles run at once.
        spec: what it was made of.
    """

    def __init__(self, folder: Path, cfg: EngineConfig) -> None:
        """Load a detector.

        Raises:
            ConfigError: this machine cannot run what was asked for.
            ModelError: the folder holds no detector, or a broken one.
        """
        network, self.card = load_detector(folder)
        if cfg.orientations != 1:
            raise ConfigError("a detector looks at each tile once; leave orientations at 1")
        if cfg.precision == "int8":
            raise ConfigError("detectors have no int8 form; use --precision bf16 or fp32")
        gpu = engine_for(cfg.engine) == "torch" and torch.cuda.is_available()
        self._device = torch.device("cuda" if gpu else "cpu")
        self._network = network.to(self._device)
        self.batch = cfg.batch or (BATCH_GPU if gpu else BATCH_CPU)
        # half precision moves boxes by pixels and scores by hundredths, and thresholds were chosen in fp32
        precision = "fp32" if cfg.precision == "auto" else cfg.precision
        torch.backends.cudnn.allow_tf32 = precision != "fp32"  # TF32 keeps 10 bits of a mantissa
        self._convolve: Sequence[Convolve]
        if engine_for(cfg.engine) == "openvino":
            if precision == "fp16":
                raise ConfigError("precision fp16 needs a GPU; use --precision bf16 or fp32 on a CPU")
            from models.engines.openvino import LIBRARY, OpenVinoConvolutions

            name = self.card.name
            self._convolve = [OpenVinoConvolutions(c, precision, name) for c in network.convolutions]
            self.description = (
                f"{LIBRARY} and torch {torch.__version__}, {precision}, batches of {self.batch}, CPU"
            )
        else:
            if precision == "fp16" and not gpu:
                raise ConfigError("precision fp16 needs a GPU; use --precision fp32")
            self._convolve = [_Autocast(c, self._device, precision) for c in network.convolutions]
            name = torch.cuda.get_device_name() if gpu else "CPU"
            self.description = f"torch {torch.__version__}, {precision}, batches of {self.batch}, {name}"
        self.spec = BoxSpec(folder, self.card, cfg, self.description)
        keep(self.spec, self)

    def detect(self, tiles: npt.NDArray[np.uint8]) -> list[Boxes]:
        """Boxes of every tile in its own pixels, best first.

        Args:
            tiles: (n, side, side, 3) RGB; the side is a multiple of 32.

        Raises:
            ModelError: the GPU's memory ran out.
        """
        boxes: list[Boxes] = []
        for start in range(0, len(tiles), self.batch):
            try:
                part = torch.from_numpy(tiles[start : start + self.batch]).to(self._device)
                boxes += self._network.detect(part, self._convolve)
            except torch.cuda.OutOfMemoryError as error:
                raise ModelError(
                    f"the GPU has no memory for {self.batch} tiles; end other programs on it"
                ) from error
        return boxes


class _Autocast:
    """The convolutions by torch, in a precision; the maps come out in fp32."""

    def __init__(self, convolutions: nn.Module, device: torch.device, precision: str) -> None:
        self._run, self._device = convolutions.to(memory_format=torch.channels_last), device.type
        self._dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)

    def __call__(self, pixels: Tensor) -> Maps:
        with torch.autocast(self._device, self._dtype, enabled=self._dtype is not None):
            maps: Maps = self._run(pixels.contiguous(memory_format=torch.channels_last))
        return tuple(one.float() for one in maps)
