"""The heart: log records of one partition in, alerts, sessions, dead letters and accepted events out.

Pure: it knows no log, no sink, no clock and no actor. What it computes depends on the records and their append times,
never on how they were cut into steps or on when a step ran.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from keystone.config import Config
from keystone.decode import Decoder, Dictionaries
from keystone.errors import CheckpointDamaged, UsageError
from keystone.events import Alert, EventBatch, Records
from keystone.letter_batch import LetterBatch
from keystone.mappings import Room
from keystone.metrics import Ledger
from keystone.qoe import CohortPartial
from keystone.session_snapshot import Arrays
from keystone.sessions import Applied, SessionRecords, SessionTable

OnBatch = Callable[[EventBatch, Dictionaries], None]
SWEEP_EVERY_MS = 10  # log time between two looks for due timers while events flow: a look costs about 0.1 ms at 1M sessions


@dataclass(slots=True)
class StepResult:
    """What one step found. Accepted events went to ``on_batch``, a batch at a time.

    ``decoded_ms alerted_ms`` (wall clock, ms since the epoch, one per alert) tell when the batch of the alert was
    decoded and when the alert was known; they are measurements, not results. ``cohorts``: sums of windows that log time has passed,
    each once (a restart from a checkpoint gives those after it again, the same); of a plain file, whatever is ready.
    """

    partition: int
    next_offset: int = 0
    alerts: list[Alert] = field(default_factory=list)
    decoded_ms: list[float] = field(default_factory=list)
    alerted_ms: list[float] = field(default_factory=list)
    sessions: list[SessionRecords] = field(default_factory=list)
    dead_letters: LetterBatch = field(default_factory=LetterBatch)
    cohorts: list[CohortPartial] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)


def _ignore(batch: EventBatch, dictionaries: Dictionaries) -> None:
    """No one wants the events."""


class PartitionPipeline:
    """Decode, apply, detect and account for one partition.

    ``decoder`` may serve several pipelines of one thread. ``on_batch(batch, dictionaries)`` gets every accepted event,
    with ``duplicate`` and ``late`` filled in; the batch is overwritten afterwards. It may be set later.
    """

    def __init__(
        self, partition: int, decoder: Decoder, config: Config, *, has_log_time: bool = True, sessions_expected: int = 0, on_batch: OnBatch | None = None
    ) -> None:
        self.partition = partition
        self.sessions = SessionTable(
            config.session, config.detection, decoder.dictionaries, cohorts=config.cohorts, has_log_time=has_log_time, sessions_expected=sessions_expected
        )
        decoder.holders.add(self.sessions)
        self._decoder = decoder
        self._has_log_time = has_log_time
        self.on_batch = on_batch or _ignore
        self._log_time_ms = 0
        self._swept_ms = 0

    @property
    def log_time_ms(self) -> int:
        """How far log time has passed."""
        return self._log_time_ms

    @property
    def swept_ms(self) -> int:
        """Log time up to which timers were looked at, and cohorts given out."""
        return self._swept_ms

    def step(self, records: Records, now_ms: int | None = None) -> StepResult:
        """Process the records, or, where there are none, let log time pass until ``now_ms``.

        Who passes ``now_ms`` promises that no record with an earlier append time will come.
        """
        result = StepResult(self.partition, records.next_offset)
        for decoded in self._decoder.decode(records):
            result.dead_letters += decoded.dead_letters
            result.ledger += Ledger(received=decoded.received, dead_lettered=len(decoded.dead_letters), empty_records=decoded.empty_records)
            self.apply(decoded.batch, result)
        if len(records):
            self._log_time_ms = max(self._log_time_ms, int(records.append_ts_ms[-1]))
        elif now_ms is not None:
            self._log_time_ms = max(self._log_time_ms, now_ms)
        if self._has_log_time and self._log_time_ms - self._swept_ms >= SWEEP_EVERY_MS:
            self._sweep(result)
        return result

    def settle(self) -> StepResult:
        """Fire what is due by now: afterwards the state depends on the records and ``log_time_ms`` alone, not on when it was swept."""
        result = StepResult(self.partition)
        if self._has_log_time and self._log_time_ms > self._swept_ms:
            self._sweep(result)
        return result

    def _sweep(self, result: StepResult) -> None:
        self._swept_ms = self._log_time_ms
        self._collect(self.sessions.advance(self._log_time_ms), result, time.time() * 1e3)

    def apply(self, batch: EventBatch, result: StepResult) -> None:
        """Apply decoded events of this partition; what comes of them is added to ``result``."""
        if not batch.rows:
            return
        decoded_ms = time.time() * 1e3
        applied = self.sessions.apply(batch)
        self._collect(applied, result, decoded_ms)
        result.ledger += Ledger(accepted=batch.rows, applied=applied.applied, duplicates=applied.duplicates, late=applied.late)
        self.on_batch(batch, self._decoder.dictionaries)

    def finish(self) -> StepResult:
        """The end of a plain file: what is still open closes as ``open``."""
        result = StepResult(self.partition)
        self._collect(self.sessions.close_all(), result, time.time() * 1e3)
        return result

    def end_range(self) -> StepResult:
        """The end of what is read of a log: the cohorts of the window under way, as far as it came. Nothing may follow."""
        return StepResult(self.partition, cohorts=self.sessions.end_cohorts())

    def snapshot(self, room: Room | None = None) -> Arrays:
        """All that a step depends on, between two steps; see ``SessionTable.snapshot``. Learned spelling is left out: it costs time only."""
        clocks: Arrays = {"log_time": np.array([self._log_time_ms, self._swept_ms], np.int64), "hashing": self._decoder.dictionaries.fingerprint()}
        return self.sessions.snapshot(room) | clocks

    def restore(self, arrays: Arrays) -> None:
        """Go on where a snapshot of the same partition was made, as if nothing had happened between.

        Raises as ``SessionTable.restore`` does, and ``UsageError`` where the decoder hashes otherwise than the one behind the
        snapshot: each of its sessions would begin again beside the one that is kept.
        """
        if {"log_time", "hashing"} - arrays.keys() or arrays["log_time"].size != 2:
            raise CheckpointDamaged("its arrays are not those of a pipeline")
        if not np.array_equal(arrays["hashing"], self._decoder.dictionaries.fingerprint()):
            raise UsageError("the snapshot was made with another seed: make the decoder with the seed that is kept beside the checkpoints")
        self.sessions.restore(arrays)
        self._log_time_ms, self._swept_ms = (int(time_ms) for time_ms in arrays["log_time"])

    def _collect(self, applied: Applied, result: StepResult, decoded_ms: float) -> None:
        if applied.alerts:
            result.alerts += applied.alerts
            result.decoded_ms += [decoded_ms] * len(applied.alerts)
            result.alerted_ms += [time.time() * 1e3] * len(applied.alerts)
        if applied.sessions.rows:
            result.sessions.append(applied.sessions)
        result.cohorts += applied.cohorts
