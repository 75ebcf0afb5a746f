"""Real search servers, whole, through a proxy that breaks things, frozen, killed and overrun: each alert is in the index exactly once."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pyarrow as pa
import pytest
from click.testing import CliRunner

from keystone.cli import cli
from keystone.errors import SinkBusy, UsageError
from keystone.events import DIMENSIONS
from keystone.run.top_query import look
from keystone.session_records import SESSION_SCHEMA
from keystone.sinks.base import DAY_MS, Document, Outcome, Refused
from keystone.sinks.documents import AlertRows, CohortRows, SessionRows
from keystone.sinks.elastic import ElasticRows
from keystone.sinks.elastic_admin import retain, setup, unready
from keystone.sinks.elastic_http import Nodes
from keystone.sinks.elastic_schema import FIELDS, INDEXED_KINDS, day_of, template, template_name
from tests.fault_proxy import Fault, FaultProxy
from tests.search_alerts import BRIEF, LIMIT_S, NOW_MS, alert, alerts, assert_each_once, clear, hits, sink_to
from tests.search_server import SearchServer

pytestmark = pytest.mark.search

Start = Callable[..., SearchServer]


@pytest.fixture
def server(search: SearchServer) -> Iterator[SearchServer]:
    clear(search)
    list(setup(Nodes(search.url, BRIEF)))
    yield search
    clear(search)


# --- setup, retention, commands ---------------------------------------------------------------------------------------
def test_setup_installs_updates_and_then_changes_nothing(search: SearchServer) -> None:
    clear(search)
    for kind in INDEXED_KINDS:
        if not unready(Nodes(search.url, BRIEF)):
            search.call("DELETE", f"/_index_template/{template_name(kind)}")
    nodes = Nodes(search.url, BRIEF)
    with pytest.raises(SinkBusy, match=r"not installed: run keystone elastic setup --elastic http://"):
        ElasticRows(nodes).send_batch(alerts(0, 1).documents(0, 1))
    list(setup(nodes))
    assert unready(nodes) == []
    ElasticRows(nodes).send_batch(alerts(0, 1).documents(0, 1))
    assert [line.rpartition(": ")[2] for line in setup(nodes)] == ["is there already, version 1"] * 3


def test_setup_goes_up_from_older_versions_and_never_down(server: SearchServer) -> None:
    nodes, path, wanted = Nodes(server.url, BRIEF), f"/_index_template/{template_name('alerts')}", template("alerts")
    older = wanted | {"version": 0, "_meta": {"digest": "older"}}
    older["template"] = {"settings": {}, "mappings": {"dynamic": "strict", "properties": {"seq": {"type": "long"}}}}
    server.call("PUT", path, older)
    server.call("PUT", "/keystone-alerts-2026.11.01", {})
    server.call("PUT", "/keystone-alerts-2026.11.02", {})
    server.call("PUT", "/keystone-alerts-mine", {})
    assert unready(nodes) == ["the template keystone-alerts is an older version's"]
    server.call("PUT", path, wanted)  # a setup that was killed here
    assert list(setup(nodes))[:3] == [
        "keystone-alerts: is there already, version 1",
        *(f"keystone-alerts-2026.11.0{day}: brought up to its template" for day in (1, 2)),
    ]
    assert [line.rpartition(": ")[2] for line in setup(nodes)] == ["is there already, version 1"] * 3
    mapped = server.call("GET", "/keystone-alerts-*/_mapping")
    assert {name: len(said["mappings"]["properties"]) for name, said in mapped.items()} == {
        "keystone-alerts-2026.11.01": len(FIELDS["alerts"]), "keystone-alerts-2026.11.02": len(FIELDS["alerts"]), "keystone-alerts-mine": 1,
    }  # fmt: skip
    server.call("PUT", path, wanted | {"version": 2, "_meta": {"digest": "newer"}})
    assert unready(nodes) == []  # it takes what ours says too
    with pytest.raises(UsageError, match="of a newer Keystone"):
        list(setup(nodes))
    server.call("DELETE", path)
    server.call("PUT", path, {"index_patterns": ["keystone-alerts-*"], "priority": 1})
    assert unready(nodes) == ["the template keystone-alerts is somebody else's"]
    assert next(iter(setup(nodes))) == "keystone-alerts: updated, version 1, for keystone-alerts-*"


def test_a_mapping_that_cannot_be_changed_is_told_and_the_rest_goes_on(server: SearchServer) -> None:
    server.call("DELETE", f"/_index_template/{template_name('alerts')}")
    server.call("PUT", "/keystone-alerts-2026.11.01", {"mappings": {"properties": {"seq": {"type": "keyword"}}}})
    lines = list(setup(Nodes(server.url, BRIEF)))
    assert lines[1].startswith("keystone-alerts-2026.11.01: stays as it is: the search server refuses this (status 400)")
    assert len(lines) == 4


def test_commands_say_what_they_do(server: SearchServer) -> None:
    run = CliRunner()
    ElasticRows(Nodes(server.url, BRIEF)).send_batch(alerts(0, 5).documents(0, 5))
    assert "is there already" in run.invoke(cli, ["elastic", "setup", "--elastic", server.url]).output
    checked = run.invoke(cli, ["elastic", "check", "--elastic", server.url])
    assert checked.exit_code == 0, checked.output
    assert "keystone-alerts-*: 1 days from" in checked.output
    assert run.invoke(cli, ["elastic", "retain", "--elastic", server.url, "--days", "1"]).output == "nothing is that old\n"


def test_retention_deletes_old_days_of_ours_and_nothing_else(server: SearchServer) -> None:
    nodes, today = Nodes(server.url, BRIEF), dt.datetime.fromtimestamp(NOW_MS / 1_000, dt.UTC).date()
    moments = [NOW_MS - days * DAY_MS for days in range(4)]
    documents = AlertRows([alert(k, event_ts=ms, append_ts_ms=ms) for k, ms in enumerate(moments)]).documents(0, 4)
    ElasticRows(nodes).send_batch(documents)
    server.call("PUT", "/keystone-alerts-mine", {})
    assert len(list(retain(nodes, 1, today))) == 2
    left = sorted(row["index"] for row in server.call("GET", "/_cat/indices/keystone-alerts-*?format=json&h=index"))
    assert [day_of(index) for index in left] == [today - dt.timedelta(days=1), today, None]
    assert list(retain(nodes, 1, today)) == []


# --- what ends where --------------------------------------------------------------------------------------------------
def test_every_field_of_every_kind_is_taken_and_nothing_else(server: SearchServer) -> None:
    def value(field: pa.Field) -> Any:
        return 1.5 if field.type == pa.float64() else NOW_MS if field.type == pa.int64() else "x"

    sessions = pa.Table.from_pylist([{field.name: value(field) for field in SESSION_SCHEMA}], schema=SESSION_SCHEMA)
    rows = [{"window_start_ms": NOW_MS // 1_000 * 1_000, "window_ms": 1_000, "region": "r0", "cdn": None, "stall_ms": 10, "played_ms": 90, "attempts": 4}]
    rows += [{**rows[0], "region": None}]
    sink = sink_to(server.url)
    whole = dict.fromkeys(DIMENSIONS, "v")
    sink.offer([AlertRows([alert(0, **whole)]), SessionRows(sessions, NOW_MS), CohortRows(pa.Table.from_pylist(rows), 1)])
    assert sink.flush(LIMIT_S), sink.status()
    assert sink.close(LIMIT_S) == 0
    (found,) = hits(server, "alerts")
    assert found["_source"].keys() == FIELDS["alerts"].keys()
    assert hits(server, "sessions")[0]["_source"].keys() == FIELDS["sessions"].keys()
    assert sorted(hit["_source"]["cohort"] for hit in hits(server, "cohorts")) == ["all", "region"]
    assert {hit["_source"]["rebuffering_ratio"] for hit in hits(server, "cohorts")} == {0.1}
    unknown = Document("alerts", "u", NOW_MS // DAY_MS, orjson.dumps({f"key{n}": n for n in range(10_000)}))
    (answer,) = ElasticRows(Nodes(server.url, BRIEF)).send_batch([unknown])
    assert answer.outcome is Outcome.REFUSED
    assert "strict" in answer.reason


def test_one_bad_line_sinks_no_batch(server: SearchServer) -> None:
    refused: list[Refused] = []
    good = alerts(0, 40).documents(0, 40)
    day = good[0].day
    bad = [Document("alerts", "bad0", day, b'{"seq":'), Document("alerts", "bad1", day, b'{"seq":"x"}'), Document("alerts", "bad2", day, b'{"seq":1}\n{"a":1}')]
    answers = ElasticRows(Nodes(server.url, BRIEF)).send_batch([*good[:20], *bad, *good[20:]])
    assert [answer.outcome for answer in answers[20:22]] == [Outcome.REFUSED] * 2
    assert all(answer.outcome is Outcome.DONE for answer in (*answers[:20], *answers[23:]))
    assert {hit["_id"] for hit in hits(server)} >= {document.id for document in good}
    assert refused == []


def test_broken_clocks_make_no_index(server: SearchServer) -> None:
    clocks = [0, 1, (1 << 53) - 1, NOW_MS + 3 * DAY_MS, NOW_MS - 1_000 * DAY_MS, NOW_MS]
    answers = ElasticRows(Nodes(server.url, BRIEF)).send_batch(AlertRows([alert(n, event_ts=ts) for n, ts in enumerate(clocks)]).documents(0, 6))
    assert {answer.outcome for answer in answers} == {Outcome.DONE}
    assert {hit["_index"] for hit in hits(server)} == {f"keystone-alerts-{dt.datetime.fromtimestamp(NOW_MS / 1_000, dt.UTC):%Y.%m.%d}"}


# --- faults on the way ------------------------------------------------------------------------------------------------
FAULTS = [
    *(Fault(kind) for kind in ("reset", "cut", "lost")),
    *(Fault("status", status=status) for status in (429, 500, 502, 503, 504)),
    *(Fault("items", status=status, every=every) for status in (429, 503, 403) for every in (1, 3)),
    Fault("delay", delay_s=3.0),  # longer than request_timeout_ms: applied after we gave it up
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.every}")
def test_a_fault_on_the_way_loses_and_doubles_nothing(fault: Fault, server: SearchServer) -> None:
    refused: list[Refused] = []
    with FaultProxy(server.url) as proxy:
        proxy.faults.extend([fault] * 3)
        sink = sink_to(proxy.url, refused=refused)
        for first in range(0, 300, 30):
            sink.offer([alerts(first, 30)])
        assert sink.flush(LIMIT_S), sink.status()
        assert len(proxy.struck) == 3
        assert sink.close(LIMIT_S) == 0
    assert_each_once(server, 300)
    assert refused == []


def test_an_item_that_is_refused_goes_to_the_dead_letters_with_the_servers_reason(server: SearchServer) -> None:
    refused: list[Refused] = []
    with FaultProxy(server.url) as proxy:
        proxy.faults.append(Fault("items", status=400, every=10))
        sink = sink_to(proxy.url, refused=refused)
        sink.offer([alerts(0, 100)])
        assert sink.flush(LIMIT_S)
        sink.close(LIMIT_S)
    assert len(refused) == 10
    assert {one.reason for one in refused} == {"status 400: made_up: this item, by the proxy"}
    assert len(hits(server)) == 90


def test_a_request_too_large_is_halved(server: SearchServer) -> None:
    with FaultProxy(server.url) as proxy:
        rows = ElasticRows(Nodes(proxy.url, BRIEF))
        proxy.faults.extend([Fault("status", status=413)] * 3)
        assert {answer.outcome for answer in rows.send_batch(alerts(0, 80).documents(0, 80))} == {Outcome.DONE}
        sizes = [body.count(b"\n") // 2 for _, path, body in proxy.requests if path.startswith("/_bulk")]
        assert sizes == [80, 40, 20, *[10] * 8]
    assert_each_once(server, 80)


def test_a_server_that_goes_away_amid_the_halves_is_asked_no_more(server: SearchServer) -> None:
    with FaultProxy(server.url) as proxy:
        rows = ElasticRows(Nodes(proxy.url, BRIEF))
        proxy.faults.extend([*[Fault("status", status=413)] * 2, Fault("delay"), *[Fault("status", status=503)] * 50])
        answers = rows.send_batch(alerts(0, 80).documents(0, 80))
        assert [answer.outcome for answer in answers] == [Outcome.DONE] * 20 + [Outcome.AGAIN] * 60
        assert len(proxy.faults) == 49
    assert_each_once(server, 20)


def test_a_closed_index_is_no_fault_of_an_alert(server: SearchServer) -> None:
    rows = ElasticRows(Nodes(server.url, BRIEF))
    (first, second) = alerts(0, 2).documents(0, 2)
    rows.send_batch([first])
    (index,) = [row["index"] for row in server.call("GET", "/_cat/indices/keystone-alerts-*?format=json&h=index")]
    server.call("POST", f"/{index}/_close")
    (answer,) = rows.send_batch([second])
    assert answer.outcome is Outcome.AGAIN, answer
    server.call("POST", f"/{index}/_open")
    (answer,) = rows.send_batch([second])
    assert answer.outcome is Outcome.DONE, answer


def test_no_index_is_made_without_its_template_even_later(server: SearchServer) -> None:
    rows = ElasticRows(Nodes(server.url, BRIEF))
    rows.send_batch(alerts(0, 1).documents(0, 1))
    server.call("DELETE", f"/_index_template/{template_name('alerts')}")
    rows.send_batch(alerts(1, 1).documents(0, 1))  # its index is there
    yesterday = NOW_MS - DAY_MS
    with pytest.raises(SinkBusy, match="not installed"):
        rows.send_batch(AlertRows([alert(2, event_ts=yesterday, append_ts_ms=yesterday)]).documents(0, 1))


def test_what_no_index_takes_is_refused_alone(server: SearchServer) -> None:
    rows = ElasticRows(Nodes(server.url, BRIEF))
    (good,) = alerts(0, 1).documents(0, 1)
    answers = rows.send_batch(
        [Document("events", "e", good.day, b"{}"), good, Document("alerts", "a", 1 << 60, b"{}"), Document("alerts", "b", -(1 << 40), b"{}")]
    )
    assert [answer.outcome for answer in answers] == [Outcome.REFUSED, Outcome.DONE, Outcome.REFUSED, Outcome.REFUSED]
    assert "route them to a topic" in answers[0].reason
    assert [answer.outcome for answer in rows.send_batch([Document("events", "e", good.day, b"{}")])] == [Outcome.REFUSED]


def test_a_refused_login_is_one_clear_line_and_asked_again_slowly(server: SearchServer) -> None:
    with FaultProxy(server.url) as proxy:
        rows = ElasticRows(Nodes(proxy.url, BRIEF))
        rows.send_batch(alerts(0, 1).documents(0, 1))
        proxy.lasting = Fault("status", status=401)
        with pytest.raises(SinkBusy, match=r"refuses the login .*KEYSTONE_ELASTIC__PASSWORD") as caught:
            rows.send_batch(alerts(0, 1).documents(0, 1))
        assert caught.value.wait_ms >= 10_000


def test_retry_after_is_kept(server: SearchServer) -> None:
    with FaultProxy(server.url) as proxy:
        proxy.faults.append(Fault("status", status=429, headers=(("Retry-After", "7"),)))
        with pytest.raises(SinkBusy) as caught:
            ElasticRows(Nodes(proxy.url, BRIEF)).send_batch(alerts(0, 1).documents(0, 1))
        assert caught.value.wait_ms == 7_000


def test_a_dead_node_is_passed_over_and_requests_are_packed(server: SearchServer) -> None:
    with FaultProxy(server.url) as proxy, FaultProxy(server.url) as other:
        sink = sink_to(f"http://127.0.0.1:9,{proxy.url},{other.url}", BRIEF.model_copy(update={"dead_node_ms": 60_000}))
        for first in range(0, 400, 100):
            sink.offer([alerts(first, 100)])
            assert sink.flush(LIMIT_S)
        assert sink.close(LIMIT_S) == 0
        bulks = [[path.startswith("/_bulk") for _, path, _ in one.requests].count(True) for one in (proxy, other)]
        assert min(bulks) >= 1
        assert any(headers.get("content-encoding") == "gzip" for headers in proxy.headers)
    assert_each_once(server, 400)


def test_no_shard_more_is_no_fault_of_an_alert(search_server: Start) -> None:
    server = search_server(settings={"cluster.max_shards_per_node": "2"})
    nodes = Nodes(server.url, BRIEF)
    list(setup(nodes))
    server.call("PUT", "/mine", {"settings": {"number_of_replicas": 0}})
    (answer,) = ElasticRows(nodes).send_batch(alerts(0, 1).documents(0, 1))
    assert answer.outcome is Outcome.AGAIN, answer
    server.call("DELETE", "/mine")
    (answer,) = ElasticRows(nodes).send_batch(alerts(0, 1).documents(0, 1))
    assert answer.outcome is Outcome.DONE, answer


# --- looking ----------------------------------------------------------------------------------------------------------
def test_top_shows_the_worst_first(server: SearchServer) -> None:
    start = int(time.time() * 1_000) // 1_000 * 1_000 - 5_000
    own = {"window_start_ms": start, "window_ms": 1_000, "played_ms": 900, "attempts": 10, "ebvs": 1, "vsf": 0, "vpf": 0, "ended": 5}
    rows: list[dict[str, Any]] = [{**own, "region": f"r{n}", "cdn": None, "stall_ms": 100 * n} for n in range(3)]
    rows += [{**own, "region": "r0", "cdn": "c", "stall_ms": 90_000}]  # a pair: counts for neither alone
    rows += [{**own, "region": None, "cdn": None, "stall_ms": 300, "played_ms": 2_700, "attempts": 30, "ebvs": 3}]
    made = [alert(n, append_ts_ms=start, region="r1", cdn="bad\x1b[2J") for n in range(7)]
    sink = sink_to(server.url)
    sink.offer([CohortRows(pa.Table.from_pylist(rows), 1), AlertRows(made)])
    assert sink.flush(LIMIT_S)
    sink.close(LIMIT_S)
    server.call("POST", "/keystone-*/_refresh")
    shown = CliRunner().invoke(cli, ["top", "--elastic", server.url, "--once"])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("region ")] == ["r2", "r1", "r0"]
    assert "region r2 alerts=0 rebuffering=18.18% EBVS=10.00% VSF=0.00% VPF=0.00% attempts=10" in lines
    assert any(line.startswith("region r1 alerts=7 rebuffering=10.00%") for line in lines)
    assert any(line.startswith("cdn bad?[2J alerts=7 rebuffering=-") for line in lines)
    assert lines[0].startswith("last 60 s to ")
    assert lines[1] == "all all alerts=7 rebuffering=10.00% EBVS=10.00% VSF=0.00% VPF=0.00% attempts=30"
    later = look(Nodes(server.url, BRIEF), start + 3_600_000, 60)
    assert (later.tables, later.newest_ms) == ({"region": [], "device_type": [], "cdn": []}, start)
