"""Runs over many machines: slides, or the chunks of a large one, are tasks of a Dask scheduler.

A task is never a single chunk: a scheduler takes about a millisecond for each. Results do not travel: a task writes
what it makes, and what is done is known from the output alone. So a worker, the scheduler, or this command may end at
any moment.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock, Thread
from time import sleep
from typing import Any, TypeVar

from pipelines.runs.claims import Claims
from pipelines.runs.cohort import Alone, Failure, Result, SlideJob, Watch, attempt
from pipelines.runs.made_by import version
from pipelines.runs.task import Each, Task, Tick
from wsi.errors import ConfigError, StoreError
from wsi.results.folder import Folder
from wsi.slides.manifest import SlideRow
from wsi.slides.staging import Ahead
from wsi.text import first_line

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Result)
WINDOW = 2  # tasks per worker that the scheduler holds: one runs, one waits
CHUNKS_PER_TASK = 4  # some 30 to 120 s on two cores, at 40 to 150 patches a second
DEATHS = 5  # times that a slide's worker may end before the slide is given up
WORKER_S = 300.0  # that the first worker of a scheduler has time to come, and another after the last has gone
LOOK_S = 5.0  # until the workers are looked at again
COUNT_S = 1.0  # until the scheduler is asked again how many workers it has
WAIT_S = 2.0  # until a slide that another command works on is looked at again
SETTINGS = {
    "distributed.scheduler.allowed-failures": DEATHS - 1,  # Dask counts those that it allows
    "distributed.admin.tick.limit": "1h",  # a network holds the interpreter for longer than a web server may
    "distributed.worker.profile.enabled": False,
    # a scheduler that is never idle takes all tasks for one computation, whose history grows with every task
    "distributed.diagnostics.computations.max-history": 0,
    # else a worker gives memory back after every array, and asks for it again: a tenth of the time; and has one thread
    "distributed.nanny.pre-spawn-environ": {},
}
_ADDRESS = re.compile(r"(tcp|tls|ws|wss)://[^\s/@]+:\d{1,5}")  # what Dask's schedulers listen at
_KEPT: dict[Any, object] = {}  # in a worker: its engines, by spec
_AT_WORK = Lock()  # in a worker: held by the slide that is worked on
_CLAIMS: dict[str, Claims] = {}  # in a worker: by OUT, so that it remembers what it saw


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Where a run's workers are.

    Attributes:
        workers: number of processes to start on this machine; 0 starts none.
        scheduler: address of a scheduler that runs.
        scheduler_file: a file with its address, as ``dask scheduler --scheduler-file`` writes it.
        timeout_s: seconds to wait for its answer.
    """

    workers: int = 0
    scheduler: str | None = None
    scheduler_file: Path | None = None
    timeout_s: float = 30.0

    @property
    def wanted(self) -> bool:
        """Whether anything but this process is to work."""
        return bool(self.workers or self.scheduler or self.scheduler_file)


class DaskExecutor:
    """Runs tasks on the workers of a cluster; at most `WINDOW` for each are handed over at a time."""

    chunks_per_task = CHUNKS_PER_TASK

    def __init__(self, client: Any) -> None:
        self._client = client

    def map(self, tasks: Iterable[Task], tick: Tick) -> Iterator[Task]:
        """Run tasks; give each when it is done, see `Executor.map`."""
        listed = list(tasks)
        total, done = sum(task.size for task in listed), 0
        tick(0, total)
        for index, _ in outcomes(self._client, ((_run_task, task) for task in listed)):
            done += listed[index].size
            tick(done, total)
            yield listed[index]


def each_on(client: Any) -> Each:
    """Calls of a function for each of many items on the workers of a cluster, see `Each`."""
    return lambda function, items: outcomes(client, ((function, item) for item in items))


