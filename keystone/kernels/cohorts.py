"""What is counted of each event for the cohorts of its session (the specification: detection, cohorts).

**Combination.** A session's row remembers one number: which values of the configured dimensions the event that opened it had. So an
event adds to one row of sums, not to one for each of its cohorts; those are added up when a window is over (``expand``).

**Values.** Each dimension numbers the values that it admits, at most ``values_max``; number 0 is an absent one, 1 any other.
With log time values are admitted as sessions open, and forgotten in between (``cohort_state``). In a plain file they are the first
ones that the dictionaries came to know: the same for every number of partitions and processes, each of which decodes all lines.

**Facts.** A row of sums for each window and combination that anything happened in. With log time there is one window at a time, and
``places`` has for each combination its fact; in a plain file windows come in any order, and ``places`` is a hash table.
"""

# mypy: ignore-errors

from typing import NamedTuple

import numpy as np

from keystone.events import INT_NULL, KIND_BUFFER, KIND_HEARTBEAT, KIND_START
from keystone.kernels.bins import FREE, add_count
from keystone.kernels.compiler import callee, kernel, piece
from keystone.kernels.session_rows import (
    DIMS,
    EMPTY,
    FATAL_AFTER,
    FATAL_BEFORE,
    FLAGS,
    HAD_HEARTBEAT,
    HAS_SIDE,
    HAS_START,
    ROW_HALVES,
    ROW_SHORTS,
    ROWS,
    S_END,
    S_RUN,
    S_STALL_START,
    SIDE_WORDS,
    STOPPED,
    SUM_OR_SIDE,
    add_saturating,
    load_row,
    write_codes,
)
from keystone.kernels.wide import item, trailing_zeros

U = np.uint64
WINDOW_MS = 1_000
UNKNOWN, OTHER, FIRST_VALUE = 0, 1, 2  # numbers of values: absent, not admitted, and the admitted ones from there on

# --- a fact: 16 sums, two cache lines; what a heartbeat adds to lies in the first ------------------------------------
FACT_WORDS = 16
(F_EVENTS, F_HEARTBEATS, F_BITRATES, F_BITRATE_SUM, F_PLAYED_MS, F_ATTEMPTS, F_PLAYS, F_STALLS, F_STALL_MS, F_STARTUPS, F_STARTUP_SUM, F_ENDED, F_EBVS,
 F_VSF, F_VPF, F_ALERTS) = range(FACT_WORDS)  # fmt: skip
OUT_WORDS = FACT_WORDS + 1  # of a cohort's row: the sums, and the concurrent plays
START_WORDS = 3  # of a startup: window, combination, bin

# --- state -----------------------------------------------------------------------------------------------------------
# COMBINATIONS known; FACTS and STARTS of windows that are not over; WINDOW and its end (log time); FROM_TS and UNTIL_TS, between
# which a plain file's ts are held; OVERFLOWS: sessions that have `other` for a value they gave.
(COMBINATIONS, FACTS, STARTS, WINDOW, WINDOW_END, FROM_TS, UNTIL_TS, OVERFLOWS) = range(8)
COHORT_STATE_WORDS = 8

# --- sketch of startup times: log-linear bins -------------------------------------------------------------------------
BIN_BITS = 6  # 64 bins an octave: the middle of one is within 1/128 of every value in it; values below 128 have their own
BIN_SHIFT = 12  # of keys that have a bin below a cohort: 2^63 is of bin 3,711
WINDOW_SHIFT = BIN_SHIFT + 31  # and a window above it


class Cohorts(NamedTuple):
    """Memory of one table's cohorts."""

    of_row: np.ndarray  # uint32 (rows): combination of each session
    state: np.ndarray  # int64
    dims: np.ndarray  # int64: places of the dimensions among the coded ones
    ids: np.ndarray  # int64 (dimensions): scratch
    codes: np.ndarray  # int32 (DIMS): scratch
    value_slots: np.ndarray  # int64 (dimensions, a power of two), flat: number << 32 | code + 1, 0 = free; none in a plain file
    value_codes: np.ndarray  # int32 (dimensions, FIRST_VALUE + values_max), flat
    value_counts: np.ndarray  # int64 (dimensions): admitted
    keys: np.ndarray  # uint16 (combinations, dimensions), flat; combination 0 is OTHER in all
    key_slots: np.ndarray  # uint32, a power of two
    plays: np.ndarray  # int64 (combinations): sessions that play now
    places: np.ndarray  # uint32: by combination (log time), or hashed (plain file)
    facts: np.ndarray  # int64
    fact_combinations: np.ndarray  # uint32
    fact_windows: np.ndarray  # int64
    starts: np.ndarray  # int64
    values_max: int
    combinations_max: int
    lean_from: int  # combinations, from which on new ones differ in ``lean_dims`` dimensions only
    lean_dims: int
    timeout_ms: int
    has_log_time: int
    is_on: int


