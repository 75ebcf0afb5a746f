"""Short strings, packed into an arena of 4-byte units with one free list a size.

A *blob* holds three strings (device, session, user), each behind a header: a varint of ``length << 2 | spelling``.
Identifiers are mostly hexadecimal or of 64 symbols; spelled that way a UUID takes 17 bytes instead of 37, sixteen
hexadecimal digits 9 instead of 17. At 10M sessions that is 0.3 GB. The 65,535th byte costs no more than the first:
any length is legal.
"""

# mypy: ignore-errors

import numpy as np

from keystone.kernels.compiler import callee, piece
from keystone.kernels.wide import item

UNIT = 4  # bytes; a handle counts units, so 32 bits reach 16 GiB
SMALL = 1024  # sizes below this many units have a class each; above it sizes are powers of two
CLASSES = SMALL + 32
NONE = -1

RAW, HEX, OTHER, SYMBOLS = 0, 1, 2, 3  # spellings; OTHER with length 0 is null, with length 1 a lower-case UUID
NULL_HEADER, UUID_HEADER = 0 << 2 | OTHER, 1 << 2 | OTHER
UUID_LENGTH = 36


_SYMBOLS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
_HEX_DIGITS = b"0123456789abcdef"
IS_HEX, IS_SYMBOL = 1, 2


def _places(letters):
    """Value of each byte that stands in ``letters``, else 0. Shape (256,), uint8."""
    values = np.zeros(256, np.uint8)
    values[np.frombuffer(letters, np.uint8)] = np.arange(len(letters))
    return values


# Tables, not comparisons: an opening spells forty bytes, and mispredicted branches took 200 ns of it.
SYMBOL_BYTE, HEX_BYTE = np.frombuffer(_SYMBOLS, np.uint8).copy(), np.frombuffer(_HEX_DIGITS, np.uint8).copy()
SYMBOL_VALUE, HEX_VALUE = _places(_SYMBOLS), _places(_HEX_DIGITS)
CLASSES_OF_BYTE = np.zeros(256, np.uint8)
CLASSES_OF_BYTE[SYMBOL_BYTE] |= IS_SYMBOL
CLASSES_OF_BYTE[HEX_BYTE] |= IS_HEX


@piece
def symbol(byte):
    return np.int64(item(SYMBOL_VALUE, np.int64(byte)))


@piece
def hex_digit(byte):
    return np.int64(item(HEX_VALUE, np.int64(byte)))


@piece
def is_dash(at):
    return at == 8 or at == 13 or at == 18 or at == 23


@callee
def spelling_of(text, start, end):
    """The shortest spelling that gives every byte of ``text[start:end]`` back."""
    size = end - start
    if size < 4:
        return RAW
    if size == UUID_LENGTH and is_uuid(text, start):
        return OTHER
    shared = np.int64(IS_HEX | IS_SYMBOL)
    for i in range(size):
        shared &= np.int64(item(CLASSES_OF_BYTE, np.int64(item(text, start + i))))
    if shared & IS_HEX and size % 2 == 0:
        return HEX
    return SYMBOLS if shared & IS_SYMBOL else RAW


@callee
def is_uuid(text, start):
    """Whether the 36 bytes are a lower-case UUID."""
    for i in range(UUID_LENGTH):
        byte = np.int64(item(text, start + i))
        if is_dash(i):
            if byte != 45:
                return False
        elif not item(CLASSES_OF_BYTE, byte) & IS_HEX:
            return False
    return True


@callee
def put_varint(arena, at, value):
    while value >= 128:
        arena[at] = 128 | (value & 127)
        value >>= 7
        at += 1
    arena[at] = value
    return at + 1


@callee
def get_varint(arena, at):
    """(value, place after it)."""
    value = shift = 0
    while arena[at] >= 128:
        value |= (int(arena[at]) & 127) << shift
        shift += 7
        at += 1
    return value | int(arena[at]) << shift, at + 1


