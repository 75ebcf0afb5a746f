"""``sessions.parquet``: all records, or the file that was there before."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from keystone.errors import SinkError, UsageError
from keystone.sinks import session_file
from keystone.sinks.session_file import SessionFile

SCHEMA = pa.schema([pa.field("device_id", pa.string(), nullable=False), pa.field("start_ts", pa.int64(), nullable=False), pa.field("cdn", pa.string())])


class Some:
    def __init__(self, first, count):
        self.rows = [{"device_id": f"d{i}", "start_ts": i, "cdn": None if i % 2 else "c"} for i in range(first, first + count)]

    def to_arrow(self):
        return pa.Table.from_pylist(self.rows, SCHEMA)


def test_all_records_come_back_in_place_at_close(tmp_path, monkeypatch):
    monkeypatch.setattr(session_file, "ROW_GROUP_ROWS", 100)
    path = tmp_path / "new" / "sessions.parquet"
    file = SessionFile(path, SCHEMA)
    expected = []
    for first, count in ((0, 30), (30, 0), (30, 80), (110, 5)):
        records = Some(first, count)
        assert file.write(records) == count
        expected += records.rows
        assert not path.exists()
    assert file.close() == file.close() == 115
    assert pq.read_table(path).to_pylist() == pl.read_parquet(path).to_dicts() == expected
    assert pq.ParquetFile(path).num_row_groups == 2
    assert pq.ParquetFile(path).schema_arrow == SCHEMA
    assert [p.name for p in path.parent.iterdir()] == ["sessions.parquet"]


def test_no_sessions_still_make_a_file(tmp_path):
    file = SessionFile(tmp_path / "sessions.parquet", SCHEMA)
    assert file.close() == 0
    assert pq.read_table(tmp_path / "sessions.parquet").schema == SCHEMA


def test_an_aborted_file_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "sessions.parquet"
    path.write_bytes(b"earlier")
    file = SessionFile(path, SCHEMA)
    file.write(Some(0, 10))
    file.abort()
    assert path.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["sessions.parquet"]


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match="choose another directory"):
        SessionFile(tmp_path / "taken" / "sessions.parquet", SCHEMA)


def test_a_rename_that_fails_is_one_clear_error(tmp_path):
    path = tmp_path / "sessions.parquet"
    file = SessionFile(path, SCHEMA)
    file.write(Some(0, 10))
    (path / "in the way").mkdir(parents=True)
    with pytest.raises(SinkError, match="free room"):
        file.close()
    assert [p.name for p in tmp_path.iterdir()] == ["sessions.parquet"]


def test_a_dimension_that_some_sessions_lack_is_written_however_many_values_it_has(tmp_path):
    """A few rows with codes far above their number, and one without: the dictionary must hold no null."""
    from keystone.session_records import _texts

    class Texts:
        def text(self, column: int, code: int) -> str:
            return f"{column}-{code}"

    column = _texts(np.array([5_000, -1, 7, 5_000], np.int32), 4, Texts())
    assert column.to_pylist() == ["4-5000", None, "4-7", "4-5000"]
    assert column.dictionary.null_count == 0
    pq.write_table(pa.table({"x": column}), tmp_path / "x.parquet")
