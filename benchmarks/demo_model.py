"""How good models are on phantoms they have never seen: slide AUC, patch AUC, FROC.

Drawn phantoms by default; ``--slides FOLDER`` takes phantoms that are there, such as mosaics. Neither is real tissue as
a scanner gives it: these figures say that the program works.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import shapely

from benchmarks.common import header, scratch, wsi
from wsi.marks.annotations import read_annotations, tumour_regions
from wsi.metrics.ranking import auc
from wsi.results.store import HeatmapStore


def cell_labels(area: shapely.MultiPolygon, heatmap: Path) -> tuple[np.ndarray, np.ndarray]:
    """Score and truth of every scored cell: tumour where it shares area with an outline."""
    scored = HeatmapStore.open(heatmap).read(1)
    cells = np.argwhere(np.isfinite(scored.scores))
    boxes = shapely.box(*scored.placement.boxes(cells).T)
    shapely.prepare(area)
    return scored.scores[tuple(cells.T)], shapely.intersects(area, boxes) & ~shapely.touches(area, boxes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=500)
    parser.add_argument("--model", action="append", help="several are compared; a + b are averaged")
    parser.add_argument("--slides", type=Path, help="folder with slides.csv and ASAP XML")
    parser.add_argument("--orientations", default="1")
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    on = args.slides.name if args.slides else f"{args.count} phantoms of seed {args.seed}"
    with scratch() as folder:
        slides = args.slides.resolve() if args.slides else folder
        if not args.slides:
            made = ("--count", args.count, "--seed", args.seed, "--size", "12288x10240", "--out", folder)
            wsi("phantom", "lymph-node", *made)
        for k, model in enumerate(args.model or ["lymph-node-demo"]):
            parts = [part.strip() for part in model.split("+")]
            header(
                f"{' + '.join(Path(part).name for part in parts)} on {on}, orientations {args.orientations}, {args.precision}"
            )
            options = [
                word
                for part in parts
                for word in ("--model", Path(part).resolve() if Path(part).is_dir() else part)
            ]
            options += ["--orientations", args.orientations, "--precision", args.precision]
            wsi("score", slides / "slides.csv", "--out", folder / f"out{k}", *options)
            report(slides, folder / f"out{k}")


def report(slides: Path, scored: Path) -> None:
    wsi("camelyon16", "evaluate", scored, "--truth", slides, "--draws", 0, "--no-atlas")
    value = json.loads((scored / "evaluation" / "evaluation.json").read_text())
    for s in value["slides"]:
        found = f"{sum(v > 0 for v in s['found'])} of {s['lesions']} lesions"
        print(
            f"  {s['name']}: score {s['score']:.3f}, {found}, {len(s['false'])} false positives", flush=True
        )
    figures = value["figures"]
    print(f"  {figures['lesions without any detection']} of {figures['lesions to be found']} lesions missed")
    print(f"  slide AUC {figures['AUC']['value']:.3f}")
    print(f"  patch AUC {patch_auc(slides, scored):.4f}")
    sensitivities = figures["sensitivity at false positives per slide"]
    points = ", ".join(f"{shown['value']:.3f} at {target}" for target, shown in sensitivities.items())
    print(f"  FROC {figures['FROC']['value']:.3f}: sensitivity {points} false positives per slide")


def patch_auc(slides: Path, scored: Path) -> float:
    """Over all scored cells of all slides."""
    scores, labels = [], []
    for path in sorted(scored.glob("*/heatmap.zarr")):
        area = tumour_regions(read_annotations(slides / f"{path.parent.name}.xml")).area
        cell_scores, tumour = cell_labels(area, path)
        scores.append(cell_scores)
        labels.append(tumour)
    return auc(np.concatenate(labels), np.concatenate(scores))


if __name__ == "__main__":
    main()
