"""What engines are made of. A spec travels to another process; there the engine is made, once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from models.engines.choice import engine_for
from models.engines.contract import Engine, EngineConfig, Models, find_models
from wsi.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from models.card import DetectorCard
    from models.engines.boxes import BoxEngine

_ENGINES: WeakValueDictionary[object, object] = WeakValueDictionary()  # by spec: those that are in use


@dataclass(frozen=True, slots=True)
class ScoreSpec:
    """An engine that gives scores: its models, and how they are run."""

    models: Models
    cfg: EngineConfig

    def make(self) -> Engine:
        """The engine, see `EngineSpec.make`."""
        engine = _ENGINES.get(self)
        if not isinstance(engine, Engine):
            here = find_models([str(folder) for folder in self.models.folders])
            _same_weights(self.models.folders, self.models.weights, here.weights)
            engine = load_engine(self.models, self.cfg)
        return engine

    def __hash__(self) -> int:
        return hash((self.models.folders, *self.models.weights))


@dataclass(frozen=True, slots=True)
class BoxSpec:
    """An engine that gives boxes: the detector's folder, its card, and how it is run."""

    folder: Path
    card: DetectorCard
    cfg: EngineConfig

    def make(self) -> BoxEngine:
        """The engine, see `EngineSpec.make`."""
        from models.engines.boxes import BoxEngine

        engine = _ENGINES.get(self)
        if not isinstance(engine, BoxEngine):
            engine = BoxEngine(self.folder, self.cfg)
            _same_weights([self.folder], [self.card.sha256], [engine.card.sha256])
        return engine

    def __hash__(self) -> int:
        return hash((self.folder, self.card.sha256))


def load_engine(models: Models, cfg: EngineConfig) -> Engine:
    """A new engine; ``auto`` is the library that suits this machine.

    Raises:
        ConfigError: this machine cannot run the engine with these settings.
        ModelError: a model is broken.
    """
    if engine_for(cfg.engine) == "openvino":
        if cfg.precision == "fp16":
            raise ConfigError("precision fp16 needs a GPU; use --precision bf16 or fp32 on a CPU")
        from models.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(models, cfg)
    from models.engines.torch import TorchEngine

    return TorchEngine(models, cfg)


def keep(spec: ScoreSpec | BoxSpec, engine: Engine | BoxEngine) -> None:
    """Let `ScoreSpec.make` and `BoxSpec.make` give this engine, as long as somebody holds it."""
    _ENGINES[spec] = engine


def _same_weights(folders: Iterable[Path], wanted: Iterable[str], here: Iterable[str]) -> None:
    """Refuse weights other than those that a run was begun with.

    Raises:
        ModelError: names the folder.
    """
    for folder, first, second in zip(folders, wanted, here, strict=True):
        if first != second:
            raise ModelError(
                f"{folder} holds other weights ({second[:12]}...) than those that the run was begun with "
                f"({first[:12]}...); copy the same model there"
            )
