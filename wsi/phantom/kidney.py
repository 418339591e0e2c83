"""Kidneys stained for C4d (immunohistochemistry on paraffin: DAB and haematoxylin), drawn, with known truth."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi.export import Feature, write_geojson
from wsi.files import write_json, write_text
from wsi.phantom.kidney_fields import KidneyField, fields_of
from wsi.phantom.kidney_layout import KidneyLayout, KidneyPlanner
from wsi.phantom.kidney_paint import KIDNEY_SCANNERS, KidneyPainter
from wsi.phantom.pyramid import write_pyramid

POSITIVE, NEGATIVE = "C4d positive", "C4d negative"  # classes in QuPath
COLOURS = {POSITIVE: (150, 75, 0), NEGATIVE: (40, 90, 200)}
FEASIBLE, NOT_FEASIBLE = "feasible", "not feasible"


@dataclass(frozen=True, slots=True)
class KidneyPhantom:
    """One slide to be made: its name, its seed, what share of capillaries is positive."""

    name: str
    seed: int
    percent: float
    size: tuple[int, int]
    scanner: int


def plan_kidneys(
    count: int, seed: int, size: tuple[int, int], percents: Sequence[float]
) -> list[KidneyPhantom]:
    """Slides of one cohort: percentages and scanners in turn, each slide a seed of its own."""
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
    """Write ``NAME.tif``, ``NAME.geojson`` (capillaries), ``NAME_fields.geojson`` and ``NAME_truth.json``.

    The same bytes for the same seed.
    """
    layout_seed, paint_seed = np.random.SeedSequence(slide.seed).spawn(2)
    scanner = KIDNEY_SCANNERS[slide.scanner]
    layout = KidneyPlanner(np.random.default_rng(layout_seed), slide.size, scanner.mpp).kidney(slide.percent)
    painter = KidneyPainter(layout, np.random.default_rng(paint_seed), scanner)
    fields = fields_of(layout)
    path = out / f"{slide.name}.tif"
    write_pyramid(path, slide.size, scanner.mpp, painter.render, background=scanner.glass, progress=progress)
    write_geojson(out / f"{slide.name}.geojson", capillary_features(slide.name, layout), (0, 0))
    write_geojson(out / f"{slide.name}_fields.geojson", field_features(slide.name, fields), (0, 0))
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
    found = []
    for i, capillary in enumerate(layout.capillaries, start=1):
        group = POSITIVE if capillary.positive else NEGATIVE
        key = f"{name} capillary {i}"
        metadata: dict[str, str] = {"kind": capillary.kind}
        found.append(
            Feature(
                key, capillary.outline, "annotation", f"capillary {i}", group, COLOURS[group], {}, metadata
            )
        )
    return found


def field_features(name: str, fields: Sequence[KidneyField]) -> list[Feature]:
    """Every field, feasible or not and why."""
    found = []
    for field in fields:
        group = NOT_FEASIBLE if field.why_not else FEASIBLE
        key = f"{name} field {field.x} {field.y}"
        colour = (120, 120, 120) if field.why_not else (30, 140, 60)
        metadata = {"why not": field.why_not} if field.why_not else {}
        found.append(
            Feature(key, field.box, "annotation", f"field {field.x},{field.y}", group, colour, {}, metadata)
        )
    return found


def write_kidney_manifest(out: Path, slides: Sequence[KidneyPhantom], splits: Sequence[str]) -> None:
    """Write ``slides.csv`` with path, truth (the capillaries) and split."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["path", "truth", "split"])
    rows.writerows(
        (f"{s.name}.tif", f"{s.name}.geojson", split) for s, split in zip(slides, splits, strict=True)
    )
    write_text(out / "slides.csv", text.getvalue())
