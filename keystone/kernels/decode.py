"""The JSON kernel: bytes of log records to columns, with a reason for every line that cannot be used.

One exact parser reads every event; guessing the glue between two values (``glue.py``) only saves it from reading keys.
"""

# mypy: ignore-errors

from typing import NamedTuple

import numpy as np

from keystone.events import BOOL_NULL, CODE_NULL, DEPTH_MAX, DICTIONARY_COLUMNS, ID_COLUMNS, INT_COLUMNS, INT_NULL, LINE_BYTES_MAX, PADDING, REASONS
from keystone.kernels.columns import take_rows
from keystone.kernels.compiler import callee, kernel, piece
from keystone.kernels.glue import (
    GLUE_BYTES,
    INFO,
    IS_STRING,
    KEY_AT,
    KEY_HI,
    KEY_LO,
    KEY_SIZE,
    MASK,
    MISS_COST,
    NODE_ENTRY,
    NODE_FIELD,
    NODE_START,
    SCORE_MAX,
    SIZE,
    SULK,
    TARGET,
    WAYS,
    find_or_add,
    follow,
    new_glue,
    promote,
)  # fmt: skip
from keystone.kernels.json_text import (
    ASCII_ZEROS,
    CLOSE_OBJECT,
    COLON,
    COMMA,
    INT_LIMIT,
    LF,
    LOW_32,
    MINUS,
    NINE,
    NUMBER_OK,
    OPEN_ARRAY,
    OPEN_OBJECT,
    POINT,
    QUOTE,
    WORD_NULL,
    WORD_TRUE,
    ZERO,
    eight_digits,
    exact_integer,
    is_utf8,
    scan_literal,
    scan_number,
    scan_string,
    scan_value,
    skip_blanks,
    unescape,
)  # fmt: skip
from keystone.kernels.wide import copy_32, equal_32, item, load_u64, same_32, string_stops, trailing_zeros
from keystone.kernels.words import LOW_BYTES, find, fold, hash_128, intern, intern_one, new_words, rehash

U = np.uint64

# Fields by number: dictionary columns, integers, identifiers, then the rest.
CODES, INTS = len(DICTIONARY_COLUMNS), len(INT_COLUMNS)
FIRST_INT = CODES
FIRST_ID = FIRST_INT + INTS
TS = FIRST_ID + len(ID_COLUMNS)
FATAL = TS + 1
UNKNOWN = FATAL + 1
FIELD_NAMES = (*DICTIONARY_COLUMNS, *INT_COLUMNS, *ID_COLUMNS, "ts", "fatal")
EVENT, PHASE, FIRST_CODED_DIMENSION = 0, DICTIONARY_COLUMNS.index("phase"), DICTIONARY_COLUMNS.index("title_id")
DEVICE, SESSION, USER, EXTRA = 0, 1, 2, 3
REQUIRED = U((1 << EVENT) | (1 << TS) | (1 << (FIRST_ID + DEVICE)) | (1 << (FIRST_ID + SESSION)))

TOO_LARGE, INVALID_UTF8, INVALID_JSON, NOT_AN_OBJECT, TOO_DEEP, MISSING_FIELD, BAD_TYPE = range(len(REASONS))
ACCEPTED, BROKEN, NO_ROOM = -1, -2, -3
I_DEVICE, I_SESSION, I_USER = 0, 3, 6  # places in Scratch.ids: size, and for the first two the halves of the hash

# Extras: what a row adds to the lake's ``extra``; a line up to the limit holds at most one key in five bytes.
EXTRAS_MAX = LINE_BYTES_MAX // 5 + 64
EXTRA_SLOTS = 1 << 19
EXTRAS_LINEAR = 16
X_FIELD, X_KEY, X_KEY_END, X_VALUE, X_VALUE_END, X_LO, X_HI = range(7)

# Places in ``progress`` (int64, in and out).
P_RECORD, P_AT, P_LINE, P_ROWS, P_RECEIVED, P_DEAD, P_EMPTY, P_STATUS, P_TOTAL_ROWS, P_STAMP, P_BYTES = range(11)
STATUS_DONE, STATUS_MORE, STATUS_GROW = 0, 1, 2

D_RECORD, D_LINE, D_START, D_SIZE, D_REASON = range(5)
STRIP_ROWS = 128  # rows whose columns are nulled at a time: 128 x ~120 B stays in the first-level cache
KIND_BY_CODE = np.array([0, 1, 2, 4, 5, 7], dtype=np.int8)  # event codes 0..4 as preloaded, then any other name
TEN_POWERS = np.array([10**i for i in range(9)], dtype=np.uint64)


