"""Segmenters side by side: the same tiles, the same number of examples; on drawn kidneys and on real glomeruli.

A network that is trained already is only measured again; one that was interrupted begins anew. Drawn: wsi phantom kidney --count 20 --seed 71 --size 8192x8192 --validation-share 0.2 --out KIDNEYS.
Real: a folder of pictures with their glomeruli in polygons.csv (file, ring, label, x,y_pairs_px), split by patient.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.common import header
from models.card import VALID_MARGIN, SegmenterConfig
from models.checkpoint import load_segmenter, parameters_of
from models.engines.contract import EngineConfig
from models.engines.maps import MapEngine
from models.registry import SEGMENTERS
from models.training.data.areas import validation_areas
from models.training.recipe import SegmenterTrainConfig
from models.training.segment import score_tiles, train_segmenter
from pipelines.runs.config import load_config
from wsi.files import csv_text, write_text
from wsi.metrics.segmentation import SegmentationScore
from wsi.slides.manifest import read_manifest

GLOMERULI_MPP = 1.3  # um/px, assumed: the files state none, and a glomerulus of 200 um is some 150 px wide
HELD_OUT = 0.25  # share of the patients whose pictures are held out
TIMED = 5  # tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kidneys", type=Path, help="drawn kidneys, with compartments.csv")
    parser.add_argument("--glomeruli", type=Path, help="real pictures, with polygons.csv")
    parser.add_argument("--only", nargs="*", default=list(SEGMENTERS), help="networks")
    parser.add_argument(
        "--options", action="store_true", help="the first network with each option of the recipe instead"
    )
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs/segmenters"))
    args = parser.parse_args()
    if args.kidneys:
        header(f"Compartments of drawn kidneys, {args.examples} tiles each")
        recipe = load_config(Path("configs/kidney_compartments.yaml"), SegmenterTrainConfig)
        _compare(args, recipe, args.kidneys / "compartments.csv", args.out / "kidneys")
    if args.glomeruli:
        header(f"Glomeruli in real pictures (PAS, PASM, Masson), {args.examples} tiles each")
        table = glomeruli(args.glomeruli, args.out / "glomeruli-truth")
        _compare(args, real_recipe(), table, args.out / "glomeruli")


def _compare(args: argparse.Namespace, recipe: SegmenterTrainConfig, slides: Path, out: Path) -> None:
    if args.options:
        compare_options(recipe, slides, out, args.only[0], args.examples)
    else:
        compare(recipe, slides, out, args.only, args.examples)


OPTIONS: dict[str, dict[str, float]] = {
    "as it is": {},
    "bent by 10 px": {"elastic_px": 10.0},
    "gaps weighted by 10": {"separation": 10.0},
    "focal loss, gamma 2": {"focal_gamma": 2.0},
}


def compare(recipe: SegmenterTrainConfig, slides: Path, out: Path, names: list[str], examples: int) -> None:
    """Train and measure; a row for each network."""
    configs = {name: of_network(recipe, name, examples) for name in names}
    measure(configs, recipe, slides, out)


def compare_options(
    recipe: SegmenterTrainConfig, slides: Path, out: Path, network: str, examples: int
) -> None:
    """The same of one network, with one option of the recipe at a time."""
    base = of_network(recipe, network, examples)
    configs = {f"{network}, {what}": base.model_copy(update=changes) for what, changes in OPTIONS.items()}
    measure(configs, recipe, slides, out)


def measure(
    configs: dict[str, SegmenterTrainConfig], recipe: SegmenterTrainConfig, slides: Path, out: Path
) -> None:
    """Train what is not trained yet; print a row for each."""
    print(
        "| network | parameters | mean IU | "
        + " | ".join(recipe.segmenter.classes)
        + " | FW IU | pixel acc. | min | Mpx/s |"
    )
    print("|---|" + "---|" * (len(recipe.segmenter.classes) + 6))
    for name, cfg in configs.items():
        label = name.removesuffix(", as it is").replace(", ", "-").replace(" ", "_")
        folder, rows = out / f"{label}-{cfg.examples}", read_manifest(slides)
        if not (folder / "minutes.json").exists():
            start = time.perf_counter()
            train_segmenter(rows, cfg, folder, code_version="benchmark")
            write_text(folder / "minutes.json", json.dumps((time.perf_counter() - start) / 60))
        minutes = json.loads((folder / "minutes.json").read_text())
        network, _ = load_segmenter(folder / "model")
        score = validation_score(network, recipe, cfg, slides)
        ious = " | ".join("-" if np.isnan(v) else f"{v:.3f}" for v in score.ious)
        print(
            f"| {name} | {parameters_of(network) / 1e6:.2f} M | {score.mean_iou:.3f} | {ious} "
            f"| {score.frequency_weighted_iou:.3f} | {score.pixel_accuracy:.3f} | {minutes:.1f} "
            f"| {speed(folder / 'model', cfg.segmenter):.2f} |",
            flush=True,
        )


def of_network(recipe: SegmenterTrainConfig, name: str, examples: int) -> SegmenterTrainConfig:
    """The recipe with another network, and the tile that this network needs."""
    shape = recipe.segmenter.model_dump() | {"network": name}
    if name in VALID_MARGIN:
        shape |= {"margin_px": VALID_MARGIN[name][0], "core_px": 260 if name == "unet_valid" else 64}
    changes = {"segmenter": shape, "examples": examples, "validate_every": examples, "name": name}
    return SegmenterTrainConfig.model_validate(recipe.model_dump() | changes)


def validation_score(
    network: object, recipe: SegmenterTrainConfig, cfg: SegmenterTrainConfig, slides: Path
) -> SegmentationScore:
    """Agreement on cores of 256 px around the same outlines for every network; of 260 px for unet_valid."""
    from contextlib import ExitStack

    shape = recipe.segmenter.model_copy(update={"margin_px": cfg.segmenter.margin_px})
    core = 260 if cfg.segmenter.network == "unet_valid" else 256
    same = recipe.model_copy(update={"segmenter": shape.model_copy(update={"core_px": core})})
    with ExitStack() as stack:
        tiles = validation_areas(read_manifest(slides), same, stack)
    return score_tiles(network, tiles)  # type: ignore[arg-type]


def speed(model: Path, shape: SegmenterConfig) -> float:
    """Mpx of the network's own spacing that are mapped in a second, by the engine that this machine takes."""
    engine = MapEngine(model, EngineConfig())
    side = shape.run_core_px + 2 * shape.margin_px
    tile = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    engine.map(tile)
    times = []
    for _ in range(TIMED):
        start = time.perf_counter()
        engine.map(tile)
        times.append(time.perf_counter() - start)
    return shape.run_core_px**2 / 1e6 / float(np.median(times))


