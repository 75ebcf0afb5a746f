"""The device model, compiled: one step of the player behind each seat that is due. Every visit sends exactly one event."""

# mypy: ignore-errors
# ruff: noqa: I001 - dozens of names, one a line, would push the kernel off the page

import numpy as np

from keystone.kernels.compiler import callee, kernel, piece
from keystone.kernels.seats import (
    ALERTED, AMBIGUOUS_ABOVE_MS, AMBIGUOUS_BELOW_MS, BEAT, BUFFER, C_AMBIGUOUS, C_BAD_Q16, C_BEAT_MS, C_EVENTS, C_HANG_Q16, C_HANGS, C_OPEN_STALL,
    C_POOL_HEAD, C_POOL_SIZE, C_SEED, C_SERIAL, C_SESSIONS, C_STALLED, C_STALLS, C_THRESHOLD, C_TRUTH, C_WEAK_Q16, DEVICE, DUE, E_BUFFER, E_DEVICE,
    E_EXTRA, E_EXTRA_KIND, E_FULL, E_POSITION, E_PROFILE, E_RUNG, E_SEQ, E_SESSION, E_SHAPE, E_TITLE, E_TS, ENDS, ERROR, EVENT, EXTRA_DROPPED,
    EXTRA_NONE, EXTRA_STARTUP, FATAL, FATE, FATE_BROKEN, FATE_FAIL, FATE_LEAVE, FATE_PLAY, FILL, FIRST_BEAT, GAP_MAX_MS, GAP_MIN_MS, JOIN, LAST_TS,
    LOADING, MODE, PATH, POSITION, PROFILE, RESUME, ROW, SEEK, SEQ, SESSION, SHAPE_BEAT, SHAPE_ERROR, SHAPE_FATAL, SHAPE_SEEK, SHAPE_STALL,
    SHAPE_START, SHAPE_STARTUP, SHAPE_STOP, STALL, STALL_TS, STALLED, START, STOP, TRUTH_LOOP, TRUTH_OPEN, WAIT_FROM, bits, mix, pop, push,
)  # fmt: skip
from keystone.kernels.wide import load_u64, prefetch, store_u64

U = np.uint64

# --- the player -------------------------------------------------------------------------------------------------------
BUFFER_MAX_MS = 30_000
RESUME_MS = 600  # media a player wants before it leaves a stall
STARTUP_MS = 3_000  # media it wants before it starts, and after a seek
STARTUP_PATIENCE_MS = 25_000
OUTAGE_Q16 = 5_300  # of stalls, 8%: the path is dead for a while
RARE_Q20 = 3  # of 2^20 a played ms: something other than a report, each ~350 s
SHORT_MEAN_MS, LONG_MEAN_MS, SHORT_Q8 = 45_000, 720_000, 77  # lengths: 30% look around, the others watch
LEAVE_Q16, FAIL_Q16 = 1640, 590  # 2.5% leave before the first Heartbeat, 0.9% cannot start


@piece
def drift_level(model, level, r, lasts_ms):
    """The level after ``lasts_ms``, by bits 28..51 of ``r``."""
    step = level * 256
    if bits(r, 28, 0xFFFF) < np.int64(model.change[step + min(lasts_ms >> 6, 255)]):
        return np.int64(model.jump[step + bits(r, 44, 0xFF)])
    return level


@piece
def set_mode(rows, row, pending, rung, level, run):
    rows[row + MODE] = np.uint32(pending | (rung << 8) | (level << 16) | (run << 24))


