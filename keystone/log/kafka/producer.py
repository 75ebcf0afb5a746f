"""An idempotent producer: batches of many partitions, one request under way to each broker, every outcome known or said to be unknown.

One request at a time keeps the order without further ado: a batch is repeated with the sequence it had until its outcome is
known, and only then does the next one of its partition get a sequence. So one that is refused, too large or given up leaves no
hole, and nothing has to be started anew by the caller. Memory is bounded by ``kafka.send_bytes_max``: beyond, ``send`` waits.

    acknowledged   by every replica in sync (acks = all), or known to have been by its sequence
    failed         certainly not in the topic: refused, or never handed over before ``kafka.delivery_timeout_ms``
    unknown        handed over, and no answer until ``kafka.delivery_timeout_ms``
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from kafka import errors
from kafka.net.wakeup_notifier import WakeupNotifier
from kafka.protocol.producer import InitProducerIdRequest, ProduceRequest

from keystone.errors import KeystoneError, LogClosed, LogFull, LogUnreachable, RecordTooLarge
from keystone.log.base import Sent
from keystone.log.kafka import explain
from keystone.log.kafka.batches import RECORD_OVERHEAD_BYTES, BatchBuilder, Headers
from keystone.log.kafka.client import RETRY_MS, KafkaClient, log

REQUEST_BYTES_MAX: Final = 8 << 20  # unpacked, of all batches in one request
VERSION_MIN: Final = 7  # zstd
VERSION_MAX: Final = 12  # from 13 on topics are named by id
RETRY_MAX_MS: Final = 1_000
ROOM_WAIT_BEYOND_S: Final = 10.0  # kafka.delivery_timeout_ms, when everything under way has its outcome: then a send has waited in vain
BATCH_RECORDS_MAX: Final = 65_536

_UNKNOWN_PRODUCER: Final = (errors.OutOfOrderSequenceNumberError, errors.UnknownProducerIdError, errors.InvalidProducerEpochError)
_TOO_LARGE: Final = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
#: Answers after which the batch may be in the topic all the same.
_AMBIGUOUS: Final = (errors.RequestTimedOutError, errors.NotEnoughReplicasAfterAppendError, errors.UnknownError)

ACKNOWLEDGED, FAILED, UNKNOWN = "acknowledged", "failed", "unknown"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one record ended. ``offset`` and ``append_ts_ms`` are -1 where not acknowledged, or not told by the broker."""

    state: str
    offset: int
    append_ts_ms: int
    error: KeystoneError | None = None


OnOutcome = Callable[[Outcome], None]  # called on the thread of input and output: quick, and never raising


@dataclass(slots=True)
class _Batch:
    """Records on their way together. ``callbacks``: (place in the batch, whom to tell)."""

    lane: Lane
    builder: BatchBuilder
    opened_s: float
    events: int = 0
    size: int = 0  # as counted against ``kafka.send_bytes_max``
    callbacks: list[tuple[int, OnOutcome]] = field(default_factory=list)
    is_urgent: bool = False
    wire: bytearray | None = None  # as handed over: repeated byte for byte
    wire_id: tuple[int, int] = (-1, -1)  # the producer's, in it
    may_be_there: bool = False
    attempts: int = 0


@dataclass(slots=True)
class Lane:
    """One partition's queue. ``sent`` counts outcomes; changed under the producer's lock."""

    topic: str
    partition: int
    sent: Sent = field(default_factory=Sent)
    waiting: deque[_Batch] = field(default_factory=deque)
    in_flight: _Batch | None = None
    producer_id: tuple[int, int] = (-1, -1)  # id and epoch
    sequence: int = 0
    not_before_s: float = 0.0
    pending: int = 0  # records without an outcome