class Columns(NamedTuple):
    """Where rows go; ``ints (INTS, cap)``, ``codes (CODES, cap)``, ``valid (4, cap)``, ``ends int32 (4, cap + 1)``."""

    kind: np.ndarray
    fatal: np.ndarray
    ts: np.ndarray
    ints: np.ndarray
    codes: np.ndarray
    valid: np.ndarray
    ends: np.ndarray
    device: np.ndarray
    session: np.ndarray
    user: np.ndarray
    extra: np.ndarray
    key_lo: np.ndarray
    key_hi: np.ndarray
    user_hash: np.ndarray
    offset: np.ndarray
    line: np.ndarray
    append_ts: np.ndarray


class Scratch(NamedTuple):
    """``extras`` int64 (7, EXTRAS_MAX), ``slots`` int64, ``stack`` and ``text`` uint8, ``keys`` uint64 (5 * 128),
    ``ids`` uint64 (8): hashes and sizes of the row's identifiers, in memory to leave registers to the bytes."""

    extras: np.ndarray
    slots: np.ndarray
    stack: np.ndarray
    text: np.ndarray
    keys: np.ndarray
    ids: np.ndarray


KEY_SLOTS, KEY_WORDS = 128, 4  # a slot: two words of the name, its size, its field + 1
KEY_SIZE_MAX = 16


@piece
def key_slot(first, second, size):
    mixed = (first * U(0x9E3779B97F4A7C15)) ^ (second * U(0xD6E8FEB86659FD93)) ^ U(size)
    mixed ^= mixed >> U(32)
    mixed *= U(0x9FB21C651E98DF25)
    return np.int64(mixed >> U(57)) * KEY_WORDS


@piece
def field_of(text, start, size, keys):
    """Field number of the key ``text[start:start + size]``, or UNKNOWN."""
    if size > KEY_SIZE_MAX:
        return np.int64(UNKNOWN)
    first = load_u64(text, start) & LOW_BYTES[size]
    second = load_u64(text, start + 8) & LOW_BYTES[max(size - 8, 0)]
    slot = key_slot(first, second, size)
    while keys[slot + 3] != U(0):
        if keys[slot] == first and keys[slot + 1] == second and keys[slot + 2] == U(size):
            return np.int64(keys[slot + 3]) - 1
        slot = (slot + KEY_WORDS) & (KEY_SLOTS * KEY_WORDS - 1)
    return np.int64(UNKNOWN)


@kernel
def fill_keys(names, sizes, keys):
    """Make the table of known keys; ``names`` uint8 (fields, 32)."""
    flat = names.reshape(-1)
    for field in range(sizes.size):
        size = sizes[field]
        first = load_u64(flat, 32 * field) & LOW_BYTES[size]
        second = load_u64(flat, 32 * field + 8) & LOW_BYTES[max(size - 8, 0)]
        slot = key_slot(first, second, size)
        while keys[slot + 3] != U(0):
            slot = (slot + KEY_WORDS) & (KEY_SLOTS * KEY_WORDS - 1)
        keys[slot], keys[slot + 1], keys[slot + 2], keys[slot + 3] = first, second, U(size), U(field + 1)


@piece
def clear_row(row, columns):
    for i in range(INTS):
        columns.ints[i, row] = INT_NULL
    for i in range(CODES):
        columns.codes[i, row] = CODE_NULL
    columns.fatal[row] = BOOL_NULL
    columns.user_hash[row] = U(0)
    columns.valid[USER, row] = 0
    columns.valid[EXTRA, row] = 0


@callee
def clear_strip(row, rows, columns):
    """Null the next rows; column by column, so that LLVM writes 32 bytes at a time."""
    end = min(row + STRIP_ROWS, rows)
    for i in range(INTS):
        columns.ints[i, row:end] = INT_NULL
    for i in range(CODES):
        columns.codes[i, row:end] = CODE_NULL
    columns.fatal[row:end] = BOOL_NULL
    columns.user_hash[row:end] = U(0)
    columns.valid[USER, row:end] = 0
    columns.valid[EXTRA, row:end] = 0
    return end


