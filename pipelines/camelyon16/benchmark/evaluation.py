"""The benchmark: each slide's detections are matched once, then come the figures of papers, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from shapely import Polygon

from pipelines.camelyon16.benchmark.cases import Case
from pipelines.camelyon16.benchmark.froc import TARGETS, FrocCurve, FrocTable, SlideHits, Variant, slide_hits
from pipelines.camelyon16.benchmark.roc import figure, roc_figures
from pipelines.camelyon16.benchmark.truth import (
    LesionClass,
    LesionTruth,
    TumourRaster,
    check_detections,
    lesion_truth,
    read_raster,
)
from pipelines.runs.task import Each, each_here, made_of_each
from wsi.config import Config
from wsi.errors import AnnotationError, ConfigError
from wsi.metrics.resample import draw_weights, percentile_interval
from wsi.vocabulary import NORMAL

SIZES_UM = (200.0, 500.0, 1000.0, 2000.0, 5000.0, float("inf"))  # bounds of lesion lengths in the table
CURVE_AT = (
    *np.linspace(0, 0.11, 8).tolist(),
    *np.geomspace(0.125, 16, 57).tolist(),
)  # false positives per slide at which the band is drawn


class EvaluationConfig(Config):
    """Settings of an evaluation.

    Attributes:
        variant: variant of FROC; see `VARIANTS`.
        draws: number of bootstrap draws over slides; 2,000 in Liu et al. 2017; 0 leaves the intervals out.
        seed: seed of the draws.
        at: slide scores from which a slide counts as tumour, in the table of operating points.
        truth_label: value of truth masks that means tumour; None detects it.
    """

    variant: Variant = "official"
    draws: int = Field(default=2000, ge=0)
    seed: int = Field(default=0, ge=0)
    at: tuple[float, ...] = (0.5,)
    truth_label: int | None = Field(default=None, gt=0)


@dataclass(frozen=True, eq=False, slots=True)
class LesionOutcome:
    """One lesion: its place, its length, and the best score on it (0: missed)."""

    slide: str
    number: int
    kind: LesionClass
    length_um: float
    x: float
    y: float
    score: float
    outline: tuple[Polygon, ...]

    @property
    def found(self) -> bool:
        """Whether any detection with a score above 0 lies on it."""
        return self.score > 0


@dataclass(frozen=True, slots=True)
class FalsePositive:
    """A detection that lies on no lesion."""

    slide: str
    x: float
    y: float
    score: float
    tumour_slide: bool


@dataclass(frozen=True, eq=False, slots=True)
class SlideOutcome:
    """What an evaluation finds on one slide.

    Attributes:
        counted: whether its lesions and false positives count for FROC.
        lesions: all lesions with isolated cells, whose ``score`` is that of the best hit, though it does not count.
        note: what was repaired, detected or wrong; may be empty.
    """

    case: Case
    hits: SlideHits
    lesions: tuple[LesionOutcome, ...]
    false: tuple[FalsePositive, ...]
    mask_value: int | None
    note: str

    @property
    def name(self) -> str:
        """The slide's name."""
        return self.case.prediction.name

    @property
    def counted(self) -> bool:
        """Whether the slide counts for FROC; it does not if its tumour is marked only in part."""
        return not self.case.partial

    @property
    def score(self) -> float:
        """The slide's score."""
        assert self.case.prediction.score is not None  # `join` refuses slides without one
        return self.case.prediction.score

    @property
    def kind(self) -> LesionClass | Literal["not marked"] | None:
        """The class of its longest lesion; None on a normal slide."""
        if self.case.tumour_unmarked:
            return "not marked"
        return max(self.lesions, key=lambda lesion: lesion.length_um).kind if self.lesions else None


