"""The memory of a session table: rows, side rows, strings, index (see ``sessions.py`` for why they are so)."""

# mypy: ignore-errors

from typing import NamedTuple

import numpy as np

from keystone.events import CODED_DIMENSIONS, INT_COLUMNS, INT_NULL
from keystone.kernels.arena import NONE, UNIT, blob_bytes, class_of, get_string, put_null, put_string, rounded, skip_string
from keystone.kernels.compiler import callee, piece
from keystone.kernels.wide import item, trailing_zeros

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
DONE, ROOM_ROWS, ROOM_INDEX, ROOM_SIDES, ROOM_ARENA, ROOM_HIGH, ROOM_OUT, SWEEP, WINDOW_OVER, ROOM_COHORTS = range(10)

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

# --- a look at one session ------------------------------------------------------------------------------------------
(L_START_TS, L_END_TS, L_STARTUP, L_STALL_MS, L_RUN, L_OUTCOME) = range(6)
LOOK_WORDS = 6


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
    cohorts: tuple  # kernels.cohorts.Cohorts


class Out(NamedTuple):
    """Where alerts and closed sessions go. Text and ends: device, session, user of row i end at ``ends[3 * i + k]`` of
    the k-th third of ``text``; a null user has the sign bit of its end set (-end - 1)."""

    alerts: np.ndarray  # int64 (ALERT_WORDS * capacity)
    alert_codes: np.ndarray  # int32 (DIMS * capacity)
    alert_text: np.ndarray  # uint8
    alert_ends: np.ndarray  # int64
    closed: np.ndarray  # int64 (CLOSED_WORDS, capacity), flat: a column's values lie together, as Arrow wants them
    closed_codes: np.ndarray  # int32 (DIMS, capacity), flat
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
def load_row(t, row, flags):
    """(end_ts, max_seq, seq_bits, events, buffers, errors, duplicates, late, alerts, startup, stall_ms, run, stall_start,
    last_bitrate, bitrate_sum, bitrates); INT_NULL where there is no startup or bitrate.

    ``stall_start``, while no run is open: the ts of the session's previous in-order event, which cohorts want to know.
    """
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
    end_ts = item(t.words, row * ROW_WORDS + START_TS) + np.int64(item(t.halves, h + END_DELTA))
    return (
        end_ts, _signed(item(t.halves, h + MAX_SEQ)),
        _ones(flags >> SEQ_SHIFT), np.int64(item(t.shorts, s + EVENTS)), zero, zero, zero, zero, zero,
        np.int64(INT_NULL) if startup == SHORT_NONE else startup, zero, zero, end_ts, np.int64(INT_NULL) if bitrate == SHORT_NONE else bitrate,
        np.int64(item(t.halves, h + SUM_OR_SIDE)), np.int64(item(t.shorts, s + BITRATES)),
    )  # fmt: skip


@piece
def store_row(t, row, flags, start_ts, end_ts, max_seq, bits, events, buffers, errors, duplicates, late, alerts, startup, stall_ms, run, stall_start,
           last_bitrate, bitrate_sum, bitrates):  # fmt: skip
    """Write a session's numbers and flags back, in the row where they fit, else in a side row (there is room for one)."""
    h, s = row * ROW_HALVES, row * ROW_SHORTS
    flags = flags & FLAG_MASK
    t.words[row * ROW_WORDS + START_TS] = start_ts
    is_plain = buffers | errors | duplicates | late | alerts | stall_ms | run == 0
    is_plain = is_plain and (bits & (bits + np.uint64(1))) == 0 and -0x80000000 <= max_seq <= 0x7FFFFFFF and end_ts - start_ts <= U32
    is_plain = is_plain and events <= U16 and bitrates <= U16 and 0 <= bitrate_sum <= U32
    if t.cohorts.is_on and flags & (HAD_HEARTBEAT | STOPPED) == HAD_HEARTBEAT:
        is_plain = is_plain and stall_start == end_ts
    is_plain = is_plain and (startup < SHORT_NONE) and (0 <= last_bitrate < SHORT_NONE or last_bitrate == INT_NULL)
    if is_plain:
        if flags & HAS_SIDE:
            free_side(t, np.int64(t.halves[h + SUM_OR_SIDE]))
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
        t.halves[h + SUM_OR_SIDE] = take_side(t)
    w = np.int64(t.halves[h + SUM_OR_SIDE]) * SIDE_WORDS
    side = t.side
    side[w + S_END], side[w + S_MAX_SEQ], side[w + S_SEQ_BITS], side[w + S_EVENTS] = end_ts, max_seq, np.int64(bits), events
    side[w + S_BUFFERS], side[w + S_ERRORS], side[w + S_DUPLICATES], side[w + S_LATE] = buffers, errors, duplicates, late
    side[w + S_ALERTS], side[w + S_STARTUP], side[w + S_STALL_MS], side[w + S_RUN] = alerts, startup, stall_ms, run
    side[w + S_STALL_START], side[w + S_LAST_BITRATE], side[w + S_BITRATE_SUM], side[w + S_BITRATES] = stall_start, last_bitrate, bitrate_sum, bitrates
    t.shorts[s + FLAGS] = flags | HAS_SIDE


