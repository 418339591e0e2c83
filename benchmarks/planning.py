"""Planning a slide of 100,000 x 100,000 px, all of it tissue: from the mask to blocks."""

from __future__ import annotations

import statistics
import time

import numpy as np

from benchmarks.common import header
from wsi.placement import Placement
from wsi.slides.blocks import plan_blocks
from wsi.slides.grid import make_grid
from wsi.slides.slide import ReadPlan
from wsi.slides.tissue import Mask

SIDE = 100_000


def main() -> None:
    header(f"Planning {SIDE} x {SIDE} px")
    mask = Mask(np.ones((3126, 3126), np.bool_), Placement(32, 32))
    plan = ReadPlan(0, 128, 128, 299)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        blocks = plan_blocks(make_grid((SIDE, SIDE), plan, mask), 32)
        seconds.append(time.perf_counter() - start)
    print(
        f"  {sum(len(b.cells) for b in blocks)} cells in {len(blocks)} blocks: {statistics.median(seconds):.2f} s"
    )


if __name__ == "__main__":
    main()
