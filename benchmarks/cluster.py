"""A cohort on one worker and on two, Dask against none; claims; and a simulation of what no machine here can run.

``--simulate`` plays 10^6 slides on 1,000 workers in virtual time, and checks the simulator against a real scheduler
whose workers sleep. A dead worker's slide counts as lost work from its beginning, though really it goes on at its next
missing chunk.
"""

from __future__ import annotations

import argparse
import heapq
import multiprocessing
import os
import random
import resource
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import COMMAND, header, scratch, wsi
from models.engines import EngineConfig, EngineSpec, find_models, load_engine
from pipelines.camelyon16.read.lesions import Lesion
from pipelines.camelyon16.read.page import write_tables
from pipelines.camelyon16.read.results import SlideResult, earlier_results
from pipelines.camelyon16.read.score import ScoreConfig, ScoreJob
from pipelines.cli.console import CohortProgress
from pipelines.runs.claims import Claims
from pipelines.runs.cluster import SETTINGS, WINDOW, Cluster, own_cores
from pipelines.runs.cohort import ALONE, Crew, gather, named, run_cohort
from pipelines.runs.run_folder import RunFolder
from pipelines.runs.task import Executor
from wsi.results.folder import LocalFolder
from wsi.slides.manifest import SlideRow

PUT_USD, GET_USD = 5e-6, 0.4e-6  # a request at S3's list price in us-east-1, 2026


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slides", type=int, default=8)
    parser.add_argument("--claims", type=int, default=100_000)
    parser.add_argument(
        "--many", type=int, default=0, help="slides that cost nothing, for memory and bookkeeping"
    )
    parser.add_argument("--simulate", action="store_true")
    args = parser.parse_args()
    if args.many:
        many(args.many)
        return
    if args.simulate:
        simulate()
        check_simulator()
        return
    efficiency(args.slides)
    claims(args.claims)


def efficiency(slides: int) -> None:
    """One core without Dask, one worker on that core, two workers on two: the same bytes, and the time."""
    header(f"{slides} slides with one core, without Dask and on a worker; and on two workers")
    cores = sorted(os.sched_getaffinity(0))[:2]
    with scratch() as folder:
        wsi(
            "phantom",
            "lymph-node",
            "--count",
            slides,
            "--seed",
            905,
            "--size",
            "5120x4096",
            "--out",
            folder / "in",
        )
        rows = gather([str(folder / "in")], mpp=None, allow_anisotropic=False)
        times: dict[str, list[float]] = {}
        for turn in range(2):
            with on_cores(cores[:1]):
                times.setdefault("none", []).append(timed(rows, folder / f"none{turn}", ALONE))
            for workers in (1, 2):
                with workers_on(cores[:workers]) as client:
                    crew = Cluster(client)
                    timed(rows[: WINDOW * workers], folder / f"warm{workers}{turn}", crew)  # engines are made
                    times.setdefault(f"{workers}", []).append(timed(rows, folder / f"{workers}{turn}", crew))
        best = {name: min(each) for name, each in times.items()}
        whole = {name: contents(folder / f"{name}0") for name in times}
    print(f"  one core, no Dask:          {best['none']:6.1f} s")
    print(f"  one worker with that core:  {best['1']:6.1f} s, {best['1'] / best['none'] - 1:+.1%}")
    print(
        f"  two workers on two cores:   {best['2']:6.1f} s, {best['1'] / best['2']:.2f} times as fast as one worker"
    )
    print(f"  the same bytes: {'yes' if whole['none'] == whole['1'] == whole['2'] else 'NO'}")


def timed(rows: list[SlideRow], out: Path, crew: Crew) -> float:
    """Seconds for these slides; the engine of this process is there before."""
    engine = load_engine(find_models(["lymph-node-demo"]), EngineConfig())
    job = ScoreJob(LocalFolder(out), engine.spec, ScoreConfig())
    start = time.perf_counter()
    outcome = run_cohort(
        named(rows), job, lambda *_: None, crew=crew, watch=CohortProgress([1.0] * len(rows), lambda *_: None)
    )
    assert not outcome.failures
    return time.perf_counter() - start


def contents(folder: Path) -> dict[str, bytes]:
    place = LocalFolder(folder)
    return {name: place.read(name) for name in place.files()}


@contextmanager
def on_cores(cores: list[int]) -> Iterator[None]:
    """Keep every thread of this process, and those that it starts, on some cores."""
    before = os.sched_getaffinity(0)
    pin(cores)
    try:
        yield
    finally:
        pin(sorted(before))


