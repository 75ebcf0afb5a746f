"""What a log record looks like, and what of it nobody gets to read.

A record is *captured* where it is logged: no bytes, no mutable value and nothing long stays behind it. It is *rendered* by
the writing thread, as a line for people or as one JSON object. Whichever way, above DEBUG:

- ids of devices, users and sessions are keyed hashes: equal within a process, so that its lines can be put together, and
  of no use to anyone else;
- an error is its type and the beginning of its message.

At no level are shown: fields whose name says secret, pydantic's secrets, and bytes, of which only the number is. What is
not a plain value is its type's name: what the ``repr`` of a batch holds, nobody reviewed.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import numbers
import os
import re
import time
import traceback
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from typing import Any, Final, NamedTuple

import orjson

IDENTITIES: Final = frozenset({"device_id", "user_id", "session_id"})  # fields shown as hashes, given as plain strings or not
PAYLOADS: Final = frozenset({"payload", "raw"})  # fields of which only the length is shown, even as text
SECRET_ENDINGS: Final = ("password", "secret", "token", "authorization", "api_key")
STARS: Final = "**********"

#: Of one record in the queue: 1,000 + 24 x 200 + 300 characters, 6 kB at worst and some 0.5 kB as a rule, without a traceback.
MESSAGE_CHARS_MAX: Final = 1_000
FIELD_CHARS_MAX: Final = 200
FIELDS_MAX: Final = 24  # also of the items of a list or table
DEPTH_MAX: Final = 3  # of lists and tables within each other
ERROR_CHARS_MAX: Final = 300  # of an error's message: what libraries quote of their input stands behind that, if at all
TRACE_ERRORS_MAX: Final = 4  # of a chain of causes ...
TRACE_FRAMES_MAX: Final = 20  # ... the innermost calls: 4 x 20 x ~120 B = 10 kB, at DEBUG only

#: Where a record of ours keeps its fields; a record that has it was counted before it was made (``logs.Log``).
FIELDS: Final = "keystone_fields"
OURS: Final = "keystone"

_KEY: Final = os.urandom(16)
_DIGEST_BYTES: Final = 5  # 40 bits: among 10,000 ids in a log, two look alike with a chance of 5e-5
_PLAIN: Final = frozenset({int, float, bool, type(None)})
_BYTES: Final = (bytes, bytearray, memoryview)
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_LEVELS: Final = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error", logging.CRITICAL: "critical"}
_COLOURS: Final = {"debug": "\x1b[2m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[1;31m"}
_RESET: Final = "\x1b[0m"
_CONTROLS: Final = re.compile(rb"\x7f|\xc2[\x80-\x9f]")  # that JSON leaves as they are, in UTF-8


class Identity:
    """An id that is shown as a hash, in full only by a record of level DEBUG. Of a long one, what makes it too long counts by its length."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = _cut(str(value), FIELD_CHARS_MAX)

    def __str__(self) -> str:
        return "~" + hashlib.blake2b(self._value.encode("utf-8", "backslashreplace"), digest_size=_DIGEST_BYTES, key=_KEY).hexdigest()

    __repr__ = __str__

    def shown(self, level: int) -> str:
        return self._value if level <= logging.DEBUG else str(self)


def device(device_id: object) -> Identity:
    """A device's id, for a field or argument of any name."""
    return Identity(device_id)


def user(user_id: object) -> Identity:
    """A user's id, for a field or argument of any name."""
    return Identity(user_id)


class Payload:
    """Stands for bytes or text of which only the length may be read; does not hold on to them."""

    __slots__ = ("_text",)

    def __init__(self, value: bytes | bytearray | memoryview | str) -> None:
        self._text = f"<{len(value):,} characters>" if isinstance(value, str) else f"<{memoryview(value).nbytes:,} bytes>"

    def __str__(self) -> str:
        return self._text

    __repr__ = __str__

    def shown(self, level: int) -> str:  # noqa: ARG002 - as of an Identity
        return self._text


def payload(value: bytes | bytearray | memoryview | str) -> Payload:
    """``<1,234 bytes>`` instead of them, for a field or argument of any name."""
    return Payload(value)


class Line(NamedTuple):
    """A captured record: immutable, bounded, and all that the writing thread needs."""

    created: float  # wall time, s
    level: int
    logger: str
    message: str
    fields: Mapping[str, Any] = {}
    error: str | None = None
    trace: str | None = None  # only of loggers that are enabled for DEBUG


