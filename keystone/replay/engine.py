"""One process of a replay: blocks of lines in, alerts, sessions, lake and dead letters on disk.

A plain file has no log time: nothing times out, and what is still open at the end closes as ``open``. Every line counts as
a log record: offset = line number, line 0, partition = murmur2 of the device; dead letters belong to partition 0.
Several processes may share a replay: each reads every line, keeps the devices of its own partitions, and the first keeps
the dead letters.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from keystone.config import Config
from keystone.decode import Decoder, PartitionSplitter
from keystone.events import DeadLetter, EventBatch, Records
from keystone.letter_batch import LetterBatch
from keystone.log.files import Block, OversizeLine, read_ndjson
from keystone.metrics import Ledger
from keystone.pipeline import PartitionPipeline, StepResult
from keystone.replay.cohorts import CohortsAside, add_up
from keystone.replay.log_range import Span
from keystone.session_records import SESSION_SCHEMA
from keystone.sinks.lake import LakeWriter
from keystone.sinks.ndjson import DeadLetterFile, LineFile, alert_line
from keystone.sinks.session_file import SessionFile


@dataclass(frozen=True, slots=True)
class ReplaySpec:
    """What one process needs to know. Paths are strings: they travel. ``share`` of ``shares``: which process this is.

    Either ``files``, or ``spans`` of ``log``.
    """

    files: tuple[str, ...]
    out_dir: str
    config: Config
    partitions: int
    has_lake: bool
    share: int = 0
    shares: int = 1
    log: str = ""  # instead of files
    spans: tuple[Span, ...] = ()  # of it

    @property
    def owned(self) -> tuple[int, ...]:
        return tuple(range(self.share, self.partitions, self.shares))

    def open_cohorts(self) -> CohortsAside | None:
        """Where this process sets its cohorts aside; None where they are not counted."""
        cohorts = self.config.cohorts
        return CohortsAside(Path(self.out_dir), self.share, cohorts.dimensions) if cohorts.enabled else None

    def close_cohorts(self, aside: CohortsAside | None) -> None:
        """All is set aside; the only process adds it up, too."""
        if aside is not None:
            aside.close()
            if self.shares == 1:
                add_up(Path(self.out_dir), self.config.cohorts.dimensions)

    def path(self, name: str) -> Path:
        """An output of this process: in place where it is the only one, else under a name of its own, to be joined."""
        return Path(self.out_dir) / (name if self.shares == 1 else f".share-{self.share}-{name}")


@dataclass(slots=True)
class ReplayTotals:
    """What one process did. ``lines`` are those that are not blank: of files, of all partitions, so equal in every process."""

    lines: int = 0
    bytes: int = 0
    alerts: int = 0
    sessions: int = 0
    ledger: dict[str, int] = field(default_factory=dict)
    dead_letters: dict[str, int] = field(default_factory=dict)
    open_sessions: int = 0  # where the range of a log ends
    gaps: list[str] = field(default_factory=list)  # in the log
    cohort_overflows: int = 0  # sessions that are counted as `other`, because values or combinations were too many


class Replay(Protocol):
    """``step`` until it returns False, then ``close``; or ``abort``."""

    totals: ReplayTotals

    @property
    def alerts(self) -> int: ...
    def step(self) -> bool: ...
    def close(self) -> ReplayTotals: ...
    def abort(self) -> None: ...


class FileReplay:
    """``step`` until it returns False, then ``close``. ``UsageError`` where a file cannot be read."""

    def __init__(self, spec: ReplaySpec) -> None:
        self.totals = ReplayTotals()
        self._spec = spec
        self._items: Iterator[Block | OversizeLine] = read_ndjson(spec.files)
        self._decoder = Decoder()
        self._splitter = PartitionSplitter(self._decoder, spec.partitions) if spec.partitions > 1 else None
        self._ledger = Ledger()
        self._keeps_dead_letters = spec.share == 0
        self._alerts = LineFile(spec.path("alerts.ndjson"), keep=False)  # as raised: one file, one run, nothing to repeat
        self._dead_letters = DeadLetterFile(spec.path("dead_letters.ndjson"), per_line=True) if self._keeps_dead_letters else None
        self._sessions = SessionFile(spec.path("sessions.parquet"), SESSION_SCHEMA)
        self._lake = LakeWriter(Path(spec.out_dir) / "lake", spec.config.lake, partitions=spec.owned, has_log_time=False) if spec.has_lake else None
        self._cohorts = spec.open_cohorts()
        self._is_anchored = False
        self._pipelines = {
            partition: PartitionPipeline(
                partition, self._decoder, spec.config, has_log_time=False, on_batch=self._lake.append if self._lake is not None else None
            )
            for partition in spec.owned
        }

    @property
    def alerts(self) -> int:
        """Alerts written so far."""
        return self._alerts.lines

    def step(self) -> bool:
        """Take the next block; False when there is none."""
        item = next(self._items, None)
        if item is None:
            return False
        if isinstance(item, OversizeLine):
            self._take_oversize(item)
        else:
            self._take_block(item)
        if self._lake is not None:
            self._lake.end_step(int(time.time() * 1_000))
        return True

    def close(self) -> ReplayTotals:
        """What is open closes; every file is completed and put into place."""
        for pipeline in self._pipelines.values():
            self._collect(pipeline.finish())
            self.totals.cohort_overflows += pipeline.sessions.cohort_overflows
        self._spec.close_cohorts(self._cohorts)
        lake_rows = 0
        if self._lake is not None:
            lake_rows = self._lake.close()
        self.totals.sessions = self._sessions.close()
        self.totals.alerts = self._alerts.lines
        self._alerts.close()
        if self._dead_letters is not None:
            self._dead_letters.close()
        self.totals.ledger = asdict(self._ledger + Ledger(lake_rows=lake_rows))
        return self.totals

    def abort(self) -> None:
        """Leave no unfinished file behind."""
        self._sessions.abort()
        if self._lake is not None:
            self._lake.abort()

    def _take_block(self, block: Block) -> None:
        self.totals.bytes += block.size
        zero = np.zeros(1, np.int64)
        records = Records(0, block.text, zero, zero + (block.size - 1), zero + block.first_line, zero, block.first_line + block.lines)
        for decoded in self._decoder.decode(records, per_line=True):
            self.totals.lines += decoded.received
            self._bury(decoded.dead_letters)
            if decoded.batch.rows:
                self._take_batch(decoded.batch)

    def _take_batch(self, batch: EventBatch) -> None:
        if self._lake is not None and self._lake.anchor_ts_ms is None:
            self._lake.anchor_ts_ms = int(batch.ts[0])  # of the whole file, whoever owns that row
        if not self._is_anchored:
            self._is_anchored = True
            for pipeline in self._pipelines.values():
                pipeline.sessions.anchor(int(batch.ts[0]))
        for part in (batch,) if self._splitter is None else self._splitter.split(batch, self._spec.owned):
            result = StepResult(part.partition)
            self._pipelines[part.partition].apply(part, result)
            self._ledger += Ledger(received=part.rows)
            self._collect(result)

    def _take_oversize(self, line: OversizeLine) -> None:
        self.totals.bytes += line.length + 1
        if not line.is_blank:
            self.totals.lines += 1
            self._bury(LetterBatch.of([DeadLetter(0, line.line, 0, "too_large", line.length, line.head)]))

    def _bury(self, letters: LetterBatch) -> None:
        if self._dead_letters is None or not letters:
            return
        self._dead_letters.write(letters)
        self._ledger += Ledger(received=len(letters), dead_lettered=len(letters))
        for reason, count in letters.by_reason().items():
            self.totals.dead_letters[reason] = self.totals.dead_letters.get(reason, 0) + count

    def _collect(self, result: StepResult) -> None:
        self._ledger += result.ledger
        if result.alerts:
            self._alerts.write_lines(map(alert_line, result.alerts))
        for records in result.sessions:
            self._sessions.write(records)
        if self._cohorts is not None:
            self._cohorts.take(result.cohorts)
