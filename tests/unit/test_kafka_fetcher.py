"""The fetcher against brokers that answer as planned: how much it asks for, how often, and what it makes of errors."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import errors
from kafka.future import Future
from kafka.net.selector import NetworkSelector

from keystone.config import KafkaConfig
from keystone.errors import KeystoneError, LogCorrupt, LogRecreated, OffsetOutOfRange, UsageError
from keystone.log.kafka import fetcher as module
from keystone.log.kafka.batches import BatchBuilder
from keystone.log.kafka.client import ANSWER_BYTES_MAX
from keystone.log.kafka.fetcher import Fetcher, Place

WAIT_S = 20.0
OLD, NEW = "an id", "another id"
LOST = errors.KafkaConnectionError("hung up")


def batch_of(base: int, count: int = 10, size: int = 10) -> bytes:
    builder = BatchBuilder()
    for _ in range(count):
        builder.add(bytes(size))
    wire = builder.encode("none", now_ms=1, producer_id=-1, producer_epoch=-1, sequence=-1)
    wire[:8] = struct.pack(">q", base)
    return bytes(wire)


class Brokers:
    """In the place of a ``KafkaClient``, and of the metadata of the topic ``t``. ``errors``: of the next fetches, of any partition."""

    def __init__(self, *, replicas: int = 1, **settings: Any) -> None:
        self.config = KafkaConfig(**{"fetch_wait_ms": 5, **settings})
        self.net = NetworkSelector()
        self.control = self.fetching = self.cluster = self
        self.servers = ("a:1",)
        self.parts: dict[int, list[bytes]] = {}
        self.plans: list[Any] = []
        self.id: Any = OLD
        self.is_closed = self.is_there = False
        self.is_there = True
        self.unauthorized_topics: set[str] = set()
        self.asked: list[Any] = []
        self.updates = 0
        self.before_answer: Callable[[], None] = lambda: None
        self._partitions = {"t": {p: SimpleNamespace(replica_nodes=[0] * replicas, leader_epoch=1) for p in range(4)}}
        self.net.start()

    def start(self, coro: Any, *arguments: Any) -> None:
        self.net.call_soon_with_future(coro, *arguments)

    def leader(self, topic: str, partition: int, *, of: Any) -> int | None:
        return 0 if self.is_there else None

    def topic_id(self, topic: str) -> Any:
        return self.id

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {0, 1} if self.is_there else None

    def request_update(self) -> None:
        self.updates += 1

    def end(self, partition: int) -> int:
        return sum(10 for _ in self.parts.get(partition, []))

    def send(self, request: Any, leader: int) -> Future:
        if type(request).__name__ != "FetchRequest":
            return self.answer_of_ends(request)
        self.asked.append(request)
        plan = self.plans.pop(0) if self.plans else None
        future = Future()
        if isinstance(plan, Exception):
            return future.failure(plan)
        [topic] = request.topics
        assert len({p.partition for p in topic.partitions}) == len(topic.partitions)
        answer = SimpleNamespace(error_code=0, responses=[SimpleNamespace(partitions=[self._part(p, plan) for p in topic.partitions])])

        def tell() -> None:
            self.before_answer()
            future.success(answer)

        self.net.call_later(0.001 if any(p.records for p in answer.responses[0].partitions) else 0.005, tell)
        return future

    def answer_of_ends(self, request: Any) -> Future:
        return Future().failure(LOST)

    def _part(self, asked: Any, plan: Any) -> Any:
        found = SimpleNamespace(partition_index=asked.partition, error_code=0, high_watermark=self.end(asked.partition), log_start_offset=0, records=None)
        if isinstance(plan, type):
            found.error_code = plan.errno
        elif isinstance(plan, bytes):
            found.records = plan[: asked.partition_max_bytes]
        elif asked.fetch_offset < found.high_watermark:
            found.records = b"".join(self.parts[asked.partition][asked.fetch_offset // 10 :])[: asked.partition_max_bytes]
        return found

    def close(self) -> None:
        self.is_closed = True
        self.net.stop()
        self.net.close()


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[Brokers, Fetcher]]]:
    made: list[Brokers] = []

    def start(**options: Any) -> tuple[Brokers, Fetcher]:
        made.append(Brokers(**options))
        return made[-1], Fetcher(made[-1], "t")  # type: ignore[arg-type]

    yield start
    for brokers in made:
        brokers.close()


Start = Callable[..., tuple[Brokers, Fetcher]]


def soon(holds: Callable[[], Any]) -> None:
    until = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.002)


def fault_of(place: Place) -> KeystoneError:
    with place.changed:
        assert place.changed.wait_for(lambda: place.fault, WAIT_S)
        assert place.fault is not None
        return place.fault


def taken(fetcher: Fetcher, place: Place, behind: int) -> bytes:
    """Everything up to ``behind``, taken as a reader does."""
    found, until = b"", time.monotonic() + WAIT_S
    while True:
        with place.changed:
            while place.chunks:
                chunk = place.chunks.popleft()
                place.chunk_bytes -= len(chunk.data)
                found += bytes(chunk.data)
            if place.next_offset >= behind:
                return found
        fetcher.wake_for_room()
        assert time.monotonic() < until
        time.sleep(0.002)


def test_what_is_there_is_fetched_and_what_comes_later_too(start: Start) -> None:
    brokers, fetcher = start()
    brokers.parts[0] = [batch_of(0), batch_of(10)]
    place = Place(0, 0, OLD)
    fetcher.add(place)
    assert taken(fetcher, place, 20) == b"".join(brokers.parts[0])
    brokers.parts[0].append(batch_of(20))
    assert taken(fetcher, place, 30) == batch_of(20)
    assert place.end_offset == 30
    fetcher.remove(place)
    asked = len(brokers.asked)
    time.sleep(0.1)
    assert len(brokers.asked) <= asked + 1


def test_readers_of_one_partition_take_turns(start: Start) -> None:
    brokers, fetcher = start()
    brokers.parts[0] = [batch_of(10 * i) for i in range(20)]
    places = [Place(0, 0, OLD), Place(0, 100, OLD), Place(0, 190, OLD)]
    for place in places:
        fetcher.add(place)
    assert [len(taken(fetcher, place, 200)) for place in places] == [len(batch_of(0)) * n for n in (20, 10, 1)]
    soon(lambda: all(place.empty_since_ms for place in places))


def test_an_answer_from_before_a_seek_is_void(start: Start) -> None:
    brokers, fetcher = start()
    brokers.parts[0] = [batch_of(10 * i) for i in range(5)]
    place = Place(0, 0, OLD)

    def move() -> None:
        brokers.before_answer = lambda: None
        with place.changed:
            place.move(40)

    brokers.before_answer = move
    fetcher.add(place)
    assert taken(fetcher, place, 50) == batch_of(40)


def asks_more(brokers: Brokers) -> bool:
    """Within 0.2 s."""
    asked = len(brokers.asked)
    time.sleep(0.2)
    return len(brokers.asked) > asked


@pytest.mark.slow
@pytest.mark.parametrize("partitions", [1, 4])
def test_what_nobody_polls_is_bounded(start: Start, partitions: int) -> None:
    room, most = 400_000, 40_000
    brokers, fetcher = start(fetch_buffer_bytes_max=room, fetch_bytes_max=most)
    places = [Place(p, 0, OLD) for p in range(partitions)]
    for place in places:
        brokers.parts[place.partition] = [batch_of(10 * i, size=1_000) for i in range(300)]
        fetcher.add(place)
    soon(lambda: sum(place.chunk_bytes for place in places) > room - most * partitions)
    soon(lambda: not asks_more(brokers))  # one more may be on its way when the room is nearly used
    assert not asks_more(brokers)
    assert sum(place.chunk_bytes for place in places) <= room + most * partitions
    assert all(request.max_bytes <= room for request in brokers.asked)
    assert min(request.max_bytes for request in brokers.asked) < room
    for place in places:
        assert taken(fetcher, place, 3_000)


def test_who_holds_nothing_is_fetched_for_though_others_hold_all_the_room(start: Start) -> None:
    brokers, fetcher = start(fetch_buffer_bytes_max=100_000, fetch_bytes_max=40_000)
    idle, busy = Place(0, 0, OLD), Place(1, 0, OLD)
    for place in (idle, busy):
        brokers.parts[place.partition] = [batch_of(10 * i, size=1_000) for i in range(30)]
    fetcher.add(idle)  # it alone may hold everything, and nobody polls it
    soon(lambda: idle.chunk_bytes > 100_000 and not idle.is_fetching)
    fetcher.add(busy)
    assert taken(fetcher, busy, 300)
    assert idle.chunk_bytes <= 100_000 + 40_000


def test_no_more_is_waited_for_than_an_answer_may_hold(start: Start) -> None:
    brokers, fetcher = start(fetch_buffer_bytes_max=1 << 20, fetch_bytes_max=40_000)
    places = [Place(p, 0, OLD) for p in range(2)]
    fetcher._rate = 1e9  # as when much is caught up with
    for place in places:
        brokers.parts[place.partition] = [batch_of(10 * i, size=1_000) for i in range(30)]
        fetcher.add(place)
    for place in places:
        assert taken(fetcher, place, 300)
    assert max(request.min_bytes for request in brokers.asked) > 1
    for request in brokers.asked:
        assert request.min_bytes <= min(request.max_bytes, sum(p.partition_max_bytes for p in request.topics[0].partitions)) // 2


@pytest.mark.slow
def test_a_chunk_that_is_taken_wakes_the_fetcher_only_where_room_was_lacking(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    brokers, fetcher = start(fetch_buffer_bytes_max=30_000, fetch_bytes_max=10_000)
    place = Place(0, 0, OLD)
    brokers.parts[0] = [batch_of(10 * i, size=1_000) for i in range(20)]
    wakes: list[bool] = []
    monkeypatch.setattr(fetcher, "wake", lambda wake=fetcher.wake: (wakes.append(True), wake()))
    fetcher.add(place)
    soon(lambda: place.chunk_bytes > 20_000 and fetcher._lacks_room and not asks_more(brokers))
    before = len(wakes)
    fetcher.wake_for_room()
    assert len(wakes) == before + 1
    assert taken(fetcher, place, 200)
    soon(lambda: place.next_offset == 200 and not place.chunks and not fetcher._lacks_room)
    before = len(wakes)
    fetcher.wake_for_room()
    assert len(wakes) == before


# --- errors ---------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [LOST, errors.NodeNotReadyError("backoff"), errors.NotLeaderForPartitionError, errors.KafkaStorageError, errors.UnknownTopicIdError, ValueError()]
)
def test_what_may_pass_is_tried_again_but_not_at_once(start: Start, error: Any) -> None:
    brokers, fetcher = start()
    brokers.parts[0], brokers.plans = [batch_of(0)], [error] * 1_000
    place = Place(0, 0, OLD)
    began_s = time.monotonic()
    fetcher.add(place)
    while len(brokers.asked) < 5:
        assert time.monotonic() < began_s + 20
        time.sleep(0.001)
    assert time.monotonic() - began_s > 0.2, "four pauses"
    assert brokers.updates > 0
    assert fetcher.metrics.failures >= 4
    brokers.plans.clear()
    assert taken(fetcher, place, 10) == batch_of(0)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.OffsetOutOfRangeError, OffsetOutOfRange),
        (errors.TopicAuthorizationFailedError, UsageError),
        (errors.UnsupportedCompressionTypeError, LogCorrupt),
    ],
)
def test_what_does_not_pass_is_left_at_the_place_until_it_moves(start: Start, error: Any, kind: type[KeystoneError]) -> None:
    brokers, fetcher = start()
    brokers.parts[0], brokers.plans = [batch_of(0)], [error]
    place = Place(0, 0, OLD)
    fetcher.add(place)
    assert type(fault_of(place)) is kind
    time.sleep(0.1)
    assert len(brokers.asked) == 1
    with place.changed:
        place.move(0)
    fetcher.wake()
    assert taken(fetcher, place, 10) == batch_of(0)


@pytest.mark.slow
def test_a_broker_that_cannot_find_its_way_is_believed_the_third_time(start: Start) -> None:
    brokers, fetcher = start()
    brokers.parts[0], brokers.plans = [batch_of(0)], [errors.CorruptRecordError] * 2
    place = Place(0, 0, OLD)
    fetcher.add(place)
    assert taken(fetcher, place, 10) == batch_of(0)
    brokers.plans = [errors.CorruptRecordError] * 1_000
    fault = fault_of(place)
    assert isinstance(fault, LogCorrupt)
    assert "seek behind it" in str(fault)


def test_a_batch_larger_than_a_fetch_is_fetched_by_larger_ones(start: Start) -> None:
    brokers, fetcher = start(fetch_bytes_max=100)
    brokers.parts[0] = [batch_of(0, size=1_000), batch_of(10)]
    place = Place(0, 0, OLD)
    fetcher.add(place)
    assert taken(fetcher, place, 20).startswith(brokers.parts[0][0])
    asked = [request.topics[0].partitions[0].partition_max_bytes for request in brokers.asked]
    assert asked[:8] == [100 << i for i in range(8)]
    soon(lambda: brokers.asked[-1].topics[0].partitions[0].partition_max_bytes == 100)


@pytest.mark.slow
@pytest.mark.parametrize("length", [1 << 20, 2**31 - 1])
def test_a_batch_without_an_end_is_told(start: Start, length: int) -> None:
    brokers, fetcher = start(fetch_bytes_max=1_000)
    wire = bytearray(batch_of(0) + batch_of(10))
    wire[8:12] = struct.pack(">i", length)
    brokers.parts[0] = [bytes(wire), b""]
    place = Place(0, 0, OLD)
    fetcher.add(place)
    fault = fault_of(place)
    assert isinstance(fault, LogCorrupt)
    assert "has no end" in str(fault)
    assert all(request.topics[0].partitions[0].partition_max_bytes <= ANSWER_BYTES_MAX for request in brokers.asked)


# --- the topic ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_topic_that_is_gone_is_waited_for_and_its_successor_told(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MISSING_RETRY_S", 0.05)
    brokers, fetcher = start()
    brokers.parts[0] = [batch_of(0)]
    place, other = Place(0, 0, OLD), Place(1, 0, OLD)
    for each in (place, other):
        fetcher.add(each)
    assert taken(fetcher, place, 10) == batch_of(0)
    brokers.is_there, brokers.id = False, None
    soon(lambda: fetcher.metrics.is_missing)
    updates, asked = brokers.updates, len(brokers.asked)
    time.sleep(0.3)
    assert brokers.updates - updates <= 2 * 8
    assert len(brokers.asked) == asked
    assert fetcher.metrics.is_missing
    assert place.fault is None
    brokers.is_there, brokers.id = True, NEW
    for each in (place, other):
        assert isinstance(fault_of(each), LogRecreated)
    with place.changed:
        place.topic_id = NEW
        place.move(0)
    fetcher.wake()
    assert taken(fetcher, place, 10) == batch_of(0)
    soon(lambda: not fetcher.metrics.is_missing)


def test_a_topic_that_may_not_be_read_any_more_is_told(start: Start) -> None:
    brokers, fetcher = start()
    brokers.is_there, brokers.unauthorized_topics = False, {"t"}
    place = Place(0, 0, OLD)
    fetcher.add(place)
    assert isinstance(fault_of(place), UsageError)


# --- silence --------------------------------------------------------------------------------------------------------------
def test_silence_is_known_from_a_fetch_that_found_nothing(start: Start) -> None:
    brokers, fetcher = start()
    place = Place(0, 0, OLD)
    before_ms = time.time_ns() // 1_000_000
    fetcher.add(place)
    soon(lambda: place.empty_since_ms >= before_ms)
    soon(lambda: place.empty_since_ms > before_ms + 50)
    assert place.empty_since_ms <= time.time_ns() // 1_000_000 + brokers.config.fetch_wait_ms


@pytest.mark.slow
def test_silence_is_not_known_where_replicas_may_hold_records_back(start: Start) -> None:
    """The leader does not say where its own log ends."""
    brokers, fetcher = start(replicas=3)
    place = Place(0, 0, OLD)
    fetcher.add(place)
    soon(lambda: len(brokers.asked) > 3)
    assert place.empty_since_ms == 0


def test_close_in_mid_fetch_ends_everything(start: Start) -> None:
    brokers, fetcher = start()
    place = Place(0, 0, OLD)
    brokers.before_answer = lambda: None
    fetcher.add(place)
    soon(lambda: len(brokers.asked) > 2)
    thread = threading.Thread(target=brokers.close)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    fetcher.wake()
    asked = len(brokers.asked)
    time.sleep(0.1)
    assert len(brokers.asked) == asked
