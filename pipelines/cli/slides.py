"""``wsi info`` and ``wsi doctor``: facts about a slide, and whether everything is ready."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import openslide
import typer

from models.card import DEFAULT_MODEL
from models.engines import Engine, EngineConfig, find_models, load_engine
from pipelines.camelyon16.read.score import ScoreConfig, plan_slide
from pipelines.cli.console import duration, err, out, progress
from pipelines.cli.options import Anisotropic, ModelNames, Mpp
from pipelines.runs.cohort import gather
from pipelines.runs.config import load_config
from pipelines.runs.made_by import libraries, machine, version
from wsi.datasets.rules import apply_dataset, rows_of_folder
from wsi.errors import SlideError, WsiError
from wsi.slides.blocks import PatchBlock
from wsi.slides.manifest import SlideRow, read_manifest
from wsi.slides.privacy import traces
from wsi.slides.slide import Slide
from wsi.slides.tissue import Mask
from wsi.text import number_of

SAFE_OPENSLIDE = (4, 0, 1)  # 4.0.0 has two published vulnerabilities in its readers
MIN_FREE_GIB = 2
LONGEST_VALUE = 80  # characters of what a file tells


def info(
    slides: Annotated[
        list[str],
        typer.Argument(metavar="SLIDES", help="Slides, folders of slides, URLs, or a table of slides."),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each slide, on a line of its own.")
    ] = False,
    mpp: Mpp = None,
    allow_anisotropic: Anisotropic = False,
) -> None:
    """Print facts about a slide: its size, its spacing and where that comes from, its levels and bounds.

    Examples:
    wsi info my_slide.svs

    wsi info slides/ --json
    """
    failed = False
    for row in gather(slides, mpp=mpp, allow_anisotropic=allow_anisotropic):
        try:
            with row.source.open() as slide:
                facts = describe(slide)
        except WsiError as error:
            failed = True
            err.print(f"wsi: {error}", markup=False)
            continue
        if as_json:
            out.print(json.dumps(facts, ensure_ascii=False), markup=False)
        else:
            _print_facts(facts)
    raise typer.Exit(1 if failed else 0)


def describe(slide: Slide) -> dict[str, Any]:
    """Facts about an open slide as plain values, without label and barcode."""
    try:
        mpp, problem = slide.mpp, None
    except WsiError as error:
        mpp, problem = None, str(error)
    return {
        "path": slide.path,
        "format": slide.vendor,
        "size": list(slide.size),
        "mpp": mpp,
        "spacing_from": None if mpp is None or slide.spacing is None else slide.spacing.origin,
        "problem": problem,
        "stored_spacings": [[s.origin, s.x_um, s.y_um] for s in slide.stored],
        "levels": [{"size": list(v.size), "downsample": round(v.downsample, 4)} for v in slide.levels],
        "bounds": slide.bounds,
    }


def _print_facts(facts: dict[str, Any]) -> None:
    width, height = facts["size"]
    out.print(facts["path"], markup=False, style="bold")
    out.print(f"  format   {facts['format']}", markup=False)
    mpp = facts["mpp"]
    physical = "" if mpp is None else f" = {width * mpp / 1e3:.2f} x {height * mpp / 1e3:.2f} mm"
    out.print(f"  size     {width} x {height} px{physical}", markup=False)
    if facts["problem"]:
        out.print(f"  spacing  {facts['problem']}", markup=False, style="red")
    else:
        out.print(f"  spacing  {facts['mpp']:.4g} um/px, from {facts['spacing_from']}", markup=False)
    levels = ", ".join(f"{v['size'][0]} x {v['size'][1]} (1:{v['downsample']:g})" for v in facts["levels"])
    out.print(f"  levels   {levels}", markup=False)
    if facts["bounds"]:
        out.print(f"  bounds   x, y, width, height {facts['bounds']}", markup=False)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of ``wsi doctor``."""

    what: str
    good: bool
    said: str


