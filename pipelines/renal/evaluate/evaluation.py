"""How good reports are, where the truth is known: capillaries, percentages, grades, fields."""

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
from pipelines.renal.evaluate.curves import write_agreement, write_froc
from pipelines.renal.evaluate.truth import CLASSES, Case, Cohort
from pipelines.renal.read.fields import index_of
from pipelines.renal.read.report import grading_of
from pipelines.runs.made_by import code_hash, version
from wsi.errors import ModelError
from wsi.files import write_json
from wsi.marks.boxes import Detections
from wsi.marks.c4d import NEGATIVE, POSITIVE, REACH_UM
from wsi.metrics.detection import Agreement, Marked, average_precision, hits_by_distance
from wsi.metrics.ranking import auc
from wsi.text import number_of

FALSE_PER_MM2 = (1, 2, 4, 8, 16)  # where the FROC curve is read


@dataclass(frozen=True, eq=False, slots=True)
class RenalEvaluation:
    """Every figure.

    Attributes:
        ap50: by class, in feasible fields, detections from the report's lowest score on.
        froc: by class, false detections per mm2 and sensitivity, as a curve of rising threshold from right to left.
        agreement: by class, of what was counted, by distance of middles.
        slides: per slide: percentages and grades, the machine's and the true ones.
        kappa: weighted, of assessable slides; NaN where it cannot be given.
        field_auc: NaN where fields have no truth of both kinds.
        errors: of each slide, positive capillaries hit, false and missed, then negative ones.
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
        """Sensitivity at some false detections per mm2."""
        false, hit = self.froc[name]
        return {at: float(hit[false <= at].max(initial=0.0)) for at in FALSE_PER_MM2}

    def lines(self) -> Iterator[str]:
        """For the terminal."""
        yield number_of(len(self.slides), "slide") + (
            "; demonstration models, trained without any real C4d slide" if self.demonstration else ""
        )
        if all(a.hits == 0 and a.false + a.missed for a in self.agreement.values()):
            yield "nothing that was found is where something is marked: is this the truth of these slides?"
        yield "capillaries are compared in the fields that the machine took, percentages with the whole slide's"
        for name in CLASSES:
            a = self.agreement[name]
            at = ", ".join(f"{v:.3f} at {k}" for k, v in self.sensitivity_at(name).items())
            yield (
                f"{name}: AP50 {self.ap50[name]:.3f}; counted: F1 {a.f1:.3f} ({a.hits} hits, {a.false} false, "
                f"{a.missed} missed); sensitivity at false detections per mm2: {at}"
            )
        yield f"percentage: mean absolute error {self.mean_error:.2f} points{self._limits()}"
        inside, known = self.intervals
        yield f"interval: holds the slide's true percentage on {inside} of {known} slides"
        kappa = "" if np.isnan(self.kappa) else f", weighted kappa {self.kappa:.3f}"
        yield f"grade: right on {self.grades_right} of {number_of(self.graded, 'slide')}{kappa}"
        if not math.isnan(self.field_auc):
            yield (
                f"fields: AUC {self.field_auc:.4f}, sensitivity {self.field_sensitivity:.3f}, "
                f"specificity {self.field_specificity:.3f}"
            )

    @property
    def intervals(self) -> tuple[int, int]:
        """On how many slides the interval holds the true percentage, and of how many both are known."""
        known = [s for s in self.slides if s["interval"] is not None and s["true_percent"] is not None]
        inside = [s for s in known if s["interval"][0] <= s["true_percent"] <= s["interval"][1]]
        return len(inside), len(known)

    def _limits(self) -> str:
        b = self.bland_altman
        return (
            ""
            if b is None
            else f"; reading minus truth {b.bias:+.2f} points, 95 % limits {b.low:.2f} to {b.high:.2f}"
        )


def evaluate(cohort: Cohort, tick: Callable[[int, int], None] = lambda done, total: None) -> RenalEvaluation:
    """Compare every report with its truth, in the fields that the machine took."""
    found: list[Detections] = []
    truth: list[Marked] = []
    hits: dict[str, list[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]] = {
        name: [] for name in CLASSES
    }
    slide_totals = np.zeros((len(cohort.cases), len(CLASSES), 3), np.int64)
    for done, case in enumerate(cohort.cases):
        tick(done, len(cohort.cases))
        reach = REACH_UM / case.report.slide.um_per_px
        for one, counted, marks in _by_field(case):
            found.append(one)
            truth.append(marks)
            for label, name in enumerate(CLASSES):
                mine = one.labels == label
                boxes = marks.boxes[marks.labels == label]
                middles = (boxes[:, :2] + boxes[:, 2:]) / 2
                hits[name].append(
                    (one.scores[mine], hits_by_distance(one.centres[mine], one.scores[mine], middles, reach))
                )
                kept = mine & counted
                hit = int(hits_by_distance(one.centres[kept], one.scores[kept], middles, reach).sum())
                slide_totals[done, label] += (hit, int(kept.sum()) - hit, len(middles) - hit)
    tick(len(cohort.cases), len(cohort.cases))
    area = sum(case.report.field_mm2 for case in cohort.cases)
    marked = {name: sum(int((t.labels == i).sum()) for t in truth) for i, name in enumerate(CLASSES)}
    slides = tuple(_slide(case) for case in cohort.cases)
    field = _fields(cohort.cases)
    return RenalEvaluation(
        {name: average_precision(found, truth, i) for i, name in enumerate(CLASSES)},
        {name: _froc(hits[name], marked[name], area) for name in CLASSES},
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
    """Write into a detector's card how it miscounted on these slides.

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


