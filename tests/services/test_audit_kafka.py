"""The audit's and the lake's look at a topic that holds more than a reader may fetch ahead."""

from __future__ import annotations

import numpy as np
import pytest

from keystone.audit.log_side import LogSide
from keystone.config import Config, KafkaConfig
from keystone.run.lake_log import LogAgain
from tests.kafka_server import KafkaCluster
from tests.rdkafka import Confluent
from tests.services import runs

PARTITIONS = 4
EVENTS = 400


@pytest.mark.slow
def test_partitions_are_read_whole_one_after_the_other(kafka: KafkaCluster, topic_name: str) -> None:
    """Readers that were opened for a look at the ends must not hold what they fetched meanwhile: there is room for one of them."""
    topics = runs.Topics.made(kafka.servers, topic_name, PARTITIONS)
    line = b'{"event":"Heartbeat","ts":1,"device_id":"d%d","session_id":"s","x":"' + b"x" * 4_000 + b'"}'
    Confluent().produce(kafka.servers, topics.name, [(b"d%d" % number, line % number) for number in range(EVENTS)])
    config = Config(kafka=KafkaConfig(fetch_buffer_bytes_max=64 << 10))
    side, again = LogSide(topics.url, config), LogAgain(topics.url, config)
    try:
        bounds = side.bounds()
        assert all(end > 0 for _, end in bounds.values())
        starts = [again.start_offset(partition) for partition in range(PARTITIONS)]
        read = {partition: sum(len(part.accepted) for part in side.read(partition, *bounds[partition])) for partition in range(PARTITIONS)}
        assert read == {partition: end for partition, (_, end) in bounds.items()}
        places = [again.accepted(partition, starts[partition], bounds[partition][1]) for partition in range(PARTITIONS)]
        assert len(np.concatenate(places)) == EVENTS
    finally:
        side.close()
        again.close()
