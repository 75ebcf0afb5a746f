"""Real brokers that die, freeze, move leaders, lose a topic or drop records: nothing acknowledged is lost, every alert is raised, once.

Every test runs the two commands as processes of their own, breaks something in mid-run, and has the end scored by truth, ledger and
law (``kafka_faults``). None of our processes is started anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.kafka_faults import (
    TELEMETRY,
    FaultRun,
    create_topics,
    delete_records,
    delete_topic,
    events_of,
    move_leaders_back,
    url_of,
    wait_in_sync,
)
from tests.kafka_server import KafkaCluster
from tests.rdkafka import Confluent
from tests.services.runs import Command, log_of, wait_until

# Three brokers, two actors and a simulator fill two cores: beside another test each looks dead to the others.
pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.slow, pytest.mark.ray, pytest.mark.alone]

Cluster = Callable[..., KafkaCluster]
FROZEN_S = 10.0  # twice kafka.request_timeout_ms: every client gives its connection up meanwhile


def test_a_broker_that_is_killed_and_restarted(kafka_cluster: Cluster, tmp_path: Path, record_property: Any) -> None:
    kafka = kafka_cluster()
    with FaultRun(kafka, tmp_path) as run:
        run.wait_flowing()
        kafka.kill(0)
        with run.fault("kill -9, restart"):
            time.sleep(0.5)
            kafka.restart(0)
        run.end().assert_well(record_property)


def test_a_leader_of_three_that_is_killed_and_leaders_that_move_back(kafka_cluster: Cluster, tmp_path: Path, record_property: Any) -> None:
    kafka = kafka_cluster(brokers=3)
    with FaultRun(kafka, tmp_path, actors=2) as run:
        run.wait_flowing()
        lost = run.led_by(0)
        kafka.kill(0)
        with run.fault("kill -9 of one of three", lost):
            run.wait_flowing()
        assert not run.led_by(0)
        kafka.restart(0)
        wait_in_sync(kafka.servers, TELEMETRY)
        with run.fault("leaders move back", lost):
            move_leaders_back(kafka.servers, TELEMETRY)
        assert run.led_by(0) == lost
        run.end().assert_well(record_property)


def test_a_lone_broker_that_is_frozen(kafka_cluster: Cluster, tmp_path: Path, record_property: Any) -> None:
    kafka = kafka_cluster()
    with FaultRun(kafka, tmp_path) as run:
        run.wait_flowing()
        kafka.pause(0)
        with run.fault("frozen for 10 s"):
            time.sleep(FROZEN_S)
            kafka.resume(0)
        run.end().assert_well(record_property)


def test_a_leader_of_three_that_is_frozen(kafka_cluster: Cluster, tmp_path: Path, record_property: Any) -> None:
    kafka = kafka_cluster(brokers=3)
    with FaultRun(kafka, tmp_path, actors=2) as run:
        run.wait_flowing()
        lost = run.led_by(0)
        kafka.pause(0)
        with run.fault("one of three frozen for 10 s", lost):
            time.sleep(FROZEN_S)
            kafka.resume(0)
        run.end().assert_well(record_property)


def test_a_broker_that_restarts_again_and_again_under_records_in_flight(kafka_cluster: Cluster, tmp_path: Path, record_property: Any) -> None:
    kafka = kafka_cluster()
    with FaultRun(kafka, tmp_path, eps=10_000) as run:
        run.wait_flowing()
        for end in (kafka.stop, kafka.kill, kafka.stop, kafka.kill):
            end(0)
            with run.fault(f"{end.__name__}, restart"):
                kafka.restart(0)
            run.wait_flowing()
        run.end().assert_well(record_property)


@pytest.mark.parametrize("gone_s", [0.0, 10.0])
def test_a_topic_that_is_deleted_under_the_reader_and_made_anew(kafka_cluster: Cluster, tmp_path: Path, record_property: Any, gone_s: float) -> None:
    """What went with the topic is a counted gap; the new one is read from its start, beside the old one's files in the lake."""
    kafka = kafka_cluster()
    with FaultRun(kafka, tmp_path) as run:
        run.wait_flowing()
        delete_topic(kafka.servers, TELEMETRY)
        with run.fault(f"deleted, made anew after {gone_s:.0f} s"):
            spent_s = run.spent_s()
            time.sleep(gone_s)
            assert run.spent_s() - spent_s < max(1.0, gone_s), "two processes spin"
            assert run.run.process.poll() is None
            gone_ms = time.time() * 1_000
            create_topics(run.url)
        outcome = run.end()
        gaps = outcome.assert_gaps(record_property, "recreated")
        outcome.assert_ledger_and_law(outcome.log, since_ms=gone_ms)
        for partition, gap in gaps.items():
            read = {offset for place, offset, *_ in outcome.read_before(gone_ms) if place == partition}
            assert read == set(range(gap[0]))
        assert outcome.report["ledger"]["applied"] <= outcome.sent["acknowledged"]  # what was acknowledged and not read yet went with the topic


