"""Pictures of an evaluation: FROC and ROC with their intervals."""

from __future__ import annotations

from matplotlib.figure import Figure

from pipelines.camelyon16.benchmark.evaluation import CURVE_AT, Evaluation
from pipelines.camelyon16.benchmark.froc import TARGETS, Variant
from pipelines.camelyon16.benchmark.published import PATHOLOGIST_FOUND, PUBLISHED
from pipelines.runs.pictures import RocCurve, draw_roc, png
from wsi.metrics.ranking import roc

BLUE, ORANGE = "#1565c0", "#d9480f"
DPI = 110
TICKS = (0, 0.125, 0.25, 0.5, 1, 2, 4, 8, 16)


def interval_text(figure: dict[str, object]) -> str:
    """A figure with its interval as text: ``0.667 (0.500 to 0.806)``, or ``not defined``."""
    value, interval = figure["value"], figure["interval"]
    if value is None:
        return "not defined"
    text = f"{value:.3f}"
    return text if not isinstance(interval, list) else f"{text} ({interval[0]:.3f} to {interval[1]:.3f})"


def froc_png(result: Evaluation, variant: Variant, *, published: bool) -> bytes:
    """Draw sensitivity against false positives per slide, with the 95 % band; linear up to 1/8, then by powers of two.

    Args:
        result: the evaluation to draw.
        variant: of FROC, for the title.
        published: whether to draw the pathologist's point, too.
    """
    figure = Figure(figsize=(6.4, 5.8), layout="constrained")
    axis = figure.subplots()
    axis.set_xscale("symlog", base=2, linthresh=0.125, linscale=0.6)
    if result.band is not None:
        axis.fill_between(
            CURVE_AT, *result.band.T, color=BLUE, alpha=0.15, linewidth=0, label="95 % interval"
        )
    label = f"FROC {interval_text(result.figures['FROC'])}"
    false_per_slide, sensitivity = result.curve.false_per_slide[::-1], result.curve.sensitivity[::-1]
    style = "steps-pre" if result.curve.stepwise else "default"
    if false_per_slide[-1] < TICKS[-1]:  # beyond its last point the curve is read as that point
        axis.plot([false_per_slide[-1], TICKS[-1]], [sensitivity[-1]] * 2, ":", color=BLUE, linewidth=1.5)
    axis.plot(false_per_slide, sensitivity, color=BLUE, linewidth=2, label=label, drawstyle=style)
    target_sensitivity = result.curve.at(TARGETS)
    axis.plot(TARGETS, target_sensitivity, "o", color=BLUE, markersize=5, label="where sensitivity is read")
    if published:
        name = "pathologist, no time constraint, real slides (JAMA 2017)"
        axis.plot(
            [0], [PATHOLOGIST_FOUND], "D", color=ORANGE, markersize=7, label=name, clip_on=False, zorder=5
        )
    normal = "tumour-free slide" if variant == "negatives" else "slide"
    axis.set_xlabel(f"false positives per {normal}")
    axis.set_ylabel("share of lesions found")
    axis.set_xticks(TICKS, [f"{t:g}" for t in TICKS])
    axis.set_xticks([], minor=True)
    axis.set_xlim(0, 16)
    axis.set_ylim(0, 1.03)
    counted = [s for s in result.slides if s.counted]
    lesions = result.figures["lesions to be found"]
    axis.set_title(f"FROC, variant '{variant}': {lesions} lesions on {len(counted)} slides", fontsize=11)
    axis.legend(loc="lower right" if target_sensitivity[0] > 0.5 else "upper left", fontsize=8.5)
    axis.grid(alpha=0.3)
    return png(figure, DPI)


def roc_png(result: Evaluation, *, published: bool) -> bytes:
    """Draw the ROC curve over slides, and those of tumour slides by the class of their longest lesion."""
    figure = Figure(figsize=(6.4, 5.8), layout="constrained")
    axis = figure.subplots()
    points = [
        (p["at"], 1 - p["specificity"]["value"], p["sensitivity"]["value"])
        for p in result.figures["operating points"]
        if p["at"].startswith("slide score")
    ]
    draw_roc(axis, _curves_by_kind(result), points=points, thin=1.1)
    if result.figures["AUC"]["value"] is None:
        axis.text(0.5, 0.4, "not defined: slides of one class only", ha="center", fontsize=11)
    if published:
        lines = [f"{p.name}: AUC {p.auc:.3f}" for p in PUBLISHED if p.name.startswith(("pathologist", "11 "))]
        text = "published, on Camelyon16's test slides:\n" + "\n".join(lines)
        axis.text(0.98, 0.34, text, fontsize=8, color=ORANGE, ha="right", transform=axis.transAxes)
    axis.set_xlabel("share of normal slides called tumour (1 - specificity)")
    axis.set_ylabel("share of tumour slides called tumour (sensitivity)")
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.03)
    normal = result.figures["AUC"]["normal slides"]
    axis.set_title(f"ROC over slides: {len(result.slides) - normal} tumour, {normal} normal", fontsize=11)
    return png(figure, DPI)


def _curves_by_kind(result: Evaluation) -> list[RocCurve]:
    """The curve over all slides, then those of the classes that are defined and are not of all tumour slides."""
    kinds = (("AUC", None), ("AUC, macrometastases", "macro"), ("AUC, micrometastases", "micro"))
    curves = []
    for name, kind in kinds:
        auc_figure = result.figures[name]
        if auc_figure["value"] is None or (
            kind and auc_figure["tumour slides"] == result.figures["AUC"]["tumour slides"]
        ):
            continue
        keep = [not s.hits.tumour or kind is None or s.kind == kind for s in result.slides]
        text = f"{name} {interval_text(auc_figure)}, {auc_figure['tumour slides']} tumour slides"
        curves.append((text, *roc(result.tumour[keep], result.scores[keep])))
    return curves
