"""The scoring of one slide: tissue, grid, blocks, scores chunk by chunk, lesions, files."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from models.card import DEFAULT_MODEL, ModelCard
from models.engines import Engine, EngineConfig, EngineSpec, Models, find_models, load_engine
from pipelines.camelyon16.read.lesions import (
    LesionConfig,
    confidence_level,
    find_lesions,
    on_slide,
    outlines,
    slide_score,
)
from pipelines.camelyon16.read.preview import preview_png
from pipelines.camelyon16.read.results import (
    EXPORTS,
    FILES,
    RESULT_FORMAT,
    SlideResult,
    finished_result,
    lesion_features,
)
from pipelines.runs.likeness import UNLIKE_FROM, unlike_note, unlike_share
from pipelines.runs.made_by import fingerprint
from pipelines.runs.run_folder import refuse_other_kind
from pipelines.runs.scoring import score_chunks
from pipelines.runs.task import HERE, ChunkTask, Executor, in_parts
from wsi.arrays import CellsRC
from wsi.config import Config
from wsi.errors import ConfigError, SlideError
from wsi.marks.own_mask import mask_identity, read_user_mask
from wsi.results.export import geojson, origin_offset
from wsi.results.folder import Folder, LocalFolder, Place, folder_at
from wsi.results.heatmap import Heatmap
from wsi.results.store import HeatmapSpec, HeatmapStore
from wsi.slides.blocks import Block, chunk_side, plan_blocks
from wsi.slides.grid import MIN_TISSUE, TileGrid, make_grid
from wsi.slides.manifest import SlideRow
from wsi.slides.slide import Slide, plan_read
from wsi.slides.source import SlideSource
from wsi.slides.stain import StainTransform, fit_slide
from wsi.slides.tissue import Mask, TissueConfig, find_tissue
from wsi.stopwatch import during

log = logging.getLogger(__name__)
HEATMAP_FORMAT = 1  # version of cells and their scores; raise it when the golden heatmap of the tests changes


class ScoreConfig(Config):
    """Settings of a slide's scoring.

    Attributes:
        stride: pixels, as the model sees them, from cell to cell; None is the model's own stride.
        native: whether level 0 is read as it is, whatever its spacing.
        min_tissue: share of a cell that must be tissue.
        threads: number of threads that read slides.
    """

    stride: Literal[16, 32, 64, 128, 256] | None = None
    native: bool = False
    tissue: TissueConfig = TissueConfig()
    min_tissue: float = Field(default=MIN_TISSUE, gt=0, le=1)
    lesions: LesionConfig = LesionConfig()
    threads: int = Field(default=1, gt=0)

    def of_model(self, card: ModelCard) -> ScoreConfig:
        """These settings, with those that depend on the model filled in."""
        return self.model_copy(update={"lesions": self.lesions.of_model(card.stride_px)})


@dataclass(frozen=True, eq=False, slots=True)
class ScorePlan:
    """Everything about a slide's scoring that is fixed before the first pixel is scored."""

    grid: TileGrid
    mask: Mask
    blocks: list[Block]
    spec: HeatmapSpec
    recolour: StainTransform | None = None


def plan_slide(
    slide: Slide, row: SlideRow, engine: Engine, cfg: ScoreConfig, *, made_of: str = ""
) -> ScorePlan:
    """Tissue, cells and chunks of a slide.

    Args:
        slide: an open slide.
        row: the slide's line in a table, which may name the user's own tissue mask.
        engine: its model tells patch, stride and spacing.
        cfg: how the slide is scored.
        made_of: fingerprint of the slide and all settings, for the heatmap.

    Raises:
        SpacingError: the slide is too coarse for the model.
        StainError: the model wants its slides' stain normalised, and this one's cannot be.
    """
    card = engine.models.card
    stride = cfg.stride or card.stride_px
    if stride > card.patch_px:
        raise ConfigError(
            f"--stride {stride} is larger than the model's patch of {card.patch_px} px; choose a smaller one"
        )
    spacing = None if cfg.native else card.spacing_um
    plan = plan_read(slide, card.patch_px, stride, spacing, tolerance=card.spacing_tolerance)
    mask = (
        find_tissue(slide, cfg.tissue)
        if row.mask is None
        else read_user_mask(row.mask, slide, cfg.tissue.mpp)
    )
    grid = make_grid(slide.size, plan, mask, min_tissue=cfg.min_tissue)
    method = cfg.tissue.method if row.mask is None else str(row.mask)
    log.debug("%s: %d cells with tissue (%s), read from level %d", slide.path, len(grid), method, plan.level)
    side = chunk_side(slide, plan)
    spec = HeatmapSpec.of_grid(grid, side, slide.mpp, card.classes, made_of)
    recolour = fit_slide(slide, mask, card.stain_normalisation) if len(grid) else None
    return ScorePlan(grid, mask, plan_blocks(grid, side), spec, recolour)


