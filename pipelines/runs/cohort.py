"""A cohort of slides: its files, its names, and one loop that a broken slide does not end."""

from __future__ import annotations

import logging
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from wsi.errors import ConfigError, ForeignStoreError, ModelError, StoreError, WsiError
from wsi.slides.manifest import SlideRow, manifest_in, read_manifest
from wsi.slides.readers.openslide import dicom_series, gone
from wsi.slides.source import SLIDE_SUFFIXES, SlideSource, check_url, safe_name

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


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """Results and failures of a run over many slides, in the order of the input."""

    results: tuple[R, ...]
    failures: tuple[Failure, ...]

    @property
    def complete(self) -> bool:
        """Whether every slide was scored, to the last cell."""
        return not self.failures and not any(r.unreadable or r.empty for r in self.results)


def gather(inputs: Sequence[str], *, mpp: float | None, allow_anisotropic: bool) -> list[SlideRow]:
    """Collect slides from files, folders (sorted), URLs and manifests, each once.

    Args:
        inputs: paths or URLs; a ``.csv`` is a manifest, and so is a folder that holds a ``slides.csv``.
        mpp: spacing of every slide, in place of its own and of the manifest's; None keeps those.
        allow_anisotropic: see `SlideSource`.

    Raises:
        ConfigError: nothing is there.
    """
    rows: dict[str, SlideRow] = {}
    for text in inputs:
        is_table, slide_rows = _rows(text)
        for row in slide_rows:
            source = SlideSource(
                row.source.path, mpp if mpp is not None else row.source.mpp, allow_anisotropic
            )
            key = source.path if source.is_url else str(Path(source.path).resolve())
            if key not in rows or is_table:  # a table tells more about a slide
                rows[key] = replace(row, source=source)
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
    if text.lower().endswith(".csv"):
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


def file_sizes(rows: Sequence[SlideRow]) -> list[float]:
    """Bytes of each slide's file, to estimate how much work is left; 1 where the size is not known."""
    sizes = []
    for row in rows:
        try:
            sizes.append(1.0 if row.source.is_url else float(Path(row.source.path).stat().st_size))
        except OSError:
            sizes.append(1.0)  # opening the slide will raise its own error
    return sizes


def run_cohort(
    rows: Sequence[SlideRow],
    work: Callable[[SlideRow, str, int], R],
    summarise: Callable[[str, Sequence[R], Sequence[Failure]], None],
    *,
    finished: Callable[[R | Failure], None] = lambda result: None,
) -> Outcome[R]:
    """Work on slide after slide; a slide that fails is recorded and does not stop the others.

    A full disk or a broken model would fail every slide alike, so it ends the run, after a summary.

    Args:
        rows: the slides.
        work: does one slide, given its name and index.
        summarise: called with the run's state, the results and the failures, also when the run stops early.
        finished: called with the result or failure of each slide.
    """
    results: list[R] = []
    failures: list[Failure] = []
    state = "finished"
    try:
        for index, (row, name) in enumerate(zip(rows, unique_names(rows), strict=True)):
            outcome = _one(row, name, index, work)
            if isinstance(outcome, Failure):
                failures.append(outcome)
            else:
                results.append(outcome)
            finished(outcome)
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    except WsiError as error:
        state = f"stopped: {error}"
        raise
    finally:
        try:
            summarise(state, results, failures)
        except StoreError as error:
            log.error("%s", error)  # the disk is full; what was scored is on it all the same
    return Outcome(tuple(results), tuple(failures))


def _one(row: SlideRow, name: str, index: int, work: Callable[[SlideRow, str, int], R]) -> R | Failure:
    try:
        return work(row, name, index)
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
