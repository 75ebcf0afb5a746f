"""The tables as others read them: pyiceberg, Polars and DuckDB see the same rows, and the day that no file holds."""

from __future__ import annotations

import datetime as dt

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from pyiceberg.expressions import EqualTo

from keystone.config import LakeConfig
from keystone.segments import DataFile, Segment
from keystone.session_records import SESSION_SCHEMA
from keystone.sinks.iceberg.columns import FILE_COLUMNS
from keystone.sinks.iceberg.compaction import compact
from keystone.sinks.iceberg.files import listed
from keystone.sinks.lake import LakeWriter
from keystone.sinks.lake_schema import NAMES, SCHEMA
from keystone.sinks.session_file import SessionFile
from tests.lake_batches import APPEND_MS, DAY_MS, ToyDictionaries, batch_of, random_rows, row
from tests.lake_tables import DAY, Owner, places

ORDER = ["partition", "offset", "line"]
PLAIN = pa.schema([pa.field(f.name, f.type) for f in SCHEMA])


def with_pyiceberg(tables, name="events", day=None):
    table = tables.load(name)
    return (table.scan(EqualTo("event_date", day.isoformat())) if day else table.scan()).to_arrow()


def with_polars(tables, name="events", day=None):
    frame = pl.scan_iceberg(tables.load(name), reader_override="native")
    return (frame.filter(pl.col("event_date") == day) if day else frame).collect().to_arrow()


def with_duckdb(tables, name="events", day=None):
    """Its own extension must be downloaded; the list of files, with the day in their folder's name, serves as well."""
    paths = [str(tables.place.directory / file.path) for file in listed(tables.load(name), tables.place)]
    found = duckdb.sql(f"select * from read_parquet({paths}, hive_partitioning = true, union_by_name = true)")
    return (found.filter(f"event_date = date '{day}'") if day else found).to_arrow_table()


@pytest.fixture(autouse=True)
def _planned_by_pyiceberg(monkeypatch):
    """Else Polars warns that a package of its own would be quicker."""
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")


READERS = pytest.mark.parametrize("reader", [with_pyiceberg, with_polars, with_duckdb])


def written(lake, rows, **config):
    """A segment with the files that our own writer makes."""
    dictionaries, writer = ToyDictionaries(), LakeWriter(lake / "data" / "events", LakeConfig(**config))
    for first in range(0, len(rows), 1_000):
        writer.append(batch_of(rows[first : first + 1_000], dictionaries), dictionaries)
        writer.end_step(0)
    assert writer.close() == len(rows)
    files = []
    for path in sorted((lake / "data" / "events").rglob("*.parquet")):
        day = (dt.date.fromisoformat(path.parent.name.partition("=")[2]) - dt.date(1970, 1, 1)).days
        count = duckdb.sql(f"select count(*) from '{path}'").fetchall()[0][0]
        files.append(DataFile("events", str(path.relative_to(lake)), count, path.stat().st_size, day))
    return Segment(0, 1, rows[0]["offset"], rows[-1]["offset"] + 1, 0, 0, tuple(files))


def plain(table):
    return table.select(NAMES).cast(PLAIN).sort_by([(name, "ascending") for name in ORDER])


