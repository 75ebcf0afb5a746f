"""Devices whose process is killed go on sending: what is in the log is what one process would have sent, whenever it dies."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystone.actors.fleet import FleetSpec
from keystone.actors.relay import RelayFleet, SlotFile, read_slots, slots_path
from keystone.errors import LogError
from keystone.log.embedded import EmbeddedLog
from keystone.sim.fleet import PartitionFleet
from keystone.sim.plan import FleetPlan
from tests.examples import examples

PLAN = FleetPlan(eps=6_000.0, seconds=0.3, devices=6_000, partitions=2, seed=5, frame_events_max=6)  # 6 frames a tick of 5 ms


class Killed(BaseException):
    """What a SIGKILL is in here."""


def frames_of(partition: int) -> list[bytes]:
    """All that one process sends."""
    fleet, found = PartitionFleet(PLAN, partition), []
    while (frames := fleet.tick()) is not None:
        found += [frames.text[start:end].tobytes() for start, end in zip(frames.starts.tolist(), frames.ends.tolist(), strict=True)]
    return found


WHOLE = [frames_of(partition) for partition in range(PLAN.partitions)]


def values(log: EmbeddedLog, partition: int, first_offset: int) -> list[bytes]:
    reader = log.reader(partition)
    found: list[bytes] = []
    while len(records := reader.poll(bytes_max=1 << 20, wait_ms=0)):
        found += [records.text[start:end].tobytes() for start, end in zip(records.starts.tolist(), records.ends.tolist(), strict=True)]
    return found[first_offset:]


def relay(log: EmbeddedLog, work_dir: Path, number: int, first_offsets: dict[int, int], *, leads: bool) -> RelayFleet:
    """Built, started, and everything due."""
    fleet = RelayFleet(FleetSpec(f"fleet-{number}", (0, 1), log.url, str(work_dir), PLAN), "fleet", first_offsets, leads=leads)
    fleet._build()
    fleet.go(time.time() * 1_000 - PLAN.run_ms - 1_000)
    return fleet


def kill(fleet: RelayFleet) -> None:
    for driven in fleet._driven:
        if driven.writer is not None:
            driven.writer.close()  # the system lets go of its lock


def run_for(fleet: RelayFleet, records: int) -> None:
    """Until it has appended so many more records; then it is killed, also in the midst of a tick."""
    left = [records]
    for driven in fleet._driven:
        assert driven.writer is not None
        send = driven.writer.send

        def sending(value, *, events=1, key=None, send=send):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            send(value, events=events, key=key)

        driven.writer.send = sending  # type: ignore[method-assign]
    with suppress(Killed):
        while not fleet._is_over():
            fleet._turn()
    kill(fleet)


def finish(fleet: RelayFleet):
    while not fleet._is_over():
        fleet._turn()
    return fleet._close()


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 80)), max_size=3), st.integers(0, 3))
@settings(max_examples=examples(25))
def test_the_log_is_what_one_process_would_have_sent(lives: Sequence[tuple[int, int]], before: int) -> None:
    """``lives``: records that each leader sends before it dies, and turns that its follower has taken by then."""
    with tempfile.TemporaryDirectory() as scratch:
        work_dir = Path(scratch)
        log = EmbeddedLog.create(work_dir / "log", partitions=2, segment_bytes=1 << 18, retention_bytes=8 << 20)
        for partition in range(2):  # records of something else, before the run
            writer = log.writer(partition)
            for _ in range(before):
                writer.append(b"{}")
            writer.close()
        first = dict.fromkeys(range(2), before)
        leader, number = relay(log, work_dir, 1, first, leads=True), 1
        for records, turns in lives:
            number += 1
            follower = relay(log, work_dir, number, first, leads=False)
            for _ in range(turns):
                follower._turn()
            run_for(leader, records)
            for _ in range(turns):
                follower._turn()
            follower.lead()
            follower._turn()
            leader = follower
        totals = finish(leader)
        assert [values(log, partition, before) for partition in range(2)] == WHOLE
        assert totals.events == PLAN.events
        slots = list(read_slots(slots_path(work_dir, "fleet")))
        timed = sum(slot.events for slot in slots)
        assert timed == sum(slot.delays.count for slot in slots) <= PLAN.events
        assert lives or timed == PLAN.events
        log.remove()


def test_a_follower_keeps_to_what_is_in_the_log(tmp_path: Path) -> None:
    log = EmbeddedLog.create(tmp_path / "log", partitions=2, segment_bytes=1 << 18, retention_bytes=8 << 20)
    follower = relay(log, tmp_path, 2, {}, leads=False)
    for _ in range(5):
        follower._turn()
    assert follower._ticks == 1  # made, and not found in the log
    leader = relay(log, tmp_path, 1, {}, leads=True)
    for _ in range(20):
        leader._turn()
    for _ in range(40):
        follower._turn()
    assert follower._ticks == leader._ticks + 1
    assert follower._counters()["is_leading"] is False
    kill(leader)
    log.remove()


def test_a_log_that_lost_records_is_not_gone_on_with(tmp_path: Path) -> None:
    log = EmbeddedLog.create(tmp_path / "log", partitions=2, segment_bytes=1 << 18, retention_bytes=8 << 20)
    follower = relay(log, tmp_path, 2, {}, leads=False)
    follower._turn()
    follower._places[1].records += 7  # as if they had been seen there
    follower.lead()
    with pytest.raises(LogError, match="partition 1"):
        follower._turn()
    kill(follower)
    log.remove()


def test_a_torn_row_is_cut_away_by_whoever_leads_next(tmp_path: Path) -> None:
    log = EmbeddedLog.create(tmp_path / "log", partitions=2, segment_bytes=1 << 18, retention_bytes=8 << 20)
    finish(relay(log, tmp_path, 1, {}, leads=True))
    path = slots_path(tmp_path, "fleet")
    whole = list(read_slots(path))
    assert len(whole) == 2  # 0.3 s in slots of 0.25
    torn = path.read_bytes()[:-9]
    path.write_bytes(torn)
    assert [slot.number for slot in read_slots(path)] == [0]
    SlotFile(path).append(whole[1])
    again = list(read_slots(path))
    assert [slot.number for slot in again] == [0, 1]
    assert np.array_equal(again[1].delays._counts, whole[1].delays._counts)
    assert again[1].delays.max_ms == whole[1].delays.max_ms
    log.remove()
