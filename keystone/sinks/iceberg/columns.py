"""The columns of the three tables, and what they mean. Arrow only: pyiceberg's form of it is in ``schema``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Final

import pyarrow as pa

from keystone.events import DIMENSIONS, Alert
from keystone.session_records import SESSION_SCHEMA
from keystone.sinks import lake_schema
from keystone.sinks.lake_schema import OPTIONAL, REQUIRED, Column

EVENTS, SESSIONS, ALERTS = "events", "sessions", "alerts"
#: What ``events`` is partitioned by. No file holds it: it is said of each file, and readers fill it in from there.
EVENT_DATE: Final = Column("event_date", "date", OPTIONAL, "UTC day of ts, or of append_ts where ts is over 2 days from it; the table's partition")

_DIMENSION_TEXT: Final = {column.name: column.description for column in lake_schema.COLUMNS if column.name in DIMENSIONS}
_SESSION_TEXT: Final = {
    "device_id": "with session_id the identity of the session",
    "session_id": "with device_id the identity of the session",
    "start_ts": "lowest ts of the session, ms since the Unix epoch by the device's clock",
    "end_ts": "highest ts of the session's events up to its Stop",
    "duration_ms": "end_ts - start_ts",
    "playing_ms": "what start-up and stalls leave of duration_ms, at least 0",
    "startup_ms": "from Start to the first Heartbeat; null where one of them is missing",
    "stall_ms": "time in stalls, from the first Buffer of a run to whatever ended it",
    "events": "events applied, duplicates not counted",
    "buffers": "Buffers that were stalls",
    "errors": "Errors, fatal or not",
    "duplicates": "events whose seq had been seen",
    "late": "events whose seq was below the highest seen",
    "alerts": "alerts raised",
    "mean_bitrate_kbps": "mean over in-order Heartbeats that carry a bitrate; null where none does",
    "end_reason": "stop, timeout, or open: the source ended first",
    "outcome": "vpf: failed while playing; vsf: failed before; played; ebvs: left before the first picture",
}
_ALERT_TEXT: Final = {
    "alert_id": "the same for the same alert in any replay",
    "kind": "buffering_loop or open_stall",
    "device_id": "with session_id the identity of the session",
    "session_id": "with device_id the identity of the session",
    "event_ts": "ts of the Buffer that raised it, or that opened the stall, by the device's clock",
    "seq": "seq of that Buffer; null where it had none",
    "buffers_in_run": "stalls in a row, this one included",
    "bitrate_kbps": "the session's last bitrate; null where none is known",
    "recommended_bitrate_kbps": "what the player is told to go down to",
    "append_ts_ms": "log time of the event that raised it, or at which the stall had been open too long",
    "partition": "partition of the log",
    "action": "what is asked of the player",
}
_OPTIONAL_IN_ALERTS: Final = {"seq", "bitrate_kbps"}
_INT32_IN_ALERTS: Final = {"buffers_in_run", "partition"}
_STRINGS_IN_ALERTS: Final = {"alert_id", "kind", "device_id", "session_id", "action"}


def _session_column(field: pa.Field) -> Column:
    kind = "string" if pa.types.is_dictionary(field.type) or pa.types.is_string(field.type) else "double" if pa.types.is_floating(field.type) else "int64"
    return Column(field.name, kind, field.nullable, (_SESSION_TEXT | _DIMENSION_TEXT)[field.name])


def _alert_columns() -> Iterable[Column]:
    for field in fields(Alert):
        if field.name == "dimensions":
            yield from (Column(name, "string", OPTIONAL, _DIMENSION_TEXT[name]) for name in DIMENSIONS)
            continue
        kind = "string" if field.name in _STRINGS_IN_ALERTS else "int32" if field.name in _INT32_IN_ALERTS else "int64"
        yield Column(field.name, kind, OPTIONAL if field.name in _OPTIONAL_IN_ALERTS else REQUIRED, _ALERT_TEXT[field.name])


#: By table, in the order of its files.
FILE_COLUMNS: Final[dict[str, tuple[Column, ...]]] = {
    EVENTS: lake_schema.COLUMNS,
    SESSIONS: tuple(_session_column(field) for field in SESSION_SCHEMA),
    ALERTS: tuple(_alert_columns()),
}
#: And what a table has beyond its files' columns.
TABLE_COLUMNS: Final = {name: (*columns, EVENT_DATE) if name == EVENTS else columns for name, columns in FILE_COLUMNS.items()}
TABLE_TEXT: Final = {
    EVENTS: "every accepted event, duplicates and late ones included, once; (partition, offset, line) names it",
    SESSIONS: "one row a closed session",
    ALERTS: "every alert raised; alert_id is the same in any replay",
}

_ARROW: Final = {"string": pa.string(), "int64": pa.int64(), "int32": pa.int32(), "bool": pa.bool_(), "double": pa.float64()}
#: Of a file of alerts: plain strings, as every reader takes them. Write it with ``store_schema=False``.
ALERT_SCHEMA: Final = pa.schema([pa.field(c.name, _ARROW[c.type], nullable=c.is_optional) for c in FILE_COLUMNS[ALERTS]])


def alert_table(alerts: Iterable[Alert]) -> pa.Table:
    """Alerts as rows of ALERT_SCHEMA, in the order given."""
    given = list(alerts)
    own = [column.name for column in FILE_COLUMNS[ALERTS]]
    columns = [[a.dimensions.get(name) if name in DIMENSIONS else getattr(a, name) for a in given] for name in own]
    return pa.Table.from_arrays([pa.array(values, ALERT_SCHEMA.field(name).type) for name, values in zip(own, columns, strict=True)], schema=ALERT_SCHEMA)
