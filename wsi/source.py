"""What travels to another thread, process or machine instead of an open slide."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import fsspec

from wsi.errors import SlideError
from wsi.readers.array import IMAGE_SUFFIXES, open_image
from wsi.readers.openslide import OpenSlideReader
from wsi.readers.tiffslide import TiffSlideReader
from wsi.slide import Slide

SLIDE_SUFFIXES = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm"),
    *IMAGE_SUFFIXES,
)
_EDGE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SlideSource:
    """A slide's path or URL and how to open it.

    Attributes:
        path: a file, or an fsspec URL such as ``s3://bucket/slide.tif``.
        mpp: um per level-0 pixel; overrides what the file says.
        allow_anisotropic: accept x and y that differ by over 5 %, and use their mean.
    """

    path: str
    mpp: float | None = None
    allow_anisotropic: bool = False

    @property
    def is_url(self) -> bool:
        """Whether fsspec must fetch it."""
        return "://" in self.path

    @property
    def name(self) -> str:
        """The file's name without its last suffix (and without ``.ome``)."""
        parts = urlsplit(self.path)
        name = PurePosixPath(parts.path or parts.netloc).name if self.is_url else Path(self.path).name
        stem = name.rsplit(".", 1)[0] if "." in name[1:] else name
        return stem.removesuffix(".ome") or name

    def open(self) -> Slide:
        """Open with the reader for this file.

        Raises:
            SlideError: the file is missing, or no reader knows it.
        """
        first, *others = self._readers()
        try:
            return first(self.path, mpp=self.mpp, allow_anisotropic=self.allow_anisotropic)
        except SlideError:
            for reader in others:  # what the first said of the file is the better sentence
                with suppress(SlideError):
                    slide = reader(self.path, mpp=self.mpp, allow_anisotropic=self.allow_anisotropic)
                    slide.read_region((0, 0), len(slide.levels) - 1, (1, 1))  # can it decode, too?
                    return slide
            raise

    def _readers(self) -> tuple[Callable[..., Slide], ...]:
        lower = self.path.lower()
        if self.is_url or lower.endswith((".ome.tif", ".ome.tiff")):
            return (TiffSlideReader,)
        if not Path(self.path).exists():
            raise SlideError(f"{self.path} does not exist; check the path")
        if lower.endswith(IMAGE_SUFFIXES):
            return (open_image,)
        # OpenSlide does not know every TIFF: strips, tiles without a pyramid
        return (OpenSlideReader, TiffSlideReader) if lower.endswith((".tif", ".tiff")) else (OpenSlideReader,)

    @property
    def label(self) -> str:
        """The path as outputs state it: a URL without its query, which may hold a signature."""
        parts = urlsplit(self.path)
        return f"{parts.scheme}://{parts.netloc.split('@')[-1]}{parts.path}" if self.is_url else self.path

    def identity(self) -> str:
        """A short hash: size, first and last MiB, and the names and sizes of files that belong to it; of a
        URL what the server says of its size and version.
        """
        digest = hashlib.sha256()
        if self.is_url:
            digest.update(_remote_facts(self.path, self.label).encode())
            return digest.hexdigest()[:16]
        with open(self.path, "rb") as file:
            size = file.seek(0, 2)
            digest.update(str(size).encode())
            for start in (0, max(0, size - _EDGE_BYTES)):
                file.seek(start)
                digest.update(file.read(_EDGE_BYTES))
        for path in _companions(Path(self.path)):
            digest.update(f"{path.name} {path.stat().st_size}".encode())
        return digest.hexdigest()[:16]


def _companions(path: Path) -> list[Path]:
    """Files that a slide of several files keeps beside its first."""
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        return sorted(p for p in path.with_suffix("").glob("*") if p.is_file())
    if suffix in (".vms", ".vmu"):
        return sorted(p for p in path.parent.glob(f"{path.stem}*") if p.is_file())
    return sorted(path.parent.glob("*.dcm")) if suffix == ".dcm" else []


def _remote_facts(url: str, label: str) -> str:
    try:
        system, path = fsspec.core.url_to_fs(url)
        facts = system.info(path)
    except Exception:  # every back end raises its own; opening the slide will say what is wrong
        return label
    known = ("size", "ETag", "etag", "LastModified", "mtime", "created")
    return label + "".join(f" {key}={facts[key]}" for key in known if key in facts)
