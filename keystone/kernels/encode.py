"""Events as JSON lines: prepared texts copied 32 bytes at a time, numbers written eight digits at a time."""

# mypy: ignore-errors
# ruff: noqa: I001 - dozens of names, one a line, would push the kernel off the page

from typing import NamedTuple

import numpy as np

from keystone.kernels.compiler import kernel, piece
from keystone.kernels.seats import (
    E_BUFFER, E_DEVICE, E_EXTRA, E_EXTRA_KIND, E_FULL, E_POSITION, E_PROFILE, E_RUNG, E_SEQ, E_SESSION, E_SHAPE, E_TITLE, E_TS, EVENT, EXTRA_NONE,
    SHAPE_BEAT, SHAPE_ERROR, SHAPE_SEEK, SHAPE_STALL, SHAPE_STARTUP, SHAPE_STOP,
)  # fmt: skip
from keystone.kernels.wide import copy_32, load_u64, store_u64, swap_bytes, trailing_zeros

U = np.uint64
ASCII_ZEROS = U(0x3030303030303030)
TEXT = 64  # bytes a prepared text takes
SHORT = 128  # of a profile's text in most events
LONG = 256  # of its text in a session's first event
LINE_MAX = 768  # bytes of the longest line; checked by the catalog
SHAPES, STYLES, RUNGS = 8, 3, 16
# Texts of one style: the openings by shape, then these. Every style has its own order of keys; see ``catalog``.
T_OPENING = 0
T_DEVICE, T_SESSION, T_SEQ, T_TS, T_BUFFER, T_DROPPED, T_STARTUP, T_STALL, T_PHASE_STARTUP, T_PHASE_SEEK = range(8, 18)
T_REASON = 18  # four
T_CODE = 22  # four of errors, four of fatal ones
T_USER, T_TITLE, T_QUOTE, T_END = range(30, 34)
T_RUNG = 34  # sixteen
TEXTS = 50  # of a style


class Texts(NamedTuple):
    """Prepared texts. ``sizes`` are in bytes; profiles are in the spelling of their device family."""

    text: np.ndarray  # uint8 (STYLES x TEXTS x TEXT,)
    size: np.ndarray  # int32 (STYLES x TEXTS,)
    short: np.ndarray  # uint8 (profiles x SHORT,)
    short_size: np.ndarray  # int32
    long: np.ndarray  # uint8 (profiles x LONG,)
    long_size: np.ndarray  # int32
    style: np.ndarray  # uint8 (profiles,)


