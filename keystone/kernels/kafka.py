"""Records of a Kafka record batch (magic 2), found without making an object of any.

A record: length, attributes (1 byte), timestamp delta, offset delta, key, value, headers; lengths and deltas are zigzag
varints, a length of -1 is a null (https://kafka.apache.org/documentation/#record). Nothing in the bytes is trusted: what
does not fit into its batch ends the walk.
"""

# mypy: ignore-errors

import numpy as np

from keystone.kernels.compiler import kernel, piece
from keystone.kernels.wide import equal_32, ones

STARTS, ENDS, OFFSETS, APPEND_MS = range(4)
COLUMNS = 4
MALFORMED = -1
_VARINT_BYTES_MAX = 10
_LF = np.uint8(10)
_LF_64 = np.uint64(10)


@piece
def varint(text, at, end):
    """A zigzag varint at ``text[at]``: its value and where it ends; (0, -1) where it does not end before ``end``."""
    bits = np.uint64(0)
    shift = np.uint64(0)
    last = min(end, at + _VARINT_BYTES_MAX)
    while at < last:
        byte = text[at]
        at += 1
        bits |= np.uint64(byte & 0x7F) << shift
        if byte < 0x80:
            return np.int64(bits >> np.uint64(1)) ^ -np.int64(bits & np.uint64(1)), np.int64(at)
        shift += np.uint64(7)
    return np.int64(0), np.int64(-1)


@kernel
def walk_records(text, at, end, records, base_offset, last_offset, base_ms, use_delta, wanted_offset, columns, count):
    """Note the ``records`` records in ``text[at:end]`` in ``columns`` (COLUMNS, room) from place ``count`` on.

    Returns the new count, or MALFORMED. Records below ``wanted_offset`` are passed over (a fetch returns whole batches). The byte
    behind a value, the count of headers, is overwritten by a line feed: what comes after a value is of no use to anyone.
    ``use_delta``: append times are ``base_ms`` plus the record's delta, else ``base_ms`` itself.
    """
    previous = np.int64(-1)
    for _ in range(records):
        length, at = varint(text, at, end)
        if at < 0 or length < 0 or length > end - at:
            return np.int64(MALFORMED)
        stop = at + length
        at += 1
        delta_ms, at = varint(text, at, stop)
        if at < 0:
            return np.int64(MALFORMED)
        delta, at = varint(text, at, stop)
        if at < 0 or delta <= previous or delta > last_offset - base_offset:
            return np.int64(MALFORMED)
        previous = delta
        size, at = varint(text, at, stop)
        if at < 0 or size > stop - at:
            return np.int64(MALFORMED)
        at += max(size, 0)
        size, at = varint(text, at, stop)
        if at < 0 or size >= stop - at or at >= stop:
            return np.int64(MALFORMED)
        finish = at + max(size, 0)
        text[finish] = _LF
        if base_offset + delta >= wanted_offset:
            columns[STARTS, count] = at
            columns[ENDS, count] = finish
            columns[OFFSETS, count] = base_offset + delta
            columns[APPEND_MS, count] = base_ms + (delta_ms if use_delta else 0)
            count += 1
        at = stop
    return np.int64(count)


@kernel
def count_events(text, starts, ends):
    """Lines of the values ``text[starts:ends]``, the last of each with or without its line feed; 32 bytes behind them are readable."""
    lines = np.int64(0)
    for i in range(starts.size):
        at, end = starts[i], ends[i]
        if at >= end:
            continue
        while at + 32 <= end:
            lines += ones(equal_32(text, at, _LF_64))
            at += 32
        lines += ones(equal_32(text, at, _LF_64) & ((np.uint64(1) << np.uint64(end - at)) - np.uint64(1)))
        lines += text[end - 1] != _LF
    return lines


def warm_up() -> None:
    """Compile, or load, everything here."""
    text = np.frombuffer(bytearray(b"\x0c\x00\x00\x00\x01\x00\x00" + bytes(64)), np.uint8)
    count_events(text, np.zeros((2, 1), np.int64)[0], np.ones((2, 1), np.int64)[0])
    walk_records(text, 0, 7, 1, 0, 0, 0, False, 0, np.zeros((COLUMNS, 1), np.int64), 0)
