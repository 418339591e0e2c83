"""The place where results live: a folder on a disk, or a prefix at any URL that fsspec can write to."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any

import fsspec

from wsi.errors import ConfigError, ForeignStoreError, StoreError
from wsi.files import (
    UNREADABLE,
    AtWork,
    FilesRecord,
    alone_in,
    cannot_write,
    discard_partials,
    file_sha256,
    flush,
    is_partial,
    remove,
    write_bytes,
)
from wsi.text import first_line
from wsi.urls import storage_options, without_secrets

AT_ONCE = 500  # small files that are asked for at once at a URL
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "http": "aiohttp"}


class Folder(ABC):
    """A place for files. Names are relative to it, parted by ``/``; each file is there whole, or not at all.

    ``str(folder)`` is its path, or its URL without a query, for messages.
    """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
        """

    @abstractmethod
    def write(self, name: str, content: bytes | str, *, durable: bool = False) -> None:
        """Write or replace a file, and make the folders above it; text becomes UTF-8.

        Args:
            name: of the file.
            content: all of it.
            durable: whether to return only when a power cut cannot undo it; a URL's server decides that itself.

        Raises:
            StoreError: it cannot be written.
        """

    def append(self, name: str, content: bytes, *, after: int) -> None:
        """Add bytes at the end of a file, and return only when a power cut cannot undo it.

        Args:
            name: of the file, which need not be there.
            content: what is added.
            after: number of bytes that stay; what lies behind them, a line that was cut short, goes.

        Raises:
            StoreError: it cannot be written.
        """
        try:
            kept = self.read(name)[:after] if after else b""
        except OSError as error:
            raise cannot_write(self.at(name), error) from error
        self.write(name, kept + content, durable=True)

    @abstractmethod
    def create(self, name: str, content: str) -> bool:
        """Write a file only if there is none of its name, and say whether it was written: one of many who try wins.

        Raises:
            StoreError: it cannot be written.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a file, or a folder with all in it; a missing one is no error.

        Raises:
            StoreError: it cannot be deleted.
        """

    @abstractmethod
    def move(self, name: str, new_name: str) -> None:
        """Give a file or a folder another name, which must be free.

        Raises:
            StoreError: it cannot be moved.
        """

    @abstractmethod
    def exists(self, name: str = "") -> bool:
        """Whether there is a file, or a folder, of this name."""

    @abstractmethod
    def files(self, name: str = "") -> list[str]:
        """Names of all files in the folder of this name and below it, sorted, relative to ``self``.

        Files that are being written are not among them.
        """

    @abstractmethod
    def folders(self) -> list[str]:
        """Names of the folders in this one, sorted."""

    @abstractmethod
    def size(self, name: str) -> int:
        """A file's number of bytes.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be asked for.
        """

    @abstractmethod
    def inside(self, name: str) -> Folder:
        """The folder of this name in this one, whether it is there or not."""

    def absolute(self) -> Folder:
        """The same folder by a name that means it in every process."""
        return self

    @property
    @abstractmethod
    def parent(self) -> Folder:
        """The folder that this one lies in."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of its path or URL."""

    @abstractmethod
    def at(self, name: str) -> str:
        """Path or URL of a file, for messages."""

    def sha256(self, name: str) -> str:
        """Hex sha256 of a file; it raises as `read` does."""
        return hashlib.sha256(self.read(name)).hexdigest()

    def flush(self, name: str) -> None:
        """Wait until a file is safe from a power cut; a URL's server decides that itself."""
        return

    def refuse_link(self) -> None:
        """Refuse to write through a link, which may lead out of the results.

        Raises:
            ForeignStoreError: this folder is a link.
        """
        return

    def alone(self) -> AbstractContextManager[None]:
        """Hold the folder alone, after waiting for others; at a URL nothing is held: the last to write wins."""
        return nullcontext()

    def at_work(self) -> AtWork | None:
        """A sign to others that this process works here; None at a URL, where there is none."""
        return None

    def tidy(self) -> None:
        """Delete this folder if it is empty; at a URL an empty folder is not there."""
        return

    def discard_partials(self) -> None:
        """Remove what killed processes left unfinished; nothing at a URL, where a file appears when it is whole."""
        return

    def read_json(self, name: str) -> Any:
        """A JSON file's value; it raises as `read` does, and ValueError where it is no JSON."""
        return json.loads(self.read(name))

    def write_json(self, name: str, value: Any, *, durable: bool = False) -> None:
        """Write JSON without NaN or infinity, keys in the order given; it raises as `write` does."""
        text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
        self.write(name, text + "\n", durable=durable)

    def holding(self, name: str) -> list[str]:
        """Names of the folders in this one that hold a file of this name, sorted."""
        return [folder for folder in self.folders() if self.exists(f"{folder}/{name}")]

    def each(self, name: str) -> Iterator[tuple[str, bytes]]:
        """The folders in this one that hold a file of this name, sorted, and the file's bytes.

        A file that cannot be read is passed over.
        """
        folders = self.folders()
        files = (f"{folder}/{name}" for folder in folders)
        for folder, (_, content) in zip(folders, self.contents(files), strict=True):
            if isinstance(content, bytes):
                yield folder, content

    def contents(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | OSError]]:
        """Names of files, each with its bytes, or with what `read` raises."""
        for name in names:
            try:
                yield name, self.read(name)
            except OSError as error:
                yield name, error

    def record(self, names: Iterable[str], *, flush: bool = True) -> dict[str, tuple[int, str]]:
        """Size and hash of files, once their bytes are safe; a folder stands for all files in it.

        Args:
            names: of the files and folders.
            flush: False for files that were written with ``durable``.

        Raises:
            StoreError: one of them cannot be read.
        """
        record = {}
        for name in names:
            try:
                for file in self.files(name) or [name]:
                    if flush:
                        self.flush(file)
                    record[file] = (self.size(file), self.sha256(file))
            except OSError as error:
                raise cannot_write(self.at(name), error) from error
        return record

    def changes(self, record: FilesRecord) -> dict[str, str]:
        """What is wrong with each file of a record that is not as it was written: missing, other size, changed ..."""
        changes = {}
        for name, (size, digest) in record.items():
            try:
                size_now = self.size(name)
                if size_now != size:
                    changes[name] = f"holds {size_now} bytes instead of {size}"
                elif self.sha256(name) != digest:
                    changes[name] = "changed after it was written"
            except FileNotFoundError:
                changes[name] = "is missing"
            except OSError as error:
                changes[name] = f"{UNREADABLE} ({error.strerror or error})"
        return changes