@dataclass(frozen=True, eq=False, slots=True)
class Evaluation:
    """All slides, the curve, and the figures as written to ``evaluation.json``.

    Attributes:
        band: (points of `CURVE_AT`, 2) 95 % interval of the curve; None without a bootstrap.
    """

    slides: tuple[SlideOutcome, ...]
    curve: FrocCurve
    figures: dict[str, Any]
    band: npt.NDArray[np.float64] | None

    @property
    def tumour(self) -> npt.NDArray[np.bool_]:
        """Whether each slide has tumour: (slides,)."""
        return np.array([s.hits.tumour for s in self.slides])

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """Scores of the slides: (slides,)."""
        return np.array([s.score for s in self.slides])

    @property
    def lesions(self) -> list[LesionOutcome]:
        """The lesions of the slides that count for FROC."""
        return [lesion for s in self.slides if s.counted for lesion in s.lesions]

    @property
    def false(self) -> list[FalsePositive]:
        """The false positives of the slides that count for FROC, highest first."""
        detections = [f for s in self.slides if s.counted for f in s.false]
        return sorted(detections, key=lambda f: (-f.score, f.slide, f.y, f.x))


def evaluate(
    cases: Sequence[Case],
    cfg: EvaluationConfig,
    tick: Callable[[int, int], None] = lambda done, total: None,
    *,
    each: Each = each_here,
) -> Evaluation:
    """Match the detections of every slide with its lesions, then compute the figures.

    Args:
        cases: the slides, with detections and truth.
        cfg: how they are counted.
        tick: called with (slides done, slides).
        each: who does the slides.

    Raises:
        WsiError: a truth file that cannot be used, a detection off its slide, masks that disagree.
    """
    slides = made_of_each(each, partial(sort_out, cfg=cfg), cases, tick)
    _same_convention(slides)
    counted = [s.hits for s in slides if s.counted]
    table = FrocTable(counted, cfg.variant)
    curve = table.curve()
    assert curve is not None  # the table has checked that there are lesions and slides
    weights = draw_weights(np.random.default_rng(cfg.seed), len(slides), cfg.draws)
    drawn = _sensitivities(table, weights[:, [s.counted for s in slides]], (*TARGETS, *CURVE_AT))
    scores = np.array([s.score for s in slides])
    figures = froc_figures(slides, curve, drawn[:, : len(TARGETS)])
    figures |= roc_figures([s.kind for s in slides], scores, weights, cfg.at)
    figures["lesions by length"] = _by_length([x for s in slides if s.counted for x in s.lesions], curve)
    return Evaluation(tuple(slides), curve, figures, _band(drawn[:, len(TARGETS) :]))


def sort_out(case: Case, cfg: EvaluationConfig) -> SlideOutcome:
    """Match one slide's detections with its lesions."""
    p = case.prediction
    check_detections(p.points, p.size, p.name)
    raster = read_case(case, cfg.truth_label)
    truth = _lesions(raster, case, cfg)
    hits = slide_hits(p.points, p.scores, truth, cfg.variant)
    numbers = truth.numbers_at(p.points, nearest=cfg.variant == "dataset")
    best = np.zeros(len(truth.lengths_um))
    np.maximum.at(best, numbers[numbers > 0] - 1, p.scores[numbers > 0])
    lesions = tuple(
        LesionOutcome(
            slide=p.name,
            number=i + 1,
            kind=kind,
            length_um=float(truth.lengths_um[i]),
            x=float(truth.centres[i, 0]),
            y=float(truth.centres[i, 1]),
            score=float(best[i]),
            outline=tuple(truth.outline(i + 1)),
        )
        for i, kind in enumerate(truth.classes)
    )
    false = tuple(
        FalsePositive(p.name, float(x), float(y), float(score), hits.tumour)
        for (x, y), score in zip(p.points[numbers == 0], p.scores[numbers == 0], strict=True)
    )
    if case.tumour_unmarked:  # nobody knows which detections are false
        hits, false = replace(hits, tumour=True, false=np.empty(0)), ()
    unmarked = "it has tumour, and no outlines: only its slide score counts" if case.tumour_unmarked else ""
    notes = "; ".join(text for text in (raster.note if raster else "", unmarked, p.note) if text)
    return SlideOutcome(case, hits, lesions, false, raster.value if raster else None, notes)


def read_case(case: Case, label: int | None) -> TumourRaster | None:
    """Tumour of a slide at level 5; None where it has none.

    Raises:
        AnnotationError: the truth marks none though nothing says that the slide is normal, or marks some though
            something says so.
    """
    if case.truth is None:
        return None
    raster = read_raster(case.truth, case.prediction.size, label=label)
    if raster.mask.any():
        if case.said_normal:
            raise AnnotationError(
                f"{case.truth} marks tumour, though {case.said_normal} says that the slide is normal; mend one of them"
                f"{' (--truth-label says which value of masks is tumour)' if raster.value else ''}"
            )
        return raster
    if case.said_normal or case.others_normal:
        return None
    raise AnnotationError(
        f"{case.truth} marks no tumour{raster.why_empty}; if its slide has none, label it {NORMAL!r} in slides.csv or "
        f"reference.csv"
    )


