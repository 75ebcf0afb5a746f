"""A log that grows part by part, and session actors that read it one after the other."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import orjson

from keystone.actors.committer import COMMITTER, Committing
from keystone.actors.loop import FINISHED
from keystone.actors.session import SessionActor, SessionSpec, SessionTotals
from keystone.actors.trail import alerts_path, trail_names
from keystone.checkpoint import Checkpoints, key_of
from keystone.config import CheckpointConfig, Config, DetectionConfig, LakeConfig, SessionConfig
from keystone.log.embedded import EmbeddedLog
from keystone.sinks.iceberg.tables import LakeTables
from keystone.store import open_store
from tests.dirty import dirty_text
from tests.lakes import rows_of
from tests.reference import LogRecord
from tests.services import runs

PARTITIONS = 3
IDLE_MS = 1_500
QUICK = {"grace_ms": 600, "open_stall_ms": 1_000}
CONFIG = Config(
    session=SessionConfig(grace_ms=600), detection=DetectionConfig(open_stall_ms=1_000), checkpoint=CheckpointConfig(interval_ms=250, fsync=False),
    lake=LakeConfig(row_group_rows=500),
)  # fmt: skip


class Story:
    """A log that grows part by part, and an actor for each part. ``lake_url``, ``state``: in buckets; else beside the log."""

    def __init__(self, folder: Path, lake_url: str | None = None, state: str | None = None, **lake_settings: int) -> None:
        self.folder = folder
        self.lake_url = lake_url
        self.lake = lake_url or str(folder / "lake")
        self.state = state or str(folder / "state")
        self.config = CONFIG.model_copy(update={"lake": CONFIG.lake.model_copy(update=lake_settings)})
        self.log = EmbeddedLog.create(folder / "log", partitions=PARTITIONS, segment_bytes=4 << 20, retention_bytes=64 << 20)
        self._writers = [self.log.writer(p) for p in range(PARTITIONS)]
        self.records: dict[int, list[LogRecord]] = {p: [] for p in range(PARTITIONS)}
        self.checkpoints = Checkpoints(open_store(self.state))
        self._number = 0

    def write(self, seed: int, events: int = 700) -> None:
        for partition, value in runs.frames(dirty_text(seed, events), PARTITIONS, lines=(1, 7, 20)):
            self.records[partition].append(LogRecord(value, *self._writers[partition].append(value)))

    def begin(self) -> SessionActor:
        self._number += 1
        written = self.folder / ("spool" if self.lake_url is not None else "lake")
        places = (f"embedded:{self.folder / 'log'}", str(self.folder), self.state, str(written))
        actor = SessionActor(SessionSpec(f"session-{self._number}", tuple(range(PARTITIONS)), *places, self.config, lake_url=self.lake_url))
        actor.begin()
        return actor

    def end(self, actor: SessionActor, idle_ms: int = 0) -> SessionTotals:
        """Once it has read everything, and ``idle_ms`` have passed."""
        until = time.monotonic() + 60
        while any(self.log.lag(p) for p in range(PARTITIONS)) or actor.status()["state"] != "running":
            assert actor.status()["error"] is None, actor.status()["error"]
            assert time.monotonic() < until
            time.sleep(0.02)
        time.sleep(idle_ms / 1_000)
        actor.finish()
        while actor.status()["state"] != FINISHED:
            assert actor.status()["error"] is None, actor.status()["error"]
            time.sleep(0.01)
        totals = actor.result()
        assert isinstance(totals, SessionTotals)
        return totals

    def run(self, idle_ms: int = 0) -> SessionTotals:
        return self.end(self.begin(), idle_ms)

    def commit(self) -> dict[int, int]:
        with closing(LakeTables.open(self.lake, self.config.lake)) as tables:
            committing = Committing(self.checkpoints, tables, self.checkpoints.claim(COMMITTER, "test"))
            return committing.turn([head for p in self.checkpoints.partitions() if (head := self.checkpoints.header(p)) is not None])

    def newest(self, partition: int) -> list[Path]:
        """Its checkpoints' files, newest first."""
        return sorted((self.folder / "state" / "checkpoints" / key_of(partition)).iterdir(), reverse=True)

    def assert_all(self, totals: SessionTotals) -> None:
        """As if one run had read it all."""
        expected = runs.expected_of(self.records, idle_ms=IDLE_MS, **QUICK)
        lake = self.lake
        runs.assert_lake(lake, expected)
        runs.assert_sessions(lake, expected)
        assert sorted(rows_of(lake, "alerts")["alert_id"]) == sorted(alert["alert_id"] for alert in expected.alerts)
        said = [orjson.loads(line)["alert_id"] for name in trail_names(self.folder) for line in alerts_path(self.folder, name).read_bytes().splitlines()]
        wanted = [alert["alert_id"] for alert in expected.alerts]  # two may have the same id: sessions of one identity that begin at one time
        assert set(said) == set(wanted)
        assert len(wanted) >= len(said) > 5
        for one in totals.partitions.values():
            assert one.ledger.failures() == []
            assert one.lake_rows == one.ledger.accepted
        assert sum(one.ledger.received for one in totals.partitions.values()) == expected.ledger()["received"]
        assert sum(one.session_rows for one in totals.partitions.values()) == len(expected.sessions) > 5