def _by_field(case: Case) -> Iterator[tuple[Detections, npt.NDArray[np.bool_], Marked]]:
    """Detections and marks of each feasible field, by their middles: fields share nothing."""
    middles = (case.marked.boxes[:, :2] + case.marked.boxes[:, 2:]) / 2
    corners = [(f.x, f.y) for f in case.report.fields if not f.why_not]
    side = case.report.field_side_px
    found_in, marked_in = (index_of(corners, side, points) for points in (case.found.centres, middles))
    for number in range(len(corners)):
        mine, marks = found_in == number, marked_in == number
        yield (
            case.found[mine],
            case.counted[mine],
            Marked(case.marked.boxes[marks], case.marked.labels[marks]),
        )


def _froc(
    parts: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]], marked: int, mm2: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """False detections per mm2 and sensitivity, one point for each score, highest first."""
    scores = np.concatenate([s for s, _ in parts]) if parts else np.empty(0, np.float32)
    hit = np.concatenate([h for _, h in parts]) if parts else np.empty(0, np.bool_)
    order = np.argsort(-scores, kind="stable")
    last = (
        np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)) if len(order) else np.empty(0, np.int64)
    )
    true, false = np.cumsum(hit[order])[last], np.cumsum(~hit[order])[last]
    sensitivity = true / marked if marked else np.full(len(true), np.nan)
    return np.append(0.0, false / mm2 if mm2 else false * np.nan), np.append(0.0, sensitivity)


def _slide(case: Case) -> dict[str, Any]:
    """A slide's row: machine and truth."""
    g = case.report.result
    true = case.true_percent
    return {
        "slide": case.report.slide.name,
        "percent": g.percent,
        "interval": g.interval,
        "grade": g.grade,
        "not_assessable": g.not_assessable,
        "true_percent": None if math.isnan(true) else round(true, 4),
        "true_grade": case.true_grade,
        "positive": g.positive,
        "negative": g.negative,
    }


def _slides(
    slides: Sequence[dict[str, Any]], cases: Sequence[Case]
) -> tuple[BlandAltman | None, float, int, int, float]:
    """Agreement of percentages and grades: limits, mean error, grades right, how many graded, kappa."""
    known = [s for s in slides if s["percent"] is not None and s["true_percent"] is not None]
    percent, true = (np.array([s[key] for s in known], np.float64) for key in ("percent", "true_percent"))
    limits = bland_altman(percent, true) if len(known) > 1 else None
    error = float(np.abs(percent - true).mean()) if known else math.nan
    graded = [s for s in slides if s["grade"] is not None and s["true_grade"] is not None]
    names = list(grading_of(cases[0].report).grades)
    if not graded:
        return limits, error, 0, 0, math.nan
    both = [(names.index(s["grade"]), names.index(s["true_grade"])) for s in graded]
    kappa = weighted_kappa([a for a, _ in both], [b for _, b in both], len(names))
    return limits, error, sum(a == b for a, b in both), len(both), kappa


def _fields(cases: Sequence[Case]) -> tuple[float, float, float]:
    """AUC of the fields' scores, sensitivity and specificity of the choice."""
    scores, chosen, feasible = [], [], []
    for case in cases:
        for f in case.report.fields:
            if f.score is not None and (f.x, f.y) in case.feasible:
                scores.append(f.score)
                chosen.append(not f.why_not)
                feasible.append(case.feasible[f.x, f.y])
    true, kept = np.array(feasible, np.bool_), np.array(chosen, np.bool_)
    if len(set(feasible)) < 2:
        return math.nan, math.nan, math.nan
    return auc(true, np.array(scores, np.float32)), float(kept[true].mean()), float((~kept[~true]).mean())


def write_evaluation(folder: Path, result: RenalEvaluation) -> None:
    """Write ``evaluation.json``, ``agreement.png`` and ``froc.png``.

    Raises:
        WsiError: a file cannot be written.
    """
    write_agreement(folder / "agreement.png", result.slides, result.bland_altman, result.demonstration)
    write_froc(folder / "froc.png", result.froc, result.demonstration)
    limits = result.bland_altman
    write_json(
        folder / "evaluation.json",
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
