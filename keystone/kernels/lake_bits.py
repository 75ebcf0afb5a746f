"""Parquet's encodings, one value after the other: varints, bit packing, deltas, the RLE/bit-packed hybrid.

https://parquet.apache.org/docs/file-format/data-pages/encodings/ describes them. Every function writes from ``out[at]`` on
and returns the place behind what it wrote; packing writes up to 16 bytes more.
"""

# mypy: ignore-errors

import numpy as np

from keystone.kernels.compiler import callee, piece
from keystone.kernels.wide import load_u64, store_u64

U = np.uint64
BLOCK, MINI = 128, 32  # deltas of a block and of a miniblock
RARE = 8  # flags of which fewer than one in so many differ from the rest are written as runs
RUN_MIN = 6  # bytes of equal bits worth a run: its head and value take up to four, the head of what follows two

SPREAD = U(0x0101010101010101)
GATHER = U(0x0102040810204080)


@piece
def put_varint(out, at, value):
    while value >= U(128):
        out[at] = np.uint8((value & U(127)) | U(128))
        value >>= U(7)
        at += 1
    out[at] = np.uint8(value)
    return at + 1


@piece
def zigzag(value):
    return U((value << 1) ^ (value >> 63))


@piece
def bits_of(value):
    """Bits needed for the uint64 ``value``."""
    width = 0
    while value != U(0):
        value >>= U(1)
        width += 1
    return width


@callee
def pack(values, first, groups, width, out, at):
    """Bit-pack ``8 * groups`` values of ``width`` bits, lowest bit first. Writes up to 16 bytes more. New place."""
    w = U(width)
    if width == 0:
        return at
    if width <= 8:
        for g in range(groups):
            i = first + 8 * g
            low = U(values[i]) | (U(values[i + 1]) << w) | (U(values[i + 2]) << (U(2) * w)) | (U(values[i + 3]) << (U(3) * w))
            high = U(values[i + 4]) | (U(values[i + 5]) << w) | (U(values[i + 6]) << (U(2) * w)) | (U(values[i + 7]) << (U(3) * w))
            store_u64(out, at, low | (high << (U(4) * w)))
            at += width
        return at
    if width <= 16:
        half = U(2) * w
        rest = U(32) - half
        for g in range(groups):
            i = first + 8 * g
            low = U(values[i]) | (U(values[i + 1]) << w) | (U(values[i + 2]) << (U(2) * w)) | (U(values[i + 3]) << (U(3) * w))
            high = U(values[i + 4]) | (U(values[i + 5]) << w) | (U(values[i + 6]) << (U(2) * w)) | (U(values[i + 7]) << (U(3) * w))
            store_u64(out, at, low | ((high << half) << half))  # two shifts: one by 64 would be undefined
            store_u64(out, at + 8, (high >> rest) >> rest)
            at += width
        return at
    held = U(0)
    filled = 0
    for i in range(first, first + 8 * groups):
        value = U(values[i])
        held |= value << U(filled)
        filled += width
        if filled >= 64:
            store_u64(out, at, held)
            at += 8
            filled -= 64
            held = value >> U(width - filled) if filled > 0 else U(0)
    store_u64(out, at, held)
    return at + filled // 8


