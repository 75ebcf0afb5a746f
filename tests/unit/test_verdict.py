"""The verdict's rules, one by one and in their order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.bench.latency import Score
from keystone.bench.verdict import BROKERS_LIMIT, Evidence, LagSample, LagTrend, Sums, judge, lag_trend

SUMS = Sums(sent=100, received=100, accepted=98, applied=97, duplicates=1, dead_lettered=2, lake_rows=98)
GOOD = Evidence(
    target_eps=1_000.0,
    achieved_eps=1_000.0,
    score=Score(expected=5, alerted=5, missed=0, false=0, duplicate=0),
    sums=SUMS,
    lag=LagTrend(),
    send_delay_p99_ms=12.0,
    end_to_end_max_ms=900.0,
)


def test_a_good_run_passes_without_reasons() -> None:
    assert judge(GOOD).verdict == "pass"
    assert judge(GOOD).reasons == []


@pytest.mark.parametrize(
    ("evidence", "verdict", "word"),
    [
        (replace(GOOD, score=Score(5, 4, 1, 0, 0)), "fail", "missed: 1"),
        (replace(GOOD, score=Score(5, 6, 0, 1, 0)), "fail", "false: 1"),
        (replace(GOOD, score=Score(5, 6, 0, 0, 1)), "fail", "doubled: 1"),
        (replace(GOOD, sums=replace(SUMS, sent=101)), "fail", "received 100 != sent 101"),
        (replace(GOOD, sums=replace(SUMS, lake_rows=97)), "fail", "lake rows 97 != accepted 98"),
        (replace(GOOD, sums=replace(SUMS, applied=96)), "fail", "applied + duplicates 97 != accepted 98"),
        (replace(GOOD, sums=replace(SUMS, dead_lettered=1)), "fail", "accepted + dead-lettered 99"),
        (replace(GOOD, end_to_end_max_ms=3_000.1), "fail", "end-to-end"),
        (replace(GOOD, lag=LagTrend(11.0, 5_000, 101)), "fail", "lag grows"),
        (replace(GOOD, faults=("partition 3: session actor died",)), "fail", "partition 3"),
        (replace(GOOD, send_delay_p99_ms=100.1), "invalid", "send delay"),
        (replace(GOOD, achieved_eps=900.0), "invalid", "made 900"),
    ],
)
def test_each_rule_alone_decides(evidence: Evidence, verdict: str, word: str) -> None:
    result = judge(evidence)
    assert result.verdict == verdict
    assert len(result.reasons) == 1
    assert word in result.reasons[0]


@pytest.mark.parametrize(
    "evidence",
    [
        replace(GOOD, end_to_end_max_ms=3_000.0),
        replace(GOOD, send_delay_p99_ms=100.0),
        replace(GOOD, sums=replace(SUMS, lake_rows=None)),
        replace(GOOD, end_to_end_max_ms=None, send_delay_p99_ms=None),
        replace(GOOD, lag=LagTrend(11.0, 5_000, 99)),  # it still empties
        replace(GOOD, lag=LagTrend(9.0, 5_000, 500)),  # it does not grow
    ],
)
def test_limits_themselves_pass(evidence: Evidence) -> None:
    assert judge(evidence).verdict == "pass"


def test_a_generator_that_waits_for_room_in_a_full_log_is_not_the_limit() -> None:
    result = judge(replace(GOOD, send_delay_p99_ms=5_000.0, log_full_ms=4_000.0))
    assert result.verdict == "fail"
    assert result.reasons[0] == "the session actors were the limit: the log was full for 4,000 ms"
    over_kafka = replace(GOOD, send_delay_p99_ms=5_000.0, log_full_ms=4_000.0, full_means=BROKERS_LIMIT)
    assert judge(over_kafka).reasons == ["the brokers were the limit: kafka.send_bytes_max were without an answer for 4,000 ms"]


def test_a_wrong_answer_fails_even_where_the_generator_was_late_and_slowness_then_does_not() -> None:
    late = replace(GOOD, send_delay_p99_ms=5_000.0, end_to_end_max_ms=9_000.0)
    assert judge(late).verdict == "invalid"
    assert len(judge(late).reasons) == 2
    assert judge(replace(late, score=Score(5, 4, 1, 0, 0))).verdict == "fail"


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.floats(0, 300), st.floats(0, 6_000), st.integers(-2, 2), st.sampled_from([(), ("x",)]))
def test_reasons_and_verdict_agree(missed: int, false: int, doubled: int, delay: float, latency: float, skew: int, faults: tuple[str, ...]) -> None:
    e = replace(
        GOOD,
        score=Score(5, 5, missed, false, doubled),
        send_delay_p99_ms=delay,
        end_to_end_max_ms=latency,
        sums=replace(SUMS, lake_rows=98 + skew),
        faults=faults,
    )
    result = judge(e)
    assert (result.verdict == "pass") == (result.reasons == [])
    if missed or false or doubled or skew or faults:
        assert result.verdict == "fail"


@given(st.floats(-500, 500), st.integers(0, 10_000))
def test_the_slope_of_a_straight_line_is_found(slope: float, base: int) -> None:
    samples = [LagSample(at / 4, round(max(0.0, base + 10_000 + slope * at / 4))) for at in range(81)]
    assert lag_trend(samples, 20.0).slope_events_per_s == pytest.approx(slope, abs=0.5)


def test_steady_growth_is_growth_and_one_pause_is_not() -> None:
    growing = [LagSample(t / 4, 50 * t) for t in range(81)]  # 200 events/s of 1,000
    paused = [LagSample(t / 4, 900 if 74 <= t <= 80 else 20) for t in range(81)]
    assert lag_trend(growing, 20.0).grows(1_000)
    assert lag_trend(paused, 20.0).slope_events_per_s > 10
    assert not lag_trend(paused, 20.0).grows(1_000)


def test_the_drain_counts_for_nothing() -> None:
    samples = [LagSample(t / 4, 10) for t in range(41)] + [LagSample(10.5 + t, 99_999) for t in range(9)]
    trend = lag_trend(samples, 10.0)
    assert trend.max_events == 10
    assert abs(trend.slope_events_per_s) < 1e-9


def test_no_samples_is_no_trend() -> None:
    assert lag_trend([], 10.0) == LagTrend()