def doctor(
    slides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SLIDES", help="Slides, folders of slides, or a table of slides."),
    ] = None,
    model: ModelNames = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            help="A slides.csv or a folder to check for training, with the truth and the cells of each slide."
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="The recipe that is to be trained; it goes with --manifest.")
    ] = None,
    mpp: Mpp = None,
    native: Annotated[
        bool,
        typer.Option(
            "--native",
            help="Read every slide at its own level 0, whatever its spacing, as wsi score does with it.",
        ),
    ] = False,
    allow_anisotropic: Anisotropic = False,
    privacy: Annotated[
        bool,
        typer.Option(
            "--privacy",
            help="List what the slides' files tell of patients, people and days; nothing of it goes into an output.",
        ),
    ] = False,
) -> None:
    """Check whether this machine and each slide are ready: versions, device, spacing, levels, the time it will take.

    With --manifest, check whether a data set is ready for training: files, spacing, truth inside the slide, cells.

    Examples:
    wsi doctor

    wsi doctor my_slide.svs -m my_model

    wsi doctor --manifest CAMELYON16 --recipe configs/camelyon16.yaml

    wsi doctor --privacy slides/
    """
    if privacy:
        rows = gather(slides or [], mpp=mpp, allow_anisotropic=allow_anisotropic)
        raise typer.Exit(_print_traces(rows))
    if manifest is not None:
        checks = check_training(manifest, recipe)
        raise typer.Exit(_print_checks(checks))
    engine = load_engine(find_models(model or [DEFAULT_MODEL]), EngineConfig())
    speed = measure_speed(engine)
    checks = check_machine(engine, speed)
    if slides:
        rows = gather(slides, mpp=mpp, allow_anisotropic=allow_anisotropic)
        checks += check_slides(rows, engine, speed, ScoreConfig(native=native))
    raise typer.Exit(_print_checks(checks))


def _print_traces(rows: list[SlideRow]) -> int:
    """Print what each file tells; return the exit code, 0 where none tells anything."""
    count = 0
    for row in rows:
        try:
            told = traces(row.source)
        except SlideError as error:
            err.print(f"{error}", markup=False)
            count += 1
            continue
        count += len(told)
        out.print(f"{row.source.label}: {len(told) or 'nothing'}", markup=False)
        for trace in told:
            out.print(f"  {trace.where}: {trace.value[:LONGEST_VALUE]}", markup=False)
    return 1 if count else 0


def _print_checks(checks: list[Check]) -> int:
    """Print the checks; return the exit code, 0 where all are good."""
    for check in checks:
        out.print(f"{'ok' if check.good else 'NO'}  {check.what}: {check.said}", markup=False)
    return 0 if all(check.good for check in checks) else 1


def check_training(manifest: Path, recipe: Path | None) -> list[Check]:
    """Check every line of a manifest, and every slide with its truth, as training will use them."""
    from models.training.data.slides import prepare_slide
    from models.training.data.splits import frame_of
    from models.training.recipe import TrainConfig

    cfg = load_config(recipe, TrainConfig) if recipe else TrainConfig(name="check")
    negative, positive = cfg.words
    problems: list[str] = []
    rows = rows_of_folder(manifest) if manifest.is_dir() else read_manifest(manifest, problems)
    dataset = apply_dataset(rows, cfg.rules)
    checks = [Check("manifest", False, problem) for problem in problems]
    checks += [Check("data set", True, sentence) for sentence in dataset.left_out]
    totals: dict[str, list[int]] = {}
    with progress("slides") as tick:
        for done, row in enumerate(dataset.rows):
            tick(done, len(dataset.rows))
            split = row.split or "no split"
            try:
                training = prepare_slide(row, frame_of(cfg))
            except WsiError as error:
                checks.append(Check(row.source.name, False, f"{split}; {error}"))
                continue
            with training.slide as slide:
                counts = [len(cells) for cells in training.cells]
                total = totals.setdefault(split, [0, 0, 0])
                totals[split] = [total[0] + 1, total[1] + counts[0], total[2] + counts[1]]
                slide_text = f"{split}; {slide.size[0]} x {slide.size[1]} px"
                slide_text += f", {slide.mpp:.4g} um/px" if slide.spacing else ", no spacing"
                slide_text += f"; {counts[0]} {negative} and {counts[1]} {positive} cells"
                slide_text += f"; marked in part, gives no {negative} cells" if row.partial else ""
                slide_text += f"; {training.note}" if training.note else ""
                checks.append(Check(row.source.name, sum(counts) > 0, slide_text))
    for split in ("train", "validation"):
        slide_count, *counts = totals.get(split, [0, 0, 0])
        slide_text = (
            f"{number_of(slide_count, 'slide')}, {counts[0]} {negative} and {counts[1]} {positive} cells"
        )
        checks.append(Check(f"split {split}", min(counts) > 0, slide_text))
    return checks


