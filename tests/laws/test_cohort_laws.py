"""Laws of cohorts: however events are cut, spread, interrupted, moved or swept, the sums are the reference's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.config import CohortsConfig
from keystone.qoe import CohortPartial
from keystone.sessions import Applied, SessionTable
from tests.batches import Run
from tests.cohorts import assert_told, told_of
from tests.laws.test_session_laws import DETECTION, RULES, Events, calm, cut, end_waits, fleets, places
from tests.reference import partition_of
from tests.reference_cohorts import CohortSessions, rows_of

values = st.sampled_from([None, None, "a", "b", "", "ü", "unknown", "other"])
waits = st.sampled_from([0, 500, 700, 999, 1000, 3000, 60_000])  # after the last event: the reference looks at every second


@st.composite
def worlds(draw: st.DrawFn, **options: Any) -> Events:
    """Fleets with dimensions that change in the midst of sessions."""
    events = draw(fleets(**options))
    return [(item | {name: draw(values) for name in ("region", "device_type", "cdn", "isp")}, time) for item, time in events]


class CohortRun(Run):
    """A table that counts cohorts, and what it gave out."""

    def __init__(self, **options: Any) -> None:
        self.cohorts_config: CohortsConfig = options.pop("cohorts", CohortsConfig())
        super().__init__(session=RULES, detection=DETECTION, **options)
        self.partials: list[CohortPartial] = []

    def new_table(self) -> SessionTable:
        return SessionTable(*self.configs, self.dictionaries, cohorts=self.cohorts_config, has_log_time=self.has_log_time)

    def take(self, done: Applied) -> Applied:
        self.partials += done.cohorts
        return super().take(done)

    def end(self) -> list[CohortPartial]:
        self.partials += self.table.end_cohorts()
        return self.partials


def expected_of(events: Events, *, end: int | None, partitions: int = 1, has_log_time: bool = True) -> Any:
    tables = [CohortSessions(has_log_time=has_log_time, anchor_ts=events[0][0]["ts"], **RULES, **DETECTION) for _ in range(partitions)]
    for item, time in events:
        tables[partition_of(item["device_id"], partitions)].apply(item, time)
    for table in tables:
        if end is None:
            table.close_all()
        else:
            table.advance(end)
    return rows_of(tables)


@pytest.mark.slow
@calm
@given(events=worlds(), places=places, wait=waits)
def test_batch_cuts_do_not_change_cohorts(events: Events, places: list[int], wait: int) -> None:
    end = events[-1][1] + wait
    run = CohortRun()
    for part in cut(events, places):
        run.apply(part)
    run.advance(end)
    assert_told(told_of(run.end()), expected_of(events, end=end))


@pytest.mark.slow
@calm
@given(events=worlds(), places=places, partitions=st.integers(1, 3))
def test_a_plain_file_counts_by_the_devices_clocks(events: Events, places: list[int], partitions: int) -> None:
    partials = []
    for number in range(partitions):
        run = CohortRun(has_log_time=False)
        run.table.anchor(events[0][0]["ts"])
        for part in cut(events, places):
            if mine := [pair for pair in part if partition_of(pair[0]["device_id"], partitions) == number]:
                run.apply(mine)
        run.close_all()
        partials += run.partials
    assert_told(told_of(partials), expected_of(events, end=None, has_log_time=False))


@pytest.mark.slow
@calm
@given(events=worlds(), partitions=st.integers(1, 3), wait=waits)
def test_partitions_do_not_change_cohorts(events: Events, partitions: int, wait: int) -> None:
    end = events[-1][1] + wait
    partials = []
    for number in range(partitions):
        run = CohortRun(partition=number)
        run.apply([(item, time) for item, time in events if partition_of(item["device_id"], partitions) == number])
        run.advance(end)
        partials += run.end()
    assert_told(told_of(partials), expected_of(events, end=end))


@pytest.mark.slow
@calm
@given(
    events=worlds(), places=places, moves=st.lists(st.tuples(st.sampled_from([0, 1, 70_000]), st.booleans()), min_size=6, max_size=6), wait=waits
)  # fmt: skip
def test_a_restore_elsewhere_does_not_change_cohorts(events: Events, places: list[int], moves: list[tuple[int, bool]], wait: int) -> None:
    end = events[-1][1] + wait
    run: Any = CohortRun(first_code=moves[0][0])
    for part, (first_code, is_packed) in zip(cut(events, places), moves, strict=False):
        run.apply(part)
        run = run.move(first_code, is_packed=is_packed)
    run.advance(end)
    assert_told(told_of(run.end()), expected_of(events, end=end))


@pytest.mark.slow
@calm
@given(events=worlds(), places=places, shares=st.lists(st.floats(0, 1), min_size=6, max_size=6), wait=waits)
def test_when_timers_are_swept_does_not_change_cohorts(events: Events, places: list[int], shares: list[float], wait: int) -> None:
    end = events[-1][1] + wait
    run = CohortRun()
    parts = cut(events, places)
    for number, (part, share) in enumerate(zip(parts, shares, strict=False)):
        run.apply(part)
        following = parts[number + 1][0][1] if number + 1 < len(parts) else end
        run.advance(part[-1][1] + int((following - part[-1][1]) * share))
    run.advance(end)
    assert_told(told_of(run.end()), expected_of(events, end=end))


@pytest.mark.slow
@calm
@given(events=worlds(), wait=end_waits)
def test_counting_changes_nothing_else(events: Events, wait: int) -> None:
    runs = [Run(session=RULES, detection=DETECTION), CohortRun()]
    for run in runs:
        run.apply(events)
        run.advance(events[-1][1] + wait)
    assert runs[0].outcome() == runs[1].outcome()
