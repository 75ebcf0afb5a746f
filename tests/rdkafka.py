"""Kafka as another client sees it: librdkafka, by its Python binding and by kcat where that is installed; and what administrators do.

Nothing here imports the program: what it wrote is read by others, and it reads what others wrote.
"""

from __future__ import annotations

import shutil
import subprocess
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, NamedTuple, Protocol

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, AdminClient, NewTopic, ResourcePatternType, ResourceType

Codec = Literal["gzip", "lz4", "snappy", "zstd"]
#: key, value
Pair = tuple[bytes | None, bytes | None]

CODECS: tuple[Codec | None, ...] = (None, "gzip", "lz4", "snappy", "zstd")
WAIT_S_MAX = 60.0  # for any one call here; each takes far less than a second on brokers that are well
RECORD_BYTES_MAX = 10 << 20  # as the brokers of the tests take
QUEUED_MAX = 50_000  # messages; librdkafka refuses the 100,001st
PRODUCING = {
    "partitioner": "murmur2_random",  # what Java's clients do; librdkafka's own default is CRC32
    "message.max.bytes": str(RECORD_BYTES_MAX),
    "linger.ms": "5",
    "enable.idempotence": "false",  # 0.5 s a call, for a promise that few tests need
}
CONSUMING = {
    "fetch.wait.max.ms": "10",  # it learns that a partition ends by waiting there
    "enable.auto.commit": "false",
    "enable.partition.eof": "true",
    "auto.offset.reset": "earliest",
}
#: What a broker says that was just started and has not heard yet what it leads.
NOT_YET = {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.UNKNOWN_TOPIC_OR_PART}
#: Errors of a connection that trying again does not mend.
HOPELESS = {KafkaError._AUTHENTICATION, KafkaError._SSL}


