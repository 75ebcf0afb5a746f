"""What a log promises, whoever keeps it. Kafka's words: partition, offset, append time, retention, consumed offset."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from keystone.events import U8, Records


class Appended(NamedTuple):
    """Where one record went. A tuple, because building a frozen dataclass costs as much as the whole append."""

    offset: int
    append_ts_ms: int


class LogWriter(Protocol):
    """The only writer of one partition."""

    def append(self, value: bytes | memoryview | U8, *, events: int = 1) -> Appended:
        """Append one record and return its offset and append time.

        The record is readable when this returns. Append times never go back within a partition, nor below what a
        reader was promised (``quiet_until``). Where the log is
        full and its oldest records are not consumed yet, the call waits (back-pressure) up to a named limit, then
        raises ``LogFull``; nothing was appended then, and the same call may be made again. ``RecordTooLarge`` where the
        value is over the log's limit. ``events`` is how many lines the record holds; it feeds the lag counters only.
        """

    def close(self) -> None:
        """Make everything appended durable as far as the log promises, and release the partition. May be repeated."""


class LogReader(Protocol):
    """One reader's place in one partition."""

    partition: int

    def poll(self, *, bytes_max: int, wait_ms: int) -> Records:
        """Return whole records from the current place on, at least one if any is there, and about ``bytes_max`` bytes.

        Waits up to ``wait_ms`` for the first one; then returns an empty ``Records``. Valid until the next poll.
        Raises ``OffsetOutOfRange`` where retention overtook the place.
        """

    def seek(self, offset: int) -> None:
        """Continue at ``offset``; start_offset() <= offset <= end_offset(), else ``OffsetOutOfRange``."""

    def start_offset(self) -> int:
        """The lowest offset still retained."""

    def end_offset(self) -> int:
        """The offset the next appended record will get."""

    def position(self) -> int:
        """The offset the next poll starts at."""

    def quiet_until(self, now_ms: int) -> int:
        """How far log time may pass: the highest T <= ``now_ms`` for which no record still to be polled is from before T.

        ``now_ms`` is what the log's clock says. The promise is kept by the log, not by chance: it gives no append an
        earlier time any more. T falls behind ``now_ms`` while records wait to be polled, and during an append that began
        before; it is 0 where nothing is known. A log that leaves append times to others subtracts
        what they may be late by.
        """

    def commit(self, offset: int) -> None:
        """Say that everything below ``offset`` is consumed: retention may drop it. Never goes back."""

    def processed(self, offset: int) -> None:
        """Say that everything below ``offset`` is processed, if not yet safe: feeds the lag counters only."""

    def close(self) -> None:
        """Release the files. May be repeated; a poll after it raises ``LogClosed``."""


class Log(Protocol):
    """Partitions of records."""

    partitions: int

    def writer(self, partition: int) -> LogWriter:
        """The one writer of ``partition``; ``LogInUse`` while there is another."""

    def reader(self, partition: int) -> LogReader:
        """A reader of ``partition``, placed at its start offset."""

    def lag(self, partition: int) -> int:
        """Events appended to ``partition`` and not yet reported processed (or consumed) by a reader."""

    def close(self) -> None:
        """Close every writer and reader it gave. May be repeated."""
