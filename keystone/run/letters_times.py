"""When a line was appended, by the log it came from: files of dead letters do not tell.

Of each partition the offset at which each minute begins, and those of moments asked for: the log's records are looked at once, not decoded.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import closing
from typing import Final

import numpy as np

from keystone.config import Config
from keystone.log.embedded import EmbeddedLog
from keystone.log.kafka import KafkaLog
from keystone.log.opening import open_log
from keystone.sinks.letters_read import Letter, Place

MINUTE_MS: Final = 60_000
POLL_BYTES: Final = 4 << 20
POLL_WAIT_MS: Final = 200
SILENCE_MAX: Final = 150  # polls without a record, 30 s: the log does not give what it says it has


class LogTimes:
    """Opens a log by its URL. ``UsageError`` where there is none."""

    def __init__(self, url: str, config: Config) -> None:
        self._log: EmbeddedLog | KafkaLog = open_log(url, config.kafka)
        self._minutes: dict[int, tuple[list[int], list[int]]] = {}
        self._bounds: dict[int, dict[int, int]] = {}

    def minute_of(self, place: Place) -> int | None:
        """The minute since the epoch; None where the log has forgotten the record, or never had it."""
        partition = place.partition
        if partition >= self._log.partitions:
            return None
        if partition not in self._minutes:
            self._minutes[partition] = self._read(partition)
        offsets, minutes = self._minutes[partition]
        at = bisect_right(offsets, place.offset) - 1
        return minutes[at] if at >= 0 and minutes[at] >= 0 else None

    def is_before(self, place: Place, moment_ms: int) -> bool:
        """Whether it was appended before ``moment_ms``. What the log has forgotten was, where its first record is later."""
        if moment_ms not in self._bounds:
            self._bounds[moment_ms] = self._log.offsets_at(moment_ms)
        return place.offset < self._bounds[moment_ms].get(place.partition, 0)

    def close(self) -> None:
        """May be repeated."""
        self._log.close()

    def _read(self, partition: int) -> tuple[list[int], list[int]]:
        """Offsets at which a minute begins, and the minutes; the last is the end, of no minute."""
        offsets: list[int] = []
        minutes: list[int] = []
        with closing(self._log.reader(partition)) as reader:
            end, silent = reader.end_offset(), 0
            while reader.position() < end and silent < SILENCE_MAX:
                records = reader.poll(bytes_max=POLL_BYTES, wait_ms=POLL_WAIT_MS)
                silent = 0 if len(records) else silent + 1
                of = records.append_ts_ms // MINUTE_MS
                for at in np.flatnonzero(np.diff(of, prepend=minutes[-1] if minutes else -1)).tolist():
                    offsets.append(int(records.offsets[at]))
                    minutes.append(int(of[at]))
            return [*offsets, reader.position()], [*minutes, -1]


def minute_of(letter: Letter, times: LogTimes | None) -> int | None:
    """By the log where it is named, else by when a broker took the letter."""
    if times is not None:
        return times.minute_of(letter.place)
    return letter.said_ms // MINUTE_MS if letter.said_ms is not None else None
