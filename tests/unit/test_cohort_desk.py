"""What an owner has counted of cohorts lately: fetched once, kept for whoever begins anew, part of the checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from keystone.actors.cohort_desk import BYTES, ENDS, RECENT_MS, CohortDesk, partials_of
from keystone.errors import CheckpointDamaged
from keystone.qoe import SUMS, CohortPartial
from keystone.qoe_bytes import from_bytes, to_bytes

MINUTE = 1_700_000_040_000


def partial(partition: int, second: int, events: int = 1) -> CohortPartial:
    sums = np.zeros((1, len(SUMS) + 1), np.int64)
    sums[0, 0] = events
    start = np.array([MINUTE + second * 1_000], np.int64)
    return CohortPartial(partition, ("region",), (("é\n",), (None,)), start, np.zeros(1, np.int32), sums, np.array([[start[0], 1, 5, 2]], np.int64))


def seconds(contents: list[bytes]) -> list[int]:
    return [(int(from_bytes(content).window_start_ms[0]) - MINUTE) // 1_000 for content in contents]


def same(left: CohortPartial, right: CohortPartial) -> bool:
    arrays = ("window_start_ms", "cohorts", "sums", "bins")
    facts = ("partition", "dimensions", "keys", "has_log_time")
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in arrays) and all(getattr(left, n) == getattr(right, n) for n in facts)


def test_bytes_are_read_as_they_were() -> None:
    one = partial(3, 7, 1 << 62)
    assert same(from_bytes(to_bytes(one)), one)


bins = st.tuples(st.integers(0, 1 << 53), st.integers(0, 1), st.integers(0, 3_711), st.integers(1, 1 << 62))


@given(st.lists(bins, max_size=30), st.booleans())
def test_bins_are_read_as_they_were_by_this_version_and_of_the_first(rows: list[tuple[int, int, int, int]], is_old: bool) -> None:
    one = replace(partial(3, 7), bins=np.array(sorted(rows), np.int64).reshape(-1, 4))
    found = from_bytes(first_format(one) if is_old else to_bytes(one))
    assert same(found, one)
    assert found.bins.dtype == np.int64


def first_format(one: CohortPartial) -> bytes:
    """As the first version wrote them."""
    arrays = (one.window_start_ms, one.cohorts, one.sums, one.bins)
    head = {"format": 1, "partition": one.partition, "dimensions": one.dimensions, "keys": one.keys, "has_log_time": one.has_log_time}
    header = orjson.dumps(head | {"shapes": [array.shape for array in arrays]})
    return zstandard.compress(b"".join((len(header).to_bytes(4, "little"), header, *(array.tobytes() for array in arrays))))


@given(st.data())
def test_bytes_that_are_damaged_are_refused(data: st.DataObject) -> None:
    content = bytearray(to_bytes(partial(0, 1)))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    try:
        found = from_bytes(bytes(content))
    except CheckpointDamaged:
        return
    assert same(found, partial(0, 1))  # bits of a frame's head that mean nothing


def test_each_is_fetched_once_and_again_by_whoever_begins_anew() -> None:
    desk = CohortDesk()
    desk.own(0, {})
    desk.add(0, [partial(0, 0)], MINUTE + 1_000)
    first = desk.fetch(None)
    desk.add(0, [partial(0, 1)], MINUTE + 2_000)
    second = desk.fetch(first.cursor)
    assert (seconds(first.contents), seconds(second.contents)) == ([0], [1])
    assert (first.passed_ms, second.passed_ms) == ({0: MINUTE + 1_000}, {0: MINUTE + 2_000})
    assert desk.fetch(second.cursor).contents == []
    assert seconds(desk.fetch(None).contents) == [0, 1]
    assert seconds(desk.fetch(("another", 2)).contents) == [0, 1]
    assert [p.partition for p in partials_of(second)] == [0]


def test_what_was_fetched_is_let_go_of_a_minute_later_and_what_was_not_is_kept() -> None:
    desk = CohortDesk()
    desk.own(0, {})
    for second in range(200):
        desk.add(0, [partial(0, second)], MINUTE + second * 1_000 + 1_000)
    assert len(desk.fetch(None).contents) == 200
    desk.fetch(desk.fetch(None).cursor)
    desk.add(0, [partial(0, 200)], MINUTE + 201_000)
    kept = seconds(desk.fetch(None).contents)
    assert kept == list(range((180_000 - RECENT_MS) // 1_000, 201))


def test_a_checkpoint_has_them_and_the_next_owner_tells_them_again() -> None:
    desk = CohortDesk()
    desk.own(4, {})
    assert desk.snapshot(4)[ENDS].size == 0
    for second in range(3):
        desk.add(4, [partial(4, second)], MINUTE + second * 1_000 + 1_000)
    arrays = desk.snapshot(4)
    following = CohortDesk()
    following.own(4, arrays)
    assert seconds(following.fetch(None).contents) == [0, 1, 2]
    assert following.fetch(None).passed_ms == {4: 0}  # it has passed nothing itself yet
    again = following.snapshot(4)
    assert all(np.array_equal(again[name], arrays[name]) for name in (BYTES, ENDS))
    following.disown(4)
    assert following.fetch(None).contents == []


def test_a_checkpoint_of_an_earlier_version_has_none_and_a_damaged_one_is_refused() -> None:
    desk = CohortDesk()
    desk.own(0, {"log_time": np.zeros(2, np.int64)})
    desk.add(0, [partial(0, 0)], MINUTE)
    arrays = desk.snapshot(0)
    for ends in ([MINUTE, 1 << 40], [MINUTE, 5]):
        with pytest.raises(CheckpointDamaged):
            CohortDesk().own(0, arrays | {ENDS: np.array(ends, np.int64)})


def test_what_nobody_fetches_is_bounded() -> None:
    size = len(to_bytes(partial(0, 0)))
    desk = CohortDesk(untold_bytes_max=10 * size + size // 2)
    for partition in (0, 1):
        desk.own(partition, {})
    for second in range(20):
        for partition in (0, 1):
            desk.add(partition, [partial(partition, second)], MINUTE + second * 1_000)
    fetched = desk.fetch(None)
    assert sum(map(len, fetched.contents)) <= 10 * size + size // 2
    assert desk.dropped == 40 - len(fetched.contents) > 0
    assert min(seconds(fetched.contents)) >= 14  # the oldest went
