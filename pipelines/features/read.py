"""Features of a slide's cells, chunk by chunk, as wsi score reads them: zarr, HDF5, and a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from models.engines import Engine, EngineSpec
from pipelines.features.result import FILES, RESULT_FORMAT, FeatureResult, features_h5, finished, preview_png
from pipelines.runs.likeness import unlike_note, unlike_share
from pipelines.runs.made_by import fingerprint
from pipelines.runs.run_folder import refuse_other_kind
from pipelines.runs.task import HERE, ChunkTask, Executor, in_parts
from wsi.config import Config
from wsi.errors import ConfigError, SlideError, SpacingError
from wsi.marks.own_mask import mask_identity, read_user_mask
from wsi.results.folder import Folder, Place, folder_at
from wsi.results.store import HeatmapSpec, HeatmapStore
from wsi.slides.blocks import chunk_side, plan_blocks
from wsi.slides.grid import MIN_TISSUE, TileGrid, make_grid
from wsi.slides.manifest import SlideRow
from wsi.slides.slide import Slide, plan_read
from wsi.slides.stain import fit_slide
from wsi.slides.tissue import Mask, TissueConfig, find_tissue
from wsi.stopwatch import during

FORMAT = 1  # version of the features; raise it when the golden features of the tests change


class FeaturesConfig(Config):
    """Which cells of a slide get features.

    Attributes:
        stride: pixels, as the model sees them, from cell to cell; None is the model's own stride.
        min_tissue: share of a cell that must be tissue.
        threads: number of threads that read slides.
    """

    stride: int | None = Field(default=None, gt=0)
    tissue: TissueConfig = TissueConfig()
    min_tissue: float = Field(default=MIN_TISSUE, gt=0, le=1)
    threads: int = Field(default=1, gt=0)


def run_fingerprint(engine: Engine, cfg: FeaturesConfig) -> str:
    """Hash of everything that is the same for every slide of a run."""
    return fingerprint(
        models=[card.model_dump(mode="json") for card in engine.models.cards],
        engine=engine.description,
        settings=cfg.model_dump(mode="json", exclude={"threads"}),
        format=[FORMAT, RESULT_FORMAT],
    )


def read_features(
    row: SlideRow,
    name: str,
    engine: Engine,
    place: Place,
    cfg: FeaturesConfig,
    *,
    executor: Executor = HERE,
    overwrite: bool = False,
    tick: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> FeatureResult:
    """Write the features of one slide's cells into a folder, going on where an interrupted run stopped.

    Args:
        row: the slide, and the user's own tissue mask if there is one.
        name: what the slide is called in outputs.
        engine: gives features, see `FeatureEngineConfig`.
        place: this slide's folder, or its path or URL.
        cfg: which cells.
        executor: who runs the chunks.
        overwrite: whether to replace features that were made with other settings.
        tick: called with (done, total, unit): bytes of the slide's file, then cells.

    Raises:
        WsiError: the slide cannot be read, or the folder belongs to another run.
    """
    out = folder_at(place)
    out.refuse_link()
    file_state = row.source.state()
    with row.source.open() as slide:
        with during("hashing the slides"):
            identity = row.source.identity(lambda done, total: tick(done, total, "bytes"))
        own_mask = None if row.mask is None else mask_identity(row.mask)
        settings = run_fingerprint(engine, cfg)
        made_of = fingerprint(slide=identity, mpp=slide.mpp, mask=own_mask, run=settings)
        earlier = finished(out, made_of)
        if earlier is not None:
            return earlier
        with during("finding tissue"):
            mask = (
                find_tissue(slide, cfg.tissue)
                if row.mask is None
                else read_user_mask(row.mask, slide, cfg.tissue.mpp)
            )
            grid = _cells(slide, mask, engine, cfg)
            method = engine.models.card.stain_normalisation
            recolour = fit_slide(slide, mask, method) if len(grid) else None
        refuse_other_kind(out, "wsi features")
        out.discard_partials()
        folder = out.inside("features.zarr")
        if overwrite:
            out.delete("slide.json")  # it says that all files are there
            HeatmapStore.discard(folder, unless=made_of)
        side = chunk_side(slide, grid.plan)
        names = tuple(str(i) for i in range(engine.width))
        spec = HeatmapSpec.of_grid(grid, side, slide.mpp, names, made_of, holds="features")
        store = HeatmapStore.create(folder, spec)
        tasks = [
            ChunkTask(row.source, blocks, len(grid), engine.spec, folder, made_of, recolour, cfg.threads)
            for blocks in in_parts(plan_blocks(grid, side), executor.chunks_per_task)
        ]
        for _ in executor.map(tasks, lambda done, total: tick(done, total, "cells")):
            pass  # each has written its chunks
        if row.source.state() != file_state:
            raise SlideError(f"{row.source.label} changed while it was read; run the same command again")
        with during("results and pictures"):
            cells, values = store.scored()
            models = engine.models
            share = unlike_share(slide, grid, models, recolour=recolour, threads=cfg.threads)
            unlike = unlike_note(share, models).replace("the scores", "the features")
            result = FeatureResult(
                name=name,
                path=row.source.place,
                cells=len(cells),
                unreadable=len(grid) - len(cells),
                width=engine.width,
                mpp=slide.mpp,
                size=slide.size,
                note="; ".join(
                    note for note in (*_notes(slide, mask, len(grid), len(cells)), unlike) if note
                ),
            )
            card = engine.models.card
            made_by = {"model": card.name, "weights": card.sha256, "fingerprint": made_of}
            order = np.lexsort((cells[:, 1], cells[:, 0]))  # row by row
            corners = TileGrid(grid.shape, cells[order], grid.plan).corners
            out.write("features.h5", features_h5(values[order], corners, grid.plan, result, made_by))
            out.write("preview.png", preview_png(slide, cells, values, grid, result, card))
            record = {"fingerprint": made_of, "settings_fingerprint": settings, "format": RESULT_FORMAT}
            record |= {"bounds": slide.bounds, "model": card.name, "slide_identity": identity}
            record |= {"path": result.path, "files": out.record(FILES)}
            out.write_json("slide.json", result.summary() | record, durable=True)
        return result


def _cells(slide: Slide, mask: Mask, engine: Engine, cfg: FeaturesConfig) -> TileGrid:
    """The cells that get features.

    Raises:
        ConfigError: the stride is larger than the patch.
        SpacingError: the slide is too coarse for the model.
    """
    card = engine.models.card
    stride = cfg.stride or card.stride_px
    if stride > card.patch_px:
        raise ConfigError(
            f"stride {stride} is larger than the model's patch of {card.patch_px} px; choose a smaller one"
        )
    try:
        plan = plan_read(slide, card.patch_px, stride, card.spacing_um, tolerance=card.spacing_tolerance)
    except SpacingError as error:  # its own way out is one of wsi score
        raise SpacingError(
            f"{slide.path} has {slide.mpp:.4g} um/px, {card.name} is run at {card.spacing_um:.4g}; use a model of a "
            f"coarser spacing, or for a published folder a larger --spacing"
        ) from error
    return make_grid(slide.size, plan, mask, min_tissue=cfg.min_tissue)


def _notes(slide: Slide, mask: Mask, wanted: int, read: int) -> list[str]:
    notes = []
    if not wanted:
        notes.append(f"no tissue found ({mask.why_empty or 'the mask is empty'})")
    if read < wanted:
        notes.append(f"{wanted - read} of {wanted} cells could not be decoded")
    return [*notes, slide.spacing_doubt] if slide.spacing_doubt else notes


@dataclass(frozen=True, slots=True)
class FeaturesJob:
    """What ``wsi features`` does with each slide, see `SlideJob`."""

    out: Folder
    engine: EngineSpec
    cfg: FeaturesConfig
    overwrite: bool = False

    @property
    def specs(self) -> tuple[EngineSpec]:
        """Of the engine that it needs."""
        return (self.engine,)

    def run(
        self, row: SlideRow, name: str, executor: Executor, tick: Callable[[int, int, str], None]
    ) -> FeatureResult:
        """Write a slide's features, see `read_features`."""
        place, engine = self.out.inside(name), self.engine.make()
        return read_features(
            row, name, engine, place, self.cfg, executor=executor, overwrite=self.overwrite, tick=tick
        )
