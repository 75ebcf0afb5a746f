"""What a log promises, whoever keeps it. Kafka's words: partition, offset, append time, retention, consumed offset."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from keystone.events import U8, Records


class Appended(NamedTuple):
    """Where one record went. A tuple, because building a frozen dataclass costs as much as the whole append."""

    offset: int
    append_ts_ms: int


class Gap(NamedTuple):
    """Records that a reader had to pass over, counted instead of lost in silence. Both offsets are among them."""

    partition: int
    first_offset: int
    last_offset: int
    reason: str  # corrupt | retention | recreated

    def __str__(self) -> str:
        return f"partition {self.partition}, offsets {self.first_offset} to {self.last_offset}: {self.reason}"


@dataclass(slots=True)
class Sent:
    """How the sends of one writer ended: records and events of each outcome. What is in none is still under way.

    ``acknowledged``: in the log, for as long as the log keeps anything. ``failed``: certainly not in it. ``unknown``: handed over,
    and no answer came: it may be in the log, once. ``waited_ms``: that callers waited because too much was under way.
    """

    acknowledged: int = 0
    acknowledged_events: int = 0
    failed: int = 0
    failed_events: int = 0
    unknown: int = 0
    unknown_events: int = 0
    waited_ms: int = 0
    reasons: dict[str, int] = field(default_factory=dict)  # of failed and unknown records


class LogWriter(Protocol):
    """The only writer of one partition."""

    @property
    def sent(self) -> Sent:
        """How the sends of this writer ended so far."""

    def append(self, value: bytes | memoryview | U8, *, events: int = 1) -> Appended:
        """Append one record and return its offset and append time.

        The record is readable when this returns. Append times never go back within a partition, nor below what a
        reader was promised (``quiet_until``). Where the log is
        full and its oldest records are not consumed yet, the call waits (back-pressure) up to a named limit, then
        raises ``LogFull``; nothing was appended then, and the same call may be made again. ``RecordTooLarge`` where the
        value is over the log's limit. ``events`` is how many lines the record holds; it feeds the lag counters only.
        """

    def send(self, value: bytes | memoryview | U8, *, events: int = 1, key: bytes | None = None) -> None:
        """Append, without waiting for the outcome: ``sent`` counts it, at the latest when ``flush`` returns True.

        ``key`` is kept where the log has keys, for other readers than ours.

        The value is copied. Waits where too much is under way. Raises what ``append`` raises, where that is known at once.
        """

    def flush(self, *, wait_s: float) -> bool:
        """Wait until every send has its outcome; False where that takes longer than ``wait_s``."""

    def close(self) -> None:
        """Make everything appended durable as far as the log promises, and release the partition. May be repeated."""


class LogReader(Protocol):
    """One reader's place in one partition."""

    partition: int

    def poll(self, *, bytes_max: int, wait_ms: int) -> Records:
        """Return whole records from the current place on, at least one if any is there, and about ``bytes_max`` bytes.

        Waits up to ``wait_ms`` for the first one; then returns an empty ``Records``. Valid until the next poll. A log that is
        read in the background may return none although there is one: wait, or compare ``position`` with ``end_offset``.
        Raises ``OffsetOutOfRange`` where retention overtook the place (``LogRecreated`` where another log has its name), each
        time until ``seek`` moves it.
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

    def take_gaps(self) -> list[Gap]:
        """What polls had to pass over since the last call, because it cannot be read."""

    def commit(self, offset: int) -> None:
        """Say that everything below ``offset`` is consumed: retention may drop it. Never goes back."""

    def processed(self, offset: int) -> None:
        """Say that everything below ``offset`` is processed, if not yet safe: feeds the lag counters only."""

    def close(self) -> None:
        """Release the files. May be repeated; a poll after it raises ``LogClosed``."""


class Log(Protocol):
    """Partitions of records."""

    partitions: int

    @property
    def log_id(self) -> str:
        """What it is, by more than its name: another for a log that was deleted and made anew under the same."""

    def writer(self, partition: int) -> LogWriter:
        """The one writer of ``partition``; ``LogInUse`` while there is another."""

    def reader(self, partition: int) -> LogReader:
        """A reader of ``partition``, placed at its start offset."""

    def lag(self, partition: int) -> int:
        """Events appended to ``partition`` and not yet reported processed (or consumed) by a reader."""

    def close(self) -> None:
        """Close every writer and reader it gave. May be repeated."""
