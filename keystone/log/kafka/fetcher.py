"""Fetches in the background: at most one request to each broker, for all partitions of this process that have room.

A fetch is stateless, so every failure has one cure: wait a little, ask who leads the partition now, and fetch the same offset
again. What cannot be cured is left at the partition's ``Place`` for whoever polls it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from kafka import errors
from kafka.net.wakeup_notifier import WakeupNotifier
from kafka.protocol.consumer import FetchRequest, OffsetForLeaderEpochRequest

from keystone.errors import KeystoneError, LogCorrupt, LogRecreated, OffsetOutOfRange
from keystone.log.kafka import explain
from keystone.log.kafka.batches import end_offset
from keystone.log.kafka.client import ANSWER_BYTES_MAX, RETRY_MS, KafkaClient, log
from keystone.metrics import LatencyHistogram

BY_ID_VERSION: Final = 13  # from here on topics are named by id (KIP-516), so that one made anew is not taken for the old
BY_NAME_VERSION: Final = 12
VERSION_MIN: Final = 10  # zstd
EAGER_BYTES_PER_S: Final = 4e6  # above, a fetch waits for a worthwhile amount: each costs ~1 ms here and at the broker
EAGER_PERIOD_S: Final = 0.020  # a session actor's turn
RATE_MEMORY_S: Final = 0.5
FETCH_PERIOD_S: Final = EAGER_PERIOD_S  # ... also where less comes: else each of a few records would have a fetch of its own
UNASKED_RETRY_S: Final = 0.02  # between two looks while metadata are being asked for
MISSING_RETRY_S: Final = 0.5  # between two looks for a topic that is gone
CUT_OFF_TRIES_MAX: Final = 3  # of a batch that stays cut off although there was room


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one fetch returned of one partition: whole batches, and maybe the beginning of one more."""

    data: memoryview
    next_offset: int  # behind its last whole batch


@dataclass(slots=True)
class Place:
    """One partition being fetched. Whoever reads or changes it holds ``changed``."""

    partition: int
    next_offset: int
    topic_id: Any
    changed: threading.Condition = field(default_factory=threading.Condition)
    chunks: deque[Chunk] = field(default_factory=deque)
    chunk_bytes: int = 0
    generation: int = 0  # of seeks: an answer to a fetch from before one is void
    is_fetching: bool = False
    not_before_s: float = 0.0  # monotonic
    fetched_s: float = 0.0  # monotonic, of the last fetch
    end_offset: int = -1  # the high watermark, as of the last answer
    start_offset: int = 0
    empty_since_ms: int = 0  # wall time when the last fetch was sent that found nothing behind ``next_offset``
    fetch_bytes: int = 0
    cut_offs: int = 0
    fault: KeystoneError | None = None
    is_closed: bool = False

    def move(self, offset: int) -> None:
        """Begin anew at ``offset``."""
        self.next_offset = offset
        self.generation += 1
        self.chunks.clear()
        self.chunk_bytes = self.cut_offs = self.empty_since_ms = 0
        self.not_before_s = 0.0
        self.fault = None


@dataclass(slots=True)
class FetchMetrics:
    """Counted on the fetching thread. ``waits`` (ms) are from request to answer, the broker's own wait for records included."""

    fetches: int = 0
    fetched_bytes: int = 0
    failures: int = 0
    waits: LatencyHistogram = field(default_factory=LatencyHistogram)
    is_missing: bool = False  # the topic, by what brokers said last


