"""Predictions and truth, slide by slide: nothing may be missing in silence."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.card import TUMOUR_CLASSES
from pipelines.camelyon16.predictions import Prediction, Predictions
from wsi.dataset import Dataset
from wsi.errors import ConfigError
from wsi.manifest import NORMAL_LABELS, read_manifest
from wsi.user_mask import PICTURES

OUTLINES = (".xml", ".geojson", ".json")
MANIFEST, REFERENCE = "slides.csv", "reference.csv"  # ours; the one that came with Camelyon16
SHOWN = 6  # names in an error
NO_RULES = Dataset()


@dataclass(frozen=True, slots=True)
class TruthTable:
    """What is known of the slides' truth, by name in lower case.

    Attributes:
        files: the annotation file or mask; None where the slide has no tumour.
        names: as they are written.
        origin: where it was read, for the report.
        by_name: whether a data set's rules by name apply: not where a manifest says everything.
    """

    files: dict[str, Path | None]
    names: dict[str, str]
    origin: str
    by_name: bool


@dataclass(frozen=True, eq=False, slots=True)
class Case:
    """One slide to be evaluated.

    Attributes:
        truth: annotation file or mask; None where the slide has no tumour.
        partial: its tumour is not marked exhaustively: it counts for slides, and not for lesions.
    """

    prediction: Prediction
    truth: Path | None
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Cases:
    """The slides to be evaluated, by name, and what is left out and why."""

    cases: tuple[Case, ...]
    left_out: dict[str, str]
    truth_origin: str


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user says of the slides.

    Attributes:
        dataset: rules by name, for truth that is a folder.
        exclude: names to leave out.
        subset: evaluate the slides that have results, though truth names more.
        others_normal: slides without a truth file have no tumour, as the official code takes it.
    """

    dataset: Dataset = NO_RULES
    exclude: tuple[str, ...] = ()
    subset: bool = False
    others_normal: bool = False


def join(predictions: Predictions, truth: Path, selection: Selection) -> Cases:
    """Pair every slide with its truth.

    Raises:
        ConfigError: a slide without truth, truth without a slide, a slide that was not scored, or none is left.
    """
    table = read_truth_table(truth)
    rules = selection.dataset if table.by_name else NO_RULES
    left_out = {name: "--exclude" for name in selection.exclude}
    dropped = {name.casefold() for name in selection.exclude}
    known = {p.name.casefold() for p in predictions.slides} | set(table.files)
    for name in selection.exclude:
        if name.casefold() not in known:
            raise ConfigError(f"--exclude {name}: no slide has this name; check it")
    cases, unknown, unscored = [], [], []
    for p in sorted(predictions.slides, key=lambda p: p.name.casefold()):
        key = p.name.casefold()
        reason = rules.why_excluded(p.name)
        if key in dropped:
            continue
        if reason is not None:
            left_out[p.name] = reason
        elif key not in table.files and not selection.others_normal and not rules.is_normal(p.name):
            unknown.append(p.name)
        elif p.score is None:
            unscored.append(p.name)
        else:
            cases.append(Case(p, table.files.get(key), partial=rules.is_partial(p.name)))
    dropped |= {name.casefold() for name in left_out}
    _refuse_unknown(unknown, table)
    _refuse_unscored(unscored)
    missing = sorted(set(table.files) - {p.name.casefold() for p in predictions.slides} - dropped)
    missing = [table.names[key] for key in missing if rules.why_excluded(key) is None]
    if missing and not selection.subset:
        failed = [
            f"{name} failed ({predictions.failed[name]})" for name in missing if name in predictions.failed
        ]
        raise ConfigError(
            f"{_count(missing)} truth but no results: {_list(missing)}{'; ' + failed[0] if failed else ''}; "
            f"score them, or pass --subset to evaluate the others"
        )
    left_out |= {name: "no results (--subset)" for name in missing}
    if not cases:
        raise ConfigError(f"no slide is left to evaluate: {truth} and the results share no name")
    return Cases(tuple(cases), left_out, table.origin)


