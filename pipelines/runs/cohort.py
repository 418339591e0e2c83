"""A cohort of slides: its files, its names, and one loop that a broken slide does not end."""

from __future__ import annotations

import logging
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from models.engines import EngineSpec
from models.engines.detect_slide import DetectorSpec
from models.engines.map_slide import MapperSpec
from pipelines.runs.claims import Claims
from pipelines.runs.task import HERE, Executor
from wsi.errors import ConfigError, ForeignStoreError, ModelError, StoreError, WsiError
from wsi.results.folder import Folder
from wsi.slides.manifest import MANIFEST_SUFFIXES, SlideRow, manifest_in, read_manifest
from wsi.slides.readers.openslide import dicom_series, gone
from wsi.slides.source import SLIDE_SUFFIXES, SlideSource, check_url, safe_name
from wsi.text import number_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """A slide that could not be scored, and why.

    Attributes:
        path: the absolute path, or the URL without its query.
        trace: the stack trace of a defect of ours; else None.
        gone: whether the slide's file was no longer there.
    """

    name: str
    path: str
    reason: str
    trace: str | None = None
    gone: bool = False


class Result(Protocol):
    """The result of an application for one slide."""

    @property
    def name(self) -> str:
        """The slide's name in outputs."""
        ...

    @property
    def unreadable(self) -> int:
        """The number of cells that could not be decoded."""
        ...

    @property
    def empty(self) -> bool:
        """Whether nothing was found that could be scored or counted."""
        ...

    def summary(self) -> dict[str, Any]:
        """The slide's entry in ``run.json``."""
        ...

    def noted(self, text: str) -> Self:
        """A copy with a note that readers of its figures must see."""
        ...


R = TypeVar("R", bound=Result)
R_co = TypeVar("R_co", bound=Result, covariant=True)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """Results and failures of a run over many slides, in the order of the input."""

    results: tuple[R, ...]
    failures: tuple[Failure, ...]

    @property
    def complete(self) -> bool:
        """Whether every slide was scored, to the last cell."""
        return not self.failures and not any(r.unreadable or r.empty for r in self.results)


def gather(
    inputs: Sequence[str], *, mpp: float | None, allow_anisotropic: bool, stream: bool = False
) -> list[SlideRow]:
    """Collect slides from files, folders (sorted), URLs and manifests, each once.

    Args:
        inputs: paths or URLs; a ``.csv`` or ``.parquet`` is a manifest, and so is a folder that holds a ``slides.csv``.
        mpp: spacing of every slide, in place of its own and of the manifest's; None keeps those.
        allow_anisotropic: see `SlideSource`.
        stream: see `SlideSource`.

    Raises:
        ConfigError: nothing is there, or a table names a slide twice, with other values.
    """
    rows: dict[str, SlideRow] = {}
    for text in inputs:
        is_table, slide_rows = _rows(text)
        seen: dict[str, SlideRow] = {}
        for row in slide_rows:
            own_mpp = mpp if mpp is not None else row.source.mpp
            source = SlideSource(row.source.path, own_mpp, allow_anisotropic, stream)
            key = source.path if source.is_url else str(Path(source.path).resolve())
            first = seen.setdefault(key, replace(row, source=source))
            if is_table and first != replace(row, source=replace(source, path=first.source.path)):
                raise ConfigError(
                    f"{text} names {source.label} twice, with other values; remove one of the lines"
                )
        if is_table and len(seen) < len(slide_rows):
            again = number_of(len(slide_rows) - len(seen), "line")
            log.warning("%s: %s of a slide that is named before; each slide is taken once", text, again)
        # a table tells more about a slide
        rows |= seen if is_table else {key: row for key, row in seen.items() if key not in rows}
    if not rows:
        raise ConfigError(f"no slide in {', '.join(inputs)}; slides end in {', '.join(SLIDE_SUFFIXES)}")
    return list(rows.values())


def _rows(text: str) -> tuple[bool, list[SlideRow]]:
    """Whether an input is a table of slides, and its slides."""
    path = Path(text)
    if "://" not in text and path.is_dir():
        manifest = manifest_in(path)
        if manifest:
            return True, read_manifest(manifest)
        return False, [SlideRow(SlideSource(str(p))) for p in slides_in(path)]
    check_url(text)
    if text.lower().endswith(MANIFEST_SUFFIXES):
        return True, read_manifest(path)
    if "://" not in text and not path.exists():
        raise ConfigError(f"{text} does not exist; check the path")
    return False, [SlideRow(SlideSource(text))]


