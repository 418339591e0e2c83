"""The renal demonstration models: on phantoms they have not seen, on real stains, and how long a slide takes.

Phantoms are drawings and the stains are not C4d: these figures say that the program works, and what it does on brown that
is no capillary. ``--stains FOLDER`` is data/kidney_stains; without it that part is left out.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import header, scratch, wsi
from models.card import DetectorCard
from models.engines import EngineConfig, find_models, load_engine
from models.engines.boxes import BoxEngine
from models.engines.contract import find_folder
from models.engines.detect_slide import detect_slide, tiles_around, tissue_tiles
from pipelines.renal.read.checks import ChecksConfig, checked, left_out
from pipelines.renal.read.fields import FieldSet, KidneyField, choose_fields
from pipelines.renal.read.marks import Marks
from pipelines.renal.read.reading import RenalConfig, marks_of
from wsi.results.folder import LocalFolder
from wsi.slides.source import SlideSource
from wsi.slides.stain import eosin_share, tissue_pixels
from wsi.slides.tissue import find_tissue
from wsi.vocabulary import NEGATIVE, POSITIVE

PERCENTS = "0,2,4,7,12,18,25,35,45,58,70,80"
STAINS = ("dab_tubular_a", "dab_tubular_b", "dab_weak", "cd68_dab", "cd34_red_capillaries")
# Unit densities of haematoxylin, DAB (Ruifrok and Johnston 2001), and the red chromogen of the CD34 picture, as its most
# saturated pixels have it
HAEMATOXYLIN, DAB, RED = (0.650, 0.704, 0.286), (0.268, 0.570, 0.776), (0.19, 0.78, 0.60)
STAINS_UM = 0.5  # assumed: the pictures state none
BROWN_UM = 0.25  # of data/ihc_dab_negatives, as far as the size of nuclei tells
CD34_UM = (0.25, 0.35, 0.5)  # nuclei of tubules are 18 px wide: about 0.35, and a factor of 1.4 either way
# Boxes in the picture's pixels, marked by eye by one of us before the detector was trained
CD34 = Path(__file__).with_name("cd34_capillaries.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=500)
    parser.add_argument("--size", default="8192x6144")
    parser.add_argument("--model", default="renal-ptc-demo")
    parser.add_argument("--fields-model", default="renal-fields-demo")
    parser.add_argument("--stains", type=Path)
    parser.add_argument(
        "--positive", type=float, help="with --stains: another threshold of the positive class"
    )
    parser.add_argument("--time", action="store_true", help="one large slide, step by step")
    args = parser.parse_args()
    if args.count:
        phantoms(args)
    if args.stains:
        stains(args.stains.resolve(), args.model, args.positive)
    if args.time:
        timing(args)


def phantoms(args: argparse.Namespace) -> None:
    header(f"{args.count} phantoms of seed {args.seed}, C4d {PERCENTS} %")
    with scratch() as folder:
        made = ("--count", args.count, "--seed", args.seed, "--size", args.size, "--c4d", PERCENTS)
        wsi("phantom", "kidney", *made, "--out", folder / "slides")
        start = time.monotonic()
        models = ("--model", args.model, "--fields-model", args.fields_model)
        wsi("renal", "report", folder / "slides", "--out", folder / "out", *models)
        print(f"  reported in {time.monotonic() - start:.0f} s")
        print((folder / "out" / "grades.csv").read_text())
        print(wsi("renal", "evaluate", folder / "out", "--truth", folder / "slides"))


def stains(folder: Path, model: str, positive: float | None) -> None:
    """What the detector counts where no C4d is: brown tubules, nuclei, macrophages; and endothelium turned to brown."""
    detector = BoxEngine(find_folder(model), EngineConfig())
    if positive is not None:
        detector.card = with_threshold(detector.card, positive)
    card = detector.card
    brown = cv2.imread(str(folder / "cd34_red_capillaries.png"))[..., ::-1]
    with scratch() as out:
        header(
            f"{card.name} on real stains without C4d, counted at its thresholds, before the checks and after them"
        )
        others = sorted((folder.parent / "ihc_dab_negatives").glob("*.jpg"))
        for path in [folder / f"{name}.png" for name in STAINS] + others:
            mpp = BROWN_UM if path in others else STAINS_UM
            marks = counted(cv2.imread(str(path))[..., ::-1], mpp, detector, out)
            after = marks.counted & ~left_out(marks, ChecksConfig())
            parts = [
                f"{int((marks.counted & chosen).sum())} {what} ({int((after & chosen).sum())})"
                for what, chosen in ((POSITIVE, marks.positive), (NEGATIVE, ~marks.positive))
            ]
            print(f"  {path.name} at {mpp} um/px: {', '.join(parts)}", flush=True)
        truth = np.genfromtxt(CD34, delimiter=",", names=True, dtype=None, encoding="utf-8")
        header(f"CD34 turned to brown: {int((truth['kind'] == 'capillary').sum())} capillaries marked by eye")
        for mpp in CD34_UM:
            marks = counted(turned_brown(brown), mpp, detector, out)
            for what, chosen in (
                ("at its thresholds", marks.counted & marks.positive),
                ("after the checks", marks.counted & marks.positive & ~left_out(marks, ChecksConfig())),
            ):
                hits, false, doubtful = agreement(marks.boxes[chosen], truth)
                print(f"  {mpp} um/px, {what}: {hits} found, {false} false, {doubtful} where it is doubtful")


def with_threshold(card: DetectorCard, positive: float) -> DetectorCard:
    """The card with another threshold of the positive class."""
    thresholds = tuple(
        positive if name == POSITIVE else limit
        for name, limit in zip(card.detector.classes, card.thresholds, strict=True)
    )
    return card.model_copy(update={"thresholds": thresholds})


def counted(image: np.ndarray, mpp: float, detector: BoxEngine, out: Path) -> Marks:
    """Capillaries of a whole picture, as one feasible field, in its pixels."""
    path = out / "picture.png"
    cv2.imwrite(str(path), image[..., ::-1])
    with SlideSource(str(path), mpp).open() as slide:
        mask = find_tissue(slide, RenalConfig().tissue)
        card = detector.card
        plan = tissue_tiles(slide, mask, card)
        detections = detect_slide(slide, plan, detector, lowest_score=0.05).detections
        whole = FieldSet((KidneyField(0, 0, 1.0, 1.0, ""),), max(slide.size), slide.size)
        classes = card.detector.classes
        limits = np.array([card.thresholds[classes.index(c)] for c in (NEGATIVE, POSITIVE)])
        return checked(slide, whole, marks_of("picture", detections, whole, classes, limits), ChecksConfig())


def agreement(boxes: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """How many marked capillaries hold the middle of a box; how many boxes lie on nothing marked; on what is doubtful."""
    middles = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2  # (n, 1, 2)
    low, high = (np.stack([truth[x], truth[y]], -1) for x, y in (("x0", "y0"), ("x1", "y1")))
    inside = ((middles >= low) & (middles <= high)).all(axis=2)
    sure = truth["kind"] == "capillary"
    on, near = inside[:, sure], inside[:, ~sure].any(axis=1)
    return (
        int(on.any(axis=0).sum()),
        int((~on.any(axis=1) & ~near).sum()),
        int((~on.any(axis=1) & near).sum()),
    )


def turned_brown(image: np.ndarray) -> np.ndarray:
    """The red chromogen's amount painted as DAB, by colour deconvolution (Ruifrok and Johnston 2001)."""
    unit = [np.array(v) / np.linalg.norm(v) for v in (HAEMATOXYLIN, RED, DAB)]
    third = np.cross(unit[0], unit[1])
    density = -np.log10((image.astype(np.float64) + 1) / 246)
    amounts = np.clip(density @ np.linalg.inv(np.stack([unit[0], unit[1], third])), 0, None)
    brown = amounts[..., :1] * unit[0] + amounts[..., 1:2] * unit[2]
    return np.clip(np.round(246 * 10**-brown - 1), 0, 255).astype(np.uint8)


