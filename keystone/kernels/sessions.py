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

import numpy as np

from keystone.events import (
    INT_NULL,
    KIND_BUFFER,
    KIND_ERROR,
    KIND_FATAL,
    KIND_HEARTBEAT,
    KIND_START,
    KIND_STOP,
)
from keystone.kernels.arena import (
    NONE,
    UNIT,
    blob_bytes,
    rounded,
)
from keystone.kernels.cohorts import (
    WINDOW_END,
    combination_of,
    count_alert,
    count_event,
    count_timeout,
    needs_room,
    off,
    warm_up_with,
)
from keystone.kernels.compiler import (
    callee,
    kernel,
    piece,
)
from keystone.kernels.session_rows import (
    A_APPEND_TS,
    A_BITRATE,
    A_EVENT_ROW,
    A_EVENT_TS,
    A_KIND,
    A_ORDINAL,
    A_RUN,
    A_SEQ,
    A_START_TS,
    ACTIVE,
    ALERT_WORDS,
    ALERTS,
    APPLIED,
    AT,
    BITRATE,
    BITRATES,
    BLOB,
    BLOCK_ROWS,
    BLOCK_SHIFT,
    BY_END,
    BY_STOP,
    BY_TIMEOUT,
    C_ALERTS,
    C_BITRATE_SUM,
    C_BITRATES,
    C_BUFFERS,
    C_DUPLICATES,
    C_END_TS,
    C_ERRORS,
    C_EVENTS,
    C_LATE,
    C_OUTCOME,
    C_REASON,
    C_STALL_MS,
    C_START_TS,
    C_STARTUP,
    CHUNK,
    CHUNK_OF_LONG,
    CLOSED,
    CLOSED_WORDS,
    DIMS,
    DONE,
    DUPLICATES,
    EMPTY,
    END_DELTA,
    EVENTS,
    FATAL_AFTER,
    FATAL_BEFORE,
    FIRST_DIM,
    FLAGS,
    HAD_HEARTBEAT,
    HAS_SIDE,
    HAS_START,
    HEADER_BYTES,
    HIGH,
    KEY_HI,
    L_END_TS,
    L_OUTCOME,
    L_RUN,
    L_STALL_MS,
    L_START_TS,
    L_STARTUP,
    LAST_BITRATE,
    LATE,
    LOG_TIME,
    LONG_BYTES,
    LONGEST_DEVICE,
    LONGEST_SESSION,
    LONGEST_USER,
    LOOP,
    MAX_SEQ,
    NEVER,
    OPEN_STALL,
    REASON,
    ROOM_ARENA,
    ROOM_COHORTS,
    ROOM_HIGH,
    ROOM_INDEX,
    ROOM_OUT,
    ROOM_ROWS,
    ROOM_SIDES,
    ROW_FREE,
    ROW_HALVES,
    ROW_SHORTS,
    ROW_WORDS,
    ROWS,
    S_ALERTS,
    S_LAST_BITRATE,
    S_MAX_SEQ,
    S_RUN,
    S_SEQ_BITS,
    S_STALL_START,
    SEQ,
    SEQ_JUMP_MAX,
    SEQ_WINDOW,
    SHORT_NONE,
    SIDE_WORDS,
    SIDES_USED,
    START_TS,
    STARTUP,
    STATE_WORDS,
    STOPPED,
    SUM_MIN,
    SUM_OR_SIDE,
    SUPER_SHIFT,
    SWEEP,
    SWEEP_GAP_MS,
    SWEPT_AT,
    TOUCHED,
    U16,
    U32,
    UNITS,
    USED,
    USER_HASH,
    WATCHED,
    WINDOW_OVER,
    Events,
    Out,
    Table,
    add_saturating,
    find_row,
    free_blob,
    free_side,
    index_add,
    index_remove,
    load_row,
    new_blob,
    row_bits,
    set_user,
    stall_end,
    store_row,
    tag_of,
    take_side,
    take_units,
    write_codes,
    write_names,
)
from keystone.kernels.wide import (
    item,
    prefetch,
)


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
    new_blob(t, row, e, i)
    if t.cohorts.is_on:
        t.cohorts.of_row[row] = combination_of(t.cohorts, e.codes, i, e.codes_stride)
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
    index_add(t.index, row, e.key_lo[i])
    _reset(t, row, e, i, now)
    return row


