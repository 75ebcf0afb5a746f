"""The log of a bench: made for one run, watched while it goes, removed after it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil

from keystone.actors.outputs import OutputSpec
from keystone.bench.plan import SEGMENTS, BenchPlan
from keystone.bench.verdict import BROKERS_LIMIT, READERS_LIMIT
from keystone.config import KafkaConfig
from keystone.errors import UsageError
from keystone.log.embedded import EmbeddedLog, default_directory
from keystone.log.url import KafkaUrl, is_this_machine

if TYPE_CHECKING:
    from keystone.log.kafka.client import KafkaClient

RETENTION_MS = 3_600_000  # of topics made for a run
REMOVE_WAIT_S = 5.0


class Told(Protocol):
    """Something that has said how it is."""

    @property
    def status(self) -> dict[str, Any]: ...


class Hearing(Protocol):
    """Whoever knows what actors said last, by kind: a ``Supervisor``, or the judge of a run with faults."""

    def of_kind(self, kind: str) -> Sequence[Told]: ...


class BenchLog(Protocol):
    """``url`` is what actors open. ``full_ms``: that writers waited for room; ``full_means``: who was the limit then.

    ``broker_cpu_s``: CPU seconds of the brokers on this machine since the log was made; None where none is.
    """

    url: str
    output: OutputSpec
    start_offsets: tuple[tuple[int, int], ...]
    full_means: str

    def lag_events(self, supervisor: Hearing) -> int: ...
    def events_appended(self, supervisor: Hearing) -> int: ...
    def last_append_ms(self) -> int: ...
    def full_ms(self, supervisor: Hearing) -> float: ...
    def broker_cpu_s(self) -> float | None: ...
    def close(self, *, keep: bool) -> str | None:
        """Remove it, or keep it and return a line that says where it is."""


class EmbeddedBench:
    """Segment files in a directory of their own."""

    output = OutputSpec()
    start_offsets: tuple[tuple[int, int], ...] = ()
    full_means = READERS_LIMIT

    def __init__(self, plan: BenchPlan, home: Path) -> None:
        self._log = EmbeddedLog.create(
            home / default_directory().path.name, partitions=plan.partitions, segment_bytes=plan.segment_bytes, retention_bytes=plan.segment_bytes * SEGMENTS
        )
        self.url = self._log.url

    def _stats(self, name: str) -> list[int]:
        return [getattr(self._log.stats(p), name) for p in range(self._log.partitions)]

    def lag_events(self, supervisor: Hearing) -> int:  # noqa: ARG002 - the contract's signature
        return sum(self._stats("lag_events"))

    def events_appended(self, supervisor: Hearing) -> int:  # noqa: ARG002 - the contract's signature
        return sum(self._stats("events_appended"))

    def last_append_ms(self) -> int:
        return max(self._stats("last_append_ts_ms"))

    def full_ms(self, supervisor: Hearing) -> float:  # noqa: ARG002 - the contract's signature
        return float(sum(self._stats("waited_ms")))

    def broker_cpu_s(self) -> float | None:
        return None

    def close(self, *, keep: bool) -> str | None:
        if keep:
            self._log.close()
            return f"log kept in {self._log.directory}"
        self._log.remove()
        return None


@dataclass(slots=True)
class Received:
    """Events that were received of each partition, as its owner last said: the one of the highest epoch, for others may have died and say nothing new."""

    _of: dict[int, tuple[int, int]] = field(default_factory=dict)  # epoch, events

    def total(self, statuses: Iterable[dict[str, Any]]) -> int:
        """Of all partitions, after these answers. Keys may have become text on their way."""
        for status in statuses:
            received = status.get("received_of", {})
            for partition, epoch in status.get("epochs", {}).items():
                if partition in received and epoch >= self._of.get(int(partition), (0, 0))[0]:
                    self._of[int(partition)] = (epoch, received[partition])
        return sum(events for _, events in self._of.values())


class KafkaBench:
    """A topic of real brokers, and one beside it for the actions: made where it is not there, and deleted again then."""

    full_means = BROKERS_LIMIT

    def __init__(self, url: KafkaUrl, plan: BenchPlan, config: KafkaConfig) -> None:
        from keystone.log.kafka.client import LATEST, KafkaClient
        from keystone.log.kafka.topics import TopicPlan, create

        self._place, self._config = url, config
        self._client: KafkaClient = KafkaClient(url.servers, config, role="bench")
        self._made: list[str] = []
        self._received = Received()
        try:
            self._client.connect()
            self._check_partitions(plan)
            self._actions = url.beside(f"{url.topic}.actions")
            for place, partitions in ((url, plan.partitions), (self._actions, plan.partitions)):
                if create(self._client, TopicPlan(place.topic, partitions, 0, RETENTION_MS)) is not None:
                    self._made.append(place.topic)
            ends = self._client.offsets(url.topic, range(plan.partitions), LATEST)
        except BaseException:
            self._client.close()
            raise
        self.url = str(url)
        self.output = OutputSpec(actions=self._actions)
        self.start_offsets = tuple(sorted(ends.items()))
        self._brokers = local_brokers(self._client)
        self._cpu_s = self._cpu()

    def _check_partitions(self, plan: BenchPlan) -> None:
        topic = self._place.topic
        found = self._client.topic(topic)
        if found is not None and found.partitions != plan.partitions:
            raise UsageError(f"topic {topic!r} has {found.partitions} partitions, the run {plan.partitions}: say --partitions {found.partitions}")

    def lag_events(self, supervisor: Hearing) -> int:
        """What the fleets handed over and the session actors have not received; both by their last answers."""
        received = self._received.total(ward.status for ward in supervisor.of_kind("session"))
        return int(max(0, self.events_appended(supervisor) - received))

    def events_appended(self, supervisor: Hearing) -> int:
        """Handed over by the fleets: a batch that waits for its answer is behind too."""
        return sum(w.status.get("events", 0) for w in supervisor.of_kind("fleet"))

    def last_append_ms(self) -> int:
        return int(time.time() * 1_000)

    def full_ms(self, supervisor: Hearing) -> float:
        return float(sum(w.status.get("waited_ms", 0) for w in supervisor.of_kind("fleet")))

    def broker_cpu_s(self) -> float | None:
        return self._cpu() - self._cpu_s if self._brokers else None

    def _cpu(self) -> float:
        used = 0.0
        for process in self._brokers:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                used += times.user + times.system
        return used

    def close(self, *, keep: bool) -> str | None:
        from keystone.log.kafka.topics import delete

        try:
            if not keep:
                for topic in self._made:
                    delete(self._client, topic)
        finally:
            self._client.close()
        return f"topic kept: {self._place}" if keep else None


def local_brokers(client: KafkaClient) -> list[psutil.Process]:
    """The processes of this machine that listen where the cluster's brokers are."""
    ports = {broker.port for broker in client.control.cluster.brokers() if is_this_machine(broker.host)}
    found: dict[int, psutil.Process] = {}
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port in ports and connection.pid:
                found[connection.pid] = psutil.Process(connection.pid)
    return list(found.values())