class Groups(NamedTuple):
    """How combinations belong to cohorts, and where these go. Cohort 0 is all sessions."""

    bases: np.ndarray  # int64 (dimensions): cohort of value number 0
    left: np.ndarray  # int64 (pairs)
    right: np.ndarray  # int64 (pairs)
    pair_bases: np.ndarray  # int64 (pairs)
    slots: np.ndarray  # int32 (cohorts): row of the window under way, -1
    keys: np.ndarray  # int64 (rows, 2), flat: window, cohort
    sums: np.ndarray  # int64 (rows, OUT_WORDS), flat
    state: np.ndarray  # int64 (1): rows
    pair_values: int  # numbers of values that a pair tells apart


# --- values and combinations ------------------------------------------------------------------------------------------
@piece
def _mixed(x):
    x = (x ^ (x >> U(30))) * U(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U(27))) * U(0x94D049BB133111EB)
    return x ^ (x >> U(31))


@callee
def _value_of(c, k, code):
    """The number of a value of dimension ``k``; admits it where there is room."""
    if code < 0:
        return np.int64(UNKNOWN)
    if not c.has_log_time:
        return FIRST_VALUE + code if code < c.values_max else np.int64(OTHER)
    size = c.value_slots.size // c.dims.size
    at = np.int64(_mixed(U(code)) & U(size - 1))
    while c.value_slots[k * size + at] != 0:
        if (c.value_slots[k * size + at] & 0xFFFFFFFF) == code + 1:
            return c.value_slots[k * size + at] >> 32
        at = (at + 1) & (size - 1)
    if c.value_counts[k] >= c.values_max:
        return np.int64(OTHER)
    value = FIRST_VALUE + c.value_counts[k]
    c.value_counts[k] += 1
    c.value_slots[k * size + at] = (value << 32) | (code + 1)
    c.value_codes[k * (FIRST_VALUE + c.values_max) + value] = code
    return value


@callee
def _key_place(c):
    """Where in ``key_slots`` the combination of ``ids`` is, or would be."""
    hashed = U(0)
    for k in range(c.dims.size):
        hashed = _mixed((hashed << U(16)) + (hashed >> U(48)) + U(c.ids[k]) + U(1))
    mask = c.key_slots.size - 1
    at = np.int64(hashed & U(mask))
    while c.key_slots[at] != EMPTY:
        first = np.int64(c.key_slots[at]) * c.dims.size
        same = True
        for k in range(c.dims.size):
            same = same and np.int64(c.keys[first + k]) == c.ids[k]
        if same:
            return at
        at = (at + 1) & mask
    return at


@callee
def _combination(c):
    """The number of the combination of ``ids``; makes it where there is room."""
    at = _key_place(c)
    if c.key_slots[at] != EMPTY:
        return np.int64(c.key_slots[at])
    if c.state[COMBINATIONS] >= c.lean_from:
        for k in range(c.lean_dims, c.dims.size):
            c.ids[k] = OTHER
        at = _key_place(c)
        if c.key_slots[at] != EMPTY:
            return np.int64(c.key_slots[at])
        if c.state[COMBINATIONS] >= c.combinations_max:
            return np.int64(0)
    made = c.state[COMBINATIONS]
    c.state[COMBINATIONS] += 1
    c.key_slots[at] = made
    for k in range(c.dims.size):
        c.keys[made * c.dims.size + k] = c.ids[k]
    c.plays[made] = 0
    if c.has_log_time:
        c.places[made] = EMPTY
    return made


@callee
def combination_of(c, codes, first, step):
    """The combination of dimension codes ``codes[first + d * step]``; there is room for a new one."""
    for k in range(c.dims.size):
        c.ids[k] = _value_of(c, k, np.int64(item(codes, first + c.dims[k] * step)))
    number = _combination(c)
    is_other = False
    for k in range(c.dims.size):
        is_other = is_other or c.keys[number * c.dims.size + k] == OTHER
    c.state[OVERFLOWS] += is_other
    return number


@piece
def needs_combinations(c, events):
    """Whether memory has to grow before ``events`` sessions open."""
    room = c.plays.size
    return c.state[COMBINATIONS] + events > room and room < c.combinations_max