@pytest.mark.slow
@READERS
@pytest.mark.parametrize("is_compacted", [False, True])
def test_all_columns_of_our_own_files(tables, lake, reader, is_compacted):
    rows = [r | {"ts": APPEND_MS + (k % 3 - 1) * DAY_MS, "partition": 0} for k, r in enumerate(random_rows(3_000, seed=5))]
    segment = written(lake, rows, row_group_rows=300, file_rows_max=300)
    assert len(segment.files) > 6
    assert tables.commit([segment], 1).refused == {}
    if is_compacted:
        tables.config = LakeConfig(compact_files_min=2)
        assert compact(tables).groups == 3
    found = reader(tables)
    expected = pa.Table.from_pylist(sorted(rows, key=lambda r: (r["partition"], r["offset"], r["line"])), PLAIN)
    assert plain(found).equals(expected)
    days = dict(zip(zip(*(found[name].to_pylist() for name in ORDER), strict=True), found["event_date"].to_pylist(), strict=True))
    assert days == {(r["partition"], r["offset"], r["line"]): dt.date(1970, 1, 1) + dt.timedelta(days=r["ts"] // DAY_MS) for r in rows}


@pytest.mark.slow
@READERS
def test_a_day_is_the_folders_not_the_clocks(tables, lake, reader):
    """A device a year ahead: its rows are in the day they were appended."""
    rows = [row(offset=k, ts=APPEND_MS + (365 * DAY_MS if k % 2 else 0)) for k in range(10)]
    rows += [row(offset=10 + k, ts=APPEND_MS + DAY_MS) for k in range(10)]
    tables.commit([written(lake, rows)], 1)
    today = dt.date(1970, 1, 1) + dt.timedelta(days=DAY)
    found = reader(tables, day=today)
    assert sorted(found["offset"].to_pylist()) == list(range(10))
    assert set(found["event_date"].to_pylist()) == {today}
    scan = tables.load("events").scan(EqualTo("event_date", today.isoformat()))
    assert len(list(scan.plan_files())) == 1, "files of other days are not opened"


@pytest.mark.slow
def test_files_are_passed_over_by_time_and_offset(tables, lake):
    owner = Owner(lake)
    segments = [owner.segment(8) for _ in range(5)]
    tables.commit(segments, 1)
    table = tables.load("events")
    for filter_, files in (("offset < 4", 1), ("offset >= 18", 1), (f"ts < {APPEND_MS}", 0), (f"ts >= {APPEND_MS}", 5), ("partition = 1", 0)):
        assert len(list(table.scan(filter_).plan_files())) == files, filter_
    assert table.scan("cdn is null").to_arrow().num_rows == 0
    assert table.scan("phase is null").to_arrow().num_rows == len(places(tables))


@pytest.mark.slow
@READERS
def test_sessions_and_alerts(tables, lake, reader):
    owner = Owner(lake)
    tables.commit([owner.segment(sessions=5, alerts=3) for _ in range(2)], 1)
    assert reader(tables, "sessions").num_rows == 10
    assert reader(tables, "alerts").num_rows == 6
    for name in ("sessions", "alerts"):
        assert reader(tables, name).column_names == [column.name for column in FILE_COLUMNS[name]]


def test_session_files_as_they_are_written(tables, lake):
    """With dictionary columns given, as session records are: the file says plain strings."""
    path = lake / "data" / "sessions" / f"p00000-{0:020d}-{5:020d}-e.parquet"
    texts = {f.name: pa.array(["a", "b"]).cast(f.type) for f in SESSION_SCHEMA if _is_text(f.type)}
    table = pa.table([texts.get(f.name, pa.array([1, 2]).cast(pa.int64())).cast(f.type) for f in SESSION_SCHEMA], schema=SESSION_SCHEMA)

    class Given:
        def to_arrow(self):
            return table

    file = SessionFile(path, SESSION_SCHEMA)
    file.write(Given())
    file.close()
    segment = Segment(0, 1, 0, 5, 0, 0, (DataFile("sessions", str(path.relative_to(lake)), 2, path.stat().st_size),))
    assert tables.commit([segment], 1).refused == {}
    assert tables.load("sessions").scan().to_arrow()["device_id"].to_pylist() == ["a", "b"]


def _is_text(kind):
    return pa.types.is_string(kind) or pa.types.is_dictionary(kind)


@READERS
def test_older_files_lack_what_newer_tables_have(tables, lake, reader):
    from pyiceberg.types import LongType

    tables.commit([Owner(lake).segment()], 1)
    with tables.load("events").update_schema() as update:
        update.add_column("later", LongType())
    if reader is with_duckdb:
        return  # reads files, and knows no table
    found = reader(tables)
    assert found["later"].null_count == found.num_rows == 6
    assert found["event_date"].null_count == 0
