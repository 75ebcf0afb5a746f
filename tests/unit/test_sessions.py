"""The session table by example: each rule of a session, and the limits of its memory."""

from __future__ import annotations

from typing import Any

import pytest

from keystone.events import CODED_DIMENSIONS
from keystone.session_records import SESSION_SCHEMA, SessionRecords
from tests.batches import Run, ToyDictionaries, event, reference_outcome

NOW = 1_700_000_000_000
FILE = {"has_log_time": False}
Events = list[tuple[dict[str, Any], int]]


def of_file(*events: dict[str, Any]) -> dict[str, Any]:
    """The only session of a plain file."""
    run = Run(**FILE)
    run.apply([(item, 0) for item in events])
    run.close_all()
    (session,) = run.sessions
    return session


def many(count: int, kind: str = "Start", ts: int = 1000, **fields: Any) -> list[dict[str, Any]]:
    return [event(kind, ts, session_id=f"session {i}", seq=0, **fields) for i in range(count)]


def test_a_healthy_session() -> None:
    session = of_file(
        event("Start", 1000, seq=0, user_id="u", title_id="t"), event("Heartbeat", 1400, seq=1, bitrate_kbps=1000), event("Heartbeat", 2400, seq=2),
        event("Heartbeat", 3400, seq=3, bitrate_kbps=2001), event("Stop", 4000, seq=4),
    )  # fmt: skip
    wanted = {
        "start_ts": 1000, "end_ts": 4000, "duration_ms": 3000, "playing_ms": 2600, "startup_ms": 400, "stall_ms": 0, "events": 5, "buffers": 0, "errors": 0,
        "duplicates": 0, "late": 0, "alerts": 0, "mean_bitrate_kbps": 1500.5, "end_reason": "stop", "outcome": "played", "user_id": "u", "title_id": "t",
        "cdn": None,
    }  # fmt: skip
    assert {name: session[name] for name in wanted} == wanted


def test_columns_are_those_of_the_specification() -> None:
    assert SESSION_SCHEMA.names[:17] == [
        "device_id", "session_id", "start_ts", "end_ts", "duration_ms", "playing_ms", "startup_ms", "stall_ms", "events", "buffers", "errors", "duplicates",
        "late", "alerts", "mean_bitrate_kbps", "end_reason", "outcome",
    ]  # fmt: skip
    assert SESSION_SCHEMA.names[17:] == ["user_id", *CODED_DIMENSIONS]
    assert SessionRecords(ToyDictionaries()).to_arrow().schema == SESSION_SCHEMA


@pytest.mark.parametrize(
    ("kinds", "outcome"),
    [
        ("Start", "ebvs"), ("Start Error", "ebvs"), ("Start fatal", "vsf"), ("Start Heartbeat", "played"), ("Start Heartbeat fatal", "vpf"),
        ("fatal Heartbeat", "vsf"), ("fatal Heartbeat fatal", "vpf"), ("Stop fatal", "ebvs"), ("Stop Heartbeat", "ebvs"),
    ],
)  # fmt: skip
def test_outcomes(kinds: str, outcome: str) -> None:
    events = [event("Error" if kind == "fatal" else kind, 1000, fatal=kind == "fatal" or None) for kind in kinds.split()]
    assert of_file(*events)["outcome"] == outcome


def test_seq_memory_reaches_64_back() -> None:
    seqs = [100, 164, 100, 101, 102, 101, 163, 164, 164 + 2**20, 164 + 2**20 + 2**20 + 1, 164 + 2**20]
    run = Run(**FILE)
    run.apply([(event("Heartbeat", 1000, seq=seq), 0) for seq in seqs])
    duplicate, late, in_order = (True, False), (False, True), (False, False)
    assert run.flags == [in_order, in_order, duplicate, late, late, duplicate, late, duplicate, in_order, in_order, duplicate]


