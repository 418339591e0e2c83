"""Rules of a data set by its slides' names: split, exclusions, slides that are marked in part."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from wsi.config import Config
from wsi.errors import ConfigError
from wsi.marks.own_mask import PICTURES
from wsi.slides.manifest import SlideRow, manifest_in, read_manifest
from wsi.slides.readers.array import IMAGE_SUFFIXES
from wsi.slides.source import SLIDE_SUFFIXES, SlideSource
from wsi.vocabulary import NORMAL

_SLIDES = tuple(suffix for suffix in SLIDE_SUFFIXES if suffix not in IMAGE_SUFFIXES)
_OUTLINES = (".xml", ".annotations", ".geojson", ".json")
_NOT_SLIDES = ("*_mask", "*_tissue")  # Camelyon16 ships masks and tissue masks named after their slides


class Dataset(Config):
    """Rules by slide name; patterns are shell patterns, letter case is ignored.

    Attributes:
        normal: names of slides without tumour, which have no truth file.
        train, validation, test: names of slides in this split; the first that fits counts, in the order validation,
            test, train. A manifest's own column wins.
        exclude: names of slides that are never used, each with the reason.
        partial: names of slides whose tumour is not marked exhaustively: they give no normal patches, and do not count
            for FROC.
    """

    normal: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    exclude: dict[str, str] = {}
    partial: tuple[str, ...] = ()

    def why_excluded(self, name: str) -> str | None:
        """The reason why a slide is never used, or None."""
        return next((reason for pattern, reason in self.exclude.items() if _fits(name, (pattern,))), None)

    def is_normal(self, name: str) -> bool:
        """Whether the slide's name says that it has no tumour."""
        return _fits(name, self.normal)

    def is_partial(self, name: str) -> bool:
        """Whether the slide's tumour is not marked exhaustively."""
        return _fits(name, self.partial)


def read_dataset(name: str) -> Dataset:
    """The rules that ship under this name.

    Raises:
        ValueError: no rules ship under this name.
    """
    shipped = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
    if name not in shipped:
        raise ValueError(f"no data set of this name ships; known are {', '.join(shipped)}")
    return Dataset.model_validate_json(json.dumps(yaml.safe_load(shipped[name].read_text(encoding="utf-8"))))


@dataclass(frozen=True, slots=True)
class DataRows:
    """Slides to use, and a sentence for each slide that is left out."""

    rows: tuple[SlideRow, ...]
    left_out: tuple[str, ...]


def apply_dataset(rows: Sequence[SlideRow], dataset: Dataset) -> DataRows:
    """Fill in split, label and partial truth by name, and leave out slides that must not be used."""
    used_rows, left_out = [], []
    for row in rows:
        name = row.source.name
        reason = dataset.why_excluded(name)
        if reason is not None:
            left_out.append(f"{name} is left out: {reason}")
            continue
        splits = ("validation", "test", "train")
        split = row.split or next((s for s in splits if _fits(name, getattr(dataset, s))), None)
        label = row.label or (NORMAL if dataset.is_normal(name) else None)
        used_rows.append(replace(row, split=split, label=label, partial=dataset.is_partial(name)))
    return DataRows(tuple(used_rows), tuple(left_out))


def rows_of_folder(folder: Path) -> list[SlideRow]:
    """Every slide below a folder, with the truth file of the same name anywhere below it; or the lines of the folder's
    ``slides.csv`` where it holds one.

    Truth is an annotation file ``NAME.xml``, ``.geojson`` or ``.json``, else a mask ``NAME_mask``. Hidden files, masks
    and plain images other than TIFF are no slides.

    Raises:
        ConfigError: there are no slides, or two of one name.
    """
    manifest = manifest_in(folder)
    if manifest:
        return read_manifest(manifest)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    outlines = {p.stem.casefold(): p for p in reversed(files) if p.suffix.lower() in _OUTLINES}
    pictures = {p.stem.casefold(): p for p in reversed(files) if p.suffix.lower() in PICTURES}
    slides: dict[str, SlideRow] = {}
    for path in files:
        source = SlideSource(str(path))
        name = source.name.casefold()
        if path.suffix.lower() not in _SLIDES or _fits(path.stem, _NOT_SLIDES):
            continue
        if name in slides:
            raise ConfigError(
                f"{path} and {slides[name].source.path} have one name; list the slides in a slides.csv"
            )
        slides[name] = SlideRow(source, truth=outlines.get(name) or pictures.get(f"{name}_mask"))
    if not slides:
        raise ConfigError(f"{folder} holds no slides ({', '.join(SLIDE_SUFFIXES[:4])} ...); check the path")
    return list(slides.values())


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name.casefold(), pattern.casefold()) for pattern in patterns)
