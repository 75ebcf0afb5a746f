"""Laws of the simulator: bytes follow the plan alone, and its truth is what its events say."""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystone.sim.fleet import PartitionFleet
from keystone.sim.plan import FleetPlan, devices_by_partition
from keystone.sim.truth import Truth
from tests.examples import examples

GOLDEN = "43c67357cf9f3d33"
TRACES = Path(__file__).parents[3] / "shared" / "data" / "network_traces.parquet"


def drain(fleet):
    """All bytes, and the intended times."""
    text, intended = [], []
    while (frames := fleet.tick()) is not None:
        text.append(frames.lines.tobytes())
        intended.append(frames.intended_ms.copy())
    return b"".join(text), np.concatenate(intended)


def streams(plan, actors):
    """Digest of each partition's stream, with the partitions dealt to ``actors`` that take turns."""
    digests = {}
    for actor in range(actors):
        fleets = [PartitionFleet(plan, p) for p in range(actor, plan.partitions, actors)]
        sums = [hashlib.sha256() for _ in fleets]
        running = True
        while running:
            ticks = [fleet.tick() for fleet in fleets]
            running = ticks[:1] != [None] and bool(ticks)
            for digest, frames in zip(sums, ticks, strict=True):
                if frames is not None:
                    digest.update(frames.lines.tobytes())
        digests |= {fleet.partition: (digest.hexdigest(), fleet.truth().frame().hash_rows().sum()) for fleet, digest in zip(fleets, sums, strict=True)}
    return digests


@pytest.mark.slow
def test_streams_are_the_same_for_any_grouping():
    plan = FleetPlan(eps=8_000, seconds=3, devices=10_000, partitions=6, seed=11, bad_path_share=0.1)
    alone = streams(plan, 6)
    assert len({digest for digest, _ in alone.values()}) == 6
    for actors in (1, 2, 4):
        assert streams(plan, actors) == alone
    assert streams(plan.model_copy(update={"seed": 12}), 1) != alone


def test_bytes_are_the_same_on_every_machine():
    """Pinned: another version of numba or numpy, or another processor, must not change a run. A change of the model does."""
    plan = FleetPlan(eps=4_000, seconds=10, devices=6_000, partitions=2, seed=2024, bad_path_share=0.1)
    text = b"".join(drain(PartitionFleet(plan, p))[0] for p in range(2))
    assert hashlib.sha256(text).hexdigest()[:16] == GOLDEN


def test_frame_limits_change_no_byte():
    plan = FleetPlan(eps=30_000, seconds=1, devices=20_000, partitions=1)
    small = plan.model_copy(update={"frame_bytes_max": 8_192})
    assert drain(PartitionFleet(plan, 0))[0] == drain(PartitionFleet(small, 0))[0]


@dataclass
class Watched:
    """What a plain reader knows of one session."""

    run: int = 0
    alerted: bool = False
    opened_ts: int = 0
    last_ts: int = 0
    seq: int = 0


def scan(events, plan):
    """Expected alerts by the rules of detection, one event at a time; log time is the intended time."""
    sessions, rows = defaultdict(Watched), []

    def open_stall(key, seen):
        rows.append((*key, "open_stall", seen.opened_ts, seen.seq, seen.last_ts + plan.open_stall_ms))
        seen.alerted = True

    for event in events:
        key = event["device_id"], event["session_id"]
        seen = sessions[key]
        if seen.run and not seen.alerted and event["ts"] - seen.last_ts > plan.open_stall_ms:
            open_stall(key, seen)
        seen.last_ts, seen.seq = event["ts"], event["seq"]
        if event["event"] == "Buffer" and event.get("phase") not in ("startup", "seek"):
            seen.run += 1
            if seen.run == 1:
                seen.opened_ts = event["ts"]
            if seen.run == plan.loop_threshold and not seen.alerted:
                rows.append((*key, "buffering_loop", event["ts"], event["seq"], event["ts"]))
                seen.alerted = True
        elif event["event"] in ("Start", "Heartbeat", "Stop"):
            seen.run, seen.alerted = 0, False
    for key, seen in sessions.items():
        if seen.run and not seen.alerted:
            open_stall(key, seen)
    return sorted(rows)


plans = st.builds(
    FleetPlan, seed=st.integers(0, 2**63 - 1), eps=st.sampled_from([20, 300, 1500]), seconds=st.sampled_from([1, 12, 30]),
    devices=st.sampled_from([400, 1500, 20_000]),
    partitions=st.just(2), weak_path_share=st.sampled_from([0.05, 0.6]), bad_path_share=st.sampled_from([0, 0.3]), hang_share=st.sampled_from([0, 0.1]),
    loop_threshold=st.sampled_from([1, 2, 3, 5]), open_stall_ms=st.sampled_from([10_000, 12_000]),
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=examples(12), deadline=None)
@given(plan=plans)
def test_truth_is_what_the_events_say(plan):
    for partition in range(plan.partitions):
        fleet = PartitionFleet(plan, partition)
        text, intended = drain(fleet)
        events = [json.loads(line) for line in text.splitlines()]
        assert sorted(fleet.truth().frame().rows()) == scan(events, plan)
        assert intended.size == fleet.events == len(events)
        assert fleet.bytes == len(text)
        assert fleet.ambiguous_silences == 0


