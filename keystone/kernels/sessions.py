"""The session kernel: one partition's state, one event after the other.

**Row.** 80 bytes, always within two neighbouring cache lines, holds a healthy session whole: key, times, the `seq`
memory while it has no hole, dimension codes. Whatever is unusual (a stall, an error, a duplicate, a hole in `seq`, a
number too big for its field) moves all of a session's numbers to a *side* row of int64, freed when all is usual again or
the session closes. ``_load`` and ``_store`` are the only ones to know; between them everything is int64.

**Index.** Open addressing over uint32: the row's number, and above it as many bits of its key as are free (8 at 16M
slots), so that 99.6% of the wrong slots are passed without reading a row. Deletion shifts back: no tombstones.

**Timers.** A session's deadline follows from its row. Each 8 rows keep a lower bound of their deadlines, each 2048 a
lower bound of those; events that move a deadline away leave the bounds alone, a sweep corrects them when it finds them
early. An event that meets a row past its deadline fires it first, so results do not depend on when sweeps run.

**Speed.** Events come in chunks of 64: a first pass asks for their index slots, a second for their rows, a third
applies them; cache misses of a chunk then overlap.
"""

# mypy: ignore-errors

from typing import NamedTuple

import numpy as np

from keystone.events import CODED_DIMENSIONS, INT_COLUMNS, INT_NULL, KIND_BUFFER, KIND_ERROR, KIND_FATAL, KIND_HEARTBEAT, KIND_START, KIND_STOP
from keystone.kernels.arena import NONE, UNIT, blob_bytes, class_of, get_string, put_null, put_string, rounded, skip_string
from keystone.kernels.compiler import callee, kernel, piece
from keystone.kernels.wide import item, prefetch, trailing_zeros

CHUNK = 64  # events whose misses overlap: 64 x 3 lines = 12 KB, within a first-level cache of 32 KB
CHUNK_OF_LONG = 8  # where identifiers are long: each event of a chunk is promised room for the longest
LONG_BYTES = 4096
HEADER_BYTES = 16  # of a blob's three strings: at most 4 each
DIMS = len(CODED_DIMENSIONS)
SEQ, BITRATE = INT_COLUMNS.index("seq"), INT_COLUMNS.index("bitrate_kbps")
SEQ_JUMP_MAX, SEQ_WINDOW = 1 << 20, 64
SUM_MAX, SUM_MIN = np.iinfo(np.int64).max, np.iinfo(np.int64).min
NEVER = np.iinfo(np.int64).max
U32, U16 = 0xFFFFFFFF, 0xFFFF
EMPTY = np.uint32(U32)

# --- a row: places of its fields in the int64, uint32 and uint16 views ---------------------------------------------
ROW_BYTES, ROW_WORDS, ROW_HALVES, ROW_SHORTS = 80, 10, 20, 40
KEY_LO, KEY_HI, START_TS, USER_HASH = 0, 1, 2, 3  # words
TOUCHED, END_DELTA, MAX_SEQ, BLOB, SUM_OR_SIDE = 8, 9, 10, 11, 12  # halves
FIRST_DIM, EVENTS, LAST_BITRATE, STARTUP, BITRATES, FLAGS = 26, 35, 36, 37, 38, 39  # shorts
SHORT_NONE = U16  # of LAST_BITRATE and STARTUP
# flags; above them the length of the seq memory: that many lowest bits are set (0: no seq yet)
USED, HAS_START, HAD_HEARTBEAT, STOPPED, FATAL_BEFORE, FATAL_AFTER, WATCHED, HAS_SIDE, HIGH = (1 << i for i in range(9))
SEQ_SHIFT, FLAG_MASK = 9, 511
OUTCOME_FLAGS = HAD_HEARTBEAT | FATAL_BEFORE | FATAL_AFTER

# --- a side row: int64 each -----------------------------------------------------------------------------------------
SIDE_WORDS = 16
(S_END, S_MAX_SEQ, S_SEQ_BITS, S_EVENTS, S_BUFFERS, S_ERRORS, S_DUPLICATES, S_LATE, S_ALERTS, S_STARTUP, S_STALL_MS, S_RUN, S_STALL_START,
 S_LAST_BITRATE, S_BITRATE_SUM, S_BITRATES) = range(SIDE_WORDS)  # fmt: skip

# --- state: counters of the table -----------------------------------------------------------------------------------
(ACTIVE, ROWS, ROW_FREE, SIDES, SIDE_FREE, SIDES_USED, UNITS, UNITS_FREE, LONGEST_DEVICE, LONGEST_SESSION, LONGEST_USER, LOG_TIME, SWEPT_AT,
 APPLIED, DUPLICATES, LATE, ALERTS, CLOSED, AT, REASON) = range(20)  # fmt: skip
STATE_WORDS = 32
# why a kernel returned before its end
DONE, ROOM_ROWS, ROOM_INDEX, ROOM_SIDES, ROOM_ARENA, ROOM_HIGH, ROOM_OUT, SWEEP = range(8)

BLOCK_ROWS, BLOCK_SHIFT, SUPER_SHIFT = 8, 3, 8  # rows of a block: 10 cache lines to look at when one is due; blocks of a superblock: 256
SWEEP_GAP_MS = 1 << 30  # a touched time is kept modulo 2^32 ms: a sweep at least every 12 days keeps it unambiguous
DURATION_LIMIT_MS = 1 << 30  # of timeout, grace and open stall, for the same reason

