"""How long evaluating takes: 129 slides, lesions of real outlines, 200 detections each, beside a plain restatement.

    python -m benchmarks.evaluation --outlines ../shared/data/camelyon16/train_polygons

The plain one follows the published code on masks of level 5, which it is given: it needs no outlines, draws no bootstrap.
Both must agree to 1e-12 before anything is timed.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.measure import regionprops

from benchmarks.common import header, wsi_peak_mb
from pipelines.camelyon16.benchmark.cases import Case, Selection, join
from pipelines.camelyon16.benchmark.evaluation import EvaluationConfig, evaluate
from pipelines.camelyon16.benchmark.froc import TARGETS
from pipelines.camelyon16.benchmark.predictions import read_predictions
from pipelines.camelyon16.benchmark.truth import ROOM_PX, read_raster

TUMOUR, NORMAL, DETECTIONS = 49, 80, 200  # as many slides as Camelyon16's test set


def make(folder: Path, outlines: list[Path]) -> tuple[Path, Path]:
    """Truth (links to the outlines, a reference.csv) and a submission: half of the detections of a tumour slide in it."""
    rng = np.random.default_rng(0)
    truth, run = folder / "truth", folder / "run"
    (run / "lesions").mkdir(parents=True)
    truth.mkdir()
    lines = []
    for i in range(TUMOUR + NORMAL):
        name = f"slide_{i:03d}"
        lines.append(f"{name},{'Tumor' if i < TUMOUR else 'Normal'}\n")
        points = rng.uniform(0, 90_000, (DETECTIONS, 2))
        if i < TUMOUR:
            (truth / f"{name}.json").symlink_to(outlines[i].resolve())
            cells = np.argwhere(read_raster(outlines[i], None).mask)
            half = DETECTIONS // 2
            points[:half] = cells[rng.integers(len(cells), size=half)][:, ::-1] * 32 + 16
        scores = np.round(rng.beta(2, 4, DETECTIONS) + 0.2 * (i < TUMOUR) * rng.random(DETECTIONS), 6).clip(
            0, 1
        )
        rows = "".join(f"{s:.6f},{x:.0f},{y:.0f}\n" for s, (x, y) in zip(scores, points, strict=True))
        (run / "lesions" / f"{name}.csv").write_text(rows)
    (truth / "reference.csv").write_text("".join(lines))
    return truth, run


def plain(cases: tuple[Case, ...], masks: dict[str, np.ndarray]) -> list[float]:
    """Evaluation_FROC.py of 2016, restated: whole masks, dictionaries, loops."""
    false, found, lesions = [], [], 0
    for case in cases:
        p = case.prediction
        if case.truth is None:
            false += p.scores.tolist()
            continue
        distance = ndimage.distance_transform_edt(255 - masks[p.name] * 255)
        binary = ndimage.binary_fill_holes(distance < 75 / (0.243 * 2**5 * 2))
        labels, count = ndimage.label(binary, np.ones((3, 3)))
        isolated = {r.label for r in regionprops(labels) if r.axis_major_length < 275 / (0.243 * 32)}
        best = np.zeros(count, np.float32)
        for score, (x, y) in zip(p.scores.tolist(), p.points.tolist(), strict=True):
            row, col = int(y / 32), int(x / 32)
            label = labels[row, col] if row < labels.shape[0] and col < labels.shape[1] else 0
            if label == 0:
                false.append(score)
            elif label not in isolated and score > best[label - 1]:
                best[label - 1] = score
        found += list(best)
        lesions += count - len(isolated)
    fps, sens = [], []
    all_false, all_found = np.array(false), np.array(found, np.float32)
    for threshold in sorted({float(v) for v in false} | {float(v) for v in found})[1:]:
        fps.append((all_false >= threshold).sum() / len(cases))
        sens.append((all_found >= np.float32(threshold)).sum() / lesions)
    return np.interp(TARGETS, [0.0, *fps[::-1]], [0.0, *sens[::-1]]).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--outlines", type=Path, required=True, help="folder of NCRF's JSON of Camelyon16's outlines"
    )
    args = parser.parse_args()
    outlines = sorted(args.outlines.glob("*.json"))
    if len(outlines) < TUMOUR:
        sys.exit(f"{args.outlines} holds {len(outlines)} outlines; {TUMOUR} are needed")
    with tempfile.TemporaryDirectory() as scratch:
        truth, run = make(Path(scratch), outlines)
        header(f"{TUMOUR} tumour and {NORMAL} normal slides, {DETECTIONS} detections each")
        cases = join(read_predictions(run), truth, Selection()).cases
        masks = {c.prediction.name: _whole(c) for c in cases if c.truth is not None}
        start = time.perf_counter()
        expected = plain(cases, masks)
        plainly = time.perf_counter() - start
        del masks
        start = time.perf_counter()
        result = evaluate(cases, EvaluationConfig(draws=0))
        without = time.perf_counter() - start
        difference = np.abs(result.curve.at(TARGETS) - expected).max()
        print(f"  FROC {result.curve.score:.6f}, {result.figures['lesions to be found']} lesions; ", end="")
        print(f"largest difference from the plain restatement {difference:.1e}")
        assert difference < 1e-12
        print(f"  plain restatement, masks given:            {plainly:6.1f} s, no intervals")
        print(f"  ours, from outlines, no intervals:         {without:6.1f} s")
        for draws in (0, 2000):
            start = time.perf_counter()
            peak = wsi_peak_mb(
                "camelyon16", "evaluate", run, "--truth", truth, "--draws", draws, "--no-atlas"
            )
            took = time.perf_counter() - start
            print(
                f"  wsi camelyon16 evaluate --draws {draws:<4}       {took:6.1f} s, memory up to {peak:.0f} MB"
            )


def _whole(case: Case) -> np.ndarray:
    """The mask of a whole slide at level 5: 100,000 x 100,000 px and more, as Camelyon16's are."""
    assert case.truth is not None
    part = read_raster(case.truth, None).mask
    side = math.ceil((100_000 + ROOM_PX) / 32)
    whole = np.zeros((max(side, part.shape[0]), max(side, part.shape[1])), np.uint8)
    whole[: part.shape[0], : part.shape[1]] = part
    return whole


if __name__ == "__main__":
    main()
