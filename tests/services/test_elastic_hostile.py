"""What devices send, whatever it is, changes nothing in the index but its own document: from lines of the log to what is found."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from keystone.config import Config, ElasticConfig
from keystone.decode import Decoder
from keystone.events import DIMENSIONS, Alert, Records
from keystone.pipeline import PartitionPipeline
from keystone.sinks.base import Refused
from keystone.sinks.documents import AlertRows
from keystone.sinks.elastic_admin import setup
from keystone.sinks.elastic_http import Nodes
from keystone.sinks.elastic_schema import FIELDS
from tests.search_alerts import BRIEF, LIMIT_S, alerts, clear, sink_to
from tests.search_server import SearchServer
from tests.sink_rows import until

pytestmark = pytest.mark.search

NOW_MS = int(time.time() * 1_000)
INJECTED = '}\n{"delete":{"_index":"keystone-alerts-2026.11.24","_id":"' + "0" * 32 + '"}}\n'
HOSTILE = ('"', "\\", INJECTED, "\r\n\u2028\u0085\x00\x1b[2J", "é😀\uffff", "", "a.b.c", "../..", "null", "1e999", "_id", "\x7f" * 40)
LARGE = '"\n' * 250_000  # 1 MB of the log, where both are escaped
IMMENSE = "é" * 16_384  # a byte pair more than Lucene takes as a term
UNKNOWN_KEYS = 10_000
LINES = 3  # a loop is three Buffers
STEP = 2_000  # sessions
BYSTANDERS = 500


@pytest.fixture
def server(search: SearchServer) -> Iterator[SearchServer]:
    clear(search)
    list(setup(Nodes(search.url, BRIEF)))
    yield search
    clear(search)


def dimensions_of(number: int) -> dict[str, str]:
    said = {name: HOSTILE[(number + place) % len(HOSTILE)] for place, name in enumerate(DIMENSIONS)}
    if number % 5_000 == 17:
        said["user_id"] = LARGE
    if number % 500 == 3:
        said["region"] = said["title_id"] = IMMENSE
    return said


def session_lines(number: int) -> list[bytes]:
    unknown = {f'k{number % UNKNOWN_KEYS}"}}\n': "x", "_index": "mine", "@timestamp": "never", "alert_id": "0", "properties": {"a": {"b": [1]}}}
    own = {"device_id": f"d{number}\n{INJECTED}", "session_id": HOSTILE[number % len(HOSTILE)], **dimensions_of(number), **unknown}
    return [orjson.dumps({"event": "Buffer", "ts": NOW_MS + place, "seq": place, **own}) for place in range(LINES)]


def alerts_of(count: int) -> Iterator[list[Alert]]:
    """Through the decoder and the session table, as a run makes them."""
    decoder = Decoder(seed=1)
    pipeline = PartitionPipeline(0, decoder, Config())
    for first in range(0, count, STEP):
        lines: list[bytes | None] = [line for number in range(first, min(first + STEP, count)) for line in session_lines(number)]
        result = pipeline.step(Records.of(lines, first_offset=LINES * first, append_ts_ms=NOW_MS))
        assert result.dead_letters == []
        yield result.alerts


def look(server: SearchServer) -> dict[str, Any]:
    """Bystanders, indices and mappings."""
    server.call("POST", "/keystone-alerts-*/_refresh")
    body = {"size": BYSTANDERS + 1, "version": True, "seq_no_primary_term": True, "query": {"prefix": {"device_id": "bystander"}}, "sort": ["alert_id"]}
    found = server.call("POST", "/keystone-alerts-*/_search", body)["hits"]["hits"]
    indices = sorted(row["index"] for row in server.call("GET", "/_cat/indices/*?format=json&h=index"))
    return {"found": found, "indices": indices, "mappings": server.call("GET", "/keystone-alerts-*/_mapping")}


def everything(server: SearchServer) -> Iterator[dict[str, Any]]:
    after: list[Any] = [""]
    while True:
        asked = {"size": 2_000, "query": {"prefix": {"kind": "buffering"}}, "sort": ["alert_id"], "search_after": after}
        hits = server.call("POST", "/keystone-alerts-*/_search", asked)["hits"]["hits"]
        if not hits:
            return
        yield from hits
        after = hits[-1]["sort"]


@pytest.mark.parametrize("count", [4_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_hostile_alerts_change_nothing_but_their_own_documents(count: int, server: SearchServer) -> None:
    refused: list[Refused] = []
    sink = sink_to(server.url, ElasticConfig(), refused)
    calm = alerts(0, BYSTANDERS).alerts
    sink.offer([AlertRows([Alert(one.alert_id, "calm", f"bystander{n}", *[getattr(one, name) for name in REST]) for n, one in enumerate(calm)])])
    assert sink.flush(LIMIT_S)
    before = look(server)
    assert len(before["found"]) == BYSTANDERS
    made: dict[str, Alert] = {}
    for step in alerts_of(count):
        until(sink.has_room)
        sink.offer([AlertRows(step)])
        made.update((one.alert_id, one) for one in step)
    assert len(made) == count
    assert sink.flush(LIMIT_S), sink.status()
    assert sink.close(LIMIT_S) == 0
    assert refused == []
    assert look(server) == before
    assert server.call("GET", "/keystone-alerts-*/_count")["count"] == BYSTANDERS + count
    found = 0
    for hit in everything(server):
        one, source = made[hit["_id"]], hit["_source"]
        assert {name: source.get(name) for name in DIMENSIONS} == one.dimensions
        assert (source["device_id"], source["session_id"], source.keys() - FIELDS["alerts"].keys()) == (one.device_id, one.session_id, set())
        found += 1
    assert found == count


REST = [name for name in Alert.__dataclass_fields__ if name not in {"alert_id", "kind", "device_id"}]