@callee
def forget_field(field, row, columns, n_extras, extras):
    """A key came again: what the earlier one left is undone."""
    if field < FIRST_INT:
        columns.codes[field, row] = CODE_NULL
    elif field < FIRST_ID:
        columns.ints[field - FIRST_INT, row] = INT_NULL
    elif field == FIRST_ID + USER:
        columns.valid[USER, row] = 0
        columns.user_hash[row] = U(0)
    elif field == FATAL:
        columns.fatal[row] = BOOL_NULL
    for i in range(n_extras):
        if extras[X_FIELD, i] == field:
            extras[X_VALUE, i] = -1


@callee
def add_extra(field, key, key_end, value, value_end, lo, hi, count, scratch, progress):
    """Keep one unknown or mistyped member; the last of equal keys wins. ``value`` -1: null. Returns the new count."""
    extras = scratch.extras
    low, high = np.int64(lo), np.int64(hi)
    if field != UNKNOWN:
        place = count
    elif count < EXTRAS_LINEAR:
        place = np.int64(0)
        while place < count and not (extras[X_LO, place] == low and extras[X_HI, place] == high and extras[X_FIELD, place] == UNKNOWN):
            place += 1
    else:
        if count == EXTRAS_LINEAR or scratch.slots[EXTRA_SLOTS] != progress[P_STAMP]:
            progress[P_STAMP] += 1
            scratch.slots[EXTRA_SLOTS] = progress[P_STAMP]
            for i in range(count):
                put_extra_slot(i, scratch)
        place = find_extra(low, high, count, scratch)
    if place >= EXTRAS_MAX:
        return np.int64(EXTRAS_MAX + 1)
    extras[X_FIELD, place] = field
    extras[X_KEY, place] = key
    extras[X_KEY_END, place] = key_end
    extras[X_VALUE, place] = value
    extras[X_VALUE_END, place] = value_end
    extras[X_LO, place] = low
    extras[X_HI, place] = high
    if place < count:
        return count
    if count >= EXTRAS_LINEAR and scratch.slots[EXTRA_SLOTS] == progress[P_STAMP]:
        put_extra_slot(place, scratch)
    return count + 1


@callee
def put_extra_slot(place, scratch):
    """Enter ``place`` in the hash table of this row (a slot holds stamp << 20 | place)."""
    stamp = scratch.slots[EXTRA_SLOTS]
    slot = scratch.extras[X_LO, place] & (EXTRA_SLOTS - 1)
    while scratch.slots[slot] >> 20 == stamp:
        slot = (slot + 1) & (EXTRA_SLOTS - 1)
    scratch.slots[slot] = (stamp << 20) | place


@callee
def find_extra(low, high, count, scratch):
    """Place of the unknown key with that hash among many, or ``count``."""
    stamp = scratch.slots[EXTRA_SLOTS]
    extras = scratch.extras
    slot = low & (EXTRA_SLOTS - 1)
    while scratch.slots[slot] >> 20 == stamp:
        place = scratch.slots[slot] & ((1 << 20) - 1)
        if extras[X_LO, place] == low and extras[X_HI, place] == high and extras[X_FIELD, place] == UNKNOWN:
            return place
        slot = (slot + 1) & (EXTRA_SLOTS - 1)
    return count


@callee
def write_extra(text, count, extras, out, to):
    """Write the kept members as one JSON object at ``out[to:]``; return the place after it, ``to`` if there are none."""
    start = to
    for i in range(count):
        if extras[X_VALUE, i] < 0:
            continue
        out[to] = OPEN_OBJECT if to == start else COMMA
        to += 1
        for at in range(extras[X_KEY, i] - 1, extras[X_KEY_END, i] + 1):
            out[to] = text[at]
            to += 1
        out[to] = COLON
        to += 1
        for at in range(extras[X_VALUE, i], extras[X_VALUE_END, i]):
            out[to] = text[at]
            to += 1
    if to > start:
        out[to] = CLOSE_OBJECT
        to += 1
    return to


@piece
def copy_string(text, start, size, out, to):
    """Copy a string, 32 bytes at a time (both sides have spare bytes)."""
    done = 0
    while done < size:
        copy_32(out, to + done, text, start + done)
        done += 32


