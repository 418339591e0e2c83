"""The result of a slide's segmentation: areas by class, outlines, the picture, the tables of a run."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from shapely import Polygon

from models.card import SegmenterCard
from pipelines.runs.cohort import Failure
from pipelines.runs.pages import Page, in_pages, write_pages
from pipelines.runs.pictures import TEMPLATES, bar_um, png
from wsi.files import csv_text
from wsi.metrics.segmentation import UNKNOWN, ClassMap
from wsi.results.export import Feature
from wsi.results.folder import Folder
from wsi.slides.overview import read_overview
from wsi.slides.slide import Slide
from wsi.vocabulary import COMPARTMENT_COLOURS

RESULT_FORMAT = 1  # version of outlines and files; raise it when the golden areas of the tests change
FILES = ("classes.zarr", "areas.geojson", "preview.png")
PANEL_PX = 1000  # longer side of the overview on the picture
HEAD_IN, FOOT_IN = 0.5, 0.75  # of the picture: title; legend and note
OPACITY = 0.55  # of the classes over the tissue
# of classes without a colour of their own, in their order (Okabe and Ito 2008: told apart by the colour-blind, too)
PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


@dataclass(frozen=True, slots=True)
class ClassArea:
    """What was found of one class.

    Attributes:
        mm2: area of all places of the class; None where nothing was mapped.
        objects: number of its connected areas that are not smaller than the settings' least; None likewise.
    """

    mm2: float | None
    objects: int | None


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """The result of a slide's segmentation.

    Attributes:
        path: absolute, or a URL without its query.
        classes: by name, in the order of the model's; the first is what no outline marked in the training.
        unreadable: number of cells of the map that could not be decoded.
        note: a sentence for the user, or empty.
    """

    name: str
    path: str
    classes: dict[str, ClassArea]
    unreadable: int
    mpp: float
    size: tuple[int, int]
    note: str = ""

    @property
    def empty(self) -> bool:
        """Whether nothing was mapped."""
        return all(one.mm2 is None for one in self.classes.values())

    def summary(self) -> dict[str, Any]:
        """The slide's entry in ``run.json``, without its path, which only ``slide.json`` holds."""
        entry = asdict(self)
        del entry["path"]
        return entry

    def noted(self, text: str) -> SegmentResult:
        """A copy with a note that readers of its areas must see."""
        return replace(self, note="; ".join(note for note in (text, self.note) if note))


def result_of(value: dict[str, Any]) -> SegmentResult:
    """A `SegmentResult` from what ``slide.json`` holds."""
    fields = {key: value[key] for key in SegmentResult.__dataclass_fields__}
    classes = {name: ClassArea(**one) for name, one in value["classes"].items()}
    return SegmentResult(**fields | {"classes": classes, "size": tuple(value["size"])})


def earlier_results(out: Folder, settings: str, but: Collection[str]) -> list[SegmentResult]:
    """Slides that other commands mapped into the same folder with the same settings, by name."""
    results = []
    for _, content in out.each("slide.json"):
        try:
            value = json.loads(content)
            if value["settings_fingerprint"] == settings and value["name"] not in but:
                results.append(result_of(value))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # not one of ours, or of another version
    return results


def colours_of(classes: Sequence[str]) -> list[tuple[int, int, int]]:
    """A colour (R, G, B) for each class; white for the first."""
    others = iter(PALETTE * len(classes))
    return [(255, 255, 255)] + [COMPARTMENT_COLOURS.get(name) or next(others) for name in classes[1:]]


def area_features(
    name: str, card: SegmenterCard, areas: Sequence[tuple[int, Polygon]], mpp: float, made_by: dict[str, str]
) -> list[Feature]:
    """Outlines with holes as annotations, one for each connected area."""
    classes, colours = card.segmenter.classes, colours_of(card.segmenter.classes)
    return [
        Feature(
            f"{name} {classes[label]} {shape.bounds}",
            shape,
            "annotation",
            f"{classes[label]} {i}",
            classes[label],
            colours[label],
            {"area um2": shape.area * mpp**2},
            made_by,
        )
        for i, (label, shape) in enumerate(areas, start=1)
    ]


