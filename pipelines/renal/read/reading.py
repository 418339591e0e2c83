"""One C4d-stained slide: tissue, fields, capillaries, counts, grade. The renal application's main job."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field as Setting

from models.engines import Engine
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
from wsi.config import Config
from wsi.errors import ModelError
from wsi.marks.boxes import Detections
from wsi.marks.c4d import NEGATIVE, POSITIVE
from wsi.results.box_store import BoxStore
from wsi.results.store import HeatmapStore
from wsi.slides.slide import Slide
from wsi.slides.stain import MOST_EOSIN, eosin_share, tissue_pixels
from wsi.slides.tissue import Mask, TissueConfig

if TYPE_CHECKING:
    from models.card import DetectorCard
    from models.engines.detect_slide import Detector

log = logging.getLogger(__name__)
Share = Annotated[float, Setting(ge=0, le=1, allow_inf_nan=False)]
REPORT_FORMAT = 1  # of what is made of fields and boxes; raise it when the golden report of the tests changes
LOWEST_SHOWN = 0.1  # detections from this score on are kept, to show what nearly counted, and for evaluation


class RenalConfig(Config):
    """How a slide is read.

    Attributes:
        thresholds: score from which a negative and a positive capillary counts; None is the detector's own.
        stability: thresholds, for both classes, at which the grade is given for comparison.
    """

    tissue: TissueConfig = TissueConfig(method="density")
    fields: FieldsConfig = FieldsConfig()
    checks: ChecksConfig = ChecksConfig()
    thresholds: tuple[Share, Share] | None = None
    stability: tuple[Share, ...] = Setting(default=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8), min_length=1)
    grading: GradingConfig = GradingConfig()


@dataclass(frozen=True, eq=False, slots=True)
class Readers:
    """The two networks."""

    fields: Engine
    detector: Detector

    @property
    def card(self) -> DetectorCard:
        """The detector's card."""
        return self.detector.card

    @property
    def models(self) -> list[dict[str, Any]]:
        """Name, hash of the weights, and whether it is a demonstration model, of both."""
        first, second = self.fields.models.card, self.card
        return [
            {"name": first.name, "sha256": first.sha256, "demonstration": first.demonstration},
            {"name": second.name, "sha256": second.sha256, "demonstration": second.demonstration},
        ]

    @property
    def errors(self) -> CountingErrors | None:
        """How the detector miscounts; None where nobody measured it."""
        table = self.card.counting_errors
        return CountingErrors(np.array(table, np.int64)) if table else None

    def limits(self, cfg: RenalConfig) -> npt.NDArray[np.float64]:
        """Score from which a negative and a positive capillary counts.

        Raises:
            ModelError: the detector finds something else.
        """
        names = self.card.detector.classes
        if set(names) != {NEGATIVE, POSITIVE}:
            raise ModelError(
                f"the detector {self.card.name} finds {', '.join(names)}; a report needs {NEGATIVE} and {POSITIVE}"
            )
        own = [self.card.thresholds[names.index(name)] for name in (NEGATIVE, POSITIVE)]
        return np.array(own if cfg.thresholds is None else cfg.thresholds)


