"""The ``--out`` of a command over many slides: ``run.json``, tables, pages, and the commands that work in it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipelines.runs.claims import FOLDER as CLAIMS
from pipelines.runs.cohort import Failure, Result
from pipelines.runs.finished import FOLDER as FINISHED_LIST
from pipelines.runs.finished import MANY, FinishedList, FinishedSlide
from wsi.errors import ForeignStoreError, SlideError, StoreError
from wsi.files import UNREADABLE, AtWork, read_record
from wsi.results.folder import Folder
from wsi.slides.manifest import SlideRow
from wsi.stopwatch import during, seconds

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Result)
RUNNING, FINISHED = "running", "finished"
KEPT = "a result of an earlier run: the last run of this slide failed"


@dataclass
class RunFolder(Generic[R]):
    """A folder in which several commands with the same settings may work at once; its tables hold all slides.

    Attributes:
        out: the folder.
        record: the record of what makes the outputs, see `run_record`.
        earlier: called with a folder, the settings' fingerprint and names; returns results there, without those names.
        overwrite: whether results of other settings may be there.
        write: called with a folder, results, failures and the record; writes tables and pages, returns their names.
    """

    out: Folder
    record: dict[str, Any]
    earlier: Callable[[Folder, str, Collection[str]], list[R]]
    write: Callable[[Folder, Sequence[R], Sequence[Failure], dict[str, Any]], Sequence[str]]
    overwrite: bool = False
    _at_work: AtWork | None = None
    _finished: FinishedList | None = None
    _rows: dict[str, SlideRow] = field(default_factory=dict)
    _skipped: set[str] = field(default_factory=set)

    @property
    def _fingerprint(self) -> str:
        return str(self.record["settings_fingerprint"])

    def left_of(self, slides: list[tuple[SlideRow, str]]) -> list[tuple[SlideRow, str]]:
        """The slides that the crew must look at: of very many, those that are not listed as done; call this first."""
        if len(slides) < MANY and not self.out.exists(FINISHED_LIST):
            return slides
        self._finished = FinishedList(self.out)
        with self.out.alone():
            left = self._finished.left_of(slides, self._fingerprint)
        self._rows = {name: row for row, name in left}
        self._skipped = {name for _, name in slides} - self._rows.keys()
        log.info("%d of %d slides are listed as done", len(slides) - len(left), len(slides))
        return left

    def note(self, outcome: R | Failure) -> None:
        """Add a slide to the list of those that are done, if there is one.

        Raises:
            StoreError: the list cannot be written.
        """
        if self._finished is None or isinstance(outcome, Failure):
            return
        whole = not outcome.empty and not outcome.unreadable
        with suppress(SlideError, OSError):  # the slide is gone already
            line = FinishedSlide.of(self._rows[outcome.name], outcome.name, self._fingerprint, whole=whole)
            self._finished.add(line)

    @contextmanager
    def work(self, names: Collection[str]) -> Iterator[None]:
        """Note in ``run.json`` that a command works in the folder, on the slides of these names."""
        with self.out.alone():
            if not self.overwrite:
                refuse_other_run(
                    self.out, self._fingerprint
                )  # another command may have begun since it was asked
            self._at_work = self.out.at_work()
            if self._finished is None:
                results = [r.summary() for r in self.earlier(self.out, self._fingerprint, ())]
            else:  # reading them all would take long, and `sum_up` does it
                results = self._before().get("slides", [])
            failures = self._failed_before(names)
            earlier_state = self._state()
            others = self._at_work is not None and self._at_work.others
            keep_state = others and earlier_state != FINISHED
            self._write_run(earlier_state if keep_state else RUNNING, results, failures, self._files())
        try:
            yield
        finally:
            with self.out.alone():
                self._leave()
                self.out.inside(CLAIMS).tidy()

    def sum_up(self, state: str, results: Sequence[R], failures: Sequence[Failure]) -> None:
        """Write tables, pages and ``run.json``, with the slides of other commands that have the same settings."""
        with (
            during("tables and pages"),
            self.out.alone(),  # another command may add its slides to the same files at this moment
        ):
            done_names = {*(r.name for r in results), *(f.name for f in failures)}
            failed = sorted([*self._failed_before(done_names), *failures], key=lambda f: f.name)
            failed_names = {f.name for f in failed}
            earlier = self.earlier(self.out, self._fingerprint, [r.name for r in results])
            noted_results = [r.noted(KEPT) if r.name in failed_names else r for r in earlier]
            listed = sorted([*noted_results, *results], key=lambda r: r.name)
            state = self._lost(state, {r.name for r in listed})
            tables = self.write(self.out, listed, failed, self.record)
            present = self.out.holding("slide.json")
            listed_names = {r.name for r in listed}
            records = [f"{name}/slide.json" for name in present if name in listed_names]
            hashes = self.out.record(tables) | self.out.record(records, flush=False)
            self._write_run(self._state_after(state), (r.summary() for r in listed), failed, hashes)
            self._warn_of({*present} - listed_names - failed_names)
            if self._finished is not None:
                self._finished.write()
            self._leave()

    def _leave(self) -> None:
        if self._at_work is not None:
            self._at_work.leave()

    def _lost(self, state: str, listed: Collection[str]) -> str:
        """The run's state, another one where slides that were passed over as done have no result after all."""
        lost_names = self._skipped.difference(listed)
        if not lost_names or self._finished is None:
            return state
        self._finished.forget(lost_names)
        some = ", ".join(sorted(lost_names)[:5]) + (", ..." if len(lost_names) > 5 else "")
        sentence = f"{len(lost_names)} slides that were listed as done have no result"
        log.warning("%s: %s (%s); run the same command again", self.out, sentence, some)
        return f"stopped: {sentence}; run the same command again"

    def _warn_of(self, stale_names: Collection[str]) -> None:
        """Warn of results of another model or other settings that are in no table."""
        if stale_names:
            names_text = ", ".join(sorted(stale_names)[:5]) + (", ..." if len(stale_names) > 5 else "")
            log.warning(
                "%s: results of another model or other settings are in no table (%s); make them again, or remove them",
                self.out,
                names_text,
            )

    def _state_after(self, state: str) -> str:
        """The folder's state when this command ends; it shows when another command beside it was stopped."""
        if state != FINISHED:
            return state
        earlier_state = self._state()
        if earlier_state not in (RUNNING, FINISHED, ""):
            return earlier_state
        return RUNNING if self._at_work is not None and self._at_work.look() else FINISHED

    def _write_run(
        self,
        state: str,
        slides: Iterable[dict[str, Any]],
        failures: Sequence[Failure],
        files: dict[str, tuple[int, str]],
    ) -> None:
        sections = {
            "state": state,
            "seconds": {step: round(s, 3) for step, s in seconds().items()},
            "failed": [asdict(f) for f in failures],
        }
        head = json.dumps(self.record | sections, indent=1, allow_nan=False, ensure_ascii=False)
        # a line for each file and slide: indented, a hundred thousand of them would take gigabytes for a moment
        text = io.BytesIO()
        text.write(f'{head[:-2]},\n "files": {{'.encode())
        _add_lines(text, (f"{_line(name)}: {_line(what)}" for name, what in files.items()))
        text.write(b'\n },\n "slides": [')
        _add_lines(text, map(_line, slides))
        text.write(b"\n ]\n}\n")
        self.out.write("run.json", text.getvalue(), durable=True)

    def _before(self) -> dict[str, Any]:
        """The ``run.json`` of an earlier command with the same settings; empty where there is none."""
        try:
            value = self.out.read_json("run.json")
            return dict(value) if value["settings_fingerprint"] == self._fingerprint else {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}

    def _state(self) -> str:
        return str(self._before().get("state", ""))

    def _files(self) -> dict[str, tuple[int, str]]:
        """Tables and pages of the earlier command, which stay until this one ends."""
        try:
            return dict(read_record(self._before()))
        except (KeyError, TypeError, ValueError, AttributeError):
            return {}

    def _failed_before(self, but: Collection[str]) -> list[Failure]:
        """Failures that other commands noted, of slides not named in ``but`` and not removed since."""
        try:
            failures = [Failure(**failure) for failure in self._before().get("failed", [])]
            return [f for f in failures if f.name not in but and (f.gone or not _removed(f.path))]
        except (TypeError, AttributeError, OSError, ValueError):
            return []


