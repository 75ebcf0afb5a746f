"""What the search server takes, how soon an alert can be found, and what a dead or frozen server costs its neighbour.

    python benchmarks/elastic.py [--flavor opensearch] [--seconds 10] [--json FILE]

A real server on this machine, class QUICK of the tests' (serial GC, first compiler, 512 MB), so figures are of a small one. ``docs/s``: alerts
through the whole sink, by refresh interval, all said at once; ``server CPU us a doc`` of its process beside ours. ``searchable``: 20 alerts/s
one by one, from ``offer`` until a search finds them, looked for every 5 ms by id (as part of a search, not a get). ``neighbour``: p99 of
``offer`` and of acknowledgement in memory of a healthy sink, alone, beside a sink whose server is dead, and one whose server is frozen.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from benchmarks.measure import report
from keystone.config import ElasticConfig, SinksConfig
from keystone.events import DIMENSIONS, Alert
from keystone.sinks.base import Answer, Document
from keystone.sinks.documents import AlertRows
from keystone.sinks.elastic import ElasticRows
from keystone.sinks.elastic_admin import setup
from keystone.sinks.elastic_http import Nodes
from keystone.sinks.memory import MemoryRows
from keystone.sinks.shell import BufferedSink
from tests.search_server import FLAVORS, SearchServer

DOCS = 40_000
STEP = 1_000
LIMIT_S = 300.0


def alerts(first: int, count: int) -> AlertRows:
    now_ms = int(time.time() * 1_000)
    values = {**dict.fromkeys(DIMENSIONS, "value"), "region": "eu-west", "cdn": "cdn-a"}
    return AlertRows(
        [Alert(f"{n:032x}", "buffering_loop", f"device-{n}", f"session-{n}", now_ms, 3, 3, 3_000, 2_350, values, now_ms) for n in range(first, first + count)]
    )


def sink_to(server: SearchServer) -> BufferedSink:
    return BufferedSink("elastic", ElasticRows(Nodes(server.url, ElasticConfig())), SinksConfig(), lambda _: None)


def set_refresh(server: SearchServer, interval: str) -> None:
    """Of new indices: alerts of earlier rows go."""
    for row in server.call("GET", "/_cat/indices/keystone-alerts-*?format=json&h=index"):
        server.call("DELETE", f"/{row['index']}")
    found = server.call("GET", "/_index_template/keystone-alerts")["index_templates"][0]["index_template"]
    found["template"]["settings"]["index"]["refresh_interval"] = interval
    server.call("PUT", "/_index_template/keystone-alerts", found)


def server_cpu_s(server: SearchServer) -> float:
    """Of the server and whatever it started."""
    root = psutil.Process(server.pid)
    return sum(sum(process.cpu_times()[:2]) for process in (root, *root.children(recursive=True)))


def rate(server: SearchServer, interval: str) -> dict[str, Any]:
    set_refresh(server, interval)
    sink = sink_to(server)
    for is_measured in (False, True):
        first = DOCS if is_measured else 0
        cpu_s, own_s, started_s = server_cpu_s(server), time.process_time(), time.perf_counter()
        for at in range(first, first + DOCS, STEP):
            while not sink.has_room():
                time.sleep(0.001)
            sink.offer([alerts(at, STEP)])
        assert sink.flush(LIMIT_S), sink.status()
    wall_s = time.perf_counter() - started_s
    figures = {
        "docs/s": round(DOCS / wall_s),
        "our CPU us a doc": 1e6 * (time.process_time() - own_s) / DOCS,
        "server CPU us a doc": 1e6 * (server_cpu_s(server) - cpu_s) / DOCS,
    }
    sink.close(LIMIT_S)
    return figures


def searchable(server: SearchServer, interval: str, seconds: float) -> dict[str, Any]:
    set_refresh(server, interval)
    sink = sink_to(server)
    sink.offer([alerts(0, 10)])
    assert sink.flush(LIMIT_S)
    time.sleep(1.5)
    offered: dict[str, float] = {}
    found_ms: list[float] = []
    stop = threading.Event()

    def look() -> None:
        nodes = Nodes(server.url, ElasticConfig())
        import orjson

        while not stop.is_set() or offered:
            ids = list(offered)
            if ids:
                body = orjson.dumps({"size": len(ids), "_source": False, "query": {"ids": {"values": ids}}})
                hits = nodes.request("POST", "/keystone-alerts-*/_search", body).json()["hits"]["hits"]
                at_s = time.perf_counter()
                found_ms.extend(1_000 * (at_s - offered.pop(hit["_id"])) for hit in hits)
            time.sleep(0.005)

    looker = threading.Thread(target=look)
    looker.start()
    number = 1_000_000
    until_s = time.perf_counter() + seconds
    cpu_s = server_cpu_s(server)
    while time.perf_counter() < until_s:
        rows = alerts(number, 1)
        offered[rows.alerts[0].alert_id] = time.perf_counter()
        sink.offer([rows])
        number += 1
        time.sleep(0.05)
    stop.set()
    looker.join()
    sink.close(LIMIT_S)
    p50, p99 = np.percentile(found_ms, (50, 99))
    return {
        "searchable ms p50": float(p50),
        "p99": float(p99),
        "max": max(found_ms),
        "alerts": len(found_ms),
        "server CPU ms a s": 1_000 * (server_cpu_s(server) - cpu_s) / seconds,
    }


class Timed(MemoryRows):
    """When each document was taken."""

    def __init__(self) -> None:
        super().__init__()
        self.at_s: dict[str, float] = {}

    def send_batch(self, documents: Sequence[Document]) -> list[Answer]:
        now_s = time.perf_counter()
        self.at_s.update((document.id, now_s) for document in documents)
        return super().send_batch(documents)


def neighbour(trouble: BufferedSink | None, seconds: float) -> dict[str, Any]:
    """20 alerts each 10 ms to a healthy sink, and the same to the one in trouble."""
    raw = Timed()
    well = BufferedSink("memory", raw, SinksConfig(), lambda _: None)
    offers_ms, began_s, number = [], {}, 0
    until_s = time.perf_counter() + seconds
    while time.perf_counter() < until_s:
        rows = alerts(number, 20)
        started_s = time.perf_counter()
        if trouble is not None and trouble.has_room():
            trouble.offer([rows])
        well.offer([rows])
        offers_ms.append(1_000 * (time.perf_counter() - started_s))
        began_s.update((alert.alert_id, started_s) for alert in rows.alerts)
        number += 20
        time.sleep(0.01)
    assert well.flush(LIMIT_S)
    taken_ms = [1_000 * (raw.at_s[name] - at_s) for name, at_s in began_s.items()]
    well.close(1.0)
    figures: dict[str, Any] = {"offer ms p99": float(np.percentile(offers_ms, 99)), "taken ms p99": float(np.percentile(taken_ms, 99))}
    if trouble is not None:
        figures["held of the other"] = trouble.status()["only_in_memory"]
        trouble.close(0.1)
    return figures


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--flavor", choices=FLAVORS, default="opensearch")
    arguments.add_argument("--seconds", type=float, default=10.0)
    arguments.add_argument("--json")
    chosen = arguments.parse_args()
    rows: list[dict[str, Any]] = []
    with SearchServer(chosen.flavor) as server:
        list(setup(Nodes(server.url, ElasticConfig())))
        rows += [{"what": f"rate, refresh {interval}", **rate(server, interval)} for interval in ("200ms", "1s", "-1")]
        rows += [{"what": f"searchable, refresh {interval}", **searchable(server, interval, chosen.seconds)} for interval in ("200ms", "1s")]
        rows.append({"what": "healthy sink alone", **neighbour(None, chosen.seconds)})
        server.pause()
        rows.append({"what": "healthy beside a frozen server", **neighbour(sink_to(server), chosen.seconds)})
        server.kill()
        rows.append({"what": "healthy beside a dead server", **neighbour(sink_to(server), chosen.seconds)})
    report("elastic: documents, latency, neighbours", rows, chosen.json, flavor=chosen.flavor)


if __name__ == "__main__":
    main()
