"""Learned spelling: the bytes between one value and the next, and what they lead to.

*Glue* is what stands between two values: a comma, blanks, the key in quotes, a colon, and the opening quote where a
string follows. Producers repeat it byte for byte. Each glue remembers which glue came next; the decoder compares those
few candidates, 32 bytes at once, and only where none fits reads the key byte by byte, and learns it. No spelling is
known in advance, and a wrong guess costs time, never a wrong value: the bytes compared equal.
"""

# mypy: ignore-errors

from typing import NamedTuple

import numpy as np

from keystone.kernels.compiler import callee, piece
from keystone.kernels.wide import copy_32, load_u64

U = np.uint64
GLUE_MAX = 1024  # entries; beyond, all is forgotten and learned anew
GLUE_BYTES = 32  # longer glue is never learned
WAYS = 8  # candidates after one glue
SLOTS = 4 * GLUE_MAX
RESET_ROWS_MIN = 65_536  # events between two fresh starts: relearning may cost 1% at most
SCORE_MAX, MISS_COST, SULK = 24, 4, -256  # after six misses in a row a node stops guessing for 256 keys

IS_STRING = 64  # added to the field number where the value is a string
NODE_START = 0  # before the first key
NODE_FIELD = 1  # + field: after a key that was read byte by byte and not learned
NODE_ENTRY = 33  # + entry: after that glue
NODES = NODE_ENTRY + GLUE_MAX

INFO = 8  # int64 an entry: a bit a byte of its text, size, field (plus IS_STRING), then the key for unknown ones
MASK, SIZE, TARGET, KEY_AT, KEY_SIZE, KEY_LO, KEY_HI = range(7)

COUNT, ROWS_AT_RESET, RESETS = 0, 1, 2  # places in Glue.state


class Glue(NamedTuple):
    """Entries by number, then nodes. ``text`` uint8 (GLUE_MAX * 32 + 32); all that is known of an entry lies in one cache line."""

    text: np.ndarray
    info: np.ndarray  # int64 (GLUE_MAX * INFO)
    slots: np.ndarray  # hash of the text -> entry + 1
    next: np.ndarray  # (NODES * WAYS), entry or -1
    score: np.ndarray  # (NODES,)
    state: np.ndarray


def new_glue() -> Glue:
    """Nothing learned."""
    i64 = np.int64
    return Glue(
        np.zeros(GLUE_MAX * GLUE_BYTES + GLUE_BYTES, np.uint8), np.zeros(GLUE_MAX * INFO, i64), np.zeros(SLOTS, i64),
        np.full(NODES * WAYS, -1, i64), np.zeros(NODES, i64), np.zeros(4, i64),
    )  # fmt: skip


@callee
def forget_all(glue, rows):
    """Start over, unless that happened a moment ago. Returns whether it did."""
    if glue.state[RESETS] > 0 and rows - glue.state[ROWS_AT_RESET] < RESET_ROWS_MIN:
        return False
    glue.slots[:] = 0
    glue.next[:] = -1
    glue.score[:] = 0
    glue.state[COUNT] = 0
    glue.state[ROWS_AT_RESET] = rows
    glue.state[RESETS] += 1
    return True


@callee
def find_or_add(text, at, size, target, key_at, key_size, key_lo, key_hi, glue, rows):
    """Entry of the glue ``text[at:at + size]`` that leads to ``target``, new if need be; -1 if there is no room."""
    mask = (U(1) << U(size)) - U(1)
    mixed = U(size) + U(target) * U(0x9E3779B97F4A7C15)
    for word in range(0, size, 8):
        part = load_u64(text, at + word)
        if size - word < 8:
            part &= (U(1) << U(8 * (size - word))) - U(1)
        mixed = (mixed ^ part) * U(0xD6E8FEB86659FD93)
        mixed ^= mixed >> U(32)
    slot = np.int64(mixed & U(SLOTS - 1))
    while glue.slots[slot] != 0:
        entry = glue.slots[slot] - 1
        if glue.info[entry * INFO + TARGET] == target and glue.info[entry * INFO + SIZE] == size and has_text(text, at, size, glue, entry):
            return entry
        slot = (slot + 1) & (SLOTS - 1)
    entry = glue.state[COUNT]
    if entry >= GLUE_MAX:
        forget_all(glue, rows)
        return np.int64(-1)  # the caller's node may be gone: it learns from the next key on
    glue.state[COUNT] = entry + 1
    copy_32(glue.text, entry * GLUE_BYTES, text, at)
    info = entry * INFO
    glue.info[info + MASK] = np.int64(mask)
    glue.info[info + SIZE] = size
    glue.info[info + TARGET] = target
    glue.info[info + KEY_AT] = key_at
    glue.info[info + KEY_SIZE] = key_size
    glue.info[info + KEY_LO] = np.int64(key_lo)
    glue.info[info + KEY_HI] = np.int64(key_hi)
    glue.slots[slot] = entry + 1
    for way in range(WAYS):
        glue.next[(NODE_ENTRY + entry) * WAYS + way] = -1
    glue.score[NODE_ENTRY + entry] = 0
    return entry


@callee
def has_text(text, at, size, glue, entry):
    for i in range(size):
        if text[at + i] != glue.text[entry * GLUE_BYTES + i]:
            return False
    return True


@callee
def follow(node, entry, glue):
    """Remember that ``entry`` came after ``node``: a new candidate enters in the middle, the last one leaves."""
    base = node * WAYS
    for way in range(WAYS):
        if glue.next[base + way] == entry:
            return
    place = 0
    while place < WAYS // 2 and glue.next[base + place] >= 0:
        place += 1
    for way in range(WAYS - 1, place, -1):
        glue.next[base + way] = glue.next[base + way - 1]
    glue.next[base + place] = entry


@piece
def promote(node, way, glue):
    """Move a candidate that fitted one place forward."""
    at = node * WAYS + way
    glue.next[at], glue.next[at - 1] = glue.next[at - 1], glue.next[at]
