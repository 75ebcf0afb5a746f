"""The simulator's streams: fields, rates, order, and the plan's refusals."""

import json
from collections import defaultdict

import numpy as np
import pytest

from keystone.errors import UsageError
from keystone.events import DIMENSIONS, EVENT_NAMES
from keystone.partition import device_id_of, partition_of
from keystone.sim import catalog, network, write
from keystone.sim.fleet import PartitionFleet
from keystone.sim.plan import FleetPlan, devices_by_partition, events_by_partition, seats_by_partition

REQUIRED = {"event", "ts", "device_id", "session_id", "seq"}
FULL = REQUIRED | set(DIMENSIONS) | {"bitrate_kbps", "position_ms", "buffer_ms"}
EPOCH_MS = 1_790_000_000_000


def lines_of(fleet):
    """Every line with its event, tick by tick; checks what each tick promises."""
    while (frames := fleet.tick()) is not None:
        first = 0
        for start, end, events in zip(frames.starts, frames.ends, frames.events, strict=True):
            lines = frames.text[start:end].tobytes().split(b"\n")
            assert len(lines) == events <= fleet.plan.frame_events_max
            assert end - start <= fleet.plan.frame_bytes_max
            assert frames.text[end] == 10
            for line, intended in zip(lines, frames.intended_ms[first : first + len(lines)], strict=True):
                event = json.loads(line)
                assert event["ts"] == fleet.plan.epoch_ms + intended
                assert frames.due_ms - fleet.plan.tick_length_ms <= intended <= frames.due_ms
                yield line, event
            first += len(lines)
        assert first == frames.intended_ms.size


@pytest.mark.slow
def test_lines_carry_the_fields_of_their_kind():
    seen, sessions = defaultdict(list), set()
    for line, event in lines_of(PartitionFleet(FleetPlan(eps=3000, seconds=20, devices=9_000, partitions=1, bad_path_share=0.05), 0)):
        assert len(line) < 600
        assert event["event"] in EVENT_NAMES
        assert set(event) >= REQUIRED
        assert event["buffer_ms"] >= 0
        assert event["bitrate_kbps"] in FleetPlan().ladder_kbps
        if event["session_id"] not in sessions:
            sessions.add(event["session_id"])
            assert set(event) >= FULL
        seen[event["event"], event.get("phase"), event.get("fatal")].append(event)
    assert set(seen) == {
        ("Start", None, None), ("Heartbeat", None, None), ("Stop", None, None), ("Buffer", None, None), ("Buffer", "startup", None),
        ("Buffer", "seek", None), ("Error", None, True), ("Error", None, False),
    }  # fmt: skip
    assert all(event["seq"] == 0 and set(event) == FULL for event in seen["Start", None, None])
    assert all(set(catalog.REASONS) >= {event["reason"]} for event in seen["Stop", None, None])
    assert all(event["stall_ms"] >= 0 for event in seen["Buffer", None, None] + seen["Buffer", "startup", None])
    assert all(event["error_code"] for event in seen["Error", None, True] + seen["Error", None, False])
    assert any("startup_ms" in event for event in seen["Heartbeat", None, None])
    assert any("dropped_frames" in event for event in seen["Heartbeat", None, None])


def test_families_spell_in_their_own_order():
    orders = set()
    for line, event in lines_of(PartitionFleet(FleetPlan(eps=2000, seconds=1, devices=5_000, partitions=1), 0)):
        assert line in (json.dumps(event, separators=(",", ":")).encode(), json.dumps(event, separators=(",", ": ")).encode())
        if set(event) == FULL:
            orders.add(tuple(event))
    assert len(orders) == 3


@pytest.mark.slow
def test_sessions_are_in_order_and_devices_are_replaced():
    last, by_device, kinds = {}, defaultdict(set), defaultdict(list)
    fleet = PartitionFleet(FleetPlan(eps=2000, seconds=60, devices=3_000, partitions=1), 0)
    for _, event in lines_of(fleet):
        session = event["session_id"]
        by_device[event["device_id"]].add(session)
        if session in last:
            seq, ts = last[session]
            assert event["seq"] == seq + 1
            assert event["ts"] > ts
        last[session] = event["seq"], event["ts"]
        kinds[session].append(event["event"])
    assert len(last) > 3_100
    assert sum(len(sessions) > 1 for sessions in by_device.values()) > 100
    assert all(names.index("Stop") == len(names) - 1 for names in kinds.values() if "Stop" in names)
    assert fleet.sessions == len(last)
    assert fleet.ambiguous_silences == 0


@pytest.mark.slow
def test_idle_devices_take_the_seats_of_those_that_leave():
    plan = FleetPlan(eps=100, seconds=60, devices=50_000, partitions=1)
    fleet = PartitionFleet(plan, 0)
    devices = {event["device_id"] for _, event in lines_of(fleet)}
    assert fleet.seats < 2_000
    assert len(devices) > fleet.seats


@pytest.mark.parametrize(
    ("eps", "seconds", "devices", "partitions"),
    [(1, 3, 10, 1), (0.5, 7, 40, 5), (997, 2.503, 1000, 7), (5000, 1, 1100, 3), (20_000, 1, 5_000, 2)],
)
def test_rate_is_exact_and_even(eps, seconds, devices, partitions):
    plan = FleetPlan(eps=eps, seconds=seconds, devices=devices, partitions=partitions, seed=3)
    assert sum(events_by_partition(plan)) == plan.events == round(eps * seconds)
    total = 0
    for partition in range(partitions):
        fleet = PartitionFleet(plan, partition)
        ticks = []
        while (frames := fleet.tick()) is not None:
            ticks.append(int(frames.events.sum()))
            assert frames.lines.tobytes().count(b"\n") == ticks[-1] == frames.intended_ms.size
        assert len(ticks) == plan.ticks
        assert max(ticks) - min(ticks) <= 1
        assert sum(ticks) == fleet.events == fleet.quota
        total += fleet.events
    assert total == plan.events


