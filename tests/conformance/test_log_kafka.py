"""A topic of a real broker keeps every promise of a log."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from keystone.config import KafkaConfig
from keystone.errors import LogClosed, OffsetOutOfRange
from keystone.log.kafka import KafkaLog
from keystone.log.kafka.client import KafkaClient
from keystone.log.kafka.topics import TopicPlan, create
from keystone.log.url import KafkaUrl
from tests.kafka_server import KafkaCluster
from tests.rdkafka import Confluent

from .log_suite import RECORD_BYTES, LogSuite, MakeLog, fill, read_all, send_all, soon, values_of

HOUR_MS = 3_600_000
CONFIG = KafkaConfig(batch_bytes_max=1 << 17, group="")


@pytest.fixture(scope="module")
def client(kafka: KafkaCluster) -> Iterator[KafkaClient]:
    made = KafkaClient(kafka.servers, CONFIG)
    made.connect()
    yield made
    made.close()


@pytest.mark.kafka
class TestKafkaLog(LogSuite):
    @pytest.fixture
    def make_log(self, kafka: KafkaCluster, client: KafkaClient) -> Iterator[MakeLog]:
        with ExitStack() as opened:

            def make(partitions: int = 1, **settings: Any) -> KafkaLog:
                topic = f"conformance-{uuid.uuid4().hex}"
                create(client, TopicPlan(topic, partitions, 1, HOUR_MS))
                log = KafkaLog.open(KafkaUrl(tuple(kafka.servers), topic), CONFIG.model_copy(update=settings))
                opened.callback(log.close)
                return log

            yield make

    def test_null_values_are_records_without_an_event(self, make_log: MakeLog, kafka: KafkaCluster) -> None:
        log = make_log()
        Confluent().produce(kafka.servers, log.topic, [(b"k", None), (b"k", b""), (None, b"x")], partition=0)
        assert read_all(log.reader(0)) == [b"", b"", b"x"]

    def test_a_reader_overtaken_by_retention_is_told(self, make_log: MakeLog, kafka: KafkaCluster) -> None:
        log = make_log()
        writer, slow = log.writer(0), log.reader(0)
        send_all(writer, [b"%d" % i for i in range(100)])
        assert values_of(slow.poll(bytes_max=1, wait_ms=10_000)) == [b"0"]
        delete_records(kafka, log.topic, 60)
        soon(lambda: slow.start_offset() == 60)
        overtaken = log.reader(0, start_offset=20)
        for _ in range(2):
            with pytest.raises(OffsetOutOfRange, match="offset 20 "):
                overtaken.poll(bytes_max=1, wait_ms=10_000)
            assert overtaken.position() == 20
        with pytest.raises(OffsetOutOfRange):
            slow.seek(59)
        slow.seek(slow.start_offset())
        assert read_all(slow) == [b"%d" % i for i in range(60, 100)]

    def test_senders_wait_while_too_much_is_under_way(self, make_log: MakeLog) -> None:
        log = make_log(send_bytes_max=4 * RECORD_BYTES)
        writer = log.writer(0)
        most = 0
        for _ in range(200):
            writer.send(bytes(RECORD_BYTES))
            most = max(most, log.producer().held_bytes)
        assert writer.flush(wait_s=30)
        assert most <= 4 * RECORD_BYTES
        assert writer.sent.acknowledged == 200

    def test_close_ends_a_waiting_send(self, make_log: MakeLog, kafka_cluster: Any) -> None:
        cluster = kafka_cluster()
        made = KafkaClient(cluster.servers, CONFIG)
        made.connect()
        create(made, TopicPlan("waiting", 1, 1, HOUR_MS))
        made.close()
        log = KafkaLog.open(KafkaUrl(tuple(cluster.servers), "waiting"), CONFIG.model_copy(update={"send_bytes_max": 4 * RECORD_BYTES}))
        writer = log.writer(0)
        writer.append(b"x")
        cluster.pause(0)
        threading.Timer(1.0, log.close).start()
        with pytest.raises(LogClosed):
            fill(writer)
        cluster.resume(0)
        sent = writer.sent
        assert sent.acknowledged + sent.failed + sent.unknown >= 1
        until = time.monotonic() + 20
        while not log.is_closed:
            assert time.monotonic() < until
            time.sleep(0.05)


def delete_records(kafka: KafkaCluster, topic: str, before: int) -> None:
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": ",".join(kafka.servers)})
    for future in admin.delete_records([TopicPartition(topic, 0, before)]).values():
        future.result(20)
