"""RFC 8259 by bytes: strings, numbers and whole values, read strictly and without copying.

Positions are int64 indices into a uint8 text whose records end with a line feed that is not part of them. A raw line
feed is legal nowhere inside an event, so every scan stops there at the latest: no function takes an end.
Every scan returns the place after what it read, or -1 where the text breaks the grammar.
"""

# mypy: ignore-errors

import numpy as np

from keystone.kernels.compiler import callee, piece
from keystone.kernels.wide import item, load_u64, string_stops, trailing_zeros

U = np.uint64
QUOTE, BACKSLASH, COMMA, COLON, LF = 34, 92, 44, 58, 10
OPEN_OBJECT, CLOSE_OBJECT, OPEN_ARRAY, CLOSE_ARRAY = 123, 125, 91, 93
MINUS, PLUS, POINT, ZERO, NINE = 45, 43, 46, 48, 57

ASCII_ZEROS = U(0x3030303030303030)
WORD_TRUE, WORD_FALSE, WORD_NULL = U(0x65757274), U(0x736C6166), U(0x6C6C756E)
LOW_32 = U(0xFFFFFFFF)
INT_LIMIT = np.int64(1) << np.int64(53)

NUMBER_OK, NUMBER_TOO_BIG = 0, 1


@piece
def skip_blanks(text, at):
    """Past spaces, tabs and carriage returns (a line feed ends the line)."""
    byte = item(text, at)
    while byte == 32 or byte == 9 or byte == 13:
        at += 1
        byte = item(text, at)
    return at


@piece
def eight_digits(x):
    """Value of eight digits, given as bytes 0..9, the first digit in the lowest byte."""
    x = x * U(10) + (x >> U(8))
    low = (x & U(0x000000FF000000FF)) * U(0x000F424000000064)
    high = ((x >> U(16)) & U(0x000000FF000000FF)) * U(0x0000271000000001)
    return (low + high) >> U(32)


@callee
def sequence_length(text, at):
    """Bytes of the UTF-8 sequence that starts at ``at`` (first byte >= 0x80), or 0 if it is none (RFC 3629)."""
    first = text[at]
    second = text[at + 1]
    if 0xC2 <= first <= 0xDF:
        return 2 if (second & 0xC0) == 0x80 else 0
    if (second & 0xC0) != 0x80 or (text[at + 2] & 0xC0) != 0x80:
        return 0
    if 0xE0 <= first <= 0xEF:
        if (first == 0xE0 and second < 0xA0) or (first == 0xED and second > 0x9F):
            return 0  # overlong, or a surrogate
        return 3
    if (text[at + 3] & 0xC0) != 0x80:
        return 0
    if (first == 0xF0 and second >= 0x90) or 0xF1 <= first <= 0xF3 or (first == 0xF4 and second < 0x90):
        return 4
    return 0


@callee
def hex_value(text, at):
    """Value of four hexadecimal digits, or -1."""
    value = 0
    for i in range(4):
        byte = np.int64(text[at + i])
        if 48 <= byte <= 57:
            digit = byte - 48
        elif 97 <= byte <= 102:
            digit = byte - 87
        elif 65 <= byte <= 70:
            digit = byte - 55
        else:
            return -1
        value = value * 16 + digit
    return value


@callee
def escape_length(text, at):
    """Bytes of the escape that starts with the backslash at ``at``: 2, 6, 12 (a surrogate pair), or 0 if it is none."""
    byte = text[at + 1]
    if byte == 34 or byte == 92 or byte == 47 or byte == 98 or byte == 102 or byte == 110 or byte == 114 or byte == 116:
        return 2
    if byte != 117:
        return 0
    code = hex_value(text, at + 2)
    if code < 0 or 0xDC00 <= code <= 0xDFFF:
        return 0
    if code < 0xD800 or code > 0xDFFF:
        return 6
    if text[at + 6] != BACKSLASH or text[at + 7] != 117:
        return 0
    low = hex_value(text, at + 8)
    return 12 if 0xDC00 <= low <= 0xDFFF else 0