def pin(cores: list[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # a thread that has just ended
            os.sched_setaffinity(int(thread.name), cores)


@contextmanager
def workers_on(cores: list[int]) -> Iterator[Any]:
    """A cluster of one worker for each core."""
    import dask
    from distributed import Client, LocalCluster

    with (
        dask.config.set(SETTINGS),
        LocalCluster(
            n_workers=len(cores), threads_per_worker=1, memory_limit=0, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(own_cores(2))
        yield client


def claims(count: int) -> None:
    """Four processes want every one of so many names."""
    header(f"{count:,} claims by four processes")
    with scratch() as folder:
        start = time.perf_counter()
        with multiprocessing.get_context("spawn").Pool(4) as pool:
            taken = pool.starmap(take, [(str(folder), count, i) for i in range(4)])
        seconds = time.perf_counter() - start
    each = Counter(name for names in taken for name in names)
    print(
        f"  taken by each: {', '.join(f'{len(names):,}' for names in taken)}; {count / seconds:,.0f} a second"
    )
    print(f"  taken twice: {sum(n > 1 for n in each.values())}; by nobody: {count - len(each)}")


def take(folder: str, count: int, number: int) -> list[int]:
    """What one process gets, going through the names from another place than the others.

    A folder for each hundred names: a claim looks at those beside it, of which a run has as many as workers.
    """
    groups: dict[int, Claims] = {}
    taken = []
    for i in range(count):
        name = (i + number * count // 4) % count
        own = groups.setdefault(name // 100, Claims(LocalFolder(Path(folder) / str(name // 100))))
        if own.take(str(name)) is not None:
            taken.append(name)
    return taken


def many(count: int) -> None:
    """So many slides that take no time, with two workers: what the bookkeeping costs."""
    header(f"{count:,} slides that take no time, two workers, a table of slides as parquet")
    import pyarrow
    import pyarrow.parquet as pq

    with scratch() as folder, workers_on(sorted(os.sched_getaffinity(0))[:2]) as client:
        paths = [f"{i // 1000:04d}/s{i:07d}.tif" for i in range(count)]
        for path in paths:
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).touch()
        pq.write_table(pyarrow.table({"path": paths}), folder / "all.parquet")
        before = peak_mb()
        job = Nothing(LocalFolder(folder / "out"))
        for what in ("scored", "again, with nothing left to do"):
            start = time.perf_counter()
            slides = named(gather([str(folder / "all.parquet")], mpp=None, allow_anisotropic=False))
            read = time.perf_counter()
            record = {"settings_fingerprint": "s", "models": [], "program": "p", "code": "c", "engine": "e"}
            run = RunFolder(job.out, record, earlier_results, write_tables)
            left = run.left_of(slides)
            joined = time.perf_counter()
            watch = CohortProgress([1.0] * len(left), lambda *_: None)
            with run.work([name for _, name in left]):
                run_cohort(left, job, run.sum_up, crew=Cluster(client), watch=watch, finished=(run.note,))
            end = time.perf_counter()
            print(
                f"  {what}: table read in {read - start:.1f} s, {len(left):,} left, known after {joined - read:.1f} s; "
                f"slides and tables {end - joined:.0f} s"
            )
            memory = f"{peak_mb():,.0f} MB, {before:,.0f} of them before the first slide"
            print(f"    memory of the scheduling process: {memory}", flush=True)
            del slides, left, watch, run
        start = time.perf_counter()
        subprocess.run([COMMAND, "cohort", "status", folder / "out"], check=True)
        print(f"  wsi cohort status: {time.perf_counter() - start:.1f} s, its start included")
        pages = sorted(p.stat().st_size for p in (folder / "out").glob("index*.html"))
        print(f"  {len(pages)} pages, the largest {pages[-1] / 1e6:.1f} MB")


def peak_mb() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass(frozen=True)
class Nothing:
    """A job that only writes a result with five lesions."""

    out: LocalFolder
    specs: tuple[EngineSpec, ...] = ()

    def run(
        self, row: SlideRow, name: str, executor: Executor, tick: Callable[[int, int, str], None]
    ) -> SlideResult:
        lesions = tuple(Lesion(0.5 + i / 10, 1000.0 * i, 2000.0) for i in range(5))
        result = SlideResult(name, row.source.place, 0.9, None, lesions, 2, 5000, (), 0.25, (100_000, 80_000))
        self.out.inside(name).write_json("slide.json", asdict(result) | {"settings_fingerprint": "s"})
        return result


@dataclass(frozen=True)
class Plan:
    """What is simulated.

    Attributes:
        seconds: of a slide, in the mean; slides differ as a log-normal with sigma 0.6.
        scheduler_s: of the scheduler's time for each task: 1 ms (dask#9437).
        deaths_per_hour: share of the workers that end in an hour; each comes back after ``back_s``.
        stale_s: until the claim of a dead worker on another machine is taken over.
        puts, gets: requests of a slide to the object store, counted on the S3 server of the tests.
    """

    slides: int
    workers: int
    seconds: float
    scheduler_s: float = 0.001
    deaths_per_hour: float = 0.01
    back_s: float = 120.0
    stale_s: float = 60.0
    puts: int = 24
    gets: int = 40


@dataclass
class Played:
    makespan: float
    scheduler_busy: float
    lost_s: float
    deaths: int


def simulate() -> None:
    header("simulated: 10^6 slides on 1,000 workers")
    for seconds, what in (
        (9.1, "a GPU each, 9.1 s a slide (facts/scale.md)"),
        (600.0, "8 cores each, 10 min a slide"),
    ):
        plan = Plan(1_000_000, 1_000, seconds)
        p = play(plan, random.Random(0))
        ideal = plan.slides * plan.seconds / plan.workers
        requests = plan.slides * (plan.puts + plan.gets)
        dollars = plan.slides * (plan.puts * PUT_USD + plan.gets * GET_USD)
        print(f"  {what}:")
        print(f"    {p.makespan / 3600:,.1f} h, {ideal / p.makespan:.1%} of what the workers could do")
        print(
            f"    scheduler {p.scheduler_busy / p.makespan:.0%} busy, at most {WINDOW * plan.workers:,} tasks in it at a time"
        )
        print(
            f"    {p.deaths:,} deaths lost {p.lost_s / 3600:,.1f} h of work ({p.lost_s / plan.slides / plan.seconds:.2%})"
        )
        print(
            f"    object store: {requests / p.makespan:,.0f} requests a second, {dollars:,.0f} USD for requests"
        )


def play(plan: Plan, luck: random.Random) -> Played:
    """Virtual time: workers take slides from a window that a scheduler fills, one task at a time; some die."""
    mu = -0.5 * 0.6**2
    end_of_scheduler = 0.0  # it handles one message at a time
    left = plan.slides
    busy = lost = 0.0
    deaths = 0
    again: list[tuple[float, int]] = []  # slides of dead workers, from when on they can be claimed again
    events = [(0.0, worker) for worker in range(plan.workers)]
    heapq.heapify(events)
    last = 0.0
    rate = plan.deaths_per_hour / 3600
    while events:
        now, worker = heapq.heappop(events)
        if again and again[0][0] <= now:
            heapq.heappop(again)
        elif left:
            left -= 1
        elif again:
            heapq.heappush(events, (again[0][0], worker))
            continue
        else:
            continue
        end_of_scheduler = max(end_of_scheduler, now) + plan.scheduler_s
        busy += plan.scheduler_s
        # the window hides the scheduler's time unless it falls behind
        begin = max(now, end_of_scheduler - WINDOW * plan.seconds)
        seconds = plan.seconds * luck.lognormvariate(mu, 0.6)
        life = luck.expovariate(rate) if rate else float("inf")
        if life < seconds:
            deaths += 1
            lost += life
            heapq.heappush(again, (begin + life + plan.stale_s, worker))
            heapq.heappush(events, (begin + life + plan.back_s, worker))
        else:
            last = max(last, begin + seconds)
            heapq.heappush(events, (begin + seconds, worker))
    return Played(last, busy, lost, deaths)


def check_simulator() -> None:
    """A real scheduler with workers that sleep, beside the simulator with the same numbers."""
    import dask
    from distributed import Client, LocalCluster

    from pipelines.runs.cluster import outcomes

    quiet = SETTINGS | {
        "distributed.admin.system-monitor.interval": "1h"
    }  # each worker of one process looks at it all
    for workers, tasks, seconds in ((40, 400, 4.0), (200, 800, 20.0)):
        header(
            f"a real scheduler, {workers} workers in threads, {tasks} tasks that sleep for {seconds:.0f} s"
        )
        with (
            dask.config.set(quiet),
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=False,
                memory_limit=0,
                dashboard_address=None,
            ) as cluster,
            Client(cluster) as client,
        ):
            start = time.perf_counter()
            count = sum(1 for _ in outcomes(client, ((time.sleep, seconds) for _ in range(tasks))))
            real = time.perf_counter() - start
            start = time.perf_counter()
            empty = sum(1 for _ in outcomes(client, ((int, 0) for _ in range(2_000))))
            rate = empty / (time.perf_counter() - start)
        plan = Plan(tasks, workers, seconds, scheduler_s=1 / rate, deaths_per_hour=0.0)
        played = play(plan, _Same())
        print(
            f"  real {real:.1f} s for {count:,} tasks; simulated {played.makespan:.1f} s with the measured {rate:,.0f} "
            f"tasks a second"
        )
        print(f"  memory of this process, scheduler and workers in it: {peak_mb():,.0f} MB", flush=True)


class _Same(random.Random):
    """No luck: every task takes the mean."""

    def lognormvariate(self, mu: float = 0.0, sigma: float = 1.0) -> float:
        return 1.0


if __name__ == "__main__":
    main()
