"""Drawn kidneys with known truth, stained for C4d (immunohistochemistry on paraffin: DAB and haematoxylin)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from shapely import Polygon
from shapely.geometry.base import BaseGeometry

from wsi.files import csv_text, write_json, write_text
from wsi.phantoms.kidney.fields import KidneyField, fields_of
from wsi.phantoms.kidney.layout import KidneyLayout, KidneyPlanner
from wsi.phantoms.kidney.paint import KIDNEY_SCANNERS, KidneyPainter
from wsi.phantoms.pyramid import write_pyramid
from wsi.results.export import Feature, write_geojson
from wsi.vocabulary import (
    COLOURS,
    COMPARTMENT_COLOURS,
    FEASIBLE,
    NEGATIVE,
    NOT_COUNTED,
    NOT_FEASIBLE,
    POSITIVE,
)


@dataclass(frozen=True, slots=True)
class KidneyPhantom:
    """One slide to be made: its name, its seed, and the percentage of positive capillaries."""

    name: str
    seed: int
    percent: float
    size: tuple[int, int]
    scanner: int


def plan_kidneys(
    count: int, seed: int, size: tuple[int, int], percents: Sequence[float]
) -> list[KidneyPhantom]:
    """Slides of one cohort: percentages and scanners take turns, and each slide has its own seed."""
    return [
        KidneyPhantom(
            f"kidney_{i + 1:03d}",
            seed * 1_000 + i,
            percents[i % len(percents)],
            size,
            (i + i // len(KIDNEY_SCANNERS)) % len(KIDNEY_SCANNERS),
        )
        for i in range(count)
    ]


def write_kidney(
    slide: KidneyPhantom, out: Path, progress: Callable[[int, int], None] | None = None
) -> KidneyLayout:
    """Write ``NAME.tif``, its truth (capillaries and traps, fields, compartments) as GeoJSON, and ``NAME_truth.json``.

    The same bytes for the same seed.
    """
    layout_seed, paint_seed = np.random.SeedSequence(slide.seed).spawn(2)
    scanner = KIDNEY_SCANNERS[slide.scanner]
    layout = KidneyPlanner(np.random.default_rng(layout_seed), slide.size, scanner.mpp).kidney(slide.percent)
    painter = KidneyPainter(layout, np.random.default_rng(paint_seed), scanner)
    fields = fields_of(layout)
    path = out / f"{slide.name}.tif"
    write_pyramid(path, slide.size, scanner.mpp, painter.render, background=scanner.glass, progress=progress)
    features = capillary_features(slide.name, layout) + trap_features(slide.name, layout)
    write_geojson(out / f"{slide.name}.geojson", features, (0, 0))
    write_geojson(out / f"{slide.name}_fields.geojson", field_features(slide.name, fields), (0, 0))
    parts = compartment_features(slide.name, layout)
    write_geojson(out / f"{slide.name}_compartments.geojson", parts, (0, 0))
    positive = sum(c.positive for c in layout.capillaries)
    kinds = [c.kind for c in layout.capillaries]
    truth = {
        "slide": slide.name,
        "positive": positive,
        "negative": len(kinds) - positive,
        "c4d_percent": None if not kinds else round(layout.c4d_percent, 4),
        "kinds": {kind: kinds.count(kind) for kind in ("ring", "plain", "partial", "serum")},
        "fields": len(fields),
        "feasible_fields": sum(not f.why_not for f in fields),
        "stained_tubules": sum(t.brown > 0 for t in layout.tubules),
        "stained_glomeruli": sum(g.stained for g in layout.glomeruli),
        "stained_arteries": sum(a.stained for a in layout.arteries),
        "zones": [z.kind for z in layout.zones],
        "artefacts": [a.kind for a in layout.artefacts],
        "mpp": layout.mpp,
        "scanner": scanner.name,
        "note": "synthetic; not tissue",
    }
    write_json(out / f"{slide.name}_truth.json", truth)
    return layout


def capillary_features(name: str, layout: KidneyLayout) -> list[Feature]:
    """Every capillary's true outline and class, for QuPath and for training."""
    features = []
    for i, capillary in enumerate(layout.capillaries, start=1):
        group = POSITIVE if capillary.positive else NEGATIVE
        key = f"{name} capillary {i}"
        metadata: dict[str, str] = {"kind": capillary.kind}
        features.append(
            Feature(
                key, capillary.outline, "annotation", f"capillary {i}", group, COLOURS[group], {}, metadata
            )
        )
    return features


def trap_features(name: str, layout: KidneyLayout) -> list[Feature]:
    """Brown objects that are no capillaries: tubules, glomeruli, arteries."""
    traps = [("tubule", t.outline) for t in layout.tubules if t.brown > 0]
    for kind, rounds in (("glomerulus", layout.glomeruli), ("artery", layout.arteries)):
        traps += [(kind, shapely.Point(r.x, r.y).buffer(r.radius)) for r in rounds if r.stained]
    return [
        Feature(
            f"{name} trap {i}",
            outline,
            "annotation",
            f"stained {kind}",
            NOT_COUNTED,
            COLOURS[NOT_COUNTED],
            {},
            {"kind": kind},
        )
        for i, (kind, outline) in enumerate(traps, start=1)
    ]


def compartment_features(name: str, layout: KidneyLayout) -> list[Feature]:
    """Every compartment's true outline, for training a segmenter; where two overlap, the later class lies on top."""
    shapes: dict[str, list[BaseGeometry]] = {
        "cortex": list(layout.pieces),
        "medulla": [layout.medulla],
        "tubule": [tubule.outline for tubule in layout.tubules],
        "artery": [shapely.Point(a.x, a.y).buffer(a.radius) for a in layout.arteries],
        "glomerulus": [shapely.Point(g.x, g.y).buffer(g.radius) for g in layout.glomeruli],
    }
    return [
        Feature(
            f"{name} {group} {i}", polygon, "annotation", f"{group} {i}", group, COMPARTMENT_COLOURS[group]
        )
        for group, ones in shapes.items()
        for i, polygon in enumerate((p for one in ones for p in shapely.get_parts(one)), start=1)
        if isinstance(polygon, Polygon) and not polygon.is_empty
    ]


def field_features(name: str, fields: Sequence[KidneyField]) -> list[Feature]:
    """Every field, feasible or not, with the reason why not."""
    features = []
    for field in fields:
        group = NOT_FEASIBLE if field.why_not else FEASIBLE
        key = f"{name} field {field.x} {field.y}"
        metadata = {"why not": field.why_not} if field.why_not else {}
        features.append(
            Feature(
                key,
                field.box,
                "annotation",
                f"field {field.x},{field.y}",
                group,
                COLOURS[group],
                {},
                metadata,
            )
        )
    return features


def write_kidney_manifest(
    out: Path, slides: Sequence[KidneyPhantom], splits: Sequence[str], *, fields: bool = True
) -> None:
    """Write ``slides.csv`` and, for drawings, ``fields.csv`` and ``compartments.csv``: path, truth and split."""
    tables = [
        ("slides.csv", ".geojson"),
        ("fields.csv", "_fields.geojson"),
        ("compartments.csv", "_compartments.geojson"),
    ]
    for table, ending in tables if fields else tables[:1]:
        rows = [(f"{s.name}.tif", s.name + ending, split) for s, split in zip(slides, splits, strict=True)]
        write_text(out / table, csv_text(("path", "truth", "split"), rows))
