"""The review of one slide in the viewer: decisions come in, counts go out, a signature ends it."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from pydantic import Field as Setting
from pydantic import FiniteFloat

from pipelines.runs.review_log import Decision, Groups, ReviewLog, Ring, Signature, StaleReviewError
from wsi.config import Config
from wsi.errors import AnnotationError, StoreError
from wsi.results.folder import Folder

log = logging.getLogger(__name__)


class ReviewRequest(Config):
    """What the page asks for.

    Attributes:
        what: is to be done.
        by: the reviewer's name.
        subject: hash of the result that the page shows.
        after: hash of the last line of the log that the page knows; empty before the first.
        id: of the object that is decided; empty for one that is drawn now.
        group: its class from now on.
        ring: the drawn outline in level-0 pixels.
        comment: with a signature.
    """

    what: Literal["decide", "undo", "redo", "sign"]
    by: str = Setting(min_length=1, max_length=100, pattern=r"\S")
    subject: str = Setting(max_length=64)
    after: str = Setting(max_length=64)
    id: str = Setting(default="", max_length=100)
    group: str = Setting(default="", max_length=40)
    ring: tuple[tuple[FiniteFloat, FiniteFloat], ...] = Setting(default=(), max_length=2000)
    comment: str = Setting(default="", max_length=2000)


class Reading(Protocol):
    """What a machine found on a slide, of which a person decides: `ScoredReading`, `MachineReading`.

    Attributes:
        content: bytes of what is reviewed; a log belongs to them, and to the slide.
    """

    content: bytes

    @property
    def identity(self) -> str:
        """Hash of the slide's file: two slides on which nothing was found have the same bytes of results."""

    @property
    def groups(self) -> Groups:
        """The classes that a person gives."""

    def objects(self) -> list[str]:
        """Ids of the objects that a person looks through."""

    def decision(
        self, object_id: str, group: str, ring: Ring, decided: Mapping[str, Decision], /
    ) -> Decision:
        """A decision that can be used; AnnotationError where it cannot."""

    def figures(self, decisions: Mapping[str, Decision], /) -> dict[str, Any]:
        """Counts by the machine and after these decisions: ``machine``, ``result``, ``counts`` in words, ``note``."""

    def sign(self, decisions: Mapping[str, Decision], signature: Signature, /) -> None:
        """Write what comes of the review."""

    def list_signed(self) -> None:
        """Show what was signed in the tables of the run."""

    def signed(self) -> tuple[str, str]:
        """Hash of the log's line that the signed result names, and who signed; empty where nobody did."""


class Review:
    """The review of one slide; what several pages ask for is done one after another."""

    def __init__(self, folder: Folder, reading: Reading) -> None:
        """Begin, or go on from the log.

        Args:
            folder: of the slide's results, in which the log lies.
            reading: what is reviewed.
        """
        self._reading = reading
        self.subject = hashlib.sha256(reading.content + reading.identity.encode()).hexdigest()
        self._log = ReviewLog(folder, self.subject)
        self._lock = threading.Lock()
        self._figures: dict[str, dict[str, Any]] = {}  # the last ones, by the log's last hash

    def state(self) -> dict[str, Any]:
        """All decisions, and what they make of the counts."""
        with self._lock:
            self._log.read()
            return self._state()

    def do(self, request: ReviewRequest) -> dict[str, Any]:
        """Add a line to the log, and give the state after it.

        Raises:
            StaleReviewError: another page has added lines.
            WsiError: it cannot be counted, or not be written; nothing has changed then.
        """
        with self._lock:
            self._log.read()
            if request.subject != self.subject:
                raise StaleReviewError("this slide was read anew by the machine; it is shown as it is now")
            self._log.check_last(request.after)
            if request.what == "sign":
                self._sign(request)
                return self._state()
            decision: Decision | None = None
            if request.what == "decide":
                decided = self._log.decisions()
                decision = self._reading.decision(request.id, request.group, request.ring, decided)
            elif not (self._log.can_undo if request.what == "undo" else self._log.can_redo):
                raise AnnotationError(f"there is nothing to {request.what}")
            figures = self._reading.figures(self._log.after(request.what, decision))
            self._log.add(request.what, request.by.strip(), after=request.after, decision=decision)
            self._figures = {self._log.last: figures}
            return self._state()

    def _sign(self, request: ReviewRequest) -> None:
        """Write what comes of the review, then the line that says so; the first names the line before that one."""
        now, by, comment = datetime.now(UTC), request.by.strip(), request.comment.strip()

        def write(last: str) -> None:
            signed_at = now.isoformat(timespec="seconds")
            signature = Signature(by, now.date().isoformat(), comment, signed_at, last)
            self._reading.sign(self._log.decisions(), signature)

        self._log.add("sign", by, after=request.after, comment=comment, first=write)
        try:
            self._reading.list_signed()
        except StoreError as error:
            log.warning("%s; the tables of the run do not show this review yet", error)

    def _state(self) -> dict[str, Any]:
        decisions = self._log.decisions()
        if self._log.last not in self._figures:
            self._figures = {self._log.last: self._reading.figures(decisions)}
        objects, groups = self._reading.objects(), self._reading.groups
        return {
            "subject": self.subject,
            "last": self._log.last,
            "groups": asdict(groups),
            "decisions": {key: [d.group, d.ring] for key, d in decisions.items()},
            "can_undo": self._log.can_undo,
            "can_redo": self._log.can_redo,
            "seen": sum(key in decisions for key in objects),
            "total": len(objects),
            "drawn": sum(bool(d.ring) and d.group != groups.out for d in decisions.values()),
            "signed": self._signed(),
            **self._figures[self._log.last],
        }

    def _signed(self) -> dict[str, Any] | None:
        """Who signed, when, and whether something changed since; None where what was signed is not there any more."""
        line = self._log.signed
        if line is None or self._reading.signed() != (line["before"], line["by"]):
            return None
        return {"by": line["by"], "at": line["at"], "changed": line is not self._log.lines[-1]}
