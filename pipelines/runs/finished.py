"""The list of finished slides of a very large run, from which a command knows what is left without opening each slide.

A run over fewer than `MANY` slides keeps no list: there, each finished slide is checked file by file.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wsi.errors import SlideError
from wsi.results.folder import Folder
from wsi.slides.manifest import SlideRow

log = logging.getLogger(__name__)

MANY = 10_000  # slides; below, opening each takes seconds
FOLDER = ".finished"
PART_LINES = 1000
MOST_PARTS = 100  # files, from which on they are merged
MERGED_LINES = 100_000  # in each file then
PART_S = 30.0  # a command that is killed loses what it noted since: those slides are looked at one by one


@dataclass(frozen=True, slots=True)
class FinishedSlide:
    """A line of the list.

    Attributes:
        name: the slide's name in outputs.
        settings: fingerprint of the run's settings.
        slide: path or URL of the slide, without a query.
        state: sizes and times of change of the slide's files, but of a URL, which is not asked; and the spacing given.
        whole: whether something was found, and every cell could be read.
    """

    name: str
    settings: str
    slide: str
    state: str
    whole: bool

    @classmethod
    def of(cls, row: SlideRow, name: str, settings: str, *, whole: bool = True) -> FinishedSlide:
        """The line of a slide as it is now.

        Raises:
            SlideError: its file is not there.
        """
        files = None if row.source.is_url else row.source.state()
        mask = None if row.mask is None else (str(row.mask), row.mask.stat().st_mtime_ns)
        state = json.dumps([files, mask, row.source.mpp, row.source.stream])
        return cls(name, settings, row.source.place, state, whole)


class FinishedList:
    """The list in a run's folder: files of lines, each written by one command."""

    def __init__(self, out: Folder) -> None:
        """Keep in mind where it lies.

        Raises:
            ForeignStoreError: the folder of the list is a link.
        """
        self._out, self._folder = out, out.inside(FOLDER)
        self._folder.refuse_link()
        self._token, self._parts = uuid.uuid4().hex, 0
        self._lines: list[FinishedSlide] = []
        self._written_at = time.monotonic()

    def read(self) -> dict[str, list[FinishedSlide]]:
        """The lines of each file. A file that is damaged is passed over with a warning."""
        parts = {}
        for file, content in self._folder.contents(self._folder.files()):
            try:
                if not isinstance(content, bytes):
                    raise content
                parts[file] = [_line(json.loads(text)) for text in content.splitlines()]
            except (OSError, ValueError, TypeError, RecursionError) as error:
                where = self._folder.at(file)
                log.warning("%s is damaged (%s); its slides are looked at one by one", where, error)
        return parts

    def add(self, slide: FinishedSlide) -> None:
        """Note a finished slide; it is written soon.

        Raises:
            StoreError: the folder cannot be written.
        """
        self._lines.append(slide)
        if len(self._lines) >= PART_LINES or time.monotonic() - self._written_at >= PART_S:
            self.write()

    def write(self) -> None:
        """Write what was noted; it raises as `add` does."""
        if self._lines:
            self._write(self._lines)
            self._lines = []
        self._written_at = time.monotonic()

    def left_of(self, slides: Sequence[tuple[SlideRow, str]], settings: str) -> list[tuple[SlideRow, str]]:
        """Slides that are not listed as finished with these settings, or that have changed since.

        A slide that has no ``slide.json`` is left, too. What the list says of slides that are left is removed, whatever
        the settings. Call this while no other command does (`Folder.alone`).
        """
        parts = self.read()
        listed = {line for lines in parts.values() for line in lines}
        names = {line.name for line in listed if line.settings == settings}
        present = names.intersection(self._out.holding("slide.json")) if names else set()
        now = [_line_of(row, name, settings) if name in present else None for row, name in slides]
        left = [slide for slide, line in zip(slides, now, strict=True) if line not in listed]
        self.forget({name for _, name in left}, parts)
        return left

    def forget(self, names: Collection[str], parts: dict[str, list[FinishedSlide]] | None = None) -> None:
        """Remove all lines of these slides; many small files become few.

        Args:
            names: of the slides.
            parts: what `read` gave.
        """
        parts = self.read() if parts is None else parts
        lines = {line for part in parts.values() for line in part}
        kept = [line for line in lines if line.name not in names]
        if len(kept) == len(lines) and len(parts) <= MOST_PARTS:
            return
        kept.sort(key=lambda line: (line.name, line.settings, line.state))
        for start in range(0, len(kept), MERGED_LINES):
            self._write(kept[start : start + MERGED_LINES])
        for file in parts:
            self._folder.delete(file)

    def _write(self, lines: Sequence[FinishedSlide]) -> None:
        text = "".join(json.dumps(asdict(line)) + "\n" for line in lines)
        self._folder.write(f"{self._token}-{self._parts:06d}.jsonl", text)
        self._parts += 1


def _line(value: Any) -> FinishedSlide:
    """A line of the list.

    Raises:
        ValueError: a part of it is of another type.
        TypeError: it has other parts.
    """
    line = FinishedSlide(**value)
    texts = (line.name, line.settings, line.slide, line.state)
    if not all(isinstance(text, str) for text in texts) or not isinstance(line.whole, bool):
        raise ValueError("a line is of another form")
    return line


def _line_of(row: SlideRow, name: str, settings: str) -> FinishedSlide | None:
    try:
        return FinishedSlide.of(row, name, settings)
    except (SlideError, OSError):  # opening it will say what is wrong
        return None
