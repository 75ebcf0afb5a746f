"""Append to and walk through a mapped segment of the embedded log.

A record is four words of head (int64, little-endian, on a multiple of 8), the value, one LF, and padding to the next
multiple of 8:

    word 0   (value bytes + 1) | events << 32      0: nothing here yet      END: the segment ends here
    word 1   checksum of the three other words and the value
    word 2   offset
    word 3   append time, ms
    word 4.. value, LF, padding

The committed place is one aligned word in the control file, stored with release order after the record is complete and
loaded with acquire order before any record is read: on x86 both are plain moves (stores keep their order there), on
ARM they are ``stlr`` and ``ldar``. So no reader ever sees a part of a record, and nobody takes a lock.

Two words more let a reader of a silent partition promise that no earlier append time will come (``hold_back``):

    writer   swap APPENDING = earliest possible append time + 1, load FLOOR_MS, write and publish the record, APPENDING = 0
    reader   raise FLOOR_MS to now, load APPENDING, load END_OFFSET

Swap, raise and the loads right behind them have one order for everybody. So of a record that the reader does not see
published, it either sees the mark, and knows how early the record may be, or the writer sees the floor, and does not
append below it. (Saw it no mark because that was cleared again, then the record is published, and it sees that.) No
clock takes part in this: it holds when the machine pauses anywhere, and when its clock is set back.
"""

# mypy: ignore-errors

import numpy as np

from keystone.kernels.compiler import kernel, piece
from keystone.kernels.shared_memory import copy_bytes, load_acquire, load_ordered, raise_to, store_release, swap
from keystone.kernels.wide import load_u64, multiply_high, store_u64

U = np.uint64
HEAD = 32  # bytes of a record's head
END = 0xFFFFFFFF  # word 0 of the mark that ends a segment
SEGMENT_HEAD = 64  # bytes before the first record of a segment
TAIL = 128  # bytes kept free at the end of a segment: the end mark, and PADDING for readers

# Words of a partition's row in the control file. Who writes what keeps to its own cache lines (8 words).
COMMITTED, END_OFFSET, EVENTS_APPENDED, LAST_APPEND_MS, BYTES_APPENDED, APPENDING = 0, 1, 2, 3, 4, 5  # the writer, at each append
FIRST_SEGMENT, START_OFFSET, TORN_RECORDS, WAITED_MS, WRITER_PID = 16, 17, 18, 19, 20  # the writer, now and then
CONSUMED_OFFSET, EVENTS_CONSUMED, EVENTS_PROCESSED = 32, 33, 34  # readers
FLOOR_MS = 40  # readers of a silent partition; the writer looks at it in each append, so it is kept off their busy line
ROW_WORDS = 64

# What ``walk`` answers.
OK, NO_MORE, SEGMENT_END, BROKEN = 0, 1, 2, 3
# Places in a reader's state (int64).
AT, OFFSET, EVENTS, STATUS = 0, 1, 2, 3
STATE_WORDS = 8
# Rows of a reader's columns (int64, one column a record).
STARTS, ENDS, OFFSETS, APPEND_MS, EVENTS_TOTAL = 0, 1, 2, 3, 4
COLUMNS = 5

K0, K1, K2, K3, K4 = U(0x9E3779B97F4A7C15), U(0xC2B2AE3D27D4EB4F), U(0x165667B19E3779F9), U(0xD6E8FEB86659FD93), U(0xA0761D6478BD642F)
KEEP = np.array([(1 << (8 * i)) - 1 for i in range(8)] + [2**64 - 1], dtype=np.uint64)  # [n] keeps n low bytes


@piece
def fold(left, right):
    """Both halves of the 128-bit product, xored."""
    return multiply_high(left, right) ^ (left * right)


