"""Alerts, session records and cohort rows as documents. Columns become JSON in a thread of the sink, 1,000 rows at a time.

Ids are the same whenever the same row is said again: ``alert_id``; of a session a hash over its identity and ``start_ts``; of a cohort row
one over window and dimensions. An alert's day is by its ``event_ts`` held against its append time, both its own, so a replay finds the same
index. A session record has no append time: its day is by ``end_ts`` held against ``closed_ms``, the log time at which its batch was closed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
import polars as pl
import pyarrow as pa

from keystone.events import DIMENSIONS, Alert
from keystone.sinks.base import ALERTS, BELIEVED_DAYS, COHORTS, DAY_MS, SESSIONS, Document, event_day
from keystone.sinks.elastic_schema import COHORT_DIMENSIONS, COHORT_SUMS

ID_CHARS: Final = 32  # 128 bits
FEW_ROWS: Final = 100  # as a step closes sessions: 20 take 0.3 ms, by Polars 0.8
ALERT_BYTES: Final = 2_000  # of an Alert's object with its ids and ten dimensions, by sys.getsizeof: 136 + 196 + 272 + 560, and its numbers


@dataclass(frozen=True, slots=True)
class AlertRows:
    """Alerts of one step."""

    alerts: Sequence[Alert]
    kind: str = ALERTS

    @property
    def rows(self) -> int:
        return len(self.alerts)

    @property
    def size_bytes(self) -> int:
        return ALERT_BYTES * len(self.alerts)

    def documents(self, start: int, stop: int) -> list[Document]:
        return [Document(ALERTS, alert.alert_id, event_day(alert.event_ts, alert.append_ts_ms), _alert_body(alert)) for alert in self.alerts[start:stop]]


def _alert_body(alert: Alert) -> bytes:
    return orjson.dumps(
        {
            "@timestamp": alert.append_ts_ms,
            "alert_id": alert.alert_id,
            "kind": alert.kind,
            "action": alert.action,
            "device_id": alert.device_id,
            "session_id": alert.session_id,
            "event_ts": alert.event_ts,
            "seq": alert.seq,
            "buffers_in_run": alert.buffers_in_run,
            "bitrate_kbps": alert.bitrate_kbps,
            "recommended_bitrate_kbps": alert.recommended_bitrate_kbps,
            "partition": alert.partition,
            **{name: value for name in DIMENSIONS if (value := alert.dimensions.get(name)) is not None},
        }
    )


@dataclass(frozen=True, slots=True)
class SessionRows:
    """A table of ``SESSION_SCHEMA``. ``closed_ms``: log time when these were closed; only broken clocks are held against it."""

    table: pa.Table
    closed_ms: int
    kind: str = SESSIONS

    @property
    def rows(self) -> int:
        return int(self.table.num_rows)

    @property
    def size_bytes(self) -> int:
        return int(self.table.nbytes)

    def documents(self, start: int, stop: int) -> list[Document]:
        rows = self.table.slice(start, stop - start)
        end_ts = rows.column("end_ts").to_numpy()
        is_believed = np.abs(end_ts - self.closed_ms) <= BELIEVED_DAYS * DAY_MS
        said_ms = np.where(is_believed, end_ts, self.closed_ms)
        bodies = _lines(rows.append_column("@timestamp", pa.array(said_ms)))
        names = zip(rows.column("device_id").to_pylist(), rows.column("session_id").to_pylist(), rows.column("start_ts").to_pylist(), strict=True)
        days = (said_ms // DAY_MS).tolist()
        return [Document(SESSIONS, session_document_id(*name), day, body) for name, day, body in zip(names, days, bodies, strict=True)]


def session_document_id(device_id: str, session_id: str, start_ts: int) -> str:
    return _id_of(device_id, session_id, str(start_ts))


@dataclass(frozen=True, slots=True)
class CohortRows:
    """Merged cohort rows (SPEC 4), none of a single partition.

    Columns: ``window_start_ms window_ms``, dimensions (absent or null = all), sums, and ``startup_ms_p50 startup_ms_p95`` where known.
    ``revision``: of these values, at least 0; it rises when a window is said again. A column ``revision`` says it of each row instead.
    """

    table: pa.Table
    revision: int = 0
    kind: str = COHORTS

    @property
    def rows(self) -> int:
        return int(self.table.num_rows)

    @property
    def size_bytes(self) -> int:
        return int(self.table.nbytes)

    def documents(self, start: int, stop: int) -> list[Document]:
        return [self._document(row, row.get("revision", self.revision)) for row in self.table.slice(start, stop - start).to_pylist()]

    def _document(self, row: dict[str, Any], revision: int) -> Document:
        window_start_ms, window_ms = row["window_start_ms"], row["window_ms"]
        named = [name for name in COHORT_DIMENSIONS if row.get(name) is not None]
        body = {
            "@timestamp": window_start_ms,
            "cohort": "+".join(sorted(named)) or "all",
            "window_start_ms": window_start_ms,
            "window_ms": window_ms,
            "revision": revision,
            **{name: row[name] for name in (*named, *COHORT_SUMS, "startup_ms_p50", "startup_ms_p95") if row.get(name) is not None},
            **ratios(row),
        }
        values = [part for name in named for part in (name, row[name])]
        return Document(COHORTS, _id_of(str(window_start_ms), str(window_ms), *values), window_start_ms // DAY_MS, orjson.dumps(body), revision)


def ratios(sums: dict[str, Any]) -> dict[str, float]:
    """Ratios of sums (SPEC 4), those whose divisor is not zero."""
    value = {name: sums.get(name) or 0 for name in COHORT_SUMS}
    pairs = {
        "rebuffering_ratio": (value["stall_ms"], value["stall_ms"] + value["played_ms"]),
        "ebvs_ratio": (value["ebvs"], value["attempts"]),
        "vsf_ratio": (value["vsf"], value["attempts"]),
        "vpf_ratio": (value["vpf"], value["ended"] - value["ebvs"] - value["vsf"]),
    }
    return {name: part / whole for name, (part, whole) in pairs.items() if whole > 0}


def _id_of(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:ID_CHARS]


def _lines(table: pa.Table) -> list[bytes]:
    """One JSON object a row. Polars writes many without holding up the interpreter, and escapes every line feed; few cost a third one by one."""
    if table.num_rows <= FEW_ROWS:
        columns = [column.to_pylist() for column in table.columns]
        return [orjson.dumps(dict(zip(table.column_names, row, strict=True))) for row in zip(*columns, strict=True)]
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)  # noqa: S101 - a table gives a frame
    lines = frame.write_ndjson().encode().splitlines()
    if len(lines) != table.num_rows:
        raise ValueError(f"{table.num_rows} rows became {len(lines)} lines")
    return lines
