"""Event batches from plain dicts (the reference's events), without the decoder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from copy import copy
from typing import Any

import numpy as np

from keystone.config import DetectionConfig, SessionConfig
from keystone.events import (
    CODE_NULL,
    DICTIONARY_COLUMNS,
    FIRST_DIMENSION,
    INT_COLUMNS,
    INT_NULL,
    KIND_BUFFER,
    KIND_ERROR,
    KIND_FATAL,
    KIND_HEARTBEAT,
    KIND_OTHER,
    KIND_START,
    KIND_STOP,
    KIND_WAIT,
    PADDING,
    EventBatch,
    StringColumn,
)  # fmt: skip
from keystone.session_snapshot import Strings, packed
from keystone.sessions import Applied, SessionTable
from tests.reference import DIMENSIONS, INTS, ReferenceSessions

KINDS = {"Start": KIND_START, "Heartbeat": KIND_HEARTBEAT, "Stop": KIND_STOP}


class ToyDictionaries:
    """Codes by first appearance; ``first`` shifts them, as another process's would be."""

    def __init__(self, first: int = 0) -> None:
        self.values: list[list[str]] = [["unused"] * first for _ in DICTIONARY_COLUMNS]
        self.codes: list[dict[str, int]] = [{} for _ in DICTIONARY_COLUMNS]

    def text(self, column: int, code: int) -> str:
        return self.values[column][code]

    def intern(self, column: int, value: bytes) -> int:
        text = value.decode()
        if text not in self.codes[column]:
            self.codes[column][text] = len(self.values[column])
            self.values[column].append(text)
        return self.codes[column][text]

    def strings(self) -> Strings:
        rows = [(value.encode(), column, code) for column, codes in enumerate(self.codes) for value, code in codes.items()]
        numbers = np.array([(len(value), column, code) for value, column, code in rows], np.int64).reshape(-1, 3)
        return Strings(np.frombuffer(b"".join(row[0] for row in rows), np.uint8), *numbers.T.copy())


def event(kind: str, ts: int, **fields: Any) -> dict[str, Any]:
    """An accepted event; what is not given is absent."""
    columns = dict.fromkeys(("phase", "fatal", *INTS, *DIMENSIONS))
    return {**columns, "event": kind, "ts": ts, "device_id": "d", "session_id": "s", **fields}


def kind_of(event: dict[str, Any]) -> int:
    if event["event"] == "Buffer":
        return KIND_WAIT if event["phase"] in ("startup", "seek") else KIND_BUFFER
    if event["event"] == "Error":
        return KIND_FATAL if event["fatal"] else KIND_ERROR
    return KINDS.get(event["event"], KIND_OTHER)


def strings(values: list[str | None]) -> StringColumn:
    parts = [(value or "").encode() for value in values]
    offsets = np.concatenate(([0], np.cumsum([len(part) for part in parts], dtype=np.int64))).astype(np.int32)
    data = np.frombuffer(b"".join(parts) + b"\0" * PADDING, np.uint8).copy()
    return StringColumn(offsets, data, np.array([value is not None for value in values], np.uint8))


def hashed(*parts: str | None) -> tuple[int, int]:
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little") | 1


def batch_of(events: list[tuple[dict[str, Any], int]], dictionaries: ToyDictionaries, partition: int = 0) -> EventBatch:
    """(event, log time) pairs as one batch, in matrices wider than they need be, as the decoder's are."""
    rows, wide = len(events), len(events) + 3
    ints = np.full((len(INT_COLUMNS), wide), INT_NULL, np.int64)
    codes = np.full((len(DICTIONARY_COLUMNS), wide), CODE_NULL, np.int32)
    for i, (item, _) in enumerate(events):
        for k, name in enumerate(INT_COLUMNS):
            if item[name] is not None:
                ints[k, i] = item[name]
        for k, name in enumerate(DICTIONARY_COLUMNS):
            if k >= FIRST_DIMENSION and item[name] is not None:
                codes[k, i] = dictionaries.intern(k, item[name].encode())
    keys = [hashed(item["device_id"], item["session_id"]) for item, _ in events]
    users = [0 if item["user_id"] is None else hashed(item["user_id"])[1] for item, _ in events]
    columns = [strings([item[name] for item, _ in events]) for name in ("device_id", "session_id", "user_id")]
    return EventBatch(
        partition, rows, np.array([kind_of(item) for item, _ in events], np.int8), np.zeros(rows, np.int8),
        np.array([item["ts"] for item, _ in events], np.int64), ints[:, :rows], codes[:, :rows], *columns, strings([None] * rows),
        np.array([key[0] for key in keys], np.uint64), np.array([key[1] for key in keys], np.uint64), np.array(users, np.uint64),
        np.arange(rows, dtype=np.int64), np.zeros(rows, np.int32), np.array([time for _, time in events], np.int64),
        np.full(rows, 77, np.uint8), np.full(rows, 77, np.uint8),
    )  # fmt: skip


