"""Which rows of a batch go where in the lake: days, gathered rows, and the codes of a row group's own dictionary."""

# mypy: ignore-errors

from typing import NamedTuple

import numpy as np

from keystone.kernels.compiler import callee, kernel, piece
from keystone.kernels.lake import CODE_COLUMNS, INT_COLUMNS, Text
from keystone.kernels.shared_memory import copy_bytes
from keystone.kernels.wide import copy_32


@kernel
def day_range(ts, append_ts, rows, anchor_ts, reach_ms, has_log_time, days):
    """``days[i]`` (int64): days since the epoch of the folder that row i belongs to (SPEC 5). Returns (lowest, highest)."""
    day_ms = np.int64(86_400_000)
    low, high = np.int64(2**62), np.int64(-1)
    for i in range(rows):
        near = append_ts[i] if has_log_time else anchor_ts
        away = ts[i] - near
        when = ts[i] if -reach_ms <= away <= reach_ms else near
        day = when // day_ms
        days[i] = day
        low = min(low, day)
        high = max(high, day)
    return low, high


@kernel
def localise(codes, first, rows, seen, order, count, local, local_first):
    """Codes of a large dictionary to codes of the row group's own, in order of appearance; returns its new size.

    ``seen[code]`` is the local code or -1, ``order[local]`` the code; both int32, with room for what may come.
    """
    for i in range(rows):
        code = codes[first + i]
        if code < 0:
            local[local_first + i] = -1
            continue
        mine = seen[code]
        if mine < 0:
            mine = np.int32(count)
            seen[code] = mine
            order[count] = code
            count += 1
        local[local_first + i] = mine
    return count


@kernel
def forget(seen, order, count):
    """Undo ``localise``: mark the first ``count`` codes of ``order`` as not seen."""
    for i in range(count):
        seen[order[i]] = -1


class Columns(NamedTuple):
    """What a batch or stage holds beside its strings. ``ints`` and ``codes`` as in ``encode_pages``."""

    ints: np.ndarray
    codes: np.ndarray
    ts: np.ndarray
    offset: np.ndarray
    append_ts: np.ndarray
    line: np.ndarray
    fatal: np.ndarray
    duplicate: np.ndarray
    late: np.ndarray


@piece
def gather(source, source_first, index, count, target, target_first):
    for i in range(count):
        target[target_first + i] = source[source_first + index[i]]


@callee
def gather_text(source, index, count, target, at):
    """Returns the bytes added."""
    end = np.int64(target.offsets[at])
    first = end
    for i in range(count):
        row = index[i]
        start = np.int64(source.offsets[row])
        size = np.int64(source.offsets[row + 1]) - start
        if size <= 32:  # both sides have PADDING spare bytes
            copy_32(target.data, end, source.data, start)
        else:
            copy_bytes(target.data, end, source.data, start, size)
        end += size
        target.offsets[at + i + 1] = np.int32(end)
        target.valid[at + i] = source.valid[row]
    return end - first


@kernel
def gather_rows(
    index, count, source, int_stride, code_stride, device, session, user, extra,
    target, target_int_stride, target_code_stride, to_device, to_session, to_user, to_extra, at,
):  # fmt: skip
    """Copy the rows ``index[:count]`` of a batch behind the ``at`` rows of a stage; returns the bytes of their strings."""
    for c in range(INT_COLUMNS):
        gather(source.ints, c * int_stride, index, count, target.ints, c * target_int_stride + at)
    for c in range(CODE_COLUMNS):
        gather(source.codes, c * code_stride, index, count, target.codes, c * target_code_stride + at)
    gather(source.ts, 0, index, count, target.ts, at)
    gather(source.offset, 0, index, count, target.offset, at)
    gather(source.append_ts, 0, index, count, target.append_ts, at)
    gather(source.line, 0, index, count, target.line, at)
    gather(source.fatal, 0, index, count, target.fatal, at)
    gather(source.duplicate, 0, index, count, target.duplicate, at)
    gather(source.late, 0, index, count, target.late, at)
    size = gather_text(device, index, count, to_device, at)
    size += gather_text(session, index, count, to_session, at)
    size += gather_text(user, index, count, to_user, at)
    return size + gather_text(extra, index, count, to_extra, at)


@kernel
def text_size(index, count, device, session, user, extra):
    """Bytes of the strings of the rows ``index[:count]``."""
    size = np.int64(0)
    for i in range(count):
        row = index[i]
        size += np.int64(device.offsets[row + 1]) - np.int64(device.offsets[row])
        size += np.int64(session.offsets[row + 1]) - np.int64(session.offsets[row])
        size += np.int64(user.offsets[row + 1]) - np.int64(user.offsets[row])
        size += np.int64(extra.offsets[row + 1]) - np.int64(extra.offsets[row])
    return size


def warm_up():
    """Compile or load every kernel."""
    i64, i32, u8 = np.zeros(64, np.int64), np.zeros(64, np.int32), np.zeros(64, np.uint8)
    text = Text(i32.copy(), u8, u8)
    columns = Columns(i64, i32, i64, i64, i64, i32, u8.view(np.int8), u8, u8)
    day_range(i64, i64, 1, 0, 0, 1, i64.copy())
    localise(i32, 0, 1, np.full(1, -1, np.int32), i32.copy(), 0, i32.copy(), 0)
    forget(i32.copy(), i32.copy(), 1)
    gather_rows(i64, 0, columns, 1, 1, text, text, text, text, columns, 1, 1, text, text, text, text, 0)
    text_size(i64, 0, text, text, text, text)
