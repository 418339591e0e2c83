"""``index.html``: one page with every slide of a run, best looked at in a browser, no server needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from pipelines.camelyon16.read.preview import NUMBERED
from pipelines.camelyon16.read.results import SlideResult, scores_csv
from pipelines.runs.cohort import Failure
from wsi.files import write_text

TEMPLATES = Environment(
    loader=PackageLoader("pipelines"),
    autoescape=select_autoescape(default=True),
    trim_blocks=True,
    lstrip_blocks=True,
)
TOP_LESIONS = 8


def write_tables(
    out: Path, results: Sequence[SlideResult], failures: Sequence[Failure], record: dict[str, Any]
) -> Sequence[str]:
    """Write ``slide_scores.csv`` and the page into a run's folder, and return their names."""
    write_text(out / "slide_scores.csv", scores_csv(results))
    write_page(out / "index.html", results, failures, record)
    return "slide_scores.csv", "index.html"


def write_page(
    path: Path, results: Sequence[SlideResult], failures: Sequence[Failure], record: dict[str, Any]
) -> None:
    """Write the page: slides by falling score, pictures by relative link, what failed, what made it."""
    order = sorted(results, key=lambda r: (-(r.score if r.score is not None else -1), r.name))
    page = TEMPLATES.get_template("score.html").render(
        results=order, failures=failures, record=record, top=TOP_LESIONS, numbered=NUMBERED
    )
    write_text(path, page)
