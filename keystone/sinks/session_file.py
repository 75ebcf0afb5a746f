"""Session records as Parquet: a file that is in place when it is complete."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from keystone.errors import SinkError, UsageError

ROW_GROUP_ROWS: Final = 65_536  # held in memory; x ~250 B a record = 16 MB
ZSTD_LEVEL: Final = 1


_ENCODINGS: Final = {pa.int64(): "DELTA_BINARY_PACKED", pa.string(): "DELTA_LENGTH_BYTE_ARRAY"}


class Records(Protocol):
    """What ``keystone.sessions`` hands over."""

    def to_arrow(self) -> pa.Table:
        """One table, with the same schema each time."""


@dataclass(frozen=True, slots=True)
class Table:
    """Records that are a table already."""

    table: pa.Table

    def to_arrow(self) -> pa.Table:
        return self.table


class SessionFile:
    """Writes session records a row group at a time to a name that begins with a dot, and renames the file at ``close``.

    ``schema`` is the records' schema: a run without sessions still leaves a readable file without rows. Without a
    ``close`` (or after ``abort``) nothing is left in place, and an earlier file of that name stays as it was.
    """

    def __init__(self, path: Path | str, schema: pa.Schema, *, is_synced: bool = False) -> None:
        """``is_synced``: when ``close`` returns, the file is on the disk, not only in its cache."""
        self.path = Path(path)
        self._is_synced = is_synced
        self.rows = 0  # taken
        self._schema = schema
        self._held: list[pa.Table] = []
        self._held_rows = 0
        self._temporary = self.path.with_name(f".{self.path.name}-{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer: pq.ParquetWriter | None = pq.ParquetWriter(
                self._temporary,
                schema,
                compression="zstd",
                compression_level=ZSTD_LEVEL,
                store_schema=False,
                write_statistics=["start_ts"],
                use_dictionary=[f.name for f in schema if pa.types.is_dictionary(f.type)],  # trying it on ids and counts doubles the time
                column_encoding={f.name: _ENCODINGS[f.type] for f in schema if f.type in _ENCODINGS},
            )
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error}; choose another directory") from error

    def write(self, records: Records) -> int:
        """Take the records; returns how many. Raises ``SinkError`` where the disk is full."""
        table = records.to_arrow()
        if table.num_rows:
            self._held.append(table)
            self._held_rows += table.num_rows
            self.rows += table.num_rows
        if self._held_rows >= ROW_GROUP_ROWS:
            self._write_group()
        return int(table.num_rows)

    def close(self) -> int:
        """Complete the file and put it in place; returns its rows. May be repeated."""
        if self._writer is None:
            return self.rows
        self._write_group()
        try:
            self._writer.close()
            if self._is_synced:
                sync(self._temporary)
            self._temporary.replace(self.path)
            if self._is_synced:
                sync(self.path.parent)
        except OSError as error:
            raise self._failed(error) from error
        self._writer = None
        return self.rows

    def size_bytes(self) -> int:
        """Of the file in place, after ``close``."""
        return self.path.stat().st_size

    def abort(self) -> None:
        """Leave nothing behind. May be repeated; after ``close`` it does nothing."""
        if self._writer is not None:
            self._writer = None
            self._temporary.unlink(missing_ok=True)

    def _write_group(self) -> None:
        if not self._held or self._writer is None:
            return
        try:
            self._writer.write_table(pa.concat_tables(self._held), row_group_size=2 * ROW_GROUP_ROWS)
        except OSError as error:
            raise self._failed(error) from error
        self._held, self._held_rows = [], 0

    def _failed(self, error: OSError) -> SinkError:
        self.abort()
        return SinkError(f"{self.path} cannot be written: {error}; free room there or choose another directory")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
