"""What happens to nodes while a bench runs, or a run that goes on by itself; and what came of it, after it was compared with the truth."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.cluster.hosts import Hosts
from tests.cluster.programs import is_exact
from tests.cluster.ray_cluster import RayOnHosts
from tests.cluster.runs import RunOnHosts
from tests.cluster.test_jobs import RUNS_S_MAX, report_in, submit, wait_for_a_checkpoint

AWAY_S = 20.0
UNDER_WAY_S = 12.0  # of devices that send: checkpoints and commits are there


def kill(hosts: Hosts) -> None:
    """Its raylet, and with that its actors."""
    hosts.kill(2, "raylet")


def freeze(hosts: Hosts) -> None:
    hosts.freeze(2)
    time.sleep(AWAY_S)
    hosts.thaw(2)


def cut(hosts: Hosts) -> None:
    hosts.cut(2)
    time.sleep(AWAY_S)
    hosts.join(2)


def bench_through(ray: RayOnHosts, shared: Path, harm: Callable[[Hosts], None]) -> dict[str, Any]:
    """The report of a bench of which one session actor is on host 2, to which ``harm`` is done. It may be late: exact it is."""
    with ray.hosts.kafka() as kafka, ThreadPoolExecutor(1) as beside:
        job = beside.submit(submit, ray, f"kafka://{kafka.servers[0]}", "--seconds 50", f"--out {shared}/out", "|| true")
        wait_for_a_checkpoint(shared / "out" / "state")
        harm(ray.hosts)
        report = report_in(job.result(RUNS_S_MAX))
    is_exact(report)
    return report


def run_through_a_new_head(hosts: Hosts, shared: Path) -> dict[str, Any]:
    """A head that keeps its state in Redis dies with its host, and is started again: the run is not."""
    with hosts.redis() as redis, hosts.kafka() as kafka:
        ray = RayOnHosts(hosts, redis.address)
        ray.up()
        run = RunOnHosts(ray, kafka, shared)
        run.begin(on=2)
        devices = run.send()
        time.sleep(UNDER_WAY_S)
        hosts.lose(1)
        ray.head_again()
        devices.result()
        run.wait_read(on=2)
        return run.end(on=2)


def run_again_after_a_head(ray: RayOnHosts, shared: Path) -> dict[str, Any]:
    """A head that keeps nothing dies with its host: the cluster is started again, and so is the run."""
    with ray.hosts.kafka() as kafka:
        run = RunOnHosts(ray, kafka, shared)
        run.begin()
        devices = run.send()
        time.sleep(UNDER_WAY_S)
        ray.hosts.lose(1)
        ray.up()
        assert run.status()["state"] == "unknown"  # nobody remembers it
        run.begin()
        devices.result()
        run.wait_read()
        return run.end()
