"""``keystone run --lake s3://...``: everything in a bucket, whoever dies and whoever does not answer; and what a person reads who gave a wrong place."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

from keystone.config import LakeConfig
from keystone.log.embedded import EmbeddedLog
from keystone.sinks.iceberg.tables import LakeTables
from tests.reference import Result
from tests.s3_faults import S3Proxy
from tests.s3_fixtures import set_variables
from tests.s3_server import SECRET_KEY, S3Server
from tests.services import runs
from tests.services.runs import QUICK, ROOT, Command

pytestmark = pytest.mark.slow
PARTITIONS = runs.Appending.PARTITIONS
OFTEN = {**QUICK, "checkpoint.interval_ms": 500, "lake.commit_interval_ms": 500}


def letters_of(s3: S3Server, bucket: str, prefix: str) -> runs.Rows:
    """Of objects, as rows of the reference's."""
    import obstore

    texts = [bytes(obstore.get(s3.store(bucket), name).bytes()) for name in s3.names(bucket, prefix)]
    rows = [json.loads(line) for text in texts for line in text.splitlines()]
    return [row | {"raw": base64.b64decode(row["raw"])} for row in rows]


def assert_proven(lake: str, log: str, expected: Result) -> None:
    """But for alerts that the reference has twice, too: sessions of one identity that begin at one time."""
    said = runs.command("lake", "verify", "--lake", lake, "--log", log).out
    twice = sum(count > 1 for count in Counter(alert["alert_id"] for alert in expected.alerts).values())
    assert said.count("ok ") == PARTITIONS + (not twice), said
    assert (f"rows: {twice} alerts are there more than once, such as" in said) == (twice > 0), said
    assert ";" not in said


@pytest.mark.ray
def test_everything_in_a_bucket(s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # as in tests/conformance/test_iceberg_readers.py
    log, lake = runs.Appending(tmp_path / "log"), f"s3://{bucket}/lake"
    words = ("run", "--log", log.url, "--lake", lake, "--state", f"s3://{bucket}/state", "--no-story", "--report", str(tmp_path / "report.json"))
    log.write(0)
    first = runs.command(*words, "--until-idle", "2", *runs.settings(OFTEN))
    assert first.status == 0, first.err
    log.write(1)
    with Command(*words, "--until-idle", "3", *runs.settings(OFTEN), "--session-actors", "2") as run:
        run.wait_for("(?m)^reading ")
        for kind, seed in (("ray::SessionA", 2), ("ray::Committer", 3)):
            log.write(seed)
            time.sleep(1.0)
            victims = [process for process in run.family() if process.is_running() and process.name().startswith(kind)]
            victims[0].send_signal(signal.SIGKILL)
        log.write(4)
        assert run.end() in {0, 1}, run.err
    last = runs.command(*words, "--until-idle", "2", *runs.settings(OFTEN))
    assert last.status == 0, last.err
    expected = runs.expected_of(log.records, idle_ms=2_000, grace_ms=600, open_stall_ms=1_000)
    runs.assert_lake(lake, expected)
    runs.assert_letters(letters_of(s3, bucket, "lake-dead-letters/"), expected)
    assert_proven(lake, log.url, expected)
    compacted = runs.command("lake", "compact", "--lake", lake, "--set", "lake.compact_files_min=2")
    assert compacted.status == 0, compacted.err
    assert "files became" in compacted.out
    expired = runs.command("lake", "expire", "--lake", lake, "--keep", "1", "--set", "lake.orphan_age_ms=1")
    assert "snapshots expired" in expired.out
    assert " 0 files deleted" not in runs.command("lake", "expire", "--lake", lake, "--set", "lake.orphan_age_ms=1").out
    assert_proven(lake, log.url, expected)
    runs.assert_lake(lake, expected)
    with closing(LakeTables.open(lake, LakeConfig(), is_made=False)) as tables:
        found = pl.scan_iceberg(tables.load("events"), reader_override="native").select(pl.len()).collect().item()
    assert found == len(expected.rows)


@pytest.mark.ray
@pytest.mark.faults
def test_a_server_that_is_frozen_then_killed_then_back(own_s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is on this machine: alerts are said meanwhile. Then the lake catches up, exact."""
    set_variables(monkeypatch, own_s3.env())
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    log, lake = runs.Appending(tmp_path / "log"), f"s3://{own_s3.make_bucket('bucket')}/lake"
    log.write(0)
    words = ("run", "--log", log.url, "--lake", lake, "--no-story", "--until-idle", "3", *runs.settings(OFTEN))
    with Command(*words) as run:
        run.wait_for("(?m)^reading ")
        time.sleep(2)
        own_s3.pause()
        log.write(1)
        time.sleep(4)
        if own_s3.kind == "versitygw":  # keeps what it has acknowledged
            own_s3.kill()
            log.write(2)
            time.sleep(3)
            own_s3.start()
        else:
            own_s3.resume()
        log.write(3)
        assert run.end() == 0, run.out + run.err
    expected = runs.expected_of(log.records, idle_ms=3_000, grace_ms=600, open_stall_ms=1_000)
    runs.assert_lake(lake, expected)
    runs.assert_letters(letters_of(own_s3, "bucket", "lake-dead-letters/"), expected)
    assert_proven(lake, log.url, expected)


# --- what a person reads ----------------------------------------------------------------------------------------------
def refused(tmp_path: Path, *words: str) -> str:
    """The one line of a command that ends with status 2. In a process of its own: pyarrow's client of S3 stays for ever."""
    log = tmp_path / "log"
    if not log.exists():
        EmbeddedLog.create(log, partitions=2, segment_bytes=1 << 20, retention_bytes=4 << 20).close()
    command = [sys.executable, "-m", "keystone", "run", "--log", f"embedded:{log}", "--no-story", *words]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert SECRET_KEY not in ended.stderr
    assert "hidden" not in ended.stderr
    return ended.stderr


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("NoSuchBucket", "there is no such bucket: make it, or name another"),
        ("AccessDenied", "these keys may not do that: allow s3:ListBucket"),
        ("SignatureDoesNotMatch", "correct AWS_SECRET_ACCESS_KEY"),
        ("ExpiredToken", "the credentials have expired: renew AWS_SESSION_TOKEN"),
        ("RequestTimeTooSkewed", "clock is over 15 minutes from the service's"),
        ("SlowDown", "it asks for fewer requests"),
    ],
)
def test_what_a_service_refuses_is_one_line(proxied: S3Proxy, bucket: str, tmp_path: Path, kind: str, line: str) -> None:
    proxied.add("", "", kind)
    assert line in refused(tmp_path, "--lake", f"s3://{bucket}/lake")
    assert line in refused(tmp_path, "--state", f"s3://{bucket}/state")


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_a_permission_that_is_missing(proxied: S3Proxy, bucket: str, tmp_path: Path, method: str) -> None:
    proxied.add(method, "", "AccessDenied")
    if method == "DELETE":
        proxied.add("POST", "delete", "AccessDenied")
    assert "these keys may not do that: allow s3:ListBucket" in refused(tmp_path, "--lake", f"s3://{bucket}/lake")


