"""Predictions to be evaluated: results of ``wsi score``, or a submission in the challenge's form."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.runs.run_folder import kind_of
from wsi.arrays import PointsXY
from wsi.errors import ConfigError, StoreError, WsiError
from wsi.results.folder import Folder, Place, folder_at
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SLIDE_SUFFIXES, SlideSource

SCORES_FILE = "classification.csv"  # file of a submission with name and probability of each slide
LESIONS_FOLDER = "lesions"  # of a submission, beside that file; other programs put all CSVs together

Attempt = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, eq=False, slots=True)
class Prediction:
    """A program's result for one slide.

    Attributes:
        score: the slide's score, 0..1; None where nothing was scored.
        points: (n, 2) level-0 (x, y) of its detections.
        scores: (n,) of the detections, 0..1.
        source: the slide, where it is known.
        size: (width, height) of its level 0, where it is known.
        mpp: um per level-0 pixel, where it is known.
        folder: the slide's folder of ``wsi score``; None for a submission.
        bounds: the scanned part as OpenSlide states it, to which QuPath crops; None where it does not.
        note: what was wrong with the slide; may be empty.
    """

    name: str
    score: float | None
    points: PointsXY
    scores: npt.NDArray[np.float64]
    source: SlideSource | None = None
    size: tuple[int, int] | None = None
    mpp: float | None = None
    folder: Folder | None = None
    bounds: tuple[int, int, int, int] | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Predictions:
    """All slides of a run, by name.

    Attributes:
        score_rule: how a slide's score is made, for the report.
        made_by: program, models, engine and settings that made them; empty for a submission.
        failed: slides that ``wsi score`` could not score, each with the reason.
        state: how ``wsi score`` ended; anything but ``finished`` may lack slides.
    """

    slides: tuple[Prediction, ...]
    score_rule: str
    made_by: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    state: str = "finished"


def read_predictions(place: Place, problems: list[str] | None = None) -> Predictions:
    """Read results of ``wsi score``, or a submission: a CSV per slide, and perhaps ``classification.csv``.

    Args:
        place: OUT of ``wsi score``, or of ``wsi camelyon16 submit``, or another program's folder of CSVs.
        problems: list that gets a sentence for each problem of a submission; None raises the first one.

    Raises:
        WsiError: nothing is there, or a file is broken.
    """
    folder = folder_at(place)
    if folder.exists("run.json"):
        return _scored(folder)
    if folder.exists("slide.json"):
        raise StoreError(
            f"{folder} holds one slide's results; give the folder above it, the --out of wsi score"
        )

    @contextmanager
    def attempt() -> Iterator[None]:
        try:
            yield
        except WsiError as error:
            if problems is None:
                raise
            problems.append(str(error))

    return _submission(folder, attempt)


def _scored(folder: Folder) -> Predictions:
    try:
        record = folder.read_json("run.json")
        settings, state = record["settings_fingerprint"], record["state"]
        failed = {f["name"]: f["reason"] for f in record["failed"]}
        listed = [row["name"] for row in record["slides"]]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise StoreError(f"{folder.at('run.json')} is broken ({error!r}); score the slides again") from error
    slides: dict[str, Prediction] = {}
    for name in folder.holding("slide.json"):
        prediction = _scored_slide(folder.inside(name), settings)
        key = prediction.name.casefold()
        if key in slides:
            raise StoreError(f"{folder.at(name)} and {slides[key].folder} are of the same slide; remove one")
        slides[key] = prediction
    if not slides:
        raise StoreError(f"{folder} holds no scored slide; run wsi score first, and give its --out here")
    failed |= {name: f"{folder.at(name)} is gone" for name in listed if name.casefold() not in slides}
    keys = ("program", "models", "engine", "settings", "settings_fingerprint", "code")
    made_by = {key: record.get(key) for key in keys}
    return Predictions(tuple(slides.values()), "the heatmap's maximum", made_by, failed, state)


def _scored_slide(folder: Folder, settings: str) -> Prediction:
    try:
        value = folder.read_json("slide.json")
        if value["settings_fingerprint"] != settings:
            raise StoreError(
                f"{folder} was scored with another model or other settings than run.json beside it says; "
                f"score it again, or remove it"
            )
        score = None if value["score"] is None else float(value["score"])
        if score is not None and not 0 <= score <= 1:
            raise StoreError(
                f"{folder.at('slide.json')} states the score {score}, which must lie in 0..1; score the slide again"
            )
        points, scores = read_lesions(folder, "lesions.csv")
        width, height = value["size"]
        return Prediction(
            name=value["name"],
            score=score,
            points=points,
            scores=scores,
            source=SlideSource(value["path"], mpp=value["mpp"], allow_anisotropic=True),
            size=(width, height),
            mpp=value["mpp"],
            folder=folder,
            bounds=value["bounds"] and tuple(value["bounds"]),
            note=value["note"],
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise unusable(folder, error) from error


def unusable(folder: Folder, error: Exception) -> StoreError:
    """The error for a slide's folder whose ``slide.json`` is no result of ``wsi score``."""
    if folder.exists("report.json"):
        return StoreError(
            f"{folder} is a report of wsi renal report; this command takes results of wsi score"
        )
    with suppress(OSError, ValueError, RecursionError):
        words = {
            "wsi segment": "is a segmentation of wsi segment",
            "wsi features": "holds features of wsi features",
        }
        made_by = kind_of(folder.read_json("slide.json"))
        if made_by in words:
            return StoreError(f"{folder} {words[made_by]}; this command takes results of wsi score")
    return StoreError(f"{folder.at('slide.json')} is broken ({error!r}); score the slide again")


