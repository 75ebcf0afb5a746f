"""Brokers in this process, for tests of the producer: they store, answer and fail as a test says, and know producers as Kafka does."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Generator, Iterable
from types import SimpleNamespace
from typing import Any

from kafka import errors
from kafka.future import Future
from kafka.net.selector import NetworkSelector
from kafka.record.default_records import DefaultRecordBatch

from keystone.config import KafkaConfig

APPEND_MS = 1_790_000_000_000
#: What a broker may do with one request; anything else is the error that it answers with, having stored nothing.
STORE, LOSE_ANSWER, LOSE_REQUEST, HOLD, DOWN = "store", "lose the answer", "lose the request", "hold", "down"


class Partition:
    """Its records, and what it knows of producers: (id, epoch) to the next sequence and the batches it took."""

    def __init__(self) -> None:
        self.values: list[bytes | None] = []
        self.batch_sizes: list[int] = []
        self.next_sequence: dict[tuple[int, int], int] = {}
        self.taken: dict[tuple[int, int, int], int] = {}  # (id, epoch, sequence) to its offset

    def append(self, wire: bytes, bytes_max: int) -> tuple[type[Any], int]:
        batch = DefaultRecordBatch(wire)
        assert batch.validate_crc()
        who, first = (batch.producer_id, batch.producer_epoch), batch.base_sequence
        if len(wire) > bytes_max:
            return errors.MessageSizeTooLargeError, -1
        if (*who, first) in self.taken:
            return errors.NoError, self.taken[*who, first]
        if first != self.next_sequence.get(who, 0):
            return errors.OutOfOrderSequenceNumberError, -1
        records = [record.value for record in batch]
        assert [record.offset for record in DefaultRecordBatch(wire)] == list(range(len(records)))
        self.taken[*who, first] = len(self.values)
        self.next_sequence[who] = (first + len(records)) & 0x7FFFFFFF
        self.values += records
        self.batch_sizes.append(len(wire))
        return errors.NoError, self.taken[*who, first]


class Connection:
    """What kafka-python's manager gives: awaited until it can be used, and asked then."""

    def __init__(self, brokers: Brokers, node: int) -> None:
        self._brokers, self._node = brokers, node

    def __await__(self) -> Generator[Any, Any, Connection]:
        if self._brokers.plan(self._node) == DOWN:
            self._brokers.next_plan(self._node)
            yield from Future().failure(errors.KafkaConnectionError("nothing listens")).__await__()
        return self

    def send_request(self, request: Any) -> Future:
        return self._brokers.produce(self._node, request)


class Brokers:
    """In the place of a ``KafkaClient``. ``plans``: of each request in order, by broker; STORE beyond their end."""

    def __init__(self, *, plans: Iterable[Any] = (), bytes_max: int = 1 << 30, nodes: int = 1, **settings: Any) -> None:
        self.config = KafkaConfig(**{"linger_ms": 1, **settings})
        self.net = NetworkSelector()
        self.control = self.cluster = self
        self.plans: dict[int, list[Any]] = {0: list(plans)}
        self.bytes_max, self.nodes = bytes_max, nodes
        self.partitions: dict[tuple[str, int], Partition] = {}
        self.is_closed = self.is_leaderless = False
        self.ids = self.updates = self.requests = 0
        self.under_way: dict[int, int] = {}
        self.held: list[Callable[[], None]] = []
        self.came = threading.Condition()
        self.net.start()

    # --- a client -----------------------------------------------------------------------------------------------------------
    def start(self, coro: Any, *arguments: Any) -> None:
        self.net.call_soon_with_future(coro, *arguments)

    def leader(self, topic: str, partition: int) -> int | None:
        return None if self.is_leaderless else partition % self.nodes

    def request_update(self) -> None:
        self.updates += 1

    def least_loaded_node(self) -> int:
        return 0

    def get_connection(self, node: int) -> Connection:
        return Connection(self, node)

    def send(self, request: Any, node: int) -> Future:
        """Only for producer ids."""
        self.ids += 1
        return Future().success(SimpleNamespace(error_code=0, producer_id=1_000 + self.ids, producer_epoch=0))

    def close(self) -> None:
        self.is_closed = True
        self.net.stop()
        self.net.close()

    # --- brokers ------------------------------------------------------------------------------------------------------------
    def plan(self, node: int) -> Any:
        plans = self.plans.get(node, [])
        return plans[0] if plans else STORE

    def next_plan(self, node: int) -> Any:
        plans = self.plans.get(node, [])
        return plans.pop(0) if plans else STORE

    def produce(self, node: int, request: Any) -> Future:
        plan, future = self.next_plan(node), Future()
        self.under_way[node] = self.under_way.get(node, 0) + 1
        assert self.under_way[node] == 1, "one request at a time keeps the order"

        def answer() -> None:
            self.under_way[node] -= 1
            if plan in (LOSE_ANSWER, LOSE_REQUEST):
                future.failure(errors.KafkaConnectionError("hung up"))
            elif plan == "nothing":
                future.success(SimpleNamespace(responses=[]))
            else:
                future.success(SimpleNamespace(responses=topics))

        topics = []
        for topic in request.topic_data:
            parts = [self._take(plan, topic.name, part.index, bytes(part.records)) for part in topic.partition_data]
            topics.append(SimpleNamespace(name=topic.name, partition_responses=parts))
        with self.came:
            self.requests += 1
            self.came.notify_all()
        if plan == HOLD:
            self.held.append(answer)
        else:
            answer()
        return future

    def _take(self, plan: Any, topic: str, index: int, wire: bytes) -> Any:
        partition = self.partitions.setdefault((topic, index), Partition())
        error, offset = errors.NoError, -1
        if plan in (STORE, LOSE_ANSWER, HOLD):
            error, offset = partition.append(wire, self.bytes_max)
        elif isinstance(plan, tuple):  # stored, and answered so all the same
            partition.append(wire, self.bytes_max)
            error = plan[1]
        elif isinstance(plan, type):
            error = plan
        return SimpleNamespace(index=index, error_code=error.errno, base_offset=offset, log_append_time_ms=APPEND_MS)

    def wait_requests(self, count: int) -> None:
        with self.came:
            assert self.came.wait_for(lambda: self.requests >= count, 20)

    def answer_held(self) -> None:
        while self.held:
            self.net.call_soon_threadsafe(self.held.pop(0))

    def values(self, partition: int = 0, topic: str = "t") -> list[bytes | None]:
        found = self.partitions.get((topic, partition))
        return [] if found is None else found.values


def sequence_of(wire: bytes) -> int:
    return int(struct.unpack_from(">i", wire, 53)[0])
