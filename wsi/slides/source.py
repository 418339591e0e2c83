"""The source of a slide, which travels to another thread, process or machine instead of an open slide."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from glob import escape
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import fsspec

from wsi.errors import ConfigError, SlideError, StoreError, UnknownFormatError
from wsi.files import cache_folder, file_sha256, write_json
from wsi.slides.readers.array import IMAGE_SUFFIXES, open_image
from wsi.slides.readers.openslide import OpenSlideReader, dicom_series, gone
from wsi.slides.readers.tiff_structure import TIFF_SUFFIXES, check_tiff
from wsi.slides.readers.tiffslide import PlanarReader, TiffSlideReader
from wsi.slides.slide import Slide
from wsi.slides.staging import Ahead, Staged
from wsi.urls import facts_text, storage_options, without_secrets

log = logging.getLogger(__name__)

SLIDE_SUFFIXES = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm"),
    *IMAGE_SUFFIXES,
)
PROTOCOLS = ("http", "https", "s3", "gs", "az")
_IN_MEMORY = "memory"  # fsspec's store inside this process: for tests and notebooks
# names that Windows keeps for devices, and folders that runs make beside those of slides
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|evaluation|reviewed.*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SlideSource:
    """A slide's path or URL, with the settings for opening it.

    Attributes:
        path: a file, or an fsspec URL such as ``s3://bucket/slide.tif``.
        mpp: um per level-0 pixel; overrides what the file says.
        allow_anisotropic: accept x and y that differ by over 5 %, and use their mean.
        stream: read a URL's file part by part; else the whole file is copied to this machine first (`Staged`).
    """

    path: str
    mpp: float | None = None
    allow_anisotropic: bool = False
    stream: bool = False

    @property
    def is_url(self) -> bool:
        """Whether the path is a URL, which fsspec reads."""
        return "://" in self.path

    @property
    def name(self) -> str:
        """The file's name without its last suffix (and without ``.ome``), made `safe_name`."""
        parts = urlsplit(self.path) if self.is_url else None
        name = PurePosixPath(parts.path or parts.netloc).name if parts else Path(self.path).name
        stem = name.rsplit(".", 1)[0] if "." in name[1:] else name
        return safe_name(stem.removesuffix(".ome") or name)

    def open(self) -> Slide:
        """Open with the reader for this file.

        Raises:
            SlideError: the file is missing, or no reader knows it.
        """
        slide = self._staged() if self.is_url and not self.stream else self._open()
        log.debug("%s: %s, opened by %s", self.label, _size_text(slide), type(slide).__name__)
        return slide

    def copied_ahead(self) -> AbstractContextManager[Ahead | None]:
        """Copy the slide to this machine, if `open` will want a copy, while the ``with`` block does something else.

        It gives None where no copy is wanted.
        """
        if not self.is_url or self.stream:
            return nullcontext()
        check_url(self.path)
        return Ahead(self.path)

    def _staged(self) -> Slide:
        """Open the copy of a remote slide; the copy may be removed once the slide is closed."""
        check_url(self.path)
        copy = Staged(self.path)
        try:
            slide = replace(self, path=str(copy.path))._open()
        except SlideError as error:
            copy.release()
            raise type(error)(str(error).replace(str(copy.path), self.label)) from error
        except BaseException:
            copy.release()
            raise
        slide.path = self.label
        slide.when_closed(copy.release)
        return slide

    def _open(self) -> Slide:
        first_reader, *other_readers = self._readers()
        if not self.is_url and self.path.lower().endswith(TIFF_SUFFIXES):
            check_tiff(self.path)
        try:
            return first_reader(self.path, mpp=self.mpp, allow_anisotropic=self.allow_anisotropic)
        except SlideError as error:
            if not other_readers or (
                first_reader is OpenSlideReader and not isinstance(error, UnknownFormatError)
            ):
                raise  # the file is broken: no other reader may read a part of it as if it were whole
            for reader in other_readers:  # the first reader's message is better than theirs
                with suppress(SlideError):
                    slide = reader(self.path, mpp=self.mpp, allow_anisotropic=self.allow_anisotropic)
                    slide.read_region((0, 0), len(slide.levels) - 1, (1, 1))  # whether it can decode, too
                    return slide
            raise

    def _readers(self) -> tuple[Callable[..., Slide], ...]:
        lower = self.path.lower()
        check_url(self.path)
        if self.is_url:
            return (TiffSlideReader,)
        if not Path(self.path).exists():
            raise SlideError(f"{self.path} does not exist; check the path")
        if lower.endswith(IMAGE_SUFFIXES):
            return (open_image,)
        if lower.endswith((".ome.tif", ".ome.tiff")):
            return (TiffSlideReader, PlanarReader)
        # OpenSlide does not know every TIFF: strips, tiles without a pyramid, planes
        other_readers = (TiffSlideReader, PlanarReader) if lower.endswith((".tif", ".tiff")) else ()
        return (OpenSlideReader, *other_readers)

    @property
    def label(self) -> str:
        """The path as outputs state it: a URL without its query, which may hold a signature."""
        return without_secrets(self.path) if self.is_url else self.path

    @property
    def place(self) -> str:
        """The absolute path of the slide, or its URL without the query, as results state it."""
        return self.label if self.is_url else str(Path(self.path).absolute())

    def identity(self, tick: Callable[[int, int], None] = lambda done, total: None) -> str:
        """A short hash of every byte of the slide and of the files that belong to it; for a URL, of the size and
        version that its server states.

        A file's hash is kept in the user's cache by path, size and time of change, so that a large slide is hashed only
        once; `wsi verify` reads it again.

        Args:
            tick: called with (bytes read, bytes in total).

        Raises:
            SlideError: a file cannot be read.
        """
        return self._identity(_cached_sha256, tick)

    def read_identity(self, tick: Callable[[int, int], None] = lambda done, total: None) -> str:
        """`identity` computed from the bytes as they are now, without the cache.

        Raises:
            WsiError: a file cannot be read, or the server of a URL does not answer.
        """
        if self.is_url:
            check_url(self.path)
            if _remote_facts(self.path) is None:
                raise SlideError(f"{self.label} cannot be asked now, perhaps as its URL needs a signature")
        return self._identity(file_sha256, tick)

    def state(self) -> tuple[tuple[str, int, int] | str, ...]:
        """Name, size and time of change of each file, or what a server states of one: a cheap check for changes.

        Raises:
            SlideError: a file no longer exists.
        """
        if self.is_url:
            check_url(self.path)
            return (_remote_facts(self.path) or "",)
        try:
            files = [Path(self.path), *_companions(Path(self.path))]
            return tuple((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files)
        except OSError as error:
            raise gone(self.path) from error

    def _identity(
        self, sha256: Callable[[Path, Callable[[int], None]], str], tick: Callable[[int, int], None]
    ) -> str:
        digest = hashlib.sha256()
        if self.is_url:
            way = " streamed" if self.stream else ""  # another reader may decode to other pixels
            digest.update(f"{self.label}{_remote_facts(self.path) or ''}{way}".encode())
            return digest.hexdigest()[:16]
        try:
            first = Path(self.path)
            files = [first, *(path for path in _companions(first) if path != first)]
            total, bytes_read = sum(path.stat().st_size for path in files), 0

            def read(count: int) -> None:
                nonlocal bytes_read
                bytes_read += count
                tick(bytes_read, total)

            for path in files:
                name = "" if path == first else path.name  # a slide of one file may be renamed
                digest.update(f"{name} {sha256(path, read)}\n".encode())
        except OSError as error:
            raise SlideError(
                f"{self.path} cannot be read ({error.strerror or error}); check the path"
            ) from error
        return digest.hexdigest()[:16]


def _size_text(slide: Slide) -> str:
    spacing = (
        "no spacing" if slide.spacing is None else f"{slide.spacing.x_um:.4g} um/px ({slide.spacing.origin})"
    )
    return f"{slide.size[0]} x {slide.size[1]} px, {spacing}, levels: {len(slide.levels)}"


def safe_name(name: str) -> str:
    """The name, changed so that it can name a folder on any system: no separator, not ``..``, no reserved name."""
    # Windows refuses these characters, and drops dots and spaces at the end
    name = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", name).rstrip(". ")
    if not name.strip("."):
        return "slide"
    return f"{name}_" if _RESERVED.fullmatch(name) else name


def check_url(path: str) -> None:
    """Refuse a URL of a protocol that slides are not read through; plain paths pass.

    A table of slides may come from somebody else: it must not make this program read local files by another name, or
    start one of fsspec's many other protocols.

    Raises:
        ConfigError: the URL's protocol is not allowed, or it is not a URL.
    """
    if "://" not in path:
        return
    protocol = path.split("://", 1)[0].lower()
    if protocol not in (*PROTOCOLS, _IN_MEMORY):
        raise ConfigError(
            f"{path}: slides are not read through {protocol!r}; give a path, or a URL of {', '.join(PROTOCOLS)}"
        )
    try:
        parts = urlsplit(path)
    except ValueError as error:
        raise ConfigError(f"{path} is not a URL ({error}); check it") from error
    if not PurePosixPath(parts.path or parts.netloc).name:
        raise ConfigError(f"{path} names no file; give the slide's own URL")


def _cached_sha256(path: Path, read: Callable[[int], None]) -> str:
    """Hex sha256 of a file's bytes; it comes from the cache if the file has the same size and time of change."""
    facts = path.stat()
    key = [str(path.resolve()), facts.st_size, facts.st_mtime_ns]
    cache_file = cache_folder() / "hashes" / f"{hashlib.sha256(key[0].encode()).hexdigest()[:32]}.json"  # type: ignore[attr-defined]
    with suppress(OSError, ValueError, KeyError, TypeError):
        value = json.loads(cache_file.read_bytes())
        if value["file"] == key:
            log.debug("%s: its hash was kept in %s", path, cache_file)
            read(facts.st_size)
            return str(value["sha256"])
    digest = file_sha256(path, read)
    with suppress(StoreError):  # without a cache the file is read again next time
        write_json(cache_file, {"file": key, "sha256": digest})
    return digest


def _companions(path: Path) -> list[Path]:
    """Files beside the first one that belong to the same slide; DICOM includes the first itself."""
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        return sorted(p for p in path.with_suffix("").glob("*") if p.is_file())
    if suffix in (".vms", ".vmu"):
        return sorted(p for p in path.parent.glob(f"{escape(path.stem)}*") if p.is_file())
    if suffix != ".dcm":
        return []
    neighbours = sorted(path.parent.glob("*.dcm"))
    series = _series_of(path) if len(neighbours) > 1 else None
    return [p for p in neighbours if series is not None and _series_of(p) == series]


def _series_of(path: Path) -> str | None:
    facts = path.stat()
    return _series(str(path), facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=4096)
def _series(path: str, size: int, time: int) -> str | None:
    """The DICOM series of a file of this size and time of change, read once."""
    return dicom_series(path)


def _remote_facts(url: str) -> str | None:
    """Size and version of a file as its server states them; None where it does not answer."""
    try:
        system, path = fsspec.core.url_to_fs(url, **storage_options(url))
        facts = system.info(path)
    except Exception:  # each back end raises its own classes; opening the slide reports what is wrong
        return None
    return facts_text(facts)


def open_slide(path: str | Path, *, mpp: float | None = None) -> Slide:
    """Open a slide: whole-slide formats, DICOM, OME-TIFF, plain pictures, fsspec URLs.

    Args:
        path: a file or a URL.
        mpp: um per level-0 pixel; overrides what the file says.

    Raises:
        SlideError: the file is missing, broken, or of no form that is read.
    """
    return SlideSource(str(path), mpp).open()
