"""Patches per second of one model in fp32, bf16 and int8, in turn, on one slide, reading included; and how scores differ.

The slide is a drawing by default: what int8 costs on real patches is in the model's card (``wsi models show``).
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks.common import header, scratch, wsi
from benchmarks.scoring import ours
from models.engines import Models, find_models
from wsi.errors import ConfigError
from wsi.slides.grid import TileGrid, make_grid
from wsi.slides.slide import plan_read
from wsi.slides.source import SlideSource
from wsi.slides.tissue import TissueConfig, find_tissue


def cells_of(slide: Path, models: Models, count: int) -> TileGrid:
    """The middle ``count`` tissue cells of a slide, as the model reads them."""
    card = models.card
    with SlideSource(str(slide)).open() as opened:
        plan = plan_read(
            opened, card.patch_px, card.stride_px, card.spacing_um, tolerance=card.spacing_tolerance
        )
        grid = make_grid(opened.size, plan, find_tissue(opened, TissueConfig()))
    first = max(0, (len(grid) - count) // 2)
    return TileGrid(grid.shape, grid.cells[first : first + count], plan)


def compare(slide: Path, model: str, count: int, rounds: int) -> None:
    models = find_models([model])
    grid = cells_of(slide, models, count)
    header(f"{models.card.name}: {len(grid)} cells of {slide.name}")
    runs = {}
    for precision in ("fp32", "bf16", "int8"):
        try:
            runs[precision] = ours(slide, grid, models, precision)
        except ConfigError as error:
            print(f"  {precision}: {error}")
    answers = {name: run() for name, run in runs.items()}
    for name in list(runs)[1:]:
        difference = np.abs(answers[name] - answers["fp32"])
        print(
            f"  largest difference from fp32, {name}: {difference.max():.3f}, in the mean {difference.mean():.4f}"
        )
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            rates[name].append(len(grid) / (time.perf_counter() - start))
    for name, values in rates.items():
        ratio = statistics.median(v / b for v, b in zip(values, rates["fp32"], strict=True))
        print(f"  {name:5s} {statistics.median(values):8.1f} patches/s   {ratio:4.2f} x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="lymph-node-10x")
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--cells", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.slide:
        compare(args.slide, args.model, args.cells, args.rounds)
        return
    with scratch() as folder:
        wsi("phantom", "lymph-node", "--count", 1, "--seed", 900, "--size", "8192x8192", "--out", folder)
        compare(next(folder.glob("*_001.tif")), args.model, args.cells, args.rounds)


if __name__ == "__main__":
    main()
