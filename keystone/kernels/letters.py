"""Dead letters as records of a Kafka batch (``kernels.kafka`` says what a record is): no key, the line's bytes, what is known of it in headers."""

# mypy: ignore-errors

import numpy as np

from keystone.kernels.compiler import kernel, piece
from keystone.kernels.wide import copy_32

PARTITION, OFFSET, LINE, REASON, LENGTH, BEGIN, END = range(7)  # of a letter (``keystone.letter_batch``)
COLUMNS = 7
HEADERS = 5  # names and values alternate: the reason's first, then four numbers
_NUMBERS = 4
_NULL_KEY, _NO_BITS = np.uint8(1), np.uint8(0)  # -1 as a zigzag varint; attributes, and no time of its own
_TEN = np.uint64(10)


@piece
def _digits(value):
    """Of a number >= 0."""
    count = 1
    while value >= 10:
        value //= 10
        count += 1
    return count


@piece
def _varint_size(value):
    bits, count = value << 1, 1
    while bits > 0x7F:
        bits >>= 7
        count += 1
    return count


@piece
def _put_varint(out, at, value):
    bits = value << 1
    while bits > 0x7F:
        out[at] = np.uint8(bits & 0x7F | 0x80)
        bits >>= 7
        at += 1
    out[at] = np.uint8(bits)
    return at + 1


@piece
def _put_bytes(out, at, text, begin, end):
    while end - begin >= 32:
        copy_32(out, at, text, begin)
        begin += 32
        at += 32
    while begin < end:
        out[at] = text[begin]
        begin += 1
        at += 1
    return at


@piece
def _put_number(out, at, value):
    size = _digits(value)
    at = _put_varint(out, at, size)
    for k in range(size - 1, -1, -1):
        out[at + k] = np.uint8(48 + value % 10)
        value //= 10
    return at + size


@piece
def _body_size(columns, i, number, words, ends, more):
    """Of a record without its length."""
    value = columns[END, i] - columns[BEGIN, i]
    reason = ends[HEADERS + columns[REASON, i]] - ends[HEADERS + columns[REASON, i] - 1]
    size = more.size + 2 + _varint_size(number) + 1 + _varint_size(value) + value + 1 + ends[HEADERS - 1] + HEADERS + _varint_size(reason) + reason
    for place in (PARTITION, OFFSET, LINE, LENGTH):
        digits = _digits(columns[place, i])
        size += _varint_size(digits) + digits
    return size


@kernel
def write_records(columns, text, words, ends, more, headers, first, number, out, result):
    """Write letters from ``first`` on into ``out``, numbered from ``number`` on, as many as it has room for.

    ``columns`` int64 (COLUMNS, letters), no place below 0; ``text`` their bytes. ``words``: the names of the HEADERS, below 64 bytes each, and the
    reasons, one behind the other; each ends where ``ends`` (int64) says. ``more``: further headers, encoded; ``headers``: how many with these.
    ``result`` int64 (2): the next letter, the bytes written.
    """
    at, i = np.int64(0), np.int64(first)
    while i < columns.shape[1]:
        body = _body_size(columns, i, number, words, ends, more)
        if at + _varint_size(body) + body > out.size:
            break
        at = _put_varint(out, at, body)
        out[at] = _NO_BITS
        out[at + 1] = _NO_BITS
        at = _put_varint(out, at + 2, number)
        out[at] = _NULL_KEY
        at = _put_varint(out, at + 1, columns[END, i] - columns[BEGIN, i])
        at = _put_bytes(out, at, text, columns[BEGIN, i], columns[END, i])
        at = _put_varint(out, at, np.int64(headers))
        at = _put_varint(out, at, ends[0])
        at = _put_bytes(out, at, words, np.int64(0), ends[0])
        reason = HEADERS + columns[REASON, i]
        at = _put_varint(out, at, ends[reason] - ends[reason - 1])
        at = _put_bytes(out, at, words, ends[reason - 1], ends[reason])
        for header in range(_NUMBERS):
            place = PARTITION if header == 0 else OFFSET if header == 1 else LINE if header == 2 else LENGTH
            at = _put_varint(out, at, ends[header + 1] - ends[header])
            at = _put_bytes(out, at, words, ends[header], ends[header + 1])
            at = _put_number(out, at, columns[place, i])
        at = _put_bytes(out, at, more, np.int64(0), np.int64(more.size))
        i += 1
        number += 1
    result[0], result[1] = i, at


def warm_up() -> None:
    """Compile, or load, the kernel here."""
    columns, byte, ends = np.zeros((COLUMNS, 0), np.int64), np.zeros(1, np.uint8), np.zeros(HEADERS, np.int64)
    text = np.zeros(1, np.uint8)
    text.flags.writeable = False
    for given in (byte, text):
        write_records(columns, given, text, ends, text, HEADERS, 0, 0, byte, np.zeros(2, np.int64))
