"""Patches per second: a plain loop against the program's own engines, in turn, on one slide.

The plain loop is what most scripts do: OpenSlide ``read_region`` for every patch, batches of 32, eager
fp32 PyTorch. The program reads each tile once and runs OpenVINO. All runs score the same patches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import full_width_model, header, scratch, wsi
from models.engines import EngineConfig, Models, find_models, load_engine
from models.engines.contract import ZOO
from models.forms.build import build_network
from wsi.slides.blocks import plan_blocks, read_ahead
from wsi.slides.grid import TileGrid, make_grid
from wsi.slides.slide import plan_read
from wsi.slides.source import SlideSource
from wsi.slides.tissue import TissueConfig, find_tissue

BATCH = 32


def plain(slide: Path, grid: TileGrid, network: torch.nn.Module) -> np.ndarray:
    handle, scores = openslide.OpenSlide(str(slide)), []
    corners = grid.corners.astype(int)
    with torch.inference_mode():
        for start in range(0, len(grid), BATCH):
            patches = []
            for x, y in corners[start : start + BATCH]:
                patches.append(np.asarray(handle.read_region((int(x), int(y)), 0, (299, 299)).convert("RGB")))
            scores.append(network(torch.from_numpy(np.stack(patches))).numpy())
    return np.concatenate(scores)


def ours(slide: Path, grid: TileGrid, models: Models, precision: str) -> Callable[[], np.ndarray]:
    engine = load_engine(models, EngineConfig(engine="openvino", precision=precision))  # type: ignore[arg-type]

    def run() -> np.ndarray:
        with SlideSource(str(slide)).open() as opened:
            blocks = plan_blocks(grid, 32)
            parts = list(engine.score(read.patches for read in read_ahead(opened, blocks)))
        cells = np.concatenate([block.cells for block in blocks])
        order = np.lexsort((cells[:, 1], cells[:, 0]))
        return np.concatenate(parts)[order]

    return run


def some_cells(slide: Path, count: int) -> TileGrid:
    """The first rows of tissue cells, about ``count`` of them, all inside the slide."""
    with SlideSource(str(slide)).open() as opened:
        plan = plan_read(opened, 299, 128, 0.243)
        grid = make_grid(opened.size, plan, find_tissue(opened, TissueConfig()))
    middle = len(grid) // 2
    return TileGrid(grid.shape, grid.cells[middle : middle + count], plan)


def compare(slide: Path, model: Path, cells: int, rounds: int) -> None:
    grid = some_cells(slide, cells)
    models = find_models([str(model)])
    network = build_network([model])
    runs: dict[str, Callable[[], np.ndarray]] = {
        "plain loop, fp32": lambda: plain(slide, grid, network),
        "wsi, fp32": ours(slide, grid, models, "fp32"),
        "wsi, auto": ours(slide, grid, models, "auto"),
    }
    answers = {name: run() for name, run in runs.items()}
    for name in list(runs)[1:]:
        print(
            f"  largest difference from the plain loop, {name}: {np.abs(answers[name] - answers['plain loop, fp32']).max():.1e}"
        )
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            rates[name].append(len(grid) / (time.perf_counter() - start))
    base = rates["plain loop, fp32"]
    for name, values in rates.items():
        ratio = statistics.median(v / b for v, b in zip(values, base, strict=True))
        print(f"  {name:18s} {statistics.median(values):8.1f} patches/s   {ratio:5.1f} x", flush=True)


def matrix_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a large matrix product: the most that any engine can reach here in this precision."""
    a = torch.randn(3072, 3072).to(dtype)
    a @ a
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 2:
        a @ a
        count += 1
    return count * 2 * 3072**3 / 1e9 / (time.perf_counter() - start)


def gflop_a_patch(model: Path) -> float:
    """Two for every multiplication, counted by torch."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        build_network([model])(torch.zeros((1, 299, 299, 3), dtype=torch.uint8))
    return counter.get_total_flops() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with scratch() as folder:
        wsi("phantom", "lymph-node", "--count", 1, "--seed", 900, "--size", "8192x8192", "--out", folder)
        slide = (
            folder / "normal_001.tif" if (folder / "normal_001.tif").exists() else folder / "tumor_001.tif"
        )
        full = full_width_model(folder)
        needed = gflop_a_patch(full)
        header(f"The limit at width 1, {needed:.2f} GFLOP a patch")
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            rate = matrix_rate(dtype)
            print(
                f"  {name}: matrix products {rate:.0f} GFLOP/s, so at most {rate / needed:.0f} patches/s",
                flush=True,
            )
        for title, model in (
            ("Scoring at width 1 (random weights: timing only)", full),
            ("Scoring with the demonstration model", ZOO / "lymph-node-demo"),
        ):
            header(title)
            compare(slide, model, args.cells, args.rounds)


if __name__ == "__main__":
    main()
