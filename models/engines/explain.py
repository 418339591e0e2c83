"""Why a patch has its score: class activation maps (Zhou et al. 2016), in fp32 on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from models.card import is_wsinfer
from models.checkpoint import load_checkpoint
from models.networks.contract import PatchNetwork, normalise
from models.networks.efficientnet import EfficientNetLite0
from models.networks.inception import InceptionV3
from wsi.arrays import RgbImage
from wsi.errors import ModelError


@dataclass(frozen=True, eq=False, slots=True)
class Explanation:
    """What in a patch speaks for the positive class.

    Attributes:
        evidence: (rows, cols) float32, each a share of the patch's sides: above 0 speaks for the class, below against
            it. Its mean and the network's constant make the log-odds, before any calibration.
        constant: what the network adds, whatever it sees.
        score: of the patch in this orientation and in fp32, 0..1.
    """

    evidence: npt.NDArray[np.float32]
    constant: float
    score: float


class Explainer:
    """Explanations of a model's scores."""

    def __init__(self, folder: Path) -> None:
        """Load a classifier whose last maps are averaged over the patch before its class layer.

        Raises:
            ModelError: it is another kind of model, or is broken.
        """
        if is_wsinfer(folder):
            raise ModelError(
                f"{folder} is a TorchScript model, whose last maps cannot be seen; only models of this program's own "
                f"form can be explained"
            )
        network, self.card = load_checkpoint(folder)
        if not isinstance(network, InceptionV3 | EfficientNetLite0):
            raise ModelError(f"{folder} has no mean over its last maps, which class activation maps need")
        self._network = network
        self._scores = PatchNetwork(network, self.card.calibration, self.card.positive_index).eval()

    @torch.inference_mode()
    def explain(self, patch: RgbImage) -> Explanation:
        """What speaks for the positive class in one patch, RGB uint8 (side, side, 3).

        Where there are two classes the evidence is the difference of their maps, and where there are more that of the
        positive class's map and the mean of the others': what all classes have in common speaks for none.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(patch[None]))
        layer = self._network.class_layer
        maps = torch.einsum("kc,chw->khw", layer.weight, self._network.last_maps(normalise(pixels))[0])
        positive = self.card.positive_index
        evidence, constant = maps[positive], layer.bias[positive]
        others = [k for k in range(len(maps)) if k != positive]
        if others:
            evidence, constant = evidence - maps[others].mean(dim=0), constant - layer.bias[others].mean()
        score = float(self._scores(pixels)[0, positive])
        return Explanation(evidence.numpy().astype(np.float32), float(constant), score)
