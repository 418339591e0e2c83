"""The log of a person's decisions about one slide: lines are only added, and each holds the hash of the line before."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from shapely import Polygon, box

from wsi.errors import AnnotationError, StoreError
from wsi.results.folder import Folder

log = logging.getLogger(__name__)

LOG = "review.jsonl"
SMALLEST_UM = 2.0  # side of what is drawn; less is a click that slipped: a capillary is 10 to 15 um wide
What = Literal["begin", "decide", "undo", "redo", "sign"]
Ring = tuple[tuple[float, float], ...]


class StaleReviewError(StoreError):
    """The log went on since the caller read it: another page, or another person, works on this slide."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person said of one object.

    Attributes:
        id: of the object.
        machine: the class that the machine gave it; empty where the machine has no such object.
        group: the class that the person gives it.
        ring: its outline in level-0 pixels, where the person drew it; else empty.
    """

    id: str
    machine: str
    group: str
    ring: Ring = ()


@dataclass(frozen=True, slots=True)
class Signature:
    """Who reviewed; empty values were not stated.

    Attributes:
        by: name of the reviewer.
        date: YYYY-MM-DD.
        comment: on the slide.
        signed_at: date and time, where it was signed in the viewer.
        log: hash of the last line of the viewer's review log.
    """

    by: str = ""
    date: str = ""
    comment: str = ""
    signed_at: str = ""
    log: str = ""


@dataclass(frozen=True, slots=True)
class Groups:
    """The classes that a person gives: what is looked for, what is of another class, what is nothing; "" has no key."""

    yes: str
    no: str
    out: str


def shape_of(ring: Ring, size: tuple[int, int], mpp: float) -> Polygon:
    """The outline that a person drew, in level-0 pixels.

    Args:
        ring: its corners; the last is joined to the first.
        size: width and height of the slide.
        mpp: micrometres per pixel.

    Raises:
        AnnotationError: it encloses next to nothing, crosses itself, or leaves the slide.
    """
    shape = Polygon(ring) if len(ring) > 2 else Polygon()
    if not shape.is_valid or shape.area == 0:
        raise AnnotationError("the outline crosses itself, or has no area; draw it again")
    x0, y0, x1, y1 = shape.bounds
    if min(x1 - x0, y1 - y0) * mpp < SMALLEST_UM:
        raise AnnotationError(f"the outline is less than {SMALLEST_UM:g} um wide or high; draw it again")
    if not shape.within(box(0, 0, *size)):
        raise AnnotationError("the outline leaves the slide; draw it again")
    return shape


@dataclass
class ReviewLog:
    """The log in a slide's folder; it belongs to one result, and is set aside when that is made anew.

    Attributes:
        folder: of the slide's result.
        subject: hash of what is reviewed.
        lines: of the file, parsed; none of a log of another result.
        last: hash of the last line; empty before the first.
    """

    folder: Folder
    subject: str
    lines: list[dict[str, Any]] = field(default_factory=list)
    last: str = ""
    _done: list[Decision] = field(default_factory=list)
    _undone: list[Decision] = field(default_factory=list)
    _content: bytes | None = None  # of the file when it was read last
    _length: int = 0  # of its whole lines

    def read(self) -> None:
        """Read the file if it changed; a last line that was cut short by a power cut is left out.

        Raises:
            StoreError: a line was changed after it was written.
        """
        content = self.folder.read(LOG) if self.folder.exists(LOG) else b""
        if content == self._content:
            return
        self._forget()
        pairs = list(_parsed_lines(content, self.folder.at(LOG)))
        self._content = content
        if not self._is_foreign(pairs):
            self._length = content.rfind(b"\n") + 1
            for value, digest in pairs:
                self._take(value, digest)

    def decisions(self) -> Mapping[str, Decision]:
        """The last decision on each object that was not undone, by the object's id."""
        return {decision.id: decision for decision in self._done}

    @property
    def can_undo(self) -> bool:
        """Whether there is a decision that can be undone."""
        return bool(self._done)

    @property
    def can_redo(self) -> bool:
        """Whether a decision was undone, and none made since."""
        return bool(self._undone)

    @property
    def signed(self) -> dict[str, Any] | None:
        """The line of the last signature; None where nobody signed."""
        return next((line for line in reversed(self.lines) if line["what"] == "sign"), None)

    def after(self, what: What, decision: Decision | None = None) -> Mapping[str, Decision]:
        """The decisions as they would be after one more line."""
        done, _ = _changed(self._done, self._undone, what, decision)
        return {d.id: d for d in done}

    def check_last(self, after: str) -> None:
        """Refuse a caller who does not know the last line.

        Raises:
            StaleReviewError: there are more lines.
        """
        if after != self.last:
            raise StaleReviewError(
                "this slide was changed in another page, or by another person; it is shown as it is now"
            )

    def add(
        self,
        what: What,
        by: str,
        *,
        after: str,
        decision: Decision | None = None,
        comment: str = "",
        first: Callable[[str], None] = lambda last: None,
    ) -> None:
        """Add a line, and return when no power cut can undo it.

        Args:
            what: the line says.
            by: whom.
            after: hash of the last line that the caller knows.
            decision: with ``decide``.
            comment: with ``sign``.
            first: called with the hash of the line before, while nobody else can write; if it raises, no line is added.

        Raises:
            StaleReviewError: there are more lines; nothing was written.
            StoreError: the file is damaged, or cannot be written.
        """
        with self.folder.alone():
            self.read()
            self.check_last(after)
            if not self.lines:
                self._begin(by)
            first(self.last)
            facts = {"comment": comment} if what == "sign" else {}
            self._write({"what": what} | (facts if decision is None else _facts(decision)), by)

    def _begin(self, by: str) -> None:
        """Write the first line; keep the log of an earlier result under another name."""
        if self._content:
            number = 1
            while self.folder.exists(aside := f"review-before-{number}.jsonl"):
                number += 1
            self.folder.move(LOG, aside)
            log.warning(
                "%s: it is of an earlier result of this slide, and is kept as %s", self.folder.at(LOG), aside
            )
            self._forget()
        self._write({"what": "begin", "subject": self.subject}, by)

    def _write(self, facts: dict[str, Any], by: str) -> None:
        head = {"n": len(self.lines) + 1, "at": datetime.now(UTC).isoformat(timespec="seconds"), "by": by}
        value = head | facts | {"before": self.last}
        line = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        kept = (self._content or b"")[: self._length]
        self.folder.append(LOG, line + b"\n", after=self._length)
        self._content = kept + line + b"\n"
        self._length = len(self._content)
        self._take(value, hashlib.sha256(line).hexdigest())

    def _take(self, value: dict[str, Any], digest: str) -> None:
        self.lines.append(value)
        self.last = digest
        decision = _decision(value) if value["what"] == "decide" else None
        self._done, self._undone = _changed(self._done, self._undone, value["what"], decision)

    def _forget(self) -> None:
        self.lines, self.last, self._done, self._undone = [], "", [], []
        self._content, self._length = None, 0

    def _is_foreign(self, pairs: list[tuple[dict[str, Any], str]]) -> bool:
        return bool(pairs) and pairs[0][0].get("subject") != self.subject


