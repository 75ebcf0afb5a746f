"""The session actor: the only loop from the log to the sinks. It owns partitions; no Ray call is on its way.

A turn visits each partition once: poll -> step -> alerts written (visible) -> moments noted -> lake -> commit. Order
matters: a record is committed when its alerts are visible and its rows are in the lake's hands.

After a death Ray starts the process anew and the state is gone. The new one reads its partitions again from the log's
beginning, if it is still there: lake files of its partitions are discarded, alerts already said are not said again.
Where retention has dropped the beginning, building fails and the run with it: a wrong state would be worse than none.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from keystone.actors.loop import LoopActor
from keystone.actors.trail import AlertTrail
from keystone.config import Config
from keystone.decode import Decoder
from keystone.errors import LedgerError, OffsetOutOfRange
from keystone.events import Records
from keystone.log.base import Log, LogReader
from keystone.metrics import Ledger
from keystone.pipeline import PartitionPipeline
from keystone.sinks.lake import LakeWriter

POLL_BYTES_MAX = 2 << 20  # ~8,000 events, ~6 ms of work: then it is the next partition's turn
PAUSE_S = 0.002  # between turns where little comes in: what an event waits for a turn, at most
BUSY_BYTES_PER_S = 32e6  # from ~100,000 events/s on, batches of ~1 MB cost 0.2 us an event less than those of 0.25 MB,
BUSY_PERIOD_S = 0.02  # ... and turns begin this far apart, unless more is waiting already
RATE_MEMORY_S = 0.5  # over which the rate is averaged
TIMERS_EVERY_MS = 10  # of a partition without new records; a look costs ~20 us


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What a session actor needs to know. Paths are strings: they travel."""

    name: str
    partitions: tuple[int, ...]
    log_dir: str
    work_dir: str
    lake_dir: str | None
    config: Config
    sessions_expected: int = 0  # active at once, of all its partitions


@dataclass(slots=True)
class Owned:
    """One partition and what handles it."""

    partition: int
    reader: LogReader
    pipeline: PartitionPipeline
    timers_at_ms: int = 0  # when timers of a silent partition are looked at again


@dataclass(slots=True)
class SessionTotals:
    """What a session actor did. ``ledger`` by SPEC 5 names; ``dead_letters`` by reason."""

    name: str
    partitions: tuple[int, ...]
    ledger: dict[str, int] = field(default_factory=dict)
    alerts: int = 0
    sessions_closed: int = 0
    sessions_active_max: int = 0
    state_bytes: int = 0
    dead_letters: dict[str, int] = field(default_factory=dict)


