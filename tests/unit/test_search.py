"""The search finds the rate that a monotone system sustains, in bounded probes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.bench.search import PROBES_MAX, RATE_MIN, RATE_STEP, TOLERANCE, RateSearch


def run(search: RateSearch, capacity: float) -> None:
    while (rate := search.next_rate()) is not None:
        search.record(rate, rate <= capacity)


@given(st.floats(50_000, 20_000_000), st.floats(50_000, 4_000_000))
def test_the_answer_is_sustained_and_close_below_the_capacity(capacity: float, start: float) -> None:
    search = RateSearch(start, probes_max=40)
    run(search, capacity)
    assert search.best <= capacity
    assert capacity - search.best <= TOLERANCE * search.best + RATE_STEP


@given(st.floats(0, 1e9), st.floats(1_000, 1e7))
def test_the_search_ends_and_probes_twice_only_the_fail_that_ended_it(capacity: float, start: float) -> None:
    search = RateSearch(start)
    run(search, capacity)
    rates = [rate for rate, _ in search.probes]
    assert len(rates) <= PROBES_MAX
    twice = {rate for rate in rates if rates.count(rate) > 1}
    assert twice <= {search.worst}
    assert all(rates.count(rate) <= 2 for rate in rates)
    assert all(rate >= RATE_MIN and rate % RATE_STEP == 0 for rate in rates)


@given(st.floats(50_000, 20_000_000), st.floats(50_000, 4_000_000), st.integers(0, 12))
def test_one_fail_that_was_not_deserved_does_not_decide(capacity: float, start: float, unlucky: int) -> None:
    search = RateSearch(start, probes_max=80)
    while (rate := search.next_rate()) is not None:
        search.record(rate, rate <= capacity and len(search.probes) != unlucky)
    assert search.best <= capacity
    assert capacity - search.best <= TOLERANCE * search.best + RATE_STEP


def test_a_machine_that_sustains_nothing_gets_zero() -> None:
    search = RateSearch(8_000.0)
    run(search, 0.0)
    assert search.best == 0
    assert search.probes[-1] == (RATE_MIN, False)


def test_a_best_that_does_not_confirm_gives_way_to_the_next_lower_pass() -> None:
    search = RateSearch(400_000.0)
    run(search, 1_000_000.0)
    passes = sorted(rate for rate, passed in search.probes if passed)
    assert search.best == passes[-1]
    assert search.demote() == max(passes[-2], 0.9 * passes[-1])


def test_it_goes_down_by_a_tenth_at_most_whatever_passed_below() -> None:
    search = RateSearch(100_000.0, best=300_000.0, worst=310_000.0, probes=[(100_000.0, True), (300_000.0, True), (310_000.0, False)])
    assert [search.demote() for _ in range(4)] == [270_000, 243_000, 218_000, 196_000]
    assert search.worst == 218_000


def test_below_the_least_rate_there_is_nothing_to_confirm() -> None:
    assert RateSearch(1_000.0, best=RATE_MIN, probes=[(RATE_MIN, True)]).demote() == 0


@pytest.mark.parametrize("start", [1.0, 999.0])
def test_a_start_below_the_least_rate_is_raised(start: float) -> None:
    assert RateSearch(start).next_rate() == RATE_MIN
