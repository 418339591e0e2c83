"""``slides.csv``: a table of slides that every command understands; very large ones may be parquet."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi.errors import ConfigError
from wsi.slides.source import SlideSource, check_url
from wsi.text import first_line
from wsi.vocabulary import NORMAL, NORMAL_LABELS

log = logging.getLogger(__name__)

MANIFEST = "slides.csv"
MANIFEST_SUFFIXES = (".csv", ".parquet")
COLUMNS = ("path", "mpp", "mask", "truth", "label", "split")


@dataclass(frozen=True, slots=True)
class SlideRow:
    """One slide of a manifest; paths are resolved against the manifest's folder.

    Attributes:
        source: the slide.
        mask: a tissue mask of the user's own, or None.
        truth: an annotation file, or None.
        label: the slide's class, or None.
        split: ``train``, ``validation``, ``test`` or any other word, or None.
        partial: tumour is not marked exhaustively: what is not marked is not known to be normal.
    """

    source: SlideSource
    mask: Path | None = None
    truth: Path | None = None
    label: str | None = None
    split: str | None = None
    partial: bool = False

    @property
    def said_normal(self) -> bool:
        """Whether the slide's label says that it has no tumour."""
        return (self.label or "").strip().casefold() in NORMAL_LABELS

    @property
    def checked_truth(self) -> Path | None:
        """The truth file; None for a slide that is labelled as having no tumour.

        Raises:
            ConfigError: neither label nor truth says whether there is tumour; it must not count as normal silently.
        """
        if self.said_normal:
            return None
        if self.truth is None:
            label = f"is labelled {self.label!r}" if self.label else "has no label"
            raise ConfigError(
                f"{self.source.label} {label} and has no truth; fill in the column 'truth', or label it {NORMAL!r}"
            )
        return self.truth


def manifest_in(folder: Path) -> Path | None:
    """The table of slides in a folder, or None; every command then reads the table for the folder, and logs that."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    log.info("%s is read by the %s in it", folder, MANIFEST)
    return path


def read_manifest(
    path: Path, problems: list[str] | None = None, *, slides_needed: bool = True
) -> list[SlideRow]:
    """Read a table of slides; only the column ``path`` is required, empty cells are None.

    A parquet file has the columns of the CSV. Whether its slides exist is not asked: it may name a million.

    Args:
        path: the file.
        problems: gets a sentence for each line that cannot be used and is left out; None raises the first as an error.
        slides_needed: whether the slides themselves must exist; otherwise only their names count.

    Raises:
        ConfigError: an unknown or missing column, text in place of a number, or a file that does not exist.
    """
    rows = []
    needed = slides_needed and path.suffix.lower() != ".parquet"
    for line, values in enumerate(_lines(path), start=2):
        try:
            rows.append(_row(path, line, values, needed))
        except ConfigError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return rows


def _lines(path: Path) -> Iterator[dict[str, str]]:
    """The cells of each line of a table, by column."""
    if path.suffix.lower() == ".parquet":
        yield from _parquet_lines(path)
        return
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            _check_columns(path, tuple(reader.fieldnames or ()))
            yield from reader
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be read as a CSV manifest ({reason}); check the path") from error


def _parquet_lines(path: Path) -> Iterator[dict[str, str]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            f"{path} needs pyarrow, which is not installed: pip install 'slidewright[parquet]'"
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    yield {name: _cell(value) for name, value in values.items()}
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise ConfigError(
            f"{path} cannot be read as parquet ({first_line(error)}); check the path"
        ) from error


def _cell(value: Any) -> str:
    """A cell of parquet as the CSV would have it; some programs write text as bytes."""
    if value is None:
        return ""
    return value.decode() if isinstance(value, bytes) else str(value)


def _check_columns(path: Path, columns: Iterable[str]) -> None:
    names = ", ".join(COLUMNS)
    for column in columns:
        if column not in COLUMNS:
            raise ConfigError(f"{path} has the unknown column {column!r}; known are {names}")
    if "path" not in columns:
        raise ConfigError(f"{path} has no column 'path'; known columns are {names}")


def _row(manifest: Path, line: int, values: dict[str, str], slides_needed: bool) -> SlideRow:
    extra_cells: Any = dict[Any, Any](values).get(None)  # csv's key for cells beyond the header
    if extra_cells and any(extra_cells):
        raise ConfigError(
            f"{manifest} line {line} has more cells than the header; a decimal comma would do that: write 0.25"
        )

    def file(column: str) -> Path | None:
        text = (values.get(column) or "").strip()
        if not text:
            return None
        target = manifest.parent / text
        if not target.exists() and (slides_needed or column != "path"):
            raise ConfigError(f"{manifest} line {line}: {column} {target} does not exist; check the path")
        return target

    path = (values.get("path") or "").strip()
    if not path:
        raise ConfigError(f"{manifest} line {line} has no path; fill it in or remove the line")
    try:
        check_url(path)
    except ConfigError as error:
        raise ConfigError(f"{manifest} line {line}: {error}") from error
    source = SlideSource(path if "://" in path else str(file("path")), _mpp(manifest, line, values))
    label, split = ((values.get(key) or "").strip() or None for key in ("label", "split"))
    return SlideRow(source, file("mask"), file("truth"), label, split)


def _mpp(manifest: Path, line: int, values: dict[str, str]) -> float | None:
    text = (values.get("mpp") or "").strip()
    try:
        mpp = float(text) if text else None
    except ValueError as error:
        raise ConfigError(f"{manifest} line {line}: mpp {text!r} is not a number of um per pixel") from error
    if mpp is not None and not 0 < mpp < 1000:
        raise ConfigError(f"{manifest} line {line}: mpp must lie between 0 and 1000 um per pixel, got {text}")
    return mpp
