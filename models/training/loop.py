"""The one training loop: a run that reads top to bottom, stops at any time, and goes on to the same bits."""

from __future__ import annotations

import dataclasses
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from models.training.progress import NOBODY, Clock, Listeners, Progress, crossed, metrics_csv, progress_row
from models.training.recipe import Recipe
from models.training.state import TrainingState
from models.training.team import Team, leave_team
from wsi.errors import ModelError
from wsi.files import write_text


class Examples(Protocol):
    """What the loop uses of a batch; the rest is for the task."""

    @property
    def after(self) -> Any:
        """The state of the sampler from which the next batch is drawn."""
        ...


B_co = TypeVar("B_co", bound=Examples, covariant=True)
B = TypeVar("B", bound=Examples)


class Feed(Protocol[B_co]):
    """Endless batches."""

    def next(self) -> B_co:
        """The next batch."""
        ...


@dataclass(frozen=True, slots=True)
class Judgement:
    """How good a network is on what is held out.

    Attributes:
        quality: the figure by which the best network is chosen, the higher the better; None where nothing is held out.
        card: fields of the card that follow from it: figures, thresholds.
    """

    quality: float | None = None
    card: dict[str, Any] = field(default_factory=dict)


class Task(Protocol, Generic[B]):
    """What a network learns: the part of a training run in which a classifier and a detector differ."""

    @property
    def measure(self) -> str:
        """Name of the figure that networks are compared by: a column of ``metrics.csv``."""
        ...

    @property
    def clip(self) -> float | None:
        """Largest norm of a gradient; None does not limit it."""
        ...

    @property
    def team(self) -> Team:
        """The processes that train together."""
        ...

    @property
    def recipe(self) -> Recipe:
        """Batch, examples, rates and intervals."""
        ...

    @property
    def ends(self) -> tuple[int, ...]:
        """Examples after which each phase of the run ends."""
        ...

    @property
    def resumable(self) -> dict[str, Any]:
        """What must be the same to go on with a run."""
        ...

    def show(self, listeners: Listeners) -> None:
        """Show what the network will see first; leaves the generators as they are."""
        ...

    def enter(self, phase: int, state: TrainingState, listeners: Listeners) -> None:
        """Set what a phase changes; called again after a resume."""
        ...

    def feed(self, state: TrainingState) -> AbstractContextManager[Feed[B]]:
        """Batches from where the state is."""
        ...

    def loss(self, state: TrainingState, batch: B) -> Tensor:
        """Loss of this process's share of a batch, by the network in training mode."""
        ...

    def judge(self, state: TrainingState) -> Judgement:
        """Measure the network that is validated and kept."""
        ...

    def keep(self, state: TrainingState, judgement: Judgement) -> None:
        """Write that network and its card."""
        ...


def run(
    task: Task[B], state: TrainingState, out: Path, *, resume: bool = False, listeners: Listeners = NOBODY
) -> float:
    """Train, and keep the best network by the task's measure; the last where nothing is held out.

    Args:
        task: what is learned.
        state: of a run that begins.
        out: ``metrics.csv`` and ``checkpoint.safetensors`` go here, and what the task keeps.
        resume: go on from ``out/checkpoint.safetensors``; on a CPU to the same bits as without the stop.
        listeners: the functions that are told of the run's progress.

    Returns:
        The best figure; NaN where nothing is held out.

    Raises:
        ModelError: the loss is not finite, or there is nothing to resume; the last checkpoint is kept.
    """
    cfg, team = task.recipe, task.team
    listeners = listeners if team.leads else NOBODY
    if resume:
        state.load(out, task.resumable, rank=team.rank)
        listeners.say(f"resumed after {state.seen} examples")
    elif team.leads:
        task.show(listeners)
    clock = Clock(state.seen, state.seconds)
    for phase, end in enumerate(task.ends, start=1):
        if state.seen >= end:
            continue
        task.enter(phase, state, listeners)
        with task.feed(state) as feed:
            while state.seen < end:
                with clock.waiting():
                    batch = feed.next()
                rate = cfg.rate(state.seen)
                loss = _step(task, state, batch, rate, out)
                state.count(cfg.batch, loss, batch.after, clock.elapsed)
                now = clock.progress(state, task.ends[-1], rate)
                listeners.report(now)
                done = state.seen >= end
                if team.leads and (done or crossed(state.seen, cfg.batch, cfg.validate_every)):
                    _validate(task, state, out, now, listeners)
                stop = listeners.stop()
                due = stop or done or crossed(state.seen, cfg.batch, cfg.checkpoint_every)
                if team.leads and due:
                    state.save(out, task.resumable)
                if stop:
                    raise KeyboardInterrupt
        state.sampler.state = state.drawn  # the feed has drawn ahead
    leave_team(team)
    return math.nan if state.best is None else state.best


def _step(task: Task[B], state: TrainingState, batch: B, rate: float, out: Path) -> float:
    """One update; the loss of the whole batch."""
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    loss = task.loss(state, batch)
    value = float(task.team.mean(loss.detach()))
    if not math.isfinite(value):
        raise ModelError(
            f"the loss became {value} after {state.seen} examples; lower learning_rate "
            f"({task.recipe.first_rate:g}); the last checkpoint and the best network so far, if there are any, "
            f"are kept in {out}"
        )
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    task.team.average_gradients(state.network)
    if task.clip is not None:
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), task.clip)
    state.optimiser.step()
    return value


def _validate(task: Task[B], state: TrainingState, out: Path, now: Progress, listeners: Listeners) -> None:
    """Measure, write a row, and keep the network if it is the best; with nothing held out the last is kept."""
    judgement = task.judge(state)
    quality = judgement.quality
    if quality is not None:
        listeners.report(dataclasses.replace(now, quality=quality))
    state.rows.append(progress_row(now, task.measure, quality))
    write_text(out / "metrics.csv", metrics_csv(state.rows))
    listeners.metrics(state.rows)
    if quality is None or state.best is None or quality > state.best:
        state.best = quality
        task.keep(state, judgement)