def settings_fingerprint(engine: Engine, cfg: ScoreConfig) -> str:
    """Hash of everything that makes the heatmaps of a run: settings, models, engine, `HEATMAP_FORMAT`."""
    return fingerprint(
        settings=cfg.model_dump(mode="json", exclude={"lesions", "threads"}),
        models=[card.model_dump(mode="json") for card in engine.models.cards],
        engine=engine.description,
        format=HEATMAP_FORMAT,
    )


def run_fingerprint(engine: Engine, cfg: ScoreConfig) -> str:
    """Hash of the settings of a run, with those of lesions: a table holds only results of one such hash."""
    cfg = cfg.of_model(engine.models.card)
    return fingerprint(
        heatmaps=settings_fingerprint(engine, cfg),
        lesions=cfg.lesions.model_dump(mode="json"),
        format=RESULT_FORMAT,
    )


def _fingerprint(row: SlideRow, slide: Slide, identity: str, engine: Engine, cfg: ScoreConfig) -> str:
    return fingerprint(
        slide=identity,
        mpp=slide.mpp,
        mask=None if row.mask is None else mask_identity(row.mask),
        run=settings_fingerprint(engine, cfg),
    )


def score_slide(
    row: SlideRow,
    name: str,
    engine: Engine,
    place: Place,
    cfg: ScoreConfig,
    *,
    executor: Executor = HERE,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> SlideResult:
    """Score one slide into a folder, going on where an interrupted run stopped.

    Args:
        row: the slide, and the user's own tissue mask if there is one.
        name: what the slide is called in outputs.
        engine: scores the patches.
        place: this slide's folder, or its path or URL.
        cfg: how the slide is scored.
        executor: who scores the chunks.
        overwrite: whether to replace a heatmap that was made with other settings.
        progress: called with (done, total, unit): bytes of the slide's file, then cells.

    Raises:
        WsiError: the slide cannot be scored, or the folder belongs to another run.
    """
    cfg, out = cfg.of_model(engine.models.card), folder_at(place)
    out.refuse_link()
    file_state = row.source.state()
    with row.source.open() as slide:
        with during("hashing the slides"):
            identity = row.source.identity(lambda done, total: progress(done, total, "bytes"))
        made_of = _fingerprint(row, slide, identity, engine, cfg)
        finished = finished_result(out, made_of, cfg.lesions)
        if finished is not None:
            return finished
        with during("finding tissue"):
            plan = plan_slide(slide, row, engine, cfg, made_of=made_of)
        refuse_other_kind(out, "wsi score")
        out.discard_partials()
        heatmap = out.inside("heatmap.zarr")
        if overwrite:
            out.delete("slide.json")  # it says that all files are there
            HeatmapStore.discard(heatmap, unless=plan.spec.fingerprint)
        HeatmapStore.create(heatmap, plan.spec)
        tasks = [
            ChunkTask(
                row.source, blocks, len(plan.grid), engine.spec, heatmap, made_of, plan.recolour, cfg.threads
            )
            for blocks in in_parts(plan.blocks, executor.chunks_per_task)
        ]
        for _ in executor.map(tasks, lambda done, total: progress(done, total, "cells")):
            pass  # each has written its chunks
        if row.source.state() != file_state:
            raise SlideError(f"{row.source.label} changed while it was scored; run the same command again")
        with during("results and pictures"):
            return _write_results(slide, (name, row.source.place, identity), engine, out, cfg, plan, row.mask)


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """What ``wsi score`` does with each slide, see `SlideJob`."""

    out: Folder
    engine: EngineSpec
    cfg: ScoreConfig
    overwrite: bool = False

    @property
    def specs(self) -> tuple[EngineSpec]:
        """Of the engine that it needs."""
        return (self.engine,)

    def run(
        self, row: SlideRow, name: str, executor: Executor, tick: Callable[[int, int, str], None]
    ) -> SlideResult:
        """Score a slide, see `score_slide`."""
        place, engine = self.out.inside(name), self.engine.make()
        return score_slide(
            row, name, engine, place, self.cfg, executor=executor, overwrite=self.overwrite, progress=tick
        )


def score(
    slide: Slide,
    model: str | Sequence[str] = DEFAULT_MODEL,
    *,
    cfg: ScoreConfig | None = None,
    engine: EngineConfig | None = None,
) -> Heatmap:
    """Scores of a slide's cells for the class that the model looks for; nothing is kept on disk.

    `score_slide` writes the same scores into a folder, and goes on where it was stopped. What a reader must know
    (tissue unlike what the model was trained on, no tissue found, cells that cannot be decoded) is logged as a warning.

    Args:
        slide: an open slide.
        model: the name of a model that ships, or a model's folder; scores of several are averaged.
        cfg: stride, tissue and threads; None takes the defaults of ``wsi score``.
        engine: device, precision and orientations; None takes the defaults of ``wsi score``.

    Raises:
        WsiError: the slide is too coarse, or the model cannot be used.
    """
    runner = load_engine(find_models([model] if isinstance(model, str) else model), engine or EngineConfig())
    cfg = cfg or ScoreConfig()
    plan = plan_slide(slide, SlideRow(SlideSource(slide.path)), runner, cfg)
    with tempfile.TemporaryDirectory(prefix="slidewright-") as folder:
        store = HeatmapStore.create(LocalFolder(Path(folder) / "heatmap.zarr"), plan.spec)
        runner.expect(len(plan.grid))
        score_chunks(slide, plan.blocks, runner, store, recolour=plan.recolour, threads=cfg.threads)
        heatmap = store.read(runner.models.card.positive_index)
    unlike = unlike_share(slide, plan.grid, runner.models, recolour=plan.recolour, threads=cfg.threads)
    for note in _notes(slide, heatmap, plan, runner.models, cfg, None, unlike):
        log.warning("%s: %s", slide.path, note)
    return heatmap


def _write_results(
    slide: Slide,
    names: tuple[str, str, str],
    engine: Engine,
    out: Folder,
    cfg: ScoreConfig,
    plan: ScorePlan,
    own_mask: Path | None,
) -> SlideResult:
    """Find lesions and write the slide's files; ``slide.json`` comes last and says that all others are there."""
    name, path, identity = names
    card = engine.models.card
    store = HeatmapStore.open(out.inside("heatmap.zarr"))
    store.pack()
    heatmap = store.read(card.positive_index)
    highest = slide_score(heatmap)
    lesions = [on_slide(lesion, slide.size) for lesion in find_lesions(heatmap, cfg.lesions)]
    areas = outlines(heatmap, cfg.lesions)
    missing = _missing(heatmap, plan)
    with during("comparing the tissue"):
        unlike = unlike_share(slide, plan.grid, engine.models, recolour=plan.recolour, threads=cfg.threads)
    is_familiar = not _not_learned(slide, card, cfg) and (unlike is None or unlike < UNLIKE_FROM)
    result = SlideResult(
        name=name,
        path=path,
        score=None if np.isnan(highest) else round(highest, 6),
        confidence=(
            confidence_level(highest, cfg.lesions, engine.models.confidence, missing=len(missing))
            if card.finds_tumour and is_familiar
            else None
        ),
        lesions=tuple(lesions),
        areas=len(areas),
        cells=len(plan.grid),
        unreadable_cells=tuple(_corners(missing, plan.grid)),
        mpp=slide.mpp,
        size=slide.size,
        note="; ".join(_notes(slide, heatmap, plan, engine.models, cfg, own_mask, unlike)),
        unlike=None if unlike is None else round(unlike, 4),
    )
    for stale in EXPORTS:  # they were made of the result that is replaced now
        out.delete(stale)
    out.write("lesions.csv", "".join(f"{v.score:.6f},{v.x:.0f},{v.y:.0f}\n" for v in lesions))
    made_by = {"model": card.name, "fingerprint": plan.spec.fingerprint}
    features = lesion_features(name, card.positive, lesions, areas, heatmap, slide.mpp, made_by)
    out.write("lesions.geojson", geojson(features, origin_offset(slide.bounds, "auto")))
    out.write("preview.png", preview_png(slide, heatmap, lesions, result, card))
    out.write_json(
        "slide.json",
        asdict(result)
        | {
            "fingerprint": plan.spec.fingerprint,
            "settings_fingerprint": run_fingerprint(engine, cfg),
            "format": RESULT_FORMAT,
            "lesion_settings": cfg.lesions.model_dump(mode="json"),
            "bounds": slide.bounds,
            "model": card.name,
            "demonstration_model": card.demonstration,
            "classes": list(plan.spec.classes),
            "positive": card.positive,
            "tissue_mm2": round(plan.mask.area_um2(slide.mpp) / 1e6, 3),
            "slide_identity": identity,
            "files": out.record(FILES),
        },
        durable=True,
    )
    return result


def _missing(heatmap: Heatmap, plan: ScorePlan) -> CellsRC:
    """Cells with tissue that have no score."""
    return np.asarray(plan.grid.cells[np.isnan(heatmap.scores[tuple(plan.grid.cells.T)])])


def _notes(
    slide: Slide,
    heatmap: Heatmap,
    plan: ScorePlan,
    models: Models,
    cfg: ScoreConfig,
    own_mask: Path | None,
    unlike: float | None,
) -> list[str]:
    """Sentences that a reader of the scores must know; none where all is well."""
    notes = (
        _note(plan, _missing(heatmap, plan), own_mask),
        _spacing_note(slide, models.card, cfg),
        unlike_note(unlike, models),
    )
    return [note for note in notes if note]


def _not_learned(slide: Slide, card: ModelCard, cfg: ScoreConfig) -> bool:
    """Whether --native read the slide at a spacing that the model has not learned; then its score gets no word."""
    if not cfg.native or card.spacing_um is None:
        return False
    return abs(slide.mpp / card.spacing_um - 1) > card.spacing_tolerance


def _spacing_note(slide: Slide, card: ModelCard, cfg: ScoreConfig) -> str:
    """A sentence about the spacing for readers of the score; empty where all is well."""
    if _not_learned(slide, card, cfg):
        return (
            f"read at {slide.mpp:.4g} um/px by --native, but the model was trained at {card.spacing_um:.4g}: "
            f"it has not learned to read this slide"
        )
    return slide.spacing_doubt


def _note(plan: ScorePlan, missing: CellsRC, own_mask: Path | None) -> str:
    grid = plan.grid
    if len(grid) == 0:
        if own_mask is not None:
            return f"{own_mask.name} marks no tissue: nothing was scored; mend it, or leave out --mask"
        reason = f" ({plan.mask.why_empty})" if plan.mask.why_empty else ""
        return f"no tissue found{reason}: nothing was scored; look at preview.png, or pass --mask"
    if len(missing) == len(grid):
        return "no cell with tissue could be decoded: nothing was scored"
    if len(missing):
        x, y = _corners(missing, grid)[0]
        return f"{len(missing)} of {len(grid)} cells could not be decoded, the first at ({x}, {y}); see slide.json"
    return ""


def _corners(cells: CellsRC, grid: TileGrid) -> list[tuple[int, int]]:
    """Level-0 (x, y) of each cell's corner, as plain numbers."""
    return [(int(col) * grid.plan.stride_l0, int(row) * grid.plan.stride_l0) for row, col in cells]
