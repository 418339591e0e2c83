"""The report as a page: one self-contained HTML file, and a PDF of it where WeasyPrint is installed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

from PIL import ImageFile

from pipelines.renal.read.basis import basis_sentences
from pipelines.renal.read.fields import FieldSet
from pipelines.renal.read.grading import GradingConfig, grade_word, percent_text
from pipelines.renal.read.marks import Marks, mark_features, marks_csv
from pipelines.renal.read.pictures import (
    CROP_BAR_UM,
    Crop,
    excluded_pictures,
    gallery,
    overview_bar_um,
    overview_picture,
)
from pipelines.renal.read.reading import RenalConfig
from pipelines.renal.read.report import RenalReport, grading_of
from pipelines.runs.cohort import Failure
from pipelines.runs.pages import Page, in_pages, write_pages
from pipelines.runs.pictures import TEMPLATES
from wsi.errors import ConfigError
from wsi.results.export import geojson, origin_offset
from wsi.results.folder import Folder
from wsi.slides.slide import Slide
from wsi.vocabulary import NEGATIVE, POSITIVE

SHOWN = 150  # positive capillaries on the report itself: 1 MB of pictures
ON_A_PAGE = 500  # on each page of the others: 3.5 MB


def write_report(
    folder: Folder, report: RenalReport, slide: Slide, fields: FieldSet, marks: Marks, *, pdf: bool
) -> None:
    """Write all files of a report; ``report.json`` comes last and says that all others are there."""
    name = report.slide.name
    made_by = {
        "slide": name,
        "slide identity": report.slide.identity,
        "reading": report.reading,
        "model": report.models["capillaries"].name,
        "sha256": report.models["capillaries"].sha256[:16],
        "program": report.program,
        "intended use": report.intended_use,
    }
    features = mark_features(name, marks, fields, made_by, slide.mpp)
    folder.write("detections.geojson", geojson(features, origin_offset(slide.bounds, "auto")))
    folder.write("capillaries.csv", marks_csv(marks, fields))
    pictures = gallery(slide, fields, marks, report.models["capillaries"].threshold)
    html = report_html(report, slide, fields, marks, pictures)
    folder.write("report.html", html)
    _write_more(folder, report, slide, pictures[0])
    folder.delete("report.pdf")
    if pdf:
        folder.write("report.pdf", pdf_of(html))
    folder.write_json("report.json", report.model_dump(mode="json"))


def more_pages(positive: int) -> list[str]:
    """Names of the pages that show the positive capillaries beyond the first `SHOWN`."""
    return [f"positive-{i + 2}.html" for i in range(-(-max(0, positive - SHOWN) // ON_A_PAGE))]


def _write_more(folder: Folder, report: RenalReport, slide: Slide, positive: Sequence[Crop]) -> None:
    """Write pages of the positive capillaries beyond `SHOWN`: one page of a whole biopsy would be too large to open."""
    names = more_pages(len(positive))
    for stale in folder.files():
        if fnmatch(stale, "positive-*.html") and stale not in names:
            folder.delete(stale)
    for i, name in enumerate(names):
        first = SHOWN + i * ON_A_PAGE
        page = TEMPLATES.get_template("renal_more.html").render(
            r=report,
            crops=positive[first : first + ON_A_PAGE],
            first=first + 1,
            total=len(positive),
            origin=origin_offset(slide.bounds, "auto"),
            crop_bar_um=CROP_BAR_UM,
        )
        folder.write(name, page)


def report_html(
    report: RenalReport,
    slide: Slide,
    fields: FieldSet,
    marks: Marks,
    pictures: tuple[list[Crop], list[Crop]],
) -> str:
    """The HTML of the page; every value in it is escaped."""
    positive, uncertain = pictures
    feasible = [f for f in report.fields if not f.why_not]
    return TEMPLATES.get_template("renal.html").render(
        r=report,
        overview=overview_picture(slide, fields, marks),
        positive=positive[:SHOWN],
        checks=RenalConfig.model_validate_json(json.dumps(report.settings)).checks,
        positives=len(positive),
        more=more_pages(len(positive)),
        uncertain=uncertain,
        basis=basis_sentences(report),
        word=lambda grade: grade_word(grade, grading_of(report)),
        excluded_count=sum(bool(f.why_not) for f in report.fields),
        excluded=excluded_pictures(slide, fields),
        feasible=sorted(feasible, key=lambda f: (-_percent(f.positive, f.negative), f.y, f.x)),
        text=_text,
        percent_of=_percent_text,
        side_um=report.field_side_px * report.slide.um_per_px,
        limits=report.models["capillaries"].threshold,
        classes=(NEGATIVE, POSITIVE),
        share=_share_text,
        bar_um=overview_bar_um(slide),
        crop_bar_um=CROP_BAR_UM,
        origin=origin_offset(slide.bounds, "auto"),
    )


def _percent(positive: int, negative: int) -> float:
    return 100 * positive / (positive + negative) if positive + negative else -1.0


def _percent_text(positive: int, negative: int) -> str:
    return f"{_percent(positive, negative):.0f} %" if positive + negative else "none"


def _share_text(percent: float, cfg: dict[str, Any]) -> str:
    return percent_text(percent, GradingConfig.model_validate_json(json.dumps(cfg)))


def _text(value: float | None, digits: int = 1) -> str:
    """A number as text, or ``not known``."""
    return "not known" if value is None else f"{value:,.{digits}f}"


def check_pdf() -> None:
    """Raise early if a PDF cannot be made.

    Raises:
        ConfigError: WeasyPrint, or the library Pango that it draws text with, is not there.
    """
    tolerant = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        import weasyprint  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--pdf needs WeasyPrint: pip install 'slidewright[pdf]', or print report.html"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"--pdf needs the library Pango (apt install libpangoft2-1.0-0; {error}); or print report.html"
        ) from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = (
            tolerant  # WeasyPrint sets it: a slide that is cut short would then be read
        )


def pdf_of(html: str) -> bytes:
    """A page printed to PDF, the same bytes for the same page.

    Raises:
        ConfigError: see `check_pdf`.
    """
    check_pdf()
    import weasyprint

    logging.getLogger("weasyprint").setLevel(logging.ERROR)  # it would warn of CSS that is only for screens
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    fetcher = weasyprint.urls.URLFetcher(allowed_protocols=("data",))  # pictures are in the page
    with _no_clock():
        return bytes(weasyprint.HTML(string=html, url_fetcher=fetcher).write_pdf())


@contextmanager
def _no_clock() -> Iterator[None]:
    """Fix the time that embedded fonts state; otherwise it is the second in which they were made."""
    earlier_epoch = os.environ.get("SOURCE_DATE_EPOCH")
    os.environ["SOURCE_DATE_EPOCH"] = earlier_epoch or "0"
    try:
        yield
    finally:
        if earlier_epoch is None:
            del os.environ["SOURCE_DATE_EPOCH"]


def write_index(
    out: Folder,
    reports: Sequence[RenalReport],
    failures: Sequence[Failure],
    record: dict[str, Any],
    corrected: Mapping[str, RenalReport],
) -> list[str]:
    """Write the pages of a run's slides with their grades, those of corrected readings, and the failures."""
    template = TEMPLATES.get_template("renal_index.html")

    def html(page: Page[RenalReport]) -> str:
        return template.render(
            page=page,
            slides=len(reports),
            failed=len(failures),
            record=record,
            corrected=corrected,
            share=_share_text,
            basis=basis_sentences,
            word=lambda grade, report: grade_word(grade, grading_of(report)),
        )

    return write_pages(out, in_pages(reports, failures), html)
