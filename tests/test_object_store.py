"""Slides and results on an S3 server on loopback: as on a disk, to the same bytes."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from shapely import box

from pipelines.camelyon16.read.score import ScoreConfig, score_slide
from pipelines.cli import score as score_command
from pipelines.renal.read.reading import RenalConfig
from pipelines.renal.read.review_run import review_slide
from pipelines.renal.read.run import report_slide
from pipelines.runs.claims import Claims
from pipelines.runs.review_log import Signature
from tests.renal_slides import readers, scattered, slide_of
from tests.slides import RednessEngine, write_pyramid
from wsi.errors import StoreError
from wsi.marks.annotations import Annotation, write_asap
from wsi.results.folder import Folder, LocalFolder, folder_at
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource

Run = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.slow
BUCKET = "s3://slides"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An S3 server of this process, with credentials that are made up."""
    from botocore.session import get_session
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "made-up")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "made-up")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        get_session().create_client("s3").create_bucket(Bucket="slides")
        yield
    started.stop()


@pytest.fixture(scope="module")
def slide(server: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A red square of lesion on pink tissue, at a URL."""
    pixels = np.full((3072, 4608, 3), 255, np.uint8)
    pixels[256:2816, 256:4352] = (240, 200, 220)
    pixels[1280:2304, 640:1920] = (220, 100, 100)
    path = write_pyramid(tmp_path_factory.mktemp("in") / "red.tif", pixels, levels=2)
    folder_at(f"{BUCKET}/in").write("red.tif", path.read_bytes())
    return f"{BUCKET}/in/red.tif"


def contents(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read(name) for name in folder.files()}


def test_claims_are_conditional_uploads(server: None) -> None:
    """Of sixteen threads that want one slide at one moment, one gets it."""
    out = folder_at(f"{BUCKET}/claims")
    taken, start = [], threading.Barrier(16)

    def want() -> None:
        claims = Claims(out)
        start.wait()
        if claims.take("a") is not None:
            taken.append(1)

    threads = [threading.Thread(target=want) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1


class TestLymphNodes:
    def test_a_run_that_is_stopped_goes_on_to_the_bytes_of_a_run_on_a_disk(
        self, slide: str, tmp_path: Path
    ) -> None:
        row, cfg = SlideRow(SlideSource(slide)), ScoreConfig(stride=64)
        out = folder_at(f"{BUCKET}/stopped/red")
        with pytest.raises(KeyboardInterrupt):
            score_slide(row, "red", RednessEngine(fail_after=1), out, cfg)
        assert sum("/c/0/" in name for name in out.files()) == 1
        again = RednessEngine()
        score_slide(row, "red", again, out, cfg)
        score_slide(row, "red", RednessEngine(), tmp_path, cfg)
        assert contents(out) == contents(LocalFolder(tmp_path))
        assert again.blocks == sum("/c/0/" in name for name in out.files()) - 1 > 0

    def test_the_commands(
        self, slide: str, tmp_path: Path, wsi: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(score_command, "load_engine", lambda models, cfg: RednessEngine())
        out = f"{BUCKET}/run"
        code, said, err = wsi("score", slide, "-o", out)
        assert (code, f"{out}/index.html shows them" in said) == (0, True), err
        write_asap(tmp_path / "red.xml", [Annotation(box(640, 1280, 1920, 2304), "Tumor")])
        code, said, err = wsi("camelyon16", "evaluate", out, "--truth", tmp_path, "--draws", "0")
        assert code == 0, err
        record = folder_at(f"{out}/evaluation").read_json("evaluation.json")
        assert [s["found"] for s in record["slides"]] == [[pytest.approx(0.9375, abs=0.01)]]
        assert folder_at(f"{out}/evaluation").read("atlas.html").count(b"data:image/jpeg") == 0
        for command in ("geojson", "asap", "csv", "ome-tiff"):
            code, said, err = wsi("export", command, out)
            assert (code, f"{out}/red/" in said) == (0, True), err
        code, said, _ = wsi("verify", out, "--slides")
        assert (code, "every noted file and slide is as it was" in said) == (0, True)
        folder_at(out).write("red/lesions.csv", "changed")
        code, _, err = wsi("verify", out)
        assert (code, f"{out}/red/lesions.csv: holds 7 bytes instead of" in err) == (1, True)
        code, _, err = wsi("score", slide, "-o", out)
        assert (code, "lesions.csv: holds 7 bytes instead of" in err) == (0, True)
        assert wsi("verify", out)[0] == 0
        code, said, err = wsi("camelyon16", "submit", out, "-o", f"{BUCKET}/submission")
        assert code == 0, err
        assert folder_at(f"{BUCKET}/submission").files() == [
            "classification.csv",
            "lesions/red.csv",
            "made_by.txt",
        ]

    def test_a_bucket_that_is_not_there(self, slide: str, wsi: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(score_command, "load_engine", lambda models, cfg: RednessEngine())
        code, _, err = wsi("score", slide, "-o", "s3://no-such-bucket/run")
        assert (code, err.count("\n") <= 2, "cannot write s3://no-such-bucket/run/run.json" in err) == (
            2,
            True,
            True,
        )

    def test_a_bucket_that_vanishes_in_the_middle(self, slide: str, monkeypatch: pytest.MonkeyPatch) -> None:
        out = folder_at(f"{BUCKET}/vanishing/red")

        def refused(*_: object, **__: object) -> None:
            raise ConnectionError("Could not connect to the endpoint")

        class Vanishes(RednessEngine):
            def expect(self, patches: int) -> None:
                monkeypatch.setattr(out._store, "pipe_file", refused)  # type: ignore[attr-defined]

        with pytest.raises(StoreError, match="cannot write s3://slides/vanishing/red/heatmap.zarr/c"):
            score_slide(SlideRow(SlideSource(slide)), "red", Vanishes(), out, ScoreConfig())


def test_a_kidney_s_report_and_its_review(server: None, tmp_path: Path) -> None:
    local = slide_of(tmp_path / "k.tif", scattered(60, 0.4, 2), cols=4, rows=3, scar=1)
    folder_at(f"{BUCKET}/in").write("k.tif", local.read_bytes())
    row = SlideRow(SlideSource(f"{BUCKET}/in/k.tif"))
    out = folder_at(f"{BUCKET}/reports/k")
    for place in (out, tmp_path / "disk"):
        report_slide(row, "k", readers(), place, RenalConfig())
    assert contents(out) == contents(LocalFolder(tmp_path / "disk"))
    corrected = json.loads(out.read("detections.geojson"))
    (tmp_path / "corrected.geojson").write_text(json.dumps(corrected))
    report = review_slide(out, tmp_path / "corrected.geojson", Signature("A. Smith", "2026-11-30"))
    assert report.corrections is not None
    assert out.exists("reviewed/report.html")
    review_slide(out, tmp_path / "corrected.geojson", Signature("B. Smith", "2026-11-30"))
    assert "reviewed-before-1/report.json" in out.files()