def slides_in(folder: Path) -> list[Path]:
    """The slides of a folder, sorted: no hidden files, no masks, no parts of slides of several files."""
    files = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in SLIDE_SUFFIXES and p.is_file()]
    files = [p for p in files if not p.name.startswith(".") and not p.stem.lower().endswith("_mask")]
    if any(p.suffix.lower() in (".vms", ".vmu") for p in files):  # Hamamatsu's pixels lie in JPEGs
        files = [p for p in files if p.suffix.lower() not in (".jpg", ".jpeg")]
    return _one_per_series(files)


def _one_per_series(files: Sequence[Path]) -> list[Path]:
    """Keep the first file of each DICOM series: OpenSlide opens the series by any of its files."""
    series_names: set[str] = set()
    first_files = []
    for path in files:
        series = dicom_series(str(path)) if path.suffix.lower() == ".dcm" else None
        if series is None or series not in series_names:
            first_files.append(path)
        if series is not None:
            series_names.add(series)
    return first_files


def named(rows: Sequence[SlideRow]) -> list[tuple[SlideRow, str]]:
    """Slides with their `unique_names`: made of all slides of a run, whatever part of them one command does."""
    return list(zip(rows, unique_names(rows), strict=True))


def unique_names(rows: Sequence[SlideRow]) -> list[str]:
    """A folder name for each slide: its stem; where two share it, their file name, then folder and file name.

    Every name is `safe_name`: it is one folder inside OUT, whatever the slide's file is called.

    Raises:
        ConfigError: two slides cannot be told apart by name.
    """
    names = [row.source.name for row in rows]
    forms: list[Callable[[SlideRow], str]] = [
        lambda row: Path(row.source.path).name,
        lambda row: f"{Path(row.source.path).parent.name}_{Path(row.source.path).name}",
        lambda row: row.source.label,
    ]
    for form in forms:
        counts = Counter(name.casefold() for name in names)
        names = [
            safe_name(form(row)) if counts[name.casefold()] > 1 else name
            for name, row in zip(names, rows, strict=True)
        ]
    counts = Counter(name.casefold() for name in names)
    duplicates = [
        row.source.label for row, name in zip(rows, names, strict=True) if counts[name.casefold()] > 1
    ]
    if duplicates:
        raise ConfigError(
            f"{duplicates[0]} and {duplicates[1]} would share one folder of results; rename one of them"
        )
    return names


def file_sizes(slides: Sequence[tuple[SlideRow, str]]) -> list[float]:
    """Bytes of each slide's file, to estimate how much work is left; 1 where the size is not known."""
    sizes = []
    for row, _ in slides:
        try:
            sizes.append(1.0 if row.source.is_url else float(Path(row.source.path).stat().st_size))
        except OSError:
            sizes.append(1.0)  # opening the slide will raise its own error
    return sizes


class SlideJob(Protocol[R_co]):
    """What is to be done with each slide. It can be pickled: a worker on another machine does it as well."""

    @property
    def out(self) -> Folder:
        """The folder of the whole run."""
        ...

    @property
    def specs(self) -> tuple[EngineSpec | DetectorSpec | MapperSpec, ...]:
        """Of the engines that it needs."""
        ...

    def run(
        self, row: SlideRow, name: str, executor: Executor, tick: Callable[[int, int, str], None]
    ) -> R_co:
        """Do one slide, and write its results below `out`.

        Args:
            row: the slide.
            name: its name in outputs.
            executor: who does its chunks.
            tick: called with (done, total, unit).
        """
        ...


class Watch(Protocol):
    """Who listens to the progress of a run over many slides."""

    def begin(self, index: int, name: str) -> None:
        """A slide is begun."""
        ...

    def __call__(self, done: int, total: int, what: str) -> None:
        """So much of the slide that was begun last is done."""
        ...

    def end(self, index: int) -> None:
        """A slide is done."""
        ...


class Crew(Protocol):
    """Who does the slides of a run: this process, or a cluster."""

    def work(
        self, slides: Sequence[tuple[SlideRow, str]], job: SlideJob[R], watch: Watch
    ) -> Iterator[tuple[int, R | Failure]]:
        """The index and outcome of each slide, in order of completion.

        Raises:
            WsiError: what would fail every slide alike: a full disk, a broken model.
        """
        ...