def _changed(
    done: list[Decision], undone: list[Decision], what: What, decision: Decision | None
) -> tuple[list[Decision], list[Decision]]:
    """Decisions that hold, and those that can be done again, after one more line."""
    if what == "decide" and decision is not None:
        return [*done, decision], []
    if what == "undo" and done:
        return done[:-1], [*undone, done[-1]]
    if what == "redo" and undone:
        return [*done, undone[-1]], undone[:-1]
    return done, undone


def _facts(decision: Decision) -> dict[str, Any]:
    facts: dict[str, Any] = {"id": decision.id, "machine": decision.machine, "group": decision.group}
    return facts | ({"ring": decision.ring} if decision.ring else {})


def _decision(value: dict[str, Any]) -> Decision:
    ring = tuple((float(x), float(y)) for x, y in value.get("ring", ()))
    return Decision(str(value["id"]), str(value["machine"]), str(value["group"]), ring)


def _parsed_lines(content: bytes, where: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The value and the hash of every whole line.

    Raises:
        StoreError: a line does not follow from the one before it.
    """
    before = ""
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        value = _parsed(line, before, f"{where}, line {number}")
        before = hashlib.sha256(line).hexdigest()
        yield value, before


def _parsed(line: bytes, before: str, where: str) -> dict[str, Any]:
    """The value of a line that follows from the one before it.

    Raises:
        StoreError: it does not.
    """
    try:
        value = dict(json.loads(line))
        if value["before"] != before or not isinstance(value["what"], str):
            raise ValueError("another line was before it")
        if value["what"] == "decide":
            _decision(value)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{where}: it was changed after it was written ({error}); keep the file elsewhere to begin a new review"
        ) from error
    return value


def check_log(folder: Folder, signed: str, by: str) -> list[str]:
    """A sentence if the review log in a slide's folder is not as it was written; none where nobody reviewed.

    Args:
        folder: of a result.
        signed: hash of the line that a signed result names; empty where there is none.
        by: who signed that result.
    """
    where = folder.at(LOG)
    try:
        pairs = list(_parsed_lines(folder.read(LOG), where))
    except FileNotFoundError:
        return [f"{where} is missing, and the signed result names a line of it"] if signed else []
    except (StoreError, OSError) as error:
        return [str(error)]
    if not signed:
        return []
    after = [value for value, _ in pairs if value["before"] == signed]
    if not after or after[0]["what"] != "sign" or after[0]["by"] != by:
        return [
            f"{where}: it does not hold the line that the signed result names, with the signature of {by} after it"
        ]
    return []
