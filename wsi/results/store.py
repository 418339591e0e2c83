"""A heatmap on disk: zarr format 3, written chunk by chunk, each chunk whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.errors import ContainsArrayError
from zarr.storage import MemoryStore

from wsi.arrays import CellsRC, Scores
from wsi.errors import ForeignStoreError, StoreError
from wsi.placement import Placement
from wsi.results.folder import Folder, Place, folder_at
from wsi.results.heatmap import Heatmap
from wsi.slides.grid import TileGrid

log = logging.getLogger(__name__)

PACK = "c.0.0.0"  # the file of all chunks, as zarr names it
NOT_SCORED = 255  # on a map of classes, which are fewer
MOST_CLASSES = 255
MOST_FEATURES = 1 << 14
PACK_FROM = 16  # chunks from which on they are packed: a slide of 100,000 px is 625 files without, 2 with


@dataclass(frozen=True, slots=True)
class HeatmapSpec:
    """The properties of a heatmap that are fixed before its first chunk is written.

    Attributes:
        classes: names of the classes, in the order of the first axis.
        shape: (rows, cols).
        chunk: cells along a chunk's side.
        stride_l0: level-0 pixels from cell to cell; the corner of cell (0, 0) is level-0 pixel (0, 0). A segmenter's
            need not be a whole number.
        stride_px: the same distance in the pixels that the model saw.
        patch_l0: side of the patch around each cell, in level-0 pixels.
        mpp: um per level-0 pixel.
        fingerprint: hash of the slide, settings, weights, engine and format.
        holds: ``scores`` in 0..1, or ``features`` of any value, whose names are numbers.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int]
    chunk: int
    stride_l0: float
    stride_px: int
    patch_l0: int
    mpp: float
    fingerprint: str
    holds: Literal["scores", "features"] = "scores"

    @classmethod
    def of_grid(
        cls,
        grid: TileGrid,
        chunk: int,
        mpp: float,
        classes: tuple[str, ...],
        fingerprint: str,
        *,
        holds: Literal["scores", "features"] = "scores",
    ) -> HeatmapSpec:
        """The heatmap of a grid's cells."""
        plan = grid.plan
        return cls(
            classes, grid.shape, chunk, plan.stride_l0, plan.stride_px, plan.size_l0, mpp, fingerprint, holds
        )

    def attributes(self) -> dict[str, Any]:
        """The properties as the array's metadata stores them."""
        return {
            "classes": list(self.classes),
            "origin_level0": [0, 0],
            "stride_level0": [self.stride_l0, self.stride_l0],
            "stride_model_px": self.stride_px,
            "patch_level0": [self.patch_l0, self.patch_l0],
            "mpp": [self.mpp, self.mpp],
            "nodata": "NaN: not scored",
            "fingerprint": self.fingerprint,
        } | ({} if self.holds == "scores" else {"holds": self.holds})


# A slide of 10^6 x 10^6 px has 61 million cells of 128 px; a map of one of 10^5 x 10^5 px, with cells of 4 px, has 625
MOST_CELLS = 1 << 30
MOST_SCORES = 1 << 30  # that are read at once, in 4 GB


