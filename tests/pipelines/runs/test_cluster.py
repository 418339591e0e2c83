"""Slides and chunks on a Dask cluster: the same bytes as here, whoever dies, and one sentence where it cannot go on."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dask
import distributed  # before any of its settings is set, else dask forgets all others with it
import fsspec
import numpy as np
import pytest

import pipelines.runs.cluster as module
from pipelines.camelyon16.benchmark.cases import Selection, join
from pipelines.camelyon16.benchmark.evaluation import EvaluationConfig, evaluate
from pipelines.camelyon16.benchmark.predictions import Prediction, read_predictions
from pipelines.camelyon16.read.score import ScoreConfig, ScoreJob
from pipelines.camelyon16.slide_model.features import FEATURES, features_of
from pipelines.renal.read.reading import RenalConfig
from pipelines.renal.read.run import RenalResult, ReportJob
from pipelines.runs.claims import FOLDER
from pipelines.runs.cluster import Cluster, ClusterConfig, DaskExecutor, connected, each_on
from pipelines.runs.cohort import ALONE, Crew, Failure, SlideJob, named, run_cohort
from pipelines.runs.task import Executor
from tests.pipelines.camelyon16.test_evaluation import benchmark  # noqa: F401
from tests.renal_slides import readers, scattered, slide_of
from tests.slides import COMMAND, RednessEngine, coordinates, write_pyramid
from wsi.arrays import Scores
from wsi.datasets.rules import read_dataset
from wsi.errors import ConfigError, StoreError
from wsi.results.folder import LocalFolder
from wsi.slides.blocks import PatchBlock
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource
from wsi.slides.staging import staging_folder

Run = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.slow


class Silent:
    """Listens to nothing but the indices of slides that ended."""

    def __init__(self) -> None:
        self.ended: list[int] = []

    def begin(self, index: int, name: str) -> None:
        pass

    def __call__(self, done: int, total: int, what: str) -> None:
        pass

    def end(self, index: int) -> None:
        self.ended.append(index)


@dataclass(frozen=True)
class Deadly:
    """A job whose first run of a slide ends its process without a word."""

    job: Any
    marks: Path
    always: str = ""

    @property
    def out(self) -> LocalFolder:
        folder: LocalFolder = self.job.out
        return folder

    @property
    def specs(self) -> Any:
        return self.job.specs

    def run(self, row: SlideRow, name: str, executor: Executor, tick: Callable[[int, int, str], None]) -> Any:
        mark = self.marks / name
        if name == self.always or not mark.exists():
            mark.touch()
            engine = Dies() if name != self.always else None
            if engine is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self.job, engine=engine).run(row, name, executor, tick)
        return self.job.run(row, name, executor, tick)


class Dies(RednessEngine):
    """Ends the process inside a slide, after one chunk."""

    sends = signal.SIGKILL

    def score(self, blocks: Iterable[PatchBlock], **options: Any) -> Iterator[Scores]:
        for i, scores in enumerate(super().score(blocks, **options)):
            if i == 1:
                os.kill(os.getpid(), self.sends)
            yield scores


class Freezes(Dies):
    """Stops the process inside a slide, as if its machine could not be reached any more."""

    sends = signal.SIGSTOP


@dataclass(frozen=True)
class OnceOn:
    """A job that does one slide otherwise the first time: with another engine, or with a disk that is full."""

    job: Any
    mark: Path
    slide: str
    engine: Any = None

    @property
    def out(self) -> LocalFolder:
        folder: LocalFolder = self.job.out
        return folder

    @property
    def specs(self) -> Any:
        return self.job.specs

    def run(self, row: SlideRow, name: str, executor: Executor, tick: Callable[[int, int, str], None]) -> Any:
        if name != self.slide or self.mark.exists():
            return self.job.run(row, name, executor, tick)
        self.mark.write_text(str(os.getpid()))
        if self.engine is not None:
            return replace(self.job, engine=self.engine).run(row, name, executor, tick)
        with patch.object(os, "replace", side_effect=OSError(errno.ENOSPC, "No space left on device")):
            return self.job.run(row, name, executor, tick)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with connected(ClusterConfig(workers=2)) as client:
        yield client


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[SlideRow]:
    """Six slides, each of its own colours, and one that is none."""
    folder = tmp_path_factory.mktemp("cohort")
    rows = []
    for i in range(6):
        pixels = np.clip(coordinates(2300 + 100 * i, 1900), 60 + 5 * i, 190)
        rows.append(SlideRow(SlideSource(str(write_pyramid(folder / f"s{i}.tif", pixels, levels=2)))))
    (folder / "no.tif").write_bytes(b"no slide")
    return [*rows, SlideRow(SlideSource(str(folder / "no.tif")))]


def contents(folder: Path) -> dict[str, bytes]:
    place = LocalFolder(folder)
    return {name: place.read(name) for name in place.files()}


def job_in(out: Path) -> ScoreJob:
    return ScoreJob(LocalFolder(out), RednessEngine(), ScoreConfig(stride=64))


def done(rows: list[SlideRow], job: SlideJob[Any], crew: Crew, watch: Silent | None = None) -> Any:
    return run_cohort(named(rows), job, lambda *_: None, crew=crew, watch=watch or Silent())


@pytest.fixture(scope="module")
def here(rows: list[SlideRow], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, bytes]]:
    out = tmp_path_factory.mktemp("here")
    return done(rows, job_in(out), ALONE), contents(out)


class TestSlides:
    def test_the_same_bytes_results_and_failures_as_here(
        self, client: Any, rows: list[SlideRow], here: tuple[Any, dict[str, bytes]], tmp_path: Path
    ) -> None:
        watch = Silent()
        outcome = done(rows, job_in(tmp_path), Cluster(client), watch)
        assert outcome == here[0]  # in the order of the input
        assert [f.name for f in outcome.failures] == ["no"]
        assert contents(tmp_path) == here[1]
        assert sorted(watch.ended) == list(range(7))

    def test_workers_that_are_killed_inside_a_slide_cost_nothing(
        self, client: Any, rows: list[SlideRow], here: tuple[Any, dict[str, bytes]], tmp_path: Path
    ) -> None:
        (tmp_path / "marks").mkdir()
        job = Deadly(job_in(tmp_path / "out"), tmp_path / "marks")
        outcome = done(rows, job, Cluster(client))
        assert len(list((tmp_path / "marks").iterdir())) == 7
        assert outcome == here[0]
        assert contents(tmp_path / "out") == here[1]

    def test_a_slide_on_which_every_worker_ends_is_a_failure_and_the_others_are_done(
        self, client: Any, rows: list[SlideRow], here: tuple[Any, dict[str, bytes]], tmp_path: Path
    ) -> None:
        (tmp_path / "marks").mkdir()
        for row in rows:
            (tmp_path / "marks" / row.source.name).touch()
        job = Deadly(job_in(tmp_path / "out"), tmp_path / "marks", always="s2")
        outcome = done(rows, job, Cluster(client))
        assert [f.name for f in outcome.failures] == ["s2", "no"]
        assert "ended 5 times while it worked on this slide" in outcome.failures[0].reason
        assert outcome.results == tuple(r for r in here[0].results if r.name != "s2")

    def test_a_worker_that_cannot_be_reached_any_more(
        self, rows: list[SlideRow], here: tuple[Any, dict[str, bytes]], tmp_path: Path
    ) -> None:
        """It is stopped inside a slide past its time, and then goes on, if it is still there."""
        job = OnceOn(job_in(tmp_path / "out"), tmp_path / "mark", "s2", Freezes())
        with dask.config.set({"distributed.scheduler.worker-ttl": "6s"}), connected(ClusterConfig(2)) as own:
            outcome = done(rows, job, Cluster(own))
            with suppress(ProcessLookupError):
                os.kill(int((tmp_path / "mark").read_text()), signal.SIGCONT)
        assert outcome == here[0]
        assert contents(tmp_path / "out") == here[1]

    def test_all_workers_go_and_none_comes_back(
        self, rows: list[SlideRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Dask would wait for ever."""
        monkeypatch.setattr(module, "WORKER_S", 0.5)
        monkeypatch.setattr(module, "LOOK_S", 0.1)
        with connected(ClusterConfig(1)) as own:
            own.cluster.scale(0)
            while own.nthreads():
                time.sleep(0.05)
            with pytest.raises(StoreError, match=r"no worker is left since 0 s; look at the machines"):
                list(module.outcomes(own, [(len, "abc")]))

    def test_a_worker_whose_disk_is_full(
        self, client: Any, rows: list[SlideRow], here: tuple[Any, dict[str, bytes]], tmp_path: Path
    ) -> None:
        """It would fail every slide alike: one sentence, and the same command goes on."""
        job = OnceOn(job_in(tmp_path / "out"), tmp_path / "mark", "s2")
        with pytest.raises(StoreError, match=r"cannot write .*s2.*No space left on device"):
            done(rows, job, Cluster(client))
        assert done(rows, job, Cluster(client)) == here[0]
        assert contents(tmp_path / "out") == here[1]

    def test_slides_of_another_command_are_waited_for(
        self,
        client: Any,
        rows: list[SlideRow],
        here: tuple[Any, dict[str, bytes]],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        out = LocalFolder(tmp_path)
        facts = {"host": "elsewhere", "process": 1, "beat": 0}
        out.write(f"{FOLDER}/s1.1.json", json.dumps(facts))
        waits = 0

        def wait(_: float) -> None:
            nonlocal waits
            waits += 1
            if waits == 2:  # the other command ends here
                out.delete(f"{FOLDER}/s1.1.json")

        monkeypatch.setattr(module, "sleep", wait)
        outcome = done(rows, job_in(tmp_path), Cluster(client))
        assert (outcome, waits) == (here[0], 2)

    def test_an_error_that_would_hit_every_slide_ends_the_run(
        self, client: Any, rows: list[SlideRow], tmp_path: Path
    ) -> None:
        (tmp_path / "out").write_text("a file")
        with pytest.raises(StoreError, match="cannot write"):
            done(rows, job_in(tmp_path / "out"), Cluster(client))


class TestChunks:
    def test_few_slides_are_spread_over_all_workers_to_the_same_bytes(
        self, client: Any, rows: list[SlideRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(DaskExecutor, "chunks_per_task", 1)
        job = replace(job_in(tmp_path / "a"), cfg=ScoreConfig(stride=16))
        assert done(rows[:1], job, Cluster(client)) == done(
            rows[:1], replace(job, out=LocalFolder(tmp_path / "b")), ALONE
        )
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    def test_reports_on_kidneys(self, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(DaskExecutor, "chunks_per_task", 1)
        slide = slide_of(tmp_path / "k.tif", scattered(60, 0.4, 2), cols=5, rows=4, scar=2)
        row, made = SlideRow(SlideSource(str(slide))), readers()
        for name, crew in (("a", Cluster(client)), ("b", ALONE)):
            job = ReportJob(LocalFolder(tmp_path / name), made.fields.spec, made.detector.spec, RenalConfig())
            assert isinstance(done([row], job, crew).results[0], RenalResult)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    def test_names_are_those_of_all_slides_whatever_the_shard(self, tmp_path: Path, wsi: Run) -> None:
        """Two slides of one file name, in two shards, must not share a folder."""
        for patient in ("c1", "c2"):
            (tmp_path / "in" / patient).mkdir(parents=True)
            write_pyramid(tmp_path / "in" / patient / "HE.tif", np.full((900, 1100, 3), 245, np.uint8))
        slides = [tmp_path / "in" / patient / "HE.tif" for patient in ("c1", "c2")]
        for shard in ("1/2", "2/2"):
            wsi("score", *slides, "-m", "lymph-node-demo", "-o", tmp_path / "out", "--shard", shard)
        assert LocalFolder(tmp_path / "out").holding("slide.json") == ["c1_HE.tif", "c2_HE.tif"]

    def test_results_that_a_worker_wrote_elsewhere_are_noticed(
        self, client: Any, rows: list[SlideRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(LocalFolder, "exists", lambda self, name="": False)
        with pytest.raises(
            StoreError, match="where this command does not see them; give an OUT that all machines"
        ):
            done(rows, job_in(tmp_path), Cluster(client))


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("[" * 5000, "it names no address"),
            ('{"address": null}', "'None' is no address such as"),
            ('{"address": "ucx://h:1"}', "'ucx://h:1' is no address such as"),
            ('{"address": "tcp://127.0.0.1:99999"}', "no scheduler answers"),
        ],
    )
    def test_a_damaged_file_of_a_scheduler(self, tmp_path: Path, content: str, said: str) -> None:
        """Dask's client raises whatever comes, and complains again when it is freed."""
        (tmp_path / "s.json").write_text(content)
        cfg = ClusterConfig(scheduler_file=tmp_path / "s.json", timeout_s=0.3)
        with pytest.raises(ConfigError, match=said), connected(cfg):
            pass

    def test_a_server_that_is_no_scheduler(self) -> None:
        """What it sends is taken for the length of a message: more than any memory holds."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]

            def greet() -> None:
                with suppress(OSError):
                    while True:
                        connection, _ = server.accept()
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4)

            threading.Thread(target=greet, daemon=True).start()
            cfg = ClusterConfig(scheduler=f"tcp://127.0.0.1:{port}", timeout_s=1)
            with pytest.raises(ConfigError, match="no scheduler answers at"), connected(cfg):
                pass
            server.shutdown(socket.SHUT_RDWR)

    def test_another_version_on_a_worker(
        self, client: Any, rows: list[SlideRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "version", lambda: "9.9")
        with pytest.raises(
            ConfigError, match=r"runs slidewright .*, this command 9\.9; install the same version"
        ):
            done(rows, job_in(tmp_path), Cluster(client))

    def test_no_scheduler(self, tmp_path: Path) -> None:
        missing = ClusterConfig(scheduler_file=tmp_path / "none.json")
        for cfg in (
            ClusterConfig(scheduler="tcp://127.0.0.1:1"),
            ClusterConfig(scheduler="nonsense"),
            missing,
        ):
            with (
                pytest.raises(ConfigError, match="no scheduler answers at"),
                connected(replace(cfg, timeout_s=1.0)),
            ):
                pass

    def test_a_scheduler_of_another_dask(self, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(distributed, "__version__", "2019.1")
        cfg = ClusterConfig(scheduler=client.scheduler_info()["address"])
        with (
            pytest.raises(ConfigError, match=r"runs Dask 20\d\d\..*, this command 2019\.1; install"),
            connected(cfg),
        ):
            pass

    def test_a_scheduler_without_workers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from distributed import LocalCluster

        monkeypatch.setattr(module, "WORKER_S", 0.5)
        with LocalCluster(n_workers=0, processes=False, dashboard_address=None, protocol="tcp://") as empty:
            address = empty.scheduler_address
            with (
                pytest.raises(
                    ConfigError,
                    match=f"the scheduler at {address} has no worker after .*dask worker {address}",
                ),
                connected(ClusterConfig(scheduler=address)),
            ):
                pass

    def test_options_that_exclude_each_other_and_shards(
        self, rows: list[SlideRow], tmp_path: Path, wsi: Run
    ) -> None:
        slides = [row.source.path for row in rows[:2]]
        code, _, err = wsi("score", *slides, "-o", tmp_path, "--workers", "2", "--scheduler", "tcp://h:1")
        assert (code, "give one of --workers, --scheduler and --scheduler-file" in err) == (2, True)
        for text in ("5/4", "0/4", "1", "a/b", "1/0"):
            code, _, err = wsi("score", *slides, "-o", tmp_path, "--shard", text)
            assert (code, f"--shard {text} is no shard; give I/N" in err) == (2, True)


@dataclass(frozen=True)
class LooksAhead:
    """A job that waits, inside each slide but the last, until the copy of the next one is there."""

    out: LocalFolder
    specs: tuple[()] = ()

    def run(self, row: SlideRow, name: str, executor: Executor, tick: Callable[[int, int, str], None]) -> Any:
        number, end = int(name[1:]), time.monotonic() + 20
        began = [p.name for p in self.out.path.glob("*.began")]
        (self.out.path / f"{name}.began").touch()
        while number < 3 and not list(staging_folder().glob(f"*/r{number + 1}.tif")):
            if time.monotonic() > end:
                return Failure(name, row.source.place, "the next slide was not copied")
            time.sleep(0.01)
        others = [p.name for p in self.out.path.glob("*.began")]
        (self.out.path / name).mkdir()
        (self.out.path / name / "slide.json").write_text("{}")
        return Failure(name, row.source.place, f"alone: {set(others) - set(began) == {f'{name}.began'}}")


def test_a_remote_slide_is_copied_to_the_worker_while_the_one_before_is_worked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for i in range(4):
        with fsspec.open(f"memory://ahead/r{i}.tif", "wb") as file:
            file.write(bytes([i]) * 100)
    remote = [SlideRow(SlideSource(f"memory://ahead/r{i}.tif")) for i in range(4)]
    (tmp_path / "out").mkdir()
    job: Any = LooksAhead(LocalFolder(tmp_path / "out"))
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as one,
    ):
        outcome = done(remote, job, Cluster(one))
    assert {f.name: f.reason for f in outcome.failures} == {f"r{i}": "alone: True" for i in range(4)}


class TestEach:
    def test_an_evaluation_on_workers_is_the_same(
        self,
        client: Any,
        benchmark: tuple[Path, Path],  # noqa: F811
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        run, truth = (path.relative_to(benchmark[0].parent) for path in benchmark)
        monkeypatch.chdir(benchmark[0].parent)  # the workers stay where they were started
        cases = join(read_predictions(run), truth, Selection(read_dataset("camelyon16"))).cases
        counts: list[tuple[int, int]] = []
        cfg = EvaluationConfig(draws=20)
        there = evaluate(cases, cfg, lambda *count: counts.append(count), each=each_on(client))
        here = evaluate(cases, cfg)
        assert there.figures == here.figures
        assert (
            [s.name for s in there.slides]
            == [s.name for s in here.slides]
            == [c.prediction.name for c in cases]
        )
        assert counts == [(i, 4) for i in range(5)]

    def test_the_features_of_slides_on_workers_are_the_same(
        self, client: Any, rows: list[SlideRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = ScoreJob(LocalFolder(tmp_path), RednessEngine().spec, ScoreConfig())
        run_cohort(named(rows[:3]), job, lambda *_: None, crew=ALONE, watch=Silent())
        results = [json.loads((tmp_path / f"s{i}" / "slide.json").read_bytes()) for i in range(3)]
        none = np.empty((0, 2))
        monkeypatch.chdir(tmp_path)  # the workers stay where they were started
        slides = [
            Prediction(
                r["name"],
                r["score"],
                none,
                none[:, 0],
                mpp=r["mpp"],
                folder=LocalFolder(Path(r["name"])),
            )
            for r in results
        ]
        here, there = features_of(slides), features_of(slides, each=each_on(client))
        assert here.shape == (3, len(FEATURES))
        assert len(np.unique(here, axis=0)) == 3  # else their order would not be seen
        np.testing.assert_array_equal(here, there)
        broken = [slides[0], replace(slides[1], folder=None)]
        with pytest.raises(StoreError, match="s1 has no heatmap"):
            features_of(broken, each=each_on(client))

    def test_the_command_asks_for_the_scheduler(self, benchmark: tuple[Path, Path], wsi: Run) -> None:  # noqa: F811
        run, truth = benchmark
        words = ("--truth", truth, "--scheduler-file", run / "none.json", "--workers", 2)
        for command in (("evaluate", run), ("forest", run, "-o", run / "forest")):
            code, _, err = wsi("camelyon16", *command, *words)
            assert (code, "give one of --workers, --scheduler and --scheduler-file" in err) == (2, True)


def test_the_command_with_two_workers_and_in_shards(tmp_path: Path) -> None:
    """Real processes, the demonstration model: the same bytes as without workers; two shards make the whole."""
    (tmp_path / "in").mkdir()
    for i in range(4):
        write_pyramid(tmp_path / "in" / f"s{i}.tif", np.clip(coordinates(1500, 900 + 50 * i), 60, 190))
    words = (COMMAND, "score", tmp_path / "in", "-m", "lymph-node-demo", "-o")
    runs = {"a": [()], "b": [("--workers", "2")], "c": [("--shard", "1/2"), ("--shard", "2/2")]}
    for name, options in runs.items():
        for some in options:
            ended = subprocess.run([*words, tmp_path / name, *some], capture_output=True, text=True)
            assert ended.returncode == 0, ended.stderr
    found = []
    for name in runs:
        files = contents(tmp_path / name)
        run = json.loads(files.pop("run.json"))
        assert ("network" in run.pop("seconds")) == (name != "b")  # a worker's time is not this command's
        found.append((files, run))
    assert found[0] == found[1] == found[2]
