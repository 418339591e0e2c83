"""What a training run needs to go on as if it had never stopped: one safetensors file, written whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.tensors import write_tensors
from wsi.errors import ModelError

CHECKPOINT = "checkpoint.safetensors"


class Resumable(Protocol):
    """What draws the examples, as far as a checkpoint goes; see `models.training.data.places.Sampler`."""

    state: Any

    @property
    def excluded(self) -> list[list[int]]:
        """What is never drawn again."""
        ...

    def exclude_all(self, places: Iterable[Sequence[int]]) -> None:
        """Exclude what an earlier run excluded."""
        ...


@dataclass
class TrainingState:
    """Everything that changes during a run; ``average`` is the mean of the latest networks, where one is kept."""

    network: nn.Module
    optimiser: torch.optim.Optimizer
    sampler: Resumable
    generator: torch.Generator
    seen: int = 0
    phase: int = 1
    loss: float | None = None
    best: float | None = None
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    drawn: Any = None
    average: AveragedModel | None = None

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and kept."""
        return self.network if self.average is None else self.average.module

    def count(self, examples: int, loss: float, drawn: Any, seconds: float) -> None:
        """Note one batch; ``drawn`` is the sampler's state after it, which has drawn ahead meanwhile."""
        self.seen += examples
        self.loss = loss if self.loss is None else 0.98 * self.loss + 0.02 * loss
        self.drawn, self.seconds = drawn, seconds
        if self.average is not None:
            self.average.update_parameters(self.network)

    def save(self, folder: Path, recipe: dict[str, Any]) -> None:
        """Write ``checkpoint.safetensors``, replacing the one before."""
        parameters = list(self.network.parameters())
        arrays = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.average is not None:
            arrays |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for i, parameter in enumerate(parameters):
            for key, value in self.optimiser.state.get(parameter, {}).items():
                arrays[f"optimiser.{i}.{key}"] = value
        arrays |= {"random.torch": torch.get_rng_state(), "random.augment": self.generator.get_state()}
        if torch.cuda.is_available():
            arrays["random.cuda"] = torch.cuda.get_rng_state()
        facts = {k: getattr(self, k) for k in ("seen", "phase", "loss", "best", "seconds", "rows")}
        facts |= {"sampler": self.drawn, "excluded": self.sampler.excluded, "recipe": recipe}
        write_tensors(folder / CHECKPOINT, arrays, {"state": json.dumps(facts)})

    def load(self, folder: Path, recipe: dict[str, Any], *, rank: int = 0) -> None:
        """Take over what ``checkpoint.safetensors`` holds; dropout goes on as it was in the process of ``rank`` 0.

        Raises:
            ModelError: there is none, it is broken, or of another recipe or architecture.
        """
        path = folder / CHECKPOINT
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {}).get("state", "null"))
                arrays: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise ModelError(
                f"{path} does not exist: there is no run to resume; leave out --resume"
            ) from error
        except (OSError, SafetensorError, ValueError) as error:
            raise ModelError(
                f"{path} is not a whole checkpoint ({error}); start again without --resume"
            ) from error
        if not isinstance(facts, dict):
            raise ModelError(f"{path} is not a checkpoint of a training run; start again without --resume")
        _check_recipe(path, facts["recipe"], recipe)
        try:
            self.network.load_state_dict(_below(arrays, "network."))
            if self.average is not None:
                self.average.load_state_dict(_below(arrays, "average."))
        except RuntimeError as error:
            raise ModelError(
                f"{path} holds a network of another architecture; start again without --resume"
            ) from error
        self._load_optimiser(arrays)
        for key in ("seen", "phase", "loss", "best", "seconds", "rows"):
            setattr(self, key, facts[key])
        self.sampler.exclude_all(facts["excluded"])
        self.sampler.state = self.drawn = facts["sampler"]
        torch.set_rng_state(arrays["random.torch"])
        self.generator.set_state(arrays["random.augment"])
        if "random.cuda" in arrays and torch.cuda.is_available():
            torch.cuda.set_rng_state(arrays["random.cuda"])
        if rank:
            torch.manual_seed(1_000_003 * rank + self.seen)  # processes must not drop the same

    def _load_optimiser(self, arrays: dict[str, Tensor]) -> None:
        for i, parameter in enumerate(self.network.parameters()):
            slots = _below(arrays, f"optimiser.{i}.")
            if slots:
                # AdamW keeps its count of steps on the CPU
                self.optimiser.state[parameter] = {
                    k: v if v.dim() == 0 else v.to(parameter.device) for k, v in slots.items()
                }


def average_of(network: nn.Module, share: float) -> AveragedModel:
    """A running mean of a network's weights and batch statistics, in which each batch's has this share."""
    mean = get_ema_multi_avg_fn(1 - share)  # type: ignore[no-untyped-call]
    return AveragedModel(network, multi_avg_fn=mean, use_buffers=True)


def _below(arrays: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}


def _check_recipe(path: Path, earlier: dict[str, Any], recipe: dict[str, Any]) -> None:
    for key in sorted(earlier.keys() | recipe.keys()):
        if earlier.get(key) != recipe.get(key):
            raise ModelError(
                f"{path} was written with {key} {earlier.get(key)!r}, the recipe now says {recipe.get(key)!r}; "
                f"resume with the same recipe, or start again in another --out"
            )


def use_bf16(wanted: str, device: torch.device) -> bool:
    """Whether to run in bf16: where asked for, or by ``auto`` where the processor multiplies it faster than fp32.

    A CPU without AVX512-bf16 or AMX is far slower in bf16 than in fp32.
    """
    if wanted != "auto":
        return wanted == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False) is True
    return torch.cpu._is_avx512_bf16_supported() is True
