"""Seats and their calendar: the layout that the device model and the encoder share.

A *seat* is a 64-byte row of sixteen uint32 words, one cache line; a device sits in it for a session. Every seat is in the
calendar exactly once. Times are virtual milliseconds since the run's start (``keystone.sim.fleet`` says how they follow
the schedule), but for those called intended.
"""

# mypy: ignore-errors

from typing import NamedTuple

import numpy as np

from keystone.kernels.compiler import callee, piece

U = np.uint64

# --- words of a seat -----------------------------------------------------------------------------------------------
ROW = 16
SESSION = 0  # two words
DEVICE = 2
SEQ = 3
DUE = 4  # virtual time of the pending event
ENDS = 5  # virtual time at which the viewer has had enough
POSITION = 6
BUFFER = 7  # media ms in the player's buffer
MODE = 8  # pending event | rung << 8 | level << 16 | stall Buffers since the last healthy report << 24
PATH = 9  # mean capacity of the path | throughput as the player estimates it << 16, kbit/s
PROFILE = 10  # profile | title << 16
STALL_TS = 11  # intended time of the Buffer that opened the stall
LAST_TS = 12  # intended time of the last event
FILL = 13  # in a stall: media ms fetched so far; in a startup: virtual time it will be over
WAIT_FROM = 14  # virtual time at which the stall or startup began
FATE = 15  # of the session: see below | flags | an outage's rest in 0.1 s << 16

# --- pending events ------------------------------------------------------------------------------------------------
BEAT, JOIN, START, LOADING, FIRST_BEAT, STALL, RESUME, SEEK, ERROR, FATAL, STOP = range(11)
# JOIN: the first report, of a session that began before the run; RESUME: the Heartbeat after a stall or seek
FATE_PLAY, FATE_LEAVE, FATE_FAIL, FATE_BROKEN = range(4)  # LEAVE, FAIL: before the first Heartbeat; BROKEN: had a fatal error

ALERTED, STALLED = 0x100, 0x200  # flags: this run of stalls has its alert; the session has stalled

# --- words of an event, as the encoder reads them -------------------------------------------------------------------
EVENT = 16
E_SHAPE, E_TS, E_DEVICE, E_SEQ, E_SESSION = range(5)  # a session takes two words
E_PROFILE, E_RUNG, E_POSITION, E_BUFFER, E_EXTRA, E_EXTRA_KIND, E_FULL, E_TITLE = range(6, 14)
SHAPE_BEAT, SHAPE_START, SHAPE_STALL, SHAPE_STARTUP, SHAPE_SEEK, SHAPE_STOP, SHAPE_ERROR, SHAPE_FATAL = range(8)
EXTRA_NONE, EXTRA_DROPPED, EXTRA_STARTUP = range(3)

# --- the calendar ---------------------------------------------------------------------------------------------------
SLOT_SHIFT = 2  # 4 ms a slot
SLOTS = 8192  # 32.8 s of slots; longer waits do not exist (GAP_MAX_MS)
CHUNK = 64  # words: the chunk before, then 63 seats
NO_CHUNK = -1
GAP_MIN_MS = 60  # two ticks and more: a device sends at most once a tick, so its ts rises
GAP_MAX_MS = 32_000

# --- cells of ``counters`` (int64) ------------------------------------------------------------------------------------
(C_SLOT, C_FREE, C_SERIAL, C_POOL_HEAD, C_POOL_SIZE, C_EVENTS, C_SESSIONS, C_STALLS, C_HANGS, C_TRUTH, C_AMBIGUOUS, C_BEAT_MS,
 C_STALLED, C_SEED, C_THRESHOLD, C_OPEN_STALL, C_HANG_Q16, C_WEAK_Q16, C_BAD_Q16, C_CELLS) = range(20)  # fmt: skip

# --- columns of a truth row (int64): device, session (bits), kind, intended ms of the event, seq, intended ms of the alert
TRUTH = 6
TRUTH_LOOP, TRUTH_OPEN = 0, 1
# Intended silences this near to ``open_stall_ms`` could fall on either side of it on the way: counted, meant to be 0.
AMBIGUOUS_BELOW_MS, AMBIGUOUS_ABOVE_MS = 3_000, 3_000


