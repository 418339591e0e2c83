"""False alarms where there is no tumour: normal slides, the same ones spoilt, glass, and other organs.

    python -m benchmarks.controls --slides runs/mosaics-test --model lymph-node-10x --data DATA

``--slides`` is a folder with slides.csv: its first normal slides are scored as they are, blurred, in another scanner's
colours, and under pen. ``--data`` is a folder with slides/cmu-1-small-region.svs (skin, OpenSlide's test data) and
kidney_stains/he.png; without it these are left out. All that is found is a false alarm.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import header, scratch, wsi
from wsi.arrays import RgbImage
from wsi.phantoms.pyramid import write_pyramid
from wsi.results.store import HeatmapStore
from wsi.slides.manifest import read_manifest

BLUR_UM = 2.0  # sigma: nuclei are seen, chromatin is not
GAINS, GAMMA = (1.0, 0.9, 0.97), 1.2  # pinker and darker
GLASS = 243


def blurred(image: RgbImage, mpp: float) -> RgbImage:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), BLUR_UM / mpp), np.uint8)


def shifted(image: RgbImage, mpp: float) -> RgbImage:
    """As another scanner might show it: each colour through a curve of its own."""
    levels = np.arange(256) / 255
    curves = np.stack([255 * (levels**GAMMA) * gain for gain in GAINS], axis=1).round().astype(np.uint8)
    return np.asarray(cv2.LUT(image, curves[None]), np.uint8)


def penned(image: RgbImage, mpp: float) -> RgbImage:
    """Strokes of green and black ink of 300 um, across the tissue."""
    done = image.copy()
    height, width = done.shape[:2]
    for k, colour in enumerate(((20, 120, 60), (30, 30, 40), (30, 60, 150))):
        y = height * (k + 1) // 4
        cv2.line(done, (0, y), (width, y + height // 9), colour, round(300 / mpp))
    return done


CHANGES: dict[str, Callable[[RgbImage, float], RgbImage]] = {
    "blurred": blurred,
    "other colours": shifted,
    "under pen": penned,
}


def write(path: Path, image: RgbImage, mpp: float) -> Path:
    height, width = image.shape[:2]
    write_pyramid(
        path, (width, height), mpp, lambda x, y, w, h: image[y : y + h, x : x + w], background=(GLASS,) * 3
    )
    return path


def glass(rng: np.random.Generator, side: int = 6144) -> RgbImage:
    """An empty slide: noise of the camera and some dust."""
    noise = rng.normal(GLASS, 1.5, (side, side, 1)) + rng.normal(0, 0.8, (side, side, 3))
    image = np.clip(noise, 0, 255).astype(np.uint8)
    for x, y, r in rng.integers(0, side, (60, 3)):
        cv2.circle(image, (int(x), int(y)), int(r % 12) + 3, (120, 120, 125), -1, cv2.LINE_AA)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slides", type=Path, required=True)
    parser.add_argument("--model", default="lymph-node-10x")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--count", type=int, default=2)
    args = parser.parse_args()
    rows = [r for r in read_manifest(args.slides / "slides.csv") if r.label == "normal"][: args.count]
    model = Path(args.model).resolve() if Path(args.model).is_dir() else args.model
    header(f"False alarms of {Path(args.model).name}")
    print(f"  {'':28}{'tissue':>9}{'peaks from 0.5':>16}{'from 0.9':>10}{'cells from 0.5':>16}{'unlike':>8}")
    print(f"  {'':28}{'mm2':>9}{'per mm2':>16}{'per mm2':>10}{'share':>16}{'':>8}")
    with scratch() as folder:
        for row in rows:
            with row.source.open() as slide:
                image, mpp = slide.read_region((0, 0), 0, slide.size), slide.mpp
            report(folder, Path(row.source.path), f"{row.source.name}, as it is", model, mpp)
            for name, change in CHANGES.items():
                path = write(
                    folder / f"{row.source.name}_{name.replace(' ', '_')}.tif", change(image, mpp), mpp
                )
                report(folder, path, f"{row.source.name}, {name}", model, mpp)
        path = write(folder / "glass.tif", glass(np.random.default_rng(0)), 0.25)
        report(folder, path, "glass with dust", model, 0.25)
        if args.data:
            report(folder, args.data / "slides" / "cmu-1-small-region.svs", "skin (CMU-1)", model, None)
            report(folder, args.data / "kidney_stains" / "he.png", "kidney, H&E, at 0.5 um/px", model, 0.5)


def report(folder: Path, slide: Path, name: str, model: object, mpp: float | None) -> None:
    """Score one slide, and print what was found on it."""
    spacing = () if mpp is None else ("--mpp", mpp)
    out = folder / f"out_{slide.stem}"
    wsi("score", slide.resolve(), *spacing, "--model", model, "--out", out, "--quiet", ok=(0, 1))
    (path,) = out.glob("*/slide.json")
    value = json.loads(path.read_text())
    if value["score"] is None:
        print(f"  {name:28}{'no tissue: nothing scored':>34}", flush=True)
        return
    heatmap = HeatmapStore.open(path.parent / "heatmap.zarr").read(value["classes"].index(value["positive"]))
    scores = heatmap.scores[np.isfinite(heatmap.scores)]
    area = len(scores) * (heatmap.placement.step_x * value["mpp"]) ** 2 / 1e6
    peaks = np.array([lesion["score"] for lesion in value["lesions"]])
    unlike = "-" if value["unlike"] is None else f"{value['unlike']:.0%}"
    print(
        f"  {name:28}{area:9.2f}{(peaks >= 0.5).sum() / area:16.2f}{(peaks >= 0.9).sum() / area:10.2f}"
        f"{(scores >= 0.5).mean():16.3f}{unlike:>8}",
        flush=True,
    )


if __name__ == "__main__":
    main()
