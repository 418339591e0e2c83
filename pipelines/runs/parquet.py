"""Tables of many slides as parquet, for duckdb, pandas and the like; outlines as GeoParquet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import shapely
from shapely.geometry.base import BaseGeometry

from pipelines.runs.made_by import version
from wsi.errors import ConfigError, StoreError
from wsi.files import cannot_write, partial_of, remove

GEOMETRY = "geometry"
ROWS = 50_000  # rows that are held in memory, and written together


class ParquetTable:
    """A table that is written while it grows, and appears whole when the ``with`` block ends well."""

    def __init__(self, path: Path, columns: Mapping[str, type], *, shapes: str = "") -> None:
        """Prepare the file.

        Args:
            path: the file; an earlier one is replaced.
            columns: name and type of each column: str, int, float or bool.
            shapes: type of the geometries, such as ``Point``, in level-0 pixels, y downward; empty: there are none.

        Raises:
            ConfigError: pyarrow is not installed.
        """
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ConfigError(
                "parquet needs pyarrow, which is not installed: pip install 'slidewright[parquet]'"
            ) from error
        self._arrow = pyarrow
        types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
        fields = [pyarrow.field(name, types[kind]) for name, kind in columns.items()]
        facts = {"made by": f"slidewright {version()}", "intended use": "research use only"}
        if shapes:
            fields.append(pyarrow.field(GEOMETRY, pyarrow.binary()))
            column = {"encoding": "WKB", "geometry_types": [shapes], "crs": None}
            geo = {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}
            facts["geo"] = json.dumps(geo)
        self._schema = pyarrow.schema(fields, metadata=facts)
        self._path, self._partial = path, partial_of(path)
        self._rows: list[dict[str, Any]] = []
        self.count = 0

    def __enter__(self) -> ParquetTable:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._arrow.parquet.ParquetWriter(self._partial, self._schema, compression="zstd")
        except OSError as error:
            raise cannot_write(self._path, error) from error
        return self

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows; a column that a row lacks is empty, and a geometry is one of shapely's.

        Raises:
            StoreError: the file cannot be written.
        """
        for row in rows:
            shape = row.get(GEOMETRY)
            self._rows.append(
                {**row, GEOMETRY: shapely.to_wkb(shape)} if isinstance(shape, BaseGeometry) else dict(row)
            )
        self.count += len(rows)
        if len(self._rows) >= ROWS:
            self._flush()

    def _flush(self) -> None:
        try:
            self._writer.write_table(self._arrow.Table.from_pylist(self._rows, self._schema))
        except OSError as error:
            raise cannot_write(self._path, error) from error
        except (self._arrow.ArrowInvalid, self._arrow.ArrowTypeError) as error:
            raise StoreError(
                f"{self._path}: a result is of another version ({error}); make it again"
            ) from error
        self._rows = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
            if kind is None:
                self._partial.replace(self._path)
        except OSError as failure:
            raise cannot_write(self._path, failure) from failure
        finally:
            remove(self._partial)
