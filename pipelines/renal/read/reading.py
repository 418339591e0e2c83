"""The reading of one C4d-stained slide: tissue, fields, capillaries, counts, grade."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field as Setting

from models.card import DetectorCard
from models.engines import Engine
from models.engines.detect_slide import CHUNK, Detector, detect_slide, tiles_around
from models.engines.detect_slide import FORMAT as BOX_FORMAT
from pipelines.renal.read.checks import ChecksConfig, checked, doubt_counts, left_out
from pipelines.renal.read.fields import FORMAT as FIELD_FORMAT
from pipelines.renal.read.fields import FieldsConfig, FieldSet, choose_fields, field_threshold
from pipelines.renal.read.grading import (
    CountingErrors,
    Grade,
    GradeChange,
    GradingConfig,
    grade_changes,
    grade_slide,
    stability,
)
from pipelines.renal.read.marks import Marks, Source, machine_ids
from pipelines.runs.made_by import fingerprint
from pipelines.runs.task import HERE, Executor, TileTask, in_parts
from wsi.config import Config
from wsi.errors import ModelError
from wsi.marks.boxes import Boxes
from wsi.results.box_store import BoxStore
from wsi.results.folder import Folder
from wsi.results.store import HeatmapStore
from wsi.slides.slide import Slide
from wsi.slides.source import SlideSource
from wsi.slides.stain import MOST_EOSIN, eosin_share, tissue_pixels
from wsi.slides.tissue import DENSITY, DensityTissue, Mask
from wsi.stopwatch import during
from wsi.vocabulary import NEGATIVE, POSITIVE

log = logging.getLogger(__name__)
Share = Annotated[float, Setting(ge=0, le=1, allow_inf_nan=False)]
REPORT_FORMAT = 1  # of all after fields and boxes; raise it when the golden report of the tests changes
LOWEST_SHOWN = 0.1  # detections from this score on are kept, to show what nearly counted, and for evaluation


class RenalConfig(Config):
    """Settings of a slide's reading.

    Attributes:
        thresholds: scores from which negative and positive capillaries count; None takes those of the detector's card.
        stability: thresholds of both classes at which the grade is also given, for comparison.
    """

    tissue: DensityTissue = DENSITY
    fields: FieldsConfig = FieldsConfig()
    checks: ChecksConfig = ChecksConfig()
    thresholds: tuple[Share, Share] | None = None
    stability: tuple[Share, ...] = Setting(default=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8), min_length=1)
    grading: GradingConfig = GradingConfig()


@dataclass(frozen=True, eq=False, slots=True)
class Readers:
    """The two networks: one scores fields, the other finds capillaries."""

    fields: Engine
    detector: Detector

    @property
    def card(self) -> DetectorCard:
        """The detector's card."""
        return self.detector.card

    @property
    def models(self) -> list[dict[str, Any]]:
        """Of both networks the name, the hash of the weights, and whether it is a demonstration model."""
        first, second = self.fields.models.card, self.card
        return [
            {"name": first.name, "sha256": first.sha256, "demonstration": first.demonstration},
            {"name": second.name, "sha256": second.sha256, "demonstration": second.demonstration},
        ]

    @property
    def errors(self) -> CountingErrors | None:
        """The errors of the detector's counts; None where nobody measured them."""
        table = self.card.counting_errors
        return CountingErrors(np.array(table, np.int64)) if table else None

    def limits(self, cfg: RenalConfig) -> npt.NDArray[np.float64]:
        """Scores from which negative and positive capillaries count.

        Raises:
            ModelError: the detector finds other classes.
        """
        names = self.card.detector.classes
        if set(names) != {NEGATIVE, POSITIVE}:
            raise ModelError(
                f"the detector {self.card.name} finds {', '.join(names)}; a report needs {NEGATIVE} and {POSITIVE}"
            )
        defaults = [self.card.thresholds[names.index(name)] for name in (NEGATIVE, POSITIVE)]
        return np.array(defaults if cfg.thresholds is None else cfg.thresholds)