class Cluster:
    """Does the slides of a run on a cluster: each on one worker, or, where they are few, chunk by chunk on all."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def work(
        self, slides: Sequence[tuple[SlideRow, str]], job: SlideJob[R], watch: Watch
    ) -> Iterator[tuple[int, R | Failure]]:
        """Outcomes in order of completion, see `Crew.work`."""
        if len(slides) < WINDOW * workers_of(self._client):
            anywhere = [(_anywhere(row), name) for row, name in slides]
            yield from Alone(DaskExecutor(self._client), WAIT_S).work(anywhere, job, watch)
            return
        claims = Claims(job.out)
        batch: list[tuple[int, bytes | None]] = [(index, None) for index in range(len(slides))]
        deaths: Counter[int] = Counter()
        while batch:
            busy = []
            calls = ((_run_slide, _anywhere(slides[i][0]), slides[i][1], job, dead) for i, dead in batch)
            for k, outcome in outcomes(self._client, calls, names=[slides[i][1] for i, _ in batch]):
                index = batch[k][0]
                if outcome is None:
                    busy.append(index)
                    continue
                watch.end(index)
                yield index, _checked(outcome, *slides[index], job.out)
            batch = list(_to_try_again(claims, slides, busy))
            deaths.update(index for index, dead in batch if dead)
            for index in [index for index, _ in batch if deaths[index] >= DEATHS]:
                batch = [item for item in batch if item[0] != index]
                watch.end(index)
                yield index, _checked(_Ended(), *slides[index], job.out)


def _anywhere(row: SlideRow) -> SlideRow:
    """The slide by paths that mean the same to a worker that runs in another folder."""
    source = (
        row.source if row.source.is_url else replace(row.source, path=str(Path(row.source.path).absolute()))
    )
    return replace(row, source=source, mask=None if row.mask is None else row.mask.absolute())


def _to_try_again(
    claims: Claims, slides: Sequence[tuple[SlideRow, str]], busy: Sequence[int]
) -> Iterator[tuple[int, bytes | None]]:
    """Slides that other commands worked on, once one of them is free, with the claims that are dead."""
    while busy:
        log.info("waiting for %d slides that other commands work on", len(busy))
        sleep(WAIT_S)
        dead = {index: claims.dead(slides[index][1]) for index in busy}
        free = [index for index in busy if dead[index] is not None or claims.is_free(slides[index][1])]
        if free:
            yield from ((index, dead[index]) for index in busy)
            return


def _checked(outcome: Any, row: SlideRow, name: str, out: Folder) -> Any:
    """The outcome; the failure of the slide where its worker ended again and again.

    Raises:
        StoreError: a worker wrote it where this command does not see it.
    """
    if not isinstance(outcome, _Ended):
        if not isinstance(outcome, Failure) and not out.exists(f"{name}/slide.json"):
            raise StoreError(
                f"{out}: a worker wrote the results of {name} where this command does not see them; give an OUT that "
                f"all machines share, or a URL"
            )
        return outcome
    reason = (
        f"{row.source.label}: its worker ended {DEATHS} times while it worked on this slide, perhaps for lack of "
        f"memory; start fewer workers on a machine"
    )
    return Failure(name, row.source.place, reason)


class _Ended:
    """Stands for the outcome of a task whose worker ended again and again."""


def outcomes(
    client: Any, calls: Iterable[tuple[Any, ...]], names: Sequence[str] | None = None
) -> Iterator[tuple[int, Any]]:
    """The index and result of each call of a function on a worker, in order of completion.

    Args:
        client: of a cluster.
        calls: a function and its arguments each.
        names: where given, a call whose worker ended `DEATHS` times gives `_Ended`, else it ends the run.

    Raises:
        StoreError: the scheduler has gone.
    """
    from distributed import as_completed
    from distributed.comm import CommClosedError

    queue = iter(enumerate(calls))
    # results come by themselves: to fetch each would take as long as to hand over a task
    running = as_completed(loop=client.loop, with_results=True, raise_errors=False)
    indices: dict[Any, int] = {}
    asked, workers = -COUNT_S, 0

    def fill() -> None:
        """Hand over tasks; workers may have come since, but to ask costs the scheduler as much as a task."""
        nonlocal asked, workers
        if time.monotonic() - asked >= COUNT_S:
            workers, asked = workers_of(client), time.monotonic()
        while len(indices) < WINDOW * workers:
            following = next(queue, None)
            if following is None:
                return
            index, (function, *arguments) = following
            future = client.submit(_of_this_version, version(), function, *arguments, pure=False, retries=0)
            indices[future] = index
            running.add(future)

    try:
        fill()
        with _watched(client, indices) as deserted:
            for future, outcome in running:
                index = indices.pop(future)
                if deserted.is_set():
                    raise StoreError(
                        f"no worker is left since {WORKER_S:.0f} s; look at the machines, and run the same "
                        f"command again"
                    )
                outcome = _checked_end(future, outcome, names)
                fill()
                yield index, outcome
    except (CommClosedError, TimeoutError, CancelledError) as error:
        raise StoreError(
            f"the scheduler does not answer any more ({first_line(error)}); run the same command again"
        ) from error
    finally:
        with suppress(Exception):  # the scheduler may have gone
            client.cancel(list(indices))


def _checked_end(future: Any, outcome: Any, named: object) -> Any:
    """What a call gave; where its worker ended again and again `_Ended`, if calls are named, else an error."""
    from distributed.scheduler import KilledWorker

    try:
        return outcome if future.status == "finished" else future.result()  # which raises what happened
    except KilledWorker as error:
        if named is None:
            raise StoreError(
                f"workers ended {DEATHS} times while they worked on one slide ({first_line(error)}); run the same "
                f"command again, with fewer workers on a machine if memory was short"
            ) from error
        return _Ended()


@contextmanager
def _watched(client: Any, running: Mapping[Any, int]) -> Iterator[Event]:
    """Give up where no worker is left, as Dask would wait for ever: cancel all that runs, and set what is given."""
    deserted, ended = Event(), Event()

    def look() -> None:
        seen = time.monotonic()
        while not ended.wait(LOOK_S):
            with suppress(Exception):  # a scheduler that has gone is noticed elsewhere
                if client.nthreads():
                    seen = time.monotonic()
                elif time.monotonic() - seen > WORKER_S:
                    deserted.set()
                    client.cancel(list(running))
                    return

    watch = Thread(target=look, name="workers left", daemon=True)
    watch.start()
    try:
        yield deserted
    finally:
        ended.set()


def _of_this_version(wanted: str, function: Any, *arguments: Any) -> Any:
    """Call a function on a worker, if it runs the same program."""
    if version() != wanted:
        raise ConfigError(
            f"a worker on {os.uname().nodename} runs slidewright {version()}, this command {wanted}; install the same "
            f"version on all machines"
        )
    return function(*arguments)


def _run_task(task: Task) -> None:
    with _AT_WORK:
        _keep(task.spec)
        task.run(lambda done, total: None)


def _run_slide(row: SlideRow, name: str, job: SlideJob[R], dead: bytes | None) -> R | Failure | None:
    claims = _CLAIMS.setdefault(str(job.out), Claims(job.out))
    with row.source.copied_ahead() as copy, _turn(copy):
        for spec in job.specs:
            _keep(spec)
        return attempt(row, name, job, claims, dead=dead)


@contextmanager
def _turn(copy: Ahead | None) -> Iterator[None]:
    """One slide at a time is worked on, while the one that the worker was handed next is copied to its disk."""
    from distributed import secede

    if copy is not None:
        copy.wait()
    with _AT_WORK:
        if copy is not None:
            secede()  # Dask begins the worker's next task, which waits for this one after its copy
        yield


def _keep(spec: Any) -> None:
    """Hold an engine as long as this worker lives."""
    if spec not in _KEPT:
        if len(_KEPT) > 3:  # a worker outlives the commands that use it
            _KEPT.clear()
        _KEPT[spec] = spec.make()


def workers_of(client: Any) -> int:
    """The number of tasks that a cluster runs at once, at least 1."""
    return int(max(1, sum(client.nthreads().values())))


@contextmanager
def connected(cfg: ClusterConfig) -> Iterator[Any]:
    """A client of a cluster: of a new one on this machine, or of one that runs.

    Raises:
        ConfigError: Dask is not installed, or no scheduler answers.
    """
    try:
        import dask
        import distributed
    except ImportError as error:
        raise ConfigError(
            "workers need Dask, which is not installed: pip install 'slidewright[cluster]'"
        ) from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is said by this program
    with dask.config.set(SETTINGS):
        try:
            client = _local(cfg.workers) if cfg.workers else _remote(cfg, distributed)
        except (OSError, ValueError, ImportError, TimeoutError, MemoryError) as error:
            where = cfg.scheduler or cfg.scheduler_file or "this machine"
            raise ConfigError(
                f"no scheduler answers at {where} ({first_line(error)}); start one with: dask scheduler"
            ) from error
        try:
            yield client
        finally:
            with suppress(Exception):
                client.close()
            if cfg.workers:
                with suppress(Exception):
                    client.cluster.close()


def _remote(cfg: ClusterConfig, distributed: Any) -> Any:
    address = cfg.scheduler or _address_in(cfg.scheduler_file or Path(), cfg.timeout_s)
    # a client raises whatever comes, and complains again when it is freed
    if not _ADDRESS.fullmatch(address):
        raise OSError(f"{address[:60]!r} is no address such as tcp://host:8786")
    client = distributed.Client(address=address, timeout=cfg.timeout_s)
    address = client.scheduler_info()["address"]
    theirs = client.get_versions()["scheduler"]["packages"]["distributed"]
    if theirs != distributed.__version__:
        client.close()
        raise ConfigError(
            f"the scheduler at {address} runs Dask {theirs}, this command {distributed.__version__}; install the same "
            f"version on all machines"
        )
    try:
        client.wait_for_workers(1, timeout=WORKER_S)
    except TimeoutError as error:
        client.close()
        raise ConfigError(
            f"the scheduler at {address} has no worker after {WORKER_S:.0f} s; start some with: "
            f"dask worker {address} --nthreads 1 --memory-limit 0"
        ) from error
    return client


def _address_in(file: Path, timeout_s: float) -> str:
    """The address in a scheduler's file, which may be written late."""
    end = time.monotonic() + timeout_s
    while not file.is_file():
        if time.monotonic() > end:
            raise OSError("there is no such file")
        sleep(0.2)
    try:
        return str(json.loads(file.read_bytes())["address"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise OSError(f"it names no address: {error!r}") from error


def _local(workers: int) -> Any:
    """Processes on this machine that share its cores; each runs one task at a time, and its engine uses its cores."""
    from distributed import Client, LocalCluster

    cluster = LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, memory_limit=0, dashboard_address=None
    )
    client = Client(cluster)
    client.register_plugin(own_cores(workers))
    return client


def own_cores(workers: int) -> Any:
    """A plugin by which each of so many workers of this machine keeps to its share of the cores."""
    from distributed import WorkerPlugin

    class OwnCores(WorkerPlugin):  # type: ignore[misc]
        """Gives each worker its share of the cores, so that their networks do not get in each other's way."""

        name = "own-cores"

        def setup(self, worker: Any) -> None:
            if not hasattr(os, "sched_setaffinity"):
                return
            cores = sorted(os.sched_getaffinity(0))
            share = cores[int(worker.name) % len(cores) :: workers] or cores
            for thread in Path("/proc/self/task").iterdir():
                with suppress(OSError):  # a thread that has just ended
                    os.sched_setaffinity(int(thread.name), share)

    return OwnCores()
