"""The slow, obvious way to compute everything: one event at a time, plain Python, written from the specification.

Nothing here imports the program. Whatever is fast is compared with this. Choices where the specification is silent
are said where they are made. Times are milliseconds; ``append_ts`` is log time, ``ts`` the device's clock.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

LINE_BYTES_MAX = 1_048_576
DEAD_LETTER_BYTES_MAX = 64 << 10
DEPTH_MAX = 64
INT_LIMIT = 2**53
SUM_MAX, SUM_MIN = 2**63 - 1, -(2**63)
SEQ_WINDOW = 64
SEQ_JUMP_MAX = 2**20

REASONS = ("too_large", "invalid_utf8", "invalid_json", "not_an_object", "too_deep", "missing_field", "bad_type")
EVENT_NAMES = {name.lower(): name for name in ("Start", "Heartbeat", "Buffer", "Stop", "Error")}
REQUIRED = ("event", "ts", "device_id", "session_id")
STRINGS = ("phase", "reason", "error_code")
DIMENSIONS = ("user_id", "title_id", "region", "country", "device_type", "os", "app_version", "cdn", "isp", "network")
INTS = ("seq", "bitrate_kbps", "position_ms", "buffer_ms", "stall_ms", "startup_ms", "dropped_frames")
LADDER_KBPS = (235, 375, 560, 750, 1050, 1750, 2350, 3000, 4300, 5800)


# --- 1. One line -> one event, or the reason why not -------------------------------------------------------------
class Number(str):
    """A JSON number as its text, so that nothing passes through a double."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Number({str(self)!r})"


_TOKEN = re.compile(
    r"""[ \t\r]* (?: (?P<string> "(?: [^"\\\x00-\x1f] | \\["\\/bfnrt] | \\u[0-9a-fA-F]{4} )*+" )
                   | (?P<number> -?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)? )
                   | (?P<literal> true|false|null )
                   | (?P<mark> [\[\]{}:,] ) )""",
    re.VERBOSE,
)


def tokens(text: str) -> list[tuple[str, str]] | None:
    """(kind, text) of each token of a trimmed line, or None where a byte belongs to none. Marks are their own kind."""
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        kind = str(match.lastgroup)
        token = match[kind]
        found.append((token if kind == "mark" else "literal" if kind == "number" else kind, token))
        at = match.end()
    return found


def nesting(found: list[tuple[str, str]]) -> int:
    depth = deepest = 0
    for kind, _ in found:
        depth += (kind in "[{") - (kind in "]}")
        deepest = max(deepest, depth)
    return deepest


def is_grammatical(found: list[tuple[str, str]]) -> bool:
    """Whether the tokens make one JSON value. Keeps its own stack: a line may nest half a million deep."""
    stack: list[str] = []
    expected = "value"  # value, value or ], key, key or }, colon, comma or end of the innermost
    for kind, _ in found:
        if kind in ("string", "literal") and expected.startswith("value"):
            expected = "after"
        elif kind == "string" and expected.startswith("key"):
            expected = "colon"
        elif kind == ":" and expected == "colon":
            expected = "value"
        elif kind in ("[", "{") and expected.startswith("value"):
            stack.append(kind)
            expected = "value or ]" if kind == "[" else "key or }"
        elif kind in ("]", "}") and stack and stack[-1] == {"]": "[", "}": "{"}[kind] and (expected == "after" or expected.endswith(kind)):
            stack.pop()
            expected = "after"
        elif kind == "," and expected == "after" and stack:
            expected = "value" if stack[-1] == "[" else "key"
        else:
            return False
    return expected == "after" and not stack


def _is_text(string: str) -> bool:
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in string)


