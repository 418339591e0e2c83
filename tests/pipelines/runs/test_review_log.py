"""The log of a review: only ever longer, whole after every fault, and refused where it was changed by hand."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import pytest

from pipelines.runs.review_log import LOG, Decision, ReviewLog, StaleReviewError, check_log
from wsi.errors import StoreError
from wsi.results.folder import LocalFolder

A, B = (
    Decision("a", "C4d negative", "C4d positive"),
    Decision("b", "", "C4d negative", ((1, 2), (3, 2), (3, 5))),
)


def opened(path: Path, subject: str = "s") -> ReviewLog:
    review = ReviewLog(LocalFolder(path), subject)
    review.read()
    return review


def decide(review: ReviewLog, *decisions: Decision) -> None:
    for decision in decisions:
        review.add("decide", "A. Smith", after=review.last, decision=decision)


def test_each_line_holds_the_hash_of_the_line_before(tmp_path: Path) -> None:
    decide(opened(tmp_path), A, B)
    lines = (tmp_path / LOG).read_bytes().splitlines()
    values = [json.loads(line) for line in lines]
    assert [v["before"] for v in values] == ["", *(hashlib.sha256(line).hexdigest() for line in lines[:-1])]
    assert [(v["n"], v["what"]) for v in values] == [(1, "begin"), (2, "decide"), (3, "decide")]
    assert {v["by"] for v in values} == {"A. Smith"}
    assert values[1]["machine"] == "C4d negative"
    assert opened(tmp_path).last == hashlib.sha256(lines[-1]).hexdigest()


def test_undo_and_redo_go_back_to_the_beginning_and_forward_again(tmp_path: Path) -> None:
    review = opened(tmp_path)
    again = Decision("a", "C4d negative", "not a capillary")
    decide(review, A, B, again)
    states = [dict(review.decisions())]
    for _ in range(3):
        review.add("undo", "x", after=review.last)
        states.append(dict(review.decisions()))
    assert states == [{"a": again, "b": B}, {"a": A, "b": B}, {"a": A}, {}]
    assert not review.can_undo
    for state in states[2::-1]:
        review.add("redo", "x", after=review.last)
        assert review.decisions() == state
    review.add("undo", "x", after=review.last)
    decide(review, Decision("c", "", "C4d positive", ((0, 0), (1, 0), (1, 1))))
    assert not review.can_redo  # a new decision ends what could be done again
    assert opened(tmp_path).decisions() == review.decisions()


@pytest.mark.parametrize("cut", [1, 30, 60])
def test_a_last_line_that_was_cut_short_is_left_out_and_replaced(tmp_path: Path, cut: int) -> None:
    decide(opened(tmp_path), A, B)
    path = tmp_path / LOG
    path.write_bytes(path.read_bytes()[:-cut])
    review = opened(tmp_path)
    assert review.decisions() == {"a": A}
    decide(review, B)
    assert opened(tmp_path).decisions() == {"a": A, "b": B}
    assert check_log(LocalFolder(tmp_path), "", "") == []


def test_a_line_that_was_changed_is_refused_by_its_number(tmp_path: Path) -> None:
    decide(opened(tmp_path), A, B)
    path = tmp_path / LOG
    path.write_text(path.read_text().replace("C4d positive", "C4d negative"))
    review = ReviewLog(LocalFolder(tmp_path), "s")
    for _ in range(2):  # it is not taken the second time either
        with pytest.raises(StoreError, match=r"review\.jsonl, line 3: it was changed"):
            review.read()
    assert (review.lines, review.last) == ([], "")
    assert "line 3" in check_log(LocalFolder(tmp_path), "", "")[0]
    before = path.read_bytes()
    with pytest.raises(StoreError):
        ReviewLog(LocalFolder(tmp_path), "s").add("decide", "x", after="", decision=A)
    assert path.read_bytes() == before


def test_a_last_line_that_was_changed_is_found_by_the_signed_report(tmp_path: Path) -> None:
    review = opened(tmp_path)
    decide(review, A, B)
    signed = review.last
    review.add("sign", "A. Smith", after=signed, comment="two folds")
    assert check_log(LocalFolder(tmp_path), signed, "A. Smith") == []
    assert "with the signature of B" in check_log(LocalFolder(tmp_path), signed, "B")[0]
    path = tmp_path / LOG
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n": 5')  # cut short
    assert check_log(LocalFolder(tmp_path), signed, "A. Smith") == []
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-2]))
    assert "does not hold the line" in check_log(LocalFolder(tmp_path), signed, "A. Smith")[0]
    path.unlink()
    assert "is missing" in check_log(LocalFolder(tmp_path), signed, "A. Smith")[0]
    assert check_log(LocalFolder(tmp_path), "", "") == []


@pytest.mark.parametrize(
    "text", ["[]\n", "{}\n", '{"before": "", "what": 3}\n', "\xff\n", '{"before": "", "what": "decide"}\n']
)
def test_what_is_no_log_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / LOG).write_text(text)
    with pytest.raises(StoreError, match="line 1"):
        opened(tmp_path)


def test_the_second_of_two_pages_is_told(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    decide(first, A)
    with pytest.raises(StaleReviewError, match="another page"):
        second.add("decide", "B", after="", decision=B)
    assert second.decisions() == {"a": A}
    second.add("decide", "B", after=second.last, decision=B)
    first.read()
    assert first.decisions() == {"a": A, "b": B}


def test_the_log_of_an_earlier_result_is_kept_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    decide(opened(tmp_path, "old"), A)
    before = (tmp_path / LOG).read_bytes()
    review = opened(tmp_path, "new")
    assert (review.decisions(), review.last) == ({}, "")
    assert (tmp_path / LOG).read_bytes() == before  # to look changes nothing
    with caplog.at_level(logging.WARNING):
        decide(review, B)
    assert "kept as review-before-1.jsonl" in caplog.text
    assert (tmp_path / "review-before-1.jsonl").read_bytes() == before
    assert opened(tmp_path, "new").decisions() == {"b": B}
    decide(opened(tmp_path, "other"), A)
    assert sorted(p.name for p in tmp_path.glob("review-before*")) == [
        "review-before-1.jsonl",
        "review-before-2.jsonl",
    ]


def test_what_comes_first_fails_and_no_line_is_added(tmp_path: Path) -> None:
    review = opened(tmp_path)
    decide(review, A)
    seen: list[str] = []

    def fail(last: str) -> None:
        seen.append(last)
        raise StoreError("no space left")

    with pytest.raises(StoreError, match="no space"):
        review.add("sign", "x", after=review.last, first=fail)
    assert seen == [review.last]
    with pytest.raises(StaleReviewError):
        review.add("sign", "x", after="", first=fail)
    assert len(seen) == 1
    assert len(opened(tmp_path).lines) == 2


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the line is on the disk when it is full: the next line replaces it."""
    review = opened(tmp_path)
    decide(review, A)
    real = LocalFolder.append

    def full(self: LocalFolder, name: str, content: bytes, *, after: int) -> None:
        real(self, name, content[: len(content) // 2], after=after)
        raise StoreError("no space left")

    monkeypatch.setattr(LocalFolder, "append", full)
    with pytest.raises(StoreError, match="no space"):
        decide(review, B)
    monkeypatch.undo()
    assert review.decisions() == {"a": A}
    decide(review, B)
    assert opened(tmp_path).decisions() == {"a": A, "b": B}
