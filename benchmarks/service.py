"""The scoring service: policies on one trace, for real and simulated; load; kills.

python -m benchmarks.service policies            the rows of the table, on this machine and in simulation
python -m benchmarks.service scale               100,000 slides and 64 workers, in simulation
python -m benchmarks.service load                10,000 submissions by 200 clients, bad slides between
python -m benchmarks.service kill                SIGKILL at random moments, thirty times
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import COMMAND, header, scratch
from models.engines import Engine, EngineConfig, find_models, load_engine
from pipelines.camelyon16.read.page import write_tables
from pipelines.camelyon16.read.results import earlier_results
from pipelines.camelyon16.read.score import ScoreConfig, ScoreJob, run_fingerprint
from pipelines.cli.serve import _address, _ask, _cells, _sum_up, _warm_up
from pipelines.runs.made_by import run_record
from pipelines.runs.run_folder import RunFolder
from pipelines.service.governor import Governor
from pipelines.service.schedule import Pace
from pipelines.service.service import RefusedError, Service, Work
from pipelines.service.simulate import Arrival, Ended, Figures, Machine, compared, drawn, figures, simulate
from wsi.arrays import RgbImage
from wsi.phantoms.pyramid import write_pyramid
from wsi.results.folder import LocalFolder

MODEL = "lymph-node-demo"
MPP = 0.243
CFG = ScoreConfig()


def small_slides(folder: Path, count: int, sides: tuple[int, int], seed: int = 0) -> list[Path]:
    """Slides of coarse pink and violet squares, whose width is drawn between two numbers of pixels."""
    rng = np.random.default_rng(seed)
    paths = []
    for i in range(count):
        width = int(np.exp(rng.uniform(*np.log(np.array(sides)))))
        size = (width, width * 2 // 3)
        coarse = rng.integers(90, 200, (size[1] // 64 + 1, width // 64 + 1, 3))
        coarse[..., 1] //= 2
        pixels = np.kron(coarse, np.ones((64, 64, 1), np.int64)).astype(np.uint8)

        def render(x: int, y: int, w: int, h: int, pixels: RgbImage = pixels) -> RgbImage:
            return pixels[y : y + h, x : x + w]

        paths.append(folder / f"slide_{i:05d}.tif")
        write_pyramid(paths[-1], size, MPP, render)
    return paths


def work_of(engine: Engine, out: Path) -> Work:
    folder = LocalFolder(out)
    record = run_record({}, [], engine.description, run_fingerprint(engine, CFG))
    job = ScoreJob(folder, engine.spec, CFG)
    cells = _cells(engine.models.card, CFG.tissue)
    return Work(
        job,
        cells,
        lambda failures: _sum_up(RunFolder(folder, record, earlier_results, write_tables), failures),
    )


def replay(
    arrivals: Sequence[Arrival],
    paths: Sequence[Path],
    out: Path,
    engine: Engine,
    pace: Pace,
    row: dict[str, Any],
) -> tuple[list[Ended], float]:
    """Submit slides at their times, and wait for all: what became of each, and the share of time at work."""
    governor = Governor(engine, row["policy"], fuse=row["fuse"])
    service = Service(
        out, work_of(engine, out), governor, pace, at_once=row["at_once"], admission=row["admission"]
    )
    service.start()
    began = service.clock()
    keys: list[str | None] = []
    for arrival, path in zip(arrivals, paths, strict=True):
        time.sleep(max(0.0, began + arrival.at - service.clock()))
        deadline = None if arrival.within is None else began + arrival.at + arrival.within
        try:
            keys.append(service.submit(str(path), deadline=deadline)[0].id)
        except RefusedError:
            keys.append(None)
    while any(service.store.get(key).state in ("waiting", "running") for key in keys if key):
        time.sleep(0.05)
    records = [service.store.get(key) if key else None for key in keys]
    busy, span = governor.busy_s, service.clock() - began
    service.stop()
    ended = []
    for arrival, record in zip(arrivals, records, strict=True):
        if record is None:
            ended.append(Ended(arrival, None, None))
            continue
        assert record.state == "done", record
        promised = None if record.promised is None else record.promised - began
        ended.append(Ended(arrival, (record.ended or 0) - began, promised))
    return ended, busy / span


def line(name: str, f: Figures) -> str:
    shares = " ".join(f"{share:7.1%}" for share in (f.taken, f.late_taken, f.late_all, f.busy, f.broken))
    return f"{name:34}{shares} {f.tardiness_s[0]:8.1f} {f.tardiness_s[1]:8.1f} {f.slides_h:8.0f}"


HEAD = f"{'':34}{'taken':>7} {'late':>7} {'missed':>7} {'busy':>7} {'broken':>7} {'median':>8} {'99 %':>8} {'slides/h':>8}"
ROWS: dict[str, dict[str, Any]] = {
    "first come, first served": {"policy": "fifo", "fuse": False, "at_once": 1, "admission": False},
    "slide at a time": {"policy": "slide", "fuse": False, "at_once": 1, "admission": False},
    "earliest deadline, overlap": {"policy": "edf", "fuse": False, "at_once": 4, "admission": False},
    "with fusion": {"policy": "edf", "fuse": True, "at_once": 4, "admission": False},
    "with admission": {"policy": "edf", "fuse": True, "at_once": 4, "admission": True},
}


def policies(args: argparse.Namespace) -> None:
    engine = load_engine(find_models([MODEL]), EngineConfig())
    header("Policies of the scoring service")
    print(engine.description)
    with scratch() as folder:
        paths = small_slides(folder, args.slides, (1500, 5000))
        pace = measured(engine, paths[:6], folder / "pace")
        print(f"{pace.cell_s * 1000:.2f} ms a cell, {pace.slide_s:.2f} s a slide besides")
        cells = [work_of(engine, folder).cells(row) for row in rows_of(paths)]
        machine = Machine(replace(pace, chunk_s=0.0))
        for load in args.loads:
            arrivals = of_sizes(
                drawn("poisson", len(paths), load, machine, cells=(50, 500), seed=1), cells, machine, load
            )
            print(f"load {load:g}: {len(paths)} slides of {min(cells)} to {max(cells)} cells\n{HEAD}")
            for title, row in ROWS.items():
                out = folder / f"{title}-{load}"
                f = figures(*replay(arrivals, paths, out, engine, pace, row))
                print(line(title, f), flush=True)
                model = replace(machine, overlap=row["at_once"] > 1, fuse=row["fuse"])
                simulated = figures(*simulate(arrivals, model, row["policy"], admission=row["admission"]))
                print(line("    simulated", simulated), flush=True)


def rows_of(paths: Sequence[Path]) -> list[Any]:
    from wsi.slides.manifest import SlideRow
    from wsi.slides.source import SlideSource

    return [SlideRow(SlideSource(str(path))) for path in paths]


def of_sizes(
    arrivals: Sequence[Arrival], cells: Sequence[int], machine: Machine, load: float
) -> list[Arrival]:
    """The arrivals with the sizes of real slides; times and deadlines are stretched alike."""
    seconds = [n * machine.pace.cell_s + machine.pace.slide_s for n in cells]
    drawn_s = [a.cells * machine.pace.cell_s + machine.pace.slide_s for a in arrivals]
    stretch = float(np.mean(seconds) / np.mean(drawn_s))
    return [
        Arrival(a.at * stretch, n, None if a.within is None else a.within * s / d)
        for a, n, s, d in zip(arrivals, cells, seconds, drawn_s, strict=True)
    ]


def measured(engine: Engine, paths: Sequence[Path], out: Path) -> Pace:
    """The pace of this machine: of slides that are scored one after another."""
    governor = Governor(engine, "slide", fuse=False)
    service = Service(out, work_of(engine, out), governor, Pace(_warm_up(engine), 1.0), at_once=1)
    records = [service.submit(str(path))[0] for path in paths]
    began = time.monotonic()
    service.start()
    while any(service.store.get(r.id).state in ("waiting", "running") for r in records):
        time.sleep(0.02)
    seconds = time.monotonic() - began
    cell_s = governor.busy_s / governor.cells
    service.stop()
    return Pace(cell_s, max(0.0, (seconds - governor.busy_s) / len(paths)), chunk_s=cell_s * 1024)


def scale(args: argparse.Namespace) -> None:
    pace = Pace(0.005, 3.0, workers=args.workers)
    for pattern in ("periodic", "poisson", "bursts"):
        for load in args.loads:
            arrivals = drawn(pattern, args.slides, load, Machine(pace), cells=(500, 60_000), seed=2)  # type: ignore[arg-type]
            began = time.monotonic()
            rows = compared(arrivals, pace, batch=8, chunk=1024)
            print(
                f"{pattern}, load {load:g}, {args.slides:,} slides, {args.workers} workers: {time.monotonic() - began:.0f} s\n{HEAD}"
            )
            for title, f in rows.items():
                print(line(title, f), flush=True)


def load(args: argparse.Namespace) -> None:
    with scratch() as folder:
        (slide,) = small_slides(folder, 1, (700, 701))
        (folder / "bad.tif").write_text("no slide")
        server, address = started(folder / "out")
        outcomes: dict[int, int] = {}
        lock = threading.Lock()

        def client(number: int) -> None:
            for i in range(args.slides // args.clients):
                path = folder / f"link_{number}_{i}.tif"
                if i % 20 == 7:
                    path = folder / "bad.tif"
                else:
                    os.link(slide, path)
                try:
                    _ask(address, "POST", "/api/jobs", {"slide": str(path)})
                    status = 201
                except RefusedError as error:
                    status = error.status
                except Exception:
                    status = 0
                with lock:
                    outcomes[status] = outcomes.get(status, 0) + 1

        began = time.monotonic()
        with ThreadPoolExecutor(args.clients) as pool:
            list(pool.map(client, range(args.clients)))
        seconds = time.monotonic() - began
        request = urllib.request.Request(
            address["url"] + "/metrics", headers={"Authorization": f"Bearer {address['token']}"}
        )
        counts = urllib.request.urlopen(request, timeout=60).read().decode().splitlines()[1:6]
        memory = next(
            x for x in Path(f"/proc/{server.pid}/status").read_text().splitlines() if x.startswith("VmHWM")
        )
        server.send_signal(signal.SIGKILL)
        server.wait()
        print(
            f"{args.slides} submissions by {args.clients} clients in {seconds:.0f} s; answers {outcomes}; {memory}; {counts}"
        )


def started(out: Path) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    (out / ".service" / "address.json").unlink(missing_ok=True)
    command = [COMMAND, "serve", "-o", str(out), "-m", MODEL]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (out / ".service" / "address.json").exists():
        assert server.poll() is None
        time.sleep(0.05)
    return server, _address(LocalFolder(out))


def kill(args: argparse.Namespace) -> None:
    rng = random.Random(0)
    with scratch() as folder:
        paths = small_slides(folder, args.slides, (1500, 4000))
        keys: list[str] = []
        for number in range(args.kills):
            server, address = started(folder / "out")
            for path in paths[number * len(paths) // args.kills : (number + 1) * len(paths) // args.kills]:
                keys.append(_ask(address, "POST", "/api/jobs", {"slide": str(path)})["id"])
            time.sleep(rng.uniform(0, 3))
            server.send_signal(signal.SIGKILL)
            server.wait()
        server, address = started(folder / "out")
        jobs = {key: _ask(address, "GET", f"/api/jobs/{key}") for key in keys}
        while any(job["state"] in ("waiting", "running") for job in jobs.values()):
            time.sleep(0.2)
            jobs = {key: _ask(address, "GET", f"/api/jobs/{key}") for key in keys}
        server.send_signal(signal.SIGINT)
        server.wait()
        states = [job["state"] for job in jobs.values()]
        command = [
            COMMAND,
            "score",
            *map(str, paths),
            "-m",
            MODEL,
            "-o",
            str(folder / "alone"),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        same = sum(contents(folder / "out" / p.stem) == contents(folder / "alone" / p.stem) for p in paths)
        print(
            f"{args.kills} kills; of {len(keys)} jobs {states.count('done')} are done; {same} of {len(paths)} slides have the bytes of wsi score"
        )


def contents(folder: Path) -> dict[str, bytes]:
    return {name: LocalFolder(folder).read(name) for name in LocalFolder(folder).files()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("policies", "scale", "load", "kill"))
    parser.add_argument("--slides", type=int)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.95])
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--kills", type=int, default=30)
    args = parser.parse_args()
    counts = {"policies": 40, "scale": 100_000, "load": 10_000, "kill": 30}
    args.slides = args.slides or counts[args.what]
    {"policies": policies, "scale": scale, "load": load, "kill": kill}[args.what](args)


if __name__ == "__main__":
    main()
