"""The bench with a search server: judged as ever, and its index and cohorts say what its truth and its ledger say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from keystone.config import ElasticConfig
from keystone.sinks.elastic_admin import setup
from keystone.sinks.elastic_http import Nodes
from tests.search_alerts import clear
from tests.search_server import SearchServer
from tests.services.runs import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def bench(tmp_path: Path, *words: str) -> dict[str, object]:
    """Its report, whatever its verdict: that is the machine's."""
    command = [sys.executable, "-m", "keystone.bench", "--eps", "5000", "--seconds", "6", "--devices", "5000", "--out", str(tmp_path / "out"), *words]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240, check=False)
    assert (tmp_path / "out" / "report.json").exists(), ended.stderr
    found: dict[str, object] = json.loads((tmp_path / "out" / "report.json").read_bytes())
    return found


def test_index_and_cohorts_say_what_truth_and_ledger_say(search: SearchServer, tmp_path: Path) -> None:
    clear(search)
    list(setup(Nodes(search.url, ElasticConfig())))
    report = bench(tmp_path, "--elastic", search.url)
    truth, ledger, cohorts = report["truth"], report["ledger"], report["cohorts"]
    assert truth["expected"] == truth["alerted"] > 0  # type: ignore[index]
    assert (truth["missed"], truth["false"], truth["duplicate"]) == (0, 0, 0)  # type: ignore[index]
    search.call("POST", "/keystone-*/_refresh")
    assert search.call("GET", "/keystone-alerts-*/_count")["count"] == truth["expected"]  # type: ignore[index]
    told = cohorts["told"]  # type: ignore[index]
    assert (told["events"], told["alerts"]) == (ledger["applied"], truth["expected"])  # type: ignore[index]
    table = pl.read_parquet(tmp_path / "out" / "cohorts.parquet")
    assert search.call("GET", "/keystone-cohorts-*/_count")["count"] == table.height
    (routing,) = report["routing"].values()  # type: ignore[attr-defined]
    assert routing["routes"]["dashboards-alerts"] == truth["expected"]  # type: ignore[index]
    assert not list((tmp_path / "out" / "outbox").rglob("*.spill"))
    clear(search)


def test_a_bench_without_cohorts_tells_of_none(tmp_path: Path) -> None:
    config = tmp_path / "keystone.toml"
    config.write_text("[cohorts]\nenabled = false\n")
    report = bench(tmp_path, "--config", str(config))
    assert report["cohorts"] == {}
    assert not (tmp_path / "out" / "cohorts.parquet").exists()
    assert report["truth"]["missed"] == 0  # type: ignore[index]
