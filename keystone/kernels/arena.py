"""Short strings, packed into an arena of 4-byte units with one free list a size.

A *blob* holds three strings (device, session, user), each behind a header: a varint of ``length << 2 | spelling``.
Identifiers are mostly hexadecimal or of 64 symbols; spelled that way a UUID takes 17 bytes instead of 37, sixteen
hexadecimal digits 9 instead of 17. At 10M sessions that is 0.3 GB. The 65,535th byte costs no more than the first:
any length is legal.
"""

# mypy: ignore-errors

from keystone.kernels.compiler import callee, piece

UNIT = 4  # bytes; a handle counts units, so 32 bits reach 16 GiB
SMALL = 1024  # sizes below this many units have a class each; above it sizes are powers of two
CLASSES = SMALL + 32
NONE = -1

RAW, HEX, OTHER, SYMBOLS = 0, 1, 2, 3  # spellings; OTHER with length 0 is null, with length 1 a lower-case UUID
NULL_HEADER, UUID_HEADER = 0 << 2 | OTHER, 1 << 2 | OTHER
UUID_LENGTH = 36


@piece
def hex_digit(byte):
    if 48 <= byte <= 57:
        return byte - 48
    if 97 <= byte <= 102:
        return byte - 87
    return -1


@piece
def symbol(byte):
    """0..63 of a letter, digit, hyphen or underscore, else -1."""
    if 48 <= byte <= 57:
        return byte - 48
    if 65 <= byte <= 90:
        return byte - 55
    if 97 <= byte <= 122:
        return byte - 61
    if byte == 45:
        return 62
    if byte == 95:
        return 63
    return -1


@piece
def symbol_byte(value):
    if value < 10:
        return value + 48
    if value < 36:
        return value + 55
    if value < 62:
        return value + 61
    return 45 if value == 62 else 95


@piece
def is_dash(at):
    return at == 8 or at == 13 or at == 18 or at == 23


@callee
def spelling_of(text, start, end):
    """The shortest spelling that gives every byte of ``text[start:end]`` back."""
    size = end - start
    if size < 4:
        return RAW
    is_hex = size % 2 == 0
    is_uuid = size == UUID_LENGTH
    is_symbols = True
    for i in range(size):
        byte = int(text[start + i])
        if hex_digit(byte) < 0:
            is_hex = False
            if not (byte == 45 and is_dash(i)):
                is_uuid = False
        elif is_uuid and is_dash(i):
            is_uuid = False
        if symbol(byte) < 0:
            is_symbols = False
    if is_uuid:
        return OTHER
    if is_hex:
        return HEX
    return SYMBOLS if is_symbols else RAW


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
        kept = bits = 0
        for i in range(size):
            kept |= symbol(int(text[start + i])) << bits
            bits += 6
            while bits >= 8:
                arena[at] = kept & 255
                at += 1
                kept >>= 8
                bits -= 8
        if bits > 0:
            arena[at] = kept
            at += 1
        return at
    high = -1
    for i in range(size):
        if spelling == OTHER and is_dash(i):
            continue
        digit = hex_digit(int(text[start + i]))
        if high < 0:
            high = digit
        else:
            arena[at] = high << 4 | digit
            at += 1
            high = -1
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
        kept = bits = 0
        for i in range(size):
            if bits < 6:
                kept |= int(arena[at]) << bits
                bits += 8
                at += 1
            out[to + i] = symbol_byte(kept & 63)
            kept >>= 6
            bits -= 6
        return at, to + size
    if spelling == OTHER and size == 0:
        return at, -1
    if spelling == OTHER:
        size = UUID_LENGTH
    high = True
    for i in range(size):
        if spelling == OTHER and is_dash(i):
            out[to + i] = 45
            continue
        digit = int(arena[at]) >> 4 if high else int(arena[at]) & 15
        out[to + i] = digit + 48 if digit < 10 else digit + 87
        if not high:
            at += 1
        high = not high
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