@dataclass(frozen=True, eq=False, slots=True)
class SlideReading:
    """What was read on a slide.

    Attributes:
        tissue_mm2: of the whole slide; ``field_mm2`` is that in feasible fields.
        eosin: share of stained pixels that are pink; NaN where there is no stain.
        unreadable: fields that could not be decoded, by either network.
        stability: the machine's grade at other thresholds.
        without_flagged: the grade without the positive capillaries that count though they are doubted.
        left_out: by doubt, how many reached their threshold and do not count all the same.
        changes: the nearest thresholds at which the grade is another.
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
    """Hash of what is the same for every slide of a run."""
    from models.engines.detect_slide import FORMAT as BOX_FORMAT

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
    """Where the two long steps of a slide keep what they have done, and the fingerprint of what made each.

    A fingerprint holds only what changes that step's numbers: other thresholds or checks reuse both.
    """

    fields: Path
    boxes: Path
    fields_made_by: str
    boxes_made_by: str

    @classmethod
    def of(cls, folder: Path, slide: dict[str, Any], readers: Readers, cfg: RenalConfig) -> Stores:
        """The stores in a slide's folder.

        Args:
            folder: the slide's.
            slide: what tells the slide's pixels and tissue from others: its hash, spacing and mask.
            readers: the networks.
            cfg: how.
        """
        from models.engines.detect_slide import FORMAT as BOX_FORMAT

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
            format=BOX_FORMAT,
        )
        return cls(folder / "fields.zarr", folder / "capillaries.boxes", fields, boxes)

    def discard_others(self) -> None:
        """Remove what was made otherwise."""
        HeatmapStore.discard(self.fields, unless=self.fields_made_by)
        BoxStore.discard(self.boxes, unless=self.boxes_made_by)


def read_slide(
    slide: Slide,
    name: str,
    mask: Mask,
    readers: Readers,
    stores: Stores,
    cfg: RenalConfig,
    *,
    tick: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> SlideReading:
    """Choose the fields, find the capillaries in them, count, and grade.

    Args:
        slide: stained for C4d by immunohistochemistry.
        name: what it is called in outputs.
        mask: where there is tissue.
        readers: the networks.
        stores: what is in them already is not done again.
        cfg: how.
        tick: called with (steps done, steps, what is done).

    Raises:
        WsiError: the slide cannot be read.
    """
    from models.engines.detect_slide import detect_slide, tiles_around

    limits = readers.limits(cfg)
    log.debug("%s: %.2f mm2 of tissue", slide.path, mask.area_um2(slide.mpp) / 1e6)
    eosin = eosin_share(tissue_pixels(slide, mask))
    fields = choose_fields(
        slide,
        mask,
        readers.fields,
        stores.fields,
        cfg.fields,
        fingerprint=stores.fields_made_by,
        tick=lambda done, total: tick(done, total, "fields"),
    )
    log.debug("%s: %d of %d fields are feasible", slide.path, len(fields.feasible), len(fields.fields))
    result = detect_slide(
        slide,
        tiles_around([(f.x, f.y) for f in fields.feasible], fields.side, slide.mpp, readers.card),
        readers.detector,
        lowest_score=min(LOWEST_SHOWN, *limits, *cfg.stability),
        limits=tuple(limits[(NEGATIVE, POSITIVE).index(name)] for name in readers.card.detector.classes),
        store=BoxStore.create(stores.boxes, stores.boxes_made_by),
        tick=lambda done, total: tick(done, total, "evaluated fields"),
    )
    found = marks_of(name, result.detections, fields, readers.card.detector.classes, limits)
    marks = checked(slide, fields, found, cfg.checks)
    out = left_out(marks, cfg.checks)
    doubted_away = doubt_counts(marks, marks.counted & out)
    marks = replace(marks, counted=marks.counted & ~out)
    count = len(fields.feasible)
    errors = readers.errors
    grade = grade_slide(marks.counts(count), cfg.grading, errors)
    if eosin > MOST_EOSIN:
        grade = replace(grade, grade=None, grades_in_interval=(), why_not="not a DAB stain")
    usable = ~out
    columns = (marks.scores[usable], marks.positive[usable], marks.field[usable])
    without = replace(marks, counted=marks.counted & ~marks.flagged)
    return SlideReading(
        fields,
        marks,
        grade,
        stability(*columns, count, cfg.stability, cfg.grading),
        grade_slide(without.counts(count), cfg.grading, errors),
        doubted_away,
        grade_changes(*columns, count, (float(limits[0]), float(limits[1])), cfg.grading),
        tissue_mm2=mask.area_um2(slide.mpp) / 1e6,
        field_mm2=fields.area_mm2(slide.mpp),
        eosin=eosin,
        unreadable=len(result.unreadable) + sum(f.score is None for f in fields.fields),
        warnings=tuple(_warnings(mask, eosin, fields, grade, len(result.unreadable))),
    )


def marks_of(
    name: str, found: Detections, fields: FieldSet, classes: tuple[str, ...], limits: npt.NDArray[np.float64]
) -> Marks:
    """Detections whose middle lies in a feasible field."""
    field = fields.index(found.centres)
    found, field = found[field >= 0], field[field >= 0]
    positive = found.labels == classes.index(POSITIVE)
    machine: Source = "machine"
    scores = found.scores.astype(np.float64)
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
    """What must be said of a count of nothing; empty where there is something."""
    if fields == 0:
        return COUNT_WARNINGS[0]
    return COUNT_WARNINGS[1] if percent is None else ""


def _warnings(mask: Mask, eosin: float, fields: FieldSet, grade: Grade, lost: int) -> Iterator[str]:
    """What a reader of the report must know before its figures."""
    if eosin > MOST_EOSIN:
        yield (
            f"not a DAB stain: {eosin:.0%} of the stained pixels are pink or red, as eosin and red chromogens are; "
            f"the figures mean nothing"
        )
    if not mask.pixels.any():
        yield "no tissue was found: check that it is the right slide"
    elif said := count_warning(len(fields.feasible), grade.percent):
        yield said
    if lost:
        yield f"{lost} feasible fields could not be decoded whole: capillaries there are missing"
    undecoded = sum(f.score is None for f in fields.fields)
    if undecoded:
        yield f"{undecoded} fields could not be decoded and are left out"
