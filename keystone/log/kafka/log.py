"""A topic as a log."""

from __future__ import annotations

import threading
import time
from typing import Any, Final, Self

from keystone.config import KafkaConfig
from keystone.errors import LogClosed, LogError, LogInUse, UsageError
from keystone.log.kafka.client import EARLIEST, LATEST, KafkaClient
from keystone.log.kafka.fetcher import Fetcher
from keystone.log.kafka.groups import GroupOffsets
from keystone.log.kafka.producer import Producer
from keystone.log.kafka.reader import KafkaReader
from keystone.log.kafka.settings import topic_settings
from keystone.log.kafka.writer import CLOSE_WAIT_S, KafkaWriter
from keystone.log.url import KafkaUrl, is_this_machine

BATCH_OVERHEAD_BYTES: Final = 1_024  # of a batch beyond its records' values
LOCAL_LATE_MS: Final = 20  # of the only replica, by our own clock: what a broker may take for one append
DEFAULT_MESSAGE_BYTES: Final = 1_048_588  # max.message.bytes of a topic that we may not look at


class KafkaLog:
    """Readers and writers of one topic, over shared connections. ``open`` it; any thread may use it; ``close`` may be repeated."""

    def __init__(self, url: KafkaUrl, config: KafkaConfig, client: KafkaClient) -> None:
        self.url = str(url)
        self.topic = url.topic
        self.config = config
        self.client = client
        self.partitions = 0
        self.topic_id: Any = None
        self.has_append_time = True
        self.message_bytes_max = DEFAULT_MESSAGE_BYTES
        self._lock = threading.Lock()
        self._fetcher: Fetcher | None = None
        self._producer: Producer | None = None
        self._groups = GroupOffsets(client, url.topic)
        self._readers: list[KafkaReader] = []
        self._writers: dict[int, KafkaWriter] = {}

    @classmethod
    def open(cls, url: KafkaUrl, config: KafkaConfig, *, action: str | None = None, role: str = "log") -> Self:
        """Reach the brokers and find the topic. ``action`` (read | write): refuse at once what its ACLs would refuse later.

        ``UsageError``, one line, where a server, the login, the topic or a right is not what it must be.
        """
        client = KafkaClient(url.servers, config, role=role)
        try:
            client.connect()
            log = cls(url, config, client)
            state = client.need_topic(url.topic, action=action)
            log.partitions, log.topic_id = state.partitions, state.topic_id
            log._look_at_settings()
        except BaseException:
            client.close()
            raise
        return log

    def _look_at_settings(self) -> None:
        """What the topic keeps times by, and how large a batch it takes, if we may know."""
        found = topic_settings(self.client, self.topic)
        if found is not None:
            self.has_append_time = found.get("message.timestamp.type") == "LogAppendTime"
            self.message_bytes_max = int(found.get("max.message.bytes") or DEFAULT_MESSAGE_BYTES)

    @property
    def log_id(self) -> str:
        """See ``Log.log_id``. Old brokers give a topic no id; then it is known by its name alone."""
        return f"kafka {self.topic} {self.topic_id or ''}".rstrip()

    def know_topic(self) -> None:
        """Look at the topic anew: its id and its partitions."""
        found = self.client.topic(self.topic)
        if found is not None:
            self.topic_id = found.topic_id
            self.partitions = max(self.partitions, found.partitions)

    def append_late_max_ms(self) -> int:
        """How much older than our clock a record may be when it becomes readable."""
        cluster = self.client.control.cluster
        is_here = all(is_this_machine(broker.host) for broker in cluster.brokers())
        return min(self.config.append_late_max_ms, LOCAL_LATE_MS) if is_here and len(cluster.brokers()) == 1 else self.config.append_late_max_ms

    def partitions_now(self) -> int:
        """How many partitions the topic has by the last metadata; ``partitions`` follows. Never fewer than before."""
        self.client.leader(self.topic, 0, of=self.client.fetching)  # so that metadata are of this topic, also before the first reader
        known = self.client.fetching.cluster.partitions_for_topic(self.topic)
        self.partitions = max(self.partitions, len(known or ()))
        return self.partitions

    @property
    def is_closed(self) -> bool:
        return self.client.is_closed

    def _check(self, partition: int) -> None:
        if self.is_closed:
            raise LogClosed(f"{self.url}: the log was closed")
        if not 0 <= partition < self.partitions:
            raise UsageError(f"{self.url}: no partition {partition}: there are 0 to {self.partitions - 1}")

    def reader(self, partition: int, *, start_offset: int | None = None, kind: type[KafkaReader] = KafkaReader) -> KafkaReader:
        """A reader at the start offset, or at ``start_offset`` (unchecked: polls tell where it is out of range). ``kind``: ``headers.HeaderReader``."""
        self._check(partition)
        place = self.offset(partition, EARLIEST) if start_offset is None else start_offset
        with self._lock:
            if self._fetcher is None:
                self._fetcher = Fetcher(self.client, self.topic)
            reader = kind(self, self._fetcher, partition, place, self._groups.note)
            self._readers = [*self._open_readers(), reader]
        return reader

    def writer(self, partition: int) -> KafkaWriter:
        """The partition's writer; ``LogInUse`` while this object has given another. Other programs may write too."""
        self._check(partition)
        with self._lock:
            if partition in self._writers:
                raise LogInUse(f"{self.url}, partition {partition}: is being written by this process")
            writer = KafkaWriter(self, self._the_producer(), partition, self.record_bytes_max)
            self._writers[partition] = writer
        return writer

    @property
    def record_bytes_max(self) -> int:
        """The largest value that a record of this topic may have: a batch of one must fit, packed or not."""
        return min(self.config.batch_bytes_max, self.message_bytes_max) - BATCH_OVERHEAD_BYTES

    def _the_producer(self) -> Producer:
        if self._producer is None:
            self._producer = Producer(self.client)
        return self._producer

    def producer(self) -> Producer:
        """For records with keys and headers, to any topic of these brokers."""
        with self._lock:
            return self._the_producer()

    def release(self, partition: int) -> None:
        """A writer was closed."""
        with self._lock:
            self._writers.pop(partition, None)

    def offset(self, partition: int, when: int) -> int:
        """EARLIEST, LATEST, or the first offset at or after a time in ms."""
        self._check(partition)
        return self.client.offsets(self.topic, [partition], when)[partition]

    def start_offsets(self) -> dict[int, int]:
        """Of every partition."""
        return self.client.offsets(self.topic, range(self.partitions), EARLIEST)

    def end_offsets(self) -> dict[int, int]:
        """Of every partition."""
        return self.client.offsets(self.topic, range(self.partitions), LATEST)

    def offsets_at(self, append_ts_ms: int) -> dict[int, int]:
        """Of every partition: its first record that was appended then or later; the end, where there is none."""
        return self.client.offsets(self.topic, range(self.partitions), append_ts_ms)

    def lag(self, partition: int) -> int:
        """Events behind what this object's reader of ``partition`` reported, as of its last fetch: records times what they hold."""
        self._check(partition)
        return max((reader.lag_events for reader in self._open_readers() if reader.partition == partition), default=0)

    def _open_readers(self) -> list[KafkaReader]:
        return [reader for reader in self._readers if not reader.is_closed]

    def metrics(self) -> dict[str, Any]:
        """lag_records, lag_events, fetches, fetched_bytes, fetch_failures, fetch_wait_ms (p50 p99), is_missing, late_appends; sends by outcome."""
        fetched = self._fetcher.metrics if self._fetcher is not None else None
        found: dict[str, Any] = {
            "lag_records": sum(reader.lag_records for reader in self._open_readers()),
            "lag_events": sum(reader.lag_events for reader in self._open_readers()),
            "late_appends": sum(reader.late_appends for reader in self._readers),
        }
        if fetched is not None:
            found |= {
                "fetches": fetched.fetches,
                "fetched_bytes": fetched.fetched_bytes,
                "fetch_failures": fetched.failures,
                "fetch_wait_ms_p50": fetched.waits.quantile(0.5),
                "fetch_wait_ms_p99": fetched.waits.quantile(0.99),
                "is_missing": fetched.is_missing,
            }
        return found

    def close(self) -> None:
        """Close what it gave, say how far the group is, and hang up."""
        if self.is_closed:
            return
        until = time.monotonic() + CLOSE_WAIT_S  # for all of them together
        for writer in list(self._writers.values()):
            writer.close(wait_s=max(0.0, until - time.monotonic()))
        self._groups.close()
        if self._producer is not None:
            self._producer.close()
        for reader in self._readers:
            reader.close()
        self.client.close()


def wait_for_topic(client: KafkaClient, topic: str, *, partitions: int, wait_s: float) -> None:
    """Until a topic that was just made has a leader for each partition. ``LogError`` after ``wait_s``."""
    until = time.monotonic() + wait_s
    while True:
        found = client.topic(topic)
        if found is not None and found.partitions >= partitions and all(client.leader(topic, p) is not None for p in range(partitions)):
            return
        if time.monotonic() > until:
            raise LogError(f"topic {topic!r} has no leaders after {wait_s:.0f} s")
        client.refresh()
        time.sleep(0.05)
