"""One process of a replay of a log: its records again through the same engine, log time included, partition after partition.

Nothing of it can be seen by those who follow the log: no offset is committed, no action sent. A session that began before the range
begins with its first event within; one that is open where the range ends is counted, not written, as the live run would not have yet.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keystone.decode import Decoder
from keystone.errors import KeystoneError, OffsetOutOfRange
from keystone.events import Records
from keystone.log.opening import open_log
from keystone.metrics import Ledger
from keystone.pipeline import PartitionPipeline, StepResult
from keystone.replay.engine import ReplaySpec, ReplayTotals
from keystone.session_records import SESSION_SCHEMA
from keystone.sinks.iceberg.columns import ALERT_SCHEMA, alert_table
from keystone.sinks.lake import LakeWriter
from keystone.sinks.ndjson import DeadLetterFile, LineFile, alert_line
from keystone.sinks.session_file import SessionFile, Table

if TYPE_CHECKING:
    from keystone.replay.log_range import Span

POLL_BYTES: Final = 4 << 20
POLL_WAIT_MS: Final = 200
SILENCE_MAX: Final = 150  # polls without a record, 30 s: the log does not give what it says it has


class LogReplay:
    """``step`` until it returns False, then ``close``. ``KeystoneError`` where the log forgets what is still to be read."""

    def __init__(self, spec: ReplaySpec) -> None:
        self.totals = ReplayTotals()
        self._spec = spec
        self._log = open_log(spec.log, spec.config.kafka)
        self._decoder = Decoder()
        self._ledger = Ledger()
        self._alerts = LineFile(spec.path("alerts.ndjson"), keep=False)
        self._alert_rows = SessionFile(spec.path("alerts.parquet"), ALERT_SCHEMA)
        self._dead_letters = DeadLetterFile(spec.path("dead_letters.ndjson"), per_line=False)
        self._sessions = SessionFile(spec.path("sessions.parquet"), SESSION_SCHEMA)
        mine = [span for span in spec.spans if span.partition in spec.owned]
        self._lake = LakeWriter(Path(spec.out_dir) / "lake", spec.config.lake, partitions=[s.partition for s in mine]) if spec.has_lake else None
        self._cohorts = spec.open_cohorts()
        self._steps = self._read_all(mine)

    @property
    def alerts(self) -> int:
        """Alerts written so far."""
        return self._alerts.lines

    def step(self) -> bool:
        """Take the next records; False when there are none."""
        return next(self._steps, None) is not None

    def close(self) -> ReplayTotals:
        """Every file is completed and put into place."""
        self._steps.close()
        lake_rows = self._lake.close() if self._lake is not None else 0
        self._spec.close_cohorts(self._cohorts)
        self.totals.sessions = self._sessions.close()
        self._alert_rows.close()
        self.totals.alerts = self._alerts.lines
        self._alerts.close()
        self._dead_letters.close()
        self._log.close()
        self.totals.ledger = asdict(self._ledger + Ledger(lake_rows=lake_rows))
        return self.totals

    def abort(self) -> None:
        """Leave no unfinished file behind."""
        self._sessions.abort()
        self._alert_rows.abort()
        if self._lake is not None:
            self._lake.abort()
        self._log.close()

    def _read_all(self, spans: list[Span]) -> Generator[bool]:
        for span in spans:
            on_batch = self._lake.append if self._lake is not None else None
            pipeline = PartitionPipeline(span.partition, self._decoder, self._spec.config, on_batch=on_batch)
            for records in self._records(span):
                self._collect(pipeline.step(records, None))
                if self._lake is not None:
                    self._lake.end_step(int(time.time() * 1_000))
                self.totals.bytes += records.size_bytes
                yield True
            if span.until_ms is not None and span.until_ms > pipeline.log_time_ms:
                self._collect(pipeline.step(Records.empty(span.partition, span.end), span.until_ms))
            self._collect(pipeline.settle())
            self._collect(pipeline.end_range())
            self.totals.open_sessions += pipeline.sessions.active
            self.totals.cohort_overflows += pipeline.sessions.cohort_overflows
            self._decoder.holders.discard(pipeline.sessions)

    def _records(self, span: Span) -> Iterator[Records]:
        """Those of the range, and no others."""
        with closing(self._log.reader(span.partition)) as reader:
            reader.seek(span.first)
            silent = 0
            while reader.position() < span.end:
                try:
                    records = reader.poll(bytes_max=POLL_BYTES, wait_ms=POLL_WAIT_MS)
                except OffsetOutOfRange as error:
                    raise KeystoneError(f"partition {span.partition}: retention has dropped what was still to be read: begin later ({error})") from error
                self.totals.gaps += map(str, reader.take_gaps())
                silent = 0 if len(records) else silent + 1
                if silent >= SILENCE_MAX:
                    raise KeystoneError(f"partition {span.partition}: no record at offset {reader.position():,}, although the log ends at {span.end:,}")
                if len(records):
                    yield records.split(span.end)[0]

    def _collect(self, result: StepResult) -> None:
        self._ledger += result.ledger
        self.totals.lines += result.ledger.received
        if result.alerts:
            self._alerts.write_lines(map(alert_line, result.alerts))
            self._alert_rows.write(Table(alert_table(result.alerts)))
        for closed in result.sessions:
            self._sessions.write(closed)
        if self._cohorts is not None:
            self._cohorts.take(result.cohorts)
        if result.dead_letters:
            self._dead_letters.write(result.dead_letters)
        for reason, count in result.dead_letters.by_reason().items():
            self.totals.dead_letters[reason] = self.totals.dead_letters.get(reason, 0) + count
