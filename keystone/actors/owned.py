"""One partition in the hands of its owner: reader, pipeline, counters, and what is on its way into the next checkpoint."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from keystone.actors.durable import Taken
from keystone.actors.load import LoadMeter, Look
from keystone.actors.outputs import Delivery
from keystone.checkpoint import Checkpoint
from keystone.events import Alert
from keystone.log.base import Gap, LogReader
from keystone.mappings import Room
from keystone.metrics import Ledger
from keystone.pipeline import PartitionPipeline, StepResult
from keystone.segments import Segment
from keystone.session_records import SessionRecords
from keystone.sinks.lake_thread import Cut

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

ROOM_GROWTH_PERCENT: Final = 110  # of the state's present size: a room is made anew, with much more, where it is less
SESSION_BYTES: Final = 130  # of a session's state
CLOSED_HELD_MAX: Final = 4096  # closed sessions that become a table at once: a table costs 1-3 ms however few they are
GAPS_KEPT_MAX: Final = 100  # that are listed; all are counted
DEAF_S: Final = 1.0  # without news of log time: nobody answers for the log, and that is no silence; it passes every 25-100 ms else


class Cutting(Protocol):
    """What ends the files of a partition: the lake's writer."""

    def cut(self, partition: int) -> Cut: ...


@dataclass(slots=True)
class PartitionTotals:
    """What became of a partition's records since its first one, by every owner that it had. ``gaps``: offsets passed over, by reason."""

    ledger: Ledger = field(default_factory=Ledger)
    alerts: int = 0
    sessions_closed: int = 0
    session_rows: int = 0
    dead_letters: dict[str, int] = field(default_factory=dict)
    gaps: dict[str, int] = field(default_factory=dict)
    gap_list: list[str] = field(default_factory=list)
    lake_rows: int = 0  # in files that are in place

    def counters(self) -> dict[str, Any]:
        """As JSON, without the ledger: a checkpoint keeps that by itself."""
        return {
            "alerts": self.alerts, "sessions_closed": self.sessions_closed, "session_rows": self.session_rows, "lake_rows": self.lake_rows,
            "dead_letters": dict(self.dead_letters), "gaps": dict(self.gaps), "gap_list": list(self.gap_list),
        }  # fmt: skip

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> PartitionTotals:
        """As they were at a checkpoint. What an older version did not count begins at 0."""
        known = {name: checkpoint.counters[name] for name in asdict(cls()) if name in checkpoint.counters and name != "ledger"}
        return cls(ledger=checkpoint.ledger, **known)

    def count(self, result: StepResult) -> None:
        self.ledger += result.ledger
        self.alerts += len(result.alerts)
        self.sessions_closed += sum(closed.rows for closed in result.sessions)
        for reason, count in result.dead_letters.by_reason().items():
            self.dead_letters[reason] = self.dead_letters.get(reason, 0) + count

    def note_gap(self, gap: Gap) -> None:
        self.gaps[gap.reason] = self.gaps.get(gap.reason, 0) + gap.last_offset - gap.first_offset + 1
        if len(self.gap_list) < GAPS_KEPT_MAX:
            self.gap_list.append(str(gap))


class Echo(NamedTuple):
    """Where the lake ends, for an owner that had to begin before that: up to there it gives the lake nothing, for it is there."""

    next_offset: int
    next_sequence: int
    log_time_ms: int