class Run:
    """A table, and all that came out of it, in the reference's form."""

    def __init__(
        self,
        *,
        first_code: int = 0,
        has_log_time: bool = True,
        partition: int = 0,
        session: dict[str, int] | None = None,
        detection: dict[str, Any] | None = None,
    ) -> None:
        self.dictionaries = ToyDictionaries(first_code)
        self.configs = SessionConfig(**(session or {})), DetectionConfig(**(detection or {}))
        self.has_log_time, self.partition = has_log_time, partition
        self.table = self.new_table()
        self.alerts: list[dict[str, Any]] = []
        self.sessions: list[dict[str, Any]] = []
        self.flags: list[tuple[bool, bool]] = []

    def new_table(self) -> SessionTable:
        return SessionTable(*self.configs, self.dictionaries, has_log_time=self.has_log_time)

    def apply(self, events: list[tuple[dict[str, Any], int]]) -> Applied:
        batch = batch_of(events, self.dictionaries, self.partition)
        done = self.table.apply(batch)
        assert done.alert_rows.size == len(done.alerts)
        for alert, row in zip(done.alerts, done.alert_rows.tolist(), strict=True):
            assert (row < 0) == (alert.kind == "open_stall")
            assert row < 0 or (alert.session_id, alert.event_ts) == (events[row][0]["session_id"], events[row][0]["ts"])
        assert done.applied + done.duplicates == batch.rows
        assert (done.duplicates, done.late) == (int(batch.duplicate.sum()), int(batch.late.sum()))
        self.flags += [(bool(d), bool(x)) for d, x in zip(batch.duplicate, batch.late, strict=True)]
        self.take(done)
        return done

    def advance(self, log_time: int) -> Applied:
        return self.take(self.table.advance(log_time))

    def close_all(self) -> Applied:
        return self.take(self.table.close_all())

    def take(self, done: Applied) -> Applied:
        for alert in done.alerts:
            fields = {name: getattr(alert, name) for name in alert.__dataclass_fields__ if name != "dimensions"}
            self.alerts.append(fields | alert.dimensions)
        self.sessions += done.sessions.to_arrow().to_pylist()
        return done

    def move(self, first_code: int, *, is_packed: bool = True) -> Run:
        """What a restart does: a new table elsewhere, whose dictionaries number their strings otherwise."""
        other = copy(self)
        other.dictionaries = ToyDictionaries(first_code)
        other.table = other.new_table()
        arrays = self.table.snapshot()
        other.table.restore(packed(arrays) if is_packed else arrays)
        return other

    def outcome(self) -> tuple[Any, ...]:
        return canonical(self.alerts), canonical(self.sessions), self.flags


def canonical(rows: Iterable[dict[str, Any]]) -> list[Any]:
    return sorted((sorted(row.items(), key=lambda item: item[0]) for row in rows), key=repr)


def reference_outcome(
    events: list[tuple[dict[str, Any], int]], *, end: int | None, has_log_time: bool = True, session: dict[str, int] | None = None, **detection: Any
) -> tuple[Any, ...]:
    """What must come out of ``events``; then log time passes to ``end``, or (None) the file ends."""
    table = ReferenceSessions(has_log_time=has_log_time, **(session or {}), **detection)
    flags = [table.apply(item, time) for item, time in events]
    if end is None:
        table.close_all()
    else:
        table.advance(end)
    return canonical(table.alerts), canonical(table.sessions), flags
