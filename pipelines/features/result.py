"""The features of a slide as files: the result, HDF5 as other programs read it, the picture, the tables of a run."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from models.card import ModelCard
from pipelines.runs.cohort import Failure
from pipelines.runs.pages import Page, in_pages, write_pages
from pipelines.runs.pictures import TEMPLATES, png
from pipelines.runs.run_folder import whole_facts
from wsi.arrays import CellsRC, PointsXY, Scores
from wsi.files import csv_text
from wsi.results.folder import Folder
from wsi.slides.grid import TileGrid
from wsi.slides.overview import read_overview
from wsi.slides.slide import ReadPlan, Slide

log = logging.getLogger(__name__)

RESULT_FORMAT = 1  # version of the files
FILES = ("features.zarr", "features.h5", "preview.png")
PANEL_PX = 1000  # longer side of the overview on the picture
FITTED = 5_000  # cells that the colours of the picture are fitted on
OBJECTIVE_UM = 10.0  # um per pixel times magnification, as CLAM and TRIDENT count it: 0.5 um/px is 20x


@dataclass(frozen=True, slots=True)
class FeatureResult:
    """The features of a slide.

    Attributes:
        path: absolute, or a URL without its query.
        cells: number of cells with features.
        unreadable: number of cells with tissue that could not be decoded.
        width: number of features of a cell.
        note: a sentence for the user, or empty.
    """

    name: str
    path: str
    cells: int
    unreadable: int
    width: int
    mpp: float
    size: tuple[int, int]
    note: str = ""

    @property
    def empty(self) -> bool:
        """Whether no cell has features."""
        return self.cells == 0

    def summary(self) -> dict[str, Any]:
        """The slide's entry in ``run.json``, without its path, which only ``slide.json`` holds."""
        entry = asdict(self)
        del entry["path"]
        return entry

    def noted(self, text: str) -> FeatureResult:
        """A copy with a note that readers of its features must see."""
        return replace(self, note="; ".join(note for note in (text, self.note) if note))


def result_of(value: dict[str, Any]) -> FeatureResult:
    """A `FeatureResult` from what ``slide.json`` holds."""
    fields = {key: value[key] for key in FeatureResult.__dataclass_fields__}
    return FeatureResult(**fields | {"size": tuple(value["size"])})


def earlier_results(out: Folder, settings: str, but: Collection[str]) -> list[FeatureResult]:
    """Slides that other commands read into the same folder with the same settings, by name."""
    results = []
    for _, content in out.each("slide.json"):
        try:
            value = json.loads(content)
            if value["settings_fingerprint"] == settings and value["name"] not in but:
                results.append(result_of(value))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # not one of ours, or of another version
    return results


def finished(out: Folder, made_of: str) -> FeatureResult | None:
    """The result of an earlier run with the same fingerprint, if all its files are as they were written.

    Raises:
        StoreError: a file is there, and reading it failed.
    """
    facts = whole_facts(out, made_of, "features.zarr")
    try:
        return None if facts is None else result_of(facts)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # damaged: it is written anew


def features_h5(
    values: Scores, corners: PointsXY, plan: ReadPlan, result: FeatureResult, made_by: dict[str, str]
) -> bytes:
    """An HDF5 file as CLAM and TRIDENT read it: ``features`` (n, d) float32, and ``coords`` (n, 2) int64.

    Args:
        values: (n, d) features.
        corners: (n, 2) level-0 x, y of each patch's top-left corner; below 0 where a patch reaches over the edge.
        plan: how the patches were read.
        result: the slide's.
        made_by: what made them.
    """
    file = io.BytesIO()
    scale = plan.scale  # level-0 pixels along one of the model
    with h5py.File(file, "w") as h5:
        h5.create_dataset("features", data=np.asarray(values, np.float32)).attrs.update(made_by)
        coords = h5.create_dataset("coords", data=np.rint(corners).astype(np.int64))
        coords.attrs.update(
            {
                "name": result.name,
                "patch_size": plan.size_px,
                "patch_size_level0": plan.size_l0,
                "overlap": plan.size_px - plan.stride_px,
                "level0_width": result.size[0],
                "level0_height": result.size[1],
                "level0_magnification": OBJECTIVE_UM / result.mpp,
                "target_magnification": OBJECTIVE_UM / (result.mpp * scale),
                "patch_spacing_um_px": result.mpp * scale,
            }
        )
        if plan.size_px == plan.size_l0:  # else CLAM would read patch_size pixels of level 0
            coords.attrs["patch_level"] = 0
    return file.getvalue()


