"""What more session actors, and a second node, cost at one moderate rate: 1, 2 and 4 session actors on 1 and on 2 nodes of a Ray cluster.

    python -m benchmarks.nodes [--eps 20000] [--rounds 3] [--json benchmarks/results/nodes.json]

The nodes are processes of this machine, each by ``ray start`` with plain ``ray``: they have the same cores and one loopback device. So this tells overheads and
no speed-up: what a row needs more than the first one is what being spread costs. A round has a bench on each of the six, over one real Kafka; every
second round begins at the other end. Ratios are to 1 actor on 1 node in the same round; every figure is the median of the rounds.

*us*: CPU time an event, of the session actors, the devices, the program that watches ("other"), Ray's own processes, the broker. *detect*: from append to
an alert that is visible. *net*: bytes that the loopback device carried, an event, whoever's they were: with root's rights the whole benchmark goes into a
network of its own, so that they are ours. *MiB*: resident, of program and actors; and of Ray's own processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measure import report
from keystone.kernels import warm
from tests.cluster.ray_nodes import RayNodes
from tests.kafka_server import THROUGHPUT, KafkaCluster

SETUPS = [(actors, nodes) for nodes in (1, 2) for actors in (1, 2, 4)]
BASE = SETUPS[0]
PARTITIONS = 8
END_S_MAX = 600.0
OWN_NETWORK = "NODES_BENCHMARK_OWN_NETWORK"  # no setting of ours: those are checked
RATIOS = ("all us", "sessions us", "detect p50 ms", "detect p99 ms", "net B", "MiB")
IDLE_S = 3.0


@contextmanager
def cluster(nodes: int) -> Iterator[RayNodes]:
    """Four units of ``session``, divided among the nodes; the devices are on the first."""
    units = 4 // nodes
    with RayNodes({"CPU": 2, "head": 1, "fleet": 1, "session": units}) as own:
        for _ in range(nodes - 1):
            own.add({"CPU": 2, "session": units})
        yield own


def bench(own: RayNodes, actors: int, server: str, given: argparse.Namespace, number: int) -> dict[str, Any]:
    """One run, as a row. What went wrong is in its verdict; a run without a report ends the benchmark."""
    with tempfile.TemporaryDirectory(prefix="nodes-") as folder:
        out = Path(folder) / "out"
        words = ["--eps", given.eps, "--seconds", given.seconds, "--session-actors", actors, "--fleet-actors", 1, "--partitions", PARTITIONS]
        place = ["--address", own.address, "--log", f"kafka://{server}/nodes-{number}", "--out", out, "--json", out.with_suffix(".json")]
        before = own.rays_own()[0], carried()
        command = [sys.executable, "-m", "keystone.bench", *map(str, (*words, *place))]
        done = subprocess.run(command, env=own.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=END_S_MAX, check=False)
        (ray_s, ray_bytes), net = own.rays_own(), carried() - before[1]
        if not out.with_suffix(".json").exists():
            sys.exit(f"the bench gave no report ({done.returncode}):\n{done.stderr.decode(errors='replace')[-2000:]}")
        return row_of(json.loads(out.with_suffix(".json").read_bytes()), ray_s - before[0], ray_bytes, net)


def row_of(told: dict[str, Any], ray_s: float, ray_bytes: int, net: int) -> dict[str, Any]:
    cpu, detect, events = told["cpu_us_per_event"], told["latency_ms"]["detect"], told["events"]
    us = {f"{part} us": cpu[part] for part in ("sessions", "fleet", "other")} | {"ray us": ray_s * 1e6 / events, "broker us": cpu["broker"]}
    return {
        "verdict": told["verdict"], "reasons": told["reasons"], "on nodes": [node["session_actors"] for node in told["nodes"]],
        **us, "all us": sum(us.values()), "detect p50 ms": detect["p50"], "detect p99 ms": detect["p99"], "net B": net / events,
        "MiB": told["memory"]["rss_max_mib"], "ray MiB": ray_bytes / (1 << 20), "load before": told["machine"]["load_average"][0],
    }  # fmt: skip


def carried() -> int:
    """Bytes that the loopback device has carried so far."""
    return int(psutil.net_io_counters(pernic=True)["lo"].bytes_sent)


def in_turn(rounds: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """The set-ups of each round, by cluster: one cluster at a time, so that nobody pays for another that idles."""
    for number in range(rounds):
        for nodes in (1, 2) if number % 2 == 0 else (2, 1):
            mine = [setup for setup in SETUPS if setup[1] == nodes]
            yield number, mine if number % 2 == 0 else mine[::-1]


def summed_up(setup: tuple[int, int], rounds: list[dict[tuple[int, int], dict[str, Any]]]) -> dict[str, Any]:
    """Medians of a set-up's figures, and of their ratios to the first one's in the same round."""
    mine = [each[setup] for each in rounds]
    figures = [name for name, value in mine[0].items() if isinstance(value, int | float)]
    found: dict[str, Any] = {"actors": setup[0], "nodes": setup[1], "verdict": " ".join(each["verdict"] for each in mine)}
    found |= {name: round(statistics.median(each[name] for each in mine), 3) for name in figures}
    return found | {f"x {name}": round(statistics.median(each[setup][name] / each[BASE][name] for each in rounds), 3) for name in RATIOS}


def alone() -> None:
    """Go on in a network of our own, where nothing else is carried; without root's rights, here."""
    if OWN_NETWORK not in os.environ and os.geteuid() == 0 and shutil.which("unshare") and shutil.which("ip"):
        again = [sys.executable, "-m", "benchmarks.nodes", *sys.argv[1:]]
        os.environ[OWN_NETWORK] = "1"
        os.execvp("unshare", ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *again])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=int, default=20_000)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    given = parser.parse_args()
    alone()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # nodes and broker end with us
    load_before = [round(load, 2) for load in os.getloadavg()]
    warm()
    idle = carried()
    time.sleep(IDLE_S)
    idle = round((carried() - idle) / IDLE_S)
    rounds: list[dict[tuple[int, int], dict[str, Any]]] = [{} for _ in range(given.rounds)]
    with KafkaCluster(jvm_flags=THROUGHPUT) as kafka:
        count = 0
        for number, setups in in_turn(given.rounds):
            with cluster(setups[0][1]) as own:
                for setup in [setups[0], *setups] if count == 0 else setups:  # the first run of all warms the broker up
                    rounds[number][setup] = bench(own, setup[0], kafka.servers[0], given, count)
                    count += 1
                    print(f"round {number + 1}, {setup[0]} actors on {setup[1]} nodes: {rounds[number][setup]}", flush=True)
    rows = [summed_up(setup, rounds) for setup in SETUPS]
    each = [{f"{actors} on {nodes}": row for (actors, nodes), row in one.items()} for one in rounds]
    more = {"eps": given.eps, "seconds": given.seconds, "load_before": load_before, "idle_bytes_per_s": idle, "has_own_network": OWN_NETWORK in os.environ}
    report("nodes", rows, given.json, **more, rounds=each)


if __name__ == "__main__":
    main()