# --- out: one row an alert, one a closed session --------------------------------------------------------------------
(A_EVENT_ROW, A_KIND, A_START_TS, A_EVENT_TS, A_SEQ, A_RUN, A_BITRATE, A_ORDINAL, A_APPEND_TS) = range(9)
ALERT_WORDS = 9
LOOP, OPEN_STALL = 0, 1
(C_START_TS, C_END_TS, C_STARTUP, C_STALL_MS, C_EVENTS, C_BUFFERS, C_ERRORS, C_DUPLICATES, C_LATE, C_ALERTS, C_BITRATE_SUM, C_BITRATES, C_REASON,
 C_OUTCOME) = range(14)  # fmt: skip
CLOSED_WORDS = 14
BY_STOP, BY_TIMEOUT, BY_END = 0, 1, 2


class Table(NamedTuple):
    """A table's memory. ``words halves shorts`` are views of the same rows, ``arena units`` of the same arena."""

    words: np.ndarray  # int64
    halves: np.ndarray  # uint32
    shorts: np.ndarray  # uint16
    high: np.ndarray  # uint16 (rows * DIMS): upper 16 bits of codes above 65534; size 0 until there is one
    side: np.ndarray  # int64
    arena: np.ndarray  # uint8
    units: np.ndarray  # uint32
    index: np.ndarray  # uint32, a power of two
    blocks: np.ndarray  # int64
    superblocks: np.ndarray  # int64
    free: np.ndarray  # int64 (CLASSES): heads of the arena's free lists
    state: np.ndarray  # int64 (STATE_WORDS)
    candidates: np.ndarray  # int64 (CHUNK): scratch
    timeout_ms: int
    grace_ms: int
    open_stall_ms: int  # -1: never
    loop_threshold: int
    has_timers: int


class Out(NamedTuple):
    """Where alerts and closed sessions go. Text and ends: device, session, user of row i end at ``ends[3 * i + k]`` of
    the k-th third of ``text``; a null user has the sign bit of its end set (-end - 1)."""

    alerts: np.ndarray  # int64 (ALERT_WORDS * capacity)
    alert_codes: np.ndarray  # int32 (DIMS * capacity)
    alert_text: np.ndarray  # uint8
    alert_ends: np.ndarray  # int64
    closed: np.ndarray  # int64 (CLOSED_WORDS * capacity)
    closed_codes: np.ndarray  # int32
    closed_text: np.ndarray  # uint8
    closed_ends: np.ndarray  # int64


class Events(NamedTuple):
    """The columns of a batch that matter here. ``ints codes`` are the first rows of their matrices, whose rows lie
    ``ints_stride codes_stride`` items apart."""

    rows: int
    kind: np.ndarray
    ts: np.ndarray
    ints: np.ndarray
    ints_stride: int
    codes: np.ndarray
    codes_stride: int
    key_lo: np.ndarray
    key_hi: np.ndarray
    user_hash: np.ndarray
    append_ts: np.ndarray
    device_ends: np.ndarray
    device: np.ndarray
    session_ends: np.ndarray
    session: np.ndarray
    user_ends: np.ndarray
    user: np.ndarray
    user_valid: np.ndarray
    duplicate: np.ndarray
    late: np.ndarray


# --- numbers of a session -------------------------------------------------------------------------------------------
@piece
def _ones(count):
    """uint64 with the ``count`` lowest bits set, 0..64."""
    return np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - count) if count > 0 else np.uint64(0)


@piece
def _signed(half):
    value = np.int64(half)
    return value - 0x100000000 if value > 0x7FFFFFFF else value


@piece
def _load(t, row, flags):
    """(end_ts, max_seq, seq_bits, events, buffers, errors, duplicates, late, alerts, startup, stall_ms, run, stall_start,
    last_bitrate, bitrate_sum, bitrates); INT_NULL where there is no startup or bitrate."""
    h, s = row * ROW_HALVES, row * ROW_SHORTS
    zero = np.int64(0)
    if flags & HAS_SIDE:
        w = np.int64(item(t.halves, h + SUM_OR_SIDE)) * SIDE_WORDS
        side = t.side
        return (
            item(side, w), item(side, w + S_MAX_SEQ), np.uint64(item(side, w + S_SEQ_BITS)), item(side, w + S_EVENTS), item(side, w + S_BUFFERS),
            item(side, w + S_ERRORS), item(side, w + S_DUPLICATES), item(side, w + S_LATE), item(side, w + S_ALERTS), item(side, w + S_STARTUP),
            item(side, w + S_STALL_MS), item(side, w + S_RUN), item(side, w + S_STALL_START), item(side, w + S_LAST_BITRATE),
            item(side, w + S_BITRATE_SUM), item(side, w + S_BITRATES),
        )  # fmt: skip
    startup, bitrate = np.int64(item(t.shorts, s + STARTUP)), np.int64(item(t.shorts, s + LAST_BITRATE))
    return (
        item(t.words, row * ROW_WORDS + START_TS) + np.int64(item(t.halves, h + END_DELTA)), _signed(item(t.halves, h + MAX_SEQ)),
        _ones(flags >> SEQ_SHIFT), np.int64(item(t.shorts, s + EVENTS)), zero, zero, zero, zero, zero,
        np.int64(INT_NULL) if startup == SHORT_NONE else startup, zero, zero, zero, np.int64(INT_NULL) if bitrate == SHORT_NONE else bitrate,
        np.int64(item(t.halves, h + SUM_OR_SIDE)), np.int64(item(t.shorts, s + BITRATES)),
    )  # fmt: skip