class Fetcher:
    """Keeps the places of one topic filled, up to ``fetch_buffer_bytes_max`` together."""

    def __init__(self, client: KafkaClient, topic: str) -> None:
        self.metrics = FetchMetrics()
        self._client = client
        self._topic = topic
        self._config = client.config
        self._places: dict[int, list[Place]] = {}
        self._busy: set[int] = set()  # brokers with a fetch under way
        self._not_before_s: dict[int, float] = {}  # monotonic, by broker
        self._rate = 0.0
        self._rated_s = time.monotonic()
        self._woken = WakeupNotifier(client.net)
        self._lock = threading.Lock()
        self._is_running = False
        self._lacks_room = True  # some place was passed over for that, as of the last look; while one is under way, maybe
        self._was_known = False  # metadata have named a leader: from then on none means an election, or that the topic is gone

    # --- from any thread ------------------------------------------------------------------------------------------------
    def add(self, place: Place) -> None:
        """Fetch for ``place`` from now on."""
        place.fetch_bytes = self._config.fetch_bytes_max
        with self._lock:
            self._places.setdefault(place.partition, []).append(place)
            starts, self._is_running = not self._is_running, True
        if starts:
            self._client.start(self._drive)
        self.wake()

    def remove(self, place: Place) -> None:
        with self._lock:
            places = self._places.get(place.partition, [])
            if place in places:
                places.remove(place)

    def wake(self) -> None:
        """There is room, or another place to fetch from."""
        if not self._client.is_closed:
            self._woken.notify()

    def wake_for_room(self) -> None:
        """A chunk was taken: a wake, which is a system call and a round of the thread, only where that lets something be fetched."""
        if self._lacks_room:
            self.wake()

    def topic_id(self) -> Any:
        """The topic's id by the last metadata; None where brokers give none, or there is no such topic."""
        return self._client.fetching.cluster.topic_id(self._topic)

    # --- on the thread of input and output --------------------------------------------------------------------------------
    async def _drive(self) -> None:
        while not self._client.is_closed:
            until_s = self._send_what_can_be()
            await self._woken(max(0.001, until_s - time.monotonic()))

    def _send_what_can_be(self) -> float:
        """Start a fetch at every idle broker that has something to fetch; when to look again (monotonic, s)."""
        now_s = time.monotonic()
        again_s = now_s + 1.0
        self._lacks_room = True  # before the first look at what is held: a chunk that is taken after it wakes us again
        lacks_room = False
        with self._lock:
            places = [place for group in self._places.values() for place in group]
        room = self._config.fetch_buffer_bytes_max - sum(place.chunk_bytes for place in places)
        by_leader: dict[int, list[Place]] = {}
        for place in places:
            if place.is_fetching or place.fault is not None or place.is_closed:
                continue
            if place.chunk_bytes and (room <= 0 or place.chunk_bytes > self._config.fetch_buffer_bytes_max // max(1, len(places))):
                lacks_room = True  # who holds nothing is fetched for in any case: others, whom nobody polls for a while, may hold all the room
                continue
            if place.not_before_s > now_s:
                again_s = min(again_s, place.not_before_s)
                continue
            leader = self._client.leader(self._topic, place.partition, of=self._client.fetching)
            if leader is None or self._was_made_anew(place):
                self._without_leader(place, now_s)
                again_s = min(again_s, place.not_before_s)
            else:
                self._was_known = True
                by_leader.setdefault(leader, []).append(place)
        self._lacks_room = lacks_room
        for leader, waiting in by_leader.items():
            if leader not in self._busy and (not_before_s := self._not_before_s.get(leader, 0.0)) > now_s:
                again_s = min(again_s, not_before_s)
                continue
            ours = list({place.partition: place for place in sorted(waiting, key=lambda place: -place.fetched_s)}.values())
            if leader not in self._busy:
                self._busy.add(leader)
                for place in ours:  # of several readers of one partition, the one that waits longest: a fetch names a partition once
                    place.is_fetching, place.fetched_s = True, now_s
                self._client.start(self._fetch, leader, ours, room // len(by_leader))
        return again_s

    def _was_made_anew(self, place: Place) -> bool:
        known = self.topic_id()
        return known is not None and place.topic_id is not None and known != place.topic_id

    def _without_leader(self, place: Place, now_s: float) -> None:
        """No leader is known: not asked yet, an election, a topic that was deleted, or one made anew."""
        cluster = self._client.fetching.cluster
        with place.changed:
            place.not_before_s = now_s + (MISSING_RETRY_S if self._was_known else UNASKED_RETRY_S)
            if self._was_made_anew(place):
                what = f"topic {self._topic!r} was deleted and made anew: offset {place.next_offset} of partition {place.partition} is gone"
                self._fail(place, LogRecreated(what))
                return
            if self._topic in cluster.unauthorized_topics:
                self._fail(place, explain.not_allowed("read", self._topic, self._config))
                return
        is_missing = self._was_known and cluster.partitions_for_topic(self._topic) is None
        if is_missing and not self.metrics.is_missing:
            log.warning("topic %s is not there: waiting for it", self._topic)
        self.metrics.is_missing = is_missing
        cluster.request_update()

    async def _fetch(self, leader: int, places: list[Place], room: int) -> None:
        asked = [(place, place.generation, place.next_offset) for place in places]
        sent_ms, began_s = int(time.time() * 1_000), time.monotonic()
        try:
            request = self._request(asked, room)
            ends = self._ask_for_ends(leader, asked)
            answer = await self._client.fetching.send(request, leader)
            asked_ms = sent_ms
            took_ms = (time.monotonic() - began_s) * 1_000
            self.metrics.fetches += 1
            self.metrics.waits.add(took_ms)
            if is_empty(answer) and took_ms >= request.max_wait_ms:
                sent_ms += request.max_wait_ms  # the broker looked once more at the end of its wait, before it answered so
            self._take(answer, asked, sent_ms)
            is_behind = any(place.next_offset < place.end_offset for place in places)
            self._not_before_s[leader] = 0.0 if is_behind else began_s + FETCH_PERIOD_S
            if ends is not None:
                self._take_ends(await ends, asked, asked_ms)
        except Exception as error:  # noqa: BLE001 - a broker that dies in mid-answer must cost this fetch only
            self._failed(error, places)
        finally:
            self._busy.discard(leader)
            for place in places:
                place.is_fetching = False
            self._woken.notify()

    # --- what is appended and not readable yet --------------------------------------------------------------------------------
    def _ask_for_ends(self, leader: int, asked: list[tuple[Place, int, int]]) -> Any:
        """Ask for the ends of the leader's own log, where there are replicas: a fetch sees only what all in sync have.

        A record that is appended and not replicated has its time already; a follower that stands still may keep it back for
        seconds. The answer comes before the fetch's: requests of one connection are handled one after the other.
        """
        cluster = self._client.fetching.cluster
        known = cluster._partitions.get(self._topic, {})  # noqa: SLF001 - replicas have no public way
        kinds = OffsetForLeaderEpochRequest.OffsetForLeaderTopic
        partitions = [
            kinds.OffsetForLeaderPartition(partition=place.partition, current_leader_epoch=found.leader_epoch, leader_epoch=found.leader_epoch)
            for place, _, _ in asked
            if (found := known.get(place.partition)) is not None and len(found.replica_nodes) > 1
        ]
        if not partitions:
            return None
        request = OffsetForLeaderEpochRequest(topics=[kinds(topic=self._topic, partitions=partitions)], min_version=2)
        return self._client.fetching.send(request, leader)

    def _take_ends(self, answer: Any, asked: list[tuple[Place, int, int]], sent_ms: int) -> None:
        """Where the leader's log ended at what was asked for, whatever comes later is appended after ``sent_ms``."""
        ends = {found.partition: int(found.end_offset) for topic in answer.topics for found in topic.partitions if not found.error_code}
        for place, generation, offset in asked:
            if ends.get(place.partition) == offset:
                with place.changed:
                    if place.generation == generation:
                        place.empty_since_ms = max(place.empty_since_ms, sent_ms)

    def _has_replicas(self, place: Place) -> bool:
        known = self._client.fetching.cluster._partitions.get(self._topic, {})  # noqa: SLF001 - as above
        found = known.get(place.partition)
        return found is None or len(found.replica_nodes) > 1

    def _request(self, asked: list[tuple[Place, int, int]], room: int) -> Any:
        kinds = FetchRequest.FetchTopic
        bytes_max = max(room, *(place.fetch_bytes for place, _, _ in asked))
        able = min(bytes_max, sum(place.fetch_bytes for place, _, _ in asked)) // 2  # more than an answer may hold would only be waited for
        bytes_min = max(1, min(able, int(self._rate * EAGER_PERIOD_S))) if self._rate > EAGER_BYTES_PER_S else 1
        wait_ms = self._config.fetch_wait_ms if bytes_min == 1 else min(self._config.fetch_wait_ms, int(2_000 * EAGER_PERIOD_S))
        topic_id = asked[0][0].topic_id
        version = BY_NAME_VERSION if topic_id is None else BY_ID_VERSION
        partitions = [
            kinds.FetchPartition(
                partition=place.partition,
                current_leader_epoch=-1,
                fetch_offset=offset,
                last_fetched_epoch=-1,
                log_start_offset=-1,
                partition_max_bytes=place.fetch_bytes,
            )
            for place, _, offset in asked
        ]
        return FetchRequest(
            replica_id=-1,
            max_wait_ms=wait_ms,
            min_bytes=bytes_min,
            max_bytes=bytes_max,
            isolation_level=0,
            session_id=0,
            session_epoch=-1,
            topics=[kinds(topic=self._topic, topic_id=topic_id, partitions=partitions)],
            forgotten_topics_data=[],
            rack_id="",
            min_version=VERSION_MIN if topic_id is None else BY_ID_VERSION,
            max_version=version,
        )

    def _take(self, answer: Any, asked: list[tuple[Place, int, int]], sent_ms: int) -> None:
        if answer.error_code:
            raise errors.for_code(answer.error_code)
        by_partition = {place.partition: (place, generation, offset) for place, generation, offset in asked}
        total = 0
        for topic in answer.responses:
            for found in topic.partitions:
                place, generation, offset = by_partition.pop(found.partition_index)
                with place.changed:
                    if place.generation != generation:
                        continue
                    if found.error_code:
                        self._refused(place, errors.for_code(found.error_code), offset)
                    else:
                        total += self._accept(place, found, offset, sent_ms)
                    place.changed.notify_all()
        self.metrics.fetched_bytes += total
        self._note_rate(total)

    def _note_rate(self, fetched_bytes: int) -> None:
        now_s = time.monotonic()
        since_s = max(now_s - self._rated_s, 1e-4)
        self._rated_s = now_s
        self._rate += min(1.0, since_s / RATE_MEMORY_S) * (fetched_bytes / since_s - self._rate)

    def _accept(self, place: Place, found: Any, offset: int, sent_ms: int) -> int:
        """Keep what came; the number of bytes."""
        self.metrics.is_missing = False
        place.end_offset, place.start_offset = int(found.high_watermark), max(0, int(found.log_start_offset))
        data = memoryview(found.records) if found.records is not None else memoryview(b"")
        if not len(data):
            if place.end_offset <= offset and not self._has_replicas(place):
                place.empty_since_ms = sent_ms
            return 0
        behind = end_offset(data, offset, place.end_offset)
        if behind is None:
            self._cut_off(place, len(data), offset)
            return 0
        place.cut_offs, place.fetch_bytes = 0, self._config.fetch_bytes_max
        if behind == offset:  # damaged: whoever reads it will see to it
            place.not_before_s = time.monotonic() + RETRY_MS / 1_000
        place.next_offset = behind
        place.chunks.append(Chunk(data, behind))
        place.chunk_bytes += len(data)
        return len(data)

    def _cut_off(self, place: Place, size: int, offset: int) -> None:
        """Not even one whole batch came: it is larger than what was asked for, or its length is damaged."""
        if place.fetch_bytes < ANSWER_BYTES_MAX // 2 and size * 2 > place.fetch_bytes:
            place.fetch_bytes *= 2
        else:
            self._try_again(place, f"the batch at offset {offset} has no end: its length is damaged")

    def _try_again(self, place: Place, why: str) -> None:
        """What cannot be made sense of may have been damaged on its way here: up to CUT_OFF_TRIES_MAX times."""
        place.cut_offs += 1
        place.not_before_s = time.monotonic() + RETRY_MS / 1_000
        if place.cut_offs >= CUT_OFF_TRIES_MAX:
            place.fault = LogCorrupt(f"topic {self._topic!r}, partition {place.partition}: {why}; seek behind it")

    def _refused(self, place: Place, error: type[Any], offset: int) -> None:
        """One partition's error. Called with ``place.changed`` held."""
        self.metrics.failures += 1
        where = f"topic {self._topic!r}, partition {place.partition}"
        if error is errors.OffsetOutOfRangeError:
            place.fault = OffsetOutOfRange(f"{where}: offset {offset} is not in the log")
        elif error is errors.TopicAuthorizationFailedError:
            place.fault = explain.not_allowed("read", self._topic, self._config)
        elif error in (errors.UnsupportedCompressionTypeError, errors.UnsupportedVersionError):
            place.fault = LogCorrupt(f"{where}: cannot be fetched: {error.__name__}")
        elif error is errors.CorruptRecordError:
            self._try_again(place, f"the broker finds no batch at offset {offset}: a length before it is damaged")
        else:
            seconds = MISSING_RETRY_S if error in (errors.UnknownTopicOrPartitionError, errors.UnknownTopicIdError) else RETRY_MS / 1_000
            place.not_before_s = time.monotonic() + seconds
            self._client.fetching.cluster.request_update()

    def _failed(self, error: Exception, places: list[Place]) -> None:
        """The whole fetch: a lost connection, a timeout, an answer that is none."""
        self.metrics.failures += 1
        if not isinstance(error, errors.KafkaError):
            log.error("a fetch failed: %s: %s", type(error).__name__, error)
        not_before_s = time.monotonic() + RETRY_MS / 1_000
        for place in places:
            place.not_before_s = not_before_s
        self._client.fetching.cluster.request_update()

    @staticmethod
    def _fail(place: Place, fault: KeystoneError) -> None:
        with place.changed:
            place.fault = fault
            place.changed.notify_all()


def is_empty(answer: Any) -> bool:
    """Whether a fetch found nothing in any partition, and no error."""
    return not answer.error_code and not any(p.error_code or p.records for topic in answer.responses for p in topic.partitions)