@callee
def scan_string(text, at):
    """From the byte after the opening quote: (place of the closing quote or -1, 1 if it holds escapes)."""
    escapes = 0
    while True:
        stops = string_stops(text, at)
        if stops == U(0):
            at += 32
            continue
        at += trailing_zeros(stops)
        byte = text[at]
        if byte == QUOTE:
            return at, escapes
        if byte == BACKSLASH:
            length = escape_length(text, at)
            escapes = 1
        elif byte < 32:
            return -1, escapes
        else:
            length = sequence_length(text, at)
        if length == 0:
            return -1, escapes
        at += length


@callee
def unescape(text, start, end, out, to):
    """Write the decoded string ``text[start:end]`` (already scanned) at ``out[to:]``; return the place after it."""
    at = start
    while at < end:
        byte = text[at]
        if byte != BACKSLASH:
            out[to] = byte
            to += 1
            at += 1
            continue
        byte = text[at + 1]
        if byte != 117:
            if byte == 98:
                byte = 8
            elif byte == 102:
                byte = 12
            elif byte == 110:
                byte = 10
            elif byte == 114:
                byte = 13
            elif byte == 116:
                byte = 9
            out[to] = byte
            to += 1
            at += 2
            continue
        code = hex_value(text, at + 2)
        at += 6
        if 0xD800 <= code <= 0xDFFF:
            code = 0x10000 + ((code - 0xD800) << 10) + (hex_value(text, at + 2) - 0xDC00)
            at += 6
        to = put_code_point(code, out, to)
    return to


@callee
def put_code_point(code, out, to):
    """Write one code point as UTF-8; return the place after it."""
    if code < 0x80:
        out[to] = code
        return to + 1
    if code < 0x800:
        out[to] = 0xC0 | (code >> 6)
        out[to + 1] = 0x80 | (code & 0x3F)
        return to + 2
    if code < 0x10000:
        out[to] = 0xE0 | (code >> 12)
        out[to + 1] = 0x80 | ((code >> 6) & 0x3F)
        out[to + 2] = 0x80 | (code & 0x3F)
        return to + 3
    out[to] = 0xF0 | (code >> 18)
    out[to + 1] = 0x80 | ((code >> 12) & 0x3F)
    out[to + 2] = 0x80 | ((code >> 6) & 0x3F)
    out[to + 3] = 0x80 | (code & 0x3F)
    return to + 4


@callee
def scan_number(text, at):
    """Place after the JSON number at ``at``, or -1."""
    if text[at] == MINUS:
        at += 1
    if text[at] == ZERO:
        at += 1
    elif 49 <= text[at] <= NINE:
        while ZERO <= text[at] <= NINE:
            at += 1
    else:
        return -1
    if text[at] == POINT:
        at += 1
        if not ZERO <= text[at] <= NINE:
            return -1
        while ZERO <= text[at] <= NINE:
            at += 1
    if text[at] == 101 or text[at] == 69:
        at += 1
        if text[at] == PLUS or text[at] == MINUS:
            at += 1
        if not ZERO <= text[at] <= NINE:
            return -1
        while ZERO <= text[at] <= NINE:
            at += 1
    return at


