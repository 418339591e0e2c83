"""Writing so that a file is either there and whole, or not there; and knowing files again by their hashes."""

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
"""By name, relative to a folder: size in bytes and hex sha256."""
UNREADABLE = "cannot be read"

_PARTIAL = re.compile(r"\..+\.(\d+)\.partial")  # what `replacing` writes to: the number is the process


def cannot_write(path: Path, error: OSError) -> StoreError:
    """No space, no right, no folder: one sentence for all of them."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return StoreError(f"cannot write {path}: a file has the name of the folder; choose another --out")
    why = error.strerror or str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    way_out = "free space and run the same command again" if full else "see that it can be written there"
    return StoreError(f"cannot write {path} ({why}); {way_out}, or choose another place")


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a path beside ``path`` to write to, and rename it when the block ends well.

    Args:
        path: what is replaced; a link of this name is replaced, not followed.
        durable: bytes reach the disk before the new name does, and the name before this returns: after a power cut
            the file is whole, or the old one.

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
    """Who may read and write a new file here: what the user's mask says; nothing is left at the path."""
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
        return  # it has no handle for it
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)  # Windows flushes only what may be written
    try:
        os.fsync(handle)
    except OSError as error:
        if not (folder and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)):
            raise  # some network disks cannot do it for a folder
    finally:
        os.close(handle)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process holds this folder: for reading and writing what sums a run up, not for scoring."""
    if fcntl is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        with suppress(OSError):  # a network disk without locks: as before, the last one wins
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # lets the lock go, too


class AtWork:
    """That this process works in a folder, for others to see: it ends with the process, however that ends."""

    def __init__(self, folder: Path) -> None:
        """Begin; call it, and everything below, inside `alone_in`.

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
        """Whether another process works in the folder now; this one is then to `leave`."""
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
        """End; the last to leave takes the sign away."""
        if self._handle is None:
            return
        if not self.look():
            self._path.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = None


def discard_partials(folder: Path) -> None:
    """Remove what killed runs of ours had begun to write in one slide's folder; what a living process writes stays."""
    for path in folder.glob(".*.partial"):
        match = _PARTIAL.fullmatch(path.name)
        if match and not path.is_symlink() and not _alive(int(match[1])):
            remove(path)
    for store in [*folder.glob("*.zarr"), *folder.glob("*.boxes")]:
        if not store.is_symlink():
            for path in store.rglob("*.partial"):  # zarr's own have names of chunks with a number
                if path.is_file() and not path.is_symlink():
                    path.unlink(missing_ok=True)


def partial_of(path: Path) -> Path:
    """Where this process writes what is then renamed to ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all in it; a failure leaves the rest."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    if fcntl is None:
        return True  # Windows, where asking would end it
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


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write UTF-8 text with plain line feeds, whole or not at all."""
    with replacing(path, durable=durable) as partial:
        partial.write_bytes(text.encode())


def write_json(path: Path, value: Any, *, indent: int | None = 1, durable: bool = False) -> None:
    """Write JSON without NaN or infinity, keys in the order given."""
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n", durable=durable)


def file_sha256(path: Path, read: Callable[[int], None] = lambda count: None) -> str:
    """Hex sha256 of a file's bytes.

    Args:
        path: the file.
        read: told of every piece: how many bytes it has.

    Raises:
        OSError: the file cannot be read.
    """
    digest, piece = hashlib.sha256(), memoryview(bytearray(2**22))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            digest.update(piece[:count])
            read(count)
    return digest.hexdigest()


def record_files(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Size and hash of files that a result consists of, once their bytes are on the disk; a folder gives all of its.

    Raises:
        StoreError: one of them cannot be read.
    """
    record = {}
    for name in names:
        path = folder / name
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        try:
            for file in inside:
                flush(file)
                record[file.relative_to(folder).as_posix()] = (file.stat().st_size, file_sha256(file))
        except OSError as error:
            raise cannot_write(path, error) from error
    return record


def read_record(value: Any) -> FilesRecord:
    """The ``files`` of a ``slide.json``.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: there is none, or a name leaves the folder.
    """
    record = {str(name): (int(size), str(digest)) for name, (size, digest) in value["files"].items()}
    for name in record:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"the record names {name}, outside the folder")
    return record


def changed_files(folder: Path, record: FilesRecord) -> dict[str, str]:
    """Files of a record that are not as they were written: by name, ``is missing``, ``is cut short`` or ``changed``."""
    changes = {}
    for name, (size, digest) in record.items():
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                changes[name] = f"holds {found} bytes instead of {size}"
            elif file_sha256(path) != digest:
                changes[name] = "changed after it was written"
        except FileNotFoundError:
            changes[name] = "is missing"
        except OSError as error:
            changes[name] = f"{UNREADABLE} ({error.strerror})"
    return changes


def discard_inside(folder: Path, name: str) -> None:
    """Remove a file that a record names; one that a link leads to, outside the folder, stays."""
    path = folder / name
    if path.parent.resolve().is_relative_to(folder.resolve()):
        path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where what can be made again is kept: ``$XDG_CACHE_HOME/slidewright`` or ``~/.cache/slidewright``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "slidewright"
