"""Fault windows, recoveries, and a verdict that is no milder for them."""

from __future__ import annotations

import json
from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.bench.chaos import Fault
from keystone.bench.chaos_report import (
    NORMAL_S,
    SETTLED_S,
    WINDOW_MAX_S,
    WINDOW_MIN_S,
    Ordeal,
    Sample,
    Struck,
    Window,
    find_windows,
    next_alerts,
    recovery_section,
    side,
    split_alerts,
)
from keystone.bench.command import as_json
from keystone.bench.latency import MOMENTS, Quantiles, Score
from keystone.bench.plan import Options, resolve
from keystone.bench.report import Measured, build_report
from keystone.bench.screen import final_lines
from keystone.bench.verdict import LagSample, Sums
from tests.unit.test_bench_cli import SMALL

EPS = 1_000.0
BEHIND = int(NORMAL_S * EPS) + 1


def hit(at_s: float = 10.0, *, what: str = "kill:session-actor", back_s: float | None = 0.5, for_s: float = 0.0) -> Struck:
    action, target = what.split(":")
    sign_ms = None if back_s is None else at_s * 1_000 + back_s * 1_000
    return Struck(Fault(action, target, at_s, for_s), at_s, at_s * 1_000, "session-0", 7, (0, 1), {0: 2, 1: 5}, sign_ms)


def samples(*behind: tuple[float, float], until_s: float = 60.0) -> list[Sample]:
    """Every 0.1 s; behind in each of the spans."""
    at = [tenth / 10 for tenth in range(int(until_s * 10) + 1)]
    return [Sample(t, 0, BEHIND if any(a <= t < b for a, b in behind) else 0) for t in at]


# --- windows ----------------------------------------------------------------------------------------------------------
def test_a_window_lasts_until_nothing_is_behind_any_more() -> None:
    [window] = find_windows([hit()], samples((10.5, 14.0)), EPS)
    assert (window.start_s, window.end_s, window.lag_back_s) == (10.0, 14.0, 4.0)


def test_a_moment_of_calm_does_not_end_it() -> None:
    [window] = find_windows([hit()], samples((10.5, 14.0), (14.5, 17.0)), EPS)
    assert window.end_s == 17.0


def test_a_fault_that_nobody_notices_has_the_least_window() -> None:
    [window] = find_windows([hit(what="kill:committer")], samples(), EPS)
    assert (window.end_s, window.lag_back_s) == (10.0 + WINDOW_MIN_S, 0.0)


def test_it_lasts_until_what_follows_is_at_work_and_until_what_was_frozen_is_thawed() -> None:
    assert find_windows([hit(back_s=8.0)], samples(), EPS)[0].end_s == 18.0
    assert find_windows([hit(what="freeze:session-actor", for_s=6.0)], samples(), EPS)[0].end_s == 16.0 + WINDOW_MIN_S


@pytest.mark.parametrize("never", [samples((10.5, 99.0)), samples((10.5, 12.0))])
def test_what_never_comes_back_is_a_reason_to_fail(never: list[Sample]) -> None:
    struck = hit(back_s=None if never[-1].behind == 0 else 0.5)
    ordeal = Ordeal("", [struck], samples=never, windows=find_windows([struck], never, EPS))
    assert ordeal.windows == [Window(10.0, 10.0 + WINDOW_MAX_S, None)]
    assert ordeal.faults() == [f"kill:session-actor@10s: not everything was back to normal {WINDOW_MAX_S:.0f} s later"]


@given(st.lists(st.tuples(st.floats(10, 50), st.floats(0, 8)), max_size=4), st.floats(0, 25))
def test_windows_are_bounded_and_end_in_calm(spans: list[tuple[float, float]], back_s: float) -> None:
    seen = samples(*((a, a + length) for a, length in spans))
    [window] = find_windows([hit(back_s=back_s)], seen, EPS)
    assert 10.0 + WINDOW_MIN_S <= window.end_s <= 10.0 + WINDOW_MAX_S
    if window.lag_back_s is not None:
        assert window.end_s >= 10.0 + back_s - 1e-6
        assert all(sample.behind == 0 for sample in seen if window.end_s <= sample.at_s <= min(window.end_s + SETTLED_S / 2, 10.0 + WINDOW_MAX_S))


