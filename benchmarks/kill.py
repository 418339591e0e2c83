"""Kill ``wsi score`` at random moments, again and again; the outputs must equal an undisturbed run's."""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import ROOT, header, scratch, wsi


def outputs(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "run.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


MODEL = ("--model", "lymph-node-demo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    kills = parser.parse_args().kills
    header(f"{kills} kills at random moments")
    moments = random.Random(0)
    with scratch() as folder:
        wsi("phantom", "lymph-node", "--count", 1, "--seed", 903, "--size", "10240x8192", "--out", folder)
        slide = next(folder.glob("*_001.tif"))
        wsi("score", slide, *MODEL, "--out", folder / "warm")
        start = time.monotonic()
        wsi("score", slide, *MODEL, "--out", folder / "whole")
        took = time.monotonic() - start
        command = [sys.executable, "-m", "pipelines.cli", "score", str(slide), *MODEL, "--out"]
        equal = 0
        for number in range(kills):
            out = folder / f"killed{number}"
            process = subprocess.Popen(
                [*command, str(out)],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ,
            )
            after = moments.uniform(0.2, 0.98) * took
            time.sleep(after)
            process.send_signal(signal.SIGKILL)
            process.wait()
            chunks = len([p for p in out.rglob("c/0/*/*") if p.is_file()])
            wsi("score", slide, *MODEL, "--out", out)
            same = outputs(out) == outputs(folder / "whole")
            equal += same
            print(
                f"  killed after {after:.1f} of {took:.1f} s with {chunks} chunks: {'equal' if same else 'DIFFERENT'}",
                flush=True,
            )
    print(f"  {equal} of {kills} equal the undisturbed run, byte for byte")
    sys.exit(0 if equal == kills else 1)


if __name__ == "__main__":
    main()
