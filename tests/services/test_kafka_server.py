"""The brokers and the foreign clients that other tests rest on do what they are said to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from confluent_kafka import KafkaException

from tests.kafka_server import KafkaCluster, Security
from tests.rdkafka import CLIENTS, CODECS, Codec, Confluent, Independent, Kcat, Pair, Record, create_topic, leaders

pytestmark = pytest.mark.kafka

WAIT_S_MAX = 60.0
ROOT = Path(__file__).parents[2]
SERVER = [sys.executable, "-m", "tests.kafka_server"]
BYTES = bytes(range(256))
#: No key and no value, empty ones, any bytes, kcat's own delimiters, more than librdkafka's usual limit of 1 MB.
ODD: list[Pair] = [
    (None, b"no key"),
    (b"no value", None),
    (b"k", b""),
    (b"", b"empty key"),
    (BYTES, BYTES[::-1]),
    (b"a\tb", b"c\nd\n"),
    (b"big", b"x" * 3_000_000),
]


def pairs(records: list[Record]) -> list[Pair]:
    return [(record.key, record.value) for record in records]


def numbered(first: int, last: int) -> list[Pair]:
    return [(f"key-{i}".encode(), str(i).encode()) for i in range(first, last)]


def until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not claim():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


# --- clients ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_every_client_reads_what_every_client_wrote(client: Independent, codec: Codec | None, kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(kafka.servers, topic_name, partitions=2, settings={"max.message.bytes": "4000000"})
    headers = (("trace", b"42"), ("origin", b"test"))
    client.produce(kafka.servers, topic_name, ODD, codec, partition=1, headers=headers)
    for reader in CLIENTS:
        records = reader.consume(kafka.servers, topic_name)
        assert pairs(records) == ODD
        assert [record[:2] for record in records] == [(1, offset) for offset in range(len(ODD))]
        assert {record.headers for record in records} == {headers}


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec], ids=str)
@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_a_codec_makes_segments_smaller(client: Independent, codec: Codec, kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(kafka.servers, topic_name)
    client.produce(kafka.servers, topic_name, [(b"k", b"0123456789" * 10_000)] * 10, codec)
    (segment,) = (kafka.data_dir(0) / f"{topic_name}-0").glob("*.log")
    assert 0 < segment.stat().st_size < 500_000


def test_clients_agree_where_a_key_belongs(kafka: KafkaCluster, topic_name: str) -> None:
    places = []
    for number, client in enumerate(CLIENTS):
        name = f"{topic_name}-{number}"
        create_topic(kafka.servers, name, partitions=8)
        client.produce(kafka.servers, name, numbered(0, 200))
        places.append({record.key: record.partition for record in CLIENTS[-1].consume(kafka.servers, name)})
    assert len(set(places[0].values())) == 8
    assert all(there == places[0] for there in places)


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_a_topic_may_be_empty_but_not_missing(client: Independent, kafka: KafkaCluster, topic_name: str) -> None:
    with pytest.raises((KafkaException, RuntimeError)):
        client.consume(kafka.servers, topic_name)
    create_topic(kafka.servers, topic_name, partitions=3)
    assert client.consume(kafka.servers, topic_name) == []


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_what_retention_dropped_is_gone_within_seconds(client: Independent, kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(kafka.servers, topic_name, settings={"segment.bytes": str(1 << 20), "retention.bytes": str(1 << 20)})
    for i in range(4):
        client.produce(kafka.servers, topic_name, [(b"%d" % i, os.urandom(600_000))])
    until(lambda: [record.key for record in client.consume(kafka.servers, topic_name)] == [b"2", b"3"])
    until(lambda: len(list((kafka.data_dir(0) / f"{topic_name}-0").glob("*.log*"))) == 2)


# --- broken brokers ---------------------------------------------------------------------------------------------------
@pytest.mark.faults
def test_records_outlive_a_kill_and_a_pause(kafka_cluster: Callable[..., KafkaCluster], topic_name: str) -> None:
    kafka, client = kafka_cluster(), Confluent()
    create_topic(kafka.servers, topic_name)
    client.produce(kafka.servers, topic_name, numbered(0, 100))
    first = kafka.pid(0)
    kafka.kill(0)
    assert not kafka.is_running(0)
    kafka.restart(0)
    assert kafka.pid(0) != first
    client.produce(kafka.servers, topic_name, numbered(100, 200))
    kafka.pause(0)
    assert psutil.Process(kafka.pid(0)).status() == psutil.STATUS_STOPPED
    with pytest.raises((KafkaException, TimeoutError)):
        Confluent({"message.timeout.ms": "1000"}).produce(kafka.servers, topic_name, numbered(0, 1))
    kafka.resume(0)
    client.produce(kafka.servers, topic_name, numbered(200, 300))
    found = pairs(client.consume(kafka.servers, topic_name))
    assert [pair for pair in found if pair != numbered(0, 1)[0]] == numbered(1, 300)  # the refused one may be there twice: it was sent
    kafka.stop(0)
    kafka.restart(0)
    assert pairs(client.consume(kafka.servers, topic_name)) == found
    assert kafka.log_text(0).count("Kafka Server started") == 3


@pytest.mark.faults
def test_three_brokers_go_on_without_the_one_that_leads(kafka_cluster: Callable[..., KafkaCluster], topic_name: str) -> None:
    kafka, client = kafka_cluster(brokers=3), Confluent()
    create_topic(kafka.servers, topic_name, partitions=3)
    client.produce(kafka.servers, topic_name, numbered(0, 100), partition=0)
    dead = leaders(kafka.servers, topic_name)[0]
    kafka.kill(dead)
    client.produce(kafka.servers, topic_name, numbered(100, 200), partition=0)
    assert leaders(kafka.servers, topic_name)[0] not in {dead, -1}
    kafka.restart(dead)
    assert pairs(client.consume(kafka.servers, topic_name)) == numbered(0, 200)


# --- security ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_users_log_in(mechanism: str, secure_kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(secure_kafka.internal_servers, topic_name)
    alice = Confluent(secure_kafka.login("alice", mechanism))
    alice.produce(secure_kafka.servers, topic_name, numbered(0, 10))
    assert pairs(alice.consume(secure_kafka.servers, topic_name)) == numbered(0, 10)
    for client in CLIENTS:
        assert pairs(client.consume(secure_kafka.internal_servers, topic_name)) == numbered(0, 10)


@pytest.mark.parametrize("kind", [Confluent, *(type(client) for client in CLIENTS if isinstance(client, Kcat))])
def test_every_client_logs_in_over_tls(kind: type[Confluent | Kcat], secure_kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(secure_kafka.internal_servers, topic_name)
    alice = kind(secure_kafka.login("alice", "PLAIN"))
    alice.produce(secure_kafka.servers, topic_name, numbered(0, 10), "lz4")
    assert pairs(alice.consume(secure_kafka.servers, topic_name)) == numbered(0, 10)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_wrong_password_is_refused(mechanism: str, secure_kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(secure_kafka.internal_servers, topic_name)
    liar = Confluent(secure_kafka.login("alice", mechanism, password="guessed"))
    with pytest.raises(KafkaException, match="_AUTHENTICATION"):
        liar.produce(secure_kafka.servers, topic_name, numbered(0, 1))
    assert CLIENTS[0].consume(secure_kafka.internal_servers, topic_name) == []


def test_nobody_speaks_without_tls_or_with_another_authority(secure_kafka: KafkaCluster, topic_name: str, tmp_path: Path) -> None:
    import trustme

    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    create_topic(secure_kafka.internal_servers, topic_name)
    right = secure_kafka.login("alice", "PLAIN")
    for wrong in ({}, right | {"security.protocol": "SASL_PLAINTEXT"}, right | {"ssl.ca.location": str(tmp_path / "other.pem")}):
        with pytest.raises((KafkaException, TimeoutError)):
            Confluent(wrong | {"message.timeout.ms": "1000"}).produce(secure_kafka.servers, topic_name, numbered(0, 1))


def test_bob_may_nothing(secure_kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(secure_kafka.internal_servers, topic_name)
    bob = Confluent(secure_kafka.login("bob"))
    with pytest.raises(KafkaException, match="TOPIC_AUTHORIZATION_FAILED"):
        bob.produce(secure_kafka.servers, topic_name, numbered(0, 1))
    with pytest.raises(KafkaException, match="TOPIC_AUTHORIZATION_FAILED"):
        bob.consume(secure_kafka.servers, topic_name)


def test_certificates_and_unsigned_tokens(kafka_cluster: Callable[..., KafkaCluster], topic_name: str) -> None:
    kafka = kafka_cluster(security=Security({"alice": "secret"}, require_client_cert=True, oauthbearer=True))
    create_topic(kafka.internal_servers, topic_name)
    for mechanism in ("PLAIN", "SCRAM-SHA-512", "OAUTHBEARER"):
        Confluent(kafka.login("alice", mechanism)).produce(kafka.servers, topic_name, numbered(0, 1))
    bare = {name: value for name, value in kafka.login("alice").items() if "certificate" not in name and ".key." not in name}
    with pytest.raises((KafkaException, TimeoutError)):
        Confluent(bare | {"message.timeout.ms": "1000"}).produce(kafka.servers, topic_name, numbered(0, 1))
    assert pairs(Confluent().consume(kafka.internal_servers, topic_name)) == numbered(0, 1) * 3


# --- nothing remains --------------------------------------------------------------------------------------------------
def started(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A server of the shell's and the line that it said."""
    process = subprocess.Popen([*SERVER, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def brokers_of(process: subprocess.Popen[str]) -> tuple[psutil.Process, Path]:
    """The one broker that it started, and the folder that it lives in."""
    (broker,) = psutil.Process(process.pid).children()
    return broker, Path(broker.cwd())


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_from_a_shell_it_says_where_it_is_and_leaves_nothing(ending: signal.Signals, topic_name: str) -> None:
    process, line = started("--throughput") if ending == signal.SIGINT else started()
    try:
        broker, folder = brokers_of(process)
        servers = [line.removeprefix("kafka://")]
        create_topic(servers, topic_name)
        assert leaders(servers, topic_name) == {0: 0}
        process.send_signal(ending)
        assert process.wait(WAIT_S_MAX) == 0
        assert not broker.is_running()
        assert not folder.exists()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.faults
def test_no_broker_outlives_whoever_started_it(kafka_cluster: Callable[..., KafkaCluster], topic_name: str) -> None:
    process, _ = started()
    broker, folder = brokers_of(process)
    process.kill()
    process.communicate()
    until(lambda: not broker.is_running() or broker.status() == psutil.STATUS_ZOMBIE)
    assert folder.exists()
    with ThreadPoolExecutor(1) as starter:
        kafka = starter.submit(kafka_cluster).result()  # the next one tidies up
    assert not folder.exists()
    create_topic(kafka.servers, topic_name)  # and it stays, although the thread that asked for it is gone
    assert kafka.is_running(0)