@callee
def _free_row(t, row):
    index_remove(t, row)
    free_blob(t, row)
    t.shorts[row * ROW_SHORTS + FLAGS] = 0
    t.words[row * ROW_WORDS] = t.state[ROW_FREE]
    t.state[ROW_FREE] = row
    t.state[ACTIVE] -= 1


@piece
def _outcome(flags):
    """Its place in OUTCOMES."""
    if flags & FATAL_AFTER:
        return 0
    if flags & FATAL_BEFORE:
        return 1
    return 2 if flags & HAD_HEARTBEAT else 3


@callee
def _write_closed(t, out, row, reason):
    """The session record of a row; frees its side row. The row itself stays."""
    flags = np.int64(t.shorts[row * ROW_SHORTS + FLAGS])
    (end_ts, _, _, events, buffers, errors, duplicates, late, alerts, startup, stall_ms, run, stall_start, _, bitrate_sum, bitrates) = load_row(t, row, flags)
    place = t.state[CLOSED]
    t.state[CLOSED] += 1
    room, closed = out.closed.size // CLOSED_WORDS, out.closed
    closed[C_START_TS * room + place], closed[C_END_TS * room + place], closed[C_STARTUP * room + place] = t.words[row * ROW_WORDS + START_TS], end_ts, startup
    closed[C_STALL_MS * room + place] = stall_end(stall_ms, run, stall_start, end_ts)
    closed[C_EVENTS * room + place], closed[C_BUFFERS * room + place], closed[C_ERRORS * room + place] = events, buffers, errors
    closed[C_DUPLICATES * room + place], closed[C_LATE * room + place], closed[C_ALERTS * room + place] = duplicates, late, alerts
    closed[C_BITRATE_SUM * room + place], closed[C_BITRATES * room + place], closed[C_REASON * room + place] = bitrate_sum, bitrates, reason
    closed[C_OUTCOME * room + place] = _outcome(flags)
    write_codes(t, row, out.closed_codes, place, room)
    write_names(t, row, out.closed_text, out.closed_ends, place)
    if flags & HAS_SIDE:
        free_side(t, np.int64(t.halves[row * ROW_HALVES + SUM_OR_SIDE]))
        t.shorts[row * ROW_SHORTS + FLAGS] = flags & ~HAS_SIDE


