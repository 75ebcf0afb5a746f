"""What routes read: the sources, their columns, and how what a step gives becomes a frame of them.

A frame is made only where a route looks into the rows. Strings are plain strings there, whatever they were coded as.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import fields
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from keystone.decode import Dictionaries
from keystone.events import (
    BOOL_NULL,
    DEAD_LETTER_BYTES_MAX,
    DICTIONARY_COLUMNS,
    DIMENSIONS,
    ID_COLUMNS,
    INT_COLUMNS,
    INT_NULL,
    Alert,
    DeadLetter,
    EventBatch,
    StringColumn,
)
from keystone.qoe_rows import RATIOS, told_schema, with_ratios
from keystone.session_records import SESSION_SCHEMA

EVENTS: Final = "events"
ALERTS: Final = "alerts"
SESSIONS: Final = "sessions"
COHORTS: Final = "cohorts"
DEAD_LETTERS: Final = "dead_letters"
SOURCES: Final = (EVENTS, ALERTS, SESSIONS, COHORTS, DEAD_LETTERS)
REVISION: Final = "revision"

Schema = dict[str, pl.DataType]

_STRING, _INT64, _INT32, _BOOL, _DOUBLE = pl.String(), pl.Int64(), pl.Int32(), pl.Boolean(), pl.Float64()
#: Of an event, in the order of the lake's files.
EVENT_SCHEMA: Final[Schema] = {
    "event": _STRING,
    "ts": _INT64,
    "device_id": _STRING,
    "session_id": _STRING,
    "seq": _INT64,
    "phase": _STRING,
    "fatal": _BOOL,
    "reason": _STRING,
    "error_code": _STRING,
    **dict.fromkeys(DIMENSIONS, _STRING),
    **dict.fromkeys(INT_COLUMNS[1:], _INT64),
    "append_ts": _INT64,
    "partition": _INT32,
    "offset": _INT64,
    "line": _INT32,
    "duplicate": _BOOL,
    "late": _BOOL,
    "extra": _STRING,
}
_ALERT_TYPES: Final = {"int": _INT64, "int | None": _INT64, "str": _STRING}
_NARROW: Final = frozenset({"buffers_in_run", "partition"})  # as in the lake


def _alert_schema() -> Schema:
    schema: Schema = {}
    for field in fields(Alert):
        if field.name == "dimensions":
            schema |= dict.fromkeys(DIMENSIONS, _STRING)
        else:
            schema[field.name] = _INT32 if field.name in _NARROW else _ALERT_TYPES[str(field.type)]
    return schema


def _session_type(kind: pa.DataType) -> pl.DataType:
    return _INT64 if pa.types.is_int64(kind) else _DOUBLE if pa.types.is_float64(kind) else _STRING


ALERT_SCHEMA: Final[Schema] = _alert_schema()
SESSION_COLUMNS: Final[Schema] = {field.name: _session_type(field.type) for field in SESSION_SCHEMA}
#: ``raw``: the bytes in base64, as in files of dead letters. ``text``: the same as UTF-8, what is none of it as ``\xNN``.
LETTER_SCHEMA: Final[Schema] = {
    **dict.fromkeys(("partition", "offset", "line"), _INT64),
    "reason": _STRING,
    "length": _INT64,
    "raw": _STRING,
    "text": _STRING,
}


def cohort_schema(dimensions: Sequence[str]) -> Schema:
    """Of the rows of cohorts, by the configured dimensions: sums, shown ratios, revision."""
    return {**told_schema(dimensions), **dict.fromkeys(RATIOS, _DOUBLE), REVISION: _INT64}


def schemas(dimensions: Sequence[str]) -> dict[str, Schema]:
    """Of every source. ``dimensions``: ``cohorts.dimensions``."""
    return {EVENTS: EVENT_SCHEMA, ALERTS: ALERT_SCHEMA, SESSIONS: SESSION_COLUMNS, COHORTS: cohort_schema(dimensions), DEAD_LETTERS: LETTER_SCHEMA}


def alerts_frame(alerts: Sequence[Alert]) -> pl.DataFrame:
    """One row an alert, in order."""
    return pl.DataFrame(
        {name: [alert.dimensions.get(name) if name in DIMENSIONS else getattr(alert, name) for alert in alerts] for name in ALERT_SCHEMA},
        schema=ALERT_SCHEMA,
    )


def sessions_frame(table: pa.Table) -> pl.DataFrame:
    """The rows of a table of ``SESSION_SCHEMA``, in order."""
    return _frame(table).cast(SESSION_COLUMNS)  # type: ignore[arg-type]


def cohorts_frame(table: pa.Table | pl.DataFrame, dimensions: Sequence[str], revision: int | None = None) -> pl.DataFrame:
    """Rows of cohorts as ``told_schema`` has them, with their ratios; columns that ``table`` lacks are null.

    ``revision``: of all of them; without one, the column of that name, or 0.
    """
    rows = table if isinstance(table, pl.DataFrame) else _frame(table)
    if revision is not None or REVISION not in rows.columns:
        rows = rows.with_columns(pl.lit(revision or 0, pl.Int64).alias(REVISION))
    told = {**told_schema(dimensions), REVISION: _INT64}
    columns = [(pl.col(name) if name in rows.columns else pl.lit(None)).cast(dtype).alias(name) for name, dtype in told.items()]
    return with_ratios(rows.select(columns)).select(list(cohort_schema(dimensions)))


def dead_letters_frame(letters: Sequence[DeadLetter]) -> pl.DataFrame:
    """One row a dead letter, in order."""
    heads = [letter.raw[:DEAD_LETTER_BYTES_MAX] for letter in letters]
    columns: dict[str, list[object]] = {name: [getattr(letter, name) for letter in letters] for name in LETTER_SCHEMA if name not in ("raw", "text")}
    columns["raw"] = [base64.b64encode(head).decode() for head in heads]
    columns["text"] = [head.decode("utf-8", "backslashreplace") for head in heads]
    return pl.DataFrame(columns, schema=LETTER_SCHEMA)


def events_frame(batch: EventBatch, dictionaries: Dictionaries, *, has_log_time: bool = True) -> pl.DataFrame:
    """The events of a batch, copied, in order. ``has_log_time`` False: of a plain file, ``append_ts`` is null."""
    rows = batch.rows
    columns: dict[str, pl.Series] = {"ts": pl.Series(batch.ts[:rows].copy())}
    for name in (*ID_COLUMNS, "extra"):
        columns[name] = _strings(getattr(batch, name), rows)
    for k, name in enumerate(DICTIONARY_COLUMNS):
        columns[name] = _words(batch.codes[k, :rows], dictionaries.arrow(k))
    for k, name in enumerate(INT_COLUMNS):
        columns[name] = _nullable(batch.ints[k, :rows].copy(), batch.ints[k, :rows] == INT_NULL)
    columns["fatal"] = _nullable(batch.fatal[:rows] > 0, batch.fatal[:rows] == BOOL_NULL)
    columns["append_ts"] = _nullable(batch.append_ts_ms[:rows].copy(), np.full(rows, not has_log_time))
    columns["partition"] = pl.Series(np.full(rows, batch.partition, np.int32))
    columns["offset"] = pl.Series(batch.offset[:rows].copy())
    columns["line"] = pl.Series(batch.line[:rows].astype(np.int32))
    columns["duplicate"] = pl.Series(batch.duplicate[:rows] != 0)
    columns["late"] = pl.Series(batch.late[:rows] != 0)
    return pl.DataFrame({name: columns[name] for name in EVENT_SCHEMA})


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)  # noqa: S101 - a table gives a frame
    return frame


def _nullable(values: npt.NDArray[np.generic], is_null: npt.NDArray[np.bool_]) -> pl.Series:
    return _series(pa.array(values, mask=is_null))


def _strings(column: StringColumn, rows: int) -> pl.Series:
    """A copy: the batch is overwritten."""
    offsets = column.offsets[: rows + 1].copy()
    text = column.data[: int(offsets[-1])].copy()
    validity = pa.py_buffer(np.packbits(column.valid[:rows] != 0, bitorder="little"))
    return _series(pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(text), validity))


def _words(codes: npt.NDArray[np.int32], values: pa.Array) -> pl.Series:
    return _series(values.take(pa.array(codes, mask=codes < 0)))


def _series(array: pa.Array) -> pl.Series:
    series = pl.from_arrow(array)
    assert isinstance(series, pl.Series)  # noqa: S101 - an array gives a series
    return series
