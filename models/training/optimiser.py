"""RMSProp as TensorFlow 1 defines it, which Liu et al. 2017 trained with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class TensorFlowRMSprop(torch.optim.Optimizer):
    """ms = decay ms + (1 - decay) g^2; m = momentum m + lr g / sqrt(ms + epsilon); p = p - m.

    PyTorch's RMSprop differs in three ways: epsilon stands outside the root, ms starts at 0 instead of 1,
    and the learning rate multiplies the momentum instead of entering it. With epsilon 1 this matters.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        decay: float = 0.9,
        momentum: float = 0.9,
        epsilon: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "decay": decay,
            "momentum": momentum,
            "epsilon": epsilon,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["square"] = torch.ones_like(parameter)
                    state["momentum"] = torch.zeros_like(parameter)
                gradient = parameter.grad.add(parameter, alpha=group["weight_decay"])
                square, momentum = state["square"], state["momentum"]
                square.mul_(group["decay"]).addcmul_(gradient, gradient, value=1 - group["decay"])
                scaled = gradient / torch.sqrt(square + group["epsilon"])
                momentum.mul_(group["momentum"]).add_(scaled, alpha=group["lr"])
                parameter.sub_(momentum)
