"""The quality of reports of slides with truth: capillaries, percentages, grades, fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.card import CARD, DetectorCard, read_card
from pipelines.renal.evaluate.agreement import BlandAltman, bland_altman, weighted_kappa
from pipelines.renal.evaluate.curves import agreement_png, froc_png
from pipelines.renal.evaluate.truth import CLASSES, Case, Cohort
from pipelines.renal.read.fields import index_of
from pipelines.renal.read.report import grading_of
from pipelines.runs.made_by import code_hash, version
from wsi.errors import ModelError
from wsi.files import write_json
from wsi.marks.boxes import Boxes
from wsi.marks.c4d import REACH_UM
from wsi.metrics.detection import Agreement, average_precision, by_distance, hits_by_distance
from wsi.metrics.ranking import auc
from wsi.results.folder import Folder
from wsi.text import number_of
from wsi.vocabulary import NEGATIVE, POSITIVE

FALSE_PER_MM2 = (1, 2, 4, 8, 16)  # where the FROC curve is read


@dataclass(frozen=True, eq=False, slots=True)
class RenalEvaluation:
    """All figures of an evaluation.

    Attributes:
        ap50: average precision of each class in feasible fields, of detections from the report's lowest score on.
        froc: false detections per mm2 and sensitivity of each class, a curve of rising threshold from right to left.
        agreement: agreement of the counted capillaries of each class with the truth, by distance of middles.
        slides: percentages and grades of each slide, those of the machine and the true ones.
        kappa: weighted kappa of the assessable slides; NaN where it cannot be given.
        field_auc: AUC of the fields' scores; NaN where the truth has no fields of both kinds.
        errors: for each slide the number of positive capillaries hit, false and missed, then of negative ones.
    """

    ap50: dict[str, float]
    froc: dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]
    agreement: dict[str, Agreement]
    slides: tuple[dict[str, Any], ...]
    bland_altman: BlandAltman | None
    mean_error: float
    grades_right: int
    graded: int
    kappa: float
    field_auc: float
    field_sensitivity: float
    field_specificity: float
    demonstration: bool
    errors: tuple[tuple[int, ...], ...]

    def sensitivity_at(self, name: str) -> dict[int, float]:
        """Sensitivity at several numbers of false detections per mm2."""
        false_per_mm2, sensitivity = self.froc[name]
        return {at: float(sensitivity[false_per_mm2 <= at].max(initial=0.0)) for at in FALSE_PER_MM2}

    def lines(self) -> Iterator[str]:
        """The figures as lines for the terminal."""
        yield number_of(len(self.slides), "slide") + (
            "; demonstration models, trained without any real C4d slide" if self.demonstration else ""
        )
        if all(a.hits == 0 and a.false + a.missed for a in self.agreement.values()):
            yield "nothing that was found is where something is marked: is this the truth of these slides?"
        yield "capillaries are compared in the fields that the machine took, percentages with the whole slide's"
        for name in CLASSES:
            a = self.agreement[name]
            sensitivities = ", ".join(f"{v:.3f} at {k}" for k, v in self.sensitivity_at(name).items())
            yield (
                f"{name}: AP50 {self.ap50[name]:.3f}; counted: F1 {a.f1:.3f} ({a.hits} hits, {a.false} false, "
                f"{a.missed} missed); sensitivity at false detections per mm2: {sensitivities}"
            )
        yield f"percentage: mean absolute error {self.mean_error:.2f} points{self._limits()}"
        inside_count, slide_count = self.intervals
        yield f"interval: holds the slide's true percentage on {inside_count} of {slide_count} slides"
        kappa = "" if np.isnan(self.kappa) else f", weighted kappa {self.kappa:.3f}"
        yield f"grade: right on {self.grades_right} of {number_of(self.graded, 'slide')}{kappa}"
        if not math.isnan(self.field_auc):
            yield (
                f"fields: AUC {self.field_auc:.4f}, sensitivity {self.field_sensitivity:.3f}, "
                f"specificity {self.field_specificity:.3f}"
            )

    @property
    def intervals(self) -> tuple[int, int]:
        """The number of slides whose interval holds the true percentage, and of slides for which both are known."""
        rows = [s for s in self.slides if s["interval"] is not None and s["true_percent"] is not None]
        inside_rows = [s for s in rows if s["interval"][0] <= s["true_percent"] <= s["interval"][1]]
        return len(inside_rows), len(rows)

    def _limits(self) -> str:
        b = self.bland_altman
        return (
            ""
            if b is None
            else f"; reading minus truth {b.bias:+.2f} points, 95 % limits {b.low:.2f} to {b.high:.2f}"
        )


def evaluate(cohort: Cohort, tick: Callable[[int, int], None] = lambda done, total: None) -> RenalEvaluation:
    """Compare every report with its truth, in the fields that the machine took."""
    detections: list[Boxes] = []
    truth: list[Boxes] = []
    hits: dict[str, list[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]] = {
        name: [] for name in CLASSES
    }
    slide_totals = np.zeros((len(cohort.cases), len(CLASSES), 3), np.int64)
    for done, case in enumerate(cohort.cases):
        tick(done, len(cohort.cases))
        reach = REACH_UM / case.report.slide.um_per_px
        for part, counted, marks in _by_field(case):
            detections.append(part)
            truth.append(marks)
            for label, name in enumerate(CLASSES):
                is_class = part.labels == label
                class_detections, class_marks = part[is_class], marks[marks.labels == label]
                class_hits = hits_by_distance(class_detections, class_marks, reach)
                hits[name].append((class_detections.known_scores, class_hits))
                agreement = by_distance(part[is_class & counted], class_marks, reach)
                slide_totals[done, label] += (agreement.hits, agreement.false, agreement.missed)
    tick(len(cohort.cases), len(cohort.cases))
    area = sum(case.report.field_mm2 for case in cohort.cases)
    mark_counts = {name: sum(int((t.labels == i).sum()) for t in truth) for i, name in enumerate(CLASSES)}
    slides = tuple(_slide(case) for case in cohort.cases)
    field = _fields(cohort.cases)
    return RenalEvaluation(
        {name: average_precision(detections, truth, i) for i, name in enumerate(CLASSES)},
        {name: _froc(hits[name], mark_counts[name], area) for name in CLASSES},
        {
            name: Agreement(*(int(v) for v in slide_totals[:, i].sum(axis=0)))
            for i, name in enumerate(CLASSES)
        },
        slides,
        *_slides(slides, cohort.cases),
        *field,
        demonstration=any(case.report.demonstration for case in cohort.cases),
        errors=tuple(
            tuple(
                int(v) for v in np.concatenate([rows[CLASSES.index(POSITIVE)], rows[CLASSES.index(NEGATIVE)]])
            )
            for rows in slide_totals
        ),
    )


def write_counting_errors(model: Path, result: RenalEvaluation, cohort: Cohort) -> None:
    """Write the errors of a detector's counts on these slides into its card.

    Raises:
        ModelError: the folder holds no detector, or not the one that made the reports.
    """
    card = read_card(model, DetectorCard)
    made_with = {case.report.models["capillaries"].sha256 for case in cohort.cases}
    if made_with != {card.sha256}:
        raise ModelError(f"{model} is not the detector that made these reports; give its folder")
    write_json(
        model / CARD, card.model_dump(mode="json") | {"counting_errors": [list(e) for e in result.errors]}
    )


def _by_field(case: Case) -> Iterator[tuple[Boxes, npt.NDArray[np.bool_], Boxes]]:
    """Detections, whether each counts, and marks of each feasible field, by their middles: fields share nothing."""
    corners = [(f.x, f.y) for f in case.report.fields if not f.why_not]
    side = case.report.field_side_px
    detection_fields, mark_fields = (
        index_of(corners, side, boxes.centres) for boxes in (case.found, case.marked.objects)
    )
    for number in range(len(corners)):
        detections_inside, marks_inside = detection_fields == number, mark_fields == number
        yield (
            case.found[detections_inside],
            case.counted[detections_inside],
            case.marked.objects[marks_inside],
        )


def _froc(
    parts: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]], marked: int, mm2: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """False detections per mm2 and sensitivity, one point for each score, highest first."""
    scores = np.concatenate([s for s, _ in parts]) if parts else np.empty(0, np.float32)
    is_hit = np.concatenate([h for _, h in parts]) if parts else np.empty(0, np.bool_)
    order = np.argsort(-scores, kind="stable")
    run_ends = (
        np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)) if len(order) else np.empty(0, np.int64)
    )
    hit_sums, false_sums = np.cumsum(is_hit[order])[run_ends], np.cumsum(~is_hit[order])[run_ends]
    sensitivity = hit_sums / marked if marked else np.full(len(hit_sums), np.nan)
    return np.append(0.0, false_sums / mm2 if mm2 else false_sums * np.nan), np.append(0.0, sensitivity)


def _slide(case: Case) -> dict[str, Any]:
    """A slide's row of figures, those of the machine and the true ones."""
    g = case.report.result
    true_percent = case.true_percent
    return {
        "slide": case.report.slide.name,
        "percent": g.percent,
        "interval": g.interval,
        "grade": g.grade,
        "not_assessable": g.not_assessable,
        "true_percent": None if math.isnan(true_percent) else round(true_percent, 4),
        "true_grade": case.true_grade,
        "positive": g.positive,
        "negative": g.negative,
    }


