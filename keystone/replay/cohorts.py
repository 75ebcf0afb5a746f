"""Cohorts of a replay: partial sums of any number of processes set aside on disk, then added up to one file.

A plain file's events may be of any window, so its sums are known only at its end. Memory stays within ``HELD_ROWS_MAX`` rows while reading
and about ``SLAB_ROWS`` while adding up, whole minutes at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from keystone.errors import SinkError
from keystone.qoe import WINDOWS_MS, CohortPartial
from keystone.qoe_rows import SIZE, START, bin_schema, row_schema, summed, tables_of, told, told_schema
from keystone.sinks.session_file import SessionFile, Table

COHORTS_FILE: Final = "cohorts.parquet"
ASIDE_DIR: Final = ".cohorts"
HELD_ROWS_MAX: Final = 1 << 18  # of partials in memory: x ~250 B = 65 MB
SLAB_ROWS: Final = 1 << 20  # added up at once, unless one minute has more: x ~250 B, some copies
GROUP_ROWS: Final = 1 << 15  # of a file set aside, whose statistics tell which minutes it has


class CohortsAside:
    """What one process has counted, in files of its own below ``out``: ``add_up`` reads them. Raises ``SinkError`` where the disk is full."""

    def __init__(self, out: Path, share: int, dimensions: tuple[str, ...]) -> None:
        self._directory, self._share, self._dimensions = out / ASIDE_DIR, share, dimensions
        self._held: list[CohortPartial] = []
        self._held_rows = 0
        self._files = 0
        self._directory.mkdir(parents=True, exist_ok=True)

    def take(self, partials: Iterable[CohortPartial]) -> None:
        for partial in partials:
            self._held.append(partial)
            self._held_rows += partial.rows
            if self._held_rows >= HELD_ROWS_MAX:
                self._write()

    def close(self) -> None:
        """All of it is on disk."""
        self._write()

    def _write(self) -> None:
        rows, bins = tables_of(self._held, self._dimensions)
        self._held, self._held_rows = [], 0
        name = f"{self._share:05}-{self._files:06}.parquet"
        self._files += 1
        try:
            summed(rows, self._dimensions).sort(START).write_parquet(self._directory / f"rows-{name}", compression="lz4", row_group_size=GROUP_ROWS)
            bins.sort(START).write_parquet(self._directory / f"bins-{name}", compression="lz4", row_group_size=GROUP_ROWS)
        except OSError as error:
            raise SinkError(f"{self._directory} cannot be written: {error}; free room there or choose another directory") from error


def add_up(out: Path, dimensions: tuple[str, ...]) -> int:
    """``cohorts.parquet`` from what all processes set aside; returns its rows. Sorted by time, so the same for every number of them."""
    rows = pl.scan_parquet(sorted((out / ASIDE_DIR).glob("rows-*.parquet")), schema=row_schema(dimensions))
    bins = pl.scan_parquet(sorted((out / ASIDE_DIR).glob("bins-*.parquet")), schema=bin_schema(dimensions))
    file = SessionFile(out / COHORTS_FILE, schema_of(dimensions))
    try:
        for within in _slabs(rows):
            part = summed(rows.filter(within).collect(), dimensions)
            startups = bins.filter(within).collect()
            found = pl.concat([told(part, startups, dimensions, window_ms) for window_ms in WINDOWS_MS]).sort(START, SIZE, *dimensions)
            file.write(Table(found.to_arrow().cast(_plain(dimensions)).cast(schema_of(dimensions))))
        return file.close()
    finally:
        file.abort()
        shutil.rmtree(out / ASIDE_DIR, ignore_errors=True)


def rows_of(out: Path) -> int:
    """Rows of the file in place."""
    return int(pq.read_metadata(out / COHORTS_FILE).num_rows)


def schema_of(dimensions: tuple[str, ...]) -> pa.Schema:
    """Columns of ``cohorts.parquet``: the file itself holds plain strings."""
    words = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([pa.field(name, words if dtype == pl.String else pa.int64()) for name, dtype in told_schema(dimensions).items()])


def _plain(dimensions: tuple[str, ...]) -> pa.Schema:
    return pa.schema([pa.field(name, pa.string() if dtype == pl.String else pa.int64()) for name, dtype in told_schema(dimensions).items()])


def _slabs(rows: pl.LazyFrame) -> Iterator[pl.Expr]:
    """Spans of whole minutes with about SLAB_ROWS rows each."""
    minute = (pl.col(START) // WINDOWS_MS[-1] * WINDOWS_MS[-1]).alias("minute")
    counts = rows.group_by(minute).len().sort("minute").collect()
    slabs = counts.with_columns(((pl.col("len").cum_sum() - pl.col("len")) // SLAB_ROWS).alias("slab"))
    spans = slabs.group_by("slab", maintain_order=True).agg(pl.col("minute").min().alias("first"), pl.col("minute").max().alias("last"))
    for first, last in spans.select("first", "last").iter_rows():
        yield (pl.col(START) >= first) & (pl.col(START) < last + WINDOWS_MS[-1])
