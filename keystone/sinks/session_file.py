"""Session records as Parquet: one file in place when a run is complete, or files that follow each other while it goes on."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from keystone.errors import SinkError, UsageError

ROW_GROUP_ROWS: Final = 65_536  # held in memory; x ~250 B a record = 16 MB
ZSTD_LEVEL: Final = 1
ROLL_ROWS: Final = 1 << 20  # of a file: ~100 MB
ROLL_AGE_S: Final = 60.0  # after which records are put into place: what a dying process can lose is read again


_ENCODINGS: Final = {pa.int64(): "DELTA_BINARY_PACKED", pa.string(): "DELTA_LENGTH_BYTE_ARRAY"}


class Records(Protocol):
    """What ``keystone.sessions`` hands over."""

    def to_arrow(self) -> pa.Table:
        """One table, with the same schema each time."""


class SessionFile:
    """Writes session records a row group at a time to a name that begins with a dot, and renames the file at ``close``.

    ``schema`` is the records' schema: a run without sessions still leaves a readable file without rows. Without a
    ``close`` (or after ``abort``) nothing is left in place, and an earlier file of that name stays as it was.
    """

    def __init__(self, path: Path | str, schema: pa.Schema) -> None:
        self.path = Path(path)
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
            self._temporary.replace(self.path)
        except OSError as error:
            raise self._failed(error) from error
        self._writer = None
        return self.rows

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


class SessionFiles:
    """``NAME-000001.parquet`` and so on in a directory: each in place when it is large or old enough, or at ``close``.

    Opening removes the files of this name: whoever opens begins anew.
    """

    def __init__(self, directory: Path | str, name: str, schema: pa.Schema) -> None:
        self.rows = 0
        self._directory, self._name, self._schema = Path(directory), name, schema
        self._files = 0
        self._open: SessionFile | None = None
        self._opened_s = 0.0
        for path in (*self._directory.glob(f"{name}-*.parquet"), *self._directory.glob(f".{name}-*.tmp")):
            path.unlink(missing_ok=True)

    def write(self, records: Records) -> None:
        """Take the records. Raises ``SinkError`` where the disk is full."""
        if self._open is None:
            self._files += 1
            self._open = SessionFile(self._directory / f"{self._name}-{self._files:06d}.parquet", self._schema)
            self._opened_s = time.monotonic()
        self.rows += self._open.write(records)

    def roll(self) -> None:
        """Put the open file into place if it is due."""
        if self._open is not None and (self._open.rows >= ROLL_ROWS or time.monotonic() - self._opened_s >= ROLL_AGE_S):
            self._open.close()
            self._open = None

    def close(self) -> int:
        """Put what there is into place; returns the rows of all files. May be repeated."""
        if self._open is not None:
            self._open.close()
            self._open = None
        return self.rows