def parse_json(text: str) -> Any:
    """The value, strictly (RFC 8259): numbers as ``Number``, the last of equal keys. ValueError if it is not JSON."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    def check(value: Any) -> None:
        if isinstance(value, str) and not _is_text(value):
            raise ValueError("the escape of an unpaired surrogate")
        if isinstance(value, list):
            for item in value:
                check(item)

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, value in members:  # also those that a later key overwrites
            check(key)
            check(value)
        return dict(members)

    value = json.loads(text, parse_int=Number, parse_float=Number, parse_constant=refuse, object_pairs_hook=pairs)
    check(value)
    return value


def exact_int(text: str) -> int | None:
    """A JSON number's text cut toward zero, digit by digit; None beyond +-2^53."""
    mantissa, _, exponent_text = text.lower().lstrip("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    falls, size = exponent_text.startswith("-"), exponent_text.lstrip("+-").lstrip("0")
    exponent = (int(size) if len(size) < 10 else 10**10) if size else 0
    digits = whole + fraction
    point = len(whole) + (-exponent if falls else exponent)
    leading_zeros = len(digits) - len(digits.lstrip("0"))
    digits, point = digits[leading_zeros:], point - leading_zeros
    if not digits or point <= 0:
        return 0
    if point > 16:
        return None
    value = int(digits[:point].ljust(point, "0"))
    if value > INT_LIMIT:
        return None
    return -value if text.startswith("-") else value


def _json_of(line: bytes) -> dict[str, Any] | str:
    """The object of a trimmed line, or one of the first five reasons."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return "invalid_utf8"
    found = tokens(text)
    if found is None or not is_grammatical(found):
        return "invalid_json"
    depth = nesting(found)
    if depth > DEPTH_MAX:  # too deep for the json module as well: what is left to check are the strings
        if not all(_is_text(json.loads(token)) for kind, token in found if kind == "string"):
            return "invalid_json"
        return "too_deep" if found[0][0] == "{" else "not_an_object"
    try:
        value = parse_json(text)
    except ValueError:
        return "invalid_json"
    return value if isinstance(value, dict) else "not_an_object"


def decode_line(line: bytes) -> dict[str, Any] | str | None:
    """One line (without its LF): the event, or the reason why it is a dead letter, or None for a blank line.

    An event has every column: ``event`` (the five known names in canonical spelling), ``ts``, ``device_id``,
    ``session_id``, ``fatal``, STRINGS, INTS and DIMENSIONS (None = absent), and ``extra``: a dict, or None.
    Choices: a blank line is blank however long; size and ``raw`` of a dead letter are of the untrimmed line;
    unknown fields that are null are absent from ``extra`` too.
    """
    trimmed = line.strip(b" \t\r")
    if not trimmed:
        return None
    if len(line) > LINE_BYTES_MAX:
        return "too_large"
    value = _json_of(trimmed)
    if isinstance(value, str):
        return value
    fields = {key: item for key, item in value.items() if item is not None}
    if any(name not in fields for name in REQUIRED):
        return "missing_field"
    ts = exact_int(fields["ts"]) if isinstance(fields["ts"], Number) else None
    if ts is None or not 0 <= ts < INT_LIMIT:
        return "bad_type"
    if not all(_is_string(fields[name]) for name in ("event", "device_id", "session_id")):
        return "bad_type"
    name = fields["event"]
    event: dict[str, Any] = {
        "event": EVENT_NAMES.get(name.lower(), name) if name.isascii() else name,
        "ts": ts,
        "device_id": fields["device_id"],
        "session_id": fields["session_id"],
    }
    event |= {key: fields[key] if _is_string(fields.get(key)) else None for key in STRINGS}
    event |= {key: str(fields[key]) if isinstance(fields.get(key), str) else None for key in DIMENSIONS}
    event |= {key: exact_int(fields[key]) if isinstance(fields.get(key), Number) else None for key in INTS}
    event["fatal"] = fields["fatal"] if isinstance(fields.get("fatal"), bool) else None
    extra = {key: item for key, item in fields.items() if event.get(key) is None}
    event["extra"] = extra or None
    return event


def _is_string(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Number)


# --- 2. Partition ------------------------------------------------------------------------------------------------
def murmur2(key: bytes) -> int:
    """Kafka's 32-bit murmur2 (org.apache.kafka.common.utils.Utils.murmur2), as an unsigned number."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = (0x9747B28C ^ len(key)) & mask
    whole = len(key) // 4 * 4
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    if len(key) > whole:
        h = (h ^ int.from_bytes(key[whole:], "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def partition_of(device_id: str, partitions: int) -> int:
    return (murmur2(device_id.encode()) & 0x7FFFFFFF) % partitions


# --- 3. Sessions, 4. Detection -----------------------------------------------------------------------------------
@dataclass
class Session:
    device_id: str
    session_id: str
    start_ts: int
    end_ts: int
    seen: set[int] = field(default_factory=set)  # every seq taken; never forgotten here
    highest: int | None = None  # of them
    events: int = 0
    buffers: int = 0
    errors: int = 0
    duplicates: int = 0
    late: int = 0
    alerts: int = 0
    has_start: bool = False
    had_heartbeat: bool = False
    fatal_before_heartbeat: bool = False
    fatal_after_heartbeat: bool = False
    startup_ms: int | None = None
    stall_ms: int = 0
    run: int = 0
    run_alerted: bool = False
    stall_start: int = 0
    bitrate_kbps: int | None = None
    bitrate_sum: int = 0
    bitrate_count: int = 0
    stopped_at: int | None = None  # log time of the Stop
    touched_at: int = 0  # log time of the last applied event
    dimensions: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(DIMENSIONS))

    def remember(self, seq: int) -> None:
        self.seen.add(seq)
        self.highest = seq if self.highest is None else max(self.highest, seq)

    def end_run(self, ts: int) -> None:
        if self.run > 0:
            self.stall_ms = saturated(self.stall_ms + max(0, ts - self.stall_start))
        self.run = 0
        self.run_alerted = False

    def stop(self, ts: int, log_time: int) -> None:
        self.end_run(ts)
        self.stopped_at = log_time

    def outcome(self) -> str:
        if self.fatal_after_heartbeat:
            return "vpf"
        if self.fatal_before_heartbeat:
            return "vsf"
        return "played" if self.had_heartbeat else "ebvs"


def saturated(total: int) -> int:
    return max(SUM_MIN, min(SUM_MAX, total))


class ReferenceSessions:
    """The sessions of one partition. ``alerts`` and ``sessions`` grow as events are applied and time passes."""

    def __init__(
        self,
        *,
        timeout_ms: int = 90_000,
        grace_ms: int = 10_000,
        loop_threshold: int = 3,
        open_stall_ms: int = 10_000,
        ladder_kbps: tuple[int, ...] = LADDER_KBPS,
        has_log_time: bool = True,
        partition: int = 0,
    ) -> None:
        self.timeout_ms, self.grace_ms = timeout_ms, grace_ms
        self.loop_threshold, self.open_stall_ms, self.ladder_kbps = loop_threshold, open_stall_ms, ladder_kbps
        self.has_log_time, self.partition = has_log_time, partition
        self.kept: dict[tuple[str, str], Session] = {}
        self.log_time = 0
        self.alerts: list[dict[str, Any]] = []
        self.sessions: list[dict[str, Any]] = []

    def apply(self, event: dict[str, Any], append_ts: int = 0) -> tuple[bool, bool]:
        """(duplicate, late) of one event, in log order."""
        self.log_time = max(self.log_time, append_ts)
        key = (event["device_id"], event["session_id"])
        self._fire(key)
        session = self.kept.get(key)
        ts, kind = event["ts"], event["event"]
        if session is None:
            session = self._open(event)
        seq = event["seq"]
        highest = session.highest
        if seq is not None and highest is not None and seq > highest + SEQ_JUMP_MAX:
            seq = None  # a broken counter
        if seq is not None and highest is not None and (seq in session.seen or seq <= highest - SEQ_WINDOW):
            session.duplicates += 1
            return True, False
        if seq is not None and highest is not None and seq < highest:
            self._late(session, event)
            session.remember(seq)
            session.touched_at = self.log_time
            return False, True
        if session.stopped_at is not None and kind == "Start":
            stopped = session
            self._close(key, "stop")
            session = self._open(event)
            session.seen, session.highest = stopped.seen, stopped.highest
        if seq is not None:
            session.remember(seq)
        session.touched_at = self.log_time
        session.events += 1
        stall = kind == "Buffer" and event["phase"] not in ("startup", "seek")
        session.buffers += stall
        session.errors += kind == "Error"
        if session.stopped_at is None:
            session.start_ts, session.end_ts = min(session.start_ts, ts), max(session.end_ts, ts)
            self._in_order(session, event, seq, stall)
        return False, False

    def advance(self, log_time: int) -> None:
        """Fire the timers due up to ``log_time``."""
        self.log_time = max(self.log_time, log_time)
        for key in list(self.kept):
            self._fire(key)

    def close_all(self) -> None:
        """The end of a plain file."""
        for key, session in list(self.kept.items()):
            self._close(key, "open" if session.stopped_at is None else "stop")

    def _open(self, event: dict[str, Any]) -> Session:
        session = Session(event["device_id"], event["session_id"], event["ts"], event["ts"])
        self.kept[session.device_id, session.session_id] = session
        return session

    def _late(self, session: Session, event: dict[str, Any]) -> None:
        kind, ts = event["event"], event["ts"]
        session.late += 1
        session.events += 1
        session.buffers += kind == "Buffer" and event["phase"] not in ("startup", "seek")
        session.errors += kind == "Error"
        session.start_ts, session.end_ts = min(session.start_ts, ts), max(session.end_ts, ts)
        if kind == "Start":
            session.has_start = True
        elif kind == "Stop" and session.stopped_at is None:
            session.stop(ts, self.log_time)

    def _in_order(self, session: Session, event: dict[str, Any], seq: int | None, stall: bool) -> None:
        kind, ts = event["event"], event["ts"]
        for name in DIMENSIONS:
            if event[name] is not None:
                session.dimensions[name] = event[name]
        if event["bitrate_kbps"] is not None:
            session.bitrate_kbps = event["bitrate_kbps"]  # also the triggering event's own
        if kind == "Start":
            session.has_start = True
            session.end_run(ts)
        elif kind == "Heartbeat":
            session.end_run(ts)
            session.had_heartbeat = True
            if session.has_start and session.startup_ms is None:
                session.startup_ms = ts - session.start_ts
            if event["bitrate_kbps"] is not None:
                session.bitrate_sum = saturated(session.bitrate_sum + event["bitrate_kbps"])
                session.bitrate_count += 1
        elif stall:
            session.run += 1
            if session.run == 1:
                session.stall_start = ts
            if session.run == self.loop_threshold and not session.run_alerted:
                self._alert(session, "buffering_loop", ts, seq, self.log_time)
        elif kind == "Error" and event["fatal"]:
            session.fatal_after_heartbeat |= session.had_heartbeat
            session.fatal_before_heartbeat |= not session.had_heartbeat
        elif kind == "Stop":
            session.stop(ts, self.log_time)

    def _fire(self, key: tuple[str, str]) -> None:
        """The timers of one session that are due by now, in the order in which they were due."""
        session = self.kept.get(key)
        if session is None or not self.has_log_time:
            return
        if session.stopped_at is not None:
            if session.stopped_at + self.grace_ms <= self.log_time:
                self._close(key, "stop")
            return
        due = session.touched_at + self.open_stall_ms
        if session.run > 0 and not session.run_alerted and due <= self.log_time and self.open_stall_ms <= self.timeout_ms:
            self._alert(session, "open_stall", session.stall_start, session.highest, due)
        if session.touched_at + self.timeout_ms <= self.log_time:
            self._close(key, "timeout")

    def _alert(self, session: Session, kind: str, event_ts: int, seq: int | None, log_time: int) -> None:
        below = [rung for rung in self.ladder_kbps if session.bitrate_kbps is not None and rung < session.bitrate_kbps]
        name = (session.device_id, session.session_id, str(session.start_ts), str(session.alerts), kind)
        self.alerts.append(
            {
                "alert_id": hashlib.sha256("\0".join(name).encode()).hexdigest()[:32],
                "kind": kind,
                "action": "bitrate_downgrade",
                "device_id": session.device_id,
                "session_id": session.session_id,
                "event_ts": event_ts,
                "seq": seq,
                "buffers_in_run": session.run,
                "bitrate_kbps": session.bitrate_kbps,
                "recommended_bitrate_kbps": below[-1] if below else self.ladder_kbps[0],
                "append_ts_ms": log_time,
                "partition": self.partition,
                **session.dimensions,
            }
        )
        session.alerts += 1
        session.run_alerted = True

    def _close(self, key: tuple[str, str], end_reason: str) -> None:
        session = self.kept.pop(key)
        session.end_run(session.end_ts)
        duration = session.end_ts - session.start_ts
        self.sessions.append(
            {
                "device_id": session.device_id,
                "session_id": session.session_id,
                "start_ts": session.start_ts,
                "end_ts": session.end_ts,
                "duration_ms": duration,
                "playing_ms": max(0, duration - (session.startup_ms or 0) - session.stall_ms),
                "startup_ms": session.startup_ms,
                "stall_ms": session.stall_ms,
                "events": session.events,
                "buffers": session.buffers,
                "errors": session.errors,
                "duplicates": session.duplicates,
                "late": session.late,
                "alerts": session.alerts,
                "mean_bitrate_kbps": session.bitrate_sum / session.bitrate_count if session.bitrate_count else None,
                "end_reason": end_reason,
                "outcome": session.outcome(),
                **session.dimensions,
            }
        )


# --- 5. Accounting -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LogRecord:
    """One record of one partition's log."""

    value: bytes | None
    offset: int
    append_ts: int


@dataclass
class Result:
    """What must come out. Order of ``alerts`` and ``sessions`` is free; ``rows`` and ``dead_letters`` are in log order of
    each partition. A row is the event with ``partition offset line append_ts duplicate late``."""

    alerts: list[dict[str, Any]] = field(default_factory=list)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    dead_letters: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    empty_records: int = 0

    def ledger(self) -> dict[str, int]:
        accepted, dead = len(self.rows), len(self.dead_letters)
        duplicates = sum(row["duplicate"] for row in self.rows)
        return {
            "received": accepted + dead,
            "accepted": accepted,
            "applied": accepted - duplicates,
            "duplicates": duplicates,
            "dead_lettered": dead,
            "lake_rows": accepted,
            "empty_records": self.empty_records,
        }

    def _take(self, table: ReferenceSessions) -> None:
        self.alerts += table.alerts
        self.sessions += table.sessions

    def _dead(self, partition: int, offset: int, line: int, reason: str, raw: bytes) -> None:
        self.dead_letters.append(
            {"partition": partition, "offset": offset, "line": line, "reason": reason, "length": len(raw), "raw": raw[:DEAD_LETTER_BYTES_MAX]}
        )


def lines_of(value: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of every line; only LF ends one, and the last may lack it."""
    yield from enumerate(value.split(b"\n"))


def reference_log(
    log: dict[int, Iterable[LogRecord]],
    *,
    end_log_time: int | None = None,
    decode: Callable[[bytes], dict[str, Any] | str | None] = decode_line,
    **session_options: Any,
) -> Result:
    """A partitioned log, read to its end; then time passes until ``end_log_time`` (None: stops where the log does).

    ``decode``: ``decode_line``, or something that remembers what it said of a line.
    """
    result = Result()
    for partition, records in sorted(log.items()):
        table = ReferenceSessions(partition=partition, **session_options)
        for record in records:
            if not record.value:
                result.empty_records += 1
                continue
            for number, line in lines_of(record.value):
                event = decode(line)
                if isinstance(event, str):
                    result._dead(partition, record.offset, number, event, line)
                elif event is not None:
                    duplicate, late = table.apply(event, record.append_ts)
                    place = {"partition": partition, "offset": record.offset, "line": number, "append_ts": record.append_ts}
                    result.rows.append(event | place | {"duplicate": duplicate, "late": late})
        if end_log_time is not None:
            table.advance(end_log_time)
        result._take(table)
    return result


def reference_file(text: bytes, *, partitions: int = 1, **session_options: Any) -> Result:
    """A plain file: no log time, one record a line (``offset`` = line number, ``line`` 0), dead letters in partition 0."""
    result = Result()
    tables = [ReferenceSessions(has_log_time=False, partition=p, **session_options) for p in range(partitions)]
    for number, line in lines_of(text):
        event = decode_line(line)
        if isinstance(event, str):
            result._dead(0, number, 0, event, line)
        elif event is not None:
            partition = partition_of(event["device_id"], partitions)
            duplicate, late = tables[partition].apply(event)
            place = {"partition": partition, "offset": number, "line": 0, "append_ts": 0}
            result.rows.append(event | place | {"duplicate": duplicate, "late": late})
    for table in tables:
        table.close_all()
        result._take(table)
    return result