class HeatmapStore:
    """An open ``heatmap.zarr``: float32 (classes, rows, cols)."""

    def __init__(self, folder: Folder, array: zarr.Array[Any]) -> None:
        self.folder = folder
        self._array = array

    @classmethod
    def create(cls, place: Place, spec: HeatmapSpec) -> HeatmapStore:
        """Open the store of an interrupted run, or make an empty one.

        Args:
            place: the folder of the store itself.
            spec: what is fixed before the first chunk.

        Raises:
            StoreError: the folder holds another run's heatmap, or cannot be written.
        """
        folder = folder_at(place)
        folder.refuse_link()
        if folder.files():  # an empty folder is what is left of a process that was killed before it wrote
            store = cls.open(folder)
            store._refuse_other(spec)
            if store._discard_damaged():
                return store
        with suppress(ContainsArrayError):  # another process that scores the same slide was first
            _new_array(_ZarrStore(folder), spec)
        store = cls.open(folder)
        store._refuse_other(spec)
        return store

    def _refuse_other(self, spec: HeatmapSpec) -> None:
        """Refuse the store of another run.

        Raises:
            ForeignStoreError: its properties are not those of ``spec``.
        """
        stored = self.attributes
        changes = [
            f"{key} {stored.get(key)}, now {value}"
            for key, value in spec.attributes().items()
            if key != "fingerprint" and stored.get(key) != value
        ]
        sides = (len(spec.classes), spec.chunk, spec.chunk)
        if (self._array.shape, self._array.chunks) != ((len(spec.classes), *spec.shape), sides):
            changes.append(f"chunks {self._array.chunks} of {self._array.shape}")
        if stored.get("fingerprint") != spec.fingerprint or changes:
            raise ForeignStoreError(
                f"{self.folder} was made from another slide, model or settings"
                f"{' (' + '; '.join(changes) + ')' if changes else ''}; choose another --out, or pass --overwrite"
            )

    @staticmethod
    def discard(place: Place, *, unless: str) -> None:
        """Remove a store, unless its fingerprint is ``unless``."""
        folder = folder_at(place)
        if folder.exists():
            try:
                same = HeatmapStore.open(folder).attributes.get("fingerprint") == unless
            except ForeignStoreError:
                same = False
            if not same:
                folder.delete("")

    @classmethod
    def open(cls, place: Place) -> HeatmapStore:
        """Open a store that `create` made.

        Raises:
            ForeignStoreError: there is no heatmap in this folder, or its metadata is damaged.
        """
        folder = folder_at(place)
        try:
            # an all-NaN chunk is written, too: it shows that its cells were tried
            array = zarr.open_array(_ZarrStore(folder), mode="r+").with_config({"write_empty_chunks": True})
            if array.ndim != 3 or array.dtype != np.float32 or "stride_level0" not in array.attrs:
                raise ValueError("it is an array of something else")
            most = MOST_FEATURES if array.attrs.get("holds") == "features" else MOST_CLASSES
            if array.size > MOST_CELLS * max(1, array.shape[0]) or array.shape[0] > most:
                raise ValueError(f"it states {array.size:,} scores, more than any slide has")
        except Exception as error:  # damaged metadata may raise anything in zarr
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):  # it may be good
                raise StoreError(
                    f"{folder} cannot be read ({error.strerror or error}); mend that and run the same command again"
                ) from error
            raise ForeignStoreError(
                f"{folder} is not a heatmap, or its metadata is damaged ({error}); make it again with --overwrite"
            ) from error
        return cls(folder, array)

    @property
    def attributes(self) -> dict[str, Any]:
        """The array's metadata, see `HeatmapSpec`."""
        return dict(self._array.attrs)

    @property
    def spec(self) -> HeatmapSpec:
        """What was fixed before the first chunk.

        Raises:
            ForeignStoreError: the metadata lacks a part of it.
        """
        facts = self.attributes
        try:
            return HeatmapSpec(
                classes=tuple(facts["classes"]),
                shape=(self._array.shape[1], self._array.shape[2]),
                chunk=self._array.chunks[1],
                stride_l0=facts["stride_level0"][0],
                stride_px=facts["stride_model_px"],
                patch_l0=facts["patch_level0"][0],
                mpp=facts["mpp"][0],
                fingerprint=facts["fingerprint"],
                holds="features" if facts.get("holds") == "features" else "scores",
            )
        except (KeyError, TypeError, IndexError) as error:
            raise ForeignStoreError(
                f"{self.folder} lacks metadata ({error!r}); make it again with --overwrite"
            ) from error

    def chunks_done(self) -> set[tuple[int, int]]:
        """(row, col) of the chunks that were written, by one listing of the folder; all of a packed store."""
        if self.packed:
            side = self._array.chunks[1]
            rows, cols = (-(-n // side) for n in self._array.shape[1:])
            return {(row, col) for row in range(rows) for col in range(cols)}
        parts = [name.split("/") for name in self.folder.files("c")]
        return {
            (int(p[2]), int(p[3]))
            for p in parts
            if len(p) == 4 and p[1] == "0" and p[2].isdecimal() and p[3].isdecimal()
        }

    def write_chunk(self, chunk: tuple[int, int], cells: np.ndarray[Any, Any], scores: Scores) -> None:
        """Write one chunk; cells that are not given are NaN.

        Args:
            chunk: (row, col) of the chunk.
            cells: (n, 2) row, col in the heatmap.
            scores: (n, classes); NaN rows are allowed.

        Raises:
            StoreError: the chunk cannot be written.
            ForeignStoreError: another command has replaced the store.
        """
        if self._replaced_by_packed():
            return
        classes, rows, cols = self._array.shape
        side = self._array.chunks[1]
        top, left = chunk[0] * side, chunk[1] * side
        values = np.full((classes, min(side, rows - top), min(side, cols - left)), np.nan, np.float32)
        values[:, cells[:, 0] - top, cells[:, 1] - left] = scores.T
        self._array[:, top : top + values.shape[1], left : left + values.shape[2]] = values

    def _replaced_by_packed(self) -> bool:
        """Whether another process has finished this heatmap.

        Raises:
            ForeignStoreError: another command made another store in place of this one.
        """
        try:
            now = self.folder.read_json("zarr.json")
            fingerprint = now["attributes"]["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):
            fingerprint = None
        if fingerprint != self.attributes.get("fingerprint"):
            raise ForeignStoreError(
                f"{self.folder} was replaced by another command; run one command at a time with --overwrite"
            )
        return bool(now["chunk_key_encoding"]["configuration"]["separator"] == ".")

    @property
    def packed(self) -> bool:
        """Whether all chunks lie in one file, see `pack`."""
        return self._array.shards is not None

    def pack(self) -> None:
        """Put all chunks of a finished heatmap into one file, if they are many; chunks that lack are NaN.

        The new file comes first, then the metadata that point to it, then the old files go: whenever this is
        interrupted, the heatmap is whole.

        Raises:
            StoreError: the folder cannot be written.
            ForeignStoreError: a chunk is damaged.
        """
        if self._packed_meanwhile() or len(self.chunks_done()) < PACK_FROM:
            return
        content: dict[str, Buffer] = {}
        packed = _new_array(MemoryStore(content), self.spec, packed=True)
        packed[:] = self._values()
        if (
            self._packed_meanwhile()
        ):  # another process did it while this one read: what was read may lack chunks
            return
        self.folder.write(PACK, content[PACK].to_bytes())
        self.folder.write("zarr.json", content["zarr.json"].to_bytes())
        self.folder.delete("c")
        self._array = HeatmapStore.open(self.folder)._array

    def _packed_meanwhile(self) -> bool:
        """Whether the store is packed now; what another process has packed is looked at from now on.

        Raises:
            ForeignStoreError: another command made another store in place of this one.
        """
        if not self.packed and self._replaced_by_packed():
            self._array = HeatmapStore.open(self.folder)._array
        return self.packed

    def _values(self) -> np.ndarray[Any, Any]:
        """All scores: (classes, rows, cols)."""
        if self._array.size > MOST_SCORES:
            raise ForeignStoreError(
                f"{self.folder} states {self._array.size:,} scores, more than are read at once; make it again with "
                f"larger cells"
            )
        try:
            values = np.asarray(self._array[:], dtype=np.float32)
            if not self.packed and self._packed_meanwhile():
                values = np.asarray(self._array[:], dtype=np.float32)
            if self.packed and not self.folder.exists(PACK):
                raise ValueError(f"{PACK} is missing")
            return values
        except (MemoryError, ForeignStoreError):
            raise
        except Exception as error:  # codecs raise their own classes
            raise ForeignStoreError(
                f"{self.folder} is broken ({error}); run the command that made it again: what is damaged is made again"
            ) from error

    def _discard_damaged(self) -> bool:
        """Remove what is not as it was written, and log it; it is then made again.

        Returns:
            Whether the store is still there; one that was packed goes as a whole.

        Raises:
            ForeignStoreError: the disk fails; the chunks may be good.
        """
        if not self.packed:
            self.folder.delete(PACK)  # of a packing that was interrupted
            self._discard_chunks()
            return True
        self.folder.delete("c")
        try:
            _check_range(self._values())
            return True
        except (ForeignStoreError, ValueError) as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
                raise
            log.warning("%s; it is made again", error)
            self.folder.delete("")
            return False

    def _discard_chunks(self) -> None:
        side = self._array.chunks[1]
        for chunk in sorted(self.chunks_done()):
            row, col = chunk[0] * side, chunk[1] * side
            name = f"c/0/{chunk[0]}/{chunk[1]}"
            try:
                values = np.asarray(self._array[:, row : row + side, col : col + side])
                if self.attributes.get("holds") != "features":
                    _check_range(values)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ForeignStoreError(
                    f"{self.folder.at(name)} cannot be read ({error.strerror or error}); mend that and run the same "
                    f"command again"
                ) from error
            except MemoryError:
                raise
            except Exception as error:  # codecs raise their own classes
                log.warning("%s was damaged (%s) and is made again", self.folder.at(name), error)
                self.folder.delete(name)

    def scored(self) -> tuple[CellsRC, Scores]:
        """The cells that have scores, chunk by chunk, and their scores: (n, 2) row, col and (n, classes).

        Raises:
            ForeignStoreError: a chunk is damaged, or cannot be read.
        """
        side = self._array.chunks[1]
        cells: list[CellsRC] = [np.empty((0, 2), np.int64)]
        scores: list[Scores] = [np.empty((0, self._array.shape[0]), np.float32)]
        for row, col in sorted(self.chunks_done()):
            try:
                part = np.asarray(
                    self._array[:, row * side : (row + 1) * side, col * side : (col + 1) * side]
                )
            except Exception as error:  # codecs raise their own classes
                raise ForeignStoreError(
                    f"{self.folder} is broken ({error}); run the command that made it again: what is damaged is made "
                    f"again"
                ) from error
            inside = np.argwhere(~np.isnan(part).any(axis=0))
            cells.append(inside + np.array([row * side, col * side], np.int64))
            scores.append(part[:, *inside.T].T)
        return np.concatenate(cells), np.concatenate(scores)

    def labels(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The most probable class of every cell: (rows, cols); `NOT_SCORED` where a cell has no score.

        It reads chunk by chunk, as all scores of a large map take gigabytes.

        Raises:
            ForeignStoreError: a chunk is damaged, or cannot be read.
        """
        _, rows, cols = self._array.shape
        labels = np.full((rows, cols), NOT_SCORED, np.uint8)
        side = self._array.chunks[1]
        for chunk in sorted(self.chunks_done()):
            row, col = chunk[0] * side, chunk[1] * side
            try:
                scores = np.asarray(self._array[:, row : row + side, col : col + side])
            except Exception as error:  # codecs raise their own classes
                raise ForeignStoreError(
                    f"{self.folder} is broken ({error}); run the command that made it again: what is damaged is made "
                    f"again"
                ) from error
            best = np.where(np.isnan(scores).any(axis=0), NOT_SCORED, scores.argmax(axis=0))
            labels[row : row + side, col : col + side] = best
        return labels

    def read(self, class_index: int) -> Heatmap:
        """One class of the whole heatmap."""
        stride_px = self.spec.stride_px  # it says so where the metadata lack a part
        try:
            placement = Placement(*self.attributes["stride_level0"])
        except (ValueError, TypeError) as error:
            raise ForeignStoreError(
                f"{self.folder} has damaged metadata ({error}); make it again with --overwrite"
            ) from error
        return Heatmap(self._values()[class_index], placement, stride_px)


def _check_range(scores: np.ndarray[Any, Any]) -> None:
    if np.nanmin(scores, initial=0) < 0 or np.nanmax(scores, initial=0) > 1:
        raise ValueError("scores lie outside 0..1")


def _new_array(store: Store, spec: HeatmapSpec, *, packed: bool = False) -> zarr.Array[Any]:
    """An empty heatmap: a file for each chunk; packed, one for all."""
    sides = (len(spec.classes), spec.chunk, spec.chunk)
    whole = (sides[0], *(max(1, -(-n // spec.chunk)) * spec.chunk for n in spec.shape))
    return zarr.create_array(
        store,
        shape=(len(spec.classes), *spec.shape),
        chunks=sides,
        shards=whole if packed else None,
        chunk_key_encoding={
            "name": "default",
            "separator": "." if packed else "/",
        },  # so that both may be there
        dtype="float32",
        fill_value=float("nan"),
        compressors=(ZstdCodec(level=0), Crc32cCodec()),  # a changed bit is noticed on reading
        attributes=spec.attributes(),
        dimension_names=("class", "row", "col"),
        config={"write_empty_chunks": packed},  # a heatmap without any score has its file, too
    )


class _ZarrStore(Store):
    """A folder as zarr sees it: zarr reads and writes through `Folder` alone."""

    supports_writes = supports_deletes = supports_listing = True

    def __init__(self, folder: Folder, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self._folder = folder

    def with_read_only(self, read_only: bool = False) -> _ZarrStore:
        return _ZarrStore(self._folder, read_only=read_only)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ZarrStore) and str(self._folder) == str(other._folder)

    def __str__(self) -> str:
        return str(self._folder)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        try:
            content = self._folder.read(key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return prototype.buffer.from_bytes(_part(content, byte_range))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return self._folder.exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        self._folder.write(key, value.to_bytes())

    async def delete(self, key: str) -> None:
        self._check_writable()
        self._folder.delete(key)

    async def list(self) -> AsyncIterator[str]:
        for name in self._folder.files():
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for name in self._folder.files(prefix.rstrip("/")):
            yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        start = prefix.rstrip("/") + "/" if prefix else ""
        for part in sorted(
            {name[len(start) :].split("/")[0] for name in self._folder.files(prefix.rstrip("/"))}
        ):
            yield part


def _part(content: bytes, byte_range: ByteRequest | None) -> bytes:
    """The bytes that a request asks for."""
    match byte_range:
        case RangeByteRequest(start, end):
            return content[start:end]
        case OffsetByteRequest(offset):
            return content[offset:]
        case SuffixByteRequest(suffix):
            return content[-suffix:]
    return content
