"""The result of a slide's scoring: in memory, in ``slide.json``, as features for QuPath."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import shapely

from pipelines.camelyon16.read.lesions import Lesion, LesionConfig, Outline
from wsi.errors import StoreError
from wsi.files import UNREADABLE, csv_text, read_record
from wsi.results.export import Feature
from wsi.results.folder import Folder
from wsi.results.heatmap import Heatmap
from wsi.vocabulary import TUMOUR_GROUP, TUMOUR_GROUPS

log = logging.getLogger(__name__)

RESULT_FORMAT = 1  # version of lesions and files; raise it when the golden lesions of the tests change
FILES = ("heatmap.zarr", "lesions.csv", "lesions.geojson", "preview.png")  # files of a scored slide
EXPORTS = ("lesions.xml", "lesions.geojson.gz", "cells.geojson", "cells.geojson.gz")
OUTLINE_COLOUR, LESION_COLOUR = (200, 0, 0), (255, 140, 0)


@dataclass(frozen=True, slots=True)
class SlideResult:
    """The result of a slide's scoring.

    Attributes:
        path: absolute, or a URL without its query.
        score: the heatmap's maximum; None where no cell was scored.
        lesions: maxima of the heatmap, best first.
        areas: connected areas at or above the threshold.
        cells: cells with tissue.
        unreadable_cells: level-0 (x, y) of the corners of those cells that could not be decoded.
        note: a sentence for the user, or empty.
        unlike: share of the checked cells that look unlike what the model was trained on; None where that is not known.
    """

    name: str
    path: str
    score: float | None
    confidence: str | None
    lesions: tuple[Lesion, ...]
    areas: int
    cells: int
    unreadable_cells: tuple[tuple[int, int], ...]
    mpp: float
    size: tuple[int, int]
    note: str = ""
    unlike: float | None = None

    @property
    def unreadable(self) -> int:
        """The number of cells that could not be decoded."""
        return len(self.unreadable_cells)

    @property
    def empty(self) -> bool:
        """Whether no cell was scored."""
        return self.score is None

    def summary(self) -> dict[str, Any]:
        """The slide's entry in ``run.json``, without its path, which only ``slide.json`` holds."""
        entry = asdict(self) | {"lesions": len(self.lesions)}
        del entry["path"]
        return entry

    def noted(self, text: str) -> SlideResult:
        """A copy with a note that readers of its score must see."""
        return replace(self, note="; ".join(note for note in (text, self.note) if note))


def group_of(positive: str) -> str:
    """The name of a model's positive class in QuPath and ASAP; tumour has one spelling, whatever the model's is."""
    return TUMOUR_GROUP if positive.casefold() in TUMOUR_GROUPS else positive


def lesion_features(
    name: str,
    positive: str,
    lesions: Sequence[Lesion],
    areas: Sequence[Outline],
    heatmap: Heatmap,
    mpp: float,
    made_by: dict[str, str],
) -> list[Feature]:
    """Outlines as annotations, peaks as detections one cell large; all of one class."""

    features = []
    group = group_of(positive)
    for i, area in enumerate(areas, start=1):
        measured = {
            "probability max": area.maximum,
            "probability mean": area.mean,
            "area um2": area.shape.area * mpp**2,
        }
        key = f"{name} outline {area.shape.bounds}"
        features.append(
            Feature(
                key,
                area.shape,
                "annotation",
                f"{positive} area {i}",
                group,
                OUTLINE_COLOUR,
                measured,
                made_by,
            )
        )
    half = heatmap.placement.step_x / 2
    for i, lesion in enumerate(lesions, start=1):
        square = shapely.box(lesion.x - half, lesion.y - half, lesion.x + half, lesion.y + half)
        measured = {"probability": lesion.score, "rank": i}
        key = f"{name} lesion {lesion.x} {lesion.y}"
        features.append(
            Feature(key, square, "detection", f"peak {i}", group, LESION_COLOUR, measured, made_by)
        )
    return features


def finished_result(out: Folder, expected: str, lesions: LesionConfig) -> SlideResult | None:
    """The result of an earlier run with the same fingerprint and lesion settings."""
    try:
        value: Any = out.read_json("slide.json")
    except (OSError, ValueError):
        return None
    if not isinstance(value, dict):
        return None
    same_lesions = (value.get("format"), value.get("lesion_settings")) == (
        RESULT_FORMAT,
        lesions.model_dump(mode="json"),
    )
    if value.get("fingerprint") != expected or not same_lesions:
        return None
    if discard_changed(out, value):
        return None
    try:
        return result_of(value)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # damaged: it is written anew


def discard_changed(out: Folder, value: dict[str, Any]) -> bool:
    """Remove files of a finished slide that are not as they were written, so that they are made again, and warn.

    Returns:
        Whether there were such files; then ``slide.json`` is removed, too.

    Raises:
        StoreError: a file is there, and reading it failed.
    """
    try:
        record = read_record(value)
    except (KeyError, TypeError, ValueError, AttributeError):
        record = {}
    changes = out.changes(record)
    for name, change in changes.items():
        if change.startswith(UNREADABLE):  # the file may be good: a disk or the network failed
            raise StoreError(f"{out.at(name)} {change}; mend that and run the same command again")
        log.warning("%s: %s; it is made again", out.at(name), change)
        out.delete(name)
    if "heatmap.zarr/zarr.json" in changes:
        out.inside("heatmap.zarr").delete("")  # without it the chunks cannot be read
    if changes or not record:
        out.delete("slide.json")
    return bool(changes) or not record


def update_record(out: Folder, name: str) -> None:
    """Note the size and hash of one file of a finished slide anew, after an export wrote it with other options."""
    value = out.read_json("slide.json")
    value["files"] = dict(value.get("files", {})) | out.record([name])
    out.write_json("slide.json", value, durable=True)


def result_of(value: dict[str, Any]) -> SlideResult:
    """A `SlideResult` from what ``slide.json`` holds."""
    fields = {key: value[key] for key in SlideResult.__dataclass_fields__}
    lesions = tuple(Lesion(**lesion) for lesion in value["lesions"])
    unreadable_cells = tuple((x, y) for x, y in value["unreadable_cells"])
    return SlideResult(
        **fields | {"lesions": lesions, "size": tuple(value["size"]), "unreadable_cells": unreadable_cells}
    )


def earlier_results(out: Folder, settings: str, but: Collection[str]) -> list[SlideResult]:
    """Slides that other commands scored into the same folder with the same settings, by name."""
    results = []
    for _, content in out.each("slide.json"):
        try:
            value = json.loads(content)
            if value["settings_fingerprint"] == settings and value["name"] not in but:
                results.append(result_of(value))
        except (ValueError, KeyError, TypeError):
            continue  # not one of ours, or of another version
    return results


def scores_csv(results: Sequence[SlideResult]) -> str:
    """One row per slide; the score is empty where nothing was scored, never 0.

    ``cells_not_read`` are those with tissue that could not be decoded: the score says nothing of them.
    """
    rows = []
    for r in results:
        score = "" if r.score is None else f"{r.score:.6f}"
        confidence = "not scored" if r.score is None else r.confidence or ""
        rows.append([r.name, score, confidence, r.cells, r.unreadable, r.note])
    return csv_text(("slide", "score", "confidence", "cells", "cells_not_read", "note"), rows)
