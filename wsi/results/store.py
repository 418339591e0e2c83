"""A heatmap on disk: zarr format 3, written chunk by chunk, each chunk whole or not at all."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from wsi.arrays import Scores
from wsi.errors import ForeignStoreError, StoreError
from wsi.files import cannot_write, partial_of, remove
from wsi.placement import Placement
from wsi.results.heatmap import Heatmap
from wsi.slides.grid import TileGrid

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeatmapSpec:
    """The properties of a heatmap that are fixed before its first chunk is written.

    Attributes:
        classes: names of the classes, in the order of the first axis.
        shape: (rows, cols).
        chunk: cells along a chunk's side.
        stride_l0: level-0 pixels from cell to cell; the corner of cell (0, 0) is level-0 pixel (0, 0).
        stride_px: the same distance in the pixels that the model saw.
        patch_l0: side of the patch around each cell, in level-0 pixels.
        mpp: um per level-0 pixel.
        fingerprint: hash of the slide, settings, weights, engine and format.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int]
    chunk: int
    stride_l0: int
    stride_px: int
    patch_l0: int
    mpp: float
    fingerprint: str

    @classmethod
    def of_grid(
        cls, grid: TileGrid, chunk: int, mpp: float, classes: tuple[str, ...], fingerprint: str
    ) -> HeatmapSpec:
        """The heatmap of a grid's cells."""
        plan = grid.plan
        return cls(classes, grid.shape, chunk, plan.stride_l0, plan.stride_px, plan.size_l0, mpp, fingerprint)

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
        }


