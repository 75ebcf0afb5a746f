"""Laws of checkpoints: stopping at any step and going on elsewhere, from what a store kept, changes nothing that comes out."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.checkpoint import Checkpoints, key_of
from keystone.session_snapshot import packed
from keystone.store import open_store
from tests.batches import event
from tests.checkpoints import Owner, checkpoint_of, config_of, records_of
from tests.laws.test_session_laws import DETECTION, RULES, START, Events, calm, cut, end_waits, fleets, places

numbers = itertools.count()
#: Between two parts: how many strings the next owner has seen before, whether time passes first, whether the dictionaries are renumbered first.
stops = st.lists(st.tuples(st.sampled_from([None, 0, 3, 50]), st.integers(0, 4000), st.booleans()), min_size=6, max_size=6)


@pytest.mark.slow
@calm
@given(events=fleets(), places=places, stops=stops, wait=end_waits)
def test_going_on_from_a_checkpoint_elsewhere_changes_nothing(events: Events, places: list[int], stops: list[Any], wait: int) -> None:
    config = config_of(RULES, DETECTION)
    straight, stopped = Owner(config, partition=3), Owner(config, partition=3)
    store = open_store(f"memory://laws-{next(numbers)}")
    offset = 0
    for part, (strangers, pause, is_renumbered) in zip(cut(events, places), stops, strict=False):
        following = events[offset + len(part)][1] if offset + len(part) < len(events) else part[-1][1] + pause
        for owner in (straight, stopped):
            owner.step(records_of(part, offset, partition=3))
            owner.step(records_of([], offset + len(part), partition=3), now_ms=min(part[-1][1] + pause, following))
        offset += len(part)
        if is_renumbered:
            stopped.decoder.compact_dictionaries()
        if strangers is not None:
            stopped = moved(stopped, store, offset, strangers)
        assert stopped.pipeline.log_time_ms == straight.pipeline.log_time_ms
        assert stopped.pipeline.sessions.active == straight.pipeline.sessions.active
    for owner in (straight, stopped):
        owner.step(records_of([], offset, partition=3), now_ms=events[-1][1] + wait)
    assert stopped.outcome() == straight.outcome()
    assert stopped.cohorts() == straight.cohorts()


@pytest.mark.slow
def test_a_snapshot_stays_what_it_was_while_the_stream_goes_on() -> None:
    """Packed only after the table and the dictionaries have grown, been renumbered and reused what was freed."""
    config = config_of(RULES, DETECTION)
    owner = Owner(config)
    first = [(event("Buffer", START + i, session_id=str(i), cdn=f"c{i}", user_id=f"u{i}"), START + i) for i in range(300)]
    owner.step(records_of(first, 0))
    arrays = owner.pipeline.snapshot()
    then = [(event("Start", START + i, session_id=f"later {i}", cdn=f"later {i}"), START + 5000 + i) for i in range(9000)]
    owner.step(records_of(then, 300))
    owner.decoder.compact_dictionaries()
    owner.step(records_of(then[:5000], 9300))
    restored, expected = Owner(config, strangers=2), Owner(config)
    restored.pipeline.restore(packed(arrays))
    expected.step(records_of(first, 0))
    expected.results.clear()
    for other in (restored, expected):
        other.step(records_of([], 300), now_ms=START + 10**6)
    assert restored.outcome() == expected.outcome()
    assert len(restored.outcome()[1]) == 300
    assert restored.cohorts() == expected.cohorts()


def moved(owner: Owner, store: Any, next_offset: int, strangers: int) -> Owner:
    """Saved by this owner, read and restored by the next."""
    before, after = Checkpoints(store), Checkpoints(store)
    epoch = before.claim(key_of(3), "before")
    before.save(checkpoint_of(owner.pipeline, epoch=epoch, next_offset=next_offset))
    found = after.latest(3)
    assert found is not None
    assert found.next_offset == next_offset
    other = Owner(config_of(RULES, DETECTION), partition=3, strangers=strangers)
    other.pipeline.restore(found.arrays)
    other.results = owner.results
    return other
