"""What an event costs through a real Kafka broker on this machine: ours against kafka-python and confluent-kafka (librdkafka).

    python benchmarks/kafka.py [--log kafka://HOST:PORT] [--events 2000000] [--json FILE]

A producer and a consumer, each a process of its own, at the same time, and the broker beside them on the same cores: what a
pipeline does. Simulated events, packed so many a record, 4 partitions, acks = all, idempotent. CPU time of each process from its
first to its last event, and of the broker; ``events/s`` is wall time of the slower side. The consumer touches every value; ours hands
out batches of columns, the libraries an object a record. Their settings are the fastest of those we tried: batches of 1 MB, 5 ms
of linger, fetches of 8 MB. One event a record is run with a tenth, for kafka-python a hundredth, of the events. Without ``--log`` a
broker is started for the run (jars and Java come with the development dependencies). Each row is one turn: it takes seconds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]  # or "import kafka" finds this file

import psutil  # noqa: E402

from benchmarks.measure import report  # noqa: E402
from keystone.config import KafkaConfig  # noqa: E402
from keystone.log.url import KafkaUrl, parse_log_url  # noqa: E402

PARTITIONS = 4
SAMPLE_EVENTS = 40_000
RETENTION_MS = 3_600_000
BATCH_BYTES, LINGER_MS, FETCH_BYTES = 1_000_000, 5, 8 << 20
OURS, KAFKA_PYTHON, CONFLUENT = "keystone", "kafka-python", "confluent-kafka"
#: (way, events a record, codec, share of the events that are sent)
CASES = [
    *((way, 200, codec, 1.0) for codec in ("none", "lz4", "zstd") for way in (OURS, KAFKA_PYTHON, CONFLUENT)),
    *((way, 600, "lz4", 1.0) for way in (OURS, KAFKA_PYTHON, CONFLUENT)),
    *((way, 20, "lz4", 0.5) for way in (OURS, KAFKA_PYTHON, CONFLUENT)),
    *((way, 1, "lz4", share) for way, share in ((OURS, 0.1), (KAFKA_PYTHON, 0.01), (CONFLUENT, 0.1))),
]


def frames_of(events: int) -> list[bytes]:
    from keystone.sim.write import sample

    lines = sample(SAMPLE_EVENTS).splitlines()
    return [b"\n".join(lines[at : at + events]) for at in range(0, len(lines) - events + 1, events)]


class Clock:
    """CPU and wall seconds from ``start`` on."""

    def start(self) -> None:
        self._cpu, self._wall = time.process_time(), time.monotonic()

    def stop(self) -> dict[str, float]:
        return {"cpu_s": time.process_time() - self._cpu, "seconds": time.monotonic() - self._wall}


# --- producers: send ``records`` frames in turn to the partitions and wait for the last answer ------------------------------
def produce_ours(url: KafkaUrl, codec: str, frames: list[bytes], records: int, clock: Clock) -> None:
    from keystone.log.kafka import KafkaLog

    with closing(KafkaLog.open(url, KafkaConfig(codec=codec))) as log:  # type: ignore[arg-type]
        writers = [log.writer(p) for p in range(log.partitions)]
        writers[0].append(b"")  # the connection, the producer's id
        clock.start()
        for i in range(records):
            writers[i % PARTITIONS].send(frames[i % len(frames)])
        assert all(writer.flush(wait_s=120) for writer in writers)
        assert sum(writer.sent.acknowledged for writer in writers) == records + 1


def produce_kafka_python(url: KafkaUrl, codec: str, frames: list[bytes], records: int, clock: Clock) -> None:
    from kafka import KafkaProducer

    producer = KafkaProducer(
        bootstrap_servers=list(url.servers), acks="all", compression_type=None if codec == "none" else codec,
        batch_size=BATCH_BYTES, linger_ms=LINGER_MS, max_request_size=8 << 20,
    )  # fmt: skip
    producer.send(url.topic, b"", partition=0).get(30)
    clock.start()
    futures = []
    for i in range(records):
        futures.append(producer.send(url.topic, frames[i % len(frames)], partition=i % PARTITIONS))
        if len(futures) >= 600:  # it has no bound of its own: ~30 MB of frames of 200
            for future in futures[:300]:
                future.get(60)
            del futures[:300]
    for future in futures:
        future.get(60)
    producer.close()


def produce_confluent(url: KafkaUrl, codec: str, frames: list[bytes], records: int, clock: Clock) -> None:
    from confluent_kafka import Producer

    producer = Producer(
        {"bootstrap.servers": ",".join(url.servers), "acks": "all", "enable.idempotence": True, "compression.codec": codec,
         "batch.size": BATCH_BYTES, "linger.ms": LINGER_MS, "message.max.bytes": 8 << 20, "queue.buffering.max.kbytes": 64 << 10}
    )  # fmt: skip
    producer.produce(url.topic, b"", partition=0)
    producer.flush(30)
    clock.start()
    for i in range(records):
        while True:
            try:
                producer.produce(url.topic, frames[i % len(frames)], partition=i % PARTITIONS)
                break
            except BufferError:
                producer.poll(0.01)
        if i % 16 == 0:
            producer.poll(0)
    assert producer.flush(120) == 0


# --- consumers: read ``records`` frames (and the one that warmed the producer up), touch each ---------------------------------
def consume_ours(url: KafkaUrl, records: int, clock: Clock) -> None:
    from keystone.kernels import kafka as kernels
    from keystone.kernels import lines
    from keystone.log.kafka import KafkaLog

    kernels.warm_up()
    lines.warm_up()
    with closing(KafkaLog.open(url, KafkaConfig())) as log:
        readers = [log.reader(p) for p in range(log.partitions)]
        seen = touched = 0
        while seen < records + 1:
            found = 0
            for reader in readers:
                batch = reader.poll(bytes_max=2 << 20, wait_ms=0)
                if found_now := len(batch):
                    touched += int(batch.text[batch.starts].sum())
                    found += found_now
            if seen <= 1 < seen + found:
                clock.start()
            seen += found
            if not found:
                time.sleep(0.002)


def consume_kafka_python(url: KafkaUrl, records: int, clock: Clock) -> None:
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(
        bootstrap_servers=list(url.servers), max_partition_fetch_bytes=FETCH_BYTES, fetch_max_bytes=4 * FETCH_BYTES, max_poll_records=5_000
    )
    places = [TopicPartition(url.topic, p) for p in range(PARTITIONS)]
    consumer.assign(places)
    consumer.seek_to_beginning()
    seen = touched = 0
    while seen < records + 1:
        found = 0
        for batch in consumer.poll(timeout_ms=100).values():
            for record in batch:
                touched += record.value[0] if record.value else 0
            found += len(batch)
        if seen <= 1 < seen + found:
            clock.start()
        seen += found
    consumer.close()


def consume_confluent(url: KafkaUrl, records: int, clock: Clock) -> None:
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer(
        {"bootstrap.servers": ",".join(url.servers), "group.id": "benchmark", "enable.auto.commit": False, "fetch.message.max.bytes": FETCH_BYTES}
    )
    consumer.assign([TopicPartition(url.topic, p, 0) for p in range(PARTITIONS)])
    seen = touched = 0
    while seen < records + 1:
        found = 0
        for message in consumer.consume(1_000, timeout=0.1):
            assert message.error() is None
            value = message.value()
            touched += value[0] if value else 0
            found += 1
        if seen <= 1 < seen + found:
            clock.start()
        seen += found
    consumer.close()


PRODUCERS = {OURS: produce_ours, KAFKA_PYTHON: produce_kafka_python, CONFLUENT: produce_confluent}
CONSUMERS = {OURS: consume_ours, KAFKA_PYTHON: consume_kafka_python, CONFLUENT: consume_confluent}


def produce(way: str, url: KafkaUrl, codec: str, events: int, records: int, answers: Any) -> None:
    clock = Clock()
    PRODUCERS[way](url, codec, frames_of(events), records, clock)
    answers.put(("producer", clock.stop()))


def consume(way: str, url: KafkaUrl, records: int, answers: Any) -> None:
    clock = Clock()
    CONSUMERS[way](url, records, clock)
    answers.put(("consumer", clock.stop()))


# --- the run ------------------------------------------------------------------------------------------------------------------
def one_case(way: str, events: int, codec: str, records: int, url: KafkaUrl, client: Any, brokers: list[psutil.Process]) -> dict[str, Any]:
    from keystone.log.kafka.topics import TopicPlan, create, delete

    create(client, TopicPlan(url.topic, PARTITIONS, 0, RETENTION_MS))
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    consumer = spawn.Process(target=consume, args=(way, url, records, answers))
    producer = spawn.Process(target=produce, args=(way, url, codec, events, records, answers))
    consumer.start()
    time.sleep(3.0)  # its imports are none of the producer's business
    before_s = sum(sum(p.cpu_times()[:2]) for p in brokers)
    producer.start()
    found = dict(answers.get(timeout=300) for _ in range(2))
    broker_s = sum(sum(p.cpu_times()[:2]) for p in brokers) - before_s
    for process in (producer, consumer):
        process.join()
    delete(client, url.topic)
    total = events * records
    us = {f"{side} us": found[side]["cpu_s"] * 1e6 / total for side in ("producer", "consumer")}
    us["broker us"] = broker_s * 1e6 / total
    slower_s = max(found[side]["seconds"] for side in found)
    return {"way": way, "events a record": events, "codec": codec, "events": total, **us, "sum us": sum(us.values()), "events/s": round(total / slower_s)}


@contextmanager
def broker_of(text: str | None) -> Iterator[KafkaUrl]:
    """The brokers named, or one of our own."""
    if text is not None:
        url = parse_log_url(text)
        assert isinstance(url, KafkaUrl)
        yield url
        return
    from tests.kafka_server import THROUGHPUT, KafkaCluster

    with KafkaCluster(jvm_flags=THROUGHPUT) as kafka:
        yield KafkaUrl(tuple(kafka.servers), "benchmark")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--log", help="brokers to use instead of one started for the run")
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--only", help="one way only")
    parser.add_argument("--json")
    given = parser.parse_args()
    from keystone.bench.logs import local_brokers
    from keystone.kernels import warm
    from keystone.log.kafka.client import KafkaClient

    warm()
    rows: list[dict[str, Any]] = []
    with broker_of(given.log) as url:
        client = KafkaClient(url.servers, KafkaConfig())
        client.connect()
        brokers = local_brokers(client)
        chosen = [case for case in CASES if given.only in (None, case[0])]
        warming = [(OURS, 200, "lz4", 1.0), (OURS, 200, "none", 1.0)]  # the broker's own compiler
        for number, (way, events, codec, share) in enumerate([*warming, *chosen]):
            place = replace(url, topic=f"benchmark-{number}")
            row = one_case(way, events, codec, int(given.events * share) // events, place, client, brokers)
            if number >= len(warming):
                rows.append(row)
                print(row, flush=True)
        client.close()
    report("kafka", rows, given.json, partitions=PARTITIONS)


if __name__ == "__main__":
    main()