@callee
def put_deltas(values, count, out, at, deltas):
    """DELTA_BINARY_PACKED of ``values[:count]`` (int64; differences wrap, as the format says). New place."""
    at = put_varint(out, at, U(BLOCK))
    at = put_varint(out, at, U(BLOCK // MINI))
    at = put_varint(out, at, U(count))
    at = put_varint(out, at, zigzag(values[0]) if count > 0 else U(0))
    for block in range(1, count, BLOCK):
        size = min(BLOCK, count - block)
        for i in range(size):
            deltas[i] = values[block + i] - values[block + i - 1]
        low = deltas[0]
        for i in range(size):
            low = min(low, deltas[i])
        for i in range(size):
            deltas[i] -= low
        for i in range(size, BLOCK):
            deltas[i] = 0
        at = put_varint(out, at, zigzag(low))
        widths = at
        at += BLOCK // MINI
        for mini in range(BLOCK // MINI):
            every = np.int64(0)
            for i in range(MINI):
                every |= deltas[mini * MINI + i]
            width = bits_of(U(every))
            out[widths + mini] = width
            if mini * MINI < size:
                at = pack(deltas, mini * MINI, MINI // 8, width, out, at)
    return at


@piece
def put_bits(flags, rows, out, at):
    """One bit a row from bytes 0 and 1 (``flags`` has 8 spare bytes). New place."""
    for i in range(0, rows - 7, 8):
        out[at] = np.uint8(((load_u64(flags, i) & SPREAD) * GATHER) >> U(56))
        at += 1
    left = rows & 7
    if left:
        mask = (U(1) << U(8 * left)) - U(1)
        out[at] = np.uint8(((load_u64(flags, rows - left) & mask & SPREAD) * GATHER) >> U(56))
        at += 1
    return at


@piece
def put_flags(flags, rows, ones, out, at):
    """RLE/bit-packed hybrid of width 1 of ``flags`` (0 or 1), ``ones`` of which are 1. New place."""
    if ones == 0 or ones == rows:
        if rows == 0:
            return at
        at = put_varint(out, at, U(rows) << U(1))
        out[at] = 1 if ones else 0
        return at + 1
    if ones * RARE < rows or (rows - ones) * RARE < rows:
        put_bits(flags, rows, out, at + RUN_MIN + 8)
        return put_runs(rows, out, at + RUN_MIN + 8, at)
    at = put_varint(out, at, (U((rows + 7) // 8) << U(1)) | U(1))
    return put_bits(flags, rows, out, at)


@callee
def put_runs(rows, out, source, at):
    """The hybrid of the bits that lie at ``out[source:]``, a little behind ``at``: runs of equal bytes shortened. New place.

    A run of RUN_MIN bytes takes at most RUN_MIN - 1, the head of what lies between two runs included: what is written
    never overtakes what is read.
    """
    size = (rows + 7) // 8
    done = 0
    i = 0
    while i < size:
        byte = out[source + i]
        end = i + 1
        if byte == 0 or byte == 255:
            while end < size and out[source + end] == byte:
                end += 1
        if end - i >= RUN_MIN:
            at = put_literal(out, source, done, i, at)
            at = put_varint(out, at, U(min(end * 8, rows) - i * 8) << U(1))
            out[at] = 1 if byte else 0
            at += 1
            done = end
        i = end
    return put_literal(out, source, done, size, at)


@piece
def put_literal(out, source, first, end, at):
    """Bytes ``first`` to ``end`` of the bits as one bit-packed run."""
    if end > first:
        at = put_varint(out, at, (U(end - first) << U(1)) | U(1))
        for k in range(first, end):
            out[at] = out[source + k]
            at += 1
    return at


@callee
def put_indices(values, count, low, high, out, at):
    """Dictionary indices ``values[:count]`` between ``low`` and ``high``: their width, then one run of the hybrid. New place."""
    width = max(bits_of(U(max(high, np.int64(0)))), 1)
    out[at] = width
    at += 1
    if count > 0 and low == high:
        at = put_varint(out, at, U(count) << U(1))
        for i in range((width + 7) // 8):
            out[at] = np.uint8((U(high) >> U(8 * i)) & U(255))
            at += 1
    elif count > 0:
        groups = (count + 7) // 8
        for i in range(count, groups * 8):
            values[i] = 0
        at = put_varint(out, at, (U(groups) << U(1)) | U(1))
        at = pack(values, 0, groups, width, out, at)
    return at


@piece
def put_boolean_values(values, count, ones, out, at):
    """RLE of booleans: the length of what follows in four bytes, then the hybrid."""
    end = put_flags(values, count, ones, out, at + 4)
    size = end - at - 4
    for i in range(4):
        out[at + i] = np.uint8((size >> (8 * i)) & 255)
    return end
