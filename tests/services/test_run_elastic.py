"""``keystone run --elastic URL``: what the index holds is what the reference says, whoever dies meanwhile; and what a person reads."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from keystone.config import ElasticConfig
from keystone.sinks.documents import session_document_id
from keystone.sinks.elastic_admin import setup
from keystone.sinks.elastic_http import Nodes
from tests.letters import told
from tests.reference import LogRecord, Result
from tests.reference_cohorts import DIMENSIONS, SUMS, reference_log_cohorts
from tests.search_alerts import clear
from tests.search_server import SearchServer
from tests.services import runs
from tests.services.runs import QUICK, Command

pytestmark = [pytest.mark.slow, pytest.mark.ray]
OFTEN = {**QUICK, "checkpoint.interval_ms": 500, "sinks.retry_max_ms": 1_000}
RULES = {"grace_ms": 600, "open_stall_ms": 1_000}
PAGE = 10_000


def ready(server: SearchServer) -> SearchServer:
    nodes = Nodes(server.url, ElasticConfig())
    clear(server)
    list(setup(nodes))
    return server


@pytest.fixture
def server(search: SearchServer) -> Iterator[SearchServer]:
    yield ready(search)
    clear(search)


def documents(server: SearchServer, kind: str) -> list[dict[str, Any]]:
    """All of them, with their ``_id``, by pages."""
    server.call("POST", f"/keystone-{kind}-*/_refresh")
    query: dict[str, Any] = {"size": PAGE, "query": {"match_all": {}}, "sort": [{"_doc": "asc"}]}
    found: list[dict[str, Any]] = []
    sort = {"alerts": "alert_id", "sessions": "session_id", "cohorts": "window_start_ms"}[kind]
    if kind != "cohorts":
        return [hit["_source"] | {"_id": hit["_id"]} for hit in server.call("POST", f"/keystone-{kind}-*/_search", query)["hits"]["hits"]]
    starts = server.call("POST", f"/keystone-{kind}-*/_search", {"size": 0, "aggs": {"by": {"terms": {"field": sort, "size": PAGE}}}})
    for bucket in starts["aggregations"]["by"]["buckets"]:
        part = server.call("POST", f"/keystone-{kind}-*/_search", query | {"query": {"term": {sort: bucket["key"]}}})["hits"]["hits"]
        found += [hit["_source"] | {"_id": hit["_id"]} for hit in part]
    return found


def assert_index(server: SearchServer, expected: Result) -> None:
    """Each alert and session once, with what the reference says of it."""
    alerts = documents(server, "alerts")
    wanted: dict[str, list[dict[str, Any]]] = {}
    for row in expected.alerts:  # two sessions of one identity that begin at one time share ids: one of the two is kept
        wanted.setdefault(row["alert_id"], []).append({name: row[name] for name in runs.ALERT_COLUMNS})
    assert Counter(row["alert_id"] for row in alerts) == Counter(wanted.keys())
    found = {row["alert_id"]: {name: row.get(name) for name in runs.ALERT_COLUMNS} for row in alerts}
    assert {key: (row, wanted[key]) for key, row in found.items() if row not in wanted[key]} == {}
    ids = {session_document_id(row["device_id"], row["session_id"], row["start_ts"]) for row in expected.sessions}
    assert Counter(row["_id"] for row in documents(server, "sessions")) == Counter(ids)
    for dimensions in (("region", "device_type"), ("cdn", "isp")):
        truth = Counter(tuple(row[name] for name in dimensions) for row in found.values() if all(row[name] is not None for name in dimensions))
        assert counted(server, dimensions) == truth


def counted(server: SearchServer, dimensions: tuple[str, ...]) -> Counter[tuple[str, ...]]:
    """By a terms aggregation of the server's."""
    first, second = dimensions
    by = {"first": {"terms": {"field": first, "size": 1_000}, "aggs": {"second": {"terms": {"field": second, "size": 1_000}}}}}
    found = server.call("POST", "/keystone-alerts-*/_search", {"size": 0, "aggs": by})["aggregations"]["first"]["buckets"]
    return Counter({(one["key"], two["key"]): two["doc_count"] for one in found for two in one["second"]["buckets"]})


