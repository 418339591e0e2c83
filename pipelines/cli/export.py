"""``wsi export``: it writes results for other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from pipelines.camelyon16.benchmark.predictions import unusable
from pipelines.camelyon16.read.lesions import LesionConfig, outlines
from pipelines.camelyon16.read.results import SlideResult, group_of, lesion_features, result_of, update_record
from pipelines.cli.console import out
from pipelines.runs.run_folder import note_tables
from wsi.errors import StoreError
from wsi.files import alone_in
from wsi.marks.annotations import Annotation, write_asap
from wsi.results.export import (
    Feature,
    Origin,
    origin_offset,
    tile_features,
    write_cells_csv,
    write_geojson,
    write_ome_tiff,
)
from wsi.results.heatmap import Heatmap
from wsi.results.store import HeatmapStore

app = typer.Typer(no_args_is_help=True, help="Write results for QuPath, ASAP and others.")
Folder = Annotated[
    Path, typer.Argument(metavar="RESULTS", help="The --out of wsi score, or one slide's folder in it.")
]


@dataclass(frozen=True, eq=False, slots=True)
class Scored:
    """One slide's results, read from its folder."""

    folder: Path
    result: SlideResult
    facts: dict[str, Any]
    store: HeatmapStore

    @property
    def heatmap(self) -> Heatmap:
        """The heatmap of the class that lesions were found on."""
        return self.store.read(self.facts["classes"].index(self.facts["positive"]))

    @property
    def lesion_settings(self) -> LesionConfig:
        """The settings that its lesions were found with."""
        return LesionConfig.model_validate_json(json.dumps(self.facts["lesion_settings"]))


def read_scored(folder: Path) -> list[Scored]:
    """Read every scored slide of a run's folder, by name.

    Raises:
        StoreError: there is none, or a file is broken.
    """
    files = (
        [folder / "slide.json"] if (folder / "slide.json").is_file() else sorted(folder.glob("*/slide.json"))
    )
    if not files:
        raise StoreError(f"{folder} holds no scored slide; run wsi score first, and give its --out here")
    slides = []
    for path in files:
        try:
            facts = json.loads(path.read_bytes())
            result = result_of(facts)
            _ = (
                facts["fingerprint"],
                facts["bounds"],
                facts["model"],
                facts["classes"].index(facts["positive"]),
            )
            LesionConfig.model_validate_json(json.dumps(facts["lesion_settings"]))
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise unusable(path, error) from error
        store = HeatmapStore.open(path.parent / "heatmap.zarr")
        if store.attributes.get("fingerprint") != facts["fingerprint"]:
            raise StoreError(f"{path.parent} was being scored again and is not finished; run wsi score again")
        slides.append(Scored(path.parent, result, facts, store))
    return slides


def _each(folder: Path, write: Callable[[Scored], Path]) -> None:
    for scored in read_scored(folder):
        out.print(str(write(scored)), markup=False)


@app.command("geojson")
def geojson(
    folder: Folder,
    origin: Annotated[
        Origin,
        typer.Option(
            help="Where the coordinates begin: auto and bounds follow QuPath's crop, slide does not."
        ),
    ] = "auto",
    tiles: Annotated[
        bool,
        typer.Option("--tiles", help="Write every scored cell into cells.geojson, as a tile with its score."),
    ] = False,
    gz: Annotated[
        bool, typer.Option("--gz", help="Write a file compressed with gzip, too; QuPath reads it.")
    ] = False,
) -> None:
    """Write outlines and peaks for QuPath: lesions.geojson; and with --tiles every cell: cells.geojson.

    A tile has the class of the tumour only from the threshold on that the slide was scored with.

    Examples:
    wsi export geojson results

    wsi export geojson results/my_slide --tiles --gz
    """

    def write(scored: Scored) -> Path:
        bounds = scored.facts["bounds"]
        offset = origin_offset(bounds and tuple(bounds), origin)
        heatmap = scored.heatmap
        made_by = {"model": scored.facts["model"], "fingerprint": scored.facts["fingerprint"]}
        name, positive = scored.result.name, scored.facts["positive"]
        areas = outlines(heatmap, scored.lesion_settings)
        features = lesion_features(
            name, positive, scored.result.lesions, areas, heatmap, scored.result.mpp, made_by
        )
        path = _write_both(scored.folder / "lesions.geojson", features, offset, gz)
        update_record(scored.folder, "lesions.geojson")
        run = scored.folder.resolve().parent
        if (run / "run.json").is_file():
            with alone_in(run):
                note_tables(run, [f"{scored.folder.resolve().name}/slide.json"])
        if not tiles:
            return path
        cells = np.argwhere(np.isfinite(heatmap.scores))
        threshold = scored.lesion_settings.threshold
        boxes, scores = heatmap.placement.boxes(cells), heatmap.scores[tuple(cells.T)]
        squares = tile_features(name, boxes, scores, group_of(positive), threshold)
        return _write_both(scored.folder / "cells.geojson", squares, offset, gz)

    _each(folder, write)


def _write_both(path: Path, features: list[Feature], offset: tuple[int, int], gz: bool) -> Path:
    """Write the plain file, and write or remove the compressed one beside it, so that the two never differ."""
    compressed = path.with_name(f"{path.name}.gz")
    write_geojson(path, features, offset)
    if gz:
        write_geojson(compressed, features, offset)
    else:
        compressed.unlink(missing_ok=True)
    return compressed if gz else path


@app.command("asap")
def asap(folder: Folder) -> None:
    """Write outlines for ASAP: lesions.xml.

    Examples:
    wsi export asap results
    """

    def write(scored: Scored) -> Path:
        areas = outlines(scored.heatmap, scored.lesion_settings)
        path = scored.folder / "lesions.xml"
        group = group_of(scored.facts["positive"])
        write_asap(
            path,
            [Annotation(a.shape, group, f"area {i}, up to {a.maximum:.3f}") for i, a in enumerate(areas, 1)],
        )
        return path

    _each(folder, write)


@app.command("csv")
def csv_cells(folder: Folder) -> None:
    """Write every scored cell as a row of cells.csv: minx,miny,width,height,prob_CLASS..., WSInfer's form.

    Examples:
    wsi export csv results
    """

    def write(scored: Scored) -> Path:
        classes: list[str] = scored.facts["classes"]
        maps = [scored.store.read(i) for i in range(len(classes))]
        cells = np.argwhere(np.isfinite(maps[0].scores))
        scores = np.stack([m.scores[tuple(cells.T)] for m in maps], axis=1)
        path = scored.folder / "cells.csv"
        write_cells_csv(path, maps[0].placement.boxes(cells), scores, classes)
        return path

    _each(folder, write)


@app.command("ome-tiff")
def ome_tiff(
    folder: Folder,
    class_name: Annotated[
        str | None, typer.Option("--class", help="The class to write.", show_default="the positive one")
    ] = None,
) -> None:
    """Write the heatmap of one class as heatmap.ome.tif: lossless float32, with physical sizes.

    Examples:
    wsi export ome-tiff results --class tumor
    """

    def write(scored: Scored) -> Path:
        name = class_name or scored.facts["positive"]
        classes: list[str] = scored.facts["classes"]
        if name not in classes:
            raise StoreError(f"{scored.folder} has no class {name!r}; it has {', '.join(classes)}")
        path = scored.folder / "heatmap.ome.tif"
        write_ome_tiff(path, scored.store.read(classes.index(name)), scored.result.mpp, name)
        return path

    _each(folder, write)
