"""Laws of the session table: how events are cut, spread, interrupted or swept never changes what comes out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.batches import Run, canonical, event, reference_outcome
from tests.examples import examples
from tests.reference import partition_of

START = 1_700_000_000_000
RULES = {"timeout_ms": 3000, "grace_ms": 700}
DETECTION = {"loop_threshold": 3, "open_stall_ms": 1000}
Events = list[tuple[dict[str, Any], int]]

kinds = st.sampled_from(["Start", "Heartbeat", "Heartbeat", "Buffer", "Buffer", "Buffer", "Buffer", "Error", "Stop", "Seek"])
wide = st.integers(-(2**53), 2**53)
#: Steps of the counter: mostly one up, or the same again, a little back or ahead, a window, a broken jump, or anything.
edges = st.sampled_from([-70, -64, -63, 63, 64, 65, 2**20, 2**20 + 1])
steps = st.one_of(st.just(1), st.just(1), st.just(1), st.just(1), st.just(0), st.integers(-4, 4), edges, wide)
waits = st.sampled_from([0, 0, 1, 5, 100, 699, 700, 999, 1000, 1001, 2000, 2999, 3000, 5000])
bitrates = st.one_of(st.none(), st.sampled_from([0, 235, 236, 3000, 65534, 65535, -1]), wide)
clocks = st.one_of(st.integers(-200, 2000), st.integers(-200, 2000), st.sampled_from([-(2**52), 2**52, 2**32, -(2**33)]))
dimension = st.sampled_from([None, None, "a", "b", "", "ü"])


@st.composite
def fleets(draw: st.DrawFn, *, jumps: bool = True) -> Events:
    """Events of a few sessions, rich in what is unusual, with their log times."""
    sessions = draw(st.integers(1, 4))
    state = [{"ts": START, "seq": draw(st.sampled_from([0, 0, 5, -3, 2**31 - 2, 2**53]))} for _ in range(sessions)]
    time, events = START, []
    for _ in range(draw(st.integers(1, 40))):
        s = draw(st.integers(0, sessions - 1))
        time += draw(waits)
        mine = state[s]
        mine["ts"] = min(max(mine["ts"] + draw(clocks if jumps else st.integers(-200, 2000)), 0), 2**53 - 1)
        seq = min(max(mine["seq"] + draw(steps), -(2**53)), 2**53)
        mine["seq"] = max(seq, mine["seq"]) if abs(seq - mine["seq"]) < 2**20 else mine["seq"]
        kind = draw(kinds)
        events.append(
            (
                event(
                    kind, mine["ts"], device_id=f"device-{s % 2}", session_id=f"{s:016x}", seq=draw(st.sampled_from([seq, seq, seq, seq, None])),
                    bitrate_kbps=draw(bitrates), fatal=draw(st.booleans()), phase=draw(st.sampled_from([None, None, None, "seek"])),
                    user_id=draw(dimension), cdn=draw(dimension), title_id=draw(dimension),
                ),
                time,
            )
        )  # fmt: skip
    return events


def cut(events: Events, places: list[int]) -> list[Events]:
    bounds = sorted({0, len(events), *(place % (len(events) + 1) for place in places)})
    return [events[a:b] for a, b in pairwise(bounds)]


def run(**options: Any) -> Run:
    return Run(session=RULES, detection=DETECTION, **options)


end_waits = st.sampled_from([0, 500, 700, 1000, 3000, 10**6, 2**31, 2**40])
places = st.lists(st.integers(0, 50), max_size=5)
calm = settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.mark.slow
@calm
@given(events=fleets(), places=places, wait=end_waits)
def test_batch_cuts_do_not_change_results(events: Events, places: list[int], wait: int) -> None:
    end = events[-1][1] + wait
    table = run()
    for part in cut(events, places):
        table.apply(part)
    table.advance(end)
    assert table.outcome() == reference_outcome(events, end=end, session=RULES, **DETECTION)


@pytest.mark.slow
@calm
@given(events=fleets(), places=places)
def test_a_plain_file_has_no_timers(events: Events, places: list[int]) -> None:
    table = run(has_log_time=False)
    for part in cut(events, places):
        table.apply(part)
        table.advance(part[-1][1] + 10**9)
    table.close_all()
    assert table.table.active == 0
    assert table.outcome() == reference_outcome(events, end=None, has_log_time=False, session=RULES, **DETECTION)


@pytest.mark.slow
@calm
@given(events=fleets(), partitions=st.integers(1, 3), wait=end_waits)
def test_partitions_do_not_change_results(events: Events, partitions: int, wait: int) -> None:
    end = events[-1][1] + wait
    tables = [run() for _ in range(partitions)]
    for table_number, table in enumerate(tables):
        table.apply([(item, time) for item, time in events if partition_of(item["device_id"], partitions) == table_number])
        table.advance(end)
    alerts, sessions, _ = reference_outcome(events, end=end, session=RULES, **DETECTION)
    assert canonical(alert for table in tables for alert in table.alerts) == alerts
    assert canonical(session for table in tables for session in table.sessions) == sessions


@pytest.mark.slow
@calm
@given(
    events=fleets(),
    places=places,
    moves=st.lists(st.tuples(st.sampled_from([0, 1, 70_000]), st.booleans()), min_size=6, max_size=6),
    wait=end_waits,
)
def test_a_restore_elsewhere_does_not_change_results(events: Events, places: list[int], moves: list[tuple[int, bool]], wait: int) -> None:
    end = events[-1][1] + wait
    table = run(first_code=moves[0][0])
    for part, (first_code, is_packed) in zip(cut(events, places), moves, strict=False):
        table.apply(part)
        table = table.move(first_code, is_packed=is_packed)
    table.advance(end)
    assert table.outcome() == reference_outcome(events, end=end, session=RULES, **DETECTION)


@pytest.mark.slow
@calm
@given(events=fleets(), places=places, shares=st.lists(st.floats(0, 1), min_size=6, max_size=6), wait=end_waits)
def test_when_timers_are_swept_does_not_change_results(events: Events, places: list[int], shares: list[float], wait: int) -> None:
    end = events[-1][1] + wait
    table = run()
    parts = cut(events, places)
    for number, (part, share) in enumerate(zip(parts, shares, strict=False)):
        table.apply(part)
        following = parts[number + 1][0][1] if number + 1 < len(parts) else end
        table.advance(part[-1][1] + int((following - part[-1][1]) * share))
    table.advance(end)
    assert table.outcome() == reference_outcome(events, end=end, session=RULES, **DETECTION)


@pytest.mark.slow
@calm
@given(
    events=fleets(jumps=False),
    threshold=st.integers(1, 4),
    open_stall_ms=st.sampled_from([1, 700, 2999, 3000, 3001]),
    grace_ms=st.sampled_from([0, 700, 5000]),
    timeout_ms=st.sampled_from([1, 1000, 3000]),
)
def test_any_rules(events: Events, threshold: int, open_stall_ms: int, grace_ms: int, timeout_ms: int) -> None:
    rules, detection = {"timeout_ms": timeout_ms, "grace_ms": grace_ms}, {"loop_threshold": threshold, "open_stall_ms": open_stall_ms}
    table = Run(session=rules, detection=detection)
    table.apply(events)
    table.advance(events[-1][1] + 1500)
    assert table.outcome() == reference_outcome(events, end=events[-1][1] + 1500, session=rules, **detection)


@pytest.mark.parametrize("gap", [2**30 - 1, 2**30, 2**31, 2**32, 2**32 + 1, 2**33])
def test_log_time_may_jump_by_years(gap: int) -> None:
    events = [(event("Start", 0, seq=0), START), (event("Buffer", 1, seq=1), START + 1)]
    events += [(event("Heartbeat", 2, seq=1), START + gap), (event("Stop", 3, seq=5), START + gap)]
    table = run()
    table.apply(events)
    table.advance(START + 2 * gap)
    assert table.outcome() == reference_outcome(events, end=START + 2 * gap, session=RULES, **DETECTION)
