"""The service on slides: the same bytes as wsi score, order, faults, and what a killed server leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from models.engines import EngineConfig, find_models, load_engine
from models.engines.openvino import OpenVinoFeatures
from pipelines.camelyon16.read.page import write_tables
from pipelines.camelyon16.read.results import earlier_results
from pipelines.camelyon16.read.score import ScoreConfig, ScoreJob, run_fingerprint, score_slide
from pipelines.cli import serve as cli
from pipelines.renal.read.run import ReportJob, report_slide
from pipelines.runs.cohort import Failure
from pipelines.runs.run_folder import RunFolder
from pipelines.service import service as module
from pipelines.service.governor import Governor, _joined
from pipelines.service.jobs import FILE, JobRecord, JobStore
from pipelines.service.schedule import Job, Pace, admit
from pipelines.service.server import LARGEST_REQUEST, application
from pipelines.service.service import Clock, RefusedError, Service, Work
from pipelines.service.watch import Watcher
from tests.conftest import PINK, RED
from tests.pipelines.renal.test_report import LOOSE
from tests.renal_slides import readers, scattered, slide_of
from tests.slides import COMMAND, RednessEngine, painted, write_pyramid
from wsi.arrays import Scores
from wsi.errors import ConfigError, ModelError, StoreError
from wsi.files import held
from wsi.results.folder import LocalFolder
from wsi.slides.blocks import PatchBlock
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource

Run = Callable[..., tuple[int, str, str]]
CFG = ScoreConfig()
TOKEN, HOST = "the-token", "127.0.0.1:8000"
PACE = Pace(0.001, 0.1, chunk_s=0.1)


class SlowEngine(RednessEngine):
    """Redness, a while after each block; it tells how many patches each block had."""

    def __init__(self, block_s: float = 0.0) -> None:
        super().__init__()
        self.block_s, self.sizes = block_s, list[int]()
        self.go = threading.Event()
        self.go.set()

    def score(
        self, blocks: Iterable[PatchBlock], *, scored: Callable[[int], None] = lambda patches: None
    ) -> Iterator[Scores]:
        for block in blocks:
            self.go.wait(20)
            time.sleep(self.block_s)
            self.sizes.append(len(block))
            yield from super().score([block])


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Slides of unlike size, with a red square at unlike places."""
    folder = tmp_path_factory.mktemp("slides")
    paths = {}
    for name, width, height, x in (
        ("large", 9000, 3000, 900),
        ("small", 1600, 1400, 500),
        ("other", 2200, 1500, 800),
    ):
        pixels = painted(width, height, (256, 256, width - 256, height - 256), PINK)
        pixels[400:900, x : x + 600] = RED
        paths[name] = write_pyramid(folder / f"{name}.tif", pixels, levels=4, tile=256)
    return paths


def work_of(engine: RednessEngine, out: Path) -> Work:
    folder = LocalFolder(out)
    record = {
        "settings_fingerprint": run_fingerprint(engine, CFG),
        "models": [],
        "engine": "",
        "program": "",
        "code": "",
    }

    def sum_up(failures: Sequence[Failure]) -> None:
        cli._sum_up(RunFolder(folder, record, earlier_results, write_tables), failures)

    return Work(ScoreJob(folder, engine, CFG), cli._cells(engine.models.card, CFG.tissue), sum_up)


def service_of(out: Path, engine: RednessEngine, **changes: object) -> Service:
    return Service(out, work_of(engine, out), Governor(engine), PACE, **changes)  # type: ignore[arg-type]


def ended(service: Service, key: str, within_s: float = 30) -> str:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        state = service.store.get(key).state
        if state not in ("waiting", "running"):
            return state
        time.sleep(0.02)
    raise AssertionError(f"the job is still {state}")


def contents(folder: Path) -> dict[str, bytes]:
    return {n: LocalFolder(folder).read(n) for n in LocalFolder(folder).files()}