@callee
def take_side(t):
    state = t.state
    state[SIDES_USED] += 1
    if state[SIDE_FREE] != NONE:
        side = state[SIDE_FREE]
        state[SIDE_FREE] = t.side[side * SIDE_WORDS]
        return side
    state[SIDES] += 1
    return state[SIDES] - 1


@callee
def free_side(t, side):
    t.side[side * SIDE_WORDS] = t.state[SIDE_FREE]
    t.state[SIDE_FREE] = side
    t.state[SIDES_USED] -= 1


@piece
def add_saturating(total, more):
    """int64 sum that stays at the limit."""
    if more > 0 and total > SUM_MAX - more:
        return np.int64(SUM_MAX)
    if more < 0 and total < SUM_MIN - more:
        return np.int64(SUM_MIN)
    return total + more


@piece
def stall_end(stall_ms, run, stall_start, ts):
    return add_saturating(stall_ms, max(np.int64(0), ts - stall_start)) if run > 0 else stall_ms


# --- strings --------------------------------------------------------------------------------------------------------
@callee
def take_units(t, size):
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
def free_blob(t, row):
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
    handle = take_units(t, size)
    if handle * UNIT != source:
        for i in range(size):
            t.arena[handle * UNIT + i] = t.arena[source + i]
    t.halves[row * ROW_HALVES + BLOB] = handle


@callee
def new_blob(t, row, e, i):
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
def set_user(t, row, e, i):
    """Another user: the first two strings stay as they are spelled."""
    start = t.state[UNITS] * UNIT
    old = np.int64(t.halves[row * ROW_HALVES + BLOB]) * UNIT
    size = skip_string(t.arena, skip_string(t.arena, old)) - old
    for k in range(size):
        t.arena[start + k] = t.arena[old + k]
    at = _put_user(t, e, i, start + size)
    free_blob(t, row)
    _put_blob(t, row, at - start)
    t.words[row * ROW_WORDS + USER_HASH] = e.user_hash[i]


@callee
def write_names(t, row, text, ends, place):
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
def write_codes(t, row, codes, first, step):
    """Write a row's dimension codes to ``codes[first]``, ``codes[first + step]``, ..."""
    flags = t.shorts[row * ROW_SHORTS + FLAGS]
    for d in range(DIMS):
        code = np.int64(t.shorts[row * ROW_SHORTS + FIRST_DIM + d])
        if flags & HIGH:
            code |= np.int64(t.high[row * DIMS + d]) << 16
        codes[first + d * step] = code - 1


# --- index ----------------------------------------------------------------------------------------------------------
@piece
def row_bits(index):
    return trailing_zeros(np.uint64(index.size))


@piece
def tag_of(key_lo, bits):
    """The key's upper bits, where a slot keeps them."""
    return np.uint32((np.uint64(key_lo) >> np.uint64(32 + bits)) << np.uint64(bits))


@piece
def find_row(t, key_lo, key_hi):
    """Row of a key, or -1."""
    mask = t.index.size - 1
    bits = row_bits(t.index)
    tag = tag_of(key_lo, bits)
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
def index_add(index, row, key_lo):
    mask = index.size - 1
    at = key_lo & mask
    while index[at] != EMPTY:
        at = (at + 1) & mask
    index[at] = tag_of(key_lo, row_bits(index)) | np.uint32(row)


@callee
def index_remove(t, row):
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
