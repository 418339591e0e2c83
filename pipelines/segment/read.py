"""The segmentation of one slide: a map of classes, chunk by chunk, then outlines and areas."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from pydantic import Field
from shapely import Polygon

from models.card import SegmenterCard
from models.engines.map_slide import FORMAT, Mapper, MapperSpec, MapPlan, plan_map
from pipelines.runs.made_by import fingerprint
from pipelines.runs.run_folder import refuse_other_kind, whole_facts
from pipelines.runs.task import HERE, Executor, MapTask, in_parts
from pipelines.segment.result import (
    FILES,
    RESULT_FORMAT,
    ClassArea,
    SegmentResult,
    area_features,
    preview_png,
    result_of,
)
from wsi.config import Config
from wsi.errors import SlideError
from wsi.marks.own_mask import mask_identity, read_user_mask
from wsi.marks.raster import areas_of
from wsi.metrics.segmentation import UNKNOWN, ClassMap
from wsi.results.export import geojson, origin_offset
from wsi.results.folder import Folder, Place, folder_at
from wsi.results.store import HeatmapStore
from wsi.slides.manifest import SlideRow
from wsi.slides.slide import Slide
from wsi.slides.tissue import DENSITY, DensityTissue, find_tissue
from wsi.stopwatch import during

log = logging.getLogger(__name__)


class SegmentConfig(Config):
    """How slides are segmented.

    Attributes:
        tissue: how tissue is found; elsewhere nothing is mapped.
        smallest_um2: connected areas below this get no outline; they count for the area of their class.
    """

    tissue: DensityTissue = DENSITY
    smallest_um2: float = Field(default=100.0, ge=0)


def run_fingerprint(mapper: Mapper, cfg: SegmentConfig) -> str:
    """Hash of everything that is the same for every slide of a run."""
    return fingerprint(
        model=mapper.card.sha256,
        segmenter=mapper.card.segmenter.model_dump(mode="json"),
        engine=mapper.description,
        settings=cfg.model_dump(mode="json"),
        format=[FORMAT, RESULT_FORMAT],
    )


def segment_slide(
    row: SlideRow,
    name: str,
    mapper: Mapper,
    place: Place,
    cfg: SegmentConfig,
    *,
    executor: Executor = HERE,
    overwrite: bool = False,
    tick: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> SegmentResult:
    """Map one slide into a folder, going on where an interrupted run stopped.

    Args:
        row: the slide, and the user's own tissue mask if there is one.
        name: what the slide is called in outputs.
        mapper: maps tiles.
        place: this slide's folder, or its path or URL.
        cfg: how the slide is segmented.
        executor: who maps the chunks.
        overwrite: whether to replace a map that was made with other settings.
        tick: called with (done, total, unit): bytes of the slide's file, then tiles.

    Raises:
        WsiError: the slide cannot be mapped, or the folder belongs to another run.
    """
    out = folder_at(place)
    out.refuse_link()
    file_state = row.source.state()
    with row.source.open() as slide:
        with during("hashing the slides"):
            identity = row.source.identity(lambda done, total: tick(done, total, "bytes"))
        own_mask = None if row.mask is None else mask_identity(row.mask)
        settings = run_fingerprint(mapper, cfg)
        made_of = fingerprint(slide=identity, mpp=slide.mpp, mask=own_mask, run=settings)
        finished = _finished(out, made_of)
        if finished is not None:
            return finished
        with during("finding tissue"):
            mask = (
                find_tissue(slide, cfg.tissue)
                if row.mask is None
                else read_user_mask(row.mask, slide, cfg.tissue.mpp)
            )
        plan = plan_map(slide, mask, mapper.card, made_of)
        refuse_other_kind(out, "wsi segment")
        out.discard_partials()
        heatmap = out.inside("classes.zarr")
        if overwrite:
            out.delete("slide.json")  # it says that all files are there
            HeatmapStore.discard(heatmap, unless=made_of)
        store = HeatmapStore.create(heatmap, plan.spec)
        tasks = [
            MapTask(row.source, plan, chunks, mapper.spec, heatmap)
            for chunks in in_parts(plan.chunks, executor.chunks_per_task)
        ]
        with during("network"):
            for _ in executor.map(tasks, lambda done, total: tick(done, total, "tiles")):
                pass  # each has written its chunks
        if row.source.state() != file_state:
            raise SlideError(f"{row.source.label} changed while it was read; run the same command again")
        with during("results and pictures"):
            labels = store.labels()
            result, areas = _measure(slide, name, row.source.place, labels, plan, mapper.card, cfg)
            if not plan.chunks:
                result = result.noted(f"no tissue found ({mask.why_empty or 'the mask is empty'})")
            if slide.spacing_doubt:
                result = result.noted(slide.spacing_doubt)
            made_by = {"model": mapper.card.name, "fingerprint": made_of}
            features = area_features(name, mapper.card, areas, slide.mpp, made_by)
            out.write("areas.geojson", geojson(features, origin_offset(slide.bounds, "auto")))
            out.write("preview.png", preview_png(slide, labels, plan.spec.stride_l0, result, mapper.card))
            record = {"fingerprint": made_of, "settings_fingerprint": settings, "format": RESULT_FORMAT}
            record |= {"bounds": slide.bounds, "model": mapper.card.name, "slide_identity": identity}
            record |= {"demonstration_model": mapper.card.demonstration, "files": out.record(FILES)}
            out.write_json("slide.json", asdict(result) | record, durable=True)
        return result


def outlines(labels: ClassMap, step: float, mpp: float, smallest_um2: float) -> list[tuple[int, Polygon]]:
    """The connected areas of every class but the first, in level-0 pixels, by class, then from top to bottom.

    Args:
        labels: the map; `UNKNOWN` where nothing was mapped.
        step: level-0 pixels along a cell.
        mpp: um per level-0 pixel.
        smallest_um2: smaller areas are left out.
    """
    least = max(1, math.ceil(smallest_um2 / (step * mpp) ** 2 - 1e-9))  # cells
    present = [int(label) for label in np.unique(labels) if label not in (0, UNKNOWN)]
    return [(label, shape) for label in present for shape in areas_of(labels == label, step, least)]


def _measure(
    slide: Slide,
    name: str,
    path: str,
    labels: ClassMap,
    plan: MapPlan,
    card: SegmenterCard,
    cfg: SegmentConfig,
) -> tuple[SegmentResult, list[tuple[int, Polygon]]]:
    """The areas of a map's classes, and its outlines."""
    step, side = plan.spec.stride_l0, plan.spec.chunk
    areas = outlines(labels, step, slide.mpp, cfg.smallest_um2)
    # row by row: a count takes eight bytes for each cell
    counts = sum((np.bincount(row, minlength=256) for row in labels), np.zeros(256, np.int64))
    is_mapped = bool(counts[:UNKNOWN].any())
    objects = np.bincount([label for label, _ in areas], minlength=256)
    cell_mm2 = (step * slide.mpp) ** 2 / 1e6
    nothing = ClassArea(None, None)
    classes = {
        group: ClassArea(round(float(counts[number]) * cell_mm2, 6), int(objects[number]))
        if is_mapped
        else nothing
        for number, group in enumerate(card.segmenter.classes)
    }
    unreadable = sum(
        int((plan.wanted((row, col)) & (labels[row * side :, col * side :][:side, :side] == UNKNOWN)).sum())
        for row, col in plan.chunks
    )
    note = f"{unreadable} cells could not be decoded" if unreadable else ""
    return SegmentResult(name, path, classes, unreadable, slide.mpp, slide.size, note), areas


def _finished(out: Folder, made_of: str) -> SegmentResult | None:
    """The result of an earlier run with the same fingerprint, if all its files are as they were written.

    Raises:
        StoreError: a file is there, and reading it failed.
    """
    facts = whole_facts(out, made_of, "classes.zarr")
    try:
        return None if facts is None else result_of(facts)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # damaged: it is written anew


@dataclass(frozen=True, slots=True)
class SegmentJob:
    """What ``wsi segment`` does with each slide, see `SlideJob`."""

    out: Folder
    mapper: MapperSpec
    cfg: SegmentConfig
    overwrite: bool = False

    @property
    def specs(self) -> tuple[MapperSpec]:
        """Of the engine that it needs."""
        return (self.mapper,)

    def run(
        self, row: SlideRow, name: str, executor: Executor, tick: Callable[[int, int, str], None]
    ) -> SegmentResult:
        """Map a slide, see `segment_slide`."""
        place, mapper = self.out.inside(name), self.mapper.make()
        return segment_slide(
            row, name, mapper, place, self.cfg, executor=executor, overwrite=self.overwrite, tick=tick
        )
