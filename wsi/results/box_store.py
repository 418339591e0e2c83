"""Boxes of a slide on disk, each chunk whole or not at all: an interrupted run goes on after the last."""

from __future__ import annotations

import io
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsi.errors import ForeignStoreError
from wsi.files import replacing, write_json
from wsi.marks.boxes import Detections

log = logging.getLogger(__name__)

SPEC = "spec.json"


class BoxStore:
    """A folder with ``spec.json`` and, for every chunk of tiles that is done, ``NUMBER.npz``.

    A chunk holds ``boxes`` (n, 4) in level-0 pixels, ``scores`` (n,), ``labels`` (n,), and ``unreadable`` (k,): the
    numbers, within the chunk, of tiles that could not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, made_by: str) -> BoxStore:
        """Open the store of an interrupted run, or make an empty one.

        Args:
            path: the folder.
            made_by: fingerprint of all that made the boxes.

        Raises:
            ForeignStoreError: the folder holds something else, or another run's boxes.
            StoreError: it cannot be written.
        """
        if path.is_symlink():
            raise ForeignStoreError(f"{path} is a link, and results are not written through links; remove it")
        earlier = _fingerprint(path)
        if earlier is None and not any(path.glob("*.npz")):
            # the store is new, or the run was ended before it wrote this file
            write_json(path / SPEC, {"fingerprint": made_by})
        elif earlier != made_by:
            raise ForeignStoreError(
                f"{path} was made from another slide, model or settings; choose another --out, or pass --overwrite"
            )
        return cls(path)

    @staticmethod
    def discard(path: Path, *, unless: str) -> None:
        """Remove a store, but not one whose fingerprint is ``unless``."""
        if path.is_dir() and not path.is_symlink() and _fingerprint(path) != unless:
            shutil.rmtree(path)

    def write_chunk(self, number: int, detections: Detections, unreadable: npt.NDArray[np.int64]) -> None:
        """Keep a chunk.

        Raises:
            StoreError: it cannot be written.
        """
        content = io.BytesIO()
        np.savez(
            content,
            boxes=detections.boxes,
            scores=detections.scores,
            labels=detections.labels,
            unreadable=unreadable.astype(np.int64),
        )
        with replacing(self._file(number)) as partial:
            partial.write_bytes(content.getvalue())

    def read_chunk(self, number: int) -> tuple[Detections, npt.NDArray[np.int64]] | None:
        """Boxes of a chunk and its unreadable tiles; None where it was not written, or is damaged."""
        path = self._file(number)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ForeignStoreError(
                f"{path} cannot be read ({error.strerror or error}); mend that and run the same command again"
            ) from error
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                detections = Detections(arrays["boxes"], arrays["scores"], arrays["labels"])
                return detections, np.asarray(arrays["unreadable"], np.int64)
        except MemoryError:
            raise
        except Exception as error:  # zipfile and numpy raise many classes for a changed byte
            log.warning("%s was damaged (%s) and is made again", path, error)
            return None

    def _file(self, number: int) -> Path:
        return self.path / f"{number:05d}.npz"


def _fingerprint(path: Path) -> str | None:
    """The fingerprint of a store; None where there is no readable one."""
    try:
        value = json.loads((path / SPEC).read_bytes())
        return str(value["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