def _slides(
    slides: Sequence[dict[str, Any]], cases: Sequence[Case]
) -> tuple[BlandAltman | None, float, int, int, float]:
    """Agreement of percentages and grades: limits, mean error, number of right grades, number of grades, kappa."""
    rows = [s for s in slides if s["percent"] is not None and s["true_percent"] is not None]
    percent, true = (np.array([s[key] for s in rows], np.float64) for key in ("percent", "true_percent"))
    limits = bland_altman(percent, true) if len(rows) > 1 else None
    error = float(np.abs(percent - true).mean()) if rows else math.nan
    graded_rows = [s for s in slides if s["grade"] is not None and s["true_grade"] is not None]
    names = list(grading_of(cases[0].report).grades)
    if not graded_rows:
        return limits, error, 0, 0, math.nan
    grade_pairs = [(names.index(s["grade"]), names.index(s["true_grade"])) for s in graded_rows]
    kappa = weighted_kappa([a for a, _ in grade_pairs], [b for _, b in grade_pairs], len(names))
    return limits, error, sum(a == b for a, b in grade_pairs), len(grade_pairs), kappa


def _fields(cases: Sequence[Case]) -> tuple[float, float, float]:
    """AUC of the fields' scores, sensitivity and specificity of the choice."""
    scores, chosen, feasible = [], [], []
    for case in cases:
        for f in case.report.fields:
            if f.score is not None and (f.x, f.y) in case.feasible:
                scores.append(f.score)
                chosen.append(not f.why_not)
                feasible.append(case.feasible[f.x, f.y])
    is_feasible, is_chosen = np.array(feasible, np.bool_), np.array(chosen, np.bool_)
    if len(set(feasible)) < 2:
        return math.nan, math.nan, math.nan
    return (
        auc(is_feasible, np.array(scores, np.float32)),
        float(is_chosen[is_feasible].mean()),
        float((~is_chosen[~is_feasible]).mean()),
    )


