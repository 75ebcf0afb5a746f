"""Search servers frozen, killed, overrun and locked: each alert is in the index exactly once, and counts are the truth's."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from keystone.cli import cli
from keystone.config import ElasticConfig
from keystone.sinks.documents import AlertRows
from keystone.sinks.elastic_admin import setup
from keystone.sinks.elastic_http import Nodes
from tests.search_alerts import BRIEF, LIMIT_S, alert, alerts, assert_each_once, sink_to
from tests.search_server import SearchServer, can_run
from tests.sink_rows import until

pytestmark = [pytest.mark.search, pytest.mark.slow]

Start = Callable[..., SearchServer]
FLAVORS = [name for name in ("opensearch", "elasticsearch8") if can_run(name)]
REGIONS = ("eu-west", "us-east", "", 'r"}\n{"delete":{}}', "é😀", None)
DEVICE_TYPES = ("tv", "phone", "web", None)


@pytest.mark.faults
@pytest.mark.parametrize("flavor", FLAVORS)
def test_frozen_then_killed_then_back(flavor: str, search_server: Start, tmp_path: Path) -> None:
    server = search_server(flavor)
    list(setup(Nodes(server.url, BRIEF)))
    sink = sink_to(server.url, spill_dir=tmp_path / "a")
    stop, number, longest_ms = threading.Event(), 0, 0.0

    def strike() -> None:
        time.sleep(1.0)
        server.pause()
        time.sleep(6.0)
        server.kill()
        server.start()
        stop.set()

    striking = threading.Thread(target=strike)
    striking.start()
    marks = []
    while not stop.is_set():
        until(sink.has_room)
        started = time.monotonic()
        sink.offer([alerts(number, 20)])
        longest_ms = max(longest_ms, 1_000 * (time.monotonic() - started))
        number += 20
        if number % 1_000 == 0:
            marks.append(sink.mark())
            until(lambda: sink.is_kept(marks[-1]))  # a checkpoint waits for the disk, not for the server
        time.sleep(0.05)
    striking.join()
    assert sink.flush(LIMIT_S), sink.status()
    status = sink.status()
    assert sink.close(LIMIT_S) == 0
    assert_each_once(server, number)
    assert status["circuit_opened"] >= 1
    assert status["dropped"] == {}


@pytest.mark.faults
@pytest.mark.parametrize("flavor", FLAVORS)
def test_a_queue_of_one_puts_off_and_loses_nothing(flavor: str, search_server: Start) -> None:
    server = search_server(flavor, settings={"thread_pool.write.queue_size": "1", "thread_pool.write.size": "1"})
    list(setup(Nodes(server.url, BRIEF)))
    sinks = [sink_to(server.url, ElasticConfig()) for _ in range(8)]
    for first in range(0, 8_000, 1_000):
        for sink in sinks:
            sink.offer([alerts(first, 1_000)])  # all say the same: only one may count
    for sink in sinks:
        assert sink.flush(LIMIT_S), sink.status()
    put_off = sum(sink.status()["retried"] for sink in sinks)
    for sink in sinks:
        assert sink.close(LIMIT_S) == 0
    assert put_off > 0
    assert_each_once(server, 8_000)


@pytest.mark.skipif(not can_run("elasticsearch8"), reason="needs a Java 17, which .ci/run installs: OpenSearch's jars know no login")
def test_a_login_is_used_and_a_wrong_one_refused(search_server: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = search_server("elasticsearch8", users={"keystone": "secret-pass"})
    monkeypatch.setenv("KEYSTONE_ELASTIC__PASSWORD", "secret-pass")
    monkeypatch.setenv("KEYSTONE_ELASTIC__USERNAME", "keystone")
    run = CliRunner()
    assert "installed" in run.invoke(cli, ["elastic", "setup", "--elastic", server.url]).output
    monkeypatch.setenv("KEYSTONE_ELASTIC__PASSWORD", "wrong-secret")
    checked = run.invoke(cli, ["elastic", "check", "--elastic", server.url])
    assert checked.exit_code == 1
    assert "refuses the login (status 401)" in checked.output
    assert "secret" not in checked.output


@pytest.mark.faults
@pytest.mark.parametrize("flavor", FLAVORS)
def test_counts_by_region_and_device_type_are_the_truths_whatever_restarts(flavor: str, search_server: Start, tmp_path: Path) -> None:
    server = search_server(flavor)
    list(setup(Nodes(server.url, BRIEF)))
    draws = random.Random(7)
    made = [alert(n, region=draws.choice(REGIONS), device_type=draws.choice(DEVICE_TYPES)) for n in range(20_000)]
    truth = Counter((one.dimensions["region"] or "", one.dimensions["device_type"] or "") for one in made)
    sink = sink_to(server.url, ElasticConfig(), spill_dir=tmp_path / "a")
    for first in range(0, len(made), 100):
        until(sink.has_room)
        sink.offer([AlertRows([*made[first : first + 100], *draws.sample(made[: first + 100], 20)])])  # some are said again
        if first in {5_000, 12_000}:
            server.restart()
    assert sink.flush(LIMIT_S), sink.status()
    assert sink.close(LIMIT_S) == 0
    server.call("POST", "/keystone-alerts-*/_refresh")
    by_type = {"by_type": {"terms": {"field": "device_type", "size": 100, "missing": ""}}}
    asked = {"size": 0, "aggs": {"by_region": {"terms": {"field": "region", "size": 100, "missing": ""}, "aggs": by_type}}}
    regions = server.call("POST", "/keystone-alerts-*/_search", asked)["aggregations"]["by_region"]
    assert regions["sum_other_doc_count"] == 0
    counted = {(region["key"], kind["key"]): kind["doc_count"] for region in regions["buckets"] for kind in region["by_type"]["buckets"]}
    assert counted == truth