@piece
def put_id(field, text, start, size, place, columns, ids, secrets):
    """Store an identifier in its column and its hash and size in ``ids``."""
    lo, hi = hash_128(text, start, size, secrets)
    if field == FIRST_ID + DEVICE:
        copy_string(text, start, size, columns.device, np.int64(columns.ends[DEVICE, place]))
        ids[I_DEVICE], ids[I_DEVICE + 1], ids[I_DEVICE + 2] = U(size), lo, hi
    elif field == FIRST_ID + SESSION:
        copy_string(text, start, size, columns.session, np.int64(columns.ends[SESSION, place]))
        ids[I_SESSION], ids[I_SESSION + 1], ids[I_SESSION + 2] = U(size), lo, hi
    else:
        copy_string(text, start, size, columns.user, np.int64(columns.ends[USER, place]))
        ids[I_USER] = U(size)
        columns.user_hash[place] = lo | U(1)  # 0 means absent
        columns.valid[USER, place] = 1


@piece
def plain_integer(text, at):
    """(digits, value) of one to fifteen digits without sign, leading zero, fraction or exponent; (0, 0) of any other text."""
    word = load_u64(text, at) ^ ASCII_ZEROS
    other = ((word + U(0x7676767676767676)) | word) & U(0x8080808080808080)
    if other != U(0):
        digits = trailing_zeros(other) >> 3
        if digits == 0:
            return np.int64(0), np.int64(0)
        number = eight_digits(word << (U(64) - U(8 * digits)))
    else:
        number = eight_digits(word)
        word = load_u64(text, at + 8) ^ ASCII_ZEROS
        other = ((word + U(0x7676767676767676)) | word) & U(0x8080808080808080)
        if other == U(0):
            return np.int64(0), np.int64(0)
        more = trailing_zeros(other) >> 3
        if more > 0:
            number = number * item(TEN_POWERS, more) + eight_digits(word << (U(64) - U(8 * more)))
        digits = 8 + more
    follows = item(text, at + digits)
    if follows == POINT or follows == 101 or follows == 69 or (digits > 1 and item(text, at) == ZERO):
        return np.int64(0), np.int64(0)
    return np.int64(digits), np.int64(number)


@piece
def other_way(text, p, node, glue):
    """The later candidate after ``node`` whose glue fits at ``p``, or -1."""
    for way in range(1, WAYS):
        entry = item(glue.next, node * WAYS + way)
        if entry < 0:
            break
        mask = item(glue.info, entry * INFO + MASK)
        if np.int64(same_32(text, p, glue.text, entry * GLUE_BYTES)) & mask == mask:
            if (p & 255) == 0:  # seldom: candidates that fit most come first, and the branch predictor knows their order
                promote(node, np.int64(way), glue)
            return entry
    return np.int64(-1)


@callee
def line_end(text, at):
    """Place of the next line feed."""
    while True:
        found = equal_32(text, at, U(LF))
        if found != U(0):
            return at + trailing_zeros(found)
        at += 32


@callee
def reason_of(text, start, end, stack):
    """Why the line ``text[start:end]`` that the parser refused cannot be used."""
    if end - start > LINE_BYTES_MAX:
        return TOO_LARGE
    if not is_utf8(text, start, end):
        return INVALID_UTF8
    at, _ = scan_value(text, skip_blanks(text, start), stack)
    if at < 0 or skip_blanks(text, at) != end:
        return INVALID_JSON
    return INVALID_JSON if text[skip_blanks(text, start)] == OPEN_OBJECT else NOT_AN_OBJECT


