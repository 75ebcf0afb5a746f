"""What a log's records give when they are decoded again: to compare a lake with."""

from __future__ import annotations

from typing import Final

import numpy as np

from keystone.config import Config
from keystone.decode import Decoder
from keystone.log.base import LogReader
from keystone.log.opening import open_log
from keystone.sinks.iceberg.verify import Places

POLL_BYTES: Final = 2 << 20
POLL_WAIT_MS: Final = 200
SILENCE_MAX: Final = 150  # polls without a record, 30 s: the log does not give what it says it has


class LogAgain:
    """Opens a log by its URL, and decodes what is asked for. ``UsageError`` where there is no such log."""

    def __init__(self, url: str, config: Config) -> None:
        self._log = open_log(url, config.kafka)
        self._decoder = Decoder()
        self._readers: dict[int, LogReader] = {}
        self.gaps: list[str] = []
        self.partitions = self._log.partitions

    def start_offset(self, partition: int) -> int:
        """The lowest offset still there; of a partition that the log does not have: none is."""
        return self._reader(partition).start_offset() if partition < self.partitions else 1 << 62

    def accepted(self, partition: int, first_offset: int, next_offset: int) -> Places:
        """Offset and line of every event that is accepted in [first_offset, next_offset), in order."""
        reader = self._reader(partition)
        reader.seek(first_offset)
        parts = [np.zeros((0, 2), np.int64)]
        silent = 0
        while reader.position() < next_offset and silent < SILENCE_MAX:
            records = reader.poll(bytes_max=POLL_BYTES, wait_ms=POLL_WAIT_MS)
            silent = 0 if len(records) else silent + 1
            for decoded in self._decoder.decode(records):
                batch = decoded.batch
                places = np.stack([batch.offset[: batch.rows], batch.line[: batch.rows].astype(np.int64)], axis=1)
                parts.append(places[places[:, 0] < next_offset])
            self.gaps += map(str, reader.take_gaps())
        return np.concatenate(parts)

    def close(self) -> None:
        """Close the log and its readers. May be repeated."""
        self._log.close()

    def _reader(self, partition: int) -> LogReader:
        """One at a time: what others have fetched, and nobody polls, would leave it no room to fetch."""
        if partition not in self._readers:
            for other in self._readers.values():
                other.close()
            self._readers = {partition: self._log.reader(partition)}
        return self._readers[partition]
