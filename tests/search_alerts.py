"""Alerts for search servers, sinks to them, and the tests' own look at what is in the index, past everything of ours."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from keystone.config import ElasticConfig, SinksConfig
from keystone.events import DIMENSIONS, Alert
from keystone.sinks.base import Refused
from keystone.sinks.documents import AlertRows
from keystone.sinks.elastic import ElasticRows
from keystone.sinks.elastic_http import Nodes
from keystone.sinks.elastic_schema import INDEXED_KINDS
from keystone.sinks.shell import BufferedSink
from tests.search_server import SearchServer

NOW_MS = int(time.time() * 1_000)
QUICK_SINK = SinksConfig(batch_items_max=100, retry_first_ms=20, retry_max_ms=500, mark_wait_ms=200)
BRIEF = ElasticConfig(request_timeout_ms=2_000, connect_timeout_ms=1_000, dead_node_ms=200)
LIMIT_S = 120.0


def alert(number: int, *, event_ts: int = NOW_MS, append_ts_ms: int = NOW_MS, **dimensions: str | None) -> Alert:
    values = {**dict.fromkeys(DIMENSIONS), "region": f"r{number % 3}", "device_type": f"t{number % 2}", "cdn": "c", **dimensions}
    return Alert(f"{number:032x}", "buffering_loop", f"d{number}", f"s{number}", event_ts, 3, 3, None, 235, values, append_ts_ms)


def alerts(first: int, count: int) -> AlertRows:
    return AlertRows([alert(number) for number in range(first, first + count)])


def clear(server: SearchServer) -> None:
    for kind in INDEXED_KINDS:
        for row in server.call("GET", f"/_cat/indices/keystone-{kind}-*?format=json&h=index"):
            server.call("DELETE", f"/{row['index']}")


def hits(server: SearchServer, kind: str = "alerts") -> list[dict[str, Any]]:
    server.call("POST", f"/keystone-{kind}-*/_refresh")
    found: list[dict[str, Any]] = server.call("POST", f"/keystone-{kind}-*/_search", {"size": 10_000, "query": {"match_all": {}}})["hits"]["hits"]
    return found


def assert_each_once(server: SearchServer, count: int) -> None:
    server.call("POST", "/keystone-alerts-*/_refresh")
    found: list[str] = []
    after = [""]
    while True:
        asked = {"size": 10_000, "_source": False, "query": {"match_all": {}}, "sort": ["alert_id"], "search_after": after}
        page = server.call("POST", "/keystone-alerts-*/_search", asked)["hits"]["hits"]
        if not page:
            break
        found += [hit["_id"] for hit in page]
        after = page[-1]["sort"]
    assert server.call("GET", "/keystone-alerts-*/_count")["count"] == count
    assert found == [f"{number:032x}" for number in range(count)]


def sink_to(url: str, config: ElasticConfig = BRIEF, refused: list[Refused] | None = None, spill_dir: Path | None = None) -> BufferedSink:
    told: list[Refused] = [] if refused is None else refused
    return BufferedSink("elastic", ElasticRows(Nodes(url, config)), QUICK_SINK, told.extend, spill_dir)
