"""Writing so that a file is either there and whole, or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from wsi.errors import StoreError


def cannot_write(path: Path, error: OSError) -> StoreError:
    """No space, no right, no folder: one sentence for all of them."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return StoreError(f"cannot write {path}: a file has the name of the folder; choose another --out")
    why = error.strerror or str(error)
    return StoreError(
        f"cannot write {path} ({why}); free space and run the same command again, or choose another --out"
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to, and rename it when the block ends well.

    Raises:
        StoreError: the file cannot be written: no space, no right, no folder.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def discard_partials(folder: Path) -> None:
    """Remove what a killed run had begun to write below ``folder``."""
    for path in folder.rglob("*.partial"):
        if path.is_file():
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with plain line feeds, whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(text.encode())


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Write JSON without NaN or infinity, keys in the order given."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")
