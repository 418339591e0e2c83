"""Training examples per second: reading alone, the network alone (with augmentation), and both, at two widths.

On a GPU, if there is one. ``--until AUC --run FOLDER`` prints instead how long a finished run took to reach an AUC.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from benchmarks.common import header, scratch, wsi
from models.training.classify import begin, choose_device, step
from models.training.data.augment import augment, draw_changes
from models.training.data.feed import Feed
from models.training.data.splits import TrainingData, slide_data
from models.training.recipe import TrainConfig
from models.training.state import use_bf16
from models.training.team import Team
from wsi.slides.manifest import read_manifest

ROUNDS = 3


def examples_per_s(work: Callable[[], None], batch: int, seconds: float) -> float:
    """After one step to warm up."""
    work()
    start, done = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        work()
        done += batch
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return done / (time.monotonic() - start)


def measure(data: TrainingData, cfg: TrainConfig, seconds: float) -> None:
    device = choose_device("auto")
    state = begin(data, cfg, Team(), device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(cfg.precision, device))
    with Feed(data.sampler, cfg.batch, Team(), threads=cfg.threads) as feed:
        fixed = feed.next()

        def train(batch: object) -> None:
            changes = draw_changes(cfg.batch, cfg.augment, state.generator)
            pixels = augment(torch.from_numpy(batch.patches).to(device), cfg.augment, changes)
            labels = torch.from_numpy(batch.labels).to(device)
            step(state, (pixels, labels), 1e-4, cfg, Team(), autocast)

        parts: dict[str, Callable[[], None]] = {
            "reading alone": lambda: (feed.next(), None)[1],
            "network alone": lambda: train(fixed),
            "both": lambda: train(feed.next()),
        }
        found: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(ROUNDS):
            for name, work in parts.items():
                found[name].append(examples_per_s(work, cfg.batch, seconds))
    precision = "bf16" if use_bf16(cfg.precision, device) else "fp32"
    print(f"width {cfg.width:g}, batches of {cfg.batch}, {precision}, {device.type}")
    for name, values in found.items():
        print(f"  {name:14s} {median(values):8.1f} examples/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--until", type=float)
    parser.add_argument("--run", type=Path)
    args = parser.parse_args()
    if args.run:
        with (args.run / "metrics.csv").open() as file:
            reached = [r for r in csv.DictReader(file) if r["auc"] and float(r["auc"]) >= args.until]
        header(f"{args.run.name}: time to a validation AUC of {args.until}")
        first = reached[0] if reached else None
        print(
            f"  {float(first['seconds']):.0f} s, {first['examples']} examples" if first else "  not reached"
        )
        return
    header("Training speed")
    with scratch() as folder:
        wsi("phantom", "lymph-node", "--count", 4, "--seed", 77, "--size", "8192x8192", "--out", folder)
        rows = read_manifest(folder / "slides.csv")
        for width in (0.1875, 1.0):
            cfg = TrainConfig(
                name="speed", width=width, batch=args.batch, threads=args.threads, validation_patches=32
            )
            measure(slide_data(rows, cfg), cfg, args.seconds)


if __name__ == "__main__":
    main()