@piece
def _store(t, row, flags, start_ts, end_ts, max_seq, bits, events, buffers, errors, duplicates, late, alerts, startup, stall_ms, run, stall_start,
           last_bitrate, bitrate_sum, bitrates):  # fmt: skip
    """Write a session's numbers and flags back, in the row where they fit, else in a side row (there is room for one)."""
    h, s = row * ROW_HALVES, row * ROW_SHORTS
    flags = flags & FLAG_MASK
    t.words[row * ROW_WORDS + START_TS] = start_ts
    is_plain = buffers | errors | duplicates | late | alerts | stall_ms | run == 0
    is_plain = is_plain and (bits & (bits + np.uint64(1))) == 0 and -0x80000000 <= max_seq <= 0x7FFFFFFF and end_ts - start_ts <= U32
    is_plain = is_plain and events <= U16 and bitrates <= U16 and 0 <= bitrate_sum <= U32
    is_plain = is_plain and (startup < SHORT_NONE) and (0 <= last_bitrate < SHORT_NONE or last_bitrate == INT_NULL)
    if is_plain:
        if flags & HAS_SIDE:
            _free_side(t, np.int64(t.halves[h + SUM_OR_SIDE]))
        length = trailing_zeros(~bits) if bits != np.uint64(0xFFFFFFFFFFFFFFFF) else np.int64(64)
        t.halves[h + END_DELTA] = end_ts - start_ts
        t.halves[h + MAX_SEQ] = max_seq & U32
        t.halves[h + SUM_OR_SIDE] = bitrate_sum
        t.shorts[s + EVENTS] = events
        t.shorts[s + LAST_BITRATE] = SHORT_NONE if last_bitrate == INT_NULL else last_bitrate
        t.shorts[s + STARTUP] = SHORT_NONE if startup == INT_NULL else startup
        t.shorts[s + BITRATES] = bitrates
        t.shorts[s + FLAGS] = (flags & ~HAS_SIDE) | length << SEQ_SHIFT
        return
    if not flags & HAS_SIDE:
        t.halves[h + SUM_OR_SIDE] = _take_side(t)
    w = np.int64(t.halves[h + SUM_OR_SIDE]) * SIDE_WORDS
    side = t.side
    side[w + S_END], side[w + S_MAX_SEQ], side[w + S_SEQ_BITS], side[w + S_EVENTS] = end_ts, max_seq, np.int64(bits), events
    side[w + S_BUFFERS], side[w + S_ERRORS], side[w + S_DUPLICATES], side[w + S_LATE] = buffers, errors, duplicates, late
    side[w + S_ALERTS], side[w + S_STARTUP], side[w + S_STALL_MS], side[w + S_RUN] = alerts, startup, stall_ms, run
    side[w + S_STALL_START], side[w + S_LAST_BITRATE], side[w + S_BITRATE_SUM], side[w + S_BITRATES] = stall_start, last_bitrate, bitrate_sum, bitrates
    t.shorts[s + FLAGS] = flags | HAS_SIDE


@callee
def _take_side(t):
    state = t.state
    state[SIDES_USED] += 1
    if state[SIDE_FREE] != NONE:
        side = state[SIDE_FREE]
        state[SIDE_FREE] = t.side[side * SIDE_WORDS]
        return side
    state[SIDES] += 1
    return state[SIDES] - 1


@callee
def _free_side(t, side):
    t.side[side * SIDE_WORDS] = t.state[SIDE_FREE]
    t.state[SIDE_FREE] = side
    t.state[SIDES_USED] -= 1


@piece
def _add(total, more):
    """int64 sum that stays at the limit."""
    if more > 0 and total > SUM_MAX - more:
        return np.int64(SUM_MAX)
    if more < 0 and total < SUM_MIN - more:
        return np.int64(SUM_MIN)
    return total + more


@piece
def _stall_end(stall_ms, run, stall_start, ts):
    return _add(stall_ms, max(np.int64(0), ts - stall_start)) if run > 0 else stall_ms


