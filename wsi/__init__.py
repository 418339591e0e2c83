"""Slides, tissue, grids, heatmaps and geometry, without any network.

The names that a notebook needs are here (docs/library.md); each is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi.errors import WsiError
    from wsi.results.heatmap import Heatmap
    from wsi.slides.overview import read_overview
    from wsi.slides.slide import Slide
    from wsi.slides.source import open_slide
    from wsi.slides.tiles import read_square
    from wsi.slides.tissue import find_tissue

__all__ = ["Heatmap", "Slide", "WsiError", "find_tissue", "open_slide", "read_overview", "read_square"]

_HOMES = {
    "Heatmap": "wsi.results.heatmap",
    "Slide": "wsi.slides.slide",
    "WsiError": "wsi.errors",
    "find_tissue": "wsi.slides.tissue",
    "open_slide": "wsi.slides.source",
    "read_overview": "wsi.slides.overview",
    "read_square": "wsi.slides.tiles",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wsi' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
