"""What waits to be sent to each partition, and what a broker's answer means for it. Nothing here sends anything."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final

from kafka import errors

from keystone.errors import KeystoneError
from keystone.log.base import Sent
from keystone.log.kafka.batches import BatchBuilder

ACKNOWLEDGED, FAILED, UNKNOWN = "acknowledged", "failed", "unknown"
SEQUENCE_MASK: Final = 0x7FFFFFFF  # of a partition's records by one producer: they begin anew at 0

_DONE: Final = (errors.NoError, errors.DuplicateSequenceNumberError)
_UNKNOWN_PRODUCER: Final = (errors.OutOfOrderSequenceNumberError, errors.UnknownProducerIdError, errors.InvalidProducerEpochError)
_TOO_LARGE: Final = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
#: Answers after which the batch may be in the topic all the same: a leader appends first, and waits for its followers then.
_AMBIGUOUS: Final = (
    errors.RequestTimedOutError, errors.NotEnoughReplicasAfterAppendError, errors.NotLeaderForPartitionError, errors.KafkaStorageError, errors.UnknownError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one record ended. ``offset`` and ``append_ts_ms`` are -1 where not acknowledged, or not told by the broker."""

    state: str
    offset: int
    append_ts_ms: int
    error: KeystoneError | None = None


OnOutcome = Callable[[Outcome], None]  # called on the thread of input and output: quick, and never raising
OnOutcomes = Callable[[Outcome, int], None]  # the same for so many records beside one another; the offset is the first one's


class Verdict(Enum):
    """What an answer means for its batch."""

    DONE = auto()  # it is in the topic, now or since an attempt before
    AGAIN = auto()  # not in the topic this time: the same bytes once more
    AGAIN_MAYBE = auto()  # the same, but it may be there
    ANEW = auto()  # certainly not there, and its sequence means nothing any more: with another producer id
    LOST = auto()  # the same, but an attempt before may have been stored: nobody knows
    SPLIT = auto()  # too large as a whole
    REFUSED = auto()  # never


def verdict(error: type[Any], *, records: int, may_be_there: bool) -> Verdict:
    """By the error of the answer, how many records the batch holds, and whether an attempt before had no clear answer."""
    if error in _DONE:
        return Verdict.DONE
    if error in _UNKNOWN_PRODUCER:  # retention took what it knew of us, a topic made anew, or it lost records
        return Verdict.LOST if may_be_there else Verdict.ANEW
    if error in _TOO_LARGE:
        return Verdict.SPLIT if records > 1 and not may_be_there else Verdict.REFUSED
    if error in _AMBIGUOUS:
        return Verdict.AGAIN_MAYBE
    if getattr(error, "retriable", False) or error is errors.CorruptRecordError:  # damaged on its way there
        return Verdict.AGAIN
    return Verdict.REFUSED


@dataclass(slots=True)
class Batch:
    """Records on their way together. ``events``: of each. ``callbacks``: (place in the batch, whom to tell); ``groups``: (place, records, whom)."""

    lane: Lane
    opened_s: float
    builder: BatchBuilder = field(default_factory=BatchBuilder)
    events: array[int] = field(default_factory=lambda: array("q"))
    callbacks: list[tuple[int, OnOutcome]] = field(default_factory=list)
    groups: list[tuple[int, int, OnOutcomes]] = field(default_factory=list)
    is_urgent: bool = False
    wire: bytearray | None = None  # as handed over: repeated byte for byte
    wire_id: tuple[int, int] = (-1, -1)  # the producer's, in it
    may_be_there: bool = False
    attempts: int = 0
    is_settled: bool = False

    def __len__(self) -> int:
        """Bytes, unpacked: what counts against ``kafka.send_bytes_max``."""
        return len(self.builder)

    def split(self) -> Batch:
        """Cut off the second half of the records; the first, of one at least, stays. Both are to be encoded anew."""
        half = self.builder.count // 2
        rest = Batch(self.lane, self.opened_s, self.builder.split(half), self.events[half:], is_urgent=self.is_urgent, attempts=self.attempts)
        rest.callbacks = [(place - half, tell) for place, tell in self.callbacks if place >= half]
        self.callbacks = [(place, tell) for place, tell in self.callbacks if place < half]
        rest.groups = [(max(0, place - half), min(count, place + count - half), tell) for place, count, tell in self.groups if place + count > half]
        self.groups = [(place, min(count, half - place), tell) for place, count, tell in self.groups if place < half]
        self.events = self.events[:half]
        self.wire = None
        return rest


@dataclass(slots=True)
class Lane:
    """One partition's queue. ``sent`` counts outcomes; changed under the producer's lock."""

    topic: str
    partition: int
    batch_bytes_max: int  # lower than ``kafka.batch_bytes_max`` once a batch was too large
    sent: Sent = field(default_factory=Sent)
    waiting: deque[Batch] = field(default_factory=deque)
    in_flight: Batch | None = None
    producer_id: tuple[int, int] = (-1, -1)  # id and epoch
    sequence: int = 0
    not_before_s: float = 0.0
    pending: int = 0  # records without an outcome

    def count(self, batch: Batch, outcome: Outcome) -> None:
        """Count how a batch ended."""
        records, events, sent = batch.builder.count, sum(batch.events), self.sent
        setattr(sent, outcome.state, getattr(sent, outcome.state) + records)
        setattr(sent, f"{outcome.state}_events", getattr(sent, f"{outcome.state}_events") + events)
        if outcome.error is not None:
            name = type(outcome.error).__name__
            sent.reasons[name] = sent.reasons.get(name, 0) + records
        self.pending -= records
