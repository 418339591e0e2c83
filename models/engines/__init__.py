"""Engines, which run a network in several ways by one interface: arrays in, arrays out."""

from __future__ import annotations

from models.engines.contract import Engine, EngineConfig, EngineSpec, Models, find_models
from models.engines.spec import BoxSpec, ScoreSpec, load_engine

__all__ = [
    "BoxSpec",
    "Engine",
    "EngineConfig",
    "EngineSpec",
    "Models",
    "ScoreSpec",
    "find_models",
    "load_engine",
]
