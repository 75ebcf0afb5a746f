"""Fixtures that start real Kafka brokers, once they are asked for; tests that ask carry the mark ``kafka`` by themselves."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.kafka_server import KafkaCluster, Security

STARTING = {"kafka", "secure_kafka", "kafka_cluster", "mutual_kafka", "token_kafka", "three_brokers"}  # the last three are of single modules
PASSWORDS = {"alice": "alice-secret", "bob": "bob-secret"}


def mark_kafka(items: list[pytest.Item]) -> None:
    """``make test-fast`` starts no broker, even if somebody forgets the mark."""
    for item in items:
        if isinstance(item, pytest.Function) and STARTING & set(item.fixturenames):
            item.add_marker(pytest.mark.kafka)


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaCluster]:
    """One broker for all tests: plaintext, no login. Tests share it, so they leave it running and use topics of their own."""
    with KafkaCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def secure_kafka() -> Iterator[KafkaCluster]:
    """One broker for all tests: TLS and a login. ``alice`` may do everything and ``bob`` nothing; passwords are in ``security.users``."""
    from tests.rdkafka import allow_everything

    with KafkaCluster(security=Security(PASSWORDS, authorize=True)) as cluster:
        allow_everything(cluster.internal_servers, "alice")
        yield cluster


@pytest.fixture
def kafka_cluster() -> Iterator[Callable[..., KafkaCluster]]:
    """Starts a cluster of the test's own, which it may break: ``kafka_cluster(brokers=3, ...)``, as ``KafkaCluster`` takes them."""
    with ExitStack() as clusters:
        yield lambda *args, **options: clusters.enter_context(KafkaCluster(*args, **options))


@pytest.fixture
def topic_name(request: pytest.FixtureRequest) -> str:
    """A name that no other test and no other run has; there is no such topic yet (``tests.rdkafka.create_topic``)."""
    return f"{re.sub('[^A-Za-z0-9]+', '-', request.node.originalname)[:80]}-{uuid.uuid4().hex[:12]}"
