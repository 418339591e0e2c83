"""Writing of files, so that each is complete or absent, and records of files with their hashes."""

from __future__ import annotations

import csv
import errno
import hashlib
import importlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from wsi.errors import StoreError

fcntl: Any
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # Windows: runs that share a folder are not kept from writing its summary at one moment
    fcntl = None

FilesRecord = Mapping[str, tuple[int, str]]
"""Size in bytes and hex sha256 of each file, by its name relative to a folder."""
UNREADABLE = "cannot be read"

_PARTIAL = re.compile(
    r"\..+\.(\d+)\.partial"
)  # name of a file that `replacing` writes; the number is that of the process


def cannot_write(path: Path | str, error: OSError) -> StoreError:
    """The error for a path that cannot be written, whatever the cause: no space, no right, no folder."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return StoreError(f"cannot write {path}: a file has the name of the folder; choose another --out")
    reason = error.strerror or str(error)
    no_space = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    way_out = "free space and run the same command again" if no_space else "see that it can be written there"
    return StoreError(f"cannot write {path} ({reason}); {way_out}, or choose another place")


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a path beside ``path`` to write to, and rename it to ``path`` when the block ends without an error.

    Args:
        path: the file to replace; a link of this name is replaced, not followed.
        durable: wait until the bytes are on the disk before renaming, and until the name is before returning: after a
            power cut there is either the complete new file or the old one.

    Raises:
        StoreError: the file cannot be written: no space, no right, no folder.
    """
    partial = partial_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = _usual_mode(partial)
        yield partial
        os.chmod(partial, mode)  # safetensors makes files that only their owner can read
        if durable:
            flush(partial)
        os.replace(partial, path)
        if durable:
            flush(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        remove(partial)


def _usual_mode(path: Path) -> int:
    """Permission bits that the user's umask gives to a new file at this path; no file stays there."""
    path.touch()
    mode = path.stat().st_mode & 0o777
    path.unlink()
    return mode


def flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk.

    Raises:
        OSError: the disk failed.
    """
    windows, folder = fcntl is None, path.is_dir()
    if windows and folder:
        return  # Windows has no handle for a folder
    handle = os.open(
        path, os.O_RDWR if windows else os.O_RDONLY
    )  # Windows flushes only files that are open for writing
    try:
        os.fsync(handle)
    except OSError as error:
        if not (folder and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)):
            raise  # some network disks cannot do it for a folder
    finally:
        os.close(handle)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder alone, after waiting for other processes: for a run's summary files, not for scoring."""
    if fcntl is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        with suppress(OSError):  # a network disk without locks: the last process to write wins
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # releases the lock, too


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold a file's lock while this process works, however it ends; False where another process holds it.

    Where the system has no such locks it is always True.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise cannot_write(path, error) from error
    is_free = True
    try:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_free = False
        yield is_free
    finally:
        os.close(handle)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        path.unlink(missing_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise cannot_write(path, error) from error


class AtWork:
    """A sign to other processes that this one works in a folder; it ends with the process, however that ends."""

    def __init__(self, folder: Path) -> None:
        """Set the sign; call this, and every method below, inside `alone_in`.

        Raises:
            StoreError: the folder cannot be written.
        """
        self._path = folder / ".at-work"
        self._handle: int | None = None
        self.others = False  # whether another process works there: on Windows this is not known
        if fcntl is None:
            return
        try:
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self.look()
        with suppress(OSError):  # a network disk without locks
            fcntl.flock(self._handle, fcntl.LOCK_SH)

    def look(self) -> bool:
        """Whether another process works in the folder now; it changes this process's lock, so `leave` must follow."""
        if self._handle is None:
            return self.others
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.others = False
        except BlockingIOError:
            self.others = True
        except OSError:
            self.others = False
        return self.others

    def leave(self) -> None:
        """End the sign; the last process to leave removes its file."""
        if self._handle is None:
            return
        if not self.look():
            self._path.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = None


def discard_partials(folder: Path) -> None:
    """Remove unfinished files of killed runs from one slide's folder; files of a living process stay."""
    stores = [p for kind in ("*.boxes", "*.zarr") for p in folder.glob(kind) if not p.is_symlink()]
    for path in (*folder.glob(".*.partial"), *(p for store in stores for p in store.rglob("*.partial"))):
        match = _PARTIAL.fullmatch(
            path.name
        )  # zarr itself, which wrote chunks in version 0.1, names no process
        if not path.is_symlink() and not (match and alive(int(match[1]))):
            remove(path)


def is_partial(path: Path) -> bool:
    """Whether a file is one that `replacing` has not finished."""
    return _PARTIAL.fullmatch(path.name) is not None


def partial_of(path: Path) -> Path:
    """The path where this process writes a file before it renames it to ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its content; what cannot be removed stays, without an error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def alive(process: int) -> bool:
    """Whether a process of this machine runs; True where that cannot be known."""
    if fcntl is None:
        return True  # on Windows os.kill would end the process
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV with a header and plain line feeds."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    return text.getvalue()


def write_bytes(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a file, whole or not at all; see `replacing`."""
    with replacing(path, durable=durable) as partial:
        partial.write_bytes(content)


def csv_rows(content: bytes) -> list[dict[str, Any]]:
    """The rows of a CSV table with a header, by column, as text; a cell that a short row lacks is None.

    Raises:
        ValueError: it is no UTF-8 text, with or without the mark that Excel puts first, or no CSV.
    """
    try:
        return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    except csv.Error as error:
        raise ValueError(str(error)) from error


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write UTF-8 text with plain line feeds, whole or not at all."""
    write_bytes(path, text.encode(), durable=durable)


def write_json(path: Path, value: Any, *, indent: int | None = 1, durable: bool = False) -> None:
    """Write JSON without NaN or infinity, keys in the order given."""
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n", durable=durable)


def file_sha256(path: Path, read: Callable[[int], None] = lambda count: None) -> str:
    """Hex sha256 of a file's bytes.

    Args:
        path: the file.
        read: called after every piece with its number of bytes.

    Raises:
        OSError: the file cannot be read.
    """
    digest, piece = hashlib.sha256(), memoryview(bytearray(2**22))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            digest.update(piece[:count])
            read(count)
    return digest.hexdigest()


def read_record(value: Any) -> FilesRecord:
    """The record of files that a ``slide.json`` holds under ``files``.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: there is no record, or a name leads outside the folder.
    """
    record = {str(name): (int(size), str(digest)) for name, (size, digest) in value["files"].items()}
    for name in record:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"the record names {name}, outside the folder")
    return record


def cache_folder() -> Path:
    """The folder for files that can be made again: ``$XDG_CACHE_HOME/slidewright`` or ``~/.cache/slidewright``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "slidewright"
