"""The tables' columns are those of what is written into them."""

from __future__ import annotations

import dataclasses

import pyarrow as pa

from keystone.events import DIMENSIONS, Alert
from keystone.session_records import SESSION_SCHEMA
from keystone.sinks import lake_schema
from keystone.sinks.iceberg.columns import ALERT_SCHEMA, ALERTS, EVENT_DATE, EVENTS, FILE_COLUMNS, SESSIONS, TABLE_COLUMNS, alert_table
from tests.lake_tables import alert


def test_columns_are_those_of_the_files():
    assert FILE_COLUMNS[EVENTS] == lake_schema.COLUMNS
    assert [(c.name, c.is_optional) for c in FILE_COLUMNS[SESSIONS]] == [(f.name, f.nullable) for f in SESSION_SCHEMA]
    kinds = {"int64": pa.int64(), "double": pa.float64()}
    for column, field in zip(FILE_COLUMNS[SESSIONS], SESSION_SCHEMA, strict=True):
        assert kinds.get(column.type, field.type) == field.type
    assert TABLE_COLUMNS[EVENTS][-1] == EVENT_DATE
    assert all(c.description for columns in TABLE_COLUMNS.values() for c in columns)


def test_alerts_have_all_fields_and_dimensions():
    names = [column.name for column in FILE_COLUMNS[ALERTS]]
    assert set(names) == {f.name for f in dataclasses.fields(Alert)} - {"dimensions"} | set(DIMENSIONS)
    given = [alert(7, partition=3), dataclasses.replace(alert(8), seq=4, bitrate_kbps=None, dimensions={"user_id": "ü"})]
    rows = alert_table(given).to_pylist()
    for row, found in zip(rows, given, strict=True):
        for name, value in row.items():
            assert value == (found.dimensions.get(name) if name in DIMENSIONS else getattr(found, name)), name
    assert alert_table([]).schema == ALERT_SCHEMA == alert_table(given).schema
