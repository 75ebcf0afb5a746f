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
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, Protocol

from kafka import errors
from kafka.net.wakeup_notifier import WakeupNotifier
from kafka.protocol.producer import InitProducerIdRequest, ProduceRequest

from keystone.errors import KeystoneError, LogClosed, LogFull, LogUnreachable, RecordTooLarge
from keystone.log.kafka import explain
from keystone.log.kafka.batches import RECORD_OVERHEAD_BYTES, Headers
from keystone.log.kafka.client import RETRY_MS, KafkaClient, log
from keystone.log.kafka.due import NEVER, due, due_s, expired
from keystone.log.kafka.lanes import ACKNOWLEDGED, FAILED, SEQUENCE_MASK, UNKNOWN, Batch, Lane, OnOutcome, OnOutcomes, Outcome, Verdict, verdict

VERSION_MIN: Final = 7  # zstd
VERSION_MAX: Final = 12  # from 13 on topics are named by id
RETRY_MAX_MS: Final = 1_000
ROOM_WAIT_BEYOND_S: Final = 10.0  # kafka.delivery_timeout_ms, when everything under way has its outcome: then a send has waited in vain
BATCH_RECORDS_MAX: Final = 65_536


class Encoded(Protocol):
    """Records that bring their bytes (``letter_records.LetterRecords``)."""

    @property
    def left(self) -> int: ...
    @property
    def bytes_least(self) -> int: ...
    def take(self, number: int, bytes_max: int, records_max: int) -> tuple[memoryview, int]: ...


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
        self._looks_s = NEVER  # monotonic: when the thread of input and output looks again for what is due
        self._is_closed = False
        self._producer_id = (-1, -1)
        self.requests = 0
        self.waits_s = 0.0
        client.start(self._drive)

    # --- from any thread --------------------------------------------------------------------------------------------------
    def lane(self, topic: str, partition: int) -> Lane:
        """The queue of one partition; the same for every caller."""
        with self._lock:
            return self._lanes.setdefault((topic, partition), Lane(topic, partition, self._config.batch_bytes_max))

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
        if value is not None and type(value) is not bytes:
            value = memoryview(value).cast("B")
        size = (0 if value is None else len(value)) + (len(key) if key else 0) + sum(len(n) + len(v) for n, v in headers)
        most = self.record_bytes_max if limit_bytes is None else min(limit_bytes, self.record_bytes_max)
        if size > most:
            raise RecordTooLarge(f"topic {lane.topic!r}: a record of {size:,} bytes is over record_bytes_max = {most:,} (kafka.batch_bytes_max)")
        with self._lock:
            self._wait_for_room(lane, size + RECORD_OVERHEAD_BYTES, has_ended)
            batch = self._open_batch(lane, size + RECORD_OVERHEAD_BYTES)
            builder = batch.builder
            before = len(builder.records)
            builder.add(value, key, headers)
            batch.events.append(events)
            if on_outcome is not None:
                batch.callbacks.append((builder.count - 1, on_outcome))
            batch.is_urgent |= is_urgent
            lane.pending += 1
            self._bytes += len(builder.records) - before
            is_news = builder.count == 1 or is_urgent or len(builder.records) >= lane.batch_bytes_max // 2
            wakes = wakes and is_news and lane.in_flight is None and self._is_due_sooner(lane)
        if wakes:
            self._woken.notify()

    def send_records(self, lane: Lane, records: Encoded, *, on_outcomes: OnOutcomes) -> None:
        """Queue many records that bring their bytes; as ``send`` with ``wakes=False``. ``on_outcomes`` is told of each of them once, some at a time."""
        while records.left:
            with self._lock:
                size = records.bytes_least
                self._wait_for_room(lane, size, lambda: False)
                batch = self._open_batch(lane, size)
                builder = batch.builder
                room = min(max(lane.batch_bytes_max - len(builder), size), max(self._config.send_bytes_max - self._bytes, size))
                text, count = records.take(builder.count, room, BATCH_RECORDS_MAX - builder.count)
                batch.groups.append((builder.count, count, on_outcomes))
                builder.add_records(text, count)
                batch.events.extend([1] * count)
                lane.pending += count
                self._bytes += len(text)

    def _is_due_sooner(self, lane: Lane) -> bool:
        """Whether a lane is due before the thread of input and output looks; it is told of that then, once."""
        at_s = due_s(lane, self._config.linger_ms)
        is_sooner = at_s < self._looks_s
        self._looks_s = min(at_s, self._looks_s)
        return is_sooner

    def wake(self) -> None:
        """Send what is due now: a system call, so once for many records."""
        self._woken.notify()

    def _wait_for_room(self, lane: Lane, size: int, has_ended: Callable[[], bool]) -> None:
        began_s = time.monotonic()
        while self._bytes + size > self._config.send_bytes_max and self._bytes and not self._is_closed and not has_ended():
            waited_s = time.monotonic() - began_s
            if waited_s > self._config.delivery_timeout_ms / 1_000 + ROOM_WAIT_BEYOND_S:
                raise LogFull(f"topic {lane.topic!r}: {self._bytes:,} bytes are without an answer for {waited_s:.0f} s (kafka.send_bytes_max)")
            self._hurry(self._lanes.values())  # what fills the room may linger, or not have been told of yet
            self._woken.notify()
            self._settled.wait(0.1)
        if (waited_s := time.monotonic() - began_s) > 1e-3:
            lane.sent.waited_ms += int(waited_s * 1_000)
        if self._is_closed or has_ended():
            raise LogClosed(f"topic {lane.topic!r}: the producer was closed")

    def _open_batch(self, lane: Lane, size: int) -> Batch:
        if lane.waiting:
            last = lane.waiting[-1]
            fits = len(last.builder.records) + size <= lane.batch_bytes_max and last.builder.count < BATCH_RECORDS_MAX
            if fits and last.wire is None and last.attempts == 0:
                return last
        batch = Batch(lane, time.monotonic())
        lane.waiting.append(batch)
        return batch

    @staticmethod
    def _hurry(lanes: Iterable[Lane]) -> None:
        for lane in lanes:
            for batch in lane.waiting:
                batch.is_urgent = True

    def flush(self, lanes: list[Lane], *, wait_s: float) -> bool:
        """Wait until every record of ``lanes`` has its outcome; False where that takes longer."""
        until = time.monotonic() + wait_s
        with self._lock:
            self._hurry(lanes)
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
            await self._woken(None if again_s == NEVER else max(0.0005, again_s - time.monotonic()))

    def _send_what_can_be(self) -> float:
        """Start a request to every idle broker that something is due for; when to look again, if not woken before."""
        now_s = time.monotonic()
        with self._lock:
            lanes, config = self._lanes.values(), self._config
            late = expired(lanes, now_s, timeout_ms=config.delivery_timeout_ms)
            found = due(lanes, now_s, linger_ms=config.linger_ms, leader_of=self._leader, busy=self._busy)
            self._looks_s = found.again_s
        if found.lacks_leaders:
            self._client.control.cluster.request_update()
        for batch in late:
            self._give_up(batch, LogUnreachable(f"topic {batch.lane.topic!r}: no answer within kafka.delivery_timeout_ms"))
        for leader, batches in found.by_leader.items():
            self._busy.add(leader)
            self._client.start(self._request, leader, batches)
        return found.again_s

    def _leader(self, lane: Lane) -> int | None:
        return self._client.leader(lane.topic, lane.partition)

    async def _request(self, leader: int, batches: list[Batch]) -> None:
        left = {(batch.lane.topic, batch.lane.partition): batch for batch in batches}  # without an answer
        was_sent = False
        try:
            await self._identify(batches)
            connection = self._client.control.get_connection(leader)
            await connection  # what waits for one that fails was never handed over
            request = self._produce_request(batches)
            began_s, was_sent = time.monotonic(), True
            answer = await connection.send_request(request)
            self.requests += 1
            self.waits_s += time.monotonic() - began_s
            for topic in answer.responses:
                for found in topic.partition_responses:
                    self._answered(left.pop((topic.name, found.index)), found)
        except errors.NodeNotReadyError:  # nothing was handed over
            was_sent = False
        except errors.AuthorizationError:
            for batch in left.values():
                self._give_up(batch, explain.not_allowed("write", batch.lane.topic, self._config))
            left.clear()
        except Exception as error:  # noqa: BLE001 - whatever it is, each batch gets its outcome
            if not isinstance(error, errors.KafkaError):
                log.error("a produce request failed: %s: %s", type(error).__name__, error)
        finally:
            self._busy.discard(leader)
            for batch in left.values():
                batch.may_be_there |= was_sent
            self._again(left.values())
            self._woken.notify()

    async def _identify(self, batches: list[Batch]) -> None:
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

    def _encode(self, batch: Batch) -> None:
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
        batch.attempts += 1

    def _produce_request(self, batches: list[Batch]) -> Any:
        kinds = ProduceRequest.TopicProduceData
        topics: dict[str, list[Any]] = {}
        for batch in batches:
            self._encode(batch)
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
    def _answered(self, batch: Batch, found: Any) -> None:
        error, lane = errors.for_code(found.error_code), batch.lane
        match verdict(error, records=batch.builder.count, may_be_there=batch.may_be_there):
            case Verdict.DONE:
                lane.sequence = (lane.sequence + batch.builder.count) & SEQUENCE_MASK
                offset = int(found.base_offset) if error is errors.NoError else -1
                self._settle(batch, Outcome(ACKNOWLEDGED, offset, int(found.log_append_time_ms)))
            case Verdict.AGAIN:
                self._again([batch])
            case Verdict.AGAIN_MAYBE:
                batch.may_be_there = True
                self._again([batch])
            case Verdict.ANEW:
                self._forget_id(lane)
                self._again([batch])
            case Verdict.LOST:
                self._give_up(batch, LogUnreachable(f"topic {lane.topic!r}: {error.__name__} after an attempt without an answer"))
            case Verdict.SPLIT:
                self._split(batch)
            case Verdict.REFUSED:
                self._give_up(batch, self._why_refused(batch, error))

    def _why_refused(self, batch: Batch, error: type[Any]) -> KeystoneError:
        topic = batch.lane.topic
        if error in (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError):
            what = "record" if batch.builder.count == 1 else f"batch of {batch.builder.count} records"
            return RecordTooLarge(f"topic {topic!r} takes no {what} of {len(batch):,} bytes: raise its max.message.bytes")
        if issubclass(error, errors.AuthorizationError):
            return explain.not_allowed("write", topic, self._config)
        return explain.as_ours(error(), f"topic {topic!r}")

    def _forget_id(self, lane: Lane) -> None:
        """Begin with another producer id: a sequence of this one is, or may be, taken."""
        lane.producer_id = self._producer_id = (-1, -1)

    def _split(self, batch: Batch) -> None:
        """Too large for the topic: its halves in its place, and no batch of this size any more."""
        lane = batch.lane
        with self._lock:
            if lane.in_flight is not batch:
                return  # the producer was closed meanwhile
            before = len(batch)
            rest = batch.split()
            self._bytes += len(batch) + len(rest) - before
            lane.batch_bytes_max = min(lane.batch_bytes_max, max(len(batch), len(rest)))
            lane.in_flight = None
            lane.waiting.extendleft((rest, batch))
        log.info("topic %s takes no batch of %d bytes: %d from now on", lane.topic, before, lane.batch_bytes_max)

    def _again(self, batches: Iterable[Batch]) -> None:
        """Back to the front of their queues, after a pause that grows."""
        if not batches:
            return
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

    def _give_up(self, batch: Batch, error: KeystoneError) -> None:
        """It was not taken; of an earlier attempt without an answer, nobody knows."""
        if batch.may_be_there:
            self._forget_id(batch.lane)
        self._settle(batch, Outcome(UNKNOWN if batch.may_be_there else FAILED, -1, -1, error))

    def _settle(self, batch: Batch, outcome: Outcome) -> None:
        """Tell whoever asked, count the outcome, make room; once."""
        lane, count = batch.lane, batch.builder.count
        with self._lock:
            if batch.is_settled:
                return  # given up by ``close`` while its answer was on its way
            batch.is_settled = True
        if outcome.error is not None:
            log.warning("topic %s, partition %d: %d records %s: %s", lane.topic, lane.partition, count, outcome.state, outcome.error)
        tellings = [(place, tell) for place, tell in batch.callbacks]
        tellings += [(place, partial(_tell_many, tell, records)) for place, records, tell in batch.groups]
        for place, tell in tellings:
            offset = outcome.offset + place if outcome.offset >= 0 else -1
            try:
                tell(Outcome(outcome.state, offset, outcome.append_ts_ms, outcome.error))
            except Exception as error:  # noqa: BLE001 - it must not keep others from being told
                log.error("a callback failed: %s: %s", type(error).__name__, error)
        with self._lock:
            if lane.in_flight is batch:
                lane.in_flight = None
            lane.count(batch, outcome)
            self._bytes -= len(batch)
            self._settled.notify_all()


def _tell_many(tell: OnOutcomes, records: int, outcome: Outcome) -> None:
    tell(outcome, records)
