"""Real brokers that die, freeze, move leaders, lose a topic or drop records: nothing acknowledged is lost, every alert is raised, once.

Every test runs the two commands as processes of their own, breaks something in mid-run, and has the end scored by truth, ledger and
law (``kafka_faults``). None of our processes is started anew.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.faults.kafka_faults import (
    PARTITIONS,
    TELEMETRY,
    FaultRun,
    assert_same,
    create_topics,
    delete_records,
    delete_topic,
    events_of,
    law_of,
    move_leaders_back,
)
from tests.kafka_server import KafkaCluster

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.slow, pytest.mark.ray]

Cluster = Callable[..., KafkaCluster]
GAP = re.compile(r"partition (\d+), offsets (\d+) to (\d+)")
FROZEN_S = 10.0  # twice kafka.request_timeout_ms: every client gives its connection up meanwhile


def test_a_broker_that_is_killed_and_restarted(kafka_cluster: Cluster, tmp_path: Path, record_property: Any) -> None:
    kafka = kafka_cluster()
    with FaultRun(kafka, tmp_path) as run:
        run.wait_flowing()
        with run.fault("kill -9, restart"):
            kafka.kill(0)
            time.sleep(0.5)
            kafka.restart(0)
        run.end().assert_well(record_property)


def test_a_leader_of_three_that_is_killed_and_leaders_that_move_back(kafka_cluster: Cluster, tmp_path: Path, record_property: Any) -> None:
    kafka = kafka_cluster(brokers=3)
    with FaultRun(kafka, tmp_path, actors=2, seconds=18) as run:
        run.wait_flowing()
        lost = run.led_by(0)
        with run.fault("kill -9 of one of three", lost):
            kafka.kill(0)
            run.wait_flowing()
        assert not run.led_by(0)
        kafka.restart(0)
        with run.fault("leaders move back", lost):
            move_leaders_back(kafka.servers, TELEMETRY)
        assert run.led_by(0) == lost
        run.end().assert_well(record_property)


def test_a_lone_broker_that_is_frozen(kafka_cluster: Cluster, tmp_path: Path, record_property: Any) -> None:
    kafka = kafka_cluster()
    with FaultRun(kafka, tmp_path, seconds=18) as run:
        run.wait_flowing()
        with run.fault("frozen for 10 s"):
            kafka.pause(0)
            time.sleep(FROZEN_S)
            kafka.resume(0)
        run.end().assert_well(record_property)


def test_a_leader_of_three_that_is_frozen(kafka_cluster: Cluster, tmp_path: Path, record_property: Any) -> None:
    kafka = kafka_cluster(brokers=3)
    with FaultRun(kafka, tmp_path, actors=2, seconds=18) as run:
        run.wait_flowing()
        lost = run.led_by(0)
        with run.fault("one of three frozen for 10 s", lost):
            kafka.pause(0)
            time.sleep(FROZEN_S)
            kafka.resume(0)
        run.end().assert_well(record_property)


def test_a_broker_that_restarts_again_and_again_under_records_in_flight(kafka_cluster: Cluster, tmp_path: Path, record_property: Any) -> None:
    kafka = kafka_cluster()
    with FaultRun(kafka, tmp_path, eps=10_000, seconds=20) as run:
        run.wait_flowing()
        for end in (kafka.stop, kafka.kill, kafka.stop, kafka.kill):
            with run.fault(f"{end.__name__}, restart"):
                end(0)
                kafka.restart(0)
            run.wait_flowing()
        run.end().assert_well(record_property)


@pytest.mark.parametrize("gone_s", [0.0, 6.0])
def test_a_topic_that_is_deleted_under_the_reader_and_made_anew(kafka_cluster: Cluster, tmp_path: Path, record_property: Any, gone_s: float) -> None:
    """What went with the topic is a counted gap; the new one is read from its start, by the same processes, beside the old one's files."""
    kafka = kafka_cluster()
    with FaultRun(kafka, tmp_path, seconds=16) as run:
        run.wait_flowing()
        with run.fault(f"deleted, made anew after {gone_s:.0f} s"):
            delete_topic(kafka.servers, TELEMETRY)
            time.sleep(gone_s)
            deleted_ms = time.time() * 1_000
            create_topics(run.url)
        outcome = run.end()
        outcome.tell(record_property)
        assert (outcome.simulate_status, outcome.run_status) == (0, 1)
        assert "passed over" in run.run.err
    assert set(outcome.report["gaps"]) == {"recreated"}
    before = outcome.lake_log(deleted_ms)
    expected = len(before) + sum(1 for _ in events_of(outcome.log))
    ledger = outcome.report["ledger"]
    assert expected == ledger["received"] == ledger["accepted"] == ledger["lake_rows"] == outcome.lake.height
    assert 0 <= outcome.sent["acknowledged"] - expected < outcome.sent["intended"] // 10  # acknowledged, and gone with the topic before it was read
    alerts, _, places = law_of(outcome.log, before)
    assert_same(outcome.actions, alerts, ("alert_id",), "alerts")
    assert Counter(outcome.lake.select("partition", "offset", "line", "append_ts", "duplicate").iter_rows()) == Counter(places)


def test_retention_that_passes_the_reader(kafka_cluster: Cluster, tmp_path: Path, record_property: Any) -> None:
    """The session actor stands still while the log's start moves beyond it: the gap is counted exactly, and the run goes on."""
    kafka = kafka_cluster()
    with FaultRun(kafka, tmp_path, seconds=14) as run:
        run.wait_flowing()
        [actor] = run.session_actors()
        with run.fault("retention passes the reader"):
            actor.suspend()
            begin = run.ends(TELEMETRY)
            while any(end < begin[partition] + 300 for partition, end in run.ends(TELEMETRY).items()):
                time.sleep(0.05)
            starts = {partition: end - 20 for partition, end in run.ends(TELEMETRY).items()}
            delete_records(kafka.servers, TELEMETRY, starts)
            actor.resume()
        outcome = run.end()
        outcome.tell(record_property)
        assert (outcome.simulate_status, outcome.run_status) == (0, 1), outcome.report["failures"]
        assert set(outcome.report["gaps"]) == {"retention"}, outcome.report["failures"]
        assert "passed over" in run.run.err
    gone = [tuple(map(int, GAP.findall(gap)[0])) for gap in outcome.report["gap_list"]]
    assert sum(last - first + 1 for _, first, last in gone) == outcome.report["gaps"]["retention"]
    for partition in range(PARTITIONS):
        read = set(outcome.lake.filter(pl.col("partition") == partition)["offset"].to_list())
        passed_over = {offset for place, first, last in gone if place == partition for offset in range(first, last + 1)}
        assert not read & passed_over
        assert read | passed_over == set(range(outcome.log[partition][-1].offset + 1)), partition
        assert not passed_over or max(passed_over) == starts[partition] - 1
    ledger = outcome.report["ledger"]
    assert ledger["received"] == ledger["accepted"] == ledger["lake_rows"] == outcome.lake.height
    alerts, _, _ = law_of({}, outcome.lake_log(float("inf")))
    assert_same(outcome.actions, alerts, ("alert_id",), "alerts")
