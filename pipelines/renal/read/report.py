"""``report.json``: everything a report states, as one checked value with a published schema."""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
from pydantic import Field as Setting

from pipelines.renal.read.checks import doubt_counts
from pipelines.renal.read.fields import FieldSet, field_threshold
from pipelines.renal.read.grading import METHOD, Grade, GradingConfig, grade_word, percent_text
from pipelines.renal.read.marks import Marks, field_key
from pipelines.renal.read.reading import Readers, RenalConfig, SlideReading
from pipelines.runs.made_by import code_hash, libraries, version
from wsi.config import Config
from wsi.results.export import feature_id
from wsi.slides.slide import Slide
from wsi.slides.stain import MOST_EOSIN
from wsi.text import number_of
from wsi.vocabulary import FEASIBLE, NEGATIVE, POSITIVE

INTENDED_USE = "for research use only; not for diagnosis"


class ModelFacts(Config):
    """A network: its name, the hash of its weights, whether it is a demonstration model."""

    name: str
    sha256: str
    demonstration: bool
    threshold: dict[str, float]


class SlideFacts(Config):
    """The slide: its file's name only, as paths may tell of patients."""

    name: str
    file: str
    identity: str
    size_px: tuple[int, int]
    um_per_px: float
    tissue_mm2: float


class GradeFacts(Config):
    """Counts and the Banff C4d score.

    Attributes:
        percent: positive among all; None without any capillary.
        interval: 95 % of it, clustered by field.
        interval_covers: what the interval takes into account; it never covers what a network has not learned.
        grade: None where the slide is not assessable.
        grades_in_interval: every grade that the interval touches.
        not_assessable: why; empty where it is assessable.
    """

    positive: int
    negative: int
    fields: int
    percent: float | None
    interval: tuple[float, float] | None
    interval_covers: str
    grade: str | None
    grades_in_interval: tuple[str, ...]
    not_assessable: str


class FieldFacts(Config):
    """A candidate field: corner and counts; ``why_not`` is empty where it is feasible."""

    id: str
    x: int
    y: int
    tissue: float
    score: float | None
    why_not: str
    positive: int
    negative: int


class StabilityFacts(Config):
    """The machine's grade with both thresholds moved to one value."""

    threshold: float
    positive: int
    negative: int
    percent: float | None
    grade: str | None


class GradeChangeFacts(Config):
    """The nearest threshold of one class at which the grade is another."""

    counts: Literal["positive", "negative"]
    threshold: float
    grade: str


class BasisFacts(Config):
    """What the machine's grade rests on.

    Attributes:
        flagged: positive capillaries that count though they are doubted.
        flagged_by: how many of them have each doubt.
        left_out_by: by doubt, capillaries that reached their threshold and do not count all the same.
        grade_without_flagged, percent_without_flagged: as if those flagged were not there.
        changes: the nearest thresholds, up and down, of each class.
    """

    flagged: int
    flagged_by: dict[str, int]
    left_out_by: dict[str, int]
    grade_without_flagged: str | None
    percent_without_flagged: float | None
    changes: tuple[GradeChangeFacts, ...]


class Corrections(Config):
    """What a person changed, and in which file: numbers of capillaries, and of fields.

    Attributes:
        by, date, comment: who corrected, when, and what they say; empty where they did not.
        signed_at, log: when it was signed in the viewer, and hash of the last line of its log; empty without it.
        outside_fields: marked where no field is feasible: not counted.
        fields_not_searched: taken in without a mark in them: not counted either.
    """

    file: str
    sha256: str
    by: str = ""
    date: str = ""
    comment: str = ""
    signed_at: str = ""
    log: str = ""
    deleted: int
    added: int
    reclassified: int
    outside_fields: int
    fields_left_out: int
    fields_taken_in: int
    fields_not_searched: int


class RenalReport(Config):
    """A slide's report.

    Attributes:
        reading: who is counted: ``machine``, or ``corrected`` by a person.
        result: of that reading.
        basis: of the machine's reading.
        machine: the machine's own result, where a person corrected it.
        field_mm2: tissue in feasible fields; densities refer to it.
        stability: of the machine's reading.
    """

    format: Literal[2] = 2
    program: str
    code: str
    libraries: dict[str, str]
    intended_use: str = INTENDED_USE
    method: str = METHOD
    slide: SlideFacts
    models: dict[Literal["fields", "capillaries"], ModelFacts]
    settings: dict[str, Any]
    reading: Literal["machine", "corrected"]
    result: GradeFacts
    basis: BasisFacts
    machine: GradeFacts | None = None
    corrections: Corrections | None = None
    warnings: tuple[str, ...]
    pink_share: float | None = Setting(ge=0, le=1)
    most_pink: float = MOST_EOSIN
    field_side_px: int
    field_mm2: float
    positive_per_mm2: float | None
    capillaries_per_mm2: float | None
    fields: tuple[FieldFacts, ...]
    stability: tuple[StabilityFacts, ...]

    @property
    def demonstration(self) -> tuple[str, ...]:
        """Names of the networks that are demonstration models."""
        return tuple(m.name for m in self.models.values() if m.demonstration)