def preview_png(
    slide: Slide, labels: ClassMap, step: float, result: SegmentResult, card: SegmenterCard
) -> bytes:
    """Draw the slide, and beside it the slide with its classes, as PNG.

    Args:
        slide: what was mapped.
        labels: the map; `UNKNOWN` where nothing was mapped.
        step: level-0 pixels along a cell.
        result: for the title.
        card: for the legend.
    """
    overview = read_overview(slide, max(slide.size) * slide.mpp / PANEL_PX)
    classes, (width, height) = card.segmenter.classes, slide.size
    aspect = height / width
    panel = min(5.8, 7.2 / aspect)
    figure = Figure(figsize=(max(2 * panel + 0.4, 6.5), panel * aspect + HEAD_IN + FOOT_IN), dpi=130)
    rows, cols = overview.pixels.shape[:2]
    extent = (0, cols * overview.placement.step_x, rows * overview.placement.step_y, 0)
    for axes in figure.subplots(1, 2):
        axes.imshow(overview.pixels, extent=extent, interpolation="antialiased")
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.set_axis_off()
    reduction = max(1, max(labels.shape) // (2 * PANEL_PX))  # a large map takes gigabytes as colours
    labels, step = labels[reduction // 2 :: reduction, reduction // 2 :: reduction], step * reduction
    cells_extent = (0, labels.shape[1] * step, labels.shape[0] * step, 0)
    axes.imshow(_painted(labels, classes), extent=cells_extent, interpolation="nearest")
    bar = bar_um(width * slide.mpp / 5)
    axes.plot([width * 0.03, width * 0.03 + bar / slide.mpp], [height * 0.97] * 2, color="black", linewidth=3)
    label = f"{bar / 1000:g} mm" if bar >= 1000 else f"{bar:g} µm"
    axes.text(width * 0.03, height * 0.955, label, fontsize=9, va="bottom")
    patches = [
        Patch(
            color=to_hex((colour[0] / 255, colour[1] / 255, colour[2] / 255)),
            label=f"{name}: {area_text(result.classes[name].mm2)}",
        )
        for name, colour in zip(classes[1:], colours_of(classes)[1:], strict=True)
    ]
    inch = 1 / figure.get_figheight()
    figure.legend(
        handles=patches,
        loc="lower left",
        bbox_to_anchor=(0.0, 0.25 * inch),
        ncols=min(len(patches), 5),
        fontsize=9,
        frameon=False,
    )
    figure.suptitle(f"{result.name}  {result.note}", x=0.02, ha="left", fontsize=12, parse_math=False)
    note = ", trained on drawings: what it says of real tissue means nothing" if card.demonstration else ""
    text = f"model {card.name}{note}. For research use only."
    figure.text(0.98, 0.08 * inch, text, fontsize=9, color="#8c0d18", ha="right", parse_math=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=FOOT_IN * inch, top=1 - HEAD_IN * inch, wspace=0.02)
    return png(figure)


def _painted(labels: ClassMap, classes: Sequence[str]) -> npt.NDArray[np.uint8]:
    """RGBA of a map: nothing where it has the first class, or none."""
    lut = np.zeros((256, 4), np.uint8)
    for number, colour in enumerate(colours_of(classes)):
        lut[number] = (*colour, round(255 * OPACITY) if number else 0)
    return np.asarray(lut[np.where(labels == UNKNOWN, 0, labels)])


def area_text(mm2: float | None) -> str:
    """An area for a sentence or a legend."""
    return "not mapped" if mm2 is None else f"{mm2:.2f} mm²"


def write_tables(
    out: Folder, results: Sequence[SegmentResult], failures: Sequence[Failure], record: dict[str, Any]
) -> Sequence[str]:
    """Write ``areas.csv`` and the pages into a run's folder, and return their names."""
    rows = [
        (r.name, name, *(("", "") if r.empty else (f"{one.mm2:.6f}", one.objects)), r.note)
        for r in results
        for name, one in r.classes.items()
    ]
    out.write("areas.csv", csv_text(("slide", "class", "mm2", "objects", "note"), rows))

    def html(page: Page[SegmentResult]) -> str:
        counts = {"slides": len(results) + len(failures), "failed": len(failures)}
        return TEMPLATES.get_template("segment.html").render(page=page, **counts, record=record)

    return "areas.csv", *write_pages(out, in_pages(results, failures), html)