@dataclass(frozen=True, eq=False, slots=True)
class SlideReading:
    """The reading of a slide.

    Attributes:
        tissue_mm2: tissue of the whole slide; ``field_mm2`` is that in feasible fields.
        eosin: share of stained pixels that are pink; NaN where there is no stain.
        unreadable: number of fields and tiles that could not be decoded, for either network.
        stability: the machine's grade at other thresholds.
        without_flagged: the grade without the positive capillaries that count though they are doubted.
        left_out: number of capillaries of each doubt that reached their threshold and still do not count.
        changes: the nearest thresholds at which the grade changes.
        warnings: sentences for the reader of the report.
    """

    fields: FieldSet
    marks: Marks
    grade: Grade
    stability: tuple[tuple[float, Grade], ...]
    without_flagged: Grade
    left_out: dict[str, int]
    changes: tuple[GradeChange, ...]
    tissue_mm2: float
    field_mm2: float
    eosin: float
    unreadable: int
    warnings: tuple[str, ...]


def run_fingerprint(readers: Readers, cfg: RenalConfig) -> str:
    """Hash of everything that is the same for every slide of a run."""
    return fingerprint(
        settings=cfg.model_dump(mode="json"),
        fields=[card.model_dump(mode="json") for card in readers.fields.models.cards],
        engine=readers.fields.description,
        detector=readers.card.model_dump(mode="json"),
        detector_engine=readers.detector.description,
        formats=(FIELD_FORMAT, BOX_FORMAT, REPORT_FORMAT),
    )


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores of the two long steps of a slide, and for each a fingerprint of what makes its numbers.

    A fingerprint holds only settings that change that step's numbers: both stores are reused with other thresholds or
    checks.
    """

    fields: Folder
    boxes: Folder
    fields_made_by: str
    boxes_made_by: str

    @classmethod
    def of(cls, folder: Folder, slide: dict[str, Any], readers: Readers, cfg: RenalConfig) -> Stores:
        """The stores in a slide's folder.

        Args:
            folder: the slide's folder.
            slide: values that identify the slide's pixels and tissue: its hash, spacing and mask.
            readers: the networks.
            cfg: how the slide is read.
        """
        fields = fingerprint(
            **slide,
            tissue=cfg.tissue.model_dump(mode="json"),
            fields=cfg.fields.model_dump(mode="json", exclude={"threshold"}),
            models=[card.model_dump(mode="json") for card in readers.fields.models.cards],
            engine=readers.fields.description,
            format=FIELD_FORMAT,
        )
        boxes = fingerprint(
            fields=fields,
            threshold=field_threshold(readers.fields.models.card, cfg.fields),
            detector=readers.card.sha256,
            shape=readers.card.detector.model_dump(mode="json"),
            engine=readers.detector.description,
            chunk=CHUNK,
            format=BOX_FORMAT,
        )
        return cls(folder.inside("fields.zarr"), folder.inside("capillaries.boxes"), fields, boxes)

    def discard_others(self) -> None:
        """Remove stores that were made with other settings."""
        HeatmapStore.discard(self.fields, unless=self.fields_made_by)
        BoxStore.discard(self.boxes, unless=self.boxes_made_by)


def read_slide(
    slide: Slide,
    source: SlideSource,
    name: str,
    mask: Mask,
    readers: Readers,
    stores: Stores,
    cfg: RenalConfig,
    *,
    executor: Executor = HERE,
    tick: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> SlideReading:
    """Read a slide: choose the fields, find the capillaries in them, count them, and grade.

    Args:
        slide: a slide that is stained for C4d by immunohistochemistry.
        source: of the slide, for tasks that open it themselves.
        name: the slide's name in outputs.
        mask: mask of the tissue.
        readers: the networks.
        stores: stores of finished work, which is not done again.
        cfg: how the slide is read.
        executor: who looks at fields and tiles.
        tick: called with (steps done, steps, name of the steps).

    Raises:
        WsiError: the slide cannot be read.
    """
    limits = readers.limits(cfg)
    log.debug("%s: %.2f mm2 of tissue", slide.path, mask.area_um2(slide.mpp) / 1e6)
    eosin = eosin_share(tissue_pixels(slide, mask))
    fields = choose_fields(
        slide,
        source,
        mask,
        readers.fields,
        stores.fields,
        cfg.fields,
        fingerprint=stores.fields_made_by,
        executor=executor,
        tick=lambda done, total: tick(done, total, "fields"),
    )
    log.debug("%s: %d of %d fields are feasible", slide.path, len(fields.feasible), len(fields.fields))
    plan = tiles_around([(f.x, f.y) for f in fields.feasible], fields.side, slide.mpp, readers.card)
    store = BoxStore.create(stores.boxes, stores.boxes_made_by)
    tasks = [
        TileTask(source, plan, chunks, readers.detector.spec, stores.boxes, stores.boxes_made_by)
        for chunks in in_parts(plan.chunks, executor.chunks_per_task)
    ]
    with during("network"):
        for _ in executor.map(tasks, lambda done, total: tick(done, total, "evaluated fields")):
            pass  # each has written its chunks
    result = detect_slide(
        slide,
        plan,
        readers.detector,
        lowest_score=min(LOWEST_SHOWN, *limits, *cfg.stability),
        limits=tuple(limits[(NEGATIVE, POSITIVE).index(name)] for name in readers.card.detector.classes),
        store=store,
    )
    candidates = marks_of(name, result.detections, fields, readers.card.detector.classes, limits)
    marks = checked(slide, fields, candidates, cfg.checks)
    left_out_marks = left_out(marks, cfg.checks)
    left_out_counts = doubt_counts(marks, marks.counted & left_out_marks)
    marks = replace(marks, counted=marks.counted & ~left_out_marks)
    count = len(fields.feasible)
    errors = readers.errors
    is_dab = not eosin > MOST_EOSIN
    grade = _of_stain(grade_slide(marks.counts(count), cfg.grading, errors), is_dab)
    is_usable = ~left_out_marks
    columns = (marks.scores[is_usable], marks.positive[is_usable], marks.field[is_usable])
    unflagged_marks = replace(marks, counted=marks.counted & ~marks.flagged)
    return SlideReading(
        fields,
        marks,
        grade,
        tuple((t, _of_stain(g, is_dab)) for t, g in stability(*columns, count, cfg.stability, cfg.grading)),
        _of_stain(grade_slide(unflagged_marks.counts(count), cfg.grading, errors), is_dab),
        left_out_counts,
        grade_changes(*columns, count, (float(limits[0]), float(limits[1])), cfg.grading) if is_dab else (),
        tissue_mm2=mask.area_um2(slide.mpp) / 1e6,
        field_mm2=fields.area_mm2(slide.mpp),
        eosin=eosin,
        unreadable=len(result.unreadable) + sum(f.score is None for f in fields.fields),
        warnings=tuple(_warnings(mask, eosin, fields, grade, len(result.unreadable))),
    )


def _of_stain(grade: Grade, is_dab: bool) -> Grade:
    """The grade, or the same counts without one where the slide is no DAB stain."""
    return grade if is_dab else replace(grade, grade=None, grades_in_interval=(), why_not="not a DAB stain")


def marks_of(
    name: str, found: Boxes, fields: FieldSet, classes: tuple[str, ...], limits: npt.NDArray[np.float64]
) -> Marks:
    """The marks of a detector's boxes whose middle lies in a feasible field."""
    field = fields.index(found.centres)
    found, field = found[field >= 0], field[field >= 0]
    positive = found.labels == classes.index(POSITIVE)
    machine: Source = "machine"
    scores = found.known_scores.astype(np.float64)
    return Marks(
        machine_ids(name, found.boxes),
        found.boxes,
        positive,
        scores,
        field,
        counted=scores >= limits[positive.astype(np.int64)],
        brown=np.full(len(found), np.nan),
        inside=np.full(len(found), np.nan),
        doubts=("",) * len(found),
        source=(machine,) * len(found),
    )


COUNT_WARNINGS = (
    "no field is feasible: nothing was counted; look at the fields that were left out",
    "no capillary was found in the feasible fields; check stain and focus",
)


def count_warning(fields: int, percent: float | None) -> str:
    """The warning of a reading without any capillary; empty where there are some."""
    if fields == 0:
        return COUNT_WARNINGS[0]
    return COUNT_WARNINGS[1] if percent is None else ""


def _warnings(mask: Mask, eosin: float, fields: FieldSet, grade: Grade, broken_tiles: int) -> Iterator[str]:
    """Warnings that a reader of the report must see before its figures."""
    if eosin > MOST_EOSIN:
        yield (
            f"not a DAB stain: {eosin:.0%} of the stained pixels are pink or red, as eosin and red chromogens are; "
            f"the figures mean nothing"
        )
    if not mask.pixels.any():
        yield "no tissue was found: check that it is the right slide"
    elif warning := count_warning(len(fields.feasible), grade.percent):
        yield warning
    if broken_tiles:
        yield f"{broken_tiles} feasible fields could not be decoded whole: capillaries there are missing"
    undecoded_count = sum(f.score is None for f in fields.fields)
    if undecoded_count:
        yield f"{undecoded_count} fields could not be decoded and are left out"
