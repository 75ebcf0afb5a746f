"""A bench as a job of a cluster that ``ray up`` made: session actors on both hosts, its report brought back; and a host lost in the middle."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.programs import is_exact
from tests.cluster.ray_cluster import ON_HOSTS, RayOnHosts

pytestmark = [*ON_HOSTS, pytest.mark.kafka]
RUNS_S_MAX = 240.0


def submit(ray: RayOnHosts, log: str, *words: str) -> str:
    """What ``ray job submit`` shows; an error where the job fails."""
    command = " ".join(("env KEYSTONE_KAFKA__ALLOW_PLAINTEXT=true python -m keystone.bench --eps 20000 --log", log, "--session-actors 2", *words))
    return ray.head(f"ray job submit --address http://127.0.0.1:8265 -- {command}", RUNS_S_MAX + 60)


def report_in(said: str) -> dict[str, Any]:
    """The last line of a job of ours."""
    lines = re.findall(r"^report\.json: (.*)$", said, re.MULTILINE)  # of a job that failed Ray shows the end twice
    assert lines, said
    report: dict[str, Any] = json.loads(lines[0])
    return report


def test_a_job_runs_on_both_hosts_and_brings_its_report_back(make_ray: Callable[[int], RayOnHosts], shared: Path) -> None:
    ray = make_ray(2)
    with ray.hosts.kafka() as kafka:
        said = submit(ray, f"kafka://{kafka.servers[0]}", "--seconds 30", f"--out {shared}/out")
        assert "phase running" in said
        report = report_in(said)
        is_exact(report)
        assert report["verdict"] == "pass", report["reasons"]
        assert {node["address"]: node["session_actors"] for node in report["nodes"]} == dict.fromkeys(ray.hosts.addresses, 1)
        assert json.loads((shared / "out" / "report.json").read_bytes()) == report
        with pytest.raises(Exception, match=r"--out .* is another directory on the node 10\.77\.0\.2"):
            submit(ray, f"kafka://{kafka.servers[0]}", "--seconds 5", "--out ~/out")
    ray.down()


def test_a_host_lost_in_the_middle_of_a_job_loses_nothing(make_ray: Callable[[int], RayOnHosts], shared: Path) -> None:
    ray = make_ray(2)
    with ray.hosts.kafka() as kafka, ThreadPoolExecutor(1) as beside:
        job = beside.submit(submit, ray, f"kafka://{kafka.servers[0]}", "--seconds 40", f"--out {shared}/out", "|| true")
        wait_for_a_checkpoint(shared / "out" / "state")
        ray.hosts.kill(2, "raylet")
        report = report_in(job.result(RUNS_S_MAX))
    is_exact(report)
    assert report["recovery_ms"]["count"] == 2
    nodes = [(node["address"], node["is_alive"]) for node in report["nodes"]]
    assert nodes[:2] == [(ray.hosts.addresses[0], True), (ray.hosts.addresses[1], False)]
    assert set(nodes[2:]) <= {(ray.hosts.addresses[1], True)}  # Ray's autoscaler starts its worker anew, if there is time


def wait_for_a_checkpoint(state: Path) -> None:
    """Until the run is well under way."""
    deadline = time.monotonic() + RUNS_S_MAX
    while not list(state.rglob("*/*")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(8)