# --- strings --------------------------------------------------------------------------------------------------------
@callee
def _take_units(t, size):
    """Handle of room for ``size`` bytes."""
    units = rounded((size + UNIT - 1) // UNIT)
    free = class_of(units)
    handle = t.free[free]
    if handle != NONE:
        following = t.units[handle]
        t.free[free] = NONE if following == EMPTY else np.int64(following)
        t.state[UNITS_FREE] -= units
        return handle
    handle = t.state[UNITS]
    t.state[UNITS] += units
    return handle


@callee
def _free_blob(t, row):
    handle = np.int64(t.halves[row * ROW_HALVES + BLOB])
    units = rounded((blob_bytes(t.arena, handle * UNIT) + UNIT - 1) // UNIT)
    free = class_of(units)
    t.units[handle] = EMPTY if t.free[free] == NONE else t.free[free]
    t.free[free] = handle
    t.state[UNITS_FREE] += units


@callee
def _put_blob(t, row, size):
    """Keep the blob of ``size`` bytes that was spelled behind the arena's end (room is promised there)."""
    source = t.state[UNITS] * UNIT
    handle = _take_units(t, size)
    if handle * UNIT != source:
        for i in range(size):
            t.arena[handle * UNIT + i] = t.arena[source + i]
    t.halves[row * ROW_HALVES + BLOB] = handle


@callee
def _new_blob(t, row, e, i):
    """Device, session and user of event ``i``."""
    start = t.state[UNITS] * UNIT
    at = put_string(e.device, np.int64(e.device_ends[i]), np.int64(e.device_ends[i + 1]), t.arena, start)
    at = put_string(e.session, np.int64(e.session_ends[i]), np.int64(e.session_ends[i + 1]), t.arena, at)
    at = _put_user(t, e, i, at)
    _put_blob(t, row, at - start)


@callee
def _put_user(t, e, i, at):
    if e.user_valid[i]:
        return put_string(e.user, np.int64(e.user_ends[i]), np.int64(e.user_ends[i + 1]), t.arena, at)
    return put_null(t.arena, at)


@callee
def _set_user(t, row, e, i):
    """Another user: the first two strings stay as they are spelled."""
    start = t.state[UNITS] * UNIT
    old = np.int64(t.halves[row * ROW_HALVES + BLOB]) * UNIT
    size = skip_string(t.arena, skip_string(t.arena, old)) - old
    for k in range(size):
        t.arena[start + k] = t.arena[old + k]
    at = _put_user(t, e, i, start + size)
    _free_blob(t, row)
    _put_blob(t, row, at - start)
    t.words[row * ROW_WORDS + USER_HASH] = e.user_hash[i]


@callee
def _write_names(t, row, text, ends, place):
    """Append a row's three strings to an output."""
    third = text.size // 3
    at = np.int64(t.halves[row * ROW_HALVES + BLOB]) * UNIT
    for k in range(3):
        before = np.int64(0)
        if place > 0:
            before = ends[3 * (place - 1) + k]
            if before < 0:
                before = -before - 1
        at, to = get_string(t.arena, at, text, k * third + before)
        ends[3 * place + k] = -before - 1 if to < 0 else to - k * third


@callee
def _write_codes(t, row, codes, place):
    flags = t.shorts[row * ROW_SHORTS + FLAGS]
    for d in range(DIMS):
        code = np.int64(t.shorts[row * ROW_SHORTS + FIRST_DIM + d])
        if flags & HIGH:
            code |= np.int64(t.high[row * DIMS + d]) << 16
        codes[place * DIMS + d] = code - 1


# --- index ----------------------------------------------------------------------------------------------------------
@piece
def _row_bits(index):
    return trailing_zeros(np.uint64(index.size))


@piece
def _tag(key_lo, row_bits):
    """The key's upper bits, where a slot keeps them."""
    return np.uint32((np.uint64(key_lo) >> np.uint64(32 + row_bits)) << np.uint64(row_bits))


@piece
def _find(t, key_lo, key_hi):
    """Row of a key, or -1."""
    mask = t.index.size - 1
    bits = _row_bits(t.index)
    tag = _tag(key_lo, bits)
    row_mask = np.uint32(mask)
    at = key_lo & mask
    while True:
        slot = item(t.index, at)
        if slot == EMPTY:
            return np.int64(-1)
        if (slot & ~row_mask) == tag:
            row = np.int64(slot & row_mask)
            if item(t.words, row * ROW_WORDS) == key_lo and item(t.words, row * ROW_WORDS + KEY_HI) == key_hi:
                return row
        at = (at + 1) & mask


@callee
def _index_add(index, row, key_lo):
    mask = index.size - 1
    at = key_lo & mask
    while index[at] != EMPTY:
        at = (at + 1) & mask
    index[at] = _tag(key_lo, _row_bits(index)) | np.uint32(row)


@callee
def _index_remove(t, row):
    index = t.index
    mask = index.size - 1
    row_mask = np.uint32(mask)
    hole = t.words[row * ROW_WORDS] & mask
    while np.int64(index[hole] & row_mask) != row or index[hole] == EMPTY:
        hole = (hole + 1) & mask
    at = hole
    while True:
        at = (at + 1) & mask
        slot = index[at]
        if slot == EMPTY:
            break
        home = t.words[np.int64(slot & row_mask) * ROW_WORDS] & mask
        if ((at - home) & mask) >= ((at - hole) & mask):
            index[hole] = slot
            hole = at
    index[hole] = EMPTY


# --- opening, closing, timers ---------------------------------------------------------------------------------------
@piece
def _lower(t, row, deadline):
    """Say that ``row`` may be due at ``deadline`` already."""
    block = row >> BLOCK_SHIFT
    if deadline < t.blocks[block]:
        t.blocks[block] = deadline
        if deadline < t.superblocks[block >> SUPER_SHIFT]:
            t.superblocks[block >> SUPER_SHIFT] = deadline


@callee
def _reset(t, row, e, i, now):
    """Make ``row`` a new session with nothing but its key, opened by event ``i``; returns its flags."""
    ts = e.ts[i]
    w, h, s = row * ROW_WORDS, row * ROW_HALVES, row * ROW_SHORTS
    t.words[w + START_TS] = ts
    t.words[w + USER_HASH] = e.user_hash[i]
    t.halves[h + TOUCHED] = now & U32
    t.halves[h + END_DELTA] = t.halves[h + MAX_SEQ] = t.halves[h + SUM_OR_SIDE] = 0
    for k in range(DIMS):
        t.shorts[s + FIRST_DIM + k] = 0
    t.shorts[s + EVENTS] = t.shorts[s + BITRATES] = 0
    t.shorts[s + LAST_BITRATE] = t.shorts[s + STARTUP] = SHORT_NONE
    t.shorts[s + FLAGS] = USED
    _new_blob(t, row, e, i)
    if t.has_timers:
        _lower(t, row, now + t.timeout_ms)
    return np.int64(USED)


@callee
def _open(t, e, i, now):
    """A row for the session of event ``i``, which is not kept; there is room."""
    state = t.state
    row = state[ROW_FREE]
    if row != NONE:
        state[ROW_FREE] = t.words[row * ROW_WORDS]
    else:
        row = state[ROWS]
        state[ROWS] += 1
    state[ACTIVE] += 1
    t.words[row * ROW_WORDS] = e.key_lo[i]
    t.words[row * ROW_WORDS + KEY_HI] = e.key_hi[i]
    _index_add(t.index, row, e.key_lo[i])
    _reset(t, row, e, i, now)
    return row


@callee
def _free_row(t, row):
    _index_remove(t, row)
    _free_blob(t, row)
    t.shorts[row * ROW_SHORTS + FLAGS] = 0
    t.words[row * ROW_WORDS] = t.state[ROW_FREE]
    t.state[ROW_FREE] = row
    t.state[ACTIVE] -= 1


@callee
def _write_closed(t, out, row, reason):
    """The session record of a row; frees its side row. The row itself stays."""
    flags = np.int64(t.shorts[row * ROW_SHORTS + FLAGS])
    (end_ts, _, _, events, buffers, errors, duplicates, late, alerts, startup, stall_ms, run, stall_start, _, bitrate_sum, bitrates) = _load(t, row, flags)
    place = t.state[CLOSED]
    t.state[CLOSED] += 1
    c, closed = place * CLOSED_WORDS, out.closed
    closed[c + C_START_TS], closed[c + C_END_TS], closed[c + C_STARTUP] = t.words[row * ROW_WORDS + START_TS], end_ts, startup
    closed[c + C_STALL_MS] = _stall_end(stall_ms, run, stall_start, end_ts)
    closed[c + C_EVENTS], closed[c + C_BUFFERS], closed[c + C_ERRORS] = events, buffers, errors
    closed[c + C_DUPLICATES], closed[c + C_LATE], closed[c + C_ALERTS] = duplicates, late, alerts
    closed[c + C_BITRATE_SUM], closed[c + C_BITRATES], closed[c + C_REASON] = bitrate_sum, bitrates, reason
    outcome = 3
    if flags & FATAL_AFTER:
        outcome = 0
    elif flags & FATAL_BEFORE:
        outcome = 1
    elif flags & HAD_HEARTBEAT:
        outcome = 2
    closed[c + C_OUTCOME] = outcome
    _write_codes(t, row, out.closed_codes, place)
    _write_names(t, row, out.closed_text, out.closed_ends, place)
    if flags & HAS_SIDE:
        _free_side(t, np.int64(t.halves[row * ROW_HALVES + SUM_OR_SIDE]))
        t.shorts[row * ROW_SHORTS + FLAGS] = flags & ~HAS_SIDE


@callee
def _write_alert(t, out, row, event_row, kind, start_ts, event_ts, seq, run, bitrate, ordinal, append_ts):
    place = t.state[ALERTS]
    t.state[ALERTS] += 1
    a, alerts = place * ALERT_WORDS, out.alerts
    alerts[a + A_EVENT_ROW], alerts[a + A_KIND], alerts[a + A_START_TS], alerts[a + A_EVENT_TS] = event_row, kind, start_ts, event_ts
    alerts[a + A_SEQ], alerts[a + A_RUN], alerts[a + A_BITRATE], alerts[a + A_ORDINAL], alerts[a + A_APPEND_TS] = seq, run, bitrate, ordinal, append_ts
    _write_codes(t, row, out.alert_codes, place)
    _write_names(t, row, out.alert_text, out.alert_ends, place)


@piece
def _touched(t, row, reference):
    """Log time of the last applied event (of the Stop, once stopped); ``reference`` is at most 2^32 ms later."""
    return reference - ((reference - np.int64(item(t.halves, row * ROW_HALVES + TOUCHED))) & U32)


@piece
def _wait(t, flags):
    """How long after its touched time a row is due."""
    if flags & STOPPED:
        return t.grace_ms
    if flags & WATCHED:
        return t.open_stall_ms
    return t.timeout_ms


@callee
def _fire(t, out, row, touched, now):
    """Do what is due of a row by ``now``: returns its deadline from then on, or -1 if it closed."""
    flags = np.int64(t.shorts[row * ROW_SHORTS + FLAGS])
    if touched + _wait(t, flags) > now:
        return touched + _wait(t, flags)
    if flags & STOPPED:
        _write_closed(t, out, row, BY_STOP)
        _free_row(t, row)
        return np.int64(-1)
    if flags & WATCHED:
        w = np.int64(t.halves[row * ROW_HALVES + SUM_OR_SIDE]) * SIDE_WORDS
        side = t.side
        seq = side[w + S_MAX_SEQ] if side[w + S_SEQ_BITS] != 0 else np.int64(INT_NULL)
        _write_alert(
            t, out, row, -1, OPEN_STALL, t.words[row * ROW_WORDS + START_TS], side[w + S_STALL_START], seq, side[w + S_RUN],
            side[w + S_LAST_BITRATE], side[w + S_ALERTS], touched + t.open_stall_ms,
        )  # fmt: skip
        side[w + S_ALERTS] += 1
        t.shorts[row * ROW_SHORTS + FLAGS] = flags & ~WATCHED
    if touched + t.timeout_ms > now:
        return touched + t.timeout_ms
    _write_closed(t, out, row, BY_TIMEOUT)
    _free_row(t, row)
    return np.int64(-1)


@piece
def _longest(t):
    """Bytes of the longest identifier, any of the three."""
    return max(t.state[LONGEST_DEVICE], t.state[LONGEST_SESSION], t.state[LONGEST_USER], 1)


@piece
def _closed_max(t, out):
    """How many closed sessions ``out`` has room for, however long their names."""
    return min(out.closed.size // CLOSED_WORDS, out.closed_text.size // 3 // _longest(t))


@piece
def _alerts_max(t, out):
    return min(out.alerts.size // ALERT_WORDS, out.alert_text.size // 3 // _longest(t))


@kernel
def sweep(t, out, now):
    """Fire everything due by ``now``. REASON is DONE, or ROOM_OUT: empty ``out`` and call again."""
    state = t.state
    closed_max, alerts_max = _closed_max(t, out), _alerts_max(t, out)
    reference = state[LOG_TIME]
    state[REASON] = DONE
    if not t.has_timers:
        return
    blocks = (state[ROWS] + BLOCK_ROWS - 1) >> BLOCK_SHIFT
    for over in range((blocks + (1 << SUPER_SHIFT) - 1) >> SUPER_SHIFT):
        if t.superblocks[over] > now:
            continue
        over_due = np.int64(NEVER)
        for block in range(over << SUPER_SHIFT, min(blocks, (over + 1) << SUPER_SHIFT)):
            if t.blocks[block] <= now:
                if state[CLOSED] + BLOCK_ROWS > closed_max or state[ALERTS] + BLOCK_ROWS > alerts_max:
                    state[REASON] = ROOM_OUT
                    return
                due = np.int64(NEVER)
                for row in range(block << BLOCK_SHIFT, min(state[ROWS], (block + 1) << BLOCK_SHIFT)):
                    if t.shorts[row * ROW_SHORTS + FLAGS]:
                        deadline = _fire(t, out, row, _touched(t, row, reference), now)
                        if deadline >= 0:
                            due = min(due, deadline)
                t.blocks[block] = due
            over_due = min(over_due, t.blocks[block])
        t.superblocks[over] = over_due
    state[LOG_TIME] = max(state[LOG_TIME], now)
    state[SWEPT_AT] = state[LOG_TIME]


@kernel
def close_rows(t, out):
    """Close whatever is kept, from row AT on: stopped sessions by their Stop, others by the end of the file."""
    state = t.state
    state[REASON] = DONE
    for row in range(state[AT], state[ROWS]):
        flags = np.int64(t.shorts[row * ROW_SHORTS + FLAGS])
        if flags:
            if state[CLOSED] >= _closed_max(t, out):
                state[AT], state[REASON] = row, ROOM_OUT
                return
            _write_closed(t, out, row, BY_STOP if flags & STOPPED else BY_END)
            _free_row(t, row)


# --- events ---------------------------------------------------------------------------------------------------------
@piece
def _set_codes(t, row, flags, e, i):
    """The dimensions of an in-order event; returns the flags."""
    s = row * ROW_SHORTS + FIRST_DIM
    for d in range(DIMS):
        code = np.int64(item(e.codes, d * e.codes_stride + i)) + 1
        if code > 0:
            t.shorts[s + d] = code & U16
            if code > U16 or flags & HIGH:
                flags = _set_high(t, row, flags, d, code >> 16)
    return flags


@callee
def _set_high(t, row, flags, d, upper):
    if not flags & HIGH:
        for k in range(DIMS):
            t.high[row * DIMS + k] = 0
        flags |= HIGH
        t.shorts[row * ROW_SHORTS + FLAGS] |= HIGH
    t.high[row * DIMS + d] = upper
    return flags


@piece
def _ask_slots(t, e, first, end):
    mask = t.index.size - 1
    for i in range(first, end):
        prefetch(t.index, item(e.key_lo, i) & mask)


@piece
def _ask_rows(t, e, first, end):
    """The likely row of each event, by the tag in its slot: the key itself is compared later."""
    mask = t.index.size - 1
    bits = _row_bits(t.index)
    row_mask = np.uint32(mask)
    for i in range(first, end):
        key_lo = item(e.key_lo, i)
        tag = _tag(key_lo, bits)
        at = key_lo & mask
        slot = item(t.index, at)
        while slot != EMPTY and (slot & ~row_mask) != tag:
            at = (at + 1) & mask
            slot = item(t.index, at)
        row = np.int64(-1)
        if slot != EMPTY:
            row = np.int64(slot & row_mask)
            prefetch(t.words, row * ROW_WORDS)
            prefetch(t.words, row * ROW_WORDS + ROW_WORDS - 1)
        t.candidates[i - first] = row


@piece
def _room(t, out, need_units, events):
    """What is missing for ``events`` more events, or DONE."""
    state = t.state
    if state[ACTIVE] + events > t.words.size // ROW_WORDS:
        return ROOM_ROWS
    if (state[ROWS] + events) * 8 > t.index.size * 5:
        return ROOM_INDEX
    if state[SIDES_USED] + events > t.side.size // SIDE_WORDS:
        return ROOM_SIDES
    if state[UNITS] + events * need_units > t.units.size:
        return ROOM_ARENA
    if state[CLOSED] + events > _closed_max(t, out) or state[ALERTS] + 2 * events > _alerts_max(t, out):
        return ROOM_OUT
    return DONE


@callee
def _measure(t, e):
    """Note the longest identifiers; returns the highest dimension code."""
    state = t.state
    for k, ends in ((LONGEST_DEVICE, e.device_ends), (LONGEST_SESSION, e.session_ends), (LONGEST_USER, e.user_ends)):
        longest = np.int32(0)
        for i in range(e.rows):
            longest = max(longest, item(ends, i + 1) - item(ends, i))
        state[k] = max(state[k], longest)
    highest = np.int32(-1)
    for d in range(DIMS):
        for i in range(e.rows):
            highest = max(highest, item(e.codes, d * e.codes_stride + i))
    return highest


@kernel
def apply_events(t, out, e):
    """Apply events from AT on. REASON says why it returned; AT is where to go on."""
    state = t.state
    first = state[AT]
    if _measure(t, e) >= U16 and t.high.size == 0:
        state[REASON] = ROOM_HIGH
        return
    blob_bytes_max = state[LONGEST_DEVICE] + state[LONGEST_SESSION] + state[LONGEST_USER] + HEADER_BYTES
    chunk = CHUNK if blob_bytes_max <= LONG_BYTES else CHUNK_OF_LONG
    need_units = rounded((blob_bytes_max + UNIT - 1) // UNIT)
    applied = duplicates_now = late_now = 0
    reason = DONE
    while first < e.rows and reason == DONE:
        end = min(first + chunk, e.rows)
        reason = _room(t, out, need_units, end - first)
        if reason != DONE:
            break
        _ask_slots(t, e, first, end)
        _ask_rows(t, e, first, end)
        i = first
        while i < end:
            now = max(state[LOG_TIME], item(e.append_ts, i))
            if t.has_timers and now - state[SWEPT_AT] >= SWEEP_GAP_MS:
                reason = SWEEP
                break
            state[LOG_TIME] = now
            key_lo, key_hi = item(e.key_lo, i), item(e.key_hi, i)
            row = item(t.candidates, i - first)
            if row >= 0 and (item(t.words, row * ROW_WORDS) != key_lo or item(t.words, row * ROW_WORDS + KEY_HI) != key_hi
                             or item(t.shorts, row * ROW_SHORTS + FLAGS) == 0):  # fmt: skip
                row = np.int64(-1)
            if row < 0:
                row = _find(t, key_lo, key_hi)
            if row >= 0 and t.has_timers:
                touched = _touched(t, row, now)
                if touched + _wait(t, np.int64(item(t.shorts, row * ROW_SHORTS + FLAGS))) <= now and _fire(t, out, row, touched, now) < 0:
                    row = np.int64(-1)
            if row < 0:
                row = _open(t, e, i, now)
            flags = np.int64(item(t.shorts, row * ROW_SHORTS + FLAGS))
            (end_ts, max_seq, bits, events, buffers, errors, duplicates, late, alerts, startup, stall_ms, run, stall_start, last_bitrate, bitrate_sum,
             bitrates) = _load(t, row, flags)  # fmt: skip
            start_ts = item(t.words, row * ROW_WORDS + START_TS)
            kind, ts, seq = item(e.kind, i), item(e.ts, i), item(e.ints, SEQ * e.ints_stride + i)
            is_late = is_duplicate = False
            if seq != INT_NULL and bits != 0:
                ahead = seq - max_seq
                if ahead > SEQ_JUMP_MAX:
                    seq = np.int64(INT_NULL)
                elif ahead <= 0:
                    if ahead <= -SEQ_WINDOW or (bits >> np.uint64(-ahead)) & np.uint64(1):
                        is_duplicate = True
                    else:
                        is_late = True
                        bits |= np.uint64(1) << np.uint64(-ahead)
            e.duplicate[i] = is_duplicate
            e.late[i] = is_late
            if is_duplicate:
                duplicates += 1
                duplicates_now += 1
            else:
                applied += 1
                if not is_late and flags & STOPPED and kind == KIND_START:
                    _write_closed(t, out, row, BY_STOP)
                    _free_blob(t, row)
                    flags = _reset(t, row, e, i, now)
                    start_ts = end_ts = ts
                    events = buffers = errors = duplicates = late = alerts = stall_ms = run = stall_start = bitrate_sum = bitrates = np.int64(0)
                    startup = last_bitrate = np.int64(INT_NULL)
                events += 1
                if kind == KIND_BUFFER:
                    buffers += 1
                elif kind == KIND_ERROR or kind == KIND_FATAL:
                    errors += 1
                ends_run = stops = False
                if is_late:
                    late += 1
                    late_now += 1
                    start_ts, end_ts = min(start_ts, ts), max(end_ts, ts)
                    if kind == KIND_START:
                        flags |= HAS_START
                    elif kind == KIND_STOP and not flags & STOPPED:
                        ends_run = stops = True
                    if not flags & STOPPED:
                        t.halves[row * ROW_HALVES + TOUCHED] = now & U32
                else:
                    if seq != INT_NULL:
                        if bits == 0:
                            bits = np.uint64(1)
                        else:
                            ahead = seq - max_seq
                            bits = (bits << np.uint64(ahead) if ahead < SEQ_WINDOW else np.uint64(0)) | np.uint64(1)
                        max_seq = seq
                    if not flags & STOPPED:
                        t.halves[row * ROW_HALVES + TOUCHED] = now & U32
                        start_ts, end_ts = min(start_ts, ts), max(end_ts, ts)
                        flags = _set_codes(t, row, flags, e, i)
                        user_hash = item(e.user_hash, i)
                        if user_hash != 0 and user_hash != item(t.words, row * ROW_WORDS + USER_HASH):
                            _set_user(t, row, e, i)
                        bitrate = item(e.ints, BITRATE * e.ints_stride + i)
                        if bitrate != INT_NULL:
                            last_bitrate = bitrate
                        if kind == KIND_HEARTBEAT:
                            ends_run = True
                            flags |= HAD_HEARTBEAT
                            if flags & HAS_START and startup == INT_NULL:
                                startup = ts - start_ts
                            if bitrate != INT_NULL:
                                bitrate_sum = _add(bitrate_sum, bitrate)
                                bitrates += 1
                        elif kind == KIND_START:
                            ends_run = True
                            flags |= HAS_START
                        elif kind == KIND_BUFFER:
                            run += 1
                            if run == 1:
                                stall_start = ts
                                if t.open_stall_ms >= 0:
                                    flags |= WATCHED
                                    _lower(t, row, now + t.open_stall_ms)
                            if run == t.loop_threshold and (flags & WATCHED or t.open_stall_ms < 0):
                                _write_alert(t, out, row, i, LOOP, start_ts, ts, seq, run, last_bitrate, alerts, now)
                                alerts += 1
                                flags &= ~WATCHED
                        elif kind == KIND_FATAL:
                            flags |= FATAL_AFTER if flags & HAD_HEARTBEAT else FATAL_BEFORE
                        elif kind == KIND_STOP:
                            ends_run = stops = True
                if ends_run and run > 0:
                    stall_ms = _stall_end(stall_ms, run, stall_start, ts)
                    run = stall_start = np.int64(0)
                    flags &= ~WATCHED
                if stops:
                    flags |= STOPPED
                    if t.has_timers:
                        _lower(t, row, now + t.grace_ms)
            _store(
                t, row, flags, start_ts, end_ts, max_seq, bits, events, buffers, errors, duplicates, late, alerts, startup, stall_ms, run, stall_start,
                last_bitrate, bitrate_sum, bitrates,
            )  # fmt: skip
            i += 1
        first = i
    state[AT], state[REASON] = first, reason
    state[APPLIED] += applied
    state[DUPLICATES] += duplicates_now
    state[LATE] += late_now


# --- whole tables ---------------------------------------------------------------------------------------------------
@kernel
def fill_index(t):
    """Enter every used row into an index of empty slots."""
    for row in range(t.state[ROWS]):
        if t.shorts[row * ROW_SHORTS + FLAGS]:
            _index_add(t.index, row, t.words[row * ROW_WORDS])


@kernel
def gather(t, new):
    """Copy the used rows, their side rows and blobs, densely, into the empty table ``new`` (which has room for them)."""
    state = new.state
    for row in range(t.state[ROWS]):
        flags = np.int64(t.shorts[row * ROW_SHORTS + FLAGS])
        if not flags:
            continue
        to = state[ROWS]
        state[ROWS] += 1
        state[ACTIVE] += 1
        for k in range(ROW_WORDS):
            new.words[to * ROW_WORDS + k] = t.words[row * ROW_WORDS + k]
        if flags & HIGH:
            for d in range(DIMS):
                new.high[to * DIMS + d] = t.high[row * DIMS + d]
        if flags & HAS_SIDE:
            side = np.int64(t.halves[row * ROW_HALVES + SUM_OR_SIDE])
            copy = _take_side(new)
            for k in range(SIDE_WORDS):
                new.side[copy * SIDE_WORDS + k] = t.side[side * SIDE_WORDS + k]
            new.halves[to * ROW_HALVES + SUM_OR_SIDE] = copy
        _copy_blob(t, row, new, to)


@callee
def _copy_blob(t, row, new, to):
    at = np.int64(t.halves[row * ROW_HALVES + BLOB]) * UNIT
    size = blob_bytes(t.arena, at)
    handle = _take_units(new, size)
    for k in range(size):
        new.arena[handle * UNIT + k] = t.arena[at + k]
    new.halves[to * ROW_HALVES + BLOB] = handle


@kernel
def move_blobs(t, new):
    """Copy every blob into the empty arena of ``new``, which shares the rows of ``t``."""
    for row in range(t.state[ROWS]):
        if t.shorts[row * ROW_SHORTS + FLAGS]:
            _copy_blob(t, row, new, row)


@kernel
def wake_all(t):
    """Make the next sweep look at every row."""
    blocks = (t.state[ROWS] + BLOCK_ROWS - 1) >> BLOCK_SHIFT
    for block in range(blocks):
        t.blocks[block] = SUM_MIN
        t.superblocks[block >> SUPER_SHIFT] = SUM_MIN


@piece
def _code_of(t, row, d):
    code = np.int64(t.shorts[row * ROW_SHORTS + FIRST_DIM + d])
    if t.shorts[row * ROW_SHORTS + FLAGS] & HIGH:
        code |= np.int64(t.high[row * DIMS + d]) << 16
    return code - 1


@kernel
def mark_codes(t, d, is_live):
    """Set ``is_live[code]`` (uint8) of every code of dimension ``d`` in use; returns the highest + 1. Size 0: only that."""
    codes = np.int64(0)
    for row in range(t.state[ROWS]):
        if t.shorts[row * ROW_SHORTS + FLAGS]:
            code = _code_of(t, row, d)
            codes = max(codes, code + 1)
            if 0 <= code < is_live.size:
                is_live[code] = 1
    return codes


@kernel
def change_codes(t, d, mapping):
    """Replace each code of dimension ``d`` by ``mapping[code]`` (int32)."""
    for row in range(t.state[ROWS]):
        flags = np.int64(t.shorts[row * ROW_SHORTS + FLAGS])
        if flags:
            code = _code_of(t, row, d)
            if code >= 0:
                code = np.int64(mapping[code]) + 1
                t.shorts[row * ROW_SHORTS + FIRST_DIM + d] = code & U16
                if code > U16 or flags & HIGH:
                    _set_high(t, row, flags, d, code >> 16)


def warm_up():
    """Compile, or load, everything here for the one set of types it is called with."""
    words, units, state = np.zeros(64 * ROW_WORDS, np.int64), np.zeros(64, np.uint32), np.zeros(STATE_WORDS, np.int64)
    i64, i32, u8 = np.zeros(64 * 16, np.int64), np.zeros(64 * 16, np.int32), np.zeros(64, np.uint8)
    table = Table(
        words, words.view(np.uint32), words.view(np.uint16), np.zeros(0, np.uint16), i64, units.view(np.uint8), units, np.full(64, EMPTY, np.uint32),
        i64, i64, i64, state, i64, 1, 1, 1, 1, 1,
    )  # fmt: skip
    out = Out(i64, i32, u8, i64, i64, i32, u8, i64)
    events = Events(0, np.zeros(0, np.int8), i64, i64, 1, i32, 1, i64, i64, i64, i64, i32, u8, i32, u8, i32, u8, u8, u8, u8)
    apply_events(table, out, events)
    sweep(table, out, 1)
    for call in (fill_index, wake_all):
        call(table)
    close_rows(table, out)
    gather(table, table)
    move_blobs(table, table)
    mark_codes(table, 0, u8)
    change_codes(table, 0, i32)
