"""Cost of an event and of a session in the session table, with few and with many sessions active.

    python benchmarks/session_table.py [--sessions 100000 10000000] [--ids uuid|hex] [--json FILE]

Every session gets an event in turn, each round in another random order (the worst case for caches), in batches of 4096
as the decoder makes them. 4% of the sessions stall, at 30% of their events; 0.2% of events are Stops, after which the
next event opens the session anew. Log time passes as if each session sent every 5 s; timers are swept after every
batch, and count. CPU time of this process, batch making taken off. Memory is both what the table says and what the
process grew by. The rival keeps one Python object a session in a dict and does a part of the same work (order, run,
startup, bitrate; no dimensions, no timers).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil

from benchmarks.measure import report
from keystone.config import DetectionConfig, SessionConfig
from keystone.events import (
    DICTIONARY_COLUMNS,
    FIRST_DIMENSION,
    INT_COLUMNS,
    INT_NULL,
    KIND_BUFFER,
    KIND_ERROR,
    KIND_HEARTBEAT,
    KIND_START,
    KIND_STOP,
    PADDING,
    EventBatch,
    StringColumn,
)  # fmt: skip
from keystone.session_snapshot import Strings
from keystone.sessions import SessionTable

BATCH = 4096
HEARTBEAT_MS = 5_000
START_MS = 1_700_000_000_000
EVENTS_MIN = 4_000_000  # measured at each size
WARM_ROUNDS = 4  # not measured: round 0 opens the sessions, and until round 3 no stall can make a loop, no stopped session end
DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)
DASHES = (8, 13, 18, 23)


class Texts:
    """Dictionary strings that nobody reads here."""

    def text(self, column: int, code: int) -> str:
        return f"{column}-{code}"

    def intern(self, column: int, value: bytes) -> int:
        raise AssertionError(f"nothing is restored here, so nothing is interned: {column}, {value!r}")

    def strings(self) -> Strings:
        raise AssertionError("nothing is kept here")


def mixed(numbers: np.ndarray, salt: int) -> np.ndarray:
    """splitmix64 of each number."""
    x = (numbers.astype(np.uint64) + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def decimal(numbers: np.ndarray, width: int, prefix: bytes) -> np.ndarray:
    powers = 10 ** np.arange(width - 1, -1, -1)
    digits = (numbers[:, None] // powers % 10 + 48).astype(np.uint8)
    return np.hstack((np.tile(np.frombuffer(prefix, np.uint8), (numbers.size, 1)), digits))


def hexadecimal(words: list[np.ndarray]) -> np.ndarray:
    shifts = np.arange(60, -4, -4).astype(np.uint64)
    return DIGITS[np.hstack([(word[:, None] >> shifts).astype(np.int64) & 15 for word in words])]


def column(values: np.ndarray) -> StringColumn:
    rows, width = values.shape
    data = np.concatenate((values.reshape(-1), np.zeros(PADDING, np.uint8)))
    return StringColumn((np.arange(rows + 1) * width).astype(np.int32), data, np.ones(rows, np.uint8))


def session_ids(numbers: np.ndarray, style: str) -> np.ndarray:
    if style == "hex":
        return hexadecimal([mixed(numbers, 3)])
    digits = iter(hexadecimal([mixed(numbers, 3), mixed(numbers, 4)]).T)
    return np.stack([np.full(numbers.size, 45, np.uint8) if k in DASHES else next(digits) for k in range(36)], axis=1)


def batch_of(numbers: np.ndarray, kinds: np.ndarray, seq: int, log_time: int, style: str, rng: np.random.Generator) -> EventBatch:
    rows = numbers.size
    ints = np.full((len(INT_COLUMNS), rows), INT_NULL, np.int64)
    ints[0] = seq
    ints[1] = np.where(kinds == KIND_HEARTBEAT, rng.choice([1050, 1750, 3000], rows), INT_NULL)
    codes = np.full((len(DICTIONARY_COLUMNS), rows), -1, np.int32)
    codes[FIRST_DIMENSION:] = (mixed(numbers, 5) % np.uint64(50)).astype(np.int32)
    times = np.full(rows, log_time, np.int64)
    return EventBatch(
        0, rows, kinds, np.zeros(rows, np.int8), times - rng.integers(0, 100, rows), ints, codes,
        column(decimal(numbers, 8, b"dev-")), column(session_ids(numbers, style)), column(decimal(numbers, 9, b"u")), column(np.zeros((rows, 0), np.uint8)),
        mixed(numbers, 1), mixed(numbers, 2), mixed(numbers, 6), np.arange(rows), np.zeros(rows, np.int32), times,
        np.zeros(rows, np.uint8), np.zeros(rows, np.uint8),
    )  # fmt: skip


def batches(sessions: int, rounds: int, style: str, rng: np.random.Generator) -> Iterator[tuple[int, EventBatch]]:
    """(round, batch). Round 0 opens every session; each later one touches every session once, in another order."""
    sent = 0
    for turn in range(rounds):
        order = rng.permutation(sessions)
        for first in range(0, sessions, BATCH):
            numbers = order[first : first + BATCH]
            luck = rng.random(numbers.size)
            kinds = np.where(luck < 0.002, KIND_STOP, KIND_HEARTBEAT).astype(np.int8)
            bad = numbers % 25 == 0
            kinds[bad] = np.select([luck[bad] < 0.3, luck[bad] < 0.32], [KIND_BUFFER, KIND_ERROR], kinds[bad])
            if turn == 0:
                kinds[:] = KIND_START
            sent += numbers.size
            yield turn, batch_of(numbers, kinds, turn, START_MS + sent * HEARTBEAT_MS // sessions, style, rng)


def measure(sessions: int, style: str) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    rounds = WARM_ROUNDS + max(1, -(-EVENTS_MIN // sessions))
    process = psutil.Process()
    for _ in batches(2 * BATCH, 2, style, rng):  # what making batches itself needs
        pass
    rss_before = process.memory_info().rss
    table = SessionTable(SessionConfig(), DetectionConfig(), Texts())
    spent = {part: [0.0, 0] for part in ("opening", "warming", "measured")}
    closed = alerts = most = 0
    for turn, batch in batches(sessions, rounds, style, rng):
        started = time.process_time()
        done = table.apply(batch)
        swept = table.advance(int(batch.append_ts_ms[-1]))
        part = "opening" if turn == 0 else "warming" if turn < WARM_ROUNDS else "measured"
        spent[part][0] += time.process_time() - started
        spent[part][1] += batch.rows
        closed += done.sessions.rows + swept.sessions.rows
        alerts += len(done.alerts) + len(swept.alerts)
        most = max(most, table.active)
    return {
        "way": "session table",
        "sessions": sessions,
        "ids": style,
        "events": spent["measured"][1],
        "closed": closed,
        "alerts": alerts,
        "active_max": most,
        "ns_per_event": round(spent["measured"][0] / spent["measured"][1] * 1e9, 1),
        "ns_per_opening": round(spent["opening"][0] / spent["opening"][1] * 1e9, 1),
        "state_bytes_per_session": round(table.state_bytes / most, 1),
        "rss_bytes_per_session": round((process.memory_info().rss - rss_before) / most, 1),
    }


class Session:
    """The rival's state."""

    __slots__ = ("bitrate_count", "bitrate_sum", "end_ts", "events", "highest", "run", "stall_ms", "stall_start", "start_ts", "startup_ms")

    def __init__(self, ts: int) -> None:
        self.start_ts = self.end_ts = ts
        self.events = self.run = self.stall_ms = self.stall_start = self.bitrate_sum = self.bitrate_count = 0
        self.highest, self.startup_ms = -1, None