class Record(NamedTuple):
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class Independent(Protocol):
    """A client that shares no code with the program."""

    def produce(
        self,
        servers: Sequence[str],
        topic: str,
        messages: Iterable[Pair],
        codec: Codec | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Send all and wait until all in-sync replicas have them. ``headers``: of each message. Raises when one is refused.

        Without ``partition``, murmur2 of the key decides; messages without a key go anywhere. Each is there once and in order
        within its partition, unless a broker fails meanwhile: the option ``enable.idempotence=true`` promises it then too.
        """

    def consume(self, servers: Sequence[str], topic: str) -> list[Record]:
        """Everything from the beginning of each partition to where it ends now, by partition and offset."""


@dataclass(frozen=True)
class Confluent:
    """confluent-kafka. ``options``: more settings of librdkafka, such as a login."""

    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return "confluent"

    def produce(
        self,
        servers: Sequence[str],
        topic: str,
        messages: Iterable[Pair],
        codec: Codec | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        refused: list[KafkaError] = []
        connection = {"bootstrap.servers": ",".join(servers), "error_cb": lambda error: refused.append(error) if error.code() in HOPELESS else None}
        producer = Producer({**connection, **PRODUCING, "compression.type": codec or "none", **self.options})
        place = -1 if partition is None else partition  # -1: the partitioner chooses

        def delivered(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                refused.append(error)

        for key, value in messages:
            while len(producer) >= QUEUED_MAX and not refused:
                producer.poll(0.05)
            producer.produce(topic, key=key, value=value, headers=list(headers), on_delivery=delivered, partition=place)
        deadline = time.monotonic() + WAIT_S_MAX
        while producer.flush(0.05) and not refused:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(producer)} messages to {topic} were not acknowledged within {WAIT_S_MAX:.0f} s")
        if refused:
            producer.purge()
            raise KafkaException(refused[0])

    def consume(self, servers: Sequence[str], topic: str) -> list[Record]:
        reader = _reader(servers, self.options)
        try:
            return sorted(_read_to_end(reader, topic), key=lambda record: record[:2])
        finally:
            reader.close()


def _reader(servers: Sequence[str], options: Mapping[str, str] | None = None) -> Consumer:
    """It joins no group; librdkafka wants the name of one all the same."""
    return Consumer({"bootstrap.servers": ",".join(servers), "group.id": "independent", **CONSUMING, **(options or {})})


def _read_to_end(reader: Consumer, topic: str) -> list[Record]:
    ends = {}
    for partition in _partitions(reader, topic):
        low, high = watermarks(reader, topic, partition)
        if low < high:
            ends[partition] = high
    reader.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in ends])
    found: list[Record] = []
    deadline = time.monotonic() + WAIT_S_MAX
    while ends:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the end of {topic} was not reached: {ends} are missing after {len(found)} records")
        for message in reader.consume(10_000, timeout=0.1):
            partition, offset = message.partition(), message.offset()
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            if error is None and partition in ends and offset < ends[partition]:
                headers = tuple((name, value) for name, value in message.headers() or ())
                found.append(Record(partition, offset, message.key(), message.value(), headers))
            if partition in ends and (error is not None or offset + 1 >= ends[partition]):
                del ends[partition]  # the end may come without its last record: transactions and compaction leave gaps
    return found


def watermarks(reader: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """The first offset there and the end; asks again while the broker, just started, does not know that it leads."""
    deadline = time.monotonic() + WAIT_S_MAX
    while True:
        try:
            return reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=WAIT_S_MAX)
        except KafkaException as error:
            if error.args[0].code() not in NOT_YET or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _partitions(client: Consumer | AdminClient, topic: str) -> list[int]:
    described = client.list_topics(topic, timeout=WAIT_S_MAX).topics[topic]
    if described.error is not None:
        raise KafkaException(described.error)
    return sorted(described.partitions)


@dataclass(frozen=True)
class Kcat:
    """The kcat program. Text headers only, without commas: that is how it prints them."""

    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return "kcat"

    def produce(
        self,
        servers: Sequence[str],
        topic: str,
        messages: Iterable[Pair],
        codec: Codec | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        place = [] if partition is None else ["-p", str(partition)]
        packed = [] if codec is None else ["-z", codec]
        named = [word for name, value in headers for word in ("-H", f"{name}={value.decode()}")]
        properties = {"topic.partitioner" if name == "partitioner" else name: value for name, value in PRODUCING.items()}
        # A line of its input has a key or it has none; an empty one is a value or it is none: one run of it for each kind of message.
        for (has_key, has_value), run in groupby(messages, key=lambda pair: (pair[0] is not None, pair[1] is not None)):
            between, after = uuid.uuid4().hex, uuid.uuid4().hex  # in no message: keys and values may be any bytes
            lines = [(key + between.encode() if key is not None else b"") + (value or b"") for key, value in run]
            kinds = [*(["-K", between] if has_key else []), *([] if has_value else ["-Z"])]
            self._run(servers, ["-P", "-t", topic, "-D", after, *kinds, *place, *packed, *named], properties, after.encode().join(lines))

    def consume(self, servers: Sequence[str], topic: str) -> list[Record]:
        end = uuid.uuid4().hex
        told = self._run(
            servers,
            ["-C", "-t", topic, "-o", "beginning", "-e", "-q", "-f", f"%p %o %K %S\\n%k%s%h{end}"],
            {"fetch.wait.max.ms": CONSUMING["fetch.wait.max.ms"]},
        )
        return sorted(_parsed(told, end.encode()), key=lambda record: record[:2])

    def _run(self, servers: Sequence[str], arguments: list[str], properties: Mapping[str, str], given: bytes = b"") -> bytes:
        options = [word for name, value in {**properties, **self.options}.items() for word in ("-X", f"{name}={value}")]
        command = ["kcat", "-b", ",".join(servers), *arguments, *options]
        done = subprocess.run(command, input=given, capture_output=True, check=False, timeout=WAIT_S_MAX)
        if done.returncode:
            raise RuntimeError(f"kcat: {done.stderr.decode(errors='replace')}")
        return done.stdout


def _parsed(told: bytes, end: bytes) -> Iterable[Record]:
    at = 0
    while at < len(told):
        line_end = told.index(b"\n", at)
        partition, offset, key_bytes, value_bytes = map(int, told[at:line_end].split())  # -1 bytes: there is none
        key_end = line_end + 1 + max(0, key_bytes)
        value_end = key_end + max(0, value_bytes)
        record_end = told.index(end, value_end)
        pairs = (text.partition(b"=") for text in told[value_end:record_end].split(b",") if text)
        yield Record(
            partition,
            offset,
            None if key_bytes < 0 else told[line_end + 1 : key_end],
            None if value_bytes < 0 else told[key_end:value_end],
            tuple((name.decode(), value) for name, _, value in pairs),
        )
        at = record_end + len(end)


#: What is there, for ``pytest.mark.parametrize("client", CLIENTS, ids=str)``.
CLIENTS: list[Independent] = [Confluent(), *([Kcat()] if shutil.which("kcat") else [])]


# --- administrators: by a cluster's ``internal_servers``, or ``servers`` of one without security ------------------------------
def create_topic(servers: Sequence[str], topic: str, partitions: int = 1, replicas: int = -1, settings: Mapping[str, str] | None = None) -> None:
    """Make it and wait until each partition takes requests. ``replicas``: -1 is what the brokers' settings say."""
    admin = AdminClient({"bootstrap.servers": ",".join(servers)})
    made = admin.create_topics([NewTopic(topic, partitions, replicas, config=dict(settings or {}))])
    made[topic].result(WAIT_S_MAX)
    deadline = time.monotonic() + WAIT_S_MAX
    reader = _reader(servers)
    try:
        while not _takes_requests(reader, topic, partitions):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic} takes no requests; its leaders are {_leaders(reader, topic)}")
            time.sleep(0.02)
    finally:
        reader.close()


def _takes_requests(reader: Consumer, topic: str, partitions: int) -> bool:
    """A leader may be known before it knows: its first answer is then an error, and the client that tries again loses its order."""
    if len(found := _leaders(reader, topic)) < partitions or min(found.values()) < 0:
        return False
    try:
        return all(reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=WAIT_S_MAX) for partition in found)
    except KafkaException:
        return False


def leaders(servers: Sequence[str], topic: str) -> dict[int, int]:
    """The broker that leads each partition, -1 for none."""
    return _leaders(AdminClient({"bootstrap.servers": ",".join(servers)}), topic)


def _leaders(client: AdminClient | Consumer, topic: str) -> dict[int, int]:
    return {number: partition.leader for number, partition in client.list_topics(topic, timeout=WAIT_S_MAX).topics[topic].partitions.items()}


def allow_everything(servers: Sequence[str], user: str) -> None:
    """``user`` may do anything with every topic, group and transaction."""
    admin = AdminClient({"bootstrap.servers": ",".join(servers)})
    kinds = (ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID)
    places = [*((kind, "*") for kind in kinds), (ResourceType.BROKER, "kafka-cluster")]
    rules = [AclBinding(kind, name, ResourcePatternType.LITERAL, f"User:{user}", "*", AclOperation.ALL, AclPermissionType.ALLOW) for kind, name in places]
    for done in admin.create_acls(rules).values():
        done.result(WAIT_S_MAX)
