"""What an alert says: the rung of the ladder, its id, its fields."""

from __future__ import annotations

import hashlib

import pytest

from keystone.detect import alert_id, recommended_bitrate_kbps
from tests.batches import Run, event

NOW = 1_700_000_000_000


@pytest.mark.parametrize(
    ("bitrate", "rung"),
    [(None, 235), (-5, 235), (0, 235), (235, 235), (236, 235), (375, 235), (376, 375), (3000, 2350), (5800, 4300), (5801, 5800), (2**53, 5800)],
)
def test_the_rung_next_below(bitrate: int | None, rung: int) -> None:
    assert recommended_bitrate_kbps((235, 375, 560, 750, 1050, 1750, 2350, 3000, 4300, 5800), bitrate) == rung


def test_a_ladder_of_one_rung() -> None:
    assert recommended_bitrate_kbps((400,), 9000) == 400


def test_ids_are_those_of_the_specification() -> None:
    expected = hashlib.sha256("gerät\0s\x001700000000000\x002\0open_stall".encode()).hexdigest()[:32]
    assert alert_id("gerät", "s", NOW, 2, "open_stall") == expected


def test_a_loop_says_what_its_own_event_says() -> None:
    run = Run(partition=3)
    run.apply([(event("Buffer", 1000 + k, seq=k, cdn="a" if k < 2 else "b", bitrate_kbps=3000 if k == 2 else None, user_id="u"), NOW + k) for k in range(5)])
    (alert,) = run.alerts
    assert alert["alert_id"] == alert_id("d", "s", 1000, 0, "buffering_loop")
    assert (alert["kind"], alert["action"], alert["partition"], alert["append_ts_ms"]) == ("buffering_loop", "bitrate_downgrade", 3, NOW + 2)
    assert (alert["event_ts"], alert["seq"], alert["buffers_in_run"], alert["bitrate_kbps"], alert["recommended_bitrate_kbps"]) == (1002, 2, 3, 3000, 2350)
    assert (alert["cdn"], alert["user_id"], alert["region"]) == ("b", "u", None)


def test_a_broken_counter_gives_an_alert_without_seq() -> None:
    run = Run()
    run.apply([(event("Buffer", 1, seq=0), NOW), (event("Buffer", 2, seq=1), NOW), (event("Buffer", 3, seq=2**40), NOW)])
    assert [(alert["event_ts"], alert["seq"]) for alert in run.alerts] == [(3, None)]


def test_each_run_alerts_at_its_threshold() -> None:
    run = Run(detection={"loop_threshold": 2})
    kinds = ["Buffer"] * 5 + ["Heartbeat", "Buffer", "Start", "Buffer", "Error", "Buffer"]
    run.apply([(event(kind, 100 + i, seq=i), NOW + i) for i, kind in enumerate(kinds)])
    assert [alert["event_ts"] for alert in run.alerts] == [101, 110]
    assert [alert["alert_id"] for alert in run.alerts] == [alert_id("d", "s", 100, ordinal, "buffering_loop") for ordinal in (0, 1)]