def real_recipe() -> SegmenterTrainConfig:
    """Glomeruli against all else, at half the pictures' resolution."""
    shape = SegmenterConfig(
        classes=("other", "glomerulus"), spacing_um=2 * GLOMERULI_MPP, core_px=96, margin_px=16, pool=1
    )
    return SegmenterTrainConfig(name="glomeruli", segmenter=shape, batch=4, learning_rate=1e-3)


def glomeruli(folder: Path, out: Path) -> Path:
    """Outlines as GeoJSON, and a manifest; pictures of a patient are all trained on or all held out."""
    with (folder / "polygons.csv").open(newline="") as file:
        rings = list(csv.DictReader(file))
    files = sorted({row["file"] for row in rings})
    patients = sorted({name.split("-")[0] for name in files})
    held_out = set(patients[: round(HELD_OUT * len(patients))])
    rows = []
    for name in files:
        features = []
        for row in (r for r in rings if r["file"] == name):
            points = [[float(v) for v in pair.split(",")] for pair in row["x,y_pairs_px"].split()]
            features.append(
                {
                    "type": "Feature",
                    "geometry": {"type": "Polygon", "coordinates": [[*points, points[0]]]},
                    "properties": {"classification": {"name": "glomerulus"}},
                }
            )
        truth = out / f"{Path(name).stem}.geojson"
        write_text(truth, json.dumps({"type": "FeatureCollection", "features": features}))
        split = "validation" if name.split("-")[0] in held_out else "train"
        rows.append((folder / name, truth.resolve(), split, GLOMERULI_MPP))
    write_text(out / "slides.csv", csv_text(("path", "truth", "split", "mpp"), rows))
    counts = {split: sum(row[2] == split for row in rows) for split in ("train", "validation")}
    print(f"{counts['train']} pictures to train on, {counts['validation']} held out, of other patients")
    return out / "slides.csv"


if __name__ == "__main__":
    main()
