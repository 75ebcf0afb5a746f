"""The lake's columns: names, types, meanings. One row is one accepted event, duplicates and late events included."""

from __future__ import annotations

import json
from typing import Final, NamedTuple

import pyarrow as pa

from keystone.events import DICTIONARY_COLUMNS


class Column(NamedTuple):
    """One column. ``type`` is ``string``, ``int64``, ``int32`` or ``bool``."""

    name: str
    type: str
    is_optional: bool
    description: str


REQUIRED: Final = False
OPTIONAL: Final = True

#: In the order of the files. Times are int64 milliseconds, not timestamps: ``ts`` may lie anywhere below 2^53 ms, which
#: is past the year 9999, where the date types of most readers end.
COLUMNS: Final = (
    Column("event", "string", REQUIRED, "Start, Heartbeat, Buffer, Stop, Error; any other name as it was sent"),
    Column("ts", "int64", REQUIRED, "device clock, ms since the Unix epoch"),
    Column("device_id", "string", REQUIRED, "with session_id the identity of the session"),
    Column("session_id", "string", REQUIRED, "with device_id the identity of the session"),
    Column("seq", "int64", OPTIONAL, "per session, from 0, one up per event"),
    Column("phase", "string", OPTIONAL, "on Buffer: startup and seek mark waiting that is not a stall"),
    Column("fatal", "bool", OPTIONAL, "on Error: playback cannot go on"),
    Column("reason", "string", OPTIONAL, "on Stop: ended, user, error, ..."),
    Column("error_code", "string", OPTIONAL, "on Error: the player's code"),
    Column("user_id", "string", OPTIONAL, "dimension: account"),
    Column("title_id", "string", OPTIONAL, "dimension: what is played"),
    Column("region", "string", OPTIONAL, "dimension: serving region"),
    Column("country", "string", OPTIONAL, "dimension: country of the device"),
    Column("device_type", "string", OPTIONAL, "dimension: tv, phone, ..."),
    Column("os", "string", OPTIONAL, "dimension: operating system"),
    Column("app_version", "string", OPTIONAL, "dimension: version of the player"),
    Column("cdn", "string", OPTIONAL, "dimension: content delivery network"),
    Column("isp", "string", OPTIONAL, "dimension: access provider"),
    Column("network", "string", OPTIONAL, "dimension: wifi, ethernet, cellular, ..."),
    Column("bitrate_kbps", "int64", OPTIONAL, "bitrate played, kilobits a second"),
    Column("position_ms", "int64", OPTIONAL, "place in the title, ms"),
    Column("buffer_ms", "int64", OPTIONAL, "media buffered ahead, ms"),
    Column("stall_ms", "int64", OPTIONAL, "length of the stall as the device measured it, ms"),
    Column("startup_ms", "int64", OPTIONAL, "start-up time as the device measured it, ms"),
    Column("dropped_frames", "int64", OPTIONAL, "frames not shown"),
    Column("append_ts", "int64", OPTIONAL, "log time: when the record was appended, ms since the epoch; null where the source is a plain file"),
    Column("partition", "int32", REQUIRED, "partition of the log"),
    Column("offset", "int64", REQUIRED, "offset of the log record; in a plain file the line number, from 0"),
    Column("line", "int32", REQUIRED, "line in the record's value, from 0; (partition, offset, line) names an event for ever"),
    Column("duplicate", "bool", REQUIRED, "the session had this seq already: counted, otherwise without effect"),
    Column("late", "bool", REQUIRED, "its seq is below the session's highest"),
    Column("extra", "string", OPTIONAL, "unknown fields, and optional fields of a wrong type, as one JSON object text"),
)
NAMES: Final = tuple(column.name for column in COLUMNS)
#: By the place of a column: its row in ``EventBatch.codes``, for the dictionary-coded ones.
DICTIONARY_ROW: Final = {NAMES.index(name): row for row, name in enumerate(DICTIONARY_COLUMNS)}
#: Columns with lowest and highest value in the file's statistics: what queries and table formats prune by.
STATISTICS: Final = (NAMES.index("ts"), NAMES.index("offset"))

_ARROW: Final = {"string": pa.string(), "int64": pa.int64(), "int32": pa.int32(), "bool": pa.bool_()}

#: The same for Arrow users; each field's metadata holds its ``description``.
SCHEMA: Final = pa.schema([pa.field(c.name, _ARROW[c.type], nullable=c.is_optional, metadata={"description": c.description}) for c in COLUMNS])
#: Key-value metadata of every file: readers find the descriptions there, as one JSON object by column name.
DESCRIPTIONS_KEY: Final = "keystone.columns"
DESCRIPTIONS: Final = json.dumps({column.name: column.description for column in COLUMNS})