class Alone:
    """This process does one slide after another; their chunks may be done elsewhere."""

    def __init__(self, executor: Executor = HERE, wait_s: float = 2.0) -> None:
        """Keep in mind who does the chunks, and how long to wait for slides that only other commands work on.

        Args:
            executor: does the chunks.
            wait_s: seconds.
        """
        self._executor, self._wait_s = executor, wait_s

    def work(
        self, slides: Sequence[tuple[SlideRow, str]], job: SlideJob[R], watch: Watch
    ) -> Iterator[tuple[int, R | Failure]]:
        """Outcomes in the order of the slides; those that other commands work on come last, see `Crew.work`."""
        claims = Claims(job.out)
        waiting = deque(enumerate(slides))
        passed = 0  # slides in a row that others work on
        while waiting:
            index, (row, name) = waiting.popleft()
            watch.begin(index, name)
            following, following_name = waiting[0][1] if waiting else (None, "")
            ahead = following is not None and passed == 0 and claims.is_free(following_name)
            with following.source.copied_ahead() if following is not None and ahead else nullcontext():
                outcome = attempt(row, name, job, claims, watch, executor=self._executor)
            if outcome is not None:
                passed = 0
                watch.end(index)
                yield index, outcome
                continue
            waiting.append((index, (row, name)))
            passed += 1
            if passed >= len(waiting):
                log.info("%s: waiting for %s, which works on it, too", name, claims.holder(name))
                time.sleep(self._wait_s)
                passed = 0


ALONE = Alone()


def run_cohort(
    slides: Sequence[tuple[SlideRow, str]],
    job: SlideJob[R],
    summarise: Callable[[str, Sequence[R], Sequence[Failure]], None],
    *,
    crew: Crew,
    watch: Watch,
    finished: Sequence[Callable[[R | Failure], None]] = (),
) -> Outcome[R]:
    """Work on many slides; a slide that fails is recorded and does not stop the others.

    A full disk or a broken model would fail every slide alike, so it ends the run, after a summary.

    Args:
        slides: the slides, each with its name in outputs, see `named`.
        job: what is done with each.
        summarise: called with the run's state, the results and the failures, also when the run stops early.
        crew: who does them.
        watch: told of the progress.
        finished: each is called with the result or failure of every slide.
    """
    outcomes: dict[int, R | Failure] = {}
    state = "stopped: a defect"
    try:
        for index, outcome in crew.work(slides, job, watch):
            outcomes[index] = outcome
            for hear in finished:
                hear(outcome)
        state = "finished"
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    except WsiError as error:
        state = f"stopped: {error}"
        raise
    finally:
        results, failures = _sorted(outcomes)
        try:
            summarise(state, results, failures)
        except StoreError as error:
            if state == "finished":
                raise
            log.error("%s", error)  # the disk is full; what was scored is on it all the same
    return Outcome(tuple(results), tuple(failures))


def _sorted(outcomes: Mapping[int, R | Failure]) -> tuple[list[R], list[Failure]]:
    """Results and failures, in the order of the slides."""
    ordered = [outcomes[index] for index in sorted(outcomes)]
    failures = [outcome for outcome in ordered if isinstance(outcome, Failure)]
    return [outcome for outcome in ordered if not isinstance(outcome, Failure)], failures


def attempt(
    row: SlideRow,
    name: str,
    job: SlideJob[R],
    claims: Claims,
    tick: Callable[[int, int, str], None] = lambda done, total, what: None,
    *,
    executor: Executor = HERE,
    dead: bytes | None = None,
) -> R | Failure | None:
    """The outcome of one slide; None while another process works on it.

    Args:
        row: the slide.
        name: its name in outputs.
        job: what is done with it.
        claims: of the run's folder.
        tick: called with (done, total, unit).
        executor: who does its chunks.
        dead: see `Claims.take`.

    Raises:
        WsiError: what would fail every slide alike.
    """
    claim = claims.take(name, dead=dead)
    if claim is None:
        return None
    with claim:
        return _one(row, name, lambda: job.run(row, name, executor, tick))


def _one(row: SlideRow, name: str, work: Callable[[], R]) -> R | Failure:
    try:
        return work()
    except ForeignStoreError as error:
        return Failure(name, row.source.place, _unsigned(error, row))
    except (StoreError, ModelError, ConfigError):
        raise
    except WsiError as error:
        missing = not row.source.is_url and not Path(row.source.path).exists()
        cause = gone(row.source.path) if missing else error
        return Failure(name, row.source.place, _unsigned(cause, row), gone=missing)
    except MemoryError:
        return Failure(name, row.source.place, f"{row.source.label}: memory ran out; end other programs")
    except Exception as error:  # a defect of ours on one slide must not stop the others
        reason = (
            f"{row.source.label}: {type(error).__name__}: {error} (a defect; please report it with run.json)"
        )
        trace = traceback.format_exc()
        return Failure(
            name,
            row.source.place,
            reason.replace(row.source.path, row.source.label),
            trace.replace(row.source.path, row.source.label),
        )


def _unsigned(error: WsiError, row: SlideRow) -> str:
    """The error's sentence without a URL's query, which may hold a signature."""
    return str(error).replace(row.source.path, row.source.label)
