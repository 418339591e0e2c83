"""Reports as rows of tables over many slides."""

from __future__ import annotations

from typing import Any

import shapely

from pipelines.renal.read.report import RenalReport
from pipelines.renal.read.run import read_report
from wsi.errors import StoreError
from wsi.files import csv_rows
from wsi.results.folder import Folder

SLIDE_COLUMNS: dict[str, type] = {
    **{
        "slide": str,
        "reading": str,
        "grade": str,
        "percent": float,
        "percent_low": float,
        "percent_high": float,
    },
    **{"positive": int, "negative": int, "fields": int, "not_assessable": str, "by": str, "date": str},
    **{"mpp": float, "warnings": str, "slide_identity": str},
}
CAPILLARY_COLUMNS: dict[str, type] = {
    **{"slide": str, "reading": str, "id": str, "class": str, "counted": bool, "score": float, "source": str},
    **{"brown": float, "doubts": str, "mpp": float},
}


def slide_row(report: RenalReport) -> dict[str, Any]:
    """One reading of a slide, by the machine or by a person; unknown values are empty, never 0."""
    g, c = report.result, report.corrections
    low, high = (None, None) if g.interval is None else g.interval
    return {
        "slide": report.slide.name,
        "reading": report.reading,
        "grade": g.grade,
        "percent": g.percent,
        "percent_low": low,
        "percent_high": high,
        "positive": g.positive,
        "negative": g.negative,
        "fields": g.fields,
        "not_assessable": g.not_assessable or None,
        "by": c.by if c else None,
        "date": c.date if c else None,
        "mpp": report.slide.um_per_px,
        "warnings": "; ".join(report.warnings) or None,
        "slide_identity": report.slide.identity,
    }


def capillary_rows(folder: Folder, report: RenalReport) -> list[dict[str, Any]]:
    """The capillaries of a reading, counted or not, with their boxes in level-0 pixels.

    Raises:
        StoreError: ``capillaries.csv`` is missing or broken.
    """
    try:
        return [_capillary(row, report) for row in csv_rows(folder.read("capillaries.csv"))]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise StoreError(
            f"{folder.at('capillaries.csv')} cannot be read ({error}); make the report again"
        ) from error


def _capillary(row: dict[str, Any], report: RenalReport) -> dict[str, Any]:
    x0, y0, x1, y1 = (float(row[name]) for name in ("x0", "y0", "x1", "y1"))
    return {
        "slide": report.slide.name,
        "reading": report.reading,
        "id": row["id"],
        "class": row["class"],
        "counted": row["counted"] == "yes",
        "source": row["source"],
        "score": float(row["score"]) if row["score"] else None,
        "brown": float(row["brown_around"]) if row["brown_around"] else None,
        "doubts": row["doubt"] or None,
        "mpp": report.slide.um_per_px,
        "geometry": shapely.box(x0, y0, x1, y1),
    }


def readings(folder: Folder) -> list[tuple[Folder, RenalReport]]:
    """The machine's reading in a slide's folder and, where there is one, that of a person, each with its folder.

    Raises:
        StoreError: a report is broken.
    """
    pairs = [(folder, read_report(folder))]
    reviewed = folder.inside("reviewed")
    if reviewed.exists("report.json"):
        pairs.append((reviewed, read_report(reviewed)))
    return pairs
