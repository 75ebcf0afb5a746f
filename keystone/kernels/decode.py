"""The JSON kernel: bytes of log records to columns, with a reason for every line that cannot be used.

One exact parser reads every event; guessing the glue between two values (``glue.py``) only saves it from reading keys.
"""

# mypy: ignore-errors

import numpy as np

from keystone.events import DEPTH_MAX, LINE_BYTES_MAX, PADDING, REASONS
from keystone.kernels.columns import take_rows
from keystone.kernels.compiler import callee, kernel, piece
from keystone.kernels.extras import add_extra, forget_field, write_extra
from keystone.kernels.fields import (
    CODES,
    DEVICE,
    EVENT,
    EXTRA,
    EXTRAS_MAX,
    FATAL,
    FIRST_CODED_DIMENSION,
    FIRST_ID,
    FIRST_INT,
    I_DEVICE,
    I_SESSION,
    I_USER,
    PHASE,
    REQUIRED,
    SESSION,
    TS,
    UNKNOWN,
    USER,
    clear_row,
    clear_strip,
    field_of,
    new_columns,
    new_scratch,
    put_id,
)  # fmt: skip
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
from keystone.kernels.wide import equal_32, item, load_u64, same_32, string_stops, trailing_zeros
from keystone.kernels.words import find, fold, hash_128, intern, intern_one, new_words, rehash

U = np.uint64
TOO_LARGE, INVALID_UTF8, INVALID_JSON, NOT_AN_OBJECT, TOO_DEEP, MISSING_FIELD, BAD_TYPE = range(len(REASONS))
ACCEPTED, BROKEN, NO_ROOM = -1, -2, -3

# Places in ``progress`` (int64, in and out).
P_RECORD, P_AT, P_LINE, P_ROWS, P_RECEIVED, P_DEAD, P_EMPTY, P_STATUS, P_TOTAL_ROWS, P_BYTES = range(10)
STATUS_DONE, STATUS_MORE, STATUS_GROW = 0, 1, 2

D_RECORD, D_LINE, D_START, D_SIZE, D_REASON = range(5)

KIND_BY_CODE = np.array([0, 1, 2, 4, 5, 7], dtype=np.int8)  # event codes 0..4 as preloaded, then any other name
TEN_POWERS = np.array([10**i for i in range(9)], dtype=np.uint64)


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
                                n_extras = add_extra(field, key, key_end, np.int64(-1), value_end, key_lo, key_hi, n_extras, scratch)
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
                    n_extras = add_extra(field, key, key_end, value_start, value_end, key_lo, key_hi, n_extras, scratch)
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


def warm_up() -> None:
    """Compile, or load, every kernel of decoding."""
    words = new_words(CODES, np.arange(1, 17, 2, dtype=np.uint64))
    intern_one(np.zeros(PADDING, np.uint8), 0, 0, words)
    rehash(words.slots, new_words(CODES, words.secrets))
    columns, one, none = new_columns(1, 0), np.zeros(1, np.int64), np.zeros(0, np.int64)
    dead, progress = np.zeros((5, 1), np.int64), np.zeros(12, np.int64)
    decode_records(np.zeros(PADDING, np.uint8), none, none, none, none, 0, 1, 1, columns, new_glue(), words, new_scratch(), dead, progress)
    take_rows(columns, one.astype(np.int32), 1, 1, new_columns(1, 0))