def test_retention_that_passes_the_reader(kafka_cluster: Cluster, tmp_path: Path, record_property: Any) -> None:
    """The session actor stands still while the log's start moves beyond it: the gap is counted exactly, and the run goes on."""
    kafka = kafka_cluster()
    with FaultRun(kafka, tmp_path, standbys=0) as run:
        run.wait_flowing()
        [actor] = run.session_actors()
        actor.suspend()
        with run.fault("retention passes the reader"):
            begin = run.ends()
            wait_until(lambda: all(end >= begin[partition] + 500 for partition, end in run.ends().items()), "the devices do not send")
            starts = {partition: end - 20 for partition, end in run.ends().items()}
            whole = log_of(kafka.servers, TELEMETRY)
            delete_records(kafka.servers, TELEMETRY, starts)
            actor.resume()
        outcome = run.end()
        gaps = outcome.assert_gaps(record_property, "retention")
        assert {partition: gap[-1] + 1 for partition, gap in gaps.items()} == starts
        assert {partition: records[0].offset for partition, records in outcome.log.items()} == starts
        gone = {partition: [record for record in records if record.offset in gaps[partition]] for partition, records in whole.items()}
        left = {partition: [record for record in records if record.offset < gaps[partition][0]] for partition, records in whole.items()}
        outcome.assert_ledger_and_law({partition: left[partition] + records for partition, records in outcome.log.items()})
        assert outcome.report["ledger"]["received"] + sum(1 for _ in events_of(gone)) == outcome.sent["acknowledged"]


def test_frozen_brokers_of_the_actions_alone(kafka_cluster: Cluster, tmp_path: Path, record_property: Any) -> None:
    """Alerts without an answer are looked up before they are said again; telemetry, sessions and lake wait for nothing."""
    kafka, actions = kafka_cluster(), kafka_cluster()
    hasty = ["--set", "kafka.request_timeout_ms=1500", "--set", "kafka.delivery_timeout_ms=2500"]
    with FaultRun(kafka, tmp_path, actions=actions, options=hasty) as run:
        run.wait_flowing()
        actions.pause(0)
        with run.fault("brokers of the actions frozen for 10 s"):
            time.sleep(FROZEN_S)
            actions.resume(0)
        run.end().assert_well(record_property)


def test_an_outage_is_no_silence(kafka_cluster: Cluster, tmp_path: Path) -> None:
    """``--until-idle`` counts only while the log itself says that nothing comes."""
    kafka = kafka_cluster()
    url, report, frozen_s = url_of(kafka), tmp_path / "report.json", 8.0
    create_topics(url)
    event = b'{"event":"Start","ts":1790000000000,"device_id":"d","session_id":"s","seq":0}'
    with Command("run", "--log", url, "--until-idle", "4", "--report", str(report)) as run:
        run.wait_for("reading kafka://")
        kafka.pause(0)
        time.sleep(frozen_s)
        assert run.process.poll() is None
        kafka.resume(0)
        Confluent({"enable.idempotence": "true"}).produce(kafka.servers, TELEMETRY, [(b"d", event)])
        assert run.end() == 0, run.err
    assert json.loads(report.read_bytes())["ledger"]["received"] == 1
