"""Pairs of predictions and truth, slide by slide; a slide that is missing is an error."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.camelyon16.benchmark.predictions import Prediction, Predictions
from wsi.datasets.rules import Dataset
from wsi.errors import ConfigError
from wsi.marks.own_mask import PICTURES
from wsi.slides.manifest import read_manifest
from wsi.vocabulary import NORMAL, NORMAL_LABELS, means_tumour

OUTLINES = (".xml", ".geojson", ".json")
MANIFEST, REFERENCE = "slides.csv", "reference.csv"  # our file; the file that came with Camelyon16
SHOWN = 6  # largest number of names in an error message
NO_RULES = Dataset()


@dataclass(frozen=True, slots=True)
class TruthTable:
    """The truth of slides, by name in lower case.

    Attributes:
        files: the annotation file or mask; None where the slide has no tumour.
        names: the slides' names as they are written.
        normal: slides that ``reference.csv`` says to be normal, though there may be a file.
        unmarked: slides that ``reference.csv`` says to have tumour, and that have no file: an error unless they are
            left out, or are known to be marked in part, in which case their slide score counts.
        origin: where the truth was read, for the report.
        by_name: whether a data set's rules by slide name apply; they do not where a manifest says everything.
    """

    files: dict[str, Path | None]
    names: dict[str, str]
    origin: str
    by_name: bool
    normal: frozenset[str] = frozenset()
    unmarked: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False, slots=True)
class Case:
    """One slide to be evaluated.

    Attributes:
        truth: annotation file or mask, which may mark nothing where the slide is said to be normal; None: no tumour.
        partial: whether its tumour is not marked exhaustively: then it counts for slides, and not for lesions.
        said_normal: what says that it is normal, for an error message; may be empty.
        others_normal: whether a file that marks nothing means that there is no tumour.
        tumour_unmarked: whether it has tumour, and no file says where; then it is partial.
    """

    prediction: Prediction
    truth: Path | None
    partial: bool = False
    said_normal: str = ""
    others_normal: bool = False
    tumour_unmarked: bool = False


@dataclass(frozen=True, slots=True)
class Cases:
    """The slides to be evaluated, by name, and the slides that are left out, each with the reason.

    Attributes:
        taken_as_normal: slides that no truth names and that ``--others-normal`` makes normal.
    """

    cases: tuple[Case, ...]
    left_out: dict[str, str]
    truth_origin: str
    taken_as_normal: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selection:
    """The slides that the user wants to have evaluated.

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
        ConfigError: a slide without truth, truth without a slide, a slide that was not scored, a run that did not
            finish, or no slide is left.
    """
    table = read_truth_table(truth)
    rules = selection.dataset if table.by_name else NO_RULES
    left_out = _left_out(predictions, table, rules, selection)
    excluded_keys = {name.casefold() for name in left_out}
    slides = [p for p in predictions.slides if p.name.casefold() not in excluded_keys]
    slides.sort(key=lambda p: p.name.casefold())
    _refuse_unmarked([p.name for p in slides], table, rules)
    is_normal = [rules.is_normal(p.name) or selection.others_normal for p in slides]
    has_truth = [p.name.casefold() in table.files or n for p, n in zip(slides, is_normal, strict=True)]
    _refuse_unknown([p.name for p, k in zip(slides, has_truth, strict=True) if not k], table)
    unscored = {p.name: f"not scored: {p.note}" for p in slides if p.score is None}
    if unscored and not selection.subset:
        name, reason = next(iter(unscored.items()))
        raise ConfigError(
            f"{_count(list(unscored))} no score, {name} among them ({reason}); "
            f"mend that, or pass --subset to leave them out"
        )
    left_out |= unscored
    slides = [p for p in slides if p.name not in unscored]
    if not slides:
        raise ConfigError(f"no slide is left to evaluate: {truth} and the results share no name")
    cases = tuple(_case(p, table, rules, selection) for p in slides)
    truth_keys = set(table.files)
    taken_as_normal = tuple(
        p.name for p in slides if p.name.casefold() not in truth_keys and not rules.is_normal(p.name)
    )
    return Cases(cases, left_out, table.origin, taken_as_normal)


def _case(p: Prediction, table: TruthTable, rules: Dataset, selection: Selection) -> Case:
    key = p.name.casefold()
    normal_source = "its name" if rules.is_normal(p.name) else ""
    if key in table.normal:
        normal_source = REFERENCE if table.by_name else table.origin
    unmarked = key in table.unmarked
    file = table.files.get(key)
    truth = None if file is None else file.absolute()  # a worker may run in another folder
    return Case(p, truth, rules.is_partial(p.name), normal_source, selection.others_normal, unmarked)


def _left_out(
    predictions: Predictions, table: TruthTable, rules: Dataset, selection: Selection
) -> dict[str, str]:
    """Slides that are not evaluated, each with the reason; a missing slide is an error unless a subset is wanted."""
    results = {p.name.casefold(): p.name for p in predictions.slides}
    names = table.names | results | {name.casefold(): name for name in predictions.failed}
    for name in selection.exclude:
        if name.casefold() not in names:
            raise ConfigError(f"--exclude {name}: no slide has this name; check it")
    reasons = {name: "--exclude" for name in selection.exclude}
    handled_keys = {name.casefold() for name in reasons}
    for key, name in sorted(names.items()):
        reason = rules.why_excluded(name)
        if reason is not None and key not in handled_keys:
            handled_keys.add(key)
            if key in results:
                reasons[name] = reason
    failed = {
        n: error for n, error in predictions.failed.items() if n.casefold() not in handled_keys | set(results)
    }
    handled_keys |= {name.casefold() for name in failed}
    missing = [table.names[key] for key in sorted(set(table.files) - set(results) - handled_keys)]
    if not selection.subset:
        without_truth = [
            n
            for k, n in results.items()
            if k not in table.files and k not in handled_keys and not rules.is_normal(n)
        ]
        _refuse_missing(missing, failed, predictions.state, without_truth)
    reasons |= {name: f"failed: {error}" for name, error in failed.items()}
    return reasons | {name: "no results (--subset)" for name in missing}


def _refuse_missing(
    missing: Sequence[str], failed: dict[str, str], state: str, without_truth: Sequence[str]
) -> None:
    advice = "score them, or pass --subset to evaluate the others"
    if failed:
        name, reason = next(iter(failed.items()))
        count = "1 slide" if len(failed) == 1 else f"{len(failed)} slides"
        example = name if len(failed) == 1 else f"{name} among them"
        raise ConfigError(f"{count} could not be scored, {example} ({reason}); {advice}")
    if missing:
        beside = f" (results that no truth names: {_list(without_truth)})" if without_truth else ""
        raise ConfigError(f"{_count(missing)} truth but no results: {_list(missing)}{beside}; {advice}")
    if state != "finished":
        raise ConfigError(
            f"the run of wsi score did not finish ({state}), so slides may be missing; {advice}"
        )


def _refuse_unmarked(names: Sequence[str], table: TruthTable, rules: Dataset) -> None:
    """Refuse slides with tumour that have no outlines, unless they do not count for lesions."""
    bare_names = [n for n in names if n.casefold() in table.unmarked and not rules.is_partial(n)]
    if bare_names:
        raise ConfigError(
            f"{table.origin} says that {_list(bare_names)} {'has' if len(bare_names) == 1 else 'have'} tumour, and no "
            f"outlines or mask of it are there; add them, or leave it out with --exclude"
        )


def _refuse_unknown(names: Sequence[str], table: TruthTable) -> None:
    if names:
        raise ConfigError(
            f"{_count(names)} results but no truth in {table.origin}: {_list(names)}; add their truth, "
            f"label them {NORMAL!r} in {MANIFEST}, or pass --others-normal if slides without truth have no tumour"
        )


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} slide{' has' if len(names) == 1 else 's have'}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def read_truth_table(where: Path) -> TruthTable:
    """Read the truth from a ``slides.csv``, or from a folder of annotation files and masks.

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
    normal = set()
    for row in read_manifest(path, slides_needed=False):
        key = row.source.name.casefold()
        if key in files:
            raise ConfigError(f"{path} names {row.source.name} twice; keep one line for each slide")
        # the truth of a normal slide is read, too: it must mark nothing
        files[key] = row.truth if row.said_normal else row.checked_truth
        names[key] = row.source.name
        if row.said_normal:
            normal.add(key)
    return TruthTable(files, names, str(path), by_name=False, normal=frozenset(normal))