def _refuse_unknown(names: Sequence[str], table: TruthTable) -> None:
    if names:
        raise ConfigError(
            f"{_count(names)} results but no truth in {table.origin}: {_list(names)}; add their truth, "
            f"label them 'normal' in {MANIFEST}, or pass --others-normal if slides without truth have no tumour"
        )


def _refuse_unscored(names: Sequence[str]) -> None:
    if names:
        raise ConfigError(
            f"{_count(names)} no score, as no tissue was found or read: {_list(names)}; score them with --mask, "
            f"or pass --exclude NAME"
        )


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} slide{' has' if len(names) == 1 else 's have'}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def read_truth_table(where: Path) -> TruthTable:
    """Truth from a ``slides.csv``, or from a folder of annotation files and masks.

    A folder that holds a ``slides.csv`` is read by it. Else ``NAME.xml``, ``.geojson``, ``.json`` or ``NAME_mask.*``
    anywhere below it is the truth of NAME, and ``reference.csv`` (NAME,label,...) tells which slides are normal.

    Raises:
        ConfigError: nothing is there, a slide is there twice, or a tumour slide has no file.
    """
    if where.is_file() or (where / MANIFEST).is_file():
        return _from_manifest(where if where.is_file() else where / MANIFEST)
    if not where.is_dir():
        raise ConfigError(
            f"{where} does not exist; give a folder of annotation files or masks, or a {MANIFEST}"
        )
    return _from_folder(where)


def _from_manifest(path: Path) -> TruthTable:
    files: dict[str, Path | None] = {}
    names: dict[str, str] = {}
    for row in read_manifest(path):
        key = row.source.name.casefold()
        if key in files:
            raise ConfigError(f"{path} names {row.source.name} twice; keep one line for each slide")
        files[key], names[key] = row.checked_truth, row.source.name
    return TruthTable(files, names, str(path), by_name=False)


def _from_folder(folder: Path) -> TruthTable:
    files: dict[str, Path | None] = {}
    names: dict[str, str] = {}
    every = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    masks = [(p, p.stem[: -len("_mask")]) for p in every if _is_mask(p)]
    outlines = [(p, p.stem) for p in every if p.suffix.lower() in OUTLINES and p.name != "phantoms.json"]
    for found in (masks, outlines):  # outlines are exact: they win over a mask of the same slide
        seen: dict[str, Path] = {}
        for path, name in found:
            key = name.casefold()
            if key in seen:
                raise ConfigError(f"{path} and {seen[key]} are truth of the same slide; keep one")
            seen[key] = files[key] = path
            names[key] = name
    reference = next((p for p in every if p.name == REFERENCE), None)
    origin = str(folder)
    if reference is not None:
        origin = f"{folder} and {reference}"
        for name, normal in _read_reference(reference):
            key = name.casefold()
            if normal:
                files[key] = None
            elif key not in files:
                raise ConfigError(
                    f"{reference} says that {name} has tumour, and no truth of it is below {folder}; add it"
                )
            names[key] = name
    if not files:
        raise ConfigError(f"{folder} holds no annotation file, no mask and no {MANIFEST}; check the path")
    return TruthTable(files, names, origin, by_name=True)


def _is_mask(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and path.stem.casefold().endswith("_mask")


def _read_reference(path: Path) -> list[tuple[str, bool]]:
    """(name, whether it is normal) of each line ``name,label,...``; a header is passed over."""
    found: list[tuple[str, bool]] = []
    seen: set[str] = set()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as CSV ({error}); check the path") from error
    for line, row in enumerate(rows, start=1):
        label = row[1].strip().casefold() if len(row) > 1 else ""
        if label not in (*NORMAL_LABELS, *TUMOUR_CLASSES):
            if line == 1:
                continue
            raise ConfigError(f"{path}, line {line}: {label!r} is neither normal nor tumour; mend the line")
        name = row[0].strip().removesuffix(".tif")
        if name.casefold() in seen:
            raise ConfigError(f"{path}, line {line}: {name} is there twice; keep one line for each slide")
        seen.add(name.casefold())
        found.append((name, label in NORMAL_LABELS))
    return found