class Producer:
    """Thread-safe. ``close`` may be repeated; what has no outcome by then is *unknown* or *failed*, and counted."""

    def __init__(self, client: KafkaClient) -> None:
        self._client = client
        self._config = client.config
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)  # an outcome is known, or there is room
        self._bytes = 0  # without an outcome, unpacked
        self._busy: set[int] = set()  # brokers with a request under way
        self._woken = WakeupNotifier(client.net)
        self._is_awake = False
        self._is_closed = False
        self._producer_id = (-1, -1)
        self.requests = 0
        self.waits_s = 0.0
        client.start(self._drive)

    # --- from any thread --------------------------------------------------------------------------------------------------
    def lane(self, topic: str, partition: int) -> Lane:
        """The queue of one partition; the same for every caller."""
        with self._lock:
            return self._lanes.setdefault((topic, partition), Lane(topic, partition))

    @property
    def record_bytes_max(self) -> int:
        """The largest value of one record: brokers judge batches, so a batch of one has to fit too."""
        return self._config.batch_bytes_max - RECORD_OVERHEAD_BYTES

    def send(
        self,
        lane: Lane,
        value: Any,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        events: int = 1,
        on_outcome: OnOutcome | None = None,
        is_urgent: bool = False,
        wakes: bool = True,
        limit_bytes: int | None = None,
        has_ended: Callable[[], bool] = lambda: False,
    ) -> None:
        """Queue one record; the value is copied. Waits while ``kafka.send_bytes_max`` are without an outcome.

        ``is_urgent``: do not linger. ``wakes=False``: more follow, and a ``wake`` after them. ``RecordTooLarge`` at once; ``LogFull``
        where no room comes although everything must have its outcome; ``LogClosed`` after ``close``, or where ``has_ended`` while waiting.
        """
        size = (0 if value is None else len(value)) + (len(key) if key else 0) + sum(len(n) + len(v) for n, v in headers)
        most = self.record_bytes_max if limit_bytes is None else min(limit_bytes, self.record_bytes_max)
        if size > most:
            raise RecordTooLarge(f"topic {lane.topic!r}: a record of {size:,} bytes is over record_bytes_max = {most:,} (kafka.batch_bytes_max)")
        with self._lock:
            self._wait_for_room(lane, size, has_ended)
            batch = self._open_batch(lane, size)
            if on_outcome is not None:
                batch.callbacks.append((batch.builder.count, on_outcome))
            batch.builder.add(value, key, headers)
            batch.events += events
            batch.size += size
            batch.is_urgent |= is_urgent
            lane.pending += 1
            self._bytes += size
            wakes = wakes and (is_urgent or not self._is_awake)
            self._is_awake |= wakes
        if wakes:
            self._woken.notify()

    def wake(self) -> None:
        """Send what is due now: a system call, so once for many records."""
        self._woken.notify()

    def _wait_for_room(self, lane: Lane, size: int, has_ended: Callable[[], bool]) -> None:
        began_s = time.monotonic()
        while self._bytes + size > self._config.send_bytes_max and self._bytes and not self._is_closed and not has_ended():
            waited_s = time.monotonic() - began_s
            if waited_s > self._config.delivery_timeout_ms / 1_000 + ROOM_WAIT_BEYOND_S:
                raise LogFull(f"topic {lane.topic!r}: {self._bytes:,} bytes are without an answer for {waited_s:.0f} s (kafka.send_bytes_max)")
            self._woken.notify()  # what fills the room may not have been told of yet
            self._settled.wait(0.1)
        if (waited_s := time.monotonic() - began_s) > 1e-3:
            lane.sent.waited_ms += int(waited_s * 1_000)
        if self._is_closed or has_ended():
            raise LogClosed(f"topic {lane.topic!r}: the producer was closed")

    def _open_batch(self, lane: Lane, size: int) -> _Batch:
        if lane.waiting:
            last = lane.waiting[-1]
            fits = len(last.builder) + size + RECORD_OVERHEAD_BYTES <= self._config.batch_bytes_max and last.builder.count < BATCH_RECORDS_MAX
            if fits and last.wire is None and last.attempts == 0:
                return last
        batch = _Batch(lane, BatchBuilder(), time.monotonic())
        lane.waiting.append(batch)
        return batch

    def flush(self, lanes: list[Lane], *, wait_s: float) -> bool:
        """Wait until every record of ``lanes`` has its outcome; False where that takes longer."""
        until = time.monotonic() + wait_s
        with self._lock:
            for lane in lanes:
                for batch in lane.waiting:
                    batch.is_urgent = True
        self._woken.notify()
        with self._lock:
            while any(lane.pending for lane in lanes):
                left = until - time.monotonic()
                if left <= 0 or self._is_closed:
                    return False
                self._settled.wait(min(left, 0.5))
        return True

    @property
    def held_bytes(self) -> int:
        """Bytes without an outcome."""
        return self._bytes

    def pending(self, lanes: list[Lane]) -> int:
        """Records without an outcome."""
        with self._lock:
            return sum(lane.pending for lane in lanes)

    def close(self) -> None:
        """Give up on what has no outcome: handed over is *unknown*, the rest *failed*. ``flush`` before."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            left = []
            for lane in self._lanes.values():
                if lane.in_flight is not None:
                    lane.in_flight.may_be_there = True
                    left.append(lane.in_flight)
                left += lane.waiting
                lane.waiting.clear()
                lane.in_flight = None
        for batch in left:
            self._give_up(batch, LogClosed(f"topic {batch.lane.topic!r}: the producer was closed"))

    # --- on the thread of input and output ----------------------------------------------------------------------------------
    async def _drive(self) -> None:
        while not self._is_closed and not self._client.is_closed:
            again_s = self._send_what_can_be()
            if again_s is None:
                await self._woken()
            else:
                await self._woken(max(0.0005, again_s - time.monotonic()))

    def _send_what_can_be(self) -> float | None:
        """Start a request to every idle broker that something is due for; when to look again, None: when woken."""
        now_s = time.monotonic()
        again_s = float("inf")
        by_leader: dict[int, list[_Batch]] = {}
        sizes: dict[int, int] = {}
        expired: list[_Batch] = []
        with self._lock:
            self._is_awake = True
            for lane in self._lanes.values():
                if lane.in_flight is not None or not lane.waiting:
                    continue
                batch = lane.waiting[0]
                if now_s - batch.opened_s > self._config.delivery_timeout_ms / 1_000:
                    expired.append(lane.waiting.popleft())
                    again_s = now_s
                    continue
                due_s = max(lane.not_before_s, self._due_s(lane, batch))
                if due_s > now_s:
                    again_s = min(again_s, due_s)
                    continue
                leader = self._client.leader(lane.topic, lane.partition)
                if leader is None:
                    lane.not_before_s = now_s + RETRY_MS / 1_000
                    again_s = min(again_s, lane.not_before_s)
                    self._client.control.cluster.request_update()
                elif leader not in self._busy and sizes.get(leader, 0) + len(batch.builder) <= max(REQUEST_BYTES_MAX, len(batch.builder)):
                    sizes[leader] = sizes.get(leader, 0) + len(batch.builder)
                    lane.in_flight = lane.waiting.popleft()
                    by_leader.setdefault(leader, []).append(batch)
            if again_s == float("inf") and not by_leader:
                self._is_awake = any(lane.waiting or lane.in_flight for lane in self._lanes.values())
        for batch in expired:
            self._give_up(batch, LogUnreachable(f"topic {batch.lane.topic!r}: no answer within kafka.delivery_timeout_ms"))
        for leader, batches in by_leader.items():
            self._busy.add(leader)
            self._client.start(self._request, leader, batches)
        return None if again_s == float("inf") else again_s

    def _due_s(self, lane: Lane, batch: _Batch) -> float:
        """When a batch goes: at once if it is urgent, full, or repeated; else when it has lingered."""
        is_full = len(lane.waiting) > 1 or len(batch.builder) >= self._config.batch_bytes_max // 2
        return 0.0 if batch.is_urgent or is_full or batch.attempts else batch.opened_s + self._config.linger_ms / 1_000

    async def _request(self, leader: int, batches: list[_Batch]) -> None:  # noqa: C901 - one request, from its id to each outcome
        answered: set[int] = set()
        was_sent = False
        try:
            await self._identify(batches)
            for batch in batches:
                self._encode(batch)
            request = self._produce_request(batches)
            for batch in batches:
                batch.attempts += 1
            was_sent = True
            began_s = time.monotonic()
            answer = await self._client.control.send(request, leader)
            self.requests += 1
            self.waits_s += time.monotonic() - began_s
            by_place = {(batch.lane.topic, batch.lane.partition): batch for batch in batches}
            for topic in answer.responses:
                for found in topic.partition_responses:
                    batch = by_place[topic.name, found.index]
                    answered.add(id(batch))
                    self._answered(batch, found)
        except errors.NodeNotReadyError:  # nothing was handed over
            self._again(batches)
        except Exception as error:  # noqa: BLE001 - whatever it is, each batch gets its outcome
            if not isinstance(error, errors.KafkaError):
                log.error("a produce request failed: %s: %s", type(error).__name__, error)
            if isinstance(error, errors.AuthorizationError):
                for batch in batches:
                    self._settle(batch, Outcome(FAILED, -1, -1, explain.not_allowed("write", batch.lane.topic, self._config)))
            else:
                left = [batch for batch in batches if id(batch) not in answered]
                for batch in left:
                    batch.may_be_there |= was_sent
                self._again(left)
        finally:
            self._busy.discard(leader)
            self._woken.notify()

    async def _identify(self, batches: list[_Batch]) -> None:
        """Give each lane a producer id that nothing without an outcome was sent by."""
        for batch in batches:
            lane = batch.lane
            if lane.producer_id[0] >= 0:
                continue
            if self._producer_id[0] < 0:
                self._producer_id = await self._new_producer_id()
            lane.producer_id, lane.sequence = self._producer_id, 0

    async def _new_producer_id(self) -> tuple[int, int]:
        request = InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=60_000, producer_id=-1, producer_epoch=-1, max_version=4)
        node = self._client.control.least_loaded_node()
        if node is None:
            raise errors.NodeNotReadyError("no broker is known")
        answer = await self._client.control.send(request, node)
        if answer.error_code:
            raise errors.for_code(answer.error_code)
        return int(answer.producer_id), int(answer.producer_epoch)

    def _encode(self, batch: _Batch) -> None:
        lane = batch.lane
        if batch.wire is None or batch.wire_id != lane.producer_id:
            batch.wire = batch.builder.encode(
                self._config.codec,
                now_ms=int(time.time() * 1_000),
                producer_id=lane.producer_id[0],
                producer_epoch=lane.producer_id[1],
                sequence=lane.sequence,
            )
            batch.wire_id = lane.producer_id

    def _produce_request(self, batches: list[_Batch]) -> Any:
        kinds = ProduceRequest.TopicProduceData
        topics: dict[str, list[Any]] = {}
        for batch in batches:
            topics.setdefault(batch.lane.topic, []).append(kinds.PartitionProduceData(index=batch.lane.partition, records=batch.wire))
        return ProduceRequest(
            transactional_id=None,
            acks=-1,
            timeout_ms=max(500, self._config.request_timeout_ms - 1_000),
            topic_data=[kinds(name=name, partition_data=partitions) for name, partitions in topics.items()],
            min_version=VERSION_MIN,
            max_version=VERSION_MAX,
        )

    # --- outcomes -------------------------------------------------------------------------------------------------------------
    def _answered(self, batch: _Batch, found: Any) -> None:
        error = errors.for_code(found.error_code)
        lane = batch.lane
        if error in (errors.NoError, errors.DuplicateSequenceNumberError):
            lane.sequence = (lane.sequence + batch.builder.count) & 0x7FFFFFFF
            offset = int(found.base_offset) if error is errors.NoError else -1
            self._settle(batch, Outcome(ACKNOWLEDGED, offset, int(found.log_append_time_ms)))
        elif error in _UNKNOWN_PRODUCER:
            # The broker forgot us (retention, a topic made anew) or lost what it had. An earlier attempt may have been stored.
            lane.producer_id = self._producer_id = (-1, -1)
            if batch.may_be_there:
                self._settle(batch, Outcome(UNKNOWN, -1, -1, LogUnreachable(f"topic {lane.topic!r}: {error.__name__} after an attempt without an answer")))
            else:
                batch.wire = None
                self._again([batch])
        elif error in _TOO_LARGE and batch.builder.count > 1:
            what = f"topic {lane.topic!r} takes no batch of {len(batch.wire or b''):,} bytes"
            self._refuse(batch, RecordTooLarge(f"{what}: lower kafka.batch_bytes_max, or raise the topic's max.message.bytes"))
        elif error in _TOO_LARGE:
            self._refuse(batch, RecordTooLarge(f"topic {lane.topic!r} takes no record of {len(batch.builder):,} bytes: raise its max.message.bytes"))
        elif issubclass(error, errors.AuthorizationError):
            self._refuse(batch, explain.not_allowed("write", lane.topic, self._config))
        elif getattr(error, "retriable", False) or error in _AMBIGUOUS or error is errors.CorruptRecordError:
            batch.may_be_there |= error in _AMBIGUOUS
            self._again([batch])
        else:
            self._refuse(batch, explain.as_ours(error(), f"topic {lane.topic!r}"))

    def _refuse(self, batch: _Batch, error: KeystoneError) -> None:
        """The broker took nothing of it this time; of an earlier attempt without an answer, nobody knows."""
        state = UNKNOWN if batch.may_be_there else FAILED
        if state == UNKNOWN:
            batch.lane.producer_id = self._producer_id = (-1, -1)
        self._settle(batch, Outcome(state, -1, -1, error))

    def _again(self, batches: list[_Batch]) -> None:
        """Back to the front of their queues, after a pause that grows."""
        self._client.control.cluster.request_update()
        with self._lock:
            for batch in batches:
                lane = batch.lane
                if lane.in_flight is not batch:
                    continue  # the producer was closed meanwhile
                lane.in_flight = None
                lane.waiting.appendleft(batch)
                pause_ms = min(RETRY_MAX_MS, RETRY_MS << min(batch.attempts, 6))
                lane.not_before_s = time.monotonic() + pause_ms / 1_000

    def _give_up(self, batch: _Batch, error: KeystoneError) -> None:
        state = UNKNOWN if batch.may_be_there else FAILED
        if batch.may_be_there:  # its sequence may be taken: begin with another id
            batch.lane.producer_id = self._producer_id = (-1, -1)
        self._settle(batch, Outcome(state, -1, -1, error))

    def _settle(self, batch: _Batch, outcome: Outcome) -> None:
        """Count the outcome, make room, tell whoever asked."""
        lane, count = batch.lane, batch.builder.count
        with self._lock:
            if lane.in_flight is batch:
                lane.in_flight = None
            sent = lane.sent
            setattr(sent, outcome.state, getattr(sent, outcome.state) + count)
            events = f"{outcome.state}_events"
            setattr(sent, events, getattr(sent, events) + batch.events)
            if outcome.error is not None:
                name = type(outcome.error).__name__
                sent.reasons[name] = sent.reasons.get(name, 0) + count
            self._bytes -= batch.size
            lane.pending -= count
            self._settled.notify_all()
        if outcome.error is not None:
            log.warning("topic %s, partition %d: %d records %s: %s", lane.topic, lane.partition, count, outcome.state, outcome.error)
        for place, tell in batch.callbacks:
            offset = outcome.offset + place if outcome.offset >= 0 else -1
            tell(Outcome(outcome.state, offset, outcome.append_ts_ms, outcome.error))
