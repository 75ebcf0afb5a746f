"""Real brokers that die, freeze, move leaders, lose a topic or drop records: nothing acknowledged is lost, every alert is raised, once.

Every test runs the two commands as processes of their own, breaks something in mid-run, and has the end scored by truth, ledger and
law (``kafka_faults``). None of our processes is started anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.kafka_faults import TELEMETRY, FaultRun, move_leaders_back
from tests.kafka_server import KafkaCluster

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.slow, pytest.mark.ray]

Cluster = Callable[..., KafkaCluster]
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