@dataclass(frozen=True)
class LocalFolder(Folder):
    """A folder on a disk; it need not be there yet.

    Attributes:
        path: of the folder.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.resolve().name if self.path.name in ("", "..") else self.path.name

    def __reduce__(self) -> tuple[type[LocalFolder], tuple[Path]]:
        """Pickle the absolute path, which means the same in a process that works in another folder."""
        return LocalFolder, (self.path.absolute(),)

    def absolute(self) -> LocalFolder:
        """The same folder by its absolute path."""
        return LocalFolder(self.path.absolute())

    @property
    def parent(self) -> LocalFolder:
        """The folder that this one lies in."""
        return LocalFolder(self.path.resolve().parent)

    def at(self, name: str) -> str:
        """The file's path, for messages."""
        return str(self.path / name)

    def read(self, name: str) -> bytes:
        """A file's bytes, see `Folder.read`."""
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes | str, *, durable: bool = False) -> None:
        """Write or replace a file, see `Folder.write`; a link of this name is replaced, not followed."""
        write_bytes(
            self.path / name, content.encode() if isinstance(content, str) else content, durable=durable
        )

    def append(self, name: str, content: bytes, *, after: int) -> None:
        """Add bytes at the end of a file, see `Folder.append`."""
        path = self.path / name
        if after == 0:  # the file's name must be safe, too
            self.write(name, content, durable=True)
            return
        try:
            with path.open("ab") as file:
                file.truncate(after)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(path, error) from error

    def create(self, name: str, content: str) -> bool:
        """Write a file only if there is none of its name, see `Folder.create`."""
        path = self.path / name
        for attempt in range(
            3
        ):  # another process may `tidy` the folder between making it and writing into it
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("x", encoding="utf-8") as file:
                    file.write(content)
                break
            except FileExistsError as error:
                if path.exists():
                    return False
                if attempt == 2 or path.parent.exists():
                    raise cannot_write(path, error) from error
            except OSError as error:
                if attempt == 2 or not isinstance(error, FileNotFoundError):
                    raise cannot_write(path, error) from error
        return True

    def delete(self, name: str) -> None:
        """Delete a file or a folder, see `Folder.delete`; what is reached through a link outside stays."""
        path = self.path / name
        outside = name and not path.parent.resolve().is_relative_to(self.path.resolve())
        if outside or (not name and path.is_symlink()):
            return
        remove(path)
        if path.exists():
            raise StoreError(f"cannot remove {path}; see that it can be, or choose another place")

    def move(self, name: str, new_name: str) -> None:
        """Rename a file or a folder, see `Folder.move`."""
        try:
            (self.path / name).rename(self.path / new_name)
        except OSError as error:
            raise cannot_write(self.path / new_name, error) from error

    def exists(self, name: str = "") -> bool:
        """Whether there is a file, or a folder, of this name."""
        return (self.path / name).exists()

    def files(self, name: str = "") -> list[str]:
        """Names of all files below a folder, see `Folder.files`."""
        paths: list[Path] = []
        for folder, _, files in os.walk(self.path / name):  # which passes over what vanishes meanwhile
            below = Path(folder)
            paths += [below / file for file in files if not is_partial(below / file)]
        return sorted(path.relative_to(self.path).as_posix() for path in paths)

    def folders(self) -> list[str]:
        """Names of the folders in this one, sorted."""
        return sorted(p.name for p in self.path.iterdir() if p.is_dir()) if self.path.is_dir() else []

    def size(self, name: str) -> int:
        """A file's number of bytes, see `Folder.size`."""
        return (self.path / name).stat().st_size

    def sha256(self, name: str) -> str:
        """Hex sha256 of a file, which is read piece by piece."""
        return file_sha256(self.path / name)

    def flush(self, name: str) -> None:
        """Wait until a file's bytes are on the disk."""
        flush(self.path / name)

    def inside(self, name: str) -> LocalFolder:
        """The folder of this name in this one."""
        return LocalFolder(self.path / name)

    def refuse_link(self) -> None:
        """Refuse to write through a link, see `Folder.refuse_link`."""
        if self.path.is_symlink():
            raise ForeignStoreError(
                f"{self.path} is a link, and results are not written through links; remove it"
            )

    def alone(self) -> AbstractContextManager[None]:
        """Hold the folder alone, after waiting for other processes."""
        return alone_in(self.path)

    def at_work(self) -> AtWork:
        """A sign to other processes that this one works here; call this inside `alone`."""
        return AtWork(self.path)

    def tidy(self) -> None:
        """Delete this folder if it is empty."""
        with suppress(OSError):  # it is not
            self.path.rmdir()

    def discard_partials(self) -> None:
        """Remove what killed processes left unfinished, here and in the stores inside."""
        discard_partials(self.path)


