"""What a machine's grade rests on: the sentences in the head of a report, in tables and on the console."""

from __future__ import annotations

from pipelines.renal.read.grading import percent_text
from pipelines.renal.read.report import RenalReport, grading_of

HIGHEST_TOLD = 0.98  # a threshold above leaves nearly nothing: that the grade changes there tells nothing


def basis_sentences(report: RenalReport) -> tuple[str, ...]:
    """What the reader of the machine's grade must know: what it rests on, and at which threshold it changes."""
    r, b = report.machine or report.result, report.basis
    if r.grade is None:
        return ()
    cfg = grading_of(report)
    verb = "capillary" if r.positive == 1 else "capillaries"
    rests = (
        f"{r.grade} rests on {r.positive} positive {verb}"
        if r.positive
        else "No positive capillary is counted"
    )
    if b.flagged:
        rests += f", {_flagged_text(r.positive, b.flagged)} ({counts_text(b.flagged_by)}); without "
        rests += "it: " if b.flagged == 1 else "those: "
        percent = b.percent_without_flagged
        if b.grade_without_flagged is None or percent is None:
            rests += "not assessable"
        else:
            rests += f"{b.grade_without_flagged}, {percent_text(percent, cfg)} %"
    elif r.positive:
        rests += ", which is not flagged" if r.positive == 1 else ", none of them flagged"
    sentences = [f"{rests}."]
    if b.left_out_by:
        number = sum(b.left_out_by.values())
        what = "1 more was" if number == 1 else f"{number} more were"
        sentences.append(f"{what} found and left out by the checks: {counts_text(b.left_out_by)}.")
    limits = report.models["capillaries"].threshold
    now = {"positive": limits["C4d positive"], "negative": limits["C4d negative"]}
    told = [
        f"It would be {c.grade} if {c.counts} ones counted from a score of {c.threshold:.2f} on, instead of "
        f"{now[c.counts]:.2f}."
        for c in b.changes
        if c.threshold <= HIGHEST_TOLD
    ]
    sentences += told or [f"No other threshold up to {HIGHEST_TOLD} would change it."]
    return tuple(sentences)


def _flagged_text(positive: int, flagged: int) -> str:
    if positive == 1:
        return "which is flagged"
    return "all of them flagged" if flagged == positive else f"{flagged} of them flagged"


def counts_text(counts: dict[str, int]) -> str:
    """``partial ring 3, no lumen 2``."""
    return ", ".join(f"{name} {number}" for name, number in counts.items())