def assert_cohorts(server: SearchServer, records: dict[int, list[LogRecord]], *, idle_ms: int) -> None:
    """Every window that the last record has left, and no other sum than the reference's."""
    last_ms = max(record.append_ts for partition in records.values() for record in partition)
    expected = reference_log_cohorts(records, end_log_time=last_ms + idle_ms, **RULES)
    wanted = {key: row for key, row in expected.items() if key[0] + key[1] <= last_ms}
    found = {}
    for row in documents(server, "cohorts"):
        key = (row["window_start_ms"], row["window_ms"], tuple(row.get(name) for name in DIMENSIONS))
        if key[0] + key[1] <= last_ms:
            assert key not in found
            found[key] = {name: row.get(name) for name in (*SUMS, "concurrent_plays")}
    assert found.keys() == wanted.keys()
    assert found == {key: {name: row[name] for name in (*SUMS, "concurrent_plays")} for key, row in wanted.items()}


def expected_of(log: runs.Appending, idle_ms: int) -> Result:
    return runs.expected_of(log.records, idle_ms=idle_ms, **RULES)


def test_the_index_is_the_references_whoever_is_killed(server: SearchServer, tmp_path: Path) -> None:
    log = runs.Appending(tmp_path / "log")
    words = ("run", "--log", log.url, "--lake", str(tmp_path / "lake"), "--elastic", server.url, "--no-story", "--report", str(tmp_path / "report.json"))
    log.write(0)
    with Command(*words, "--until-idle", "3", *runs.settings(OFTEN), "--session-actors", "2") as run:
        run.wait_for("(?m)^reading .*, index http://")
        for seed in (1, 2):
            log.write(seed)
            time.sleep(1.2)
            run.session_actors()[0].send_signal(signal.SIGKILL)
        log.write(3)
        assert run.end() in {0, 1}, run.err
    log.write(4)
    last = runs.command(*words, "--until-idle", "3", *runs.settings(OFTEN))
    assert last.status == 0, last.err
    expected = expected_of(log, 3_000)
    assert_index(server, expected)
    assert_cohorts(server, log.records, idle_ms=3_000)
    runs.assert_lake(tmp_path / "lake", expected)
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert report["cohorts"]["routes"].keys() == {"dashboards-cohorts"}
    assert report["cohorts"]["late_rows"] == 0


@pytest.mark.faults
def test_a_server_that_is_frozen_then_killed_then_back(search_server: Callable[..., SearchServer], tmp_path: Path) -> None:
    """Alerts are said and rows written meanwhile; afterwards the index has each once."""
    server = ready(search_server("opensearch"))
    log, actions = runs.Appending(tmp_path / "log"), tmp_path / "lake"
    words = ("run", "--log", log.url, "--lake", str(actions), "--elastic", server.url, "--story", "--actions", "console")
    log.write(0)
    with Command(*words, "--until-idle", "4", *runs.settings({**OFTEN, "elastic.request_timeout_ms": 2_000})) as run:
        run.wait_for("(?m)^reading ")
        server.pause()
        log.write(1)
        run.wait_for("ALERT")
        time.sleep(4)
        server.kill()
        log.write(2)
        time.sleep(3)
        server.start()
        log.write(3)
        assert run.end() == 0, run.out + run.err
    again = runs.command(*words[:-3], "--no-story", "--until-idle", "4", *runs.settings(OFTEN))  # what was left on disk
    assert again.status == 0, again.err
    expected = expected_of(log, 4_000)
    assert_index(server, expected)
    assert_cohorts(server, log.records, idle_ms=4_000)
    runs.assert_lake(tmp_path / "lake", expected)


