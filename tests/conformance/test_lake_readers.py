"""The lake's files as others read them: Polars, DuckDB and pyarrow must see the same rows as were written."""

from __future__ import annotations

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from keystone.config import LakeConfig
from keystone.sinks.lake import LakeWriter
from keystone.sinks.lake_schema import NAMES, SCHEMA
from tests.lake_batches import APPEND_MS, DAY_MS, ToyDictionaries, batch_of, random_rows, row

ORDER = ["partition", "offset", "line"]


def with_polars(directory):
    return pl.scan_parquet(directory / "**" / "*.parquet", hive_partitioning=False).sort(ORDER).collect().to_arrow().cast(SCHEMA)


def with_polars_directory(directory):
    return pl.read_parquet(directory, hive_partitioning=False).sort(ORDER).to_arrow().cast(SCHEMA)


def with_duckdb(directory):
    found = duckdb.sql(f"select * from read_parquet('{directory}/**/*.parquet', hive_partitioning = false) order by partition, \"offset\", line")
    return found.to_arrow_table().cast(SCHEMA)


def with_pyarrow(directory):
    return ds.dataset(directory, partitioning=None, exclude_invalid_files=False).to_table().sort_by([(name, "ascending") for name in ORDER]).cast(SCHEMA)


READERS = pytest.mark.parametrize("reader", [with_polars, with_duckdb, with_pyarrow])


def expected(rows):
    return pa.Table.from_pylist(sorted(rows, key=lambda r: tuple(r[name] for name in ORDER)), SCHEMA)


def write(directory, rows, *, size=3000, config=None):
    dictionaries, writer = ToyDictionaries(), LakeWriter(directory, config or LakeConfig())
    for first in range(0, len(rows), size):
        writer.append(batch_of(rows[first : first + size], dictionaries), dictionaries)
        writer.end_step(0)
    assert writer.close() == len(rows)


@pytest.mark.slow
@READERS
@pytest.mark.parametrize(("null_share", "titles"), [(0.0, 3), (0.3, 2000), (0.97, 70_000), (1.0, 3)])
def test_all_columns(tmp_path, reader, null_share, titles):
    rows = random_rows(7000, seed=titles, null_share=null_share, titles=titles)
    write(tmp_path, rows, config=LakeConfig(row_group_rows=4000))
    assert reader(tmp_path).equals(expected(rows))


@READERS
@pytest.mark.parametrize("count", [1, 8, 129])
def test_a_few_rows(tmp_path, reader, count):
    rows = random_rows(count, seed=count)
    write(tmp_path, rows)
    assert reader(tmp_path).equals(expected(rows))


@pytest.mark.slow
@READERS
def test_pages_of_one_value_and_of_none(tmp_path, reader):
    """Runs instead of packed bits, empty pages between full ones, compressed pages beside uncompressed ones."""
    rows = [row(offset=i) for i in range(3000)]
    rows += [row(offset=3000 + i, cdn="a", fatal=True, user_id="same" * 10, position_ms=7, extra="{}") for i in range(3000)]
    mixed = [{"cdn": f"c{i % 200}", "fatal": bool(i % 3), "user_id": f"u{i}", "position_ms": i * i, "late": i % 2 == 0} for i in range(3000)]
    rows += [row(offset=6000 + i, duplicate=True, **fields) for i, fields in enumerate(mixed)]
    rows += [row(offset=9000 + i) for i in range(3000)]
    write(tmp_path, rows)
    assert reader(tmp_path).equals(expected(rows))


@READERS
def test_encodings_that_change_within_a_row_group(tmp_path, reader):
    """A dictionary that overflows, and runs among packed bits."""
    rows = [row(offset=i, bitrate_kbps=i % 5 if i < 4000 else i, reason="user" if i % 300 == 0 else None, late=i % 99 < 2) for i in range(9000)]
    write(tmp_path, rows, size=2250)
    (path,) = tmp_path.glob("*/*.parquet")
    assert {"RLE_DICTIONARY", "DELTA_BINARY_PACKED", "PLAIN"} <= set(pq.ParquetFile(path).metadata.row_group(0).column(19).encodings)
    assert reader(tmp_path).equals(expected(rows))


@READERS
def test_extremes(tmp_path, reader):
    numbers = [-(2**63) + 1, 2**63 - 1, 0, -1, 1, 2**53, -(2**53), 2**62] * 40
    texts = ["", "\0", "\u2028", "𝄞" * 50, "x" * 70_000, '"\\', None, "ü"] * 40
    rows = [
        row(offset=i, seq=n, position_ms=numbers[-1 - i], ts=min(abs(n), 2**53 - 1), device_id=t or "", user_id=t, os=t, extra=t, line=2**20 - i)
        for i, (n, t) in enumerate(zip(numbers, texts, strict=True))
    ]
    write(tmp_path, rows)
    assert reader(tmp_path).equals(expected(rows))


@pytest.mark.slow
@pytest.mark.parametrize("reader", [with_polars, with_polars_directory, with_duckdb, with_pyarrow])
def test_nothing_is_seen_of_a_file_being_written(tmp_path, reader):
    lake, dictionaries = tmp_path / "lake", ToyDictionaries()
    writer = LakeWriter(lake, LakeConfig(row_group_rows=1000))
    rows = random_rows(9000)
    writer.append(batch_of(rows[:3000], dictionaries), dictionaries)
    writer.flush()
    writer.append(batch_of(rows[3000:], dictionaries), dictionaries)  # its first row group is on the disk
    writer._thread.wait_until_idle()
    assert len(list(tmp_path.rglob("*.tmp"))) == 1
    assert reader(lake).equals(expected(rows[:3000]))
    writer.close()
    assert reader(lake).equals(expected(rows))
    assert not list(tmp_path.rglob("*.tmp"))


def test_folders_are_hive_partitions(tmp_path):
    write(tmp_path, [row(offset=i, ts=APPEND_MS + i * DAY_MS) for i in range(3)])
    days = ["2026-09-21", "2026-09-22", "2026-09-23"]
    frame = pl.scan_parquet(tmp_path, hive_partitioning=True).sort("offset").collect()
    assert [str(d) for d in frame["event_date"]] == days
    assert frame.columns == [*NAMES, "event_date"]
    found = duckdb.sql(f"select event_date::varchar from read_parquet('{tmp_path}/*/*.parquet', hive_partitioning = true) order by \"offset\"").fetchall()
    assert [d for (d,) in found] == days


def test_row_groups_are_skipped_by_their_statistics(tmp_path):
    """What queries by time rest on: lowest and highest ts of each row group."""
    rows = [row(offset=i, ts=APPEND_MS + i) for i in range(12_000)]
    write(tmp_path, rows, config=LakeConfig(row_group_rows=3000))
    file = pq.ParquetFile(next(tmp_path.glob("*/*.parquet")))
    bounds = [file.metadata.row_group(g).column(1).statistics for g in range(file.num_row_groups)]
    assert [(b.min - APPEND_MS, b.max - APPEND_MS) for b in bounds] == [(0, 2999), (3000, 5999), (6000, 8999), (9000, 11_999)]
    path = f"{tmp_path}/*/*.parquet"
    assert duckdb.sql(f"select count(*) from '{path}' where ts between {APPEND_MS + 2990} and {APPEND_MS + 3009}").fetchall() == [(20,)]
    assert pl.scan_parquet(path).filter(pl.col("ts").is_between(APPEND_MS + 2990, APPEND_MS + 3009)).collect().height == 20