@piece
def needs_room(c, events):
    """The same for everything that ``events`` events may add."""
    if needs_combinations(c, events) or (c.state[STARTS] + events) * START_WORDS > c.starts.size:
        return True
    return not c.has_log_time and c.state[FACTS] + events > c.fact_windows.size


@kernel
def fill_key_slots(c):
    """Enter every combination into empty ``key_slots``."""
    for number in range(c.state[COMBINATIONS]):
        for k in range(c.dims.size):
            c.ids[k] = c.keys[number * c.dims.size + k]
        c.key_slots[_key_place(c)] = number


@kernel
def fill_value_slots(c):
    """Enter every admitted value into empty ``value_slots``."""
    size = c.value_slots.size // c.dims.size
    for k in range(c.dims.size):
        for value in range(FIRST_VALUE, FIRST_VALUE + c.value_counts[k]):
            code = np.int64(c.value_codes[k * (FIRST_VALUE + c.values_max) + value])
            at = np.int64(_mixed(U(code)) & U(size - 1))
            while c.value_slots[k * size + at] != 0:
                at = (at + 1) & (size - 1)
            c.value_slots[k * size + at] = (np.int64(value) << 32) | (code + 1)


# --- counting ---------------------------------------------------------------------------------------------------------
@callee
def _new_fact(c, place, combination, window):
    fact = c.state[FACTS]
    c.state[FACTS] += 1
    c.places[place] = fact
    c.fact_combinations[fact] = combination
    c.fact_windows[fact] = window
    for k in range(FACT_WORDS):
        c.facts[fact * FACT_WORDS + k] = 0
    return fact * FACT_WORDS


@callee
def _fact_of_file(c, combination, ts):
    window = min(max(ts, c.state[FROM_TS]), c.state[UNTIL_TS]) // WINDOW_MS
    mask = c.places.size - 1
    at = np.int64(_mixed(U(window) * U(0x9E3779B97F4A7C15) + U(combination)) & U(mask))
    while c.places[at] != EMPTY:
        fact = np.int64(c.places[at])
        if c.fact_windows[fact] == window and np.int64(c.fact_combinations[fact]) == combination:
            return fact * FACT_WORDS
        at = (at + 1) & mask
    return _new_fact(c, at, combination, window)


@piece
def _fact_of(c, combination, ts):
    """Where the sums of a combination begin: of the window under way, or (plain file) of ``ts``."""
    if c.has_log_time:
        place = item(c.places, combination)
        if place != EMPTY:
            return np.int64(place) * FACT_WORDS
        return _new_fact(c, combination, combination, c.state[WINDOW])
    return _fact_of_file(c, combination, ts)


@piece
def bin_of(value):
    """The bin of a value >= 0."""
    if value < 1 << (BIN_BITS + 1):
        return value
    octave = _bit_length(U(value)) - (BIN_BITS + 1)
    return (octave << BIN_BITS) + (value >> octave)


@piece
def _bit_length(x):
    """Of 1 to 2^63 - 1."""
    for shift in (U(1), U(2), U(4), U(8), U(16), U(32)):
        x |= x >> shift
    return trailing_zeros(~x)


@callee
def _count_start(c, fact, startup_ms):
    c.facts[fact + F_STARTUPS] += 1
    c.facts[fact + F_STARTUP_SUM] = add_saturating(c.facts[fact + F_STARTUP_SUM], startup_ms)
    place, at = fact // FACT_WORDS, c.state[STARTS] * START_WORDS
    c.state[STARTS] += 1
    c.starts[at], c.starts[at + 1], c.starts[at + 2] = c.fact_windows[place], c.fact_combinations[place], bin_of(startup_ms)


@callee
def _count_end(c, fact, combination, flags):
    """A Stop or a timeout."""
    f = c.facts
    f[fact + F_ENDED] += 1
    if flags & FATAL_AFTER:
        f[fact + F_VPF] += 1
    elif flags & FATAL_BEFORE:
        f[fact + F_VSF] += 1
    elif not flags & HAD_HEARTBEAT:
        f[fact + F_EBVS] += 1
    if flags & HAD_HEARTBEAT:
        c.plays[combination] -= 1


