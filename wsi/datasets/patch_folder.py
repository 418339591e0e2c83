"""Folders of labelled patches: one folder per class, or a ``patches.csv`` with file, label and order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from wsi.arrays import RgbImage
from wsi.errors import ConfigError, SlideError
from wsi.files import csv_rows
from wsi.marks.own_mask import BROKEN_PICTURE
from wsi.vocabulary import NORMAL_LABELS, TUMOUR, TUMOUR_LABELS, in_words

NEGATIVE_LABEL, POSITIVE_LABEL = 0, 1  # of any two classes, the one that is looked for is the second
LABELS = dict.fromkeys(NORMAL_LABELS, NEGATIVE_LABEL) | dict.fromkeys(TUMOUR_LABELS, POSITIVE_LABEL)
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


@dataclass(frozen=True, slots=True)
class PatchFile:
    """One patch: its file, class (`NEGATIVE_LABEL` or `POSITIVE_LABEL`), and name as listed or within its folder."""

    path: Path
    label: int
    name: str


@dataclass(frozen=True, eq=False, slots=True)
class PatchFolder:
    """The patches that can be read, in their order, and notes on those that cannot.

    Attributes:
        files: the patches of both classes, in the order of the list.
        pixels: RGB pixels of each patch; all of one size.
        left_out: a sentence for each file that cannot be decoded, or repeats another one.
    """

    files: tuple[PatchFile, ...]
    pixels: tuple[RgbImage, ...]
    left_out: tuple[str, ...]

    def of(self, label: int) -> list[int]:
        """Indices of a class, in order."""
        return [i for i, file in enumerate(self.files) if file.label == label]

    def part(self, low: float, high: float) -> list[int]:
        """Indices of a contiguous share of each class, 0 to 1: neighbours often come from one slide."""
        indices = []
        for label in (NEGATIVE_LABEL, POSITIVE_LABEL):
            members = self.of(label)
            indices += members[round(low * len(members)) : round(high * len(members))]
        return sorted(indices)


def read_patches(folder: Path) -> PatchFolder:
    """Read every patch of a folder into memory.

    Raises:
        ConfigError: no list and no class folder, a label that is unknown, one patch under two labels,
            patches of several sizes, or a class with no patch that can be read.
    """
    files = _listed(folder) if (folder / "patches.csv").is_file() else _in_folders(folder)
    readable_files, pixels, left_out = [], [], []
    files_by_digest: dict[bytes, PatchFile] = {}
    for file in files:
        try:
            data = file.path.read_bytes()
        except OSError as error:
            left_out.append(f"{file.path} cannot be read ({error.strerror})")
            continue
        first = files_by_digest.setdefault(hashlib.sha256(data).digest(), file)
        if first is not file:
            _check_label(first, file)
            left_out.append(f"{file.path} is the same picture as {first.path}")
            continue
        try:
            pixels.append(decode_patch(file.path, data))
        except SlideError as error:
            left_out.append(str(error))
            continue
        readable_files.append(file)
    for label, name in enumerate(in_words((), TUMOUR)):
        if not any(file.label == label for file in readable_files):
            raise ConfigError(f"{folder} has no {name} patch that can be read; add some, or check the labels")
    _check_sizes(readable_files, pixels)
    return PatchFolder(tuple(readable_files), tuple(pixels), tuple(left_out))


def decode_patch(path: Path, data: bytes) -> RgbImage:
    """A picture's bytes as RGB; grey becomes three equal channels, transparent pixels are laid over white.

    Raises:
        SlideError: the data is cut short, no picture, or not of 8 bits.
    """
    # libjpeg paints the rest of a cut file grey
    truncated = data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data[-64:]
    try:
        image = (
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if data and not truncated
            else None
        )
    except BROKEN_PICTURE:
        image = None
    if image is None:
        raise SlideError(f"{path} is not a whole picture; save it again")
    if image.dtype != np.uint8:
        bits = 8 * image.dtype.itemsize
        raise SlideError(f"{path} holds pixels of {bits} bits; only 8-bit pictures are read: convert it")
    if image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    if image.shape[2] == 4:
        opacity = image[:, :, 3:] / 255
        image = np.round(image[:, :, :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)
    return np.ascontiguousarray(image[:, :, ::-1])


def _check_label(first: PatchFile, file: PatchFile) -> None:
    if first.label != file.label:
        raise ConfigError(
            f"{first.path} and {file.path} are the same picture under two labels; remove one of them"
        )


def _check_sizes(files: Sequence[PatchFile], pixels: Sequence[RgbImage]) -> None:
    for file, image in zip(files, pixels, strict=True):
        if image.shape != pixels[0].shape:
            raise ConfigError(
                f"{file.path} has {image.shape[1]} x {image.shape[0]} px, {files[0].path} "
                f"{pixels[0].shape[1]} x {pixels[0].shape[0]}; all patches must have one size"
            )


def _listed(folder: Path) -> list[PatchFile]:
    path = folder / "patches.csv"
    try:
        rows = csv_rows(path.read_bytes())
        if rows and "order" in rows[0]:
            rows.sort(key=lambda row: int(row["order"]))
        lines = [(row["file"].strip(), row["label"].strip()) for row in rows]
    except (OSError, AttributeError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} needs the columns file and label, and whole numbers in order") from error
    labels: dict[str, int] = {}
    for name, label in lines:
        if labels.setdefault(name, _label(label, path)) != _label(label, path):
            raise ConfigError(f"{path} lists {name} under two labels; remove one of the lines")
    return [PatchFile(folder / name, label, name) for name, label in labels.items()]


def _in_folders(folder: Path) -> list[PatchFile]:
    classes = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if not classes:
        raise ConfigError(
            f"{folder} holds no labelled patches; it needs a folder for each class, or a patches.csv"
        )
    return [
        PatchFile(path, _label(sub.name, sub), f"{sub.name}/{path.name}")
        for sub in classes
        for path in sorted(sub.iterdir())
        if path.suffix.lower() in SUFFIXES
    ]


def _label(text: str, where: Path) -> int:
    try:
        return LABELS[text.strip().casefold()]
    except KeyError as error:
        raise ConfigError(f"{where}: label {text!r} is unknown; known are {', '.join(LABELS)}") from error
