"""How fast phantoms are made: Mpx per second of processor time, and of the clock; peak memory."""

from __future__ import annotations

import argparse
import time

from benchmarks.common import header, own_peak_mb, scratch
from wsi.phantoms.lymph_node.slide import PhantomSlide, write_phantom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, action="append", help="side in pixels; default 16384 and 32768")
    sides = parser.parse_args().side or [16384, 32768]
    header("Phantoms of lymph nodes")
    for side in sides:
        with scratch() as folder:
            wall, cpu = time.perf_counter(), time.process_time()
            write_phantom(PhantomSlide("p", 902, True, (side, side)), folder)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            mpx = side * side / 1e6
            print(
                f"  {side} x {side}: {wall:.1f} s, {mpx / cpu:.0f} Mpx/s a core, {mpx / wall:.0f} Mpx/s, "
                f"peak {own_peak_mb():.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
