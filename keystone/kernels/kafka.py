"""Records of a Kafka record batch (magic 2), found without making an object of any.

A record: length, attributes (1 byte), timestamp delta, offset delta, key, value, headers; lengths and deltas are zigzag
varints, a length of -1 is a null (https://kafka.apache.org/documentation/#record). Nothing in the bytes is trusted: what
does not fit into its batch ends the walk.
"""

# mypy: ignore-errors

import numpy as np

from keystone.kernels.compiler import kernel, piece

STARTS, ENDS, OFFSETS, APPEND_MS = range(4)
COLUMNS = 4
MALFORMED = -1
_VARINT_BYTES_MAX = 10
_LF = np.uint8(10)


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
        if at < 0 or delta < 0 or delta > last_offset - base_offset:
            return np.int64(MALFORMED)
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


def warm_up() -> None:
    """Compile, or load, everything here."""
    text = np.frombuffer(bytearray(b"\x0c\x00\x00\x00\x01\x00\x00"), np.uint8)
    walk_records(text, 0, 7, 1, 0, 0, 0, False, 0, np.zeros((COLUMNS, 1), np.int64), 0)
