"""Pairs of reports and the truth of their slides."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
from shapely import STRtree

from models.training.data.detection import MarkedSlide, read_marked
from pipelines.renal.read.grading import grade_of
from pipelines.renal.read.report import RenalReport, grading_of
from pipelines.renal.read.run import REVIEWED, read_report
from wsi.errors import ConfigError, StoreError
from wsi.files import csv_rows
from wsi.marks.annotations import read_annotations
from wsi.marks.boxes import Boxes
from wsi.results.folder import Folder, Place, folder_at
from wsi.slides.manifest import read_manifest
from wsi.vocabulary import FEASIBLE, NEGATIVE, NOT_FEASIBLE, POSITIVE

CLASSES = (NEGATIVE, POSITIVE)
LEAST_LABELLED = 0.5  # share of a candidate that must be labelled
MIXED = (0.25, 0.75)  # shares of feasible labels between which a candidate is left out


@dataclass(frozen=True, eq=False, slots=True)
class Case:
    """A slide with its report, its detections and its true marks.

    Attributes:
        found: the detections of the report, counted or not, with scores.
        counted: (n,) whether each detection counts.
        feasible: whether a field is truly feasible, by the field's corner; empty where fields were not marked.
    """

    report: RenalReport
    found: Boxes
    counted: npt.NDArray[np.bool_]
    marked: MarkedSlide
    feasible: dict[tuple[int, int], bool]

    @property
    def true_percent(self) -> float:
        """The positive share of all marked capillaries of the slide, in percent; NaN where there is none."""
        labels = self.marked.objects.labels
        return (
            100 * float((labels == CLASSES.index(POSITIVE)).sum()) / len(labels) if len(labels) else math.nan
        )

    @property
    def true_grade(self) -> str | None:
        """The grade of the true percentage, whether or not there is enough to assess; None without a capillary."""
        percent = self.true_percent
        return None if math.isnan(percent) else grade_of(percent, grading_of(self.report))


@dataclass(frozen=True, eq=False, slots=True)
class Cohort:
    """Slides by name, and the names of those without truth."""

    cases: tuple[Case, ...]
    without_truth: tuple[str, ...]


def read_cohort(place: Place, truth: Path, *, reviewed: bool = False) -> Cohort:
    """Read every report below a folder, with its truth.

    Args:
        place: the ``--out`` of ``wsi renal report``.
        truth: a folder with ``NAME.geojson`` and perhaps ``NAME_fields.geojson``, or a manifest with truth.
        reviewed: whether to take the readings that a person corrected instead of the machine's.

    Raises:
        ConfigError: there is no report, none with a truth, or one without a review where reviews are asked for.
        WsiError: a report or a truth is broken.
    """
    folder = folder_at(place)
    names = [name for name in folder.holding("report.json") if name != REVIEWED]
    reports = [read_report(folder.inside(name)) for name in names]
    if not reports:
        raise ConfigError(f"{folder} holds no report; give the --out of wsi renal report")
    if reviewed:
        pending = [r.slide.name for r in reports if not folder.exists(f"{r.slide.name}/{REVIEWED}")]
        if pending:
            raise ConfigError(
                f"{', '.join(pending[:6])} {'has' if len(pending) == 1 else 'have'} no review; review them (wsi renal "
                f"review), or leave out --reviewed"
            )
        reports = [read_report(folder.inside(r.slide.name).inside(REVIEWED)) for r in reports]
    slide_of_origin = {
        (r.code, json.dumps(r.settings), *(m.sha256 for m in r.models.values())): r.slide.name
        for r in reports
    }
    if len(slide_of_origin) > 1:
        first, second = list(slide_of_origin.values())[:2]
        raise ConfigError(
            f"the reports of {first} and {second} in {folder} differ in models, settings or code; report all slides by "
            f"one command"
        )
    files = _truth_files(truth)
    cases, names_without_truth = [], []
    for report in reports:
        name = report.slide.name
        if name not in files:
            names_without_truth.append(name)
            continue
        report_folder = folder.inside(f"{name}/{REVIEWED}" if reviewed else name)
        detections, counted = read_found(report_folder)
        fields = files[name].with_name(f"{files[name].stem}_fields.geojson")
        labelled = true_fields(fields, report) if fields.exists() else {}
        cases.append(Case(report, detections, counted, read_marked(files[name], CLASSES), labelled))
    if not cases:
        raise ConfigError(
            f"{truth} holds no truth of {names_without_truth[0]}; name it {names_without_truth[0]}.geojson"
        )
    return Cohort(tuple(cases), tuple(names_without_truth))


def _truth_files(truth: Path) -> dict[str, Path]:
    """The annotation file of each slide, by the slide's name."""
    if truth.suffix.lower() == ".csv":
        rows = read_manifest(truth, slides_needed=False)
        return {row.source.name: row.truth for row in rows if row.truth is not None}
    if not truth.is_dir():
        raise ConfigError(f"{truth} is neither a folder nor a slides.csv; check --truth")
    return {path.stem: path for path in sorted(truth.glob("*.geojson")) if not path.stem.endswith("_fields")}


def read_found(folder: Folder) -> tuple[Boxes, npt.NDArray[np.bool_]]:
    """Read the detections in a report's ``capillaries.csv``, and whether each counts; labels are indices in `CLASSES`.

    Raises:
        StoreError: it is missing or broken.
    """
    try:
        rows = csv_rows(folder.read("capillaries.csv"))
        boxes = np.array([[float(row[k]) for k in ("x0", "y0", "x1", "y1")] for row in rows], np.float64)
        scores = np.array([float(row["score"] or "1") for row in rows], np.float32)
        labels = np.array([CLASSES.index(row["class"]) for row in rows], np.int64)
        counted = np.array([row["counted"] == "yes" for row in rows], np.bool_)
        return Boxes(boxes.reshape(-1, 4), labels, scores), counted
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise StoreError(
            f"{folder.at('capillaries.csv')} cannot be read ({error}); make the report again"
        ) from error


def true_fields(path: Path, report: RenalReport) -> dict[tuple[int, int], bool]:
    """Whether each candidate of the report is truly feasible, by its corner.

    Labelled squares need not be those of the report: a candidate gets the label of most of its labelled part.
    Candidates with labels on less than half of them, or with much of both labels, are left out.
    """
    labelled = [a for a in read_annotations(path) if a.group in (FEASIBLE, NOT_FEASIBLE)]
    outlines = [a.outline for a in labelled]
    feasible = np.array([a.group == FEASIBLE for a in labelled], np.bool_)
    tree, side = STRtree(outlines), report.field_side_px
    is_feasible = {}
    for f in report.fields:
        square = shapely.box(f.x, f.y, f.x + side, f.y + side)
        indices = tree.query(square)
        areas = shapely.area(shapely.intersection([outlines[i] for i in indices], square))
        labelled_area, feasible_area = float(areas.sum()), float(areas[feasible[indices]].sum())
        if (
            labelled_area >= LEAST_LABELLED * square.area
            and not MIXED[0] < feasible_area / labelled_area < MIXED[1]
        ):
            is_feasible[f.x, f.y] = feasible_area / labelled_area >= MIXED[1]
    return is_feasible
