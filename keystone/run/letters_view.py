"""Bytes that nobody vouches for, on a terminal: escaped, cut to the width; and where in them the error is."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, Final, NamedTuple

from rich.cells import cell_len

from keystone.events import DEPTH_MAX, LINE_BYTES_MAX
from keystone.run.letters_check import look_at
from keystone.sinks.letters_read import Letter

MARKS_MAX: Final = 2  # combining marks on one letter; with hundreds a line is drawn over its neighbours
CUT: Final = "…"
_NAMED: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}
_REQUIRED: Final[dict[str, type | tuple[type, ...]]] = {"event": str, "ts": (int, float), "device_id": str, "session_id": str}
_SURROGATES: Final = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(\\u[dD][c-fC-F][0-9a-fA-F]{2})?|\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\.")
_NUMBERS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|NaN|-?Infinity|-?0[0-9]+')


def escaped(text: bytes | str, *, width: int | None = None, is_ascii: bool = False) -> str:
    r"""One line that any terminal shows as it is meant: ``\n``, ``\x1b``, ``\u202e``, ``\xff`` for a byte that is no UTF-8, ``\\`` for a backslash.

    Nothing in it moves the cursor, changes colours or turns the writing around. ``width``: of columns at most; what is cut ends in ``…``.
    ``is_ascii``: escape everything else, where the terminal takes nothing else.
    """
    parts: list[str] = []
    used = marks = 0
    cut, room = ("~" if is_ascii else CUT), width
    for char in text if isinstance(text, str) else text.decode("utf-8", "surrogateescape"):
        marks = marks + 1 if unicodedata.category(char).startswith("M") else 0
        shown = _shown(char, is_ascii=is_ascii or marks > MARKS_MAX)
        if room is not None:
            used += cell_len(shown)
            if used > room:
                return _cut("".join(parts), room, cut)
        parts.append(shown)
    return "".join(parts)


def _cut(text: str, width: int, cut: str) -> str:
    while text and cell_len(text) > width - 1:
        text = text[:-1]
    return text + cut if width > 0 else ""


def _shown(char: str, *, is_ascii: bool) -> str:
    code = ord(char)
    if char in _NAMED:
        return _NAMED[char]
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if char.isprintable() and (code < 0x7F or not is_ascii):
        return char
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Fault(NamedTuple):
    """``at``: of the byte where the line stops being usable; None where that cannot be told. ``what``: in a few words."""

    at: int | None
    what: str


def fault_of(letter: Letter) -> Fault:
    """Where the error is, by looking again. What the decoder would say today comes first: rules may have changed since."""
    if letter.length > LINE_BYTES_MAX:
        return Fault(LINE_BYTES_MAX, f"{letter.length:,} bytes, and {LINE_BYTES_MAX:,} are allowed")
    now = look_at(letter.raw).reason if letter.is_whole else letter.reason
    if now is None:
        return Fault(None, "nothing: it would be accepted now")
    found = _LOOKS[now](letter.raw) if now in _LOOKS else Fault(None, "")
    if not letter.is_whole and (found.at is None or found.at >= len(letter.raw) - 3 or found.what.startswith("Unterminated")):
        return Fault(None, f"behind the {len(letter.raw):,} bytes that are kept")
    return found if now == letter.reason else Fault(found.at, f"{found.what} (now {now})".strip())


def _utf8(raw: bytes) -> Fault:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return Fault(error.start, f"byte 0x{raw[error.start]:02x}: {error.reason}")
    return Fault(None, "")


def _json(raw: bytes) -> Fault:
    text = raw.decode("utf-8", "surrogateescape")
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return Fault(len(text[: error.pos].encode("utf-8", "surrogateescape")), error.msg)
    except (RecursionError, ValueError):
        return Fault(None, "")
    for found in _NUMBERS.finditer(raw):
        if not found[0].startswith(b'"'):
            return Fault(found.start(), f"{found[0].decode()} is no JSON")
    for found in _SURROGATES.finditer(raw):
        if found[0][1:2] == b"u" and found[1] is None:
            return Fault(found.start(), "the escape of an unpaired surrogate")
    return Fault(None, "")


def _deep(raw: bytes) -> Fault:
    depth, at, is_text = 0, 0, False
    while at < len(raw):
        char = raw[at]
        if is_text:
            at += char == ord("\\")
            is_text = char != ord('"')
        elif char == ord('"'):
            is_text = True
        elif char in b"[{":
            depth += 1
            if depth > DEPTH_MAX:
                return Fault(at, f"nested {depth} deep, and {DEPTH_MAX} are allowed")
        elif char in b"]}":
            depth -= 1
        at += 1
    return Fault(None, "")


def _fields(raw: bytes) -> Fault:
    """Which required field is missing or of the wrong type; and where it is, if its key is there once."""
    try:
        event: dict[str, Any] = json.loads(raw)
    except (ValueError, RecursionError):
        return Fault(None, "")
    missing = [name for name in _REQUIRED if event.get(name) is None]
    if missing:
        return Fault(None, f"{', '.join(missing)}: absent or null")
    for name, kind in _REQUIRED.items():
        value = event[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            return Fault(_key_at(raw, name), f"{name} is {_kind(value)}")
    return Fault(_key_at(raw, "ts"), "ts is not from 0 to below 2^53")


def _key_at(raw: bytes, name: str) -> int | None:
    key = f'"{name}"'.encode()
    return raw.find(key) if raw.count(key) == 1 else None


def _kind(value: object) -> str:
    kinds = ((bool, "true or false"), (str, "a string"), ((int, float), "a number"), (list, "an array"), (dict, "an object"))
    return next(name for kind, name in kinds if isinstance(value, kind))


_LOOKS: Final = {
    "invalid_utf8": _utf8,
    "invalid_json": _json,
    "not_an_object": lambda raw: Fault(len(raw) - len(raw.lstrip(b" \t\r")), "no object begins here"),
    "too_deep": _deep,
    "missing_field": _fields,
    "bad_type": _fields,
}
