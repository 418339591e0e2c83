"""Copies of remote slides on this machine's disk: read from there, a slide takes a tenth of the time, or less."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path, PurePosixPath
from threading import Lock, Thread
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import fsspec

from wsi.errors import ConfigError, SlideError
from wsi.files import cache_folder, fcntl, partial_of, remove
from wsi.text import first_line
from wsi.urls import facts_text, storage_options, without_secrets

log = logging.getLogger(__name__)

_FETCHING: dict[Path, Lock] = {}  # for each copy: threads of one process would write one file
_MAKING_ROOM = Lock()
ROOM_GB = 100.0  # of all copies together; SLIDEWRIGHT_STAGING_GB sets another number
KEPT_FREE = 0.05  # share of the disk that copies leave free


class Staged:
    """A copy of a remote slide, which is not removed as long as this process uses it."""

    def __init__(self, url: str) -> None:
        """Use the copy of this version of the file; where there is none, fetch the whole file.

        Raises:
            SlideError: the file cannot be fetched, or there is no room for it.
        """
        label = without_secrets(url)
        try:
            system, remote = fsspec.core.url_to_fs(url, **storage_options(url))
            facts = system.info(remote)
            size = int(facts["size"])
        except Exception as error:  # each back end raises its own classes
            raise SlideError(
                f"{label} cannot be fetched ({first_line(error)[:200]}); check it, and the right to read it"
            ) from error
        key = hashlib.sha256(f"{label}{facts_text(facts)}".encode()).hexdigest()[:32]
        name = PurePosixPath(urlsplit(url).path or urlsplit(url).netloc).name
        self.path = staging_folder() / key / name
        self._lock: int | None = None
        try:
            self._lock = _lock(self.path.parent, shared=True)
            with _FETCHING.setdefault(self.path, Lock()):
                if not self.path.is_file():
                    self._fetch(system, remote, label, size)
            os.utime(self.path.parent)  # the copies that were used last stay longest
        except OSError as error:
            self.release()
            raise SlideError(
                f"{label} cannot be copied to {self.path.parent} ({error.strerror or error}); mend that, set "
                f"XDG_CACHE_HOME to another folder, or pass --stream"
            ) from error
        except BaseException:
            self.release()
            raise

    def _fetch(self, system: Any, remote: str, label: str, size: int) -> None:
        with _MAKING_ROOM:
            make_room(size, but=self.path.parent)
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # a copy may just have been removed
        partial = partial_of(self.path)
        log.info("%s: fetching %.1f MiB", label, size / 2**20)
        try:
            system.get_file(remote, str(partial))
            if partial.stat().st_size != size:
                raise SlideError(f"{label} changed while it was fetched; run the same command again")
            partial.replace(self.path)
        except SlideError:
            raise
        except Exception as error:  # each back end raises its own classes
            raise SlideError(
                f"{label} cannot be fetched to {self.path.parent} ({first_line(error)[:200]}); check the connection "
                f"and the room there, or pass --stream"
            ) from error
        finally:
            remove(partial)

    def release(self) -> None:
        """Let the copy be removed when room is needed; calling this twice is fine."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Ahead:
    """A remote slide is copied in the background, while the ``with`` block does something else."""

    def __init__(self, url: str) -> None:
        """Keep the URL in mind."""
        self._url, self._given_up = url, False
        self._copy: Staged | None = None
        self._thread = Thread(target=self._fetch, name=f"fetch {without_secrets(url)}", daemon=True)

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:  # the command ends: nobody waits for the copy
            self._given_up = True
            if self._thread.is_alive():
                return
        self.wait()
        if self._copy is not None:
            self._copy.release()

    def wait(self) -> None:
        """Wait until the copy is there, or cannot be made."""
        self._thread.join()

    def _fetch(self) -> None:
        with suppress(SlideError, ConfigError):  # whoever opens the slide meets the fault again, and says it
            self._copy = Staged(self._url)
            if self._given_up:
                self._copy.release()


def staging_folder() -> Path:
    """The folder of the copies, in the user's cache; only the user may read it."""
    folder = cache_folder() / "slides"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def make_room(size: int, *, but: Path) -> None:
    """Remove the copies that were not used for longest, until there is room for a new one.

    Args:
        size: bytes of the new one.
        but: a folder that stays.

    Raises:
        SlideError: there is no room without those that are in use.
    """
    text = os.environ.get("SLIDEWRIGHT_STAGING_GB", str(ROOM_GB))
    try:
        room = int(float(text) * 1e9)
    except ValueError as error:
        raise ConfigError(
            f"SLIDEWRIGHT_STAGING_GB is {text!r}; give a number of gigabytes, such as 100"
        ) from error
    folder = staging_folder()
    copies = sorted((p for p in folder.iterdir() if p.is_dir() and p != but), key=lambda p: p.stat().st_mtime)
    sizes = {copy: sum(f.stat().st_size for f in copy.rglob("*") if f.is_file()) for copy in copies}

    def lacks() -> bool:
        disk = shutil.disk_usage(folder)
        return sum(sizes.values()) + size > room or disk.free - size < KEPT_FREE * disk.total

    for copy in copies:
        if not lacks():
            return
        lock = _lock(copy, shared=False)
        if lock is not None or fcntl is None:
            remove(copy)
            del sizes[copy]
            if lock is not None:
                os.close(lock)
    if lacks():
        raise SlideError(
            f"{folder} has no room for a slide of {size / 1e9:.1f} GB; free the disk, set SLIDEWRIGHT_STAGING_GB, or "
            f"pass --stream"
        )


def _lock(folder: Path, *, shared: bool) -> int | None:
    """A lock on a copy's folder; None where another process uses it, or there are no locks."""
    while fcntl is not None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(folder)):
                return handle
        except FileNotFoundError:
            pass  # the folder was removed while this process waited: a new one is locked
        except OSError:
            os.close(handle)
            return None
        os.close(handle)
    return None