def _add_lines(text: io.BytesIO, lines: Iterable[str]) -> None:
    for number, line in enumerate(lines):
        text.write(f"{',' if number else ''}\n  {line}".encode())


def _line(value: Any) -> str:
    """JSON on one line."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _removed(path: str) -> bool:
    """Whether a slide was removed from its folder; False where its folder is gone, too (an unmounted disk)."""
    return "://" not in path and Path(path).parent.is_dir() and not Path(path).exists()


def kind_of(facts: Any) -> str:
    """The command that made a slide's result, by what its ``slide.json`` holds."""
    if isinstance(facts, dict) and isinstance(facts.get("classes"), dict):
        return "wsi segment"
    if isinstance(facts, dict) and "width" in facts:
        return "wsi features"
    return "wsi score" if isinstance(facts, dict) and "lesion_settings" in facts else "wsi renal report"


def whole_facts(out: Folder, made_of: str, array: str) -> dict[str, Any] | None:
    """What a slide's ``slide.json`` holds, if it has this fingerprint and all its files are as they were written.

    Files that changed are removed, and so is ``slide.json`` then: both are made again.

    Args:
        out: the slide's folder.
        made_of: the fingerprint.
        array: name of its zarr array.

    Raises:
        StoreError: a file is there, and reading it failed.
    """
    try:
        facts = out.read_json("slide.json")
        if facts["fingerprint"] != made_of:
            return None
        changes = out.changes(read_record(facts))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    for name, change in changes.items():
        if change.startswith(UNREADABLE):  # the file may be good: a disk or the network failed
            raise StoreError(f"{out.at(name)} {change}; mend that and run the same command again")
        log.warning("%s: %s; it is made again", out.at(name), change)
        out.delete(name)
    if f"{array}/zarr.json" in changes:
        out.inside(array).delete("")  # without it the chunks cannot be read
    if changes:
        out.delete("slide.json")
        return None
    return dict(facts)