@piece
def count_event(c, row, kind, ts, bitrate, was, flags, is_late, stops, run_was, run, mark, startup_was, startup, alerts):
    """Count an applied event. ``was`` and ``..._was``: before it; ``mark``: as ``stall_start`` was before it (``load_row``).

    A late event tells of itself, a late Start of its attempt, a late Stop of the end: what else in-order events add, the played time
    among it, it does not (it "changes nothing else").
    """
    combination = np.int64(item(c.of_row, row))
    fact = _fact_of(c, combination, ts)
    f = c.facts
    f[fact + F_EVENTS] += 1
    if is_late:
        f[fact + F_ATTEMPTS] += kind == KIND_START and not was & HAS_START
    elif not was & STOPPED:
        if was & HAD_HEARTBEAT and run_was == 0:
            f[fact + F_PLAYED_MS] += min(max(np.int64(0), ts - mark), c.timeout_ms)
        if kind == KIND_HEARTBEAT:
            f[fact + F_HEARTBEATS] += 1
            if bitrate != INT_NULL:
                f[fact + F_BITRATES] += 1
                f[fact + F_BITRATE_SUM] = add_saturating(f[fact + F_BITRATE_SUM], bitrate)
            if not was & HAD_HEARTBEAT:
                f[fact + F_PLAYS] += 1
                c.plays[combination] += 1
            if startup != startup_was:
                _count_start(c, fact, startup)
        elif kind == KIND_START:
            f[fact + F_ATTEMPTS] += 1
        elif kind == KIND_BUFFER:
            f[fact + F_STALLS] += run_was == 0
            f[fact + F_ALERTS] += alerts
    if run_was > 0 and run == 0:
        f[fact + F_STALL_MS] = add_saturating(f[fact + F_STALL_MS], max(np.int64(0), ts - mark))
    if stops:
        _count_end(c, fact, combination, flags)


@callee
def count_alert(c, row):
    """An open stall, at its time."""
    c.facts[_fact_of(c, np.int64(c.of_row[row]), np.int64(0)) + F_ALERTS] += 1


@callee
def count_timeout(t, row):
    """A session ends without a Stop, at its time."""
    c = t.cohorts
    flags = np.int64(t.shorts[row * ROW_SHORTS + FLAGS])
    (end_ts, _, _, _, _, _, _, _, _, _, _, run, mark, _, _, _) = load_row(t, row, flags)
    combination = np.int64(c.of_row[row])
    fact = _fact_of(c, combination, np.int64(0))
    if run > 0:
        c.facts[fact + F_STALL_MS] = add_saturating(c.facts[fact + F_STALL_MS], max(np.int64(0), end_ts - mark))
    _count_end(c, fact, combination, flags)


# --- whole tables -----------------------------------------------------------------------------------------------------
@kernel
def count_plays(t):
    """``plays`` anew from the sessions."""
    c = t.cohorts
    for number in range(c.state[COMBINATIONS]):
        c.plays[number] = 0
    for row in range(t.state[ROWS]):
        flags = np.int64(t.shorts[row * ROW_SHORTS + FLAGS])
        if flags & HAD_HEARTBEAT and not flags & STOPPED:
            c.plays[np.int64(c.of_row[row])] += 1


@kernel
def adopt(t, first):
    """Sessions from row ``first`` on that nothing is known of: of the cohorts of their dimensions last seen, the previous event at their end.

    Returns the row to go on with once there is room for more combinations; the number of rows when done.
    """
    c = t.cohorts
    for row in range(first, t.state[ROWS]):
        flags = np.int64(t.shorts[row * ROW_SHORTS + FLAGS])
        if not flags:
            continue
        if needs_combinations(c, 1):
            return row
        write_codes(t, row, c.codes, 0, 1)
        c.of_row[row] = combination_of(c, c.codes, np.int64(0), np.int64(1))
        if flags & HAS_SIDE:
            w = np.int64(t.halves[row * ROW_HALVES + SUM_OR_SIDE]) * SIDE_WORDS
            if t.side[w + S_RUN] == 0:
                t.side[w + S_STALL_START] = t.side[w + S_END]
    return t.state[ROWS]


@piece
def _cohort(c, g, combination, n):
    """Cohort ``n`` of a combination: all, the values, the pairs."""
    first = combination * c.dims.size
    if n == 0:
        return np.int64(0)
    if n <= c.dims.size:
        return g.bases[n - 1] + np.int64(c.keys[first + n - 1])
    pair = n - 1 - c.dims.size
    left, right = np.int64(c.keys[first + g.left[pair]]), np.int64(c.keys[first + g.right[pair]])
    left, right = left if left < g.pair_values else OTHER, right if right < g.pair_values else OTHER
    return g.pair_bases[pair] + left * g.pair_values + right


