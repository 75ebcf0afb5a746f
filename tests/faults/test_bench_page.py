"""The bench with --report: a page of its run, also of one that was interrupted, with the figures of its own report."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from keystone.report.charts import duration
from tests.report_runs import charts_of, loads_of, rows_of, words_of

WAIT_S = 240.0
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def bench(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "keystone.bench", "--out", str(tmp_path / "out"), "--log", str(tmp_path), "--report", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def require_page(tmp_path: Path) -> tuple[dict, str]:
    """Report and page of the run, which agree."""
    report = orjson.loads((tmp_path / "out" / "report.json").read_bytes())
    html = (tmp_path / "out" / "report.html").read_text()
    text = words_of(html)
    assert loads_of(html) == []
    assert f"{report['verdict'].upper()} out " in text
    for reason in report["reasons"]:
        assert reason in text
    assert report["machine"]["cpu"] in text
    for name in ("p50", "p99", "max"):
        assert duration(report["latency_ms"]["end_to_end"][name]) in text
    bars = [row["alerts"] for row in rows_of(charts_of(html)["How long alerts took"]) if "alerts" in row]
    assert sum(bars) == report["latency_ms"]["end_to_end"]["count"] > 0
    return report, html


def test_a_run_with_a_fault_has_a_page_that_marks_it(tmp_path: Path) -> None:
    process = bench(tmp_path, "--eps", "2000", "--seconds", "14", "--devices", "10000", "--bad-paths", "0.2", "--chaos", "kill:committer@5s")
    _, told = process.communicate(timeout=WAIT_S)
    report, html = require_page(tmp_path)
    assert process.returncode == (0 if report["verdict"] == "pass" else 1), told
    [fault] = report["chaos"]["faults"]
    marks = [row for row in rows_of(charts_of(html)["Latency over the run · out"]) if "from_s" in row]
    assert [(row["from_s"], row["to_s"]) for row in marks] == [tuple(fault["window_s"])]
    assert "kill:committer" in words_of(html)


def test_an_interrupted_run_has_a_page_and_the_next_replaces_it(tmp_path: Path) -> None:
    process = bench(tmp_path, "--eps", "2000", "--seconds", "600", "--devices", "10000", "--bad-paths", "0.2")
    assert process.stderr is not None
    for line in process.stderr:
        if "phase running" in line:
            break
    time.sleep(10)  # until some devices have stalled three times
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    screen, _ = process.communicate(timeout=WAIT_S)
    assert (process.returncode, screen[:4]) == (1, "FAIL")
    report, html = require_page(tmp_path)
    assert any(reason.startswith("interrupted after") for reason in report["reasons"])
    again = bench(tmp_path, "--eps", "2000", "--seconds", "4", "--devices", "10000", "--bad-paths", "0.2", "--no-lake")
    _, told = again.communicate(timeout=WAIT_S)
    assert (tmp_path / "out" / "report.html").read_text() != html, told
