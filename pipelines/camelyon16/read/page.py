"""``index.html``: one page with every slide of a run, best looked at in a browser, no server needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.camelyon16.read.preview import NUMBERED
from pipelines.camelyon16.read.results import SlideResult, scores_csv
from pipelines.runs.cohort import Failure
from pipelines.runs.pages import Page, in_pages, write_pages
from pipelines.runs.pictures import TEMPLATES
from wsi.results.folder import Folder

TOP_LESIONS = 8


def write_tables(
    out: Folder, results: Sequence[SlideResult], failures: Sequence[Failure], record: dict[str, Any]
) -> Sequence[str]:
    """Write ``slide_scores.csv`` and the pages into a run's folder, and return their names."""
    out.write("slide_scores.csv", scores_csv(results))
    order = sorted(results, key=lambda r: (-(r.score if r.score is not None else -1), r.name))
    counts = {
        "scored": sum(not r.empty for r in results),
        "slides": len(results) + len(failures),
        "failed": len(failures),
    }
    pages = write_pages(out, in_pages(order, failures), lambda page: page_html(page, counts, record))
    return "slide_scores.csv", *pages


def page_html(page: Page[SlideResult], counts: dict[str, int], record: dict[str, Any]) -> str:
    """The text of a page: slides by falling score, pictures by relative link, what failed, what made it.

    Args:
        page: the slides on it.
        counts: of all slides: ``scored``, ``failed`` and ``slides``.
        record: of the run.
    """
    return TEMPLATES.get_template("score.html").render(
        page=page, **counts, record=record, top=TOP_LESIONS, numbered=NUMBERED
    )
