"""The jobs of a service on disk: a SQLite database in the results folder, which a killed server finds again."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from wsi.errors import StoreError

log = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "failed", "cancelled"]
OPEN: tuple[State, ...] = ("waiting", "running")
FILE = "queue.sqlite"


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A submitted slide.

    Attributes:
        id: random.
        name: of the slide in outputs.
        path: of the slide on the server.
        mpp: um per pixel that the caller states; None: the file does.
        file_state: size and time of change of the file when it was submitted.
        submitted, deadline, promised, ended: seconds since 1970; None: there is none, nothing is promised, not ended.
        cells: with tissue.
        reason: why it failed, or what a reader must know; may be empty.
    """

    id: str
    name: str
    path: str
    mpp: float | None
    file_state: str
    submitted: float
    deadline: float | None
    promised: float | None
    cells: int
    state: State = "waiting"
    ended: float | None = None
    reason: str = ""

    def public(self) -> dict[str, Any]:
        """What callers are told; not the path, which may name a patient."""
        facts = asdict(self)
        for hidden in ("path", "file_state", "mpp"):
            del facts[hidden]
        return facts


_COLUMNS = [field.name for field in fields(JobRecord)]


def new_id() -> str:
    """A random id."""
    return uuid.uuid4().hex[:16]


class JobStore:
    """The jobs; every change is on the disk when the call returns."""

    def __init__(self, folder: Path) -> None:
        """Open the database, or make it. One that is broken is kept aside.

        Raises:
            StoreError: the folder cannot be written.
        """
        self._lock = threading.Lock()
        path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = _opened(path)
        except sqlite3.Error as error:
            if not _is_broken(error):  # a full disk, or another program that holds it: the jobs may be good
                raise StoreError(f"{path} cannot be opened ({error}); free space, and start again") from error
            aside = f"{FILE}.broken-{time.strftime('%Y%m%d-%H%M%S')}"
            log.warning("%s is broken (%s); it is kept as %s, and a new one is begun", path, error, aside)
            try:
                for suffix in ("", "-wal"):
                    if Path(f"{path}{suffix}").exists():
                        Path(f"{path}{suffix}").rename(path.with_name(aside + suffix))
                self._db = _opened(path)
            except (OSError, sqlite3.Error) as second:
                raise StoreError(f"{path} cannot be written ({second})") from second
        except OSError as error:
            raise StoreError(f"{path} cannot be written ({error.strerror or error})") from error

    def put(self, record: JobRecord) -> None:
        """Add a job, or replace it.

        Raises:
            StoreError: the disk fails.
        """
        with self._lock:
            self._write(record)

    def _write(self, record: JobRecord) -> None:
        marks = ", ".join("?" * len(_COLUMNS))
        statement = f"INSERT OR REPLACE INTO jobs ({', '.join(_COLUMNS)}) VALUES ({marks})"
        try:
            with self._db:
                self._db.execute(statement, astuple(record))
        except sqlite3.Error as error:
            raise StoreError(f"the queue cannot be written ({error}); free space, and try again") from error

    def change(self, key: str, only_from: Sequence[State] = (), **changes: Any) -> JobRecord:
        """Change some fields of a job, and return it as it is then.

        Args:
            key: its id.
            only_from: states in which it is changed; in others it stays as it is. Empty: all.
            changes: the fields.

        Raises:
            KeyError: there is no such job.
            StoreError: the disk fails.
        """
        with self._lock:
            record = self._get(key)
            if only_from and record.state not in only_from:
                return record
            record = replace(record, **changes)
            self._write(record)
        return record

    def get(self, key: str) -> JobRecord:
        """A job by its id.

        Raises:
            KeyError: there is none.
            StoreError: the disk fails.
        """
        with self._lock:
            return self._get(key)

    def _get(self, key: str) -> JobRecord:
        rows = self._rows("WHERE id = ?", (key,))
        if not rows:
            raise KeyError(key)
        return rows[0]

    def all(self, states: Sequence[State] = (), *, most: int = 100_000) -> list[JobRecord]:
        """Jobs by their submission; of some states only, the newest ones where they are too many."""
        where = f"WHERE state IN ({', '.join('?' * len(states))})" if states else ""
        with self._lock:
            rows = self._rows(f"{where} ORDER BY submitted DESC, id DESC LIMIT ?", (*states, most))
        return rows[::-1]

    def same(
        self,
        path: str,
        file_state: str,
        mpp: float | None = None,
        states: Sequence[State] = ("waiting", "running", "done"),
    ) -> JobRecord | None:
        """The newest job of the same file and spacing that is in one of some states."""
        marks = ", ".join("?" * len(states))
        where = f"WHERE path = ? AND file_state = ? AND mpp IS ? AND state IN ({marks})"
        with self._lock:
            rows = self._rows(f"{where} ORDER BY submitted DESC LIMIT 1", (path, file_state, mpp, *states))
        return rows[0] if rows else None

    def named(self, name: str) -> str | None:
        """Path of the slide that has a name in outputs; None where it is free."""
        with self._lock:
            rows = self._rows("WHERE name = ? LIMIT 1", (name,))
        return rows[0].path if rows else None

    def _rows(self, where: str, values: Sequence[Any]) -> list[JobRecord]:
        try:
            rows = self._db.execute(f"SELECT {', '.join(_COLUMNS)} FROM jobs {where}", values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"the queue cannot be read ({error}); start wsi serve again") from error
        return [JobRecord(*row) for row in rows]

    def counts(self) -> dict[str, int]:
        """Number of jobs in each state."""
        with self._lock:
            try:
                return dict(self._db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
            except sqlite3.Error as error:
                raise StoreError(f"the queue cannot be read ({error}); start wsi serve again") from error

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()


def _is_broken(error: sqlite3.Error) -> bool:
    """Whether an error says that a database is none, or is damaged, or lacks a column of this version."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # our own check's error has none
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "no such column" in str(error)


def _opened(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False, timeout=30)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        columns = ", ".join(f"{name} PRIMARY KEY" if name == "id" else name for name in _COLUMNS)
        db.execute(f"CREATE TABLE IF NOT EXISTS jobs ({columns})")
        db.execute("CREATE INDEX IF NOT EXISTS by_path ON jobs (path)")
        db.execute("CREATE INDEX IF NOT EXISTS by_name ON jobs (name)")
        db.execute("CREATE INDEX IF NOT EXISTS by_state ON jobs (state)")
        db.commit()
        if db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("its check fails")
        db.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM jobs LIMIT 1"
        )  # of another version, it may lack a column
    except sqlite3.Error:
        db.close()
        raise
    return db