def grade_facts(grade: Grade) -> GradeFacts:
    """A grade as reports state it, rounded."""
    interval = None if grade.interval is None else (round(grade.interval[0], 2), round(grade.interval[1], 2))
    return GradeFacts(
        positive=grade.positive,
        negative=grade.negative,
        fields=grade.fields,
        percent=None if grade.percent is None else round(grade.percent, 4),
        interval=interval,
        interval_covers=grade.interval_covers,
        grade=grade.grade,
        grades_in_interval=grade.grades_in_interval,
        not_assessable=grade.why_not,
    )


def basis_facts(reading: SlideReading) -> BasisFacts:
    """The basis of the machine's grade, rounded."""
    unflagged_grade = reading.without_flagged
    flagged = reading.marks.flagged
    return BasisFacts(
        flagged=int(flagged.sum()),
        flagged_by=doubt_counts(reading.marks, flagged),
        left_out_by=reading.left_out,
        grade_without_flagged=unflagged_grade.grade,
        percent_without_flagged=None
        if unflagged_grade.percent is None
        else round(unflagged_grade.percent, 4),
        changes=tuple(
            GradeChangeFacts(
                counts="positive" if c.positive else "negative",
                threshold=round(c.threshold, 4),
                grade=c.grade,
            )
            for c in reading.changes
            if c.threshold <= 1
        ),
    )


def field_facts(slide: str, fields: FieldSet, marks: Marks) -> tuple[FieldFacts, ...]:
    """Every candidate field with its counts."""
    feasible = list(fields.feasible)
    counts = marks.counts(len(feasible))
    number_of_corner = {(f.x, f.y): i for i, f in enumerate(feasible)}
    return tuple(
        FieldFacts(
            id=feature_id(field_key(slide, f.x, f.y)),
            x=f.x,
            y=f.y,
            tissue=f.tissue,
            score=f.score,
            why_not=f.why_not,
            positive=int(counts.positive[number_of_corner[f.x, f.y]]) if f.feasible else 0,
            negative=int(counts.negative[number_of_corner[f.x, f.y]]) if f.feasible else 0,
        )
        for f in fields.fields
    )


def grade_sentence(g: GradeFacts, grading: GradingConfig) -> str:
    """Grade, percentage and counts in words."""
    percent = "no capillary" if g.percent is None else f"{percent_text(g.percent, grading)} %"
    grade = grade_word(g.grade, grading) if g.grade else f"not assessable ({g.not_assessable})"
    return f"{grade}, {percent}, {g.positive} positive and {g.negative} negative in {number_of(g.fields, 'field')}"


def density(count: int, mm2: float) -> float | None:
    """A count per mm2; None without an area."""
    return round(count / mm2, 2) if mm2 > 0 else None


def machine_report(
    slide: Slide,
    name: str,
    file: str,
    identity: str,
    readers: Readers,
    cfg: RenalConfig,
    reading: SlideReading,
) -> RenalReport:
    """The report of the machine's reading."""
    limits = readers.limits(cfg)
    fields_card = readers.fields.models.card
    grade = reading.grade
    return RenalReport(
        program=f"slidewright {version()}",
        code=code_hash(),
        libraries=libraries(),
        slide=SlideFacts(
            name=name,
            file=file,
            identity=identity,
            size_px=slide.size,
            um_per_px=slide.mpp,
            tissue_mm2=round(reading.tissue_mm2, 3),
        ),
        models={
            "fields": ModelFacts(
                name=fields_card.name,
                sha256=fields_card.sha256,
                demonstration=fields_card.demonstration,
                threshold={FEASIBLE: round(field_threshold(fields_card, cfg.fields), 6)},
            ),
            "capillaries": ModelFacts(
                name=readers.card.name,
                sha256=readers.card.sha256,
                demonstration=readers.card.demonstration,
                threshold={NEGATIVE: float(limits[0]), POSITIVE: float(limits[1])},
            ),
        },
        settings=cfg.model_dump(mode="json"),
        reading="machine",
        result=grade_facts(grade),
        basis=basis_facts(reading),
        warnings=reading.warnings,
        pink_share=None if np.isnan(reading.eosin) else round(reading.eosin, 4),
        field_side_px=reading.fields.side,
        field_mm2=round(reading.field_mm2, 4),
        positive_per_mm2=density(grade.positive, reading.field_mm2),
        capillaries_per_mm2=density(grade.positive + grade.negative, reading.field_mm2),
        fields=field_facts(name, reading.fields, reading.marks),
        stability=tuple(
            StabilityFacts(
                threshold=t,
                positive=g.positive,
                negative=g.negative,
                percent=None if g.percent is None else round(g.percent, 4),
                grade=g.grade,
            )
            for t, g in reading.stability
        ),
    )


def grading_of(report: RenalReport) -> GradingConfig:
    """The grading that a report was made with."""
    return RenalConfig.model_validate_json(json.dumps(report.settings)).grading