@callee
def _write_alert(t, out, row, event_row, kind, start_ts, event_ts, seq, run, bitrate, ordinal, append_ts):
    place = t.state[ALERTS]
    t.state[ALERTS] += 1
    a, alerts = place * ALERT_WORDS, out.alerts
    alerts[a + A_EVENT_ROW], alerts[a + A_KIND], alerts[a + A_START_TS], alerts[a + A_EVENT_TS] = event_row, kind, start_ts, event_ts
    alerts[a + A_SEQ], alerts[a + A_RUN], alerts[a + A_BITRATE], alerts[a + A_ORDINAL], alerts[a + A_APPEND_TS] = seq, run, bitrate, ordinal, append_ts
    write_codes(t, row, out.alert_codes, place * DIMS, 1)
    write_names(t, row, out.alert_text, out.alert_ends, place)


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
        if t.cohorts.is_on:
            count_alert(t.cohorts, row)
    if touched + t.timeout_ms > now:
        return touched + t.timeout_ms
    if t.cohorts.is_on:
        count_timeout(t, row)
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
    """Write a record of whatever is kept, from row AT on: stopped sessions by their Stop, others by the end of the file.

    Rows are not freed one by one: the caller clears the table when this is DONE.
    """
    state = t.state
    state[REASON] = DONE
    for row in range(state[AT], state[ROWS]):
        flags = np.int64(t.shorts[row * ROW_SHORTS + FLAGS])
        if flags:
            if state[CLOSED] >= _closed_max(t, out):
                state[AT], state[REASON] = row, ROOM_OUT
                return
            _write_closed(t, out, row, BY_STOP if flags & STOPPED else BY_END)
            t.shorts[row * ROW_SHORTS + FLAGS] = 0


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
    bits = row_bits(t.index)
    row_mask = np.uint32(mask)
    for i in range(first, end):
        key_lo = item(e.key_lo, i)
        tag = tag_of(key_lo, bits)
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
            if t.cohorts.is_on:
                prefetch(t.cohorts.of_row, row)
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
    if t.cohorts.is_on and needs_room(t.cohorts, events):
        return ROOM_COHORTS
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
    """Apply events from AT on. REASON says why it returned; AT is where to go on.

    WINDOW_OVER: the next event is of a later window than the cohorts' under way; what is due before it is not done yet.
    """
    state = t.state
    window_end = t.cohorts.state[WINDOW_END]
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
            if now >= window_end:
                reason = WINDOW_OVER
                break
            state[LOG_TIME] = now
            key_lo, key_hi = item(e.key_lo, i), item(e.key_hi, i)
            row = item(t.candidates, i - first)
            if row >= 0 and (item(t.words, row * ROW_WORDS) != key_lo or item(t.words, row * ROW_WORDS + KEY_HI) != key_hi
                             or item(t.shorts, row * ROW_SHORTS + FLAGS) == 0):  # fmt: skip
                row = np.int64(-1)
            if row < 0:
                row = find_row(t, key_lo, key_hi)
            if row >= 0 and t.has_timers:
                touched = _touched(t, row, now)
                if touched + _wait(t, np.int64(item(t.shorts, row * ROW_SHORTS + FLAGS))) <= now and _fire(t, out, row, touched, now) < 0:
                    row = np.int64(-1)
            if row < 0:
                row = _open(t, e, i, now)
            flags = np.int64(item(t.shorts, row * ROW_SHORTS + FLAGS))
            (end_ts, max_seq, bits, events, buffers, errors, duplicates, late, alerts, startup, stall_ms, run, stall_start, last_bitrate, bitrate_sum,
             bitrates) = load_row(t, row, flags)  # fmt: skip
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
                    free_blob(t, row)
                    flags = _reset(t, row, e, i, now)
                    start_ts = end_ts = ts
                    events = buffers = errors = duplicates = late = alerts = stall_ms = run = stall_start = bitrate_sum = bitrates = np.int64(0)
                    startup = last_bitrate = np.int64(INT_NULL)
                was, run_was, mark, startup_was, alerts_was = flags, run, stall_start, startup, alerts
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
                            set_user(t, row, e, i)
                        bitrate = item(e.ints, BITRATE * e.ints_stride + i)
                        if bitrate != INT_NULL:
                            last_bitrate = bitrate
                        if kind == KIND_HEARTBEAT:
                            ends_run = True
                            flags |= HAD_HEARTBEAT
                            if flags & HAS_START and startup == INT_NULL:
                                startup = ts - start_ts
                            if bitrate != INT_NULL:
                                bitrate_sum = add_saturating(bitrate_sum, bitrate)
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
                    stall_ms = stall_end(stall_ms, run, stall_start, ts)
                    run = np.int64(0)
                    flags &= ~WATCHED
                if run == 0 and not is_late:
                    stall_start = ts  # no run is open: the previous in-order event
                if stops:
                    flags |= STOPPED
                    if t.has_timers:
                        _lower(t, row, now + t.grace_ms)
                if t.cohorts.is_on:
                    bitrate = item(e.ints, BITRATE * e.ints_stride + i)
                    count_event(
                        t.cohorts, row, kind, ts, bitrate, was, flags, is_late, stops, run_was, run, mark, startup_was, startup, alerts - alerts_was,
                    )  # fmt: skip
            store_row(
                t, row, flags, start_ts, end_ts, max_seq, bits, events, buffers, errors, duplicates, late, alerts, startup, stall_ms, run, stall_start,
                last_bitrate, bitrate_sum, bitrates,
            )  # fmt: skip
            i += 1
        first = i
    state[AT], state[REASON] = first, reason
    state[APPLIED] += applied
    state[DUPLICATES] += duplicates_now
    state[LATE] += late_now