@dataclass(slots=True)
class Owned:
    """``epoch``: of our ownership. ``segments``: in durable checkpoints and not known to be committed; ``committed``: the sequence behind those that are.

    ``sent done``: deliveries given out and finished, by us. ``generation``: of seeks: what was taken before one lets the log forget nothing after it.
    """

    partition: int
    epoch: int
    reader: LogReader
    pipeline: PartitionPipeline
    totals: PartitionTotals
    log_id: str
    first_offset: int  # of the next segment
    segment_sequence: int = 0  # of the next segment
    segments: tuple[Segment, ...] = ()
    committed: int = 0
    checkpoint_sequence: int = 0
    due_s: float = 0.0  # of the next checkpoint
    save_cpu_s: float = 0.0  # of the last one, off the loop
    taken: Taken | None = None  # until it is durable
    is_put: bool = False  # ... and in the hands of the thread
    alerts: list[Alert] = field(default_factory=list)  # since the last checkpoint was taken
    closed: SessionRecords | None = None  # sessions since then, as long as they are few
    sessions: list[pa.Table] = field(default_factory=list)  # ... and before those
    unsent: deque[Delivery] = field(default_factory=deque)  # while nobody can say whether the partition is still ours
    sent: int = 0
    done: int = 0
    bytes_since: int = 0  # read since the last checkpoint was taken
    timers_at_ms: int = 0  # when timers of a silent partition are looked at again
    quiet_ms: int = 0  # how far log time may pass, as of the last look
    heard_s: float = 0.0  # when that last went on
    generation: int = 0
    is_leaving: bool = False
    echo: Echo | None = None
    sessions_expected: int = 0
    log_number: int = 0  # how often the log was made anew
    saved: tuple[int, int] = (-1, -1)  # offset and log time of the last durable checkpoint
    outputs: dict[str, Any] = field(default_factory=dict)  # where its outputs stood at the last durable checkpoint
    end_offset: int = 0  # of the log when we took over
    began_ms: int = 0  # ... which was then
    load: LoadMeter = field(default_factory=LoadMeter)
    measured_at: int = -1  # our place when it was last measured

    @property
    def is_saved(self) -> bool:
        """No step was made since the last durable checkpoint was taken."""
        return self.saved == (self.reader.position(), self.pipeline.log_time_ms)

    @property
    def is_catching_up(self) -> bool:
        """Earlier owners may have said what is still to come of our state: where their outputs stood, who comes after us must read on, too."""
        return self.reader.position() < self.end_offset or self.pipeline.log_time_ms < self.began_ms

    def measure(self, now_s: float, window_s: float) -> None:
        """What comes in, where that can be known: a log that does not answer has no silence, and no load either."""
        if now_s < self.load.due_s:
            return
        position = self.reader.position()
        if position == self.measured_at and now_s - self.heard_s > DEAF_S:
            self.load.begin_anew(now_s)
            return
        self.measured_at = position
        end_offset = int(getattr(self.reader, "end_known", self.reader.end_offset)())
        self.load.look(Look(now_s, end_offset, position, self.totals.ledger.received), window_s)

    def room_bytes(self) -> int:
        """What a copy of the state may need by the next checkpoint. May be asked by another thread."""
        return max(self.pipeline.sessions.snapshot_bytes * ROOM_GROWTH_PERCENT // 100, self.sessions_expected * SESSION_BYTES)

    def next_segment(self) -> Segment:
        """That which a checkpoint taken now ends, without its files."""
        position = self.reader.position()
        return Segment(self.partition, self.epoch, self.first_offset, position, self.pipeline.log_time_ms, self.segment_sequence, (), self.log_number)

    def keep(self, result: StepResult) -> None:
        """Alerts and closed sessions for the segment under way."""
        self.totals.session_rows += sum(closed.rows for closed in result.sessions)
        if self.echo is not None:
            return
        self.alerts += result.alerts
        for closed in result.sessions:
            if self.closed is not None and (closed.dictionaries is not self.closed.dictionaries or self.closed.rows >= CLOSED_HELD_MAX):
                self._gather_closed()
            if self.closed is None:
                self.closed = SessionRecords(closed.dictionaries)
            self.closed.extend(closed)

    def _gather_closed(self) -> None:
        if self.closed is not None:
            self.sessions.append(self.closed.to_arrow())
            self.closed = None

    def take(self, lake: Cutting | None, outputs: Mapping[str, Any], room: Room, more: Mapping[str, npt.NDArray[Any]]) -> Taken:
        """Everything as it is now, between two steps, for a checkpoint: a copy in ``room``. The loop stands still meanwhile. ``more``: arrays to keep."""
        began_s = time.monotonic()
        self._gather_closed()
        segment = self.next_segment()
        arrays = self.pipeline.snapshot(room) | dict(more)
        checkpoint = Checkpoint(
            partition=self.partition, epoch=self.epoch, sequence=self.checkpoint_sequence, next_offset=segment.next_offset,
            log_time_ms=segment.log_time_ms, ledger=self.totals.ledger, segments=self.segments, committed=self.committed,
            counters=self.totals.counters() | {"outputs": dict(outputs), "log_number": self.log_number}, log_id=self.log_id, arrays=arrays,
        )  # fmt: skip
        taken = Taken(checkpoint, segment, self.generation, self.sent, room, self.room_bytes)
        taken.cut = lake.cut(self.partition) if lake is not None else None
        taken.sessions, taken.alerts = self.sessions, self.alerts
        self.sessions, self.alerts = [], []
        self.first_offset, self.segment_sequence = segment.next_offset, self.segment_sequence + 1
        self.checkpoint_sequence += 1
        self.bytes_since = 0
        self.taken, self.is_put = taken, False
        taken.pause_s = time.monotonic() - began_s
        return taken

    def put_when_delivered(self, put: Callable[[Taken], None], is_kept: Callable[[int], bool]) -> None:
        """Hand over what was taken, once every delivery before it is finished, and its routes have what they were given (``is_kept`` of its mark)."""
        if self.taken is not None and not self.is_put and self.done >= self.taken.needs and is_kept(self.taken.mark):
            self.is_put = True
            put(self.taken)

    def is_durable(self, taken: Taken) -> None:
        """What was taken is in the store: the log may forget what is before it."""
        self.segments = tuple(s for s in taken.checkpoint.segments if s.sequence >= self.committed)
        self.totals.lake_rows = taken.checkpoint.counters["lake_rows"]
        self.outputs = taken.checkpoint.counters["outputs"]
        self.save_cpu_s = taken.cpu_s
        self.saved = (taken.checkpoint.next_offset, taken.checkpoint.log_time_ms)
        self.taken = None
        if taken.generation == self.generation:
            self.reader.commit(taken.checkpoint.next_offset)

    def end_echo(self, echo: Echo) -> None:
        """Everything from here on is new to the lake."""
        self.echo = None
        self.first_offset, self.segment_sequence = echo.next_offset, echo.next_sequence
        self.segments, self.committed, self.due_s = (), echo.next_sequence, 0.0

    def is_committed(self, behind: int) -> None:
        """The lake has every segment below this sequence."""
        if behind > self.committed:
            self.committed = behind
            self.segments = tuple(s for s in self.segments if s.sequence >= behind)

    def abandon(self) -> None:
        """Close what is open."""
        self.reader.close()


def sum_totals(totals: Iterable[PartitionTotals]) -> PartitionTotals:
    """Of several partitions."""
    total = PartitionTotals()
    for one in totals:
        total.ledger += one.ledger
        for name in ("alerts", "sessions_closed", "session_rows", "lake_rows"):
            setattr(total, name, getattr(total, name) + getattr(one, name))
        for ours, theirs in ((total.dead_letters, one.dead_letters), (total.gaps, one.gaps)):
            for reason, count in theirs.items():
                ours[reason] = ours.get(reason, 0) + count
        total.gap_list += one.gap_list[: GAPS_KEPT_MAX - len(total.gap_list)]
    return total
