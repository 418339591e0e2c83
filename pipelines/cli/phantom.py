"""``wsi phantom``: synthetic slides with known truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.console import err, out, progress
from pipelines.runs.made_by import code_hash, version
from wsi.datasets.patch_folder import read_patches
from wsi.errors import ConfigError, StoreError
from wsi.files import write_json
from wsi.phantoms.kidney.mosaic import write_kidney_mosaic
from wsi.phantoms.kidney.pictures import MPP, Picture, read_pictures
from wsi.phantoms.kidney.slide import KidneyPhantom, plan_kidneys, write_kidney, write_kidney_manifest
from wsi.phantoms.lymph_node.mosaic import Material, load_material, read_outlines
from wsi.phantoms.lymph_node.slide import plan_cohort, validation_split, write_manifest, write_phantom

app = typer.Typer(no_args_is_help=True, help="Make synthetic slides with known truth.")


@app.callback()
def _group() -> None:
    """Make synthetic slides with known truth."""


@app.command("lymph-node")
def lymph_node(
    folder: Annotated[
        Path, typer.Option("--out", "-o", help="The folder for the slides; it is made if it is not there.")
    ],
    count: Annotated[int, typer.Option(min=1, max=1000, help="The number of slides.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="The seed; another one gives other slides.")] = 1,
    size: Annotated[
        str, typer.Option(help="Width and height of level 0 in pixels, as WIDTHxHEIGHT.")
    ] = "14336x12288",
    tumour_share: Annotated[float, typer.Option(min=0, max=1, help="The share of slides with tumour.")] = 0.5,
    validation_share: Annotated[
        float, typer.Option(min=0, max=1, help="The share of slides marked 'validation' in slides.csv.")
    ] = 0.2,
    patches: Annotated[
        Path | None, typer.Option(help="A folder of labelled patches: slides become mosaics of them.")
    ] = None,
    polygons: Annotated[
        Path | None,
        typer.Option(help="A folder of annotation files: a mosaic's lesions have their outlines."),
    ] = None,
    part: Annotated[
        str, typer.Option(help="The share of patches and outlines to use, such as 0-70 and 70-100 (percent).")
    ] = "0-100",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other phantoms in OUT.")] = False,
) -> None:
    """Draw lymph nodes with metastases: slides, ASAP XML and mask as truth, and slides.csv.

    With --patches and --polygons they are mosaics of real tissue. Slides marked 'validation' share neither
    patch nor outline with the others, and neither do cohorts made with parts that do not overlap.

    Examples:
    wsi phantom lymph-node --count 4 --seed 7 -o phantoms
    """
    settings: dict[str, object] = {"seed": seed, "count": count, "size": size, "tumour_share": tumour_share}
    mosaic = _materials(patches, polygons, part, validation_share)
    if mosaic:
        settings |= {"patches": str(patches), "polygons": str(polygons), "part": part}
        settings |= {"validation_share": validation_share}
    _check_folder(folder, settings, overwrite)
    slides = plan_cohort(count, seed, _size(size), tumour_share)
    splits = validation_split(slides, validation_share)
    for i, slide in enumerate(slides, start=1):
        with progress(f"{slide.name} ({i} of {count})", transient=True) as tick:
            layout = write_phantom(
                slide,
                folder,
                material=_material(mosaic, splits[i - 1]),
                progress=lambda done, total: tick(done, total, ""),
            )
        kinds = [lesion.kind for lesion in layout.lesions]
        lesion_text = ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds)) or "no lesion"
        out.print(f"{folder / slide.name}.tif  {layout.mpp} um/px  {lesion_text}", markup=False)
    write_manifest(folder, slides, splits)
    made_by = {
        "program": f"slidewright {version()}",
        "code": code_hash(),
        "command": "wsi phantom lymph-node",
    }
    write_json(folder / "phantoms.json", made_by | {"settings": settings, "note": "synthetic; not tissue"})
    out.print(f"{folder / 'slides.csv'} lists them", markup=False)


@app.command("kidney")
def kidney(
    folder: Annotated[
        Path, typer.Option("--out", "-o", help="The folder for the slides; it is made if it is not there.")
    ],
    count: Annotated[int, typer.Option(min=1, max=1000, help="The number of slides.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="The seed; another one gives other slides.")] = 1,
    size: Annotated[
        str, typer.Option(help="Width and height of level 0 in pixels, as WIDTHxHEIGHT.")
    ] = "12288x8192",
    c4d: Annotated[
        str,
        typer.Option(help="The percentages of capillaries that are C4d-positive, slide by slide, in turn."),
    ] = "0,2,8,20,45,75",
    validation_share: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="The share of slides that slides.csv marks as held out, the last ones."
        ),
    ] = 0.2,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="A folder of pictures of real kidney: slides become mosaics of them, with C4d painted."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other phantoms in OUT.")] = False,
) -> None:
    """Draw kidney transplants stained for C4d: slides, and the true capillaries and fields as GeoJSON.

    Brown tubules, glomeruli and arteries, partial rings and serum are on them, too: they are no positive capillaries.
    With --pictures the tissue is real, of other stains, and only the brown is painted (docs/renal.md). There are no
    fields then. The last slides are marked 'test' and share no picture with the others: not every unstained capillary
    is marked on mosaics, so they must choose no thresholds.

    Examples:
    wsi phantom kidney --count 2 --c4d 0,20 -o kidneys
    """
    percents = _percents(c4d)
    settings: dict[str, object] = {"kind": "kidney", "seed": seed, "count": count, "size": size, "c4d": c4d}
    settings |= {"validation_share": validation_share}
    if pictures:
        settings |= {"pictures": str(pictures)}
    _check_folder(folder, settings, overwrite)
    slides = plan_kidneys(count, seed, _size(size), percents)
    train_count = count - round(count * validation_share)
    last_split = "validation" if pictures is None else "test"
    splits = ["train" if i < train_count else last_split for i in range(count)]
    material = _pictures(pictures, validation_share, splits)
    for i, (slide, split) in enumerate(zip(slides, splits, strict=True), start=1):
        with progress(f"{slide.name} ({i} of {count})", transient=True) as tick:
            counts, mpp = _write_kidney(
                slide, folder, material.get(split), lambda done, total: tick(done, total, "")
            )
        capillary_count = sum(counts.values())
        share = f"{100 * counts['positive'] / capillary_count:.1f} %" if capillary_count else "none"
        count_text = f"{capillary_count} capillaries, {counts['positive']} of them C4d-positive ({share})"
        out.print(f"{folder / slide.name}.tif  {mpp} um/px  {count_text}", markup=False)
    write_kidney_manifest(folder, slides, splits, fields=not material)
    made_by = {"program": f"slidewright {version()}", "code": code_hash(), "command": "wsi phantom kidney"}
    write_json(folder / "phantoms.json", made_by | {"settings": settings, "note": "synthetic; not tissue"})
    out.print(f"{folder / 'slides.csv'} lists them", markup=False)


def _pictures(
    folder: Path | None, validation_share: float, splits: Sequence[str]
) -> dict[str, list[Picture]]:
    """The material of the slides of each split; empty for drawings."""
    if folder is None:
        return {}
    border = 1 - validation_share
    shares = {"train": (0.0, border), "test": (border, 1.0)}
    return {split: read_pictures(folder, *share) for split, share in shares.items() if split in splits}


def _write_kidney(
    slide: KidneyPhantom, folder: Path, pictures: list[Picture] | None, tick: Callable[[int, int], None]
) -> tuple[dict[str, int], float]:
    """Write one slide; return the number of capillaries of each class, and its um per pixel."""
    if pictures is not None:
        return write_kidney_mosaic(slide, folder, pictures, tick), MPP
    layout = write_kidney(slide, folder, tick)
    positive = sum(c.positive for c in layout.capillaries)
    return {"positive": positive, "negative": len(layout.capillaries) - positive}, layout.mpp


def _percents(text: str) -> list[float]:
    try:
        percents = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--c4d must be percentages such as 0,10,60, got {text!r}") from error
    if not all(0 <= value <= 100 for value in percents):  # NaN is refused, too
        raise ConfigError(f"--c4d must lie between 0 and 100, got {text!r}")
    return percents


def _materials(
    patches: Path | None, polygons: Path | None, part: str, validation_share: float
) -> dict[str, Material]:
    """The material of the slides of each split; empty for drawings."""
    if patches is None and polygons is None:
        return {}
    if patches is None or polygons is None:
        raise ConfigError("a mosaic needs both --patches and --polygons; give the other one too")
    try:
        low, high = (float(text) / 100 for text in part.split("-"))
    except ValueError as error:
        raise ConfigError(f"--part must be FROM-TO in percent such as 0-70, got {part!r}") from error
    if not 0 <= low < high <= 1:
        raise ConfigError(f"--part must lie between 0-100 and rise, got {part!r}")
    labelled_patches, outlines = read_patches(patches), read_outlines(polygons)
    for sentence in labelled_patches.left_out:
        err.print(f"left out: {sentence}", markup=False)
    border = high - (high - low) * validation_share
    shares = {"train": (low, border), "validation": (border, high)}
    return {
        split: load_material(labelled_patches, outlines, a, b) for split, (a, b) in shares.items() if b > a
    }


def _material(mosaic: dict[str, Material], split: str) -> Material | None:
    if mosaic and split not in mosaic:
        raise ConfigError(
            f"--validation-share leaves no patches for the slides of the split {split!r}; change it"
        )
    return mosaic.get(split)


def _check_folder(folder: Path, settings: dict[str, object], overwrite: bool) -> None:
    """Refuse to mix phantoms of other settings, or to replace them in silence."""
    try:
        earlier = json.loads((folder / "phantoms.json").read_bytes()).get("settings")
    except (OSError, ValueError):
        return
    if earlier != settings and not overwrite:
        raise StoreError(
            f"{folder} holds other phantoms ({earlier}); choose another --out, or pass --overwrite"
        )


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError as error:
        raise ConfigError(f"--size must be WIDTHxHEIGHT such as 14336x12288, got {text!r}") from error
    if not (4096 <= width <= 400_000 and 4096 <= height <= 400_000):
        raise ConfigError(f"--size must lie between 4096 and 400000 px in each direction, got {text}")
    return width, height