def measure_speed(engine: Engine) -> float:
    """Patches per second of the network alone, on noise, after a warm-up."""
    size = engine.models.card.patch_px
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    count = 16
    block = PatchBlock(pixels, np.zeros((count, 2), np.int64), size)
    list(engine.score([block]))
    start, done = time.monotonic(), 0
    while time.monotonic() - start < 1.0:
        list(engine.score([block]))
        done += count
    return done / (time.monotonic() - start)


def check_machine(engine: Engine, speed: float) -> list[Check]:
    """Checks of versions, device and disk."""
    facts, versions = machine(), libraries()
    openslide_version = tuple(int(part) for part in openslide.__library_version__.split(".")[:3])
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return [
        Check("program", True, f"slidewright {version()}, Python {facts['python']}, {facts['system']}"),
        Check("processor", True, f"{facts['cores']} cores, {facts['processor']}"),
        Check(
            "OpenSlide",
            openslide_version >= SAFE_OPENSLIDE,
            f"{openslide.__library_version__}"
            + (
                ""
                if openslide_version >= SAFE_OPENSLIDE
                else "; has known vulnerabilities, install openslide-bin >= 4.0.1.1"
            ),
        ),
        Check("libraries", True, ", ".join(f"{k} {v}" for k, v in versions.items() if k != "openslide-bin")),
        Check("engine", True, f"{engine.description}: {speed:.0f} patches/s with {engine.models.card.name}"),
        Check("disk", free >= MIN_FREE_GIB, f"{free:.1f} GiB free here"),
    ]


def _why(mask: Mask) -> str:
    return f" ({mask.why_empty})" if mask.why_empty else ""


def check_slides(rows: list[SlideRow], engine: Engine, speed: float, cfg: ScoreConfig) -> list[Check]:
    """Check each slide: open it, find its tissue, and estimate how long it will take."""
    checks, total, usable_count = [], 0.0, 0
    for row in rows:
        name = Path(row.source.path).name
        try:
            with row.source.open() as slide:
                plan = plan_slide(slide, row, engine, cfg)
                cells = len(plan.grid)
                seconds = cells / speed
                total += seconds
                usable_count += cells > 0
                origin = slide.spacing.origin if slide.spacing else "unknown"
                slide_text = (
                    f"{slide.size[0]} x {slide.size[1]} px, {slide.mpp:.4g} um/px ({origin}), "
                    f"{len(slide.levels)} level{'' if len(slide.levels) == 1 else 's'}, {cells} cells with tissue, "
                    f"about {duration(seconds)}"
                )
                if slide.bounds and slide.bounds[:2] != (0, 0):
                    slide_text += f"; QuPath's origin is at {slide.bounds[:2]}, exports follow it"
                checks.append(
                    Check(
                        name,
                        cells > 0,
                        slide_text
                        if cells
                        else f"{slide_text}; no tissue found{_why(plan.mask)}, pass --mask",
                    )
                )
        except WsiError as error:
            checks.append(Check(name, False, str(error)))
    slide_text = f"{usable_count} of {len(rows)} can be scored, in about {duration(total)}"
    return [*checks, Check("all slides", usable_count == len(rows), slide_text)]
