"""What the benchmarks share: a phantom, a width-1 model, peak memory, one line per result."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.runs.made_by import commit, machine, version

COMMAND = str(Path(sys.executable).with_name("wsi"))  # as it was installed
ROOT = Path(__file__).resolve().parents[1]
FULL_WIDTH = "inception-width-1"


def header(title: str) -> None:
    facts = machine()
    print(
        f"## {title}\nslidewright {version()} ({commit()}), {facts['processor']}, {facts['cores']} cores",
        flush=True,
    )


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="slidewright-bench-") as folder:
        yield Path(folder)


def wsi(*words: object, ok: tuple[int, ...] = (0,)) -> str:
    """Run the command line as a process of its own; what it prints. Exit codes that are not ``ok`` end the benchmark."""
    ended = subprocess.run([COMMAND, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    if ended.returncode not in ok:
        raise SystemExit(f"{ended.stderr}wsi {' '.join(map(str, words))} ended with {ended.returncode}")
    return ended.stdout


def wsi_peak_mb(*words: object) -> float:
    """Run the command line; the peak of its resident memory in MB.

    It is asked of the process itself: what ``wait`` tells of a child begins with its parent's memory.
    """
    code = (
        "import sys; from pipelines import cli\n"
        "try: cli.main()\n"
        "finally: print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    if ended.returncode:
        raise SystemExit(f"wsi {' '.join(map(str, words))} ended with {ended.returncode}")
    return int(ended.stdout.split()[-1]) / 1024


def own_peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def full_width_model(folder: Path) -> Path:
    """An Inception-v3 of width 1 with random weights: right for timing, wrong for everything else."""
    import torch

    from models.card import Architecture
    from models.checkpoint import save_checkpoint
    from models.networks.inception import InceptionV3

    torch.manual_seed(0)
    save_checkpoint(
        folder / FULL_WIDTH,
        InceptionV3(2),
        name=FULL_WIDTH,
        architecture=Architecture(width=1.0),
        classes=("normal", "tumor"),
        positive="tumor",
        patch_px=299,
        stride_px=128,
        spacing_um=0.243,
        demonstration=True,
    )
    return folder / FULL_WIDTH
