"""A skewed log under Ray: the owner of the hot partition gives others away, and what comes out is what the reference says."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import orjson
import psutil
import pytest

from keystone.actors.committer import CommitterActor, CommitterSpec
from keystone.actors.loop import FINISHED
from keystone.actors.owned import sum_totals
from keystone.actors.runtime import RayRuntime
from keystone.actors.session import SessionActor, SessionSpec
from keystone.actors.supervising import appoint
from keystone.actors.supervisor import Supervisor
from keystone.actors.trail import alerts_path, trail_names
from keystone.bench.cluster import Outages
from keystone.config import BalanceConfig, CheckpointConfig, Config, DetectionConfig, LakeConfig, SessionConfig
from keystone.log.embedded import EmbeddedLog
from tests.dirty import event
from tests.lakes import rows_of
from tests.reference import LogRecord, partition_of
from tests.services import runs

PARTITIONS, OWNERS, HOT = 8, 2, 0
HEAT = 8  # times the events of another partition: its owner has 11 parts of 15, and 8 without the others
WAIT_S = 120.0
IDLE_MS = 1_500
QUICK = {"grace_ms": 600, "open_stall_ms": 1_000}
CONFIG = Config(
    session=SessionConfig(grace_ms=600), detection=DetectionConfig(open_stall_ms=1_000), checkpoint=CheckpointConfig(interval_ms=1_000),
    lake=LakeConfig(commit_interval_ms=700, row_group_rows=500), balance=BalanceConfig(window_ms=2_000, patience_ms=2_000, partition_cost_eps=1),
)  # fmt: skip


@pytest.fixture
def ray_runtime() -> Iterator[None]:
    others = set(psutil.Process().children(recursive=True))
    runtime = RayRuntime()
    runtime.start()
    own = [process for process in psutil.Process().children(recursive=True) if process not in others]
    yield
    runtime.stop()
    _, alive = psutil.wait_procs(own, timeout=10)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


class Skewed:
    """A log of which one partition gets ``HEAT`` times the events of any other; devices, two in each partition, do what devices do in dirty streams."""

    def __init__(self, folder: Path) -> None:
        self.log = EmbeddedLog.create(folder, partitions=PARTITIONS, segment_bytes=4 << 20, retention_bytes=64 << 20)
        self.records: dict[int, list[LogRecord]] = {p: [] for p in range(PARTITIONS)}
        self._writers = [self.log.writer(p) for p in range(PARTITIONS)]
        self._devices = [[name for name in (f"d-{n}" for n in range(200)) if partition_of(name, PARTITIONS) == p][:2] for p in range(PARTITIONS)]
        self._rng, self._ats = random.Random(1), [count() for _ in range(PARTITIONS)]

    def write(self) -> None:
        """A tenth of a second's."""
        for partition in range(PARTITIONS):
            lines = [self._line(partition) for _ in range(2 * HEAT if partition == HOT else 2)]
            value = b"\n".join(lines)
            self.records[partition].append(LogRecord(value, *self._writers[partition].append(value, events=len(lines))))

    def _line(self, partition: int) -> bytes:
        if self._rng.random() < 0.02:
            return b"{"
        found = event(self._rng, next(self._ats[partition]))
        return json.dumps(found | {"device_id": self._rng.choice(self._devices[partition])}).encode()

    def is_read(self) -> bool:
        return not any(self.log.lag(p) for p in range(PARTITIONS))


def launch(folder: Path) -> Supervisor:
    supervisor = Supervisor(folder)
    places = (f"embedded:{folder / 'log'}", str(folder), str(folder / "state"), str(folder / "lake"))
    for number in range(OWNERS):
        spec = SessionSpec(f"session-{number}", (), *places, CONFIG, partitions_expected=PARTITIONS)
        supervisor.add("session", spec.name, "nothing yet", SessionActor, spec)
    lake = CommitterSpec(str(folder / "lake"), str(folder / "state"), str(folder), CONFIG.lake)
    supervisor.add("committer", "committer", "the lake's commits", CommitterActor, lake)
    supervisor.wait_ready(seconds=WAIT_S)
    appoint(supervisor, range(PARTITIONS), OWNERS, balance=CONFIG.balance)
    supervisor.wait_owned(seconds=WAIT_S)
    return supervisor


def owned_by(supervisor: Supervisor) -> dict[str, set[int]]:
    return {ward.name: set(ward.status.get("partitions", ())) for ward in supervisor.of_kind("session")}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_runtime")
def test_a_skewed_log_makes_an_actor_give_partitions_away_and_every_result_is_the_references(tmp_path: Path) -> None:
    skewed, outages = Skewed(tmp_path / "log"), Outages(range(PARTITIONS))
    supervisor = launch(tmp_path)
    try:
        before = owned_by(supervisor)
        assert sorted(len(owned) for owned in before.values()) == [4, 4]
        [hot] = [name for name, owned in before.items() if HOT in owned]
        until_s, left = time.monotonic() + WAIT_S, 30
        while left:  # and a while longer, with the new owners
            assert supervisor.faults() == []
            assert time.monotonic() < until_s, (owned_by(supervisor), supervisor.notes)
            skewed.write()
            supervisor.poll()
            outages.look(supervisor.of_kind("session"), time.monotonic())
            left -= bool(outages.moved_ms)
            time.sleep(0.1)
        assert HOT in owned_by(supervisor)[hot] < before[hot], "it is the others that go"
        assert any(note.startswith(f"{hot} carries ") for note in supervisor.notes), supervisor.notes
        assert not outages.ended_ms
        runs.wait_until(skewed.is_read, "not everything was read")
        time.sleep(IDLE_MS / 1_000)  # the stalls that the end left open
        finish(tmp_path, supervisor, skewed)
    finally:
        supervisor.stop()
        skewed.log.remove()


def finish(folder: Path, supervisor: Supervisor, skewed: Skewed) -> None:
    """End it as a run does; the lake, the alerts and the ledger are those of a single reader."""
    supervisor.settle()
    assert any(ward.status["is_settled"] for ward in supervisor.of_kind("supervisor"))
    for kind in ("session", "committer"):
        supervisor.order(kind, "finish")
        assert supervisor.wait_until((FINISHED,), kind, seconds=WAIT_S), supervisor.faults()
        if kind == "session":
            totals = sum_totals(one for actor in supervisor.results(kind) for one in actor.partitions.values())
    expected = runs.expected_of(skewed.records, idle_ms=IDLE_MS, **QUICK)
    runs.assert_lake(folder / "lake", expected)
    runs.assert_sessions(folder / "lake", expected)
    wanted = sorted(alert["alert_id"] for alert in expected.alerts)
    assert sorted(rows_of(folder / "lake", "alerts")["alert_id"]) == wanted
    said = [orjson.loads(line)["alert_id"] for name in trail_names(folder) for line in alerts_path(folder, name).read_bytes().splitlines()]
    assert set(said) == set(wanted)
    assert len(wanted) > 20
    assert len(said) <= len(wanted)
    assert totals.ledger.received == expected.ledger()["received"]
    assert (totals.ledger.accepted, totals.lake_rows) == (expected.ledger()["accepted"], expected.ledger()["lake_rows"])
    assert (totals.alerts, totals.session_rows) == (len(expected.alerts), len(expected.sessions))