# --- captured, where it is logged ---------------------------------------------------------------------------------------
def captured(record: logging.LogRecord) -> Line:
    """What of a record, ours or a library's, may be written."""
    is_ours = record.name == OURS or record.name.startswith(f"{OURS}.")
    fields = record.__dict__.get(FIELDS)
    if fields is None:
        fields = _extras(record) if is_ours else {}
    if fields:
        fields = _captured_table(fields, DEPTH_MAX)
    message = record.msg
    if record.args or not isinstance(message, str) or len(message) > MESSAGE_CHARS_MAX:
        message = _message(record, is_ours=is_ours)
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return Line(record.created, record.levelno, record.name, message, fields)
    trace = _trace(error) if logging.getLogger(record.name).isEnabledFor(logging.DEBUG) else None
    return Line(record.created, record.levelno, record.name, message, fields, error_text(error), trace)


def _extras(record: logging.LogRecord) -> dict[str, object]:
    """What ``extra=`` gave a record of a module of ours that uses plain ``logging``. Nobody knows what other libraries give."""
    return {name: value for name, value in record.__dict__.items() if name not in _STANDARD and not name.startswith("_")}


def _message(record: logging.LogRecord, *, is_ours: bool) -> str:
    text = record.msg if isinstance(record.msg, str) else str(_argument(record.msg, record.levelno, is_ours=is_ours))
    if record.args:
        try:
            if isinstance(record.args, Mapping):
                text = text % {name: _argument(value, record.levelno, is_ours=is_ours) for name, value in record.args.items()}
            else:
                text = text % tuple([_argument(value, record.levelno, is_ours=is_ours) for value in record.args])
        except Exception:  # noqa: BLE001 - whatever a library's argument raises, its record must not take the caller down
            text += " (its arguments do not fit)"
    return _cut(text, MESSAGE_CHARS_MAX)


def _argument(value: object, level: int, *, is_ours: bool) -> object:
    """An argument of a message. What other libraries make of their own types is left to them, but for bytes and errors."""
    if type(value) in _PLAIN or type(value) is str:
        return value
    if is_ours or isinstance(value, (Identity, *_BYTES, BaseException, list, tuple, dict)):
        return _shown("", _captured_value("", value, DEPTH_MAX), level)
    return value


