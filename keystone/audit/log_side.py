"""What the log's records give when they are decoded again: which lines were accepted, which were not, and when they were appended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Final, NamedTuple

import numpy as np

from keystone.audit.places import NO_PLACES, Places
from keystone.config import Config
from keystone.decode import Decoder
from keystone.errors import LogUnreachable, OffsetOutOfRange
from keystone.events import Records
from keystone.log.base import LogReader
from keystone.log.opening import open_log

POLL_BYTES: Final = 2 << 20
POLL_WAIT_MS: Final = 200
SILENCE_MAX: Final = 150  # polls without a record, 30 s: the log does not give what it says it has


class Again(NamedTuple):
    """Of the records of [first_offset, next_offset). ``accepted`` and ``dead`` in the order of the log."""

    first_offset: int
    next_offset: int
    accepted: Places
    dead: Places


class LogSide:
    """A log by its URL; ``UsageError`` where there is none. Reads as anybody may: it commits nothing."""

    def __init__(self, url: str, config: Config) -> None:
        self._log = open_log(url, config.kafka)
        self._decoder = Decoder()
        self._readers: dict[int, LogReader] = {}
        self.gaps: list[str] = []
        self.partitions = self._log.partitions

    def bounds(self) -> dict[int, tuple[int, int]]:
        """Start and end offset of every partition now."""
        return {p: (self._reader(p).start_offset(), self._reader(p).end_offset()) for p in range(self.partitions)}

    def offsets_at(self, append_ts_ms: int) -> dict[int, int]:
        """Of every partition: its first record appended then or later; the end, where there is none."""
        return self._log.offsets_at(append_ts_ms)

    def read(self, partition: int, first_offset: int, next_offset: int) -> Iterator[Again]:
        """Everything of [first_offset, next_offset), a poll at a time. ``OffsetOutOfRange`` where retention drops it meanwhile."""
        reader = self._reader(partition)
        reader.seek(first_offset)
        place, silent = first_offset, 0
        while place < next_offset:
            records = reader.poll(bytes_max=POLL_BYTES, wait_ms=POLL_WAIT_MS)
            silent = 0 if len(records) else silent + 1
            if silent >= SILENCE_MAX:
                raise LogUnreachable(f"partition {partition}: no record at offset {reader.position():,}, although more is there")
            self.gaps += map(str, reader.take_gaps())
            behind = min(reader.position(), next_offset)
            if behind > place:
                yield self._decoded(records.split(next_offset)[0], place, behind)
                place = behind

    def _decoded(self, records: Records, first_offset: int, next_offset: int) -> Again:
        accepted, dead = [NO_PLACES], [NO_PLACES]
        for decoded in self._decoder.decode(records):
            batch, rows = decoded.batch, slice(0, decoded.batch.rows)
            accepted.append(np.stack([batch.offset[rows], batch.line[rows].astype(np.int64), batch.append_ts_ms[rows]], axis=1))
            if decoded.dead_letters:
                places = np.stack([decoded.dead_letters.offsets, decoded.dead_letters.lines], axis=1)
                dead.append(np.column_stack([places, records.append_ts_ms[np.searchsorted(records.offsets, places[:, 0])]]))
        return Again(first_offset, next_offset, np.concatenate(accepted), np.concatenate(dead))

    def start_offset(self, partition: int) -> int:
        """The lowest offset still there."""
        return self._reader(partition).start_offset()

    def appended_at(self, partition: int, offset: int) -> int | None:
        """When the record there was; None where there is none, or none any more."""
        with closing(self._log.reader(partition)) as reader:
            try:
                reader.seek(offset)
                for _ in range(SILENCE_MAX):
                    records = reader.poll(bytes_max=1, wait_ms=POLL_WAIT_MS)
                    if len(records):
                        return int(records.append_ts_ms[0])
                    if reader.position() >= reader.end_offset():
                        return None
            except OffsetOutOfRange:
                return None
        return None

    def close(self) -> None:
        """May be repeated."""
        self._log.close()

    def _reader(self, partition: int) -> LogReader:
        """One at a time: what others have fetched, and nobody polls, would leave it no room to fetch."""
        if partition not in self._readers:
            for other in self._readers.values():
                other.close()
            self._readers = {partition: self._log.reader(partition)}
        return self._readers[partition]
