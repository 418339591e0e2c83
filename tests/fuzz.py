"""Damaged inputs by the thousand: every one must run, or be refused by one sentence that names the file.

``make fuzz`` or ``python -m tests.fuzz --count 1000 --seed 0 --seconds 600``. Seeded: the same seed gives the same inputs. An
input that raises anything but a `WsiError`, or takes longer than `LONGEST_S`, is kept in ``fuzz-failures`` and belongs into
``tests/corpus`` once it is mended; a truncated TIFF must be refused.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
from PIL import Image
from starlette.testclient import TestClient

from models.checkpoint import load_detector
from models.engines import find_models
from models.training.recipe import TrainConfig
from pipelines.camelyon16.benchmark.cases import read_truth_table
from pipelines.camelyon16.benchmark.comparison import read_evaluation
from pipelines.camelyon16.benchmark.predictions import read_predictions
from pipelines.camelyon16.read.score import ScoreConfig, score_slide
from pipelines.cli.export import read_scored
from pipelines.cli.score import RunConfig
from pipelines.renal.evaluate.truth import read_found
from pipelines.renal.read.reading import RenalConfig
from pipelines.renal.read.review import review
from pipelines.renal.read.run import read_report
from pipelines.runs.claims import FOLDER as CLAIMS
from pipelines.runs.claims import Claims
from pipelines.runs.cluster import ClusterConfig, connected
from pipelines.runs.cohort import gather
from pipelines.runs.config import load_config
from pipelines.runs.finished import FOLDER as FINISHED
from pipelines.runs.finished import FinishedList, FinishedSlide
from pipelines.runs.run_folder import refuse_other_run
from pipelines.web.collection import Collection, entries_of
from pipelines.web.server import application, cookie_of
from tests.renal_slides import scattered, slide_of
from tests.slides import RednessEngine, painted, write_pyramid
from wsi.errors import ConfigError, WsiError
from wsi.marks.annotations import marked_regions, read_outlines, tumour_regions
from wsi.marks.own_mask import read_user_mask
from wsi.results.folder import LocalFolder
from wsi.results.store import PACK, HeatmapSpec, HeatmapStore
from wsi.slides.manifest import SlideRow, read_manifest
from wsi.slides.source import SlideSource

LONGEST_S = 20
CORPUS = Path(__file__).with_name("corpus")
NUMBERS = (
    "NaN",
    "1e999",
    "-1e999",
    "-0",
    "1" + "0" * 400,
    "-1",
    "0",
    "1e-320",
    '"12"',
    "null",
    "{}",
    "[]",
    "true",
    "2147483648",
)


class TooLongError(Exception):
    """An input that takes longer than `LONGEST_S`."""


@dataclass(frozen=True)
class Target:
    """A kind of input: the file that is damaged, whether it is text, and what is done with it."""

    kind: str
    file: Path
    text: bool
    use: Callable[[Path], object]


class Workshop:
    """Whole inputs of every kind in one folder; each damaged one is a copy of its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        image = painted(1536, 1024, (200, 300, 1400, 900), (190, 150, 185))
        image[400:600, 900:1200] = (200, 80, 90)
        self.targets: list[Target] = []
        for name, options in (
            ("deflate", {}),
            ("jpeg", {"compression": "jpeg"}),
            ("raw", {"compression": None}),
        ):
            path = write_pyramid(self._own(name) / "s.tif", image, levels=3, tile=128, **options)
            self._add("slide", path, False, self._score)
        ome = self._own("ome") / "s.ome.tif"
        sizes = {
            "PhysicalSizeX": 0.25,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": 0.25,
            "PhysicalSizeYUnit": "µm",
        }
        tifffile.imwrite(
            ome, image, ome=True, photometric="rgb", tile=(128, 128), metadata={"axes": "YXS", **sizes}
        )
        self._add("slide", ome, False, self._score)
        for suffix in ("png", "jpg"):
            path = self._own(suffix) / f"s.{suffix}"
            Image.fromarray(image).save(path)
            self._add("slide", path, False, self._score)
        self.slide = self.targets[0].file
        self._results()
        self._annotations()
        self._masks()
        self._renal()
        self._models()
        self._tables()
        self._cohort()
        self._viewer()

    def _own(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True)
        return folder

    def _add(self, kind: str, file: Path, text: bool, use: Callable[[Path], object]) -> None:
        self.targets.append(Target(kind, file, text, use))

    def _score(self, path: Path) -> object:
        row = SlideRow(SlideSource(str(path), mpp=0.25))
        with row.source.open() as slide:
            slide.read_region((-20, -10), len(slide.levels) - 1, (60, 40))
        return score_slide(row, "s", RednessEngine(), path.parent / "out", ScoreConfig())

    def _results(self) -> None:
        out = self._own("results")
        score_slide(SlideRow(SlideSource(str(self.slide))), "s", RednessEngine(), out / "s", ScoreConfig())
        facts = json.loads((out / "s" / "slide.json").read_text())
        settings = facts["settings_fingerprint"]
        (out / "run.json").write_text(
            json.dumps(
                {
                    "settings_fingerprint": settings,
                    "state": "finished",
                    "failed": [],
                    "slides": [{"name": "s"}],
                    "models": [],
                },
                indent=1,
            )
        )
        evaluation = {
            "variant": "official",
            "slides": [
                {"name": "s", "counted": True, "found": [0.9], "false": [0.3], "lesions": 1, "tumour": True}
            ],
        }
        evaluation["slides"][0] |= {"score": 0.9, "lengths_um": [900.0]}  # type: ignore[index, operator]
        (out / "evaluation.json").write_text(json.dumps(evaluation, indent=1))
        self._add(
            "results",
            out / "run.json",
            True,
            lambda p: (read_predictions(p.parent), refuse_other_run(LocalFolder(p.parent), settings)),
        )
        self._add("results", out / "s" / "slide.json", True, self._read_back)
        self._add("results", out / "s" / "lesions.csv", True, self._read_back)
        self._add("results", out / "evaluation.json", True, read_evaluation)
        self._add("heatmap", out / "s" / "heatmap.zarr" / "zarr.json", True, lambda p: read_heatmap(p.parent))
        chunk = out / "s" / "heatmap.zarr" / "c" / "0" / "0" / "0"
        self._add("heatmap", chunk, False, lambda p: read_heatmap(p.parents[3]))

    def _read_back(self, path: Path) -> object:
        root = path.parents[1]
        return read_predictions(root), [s.heatmap for s in read_scored(LocalFolder(root))]

    def _annotations(self) -> None:
        folder = self._own("annotations")
        square = [(100.5, 200), (400, 200), (400, 700.25), (100, 700)]
        points = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(square))
        asap = (
            f'<ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="Tumor"><Coordinates>{points}'
            "</Coordinates></Annotation></Annotations></ASAP_Annotations>"
        )
        vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in square)
        scope = (
            f'<Annotations MicronsPerPixel="0.25"><Annotation><Regions><Region Type="0" NegativeROA="0"><Vertices>{vertices}'
            '</Vertices></Region><Region Type="2"><Vertices><Vertex X="1" Y="2"/><Vertex X="9" Y="30"/></Vertices></Region>'
            "</Regions></Annotation></Annotations>"
        )
        ring = [list(p) for p in [*square, square[0]]]
        feature = {
            "type": "Feature",
            "id": "4abdd9d0-50e4-594b-a81d-575d6c5783eb",
            "geometry": {
                "type": "Polygon",
                "coordinates": [ring, [[150, 300], [200, 300], [180, 400], [150, 300]]],
            },
            "properties": {
                "objectType": "annotation",
                "classification": {"name": "Tumor", "color": [200, 0, 0]},
                "measurements": {"probability": 0.5},
                "metadata": {"origin offset": "100,50"},
            },
        }
        geojson = json.dumps({"type": "FeatureCollection", "features": [feature] * 3})
        ncrf = json.dumps(
            {"positive": [{"name": "a", "vertices": ring}], "negative": [{"name": "b", "vertices": ring[:3]}]}
        )
        for name, text in (("a.xml", asap), ("b.xml", scope), ("c.geojson", geojson), ("d.json", ncrf)):
            (folder / name).write_text(text)
            self._add("annotations", folder / name, True, read_everything)
        (folder / "e.geojson.gz").write_bytes(gzip.compress(geojson.encode(), mtime=0))
        self._add("annotations", folder / "e.geojson.gz", False, read_everything)

    def _masks(self) -> None:
        folder = self._own("masks")
        mask = np.zeros((64, 96), np.uint8)
        mask[10:40, 20:70] = 255
        Image.fromarray(mask).save(folder / "m.png")
        tifffile.imwrite(folder / "m.tif", mask, tile=(16, 16), compression="deflate")
        for name in ("m.png", "m.tif"):
            self._add("mask", folder / name, False, self._mask)

    def _mask(self, path: Path) -> object:
        with SlideSource(str(self.slide)).open() as slide:
            return read_user_mask(path, slide, 8.0)

    def _renal(self) -> None:
        from pipelines.renal.read.run import report_slide
        from tests.pipelines.renal.test_report import LOOSE
        from tests.renal_slides import readers

        folder = self._own("renal")
        slide = slide_of(folder / "s.tif", scattered(12, 0.5, 1), cols=2, rows=1, scar=1)
        report_slide(SlideRow(SlideSource(str(slide))), "s", readers(), folder / "s", LOOSE)
        text = (folder / "s" / "detections.geojson").read_text()
        (folder / "s" / "corrected.geojson").write_text(text)
        self._add("review", folder / "s" / "corrected.geojson", True, count_again)
        self._add("review", folder / "s" / "report.json", True, lambda p: read_report(LocalFolder(p.parent)))
        self._add(
            "review", folder / "s" / "capillaries.csv", True, lambda p: read_found(LocalFolder(p.parent))
        )

    def _models(self) -> None:
        zoo = Path(__file__).resolve().parents[1] / "models" / "zoo"
        for name in ("lymph-node-demo", "renal-ptc-demo"):
            shutil.copytree(zoo / name, self.folder / "models" / name)
        own = self.folder / "models"
        self._add(
            "model", own / "lymph-node-demo" / "card.json", True, lambda p: find_models([str(p.parent)])
        )
        self._add("model", own / "renal-ptc-demo" / "card.json", True, lambda p: load_detector(p.parent))
        self._add(
            "model", own / "renal-ptc-demo" / "model.safetensors", False, lambda p: load_detector(p.parent)
        )

    def _tables(self) -> None:
        folder = self._own("tables")
        (folder / "s.tif").write_bytes(b"")
        (folder / "slides.csv").write_text(
            "path,mpp,label,split\ns.tif,0.25,normal,train\nhttps://host/x.tif,0.5,tumor,test\n"
        )
        self._add("table", folder / "slides.csv", True, lambda p: (read_manifest(p), gather_again(p)))
        truth = self._own("truth")
        (truth / "reference.csv").write_text("test_001,Tumor,IDC,Macro\ntest_002,Normal,None,None\n")
        self._add("table", truth / "reference.csv", True, lambda p: read_truth_table(p.parent))
        configs = Path(__file__).resolve().parents[1] / "configs"
        for name, model in (("score", RunConfig), ("camelyon16", TrainConfig), ("renal_report", RenalConfig)):
            path = self._own(f"yaml-{name}") / f"{name}.yaml"
            shutil.copy(configs / f"{name}.yaml", path)
            self._add("yaml", path, True, loader(model))

    def _cohort(self) -> None:
        """What runs over many slides and machines keep: claims, the list of what is done, copies, the scheduler."""
        folder = self._own("cohort")
        (folder / "s.tif").write_bytes(b"slide")
        out = LocalFolder(folder / "out")
        row = SlideRow(SlideSource(str(folder / "s.tif")))
        Claims(out).take("s")
        (claim,) = out.inside(CLAIMS).files()
        self._add("claim", folder / "out" / CLAIMS / claim, True, wanted_again)
        listed = FinishedList(out)
        listed.add(FinishedSlide.of(row, "s", "f"))
        listed.write()
        (part,) = out.inside(FINISHED).files()
        self._add("list", folder / "out" / FINISHED / part, True, left_again)
        pq.write_table(pa.table({"path": ["s.tif"] * 3, "mpp": [0.25, None, 0.5]}), folder / "s.parquet")
        self._add("parquet", folder / "s.parquet", False, read_manifest)
        spec = HeatmapSpec(("a", "b"), (9, 9), 2, 128, 128, 299, 0.25, "f")
        store = HeatmapStore.create(folder / "packed.zarr", spec)
        for row_col in np.ndindex(5, 4):
            cells = np.array([[2 * row_col[0], 2 * row_col[1]]])
            store.write_chunk((row_col[0], row_col[1]), cells, np.array([[0.25, 0.75]], np.float32))
        store.pack()
        assert store.packed
        self._add("heatmap", folder / "packed.zarr" / "zarr.json", True, lambda p: read_heatmap(p.parent))
        self._add("heatmap", folder / "packed.zarr" / PACK, False, lambda p: read_heatmap(p.parent))
        remote = self._own("remote") / "s.tif"
        shutil.copy(self.slide, remote)
        self._add("slide", remote, False, self._score_remote)
        scheduler = self._own("scheduler") / "scheduler.json"
        scheduler.write_text(json.dumps({"type": "Scheduler", "address": "tcp://127.0.0.1:1", "workers": {}}))
        self._add("scheduler", scheduler, True, ask_scheduler)

    def _viewer(self) -> None:
        """A report with a review, a scored slide, and what a page sends."""
        from pipelines.renal.read.run import report_slide
        from tests.pipelines.renal.test_report import LOOSE
        from tests.renal_slides import readers

        folder = self._own("viewer")
        slide = slide_of(folder / "k.tif", scattered(12, 0.5, 1), cols=2, rows=1, scar=1)
        report_slide(SlideRow(SlideSource(str(slide))), "k", readers(), folder / "out" / "k", LOOSE)
        score_slide(
            SlideRow(SlideSource(str(self.slide), mpp=0.25)),
            "s",
            RednessEngine(),
            folder / "out" / "s",
            ScoreConfig(),
        )
        with page_of(folder / "out") as page:
            state = page.get("/api/slides/k/review").json()
            box = page.get("/api/slides/k").json()["capillaries"][0]
            body = {
                "what": "decide",
                "by": "A",
                "id": box[6],
                "group": "C4d negative",
                "ring": [],
                "comment": "c",
            }
            body |= {"subject": state["subject"], "after": state["last"]}
            (folder / "body.json").write_text(json.dumps(body))
            answer = page.post("/api/slides/k/review", json=body)
            drawn = body | {"id": "", "after": answer.json()["last"], "ring": [[10, 10], [40, 12], [30, 44]]}
            assert page.post("/api/slides/k/review", json=drawn).status_code == 200
            (folder / "drawn.json").write_text(
                json.dumps(drawn | {"after": page.get("/api/slides/k/review").json()["last"]})
            )
        for name in ("review.jsonl", "slide.json", "report.json", "detections.geojson", "capillaries.csv"):
            self._add("viewer", folder / "out" / "k" / name, True, lambda p: look(p.parents[1]))
        for name in ("slide.json", "lesions.geojson"):
            self._add("viewer", folder / "out" / "s" / name, True, lambda p: look(p.parents[1]))
        for name in ("body.json", "drawn.json"):
            self._add("viewer", folder / name, True, lambda p: look(p.parent / "out", p.read_bytes()))

    def _score_remote(self, path: Path) -> object:
        """The slide at a URL, which is copied here first."""
        with fsspec.open("memory://fuzz/s.tif", "wb") as file:
            file.write(path.read_bytes())
        row = SlideRow(SlideSource("memory://fuzz/s.tif", mpp=0.25))
        return score_slide(row, "s", RednessEngine(), path.parent / "out", ScoreConfig())