def test_a_run_begins_without_its_server_and_the_next_delivers(search_server: Callable[..., SearchServer], tmp_path: Path) -> None:
    server = ready(search_server("opensearch"))
    log = runs.Appending(tmp_path / "log")
    log.write(0)
    words = ("run", "--log", log.url, "--lake", str(tmp_path / "lake"), "--elastic", server.url, "--no-story", *runs.settings(OFTEN))
    server.kill()
    first = runs.command(*words, "--until-idle", "2")
    assert first.status == 0, first.err
    assert "what is for it waits until it answers" in first.out
    runs.assert_lake(tmp_path / "lake", expected_of(log, 2_000))
    server.start()
    log.write(1)
    assert runs.command(*words, "--until-idle", "3").status == 0
    assert_index(server, expected_of(log, 3_000))


def test_routes_decide_what_goes_where_and_the_audit_knows(server: SearchServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = runs.Appending(tmp_path / "log")
    log.write(1)  # of whose alerts none has the id of another
    config = tmp_path / "keystone.toml"
    config.write_text(
        '[[routes]]\nname = "some"\nfrom = "alerts"\nwhere = "buffers_in_run = 3 AND region IS NOT NULL"\n'
        'select = "alert_id, region, upper(device_type) AS device_type"\nsink = "elastic"\n'
        '[[routes]]\nname = "no-sessions"\nfrom = "sessions"\nwhere = "1 = 0"\nsink = "elastic"\n'
        '[[routes]]\nname = "json"\nfrom = "dead_letters"\nwhere = "reason = \'invalid_json\'"\nsink = "none"\n'
    )
    words = ("--log", log.url, "--lake", str(tmp_path / "lake"), "--elastic", server.url, "--config", str(config))
    ended = runs.command("run", *words, "--no-story", "--actions", "none", "--until-idle", "2", *runs.settings(OFTEN))
    assert ended.status == 0, ended.err
    wanted = {row["alert_id"]: row for row in expected_of(log, 2_000).alerts if row["buffers_in_run"] == 3 and row["region"] is not None}
    found = documents(server, "alerts")
    assert {row["alert_id"] for row in found} == set(wanted)
    assert all(row.keys() <= {"_id", "@timestamp", "alert_id", "region", "device_type"} for row in found)
    assert documents(server, "sessions") == []
    assert documents(server, "cohorts") != []
    status, out, err = told(capsys, "audit", *words)
    assert (status, err, out.splitlines()[-1]) == (0, "", "clean"), out
    held = len({row["alert_id"] for row in expected_of(log, 2_000).alerts}) - len(wanted)
    assert f"index: {len(wanted)} of {len(wanted)} alerts, {held} more held back by a route" in out
    assert told(capsys, "audit", *words[:-2], "--wait", "0")[0] == 1, "without the routes all of them are expected"


# --- what a person reads ----------------------------------------------------------------------------------------------
def one_line(*words: str) -> str:
    ended = runs.command("run", "--no-story", *words)
    assert (ended.status, ended.out) == (2, ""), ended.err
    assert ended.err.count("\n") == 1, ended.err
    return ended.err


def test_mistakes_are_one_line(search_server: Callable[..., SearchServer], tmp_path: Path) -> None:
    log = runs.Appending(tmp_path / "log").url
    server = search_server("opensearch")
    assert f"run keystone elastic setup --elastic {server.url}" in one_line("--log", log, "--elastic", server.url)
    assert "write it as http://HOST:9200" in one_line("--log", log, "--elastic", "localhost")
    config = tmp_path / "keystone.toml"
    config.write_bytes(b'[[routes]]\nname = "vip"\nfrom = "alerts"\nwhere = "regoin = \'eu\'"\nsink = "none"\n')
    assert "regoin" in one_line("--log", log, "--config", str(config))
    config.write_bytes(b'[[routes]]\nname = "vip"\nfrom = "alerts"\nsink = "elastic"\n')
    assert "add --elastic URL" in one_line("--log", log, "--config", str(config))
