"""``keystone audit`` beside a real search server: the questions it asks are answered by each of them, in pages, over several days' indices."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from keystone.audit import index_side
from keystone.audit.index_side import IndexSide
from keystone.config import ElasticConfig
from keystone.sinks.base import ALERTS, DAY_MS, KINDS, SESSIONS
from keystone.sinks.documents import AlertRows, SessionRows, session_document_id
from keystone.sinks.elastic import ElasticRows
from keystone.sinks.elastic_admin import setup
from keystone.sinks.elastic_http import Nodes
from keystone.sinks.elastic_schema import index_of
from keystone.sinks.iceberg.tables import LakeTables
from tests.audit_scene import MINUTES, Scene, told_of
from tests.lake_batches import APPEND_MS
from tests.lake_tables import alert, session_table
from tests.search_server import SearchServer

pytestmark = pytest.mark.search


def clear(server: SearchServer) -> None:
    for kind in KINDS:
        for row in server.call("GET", f"/_cat/indices/keystone-{kind}-*?format=json&h=index"):
            server.call("DELETE", f"/{row['index']}")


@pytest.fixture
def nodes(search: SearchServer) -> Iterator[Nodes]:
    clear(search)
    with closing(Nodes(search.url, ElasticConfig())) as found:
        list(setup(found))
        yield found
    clear(search)


@pytest.fixture
def scene(tmp_path: Path, lake: Path, tables: LakeTables) -> Iterator[Scene]:
    found = Scene(tmp_path, lake, tables)
    yield found
    found.close()


def refresh(server: SearchServer) -> None:
    for kind in KINDS:
        server.call("POST", f"/keystone-{kind}-*/_refresh")


def test_pages_hold_every_document_once_over_all_days(search: SearchServer, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_side, "PAGE", 7)
    moments = [APPEND_MS - DAY_MS * (k % 3) for k in range(40)]
    given = [replace(alert(k, k % 2), append_ts_ms=ms, event_ts=ms) for k, ms in enumerate(moments)]
    rows = AlertRows(given)
    ElasticRows(nodes).send_batch(rows.documents(0, rows.rows))
    twice = rows.documents(0, 1)[0]
    search.call("PUT", f"/{index_of(ALERTS, twice.day - 1)}/_doc/{twice.id}", orjson.loads(twice.body))
    search.call("PUT", "/keystone-alerts-mine", {})
    sessions = SessionRows(session_table(9), 0)
    ElasticRows(nodes).send_batch(sessions.documents(0, 9))
    refresh(search)
    index = IndexSide(nodes)
    found = index.documents(ALERTS, 0, APPEND_MS + 1)
    assert sorted(found["id"]) == sorted([one.alert_id for one in given] + [given[0].alert_id])
    assert set(zip(found["partition"], found["at_ms"], strict=True)) == {(one.partition, one.append_ts_ms) for one in given}
    assert sorted(set(found["day"])) == sorted({ms // DAY_MS for ms in moments})
    assert index.documents(ALERTS, APPEND_MS, APPEND_MS + 1).height == sum(ms == APPEND_MS for ms in moments) + 1
    assert index.first_day(ALERTS) == min(moments) // DAY_MS
    assert sorted(index.those(ALERTS, [given[0].alert_id, "none"])["day"]) == [twice.day - 1, twice.day]
    table = session_table(9)
    ids = [session_document_id(*one) for one in zip(*(table[name].to_pylist() for name in ("device_id", "session_id", "start_ts")), strict=True)]
    assert sorted(index.documents(SESSIONS, 0, APPEND_MS)["id"]) == sorted(ids)


def test_an_audit_of_a_real_index(search: SearchServer, nodes: Nodes, scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.append()
    alerts = tuple(replace(alert(k, 0), append_ts_ms=scene.times[0][k], event_ts=scene.times[0][k]) for k in range(8))
    scene.commit(0, alerts=alerts)
    scene.commit(1)
    rows, sessions = AlertRows(alerts), SessionRows(session_table(3), 0)
    ElasticRows(nodes).send_batch([*rows.documents(0, 8), *sessions.documents(0, 3)])
    status, found = scene.audit(capsys, "--elastic", search.url)  # not refreshed: waited for
    assert (status, found["indexed"]) == (0, {"alerts": {"expected": 8, "found": 8}, "sessions": {"expected": 3, "found": 3}}), found
    others = AlertRows([replace(one, alert_id=f"other-{k}", device_id=f"other-{k}") for k, one in enumerate(alerts[:3])])
    ElasticRows(nodes).send_batch(others.documents(0, 3))
    refresh(search)
    status, found = scene.audit(capsys, "--elastic", search.url)
    assert (status, found["notes"]) == (0, ["3 alerts in the index are of sessions that this lake has no row of: of other logs, not compared"])
    gone = rows.documents(5, 6)[0]
    search.call("DELETE", f"/{index_of(ALERTS, gone.day)}/_doc/{gone.id}")
    refresh(search)
    began_s = time.monotonic()
    status, found = scene.audit(capsys, "--elastic", search.url, "--wait", "1")
    assert (status, told_of(found)) == (1, [(MINUTES[(scene.times[0][5] - APPEND_MS // 60_000 * 60_000) // 60_000], 0, "index alerts", 4, 3, 1, 0, 0, "0-5")])
    assert time.monotonic() - began_s >= 1, "it looked again"
