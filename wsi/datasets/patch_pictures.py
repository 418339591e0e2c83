"""Folders of patches to be scored: pictures of any side, in class folders, in a list, or without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi.arrays import RgbImage
from wsi.datasets.patch_folder import LABELS, SUFFIXES, decode_patch
from wsi.errors import ConfigError, SlideError
from wsi.files import csv_rows
from wsi.vocabulary import NORMAL, TUMOUR

LIST = "patches.csv"


@dataclass(frozen=True, slots=True)
class PatchPicture:
    """One patch: its file, its name as listed or within the folder, and its label, None where that is not known."""

    path: Path
    name: str
    label: int | None

    @property
    def label_text(self) -> str:
        """The label as a list of patches spells it; empty where it is not known."""
        return "" if self.label is None else (NORMAL, TUMOUR)[self.label]


def list_patches(folder: Path) -> list[PatchPicture]:
    """Every picture of a folder and its subfolders, by name; or the lines of its ``patches.csv``, in their order.

    A subfolder with the name of a class gives its patches that label; in other folders the label is unknown.

    Raises:
        ConfigError: the folder does not exist, holds no picture, or its list cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; give one that holds patches")
    pictures = _listed(folder) if (folder / LIST).is_file() else _in_folder(folder)
    if not pictures:
        raise ConfigError(f"{folder} holds no patch; patches end in {', '.join(SUFFIXES)}")
    return pictures


def _in_folder(folder: Path) -> list[PatchPicture]:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    named_paths = [(path, path.relative_to(folder)) for path in paths if not path.name.startswith(".")]
    return [
        PatchPicture(
            path, name.as_posix(), LABELS.get(name.parts[0].casefold()) if len(name.parts) > 1 else None
        )
        for path, name in named_paths
    ]


def _listed(folder: Path) -> list[PatchPicture]:
    path = folder / LIST
    try:
        rows = csv_rows(path.read_bytes())
        lines = [(row["file"].strip(), (row.get("label") or "").strip()) for row in rows]
    except (OSError, AttributeError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} needs the column file, and may have the column label") from error
    unknown = [text for _, text in lines if text and text.casefold() not in LABELS]
    if unknown:
        raise ConfigError(
            f"{path}: label {unknown[0]!r} is unknown; known are {', '.join(LABELS)}, or nothing"
        )
    counts = Counter(name for name, _ in lines)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise ConfigError(f"{path} lists {repeated[0]} twice; remove one of the lines")
    return [PatchPicture(folder / name, name, LABELS.get(text.casefold())) for name, text in lines]


def read_patch(path: Path) -> RgbImage:
    """A patch as RGB; grey becomes three equal channels, transparent pixels are laid over white.

    Raises:
        SlideError: the file cannot be read, is cut short, or is not of 8 bits.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SlideError(f"{path} cannot be read ({error.strerror}); check the path") from error
    return decode_patch(path, data)


def sizes_text(sizes: Sequence[tuple[int, int]], side: int) -> str:
    """A sentence on patches that do not have the model's side and were changed; empty where all have it."""
    smaller = sum(min(size) < side for size in sizes)
    larger = sum(max(size) > side and min(size) >= side for size in sizes)
    parts = []
    if smaller:
        parts.append(f"{smaller} smaller than {side} px, mirrored at the border")
    if larger:
        parts.append(f"{larger} larger, cropped to the middle")
    return f"patches: {len(sizes)}; " + "; ".join(parts) if parts else ""