def test_lag_and_waiting_are_counted_outside_only() -> None:
    seen = [Sample(t / 10, t, 0, full_ms=t * 2.0) for t in range(200)]
    ordeal = Ordeal("", samples=seen, windows=[Window(5.0, 15.0, 1.0)])
    assert [sample.at_s for sample in ordeal.lag_outside()] == [sample.at_s for sample in seen if not 5.0 <= sample.at_s <= 15.0]
    assert ordeal.full_ms_outside() == pytest.approx(2.0 * (199 - 101))


# --- recoveries -------------------------------------------------------------------------------------------------------
ALERTS = pl.DataFrame(
    {
        "partition": [0, 0, 0, 1, 1, 2],
        "epoch": [2, 2, 3, 5, 6, 1],
        "visible": [9_000.0, 10_200.0, 11_500.0, 10_100.0, 12_000.0, 10_050.0],
    }
)


def test_recovery_of_what_was_killed_is_another_owners_first_alert() -> None:
    assert next_alerts(hit(), ALERTS) == {0: 1_500.0, 1: 2_000.0}


def test_recovery_of_what_was_frozen_may_be_its_own() -> None:
    assert next_alerts(hit(what="freeze:session-actor"), ALERTS) == {0: 200.0, 1: 100.0}
    assert next_alerts(hit(20.0), ALERTS) == {}


def test_percentiles_by_kind_and_those_of_killed_session_actors_in_front() -> None:
    struck = [hit(), hit(20.0), hit(30.0, what="kill:committer", back_s=2.5), hit(40.0, what="kill:supervisor", back_s=None)]
    ordeal = Ordeal("", struck, recoveries=[{0: 1_500.0, 1: 2_000.0}, {0: 700.0}, {}, {}])
    found = recovery_section(ordeal)
    assert (found["p50"], found["p99"], found["count"]) == (1_500.0, 2_000.0, 3)
    assert found["by_kind"]["kill:committer"]["p99"] == 2_500.0
    assert found["by_kind"]["kill:supervisor"]["count"] == 0
    assert recovery_section(Ordeal(""))["p99"] is None


# --- inside and outside -------------------------------------------------------------------------------------------------
def alerts(*rows: tuple[str, float, float]) -> pl.DataFrame:
    """(kind, intended s, visible s)."""
    table = [
        (f"a{i}", kind, f"d{i}", "s", *(1_000.0 * t for t in (intended, intended, intended, visible, visible)))
        for i, (kind, intended, visible) in enumerate(rows)
    ]
    return pl.DataFrame(
        table, schema={**dict.fromkeys(("alert_id", "kind", "device_id", "session_id"), pl.String), **dict.fromkeys(MOMENTS, pl.Float64)}, orient="row"
    )


@pytest.mark.parametrize(
    ("kind", "intended_s", "visible_s", "is_inside"),
    [
        ("buffering_loop", 12.0, 14.0, True),
        ("buffering_loop", 9.0, 14.0, True),  # due before the fault, and not late yet when it struck
        ("buffering_loop", 6.9, 14.0, False),  # late before the fault
        ("buffering_loop", 9.0, 9.5, False),
        ("buffering_loop", 15.1, 19.0, False),
        ("open_stall", 15.1, 19.0, True),  # its stall was sent within the window
        ("open_stall", 25.1, 29.0, False),
    ],
)
def test_an_alert_is_inside_where_the_fault_may_have_delayed_it(kind: str, intended_s: float, visible_s: float, is_inside: bool) -> None:
    inside, outside = split_alerts(alerts((kind, intended_s, visible_s)), [Window(10.0, 15.0, 1.0)], 0.0, 10_000.0)
    assert (inside.height, outside.height) == ((1, 0) if is_inside else (0, 1))


