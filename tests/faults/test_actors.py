"""Actors under Ray: a whole run, a killed process, a process that cannot be rebuilt, an interruption.

Each test starts a Ray of its own through the code it tests and leaves no process behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import psutil
import pytest

from keystone.actors.committer import CommitterActor, CommitterSpec
from keystone.actors.fleet import FleetActor, FleetSpec
from keystone.actors.loop import FAILED, FINISHED
from keystone.actors.owned import sum_totals
from keystone.actors.runtime import RayRuntime
from keystone.actors.session import SessionActor, SessionSpec
from keystone.actors.supervising import appoint
from keystone.actors.supervisor import Supervisor
from keystone.actors.trail import AlertTrail, alerts_path, moments_path, read_moments
from keystone.bench.collect import lake_rows, read_alerts, read_truth
from keystone.bench.latency import score
from keystone.config import CheckpointConfig, Config, LakeConfig
from keystone.events import Alert
from keystone.log.embedded import EmbeddedLog
from keystone.sim.plan import FleetPlan
from tests.lakes import rows_of

PLAN = FleetPlan(eps=4_000.0, seconds=6, devices=20_000, partitions=4, seed=7, bad_path_share=0.2)
CONFIG = Config(checkpoint=CheckpointConfig(interval_ms=1_000), lake=LakeConfig(commit_interval_ms=700))
WAIT_S = 120.0


def alert(number: int) -> Alert:
    return Alert(f"{number:032x}", "buffering_loop", f"d{number}", "s", 1, 2, 3, None, 235, {"region": None}, append_ts_ms=number)


def device_ids(tmp_path: Path) -> list[str]:
    return [orjson.loads(line)["device_id"] for line in alerts_path(tmp_path, "a").read_bytes().splitlines()]


# --- the trail, without Ray -------------------------------------------------------------------------------------------
def test_a_trail_opened_again_says_nothing_twice(tmp_path: Path) -> None:
    first = AlertTrail(tmp_path, "a")
    first.append([alert(1), alert(2)], decoded_ms=[1.0, 1.0], alerted_ms=[2.0, 2.0])
    first.close()
    second = AlertTrail(tmp_path, "a")
    second.append([alert(2), alert(3)], decoded_ms=[1.0, 5.0], alerted_ms=[2.0, 6.0])
    second.close()
    assert device_ids(tmp_path) == ["d1", "d2", "d3"]
    assert read_moments(moments_path(tmp_path, "a"))["decoded"].to_list() == [1.0, 1.0, 5.0]


@pytest.mark.parametrize("torn_bytes", [1, 40])
def test_a_torn_line_is_cut_and_said_again_and_lost_moments_are_now_at_the_latest(tmp_path: Path, torn_bytes: int) -> None:
    trail = AlertTrail(tmp_path, "a")
    trail.append([alert(1), alert(2)], decoded_ms=[1.0, 1.0], alerted_ms=[2.0, 2.0])
    trail.close()
    path = alerts_path(tmp_path, "a")
    os.truncate(path, path.stat().st_size - torn_bytes)
    os.truncate(moments_path(tmp_path, "a"), 10)  # not even the first row is whole
    before_ms = time.time() * 1_000
    again = AlertTrail(tmp_path, "a")
    assert again.said == {alert(1).alert_id}
    again.append([alert(1), alert(2)], decoded_ms=[3.0, 3.0], alerted_ms=[4.0, 4.0])
    again.close()
    assert device_ids(tmp_path) == ["d1", "d2"]
    moments = read_moments(moments_path(tmp_path, "a"))
    assert moments["decoded"].to_list() == [None, 3.0]
    assert moments["visible"][0] >= before_ms


# --- the actors as plain objects: the same loops, without Ray -----------------------------------------------------------
def wait_for(actor: Any, state: str) -> None:
    until = time.monotonic() + WAIT_S
    while actor.status()["state"] != state:
        assert actor.status()["error"] is None, actor.status()["error"]
        assert time.monotonic() < until
        time.sleep(0.01)


def make_log(tmp_path: Path, *, retention_bytes: int = 256 << 20, segment_bytes: int = 16 << 20) -> EmbeddedLog:
    return EmbeddedLog.create(tmp_path / "log", partitions=PLAN.partitions, retention_bytes=retention_bytes, segment_bytes=segment_bytes)


def session_spec(tmp_path: Path, partitions: tuple[int, ...], name: str = "session-0") -> SessionSpec:
    places = (f"embedded:{tmp_path / 'log'}", str(tmp_path), str(tmp_path / "state"), str(tmp_path / "lake"))
    return SessionSpec(name, partitions, *places, CONFIG, sessions_expected=10_000, partitions_expected=PLAN.partitions)


def test_a_session_actor_whose_beginning_is_no_longer_retained_fails_and_names_the_partition(tmp_path: Path) -> None:
    log = make_log(tmp_path, retention_bytes=256 << 10, segment_bytes=64 << 10)
    writer, reader = log.writer(2), log.reader(2)
    for _ in range(40):
        writer.append(b"x" * 16_000)
        reader.poll(bytes_max=1 << 20, wait_ms=0)
        reader.commit(reader.position())
    actor = SessionActor(session_spec(tmp_path, (0, 2)))
    actor.begin()
    while actor.status()["state"] != FAILED:
        time.sleep(0.01)
    assert "partition 2" in actor.status()["error"]
    log.remove()


def test_a_session_actor_says_what_broke_it(tmp_path: Path) -> None:
    actor = SessionActor(session_spec(tmp_path, (0,)))  # there is no log
    actor.begin()
    while actor.status()["state"] != FAILED:
        time.sleep(0.01)
    assert actor.status()["error"].startswith("session-0: UsageError: ")
    assert "\n" not in actor.status()["error"]
    assert "Traceback" in (tmp_path / "session-0.error").read_text()


# --- under Ray ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def ray_runtime() -> Iterator[None]:
    others = set(psutil.Process().children(recursive=True))  # brokers that other tests share
    runtime = RayRuntime()
    runtime.start()
    own = [process for process in psutil.Process().children(recursive=True) if process not in others]
    yield
    runtime.stop()
    _, alive = psutil.wait_procs(own, timeout=10)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


def launch(tmp_path: Path, *, actors: int = 2) -> Supervisor:
    """Two owners, and one more that stands by where there are three."""
    supervisor = Supervisor(tmp_path)
    for number in range(actors):
        supervisor.add("session", f"session-{number}", "nothing yet", SessionActor, session_spec(tmp_path, (), f"session-{number}"))
    lake = CommitterSpec(str(tmp_path / "lake"), str(tmp_path / "state"), str(tmp_path), CONFIG.lake)
    supervisor.add("committer", "committer", "the lake's commits", CommitterActor, lake)
    supervisor.add("fleet", "fleet-0", "all partitions", FleetActor, FleetSpec("fleet-0", (0, 1, 2, 3), f"embedded:{tmp_path / 'log'}", str(tmp_path), PLAN))
    return supervisor


def begin(supervisor: Supervisor) -> float:
    supervisor.wait_ready(seconds=WAIT_S)
    appoint(supervisor, range(PLAN.partitions), 2)
    supervisor.wait_owned(seconds=WAIT_S)
    start_ms = time.time() * 1_000 + 500
    supervisor.order("fleet", "go", start_ms)
    return start_ms


def look_until(supervisor: Supervisor, claim: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not claim():
        assert supervisor.faults() == []
        assert time.monotonic() < until, supervisor.notes
        supervisor.poll()
        time.sleep(0.05)


def run_to_the_end(tmp_path: Path, supervisor: Supervisor, log: EmbeddedLog, start_ms: float) -> None:
    """Finish fleet, sessions and committer; every sum and every alert must be right."""
    assert supervisor.wait_until((FINISHED,), "fleet", seconds=WAIT_S), supervisor.faults()
    [fleet] = supervisor.results("fleet")
    look_until(supervisor, lambda: not any(log.lag(p) for p in range(PLAN.partitions)))
    due_s = time.monotonic() + PLAN.open_stall_ms / 1_000 + 1.5  # the stalls that the end left open
    look_until(supervisor, lambda: time.monotonic() > due_s and supervisor.is_owned())
    supervisor.order("session", "finish")
    assert supervisor.wait_until((FINISHED,), "session", seconds=WAIT_S), supervisor.faults()
    sessions = supervisor.results("session")
    supervisor.order("committer", "finish")
    assert supervisor.wait_until((FINISHED,), "committer", seconds=WAIT_S), supervisor.faults()
    totals = sum_totals(one for actor in sessions for one in actor.partitions.values())
    ledger = totals.ledger
    assert fleet.events == PLAN.events == ledger.received == ledger.accepted + ledger.dead_lettered
    assert ledger.accepted == ledger.applied + ledger.duplicates == totals.lake_rows == lake_rows(tmp_path / "lake")
    places = rows_of(tmp_path / "lake").select("partition", "offset", "line")
    assert places.n_unique() == places.height == ledger.accepted
    result = score(read_truth([fleet], start_ms, PLAN.epoch_ms), read_alerts(tmp_path))
    assert result.expected > 20
    assert (result.missed, result.false, result.duplicate) == (0, 0, 0)
    assert rows_of(tmp_path / "lake", "alerts")["alert_id"].n_unique() == result.expected == totals.alerts


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("kills", "actors"), [(0, 2), (2, 2), (2, 3)], ids=["none", "survivors take over", "one that stands by takes over"])
@pytest.mark.usefixtures("ray_runtime")
def test_a_run_is_right_also_where_a_session_actor_is_killed(tmp_path: Path, kills: int, actors: int) -> None:
    log = make_log(tmp_path)
    supervisor = launch(tmp_path, actors=actors)
    try:
        start_ms = begin(supervisor)
        for kill in range(kills):
            due_s = time.monotonic() + 1.5
            look_until(supervisor, lambda due_s=due_s: time.monotonic() > due_s and supervisor.is_owned())  # type: ignore[misc]
            ward = next(ward for ward in supervisor.of_kind("session") if ward.status.get("partitions") and not ward.is_down)
            os.kill(ward.status["pid"], signal.SIGKILL)
            look_until(supervisor, lambda kill=kill: len(supervisor.recoveries) >= kill + 1 + 2)  # type: ignore[misc] - two at the start
        run_to_the_end(tmp_path, supervisor, log, start_ms)
        assert sum(ward.restarts for ward in supervisor.of_kind("session")) == kills
        assert supervisor.fenced_writes == 0
    finally:
        supervisor.stop()
        log.remove()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_runtime")
def test_one_that_was_frozen_while_others_took_over_finds_itself_fenced(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    supervisor = launch(tmp_path, actors=3)
    try:
        start_ms = begin(supervisor)
        due_s = time.monotonic() + 2
        look_until(supervisor, lambda: time.monotonic() > due_s)
        ward = next(ward for ward in supervisor.of_kind("session") if ward.status.get("partitions") and not ward.is_down)
        frozen = psutil.Process(ward.status["pid"])
        frozen.suspend()
        look_until(supervisor, lambda: ward.is_lost and supervisor.is_owned())
        due_s = time.monotonic() + 2
        look_until(supervisor, lambda: time.monotonic() > due_s)
        frozen.resume()
        look_until(supervisor, lambda: supervisor.fenced_writes == 1 and ward.restarts == 1)
        run_to_the_end(tmp_path, supervisor, log, start_ms)
        assert supervisor.fenced_writes == 1
    finally:
        supervisor.stop()
        log.remove()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_runtime")
def test_a_killed_supervisor_is_followed_by_one_that_adopts_what_runs(tmp_path: Path) -> None:
    """Nobody loses a partition by it, and it goes on giving those of the dead to others."""
    log = make_log(tmp_path)
    supervisor = launch(tmp_path, actors=3)
    try:
        start_ms = begin(supervisor)
        [ward] = supervisor.of_kind("supervisor")
        epochs = {p: e for session in supervisor.of_kind("session") for p, e in session.status.get("epochs", {}).items()}
        os.kill(ward.status["pid"], signal.SIGKILL)
        look_until(supervisor, lambda: ward.restarts == 1 and supervisor.is_owned())
        after = {p: e for session in supervisor.of_kind("session") for p, e in session.status.get("epochs", {}).items()}
        assert after == epochs, "none was taken over"
        session = next(session for session in supervisor.of_kind("session") if session.status.get("partitions"))
        os.kill(session.status["pid"], signal.SIGKILL)
        look_until(supervisor, lambda: session.restarts == 1 and supervisor.is_owned())
        run_to_the_end(tmp_path, supervisor, log, start_ms)
    finally:
        supervisor.stop()
        log.remove()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_runtime")
def test_a_killed_committer_is_followed_by_another(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    supervisor = launch(tmp_path)
    try:
        start_ms = begin(supervisor)
        [ward] = supervisor.of_kind("committer")
        for kill in range(2):
            due_s = time.monotonic() + 1.5
            look_until(supervisor, lambda due_s=due_s: time.monotonic() > due_s and not ward.is_down)  # type: ignore[misc]
            os.kill(ward.status["pid"], signal.SIGKILL)
            look_until(supervisor, lambda kill=kill: ward.restarts == kill + 1)  # type: ignore[misc]
        run_to_the_end(tmp_path, supervisor, log, start_ms)
    finally:
        supervisor.stop()
        log.remove()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_runtime")
def test_a_killed_fleet_actor_is_a_fault_that_names_its_partitions(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    supervisor = launch(tmp_path)
    try:
        supervisor.wait_ready(seconds=WAIT_S)
        [fleet] = supervisor.of_kind("fleet")
        os.kill(fleet.status["pid"], signal.SIGKILL)
        until = time.monotonic() + WAIT_S
        while fleet.fault is None:
            assert time.monotonic() < until
            supervisor.poll()
            time.sleep(0.05)
        assert fleet.fault.startswith("fleet-0 (all partitions) died")
    finally:
        supervisor.stop()
        log.remove()


# --- the whole command ----------------------------------------------------------------------------------------------------
def bench(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "keystone.bench", "--out", str(tmp_path / "out"), "--log", str(tmp_path), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_stops_cleanly_with_a_report(tmp_path: Path) -> None:
    process = bench(tmp_path, "--eps", "2000", "--seconds", "600", "--devices", "10000")
    assert process.stderr is not None
    for line in process.stderr:
        if "phase running" in line:
            break
    time.sleep(2)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    screen, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert screen.startswith("FAIL")
    report = orjson.loads((tmp_path / "out" / "report.json").read_bytes())
    assert report["verdict"] == "fail"
    assert any(reason.startswith("interrupted after") for reason in report["reasons"])
    assert report["truth"]["missed"] == report["truth"]["false"] == 0
    assert report["ledger"]["sent"] == report["ledger"]["received"] > 0
    assert not list(tmp_path.glob("keystone-log-*"))
    assert not (tmp_path / "out" / ".work").exists()
    _, alive = psutil.wait_procs(children, timeout=15)
    assert alive == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_small_run_writes_all_it_promises(tmp_path: Path) -> None:
    process = bench(tmp_path, "--eps", "2000", "--seconds", "3", "--devices", "10000", "--bad-paths", "0.3", "--json", str(tmp_path / "again.json"))
    screen, told = process.communicate(timeout=WAIT_S * 2)
    report = orjson.loads((tmp_path / "out" / "report.json").read_bytes())
    assert orjson.loads((tmp_path / "again.json").read_bytes()) == report
    assert report["truth"]["missed"] == report["truth"]["false"] == report["truth"]["duplicate"] == 0, told
    assert report["truth"]["expected"] > 0
    assert report["ledger"]["sent"] == report["ledger"]["lake_rows"] == 6_000
    truth = pl.read_parquet(tmp_path / "out" / "truth.parquet")
    assert truth.columns == ["device_id", "session_id", "kind", "event_ts", "seq", "intended_ms"]
    assert truth.height == report["truth"]["expected"]
    latency = pl.read_parquet(tmp_path / "out" / "latency.parquet")
    assert latency.columns == ["alert_id", "kind", "device_id", "session_id", "intended", "appended", "decoded", "alerted", "visible"]
    alerts = [orjson.loads(line) for line in (tmp_path / "out" / "alerts.ndjson").read_bytes().splitlines()]
    assert {a["alert_id"] for a in alerts} == set(latency["alert_id"])
    assert (process.returncode == 0) == (report["verdict"] == "pass"), screen
