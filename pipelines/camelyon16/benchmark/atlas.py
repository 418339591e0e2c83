"""The error atlas: one page with the curves, every missed lesion and the strongest false positives, to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import shapely
from shapely import Polygon

from pipelines.camelyon16.benchmark.curves import interval_text
from pipelines.camelyon16.benchmark.evaluation import Evaluation, FalsePositive, LesionOutcome
from pipelines.camelyon16.benchmark.froc import VARIANTS, Variant
from pipelines.camelyon16.benchmark.report import MARK_UM, lesion_mistake, mistakes_file
from pipelines.runs.pictures import TEMPLATES, bar_um, jpeg_uri, png_uri
from wsi.errors import WsiError
from wsi.results.folder import Folder
from wsi.slides.slide import Slide
from wsi.slides.source import SlideSource
from wsi.slides.tiles import read_square
from wsi.text import number_of

VIEW_PX = 260  # side of a thumbnail
WIDE_UM, CLOSE_UM = 1600.0, 200.0  # sides of the two thumbnails' regions; the wide one grows with the lesion
JPEG_QUALITY = 80
LARGEST_READ_PX = 8192  # side of the largest region that is read for a thumbnail
FALSE_SHOWN = 100
BUDGET = 18_000_000  # bytes of pictures: the page stays under 20 MB


@dataclass(frozen=True, slots=True)
class View:
    """A thumbnail: its JPEG as a data URI, its outline as an SVG path in its pixels, its side and scale bar in um."""

    image: str
    path: str
    side_um: float
    bar_um: float


@dataclass(frozen=True, slots=True)
class Mistake:
    """One card of the page.

    Attributes:
        kind: ``missed``, ``late`` (found beyond 8 false positives per slide only) or ``false positive``.
        detail: class and length of a lesion; the slide's truth of a false positive.
        false_per_slide: false positives per slide that come with its score; None for a missed lesion.
        outline: polygons in level-0 pixels; where there are none, a ring is drawn around (x, y).
        link: GeoJSON of the slide's mistakes, relative to the page.
        why_blank: why there are no pictures.
    """

    kind: str
    slide: str
    detail: str
    lesion_class: str
    length_um: float
    score: float
    false_per_slide: float | None
    x: float
    y: float
    outline: tuple[Polygon, ...]
    link: str
    source: SlideSource | None
    views: tuple[View, ...] = ()
    why_blank: str = ""


def mistakes(result: Evaluation, shown: int = FALSE_SHOWN) -> list[Mistake]:
    """Cards of missed lesions, longest first; then of those found late; then of the strongest false positives."""
    predictions = {s.name: s.case.prediction for s in result.slides}

    def card(
        kind: str, mark: LesionOutcome | FalsePositive, detail: str, outline: tuple[Polygon, ...]
    ) -> Mistake:
        false_per_slide = float(result.curve.false_at(mark.score)) if mark.score > 0 else None
        x, y = mark.x, mark.y
        if outline:  # the middle of a crescent does not lie on the crescent
            inside = max(outline, key=lambda part: part.area).representative_point()
            x, y = inside.x, inside.y
        link = quote(mistakes_file(mark.slide))
        lesion = mark if isinstance(mark, LesionOutcome) else None
        return Mistake(
            kind,
            mark.slide,
            detail,
            lesion.kind if lesion else "",
            lesion.length_um if lesion else 0.0,
            mark.score,
            false_per_slide,
            x,
            y,
            outline,
            link,
            predictions[mark.slide].source,
        )

    cards = []
    for kind in ("missed", "late"):
        lesions = [x for x in result.lesions if lesion_mistake(x, result.curve) == kind]
        lesions.sort(key=lambda x: (-x.length_um, x.slide, x.number))
        cards += [card(kind, x, f"{x.kind}, {x.length_um:,.0f} µm", x.outline) for x in lesions]
    for f in result.false[:shown]:
        cards.append(
            card("false positive", f, "on a tumour slide" if f.tumour_slide else "on a normal slide", ())
        )
    return cards


def with_views(
    cards: Sequence[Mistake], tick: Callable[[int, int], None] = lambda done, total: None
) -> list[Mistake]:
    """Add thumbnails. Each slide is opened once, and the cards keep their order. A card says why it has no picture."""
    viewed_cards: dict[int, Mistake] = {}
    picture_bytes = 0
    first_index: dict[str, int] = {}
    for i, card in enumerate(cards):
        first_index.setdefault(card.slide, i)
    # slide by slide, in the order of each slide's first card: the budget goes to the first cards as far as possible
    order = sorted(range(len(cards)), key=lambda i: (first_index[cards[i].slide], i))
    slide: Slide | None = None
    slide_name, reason = "", ""
    try:
        for count, i in enumerate(order):
            tick(count, len(cards))
            card = cards[i]
            if card.slide != slide_name:
                if slide is not None:
                    slide.close()
                slide_name = card.slide
                slide, reason = _open(card.source)
            if slide is None:
                viewed_cards[i] = replace(card, why_blank=reason)
            elif picture_bytes > BUDGET:
                viewed_cards[i] = replace(card, why_blank="no picture: the page would grow over 20 MB")
            else:
                viewed_cards[i] = _look(card, slide)
                picture_bytes += sum(len(view.image) for view in viewed_cards[i].views)
    finally:
        if slide is not None:
            slide.close()
    tick(len(cards), len(cards))
    return [viewed_cards[i] for i in range(len(cards))]


def _open(source: SlideSource | None) -> tuple[Slide | None, str]:
    if source is None:
        return None, "no picture: the slide is not known; pass --slides"
    try:
        return source.open(), ""
    except WsiError as error:
        return None, f"no picture: {error}; or pass --slides"


def _look(card: Mistake, slide: Slide) -> Mistake:
    views = []
    try:
        extent = max(
            (max(p.bounds[2] - p.bounds[0], p.bounds[3] - p.bounds[1]) for p in card.outline), default=0
        )
        for side_um in (max(WIDE_UM, 1.3 * extent * slide.mpp), CLOSE_UM):
            views.append(_view(card, slide, side_um))
    except WsiError as error:
        return replace(card, why_blank=f"no picture: {error}")
    return replace(card, views=tuple(views))


def _view(card: Mistake, slide: Slide, side_um: float) -> View:
    downsample = slide.levels[slide.level_for(side_um / slide.mpp / VIEW_PX)].downsample
    side_um = min(side_um, LARGEST_READ_PX * downsample * slide.mpp)  # a slide of one level shows less
    side_l0 = side_um / slide.mpp
    corner = round(card.x - side_l0 / 2), round(card.y - side_l0 / 2)
    small = read_square(slide, corner, side_l0, VIEW_PX)
    image, bar = jpeg_uri(small, JPEG_QUALITY), bar_um(side_um / 4)
    return View(image, _path(card, corner, VIEW_PX / side_l0, slide.mpp), side_um, bar)


def _path(card: Mistake, corner: tuple[int, int], scale: float, mpp: float) -> str:
    """SVG path of the outline, or of a ring, in the thumbnail's pixels."""
    if not card.outline:
        x, y, r = (card.x - corner[0]) * scale, (card.y - corner[1]) * scale, max(6.0, MARK_UM / mpp * scale)
        return (
            f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-2 * r:.1f} 0"
        )
    parts = []
    for polygon in card.outline:
        points = (shapely.get_coordinates(polygon.simplify(0.5 / scale)) - corner) * scale
        parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z")
    return "".join(parts)


def write_atlas(
    folder: Folder,
    cards: Sequence[Mistake],
    result: Evaluation,
    record: dict[str, Any],
    variant: Variant,
) -> None:
    """Write ``atlas.html``, which contains the curves of ``froc.png`` and ``roc.png`` that lie beside it."""
    curves = [png_uri(folder.read(name)) for name in ("froc.png", "roc.png")]
    counts = {kind: sum(card.kind == kind for card in cards) for kind in ("missed", "late", "false positive")}
    page = TEMPLATES.get_template("atlas.html").render(
        cards=cards,
        counts=counts,
        all_false=len(result.false),
        curves=curves,
        record=record,
        figures=record["figures"],
        text=interval_text,
        number_of=number_of,
        meaning=VARIANTS[variant],
        side=VIEW_PX,
        demonstration=[m["name"] for m in (record["scored by"].get("models") or []) if m["demonstration"]],
    )
    folder.write("atlas.html", page)
