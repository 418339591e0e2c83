"""Claims on slides: several commands that are given the same OUT share the work, and take over what a dead one held.

A claim is a file that is created only if there is none. Its owner rewrites it every few seconds. Whether it is still
rewritten is judged by the clock of whoever wants the slide, so clocks may differ. A claim is taken over by creating the
next one of the same slide, so of many who want it one gets it. Two processes that work on one slide after all (the
first was only paused) write the same bytes.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any

from wsi.errors import StoreError
from wsi.files import alive
from wsi.results.folder import Folder

FOLDER = ".claims"
BEAT_S = 10.0
STALE_S = 60.0  # six beats: a process that is slow to write is not dead


class Claims:
    """The claims of one OUT, as one process sees them."""

    def __init__(self, out: Folder, *, beat_s: float = BEAT_S, stale_s: float = STALE_S) -> None:
        """Look into OUT; nothing is claimed yet.

        Args:
            out: of the run.
            beat_s: seconds from one sign of life to the next.
            stale_s: seconds without a sign of life after which a claim may be taken over.

        Raises:
            ForeignStoreError: the folder of the claims is a link.
        """
        self._folder = out.inside(FOLDER)
        self._folder.refuse_link()
        self._beat_s, self._stale_s = beat_s, stale_s
        self._seen: dict[str, tuple[bytes, float]] = {}  # a claim's content, and when it was first seen so

    def take(self, name: str, *, dead: bytes | None = None) -> Claim | None:
        """Claim a slide; None while another process works on it.

        Args:
            name: of the slide.
            dead: the content of a claim that somebody else has found to be dead, see `dead`.

        Raises:
            StoreError: OUT cannot be written.
        """
        number, file = self._latest(name)
        if file is not None and not (dead and self._read(file) == dead) and not self._is_stale(file):
            return None
        new_file, token = f"{name}.{number + 1}.json", uuid.uuid4().hex
        if not self._folder.create(new_file, _content(token, 0)):
            return None
        claim = Claim(self._folder, new_file, token, self._beat_s)
        # the first listing may have missed a claim that was created meanwhile
        if self._latest(name)[1] != new_file:
            claim.release()
            return None
        if file is not None:
            self._folder.delete(file)
        return claim

    def dead(self, name: str) -> bytes | None:
        """The content of a slide's claim whose owner shows no sign of life; None where there is no such claim."""
        _, file = self._latest(name)
        return self._read(file) if file is not None and self._is_stale(file) else None

    def is_free(self, name: str) -> bool:
        """Whether nobody claims a slide."""
        return self._latest(name)[1] is None

    def holder(self, name: str) -> str:
        """Who works on a slide, for a message; empty where nobody does."""
        _, file = self._latest(name)
        facts = _facts(self._read(file)) if file is not None else {}
        return f"process {facts['process']} on {facts['host']}" if facts else ""

    def _latest(self, name: str) -> tuple[int, str | None]:
        """Number and file of a slide's latest claim; (0, None) where there is none."""
        pattern = re.compile(re.escape(name) + r"\.(\d+)\.json")
        try:
            files = self._folder.files()
        except OSError as error:
            raise StoreError(
                f"{self._folder} cannot be read ({error.strerror or error}); mend that and run the same command again"
            ) from error
        matches = [match for file in files if (match := pattern.fullmatch(file))]
        latest = max(matches, key=lambda match: int(match[1]), default=None)
        return (0, None) if latest is None else (int(latest[1]), latest[0])

    def _is_stale(self, file: str) -> bool:
        content = self._read(file)
        facts = _facts(content)
        if facts.get("host") == host() and not alive(int(facts["process"])):
            return True
        before = self._seen.get(file)
        if before is None or before[0] != content:
            self._seen[file] = (content, time.monotonic())
            return False
        return time.monotonic() - before[1] >= self._stale_s

    def _read(self, file: str) -> bytes:
        try:
            return self._folder.read(file)
        except OSError:
            return b""  # it was released at this moment


class Claim:
    """A slide that this process works on, until the ``with`` block ends."""

    def __init__(self, folder: Folder, file: str, token: str, beat_s: float) -> None:
        self._folder, self._file, self._token, self._beat_s = folder, file, token, beat_s
        self._released = Event()
        self._thread = Thread(target=self._beat, name=f"claim {file}", daemon=True)

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._thread.join()
        self.release()

    def release(self) -> None:
        """Give the slide up; a claim that another process took over stays."""
        with suppress(StoreError):  # then it goes stale
            if self._is_own():
                self._folder.delete(self._file)

    def _is_own(self) -> bool:
        try:
            return _facts(self._folder.read(self._file)).get("token") == self._token
        except OSError:
            return False

    def _beat(self) -> None:
        beat = 0
        while not self._released.wait(self._beat_s):
            beat += 1
            with suppress(StoreError, OSError):  # the work itself will meet the same fault, and say so
                if self._is_own():  # else it was taken over
                    self._folder.write(self._file, _content(self._token, beat))


def host() -> str:
    """A name of this machine, and of the space in which its process numbers count: containers have their own."""
    space = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
        space = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return f"{socket.gethostname()} {space}".strip()


def _content(token: str, beat: int) -> str:
    written = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    facts = {"host": host(), "process": os.getpid(), "token": token, "beat": beat, "written": written}
    return json.dumps(facts) + "\n"


def _facts(content: bytes) -> dict[str, Any]:
    """What a claim says; nothing where it is being written, or damaged."""
    try:
        value = json.loads(content)
        is_claim = (
            isinstance(value["host"], str)
            and isinstance(value["process"], int)
            and 0 < value["process"] < 2**31
        )
        return dict(value) if is_claim else {}
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