@kernel
def look(t, key_lo, key_hi, seen):
    """Copy some numbers (L_...) of the session with this key into ``seen``; False where there is none. Changes nothing."""
    row = find_row(t, key_lo, key_hi)
    if row < 0:
        return False
    flags = np.int64(t.shorts[row * ROW_SHORTS + FLAGS])
    (end_ts, _, _, _, _, _, _, _, _, startup, stall_ms, run, stall_start, _, _, _) = load_row(t, row, flags)
    seen[L_START_TS], seen[L_END_TS], seen[L_STARTUP] = t.words[row * ROW_WORDS + START_TS], end_ts, startup
    seen[L_STALL_MS], seen[L_RUN], seen[L_OUTCOME] = stall_end(stall_ms, run, stall_start, end_ts), run, _outcome(flags)
    return True


# --- whole tables ---------------------------------------------------------------------------------------------------
@kernel
def fill_index(t):
    """Enter every used row into an index of empty slots."""
    for row in range(t.state[ROWS]):
        if t.shorts[row * ROW_SHORTS + FLAGS]:
            index_add(t.index, row, t.words[row * ROW_WORDS])


@kernel
def gather(t, new):
    """Copy the used rows, their side rows and blobs, densely, into the empty table ``new`` (which has room for them)."""
    state = new.state
    for row in range(t.state[ROWS]):
        flags = np.int64(t.shorts[row * ROW_SHORTS + FLAGS])
        if not flags:
            continue
        to = state[ROWS]
        if t.cohorts.of_row.size:
            new.cohorts.of_row[to] = t.cohorts.of_row[row]
        state[ROWS] += 1
        state[ACTIVE] += 1
        for k in range(ROW_WORDS):
            new.words[to * ROW_WORDS + k] = t.words[row * ROW_WORDS + k]
        if flags & HIGH:
            for d in range(DIMS):
                new.high[to * DIMS + d] = t.high[row * DIMS + d]
        if flags & HAS_SIDE:
            side = np.int64(t.halves[row * ROW_HALVES + SUM_OR_SIDE])
            copy = take_side(new)
            for k in range(SIDE_WORDS):
                new.side[copy * SIDE_WORDS + k] = t.side[side * SIDE_WORDS + k]
            new.halves[to * ROW_HALVES + SUM_OR_SIDE] = copy
        _copy_blob(t, row, new, to)


@callee
def _copy_blob(t, row, new, to):
    at = np.int64(t.halves[row * ROW_HALVES + BLOB]) * UNIT
    size = blob_bytes(t.arena, at)
    handle = take_units(new, size)
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
def mark_all_codes(t, firsts, is_live, highest):
    """The same for all dimensions in one pass over the rows: those of dimension ``d`` are ``is_live[firsts[d]:firsts[d + 1]]`` (uint8).

    ``highest`` int64 (DIMS): the highest code of each, moved along.
    """
    for row in range(t.state[ROWS]):
        if t.shorts[row * ROW_SHORTS + FLAGS]:
            for d in range(DIMS):
                code = _code_of(t, row, d)
                highest[d] = max(highest[d], code)
                if 0 <= code < firsts[d + 1] - firsts[d]:
                    is_live[firsts[d] + code] = 1


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
        i64, i64, i64, state, i64, 1, 1, 1, 1, 1, off(),
    )  # fmt: skip
    out = Out(i64, i32, u8, i64, i64, i32, u8, i64)
    events = Events(0, np.zeros(0, np.int8), i64, i64, 1, i32, 1, i64, i64, i64, i64, i32, u8, i32, u8, i32, u8, u8, u8, u8)
    apply_events(table, out, events)
    sweep(table, out, 1)
    for call in (fill_index, wake_all):
        call(table)
    close_rows(table, out)
    look(table, np.int64(1), np.int64(1), i64)
    gather(table, table)
    move_blobs(table, table)
    mark_codes(table, 0, u8)
    mark_all_codes(table, np.zeros(DIMS + 1, np.int64), u8, np.zeros(DIMS, np.int64))
    change_codes(table, 0, i32)
    warm_up_with(table)
