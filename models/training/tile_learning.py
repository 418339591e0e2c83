"""What a detector and a segmenter share in a training run: both learn from tiles, in one phase."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch

from models.training.data.tiles import Draws, TileFeed
from models.training.progress import Listeners
from models.training.recipe import DetectorTrainConfig, SegmenterTrainConfig
from models.training.state import TrainingState
from models.training.team import Team

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Sampler(Draws[T_co], Protocol[T_co]):
    """What draws tiles, and tells by which data."""

    @property
    def identity(self) -> str:
        """Hash of what decides which tiles are drawn."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class TileLearning(Generic[T]):
    """The part of `models.training.loop.Task` that is the same for all tasks on tiles.

    Attributes:
        sampler: draws tiles of the training slides.
        held_out: tiles that networks are measured on; maybe none.
        out: the run's folder.
        code_version: stated in the card.
        team: the processes that train together.
        device: that of this process.
        cfg: the recipe.
        clip: largest norm of a gradient: a tile with many false boxes must not undo what was learned.
    """

    sampler: Sampler[T]
    held_out: Sequence[T]
    out: Path
    code_version: str
    team: Team
    device: torch.device
    cfg: DetectorTrainConfig | SegmenterTrainConfig
    clip: ClassVar[float | None] = 5.0

    @property
    def recipe(self) -> DetectorTrainConfig | SegmenterTrainConfig:
        """The recipe."""
        return self.cfg

    @property
    def ends(self) -> tuple[int, ...]:
        """There is one phase."""
        return (self.cfg.examples,)

    @property
    def resumable(self) -> dict[str, Any]:
        """What must be the same to go on with a run: all but paths, names and how fast it goes."""
        free = {"name", "slides", "limits", "training_data", "checkpoint_every", "device"}
        return self.cfg.model_dump(mode="json", exclude=free) | {"data": self.sampler.identity}

    def show(self, listeners: Listeners) -> None:
        """Nothing is shown: tiles need a picture of their own."""

    def enter(self, phase: int, state: TrainingState, listeners: Listeners) -> None:
        """Nothing changes."""

    def feed(self, state: TrainingState) -> AbstractContextManager[TileFeed[T]]:
        """Batches from the next tile on."""
        return nullcontext(TileFeed(self.sampler, self.cfg.batch, self.team, state.seen))

    def seen(self, state: TrainingState) -> dict[str, Any]:
        """What a card tells of the training."""
        return {"examples": state.seen, "seed": self.cfg.seed, "data": self.cfg.training_data}
