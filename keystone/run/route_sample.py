"""What a route would send, from a file of events or from a log that others write and read meanwhile. Nothing is committed, owned or sent.

The records go through the same step as those of a run, one pipeline a partition, from where the reading begins: a session that is under way
there begins with its first event within.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from keystone.config import Config
from keystone.decode import Decoder, Dictionaries
from keystone.errors import OffsetOutOfRange
from keystone.events import DeadLetter, EventBatch, Records
from keystone.letter_batch import LetterBatch
from keystone.log.files import OversizeLine, read_ndjson
from keystone.log.opening import open_log
from keystone.pipeline import PartitionPipeline, StepResult
from keystone.qoe import WINDOWS_MS, CohortPartial
from keystone.qoe_rows import SIZE, START, summed, tables_of, told
from keystone.routes import Route
from keystone.routes_sources import (
    ALERTS,
    COHORTS,
    DEAD_LETTERS,
    EVENTS,
    SESSIONS,
    alerts_frame,
    cohorts_frame,
    dead_letters_frame,
    events_frame,
    sessions_frame,
)

if TYPE_CHECKING:
    from keystone.log.base import LogReader
    from keystone.log.embedded import EmbeddedLog
    from keystone.log.kafka import KafkaLog

POLL_BYTES: Final = 1 << 20
POLL_WAIT_MS: Final = 20
BACK_MS: Final = 60_000  # of the log, before now: sessions and loops that are under way are met with enough of their past


@dataclass(slots=True)
class Sample:
    """What has been read and found so far. ``rows``: of the route's source; ``routed``: those that the route lets through."""

    route: Route
    config: Config
    has_log_time: bool
    received: int = 0
    rows: int = 0
    routed: int = 0
    _frames: list[pl.DataFrame] = field(default_factory=list)
    _partials: list[CohortPartial] = field(default_factory=list)

    def pipeline(self, partition: int, decoder: Decoder) -> PartitionPipeline:
        on_batch = self._take_events if self.route.source == EVENTS else None
        return PartitionPipeline(partition, decoder, self.config, has_log_time=self.has_log_time, on_batch=on_batch)

    def _take_events(self, batch: EventBatch, dictionaries: Dictionaries) -> None:
        self._frames.append(events_frame(batch, dictionaries, has_log_time=self.has_log_time))

    def take(self, result: StepResult) -> None:
        """What a step gave."""
        self.received += result.ledger.received
        source = self.route.source
        if source == ALERTS and result.alerts:
            self._frames.append(alerts_frame(result.alerts))
        elif source == SESSIONS:
            self._frames += [sessions_frame(records.to_arrow()) for records in result.sessions]
        elif source == DEAD_LETTERS and result.dead_letters:
            self._frames.append(dead_letters_frame(result.dead_letters))
        elif source == COHORTS:
            self._partials += result.cohorts

    def lines(self) -> Iterator[bytes]:
        """What of that the route sends, as JSON, and forgets it. Cohorts come with ``add_up``."""
        frames, self._frames = self._frames, []
        for frame in frames:
            self.rows += frame.height
            found = self.route.apply(frame)
            self.routed += found.height
            yield from found.write_ndjson().encode().splitlines() if found.height else ()

    def add_up(self) -> None:
        """Windows are told when nothing more is read: of all partitions together."""
        if not self._partials:
            return
        dimensions = self.config.cohorts.dimensions
        rows, bins = tables_of(self._partials, dimensions)
        sums = summed(rows, dimensions)
        found = pl.concat([told(sums, bins, dimensions, window_ms) for window_ms in WINDOWS_MS]).sort(START, SIZE, *dimensions)
        self._frames.append(cohorts_frame(found, dimensions, 0))


def sample_file(sample: Sample, path: str, seconds: float) -> Iterator[bytes]:
    """Lines of JSON, in the order of the file, until it or the time ends. A plain file has no log time: what is open at its end closes as ``open``."""
    until_s = time.monotonic() + seconds
    decoder = Decoder()
    pipeline = sample.pipeline(0, decoder)
    is_anchored = False
    for item in read_ndjson([path]):
        result = StepResult(0)
        if isinstance(item, OversizeLine):
            letters = LetterBatch() if item.is_blank else LetterBatch.of([DeadLetter(0, item.line, 0, "too_large", item.length, item.head)])
            sample.received += len(letters)
            result.dead_letters += letters
        else:
            zero = np.zeros(1, np.int64)
            records = Records(0, item.text, zero, zero + (item.size - 1), zero + item.first_line, zero, item.first_line + item.lines)
            for decoded in decoder.decode(records, per_line=True):
                sample.received += decoded.received
                result.dead_letters += decoded.dead_letters
                if decoded.batch.rows and not is_anchored:
                    is_anchored = True
                    pipeline.sessions.anchor(int(decoded.batch.ts[0]))
                pipeline.apply(decoded.batch, result)
        sample.take(result)
        yield from sample.lines()
        if time.monotonic() > until_s:
            break
    else:
        sample.take(pipeline.finish())
    sample.take(pipeline.end_range())
    sample.add_up()
    yield from sample.lines()


def sample_log(sample: Sample, url: str, seconds: float) -> Iterator[bytes]:
    """Lines of JSON: from BACK_MS before now, or, where nothing is that young, from the earliest record, until the time ends."""
    until_s = time.monotonic() + seconds
    with closing(open_log(url, sample.config.kafka)) as log:
        decoder = Decoder()
        parts = [(reader, sample.pipeline(reader.partition, decoder)) for reader in _readers(log)]
        while time.monotonic() < until_s:
            for reader, pipeline in parts:
                sample.take(_stepped(reader, pipeline))
            yield from sample.lines()
        for _, pipeline in parts:
            sample.take(pipeline.settle())
            sample.take(pipeline.end_range())
        sample.add_up()
        yield from sample.lines()


def _readers(log: EmbeddedLog | KafkaLog) -> list[LogReader]:
    readers: list[LogReader] = [log.reader(partition) for partition in range(log.partitions)]
    young = log.offsets_at(int(time.time() * 1_000) - BACK_MS)
    is_old = all(young[reader.partition] >= reader.end_offset() for reader in readers)
    for reader in readers:
        try:
            reader.seek(reader.start_offset() if is_old else young[reader.partition])
        except OffsetOutOfRange:  # retention was faster
            reader.seek(reader.start_offset())
    return readers


def _stepped(reader: LogReader, pipeline: PartitionPipeline) -> StepResult:
    """The next records of a partition, or, where there are none, what is due by the log's time."""
    try:
        records = reader.poll(bytes_max=POLL_BYTES, wait_ms=POLL_WAIT_MS)
    except OffsetOutOfRange:
        reader.seek(reader.start_offset())
        return StepResult(reader.partition)
    reader.take_gaps()
    return pipeline.step(records, None if len(records) else reader.quiet_until(int(time.time() * 1_000)))


def limited(lines: Iterable[bytes], rows: int) -> Iterator[bytes]:
    """The first ``rows`` of them; nothing more is read for others."""
    for number, line in enumerate(lines, 1):
        yield line
        if number >= rows:
            return
