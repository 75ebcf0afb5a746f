"""Sketches of startup times: added up whatever the order, and asked for the value of a rank."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone import qoe_bins
from keystone.config import CohortsConfig
from keystone.kernels.cohorts import BIN_SHIFT
from keystone.qoe import SUMS, CohortPartial
from keystone.qoe_bins import Tally, added_up, narrowed, nearest_ranks
from keystone.qoe_merge import CohortMerge

Pairs = list[tuple[int, int]]
pairs = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 1 << 40)), max_size=60)


def arrays(some: Pairs) -> tuple[np.ndarray, np.ndarray]:
    return np.array([key for key, _ in some], np.int64), np.array([count for _, count in some], np.int64)


@given(st.lists(pairs, max_size=4))
def test_parts_are_added_up(parts: list[Pairs]) -> None:
    expected: Counter[int] = Counter()
    for part in parts:
        for key, count in part:
            expected[key] += count
    keys, counts = added_up(map(arrays, parts))
    assert list(zip(keys.tolist(), counts.tolist(), strict=True)) == sorted(expected.items())


def test_a_tally_grows_saturates_and_begins_anew() -> None:
    tally, many = Tally(), 20_000
    for _ in range(2):
        tally.add(np.arange(many) * 7919, np.full(many, 3))
        tally.add(np.arange(many) * 7919, np.full(many, (1 << 63) - 2))
        assert tally.nbytes >= 32 * many
        keys, counts = tally.take()
        assert keys.tolist() == [n * 7919 for n in range(many)]
        assert set(counts.tolist()) == {(1 << 63) - 1}
        assert tally.nbytes == 16 * qoe_bins.SIZE_MIN
    assert tally.take()[0].size == 0


@given(st.dictionaries(st.integers(0, 5), st.lists(st.integers(0, 3_711), min_size=1, max_size=50), max_size=4))
def test_a_rank_is_that_of_the_sorted_values(values: dict[int, list[int]]) -> None:
    keys, counts = added_up([arrays([(cohort << BIN_SHIFT | one, 1) for cohort, some in values.items() for one in some])])
    cohorts, found = nearest_ranks(keys, counts, (50, 95, 100))
    assert cohorts.tolist() == sorted(values)
    for column, cohort in enumerate(sorted(values)):
        ordered = sorted(values[cohort])
        assert found[:, column].tolist() == [ordered[-(-percent * len(ordered) // 100) - 1] for percent in (50, 95, 100)]


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=5))
def test_narrow_columns_hold_the_same(some: list[int]) -> None:
    column = np.array(some, np.int64)
    found = narrowed(column)
    assert found.tolist() == some
    assert all(min(some) < np.iinfo(f"i{size}").min or max(some) > np.iinfo(f"i{size}").max for size in (1, 2, 4) if size < found.itemsize)


def churning(second: int, minute: int = 1_700_000_040_000) -> CohortPartial:
    """Cohorts that nobody has before or after."""
    keys = (*((f"r{second}-{n}",) for n in range(5)), (None,))
    start = minute + second * 1_000
    bins = np.array([[start, place, 10 * place + 1, second + 1] for place in range(6)], np.int64)
    return CohortPartial(0, ("region",), keys, np.full(6, start), np.arange(6, dtype=np.int32), np.ones((6, len(SUMS) + 1), np.int64), bins)


@pytest.mark.slow
def test_names_of_cohorts_are_forgotten_with_what_was_held_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keystone.qoe_merge.NAMES_MIN", 400)
    merge = CohortMerge(CohortsConfig(dimensions=("region",), pairs=(), windows_held=120), [0])
    for second in range(600):
        merge.take([churning(second)], {0: 1_700_000_040_000 + (second + 1) * 1_000})
        told = merge.emit().filter(window_ms=1_000)
        assert dict(told.select("region", "startup_ms_p50").iter_rows()) == {**{f"r{second}-{n}": 10 * n + 1 for n in range(5)}, None: 51}
        assert len(merge._names) <= 2_000  # twice what three minutes have; 3,001 came
    assert merge.counters.rows > 3_000
