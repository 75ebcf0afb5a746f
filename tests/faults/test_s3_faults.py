"""A lake in a bucket: whatever the bucket does meanwhile, and whoever dies, in the end each event is in it once."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from keystone import buckets
from keystone.actors import durable
from keystone.actors.session import SessionActor
from keystone.config import LakeConfig
from keystone.errors import SinkBusy, UsageError
from keystone.sinks.iceberg.tables import LakeTables
from keystone.sinks.iceberg.verify import verify
from tests.s3_faults import S3Proxy
from tests.s3_fixtures import set_variables
from tests.s3_server import S3Server
from tests.stories import IDLE_MS, PARTITIONS, Story

pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests give up, and are made again, sooner than in production."""
    monkeypatch.setattr(buckets, "REQUEST_TIMEOUT_S", 1)
    monkeypatch.setattr(buckets, "RETRY_TIMEOUT_S", 1)
    monkeypatch.setattr(buckets, "RETRIES_MAX", 1)
    monkeypatch.setattr(durable, "RETRY_EVERY_S", 0.05)


def until(claim: Any) -> None:
    deadline = time.monotonic() + 60
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def committed(story: Story) -> None:
    """As a committer that tries again."""
    for _ in range(100):
        try:
            story.commit()
        except (SinkBusy, UsageError):  # a committer that is built tries again as well
            time.sleep(0.05)
        else:
            return
    raise AssertionError("it was never committed")


def assert_proven(story: Story) -> None:
    with closing(LakeTables.open(story.lake, LakeConfig(), is_made=False)) as tables:
        assert [verdict.faults for verdict in verify(tables)] == [[]] * (PARTITIONS + 1)


@pytest.mark.parametrize("has_state_there", [False, True])
def test_a_lake_in_a_bucket_is_exact(tmp_path: Path, bucket: str, has_state_there: bool) -> None:
    story = Story(tmp_path, f"s3://{bucket}/lake", f"s3://{bucket}/state" if has_state_there else None)
    for seed in range(2):
        story.write(seed)
        totals = story.run(idle_ms=IDLE_MS if seed else 0)
        story.commit()
    story.assert_all(totals)
    assert_proven(story)
    assert not list((tmp_path / "spool").iterdir()), "nothing waits on this machine"
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("kind", ["lost", "SlowDown", "InternalError", "reset", "ExpiredToken", "RequestTimeTooSkewed", "AccessDenied"])
def test_uploads_that_fail_for_a_while(tmp_path: Path, proxied: S3Proxy, bucket: str, kind: str) -> None:
    story = Story(tmp_path, f"s3://{bucket}/lake")
    story.write(0)
    rule = proxied.add("PUT", "/lake/data/", kind, times=12)
    actor = story.begin()
    until(lambda: rule.hits >= 6)
    story.write(1)
    totals = story.end(actor, idle_ms=IDLE_MS)
    assert rule.hits == 12
    committed(story)
    story.assert_all(totals)
    assert_proven(story)


@pytest.mark.parametrize("kind", ["lost", "SlowDown", "reset", "wait"])
def test_commits_that_are_not_answered(tmp_path: Path, proxied: S3Proxy, bucket: str, kind: str) -> None:
    story = Story(tmp_path, f"s3://{bucket}/lake")
    story.write(0)
    story.run()
    committed(story)
    story.write(1)
    totals = story.run(idle_ms=IDLE_MS)
    rule = proxied.add("", "/lake/metadata/", kind, times=9, wait_s=1.5 if kind == "wait" else 0)
    committed(story)
    assert rule.hits >= 3
    committed(story)
    story.assert_all(totals)
    assert_proven(story)


def test_a_full_spool_pauses_the_intake_and_is_told_once(tmp_path: Path, proxied: S3Proxy, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    story = Story(tmp_path, f"s3://{bucket}/lake", spool_bytes_max=20_000)
    rule = proxied.add("PUT", "/lake/data/", "SlowDown")
    actor = story.begin()
    for seed in range(4):
        story.write(seed)
        until(lambda: sum(story.log.lag(p) for p in range(PARTITIONS)) == 0 or not _has_room(actor))
    until(lambda: not _has_room(actor))
    story.write(4)
    time.sleep(0.5)
    assert sum(story.log.lag(p) for p in range(PARTITIONS)) > 0, "nothing more is read meanwhile"
    assert actor.status()["state"] == "running"
    assert rule.hits > 0
    proxied.clear()
    totals = story.end(actor, idle_ms=IDLE_MS)
    committed(story)
    story.assert_all(totals)


def _has_room(actor: SessionActor) -> bool:
    return actor._bucket is None or actor._bucket.has_room()


@pytest.mark.parametrize("has_state_there", [False, True])
def test_a_frozen_and_a_killed_server(tmp_path: Path, own_s3: S3Server, monkeypatch: pytest.MonkeyPatch, has_state_there: bool) -> None:
    """Frozen: nobody answers. Killed, where it keeps what it acknowledged: nobody listens, then another process does.

    Detection goes on without it where the state is on this machine; where it is in the bucket too, nobody can say who owns what.
    """
    set_variables(monkeypatch, own_s3.env())
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    bucket = own_s3.make_bucket("bucket")
    story = Story(tmp_path, f"s3://{bucket}/lake", f"s3://{bucket}/state" if has_state_there else None)
    story.write(0)
    actor = story.begin()
    until(lambda: actor.status().get("checkpoints", 0) >= 1)
    own_s3.pause()
    story.write(1)
    time.sleep(3)
    alerts = actor.status()["alerts"]
    own_s3.resume()
    if own_s3.kind == "versitygw":
        own_s3.kill()
        story.write(2)
        if not has_state_there:
            until(lambda: actor.status()["alerts"] > alerts)
        own_s3.start()
    totals = story.end(actor, idle_ms=IDLE_MS)
    committed(story)
    story.assert_all(totals)
    assert_proven(story)


def test_who_takes_over_leaves_out_what_was_uploaded_and_never_named(tmp_path: Path, bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that died between its uploads and its checkpoint: the same rows come again, under names of another epoch."""
    story = Story(tmp_path, f"s3://{bucket}/lake")
    story.write(0)
    first: list[durable.Finishing] = []
    usual = durable.Finishing.save

    def save(finishing: durable.Finishing, taken: durable.Taken) -> None:
        first.append(finishing)
        if finishing is first[0]:
            raise RuntimeError("killed here")
        usual(finishing, taken)

    monkeypatch.setattr(durable.Finishing, "save", save)
    dead = story.begin()
    until(lambda: dead.status()["error"] is not None)
    until(lambda: not dead._saving._work and not dead._saving._is_busy)  # its thread lives on here
    uploaded = set(s3.names(bucket, "lake/data/events/"))
    assert uploaded
    story.write(1)
    totals = story.run(idle_ms=IDLE_MS)
    story.commit()
    story.assert_all(totals)
    assert_proven(story)
    with closing(LakeTables.open(story.lake, LakeConfig(orphan_age_ms=1), is_made=False)) as tables:
        from keystone.sinks.iceberg.upkeep import sweep

        assert sweep(tables, 1_000).waiting >= len(uploaded)
        assert sweep(tables, 2_000).deleted >= len(uploaded)
    assert not uploaded & set(s3.names(bucket, "lake/data/events/"))
    story.assert_all(totals)
    assert_proven(story)