def write_evaluation(folder: Folder, result: RenalEvaluation) -> None:
    """Write ``evaluation.json``, ``agreement.png`` and ``froc.png``.

    Raises:
        WsiError: a file cannot be written.
    """
    agreement = agreement_png(result.slides, result.bland_altman, result.demonstration)
    folder.write("agreement.png", agreement)
    folder.write("froc.png", froc_png(result.froc, result.demonstration))
    limits = result.bland_altman
    folder.write_json(
        "evaluation.json",
        {
            "program": f"slidewright {version()}",
            "code": code_hash(),
            "intended_use": "research use only",
            "demonstration_models": result.demonstration,
            "ap50": {name: _known(value) for name, value in result.ap50.items()},
            "counted": {
                name: {"hits": a.hits, "false": a.false, "missed": a.missed, "f1": _known(a.f1)}
                for name, a in result.agreement.items()
            },
            "sensitivity_at_false_per_mm2": {
                name: {str(k): _known(v) for k, v in result.sensitivity_at(name).items()} for name in CLASSES
            },
            "reach_um": REACH_UM,
            "percentage": {
                "mean_absolute_error": _known(result.mean_error),
                "bias": None if limits is None else limits.bias,
                "limits_of_agreement": None if limits is None else [limits.low, limits.high],
            },
            "intervals": {"hold_truth": result.intervals[0], "slides": result.intervals[1]},
            "grade": {
                "right": result.grades_right,
                "slides": result.graded,
                "weighted_kappa": _known(result.kappa),
            },
            "fields": {
                "auc": _known(result.field_auc),
                "sensitivity": _known(result.field_sensitivity),
                "specificity": _known(result.field_specificity),
            },
            "errors of counting": {
                "columns": ["positive hit", "false", "missed", "negative hit", "false", "missed"],
                "slides": [list(e) for e in result.errors],
            },
            "slides": list(result.slides),
        },
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
