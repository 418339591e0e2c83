"""Training by several processes, one per GPU (or CPU), started by ``torchrun``."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from wsi.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Team:
    """This process's number among ``size`` that train one network together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and validates."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """Which examples of a batch are this process's."""
        each = batch // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def lowest(self, value: int) -> int:
        """The smallest of every process's value."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.int64, device=_exchange_device())
        dist.all_reduce(shared, op=dist.ReduceOp.MIN)
        return int(shared)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of every process's value."""
        if self.size == 1:
            return value
        shared = value.detach().clone()
        dist.all_reduce(shared)
        return shared / self.size

    def average_gradients(self, network: nn.Module) -> None:
        """Give every process the gradient of the whole batch."""
        if self.size == 1:
            return
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def choose_device(wanted: str) -> torch.device:
    """The device a recipe asks for; under ``torchrun`` each process's own GPU."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch sees no GPU; use device: auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"there are more processes than GPUs ({torch.cuda.device_count()}); start fewer, or set device: cpu"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def join_team(batch: int, device: torch.device) -> Team:
    """Join the processes that ``torchrun`` started; a team of one without it.

    Raises:
        ConfigError: the batch cannot be shared out evenly.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Team()
    if batch % size:
        raise ConfigError(f"batch {batch} cannot be shared by {size} processes; make it a multiple of {size}")
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Team(dist.get_rank(), dist.get_world_size())


def leave_team(team: Team) -> None:
    """Let the other processes end, too."""
    if team.size > 1 and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _exchange_device() -> torch.device:
    if dist.get_backend() == "nccl":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


class TeamBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, on CPUs too (PyTorch's own needs GPUs)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the mean and variance of the whole batch."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        moments = torch.stack([values.mean(dim=(0, 2, 3)), values.square().mean(dim=(0, 2, 3))])
        team = dist.get_world_size()
        mean, square = all_reduce(moments) / team  # type: ignore[no-untyped-call]  # shares are of one size
        variance = (square - mean.square()).clamp_min(0)
        count = x.numel() / x.shape[1] * team
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            momentum = self.momentum if self.momentum is not None else 0.1
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        normalised: Tensor = values * scale[:, None, None] + shift[:, None, None]
        return normalised.to(x.dtype)


def share_batch_norm(network: nn.Module, team: Team) -> None:
    """Make every batch normalisation one over the whole team; the arrays' names stay."""
    if team.size > 1:
        for module in network.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = TeamBatchNorm2d