class Model(NamedTuple):
    """Figures of network, ladder and audience, read only. ``level`` counts classes of all networks together."""

    change: np.ndarray  # uint16 (levels, 256): chance in 2^16 that the level changed after i x 64 ms
    jump: np.ndarray  # uint8 (levels, 256): the level that follows, by chance in 256
    ratio: np.ndarray  # int32 (levels,): capacity / mean of its path, x 256
    first_level: np.ndarray  # uint8 (networks, 256)
    path: np.ndarray  # uint16 (networks + 2, 256): mean capacity in kbit/s by chance in 256; then weak paths, bad paths
    rung: np.ndarray  # uint8 (256,): highest rung of the ladder within i x 32 kbit/s
    share: np.ndarray  # int32 (rungs,): 2^20 / kbit/s of the rung
    network: np.ndarray  # uint8 (profiles,)
    outage: np.ndarray  # int32 (4096,): quantiles of an outage's length, 0.1 s
    exponential: np.ndarray  # int32 (4096,): quantiles of the exponential law, mean 1024


class Fleet(NamedTuple):
    """The state of one partition's devices."""

    rows: np.ndarray  # uint32 (seats x ROW,), on a cache line
    chunks: np.ndarray  # uint32
    heads: np.ndarray  # int32 (SLOTS,)
    fills: np.ndarray  # int32 (SLOTS,)
    free: np.ndarray  # uint32: chunks unused
    pool: np.ndarray  # uint32: devices without a seat, a ring
    ready: np.ndarray  # uint32: seats popped
    counters: np.ndarray  # int64 (C_CELLS,)


@piece
def mix(x):
    """Splitmix64's finaliser: 64 random bits of a counter."""
    x = (x ^ (x >> U(30))) * U(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U(27))) * U(0x94D049BB133111EB)
    return x ^ (x >> U(31))


@piece
def bits(r, shift, mask):
    return np.int64((r >> U(shift)) & U(mask))


@piece
def push(fleet, seat, due):
    slot = max(due >> SLOT_SHIFT, fleet.counters[C_SLOT] + 1) & (SLOTS - 1)
    fill = np.int64(fleet.fills[slot])
    chunk = np.int64(fleet.heads[slot])
    if chunk == NO_CHUNK or fill == CHUNK - 1:
        fleet.counters[C_FREE] -= 1
        fresh = np.int64(fleet.free[fleet.counters[C_FREE]])
        fleet.chunks[fresh * CHUNK] = np.uint32(chunk & 0xFFFFFFFF)
        fleet.heads[slot] = np.int32(fresh)
        chunk = fresh
        fill = 0
    fleet.chunks[chunk * CHUNK + 1 + fill] = np.uint32(seat)
    fleet.fills[slot] = np.int32(fill + 1)


@callee
def pop(fleet, wanted):
    """Move the ``wanted`` earliest seats to ``ready``; return how many there were."""
    got = 0
    slot = fleet.counters[C_SLOT]
    last = slot + SLOTS
    while got < wanted and slot < last:
        at = slot & (SLOTS - 1)
        chunk = np.int64(fleet.heads[at])
        if chunk == NO_CHUNK:
            slot += 1
            continue
        fill = np.int64(fleet.fills[at])
        take = min(fill, wanted - got)
        for i in range(take):
            fleet.ready[got + i] = fleet.chunks[chunk * CHUNK + fill - i]
        got += take
        fill -= take
        if fill == 0:
            before = np.int64(np.int32(fleet.chunks[chunk * CHUNK]))
            fleet.free[fleet.counters[C_FREE]] = np.uint32(chunk)
            fleet.counters[C_FREE] += 1
            fleet.heads[at] = np.int32(before)
            fill = 0 if before == NO_CHUNK else CHUNK - 1
        fleet.fills[at] = np.int32(fill)
    fleet.counters[C_SLOT] = slot
    return got
