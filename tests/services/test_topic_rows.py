"""Rows in a topic of a real broker: keys keep what belongs together in order, what is too large is refused alone, a broker's death loses nothing."""

from __future__ import annotations

from collections.abc import Callable

import orjson
import pytest

from keystone.config import KafkaConfig, SinksConfig
from keystone.errors import SinkBusy, UsageError
from keystone.log.url import KafkaUrl
from keystone.partition import partition_of
from keystone.sinks.base import Document, Outcome, Refused
from keystone.sinks.shell import BufferedSink
from keystone.sinks.topic_rows import TopicRows
from tests.kafka_server import KafkaCluster
from tests.rdkafka import Confluent, create_topic
from tests.sink_rows import NumberedRows, until

QUICK = SinksConfig(batch_items_max=100, linger_ms=10, retry_first_ms=20, retry_max_ms=200)
LIMIT_S = 120.0


def rows_to(cluster: KafkaCluster, topic: str, *, key_field: str | None = None, config: KafkaConfig | None = None) -> TopicRows:
    return TopicRows(KafkaUrl(tuple(cluster.servers), topic), config or KafkaConfig(), role="test", key_field=key_field)


def test_a_key_field_keeps_a_devices_rows_in_order_and_headers_name_them(kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(kafka.servers, topic_name, 3)
    rows = rows_to(kafka, topic_name, key_field="device_id")
    documents = [Document("cohorts", f"id{n}", 1, orjson.dumps({"device_id": f"d{n % 5}", "n": n}), n) for n in range(200)]
    documents += [Document("alerts", "none", 1, b'{"device_id":7}')]
    assert {answer.outcome for answer in rows.send_batch(documents)} == {Outcome.DONE}
    rows.close()
    found = Confluent().consume(kafka.servers, topic_name)
    seen: dict[bytes, list[int]] = {}
    for record in found:
        assert record.key is not None
        assert record.partition == partition_of(record.key, 3)
        seen.setdefault(record.key, []).append(orjson.loads(record.value or b"").get("n"))
    assert seen == {**{b"d%d" % device: list(range(device, 200, 5)) for device in range(5)}, b"none": [None]}
    named = {dict(record.headers)["id"]: dict(record.headers) for record in found}
    assert named[b"id7"] == {"kind": b"cohorts", "id": b"id7", "revision": b"7"}
    assert named[b"none"] == {"kind": b"alerts", "id": b"none"}


def test_a_row_that_no_record_holds_is_refused_alone(kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(kafka.servers, topic_name, 1, settings={"max.message.bytes": "20000"})
    rows = rows_to(kafka, topic_name)
    small, large = Document("alerts", "small", 1, b"{}"), Document("alerts", "large", 1, b'{"a":"%b"}' % (b"x" * 1_000_000))
    assert [answer.outcome for answer in rows.send_batch([small, large, small])] == [Outcome.DONE, Outcome.REFUSED, Outcome.DONE]
    rows.close()
    with pytest.raises(SinkBusy):
        rows.send_batch([small])


def test_a_topic_that_is_not_there_is_one_line(kafka: KafkaCluster, topic_name: str) -> None:
    with pytest.raises(UsageError, match=topic_name):
        rows_to(kafka, topic_name)


@pytest.mark.faults
@pytest.mark.slow
def test_a_broker_that_is_killed_and_back_has_every_row(kafka_cluster: Callable[..., KafkaCluster], topic_name: str) -> None:
    cluster = kafka_cluster()
    create_topic(cluster.servers, topic_name, 2)
    refused: list[Refused] = []
    raw = rows_to(cluster, topic_name, config=KafkaConfig(delivery_timeout_ms=2_000))
    sink = BufferedSink("topic", raw, QUICK, refused.extend, kinds=["alerts"])
    sink.offer([NumberedRows("alerts", 0, 500)])
    assert sink.flush(LIMIT_S)
    cluster.kill(0)
    sink.offer([NumberedRows("alerts", 500, 500)])
    until(lambda: sink.status()["circuit_opened"] > 0, limit_s=LIMIT_S)
    cluster.start(0)
    cluster.wait_ready(0)
    assert sink.flush(LIMIT_S), sink.status()
    assert sink.close(LIMIT_S) == 0
    assert {dict(record.headers)["id"] for record in Confluent().consume(cluster.servers, topic_name)} == {b"%d" % n for n in range(1_000)}
    assert refused == []