@pytest.mark.slow
def test_a_run_cut_short_has_its_truth_too():
    plan = FleetPlan(eps=2_000, seconds=30, devices=5_000, partitions=1, bad_path_share=0.2)
    fleet = PartitionFleet(plan, 0)
    events = [json.loads(line) for _ in range(3_000) for line in fleet.tick().lines.tobytes().splitlines()]
    fleet.finish()
    fleet.finish()
    assert fleet.tick() is None
    assert sorted(fleet.truth().frame().rows()) == scan(events, plan)


def test_truth_of_partitions_joins():
    plan = FleetPlan(eps=1_000, seconds=10, devices=2_000, partitions=3, bad_path_share=0.3)
    fleets = [PartitionFleet(plan, p) for p in range(3)]
    for fleet in fleets:
        drain(fleet)
    whole = Truth.concat([fleet.truth() for fleet in fleets])
    assert len(whole) == sum(len(fleet.truth()) for fleet in fleets) > 20
    assert whole.frame().columns == ["device_id", "session_id", "kind", "event_ts", "seq", "intended_ms"]
    assert len(Truth.concat([])) == 0


@pytest.mark.slow
def test_silences_stay_clear_of_the_limit_when_every_path_is_bad():
    for eps, devices in ((20, 501), (300, 40_000), (900, 1_000)):
        fleet = PartitionFleet(FleetPlan(eps=eps, seconds=60, devices=devices, partitions=1, bad_path_share=1), 0)
        drain(fleet)
        assert fleet.stalls > 30
        assert fleet.ambiguous_silences == 0


def stalls_of(fleet):
    """Length in ms of each stall that ended, and (sessions that stalled, sessions)."""
    opened, lengths, stalled, sessions = {}, [], set(), set()
    for line in drain(fleet)[0].splitlines():
        event = json.loads(line)
        session = event["session_id"]
        sessions.add(session)
        if event["event"] == "Buffer" and "phase" not in event:
            opened.setdefault(session, event["ts"])
            stalled.add(session)
        elif event["event"] in ("Heartbeat", "Stop") and session in opened:
            lengths.append(event["ts"] - opened.pop(session))
    return np.array(lengths), len(stalled), len(sessions)


@pytest.mark.slow
def test_healthy_traffic_stalls_like_reality():
    fleet = PartitionFleet(FleetPlan(eps=2_000, seconds=60, devices=10_000, partitions=1, seed=1), 0)
    lengths, stalled, sessions = stalls_of(fleet)
    assert 0.03 < stalled / sessions < 0.055
    assert fleet.stalled_sessions == stalled
    median = np.median(lengths)
    assert 300 < median < 4_000
    assert np.quantile(lengths, 0.99) > 8 * median  # heavy-tailed: an exponential law has 6.6
    assert lengths.max() > 20 * median
    assert lengths.mean() > 1.3 * median
    assert 240 < fleet.bytes / fleet.events < 270


@pytest.mark.slow
def test_bad_paths_stall_more():
    def share(bad):
        fleet = PartitionFleet(FleetPlan(eps=1_000, seconds=40, devices=4_000, partitions=1, bad_path_share=bad, weak_path_share=0), 0)
        drain(fleet)
        return fleet.stalled_sessions / fleet.sessions, len(fleet.truth())

    (none, few), (some, more), (all_, most) = share(0), share(0.1), share(1)
    assert none < 0.02
    assert 0.06 < some < 0.14
    assert all_ > 0.6
    assert few < more < most


@pytest.mark.slow
def test_ten_million_devices_fit():
    plan = FleetPlan(eps=1_300_000, seconds=0.1, devices=10_000_000, partitions=8)
    total = 0
    for partition in range(2):
        fleet = PartitionFleet(plan, partition)
        seats = int(devices_by_partition(plan)[partition])
        held = sum(array.nbytes for array in fleet._fleet)
        assert fleet.seats == seats
        assert held < 75 * seats + (4 << 20)  # 10M: 750 MB
        while (frames := fleet.tick()) is not None:
            total += int(frames.events.sum())
    assert total == sum(PartitionFleet(plan, p).quota for p in range(2))


@pytest.mark.slow
@pytest.mark.skipif(not TRACES.exists(), reason="the measured traces are not part of the project")
def test_figures_follow_from_the_traces(tmp_path, capsys):
    import runpy

    tool = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "fit_network.py"))
    tool["main"](str(TRACES))
    refitted = json.loads(capsys.readouterr().out)
    from keystone.sim.network import figures

    assert refitted == figures()
    shares = pl.read_parquet(TRACES).group_by("network").len()
    assert shares.height == len(refitted["networks"])
