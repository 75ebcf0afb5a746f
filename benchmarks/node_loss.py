"""What becomes of a job or a run where a node is lost in the middle: killed, frozen, cut off, or the head itself. As root.

    python benchmarks/node_loss.py [--json benchmarks/results/node_loss.json]

Two hosts of namespaces on this machine, Ray across them by ``ray up`` of deploy/cluster.local.yaml, Kafka beside them. The first three: a bench
of 20,000 events/s for 50 s, one session actor on each host; *recovery*: from the last sign of life of the lost owner to the next one's claim of its
partition. The last two: ``keystone run --detach`` with devices that send 1,000 events/s for 60 s; *late at most* is the intended send time to the
action in its topic, so it has the whole outage in it. Everything is compared with the truth, or this ends: alerts, ledger, lake and dead letters.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import report
from tests.cluster.hosts import Hosts
from tests.cluster.node_faults import bench_through, cut, freeze, kill, run_again_after_a_head, run_through_a_new_head
from tests.cluster.node_venv import make_venv
from tests.cluster.ray_cluster import RayOnHosts


def up(hosts: Hosts) -> RayOnHosts:
    ray = RayOnHosts(hosts)
    ray.up()
    return ray


def of_bench(harm: Callable[[Hosts], None]) -> Callable[[Hosts, Path], dict[str, Any]]:
    return lambda hosts, shared: bench_through(up(hosts), shared, harm)


FAULTS: dict[str, Callable[[Hosts, Path], dict[str, Any]]] = {
    "nothing": of_bench(lambda hosts: None),  # noqa: ARG005
    "raylet killed": of_bench(kill),
    "frozen 20 s": of_bench(freeze),
    "cut off 20 s": of_bench(cut),
    "head killed, state in Redis": run_through_a_new_head,
    "head killed, state lost": lambda hosts, shared: run_again_after_a_head(up(hosts), shared),
}


def row(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Of a bench's report, or of a run's with its score."""
    score = found.get("score", found)
    end = score["latency_ms"]["end_to_end"]
    recovery = found.get("recovery_ms", {})
    return {
        "what": name, "alerts": score["truth"]["expected"], "missed": score["truth"]["missed"], "false": score["truth"]["false"],
        "twice": score["truth"]["duplicate"], "lake rows": found["ledger"]["lake_rows"], "recovery p50 ms": recovery.get("p50"),
        "recovery max ms": recovery.get("max"), "fenced": found.get("fenced_writes"), "within 3 s": score["within_3s"], "p50 ms": end["p50"],
        "late at most ms": end["max"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=list(FAULTS))
    parser.add_argument("--json", default=None)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # hosts and broker end with us
    rows = []
    for name in given.only or FAULTS:
        with tempfile.TemporaryDirectory(prefix="node-loss-") as folder:
            venv = make_venv(Path(folder) / "venv")
            with Hosts(2, venv) as hosts:
                rows.append(row(name, FAULTS[name](hosts, venv / "shared")))
                print(rows[-1], flush=True)
    report("node_loss", rows, given.json)


if __name__ == "__main__":
    main()
