"""The Kafka log beside other clients, and what a topic may do under its reader."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystone.config import KafkaConfig
from keystone.errors import LogCorrupt, LogRecreated
from keystone.log.base import Gap
from keystone.log.kafka import KafkaLog, KafkaReader
from keystone.log.kafka.client import KafkaClient
from keystone.log.kafka.topics import TopicPlan, create, delete
from keystone.log.url import KafkaUrl
from keystone.partition import partition_of
from tests.examples import examples
from tests.kafka_server import KafkaCluster
from tests.rdkafka import CLIENTS, CODECS, Confluent, Independent, create_topic

HOUR_MS = 3_600_000
WAIT_S = 30.0


def open_topic(cluster: KafkaCluster, topic: str, **settings_: Any) -> KafkaLog:
    return KafkaLog.open(KafkaUrl(tuple(cluster.servers), topic), KafkaConfig(**settings_))


def read(reader: KafkaReader, count: int) -> list[bytes]:
    """Exactly ``count`` values."""
    values: list[bytes] = []
    until = time.monotonic() + WAIT_S
    while len(values) < count:
        assert time.monotonic() < until, f"{len(values)} of {count}"
        records = reader.poll(bytes_max=1 << 20, wait_ms=1_000)
        values += [records.text[start:end].tobytes() for start, end in zip(records.starts, records.ends, strict=True)]
    assert len(values) == count
    return values


def poll_in_vain(reader: KafkaReader) -> None:
    """Until it raises, which it should."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        assert len(reader.poll(bytes_max=1 << 20, wait_ms=500)) == 0


@pytest.fixture
def client(kafka: KafkaCluster) -> Iterator[KafkaClient]:
    made = KafkaClient(kafka.servers, KafkaConfig())
    made.connect()
    yield made
    made.close()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("independent", CLIENTS, ids=str)
def test_what_others_write_we_read(kafka: KafkaCluster, topic_name: str, independent: Independent, codec: str | None) -> None:
    create_topic(kafka.servers, topic_name)
    values = [b'{"n":%d,"pad":"%s"}' % (i, b"x" * (i % 300)) for i in range(500)]
    independent.produce(kafka.servers, topic_name, [(b"key", value) for value in values], codec=codec, partition=0)
    with closing(open_topic(kafka, topic_name)) as log:
        assert read(log.reader(0), 500) == values


@pytest.mark.parametrize("codec", [codec or "none" for codec in CODECS])
@pytest.mark.parametrize("independent", CLIENTS, ids=str)
def test_what_we_write_others_read(kafka: KafkaCluster, topic_name: str, independent: Independent, codec: str) -> None:
    create_topic(kafka.servers, topic_name)
    values = [b'{"n":%d,"pad":"%s"}' % (i, b"x" * (i % 300)) for i in range(500)]
    with closing(open_topic(kafka, topic_name, codec=codec)) as log:
        writer = log.writer(0)
        for value in values:
            writer.send(value, key=b"a key", headers=(("reason", b"why"),))
        assert writer.flush(wait_s=WAIT_S)
    found = independent.consume(kafka.servers, topic_name)
    assert [(record.offset, record.key, record.value) for record in found] == [(i, b"a key", value) for i, value in enumerate(values)]
    assert all(list(record.headers) == [("reason", b"why")] for record in found)


@pytest.mark.parametrize("independent", CLIENTS, ids=str)
def test_any_client_puts_a_device_where_we_would(kafka: KafkaCluster, topic_name: str, independent: Independent) -> None:
    create_topic(kafka.servers, topic_name, partitions=7)
    keys = [f"d-{i:010d}" for i in range(200)] + ["ü", "設備-1", "a", "ab", "abc", "abcd", "\u0001", "x" * 400]
    independent.produce(kafka.servers, topic_name, [(key.encode(), b"{}") for key in keys])
    found = independent.consume(kafka.servers, topic_name)
    assert len(found) == len(keys)
    for record in found:
        assert record.key is not None
        assert record.partition == partition_of(record.key, 7), record.key


