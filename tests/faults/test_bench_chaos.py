"""The bench with every kind of fault: right answers, a report that tells of each, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from tests.lakes import rows_of

WAIT_S = 240.0
ALL = "kill:session-actor@2s,kill:fleet@5s,freeze:session-actor:6s@6s,freeze:fleet:1s@7s,kill:committer@13s,kill:supervisor@13.5s,kill:driver@17s"


def bench(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    (tmp_path / "keystone.toml").write_text("[checkpoint]\ninterval_ms = 1500\n[lake]\ncommit_interval_ms = 1000\n")
    command = [sys.executable, "-m", "keystone.bench", "--out", str(tmp_path / "out"), "--log", str(tmp_path), "--config", str(tmp_path / "keystone.toml")]
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def mentioning(path: Path) -> list[list[str]]:
    """Command lines of processes that are about this test's directory."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if any(str(path) in word for word in line):
            found.append(line)
    return found


def require_right(report: dict[str, Any], out: Path, events: int) -> None:
    """Everything but times, which are the machine's as much as ours."""
    wrong = [reason for reason in report["reasons"] if reason.startswith(("alerts", "ledger", "lake"))]
    assert wrong == []
    truth, ledger = report["truth"], report["ledger"]
    assert truth["expected"] == truth["alerted"] > 50
    assert truth["missed"] == truth["false"] == truth["duplicate"] == 0
    assert ledger["sent"] == ledger["received"] == ledger["accepted"] == ledger["lake_rows"] == events
    places = rows_of(out / "lake").select("partition", "offset", "line")
    assert places.n_unique() == places.height == events
    assert rows_of(out / "lake", "alerts")["alert_id"].n_unique() == truth["expected"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.faults
def test_a_run_with_every_kind_of_fault_is_right(tmp_path: Path) -> None:
    process = bench(tmp_path, "--eps", "4000", "--seconds", "20", "--devices", "20000", "--bad-paths", "0.2", "--chaos", ALL)
    screen, told = process.communicate(timeout=WAIT_S)
    out = tmp_path / "out"
    report = orjson.loads((out / "report.json").read_bytes())
    require_right(report, out, 80_000)
    chaos = report["chaos"]
    assert sorted(fault["what"] for fault in chaos["faults"]) == sorted(ALL.split(",")), told
    assert chaos["not_struck"] == []
    assert all(fault["at_work_ms"] is not None for fault in chaos["faults"])
    kinds = report["recovery_ms"]["by_kind"]
    assert set(kinds) == {what.partition("@")[0].removesuffix(":6s").removesuffix(":1s") for what in ALL.split(",")}
    assert all(figures["count"] > 0 for figures in kinds.values())
    assert report["recovery_ms"]["p99"] == kinds["kill:session-actor"]["p99"]
    assert kinds["kill:driver"]["p50"] > 1_000  # another driver, not what the dead one left
    assert report["send_delay_ms"]["count"] == chaos["send_delay_covers"]["events"] >= 0.97 * 80_000
    assert chaos["inside"]["end_to_end_ms"]["count"] + chaos["outside"]["end_to_end_ms"]["count"] == report["truth"]["expected"]
    assert screen.startswith(report["verdict"].upper())
    assert process.returncode == (0 if report["verdict"] == "pass" else 1)
    assert mentioning(tmp_path) == []
    assert not list(tmp_path.glob("keystone-log-*"))
    assert not (out / ".work").exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.faults
def test_ctrl_c_ends_a_run_with_faults_with_a_report(tmp_path: Path) -> None:
    process = bench(tmp_path, "--eps", "2000", "--seconds", "600", "--devices", "10000", "--chaos", "kill:fleet@2s,kill:driver@500s")
    assert process.stderr is not None
    for line in process.stderr:
        if "kill:fleet@2s" in line:
            break
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    screen, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert screen.startswith("FAIL")
    report = orjson.loads((tmp_path / "out" / "report.json").read_bytes())
    assert any(reason.startswith("interrupted after") for reason in report["reasons"])
    assert report["truth"]["missed"] == report["truth"]["false"] == report["truth"]["duplicate"] == 0
    assert report["ledger"]["sent"] == report["ledger"]["lake_rows"] > 0
    assert report["chaos"]["not_struck"] == ["kill:driver@500s: the run was over before it could strike"]
    assert mentioning(tmp_path) == []
