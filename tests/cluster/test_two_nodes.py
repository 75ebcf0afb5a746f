"""Bench and run on a Ray cluster of two nodes, over Kafka: actors on both, one of the nodes lost, and what a cluster refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.ray_nodes import RayNodes
from tests.kafka_server import KafkaCluster
from tests.rdkafka import Confluent, create_topic
from tests.services.runs import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.alone]

END_S_MAX = 240.0
HEAD, WORKER = {"CPU": 2, "head": 1, "fleet": 2, "session": 2}, {"CPU": 2, "session": 2}


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with RayNodes(HEAD) as started:
        started.add(WORKER)
        yield started


class Program:
    """A command of ours; what it says goes to files and may be read while it runs."""

    def __init__(self, folder: Path, *words: str, env: dict[str, str] | None = None) -> None:
        self._out, self._err = folder / "said", folder / "complained"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen([sys.executable, "-m", *words], stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=ROOT, env=env)

    @property
    def said(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def complained(self) -> str:
        return self._err.read_text(errors="replace")

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + END_S_MAX
        while not re.search(pattern, self.said + self.complained):
            assert self.process.poll() is None, self.said + self.complained
            assert time.monotonic() < deadline, self.said + self.complained
            time.sleep(0.1)

    def end(self) -> int:
        try:
            return self.process.wait(END_S_MAX)
        finally:
            self.process.kill()


def bench(nodes: RayNodes, folder: Path, log: str, *words: str) -> Program:
    given = ("--eps", "5000", "--devices", "5000", "--log", log, "--out", str(folder / "out"))
    return Program(folder, "keystone.bench", "--address", nodes.address, *given, *words, env=nodes.env)


def report_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_bytes())
    return found


def is_exact(report: dict[str, Any]) -> None:
    truth, ledger = report["truth"], report["ledger"]
    assert truth["expected"] == truth["alerted"] > 0, truth
    assert (truth["missed"], truth["false"], truth["duplicate"]) == (0, 0, 0)
    assert ledger["sent"] == ledger["received"] == ledger["accepted"] == ledger["lake_rows"]


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