@kernel
def decode_records(text, starts, ends, offsets, append_ts, per_line, rows_max, bytes_max, columns, glue, words, scratch, dead, progress):
    """Decode from ``progress`` on until the records, the row space, the dead-letter space or the byte budget end.

    ``per_line``: 1 counts each line as a record of its own (a plain file): offset = item(offsets, r) + line, line = 0.
    ``dead`` int64 (5, places). Leaves in ``progress`` where to go on, the counts of this call, and a STATUS.
    """
    row, received, dead_count, empty, used_bytes = np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    record, at, line = progress[P_RECORD], progress[P_AT], progress[P_LINE]
    cleared = np.int64(0)
    extra_end = np.int64(0)
    columns.ends[:, 0] = 0
    status = STATUS_DONE
    keys, extras, secrets, stack, ids = scratch.keys, scratch.extras, words.secrets, scratch.stack, scratch.ids
    while record < starts.size:
        if at < 0:
            at, line = item(starts, record), np.int64(0)
            if item(ends, record) == at:
                empty += 1
        record_end = item(ends, record)
        while at < record_end:
            if row >= rows_max or dead_count >= dead.shape[1] or used_bytes >= bytes_max:
                status = STATUS_MORE
                break
            line_start = at
            at = skip_blanks(text, at)
            if item(text, at) == LF:
                at += 1
                line += 1
                continue
            if row >= cleared:
                cleared = clear_strip(row, rows_max, columns)
            # --- one event ------------------------------------------------------------------------------------
            p, place = at, U(row)  # an unsigned index spares the look for a negative one
            node, seen, bad = np.int64(NODE_START), U(0), U(0)
            n_extras, has_escape = np.int64(0), 0
            is_deep, is_large = False, False
            outcome = ACCEPTED
            if item(text, p) != OPEN_OBJECT:
                outcome = BROKEN
            while outcome == ACCEPTED:
                # --- the usual: guessed glue, a plain value, nothing twice; anything else leaves this loop untouched ---
                while True:
                    score = item(glue.score, node)
                    entry = item(glue.next, node * WAYS) if score >= 0 else np.int64(-1)
                    if entry < 0:
                        break
                    mask = item(glue.info, entry * INFO + MASK)
                    if np.int64(same_32(text, p, glue.text, entry * GLUE_BYTES)) & mask != mask:
                        if item(text, p) == CLOSE_OBJECT:
                            entry = np.int64(-1)
                            break
                        entry = other_way(text, p, node, glue)
                        if entry < 0:
                            break
                    q = p + item(glue.info, entry * INFO + SIZE)
                    target = item(glue.info, entry * INFO + TARGET)
                    bit = U(1) << U(target & (IS_STRING - 1))
                    if seen & bit != U(0):
                        break
                    if target >= IS_STRING:
                        value_end = q
                        stops = string_stops(text, q)
                        while stops == U(0):
                            value_end += 32
                            stops = string_stops(text, value_end)
                        value_end += trailing_zeros(stops)
                        if item(text, value_end) != QUOTE or value_end - q > LINE_BYTES_MAX:
                            break
                        if target < IS_STRING + FIRST_INT:
                            code = find(text, q, value_end - q, target - IS_STRING, words)
                            if code < 0:
                                break
                            columns.codes[U(target - IS_STRING), place] = code
                        elif IS_STRING + FIRST_ID <= target < IS_STRING + TS:
                            put_id(target - IS_STRING, text, q, value_end - q, place, columns, ids, secrets)
                        else:
                            break
                        p = value_end + 1
                    else:
                        if not (FIRST_INT <= target < FIRST_ID or target == TS):
                            break
                        digits, number = plain_integer(text, q)
                        if digits == 0:
                            break
                        if target == TS:
                            columns.ts[place] = number
                        else:
                            columns.ints[U(target - FIRST_INT), place] = number
                        p = q + digits
                    if score < SCORE_MAX:
                        glue.score[U(node)] = score + 1
                    seen |= bit
                    node = NODE_ENTRY + entry
                # --- any one member, exactly ----------------------------------------------------------------------
                if item(text, p) == CLOSE_OBJECT and node != NODE_START:
                    p += 1
                    break
                # --- the key: guessed by its glue, else read ----------------------------------------------------
                glue_start = p
                key, key_end = np.int64(0), np.int64(0)
                key_lo, key_hi = U(0), U(0)
                score = glue.score[node]
                if entry >= 0:
                    target = item(glue.info, entry * INFO + TARGET)
                    q = p + item(glue.info, entry * INFO + SIZE)
                    if score < SCORE_MAX:
                        glue.score[node] = score + 1
                    node = NODE_ENTRY + entry
                    if target < IS_STRING:
                        q = skip_blanks(text, q)
                else:
                    if node == NODE_START:
                        q = skip_blanks(text, p + 1)
                        if item(text, q) == CLOSE_OBJECT:
                            p = q + 1
                            break
                    else:
                        q = skip_blanks(text, p)
                        if item(text, q) == CLOSE_OBJECT:
                            p = q + 1
                            break
                        if item(text, q) != COMMA:
                            outcome = BROKEN
                            break
                        q = skip_blanks(text, q + 1)
                    if item(text, q) != QUOTE:
                        outcome = BROKEN
                        break
                    key = q + 1
                    stops = string_stops(text, key)
                    has_escape = 0
                    key_end = key + trailing_zeros(stops | U(1 << 40))
                    if stops == U(0) or item(text, key_end) != QUOTE:
                        key_end, has_escape = scan_string(text, key)
                        if key_end < 0:
                            outcome = BROKEN
                            break
                    q = skip_blanks(text, key_end + 1)
                    if item(text, q) != COLON:
                        outcome = BROKEN
                        break
                    q = skip_blanks(text, q + 1)
                    if has_escape:
                        if key_end - key > LINE_BYTES_MAX:
                            is_large = True
                            target = np.int64(UNKNOWN)
                        else:
                            size = unescape(text, key, key_end, scratch.text, 0)
                            target = field_of(scratch.text, 0, size, keys)
                            if target == UNKNOWN:
                                key_lo, key_hi = hash_128(scratch.text, 0, size, secrets)
                    else:
                        target = field_of(text, key, key_end - key, keys)
                        if target == UNKNOWN:
                            key_lo, key_hi = hash_128(text, key, key_end - key, secrets)
                    field = target
                    if item(text, q) == QUOTE:
                        target |= IS_STRING
                        q += 1
                    if score < 0:
                        glue.score[node] = score + 1
                        node = NODE_FIELD + field
                    else:
                        glue.score[node] = score - MISS_COST if score >= MISS_COST else SULK
                        learned = np.int64(-1)
                        if q - p <= GLUE_BYTES:
                            learned = find_or_add(text, p, q - p, target, key - p, key_end - key, key_lo, key_hi, glue, progress[P_TOTAL_ROWS] + row)
                        if learned >= 0:
                            follow(node, learned, glue)
                            node = NODE_ENTRY + learned
                        else:
                            node = NODE_FIELD + field
                # --- the value ------------------------------------------------------------------------------------
                field = target & (IS_STRING - 1)
                bit = U(1) << U(field)
                if field != UNKNOWN:
                    if seen & bit != U(0):
                        forget_field(field, row, columns, n_extras, extras)
                        bad &= ~bit
                    seen |= bit
                is_string = target >= IS_STRING
                if not is_string and item(text, q) == QUOTE:
                    is_string = True
                    q += 1
                keep = False  # as an extra: unknown, or of the wrong type
                value_start, value_end = q, q
                if is_string:
                    has_escape = 0
                    value_end = q
                    stops = string_stops(text, value_end)
                    while stops == U(0):
                        value_end += 32
                        stops = string_stops(text, value_end)
                    value_end += trailing_zeros(stops)
                    if item(text, value_end) != QUOTE:
                        value_end, has_escape = scan_string(text, value_end)
                        if value_end < 0:
                            outcome = BROKEN
                            break
                    p = value_end + 1
                    if field < FIRST_INT:
                        if has_escape or value_end - q > LINE_BYTES_MAX:
                            if value_end - q > LINE_BYTES_MAX:
                                is_large = True
                                continue
                            size = unescape(text, q, value_end, scratch.text, 0)
                            code = intern(scratch.text, np.int64(0), size, field, words)
                        else:
                            code = intern(text, q, value_end - q, field, words)
                        if code < 0:
                            outcome = NO_ROOM
                            break
                        columns.codes[U(field), place] = code
                        continue
                    if FIRST_ID <= field < TS:
                        size = value_end - q
                        if size > LINE_BYTES_MAX:
                            is_large = True
                            continue
                        if has_escape:
                            size = unescape(text, q, value_end, scratch.text, 0)
                            put_id(field, scratch.text, np.int64(0), size, place, columns, ids, secrets)
                        else:
                            put_id(field, text, q, size, place, columns, ids, secrets)
                        continue
                    if field == TS:
                        bad |= bit
                        continue
                    value_start, value_end = q - 1, value_end + 1
                    keep = True
                else:
                    if (FIRST_INT <= field < FIRST_ID) or field == TS:
                        digits, number = plain_integer(text, q)
                        if digits > 0:
                            p = q + digits
                            if field == TS:
                                columns.ts[place] = number
                            else:
                                columns.ints[U(field - FIRST_INT), place] = number
                            continue
                    byte = item(text, q)
                    if byte == MINUS or ZERO <= byte <= NINE:
                        value_end = scan_number(text, q)
                        if value_end < 0:
                            outcome = BROKEN
                            break
                        p = value_end
                        if (FIRST_INT <= field < FIRST_ID) or field == TS:
                            state, value = exact_integer(text, q, value_end)
                            if field == TS:
                                if state == NUMBER_OK and 0 <= value < INT_LIMIT:
                                    columns.ts[place] = value
                                else:
                                    bad |= bit
                                continue
                            if state == NUMBER_OK:
                                columns.ints[U(field - FIRST_INT), place] = value
                                continue
                            keep = True
                        elif FIRST_CODED_DIMENSION <= field < FIRST_INT:
                            if value_end - q > LINE_BYTES_MAX:
                                is_large = True
                                continue
                            code = intern(text, q, value_end - q, field, words)
                            if code < 0:
                                outcome = NO_ROOM
                                break
                            columns.codes[U(field), place] = code
                            continue
                        elif field == FIRST_ID + USER:
                            if value_end - q > LINE_BYTES_MAX:
                                is_large = True
                                continue
                            put_id(field, text, q, value_end - q, place, columns, ids, secrets)
                            continue
                        else:
                            keep = True
                    elif byte == OPEN_OBJECT or byte == OPEN_ARRAY:
                        value_end, depth = scan_value(text, q, stack)
                        if value_end < 0:
                            outcome = BROKEN
                            break
                        p = value_end
                        if depth + 1 > DEPTH_MAX:
                            is_deep = True
                        keep = True
                    else:
                        value_end = scan_literal(text, q)
                        if value_end < 0:
                            outcome = BROKEN
                            break
                        p = value_end
                        word = load_u64(text, q) & LOW_32
                        if word == WORD_NULL:
                            if field == UNKNOWN:
                                if entry >= 0:
                                    key = glue_start + item(glue.info, entry * INFO + KEY_AT)
                                    key_end = key + item(glue.info, entry * INFO + KEY_SIZE)
                                    key_lo, key_hi = U(item(glue.info, entry * INFO + KEY_LO)), U(item(glue.info, entry * INFO + KEY_HI))
                                n_extras = add_extra(field, key, key_end, np.int64(-1), value_end, key_lo, key_hi, n_extras, scratch, progress)
                                if n_extras > EXTRAS_MAX:
                                    is_large = True
                                    n_extras = np.int64(0)
                            else:
                                seen &= ~bit
                            continue
                        if field == FATAL:
                            columns.fatal[place] = 1 if word == WORD_TRUE else 0
                            continue
                        keep = True
                if keep:
                    if field < UNKNOWN and REQUIRED & bit != U(0):
                        bad |= bit
                        continue
                    if entry >= 0:
                        key = glue_start + item(glue.info, entry * INFO + KEY_AT)
                        key_end = key + item(glue.info, entry * INFO + KEY_SIZE)
                        key_lo, key_hi = U(item(glue.info, entry * INFO + KEY_LO)), U(item(glue.info, entry * INFO + KEY_HI))
                    n_extras = add_extra(field, key, key_end, value_start, value_end, key_lo, key_hi, n_extras, scratch, progress)
                    if n_extras > EXTRAS_MAX:
                        is_large = True
                        n_extras = np.int64(0)
            # --- the end of the event -----------------------------------------------------------------------------
            if outcome == NO_ROOM:
                clear_row(row, columns)
                at = line_start
                status = STATUS_GROW
                break
            received += 1
            if outcome == ACCEPTED:
                at = skip_blanks(text, p)
                if item(text, at) != LF:
                    outcome = BROKEN
            if outcome == BROKEN:
                at = line_end(text, line_start)
                outcome = reason_of(text, line_start, at, stack)
            elif is_large or at - line_start > LINE_BYTES_MAX:
                outcome = TOO_LARGE
            elif is_deep:
                outcome = TOO_DEEP
            elif seen & REQUIRED != REQUIRED:
                outcome = MISSING_FIELD
            elif bad != U(0):
                outcome = BAD_TYPE
            used_bytes += at - line_start + 1
            if outcome != ACCEPTED:
                dead[D_RECORD, dead_count] = record
                dead[D_LINE, dead_count] = line
                dead[D_START, dead_count] = line_start
                dead[D_SIZE, dead_count] = at - line_start
                dead[D_REASON, dead_count] = outcome
                dead_count += 1
                clear_row(row, columns)
                at += 1
                line += 1
                continue
            code = columns.codes[EVENT, place]
            kind = code
            if code >= 2:
                kind = KIND_BY_CODE[min(code, 5)]
                if code == 2 and 0 <= columns.codes[PHASE, place] < 2:
                    kind = 3
                elif code == 4 and columns.fatal[place] == 1:
                    kind = 6
            columns.kind[place] = kind
            columns.ends[DEVICE, place + U(1)] = columns.ends[DEVICE, place] + np.int32(ids[I_DEVICE])
            columns.ends[SESSION, place + U(1)] = columns.ends[SESSION, place] + np.int32(ids[I_SESSION])
            columns.ends[USER, place + U(1)] = columns.ends[USER, place] + (np.int32(ids[I_USER]) if columns.valid[USER, place] else np.int32(0))
            if n_extras > 0:
                after = write_extra(text, n_extras, extras, columns.extra, extra_end)
                columns.valid[EXTRA, place] = 1 if after > extra_end else 0
                extra_end = after
            columns.ends[EXTRA, place + U(1)] = extra_end
            columns.key_lo[place] = fold(ids[I_DEVICE + 1] ^ secrets[1], ids[I_SESSION + 1] ^ secrets[3]) + ids[I_DEVICE + 2]
            columns.key_hi[place] = fold(ids[I_DEVICE + 2] ^ secrets[4], ids[I_SESSION + 2] ^ secrets[6]) + ids[I_SESSION + 1]
            columns.offset[place] = item(offsets, record) + line if per_line else item(offsets, record)
            columns.line[place] = 0 if per_line else line
            columns.append_ts[place] = item(append_ts, record)
            row += 1
            at += 1
            line += 1
        if status != STATUS_DONE:
            break
        record += 1
        at = np.int64(-1)
    progress[P_RECORD], progress[P_AT], progress[P_LINE] = record, at, line
    progress[P_ROWS], progress[P_RECEIVED], progress[P_DEAD], progress[P_EMPTY] = row, received, dead_count, empty
    progress[P_TOTAL_ROWS] += row
    progress[P_BYTES] = used_bytes
    progress[P_STATUS] = status