@piece
def checksum(text, at, size, first, offset, append_ms):
    """64-bit sum of a head and ``text[at:at + size]``: guards against torn writes and flipped bits, not against malice.

    Four independent lanes of one multiplication per 16 bytes: bound by memory, not by arithmetic. Reads up to 16
    bytes past the value and masks them away.
    """
    a = K0 ^ U(first)
    b = K1 ^ U(offset)
    c = K2 ^ U(append_ms)
    d = K3
    end = at + size
    while at + 64 <= end:
        a = fold(a ^ load_u64(text, at), load_u64(text, at + 8) ^ K1)
        b = fold(b ^ load_u64(text, at + 16), load_u64(text, at + 24) ^ K2)
        c = fold(c ^ load_u64(text, at + 32), load_u64(text, at + 40) ^ K3)
        d = fold(d ^ load_u64(text, at + 48), load_u64(text, at + 56) ^ K4)
        at += 64
    while at < end:
        left = end - at
        one = load_u64(text, at) & KEEP[min(left, 8)]
        two = load_u64(text, at + 8) & KEEP[min(max(left - 8, 0), 8)]
        a = fold(a ^ one, two ^ K1) + b
        at += 16
    return fold(fold(a ^ K2, b ^ K4) ^ c, fold(c ^ K1, d ^ K3) ^ K0 ^ d)


@piece
def record_bytes(size):
    """Bytes that a record with a value of ``size`` bytes takes."""
    return (HEAD + size + 1 + 7) & ~7


@kernel
def append_record(segment, row, source, segment_start, segment_room, events, now_ms):
    """Append ``source`` at the committed place. Returns its append time, or -1 where the segment has no room for it.

    ``segment`` uint8 (segment bytes,), ``row`` int64 (ROW_WORDS,), ``source`` uint8 read-only; ``segment_start`` is the
    address (over all segments) of the first byte of ``segment``, ``segment_room`` where its records must end.
    """
    committed = row[COMMITTED]
    at = committed - segment_start
    size = source.size
    following = at + record_bytes(size)
    if following > segment_room:
        return np.int64(-1)
    append_ms = max(now_ms, row[LAST_APPEND_MS])
    swap(row, APPENDING, append_ms + 1)
    append_ms = max(append_ms, load_ordered(row, FLOOR_MS))
    offset = row[END_OFFSET]
    first = np.int64(size + 1) | (np.int64(events) << 32)
    copy_bytes(segment, at + HEAD, source, 0, size)
    segment[at + HEAD + size] = 10
    store_u64(segment, following, U(0))  # what an earlier lap left here must not look like a record
    store_u64(segment, at + 8, checksum(segment, at + HEAD, size, first, offset, append_ms))
    store_u64(segment, at + 16, U(offset))
    store_u64(segment, at + 24, U(append_ms))
    store_u64(segment, at, U(first))
    row[EVENTS_APPENDED] += events
    row[LAST_APPEND_MS] = append_ms
    row[BYTES_APPENDED] += size
    store_release(row, END_OFFSET, offset + 1)
    store_release(row, COMMITTED, segment_start + following)
    store_release(row, APPENDING, 0)
    return append_ms


@kernel
def walk(segment, row, columns, state, segment_start, segment_room, bytes_max, check):
    """Fill ``columns`` with whole records from ``state[AT]`` on; returns how many, and says in ``state[STATUS]`` why it ended.

    ``segment`` uint8 read-only, ``columns`` int64 (COLUMNS, records). Moves ``state`` (AT in the segment, OFFSET, EVENTS) along.
    BROKEN: the record at AT does not match its head or its checksum (``check``), or is not the one expected.
    """
    limit = load_acquire(row, COMMITTED) - segment_start
    at, offset, events = state[AT], state[OFFSET], state[EVENTS]
    count = np.int64(0)
    taken = np.int64(0)
    status = OK
    while count < columns.shape[1] and (taken < bytes_max or count == 0):
        if at >= limit:
            status = NO_MORE
            break
        first = np.int64(load_u64(segment, at))
        if first == END:
            status = SEGMENT_END
            break
        if not is_whole(segment, at, min(limit, segment_room), first, offset, check):
            status = BROKEN
            break
        size = (first & 0xFFFFFFFF) - 1
        columns[STARTS, count] = at + HEAD
        columns[ENDS, count] = at + HEAD + size
        columns[OFFSETS, count] = offset
        columns[APPEND_MS, count] = np.int64(load_u64(segment, at + 24))
        events += first >> 32
        columns[EVENTS_TOTAL, count] = events
        at += record_bytes(size)
        offset += 1
        taken += size
        count += 1
    state[AT], state[OFFSET], state[EVENTS], state[STATUS] = at, offset, events, status
    return count