@contextmanager
def page_of(out: Path) -> Iterator[TestClient]:
    """What a page asks, without a page; an error in the server is raised here."""
    collection = Collection(entries_of(LocalFolder(out)), "A")
    hosts = frozenset({"127.0.0.1:8000"})
    with TestClient(application(collection, "t", hosts), base_url="http://127.0.0.1:8000") as client:
        client.cookies.set(cookie_of("t"), "t")
        yield client
    collection.close()


def look(out: Path, body: bytes | None = None) -> object:
    """Everything that a page asks for, and a decision; no answer may hold a path."""
    with page_of(out) as page:
        answers = [page.get("/api/slides")]
        for name in [line["id"] for line in answers[0].json()]:
            answers += [page.get(f"/api/slides/{name}{what}") for what in ("", "/heat", "/review")]
        kind = {"content-type": "application/json"}
        answers.append(page.post("/api/slides/k/review", content=body or b"{}", headers=kind))
        for answer in answers:
            assert answer.status_code < 500
            assert str(out.parent).encode() not in answer.content
    return len(answers)


def wanted_again(path: Path) -> object:
    """Another process wants the slide; its own sign of life is not damaged."""
    claims = Claims(LocalFolder(path.parents[1]))
    return claims.take("s"), claims.holder("s"), claims.dead("s")


