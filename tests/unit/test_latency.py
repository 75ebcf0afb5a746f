"""Scoring alerts against the truth, and percentiles."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.bench.latency import ALERT_KEY, MOMENTS, Score, latency_table, quantiles, score, stage, within_promise

KEY_SCHEMA = {"device_id": pl.String, "session_id": pl.String, "kind": pl.String, "event_ts": pl.Int64, "seq": pl.Int64}


def rows(numbers: list[int]) -> pl.DataFrame:
    """Alerts or truths named by numbers; every third has no seq."""
    return pl.DataFrame([(f"d{n}", f"s{n}", "buffering_loop", 1_000 + n, None if n % 3 == 0 else n) for n in numbers], schema=KEY_SCHEMA, orient="row")


def alerts_at(moments: list[tuple[int, float, float, float, float]]) -> pl.DataFrame:
    """Alerts with (number, appended, decoded, alerted, visible)."""
    times = pl.DataFrame([m[1:] for m in moments], schema=dict.fromkeys(MOMENTS[1:], pl.Float64), orient="row")
    ids = pl.DataFrame({"alert_id": [f"a{i}" for i in range(len(moments))]})
    return pl.concat([rows([m[0] for m in moments]), times, ids], how="horizontal")


def test_a_perfect_run_scores_clean() -> None:
    assert score(rows([1, 2, 3]), rows([3, 1, 2])) == Score(expected=3, alerted=3, missed=0, false=0, duplicate=0)


def test_missed_false_and_doubled_are_told_apart() -> None:
    result = score(rows([1, 2, 3]), rows([1, 1, 1, 9, 9]))
    assert result == Score(expected=3, alerted=5, missed=2, false=1, duplicate=3)


def test_an_alert_for_another_seq_of_the_same_session_is_false_and_the_right_one_missed() -> None:
    wrong = rows([1]).with_columns(pl.lit(7, pl.Int64).alias("seq"))
    assert score(rows([1]), wrong) == Score(expected=1, alerted=1, missed=1, false=1, duplicate=0)


@given(st.lists(st.integers(0, 12), unique=True), st.lists(st.integers(0, 12)))
def test_scores_account_for_every_truth_and_every_alert(expected: list[int], alerted: list[int]) -> None:
    result = score(rows(expected), rows(alerted))
    found = len(set(expected) & set(alerted))
    assert result.expected == len(expected) == found + result.missed
    assert result.alerted == len(alerted) == found + result.false + result.duplicate
    assert result.false == len(set(alerted) - set(expected))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_percentiles_are_measured_values_and_rise(values: list[float]) -> None:
    result = quantiles(np.array(values))
    ranked = [result.p50, result.p90, result.p99, result.p999, result.max]
    assert ranked == sorted(ranked)  # type: ignore[type-var]
    assert set(ranked) <= set(values)
    assert result.max == max(values)
    assert sum(v <= result.p50 for v in values) * 2 >= len(values)  # type: ignore[operator]
    assert result.negatives == sum(v < 0 for v in values)
    assert result.count == len(values)


def test_percentiles_of_nothing_are_unknown_not_zero() -> None:
    assert quantiles(np.zeros(0)).as_dict() == {"p50": None, "p90": None, "p99": None, "p999": None, "max": None, "count": 0, "negatives": 0}


def test_latency_is_measured_from_the_schedule_not_from_the_append() -> None:
    truth = rows([1, 3]).with_columns(pl.Series("intended_ms", [1_000, 2_000]))
    table = latency_table(truth, alerts_at([(3, 2_500.0, 2_501.0, 2_502.0, 2_503.0), (1, 1_004.0, 1_005.5, 1_006.0, 1_007.0)]))
    assert table["device_id"].to_list() == ["d1", "d3"]
    assert stage(table, "end_to_end").tolist() == [7.0, 503.0]
    assert stage(table, "detect").tolist() == [3.0, 3.0]
    assert stage(table, "send").tolist() == [4.0, 500.0]


def test_a_false_alert_has_a_row_but_no_intended_time() -> None:
    truth = rows([1]).with_columns(pl.Series("intended_ms", [1_000.0]))
    table = latency_table(truth, alerts_at([(8, 1.0, 2.0, 3.0, 4.0)]))
    assert table["intended"].to_list() == [None]
    assert stage(table, "end_to_end").size == 0
    assert stage(table, "detect").tolist() == [3.0]


@pytest.mark.parametrize(("visible", "share"), [([3_999.0, 4_001.0], 0.25), ([4_000.0, 1_000.0], 0.5)])
def test_the_promise_counts_the_missed_as_late(visible: list[float], share: float) -> None:
    truth = rows([1, 2, 4, 5]).with_columns(pl.lit(1_000.0).alias("intended_ms"))
    table = latency_table(truth, alerts_at([(n, v, v, v, v) for n, v in zip([1, 2], visible, strict=True)]))
    assert within_promise(table, 4) == share


def test_table_has_one_row_an_alert_even_when_the_truth_repeats_a_key() -> None:
    truth = pl.concat([rows([1]), rows([1])]).with_columns(pl.lit(5.0).alias("intended_ms"))
    table = latency_table(truth, alerts_at([(1, 6.0, 6.0, 6.0, 6.0)]))
    assert table.height == 1
    assert set(ALERT_KEY[:3]) <= set(table.columns)
