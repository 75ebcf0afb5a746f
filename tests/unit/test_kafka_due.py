"""What a producer sends now, and when it looks again: the oldest first, one batch of a lane, and what lingers goes along."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.log.kafka.client import RETRY_MS
from keystone.log.kafka.due import NEVER, REQUEST_BYTES_MAX, Due, due, due_s, expired
from keystone.log.kafka.lanes import Batch, Lane

LINGER_MS = 50.0
NOW_S = 1_000.0
BATCH_BYTES_MAX = 1_000_000


def lane_of(partition: int, *opened_s: float, size: int = 100, is_urgent: bool = False) -> Lane:
    """A lane with a batch for each time."""
    lane = Lane("t", partition, BATCH_BYTES_MAX)
    for at_s in opened_s:
        batch = Batch(lane, at_s, is_urgent=is_urgent)
        batch.builder.add(b"x" * size, None, ())
        lane.waiting.append(batch)
    return lane


def ask(lanes: list[Lane], *, leaders: int | None = 1, busy: Collection[int] = ()) -> Due:
    leader_of = (lambda lane: lane.partition % leaders) if leaders else (lambda lane: None)
    return due(lanes, NOW_S, linger_ms=LINGER_MS, leader_of=leader_of, busy=busy)


def test_nothing_waits_and_nobody_looks_again() -> None:
    found = ask([lane_of(0), lane_of(1)])
    assert (found.by_leader, found.again_s, found.lacks_leaders) == ({}, NEVER, False)


def test_what_lingers_is_looked_at_when_it_has_lingered() -> None:
    lane = lane_of(0, NOW_S - 0.02)
    found = ask([lane])
    assert found.by_leader == {}
    assert found.again_s == pytest.approx(NOW_S + 0.03)
    assert lane.in_flight is None


def test_what_lingers_for_a_broker_that_is_sent_to_anyway_goes_along() -> None:
    fresh, old, elsewhere = lane_of(0, NOW_S), lane_of(2, NOW_S - 1), lane_of(1, NOW_S)
    found = ask([fresh, old, elsewhere], leaders=2)
    assert [batch.lane for batch in found.by_leader[0]] == [old, fresh]
    assert 1 not in found.by_leader
    assert found.again_s == pytest.approx(NOW_S + 0.05)  # elsewhere's


def test_a_lane_that_is_told_to_pause_does_not_go_along() -> None:
    paused, old = lane_of(0, NOW_S - 2), lane_of(2, NOW_S - 1)
    paused.not_before_s = NOW_S + 0.2
    found = ask([paused, old], leaders=2)
    assert [batch.lane for batch in found.by_leader[0]] == [old]
    assert found.again_s == pytest.approx(NOW_S + 0.2)


def test_without_a_leader_a_lane_waits_and_that_is_told() -> None:
    lane = lane_of(0, NOW_S - 1)
    found = ask([lane], leaders=None)
    assert found.lacks_leaders
    assert found.again_s == lane.not_before_s == pytest.approx(NOW_S + RETRY_MS / 1_000)
    assert len(lane.waiting) == 1


def test_a_busy_broker_gets_nothing_and_is_not_waited_for() -> None:
    lane = lane_of(0, NOW_S - 1)
    found = ask([lane], busy={0})
    assert (found.by_leader, found.again_s) == ({}, NEVER)  # its answer wakes whoever looks
    assert len(lane.waiting) == 1


def test_what_a_request_has_no_room_for_waits_for_the_next() -> None:
    lanes = [lane_of(number, NOW_S - 1 - number, size=BATCH_BYTES_MAX) for number in range(12)]
    (batches,) = ask(lanes).by_leader.values()
    assert [batch.lane.partition for batch in batches] == list(range(11, 3, -1))  # eight of a megabyte, the oldest
    assert sum(map(len, batches)) <= REQUEST_BYTES_MAX


@given(st.lists(st.tuples(st.floats(NOW_S - 10, NOW_S), st.integers(1, BATCH_BYTES_MAX), st.booleans()), max_size=30), st.integers(1, 3))
def test_requests_are_bounded_and_have_one_batch_of_a_lane_the_oldest_due_first(waiting: list[tuple[float, int, bool]], leaders: int) -> None:
    lanes = [lane_of(number, at_s, at_s, size=size, is_urgent=urgent) for number, (at_s, size, urgent) in enumerate(waiting)]
    found = ask(lanes, leaders=leaders)
    for leader, batches in found.by_leader.items():
        assert len(batches) == 1 or sum(map(len, batches)) <= REQUEST_BYTES_MAX
        assert all(batch.lane.partition % leaders == leader and batch.lane.in_flight is batch for batch in batches)
        assert [batch.opened_s for batch in batches] == sorted(batch.opened_s for batch in batches)
    under_way = [lane for lane in lanes if lane.in_flight is not None]
    assert len(under_way) == sum(map(len, found.by_leader.values()))
    assert all(len(lane.waiting) == 2 - (lane.in_flight is not None) for lane in lanes)


@pytest.mark.parametrize(
    ("is_urgent", "attempts", "batches", "lingers"), [(False, 0, 1, True), (True, 0, 1, False), (False, 1, 1, False), (False, 0, 2, False)]
)
def test_who_lingers(is_urgent: bool, attempts: int, batches: int, lingers: bool) -> None:
    lane = lane_of(0, *[NOW_S] * batches, is_urgent=is_urgent)
    lane.waiting[0].attempts = attempts
    assert due_s(lane, LINGER_MS) == (pytest.approx(NOW_S + 0.05) if lingers else 0.0)


def test_what_waited_for_too_long_leaves_its_queue_unless_one_before_it_is_under_way() -> None:
    idle, under_way = lane_of(0, NOW_S - 3, NOW_S - 1), lane_of(1, NOW_S - 3)
    under_way.in_flight = Batch(under_way, NOW_S - 4)
    late = expired([idle, under_way], NOW_S, timeout_ms=2_000)
    assert [batch.opened_s for batch in late] == [NOW_S - 3]
    assert [batch.opened_s for batch in idle.waiting] == [NOW_S - 1]
    assert len(under_way.waiting) == 1
