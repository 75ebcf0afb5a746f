"""Nodes that join a cluster, and leave it in order, while a bench or a run goes on: actors and partitions follow, nothing is lost, and pauses are told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.programs import END_S_MAX, Program, bench, is_exact, report_of
from tests.cluster.ray_nodes import RayNodes
from tests.kafka_server import KafkaCluster
from tests.rdkafka import Confluent, create_topic

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

HEAD, WORKER = {"CPU": 2, "head": 1, "fleet": 1, "session": 1}, {"CPU": 2, "session": 1}
UNDER_WAY = r"phase running +time [5-9]/"


def test_a_node_that_joins_a_bench_takes_its_share(kafka: KafkaCluster, topic_name: str, tmp_path: Path) -> None:
    with RayNodes(HEAD) as own:
        program = bench(own, tmp_path, f"kafka://{kafka.servers[0]}/{topic_name}", "--seconds", "60", "--partitions", "4")
        program.wait_for(UNDER_WAY)
        own.add(WORKER)
        program.end()
    report = told_by(program, tmp_path)
    assert "on 1 node" in program.complained
    assert "1 session actor more, on nodes that joined: 2 own partitions now" in program.complained
    assert [(node["is_alive"], node["session_actors"]) for node in report["nodes"]] == [(True, 1), (True, 1)]
    assert report["moves_ms"]["count"] == 2, report  # of four partitions
    assert "recovery_ms" not in report
    assert "moves     2 partitions to other owners, each paused for p50 " in program.said


def test_a_node_that_leaves_a_bench_in_order_loses_nothing(kafka: KafkaCluster, topic_name: str, tmp_path: Path) -> None:
    with RayNodes(HEAD) as own:
        second = own.add(WORKER)
        program = bench(own, tmp_path, f"kafka://{kafka.servers[0]}/{topic_name}", "--seconds", "25", "--partitions", "4")
        program.wait_for(UNDER_WAY)
        own.leave(second)
        program.end()
    report = told_by(program, tmp_path)
    assert [node["is_alive"] for node in report["nodes"]] == [True, False]
    assert report["recovery_ms"]["count"] == 2, report
    assert "recovery  2 partitions of lost owners, each without one for p50 " in program.said
    assert "gone before the end" in program.said
    assert not [reason for reason in report["reasons"] if "did not close" in reason]  # nobody waits for who cannot come back


def test_a_node_that_is_drained_first_gives_its_partitions_away(kafka: KafkaCluster, topic_name: str, tmp_path: Path) -> None:
    with RayNodes(HEAD) as own:
        second = own.add(WORKER)
        program = bench(own, tmp_path, f"kafka://{kafka.servers[0]}/{topic_name}", "--seconds", "40", "--partitions", "4")
        program.wait_for(UNDER_WAY)
        own.drain(second)
        program.wait_for("1 session actor on nodes that leave: what they own goes to others")
        program.wait_for("own nothing any more: these nodes may go")
        own.leave(second)
        program.end()
    report = told_by(program, tmp_path)
    assert report["moves_ms"]["count"] == 2, report
    assert "recovery_ms" not in report  # it had nothing left
    assert [node["is_alive"] for node in report["nodes"]] == [True, False]


def test_a_run_follows_its_nodes(kafka: KafkaCluster, topic_name: str, tmp_path: Path) -> None:
    create_topic(kafka.servers, topic_name, 4)
    where = ("--log", f"kafka://{kafka.servers[0]}/{topic_name}", "--lake", str(tmp_path / "lake"), "--actions", "none", "--dead-letters", "none")
    with RayNodes(HEAD | {"session": 2}) as own:

        def ask(*words: str) -> Program:
            return Program(tmp_path, "keystone", *words, "--address", own.address, env=own.env)

        begun = ask("run", *where, "--session-actors", "auto", "--detach", "viewing")
        assert begun.end() == 0, begun.said + begun.complained
        assert "1 session actor on 1 node" in begun.said  # the other stands by
        sent = send(kafka, topic_name, 0)
        second = own.add(WORKER)
        until(lambda: "2 own partitions now" in str(status_of(ask)["lines"]))
        sent += send(kafka, topic_name, sent)
        until(lambda: status_of(ask)["seen"]["received"] == sent)
        own.leave(second)
        sent += send(kafka, topic_name, sent)
        until(lambda: status_of(ask)["seen"]["received"] == sent)
        stopped = ask("stop", "viewing", "--report", str(tmp_path / "report"))
        assert stopped.end() == 0, stopped.said + stopped.complained
    ledger = json.loads((tmp_path / "report").read_bytes())["ledger"]
    assert (ledger["received"], ledger["accepted"], ledger["lake_rows"]) == (sent, sent, sent)


def told_by(program: Program, folder: Path) -> dict[str, Any]:
    """The report of a bench, whose answers are right, however slow the machine."""
    assert (folder / "out" / "report.json").exists(), program.said + program.complained
    report = report_of(folder / "out")
    is_exact(report)
    return report


def status_of(ask: Callable[..., Program]) -> dict[str, Any]:
    told = ask("status", "--json")
    assert told.end() == 0, told.said + told.complained
    found: dict[str, Any] = json.loads(told.said)
    return found


def send(kafka: KafkaCluster, topic: str, first: int) -> int:
    """400 events of 20 devices, which lie in all partitions; how many."""
    event = b'{"event":"Heartbeat","ts":%d,"device_id":"d%d","session_id":"s","seq":%d}'
    Confluent().produce(kafka.servers, topic, [(b"d%d" % (i % 20), event % (i, i % 20, i)) for i in range(first, first + 400)])
    return 400


def until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + END_S_MAX
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(1)