def test_a_restart_after_a_stop_opens_a_session_that_knows_the_old_seqs() -> None:
    run = Run(**FILE)
    kinds = [("Start", 0), ("Stop", 1), ("Heartbeat", 2), ("Start", 3), ("Start", 0), ("Heartbeat", 1), ("Heartbeat", 4)]
    run.apply([(event(kind, 1000 + i, seq=seq, user_id=f"u{i}"), 0) for i, (kind, seq) in enumerate(kinds)])
    run.close_all()
    first, second = sorted(run.sessions, key=lambda session: session["start_ts"])
    assert (first["events"], first["end_ts"], first["end_reason"], first["user_id"]) == (3, 1001, "stop", "u1")
    assert (second["events"], second["duplicates"], second["start_ts"], second["end_reason"], second["user_id"]) == (2, 2, 1003, "open", "u6")


def test_timeouts_follow_log_time_alone() -> None:
    run = Run()
    run.apply([(event("Start", 2**53 - 1, device_id="fast"), NOW), (event("Start", 0, device_id="slow"), NOW + 1)])
    run.advance(NOW + 89_999)
    assert run.sessions == []
    run.advance(NOW + 90_000)
    assert [(session["device_id"], session["end_reason"]) for session in run.sessions] == [("fast", "timeout")]
    run.advance(NOW + 90_001)
    assert run.table.active == 0


def test_grace_runs_from_the_stop_and_is_not_extended() -> None:
    run = Run()
    run.apply([(event("Stop", 5, seq=1), NOW), (event("Heartbeat", 6, seq=2), NOW + 9_999), (event("Stop", 7, seq=0), NOW + 9_999)])
    run.apply([(event("Heartbeat", 8, seq=2), NOW + 10_000)])
    assert run.flags[-1] == (False, False)
    assert [(session["events"], session["end_ts"], session["late"]) for session in run.sessions] == [(3, 7, 1)]


def test_an_open_stall_alerts_once_a_run() -> None:
    run = Run()
    run.apply([(event("Heartbeat", 1, bitrate_kbps=1050), NOW), (event("Buffer", 500, seq=7), NOW + 10)])
    for log_time in (NOW + 10_009, NOW + 10_010, NOW + 20_000):
        run.advance(log_time)
    run.apply([(event("Buffer", 600 + k, seq=8 + k), NOW + 20_001) for k in range(3)])
    (alert,) = run.alerts
    assert (alert["kind"], alert["event_ts"], alert["seq"], alert["buffers_in_run"], alert["append_ts_ms"]) == ("open_stall", 500, 7, 1, NOW + 10_010)
    assert (alert["bitrate_kbps"], alert["recommended_bitrate_kbps"]) == (1050, 750)
    run.apply([(event("Heartbeat", 700, seq=11), NOW + 20_002), (event("Buffer", 800, seq=12), NOW + 20_003)])
    run.advance(NOW + 40_000)
    assert [alert["event_ts"] for alert in run.alerts] == [500, 800]


def test_sums_stay_at_the_limit() -> None:
    last = 2**53 - 1
    stalls = [item for _ in range(1100) for item in (event("Buffer", 0), event("Heartbeat", last, bitrate_kbps=2**53))]
    session = of_file(*stalls)
    assert session["stall_ms"] == 2**63 - 1
    assert session["playing_ms"] == 0
    assert session["mean_bitrate_kbps"] == (2**63 - 1) / 1100
    assert of_file(*[event("Heartbeat", 1, bitrate_kbps=value) for value in (2**53, 2**53, 1, 1)])["mean_bitrate_kbps"] == (2**54 + 2) / 4


@pytest.mark.slow
def test_more_results_than_a_kernel_call_holds() -> None:
    events = [(item, NOW) for item in many(5000)]
    events += [(event("Buffer", 2000 + k, session_id=f"session {i}", seq=k + 1), NOW + k) for k in range(3) for i in range(3000)]
    events += [(item, NOW + 200_000) for item in many(5000, ts=9000)]  # each finds its session timed out
    run = Run()
    done = run.apply(events)
    assert (len(done.alerts), done.sessions.rows, run.table.active) == (3000, 5000, 5000)
    assert run.outcome() == reference_outcome(events, end=NOW + 200_000)