@callee
def exact_integer(text, at, end):
    """(NUMBER_OK, value) of the scanned number cut toward zero, from its decimal digits alone; else NUMBER_TOO_BIG.

    Too big is beyond +-2^53. No double is involved: ``1e3``, ``1.790e12`` and ``9007199254740991.9`` come out exact.
    """
    negative = text[at] == MINUS
    if negative:
        at += 1
    mantissa_end = at
    while mantissa_end < end and text[mantissa_end] != 101 and text[mantissa_end] != 69:
        mantissa_end += 1
    exponent = np.int64(0)
    if mantissa_end < end:
        p = mantissa_end + 1
        falls = text[p] == MINUS
        if text[p] == MINUS or text[p] == PLUS:
            p += 1
        while p < end:
            exponent = min(exponent * 10 + np.int64(text[p]) - ZERO, np.int64(10_000_000))  # a line holds fewer digits
            p += 1
        if falls:
            exponent = -exponent
    point = at
    while point < mantissa_end and text[point] != POINT:
        point += 1
    whole_digits = point - at + exponent  # digits before the decimal point once the exponent is applied
    value, used = np.int64(0), np.int64(0)
    p = at
    while p < mantissa_end and used < whole_digits:
        if p != point:
            value = value * 10 + np.int64(text[p]) - ZERO
            used += 1
            if value > INT_LIMIT:
                return NUMBER_TOO_BIG, np.int64(0)
        p += 1
    if value != 0:
        while used < whole_digits:
            value *= 10
            used += 1
            if value > INT_LIMIT:
                return NUMBER_TOO_BIG, np.int64(0)
    return NUMBER_OK, -value if negative else value


@callee
def scan_literal(text, at):
    """Place after ``true``, ``false`` or ``null``, or -1."""
    word = load_u64(text, at) & LOW_32
    if word == WORD_TRUE or word == WORD_NULL:
        return at + 4
    if word == WORD_FALSE and text[at + 4] == 101:
        return at + 5
    return -1


@callee
def scan_scalar(text, at):
    """Place after the string, number or literal at ``at``, or -1."""
    byte = text[at]
    if byte == QUOTE:
        end, _ = scan_string(text, at + 1)
        return end + 1 if end >= 0 else end
    if byte == MINUS or ZERO <= byte <= NINE:
        return scan_number(text, at)
    return scan_literal(text, at)


@callee
def scan_value(text, at, stack):
    """(place after the value at ``at`` or -1, its depth: 0 for a scalar, else the most arrays and objects nested).

    ``stack`` is uint8 scratch; nesting deeper than its size counts as broken (only lines over the size limit reach it).
    """
    depth = deepest = np.int64(0)
    while True:
        byte = text[at]
        if byte == OPEN_OBJECT or byte == OPEN_ARRAY:
            if depth >= stack.size:
                return np.int64(-1), deepest
            stack[depth] = byte
            depth += 1
            deepest = max(deepest, depth)
            at = skip_blanks(text, at + 1)
            if text[at] == byte + 2:  # an empty object or array
                depth -= 1
                at += 1
            else:
                if byte == OPEN_OBJECT:
                    at = scan_member(text, at)
                    if at < 0:
                        return np.int64(-1), deepest
                continue
        else:
            at = scan_scalar(text, at)
            if at < 0:
                return np.int64(-1), deepest
        while depth > 0:
            at = skip_blanks(text, at)
            if text[at] == stack[depth - 1] + 2:
                depth -= 1
                at += 1
                continue
            if text[at] != COMMA:
                return np.int64(-1), deepest
            at = skip_blanks(text, at + 1)
            if stack[depth - 1] == OPEN_OBJECT:
                at = scan_member(text, at)
                if at < 0:
                    return np.int64(-1), deepest
            break
        if depth == 0:
            return np.int64(at), deepest


@callee
def scan_member(text, at):
    """From the opening quote of a key to the start of its value, or -1."""
    if text[at] != QUOTE:
        return -1
    end, _ = scan_string(text, at + 1)
    if end < 0:
        return -1
    at = skip_blanks(text, end + 1)
    if text[at] != COLON:
        return -1
    return skip_blanks(text, at + 1)


@callee
def is_utf8(text, at, end):
    """Whether ``text[at:end]`` is UTF-8 (a sequence cut off by the end is not)."""
    while at < end:
        if text[at] < 0x80:
            at += 1
            continue
        length = sequence_length(text, at)
        if length == 0 or at + length > end:
            return False
        at += length
    return True
