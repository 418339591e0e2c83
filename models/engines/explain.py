"""Why a patch has its score: class activation maps (Zhou et al. 2016), in fp32 on the CPU.

Networks of timm need not see a mean of maps before their class layer: Grad-CAM explains them (Selvaraju et al. 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.card import is_wsinfer
from models.checkpoint import load_checkpoint
from models.networks.backbone import TimmBackbone
from models.networks.contract import PatchNetwork, normalise
from wsi.arrays import RgbImage
from wsi.errors import ModelError


@dataclass(frozen=True, eq=False, slots=True)
class Explanation:
    """What in a patch speaks for the positive class.

    Attributes:
        evidence: (rows, cols) float32, each a share of the patch's sides: above 0 speaks for the class, below against
            it. Its mean and the network's constant make the log-odds, before any calibration; by Grad-CAM nothing is
            below 0, and there is no unit.
        constant: what the network adds, whatever it sees; None by Grad-CAM.
        score: of the patch in this orientation and in fp32, 0..1.
    """

    evidence: npt.NDArray[np.float32]
    constant: float | None
    score: float


class Explainer:
    """Explanations of a model's scores."""

    def __init__(self, folder: Path) -> None:
        """Load a classifier whose features of each place can be seen.

        Raises:
            ModelError: it is another kind of model, or is broken.
        """
        if is_wsinfer(folder):
            raise ModelError(
                f"{folder} is a TorchScript model, whose last maps cannot be seen; only models of this program's own "
                f"form can be explained"
            )
        network, self.card = load_checkpoint(folder)
        self._network = network
        self.method = "Grad-CAM" if isinstance(network, TimmBackbone) else "class activation maps"
        self._scores = PatchNetwork(network, self.card.calibration, self.card.positive_index).eval()

    def explain(self, patch: RgbImage) -> Explanation:
        """What speaks for the positive class in one patch, RGB uint8 (side, side, 3).

        Where there are two classes the evidence is the difference of their maps, and where there are more that of the
        positive class's map and the mean of the others': what all classes have in common speaks for none.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(patch[None]))
        if isinstance(self._network, TimmBackbone):
            return self._by_gradients(self._network, pixels)
        with torch.inference_mode():
            return self._by_maps(pixels)

    def _by_maps(self, pixels: Tensor) -> Explanation:
        layer: nn.Linear = self._network.class_layer  # type: ignore[assignment]
        maps = torch.einsum("kc,chw->khw", layer.weight, self._network.last_maps(normalise(pixels))[0])  # type: ignore[operator]
        evidence, constant = self._for_positive(maps), self._for_positive(layer.bias)
        return Explanation(evidence.numpy().astype(np.float32), float(constant), self._score(pixels))

    def _by_gradients(self, network: TimmBackbone, pixels: Tensor) -> Explanation:
        inner, logits = network.inner_and_logits(normalise(pixels))
        (gradients,) = torch.autograd.grad(self._for_positive(logits[0]), inner)
        weights = network.at_places(gradients).mean(dim=(1, 2), keepdim=True)  # (1, 1, 1, d)
        evidence = F.relu((weights * network.at_places(inner)).sum(dim=3))[0].detach()
        return Explanation(evidence.numpy().astype(np.float32), None, self._score(pixels))

    def _for_positive(self, values: Tensor) -> Tensor:
        """Of values (classes, ...): that of the positive class, less the mean of the others'."""
        positive = self.card.positive_index
        others = [k for k in range(len(values)) if k != positive]
        return values[positive] - values[others].mean(dim=0) if others else values[positive]

    @torch.inference_mode()
    def _score(self, pixels: Tensor) -> float:
        return float(self._scores(pixels)[0, self.card.positive_index])