class SessionActor(LoopActor):
    """Owns ``spec.partitions`` from the log's first record on."""

    def __init__(self, spec: SessionSpec) -> None:
        super().__init__(spec.name, spec.work_dir)
        self._spec = spec
        self._owned: list[Owned] = []
        self._totals = SessionTotals(spec.name, spec.partitions)
        self._log: Log
        self._trail: AlertTrail
        self._lake: LakeWriter | None = None
        self._ledger = Ledger()
        self._began_s = 0.0  # when the last turn did
        self._bytes_per_s = 0.0
        self._has_news = False  # since the last look: records were read

    # --- building ---------------------------------------------------------------------------------------------------
    def _build(self) -> None:
        _rehearse(self._spec)
        work_dir = Path(self._spec.work_dir)
        self._log = self._open_log()
        readers = {p: self._log.reader(p) for p in self._spec.partitions}
        for partition, reader in readers.items():
            if reader.start_offset() != 0:
                raise OffsetOutOfRange(
                    f"partition {partition}: the log retains offsets from {reader.start_offset():,} on; the state before them died with its actor"
                )
        self._trail = AlertTrail(work_dir, self.name)
        self._lake = self._open_lake()
        each = self._spec.sessions_expected // max(1, len(readers))
        decoder = Decoder()
        self._owned = [Owned(p, reader, self._open_pipeline(p, decoder, each)) for p, reader in readers.items()]

    def _open_log(self) -> Log:
        from keystone.log.embedded import EmbeddedLog

        return EmbeddedLog.open(self._spec.log_dir)

    def _open_lake(self) -> LakeWriter | None:
        """The lake, without whatever a dead predecessor wrote of our partitions: they begin anew."""
        if self._spec.lake_dir is None:
            return None
        lake = LakeWriter(self._spec.lake_dir, self._spec.config.lake, partitions=self._spec.partitions)
        for partition in self._spec.partitions:
            lake.discard_partition(partition)
        return lake

    def _open_pipeline(self, partition: int, decoder: Decoder, sessions_expected: int) -> PartitionPipeline:
        on_batch = self._lake.append if self._lake is not None else None
        return PartitionPipeline(partition, decoder, self._spec.config, on_batch=on_batch, sessions_expected=sessions_expected)

    # --- the loop ---------------------------------------------------------------------------------------------------
    def _turn(self) -> float:
        began_s = time.monotonic()
        most = total = 0
        for owned in self._owned:
            read_bytes = self._visit(owned)
            most, total = max(most, read_bytes), total + read_bytes
        self._has_news = total > 0
        since_s = began_s - self._began_s
        share = min(1.0, since_s / RATE_MEMORY_S)
        self._bytes_per_s += share * (total / max(since_s, 1e-6) - self._bytes_per_s)
        self._began_s = began_s
        if most >= POLL_BYTES_MAX // 2:
            return 0.0
        period_s = BUSY_PERIOD_S if self._bytes_per_s > BUSY_BYTES_PER_S else 0.0
        return max(PAUSE_S, period_s - (time.monotonic() - began_s))

    def _visit(self, owned: Owned) -> int:
        """Handle what one partition has; bytes read."""
        now_ms = int(time.time() * 1_000)
        records = owned.reader.poll(bytes_max=POLL_BYTES_MAX, wait_ms=0)
        if len(records) > 0:
            owned.timers_at_ms = now_ms + TIMERS_EVERY_MS
            self._step(owned, records, None, now_ms)
            owned.reader.commit(records.next_offset)
            return records.size_bytes
        if now_ms >= owned.timers_at_ms:
            owned.timers_at_ms = now_ms + TIMERS_EVERY_MS
            self._step(owned, records, owned.reader.quiet_until(now_ms), now_ms)
        return 0

    def _step(self, owned: Owned, records: Records, now_ms: int | None, wall_ms: int) -> None:
        result = owned.pipeline.step(records, now_ms)
        # Alerts first: nobody waits for a Parquet page, somebody may for an alert.
        if result.alerts:
            self._trail.append(result.alerts, decoded_ms=result.decoded_ms, alerted_ms=result.alerted_ms)
        if self._lake is not None:
            self._lake.end_step(wall_ms)
        totals = self._totals
        self._ledger += result.ledger
        totals.sessions_closed += sum(closed.rows for closed in result.sessions)
        for letter in result.dead_letters:
            totals.dead_letters[letter.reason] = totals.dead_letters.get(letter.reason, 0) + 1

    def _is_over(self) -> bool:
        return self._finish_asked.is_set() and not self._has_news

    def _close(self) -> SessionTotals:
        if self._lake is not None:
            self._lake.close()
        self._measure_state()
        self._totals.ledger = asdict(self._ledger)
        self._totals.alerts = self._trail.alerts
        self._trail.close()
        self._log.close()
        return self._totals

    # --- asked ------------------------------------------------------------------------------------------------------
    def _counters(self) -> dict[str, Any]:
        self._measure_state()
        alerts, detect_p99_ms = (self._trail.alerts, self._trail.detect.quantile(0.99)) if self._owned else (0, None)
        return {
            "alerts": alerts,
            "detect_p99_ms": detect_p99_ms,
            "sessions_active": self._totals.sessions_active_max,
            "state_bytes": self._totals.state_bytes,
        }

    def _measure_state(self) -> None:
        active = sum(o.pipeline.sessions.active for o in self._owned)
        self._totals.sessions_active_max = max(self._totals.sessions_active_max, active)
        self._totals.state_bytes = max(self._totals.state_bytes, sum(o.pipeline.sessions.state_bytes for o in self._owned))


def _rehearse(spec: SessionSpec) -> None:
    """Take a small stream through everything once: the first use of a kernel or a library costs up to a second."""
    name = '"device_id":"d","session_id":"s"'
    kinds = ("Start", "Heartbeat", *["Buffer"] * spec.config.detection.loop_threshold, "Stop")
    lines = [f'{{"event":"{kind}","ts":{1_000 + i},"seq":{i},{name}}}'.encode() for i, kind in enumerate(kinds)]
    with tempfile.TemporaryDirectory(dir=spec.work_dir) as scratch:
        lake = LakeWriter(scratch, spec.config.lake, partitions=[0])
        decoder = Decoder()
        pipeline = PartitionPipeline(0, decoder, spec.config, on_batch=lake.append)
        result = pipeline.step(Records.of([*lines, b"{"]), None)
        decoder.compact_dictionaries()
        lake.end_step(0)
        lake.close()
        trail = AlertTrail(Path(scratch), "rehearsal")
        trail.append(result.alerts, decoded_ms=result.decoded_ms, alerted_ms=result.alerted_ms)
        trail.close()
        if len(result.alerts) != 1 or len(result.dead_letters) != 1:
            raise LedgerError(f"the rehearsal gave {len(result.alerts)} alerts and {len(result.dead_letters)} dead letters, not one of each")