def timing(args: argparse.Namespace) -> None:
    header("one slide with some 20,000 x 15,000 px of tissue, from file to report")
    detector = BoxEngine(find_folder(args.model), EngineConfig())
    engine = load_engine(find_models([args.fields_model]), EngineConfig())
    cfg = RenalConfig()
    with scratch() as folder:
        wsi(
            "phantom",
            "kidney",
            "--count",
            1,
            "--seed",
            77,
            "--size",
            "31000x22500",
            "--c4d",
            20,
            "--out",
            folder,
        )
        source = SlideSource(str(folder / "kidney_001.tif"))
        start = time.monotonic()
        models = ("--model", args.model, "--fields-model", args.fields_model)
        wsi("renal", "report", source.path, "--out", folder / "out", *models)
        whole = time.monotonic() - start
        with source.open() as slide:
            clock = _Clock()
            mask = find_tissue(slide, cfg.tissue)
            eosin_share(tissue_pixels(slide, mask))
            clock.say(f"tissue and stain: {mask.area_um2(slide.mpp) / 1e6:.1f} mm2 of tissue")
            fields = choose_fields(
                slide, source, mask, engine, LocalFolder(folder / "a.zarr"), cfg.fields, fingerprint="a"
            )
            clock.say(f"{len(fields.fields)} fields, {len(fields.feasible)} feasible")
            plan = tiles_around([(f.x, f.y) for f in fields.feasible], fields.side, slide.mpp, detector.card)
            result = detect_slide(slide, plan, detector, lowest_score=0.1)
            clock.say(f"{result.tiles} tiles of {plan.side_px} px, {len(result.detections)} detections")
        print(f"  {whole - clock.spent:6.1f} s  starting up, brown around each capillary, pictures, files")
        print(f"  {whole:6.1f} s  wsi renal report, from file to report")


class _Clock:
    def __init__(self) -> None:
        self.last = time.monotonic()
        self.spent = 0.0

    def say(self, what: str) -> None:
        took = time.monotonic() - self.last
        print(f"  {took:6.1f} s  {what}", flush=True)
        self.spent += took
        self.last = time.monotonic()


if __name__ == "__main__":
    main()
