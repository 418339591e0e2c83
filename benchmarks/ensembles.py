"""What more orientations and more models add: each way of scoring against the first, on one cohort.

    python -m benchmarks.ensembles --slides runs/mosaics-test --model A --model B --model C --out runs/ensembles

Scoring goes on where an earlier call stopped; finished runs of the same weights and orientations are evaluated as they
are.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.common import header, wsi
from benchmarks.demo_model import patch_auc
from models.engines import find_models
from pipelines.camelyon16.benchmark.comparison import compare, read_evaluation
from pipelines.camelyon16.benchmark.curves import interval_text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slides", type=Path, required=True, help="folder with slides.csv and ASAP XML")
    parser.add_argument("--model", action="append", required=True, help="three of them")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    models = [Path(m).resolve() if Path(m).is_dir() else m for m in args.model]
    ways = [(f"model-{i + 1}", [m], 1) for i, m in enumerate(models)]
    every = "models-" + "".join(str(i + 1) for i in range(len(models)))
    ways += [
        (every, models, 1),
        ("model-1-orientations-8", models[:1], 8),
        (f"{every}-orientations-8", models, 8),
    ]
    header(f"{len(models)} models on {args.slides.name}; differences from {ways[0][0]}")
    print(f"  {'':28}{'FROC':<24}{'difference, p':<38}{'slide AUC':<24}{'difference, p':<38}patch AUC")
    for name, used, orientations in ways:
        folder = args.out / name
        if not scored_by(folder, used, orientations):
            words = [word for model in used for word in ("--model", model)]
            wsi("score", args.slides / "slides.csv", "--out", folder, "--orientations", orientations, *words)
        wsi("camelyon16", "evaluate", folder, "--truth", args.slides, "--no-atlas")
        print(row(name, args.slides, folder, args.out / ways[0][0]), flush=True)


def scored_by(folder: Path, models: list[Path | str], orientations: int) -> bool:
    """Whether a finished run of these weights and orientations is there; its code may be of another day."""
    if not (folder / "run.json").exists():
        return False
    record = json.loads((folder / "run.json").read_text())
    same = [m["sha256"] for m in record["models"]] == [
        card.sha256 for card in find_models(list(map(str, models))).cards
    ]
    return (
        record["state"] == "finished"
        and same
        and record["settings"]["engine"]["orientations"] == orientations
    )


def row(name: str, slides: Path, folder: Path, first: Path) -> str:
    figures = json.loads((folder / "evaluation" / "evaluation.json").read_text())["figures"]
    gaps = compare(read_evaluation(folder), read_evaluation(first), 2000, 0)
    cells = []
    for key in ("FROC", "AUC"):
        gap = f"{interval_text(gaps[key]['difference'])}, {gaps[key]['p']:.3f}" if folder != first else ""
        cells.append(f"{interval_text(figures[key]):<24}{gap:<38}")
    return f"  {name:<28}{cells[0]}{cells[1]}{patch_auc(slides, folder):.4f}"


if __name__ == "__main__":
    main()