def test_devices_live_in_their_partition():
    plan = FleetPlan(eps=2000, seconds=1, devices=4_000, partitions=6)
    for partition in range(6):
        assert all(partition_of(event["device_id"], 6) == partition for _, event in lines_of(PartitionFleet(plan, partition)))
    counts = devices_by_partition(plan)
    expected = np.bincount([partition_of(device_id_of(n), 6) for n in range(4_000)], minlength=6)
    assert np.array_equal(counts, expected)
    assert np.all(seats_by_partition(plan) <= counts)


def test_partition_without_devices_is_silent():
    plan = FleetPlan(eps=5, seconds=2, devices=3, partitions=64)
    empty = int(np.flatnonzero(devices_by_partition(plan) == 0)[0])
    fleet = PartitionFleet(plan, empty)
    assert fleet.quota == 0
    while (frames := fleet.tick()) is not None:
        assert frames
        assert len(frames) == 0
        assert frames.lines.size == 0
    assert len(fleet.truth()) == 0


def test_frames_are_cut_by_events_and_by_bytes():
    plan = FleetPlan(eps=200_000, seconds=0.05, devices=60_000, partitions=1, frame_events_max=150, frame_bytes_max=20_000)
    assert sum(1 for _ in lines_of(PartitionFleet(plan, 0))) == 10_000


@pytest.mark.slow
def test_report_interval_holds_the_devices_time_to_the_schedule():
    for eps, devices in ((500, 200), (500, 20_000), (3000, 6_000)):
        fleet = PartitionFleet(FleetPlan(eps=eps, seconds=40, devices=devices, partitions=1), 0)
        while fleet.tick() is not None:
            assert abs(fleet.drift_ms) < 2_500


def test_ts_has_thirteen_digits_past_each_hundred_million_ms():
    plan = FleetPlan(eps=1000, seconds=0.4, devices=1000, partitions=1, epoch_ms=EPOCH_MS + 99_999_800)
    stamps = [event["ts"] for _, event in lines_of(PartitionFleet(plan, 0))]
    assert stamps == sorted(stamps)
    assert stamps[0] < EPOCH_MS + 100_000_000 < stamps[-1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("eps", 0), ("eps", -1), ("seconds", 0), ("devices", 0), ("devices", 100), ("partitions", 0), ("seed", -1), ("epoch_ms", 12), ("bad_path_share", 1.5),
     ("ladder_kbps", (300, 200)), ("ladder_kbps", ()), ("open_stall_ms", 4_000), ("tick_ms", 50), ("loop_threshold", 0)],
)  # fmt: skip
def test_plan_refuses_in_one_line(field, value):
    with pytest.raises(UsageError) as refusal:
        FleetPlan(**{"eps": 1000, "seconds": 1, "devices": 1000, field: value})
    assert "\n" not in str(refusal.value)
    assert field in str(refusal.value) or "share" in str(refusal.value)


def test_partition_out_of_range_is_refused():
    with pytest.raises(UsageError, match="not below"):
        PartitionFleet(FleetPlan(eps=10, devices=10), 8)


def test_network_figures_are_sane():
    networks = network.figures()["networks"]
    assert set(networks) == {"fcc", "hsdpa", "oboe", "puffer"}
    for figures in networks.values():
        assert figures["path_kbps_quantiles"] == sorted(figures["path_kbps_quantiles"])
        assert figures["level_ratio"] == sorted(figures["level_ratio"])
        assert all(abs(sum(row) - 1) < 0.01 for row in figures["jump"])
        assert all(row[i] == 0 for i, row in enumerate(figures["jump"]))
        assert all(0.5 < dwell < 120 for dwell in figures["dwell_s"])
        mean = np.dot(figures["level_share"], figures["level_ratio"])
        assert 0.9 < mean < 1.1


def test_catalog_names_only_known_networks():
    assert {p.figures for p in catalog.profiles()} == set(network.figures()["networks"])
    assert {p.style for p in catalog.profiles()} == {0, 1, 2}
    assert len(catalog.profiles()) == catalog.PROFILES


@pytest.mark.slow
def test_file_of_events_has_that_many_lines(tmp_path, capsys):
    path = tmp_path / "events.ndjson"
    assert write.main(["--events", "5001", "--out", str(path), "--seed", "4"]) == 0
    assert "5,001 events" in capsys.readouterr().out
    lines = path.read_bytes().splitlines()
    assert len(lines) == 5001
    assert {json.loads(line)["event"] for line in lines} == set(EVENT_NAMES)
    assert write.sample(5001, seed=4) == path.read_bytes() != write.sample(5001, seed=5)
    assert write.sample(1).count(b"\n") == 1


def test_file_that_cannot_be_written_is_told_in_one_line(tmp_path, capsys):
    assert write.main(["--events", "0", "--out", str(tmp_path / "x")]) == 2
    assert write.main(["--events", "5", "--out", str(tmp_path / "none" / "x")]) == 2
    assert capsys.readouterr().err.count("\n") == 2