def refuse_other_kind(folder: Folder, command: str) -> None:
    """Refuse to replace the result of another command: parts of both would lie beside each other.

    Raises:
        ForeignStoreError: the slide's folder holds one.
    """
    try:
        made_by = kind_of(folder.read_json("slide.json"))
    except (OSError, ValueError, RecursionError):
        return  # there is none, or it is broken: then nothing is lost
    if made_by != command:
        raise ForeignStoreError(f"{folder} holds a result of {made_by}; choose another --out")


def refuse_other_run(out: Folder, settings_fingerprint: str) -> None:
    """Refuse to mix results of two models, or settings in one folder.

    Raises:
        StoreError: ``run.json`` there is of another run, or broken.
    """
    try:
        if not out.exists("run.json"):
            return
        earlier = out.read_json("run.json")
        if not isinstance(earlier, dict):
            raise ValueError("not a record")
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(
            f"{out.at('run.json')} is broken; choose another --out, or pass --overwrite"
        ) from error
    if earlier.get("settings_fingerprint") != settings_fingerprint:
        names = [str(m.get("name")) for m in earlier.get("models", []) if isinstance(m, dict)]
        origin = f"{', '.join(names)}, code {earlier.get('code')}"
        raise StoreError(
            f"{out} holds results of another model or other settings ({origin}); "
            f"choose another --out, or pass --overwrite to replace them"
        )


def note_tables(out: Folder, names: Sequence[str]) -> None:
    """Update the size and hash of tables and pages in ``run.json``, after a review wrote them.

    Raises:
        StoreError: ``run.json`` is broken, or cannot be written.
    """
    try:
        value = out.read_json("run.json")
        value["files"] = dict(value.get("files", {})) | out.record(names)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{out.at('run.json')} is broken ({error!r}); run the command that made it again"
        ) from error
    out.write_json("run.json", value, durable=True)