class HeatmapStore:
    """An open ``heatmap.zarr``: float32 (classes, rows, cols)."""

    def __init__(self, path: Path, array: zarr.Array[Any]) -> None:
        self.path = path
        self._array = array

    @classmethod
    def create(cls, path: Path, spec: HeatmapSpec) -> HeatmapStore:
        """Open the store of an interrupted run, or make an empty one.

        Raises:
            StoreError: the folder holds another run's heatmap, or cannot be written.
        """
        if path.is_symlink():
            raise ForeignStoreError(f"{path} is a link, and results are not written through links; remove it")
        if path.exists():
            store = cls.open(path)
            stored = store.attributes
            changes = [
                f"{key} {stored.get(key)}, now {value}"
                for key, value in spec.attributes().items()
                if key != "fingerprint" and stored.get(key) != value
            ]
            sides = (len(spec.classes), spec.chunk, spec.chunk)
            if (store._array.shape, store._array.chunks) != ((len(spec.classes), *spec.shape), sides):
                changes.append(f"chunks {store._array.chunks} of {store._array.shape}")
            if stored.get("fingerprint") != spec.fingerprint or changes:
                raise ForeignStoreError(
                    f"{path} was made from another slide, model or settings"
                    f"{' (' + '; '.join(changes) + ')' if changes else ''}; choose another --out, or pass --overwrite"
                )
            store.discard_damaged()
            return store
        partial = partial_of(path)
        try:
            remove(partial)  # of a killed process that had the same number
            path.parent.mkdir(parents=True, exist_ok=True)
            zarr.create_array(
                partial,
                shape=(len(spec.classes), *spec.shape),
                chunks=(len(spec.classes), spec.chunk, spec.chunk),
                dtype="float32",
                fill_value=float("nan"),
                compressors=(ZstdCodec(level=0), Crc32cCodec()),  # a changed bit is noticed on reading
                attributes=spec.attributes(),
                dimension_names=("class", "row", "col"),
            )
            partial.rename(path)
        except OSError as error:
            if path.is_dir():  # another process that scores the same slide was first
                return cls.create(path, spec)
            raise cannot_write(path, error) from error
        finally:
            remove(partial)
        return cls.open(path)

    @staticmethod
    def discard(path: Path, *, unless: str) -> None:
        """Remove a store, unless its fingerprint is ``unless``."""
        if path.exists():
            try:
                same = HeatmapStore.open(path).attributes.get("fingerprint") == unless
            except StoreError:
                same = False
            if not same:
                shutil.rmtree(path)

    @classmethod
    def open(cls, path: Path) -> HeatmapStore:
        """Open a store that `create` made.

        Raises:
            ForeignStoreError: there is no heatmap at this path, or its metadata is damaged.
        """
        try:
            # an all-NaN chunk is written, too: it shows that its cells were tried
            array = zarr.open_array(path, mode="r+").with_config({"write_empty_chunks": True})
            if array.ndim != 3 or array.dtype != np.float32 or "stride_level0" not in array.attrs:
                raise ValueError("it is an array of something else")
        except Exception as error:  # damaged metadata may raise anything in zarr
            raise ForeignStoreError(
                f"{path} is not a heatmap, or its metadata is damaged ({error}); make it again with --overwrite"
            ) from error
        return cls(path, array)

    @property
    def attributes(self) -> dict[str, Any]:
        """The array's metadata, see `HeatmapSpec`."""
        return dict(self._array.attrs)

    def has_chunk(self, chunk: tuple[int, int]) -> bool:
        """Whether the chunk at this (row, col) of chunks was written."""
        return (self.path / "c" / "0" / str(chunk[0]) / str(chunk[1])).is_file()

    def write_chunk(self, chunk: tuple[int, int], cells: np.ndarray[Any, Any], scores: Scores) -> None:
        """Write one chunk; cells that are not given are NaN.

        Args:
            chunk: (row, col) of the chunk.
            cells: (n, 2) row, col in the heatmap.
            scores: (n, classes); NaN rows are allowed.

        Raises:
            StoreError: the chunk cannot be written.
        """
        classes, rows, cols = self._array.shape
        side = self._array.chunks[1]
        top, left = chunk[0] * side, chunk[1] * side
        values = np.full((classes, min(side, rows - top), min(side, cols - left)), np.nan, np.float32)
        values[:, cells[:, 0] - top, cells[:, 1] - left] = scores.T
        try:
            self._array[:, top : top + values.shape[1], left : left + values.shape[2]] = values
        except FileNotFoundError as error:
            # another process that scores the same slide took this one's file for that of a killed run
            if not self.has_chunk(chunk):
                raise cannot_write(self.path, error) from error
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def discard_damaged(self) -> None:
        """Remove chunks whose bytes are not as they were written, and log each; they are then made again.

        Raises:
            ForeignStoreError: the disk fails; the chunk may be good.
        """
        side = self._array.chunks[1]
        for path in sorted(self.path.glob("c/0/*/*")):
            if not (path.is_file() and path.name.isdecimal() and path.parent.name.isdecimal()):
                continue
            row, col = int(path.parent.name) * side, int(path.name) * side
            try:
                scores = np.asarray(self._array[:, row : row + side, col : col + side])
                if np.nanmin(scores, initial=0) < 0 or np.nanmax(scores, initial=0) > 1:
                    raise ValueError("scores lie outside 0..1")
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ForeignStoreError(
                    f"{path} cannot be read ({error.strerror or error}); mend that and run the same command again"
                ) from error
            except MemoryError:
                raise
            except Exception as error:  # codecs raise their own classes
                log.warning("%s was damaged (%s) and is made again", path, error)
                path.unlink(missing_ok=True)

    def read(self, class_index: int) -> Heatmap:
        """One class of the whole heatmap."""
        step_x, step_y = self.attributes["stride_level0"]
        try:
            scores = np.asarray(self._array[class_index], dtype=np.float32)
            return Heatmap(scores, Placement(step_x, step_y), self.attributes["stride_model_px"])
        except MemoryError:
            raise
        except Exception as error:  # codecs raise their own classes
            raise ForeignStoreError(
                f"{self.path} is broken ({error}); run the command that made it again: what is damaged is made again"
            ) from error