def left_again(path: Path) -> object:
    out = LocalFolder(path.parents[1])
    row = SlideRow(SlideSource(str(path.parents[2] / "s.tif")))
    return FinishedList(out).left_of([(row, "s")], "f")


def ask_scheduler(path: Path) -> object:
    """There is no scheduler, whatever the file says."""
    try:
        with connected(ClusterConfig(scheduler_file=path, timeout_s=0.3)):
            raise AssertionError("there is a scheduler")
    except ConfigError as error:
        return str(error)


def loader(model: type[Any]) -> Callable[[Path], object]:
    return lambda path: load_config(path, model)


def gather_again(path: Path) -> object:
    return gather([str(path)], mpp=None, allow_anisotropic=False)


def read_heatmap(path: Path) -> object:
    return HeatmapStore.open(path).read(0)


def read_everything(path: Path) -> object:
    outlines = read_outlines(path)
    marked_regions(outlines.annotations, path)
    return tumour_regions(outlines.annotations, path)


def count_again(path: Path) -> object:
    folder = LocalFolder(path.parent)
    return review(folder, path, read_report(folder))


def damaged(data: bytes, text: bool, rng: np.random.Generator) -> tuple[bytes, str]:
    """The bytes with one kind of damage, and which."""
    kinds = ["flip", "zero", "cut", "insert", "double", "swap"] + (
        ["number", "number", "number", "nest", "word"] if text else []
    )
    kind = str(rng.choice(kinds))
    at = int(rng.integers(len(data))) if data else 0
    length = int(min(len(data) - at, rng.integers(1, 64)))
    out = bytearray(data)
    if kind == "flip":
        for place in rng.integers(len(data), size=int(rng.integers(1, 6))):
            out[int(place)] ^= 1 << int(rng.integers(8))
    elif kind == "zero":
        out[at : at + length] = bytes(length)
    elif kind == "cut":
        del out[int(len(data) * rng.random()) :]
    elif kind == "insert":
        out[at:at] = rng.integers(256, size=length).astype(np.uint8).tobytes()
    elif kind == "double":
        out[at:at] = out[at : at + length]
    elif kind == "swap":
        other = int(rng.integers(len(data)))
        out[at : at + length] = data[other : other + length]
    elif kind == "number":
        out = bytearray(with_number(data, rng))
    elif kind == "nest":
        depth = int(rng.choice([50, 900, 50_000]))
        out[at:at] = b"[" * depth + (b"]" * depth if rng.random() < 0.5 else b"")
    else:
        out[at : at + length] = rng.choice(
            ["\x00", "病理", "../..", "<x>", "&a;", "*a", "!!python", "\n", '"', "e"]
        ).encode()
    return bytes(out), kind


