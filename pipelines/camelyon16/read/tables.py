"""Results of slides as rows of tables over many slides."""

from __future__ import annotations

from typing import Any

import shapely

from pipelines.camelyon16.read.results import SlideResult

SLIDE_COLUMNS: dict[str, type] = {
    **{
        "slide": str,
        "path": str,
        "model": str,
        "score": float,
        "confidence": str,
        "areas": int,
        "lesions": int,
    },
    **{"cells": int, "cells_not_read": int, "tissue_mm2": float, "mpp": float, "width": int, "height": int},
    **{"unlike": float, "note": str, "settings_fingerprint": str, "slide_identity": str},
}
LESION_COLUMNS: dict[str, type] = {
    "slide": str,
    "rank": int,
    "score": float,
    "x": float,
    "y": float,
    "mpp": float,
}


def slide_row(result: SlideResult, facts: dict[str, Any]) -> dict[str, Any]:
    """One slide; ``score`` is empty where nothing was scored, never 0.

    Args:
        result: of the slide.
        facts: what ``slide.json`` holds.
    """
    own = {
        "slide": result.name,
        "lesions": len(result.lesions),
        "cells_not_read": result.unreadable,
        "width": result.size[0],
        "height": result.size[1],
    }
    same = ("path", "score", "confidence", "areas", "cells", "mpp", "unlike", "note")
    stated = ("model", "tissue_mm2", "settings_fingerprint", "slide_identity")
    return own | {name: getattr(result, name) for name in same} | {name: facts.get(name) for name in stated}


def lesion_rows(result: SlideResult) -> list[dict[str, Any]]:
    """A slide's peaks, best first, with their points in level-0 pixels."""
    return [
        {
            "slide": result.name,
            "rank": rank,
            "score": peak.score,
            "x": peak.x,
            "y": peak.y,
            "mpp": result.mpp,
            "geometry": shapely.Point(peak.x, peak.y),
        }
        for rank, peak in enumerate(result.lesions, start=1)
    ]
