"""Bench and run on a Ray cluster of two nodes, over Kafka: actors on both, one of the nodes lost, and what a cluster refuses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.programs import Program, bench, is_exact, report_of
from tests.cluster.ray_nodes import RayNodes
from tests.kafka_server import KafkaCluster
from tests.rdkafka import Confluent, create_topic

pytestmark = [pytest.mark.slow, pytest.mark.ray]

HEAD, WORKER = {"CPU": 2, "head": 1, "fleet": 2, "session": 2}, {"CPU": 2, "session": 2}


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with RayNodes(HEAD) as started:
        started.add(WORKER)
        yield started


WHERE = """
import sys
from dataclasses import replace
import ray
from keystone.actors.nodes import COMMITTER, FLEET, SESSION, SUPERVISOR, NodeProbe, Placement, living_nodes
from keystone.actors.runtime import RayRuntime, remote_class

class Seen(NodeProbe):
    def node(self):
        return ray.get_runtime_context().get_node_id()

def counts(placement, kind, actors):
    made = [remote_class(Seen, max_restarts=-1, **placement.options(kind)).remote("") for _ in range(actors)]
    found = ray.get([one.node.remote() for one in made])
    for one in made:
        ray.kill(one)
    return [found.count(node.node_id) for node in placement.nodes]

with RayRuntime(address=sys.argv[1]):
    marked = Placement(tuple(living_nodes()), is_joined=True)
    plain = Placement(tuple(replace(node, resources={"CPU": 2.0}) for node in marked.nodes), is_joined=True)
    for placement in (marked, plain):
        print(counts(placement, SESSION, 4), counts(placement, FLEET, 2), counts(placement, COMMITTER, 5), counts(placement, SUPERVISOR, 5))
"""


def test_actors_are_where_they_are_meant_to_be(nodes: RayNodes, tmp_path: Path) -> None:
    """Of actors that ask for nothing, Ray obeys few wishes: by chance one of two lands where it should."""
    program = Program(tmp_path, "-c", WHERE, nodes.address, env=nodes.env)
    assert program.end() == 0, program.said + program.complained
    assert program.said.splitlines() == ["[2, 2] [2, 0] [5, 0] [5, 0]"] * 2


def test_session_actors_sit_on_both_nodes_and_nothing_is_lost(nodes: RayNodes, kafka: KafkaCluster, topic_name: str, tmp_path: Path) -> None:
    program = bench(nodes, tmp_path, f"kafka://{kafka.servers[0]}/{topic_name}", "--seconds", "10")
    status = program.end()
    assert (tmp_path / "out" / "report.json").exists(), program.said + program.complained
    report = report_of(tmp_path / "out")
    is_exact(report)
    assert status == (0 if report["verdict"] == "pass" else 1)
    assert [node["session_actors"] for node in report["nodes"]] == [2, 2]
    assert sum(node["fleet_actors"] for node in report["nodes"]) == 1
    assert all(abs(node["clock_ms"]) <= node["clock_uncertain_ms"] + 1 for node in report["nodes"])  # one machine, one clock
    assert report["cpu_us_per_event"]["sessions"] > 0 < report["cpu_us_per_event"]["fleet"]
    assert "on 2 nodes" in program.complained  # progress, beside the result
    assert not (tmp_path / "out" / ".work").exists()


def test_a_node_lost_in_the_middle_loses_nothing(kafka: KafkaCluster, topic_name: str, tmp_path: Path) -> None:
    with RayNodes({**HEAD, "session": 1}) as own:
        second = own.add({**WORKER, "session": 1})
        program = bench(own, tmp_path, f"kafka://{kafka.servers[0]}/{topic_name}", "--seconds", "25", "--partitions", "4")
        program.wait_for(r"phase running +time [5-9]/")
        own.kill(second)
        program.end()
        assert (tmp_path / "out" / "report.json").exists(), program.said + program.complained
        report = report_of(tmp_path / "out")
        is_exact(report)
        assert report["recovery_ms"]["count"] == 2, report  # the partitions that were there
        assert [node["is_alive"] for node in report["nodes"]] == [True, False]


def test_the_embedded_log_is_refused(nodes: RayNodes, tmp_path: Path) -> None:
    program = Program(tmp_path, "keystone.bench", "--address", nodes.address, "--eps", "1000", "--out", str(tmp_path / "out"), env=nodes.env)
    assert program.end() == 2
    told = program.complained.splitlines()[-1]
    assert told.startswith("keystone bench: the embedded log is memory of one machine, and this cluster has 2 nodes: say --log kafka://")


def test_a_run_without_shared_state_is_refused(nodes: RayNodes, kafka: KafkaCluster, topic_name: str, tmp_path: Path) -> None:
    create_topic(kafka.servers, topic_name)
    where = ("--log", f"kafka://{kafka.servers[0]}/{topic_name}", "--actions", "none", "--dead-letters", "none")
    program = Program(tmp_path, "keystone", "run", "--address", nodes.address, *where, env=nodes.env)
    assert program.end() == 2
    assert "on 2 nodes checkpoints must be where whoever takes over finds them: say --state" in program.complained
    assert "Traceback" not in program.complained


def test_no_cluster_there_is_one_line(tmp_path: Path) -> None:
    program = Program(tmp_path, "keystone", "status", "--address", "127.0.0.1:1")
    assert program.end() == 2
    assert len(program.complained.splitlines()) == 1, program.complained


def test_without_the_token_nobody_is_let_in(nodes: RayNodes, tmp_path: Path) -> None:
    program = Program(tmp_path, "keystone", "status", "--address", nodes.address)
    assert program.end() == 2
    assert "Traceback" not in program.complained
    assert "--address" in program.complained


def test_a_detached_run_goes_on_by_itself(nodes: RayNodes, kafka: KafkaCluster, topic_name: str, tmp_path: Path) -> None:
    create_topic(kafka.servers, topic_name, 4)
    log = f"kafka://{kafka.servers[0]}/{topic_name}"
    where = ("--log", log, "--lake", str(tmp_path / "lake"), "--actions", "none", "--dead-letters", "none", "--session-actors", "2")
    begun = Program(tmp_path, "keystone", "run", "--address", nodes.address, *where, "--detach", "viewing", env=nodes.env)
    assert begun.end() == 0, begun.said + begun.complained
    assert "viewing goes on by itself" in begun.said
    again = Program(tmp_path, "keystone", "run", "--address", nodes.address, *where, "--detach", "viewing", env=nodes.env)
    assert again.end() == 2
    assert "there is a run of that name" in again.complained
    Confluent().produce(
        kafka.servers, topic_name, [(b"d", b'{"event":"Heartbeat","ts":%d,"device_id":"d","session_id":"s","seq":%d}' % (i, i)) for i in range(500)]
    )
    told = Program(tmp_path, "keystone", "status", "--address", nodes.address, env=nodes.env)
    assert told.end() == 0
    assert told.said.startswith("viewing  running")
    time.sleep(3)
    stopped = Program(tmp_path, "keystone", "stop", "viewing", "--address", nodes.address, "--report", str(tmp_path / "report"), env=nodes.env)
    assert stopped.end() == 0, stopped.said + stopped.complained
    ledger = json.loads((tmp_path / "report").read_bytes())["ledger"]
    assert (ledger["received"], ledger["accepted"], ledger["lake_rows"]) == (500, 500, 500)
    assert Program(tmp_path, "keystone", "stop", "viewing", "--address", nodes.address, env=nodes.env).end() == 2
