"""The report names every key it promises, and the screen fits a screen."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from keystone.bench.command import as_json
from keystone.bench.latency import MOMENTS, Quantiles, Score, quantiles
from keystone.bench.machine import CpuMeter, Machine, usable_cores, versions
from keystone.bench.plan import Options, resolve
from keystone.bench.report import Measured, build_report
from keystone.bench.screen import final_lines, ms
from keystone.bench.verdict import LagSample, Sums

QUANTILE_KEYS = {"p50", "p90", "p99", "p999", "max", "count", "negatives"}
MACHINE = Machine("a processor of a kind with a very long name @ 2.00GHz", 2, 24_000, 23_000, (0.1, 0.2, 0.3), "Linux", "3.11.2")


def measured() -> Measured:
    moments = [[1_000.0, 1_010.0, 1_012.0, 1_013.0, 1_014.0], [2_000.0, 2_500.0, 2_501.0, 2_502.0, 2_503.0]]
    names = pl.DataFrame({"alert_id": ["a", "b"], "kind": ["buffering_loop"] * 2, "device_id": ["d1", "d2"], "session_id": ["s1", "s2"]})
    table = pl.concat([names, pl.DataFrame(moments, schema=dict.fromkeys(MOMENTS, pl.Float64), orient="row")], how="horizontal")
    return Measured(
        plan=resolve(Options(eps=1_000_000.0, seconds=20), MACHINE),
        start_ms=1e12,
        seconds=20.0,
        events=20_000_000,
        events_on_time=19_999_000,
        bytes=5_200_000_000,
        sessions=1_234_567,
        score=Score(2, 2, 0, 0, 0),
        alerts=table,
        send_delay=quantiles(np.array([1.0, 5.0, 70.0])),
        sums=Sums(20_000_000, 20_000_000, 20_000_000, 19_000_000, 1_000_000, 0, 20_000_000),
        lag=[LagSample(t / 4, 40_000 + t % 3) for t in range(80)],
        cpu_s={"fleet": 7.0, "sessions": 14.0, "other": 0.5},
        loop_cpu_s=10.0,
        rss_max_bytes=4 << 30,
        private_max_bytes=2 << 30,
        rss_by_part_bytes={"fleet": 1 << 30},
        state_bytes=740_000_000,
        sessions_active_max=5_000_000,
        machine=MACHINE.as_dict(),
        versions=versions(),
        config={"detection": {"loop_threshold": 3}},
        unit_events_per_s=550_000.0,
    )


def test_every_promised_key_is_there() -> None:
    report = json.loads(as_json(build_report(measured())))
    promised = {
        "verdict", "reasons", "target_eps", "achieved_eps", "seconds", "events", "bytes", "devices", "sessions", "latency_ms", "within_3s",
        "send_delay_ms", "truth", "ledger", "lag", "cpu_us_per_event", "memory", "machine", "versions", "config", "seed",
    }  # fmt: skip
    assert promised <= set(report)
    assert set(report["latency_ms"]["detect"]) >= QUANTILE_KEYS
    assert set(report["latency_ms"]["end_to_end"]) >= QUANTILE_KEYS
    assert set(report["send_delay_ms"]) >= QUANTILE_KEYS
    assert {"expected", "alerted", "missed", "false", "duplicate"} <= set(report["truth"])
    assert {"sent", "received", "accepted", "applied", "duplicates", "dead_lettered", "lake_rows"} <= set(report["ledger"])
    assert {"slope_events_per_s", "max_events"} <= set(report["lag"])
    assert {"fleet", "sessions", "other", "total"} <= set(report["cpu_us_per_event"])
    assert {"rss_max_mib", "bytes_per_session"} <= set(report["memory"])


def test_numbers_of_a_good_run() -> None:
    report = build_report(measured())
    assert (report["verdict"], report["reasons"]) == ("pass", [])
    assert report["achieved_eps"] == pytest.approx(999_950)
    assert report["latency_ms"]["end_to_end"]["max"] == 503.0
    assert report["latency_ms"]["detect"]["max"] == 4.0
    assert report["within_3s"] == 1.0
    assert report["cpu_us_per_event"] == {"fleet": 0.35, "sessions": 0.7, "other": 0.025, "total": 1.075, "loop": 0.5, "broker": None}
    assert report["memory"]["bytes_per_session"] == 148.0
    assert report["unit"]["achieved_units"] == pytest.approx(1.818, abs=1e-3)


def test_a_run_that_measured_nothing_still_has_a_report() -> None:
    empty = Measured(resolve(Options(eps=1_000.0), MACHINE))
    empty.faults.append("fleet-0 (partition 0) died")
    report = json.loads(as_json(build_report(empty)))
    assert report["verdict"] == "fail"
    assert "fleet-0 (partition 0) died" in report["reasons"]
    assert report["latency_ms"]["end_to_end"]["p99"] is None
    assert final_lines(report)[0].startswith("FAIL")


@pytest.mark.parametrize("faults", [0, 1, 40])
def test_the_final_screen_fits_100_by_40(faults: int) -> None:
    m = measured()
    m.faults += [f"partition {i}: " + "x" * 200 for i in range(faults)]
    m.notes += ["session-0 (partitions 0, 1) died and was restarted"] * 5
    lines = final_lines(build_report(m))
    assert len(lines) <= 40
    assert max(len(line) for line in lines) <= 100
    text = "\n".join(lines)
    for word in ("999,950", "END TO END", "detect", "expected", "ledger", "fleet 0.350", "memory", "machine", "u ="):
        assert word in text, word


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.04, "0.0"), (12.34, "12.3"), (2_345.6, "2,346"), (61_000.0, "61.0 s")])
def test_milliseconds_are_short(value: float | None, text: str) -> None:
    assert ms(value) == text


def test_quantiles_of_nothing_are_shown_as_unknown() -> None:
    m = measured()
    m.send_delay = Quantiles.none()
    assert any(line.startswith("send delay") and " - " in line for line in final_lines(build_report(m)))


def test_the_meter_counts_a_window_and_sorts_by_part() -> None:
    meter = CpuMeter(lambda _: "me")
    meter.sample()
    meter.open()
    total = 0
    while meter.peek()["me"] < 0.05:
        total += sum(range(100_000))
    used = meter.close()
    assert set(used) == {"me"}
    assert 0.05 <= used["me"] < 5
    assert meter.rss_max_bytes >= meter.private_max_bytes > 1 << 20
    assert usable_cores() >= 1