def new_columns(rows: int, text_bytes: int) -> Columns:
    """Room for ``rows`` rows whose strings hold at most ``text_bytes`` (and one longest line) a column."""
    capacity = text_bytes + LINE_BYTES_MAX + PADDING  # untouched pages cost nothing
    data = [np.empty(capacity, np.uint8) for _ in range(4)]
    valid = np.zeros((6, rows), np.uint8)  # four string columns, then duplicate and late
    valid[:2] = 1  # device_id and session_id are never null
    i64 = np.int64
    return Columns(
        np.empty(rows, np.int8), np.empty(rows, np.int8), np.empty(rows, i64), np.empty((INTS, rows), i64),
        np.empty((CODES, rows), np.int32), valid, np.zeros((4, rows + 1), np.int32), *data,
        np.empty(rows, np.uint64), np.empty(rows, np.uint64), np.empty(rows, np.uint64), np.empty(rows, i64),
        np.empty(rows, np.int32), np.empty(rows, i64),
    )  # fmt: skip


def new_scratch() -> Scratch:
    """Scratch room, untouched where it can be, and the table of known keys."""
    names = np.zeros((len(FIELD_NAMES), 32), np.uint8)
    for i, name in enumerate(FIELD_NAMES):
        names[i, : len(name)] = np.frombuffer(name.encode(), np.uint8)
    keys = np.zeros(KEY_SLOTS * KEY_WORDS, np.uint64)
    fill_keys(names, np.array([len(n) for n in FIELD_NAMES], np.int64), keys)
    return Scratch(
        np.empty((7, EXTRAS_MAX + 1), np.int64), np.zeros(EXTRA_SLOTS + 1, np.int64), np.empty(LINE_BYTES_MAX + 16, np.uint8),
        np.empty(LINE_BYTES_MAX + 4 * PADDING, np.uint8), keys, np.zeros(8, np.uint64),
    )  # fmt: skip


def warm_up() -> None:
    """Compile, or load, every kernel of decoding."""
    words = new_words(CODES, np.arange(1, 17, 2, dtype=np.uint64))
    intern_one(np.zeros(PADDING, np.uint8), 0, 0, words)
    rehash(words.slots, new_words(CODES, words.secrets))
    columns, one, none = new_columns(1, 0), np.zeros(1, np.int64), np.zeros(0, np.int64)
    dead, progress = np.zeros((5, 1), np.int64), np.zeros(12, np.int64)
    decode_records(np.zeros(PADDING, np.uint8), none, none, none, none, 0, 1, 1, columns, new_glue(), words, new_scratch(), dead, progress)
    take_rows(columns, one.astype(np.int32), 1, 1, new_columns(1, 0))