@piece
def digits_of(value):
    """Eight decimal digits of ``value`` < 10^8, the most significant in the lowest byte."""
    x = (value // U(10_000)) | ((value % U(10_000)) << U(32))
    hundreds = ((x * U(10486)) >> U(20)) & U(0x0000007F0000007F)
    x = hundreds | ((x - hundreds * U(100)) << U(16))
    tens = ((x * U(103)) >> U(10)) & U(0x000F000F000F000F)
    return tens | ((x - tens * U(10)) << U(8))


@piece
def put_number(out, at, value):
    """Write 0 <= ``value`` < 10^8 without leading zeros; return the place after it."""
    digits = digits_of(U(value))
    zeros = trailing_zeros(digits | (U(1) << U(56))) >> 3
    store_u64(out, at, (digits | ASCII_ZEROS) >> U(8 * zeros))
    return at + 8 - zeros


@piece
def put_number_10(out, at, value):
    """Write ``value`` < 2^32 with ten digits."""
    high = value // 100_000_000
    out[at] = np.uint8(48 + high // 10)
    out[at + 1] = np.uint8(48 + high % 10)
    store_u64(out, at + 2, digits_of(U(value - high * 100_000_000)) | ASCII_ZEROS)
    return at + 10


@piece
def hex_word(x):
    """Eight hexadecimal letters of ``x`` < 2^32."""
    x = ((x & U(0xFFFF0000)) << U(16)) | (x & U(0xFFFF))
    x = ((x << U(8)) & U(0x00FF000000FF0000)) | (x & U(0x000000FF000000FF))
    x = ((x << U(4)) & U(0x0F000F000F000F00)) | (x & U(0x000F000F000F000F))
    letters = ((x + U(0x0606060606060606)) >> U(4)) & U(0x0101010101010101)
    return swap_bytes((x | ASCII_ZEROS) + letters * U(39))


@piece
def put_hex(out, at, value):
    """Write 16 hexadecimal digits."""
    store_u64(out, at, hex_word(value >> U(32)))
    store_u64(out, at + 8, hex_word(value & U(0xFFFFFFFF)))
    return at + 16


@piece
def put(out, at, texts, which):
    """Copy a prepared text of at most 32 bytes."""
    copy_32(out, at, texts.text, which * TEXT)
    return at + np.int64(texts.size[which])


@piece
def put_wide(out, at, texts, which):
    """Copy a prepared text of at most 64 bytes."""
    copy_32(out, at, texts.text, which * TEXT)
    copy_32(out, at + 32, texts.text, which * TEXT + 32)
    return at + np.int64(texts.size[which])


@piece
def put_short(out, at, texts, profile):
    source = profile * SHORT
    copy_32(out, at, texts.short, source)
    copy_32(out, at + 32, texts.short, source + 32)
    copy_32(out, at + 64, texts.short, source + 64)
    copy_32(out, at + 96, texts.short, source + 96)
    return at + np.int64(texts.short_size[profile])


@piece
def put_long(out, at, texts, base, profile, device, title):
    for i in range(0, LONG, 32):
        copy_32(out, at + i, texts.long, profile * LONG + i)
    at += np.int64(texts.long_size[profile])
    at = put(out, at, texts, base + T_USER)
    at = put_number_10(out, at, (device * 2_654_435_761) & 0xFFFFFFFF)  # odd: one user a device
    at = put(out, at, texts, base + T_TITLE)
    store_u64(out, at, (digits_of(U(title)) | ASCII_ZEROS) >> U(24))
    return put(out, at + 5, texts, base + T_QUOTE)


@piece
def put_dimensions(out, at, texts, base, profile, events, e):
    if events[e + E_FULL]:
        return put_long(out, at, texts, base, profile, np.int64(events[e + E_DEVICE]), np.int64(events[e + E_TITLE]))
    return put_short(out, at, texts, profile)


@piece
def put_ts(out, at, high, ts):
    """Thirteen digits: the first five are ready in ``high``."""
    store_u64(out, at, high)
    store_u64(out, at + 5, digits_of(U(ts)) | ASCII_ZEROS)
    return at + 13


@piece
def put_extra(out, at, texts, base, events, e):
    """What a shape has beyond the fields that all share."""
    shape = np.int64(events[e + E_SHAPE])
    extra = np.int64(events[e + E_EXTRA])
    if shape == SHAPE_BEAT:
        kind = np.int64(events[e + E_EXTRA_KIND])
        if kind == EXTRA_NONE:
            return at
        return put_number(out, put(out, at, texts, base + T_DROPPED - 1 + kind), extra)
    if shape in (SHAPE_STALL, SHAPE_STARTUP):
        at = put_number(out, put(out, at, texts, base + T_STALL), extra)
        return at if shape == SHAPE_STALL else put(out, at, texts, base + T_PHASE_STARTUP)
    if shape == SHAPE_SEEK:
        return put(out, at, texts, base + T_PHASE_SEEK)
    if shape == SHAPE_STOP:
        return put(out, at, texts, base + T_REASON + extra)
    if shape >= SHAPE_ERROR:
        return put_wide(out, at, texts, base + T_CODE + 4 * (shape - SHAPE_ERROR) + extra)
    return at


@piece
def put_metrics(out, at, texts, base, events, e):
    at = put_wide(out, at, texts, base + T_RUNG + np.int64(events[e + E_RUNG]))
    at = put_number(out, at, np.int64(events[e + E_POSITION]))
    at = put(out, at, texts, base + T_BUFFER)
    at = put_number(out, at, np.int64(events[e + E_BUFFER]))
    return put_extra(out, at, texts, base, events, e)


@kernel
def encode(events, count, texts, epoch_ms, out, at, frame_bytes_max, frames, frame):
    """Write ``count`` events as lines into ``out[at:]``; return the place after the last.

    Begins frame ``frame``, and another whenever the next line might exceed ``frame_bytes_max``. Row i of ``frames``
    (int64) is: first byte, byte after the last line (its LF not counted), events. Callers count the frames by ``at``.
    ``out`` has room for LINE_MAX bytes an event. ``epoch_ms`` >= 10^12: ts has 13 digits.
    """
    frames[frame, 0] = at
    frames[frame, 2] = 0
    hundred_million = 100_000_000
    base_high = epoch_ms // hundred_million
    base_low = epoch_ms - base_high * hundred_million
    high = (digits_of(U(base_high)) | ASCII_ZEROS) >> U(24)
    next_high = (digits_of(U(base_high + 1)) | ASCII_ZEROS) >> U(24)
    for i in range(count):
        if at - frames[frame, 0] > frame_bytes_max - LINE_MAX:
            frame += 1
            frames[frame, 0] = at
            frames[frame, 2] = 0
        e = i * EVENT
        profile = np.int64(events[e + E_PROFILE])
        style = np.int64(texts.style[profile])
        base = style * TEXTS
        opening = base + T_OPENING + np.int64(events[e + E_SHAPE])
        ts = base_low + np.int64(events[e + E_TS])
        ts_high = high
        if ts >= hundred_million:
            ts -= hundred_million
            ts_high = next_high
            if ts >= hundred_million:  # over 27 hours into a run
                carry = ts // hundred_million
                ts -= carry * hundred_million
                ts_high = (digits_of(U(base_high + 1 + carry)) | ASCII_ZEROS) >> U(24)
        device = np.int64(events[e + E_DEVICE])
        session = load_u64(events, e + E_SESSION)
        seq = np.int64(events[e + E_SEQ])
        if style == 0:
            at = put_ts(out, put(out, at, texts, opening), ts_high, ts)
            at = put_number_10(out, put(out, at, texts, base + T_DEVICE), device)
            at = put_hex(out, put(out, at, texts, base + T_SESSION), session)
            at = put_number(out, put(out, at, texts, base + T_SEQ), seq)
            at = put_dimensions(out, at, texts, base, profile, events, e)
            at = put_metrics(out, at, texts, base, events, e)
        elif style == 1:
            at = put_number_10(out, put(out, at, texts, base + T_DEVICE), device)
            at = put_hex(out, put(out, at, texts, base + T_SESSION), session)
            at = put_number(out, put_wide(out, at, texts, opening), seq)
            at = put_ts(out, put(out, at, texts, base + T_TS), ts_high, ts)
            at = put_metrics(out, at, texts, base, events, e)
            at = put_dimensions(out, at, texts, base, profile, events, e)
        else:
            at = put_ts(out, put(out, at, texts, base + T_TS), ts_high, ts)
            at = put_hex(out, put_wide(out, at, texts, opening), session)
            at = put_number_10(out, put(out, at, texts, base + T_DEVICE), device)
            at = put_number(out, put(out, at, texts, base + T_SEQ), seq)
            at = put_dimensions(out, at, texts, base, profile, events, e)
            at = put_metrics(out, at, texts, base, events, e)
        at = put(out, at, texts, base + T_END)
        frames[frame, 1] = at - 1
        frames[frame, 2] += 1
    return at