def measure_rival(sessions: int, style: str) -> dict[str, Any]:  # noqa: C901 - one loop: calls would slow the rival
    rng = np.random.default_rng(7)
    process = psutil.Process()
    rss_before = process.memory_info().rss
    kept: dict[tuple[int, int], Session] = {}
    seconds, events = 0.0, 0
    for turn, batch in batches(sessions, 3, style, rng):
        started = time.process_time()
        columns = (batch.key_lo, batch.key_hi, batch.kind, batch.ts, batch.ints[0], batch.ints[1])
        for key_lo, key_hi, kind, ts, seq, bitrate in zip(*(values.tolist() for values in columns), strict=True):
            session = kept.get((key_lo, key_hi))
            if session is None:
                session = kept[key_lo, key_hi] = Session(ts)
            if seq <= session.highest:
                continue
            session.highest = seq
            session.events += 1
            session.end_ts = max(session.end_ts, ts)
            if kind == KIND_BUFFER:
                session.run += 1
                if session.run == 1:
                    session.stall_start = ts
                continue
            if session.run:
                session.stall_ms += max(0, ts - session.stall_start)
                session.run = 0
            if kind == KIND_HEARTBEAT:
                if session.startup_ms is None:
                    session.startup_ms = ts - session.start_ts
                session.bitrate_sum += bitrate
                session.bitrate_count += 1
        if turn:
            seconds += time.process_time() - started
            events += batch.rows
    return {
        "way": "dict of Python objects",
        "sessions": sessions,
        "ids": style,
        "events": events,
        "ns_per_event": round(seconds / events * 1e9, 1),
        "rss_bytes_per_session": round((process.memory_info().rss - rss_before) / sessions, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, nargs="+", default=[100_000, 10_000_000])
    parser.add_argument("--ids", choices=("uuid", "hex"), default="uuid", help="session ids: 36 or 16 characters")
    parser.add_argument("--rival-sessions", type=int, default=100_000)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    measure(2 * BATCH, arguments.ids)  # compiles, loads
    rows = [measure(sessions, arguments.ids) for sessions in arguments.sessions]
    rival = measure_rival(arguments.rival_sessions, arguments.ids)
    slowdown = round(rows[-1]["ns_per_event"] / rows[0]["ns_per_event"], 2)
    report("session table", [*rows, rival], arguments.json, slowdown=slowdown)
    print(f"ns an event at {rows[-1]['sessions']:,} sessions against {rows[0]['sessions']:,}: {slowdown}")


if __name__ == "__main__":
    main()
