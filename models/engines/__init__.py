"""Engines, which run a network in several ways by one interface: arrays in, arrays out."""

from __future__ import annotations

from models.engines.choice import engine_for
from models.engines.contract import Engine, EngineConfig, Models, find_models
from wsi.errors import ConfigError

__all__ = ["Engine", "EngineConfig", "Models", "find_models", "load_engine"]


def load_engine(models: Models, cfg: EngineConfig) -> Engine:
    """The engine that the configuration names; ``auto`` is the engine that suits this machine.

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
