"""The files that an evaluation writes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import shapely

from pipelines.camelyon16.benchmark.cases import Cases
from pipelines.camelyon16.benchmark.curves import write_froc, write_slide_roc
from pipelines.camelyon16.benchmark.evaluation import (
    Evaluation,
    EvaluationConfig,
    LesionOutcome,
    SlideOutcome,
)
from pipelines.camelyon16.benchmark.froc import TARGETS, VARIANTS, FrocCurve
from pipelines.camelyon16.benchmark.predictions import Predictions
from pipelines.camelyon16.benchmark.published import PUBLISHED
from pipelines.camelyon16.benchmark.truth import L0_UM
from pipelines.runs.made_by import code_hash, commit, libraries, version
from wsi.errors import StoreError
from wsi.files import csv_text, write_json, write_text
from wsi.results.export import Feature, origin_offset, write_geojson

MISSED_COLOUR, FALSE_COLOUR = (150, 0, 170), (255, 140, 0)
EVALUATION, MISTAKES = "evaluation.json", "mistakes"
MARK_UM = 37.5  # half of the 75 um that a lesion is grown by: no false positive is nearer to a lesion


def record(
    predictions: Predictions, cases: Cases, result: Evaluation, cfg: EvaluationConfig
) -> dict[str, Any]:
    """The content of ``evaluation.json``: figures, how they were made, and every slide's hits for `compare`."""
    return {
        "program": f"slidewright {version()}",
        "intended_use": "research use only",
        "code": code_hash(),
        "commit": commit(),
        "libraries": libraries(),
        "scored by": predictions.made_by,
        "slide score": predictions.score_rule,
        "truth": cases.truth_origin,
        "settings": cfg.model_dump(mode="json"),
        "variant": cfg.variant,
        "what the variant means": VARIANTS[cfg.variant],
        "slides evaluated": len(result.slides),
        "slides that count for FROC": sum(s.counted for s in result.slides),
        "left out": cases.left_out,
        "taken as normal": list(cases.taken_as_normal),
        "not counted for FROC": [s.name for s in result.slides if not s.counted],
        "notes": {s.name: s.note for s in result.slides if s.note},
        "figures": result.figures,
        "published on the real test slides, for comparison": [asdict(p) for p in PUBLISHED],
        "slides": [
            {
                "name": s.name,
                "tumour": s.hits.tumour,
                "counted": s.counted,
                "score": s.score,
                "lesions": s.hits.lesions,
                "lengths_um": [round(lesion.length_um, 3) for lesion in s.lesions],
                "found": [float(v) for v in s.hits.found],
                "false": [float(v) for v in s.hits.false],
            }
            for s in result.slides
        ],
    }


def write_report(
    folder: Path, value: dict[str, Any], result: Evaluation, cfg: EvaluationConfig, *, published: bool
) -> None:
    """Write pictures, tables, GeoJSON of mistakes and figures in place of an earlier evaluation; not the atlas.

    Raises:
        StoreError: the folder holds something else, or cannot be written.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "froc.png").is_file():
        raise StoreError(f"{folder} holds files of something else; choose another --out")
    for stale in (folder / EVALUATION, folder / "atlas.html", *(folder / MISTAKES).glob("*.geojson")):
        stale.unlink(missing_ok=True)
    write_froc(folder / "froc.png", result, cfg.variant, published=published)
    write_slide_roc(folder / "roc.png", result, published=published)
    write_text(folder / "slides.csv", _slides(result))
    write_text(folder / "lesions.csv", _lesions(result))
    write_text(folder / "false_positives.csv", _false(result))
    for slide in result.slides:
        features = _mistakes(slide, result.curve) if slide.counted else []
        if features:
            write_geojson(
                mistakes_path(folder, slide.name),
                features,
                origin_offset(slide.case.prediction.bounds, "auto"),
            )
    write_json(folder / EVALUATION, value)  # last: it says that all other files are there


def mistakes_path(folder: Path, name: str) -> Path:
    """The file with the missed lesions and false positives of a slide, for QuPath."""
    return folder / MISTAKES / f"{name}.geojson"


def _slides(result: Evaluation) -> str:
    header = ("slide", "truth", "score", "lesions", "found", "false_positives", "counts_for_froc", "note")
    return csv_text(
        header,
        (
            (
                s.name,
                (s.kind or "tumour, no lesion") if s.hits.tumour else "normal",
                f"{s.score:.6f}",
                s.hits.lesions,
                int((s.hits.found > 0).sum()),
                len(s.false),
                "yes" if s.counted else "no",
                s.note,
            )
            for s in result.slides
        ),
    )


def _lesions(result: Evaluation) -> str:
    """A table of all lesions; ``found_at...`` holds the false positives per slide at the threshold that finds one."""
    header = (
        "slide",
        "lesion",
        "class",
        "length_um",
        "x",
        "y",
        "best_score",
        "found_at_false_per_slide",
        "counts",
    )
    rows = []
    for s in result.slides:
        for lesion in s.lesions:
            found_at = f"{result.curve.false_at(lesion.score):.4f}" if lesion.found else ""
            score = f"{lesion.score:.6f}" if lesion.found else ""
            counts = "yes" if s.counted and lesion.kind != "isolated" else "no"
            place = (f"{lesion.length_um:.1f}", round(lesion.x), round(lesion.y))
            rows.append((lesion.slide, lesion.number, lesion.kind, *place, score, found_at, counts))
    return csv_text(header, rows)


def _false(result: Evaluation) -> str:
    header = ("slide", "x", "y", "score", "slide_has_tumour", "false_per_slide_from_this_score")
    return csv_text(
        header,
        (
            (
                f.slide,
                round(f.x),
                round(f.y),
                f"{f.score:.6f}",
                "yes" if f.tumour_slide else "no",
                f"{result.curve.false_at(f.score):.4f}",
            )
            for f in result.false
        ),
    )


def _mistakes(slide: SlideOutcome, curve: FrocCurve) -> list[Feature]:
    features = []
    for lesion in slide.lesions:
        kind = lesion_mistake(lesion, curve)
        if kind and lesion.outline:
            key = f"{slide.name} {kind} {lesion.number}"
            measured = {"length um": lesion.length_um, "probability": lesion.score}
            shape = shapely.union_all(list(lesion.outline))
            name = f"{kind} lesion {lesion.number}"
            features.append(
                Feature(key, shape, "annotation", name, kind.capitalize(), MISSED_COLOUR, measured)
            )
    half = MARK_UM / (slide.case.prediction.mpp or L0_UM)
    for i, detection in enumerate(slide.false, start=1):
        square = shapely.box(detection.x - half, detection.y - half, detection.x + half, detection.y + half)
        key, measured = f"{slide.name} false {detection.x} {detection.y}", {"probability": detection.score}
        name = f"false positive {i}"
        features.append(Feature(key, square, "detection", name, "False positive", FALSE_COLOUR, measured))
    return features


def lesion_mistake(lesion: LesionOutcome, curve: FrocCurve) -> str:
    """``missed``, ``late`` (found only beyond 8 false positives per slide), or empty; isolated cells are no mistake."""
    if lesion.kind == "isolated":
        return ""
    if not lesion.found:
        return "missed"
    return "late" if curve.false_at(lesion.score) > TARGETS[-1] else ""