def colours(values: Scores) -> npt.NDArray[np.float64]:
    """Three numbers in 0..1 for each cell: where it lies along the three directions in which features differ most.

    Cells that the model takes for alike get colours that are alike; the colours of two slides do not compare.
    """
    values = np.nan_to_num(values)  # a feature in fp16 may be infinite
    sample = np.asarray(values[:: max(1, len(values) // FITTED)], np.float64)
    mean = sample.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(sample - mean, rowvar=False))
    top = vectors[:, ::-1][:, :3]  # (d, 3)
    top = top * np.sign(top[np.abs(top).argmax(axis=0), np.arange(top.shape[1])])
    along = np.asarray(values @ top.astype(np.float32) - mean @ top, np.float64)  # (n, 3)
    low, high = np.percentile(along, [2, 98], axis=0)
    return np.asarray(np.clip((along - low) / np.maximum(high - low, 1e-12), 0, 1))


def preview_png(
    slide: Slide, cells: CellsRC, values: Scores, grid: TileGrid, result: FeatureResult, card: ModelCard
) -> bytes:
    """Draw the slide, and beside it its cells in the colours of `colours`, as PNG."""
    overview = read_overview(slide, max(slide.size) * slide.mpp / PANEL_PX)
    width, height = slide.size
    panel = min(5.8, 7.2 * width / height)
    head, foot = 0.5, 0.4  # inches
    figure = Figure(figsize=(max(2 * panel + 0.4, 6.5), panel * height / width + head + foot), dpi=130)
    rows, cols = overview.pixels.shape[:2]
    left, right = figure.subplots(1, 2)
    left.imshow(
        overview.pixels, extent=(0, cols * overview.placement.step_x, rows * overview.placement.step_y, 0)
    )
    picture = np.ones((*grid.shape, 3))
    if len(cells) > 3:
        picture[tuple(cells.T)] = colours(values)[:, : min(3, result.width)] if result.width >= 3 else 0.5
    step = grid.plan.stride_l0
    right.imshow(picture, extent=(0, grid.shape[1] * step, grid.shape[0] * step, 0), interpolation="nearest")
    for axes in (left, right):
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.set_axis_off()
    inch = 1 / figure.get_figheight()
    title = f"{result.name}: {result.cells} cells of {result.width} features  {result.note}"
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, parse_math=False)
    text = f"colour: the three directions in which features differ most. Model {card.name}. For research use only."
    figure.text(0.02, 0.1 * inch, text, fontsize=8.5, color="#8c0d18", parse_math=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=foot * inch, top=1 - head * inch, wspace=0.02)
    return png(figure)


def write_tables(
    out: Folder, results: Sequence[FeatureResult], failures: Sequence[Failure], record: dict[str, Any]
) -> Sequence[str]:
    """Write ``features.csv`` and the pages into a run's folder, and return their names."""
    rows = [(r.name, r.cells, r.width, r.unreadable, r.note) for r in results]
    out.write("features.csv", csv_text(("slide", "cells", "features", "unreadable", "note"), rows))

    def html(page: Page[FeatureResult]) -> str:
        counts = {"slides": len(results) + len(failures), "failed": len(failures)}
        return TEMPLATES.get_template("features.html").render(page=page, **counts, record=record)

    return "features.csv", *write_pages(out, in_pages(results, failures), html)