def test_wrong_places(s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a bucket takes Iceberg tables only" in refused(tmp_path, "--lake", f"s3://{bucket}/x", "--lake-format", "parquet")
    assert "write it as a directory, or s3://BUCKET/PREFIX" in refused(tmp_path, "--lake", "gs://bucket/x")
    assert "there is no such bucket" in refused(tmp_path, "--lake", "s3://no-such-bucket-here/x")
    assert "there is no such bucket" in refused(tmp_path, "--set", "run.lake=s3://no-such-bucket-here/x")
    assert "there is no such bucket" in refused(tmp_path, "--set", "run.lake=s3://never-asked/x", "--lake", "s3://no-such-bucket-here/x")
    assert "s3://no-such-bucket-here/y" in refused(tmp_path, "--set", "run.state=s3://no-such-bucket-here/y")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-and-wrong")
    if s3.kind == "versitygw":
        assert "correct AWS_SECRET_ACCESS_KEY" in refused(tmp_path, "--lake", f"s3://{bucket}/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert "nothing listens there: look at AWS_ENDPOINT_URL_S3" in refused(tmp_path, "--lake", f"s3://{bucket}/x")


def test_no_keys_at_all(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, {"AWS_ENDPOINT_URL_S3": s3.url, "HOME": str(tmp_path)})
    assert "no keys were found" in refused(tmp_path, "--lake", "s3://some-bucket/x")


def test_a_catalog_that_is_on_another_machine(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = f"s3://{bucket}/lake"
    LakeTables.open(lake, LakeConfig()).close()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "elsewhere"))
    assert "catalog.db, which knows them, is not here: bring it back, or name another prefix" in refused(tmp_path, "--lake", lake)