def test_an_alert_that_the_truth_does_not_know_is_outside() -> None:
    table = alerts(("buffering_loop", 12.0, 14.0)).with_columns(intended=pl.lit(None, pl.Float64))
    inside, outside = split_alerts(table, [Window(10.0, 15.0, 1.0)], 0.0, 10_000.0)
    assert (inside.height, outside.height) == (0, 1)


def measured() -> Measured:
    """A run that is slow inside of its only window, and otherwise good."""
    plan = resolve(Options(eps=EPS, seconds=60), SMALL)
    table = alerts(("buffering_loop", 12.0, 20.0), ("buffering_loop", 40.0, 40.1))
    quick, slow = replace(Quantiles.none(), p99=5.0, max=9.0, count=10), replace(Quantiles.none(), p99=4_000.0, max=5_000.0, count=10)
    m = Measured(plan, seconds=60.0, events=60_000, events_on_time=60_000, score=Score(2, 2, 0, 0, 0), alerts=table, send_delay=slow)
    m.sums = Sums(60_000, 60_000, 60_000, 60_000, 0, 0, 60_000)
    struck, seen = [hit()], samples((10.5, 20.0))
    m.lag = [LagSample(sample.at_s, sample.lag) for sample in seen]
    windows = find_windows(struck, seen, EPS)
    inside, outside = split_alerts(table, windows, 0.0, 10_000.0)
    m.ordeal = Ordeal("kill:session-actor@10s", struck, [], seen, windows, [{0: 900.0, 1: 950.0}], side(inside, slow, [9]), side(outside, quick, [1]))
    return m


def test_what_is_slow_inside_of_a_window_is_told_and_not_judged() -> None:
    report = json.loads(as_json(build_report(measured())))
    assert (report["verdict"], report["reasons"]) == ("pass", [])
    assert report["latency_ms"]["end_to_end"]["max"] == 8_000.0
    assert report["chaos"]["inside"]["within_3s"] == 0.0
    assert report["chaos"]["outside"]["within_3s"] == 1.0
    [fault] = report["chaos"]["faults"]
    assert fault == {
        "what": "kill:session-actor@10s", "kind": "kill:session-actor", "at_s": 10.0, "process": "session-0", "pid": 7, "partitions": [0, 1],
        "recovery_ms": [900.0, 950.0], "at_work_ms": 500.0, "lag_back_ms": 10_000.0, "window_s": [10.0, 20.0],
    }  # fmt: skip
    assert report["recovery_ms"]["p99"] == 950.0
    assert report["chaos"]["send_delay_covers"] == {"events": 60_000, "of": 60_000}
    text = "\n".join(final_lines(report))
    assert "faults" in text
    assert len(text.split("\n")) <= 40


@pytest.mark.parametrize("wrong", ["missed", "ledger", "slow outside", "late outside", "silent", "never back"])
def test_faults_excuse_nothing_else(wrong: str) -> None:
    m = measured()
    assert m.ordeal is not None
    assert m.ordeal.outside is not None
    if wrong == "missed":
        m.score = Score(2, 1, 1, 0, 0)
    elif wrong == "ledger":
        m.sums = replace(m.sums, lake_rows=59_999)
    elif wrong == "slow outside":
        m.ordeal.outside = replace(m.ordeal.outside, end_to_end=replace(Quantiles.none(), max=3_001.0, count=1))
    elif wrong == "late outside":
        m.ordeal.outside = replace(m.ordeal.outside, send_delay=replace(Quantiles.none(), p99=101.0, count=1))
    elif wrong == "silent":
        m.send_delay = replace(m.send_delay, max=7_001.0)
    else:
        m.ordeal.windows = [Window(10.0, 40.0, None)]
    report = build_report(m)
    assert report["verdict"] == ("invalid" if wrong in ("late outside", "silent") else "fail")
    assert len(report["reasons"]) == 1
