"""A run from its start to its end: where it begins, what it refuses, what it reports, how it is interrupted, how it survives a death."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from contextlib import closing
from pathlib import Path

import polars as pl
import psutil
import pytest

from keystone.log.embedded import EmbeddedLog
from tests.dirty import dirty_text
from tests.kafka_server import KafkaCluster
from tests.lakes import rows_of
from tests.rdkafka import Confluent
from tests.services import runs
from tests.services.runs import QUICK, Command, Topics

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPORTED = {
    "log", "actions", "partitions", "start_offsets", "next_offsets", "seconds", "ledger", "alerts", "sessions", "session_rows", "lake_rows", "dead_letters",
    "gaps", "gap_list", "latency_ms", "restarts", "failures", "config",
}  # fmt: skip


def append(folder: Path, events: int, device: str) -> None:
    with closing(EmbeddedLog.open(folder)) as log:
        writer = log.writer(1)
        for number in range(events):
            writer.append(b'{"event":"Start","ts":1790000000000,"device_id":"%s","session_id":"%d"}' % (device.encode(), number))
        writer.append(b"{")


def test_a_run_goes_on_where_the_last_one_ended_and_never_writes_an_event_into_a_lake_twice(tmp_path: Path) -> None:
    log, lake = tmp_path / "log", tmp_path / "lake"
    words = ("run", "--log", f"embedded:{log}", "--lake", str(lake), "--no-story", "--report", str(tmp_path / "report.json"), "--until-idle", "2")
    EmbeddedLog.create(log, partitions=2, segment_bytes=1 << 20, retention_bytes=4 << 20).close()
    append(log, 30, "before")
    first = runs.command(*words)
    assert first.status == 0, first.err
    assert first.err == ""
    assert "31 events received" in first.out
    assert "dead letters 1 (invalid_json 1)" in first.out
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert report.keys() >= REPORTED
    assert (report["log"], report["partitions"]) == (f"embedded:{log}", 2)
    assert (report["start_offsets"], report["next_offsets"]) == ({"0": 0, "1": 0}, {"0": 0, "1": 31})
    assert (report["lake_rows"], report["session_rows"], report["dead_letters"]) == (30, 0, {"invalid_json": 1}), "sessions are open"
    assert report["latency_ms"]["detect"]["count"] == 0
    assert report["config"]["session"]["timeout_ms"] == 90_000

    for begin in ("earliest", "latest"):
        refused = runs.command(*words, "--from", begin)
        assert (refused.status, refused.out, refused.err.count("\n")) == (2, "", 1)
        assert "goes on by --from checkpoint" in refused.err
    shutil.move(tmp_path / "lake-state", tmp_path / "elsewhere")
    refused = runs.command(*words)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "whose state is not where --state says" in refused.err

    append(log, 5, "after")
    later = runs.command(*words, "--state", str(tmp_path / "elsewhere"), "--session-actors", "2")
    assert later.status == 0, later.err
    assert "6 events received" in later.out
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert (report["next_offsets"], report["ledger"]["received"], report["lake_rows"]) == ({"0": 0, "1": 37}, 6, 5)
    rows = rows_of(lake).sort("offset")
    assert rows["device_id"].to_list() == ["before"] * 30 + ["after"] * 5
    assert rows["offset"].to_list() == [*range(30), *range(31, 36)]
    letters = runs.letters_in(tmp_path / "lake-dead-letters")
    assert sorted(letter["offset"] for letter in letters) == [30, 36]


def test_a_run_from_the_end_passes_over_what_is_there(tmp_path: Path) -> None:
    log = tmp_path / "log"
    EmbeddedLog.create(log, partitions=2, segment_bytes=1 << 20, retention_bytes=4 << 20).close()
    append(log, 30, "before")
    words = ("run", "--log", f"embedded:{log}", "--lake", str(tmp_path / "lake"), "--lake-format", "parquet", "--no-story", "--until-idle", "2")
    with Command(*words, "--from", "latest") as run:
        run.wait_for("(?m)^reading ")
        append(log, 5, "after")
        assert run.end() == 0, run.err
        assert "6 events received" in run.out
    plain = pl.read_parquet(tmp_path / "lake" / "**" / "*.parquet", hive_partitioning=False)
    assert (plain["device_id"].to_list(), plain["offset"].to_list()) == (["after"] * 5, [*range(31, 36)])
    assert not list((tmp_path / ".lake.staging").rglob("*.parquet"))


@pytest.mark.parametrize("wait_s", [0.3, 2.0], ids=["as it begins", "as Ray begins"])
def test_ctrl_c_during_the_start_leaves_nothing(tmp_path: Path, wait_s: float) -> None:
    with Command("run", "--log", f"embedded:{tmp_path / 'log'}", "--lake", str(tmp_path / "lake")) as run:
        run.wait_for("starting")
        time.sleep(wait_s)
        run.interrupt()
        assert run.end() == 0, run.err
        assert run.err == ""
    assert (tmp_path / "log" / "log.json").exists(), "the run has made the log"
    assert list((tmp_path / "lake").iterdir()) == []


def test_a_run_without_the_head_of_its_ray_ends_with_a_line_and_goes_on_when_started_again(tmp_path: Path) -> None:
    log, lake = tmp_path / "log", tmp_path / "lake"
    EmbeddedLog.create(log, partitions=2, segment_bytes=1 << 20, retention_bytes=4 << 20).close()
    words = ("run", "--log", f"embedded:{log}", "--lake", str(lake), "--no-story", "--until-idle", "2")
    with Command(*words) as run:
        run.wait_for("(?m)^reading ")
        append(log, 30, "before")
        [head] = [p for p in run.family() if p.name() == "gcs_server"]
        head.kill()
        assert run.end() == 1
        [line] = run.err.splitlines()
        assert line.startswith(f"Error: Ray's head process (gcs_server, {head.pid}) died, for want of memory perhaps: start again")
        assert not [p for p in run.family() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    append(log, 5, "after")
    later = runs.command(*words)
    assert later.status == 0, later.err
    assert rows_of(lake).sort("offset")["device_id"].to_list() == ["before"] * 30 + ["after"] * 5


def test_ctrl_c_leaves_nothing_of_a_doctor(tmp_path: Path) -> None:
    with Command("doctor", "--log", f"embedded:{tmp_path / 'log'}") as command:
        command.wait_for("kernels ")
        time.sleep(1.0)  # Ray begins
        command.interrupt()
        assert command.end() == 1
        assert "Traceback" not in command.err


@pytest.mark.kafka
def test_a_run_is_exact_although_a_session_actor_was_killed(kafka: KafkaCluster, topic_name: str, tmp_path: Path) -> None:
    topics = Topics.made(kafka.servers, topic_name)
    lines = dirty_text(3, 2_400, broken_share=0.05).split(b"\n")
    parts = [b"\n".join(lines[at : at + 600]) for at in range(0, len(lines), 600)]
    words = ("--lake", str(tmp_path / "lake"), "--until-idle", "5", "--session-actors", "2", "--report", str(tmp_path / "report.json"))
    with Command("run", "--log", topics.url, *words, *runs.settings(topics.names | QUICK)) as run:
        run.wait_for("reading kafka://")
        for part in parts[:2]:
            Confluent().produce(topics.servers, topics.name, runs.singles(part, None))
            time.sleep(0.7)  # files of the lake come into place, alerts into the topic
        assert topics.alerts()
        until_s = time.monotonic() + 60
        while len(actors := run.session_actors()) < 3 and time.monotonic() < until_s:
            time.sleep(0.1)  # the one that stands by may come after the others have begun
        assert len(actors) == 3
        os.kill(actors[0].pid, signal.SIGKILL)
        Confluent().produce(topics.servers, topics.name, runs.singles(parts[2], None))
        psutil.wait_procs(actors[:1], timeout=10)
        time.sleep(1.0)
        Confluent().produce(topics.servers, topics.name, runs.singles(parts[3], None))
        assert run.end() == 0, run.err
        assert "died and was restarted" in run.err
    expected = runs.expected_of(topics.log(), idle_ms=5_000, grace_ms=600, open_stall_ms=1_000)
    runs.assert_alerts(topics.alerts(), expected)
    runs.assert_sessions(tmp_path / "lake", expected)
    runs.assert_lake(tmp_path / "lake", expected)
    letters = {(row["partition"], row["offset"], row["line"]): row for row in topics.letters()}
    runs.assert_letters(list(letters.values()), expected)  # said twice at worst: who reads them knows them by their place
    report = runs.assert_report(tmp_path / "report.json", expected)
    assert report["restarts"] == 1
    assert report["alerts"] <= len(expected.alerts)