def with_number(data: bytes, rng: np.random.Generator) -> bytes:
    """One number of a text replaced by an extreme one."""
    import re

    places = list(re.finditer(rb"-?\d+(\.\d+)?", data))
    if not places:
        return data
    match = places[int(rng.integers(len(places)))]
    return data[: match.start()] + str(rng.choice(NUMBERS)).encode() + data[match.end() :]


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(_signum: int, _frame: object) -> None:
        raise TooLongError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(target: Target, path: Path, kind: str) -> tuple[str, str]:
    """``refused``, ``ran`` or ``defect``, and what was said."""
    try:
        with limited(LONGEST_S):
            target.use(path)
    except WsiError as error:
        text = str(error)
        return ("refused", text) if "\n" not in text.strip() else ("defect", f"more than one line: {text!r}")
    except Exception:
        return "defect", traceback.format_exc()
    if kind == "cut" and target.kind == "slide" and path.suffix == ".tif":
        return "defect", "a truncated TIFF was read as if it were whole"
    return "ran", ""


def run(
    count: int, seed: int, seconds: float, failures: Path | None
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Damage so many inputs, in turn of every kind; counts by kind and outcome, and a line for each defect."""
    rng = np.random.default_rng(seed)
    counts: Counter[tuple[str, str]] = Counter()
    defects = []
    logging.disable(logging.CRITICAL)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        workshop = Workshop(Path(name) / "whole")
        for i in range(count):
            if time.monotonic() - start > seconds:
                break
            target = workshop.targets[i % len(workshop.targets)]
            data, kind = damaged(target.file.read_bytes(), target.text, rng)
            root = workshop.folder / target.file.relative_to(workshop.folder).parts[0]
            copy = Path(name) / "damaged"
            shutil.copytree(root, copy, symlinks=True)
            path = copy / target.file.relative_to(root)
            path.write_bytes(data)
            ended, text = outcome(target, path, kind)
            counts[target.kind, ended] += 1
            if ended == "defect":
                defects.append(
                    f"input {i} of seed {seed}, {target.kind} {target.file.name}, {kind}: {text.strip().splitlines()[-1][:300]}"
                )
                if failures is not None:
                    failures.mkdir(exist_ok=True)
                    (failures / f"{seed}-{i}-{target.file.name}").write_bytes(data)
                    (failures / f"{seed}-{i}.txt").write_text(text)
            shutil.rmtree(copy)
            if sys.stderr.isatty() and i % 10 == 0:
                print(f"\r{i + 1} of {count}, {len(defects)} defects ", end="", file=sys.stderr)
    logging.disable(logging.NOTSET)
    return counts, defects


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600.0)
    args = parser.parse_args()
    start = time.monotonic()
    counts, defects = run(args.count, args.seed, args.seconds, Path("fuzz-failures"))
    kinds = sorted({kind for kind, _ in counts})
    print(f"\n{'kind':12} {'refused':>8} {'ran':>6} {'defects':>8}")
    for kind in kinds:
        print(f"{kind:12} {counts[kind, 'refused']:8} {counts[kind, 'ran']:6} {counts[kind, 'defect']:8}")
    for line in defects:
        print(line)
    print(
        f"{sum(counts.values())} inputs of seed {args.seed} in {time.monotonic() - start:.0f} s, {len(defects)} defects"
    )
    short = sum(counts.values()) < args.count
    if short:
        print(f"the time of {args.seconds:.0f} s was over before all {args.count} had run; raise --seconds")
    sys.exit(1 if defects or short else 0)


if __name__ == "__main__":
    main()
