"""Cohorts the slow, obvious way: every session remembers its own, every event is looked at, plays are spans of time.

Written from the specification on top of the reference's sessions; nothing of the program is imported. Choices where the specification
is silent: a late event adds to ``events``, a late Start that makes ``has_start`` true to ``attempts``, a late Stop that stops its session
to ``stall_ms`` and the endings, none of them to ``played_ms``; closing as ``open`` adds nothing; a cohort that plays at a window's end has
something to tell in that window.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.reference import LogRecord, ReferenceSessions, Session, decode_line, lines_of, partition_of, saturated

DIMENSIONS = ("region", "device_type", "cdn", "isp", "app_version", "country")
PAIRS = (("region", "device_type"), ("region", "cdn"))
SUMS = (
    "events", "attempts", "plays", "stalls", "stall_ms", "played_ms", "startups", "startup_ms_sum", "heartbeats", "bitrate_count", "bitrate_kbps_sum",
    "ended", "ebvs", "vsf", "vpf", "alerts",
)  # fmt: skip
MONTH_MS = 30 * 24 * 3600 * 1000
FOREVER = 2**62
Key = tuple[str | None, ...]
Rows = dict[tuple[int, int, Key], dict[str, Any]]


@dataclass
class Play:
    """A session with a Heartbeat, from then to its end (log time)."""

    values: dict[str, str]
    since: int
    until: int = FOREVER


class CohortSessions(ReferenceSessions):
    """Counts into ``sums[window start in ms, all values of the session]``; ``startups`` there too, one by one."""

    def __init__(self, *, anchor_ts: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.anchor_ts = anchor_ts
        self.sums: dict[tuple[int, tuple[str, ...]], dict[str, int]] = defaultdict(lambda: dict.fromkeys(SUMS, 0))
        self.startups: dict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
        self.plays: list[Play] = []
        self.first_time: int | None = None

    def apply(self, event: dict[str, Any], append_ts: int = 0) -> tuple[bool, bool]:
        if self.first_time is None:
            self.first_time = append_ts
        duplicate, late = super().apply(event, append_ts)
        if not duplicate:
            self.add(self.kept[event["device_id"], event["session_id"]], self.moment(event), events=1)
        return duplicate, late

    def moment(self, event: dict[str, Any]) -> int:
        if self.has_log_time:
            return self.log_time
        return max(self.anchor_ts - MONTH_MS, min(event["ts"], self.anchor_ts + MONTH_MS))

    def add(self, session: Any, moment: int, **counts: int) -> None:
        row = self.sums[moment // 1000 * 1000, session.values]
        for name, count in counts.items():
            row[name] += count

    # --- what happens to sessions -----------------------------------------------------------------------------------
    def _open(self, event: dict[str, Any]) -> Session:
        session: Any = super()._open(event)
        session.values = tuple("unknown" if event[name] is None else event[name] for name in DIMENSIONS)
        session.previous_ts = None
        session.play = None
        return session

    def _late(self, session: Any, event: dict[str, Any]) -> None:
        had_start, was_stopped, run, stall_start = session.has_start, session.stopped_at is not None, session.run, session.stall_start
        super()._late(session, event)
        if event["event"] == "Start" and not had_start:
            self.add(session, self.moment(event), attempts=1)
        if event["event"] == "Stop" and not was_stopped:
            if run > 0:
                self.add(session, self.moment(event), stall_ms=max(0, event["ts"] - stall_start))
            self.end(session, self.moment(event))

    def _in_order(self, session: Any, event: dict[str, Any], seq: int | None, stall: bool) -> None:
        ts, kind, moment = event["ts"], event["event"], self.moment(event)
        if session.had_heartbeat and session.run == 0:
            self.add(session, moment, played_ms=min(self.timeout_ms, max(0, ts - session.previous_ts)))
        session.previous_ts = ts
        had_heartbeat, had_startup, run, stall_start, alerts = (
            session.had_heartbeat,
            session.startup_ms is not None,
            session.run,
            session.stall_start,
            session.alerts,
        )
        super()._in_order(session, event, seq, stall)
        if kind == "Start":
            self.add(session, moment, attempts=1)
        if kind == "Heartbeat":
            self.add(session, moment, heartbeats=1)
            if event["bitrate_kbps"] is not None:
                self.add(session, moment, bitrate_count=1, bitrate_kbps_sum=event["bitrate_kbps"])
            if not had_heartbeat:
                self.add(session, moment, plays=1)
                session.play = Play(session.values, self.log_time)
                self.plays.append(session.play)
            if session.startup_ms is not None and not had_startup:
                self.add(session, moment, startups=1, startup_ms_sum=session.startup_ms)
                self.startups[moment // 1000 * 1000, session.values].append(session.startup_ms)
        if run == 0 and session.run == 1:
            self.add(session, moment, stalls=1)
        if run > 0 and session.run == 0:
            self.add(session, moment, stall_ms=max(0, ts - stall_start))
        self.add(session, moment, alerts=session.alerts - alerts)
        if kind == "Stop":
            self.end(session, moment)

    def _fire(self, key: tuple[str, str]) -> None:
        session: Any = self.kept.get(key)
        if session is None or not self.has_log_time:
            return
        run, was_stopped, known = session.run, session.stopped_at is not None, len(self.alerts)
        super()._fire(key)
        for alert in self.alerts[known:]:
            self.add(session, alert["append_ts_ms"], alerts=1)
        if key not in self.kept and not was_stopped:
            due = session.touched_at + self.timeout_ms
            if run > 0:
                self.add(session, due, stall_ms=max(0, session.end_ts - session.stall_start))
            self.end(session, due)

    def end(self, session: Any, moment: int) -> None:
        outcome = session.outcome()
        self.add(session, moment, ended=1, ebvs=outcome == "ebvs", vsf=outcome == "vsf", vpf=outcome == "vpf")
        if session.play is not None:
            session.play.until = moment


# --- rows of cohorts ------------------------------------------------------------------------------------------------
def keys_of(values: tuple[str, ...]) -> list[Key]:
    """All sessions, each value, each pair."""
    told = [(), *((name,) for name in DIMENSIONS), *PAIRS]
    return [tuple(value if name in names else None for name, value in zip(DIMENSIONS, values, strict=True)) for names in told]


def rows_of(tables: Iterable[CohortSessions]) -> Rows:
    """What must come out, of 1, 10 and 60 s: the sums, ``startup_values`` in order, ``concurrent_plays``."""
    rows: Rows = {}

    def row(start: int, size: int, key: Key) -> dict[str, Any]:
        return rows.setdefault((start, size, key), {**dict.fromkeys(SUMS, 0), "startup_values": [], "concurrent_plays": 0})

    has_log_time = True
    for table in tables:
        has_log_time = table.has_log_time
        for (window, values), sums in table.sums.items():
            for key in keys_of(values):
                found = row(window, 1000, key)
                for name, count in sums.items():
                    found[name] += count
        for (window, values), startups in table.startups.items():
            for key in keys_of(values):
                row(window, 1000, key)["startup_values"] += startups
        for play in table.plays if has_log_time else ():
            last = min(play.until, table.log_time // 1000 * 1000 + 1000)  # no window after the one that log time has come to
            for window in range(play.since // 1000 * 1000, last // 1000 * 1000, 1000):
                for key in keys_of(play.values):
                    row(window, 1000, key)["concurrent_plays"] += 1
    for (window, _, key), sums in list(rows.items()):
        for size in (10_000, 60_000):
            found = row(window // size * size, size, key)
            for name in SUMS:
                found[name] += sums[name]
            found["startup_values"] += sums["startup_values"]
            found["concurrent_plays"] = max(found["concurrent_plays"], sums["concurrent_plays"])
    for found in rows.values():
        found["startup_values"].sort()
        found |= {name: saturated(found[name]) for name in SUMS}
        if not has_log_time:
            found["concurrent_plays"] = None
    return rows


def rank_value(values: list[int], percent: int) -> int | None:
    """The lowest value that at least ``percent`` of all do not exceed."""
    return values[max(1, -(-percent * len(values) // 100)) - 1] if values else None


def reference_file_cohorts(text: bytes, *, partitions: int = 1, **options: Any) -> Rows:
    """Of a plain file."""
    tables: list[CohortSessions] = []
    for _, line in lines_of(text):
        event = decode_line(line)
        if not isinstance(event, dict):
            continue
        if not tables:
            tables = [CohortSessions(has_log_time=False, partition=p, anchor_ts=event["ts"], **options) for p in range(partitions)]
        tables[partition_of(event["device_id"], partitions)].apply(event)
    for table in tables:
        table.close_all()
    return rows_of(tables)


def reference_log_cohorts(log: dict[int, list[LogRecord]], *, end_log_time: int | None = None, **options: Any) -> Rows:
    """Of a log, read to its end; then time passes until ``end_log_time``, where that is given."""
    tables = []
    for partition, records in sorted(log.items()):
        table = CohortSessions(partition=partition, **options)
        for record in records:
            for _, line in lines_of(record.value or b""):
                event = decode_line(line)
                if isinstance(event, dict):
                    table.apply(event, record.append_ts)
        table.advance(max([record.append_ts for record in records] + [end_log_time or 0]))
        tables.append(table)
    return rows_of(tables)
