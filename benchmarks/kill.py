"""Kill ``wsi score`` and ``wsi renal report`` at random moments; the outputs must equal an undisturbed run's.

Each is killed once in each of several folders. A report is also killed again and again in one folder, inside its slide,
and goes on each time.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.common import COMMAND, ROOT, header, scratch, wsi

MODEL = ("--model", "lymph-node-demo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--again", type=int, default=10, help="kills of a report in one folder")
    parser.add_argument("--what", choices=("score", "report", "both"), default="both")
    args = parser.parse_args()
    equal = True
    if args.what != "report":
        made = ("lymph-node", "--count", 1, "--seed", 903, "--size", "8192x6144")
        equal &= apart(("score",), MODEL, made, args.kills)
    if args.what != "score":
        made = ("kidney", "--count", 1, "--seed", 77, "--size", "6144x4608", "--c4d", 20)
        equal &= apart(("renal", "report"), (), made, args.kills)
        equal &= reporting(args.again)
    sys.exit(0 if equal else 1)


def apart(words: Sequence[str], options: Sequence[str], made: Sequence[object], kills: int) -> bool:
    """Kill a command at random moments, each time in a folder of its own, and let it go on there."""
    header(f"wsi {' '.join(words)}: {kills} kills at random moments")
    moments = random.Random(0)
    with scratch() as folder:
        wsi("phantom", *made, "--out", folder)
        slide = next(folder.glob("*_001.tif"))
        command = (*words, slide, *options)
        took = undisturbed(command, folder / "whole")
        equal = inside = 0
        for number in range(kills):
            out = folder / f"killed{number}"
            inside += killed(command, out, moments.uniform(0.1, 0.98) * took)
            wsi(*command, "--out", out, ok=(0, 1))
            same = outputs(out) == outputs(folder / "whole")
            equal += same
            if not same:
                print(f"  kill {number}: DIFFERENT", flush=True)
            shutil.rmtree(out)
    print(
        f"  {equal} of {kills} equal the undisturbed run, byte for byte; {inside} were killed before their end"
    )
    return equal == kills


def reporting(kills: int) -> bool:
    header(f"wsi renal report: killed {kills} times in one folder, inside its slide")
    moments = random.Random(0)
    with scratch() as folder:
        wsi(
            "phantom",
            "kidney",
            "--count",
            1,
            "--seed",
            77,
            "--size",
            "16384x12288",
            "--c4d",
            20,
            "--out",
            folder,
        )
        slide = folder / "kidney_001.tif"
        undisturbed(("renal", "report", slide), folder / "whole")
        boxes = folder / "killed" / "kidney_001" / "capillaries.boxes"
        kept: dict[str, int] = {}
        again = 0
        for number in range(kills):
            before = len(kept)
            running = killed(
                ("renal", "report", slide),
                folder / "killed",
                moments.uniform(0, 1),
                begin=lambda before=before: len(list(boxes.glob("*.npz"))) > before,
            )
            now = {p.name: p.stat().st_mtime_ns for p in boxes.glob("*.npz")}
            again += sum(now.get(name) != written for name, written in kept.items())
            kept = now
            state = "killed" if running else "it had ended"
            print(f"  {number + 1}: {state} with {len(now)} chunks", flush=True)
        wsi("renal", "report", slide, "--out", folder / "killed", ok=(0, 1))
        same = outputs(folder / "killed") == outputs(folder / "whole")
        again += sum((boxes / name).stat().st_mtime_ns != written for name, written in kept.items())
    print(f"  {'equal to' if same else 'DIFFERENT from'} the undisturbed run; {again} chunks were made twice")
    return same and not again


def undisturbed(words: Sequence[object], out: Path) -> float:
    """Run a command twice, and give the seconds of the second time: caches are warm."""
    wsi(*words, "--out", out.with_name("warm"), ok=(0, 1))
    start = time.monotonic()
    wsi(*words, "--out", out, ok=(0, 1))
    return time.monotonic() - start


def killed(
    words: Sequence[object], out: Path, after: float, begin: Callable[[], bool] = lambda: True
) -> bool:
    """Run a command, and kill it so many seconds after something is true; whether it was still running."""
    command = [COMMAND, *map(str, words), "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not begin():
        time.sleep(0.02)
    time.sleep(after)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return running


def outputs(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "run.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


if __name__ == "__main__":
    main()