@piece
def plan_play(fleet, model, row, now, r):
    """A healthy player between two reports: network, bitrate choice, buffer; writes what comes next and its time."""
    rows = fleet.rows
    beat = fleet.counters[C_BEAT_MS]
    mode = np.int64(rows[row + MODE])
    path_word = np.int64(rows[row + PATH])
    buffer = np.int64(rows[row + BUFFER])
    lasts = beat - (beat >> 3) + ((beat * bits(r, 0, 0xFF)) >> 10)
    level = drift_level(model, (mode >> 16) & 0xFF, r, lasts)
    path = path_word & 0xFFFF
    capacity = (path * np.int64(model.ratio[level])) >> 8
    seen = path_word >> 16
    seen = min(seen + ((capacity - seen) >> 2), 65535)
    trust = 90 if buffer < 6_000 else (180 if buffer < 15_000 else 230)
    rung = np.int64(model.rung[min((seen * trust) >> 13, 255)])
    net = ((capacity * np.int64(model.share[rung])) >> 10) - 1024
    pending = BEAT
    if net < 0 and buffer * 1024 < -net * lasts:
        lasts = max(buffer * 1024 // -net, GAP_MIN_MS)
        pending = STALL
        buffer = 0
    else:
        buffer = min(max(buffer + ((lasts * net) >> 10), 0), BUFFER_MAX_MS)
    if bits(r, 8, 0xFFFFF) < lasts * RARE_Q20 and pending == BEAT:
        pick = bits(r, 52, 0xFFF)
        pending = SEEK if pick < 3000 else (ERROR if pick < 4050 else FATAL)
        lasts = max((lasts * (pick & 0xFF)) >> 8, GAP_MIN_MS)
    ends = np.int64(rows[row + ENDS])
    if now + lasts >= ends:
        lasts = max(ends - now, GAP_MIN_MS)
        pending = STOP
    rows[row + POSITION] = np.uint32(np.int64(rows[row + POSITION]) + lasts)
    rows[row + BUFFER] = np.uint32(buffer)
    rows[row + PATH] = np.uint32(path | (seen << 16))
    set_mode(rows, row, pending, rung, level, 0)
    return lasts


@callee
def seat_device(fleet, model, row, device, now):
    """Begin a session of ``device``: identity, path, profile, length. Returns its random bits."""
    rows, counters = fleet.rows, fleet.counters
    counters[C_SERIAL] += 1
    seed = U(counters[C_SEED])
    session = mix(seed ^ mix(U(counters[C_SERIAL]) * U(0x9E3779B97F4A7C15)))  # one-to-one in the serial: no id twice
    own = mix(mix(seed + U(device)) ^ U(0xD1B54A32D192ED03))  # what stays with the device
    r = mix(session ^ U(0x8CB92BA72F3D8DD7))
    profile = bits(own, 0, 0xFFFF) * model.network.size >> 16
    network = np.int64(model.network[profile])
    kind = network
    if bits(own, 16, 0xFFFF) < counters[C_BAD_Q16]:
        kind = np.int64(model.first_level.size >> 8) + 1
    elif bits(r, 16, 0xFFFF) < counters[C_WEAK_Q16]:
        kind = np.int64(model.first_level.size >> 8)
    path = np.int64(model.path[kind * 256 + bits(own, 32, 0xFF)]) * (218 + bits(r, 32, 0x3F)) >> 8
    level = np.int64(model.first_level[network * 256 + bits(r, 40, 0xFF)])
    mean = SHORT_MEAN_MS if bits(r, 48, 0xFF) < SHORT_Q8 else LONG_MEAN_MS
    length = 2_000 + (mean * np.int64(model.exponential[bits(r, 0, 0xFFF)]) >> 10)
    title = bits(r, 12, 0x1FF) * bits(r, 21, 0x1FF) * bits(r, 55, 0x1FF) >> 14  # a few titles are what most watch
    seen = min(path, 65535)
    store_u64(rows, row + SESSION, session)
    rows[row + DEVICE] = np.uint32(device)
    rows[row + SEQ] = np.uint32(0)
    rows[row + ENDS] = np.uint32(now + length)
    rows[row + POSITION] = np.uint32(0)
    rows[row + BUFFER] = np.uint32(0)
    rows[row + PATH] = np.uint32(seen | (seen << 16))
    rows[row + PROFILE] = np.uint32(profile | (title << 16))
    rows[row + STALL_TS] = np.uint32(0)
    rows[row + LAST_TS] = np.uint32(0)
    rows[row + WAIT_FROM] = np.uint32(now)
    rows[row + FATE] = np.uint32(FATE_PLAY)
    rung = np.int64(model.rung[min((seen * 128) >> 13, 255)])
    set_mode(rows, row, START, rung, level, 0)
    return r


@kernel
def fill_seats(fleet, model, joining_q16, lookback_ms):
    """Put a device of the pool in every seat: most in mid-session and due within one report interval, the others to start."""
    rows, counters = fleet.rows, fleet.counters
    beat = counters[C_BEAT_MS]
    for seat in range(rows.size // ROW):
        row = seat * ROW
        device = np.int64(fleet.pool[counters[C_POOL_HEAD]])
        counters[C_POOL_HEAD] = (counters[C_POOL_HEAD] + 1) % fleet.pool.size
        counters[C_POOL_SIZE] -= 1
        r = mix(seat_device(fleet, model, row, device, 0))
        mode = np.int64(rows[row + MODE])
        due = beat * bits(r, 16, 0xFFFF) >> 16
        if bits(r, 0, 0xFFFF) < joining_q16:
            # Whoever is met in the middle of a session is mostly met in a long one, of exponential length: what is left is as long again.
            mean = SHORT_MEAN_MS if bits(r, 32, 0x3F) < 2 else LONG_MEAN_MS
            elapsed = 5_000 + (mean * np.int64(model.exponential[bits(r, 38, 0xFFF)]) >> 10)
            left = 2_000 + (mean * np.int64(model.exponential[bits(mix(r), 0, 0xFFF)]) >> 10)
            path = np.int64(rows[row + PATH]) & 0xFFFF
            spare = path * np.int64(model.share[0]) >> 10  # media ms a ms at the lowest rung, x 1024
            rows[row + ENDS] = np.uint32(left)
            rows[row + POSITION] = np.uint32(elapsed)
            rows[row + BUFFER] = np.uint32(BUFFER_MAX_MS - (bits(r, 50, 0x3FFF) >> 2) if spare > 2048 else 500 + (bits(r, 50, 0x3FFF) >> 1))
            rows[row + SEQ] = np.uint32(3 + elapsed // lookback_ms)
            rows[row + MODE] = np.uint32((mode & ~0xFF) | JOIN)
        else:
            due = 20_000 * bits(r, 16, 0xFFFF) >> 16
        rows[row + DUE] = np.uint32(due)
        push(fleet, seat, due)


@piece
def add_truth(fleet, truth, row, kind, intended, alert):
    rows = fleet.rows
    at = fleet.counters[C_TRUTH]
    fleet.counters[C_TRUTH] = at + 1
    truth[at, 0] = np.int64(rows[row + DEVICE])
    truth[at, 1] = np.int64(load_u64(rows, row + SESSION))
    truth[at, 2] = kind
    truth[at, 3] = intended
    truth[at, 4] = np.int64(rows[row + SEQ])
    truth[at, 5] = alert


@callee
def judge_silence(fleet, truth, row, run, intended):
    """A stall open and silent too long until now: an alert was due (only where few devices share a low rate)."""
    rows, counters = fleet.rows, fleet.counters
    silent = intended - np.int64(rows[row + LAST_TS])
    limit = counters[C_OPEN_STALL]
    if np.int64(rows[row + FATE]) & ALERTED or run == 0:
        return
    if limit - AMBIGUOUS_BELOW_MS < silent < limit + AMBIGUOUS_ABOVE_MS:
        counters[C_AMBIGUOUS] += 1
    if silent > limit:
        sent = rows[row + SEQ]
        rows[row + SEQ] = np.uint32(np.int64(sent) - 1)  # the highest so far: this event has not been seen yet
        add_truth(fleet, truth, row, TRUTH_OPEN, np.int64(rows[row + STALL_TS]), np.int64(rows[row + LAST_TS]) + limit)
        rows[row + SEQ] = sent
        rows[row + FATE] = np.uint32(np.int64(rows[row + FATE]) | ALERTED)


@callee
def stall(fleet, model, truth, row, now, r, intended):
    """A Buffer of a stall has been sent: judge it, and find what follows. Returns the time until then."""
    rows, counters = fleet.rows, fleet.counters
    mode = np.int64(rows[row + MODE])
    run = min((mode >> 24) + 1, 250)
    q = mix(r)
    fate = np.int64(rows[row + FATE])
    if run == 1:
        counters[C_STALLS] += 1
        counters[C_STALLED] += 0 if fate & STALLED else 1
        outage = np.int64(model.outage[bits(r, 52, 0xFFF)]) if bits(q, 44, 0xFFFF) < OUTAGE_Q16 else 0
        fate = (fate & 0xFFFF) | STALLED | (outage << 16)
        rows[row + STALL_TS] = np.uint32(intended)
        rows[row + WAIT_FROM] = np.uint32(now)
        rows[row + FILL] = np.uint32(0)
    if run == counters[C_THRESHOLD] and not fate & ALERTED:
        add_truth(fleet, truth, row, TRUTH_LOOP, intended, intended)
        fate |= ALERTED
    hangs = bits(q, 0, 0xFFFF) < counters[C_HANG_Q16]
    if hangs and not fate & ALERTED:
        add_truth(fleet, truth, row, TRUTH_OPEN, np.int64(rows[row + STALL_TS]), intended + counters[C_OPEN_STALL])
        fate |= ALERTED
    lasts = 1_000 + (1_000 * bits(q, 16, 0xFF) >> 8)
    level = drift_level(model, (mode >> 16) & 0xFF, r, lasts)
    pending = STALL
    odds = bits(q, 24, 0xFFFF)
    if hangs:  # nothing more is heard of it; somebody else takes the seat
        counters[C_HANGS] += 1
        rows[row + FATE] = np.uint32(fate)
        set_mode(rows, row, START, 0, level, run)
        return 25_000 + (bits(q, 40, 0xFFF) * 1_500 >> 10)
    if odds < 1_600:  # 2.4% a Buffer give up
        pending, lasts = STOP, 200 + (lasts >> 1)
    elif odds < 2_600:
        pending, lasts = ERROR, 150 + (lasts >> 2)
    elif odds < 2_700:
        pending, lasts = FATAL, 150 + (lasts >> 2)
        fate |= FATE_BROKEN
    elif fate >> 16:
        fate = (fate & 0xFFFF) | (max((fate >> 16) - lasts // 100, 0) << 16)
    else:
        capacity = (np.int64(rows[row + PATH]) & 0xFFFF) * np.int64(model.ratio[level]) >> 8
        rate = max(capacity * np.int64(model.share[0]) >> 10, 1)  # media ms a ms, x 1024
        missing = RESUME_MS - np.int64(rows[row + FILL])
        if rate * lasts >= missing << 10:
            pending, lasts = RESUME, max((missing << 10) // rate, 150)
            rows[row + BUFFER] = np.uint32(RESUME_MS)
        else:
            rows[row + FILL] = np.uint32(np.int64(rows[row + FILL]) + (rate * lasts >> 10))
            rows[row + BUFFER] = rows[row + FILL]
    rows[row + FATE] = np.uint32(fate)
    set_mode(rows, row, pending, 0, level, run)
    return lasts


@callee
def start(fleet, model, row, now):
    """The seat's last device is gone; the one that waited longest takes it. Returns the time to its next event."""
    rows, counters = fleet.rows, fleet.counters
    size = fleet.pool.size
    head = counters[C_POOL_HEAD]
    fleet.pool[(head + counters[C_POOL_SIZE]) % size] = rows[row + DEVICE]
    device = np.int64(fleet.pool[head])
    counters[C_POOL_HEAD] = (head + 1) % size
    r = seat_device(fleet, model, row, device, now)
    mode = np.int64(rows[row + MODE])
    level = (mode >> 16) & 0xFF
    rung = (mode >> 8) & 0xFF
    capacity = (np.int64(rows[row + PATH]) & 0xFFFF) * np.int64(model.ratio[level]) >> 8
    rate = max(capacity * np.int64(model.share[rung]) >> 10, 1)
    q = mix(r)
    rows[row + FILL] = np.uint32(now + 150 + bits(q, 0, 0xFF) + min((STARTUP_MS << 10) // rate, 60_000))
    odds = bits(q, 8, 0xFFFF)
    if odds < LEAVE_Q16:
        rows[row + FATE] = np.uint32(FATE_LEAVE)
    elif odds < LEAVE_Q16 + FAIL_Q16:
        rows[row + FATE] = np.uint32(FATE_FAIL)
    set_mode(rows, row, LOADING, rung, level, 0)
    return GAP_MIN_MS + bits(q, 24, 0x7F)


@callee
def loading(fleet, row, now, r):
    """A Buffer of the startup has been sent: load on, play, leave or fail. Returns the time until then."""
    rows = fleet.rows
    mode = np.int64(rows[row + MODE])
    fate = np.int64(rows[row + FATE])
    left = np.int64(rows[row + FILL]) - now
    lasts = 1_000 + (500 * bits(r, 0, 0xFF) >> 8)
    pending = LOADING
    if fate == FATE_FAIL:
        pending, lasts = FATAL, 200 + bits(r, 8, 0x3FF)
        rows[row + FATE] = np.uint32(FATE_BROKEN)
    elif fate == FATE_LEAVE and bits(r, 8, 1):
        pending = STOP
    elif now - np.int64(rows[row + WAIT_FROM]) > STARTUP_PATIENCE_MS:
        pending = STOP
    elif left <= lasts and fate != FATE_LEAVE:
        pending, lasts = FIRST_BEAT, max(left, GAP_MIN_MS)
        rows[row + BUFFER] = np.uint32(STARTUP_MS)
    rows[row + MODE] = np.uint32((mode & ~0xFF) | pending)
    return lasts


@callee
def other(fleet, model, truth, row, e, events, now, r, intended):
    """Any pending event but a plain Heartbeat: complete its record, find what follows, return the time until then."""
    rows = fleet.rows
    mode = np.int64(rows[row + MODE])
    pending = mode & 0xFF
    run = mode >> 24
    if run and pending != START:
        judge_silence(fleet, truth, row, run, intended)
    if pending == START:
        fleet.counters[C_SESSIONS] += 1
        lasts = start(fleet, model, row, now)
        events[e + E_DEVICE] = rows[row + DEVICE]
        events[e + E_SEQ] = np.uint32(0)
        store_u64(events, e + E_SESSION, load_u64(rows, row + SESSION))
        events[e + E_PROFILE] = np.uint32(np.int64(rows[row + PROFILE]) & 0xFFFF)
        events[e + E_TITLE] = np.uint32(np.int64(rows[row + PROFILE]) >> 16)
        events[e + E_RUNG] = np.uint32((np.int64(rows[row + MODE]) >> 8) & 0xFF)
        events[e + E_POSITION] = np.uint32(0)
        events[e + E_BUFFER] = np.uint32(0)
        events[e + E_FULL] = np.uint32(1)
        events[e + E_SHAPE] = np.uint32(SHAPE_START)
        return lasts
    if pending == STALL:
        lasts = stall(fleet, model, truth, row, now, r, intended)
        events[e + E_SHAPE] = np.uint32(SHAPE_STALL)
        events[e + E_EXTRA] = np.uint32(now - np.int64(rows[row + WAIT_FROM]))
        return lasts
    if pending == LOADING:
        events[e + E_SHAPE] = np.uint32(SHAPE_STARTUP)
        events[e + E_EXTRA] = np.uint32(now - np.int64(rows[row + WAIT_FROM]))
        return loading(fleet, row, now, r)
    if pending == STOP:
        broken = (np.int64(rows[row + FATE]) & 0xFF) == FATE_BROKEN
        events[e + E_SHAPE] = np.uint32(SHAPE_STOP)
        events[e + E_EXTRA] = np.uint32(2 if broken else (0 if run == 0 and bits(r, 0, 3) else 1))
        set_mode(rows, row, START, 0, 0, 0)
        return 1_000 + (19_000 * bits(r, 8, 0xFFFF) >> 16)
    if pending == FATAL or (pending == ERROR and run):
        events[e + E_SHAPE] = np.uint32(SHAPE_FATAL if pending == FATAL else SHAPE_ERROR)
        events[e + E_EXTRA] = np.uint32(bits(r, 0, 3))
        if pending == FATAL:
            rows[row + FATE] = np.uint32((np.int64(rows[row + FATE]) & ~0xFF) | FATE_BROKEN)
        rows[row + MODE] = np.uint32((mode & ~0xFF) | (STOP if pending == FATAL else STALL))
        return GAP_MIN_MS + bits(r, 8, 0x3FF)
    if pending == SEEK:
        events[e + E_SHAPE] = np.uint32(SHAPE_SEEK)
        rows[row + POSITION] = np.uint32(min(np.int64(rows[row + POSITION]) + bits(r, 0, 0x3FFFF), 90_000_000))
        rows[row + BUFFER] = np.uint32(STARTUP_MS)
        rows[row + MODE] = np.uint32((mode & ~0xFF) | RESUME)
        return 300 + bits(r, 20, 0x3FF)
    if pending == ERROR:
        events[e + E_SHAPE] = np.uint32(SHAPE_ERROR)
        events[e + E_EXTRA] = np.uint32(bits(r, 56, 3))
    elif pending == FIRST_BEAT:
        events[e + E_EXTRA_KIND] = np.uint32(EXTRA_STARTUP)
        events[e + E_EXTRA] = np.uint32(now - np.int64(rows[row + WAIT_FROM]))
    elif pending == JOIN:
        fleet.counters[C_SESSIONS] += 1
        events[e + E_FULL] = np.uint32(1)
    rows[row + FATE] = np.uint32(np.int64(rows[row + FATE]) & (0xFF | STALLED))
    return plan_play(fleet, model, row, now, r)


@kernel
def advance(fleet, model, wanted, first, step_q20, tick_ms, events, intended_out, truth):
    """Let the ``wanted`` earliest seats send one event each; return how many did (fewer only if there are fewer seats).

    ``events`` (uint32, wanted x EVENT) is filled for the encoder; ``intended_out[first:]`` (int64) with
    ``tick_ms + (i x step_q20 + step_q20 / 2) / 2^20``. ``truth`` has room for two rows an event.
    """
    rows = fleet.rows
    ready = fleet.ready
    count = pop(fleet, wanted)
    for i in range(count, count + 16):
        ready[i] = np.uint32(0)
    for i in range(16):
        prefetch(rows, np.int64(ready[i]) * ROW)
    for i in range(count):
        prefetch(rows, np.int64(ready[i + 16]) * ROW)
        seat = np.int64(ready[i])
        row = seat * ROW
        e = i * EVENT
        intended = tick_ms + (((first + i) * step_q20 + (step_q20 >> 1)) >> 20)
        intended_out[first + i] = intended
        session = load_u64(rows, row + SESSION)
        seq = np.int64(rows[row + SEQ])
        mode = np.int64(rows[row + MODE])
        now = np.int64(rows[row + DUE])
        r = mix(session + U(seq) * U(0x9E3779B97F4A7C15))
        profile = np.int64(rows[row + PROFILE])
        events[e + E_SHAPE] = np.uint32(SHAPE_BEAT)
        events[e + E_TS] = np.uint32(intended)
        events[e + E_DEVICE] = rows[row + DEVICE]
        events[e + E_SEQ] = np.uint32(seq)
        store_u64(events, e + E_SESSION, session)
        events[e + E_PROFILE] = np.uint32(profile & 0xFFFF)
        events[e + E_TITLE] = np.uint32(profile >> 16)
        events[e + E_RUNG] = np.uint32((mode >> 8) & 0xFF)
        events[e + E_POSITION] = rows[row + POSITION]
        events[e + E_BUFFER] = rows[row + BUFFER]
        events[e + E_FULL] = np.uint32(0)
        dropped = bits(r, 58, 0x3F) < 4
        events[e + E_EXTRA_KIND] = np.uint32(EXTRA_DROPPED if dropped else EXTRA_NONE)
        events[e + E_EXTRA] = np.uint32(1 + bits(r, 54, 0xF))
        if (mode & 0xFF) == BEAT:
            lasts = plan_play(fleet, model, row, now, r)
        else:
            lasts = other(fleet, model, truth, row, e, events, now, r, intended)
            seq = np.int64(events[e + E_SEQ])
        rows[row + SEQ] = np.uint32(seq + 1)
        rows[row + LAST_TS] = np.uint32(intended)
        due = now + min(max(lasts, GAP_MIN_MS), GAP_MAX_MS)
        rows[row + DUE] = np.uint32(due)
        push(fleet, seat, due)
    fleet.counters[C_EVENTS] += count
    return count


@kernel
def left_open(fleet, truth):
    """After the last event: an alert for each stall that nobody will close. ``truth`` has room for a row a seat."""
    rows, counters = fleet.rows, fleet.counters
    for row in range(0, rows.size, ROW):
        mode = np.int64(rows[row + MODE])
        if mode >> 24 and not np.int64(rows[row + FATE]) & ALERTED:
            rows[row + SEQ] = np.uint32(np.int64(rows[row + SEQ]) - 1)
            add_truth(fleet, truth, row, TRUTH_OPEN, np.int64(rows[row + STALL_TS]), np.int64(rows[row + LAST_TS]) + counters[C_OPEN_STALL])
            rows[row + SEQ] = np.uint32(np.int64(rows[row + SEQ]) + 1)
            rows[row + FATE] = np.uint32(np.int64(rows[row + FATE]) | ALERTED)