def _captured_table(table: Mapping[Any, Any], depth: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in itertools.islice(table.items(), FIELDS_MAX):
        text = name if type(name) is str and len(name) <= FIELD_CHARS_MAX else _cut(str(name), FIELD_CHARS_MAX)
        found[text] = value if type(value) in _PLAIN else _captured_value(text, value, depth)
    if len(table) > FIELDS_MAX:
        found["left_out"] = len(table) - FIELDS_MAX
    return found


def _captured_value(name: str, value: Any, depth: int) -> object:
    """A value that stays as it is and is not long."""
    if isinstance(value, str):
        return Payload(value) if name in PAYLOADS else _cut(value, FIELD_CHARS_MAX)
    if isinstance(value, _BYTES):
        return Payload(value)
    if depth and isinstance(value, Mapping):
        return _captured_table(value, depth - 1)
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [_captured_value(name, item, depth - 1) for item in itertools.islice(value, FIELDS_MAX)]
    return _captured_object(value)


def _captured_object(value: object) -> object:
    if type(value) in _PLAIN or isinstance(value, (Identity, Payload)):
        return value
    if isinstance(value, numbers.Real):  # numpy's among them
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if isinstance(value, BaseException):
        return error_text(value)
    if isinstance(value, (Enum, PurePath)):
        return _cut(str(value.value if isinstance(value, Enum) else value), FIELD_CHARS_MAX)
    return STARS if "secret" in type(value).__name__.lower() else f"<{type(value).__name__}>"


def error_text(error: BaseException) -> str:
    """``Type: message``, the message on one line and cut; where bytes are among its arguments, their number instead of it."""
    if any(isinstance(argument, _BYTES) for argument in error.args):
        message = " ".join(str(_captured_value("", argument, 1)) for argument in error.args)
    else:
        try:
            message = str(error)
        except Exception:  # noqa: BLE001 - an error that cannot even say what it is has at least a type
            message = ""
    message = _cut(" ".join(message.split()), ERROR_CHARS_MAX)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _trace(error: BaseException) -> str:
    """Calls and errors, causes first, with messages as short as everywhere: the standard traceback quotes them whole."""
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None and len(parts) < TRACE_ERRORS_MAX:
        frames = "".join(traceback.format_tb(current.__traceback__, limit=-TRACE_FRAMES_MAX))
        parts.append(f"{frames}{error_text(current)}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\nwhich led to\n".join(reversed(parts))


def _cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else f"{text[:chars_max]}... ({len(text):,} characters)"


# --- rendered, by the writing thread ------------------------------------------------------------------------------------
def as_json(line: Line, *, role: str, pid: int) -> bytes:
    """One JSON object and a line feed: ``ts level logger msg role pid``, ``error`` and ``traceback`` where there are any, the fields.

    A field of a name that is taken gets an underscore behind it.
    """
    seconds, ms = divmod(int(line.created * 1_000), 1_000)
    found: dict[str, object] = {
        "ts": f"{_utc(seconds)}.{ms:03d}Z",
        "level": level_name(line.level),
        "logger": line.logger,
        "msg": line.message,
        "role": role,
        "pid": pid,
    }
    if line.error is not None:
        found["error"] = line.error
    if line.trace is not None:
        found["traceback"] = line.trace
    for name, value in line.fields.items():
        found[name if name not in found else f"{name}_"] = _shown(name, value, line.level)
    try:
        text = orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # lone surrogates, integers beyond 64 bits
        text = orjson.dumps({_printable(name): _encodable(value) for name, value in found.items()}, option=orjson.OPT_APPEND_NEWLINE)
    return _CONTROLS.sub(lambda match: b"\\u00%02x" % match[0][-1], text)


def as_text(line: Line, *, role: str, has_colours: bool) -> bytes:
    """A line for people, in local time; a traceback follows it, indented. Nothing in it controls a terminal but our own colours."""
    seconds, ms = divmod(int(line.created * 1_000), 1_000)
    level = level_name(line.level)
    label = f"{level.upper():<8}"
    if has_colours and level in _COLOURS:
        label = f"{_COLOURS[level]}{label}{_RESET}"
    speaker = "" if role == "main" else f"[{role}] "
    text = f"{_local(seconds)}.{ms:03d} {label} {speaker}{_body(line)}\n"
    if line.trace is not None:
        text += "".join(f"    {_printable(part)}\n" for part in line.trace.splitlines())
    return text.encode()


def brief(line: Line, chars_max: int) -> str:
    """``WARNING actors.session: message field=value``, for a list of what went wrong."""
    return _cut(f"{level_name(line.level).upper()} {_body(line)}", chars_max)


@lru_cache(maxsize=2)  # most lines are of the same second
def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


@lru_cache(maxsize=2)
def _local(seconds: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def level_name(level: int) -> str:
    return _LEVELS.get(level) or f"level {level}"


def _body(line: Line) -> str:
    words = [f"{line.logger.removeprefix(OURS + '.')}: {_printable(line.message)}"]
    words += [f"{_printable(name)}={_word(_shown(name, value, line.level))}" for name, value in line.fields.items()]
    if line.error is not None:
        words.append(f"({_printable(line.error)})")
    return " ".join(words)


def _shown(name: str, value: object, level: int) -> object:
    """A captured value as this level may see it."""
    if name.lower().endswith(SECRET_ENDINGS) and value is not None:
        return STARS
    if isinstance(value, (Identity, Payload)):
        return value.shown(level)
    if isinstance(value, dict):
        return {below: _shown(below, item, level) for below, item in value.items()}
    if isinstance(value, list):
        return [_shown(name, item, level) for item in value]
    return Identity(value).shown(level) if name in IDENTITIES and value is not None else value


def _encodable(value: object) -> object:
    return value if isinstance(value, (int, float)) and abs(value) < 1 << 63 else _printable(str(value))


def _word(value: object) -> str:
    """``value``, or ``"a value"`` where blanks would tear it apart."""
    text = _printable(str(value))
    return text if text and not set(text) & set(' "=') else f'"{text}"'


def _printable(text: str) -> str:
    """Control characters and lone surrogates as escapes: a line stays one, and nothing reaches the terminal's controls."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
