"""Whole runs, reports and the command line.

The functions for notebooks (docs/library.md) can be imported from here; each is loaded at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.camelyon16.read.lesions import find_lesions
    from pipelines.camelyon16.read.score import score

__all__ = ["find_lesions", "score"]

_HOMES = {"find_lesions": "pipelines.camelyon16.read.lesions", "score": "pipelines.camelyon16.read.score"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pipelines' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
