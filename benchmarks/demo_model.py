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
from pipelines.camelyon16.froc import SlideHits, froc, slide_hits
from pipelines.camelyon16.results import result_of
from pipelines.camelyon16.truth import lesion_truth
from wsi.annotations import read_annotations, tumour_regions
from wsi.metrics import auc
from wsi.store import HeatmapStore


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
    parser.add_argument("--model", action="append", help="several are compared, not averaged")
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
            header(f"{Path(model).name} on {on}, orientations {args.orientations}, {args.precision}")
            name = Path(model).resolve() if Path(model).is_dir() else model
            options = ["--model", name, "--orientations", args.orientations, "--precision", args.precision]
            wsi("score", slides / "slides.csv", "--out", folder / f"out{k}", *options)
            report(slides, folder / f"out{k}")


def report(slides: Path, scored: Path) -> None:
    hits: list[SlideHits] = []
    slide_scores, slide_labels, scores, labels = [], [], [], []
    for path in sorted(scored.glob("*/slide.json")):
        result = result_of(json.loads(path.read_bytes()))
        area = tumour_regions(read_annotations(slides / f"{result.name}.xml")).area
        hits.append(slide_hits(result.lesions, lesion_truth(area, result.size)))
        slide_scores.append(result.score)
        slide_labels.append(not area.is_empty)
        cell_scores, tumour = cell_labels(area, path.parent / "heatmap.zarr")
        scores.append(cell_scores)
        labels.append(tumour)
        found = f"{(hits[-1].found > 0).sum()} of {hits[-1].lesions} lesions"
        print(
            f"  {result.name}: score {result.score:.3f}, {found}, {len(hits[-1].false)} false positives",
            flush=True,
        )
    missed = sum(h.lesions - int((h.found > 0).sum()) for h in hits)
    print(f"  {missed} of {sum(h.lesions for h in hits)} lesions missed")
    curve = froc(hits)
    print(f"  slide AUC {auc(np.array(slide_labels), np.array(slide_scores, float)):.3f}")
    print(
        f"  patch AUC {auc(np.concatenate(labels), np.concatenate(scores)):.4f} over {sum(map(len, labels))} cells"
    )
    points = ", ".join(f"{curve.at(t):.3f} at {t:g}" for t in (0.25, 0.5, 1, 2, 4, 8))
    print(f"  FROC {curve.score:.3f}: sensitivity {points} false positives per slide")


if __name__ == "__main__":
    main()
