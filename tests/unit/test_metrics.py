"""The ledger's sums and the latency histogram."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keystone.errors import LedgerError
from keystone.metrics import LatencyHistogram, Ledger

BALANCED = Ledger(sent=105, received=105, accepted=100, applied=90, duplicates=10, late=3, dead_lettered=5, lake_rows=100, empty_records=7)


def test_a_balanced_ledger_passes():
    BALANCED.check(has_lake=True, is_complete=True)
    Ledger().check(has_lake=True, is_complete=True)


@pytest.mark.parametrize(
    ("change", "sums"),
    [
        ({"received": 104, "sent": 104}, ["received = 104 is not accepted + dead_lettered = 105 (-1)"]),
        ({"dead_lettered": 6}, ["received = 105 is not accepted + dead_lettered = 106 (-1)"]),
        ({"applied": 91}, ["accepted = 100 is not applied + duplicates = 101 (-1)"]),
        ({"duplicates": 9}, ["accepted = 100 is not applied + duplicates = 99 (+1)"]),
        ({"lake_rows": 1101}, ["lake_rows = 1,101 is not accepted = 100 (+1,001)"]),
        ({"sent": 106}, ["received = 105 is not sent = 106 (-1)"]),
        ({"accepted": 101}, ["accepted + dead_lettered", "applied + duplicates", "lake_rows"]),
        ({"late": -1}, ["late = -1 is negative"]),
    ],
)
def test_a_sum_that_fails_is_named(change, sums):
    ledger = replace(BALANCED, **change)
    with pytest.raises(LedgerError) as raised:
        ledger.check(has_lake=True, is_complete=True)
    assert all(one in str(raised.value) for one in sums)
    assert len(ledger.failures(has_lake=True, is_complete=True)) == len(sums)


def test_without_a_lake_and_before_the_end_those_sums_are_not_asked():
    ledger = replace(BALANCED, lake_rows=0, sent=1000)
    ledger.check()
    with pytest.raises(LedgerError, match="lake_rows"):
        ledger.check(has_lake=True)
    with pytest.raises(LedgerError, match="sent"):
        ledger.check(is_complete=True)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 1 << 40), min_size=9, max_size=9), min_size=1, max_size=5))
def test_ledgers_add_field_by_field(rows):
    total = Ledger()
    for row in rows:
        total += Ledger(*row)
    assert list(total.as_dict().values()) == np.sum(np.array(rows, np.int64), axis=0).tolist()


def nearest_rank(values, share):
    ordered = np.sort(values)
    return float(ordered[max(0, int(np.ceil(share * ordered.size - 1e-9)) - 1)])


MS = st.one_of(st.floats(0.001, 1e9), st.floats(0.5, 5000.0), st.integers(0, 10_000).map(float))


@settings(deadline=None)
@given(st.lists(MS, min_size=1, max_size=300), st.floats(0, 1))
def test_quantiles_are_within_one_percent(values, share):
    histogram = LatencyHistogram()
    histogram.add(values)
    exact = nearest_rank(values, share)
    assert histogram.quantile(share) == pytest.approx(exact, rel=0.01, abs=0.001)
    assert histogram.max_ms == max(values)
    assert histogram.min_ms == min(values)
    assert histogram.count == len(values)


@settings(deadline=None)
@given(hnp.arrays(np.int64, st.integers(0, 200), elements=st.integers(-100, 1 << 45)), st.integers(0, 200))
def test_merging_equals_adding_everything_to_one(values, cut):
    whole, left, right = LatencyHistogram(), LatencyHistogram(), LatencyHistogram()
    whole.add(values)
    left.add(values[:cut])
    right.add(values[cut:].astype(np.float64))
    assert (left + right).summary() == whole.summary()
    left.merge(right)
    assert left.summary() == whole.summary()
    assert whole.count == values.size
    assert whole.negatives == int((values < 0).sum())
    assert whole.max_ms == (values.max() if values.size else None)


def test_negatives_are_counted_and_take_part_as_zero():
    histogram = LatencyHistogram()
    histogram.add(np.array([-5, -1, 10, 20], np.int64))
    assert (histogram.count, histogram.negatives, histogram.min_ms, histogram.max_ms) == (4, 2, -5.0, 20.0)
    assert histogram.quantile(0.5) == 0.0
    assert histogram.quantile(0.75) == pytest.approx(10, rel=0.01)
    all_negative = LatencyHistogram()
    all_negative.add([-3.0, -2.0])
    assert all_negative.summary() == {"p50": -2.0, "p90": -2.0, "p99": -2.0, "p999": -2.0, "max": -2.0, "count": 2, "negatives": 2}


def test_an_empty_histogram_has_no_figures():
    histogram = LatencyHistogram()
    histogram.add([])
    histogram.add(np.zeros(0))
    assert histogram.summary() == {"p50": None, "p90": None, "p99": None, "p999": None, "max": None, "count": 0, "negatives": 0}
    assert histogram.percentile(99) is None
    assert histogram.share_within(3000) is None


def test_sub_millisecond_values_are_told_apart():
    histogram = LatencyHistogram()
    histogram.add([0.010] * 50 + [0.25] * 49 + [3.1])
    assert histogram.percentile(50) == pytest.approx(0.010, rel=0.01)
    assert histogram.percentile(90) == pytest.approx(0.25, rel=0.01)
    assert histogram.percentile(100) == 3.1
    assert histogram.share_within(1.0) == pytest.approx(0.99)


def test_every_magnitude_has_a_place():
    histogram = LatencyHistogram()
    histogram.add([0.0, -0.0, 1e-300, 1e300, float(1 << 60), 5e-324])
    assert histogram.count == 6
    assert histogram.max_ms == 1e300
    assert histogram.negatives == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_a_number_is_refused_and_the_rest_counted(bad):
    histogram = LatencyHistogram()
    with pytest.raises(ValueError, match="1 of 3"):
        histogram.add([1.0, bad, 2.0])
    assert (histogram.count, histogram.max_ms) == (2, 2.0)


def test_every_kind_of_array_is_taken():
    histogram = LatencyHistogram()
    frozen = np.array([4.0])
    frozen.flags.writeable = False
    for values in (1, 1.5, [1, 2], np.arange(4, dtype=np.int32), np.ones((2, 3)), np.arange(10)[::3], np.float32([1]), frozen):
        histogram.add(values)
    assert histogram.count == 1 + 1 + 2 + 4 + 6 + 4 + 1 + 1


def test_a_copy_that_travelled_can_still_be_added_to():
    histogram = LatencyHistogram()
    histogram.add([1, 2, 3])
    buffers: list[pickle.PickleBuffer] = []
    travelling = pickle.dumps(histogram, protocol=5, buffer_callback=buffers.append)
    read_only = [bytes(buffer.raw()) for buffer in buffers]  # as an object store hands them out
    arrived = pickle.loads(travelling, buffers=read_only)
    arrived.add([4])
    assert (arrived.count, arrived.max_ms) == (4, 4.0)
    assert histogram.count == 3


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match="not between"):
        LatencyHistogram().quantile(1.01)
