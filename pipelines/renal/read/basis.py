"""The basis of a machine's grade, as sentences in the head of a report, in tables and on the console."""

from __future__ import annotations

from pipelines.renal.read.grading import percent_text
from pipelines.renal.read.report import RenalReport, grading_of
from wsi.vocabulary import NEGATIVE, POSITIVE

HIGHEST_TOLD = 0.98  # above this threshold nearly nothing is left, so a change of the grade there says little


def basis_sentences(report: RenalReport) -> tuple[str, ...]:
    """Sentences about the capillaries that the machine's grade rests on, and the thresholds at which it changes."""
    r, b = report.machine or report.result, report.basis
    if r.grade is None:
        return ()
    cfg = grading_of(report)
    noun = "capillary" if r.positive == 1 else "capillaries"
    first_sentence = (
        f"{r.grade} rests on {r.positive} positive {noun}"
        if r.positive
        else "No positive capillary is counted"
    )
    if b.flagged:
        first_sentence += f", {_flagged_text(r.positive, b.flagged)} ({counts_text(b.flagged_by)}); without "
        first_sentence += "it: " if b.flagged == 1 else "those: "
        percent = b.percent_without_flagged
        if b.grade_without_flagged is None or percent is None:
            first_sentence += "not assessable"
        else:
            first_sentence += f"{b.grade_without_flagged}, {percent_text(percent, cfg)} %"
    elif r.positive:
        first_sentence += ", which is not flagged" if r.positive == 1 else ", none of them flagged"
    sentences = [f"{first_sentence}."]
    if b.left_out_by:
        number = sum(b.left_out_by.values())
        finding = "1 more was" if number == 1 else f"{number} more were"
        sentences.append(f"{finding} found and left out by the checks: {counts_text(b.left_out_by)}.")
    limits = report.models["capillaries"].threshold
    current_limits = {"positive": limits[POSITIVE], "negative": limits[NEGATIVE]}
    change_sentences = [
        f"It would be {c.grade} if {c.counts} ones counted from a score of {c.threshold:.2f} on, instead of "
        f"{current_limits[c.counts]:.2f}."
        for c in b.changes
        if c.threshold <= HIGHEST_TOLD
    ]
    sentences += change_sentences or [f"No other threshold up to {HIGHEST_TOLD} would change it."]
    return tuple(sentences)


def _flagged_text(positive: int, flagged: int) -> str:
    if positive == 1:
        return "which is flagged"
    return "all of them flagged" if flagged == positive else f"{flagged} of them flagged"


def counts_text(counts: dict[str, int]) -> str:
    """Counts by name as text: ``partial ring 3, no lumen 2``."""
    return ", ".join(f"{name} {number}" for name, number in counts.items())