@callee
def put_string(text, start, end, arena, at):
    """Spell ``text[start:end]`` at ``arena[at:]``; return the place after it. Needs up to ``end - start + 5`` bytes."""
    size = end - start
    spelling = spelling_of(text, start, end)
    if spelling == OTHER:
        at = put_varint(arena, at, UUID_HEADER)
    else:
        at = put_varint(arena, at, size << 2 | spelling)
    if spelling == RAW:
        for i in range(size):
            arena[at + i] = text[start + i]
        return at + size
    if spelling == SYMBOLS:
        return put_symbols(text, start, size, arena, at)
    if spelling == HEX:
        for i in range(0, size, 2):
            arena[at] = hex_digit(item(text, start + i)) << 4 | hex_digit(item(text, start + i + 1))
            at += 1
        return at
    i = np.int64(0)
    while i < size:
        if is_dash(i):
            i += 1
            continue
        arena[at] = hex_digit(item(text, start + i)) << 4 | hex_digit(item(text, start + i + 1))
        at += 1
        i += 2
    return at


@piece
def put_symbols(text, start, size, arena, at):
    """Four symbols in three bytes, the first in the lowest bits."""
    i = np.int64(0)
    while i + 4 <= size:
        four = symbol(item(text, start + i)) | symbol(item(text, start + i + 1)) << 6
        four |= symbol(item(text, start + i + 2)) << 12 | symbol(item(text, start + i + 3)) << 18
        arena[at], arena[at + 1], arena[at + 2] = four & 255, (four >> 8) & 255, four >> 16
        at += 3
        i += 4
    kept = bits = np.int64(0)
    while i < size:
        kept |= symbol(item(text, start + i)) << bits
        bits += 6
        i += 1
    while bits > 0:
        arena[at] = kept & 255
        kept >>= 8
        bits -= 8
        at += 1
    return at


@callee
def put_null(arena, at):
    arena[at] = NULL_HEADER
    return at + 1


@piece
def payload(header):
    """Bytes that follow a header."""
    size, spelling = header >> 2, header & 3
    if spelling == RAW:
        return size
    if spelling == HEX:
        return size // 2
    if spelling == SYMBOLS:
        return (size * 6 + 7) // 8
    return size * (UUID_LENGTH - 4) // 2


@callee
def skip_string(arena, at):
    """Place after the string at ``at``."""
    header, at = get_varint(arena, at)
    return at + payload(header)


@callee
def get_string(arena, at, out, to):
    """Write the string at ``arena[at:]`` to ``out[to:]``: (place after it there, place after it here or -1 if null)."""
    header, at = get_varint(arena, at)
    size, spelling = header >> 2, header & 3
    if spelling == RAW:
        for i in range(size):
            out[to + i] = arena[at + i]
        return at + size, to + size
    if spelling == SYMBOLS:
        return get_symbols(arena, at, size, out, to)
    if spelling == OTHER and size == 0:
        return at, -1
    if spelling == HEX:
        for i in range(0, size, 2):
            byte = np.int64(item(arena, at))
            out[to + i], out[to + i + 1] = item(HEX_BYTE, byte >> 4), item(HEX_BYTE, byte & 15)
            at += 1
        return at, to + size
    i = np.int64(0)
    while i < UUID_LENGTH:
        if is_dash(i):
            out[to + i] = 45
            i += 1
            continue
        byte = np.int64(item(arena, at))
        out[to + i], out[to + i + 1] = item(HEX_BYTE, byte >> 4), item(HEX_BYTE, byte & 15)
        at += 1
        i += 2
    return at, to + UUID_LENGTH


@piece
def get_symbols(arena, at, size, out, to):
    """The reverse of ``put_symbols``: (place after it here, place after it there)."""
    i = np.int64(0)
    while i + 4 <= size:
        four = np.int64(item(arena, at)) | np.int64(item(arena, at + 1)) << 8 | np.int64(item(arena, at + 2)) << 16
        for k in range(4):
            out[to + i + k] = item(SYMBOL_BYTE, (four >> (6 * k)) & 63)
        at += 3
        i += 4
    kept = bits = np.int64(0)
    while i < size:
        if bits < 6:
            kept |= np.int64(item(arena, at)) << bits
            bits += 8
            at += 1
        out[to + i] = item(SYMBOL_BYTE, kept & 63)
        kept >>= 6
        bits -= 6
        i += 1
    return at, to + size


@callee
def blob_bytes(arena, at):
    """Bytes of the blob at ``at``."""
    return skip_string(arena, skip_string(arena, skip_string(arena, at))) - at


@piece
def rounded(units):
    """The size that is really taken for ``units``: itself while small, else the next power of two."""
    if units < SMALL:
        return units
    size = SMALL
    while size < units:
        size *= 2
    return size


@piece
def class_of(units):
    """Free list of a rounded size."""
    if units < SMALL:
        return units
    place = SMALL
    while units > SMALL:
        units >>= 1
        place += 1
    return place
