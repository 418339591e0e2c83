"""A benchmark that anyone can rerun: 48 phantoms of fixed seeds, scored, evaluated; or the real slides, where they are.

    make bench-camelyon16                          # phantoms, the model that ships
    make bench-camelyon16 SLIDES=CAMELYON16/testing MODEL=my_model

Phantoms are drawings: their figures say that the program works, and compare with nobody's on real slides.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.common import header, wsi
from pipelines.camelyon16.benchmark.curves import interval_text
from pipelines.camelyon16.benchmark.published import PUBLISHED

# 24 tumour slides (macro- and micrometastases, isolated cells) and 24 normal ones; the shipped model has seen none of
# this seed
COHORT = ("--count", 48, "--seed", 1616, "--size", "14336x12288")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slides", type=Path, help="CAMELYON16/testing: slides, annotations, reference.csv")
    parser.add_argument("--model", default="lymph-node-demo")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-camelyon16"))
    args = parser.parse_args()
    if args.slides:
        truth = args.slides.resolve()
        slides = truth / "images" if (truth / "images").is_dir() else truth
        results = args.out / "real"
    else:
        truth, results = args.out / "phantoms", args.out / "results"
        slides = truth / "slides.csv"
        if not slides.exists():
            wsi("phantom", "lymph-node", *COHORT, "--out", truth)
    model = Path(args.model).resolve() if Path(args.model).is_dir() else args.model
    wsi("score", slides, "--out", results, "--model", model)
    wsi("camelyon16", "evaluate", results, "--truth", truth)
    value = json.loads((results / "evaluation" / "evaluation.json").read_text())
    header(f"{Path(args.model).name} on {'real slides' if args.slides else '48 phantoms (drawings)'}")
    print_ours(value)
    print(
        "\n  published, on Camelyon16's real test slides: for orientation, not for comparison with phantoms"
    )
    print(f"  {'':46}{'FROC':<24}{'AUC':<24}")
    for p in PUBLISHED:
        print(f"  {p.name:<46}{_pair(p.froc, p.froc_interval):<24}{_pair(p.auc, p.auc_interval):<24}{p.note}")
        print(f"    {p.source}")
    print(f"\n  {results / 'evaluation' / 'atlas.html'} shows every mistake")


def print_ours(value: dict) -> None:
    figures = value["figures"]
    print(f"  FROC, variant {value['variant']!r}: {interval_text(figures['FROC'])}")
    for target, shown in figures["sensitivity at false positives per slide"].items():
        print(f"    sensitivity at {target:>4} per slide: {interval_text(shown)}")
    found = figures["lesions to be found"] - figures["lesions without any detection"]
    print(f"  lesions with a detection: {found} of {figures['lesions to be found']}", end="")
    print(f" (and {figures['isolated tumour cells, not counted']} groups of isolated cells, not counted)")
    for name in ("AUC", "AUC, macrometastases", "AUC, micrometastases"):
        shown = figures[name]
        delong = "" if shown["DeLong"] is None else "; DeLong {:.3f} to {:.3f}".format(*shown["DeLong"])
        print(f"  {name}: {interval_text(shown)}{delong} ({shown['tumour slides']} tumour slides)")


def _pair(value: float | None, interval: tuple[float, float] | None) -> str:
    return (
        interval_text({"value": value, "interval": None if interval is None else list(interval)})
        if value
        else "-"
    )


if __name__ == "__main__":
    main()