@settings(max_examples=examples(5), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(keys=st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=60))
def test_any_key_at_all(kafka: KafkaCluster, keys: list[str]) -> None:
    topic = f"keys-{time.time_ns()}"
    create_topic(kafka.servers, topic, partitions=5)
    encoded = [key.encode("utf-8", "replace") for key in keys]
    Confluent().produce(kafka.servers, topic, [(key, b"{}") for key in encoded])
    assert all(record.partition == partition_of(record.key or b"", 5) for record in Confluent().consume(kafka.servers, topic))


def test_producers_clocks_are_held_between_the_last_record_and_ours(kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(kafka.servers, topic_name, settings={"message.timestamp.type": "CreateTime"})
    now_ms = time.time_ns() // 1_000_000
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": ",".join(kafka.servers), "linger.ms": 0})
    for stamp in (now_ms - 5_000, now_ms + 1_000_000, now_ms - 9_000):
        producer.produce(topic_name, b"x", partition=0, timestamp=stamp)
        producer.flush(10)
    with closing(open_topic(kafka, topic_name)) as log:
        assert not log.has_append_time
        reader, times = log.reader(0), []
        while len(times) < 3:
            times += reader.poll(bytes_max=1 << 20, wait_ms=1_000).append_ts_ms.tolist()
    assert times[0] == now_ms - 5_000
    assert times == sorted(times)
    assert times[-1] <= time.time_ns() // 1_000_000


def test_lag_tools_see_how_far_the_group_is(kafka: KafkaCluster, topic_name: str) -> None:
    from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
    from confluent_kafka.admin import AdminClient

    create_topic(kafka.servers, topic_name)
    with closing(open_topic(kafka, topic_name, group="a-group")) as log:
        writer, reader = log.writer(0), log.reader(0)
        for _ in range(10):
            writer.send(b"x")
        read(reader, 10)
        reader.commit(7)
    admin = AdminClient({"bootstrap.servers": ",".join(kafka.servers)})
    asked = ConsumerGroupTopicPartitions("a-group", [TopicPartition(topic_name, 0)])
    [future] = admin.list_consumer_group_offsets([asked]).values()
    assert [place.offset for place in future.result(20).topic_partitions] == [7]


def test_partitions_that_a_topic_gains_are_noticed(kafka: KafkaCluster, topic_name: str) -> None:
    from confluent_kafka.admin import AdminClient, NewPartitions

    create_topic(kafka.servers, topic_name, partitions=2)
    with closing(open_topic(kafka, topic_name, metadata_max_age_ms=500)) as log:
        log.reader(0).poll(bytes_max=1, wait_ms=100)
        assert log.partitions_now() == 2
        admin = AdminClient({"bootstrap.servers": ",".join(kafka.servers)})
        for future in admin.create_partitions([NewPartitions(topic_name, 5)]).values():
            future.result(20)
        until = time.monotonic() + WAIT_S
        while log.partitions_now() != 5:
            assert time.monotonic() < until
            time.sleep(0.05)
        Confluent().produce(kafka.servers, topic_name, [(None, b"new")], partition=4)
        assert read(log.reader(4), 1) == [b"new"]


def test_a_record_larger_than_a_fetch_is_read(kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(kafka.servers, topic_name, settings={"max.message.bytes": "8388608"})
    with closing(open_topic(kafka, topic_name, batch_bytes_max=4 << 20, codec="none", fetch_bytes_max=1_000)) as log:
        value = bytes(range(256)) * 8_000
        log.writer(0).append(value)
        assert read(log.reader(0), 1) == [value]


def test_a_topic_that_is_deleted_is_waited_for_without_a_spin(kafka: KafkaCluster, client: KafkaClient, topic_name: str) -> None:
    create(client, TopicPlan(topic_name, 1, 1, HOUR_MS))
    with closing(open_topic(kafka, topic_name)) as log:
        reader = log.reader(0)
        log.writer(0).append(b"old")
        assert read(reader, 1) == [b"old"]
        delete(client, topic_name)
        until = time.monotonic() + WAIT_S
        while not log.metrics()["is_missing"]:
            assert time.monotonic() < until
            assert len(reader.poll(bytes_max=1, wait_ms=100)) == 0
        used_s = time.process_time()
        reader.poll(bytes_max=1, wait_ms=2_000)
        assert time.process_time() - used_s < 1.0, "a whole core for nothing"
        create(client, TopicPlan(topic_name, 1, 1, HOUR_MS))
        Confluent().produce(kafka.servers, topic_name, [(None, b"new")], partition=0)
        with pytest.raises(LogRecreated, match="made anew"):
            poll_in_vain(reader)
        with pytest.raises(LogRecreated):
            reader.poll(bytes_max=1, wait_ms=0)
        reader.seek(0)
        assert read(reader, 1) == [b"new"]


# --- damage -------------------------------------------------------------------------------------------------------------
def write_batches(cluster: KafkaCluster, topic: str, batches: int) -> None:
    """``batches`` of ten records each."""
    create_topic(cluster.servers, topic)
    with closing(open_topic(cluster, topic, codec="none")) as log:
        writer = log.writer(0)
        for i in range(batches):
            for j in range(10):
                writer.send(b"value-%03d" % (10 * i + j))
            assert writer.flush(wait_s=WAIT_S)


def segment_of(cluster: KafkaCluster, topic: str) -> Path:
    [path] = cluster.data_dir(0).glob(f"{topic}-0/*.log")
    return path


def damage(path: Path, at: int, value: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(value)


def test_a_damaged_batch_is_a_counted_gap_and_its_neighbours_are_read(kafka_cluster: Any) -> None:
    cluster = kafka_cluster()
    write_batches(cluster, "damaged", 4)
    path = segment_of(cluster, "damaged")
    at = path.read_bytes().index(b"value-015")
    damage(path, at, b"VALUE")
    with closing(open_topic(cluster, "damaged")) as log:
        reader = log.reader(0)
        assert read(reader, 30) == [b"value-%03d" % i for i in range(40) if i // 10 != 1]
        assert reader.take_gaps() == [Gap(0, 10, 19, "corrupt")]
        assert reader.take_gaps() == []
        assert reader.position() == 40


def test_a_damaged_length_ends_in_one_clear_error(kafka_cluster: Any) -> None:
    cluster = kafka_cluster()
    write_batches(cluster, "lengths", 3)
    path = segment_of(cluster, "lengths")
    second = path.read_bytes().index(b"value-000")
    second = path.read_bytes().index(b"\0\0\0\0\0\0\0\x0a", second)  # the base offset of the second batch
    damage(path, second + 16, b"\x07")  # its format: what leads to its end means nothing then
    with closing(open_topic(cluster, "lengths")) as log:
        reader = log.reader(0)
        assert read(reader, 10) == [b"value-%03d" % i for i in range(10)]
        with pytest.raises(LogCorrupt, match="seek behind it"):
            poll_in_vain(reader)
        with pytest.raises(LogCorrupt):
            reader.poll(bytes_max=1, wait_ms=0)
        reader.seek(20)
        assert read(reader, 10) == [b"value-%03d" % i for i in range(20, 30)]


def test_nobody_there_costs_little(kafka_cluster: Any) -> None:
    cluster = kafka_cluster()
    create_topic(cluster.servers, "alone")
    with closing(open_topic(cluster, "alone")) as log:
        writer, reader = log.writer(0), log.reader(0)
        writer.append(b"x")
        assert read(reader, 1) == [b"x"]
        cluster.kill(0)
        writer.send(b"waits")
        used_s = time.process_time()
        assert len(reader.poll(bytes_max=1, wait_ms=3_000)) == 0
        assert time.process_time() - used_s < 1.5, "half a core for a broker that is not there"
        cluster.restart(0)
        assert writer.flush(wait_s=WAIT_S)
        assert read(reader, 1) == [b"waits"]