def _lesions(raster: TumourRaster | None, case: Case, cfg: EvaluationConfig) -> LesionTruth:
    empty = TumourRaster(np.zeros((1, 1), np.bool_), (1, 1))
    if raster is None or cfg.variant != "dataset":
        return lesion_truth(raster or empty)
    if case.prediction.mpp is None:
        raise ConfigError(
            f"the variant 'dataset' goes by each slide's own spacing, and that of {case.prediction.name} is not known; "
            f"pass --slides, or use 'official'"
        )
    return lesion_truth(raster, case.prediction.mpp * raster.step[0], raster.step)


def _same_convention(slides: Sequence[SlideOutcome]) -> None:
    """Refuse masks that are read by different conventions, as when one of 0, 1 and 2 happens to lack a value."""
    mask_values = [(s.mask_value, s.case.truth) for s in slides if s.mask_value is not None]
    for value, path in mask_values:
        first_value, first_path = mask_values[0]
        if value != first_value:
            raise AnnotationError(
                f"in {path} tumour reads as {value}, in {first_path} as {first_value}; say which with --truth-label"
            )


def _sensitivities(
    table: FrocTable, weights: npt.NDArray[np.int64], targets: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Sensitivity of each draw at each target: (draws, targets); NaN where a draw has no lesion."""
    sensitivities = np.full((len(weights), len(targets)), np.nan)
    for i, weight in enumerate(weights):
        curve = table.curve(weight)
        if curve is not None:
            sensitivities[i] = curve.at(targets)
    return sensitivities


def _band(drawn: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """Interval of the sensitivity at each target: (targets, 2); None where no draw of (draws, targets) is defined."""
    intervals = [percentile_interval(values) for values in drawn.T]
    return None if None in intervals else np.array(intervals)


def froc_figures(
    slides: Sequence[SlideOutcome], curve: FrocCurve, drawn: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """Figures of FROC: score and sensitivities; ``drawn`` holds sensitivities, (draws, targets)."""
    at = curve.at(TARGETS)
    lesions = [lesion for s in slides if s.counted for lesion in s.lesions]
    isolated = [lesion.kind == "isolated" for lesion in lesions]
    missed = [lesion for lesion in lesions if not lesion.found and lesion.kind != "isolated"]
    return {
        "FROC": figure(curve.score, drawn.mean(axis=1)),
        "sensitivity at false positives per slide": {
            f"{target:g}": figure(at[i], drawn[:, i]) for i, target in enumerate(TARGETS)
        },
        "lesions to be found": len(lesions) - sum(isolated),
        "lesions without any detection": len(missed),
        "isolated tumour cells, not counted": sum(isolated),
        "false positives": sum(len(s.hits.false) for s in slides if s.counted),
    }


def _by_length(lesions: Sequence[LesionOutcome], curve: FrocCurve) -> list[dict[str, Any]]:
    """Lesions by length: how many there are, have a detection, and have one at 1 and 8 false positives per slide."""
    rows = []
    for low, high in pairwise(SIZES_UM):
        # macrometastases are longer than 2 mm: 2,000 um belongs to the row below
        row_lesions = [x for x in lesions if _row_of(x.length_um) == low]
        scores = np.array([lesion.score for lesion in row_lesions if lesion.found])
        false = curve.false_at(scores)
        rows.append(
            {
                "from um": low,
                "to um": None if np.isinf(high) else high,
                "lesions": len(row_lesions),
                "with a detection": len(scores),
                "at 8 false positives per slide": int((false <= 8).sum()),
                "at 1 false positive per slide": int((false <= 1).sum()),
            }
        )
    return rows


def _row_of(length_um: float) -> float | None:
    """The lower bound of the table's row for this length; None for isolated cells."""
    if length_um < SIZES_UM[0]:
        return None
    if length_um <= 2000 and length_um > 1000:
        return 1000.0
    return max(low for low in SIZES_UM[:-1] if length_um >= low)
