"""Boxes of a slide on disk, each chunk whole or not at all: an interrupted run goes on after the last."""

from __future__ import annotations

import io
import logging

import numpy as np
import numpy.typing as npt

from wsi.errors import ForeignStoreError, StoreError
from wsi.marks.boxes import Boxes
from wsi.results.folder import Folder, Place, folder_at

log = logging.getLogger(__name__)

SPEC = "spec.json"


class BoxStore:
    """A folder with ``spec.json`` and, for every chunk of tiles that is done, ``NUMBER.npz``.

    A chunk holds ``boxes`` (n, 4) in level-0 pixels, ``scores`` (n,), ``labels`` (n,), and ``unreadable`` (k,): the
    numbers, within the chunk, of tiles that could not be read.
    """

    def __init__(self, folder: Folder, made_by: str) -> None:
        self.folder, self._made_by = folder, made_by

    @classmethod
    def create(cls, place: Place, made_by: str) -> BoxStore:
        """Open the store of an interrupted run, or make an empty one.

        Args:
            place: the folder of the store itself.
            made_by: fingerprint of all that made the boxes.

        Raises:
            ForeignStoreError: the folder holds something else, or another run's boxes.
            StoreError: it cannot be written.
        """
        folder = folder_at(place)
        folder.refuse_link()
        earlier = _fingerprint(folder)
        if earlier is None and not any(name.endswith(".npz") for name in folder.files()):
            # the store is new, or the run was ended before it wrote this file
            folder.write_json(SPEC, {"fingerprint": made_by})
        elif earlier != made_by:
            raise ForeignStoreError(
                f"{folder} was made from another slide, model or settings; choose another --out, or pass --overwrite"
            )
        return cls(folder, made_by)

    @staticmethod
    def discard(place: Place, *, unless: str) -> None:
        """Remove a store, but not one whose fingerprint is ``unless``."""
        folder = folder_at(place)
        if folder.exists() and _fingerprint(folder) != unless:
            folder.delete("")

    def write_chunk(self, number: int, detections: Boxes, unreadable: npt.NDArray[np.int64]) -> None:
        """Keep a chunk: a detector's boxes, and its unreadable tiles (k,), numbered within the chunk.

        Raises:
            StoreError: it cannot be written.
            ForeignStoreError: another command has replaced the store.
        """
        if _fingerprint(self.folder) != self._made_by:
            raise ForeignStoreError(
                f"{self.folder} was replaced by another command; run one command at a time with --overwrite"
            )
        content = io.BytesIO()
        np.savez(
            content,
            boxes=detections.boxes,
            scores=detections.known_scores,
            labels=detections.labels,
            unreadable=unreadable.astype(np.int64),
        )
        self.folder.write(_file(number), content.getvalue())

    def read_chunk(self, number: int) -> tuple[Boxes, npt.NDArray[np.int64]] | None:
        """Boxes of a chunk and its unreadable tiles; None where it was not written, or is damaged."""
        path = self.folder.at(_file(number))
        try:
            content = self.folder.read(_file(number))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ForeignStoreError(
                f"{path} cannot be read ({error.strerror or error}); mend that and run the same command again"
            ) from error
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                detections = Boxes(arrays["boxes"], arrays["labels"], arrays["scores"])
                return detections, np.asarray(arrays["unreadable"], np.int64)
        except MemoryError:
            raise
        except Exception as error:  # zipfile and numpy raise many classes for a changed byte
            log.warning("%s was damaged (%s) and is made again", path, error)
            return None


def _file(number: int) -> str:
    return f"{number:05d}.npz"


def _fingerprint(folder: Folder) -> str | None:
    """The fingerprint of a store; None where there is no readable one."""
    try:
        return str(folder.read_json(SPEC)["fingerprint"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    except OSError as error:  # the store may be good
        raise StoreError(
            f"{folder} cannot be read ({error.strerror or error}); mend that and run the same command again"
        ) from error