def with_slides(predictions: Predictions, rows: Sequence[SlideRow], *, every: bool = True) -> Predictions:
    """Add to each prediction its slide, which is opened for its size and spacing.

    Args:
        predictions: predictions of which some slides may not be known.
        rows: the slides.
        every: whether to refuse a prediction whose slide is not among them.

    Raises:
        SlideError: a slide cannot be opened.
        ConfigError: a slide is not among them.
    """
    sources = {row.source.name.casefold(): row.source for row in rows}
    predicted = []
    for p in predictions.slides:
        source = sources.get(p.name.casefold())
        if source is None and every:
            raise ConfigError(f"--slides has no slide called {p.name}; give all of them")
        if source is not None:
            with source.open() as slide:
                size, mpp, bounds = slide.size, slide.mpp, slide.bounds
            p = replace(p, source=source, size=size, mpp=mpp, bounds=bounds)
        predicted.append(p)
    return replace(predictions, slides=tuple(predicted))


def _submission(folder: Folder, attempt: Attempt) -> Predictions:
    files = submitted_files(folder)
    if not files:
        raise StoreError(f"{folder} holds neither results of wsi score nor CSVs of lesions; check the path")
    slides: dict[str, Prediction] = {}
    for file in files:
        with attempt():
            name = slide_name(PurePosixPath(file).stem)
            key = name.casefold()
            if key in slides:
                raise ConfigError(
                    f"{folder.at(file)} and {slides[key].name}.csv are of the same slide; keep one"
                )
            points, scores = read_lesions(folder, file)
            slides[key] = Prediction(name, float(scores.max(initial=0.0)), points, scores)
    score_rule = f"the highest detection, 0 without one: there is no {SCORES_FILE}"
    if folder.exists(SCORES_FILE):
        score_rule = f"as {SCORES_FILE} states it"
        with attempt():
            slide_scores = read_slide_scores(folder, SCORES_FILE)
            slides = {key: replace(slide, score=slide_scores.get(key)) for key, slide in slides.items()}
            _same_slides(folder, [slide_name(PurePosixPath(file).stem) for file in files], slide_scores)
    return Predictions(tuple(slides.values()), score_rule)