class TestResults:
    def test_slides_side_by_side_have_the_same_bytes_as_one_after_another(
        self, slides: dict[str, Path], tmp_path: Path
    ) -> None:
        service = service_of(tmp_path / "served", SlowEngine(0.01))
        keys = [service.submit(str(path))[0].id for path in slides.values()]
        service.start()
        assert {ended(service, key) for key in keys} == {"done"}
        service.stop()
        for name, path in slides.items():
            score_slide(
                SlideRow(SlideSource(str(path))), name, RednessEngine(), tmp_path / "alone" / name, CFG
            )
            assert contents(tmp_path / "served" / name) == contents(tmp_path / "alone" / name)
        record = json.loads((tmp_path / "served" / "run.json").read_text())
        assert [s["name"] for s in record["slides"]] == ["large", "other", "small"]
        assert record["state"] == "finished"

    def test_small_chunks_of_several_slides_go_as_one_block(
        self, slides: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pipelines.service.governor.JOIN_BELOW", 10_000)
        engine = SlowEngine()
        engine.go.clear()
        service = service_of(tmp_path, engine)
        keys = [service.submit(str(slides[name]))[0].id for name in ("large", "small", "other")]
        service.start()
        time.sleep(2)
        engine.go.set()
        assert {ended(service, key) for key in keys} == {"done"}
        cells = [service.store.get(key).cells for key in keys]
        service.stop()
        assert sum(engine.sizes) == sum(cells)
        assert len(engine.sizes) <= 3  # of five chunks

    @pytest.mark.slow
    def test_joined_patches_have_the_same_bits_by_the_real_engine(self) -> None:
        engine = load_engine(find_models(["lymph-node-demo"]), EngineConfig())
        rng = np.random.default_rng(0)
        blocks = [
            PatchBlock(
                rng.integers(0, 256, (420, 500, 3)).astype(np.uint8), rng.integers(0, 120, (count, 2)), 299
            )
            for count in (5, 7)
        ]
        apart = np.concatenate(list(engine.score(blocks)))
        (together,) = engine.score([_joined(blocks)])
        np.testing.assert_array_equal(apart, together)


class TestKidneys:
    def test_a_report_is_that_of_wsi_renal_report_and_deadlines_only_order(self, tmp_path: Path) -> None:
        slide = slide_of(tmp_path / "s.tif", scattered(30, 0.4, 3))
        networks = readers()
        job = ReportJob(LocalFolder(tmp_path / "served"), networks.fields.spec, networks.detector.spec, LOOSE)
        work = Work(job, lambda row: 9, lambda failures: None, predictable=False)
        service = Service(tmp_path / "served", work, Governor(networks.fields), PACE)
        record, _ = service.submit(str(slide), deadline=service.clock() + 0.5)
        assert record.deadline is not None
        assert record.promised is None
        service.start()
        assert ended(service, record.id) == "done"
        service.stop()
        report_slide(SlideRow(SlideSource(str(slide))), "s", readers(), tmp_path / "alone" / "s", LOOSE)
        served, alone = contents(tmp_path / "served" / "s"), contents(tmp_path / "alone" / "s")
        assert set(served) == set(alone)
        assert served["detections.geojson"] == alone["detections.geojson"]

    def test_one_detector(self, tmp_path: Path, wsi: Run) -> None:
        code, _, err = wsi("serve", "-o", tmp_path, "--kidneys", "-m", "a", "-m", "b")
        assert code == 2
        assert "kidneys are read by one detector" in err


class TestOrder:
    def test_an_urgent_slide_overtakes_a_large_one_and_what_was_scored_stays(
        self, slides: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsi.slides.blocks.BLOCK_PX", 1024)
        engine = SlowEngine(0.15)
        service = service_of(tmp_path, engine)
        service.start()
        routine, _ = service.submit(str(slides["large"]))
        while engine.blocks < 2:
            time.sleep(0.02)
        urgent, _ = service.submit(str(slides["small"]), deadline=service.clock() + 60)
        assert urgent.promised is not None
        assert [ended(service, urgent.id), ended(service, routine.id)] == ["done", "done"]
        first, second = service.store.get(urgent.id), service.store.get(routine.id)
        assert first.ended is not None
        assert second.ended is not None
        assert first.ended < second.ended - 0.5
        total = service.cells
        service.stop()
        assert total == first.cells + second.cells  # nothing twice

    def test_a_deadline_that_cannot_be_kept_is_refused_or_taken_without_a_promise(
        self, slides: dict[str, Path], tmp_path: Path
    ) -> None:
        service = service_of(tmp_path, RednessEngine())
        now = service.clock()
        with pytest.raises(
            RefusedError, match="the deadline cannot be kept; the slide could be done in"
        ) as refusal:
            service.submit(str(slides["small"]), deadline=now + 0.2)
        assert refusal.value.status == 409
        assert refusal.value.earliest is not None
        assert now + 0.2 < refusal.value.earliest < now + 20
        record, is_new = service.submit(str(slides["small"]), deadline=now + 0.2, or_later=True)
        assert (is_new, record.deadline, record.promised) == (True, None, None)
        with pytest.raises(RefusedError, match="lies in the past"):
            service.submit(str(slides["other"]), deadline=now - 1)

    def test_the_same_slide_is_one_job_and_its_earlier_deadline_holds(
        self, slides: dict[str, Path], tmp_path: Path
    ) -> None:
        service = service_of(tmp_path, RednessEngine())
        first, _ = service.submit(str(slides["small"]))
        second, is_new = service.submit(str(slides["small"]), deadline=service.clock() + 50)
        assert (second.id, is_new) == (first.id, False)
        assert second.promised is not None
        third, _ = service.submit(str(slides["small"]), deadline=service.clock() + 5000)
        assert third.deadline == second.deadline
        service.start()
        assert ended(service, first.id) == "done"
        assert service.submit(str(slides["small"]))[0].state == "done"
        service.stop()

    def test_two_slides_of_one_name_have_two_folders(self, slides: dict[str, Path], tmp_path: Path) -> None:
        twin = tmp_path / "twin" / "small.tif"
        twin.parent.mkdir()
        twin.write_bytes(slides["other"].read_bytes())
        service = service_of(tmp_path / "out", RednessEngine())
        names = [service.submit(str(path))[0].name for path in (slides["small"], twin)]
        assert names[0] == "small"
        assert names[1].startswith("small-")


class TestMended:
    """What a review found."""

    def test_a_full_disk_at_the_start_keeps_the_queue(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / ".service"
        store = JobStore(folder)
        store.put(JobRecord("a", "a", "/a", None, "", 0.0, None, None, 5))
        before = (folder / FILE).read_bytes()
        real = sqlite3.connect

        def full(*args: object, **more: object) -> object:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL  # type: ignore[misc]
            raise error

        monkeypatch.setattr(sqlite3, "connect", full)
        with pytest.raises(StoreError, match="cannot be opened .*full.*; free space, and start again"):
            JobStore(folder)
        monkeypatch.setattr(sqlite3, "connect", real)
        assert (folder / FILE).read_bytes() == before
        assert [r.id for r in JobStore(folder).all()] == ["a"]

    def test_a_late_slide_is_no_reason_to_refuse_another(self) -> None:
        pace = Pace(1.0, 5.0, chunk_s=2.0)
        late = Job("late", 0, 100, 10.0)
        assert admit(Job("new", 50, 10, 10_000.0), [late], 50.0, pace)[0]
        assert not admit(Job("new", 50, 10, 60.0), [late, Job("due", 0, 10, 200.0)], 50.0, pace)[0]

    def test_the_pace_is_counted_inside_a_stream(
        self, slides: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsi.slides.blocks.BLOCK_PX", 1024)
        service = service_of(tmp_path, SlowEngine(0.2))
        service.start()
        key = service.submit(str(slides["large"]))[0].id
        while service.cells == 0 or service.progress(key) is None:
            time.sleep(0.05)
        time.sleep(1.0)
        assert service.cells < service.store.get(key).cells
        assert service.busy_s > 0.5
        assert ended(service, key) == "done"
        service.stop()

    def test_urgent_slides_do_not_wait_for_places_of_routine_ones(self, tmp_path: Path) -> None:
        service = service_of(tmp_path, RednessEngine())
        for i in range(6):
            service._jobs[f"r{i}"] = Job(f"r{i}", i, 9)
        chosen = service._next()
        assert chosen == ["r0", "r1", "r2", "r3"]
        service._running = dict.fromkeys(chosen, threading.current_thread())
        for i in range(6):
            service._jobs[f"u{i}"] = Job(f"u{i}", 10 + i, 9, 100.0 + i)
        assert service._next() == ["u0", "u1", "u2", "u3"]

    def test_a_disk_that_fails_keeps_the_job(
        self, slides: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "PAUSE_S", 0.3)
        engine = RednessEngine()
        service = service_of(tmp_path, engine)
        real, faults = LocalFolder.write, [3]

        def write(self: LocalFolder, name: str, content: bytes | str, **more: bool) -> None:
            if name == "slide.json" and faults[0]:
                faults[0] -= 1
                raise StoreError("no space left")
            real(self, name, content, **more)

        monkeypatch.setattr(LocalFolder, "write", write)
        service.start()
        key = service.submit(str(slides["small"]))[0].id
        assert ended(service, key) == "done"
        assert faults == [0]
        service.stop()

    def test_failed_and_then_done_is_not_told_as_failed(
        self, slides: dict[str, Path], tmp_path: Path
    ) -> None:
        path = tmp_path / "small.tif"
        path.write_bytes(slides["small"].read_bytes())
        service = service_of(tmp_path / "out", RednessEngine())
        key = service.submit(str(path))[0].id
        path.unlink()
        service.start()
        assert ended(service, key) == "failed"
        service.stop()
        path.write_bytes(slides["small"].read_bytes())
        again = service_of(tmp_path / "out", RednessEngine())
        again.start()
        assert ended(again, again.submit(str(path))[0].id) == "done"
        again.stop()
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        assert record["failed"] == []
        assert [s["note"] for s in record["slides"]] == [""]

    def test_tables_that_cannot_be_written_do_not_end_the_service(
        self, slides: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = RednessEngine()
        work = work_of(engine, tmp_path)

        def broken(failures: object) -> None:
            raise PermissionError("run.json")

        service = Service(tmp_path, Work(work.job, work.cells, broken), Governor(engine), PACE)
        service.start()
        for name in ("small", "other"):
            assert ended(service, service.submit(str(slides[name]))[0].id) == "done"
            time.sleep(0.3)
        service.stop()
        assert "the tables cannot be written" in caplog.text

    def test_another_spacing_is_another_job_and_a_removed_result_is_made_again(
        self, slides: dict[str, Path], tmp_path: Path
    ) -> None:
        service = service_of(tmp_path, RednessEngine())
        first, _ = service.submit(str(slides["small"]))
        assert service.submit(str(slides["small"]), mpp=0.26)[1]
        service.start()
        assert ended(service, first.id) == "done"
        shutil.rmtree(tmp_path / "small")
        assert service.submit(str(slides["small"]))[1]
        service.stop()

    def test_one_server_of_a_folder(self, tmp_path: Path) -> None:
        with held(tmp_path / "lock") as first, held(tmp_path / "lock") as second:
            assert (first, second) == (True, False)
        with held(tmp_path / "lock") as third:
            assert third

    def test_the_token_goes_to_no_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        with pytest.raises(ConfigError, match="127.0.0.1:1 does not answer"):
            cli._ask({"url": "http://127.0.0.1:1", "token": "x"}, "GET", "/health", timeout=2)

    def test_threads_share_the_comparison_of_tissue(self) -> None:
        patches = [np.full((96, 96, 3), value, np.uint8) for value in range(60, 90)]
        (folder,) = find_models(["lymph-node-10x"]).folders
        frame = find_models(["lymph-node-10x"]).card
        features = OpenVinoFeatures(folder, frame, frame)
        alone = features(patches)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(features, [patches] * 8):
                np.testing.assert_array_equal(found, alone)


class TestFaults:
    def test_what_is_no_slide_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "x.tif").write_text("no slide")
        service = service_of(tmp_path / "out", RednessEngine())
        for name in ("x.tif", "missing.tif"):
            with pytest.raises(RefusedError, match=name) as refusal:
                service.submit(str(tmp_path / name))
            assert refusal.value.status == 422
        assert service.store.all() == []

    def test_a_slide_that_vanishes_fails_and_the_next_one_does_not(
        self, slides: dict[str, Path], tmp_path: Path
    ) -> None:
        gone = tmp_path / "gone.tif"
        gone.write_bytes(slides["small"].read_bytes())
        service = service_of(tmp_path / "out", RednessEngine())
        keys = [service.submit(str(path))[0].id for path in (gone, slides["other"])]
        gone.unlink()
        service.start()
        assert [ended(service, key) for key in keys] == ["failed", "done"]
        assert "gone.tif" in service.store.get(keys[0]).reason
        service.stop()
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        assert [f["name"] for f in record["failed"]] == ["gone"]

    def test_an_engine_that_fails_fails_its_slides_and_goes_on(
        self, slides: dict[str, Path], tmp_path: Path
    ) -> None:
        class Breaks(SlowEngine):
            def score(
                self, blocks: Iterable[PatchBlock], *, scored: Callable[[int], None] = lambda patches: None
            ) -> Iterator[Scores]:
                for block in blocks:
                    self.blocks += 1
                    if self.blocks == 1:
                        raise ModelError("memory ran out")
                    yield from RednessEngine.score(self, [block])

        service = service_of(tmp_path, Breaks())
        service.start()
        first, _ = service.submit(str(slides["small"]))
        assert ended(service, first.id) == "failed"
        assert service.store.get(first.id).reason == "memory ran out"
        again, is_new = service.submit(str(slides["small"]))  # a failed one can be submitted once more
        assert is_new
        assert ended(service, again.id) == "done"
        service.stop()

    def test_cancelled_ones_end_whether_they_wait_or_run(
        self, slides: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsi.slides.blocks.BLOCK_PX", 1024)
        engine = SlowEngine(0.1)
        service = service_of(tmp_path, engine, at_once=1)
        service.start()
        runs, _ = service.submit(str(slides["large"]))
        waits, _ = service.submit(str(slides["small"]))
        while engine.blocks < 2:
            time.sleep(0.02)
        assert service.cancel(waits.id).state == "cancelled"
        assert service.cancel(runs.id).state == "cancelled"
        last, _ = service.submit(str(slides["other"]))
        assert ended(service, last.id) == "done"
        assert service.store.get(runs.id).state == "cancelled"
        assert not (tmp_path / "large" / "slide.json").exists()
        assert not (tmp_path / "small").exists()
        assert service.cancel(last.id).state == "done"
        with pytest.raises(KeyError):
            service.cancel("no such job")
        service.stop()

    def test_stopped_it_goes_on_at_the_next_missing_chunk(
        self, slides: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsi.slides.blocks.BLOCK_PX", 1024)
        engine = SlowEngine(0.1)
        first = service_of(tmp_path / "out", engine)
        record, _ = first.submit(str(slides["large"]), deadline=first.clock() + 500)
        first.start()
        while engine.blocks < 3:
            time.sleep(0.02)
        first.stop()
        done = sum(engine.sizes)
        assert 0 < done < record.cells
        second_engine = SlowEngine()
        second = service_of(tmp_path / "out", second_engine)
        assert list(second.expected()) == [record.id]
        second.start()
        assert ended(second, record.id) == "done"
        second.stop()
        assert done + sum(second_engine.sizes) == record.cells
        score_slide(
            SlideRow(SlideSource(str(slides["large"]))), "large", RednessEngine(), tmp_path / "alone", CFG
        )
        assert contents(tmp_path / "out" / "large") == contents(tmp_path / "alone")

    def test_a_broken_queue_is_kept_aside_and_results_are_found_again(
        self, slides: dict[str, Path], tmp_path: Path
    ) -> None:
        service = service_of(tmp_path, RednessEngine())
        service.start()
        key = service.submit(str(slides["small"]))[0].id
        assert ended(service, key) == "done"
        service.stop()
        queue = tmp_path / ".service" / FILE
        queue.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
        engine = RednessEngine()
        again = service_of(tmp_path, engine)
        assert [p.name for p in queue.parent.glob(f"{FILE}.broken-*")]
        again.start()
        record, is_new = again.submit(str(slides["small"]))
        assert is_new
        assert ended(again, record.id) == "done"
        again.stop()
        assert engine.blocks == 0

    def test_too_many_are_told_to_come_again(
        self, slides: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MOST_WAITING", 1)
        service = service_of(tmp_path, RednessEngine())
        service.submit(str(slides["small"]))
        with TestClient(application(service, TOKEN, None), base_url=f"http://{HOST}") as client:
            answer = client.post("/api/jobs", json={"slide": str(slides["other"])}, headers=bearer())
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0

    def test_a_clock_that_is_set_back_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Clock()
        before = clock()
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert before <= clock() < before + 5

    def test_jobs_come_back_as_they_were(self, tmp_path: Path) -> None:
        service = service_of(tmp_path, RednessEngine())
        assert service.store.all() == []
        store = JobStore(tmp_path / ".service")
        assert store.counts() == {}


def bearer() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}"}


class TestInterface:
    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[Service]:
        service = service_of(tmp_path, RednessEngine())
        service.start()
        yield service
        service.stop()

    @pytest.fixture
    def client(self, service: Service) -> Iterator[TestClient]:
        app = application(service, TOKEN, frozenset({HOST}))
        with TestClient(app, base_url=f"http://{HOST}", headers=bearer()) as client:
            yield client

    def test_submit_look_follow(self, client: TestClient, slides: dict[str, Path]) -> None:
        answer = client.post("/api/jobs", json={"slide": str(slides["small"]), "within_s": 600})
        assert answer.status_code == 201
        job = answer.json()
        assert job["promised"] <= job["deadline"]
        assert str(slides["small"].parent) not in answer.text  # a path may name a patient
        with client.stream("GET", f"/api/jobs/{job['id']}/events") as stream:
            events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
        assert events[-1]["state"] == "done"
        assert client.get(f"/api/jobs/{job['id']}").json()["state"] == "done"
        assert [j["id"] for j in client.get("/api/jobs").json()["jobs"]] == [job["id"]]
        assert client.get("/api/jobs?state=open").json()["jobs"] == []
        assert client.post("/api/jobs", json={"slide": str(slides["small"])}).status_code == 200
        assert client.delete(f"/api/jobs/{job['id']}").json()["state"] == "done"
        text = client.get("/metrics").text
        assert 'slidewright_jobs{state="done"} 1' in text
        assert f"slidewright_cells_total {job['cells']}" in text

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({}, 422),
            ({"slide": ""}, 422),
            ({"slide": "x", "colour": 1}, 422),
            ({"slide": "x", "within_s": -1}, 422),
            ({"slide": "x", "within_s": 1, "by": 1}, 422),
            ({"slide": "x", "by": 5}, 422),
            ({"slide": "/no/such.tif"}, 422),
            ({"slide": "x" * LARGEST_REQUEST}, 413),
        ],
    )
    def test_what_is_not_understood(self, client: TestClient, body: dict[str, object], status: int) -> None:
        answer = client.post("/api/jobs", json=body)
        assert answer.status_code == status
        assert answer.json()["error"]

    def test_strangers(self, client: TestClient) -> None:
        assert client.get("/api/jobs", headers={"Authorization": "Bearer no"}).status_code == 403
        assert client.get("/api/jobs", headers={"Host": "evil.example"}).status_code == 400
        assert client.get("/api/jobs", headers={"Origin": "http://evil.example"}).status_code == 403
        assert client.get("/health", headers={"Authorization": ""}).json()["state"] == "ok"
        assert client.get("/metrics", headers={"Authorization": ""}).status_code == 403
        assert client.get("/api/jobs", headers={"X-Slidewright-Api": "0"}).status_code == 426
        assert (
            client.post("/api/jobs", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
        )
        for path in ("/api/jobs/none", "/api/jobs/none/events"):
            assert client.get(path).status_code == 404
        assert client.delete("/api/jobs/none").status_code == 404

    def test_the_description_has_every_path(self, client: TestClient) -> None:
        described = client.get("/openapi.json").json()["paths"]
        routes = {route.path for route in client.app.routes} - {"/openapi.json"}  # type: ignore[attr-defined]
        assert set(described) == routes


class TestWatch:
    def test_a_file_is_taken_when_it_no_longer_grows(
        self, slides: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        incoming = tmp_path / "incoming"
        incoming.mkdir()
        service = service_of(tmp_path / "out", RednessEngine())
        watcher = Watcher(incoming, service)
        content = slides["small"].read_bytes()
        (incoming / "a.tif").write_bytes(content[:1000])
        (incoming / "bad.tif").write_text("no slide")
        watcher.look()
        (incoming / "a.tif").write_bytes(content)
        watcher.look()
        assert service.store.all() == []
        for _ in range(3):
            watcher.look()
        assert [r.name for r in service.store.all()] == ["a"]
        assert caplog.text.count("bad.tif is not taken") == 1

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="is no folder"):
            Watcher(tmp_path / "none", service_of(tmp_path / "out", RednessEngine()))


class TestCommands:
    def test_times(self) -> None:
        assert [cli._seconds(t) for t in ("90s", "10m", "1.5 h", "2d")] == [90, 600, 5400, 172800]
        now = datetime(2026, 12, 1, 14, 10, tzinfo=timezone(timedelta(hours=1)))
        assert cli._moment("14:30", now) == now.timestamp() + 1200
        assert cli._moment("14:00", now) == now.timestamp() - 600 + 86400
        assert cli._moment("2026-12-02T14:10", now) == now.timestamp() + 86400
        for text in ("25:00", "soon", "2026-11-30T10:00"):
            with pytest.raises(ConfigError):
                cli._moment(text, now)
        with pytest.raises(ConfigError, match="write 90s, 10m, 2h or 1d"):
            cli._seconds("10")

    def test_simulate(self, tmp_path: Path, wsi: Run) -> None:
        (tmp_path / "t.csv").write_text("arrival_s,cells,deadline_s\n0,2048,\n1,1024,30\n")
        words = ["serve", "-o", tmp_path / "o", "--simulate", tmp_path / "t.csv"]
        code, out, _ = wsi(*words, "--pace", "0.01", "--slide-seconds", "2", "--workers", "2")
        assert code == 0
        assert "first come, first served" in out
        assert "0.01 s a cell, 2 s a slide, 2 workers" in out
        assert not (tmp_path / "o").exists()

    def test_without_a_server_or_a_deadline(self, tmp_path: Path, wsi: Run, slides: dict[str, Path]) -> None:
        code, _, err = wsi("submit", slides["small"], "-o", tmp_path, "--priority", "routine")
        assert code == 2
        assert f"start one: wsi serve -o {tmp_path}" in err
        code, _, err = wsi("submit", slides["small"], "-o", tmp_path, "--deadline", "1m", "--by", "14:30")
        assert code == 2
        assert "one of --deadline, --by, or --priority routine" in err
        code, _, err = wsi("queue", "-o", tmp_path)
        assert code == 2

    @pytest.mark.slow
    def test_a_killed_server_goes_on(self, tmp_path: Path, wsi: Run, slides: dict[str, Path]) -> None:
        out = tmp_path / "out"

        def serve(*words: object) -> subprocess.Popen[str]:
            command = [
                COMMAND,
                "serve",
                "-o",
                str(out),
                "-m",
                "lymph-node-demo",
                "--policy",
                "edf",
                *map(str, words),
            ]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            until = time.monotonic() + 100
            while not (out / ".service" / "address.json").exists():
                assert server.poll() is None, server.communicate()
                assert time.monotonic() < until
                time.sleep(0.1)
            return server

        first = serve("--host", "localhost", "--port", "0")
        assert oct((out / ".service" / "address.json").stat().st_mode)[-3:] == "600"
        code, text, err = wsi("submit", slides["large"], "-o", out, "--by", "2099-01-01T00:00", "--or-later")
        assert code == 0, err
        assert "promised by" in text
        code, _, err = wsi("serve", "-o", out, "-m", "lymph-node-demo")
        assert code == 2
        assert f"wsi submit SLIDE -o {out}" in err
        time.sleep(2)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        (out / ".service" / "address.json").unlink()
        incoming = tmp_path / "incoming"
        incoming.mkdir()
        second = serve("--watch", incoming)
        try:
            code, text, err = wsi("submit", slides["large"], "-o", out, "--priority", "routine", "--wait")
            assert code == 0, err
            assert "large: done" in text
            code, text, _ = wsi("queue", "-o", out)
            assert "large" in text
            key = json.loads((out / ".service" / "address.json").read_text())
            assert set(key) == {"url", "token"}
            code, _, err = wsi("queue", "-o", out, "--cancel", "none")
            assert code == 2
            assert "there is no such job" in err
            code, _, err = wsi("submit", slides["small"], "-o", out, "--deadline", "1s")
            assert code == 1
            assert "the deadline cannot be kept" in err
        finally:
            os.kill(second.pid, signal.SIGINT)
            text, _ = second.communicate(timeout=60)
        assert "goes on with 1 promised slide" in text
        assert "a demonstration model, trained on phantoms" in text
        assert not (out / ".service" / "address.json").exists()
        code, text, err = wsi("score", slides["large"], "-m", "lymph-node-demo", "-o", tmp_path / "alone")
        assert code == 0, err
        assert contents(out / "large") == contents(tmp_path / "alone" / "large")