@piece
def _row_of(g, window, cohort, used):
    """The cohort's row of the window under way; ``used`` where it is new."""
    row = np.int64(g.slots[cohort])
    if row >= 0:
        return row
    g.slots[cohort] = used
    g.keys[2 * used], g.keys[2 * used + 1] = window, cohort
    for k in range(OUT_WORDS):
        g.sums[used * OUT_WORDS + k] = 0
    return used


@piece
def _add_fact(facts, fact, sums, row):
    """Only what may have 2^53 in an event can reach the limit of int64; the rest is added eight bytes beside eight bytes."""
    bitrate = add_saturating(sums[row + F_BITRATE_SUM], facts[fact + F_BITRATE_SUM])
    stall = add_saturating(sums[row + F_STALL_MS], facts[fact + F_STALL_MS])
    startup = add_saturating(sums[row + F_STARTUP_SUM], facts[fact + F_STARTUP_SUM])
    for k in range(FACT_WORDS):
        sums[row + k] += facts[fact + k]
    sums[row + F_BITRATE_SUM], sums[row + F_STALL_MS], sums[row + F_STARTUP_SUM] = bitrate, stall, startup


@kernel
def expand(c, g, order, first, end):
    """Add facts ``order[first:end]`` (those of a window beside one another) up to rows of cohorts, behind the rows that are there.

    With log time also what plays now, in the window under way. There is room for all.
    """
    used = g.state[0]
    cohorts = 1 + c.dims.size + g.left.size
    i = first
    while i < end or c.has_log_time:
        window = c.fact_windows[order[i]] if i < end else c.state[WINDOW]
        begin = used
        while i < end and c.fact_windows[order[i]] == window:
            fact = order[i]
            for n in range(cohorts):
                row = _row_of(g, window, _cohort(c, g, np.int64(c.fact_combinations[fact]), n), used)
                used = max(used, row + 1)
                _add_fact(c.facts, fact * FACT_WORDS, g.sums, row * OUT_WORDS)
            i += 1
        if c.has_log_time:
            for number in range(c.state[COMBINATIONS]):
                if c.plays[number] > 0:
                    for n in range(cohorts):
                        row = _row_of(g, window, _cohort(c, g, number, n), used)
                        used = max(used, row + 1)
                        g.sums[row * OUT_WORDS + FACT_WORDS] += c.plays[number]
        for row in range(begin, used):
            g.slots[g.keys[2 * row + 1]] = -1
        if i >= end:
            break
    g.state[0] = used


def off():
    """The cohorts of a table that counts none."""
    i64, i32, u32 = np.zeros(1, np.int64), np.zeros(DIMS, np.int32), np.zeros(0, np.uint32)
    state = np.zeros(COHORT_STATE_WORDS, np.int64)
    state[WINDOW_END] = np.iinfo(np.int64).max
    return Cohorts(u32, state, i64, i64, i32, i64, i32, i64, np.zeros(1, np.uint16), u32, i64, u32, i64, u32, i64, i64, 0, 0, 0, 0, 0, 0, 0)


@kernel
def count_starts(c, g, windows, first, keys, counts, used):
    """Count the bins of startups from ``first`` on in each cohort, until the table (``bins.add_count``) is half full; returns where to go on.

    A key is window << WINDOW_SHIFT | cohort << BIN_SHIFT | bin; ``windows`` int64 numbers the window of each startup.
    """
    cohorts = 1 + c.dims.size + g.left.size
    i = first
    while i < c.state[STARTS] and 2 * (used[0] + cohorts) < keys.size:
        combination, bin_number = c.starts[i * START_WORDS + 1], c.starts[i * START_WORDS + 2]
        for n in range(cohorts):
            add_count((windows[i] << WINDOW_SHIFT) | (_cohort(c, g, combination, n) << BIN_SHIFT) | bin_number, np.int64(1), keys, counts, used)
        i += 1
    return i


def warm_up_with(table):
    """Compile, or load, the kernels here (``sessions.warm_up`` has the table)."""
    groups = Groups(
        np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(1, np.int32), np.zeros(0, np.int64),
        np.zeros(0, np.int64), np.zeros(1, np.int64), 1,
    )  # fmt: skip
    fill_key_slots(table.cohorts)
    fill_value_slots(table.cohorts)
    count_plays(table)
    adopt(table, 0)
    expand(table.cohorts, groups, np.zeros(1, np.int64), 0, 0)
    count_starts(table.cohorts, groups, np.zeros(1, np.int64), 0, np.full(4, FREE, np.int64), np.zeros(4, np.int64), np.zeros(1, np.int64))
