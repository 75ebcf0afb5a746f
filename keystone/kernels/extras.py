"""What of an event has no column of its own: unknown members and mistyped ones, kept as one JSON object."""

# mypy: ignore-errors

import numpy as np

from keystone.events import BOOL_NULL, CODE_NULL, INT_NULL
from keystone.kernels.compiler import callee
from keystone.kernels.fields import (
    EXTRA_SLOTS,
    EXTRAS_LINEAR,
    EXTRAS_MAX,
    FATAL,
    FIRST_ID,
    FIRST_INT,
    IS_BUILT,
    STAMP,
    UNKNOWN,
    USER,
    X_FIELD,
    X_HI,
    X_KEY,
    X_KEY_END,
    X_LO,
    X_VALUE,
    X_VALUE_END,
)  # fmt: skip
from keystone.kernels.json_text import CLOSE_OBJECT, COLON, COMMA, OPEN_OBJECT

U = np.uint64


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
def add_extra(field, key, key_end, value, value_end, lo, hi, count, scratch):
    """Keep one unknown or mistyped member; the last of equal keys wins. ``value`` -1: null. Returns the new count."""
    extras = scratch.extras
    low, high = np.int64(lo), np.int64(hi)
    if count == 0:
        scratch.slots[IS_BUILT] = 0
    if field != UNKNOWN:
        place = count
    elif count < EXTRAS_LINEAR:
        place = np.int64(0)
        while place < count and not (extras[X_LO, place] == low and extras[X_HI, place] == high and extras[X_FIELD, place] == UNKNOWN):
            place += 1
    else:
        if not scratch.slots[IS_BUILT]:
            scratch.slots[IS_BUILT] = 1
            scratch.slots[STAMP] += 1  # a new stamp empties the table
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
    if scratch.slots[IS_BUILT]:
        put_extra_slot(place, scratch)
    return count + 1


@callee
def put_extra_slot(place, scratch):
    """Enter ``place`` in the hash table of this row (a slot holds stamp << 20 | place)."""
    stamp = scratch.slots[STAMP]
    slot = scratch.extras[X_LO, place] & (EXTRA_SLOTS - 1)
    while scratch.slots[slot] >> 20 == stamp:
        slot = (slot + 1) & (EXTRA_SLOTS - 1)
    scratch.slots[slot] = (stamp << 20) | place


@callee
def find_extra(low, high, count, scratch):
    """Place of the unknown key with that hash among many, or ``count``."""
    stamp = scratch.slots[STAMP]
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
