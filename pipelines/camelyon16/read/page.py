"""``index.html``: one page with every slide of a run, best looked at in a browser, no server needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.camelyon16.read.preview import NUMBERED
from pipelines.camelyon16.read.results import SlideResult, scores_csv
from pipelines.runs.cohort import Failure
from pipelines.runs.pictures import TEMPLATES
from wsi.results.folder import Folder

TOP_LESIONS = 8


def write_tables(
    out: Folder, results: Sequence[SlideResult], failures: Sequence[Failure], record: dict[str, Any]
) -> Sequence[str]:
    """Write ``slide_scores.csv`` and the page into a run's folder, and return their names."""
    out.write("slide_scores.csv", scores_csv(results))
    out.write("index.html", page_html(results, failures, record))
    return "slide_scores.csv", "index.html"


def page_html(results: Sequence[SlideResult], failures: Sequence[Failure], record: dict[str, Any]) -> str:
    """The text of the page: slides by falling score, pictures by relative link, what failed, what made it."""
    order = sorted(results, key=lambda r: (-(r.score if r.score is not None else -1), r.name))
    return TEMPLATES.get_template("score.html").render(
        results=order, failures=failures, record=record, top=TOP_LESIONS, numbered=NUMBERED
    )