@piece
def is_whole(segment, at, limit, first, offset, check):
    """Whether a record of this offset lies at ``at`` and ends by ``limit``; with ``check``, its checksum too."""
    size = (first & 0xFFFFFFFF) - 1
    if size < 0 or first < 0 or at + record_bytes(size) > limit or np.int64(load_u64(segment, at + 16)) != offset:
        return False
    if segment[at + HEAD + size] != 10:
        return False
    if not check:
        return True
    return checksum(segment, at + HEAD, size, first, offset, np.int64(load_u64(segment, at + 24))) == load_u64(segment, at + 8)


@kernel
def skip(segment, state, limit, offset):
    """Move ``state`` to the record of ``offset`` (heads are looked at, values are not); STATUS as in ``walk``, OK when there."""
    status = OK
    while state[OFFSET] < offset:
        at = state[AT]
        if at >= limit:
            status = NO_MORE
            break
        first = np.int64(load_u64(segment, at))
        if first == END:
            status = SEGMENT_END
            break
        if not is_whole(segment, at, limit, first, state[OFFSET], False):
            status = BROKEN
            break
        state[EVENTS] += first >> 32
        state[AT] = at + record_bytes((first & 0xFFFFFFFF) - 1)
        state[OFFSET] += 1
    state[STATUS] = status
    return status


@kernel
def recover(segment, state, segment_room, last_ms):
    """Check every record from ``state`` on, whatever the control file says. Returns the last append time seen (or ``last_ms``).

    STATUS: SEGMENT_END at the end mark, NO_MORE where nothing was begun, BROKEN where something that is no record lies.
    """
    status = OK
    while status == OK:
        at = state[AT]
        first = np.int64(load_u64(segment, at))
        if first == END:
            status = SEGMENT_END
        elif first == 0:
            status = NO_MORE
        elif not is_whole(segment, at, segment_room, first, state[OFFSET], True):
            status = BROKEN
        else:
            last_ms = max(last_ms, np.int64(load_u64(segment, at + 24)))
            state[EVENTS] += first >> 32
            state[AT] = at + record_bytes((first & 0xFFFFFFFF) - 1)
            state[OFFSET] += 1
    state[STATUS] = status
    return last_ms


@kernel
def find_later(segment, at, segment_room, offset):
    """Where, from ``at`` on, a whole record of an offset above ``offset`` lies, or -1: damage in the middle, not at the end."""
    at = (at + 7) & ~7
    while at + HEAD <= segment_room:
        first = np.int64(load_u64(segment, at))
        there = np.int64(load_u64(segment, at + 16))
        if first > 0 and first != END and offset < there <= offset + segment.size // HEAD and is_whole(segment, at, segment_room, first, there, True):
            return np.int64(at)
        at += 8
    return np.int64(-1)


@kernel
def read_word(row, index):
    return load_acquire(row, index)


@kernel
def write_word(row, index, value):
    store_release(row, index, value)


@kernel
def raise_word(row, index, value):
    return raise_to(row, index, value)


@kernel
def hold_back(row, now_ms):
    """Let no append that begins from now on get a time below ``now_ms``; returns the mark of one that began before, or 0.

    The mark is its earliest possible append time, plus one. Who wants to know whether records are there looks after this.
    """
    raise_to(row, FLOOR_MS, now_ms)
    return load_ordered(row, APPENDING)


@kernel
def clear_words(segment, at, words):
    """Zero ``words`` words from ``at`` on."""
    for i in range(words):
        store_u64(segment, at + 8 * i, U(0))


def warm_up() -> None:
    """Compile, or load, everything here for the one set of types it is called with."""
    room = 4096 - TAIL
    segment, row, columns, state = np.zeros(4096, np.uint8), np.zeros(ROW_WORDS, np.int64), np.zeros((COLUMNS, 8), np.int64), np.zeros(STATE_WORDS, np.int64)
    read = segment.view()
    read.flags.writeable = False
    write_word(row, COMMITTED, SEGMENT_HEAD)
    append_record(segment, row, np.frombuffer(b"x", np.uint8), 0, room, 1, 0)
    for step in (lambda: walk(read, row, columns, state, 0, room, 1 << 20, True), lambda: skip(read, state, room, 1), lambda: recover(read, state, room, 0)):
        state[:] = 0
        state[AT] = SEGMENT_HEAD
        step()
    find_later(read, SEGMENT_HEAD, room, -1)
    clear_words(segment, 0, 1)
    read_word(row, COMMITTED)
    raise_word(row, CONSUMED_OFFSET, 0)
    hold_back(row, 0)