class RemoteFolder(Folder):
    """A prefix at a URL of an object store, where a file appears with the end of its upload.

    Other back ends of fsspec (sftp, smb) may show a file while it is written, and create one that is there already.
    """

    def __init__(self, url: str) -> None:
        """Find the back end.

        Raises:
            ConfigError: there is none for this protocol, or it is not installed.
        """
        self._url = url.rstrip("/")
        protocol = url.split("://", 1)[0].lower()
        try:
            options = storage_options(url) | {"use_listings_cache": False}  # other processes write there, too
            self._store, self._root = fsspec.core.url_to_fs(self._url, **options)
        except ImportError as error:
            package = PACKAGES.get(protocol, "its package")
            raise ConfigError(
                f"{self} needs {package}, which is not installed (pip install {package})"
            ) from error
        except Exception as error:  # each back end raises its own classes
            raise ConfigError(f"{self} is no place for results ({first_line(error)}); check it") from error

    def __str__(self) -> str:
        return without_secrets(self._url)

    @property
    def name(self) -> str:
        """The last part of its URL."""
        return str(self).rsplit("/", 1)[-1]

    @property
    def parent(self) -> RemoteFolder:
        """The folder that this one lies in."""
        return RemoteFolder(self._url.rsplit("/", 1)[0])

    def at(self, name: str) -> str:
        """The file's URL, for messages."""
        return f"{self}/{name}"

    def read(self, name: str) -> bytes:
        """A file's bytes, see `Folder.read`."""
        with self._asking(name):
            return bytes(self._store.cat_file(self._full(name)))

    def write(self, name: str, content: bytes | str, *, durable: bool = False) -> None:
        """Write or replace a file in one upload, see `Folder.write`."""
        with self._changing(name):
            self._store.pipe_file(self._full(name), content.encode() if isinstance(content, str) else content)

    def create(self, name: str, content: str) -> bool:
        """Write a file only if there is none of its name, by a conditional upload, see `Folder.create`."""
        with self._changing(name):
            try:
                self._store.pipe_file(self._full(name), content.encode(), mode="create")
            except FileExistsError:
                return False
            except Exception as error:
                if "PreconditionFailed" in str(error) or "ConditionalRequestConflict" in str(error):
                    return False
                raise
        return True

    def delete(self, name: str) -> None:
        """Delete a file or all below a name, see `Folder.delete`."""
        with self._changing(name):
            if self._store.exists(self._full(name)):
                self._store.rm(self._full(name), recursive=True)

    def move(self, name: str, new_name: str) -> None:
        """Copy all files to another name and delete the old ones, see `Folder.move`."""
        with self._changing(new_name):
            for file in self.files(name) or [name]:
                self.write(new_name + file.removeprefix(name), self.read(file))
        self.delete(name)

    def exists(self, name: str = "") -> bool:
        """Whether there is a file of this name, or one below it."""
        with self._asking(name):
            return bool(self._store.exists(self._full(name)))

    def files(self, name: str = "") -> list[str]:
        """Names of all files below a name, by one listing, see `Folder.files`."""
        start = len(self._full("").rstrip("/")) + 1
        top = self._full(name).rstrip("/")
        with self._asking(name):
            return sorted(str(path)[start:] for path in self._store.find(top) if str(path) != top)

    def folders(self) -> list[str]:
        """Names of the folders in this one, sorted."""
        try:
            with self._asking(""):
                entries = self._store.ls(self._full(""), detail=True)
        except FileNotFoundError:
            return []
        return sorted(e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")

    def holding(self, name: str) -> list[str]:
        """Names of the folders in this one that hold a file of this name, sorted."""
        return [folder for folder, _ in self.each(name)]

    def contents(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | OSError]]:
        """Names of files, each with its bytes, or with what `read` raises; many are asked for at once."""
        listed = list(names)
        for start in range(0, len(listed), AT_ONCE):
            batch = listed[start : start + AT_ONCE]
            full_names = [self._full(name) for name in batch]
            contents: dict[str, Any] = {}
            with suppress(
                Exception
            ):  # each back end raises its own classes; the single reads below tell what it is
                # what looks like a pattern would be one to fsspec
                plain = [name for name in full_names if not has_magic(name)]
                contents = self._store.cat(plain, on_error="return") if plain else {}
            for name in batch:
                content = contents.get(self._full(name))
                if isinstance(content, bytes):
                    yield name, content
                else:  # asked for again: it may be there by now, and `read` raises what it should
                    yield from super().contents([name])

    def record(self, names: Iterable[str], *, flush: bool = True) -> dict[str, tuple[int, str]]:
        """Size and hash of files, see `Folder.record`; each is asked for once."""
        record: dict[str, tuple[int, str]] = {}
        for name, content in self.contents(names):
            if isinstance(content, bytes):
                record[name] = _size_and_hash(content)
                continue
            try:
                files = self.files(name)
                if not files:
                    raise content
                for file, content_below in self.contents(files):
                    if not isinstance(content_below, bytes):
                        raise content_below
                    record[file] = _size_and_hash(content_below)
            except OSError as error:
                raise cannot_write(self.at(name), error) from error
        return record

    def size(self, name: str) -> int:
        """A file's number of bytes, see `Folder.size`."""
        with self._asking(name):
            return int(self._store.info(self._full(name))["size"])

    def inside(self, name: str) -> RemoteFolder:
        """The folder of this name in this one."""
        return RemoteFolder(f"{self._url}/{name}")

    def _full(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """Turn whatever a back end raises into an OSError; a missing file stays a FileNotFoundError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # each back end raises its own classes
            raise OSError(f"{self.at(name)}: {first_line(error)}") from error

    @contextmanager
    def _changing(self, name: str) -> Iterator[None]:
        """Turn whatever a back end raises into a StoreError."""
        try:
            yield
        except NotImplementedError as error:
            raise StoreError(
                f"cannot write {self.at(name)}: files of this kind of URL can only be read; choose another place"
            ) from error
        except Exception as error:  # each back end raises its own classes
            raise StoreError(
                f"cannot write {self.at(name)} ({first_line(error)}); see that it can be written there, "
                f"or choose another place"
            ) from error


def _size_and_hash(content: bytes) -> tuple[int, str]:
    return len(content), hashlib.sha256(content).hexdigest()


Place = Folder | Path | str
"""A folder, or the path or URL of one."""


def folder_at(place: Place) -> Folder:
    """The folder of a path, or of a URL such as ``s3://bucket/run``; a `Folder` is given back.

    Raises:
        ConfigError: nothing serves URLs of this protocol, or its package is not installed.
    """
    if isinstance(place, Folder):
        return place
    text = str(place)
    if "://" not in text:
        return LocalFolder(Path(text))
    return LocalFolder(Path(text[7:])) if text.lower().startswith("file://") else RemoteFolder(text)
