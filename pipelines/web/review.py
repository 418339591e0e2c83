"""The review of one report in the viewer: decisions come in, counts and grade go out, a signature ends it."""

from __future__ import annotations

import hashlib
import threading
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field as Setting
from pydantic import FiniteFloat

from pipelines.renal.read.decisions import MachineReading
from pipelines.renal.read.report import RenalReport
from pipelines.renal.read.review_run import Signature
from pipelines.renal.read.run import REVIEWED
from pipelines.renal.read.summary import refresh_summary
from pipelines.runs.review_log import Decision, ReviewLog
from wsi.config import Config
from wsi.errors import AnnotationError
from wsi.results.folder import Folder
from wsi.vocabulary import NOT_COUNTED


class ReviewRequest(Config):
    """What the page asks for.

    Attributes:
        what: is to be done.
        by: the reviewer's name.
        after: hash of the last line of the log that the page knows; empty before the first.
        id: of the object that is decided; empty for one that is drawn now.
        group: its class from now on.
        ring: the drawn outline in level-0 pixels.
        comment: with a signature.
    """

    what: Literal["decide", "undo", "redo", "sign"]
    by: str = Setting(min_length=1, max_length=100, pattern=r"\S")
    after: str = Setting(max_length=64)
    id: str = Setting(default="", max_length=100)
    group: str = Setting(default="", max_length=40)
    ring: tuple[tuple[FiniteFloat, FiniteFloat], ...] = Setting(default=(), max_length=2000)
    comment: str = Setting(default="", max_length=2000)


class Review:
    """The review of one slide's report; what several pages ask for is done one after another."""

    def __init__(self, folder: Folder) -> None:
        """Read the report and its log.

        Raises:
            WsiError: one of them is broken.
        """
        self._reading = MachineReading.of(folder)
        self._log = ReviewLog(folder, hashlib.sha256(self._reading.content).hexdigest())
        self._lock = threading.Lock()
        self._counted: dict[str, RenalReport] = {}  # the last one, by the log's last hash

    def state(self) -> dict[str, Any]:
        """All decisions, and what they make of the counts and the grade."""
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
            if request.what == "sign":
                self._sign(request)
                return self._state()
            decisions = self._log.decisions()
            decision: Decision | None = None
            if request.what == "decide":
                decision = self._reading.decision(request.id, request.group, request.ring, decisions)
            elif not (self._log.can_undo if request.what == "undo" else self._log.can_redo):
                raise AnnotationError(f"there is nothing to {request.what}")
            counted = self._reading.counted(self._log.after(request.what, decision))
            self._log.add(request.what, request.by.strip(), after=request.after, decision=decision)
            self._counted = {self._log.last: counted}
            return self._state()

    def _sign(self, request: ReviewRequest) -> None:
        """Write the reviewed report, then the line that says so; the report names the line before that one."""
        self._log.check_last(request.after)
        now = datetime.now(UTC)
        signature = Signature(
            by=request.by.strip(),
            date=now.date().isoformat(),
            comment=request.comment.strip(),
            signed_at=now.isoformat(timespec="seconds"),
            log=self._log.last,
        )
        report = self._reading.sign(self._log.decisions(), signature)
        assert report.corrections is not None
        digest = report.corrections.sha256
        self._log.add(
            "sign", signature.by, after=request.after, comment=signature.comment, corrected_sha256=digest
        )
        refresh_summary(self._reading.folder.parent)

    def _state(self) -> dict[str, Any]:
        decisions = self._log.decisions()
        if self._log.last not in self._counted:
            self._counted = {self._log.last: self._reading.counted(decisions)}
        counted = self._counted[self._log.last]
        machine_ids = self._reading.capillaries()
        drawn_ids = [key for key, d in decisions.items() if d.ring and d.group != NOT_COUNTED]
        signed = self._log.signed
        return {
            "last": self._log.last,
            "decisions": {key: [d.group, d.ring] for key, d in decisions.items()},
            "can_undo": self._log.can_undo,
            "can_redo": self._log.can_redo,
            "seen": sum(key in decisions for key in machine_ids),
            "total": len(machine_ids),
            "drawn": len(drawn_ids),
            "machine": self._reading.report.result.model_dump(mode="json"),
            "result": counted.result.model_dump(mode="json"),
            "warnings": list(counted.warnings),
            "outside_fields": counted.corrections.outside_fields if counted.corrections else 0,
            "signed": {"by": signed["by"], "at": signed["at"]} if signed else None,
            "has_review": self._reading.folder.exists(f"{REVIEWED}/report.json"),
        }
