"""Event batches cut, gathered and collected: what lies between a decoder's batch and a page of the lake."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from keystone.events import DICTIONARY_COLUMNS, I64, INT_COLUMNS, PADDING, EventBatch, StringColumn
from keystone.kernels import lake as kernel
from keystone.kernels import lake_rows

Number = TypeVar("Number", bound=np.generic)


def text_bytes(column: StringColumn, rows: int) -> int:
    """Bytes of the first ``rows`` values together."""
    return int(column.offsets[rows]) - int(column.offsets[0])


def batch_text_bytes(batch: EventBatch) -> int:
    """Bytes of all four string columns together."""
    return sum(text_bytes(column, batch.rows) for column in (batch.device_id, batch.session_id, batch.user_id, batch.extra))


def as_text(column: StringColumn) -> kernel.Text:
    """The column as kernels take it."""
    return kernel.Text(column.offsets, column.data, column.valid)


def texts(batch: EventBatch) -> tuple[kernel.Text, kernel.Text, kernel.Text, kernel.Text]:
    """The string columns as kernels take them."""
    return as_text(batch.device_id), as_text(batch.session_id), as_text(batch.user_id), as_text(batch.extra)


def flat(columns: npt.NDArray[Number]) -> tuple[npt.NDArray[Number], int]:
    """The rows of a two-dimensional array as one dimension, and how many items apart they lie. No copy.

    A kernel that takes two dimensions is compiled once for each layout; this is always the same one.
    """
    count, size = columns.shape
    stride = columns.strides[0] // columns.itemsize
    return np.lib.stride_tricks.as_strided(columns, ((count - 1) * stride + size,), (columns.itemsize,)), stride


def _columns(batch: EventBatch) -> tuple[lake_rows.Columns, int, int]:
    (ints, int_stride), (codes, code_stride) = flat(batch.ints), flat(batch.codes)
    columns = lake_rows.Columns(ints, codes, batch.ts, batch.offset, batch.append_ts_ms, batch.line, batch.fatal, batch.duplicate, batch.late)
    return columns, int_stride, code_stride


def selected_text_bytes(batch: EventBatch, index: I64) -> int:
    """Bytes of the strings of some rows."""
    return int(lake_rows.text_size(index, index.size, *texts(batch)))


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

    def append_rows(self, batch: EventBatch, index: I64, size: int) -> None:
        """Copy the rows ``index`` (ascending, int64) of ``batch``, whose strings have ``size`` bytes."""
        stage = self._with_room(index.size, size)
        self.text_bytes += lake_rows.gather_rows(index, index.size, *_columns(batch), *texts(batch), *_columns(stage), *texts(stage), self.rows)
        self.rows += index.size

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