def submitted_files(folder: Folder) -> list[str]:
    """Names of the CSVs of lesions of a submission."""
    tables = [PurePosixPath(name) for name in folder.files() if name.endswith(".csv")]
    files = [str(path) for path in tables if len(path.parts) == 1 and path.name != SCORES_FILE]
    if not folder.exists(LESIONS_FOLDER):
        return files
    if files:
        raise ConfigError(
            f"{folder.at(files[0])} lies beside {folder.at(LESIONS_FOLDER)}; keep all CSVs of lesions in one of the two"
        )
    return [str(path) for path in tables if str(path.parent) == LESIONS_FOLDER]


def slide_name(text: str) -> str:
    """A slide's name, without the ending of its file."""
    return next((text[: -len(s)] for s in SLIDE_SUFFIXES if text.lower().endswith(s)), text)


def _same_slides(folder: Folder, names: Sequence[str], scores: dict[str, float]) -> None:
    missing = [name for name in names if name.casefold() not in scores]
    extra = sorted(set(scores) - {name.casefold() for name in names})
    if missing:
        raise ConfigError(
            f"{folder.at(SCORES_FILE)} has no score of {', '.join(missing)}; a line for each slide is needed"
        )
    if extra:
        raise ConfigError(
            f"{folder} has no lesion file of {', '.join(extra)}; a slide without lesions needs an empty one"
        )


def read_lesions(folder: Folder, name: str) -> tuple[PointsXY, npt.NDArray[np.float64]]:
    """Level-0 (x, y) and scores of a slide's detections; the file has no header: ``confidence,x,y``, x and y whole.

    Raises:
        WsiError: names the line.
    """
    points, scores, path = [], [], folder.at(name)
    for line, row in _rows(folder, name):
        if len(row) != 3:
            raise WsiError(
                f"{path}, line {line}: {','.join(row)!r} is not confidence,x,y, separated by commas"
            )
        scores.append(_probability(path, line, row[0]))
        try:
            points.append((int(row[1]), int(row[2])))
        except ValueError as error:
            raise WsiError(
                f"{path}, line {line}: x and y must be whole level-0 pixels (round them), got {row[1]!r} and {row[2]!r}"
            ) from error
    return np.array(points, np.float64).reshape(-1, 2), np.array(scores, np.float64)


def read_slide_scores(folder: Folder, name: str) -> dict[str, float]:
    """Score of each slide by its name in lower case: ``name,probability`` without a header.

    Raises:
        WsiError: names the line.
    """
    scores: dict[str, float] = {}
    path = folder.at(name)
    for line, row in _rows(folder, name):
        if len(row) != 2:
            raise WsiError(f"{path}, line {line}: {len(row)} values; each line must be name,probability")
        slide = row[0].strip()
        stem = slide_name(slide).casefold()
        if stem in scores:
            raise WsiError(f"{path}, line {line}: {slide} is there twice; keep one line for each slide")
        scores[stem] = _probability(path, line, row[1])
    return scores


def _rows(folder: Folder, name: str) -> list[tuple[int, list[str]]]:
    try:
        text = folder.read(name).decode("utf-8-sig")
        return [
            (line, row) for line, row in enumerate(csv.reader(io.StringIO(text, newline="")), start=1) if row
        ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise WsiError(f"{folder.at(name)} cannot be read as CSV ({reason}); check the path") from error


def _probability(path: str, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        if line == 1:
            raise WsiError(
                f"{path}: {text!r} in line 1 is no probability; the challenge's form has no header, "
                f"remove the line if it is one"
            ) from error
        raise WsiError(f"{path}, line {line}: {text!r} is no probability; it must lie in 0..1") from error
    if not 0 <= value <= 1:  # NaN is refused, too
        raise WsiError(f"{path}, line {line}: {text} is no probability; it must lie in 0..1")
    return value