def _from_folder(folder: Path) -> TruthTable:
    files: dict[str, Path | None] = {}
    names: dict[str, str] = {}
    paths = _files_below(folder)
    masks = [(p, p.stem[: -len("_mask")]) for p in paths if _is_mask(p)]
    outlines = [(p, p.stem) for p in paths if p.suffix.lower() in OUTLINES]
    for group in (masks, outlines):  # outlines are exact: they win over a mask of the same slide
        group_files: dict[str, Path] = {}
        for path, name in group:
            key = name.casefold()
            if key in group_files:
                raise ConfigError(f"{path} and {group_files[key]} are truth of the same slide; keep one")
            group_files[key] = files[key] = path
            names[key] = name
    references = [p for p in paths if p.name == REFERENCE]
    if len(references) > 1:
        raise ConfigError(
            f"{references[0]} and {references[1]} both tell labels; keep one, or give its folder"
        )
    labels = _read_reference(references[0]) if references else []
    unmarked = frozenset(
        name.casefold() for name, normal in labels if not normal and name.casefold() not in files
    )
    for name, _ in labels:
        files.setdefault(name.casefold(), None)
        names[name.casefold()] = name
    if not files:
        raise ConfigError(f"{folder} holds no annotation file, no mask and no {MANIFEST}; check the path")
    origin = f"{folder} and {references[0]}" if references else str(folder)
    normal_keys = frozenset(name.casefold() for name, normal in labels if normal)
    return TruthTable(files, names, origin, by_name=True, normal=normal_keys, unmarked=unmarked)


def _files_below(folder: Path) -> list[Path]:
    """All files below a folder, without hidden files and without our own results, whose GeoJSON is no truth."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    result_folders = {p.parent for p in paths if p.name in ("run.json", "evaluation.json")}
    return [p for p in paths if not result_folders.intersection(p.parents)]


def _is_mask(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and path.stem.casefold().endswith("_mask")


def _read_reference(path: Path) -> list[tuple[str, bool]]:
    """The slide's name, and whether it is normal, from each line ``name,label,...``; a header is skipped."""
    labels: list[tuple[str, bool]] = []
    keys: set[str] = set()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as CSV ({error}); check the path") from error
    for line, row in enumerate(rows, start=1):
        label = row[1].strip().casefold() if len(row) > 1 else ""
        if label not in NORMAL_LABELS and not means_tumour(label):
            if line == 1:
                continue
            raise ConfigError(f"{path}, line {line}: {label!r} is neither normal nor tumour; mend the line")
        name = row[0].strip().removesuffix(".tif")
        if name.casefold() in keys:
            raise ConfigError(f"{path}, line {line}: {name} is there twice; keep one line for each slide")
        keys.add(name.casefold())
        labels.append((name, label in NORMAL_LABELS))
    return labels
