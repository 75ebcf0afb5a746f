"""Event batches cut, gathered and collected: what lies between a decoder's batch and a page of the lake."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from keystone.events import DICTIONARY_COLUMNS, I64, INT_COLUMNS, PADDING, EventBatch, StringColumn


def text_bytes(column: StringColumn, rows: int) -> int:
    """Bytes of the first ``rows`` values together."""
    return int(column.offsets[rows]) - int(column.offsets[0])


def batch_text_bytes(batch: EventBatch) -> int:
    """Bytes of all four string columns together."""
    return sum(text_bytes(column, batch.rows) for column in (batch.device_id, batch.session_id, batch.user_id, batch.extra))


def take(batch: EventBatch, index: I64) -> EventBatch:
    """The rows ``index`` (ascending) of a batch, copied. Columns that the lake does not hold stay as they are."""
    return replace(
        batch, rows=index.size, kind=batch.kind[index], fatal=batch.fatal[index], ts=batch.ts[index],
        ints=np.ascontiguousarray(batch.ints[:, index]), codes=np.ascontiguousarray(batch.codes[:, index]),
        offset=batch.offset[index], line=batch.line[index], append_ts_ms=batch.append_ts_ms[index],
        duplicate=batch.duplicate[index], late=batch.late[index], device_id=_take_strings(batch.device_id, index),
        session_id=_take_strings(batch.session_id, index), user_id=_take_strings(batch.user_id, index), extra=_take_strings(batch.extra, index),
    )  # fmt: skip


def _take_strings(column: StringColumn, index: I64) -> StringColumn:
    starts = column.offsets[index].astype(np.int64)
    sizes = column.offsets[index + 1] - starts
    ends = np.zeros(index.size + 1, np.int64)
    np.cumsum(sizes, out=ends[1:])
    source = np.repeat(starts - ends[:-1], sizes) + np.arange(ends[-1])
    data = np.zeros(int(ends[-1]) + PADDING, np.uint8)
    data[: ends[-1]] = column.data[source]
    return StringColumn(ends.astype(np.int32), data, column.valid[index])


class Stage:
    """Collects small batches until they make a page worth writing. Grows from little: a day of a broken clock stays cheap."""

    def __init__(self, partition: int) -> None:
        self.rows = 0
        self.text_bytes = 0
        self._partition = partition
        self._room, self._text_room = 0, 0
        self._batch: EventBatch | None = None

    def append(self, batch: EventBatch) -> None:
        """Copy the rows of ``batch``."""
        stage = self._with_room(batch.rows, batch_text_bytes(batch))
        at, end = self.rows, self.rows + batch.rows
        stage.fatal[at:end], stage.ts[at:end], stage.ints[:, at:end], stage.codes[:, at:end] = batch.fatal, batch.ts, batch.ints, batch.codes
        stage.offset[at:end], stage.line[at:end], stage.append_ts_ms[at:end] = batch.offset, batch.line, batch.append_ts_ms
        stage.duplicate[at:end], stage.late[at:end] = batch.duplicate, batch.late
        for name in ("device_id", "session_id", "user_id", "extra"):
            self.text_bytes += _append_strings(getattr(stage, name), at, getattr(batch, name), batch.rows)
        self.rows = end

    def take_all(self) -> EventBatch:
        """Everything collected, in order; valid until the next ``append``. The stage is empty then."""
        stage, rows = self._with_room(0, 0), self.rows
        self.rows = self.text_bytes = 0
        return _head(stage, rows)

    def _with_room(self, rows: int, size: int) -> EventBatch:
        rows, size = rows + self.rows, size + self.text_bytes
        if self._batch is not None and rows <= self._room and size <= self._text_room:
            return self._batch
        old, self._batch = self._batch, None
        self._room = max(rows, 2 * self._room, 64)
        self._text_room = max(size, 2 * self._text_room, 4096)
        kept, self.rows, self.text_bytes = self.rows, 0, 0
        self._batch = _new_batch(self._partition, self._room, self._text_room)
        if old is not None and kept:
            self.append(_head(old, kept))
        return self._batch


def _append_strings(stage: StringColumn, at: int, column: StringColumn, rows: int) -> int:
    first, size = int(column.offsets[0]), text_bytes(column, rows)
    used = int(stage.offsets[at]) if at else 0
    stage.offsets[0] = 0
    stage.offsets[at + 1 : at + rows + 1] = column.offsets[1 : rows + 1] + np.int32(used - first)
    stage.data[used : used + size] = column.data[first : first + size]
    stage.valid[at : at + rows] = column.valid[:rows]
    return size


def _head(batch: EventBatch, rows: int) -> EventBatch:
    return replace(
        batch, rows=rows, fatal=batch.fatal[:rows], ts=batch.ts[:rows], ints=batch.ints[:, :rows], codes=batch.codes[:, :rows],
        offset=batch.offset[:rows], line=batch.line[:rows], append_ts_ms=batch.append_ts_ms[:rows], duplicate=batch.duplicate[:rows],
        late=batch.late[:rows],
    )  # fmt: skip


def _new_batch(partition: int, rows: int, size: int) -> EventBatch:
    def strings() -> StringColumn:
        return StringColumn(np.zeros(rows + 1, np.int32), np.zeros(size + PADDING, np.uint8), np.zeros(rows, np.uint8))

    i64, none = np.int64, np.zeros(0, np.uint64)
    return EventBatch(
        partition, rows, np.zeros(0, np.int8), np.zeros(rows, np.int8), np.zeros(rows, i64), np.zeros((len(INT_COLUMNS), rows), i64),
        np.zeros((len(DICTIONARY_COLUMNS), rows), np.int32), strings(), strings(), strings(), strings(), none, none, none,
        np.zeros(rows, i64), np.zeros(rows, np.int32), np.zeros(rows, i64), np.zeros(rows, np.uint8), np.zeros(rows, np.uint8),
    )  # fmt: skip
