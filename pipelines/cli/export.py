"""``wsi export``: it writes results for other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer

from pipelines.camelyon16.benchmark.predictions import unusable
from pipelines.camelyon16.read.lesions import LesionConfig, outlines
from pipelines.camelyon16.read.results import SlideResult, group_of, lesion_features, result_of, update_record
from pipelines.cli.console import out
from pipelines.runs.run_folder import note_tables
from wsi.errors import StoreError
from wsi.marks.annotations import Annotation, asap_xml
from wsi.results.export import (
    Feature,
    Origin,
    cells_csv,
    compressed,
    geojson,
    ome_tiff,
    origin_offset,
    tile_features,
)
from wsi.results.folder import Folder, folder_at
from wsi.results.heatmap import Heatmap
from wsi.results.store import HeatmapStore

app = typer.Typer(no_args_is_help=True, help="Write results for QuPath, ASAP and others.")
Results = Annotated[
    Folder,
    typer.Argument(
        metavar="RESULTS", parser=folder_at, help="The --out of wsi score, or one slide's folder in it."
    ),
]


@dataclass(frozen=True, eq=False, slots=True)
class Scored:
    """One slide's results, read from its folder."""

    folder: Folder
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


def read_scored(folder: Folder) -> list[Scored]:
    """Read every scored slide of a run's folder, by name.

    Raises:
        StoreError: there is none, or a file is broken.
    """
    is_slide = folder.exists("slide.json")
    folders = [folder] if is_slide else [folder.inside(name) for name in folder.holding("slide.json")]
    if not folders:
        raise StoreError(f"{folder} holds no scored slide; run wsi score first, and give its --out here")
    slides = []
    for slide_folder in folders:
        try:
            facts = slide_folder.read_json("slide.json")
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
            raise unusable(slide_folder, error) from error
        store = HeatmapStore.open(slide_folder.inside("heatmap.zarr"))
        if store.attributes.get("fingerprint") != facts["fingerprint"]:
            raise StoreError(
                f"{slide_folder} was being scored again and is not finished; run wsi score again"
            )
        slides.append(Scored(slide_folder, result, facts, store))
    return slides


def _each(folder: Folder, write: Callable[[Scored], str]) -> None:
    for scored in read_scored(folder):
        out.print(scored.folder.at(write(scored)), markup=False)


@app.command("geojson")
def geojson_command(
    folder: Results,
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

    def write(scored: Scored) -> str:
        bounds = scored.facts["bounds"]
        offset = origin_offset(bounds and tuple(bounds), origin)
        heatmap = scored.heatmap
        made_by = {"model": scored.facts["model"], "fingerprint": scored.facts["fingerprint"]}
        name, positive = scored.result.name, scored.facts["positive"]
        areas = outlines(heatmap, scored.lesion_settings)
        features = lesion_features(
            name, positive, scored.result.lesions, areas, heatmap, scored.result.mpp, made_by
        )
        written = _write_both(scored.folder, "lesions.geojson", features, offset, gz)
        update_record(scored.folder, "lesions.geojson")
        run = scored.folder.parent
        if run.exists("run.json"):
            with run.alone():
                note_tables(run, [f"{scored.folder.name}/slide.json"])
        if not tiles:
            return written
        cells = np.argwhere(np.isfinite(heatmap.scores))
        threshold = scored.lesion_settings.threshold
        boxes, scores = heatmap.placement.boxes(cells), heatmap.scores[tuple(cells.T)]
        squares = tile_features(name, boxes, scores, group_of(positive), threshold)
        return _write_both(scored.folder, "cells.geojson", squares, offset, gz)

    _each(folder, write)


def _write_both(folder: Folder, name: str, features: list[Feature], offset: tuple[int, int], gz: bool) -> str:
    """Write the plain file, and write or remove the compressed one beside it, so that the two never differ."""
    text = geojson(features, offset)
    folder.write(name, text)
    if not gz:
        folder.delete(f"{name}.gz")
        return name
    folder.write(f"{name}.gz", compressed(text))
    return f"{name}.gz"


@app.command("asap")
def asap(folder: Results) -> None:
    """Write outlines for ASAP: lesions.xml.

    Examples:
    wsi export asap results
    """

    def write(scored: Scored) -> str:
        areas = outlines(scored.heatmap, scored.lesion_settings)
        group = group_of(scored.facts["positive"])
        marks = [
            Annotation(a.shape, group, f"area {i}, up to {a.maximum:.3f}") for i, a in enumerate(areas, 1)
        ]
        scored.folder.write("lesions.xml", asap_xml(marks))
        return "lesions.xml"

    _each(folder, write)


@app.command("csv")
def csv_cells(folder: Results) -> None:
    """Write every scored cell as a row of cells.csv: minx,miny,width,height,prob_CLASS..., WSInfer's form.

    Examples:
    wsi export csv results
    """

    def write(scored: Scored) -> str:
        classes: list[str] = scored.facts["classes"]
        maps = [scored.store.read(i) for i in range(len(classes))]
        cells = np.argwhere(np.isfinite(maps[0].scores))
        scores = np.stack([m.scores[tuple(cells.T)] for m in maps], axis=1)
        scored.folder.write("cells.csv", cells_csv(maps[0].placement.boxes(cells), scores, classes))
        return "cells.csv"

    _each(folder, write)


@app.command("ome-tiff")
def ome_tiff_command(
    folder: Results,
    class_name: Annotated[
        str | None, typer.Option("--class", help="The class to write.", show_default="the positive one")
    ] = None,
) -> None:
    """Write the heatmap of one class as heatmap.ome.tif: lossless float32, with physical sizes.

    Examples:
    wsi export ome-tiff results --class tumor
    """

    def write(scored: Scored) -> str:
        name = class_name or scored.facts["positive"]
        classes: list[str] = scored.facts["classes"]
        if name not in classes:
            raise StoreError(f"{scored.folder} has no class {name!r}; it has {', '.join(classes)}")
        picture = ome_tiff(scored.store.read(classes.index(name)), scored.result.mpp, name)
        scored.folder.write("heatmap.ome.tif", picture)
        return "heatmap.ome.tif"

    _each(folder, write)
