"""Connections to the brokers: one thread that does all input and output, requests by whoever wants an answer.

kafka-python's consumer and producer are not used: they make an object of each record, hide why a connection fails, and stay
wedged after some errors. Its protocol, connections, TLS, SASL and metadata are.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final

from kafka import errors
from kafka.net.selector import NetworkSelector
from kafka.protocol.consumer import ListOffsetsRequest
from kafka.protocol.metadata import MetadataRequest
from kafka.structs import TopicPartition

from keystone.config import KafkaConfig
from keystone.errors import LogClosed, LogUnreachable, UsageError
from keystone.log.kafka import explain
from keystone.log.kafka.connections import Connections
from keystone.log.kafka.security import Login, connection_options, hide_secrets

LATEST, EARLIEST = -1, -2  # of ListOffsets
RECONNECT_MAX_MS: Final = 1_000  # kafka-python's 30 s would add up to that to every outage
RETRY_MS: Final = 100
ANSWER_BYTES_MAX: Final = 256 << 20  # of one answer
IN_FLIGHT_MAX: Final = 8  # requests of one connection
CALL_WAIT_S: Final = 10.0  # for an answer to a request that may be repeated
_OPERATIONS: Final = {"read": 3, "write": 4}  # of a topic's authorized operations (KIP-430)

log = logging.getLogger("keystone.log.kafka")


@dataclass(frozen=True, slots=True)
class TopicState:
    """What a broker says of a topic. ``topic_id`` changes when it is deleted and made anew; None from old brokers."""

    partitions: int
    topic_id: Any
    operations: frozenset[int] | None  # that this user may do; None where brokers do not tell


class KafkaClient:
    """Brokers of one cluster. ``connect`` first. Thread-safe; ``close`` may be repeated."""

    def __init__(self, servers: Iterable[str], config: KafkaConfig, *, role: str = "client") -> None:
        self.servers = tuple(servers)
        self.config = config
        options = connection_options(config, self.servers) | {
            "bootstrap_servers": list(self.servers),
            "client_id": f"{config.client_id}-{role}",
            "request_timeout_ms": config.request_timeout_ms,
            "reconnect_backoff_ms": 50,
            "reconnect_backoff_max_ms": RECONNECT_MAX_MS,
            "socket_connection_setup_timeout_ms": min(3_000, config.connect_timeout_ms),
            "socket_connection_setup_timeout_max_ms": config.request_timeout_ms,
            "receive_message_max_bytes": ANSWER_BYTES_MAX,
            "max_in_flight_requests_per_connection": IN_FLIGHT_MAX,
            "metadata_max_age_ms": config.metadata_max_age_ms,
        }
        login = Login(config) if config.security_protocol.startswith("SASL") else None
        hide_secrets()
        self.net = NetworkSelector(client_id=options["client_id"], slow_task_threshold_secs=0)
        self.control = Connections(self.net, config, login, **options)
        # A fetch is kept by the broker until records come; answers on one connection keep their order, so fetches have their own.
        self.fetching = Connections(self.net, config, login, **options)
        for manager in (self.control, self.fetching):
            manager.cluster.config["allow_auto_create_topics"] = False
            manager.cluster.config["retry_backoff_ms"] = RETRY_MS
        self._is_closed = threading.Event()
        self.net.start()

    # --- connecting ---------------------------------------------------------------------------------------------------
    def connect(self) -> None:
        """Reach one of the servers, and a broker where it sends us. ``UsageError`` with the first reason where none can be reached."""
        until = time.monotonic() + self.config.connect_timeout_ms / 1_000
        refused: list[UsageError] = []
        brokers = self.control.cluster.bootstrap_brokers()
        for place, broker in enumerate(brokers):
            server = f"{broker.host}:{broker.port}"
            share_s = (until - time.monotonic()) / (len(brokers) - place)
            try:
                metadata = self.run(self._greet, broker.node_id, share_s)
                self._adopt(metadata, server, until)
            except (errors.KafkaError, UsageError) as error:
                refused.append(explain.explain(error, server, self.config))
            else:
                return
        raise refused[0]

    async def _greet(self, node_id: Any, wait_s: float) -> Any:
        """Connect to a server that was named, log in, and ask for the cluster: all that may be refused."""
        until = time.monotonic() + wait_s
        connection = self.control.get_connection(node_id, timeout_ms=wait_s * 1_000, pop_on_close=False, refresh_metadata_on_err=False)
        try:
            await self.control.wait_for(connection.init_future, wait_s * 1_000)
            request = MetadataRequest(topics=[], allow_auto_topic_creation=False)
            return await self.control.wait_for(connection.send_request(request), max(1.0, (until - time.monotonic()) * 1_000))
        except (errors.KafkaConnectionError, errors.KafkaTimeoutError) as error:
            raise error if isinstance(error, explain.StepFailed) else explain.StepFailed("metadata", error) from None
        finally:
            self.control._conns.pop(node_id, connection).close()  # noqa: SLF001 - the cluster's own addresses are used from now on
            self.control.reset_backoff(node_id)

    def _adopt(self, metadata: Any, server: str, until: float) -> None:
        """Take the cluster's addresses over, and see that one of them can be used from here."""
        for manager in (self.control, self.fetching):
            self.run(_adopting(manager, metadata))
        refused: list[UsageError] = []
        brokers = self.control.cluster.brokers()
        for place, broker in enumerate(brokers):
            share_ms = max(500.0, (until - time.monotonic()) * 1_000 / (len(brokers) - place))
            try:
                self.run(self._reach, broker.node_id, share_ms)
            except errors.KafkaError as error:
                refused.append(explain.advertised(error, server, broker.node_id, f"{broker.host}:{broker.port}", self.config))
            else:
                return
        raise refused[0] if refused else UsageError(f"{server}: answers, but knows no broker of its cluster: look at the broker's log")

    async def _reach(self, node_id: Any, wait_ms: float) -> None:
        connection = self.control.get_connection(node_id, timeout_ms=wait_ms)
        await self.control.wait_for(connection.init_future, wait_ms + 200)

    # --- asking -------------------------------------------------------------------------------------------------------
    def run(self, coro: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
        """Run on the thread of input and output and wait for the result."""
        if self._is_closed.is_set():
            raise LogClosed("the connection to the brokers was closed")
        try:
            return self.net.run(coro, *arguments)
        except errors.KafkaConnectionError:
            if self._is_closed.is_set():
                raise LogClosed("the connection to the brokers was closed") from None
            raise

    def start(self, coro: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> None:
        """Run there without waiting."""
        self.net.call_soon_with_future(coro, *arguments)

    def ask(self, request: Any, node_id: Any = None, *, wait_s: float = CALL_WAIT_S) -> Any:
        """An answer, whoever gives it (or ``node_id``); repeated while connections break. ``LogUnreachable`` after ``wait_s``."""
        until = time.monotonic() + wait_s
        while True:
            try:
                return self.run(self._ask, request, node_id)
            except errors.KafkaError as error:
                if not _is_passing(error):
                    raise explain.as_ours(error, f"brokers {', '.join(self.servers)}") from error
                if time.monotonic() > until:
                    raise LogUnreachable(
                        f"{', '.join(self.servers)}: no answer within {wait_s:.0f} s: {explain.explain(error, self.servers[0], self.config)}"
                    ) from None
            if self._is_closed.wait(RETRY_MS / 1_000):
                raise LogClosed("the connection to the brokers was closed")

    async def _ask(self, request: Any, node_id: Any) -> Any:
        node = self.control.least_loaded_node() if node_id is None else node_id
        if node is None:
            raise errors.NodeNotReadyError("no broker is known")
        return await self.control.send(request, node)

    def topic(self, name: str) -> TopicState | None:
        """The topic, or None where there is none. ``UsageError`` where this user may not see it."""
        until = time.monotonic() + CALL_WAIT_S
        while True:
            answer = self.ask(
                MetadataRequest(
                    topics=[MetadataRequest.MetadataRequestTopic(name=name)],
                    allow_auto_topic_creation=False,
                    include_cluster_authorized_operations=False,
                    include_topic_authorized_operations=True,
                )
            )
            [found] = answer.topics
            error = errors.for_code(found.error_code)
            if error is errors.NoError:
                allowed = getattr(found, "authorized_operations", None)
                return TopicState(len(found.partitions), getattr(found, "topic_id", None), frozenset(allowed) if allowed else None)
            if error is errors.UnknownTopicOrPartitionError:
                return None
            if error is errors.TopicAuthorizationFailedError:
                raise explain.not_allowed("see", name, self.config)
            if not issubclass(error, errors.RetriableError) or time.monotonic() > until:
                raise UsageError(f"topic {name!r}: {error.__name__}")
            time.sleep(RETRY_MS / 1_000)

    def need_topic(self, name: str, *, action: str | None = None) -> TopicState:
        """The topic; ``UsageError`` where it is not there, or ``action`` (read | write) is not allowed."""
        found = self.topic(name)
        if found is None:
            raise explain.not_there(name, ",".join(self.servers))
        if action is not None and found.operations is not None and _OPERATIONS[action] not in found.operations:
            raise explain.not_allowed(action, name, self.config)
        return found

    def offsets(self, topic: str, partitions: Iterable[int], when: int) -> dict[int, int]:
        """The offset of each partition at ``when``: EARLIEST, LATEST, or a time in ms (the end, where nothing is as new)."""
        until = time.monotonic() + CALL_WAIT_S
        wanted, found = set(partitions), dict[int, int]()
        while wanted:
            by_leader: dict[int, list[int]] = {}
            for partition in wanted:
                leader = self.leader(topic, partition)
                if leader is not None:
                    by_leader.setdefault(leader, []).append(partition)
            for leader, ours in by_leader.items():
                found |= self._offsets_at(leader, topic, ours, when)
            wanted -= found.keys()
            if wanted:
                self.refresh()
                if time.monotonic() > until:
                    raise LogUnreachable(f"topic {topic!r}: no leader of partition {min(wanted)} answers within {CALL_WAIT_S:.0f} s")
                if self._is_closed.wait(RETRY_MS / 1_000):
                    raise LogClosed("the connection to the brokers was closed")
        late = [partition for partition, offset in found.items() if offset < 0]
        return found | (self.offsets(topic, late, LATEST) if late and when >= 0 else {})

    def _offsets_at(self, leader: int, topic: str, partitions: list[int], when: int) -> dict[int, int]:
        kinds = ListOffsetsRequest.ListOffsetsTopic
        request = ListOffsetsRequest(
            replica_id=-1,
            isolation_level=0,
            topics=[kinds(name=topic, partitions=[kinds.ListOffsetsPartition(partition_index=p, current_leader_epoch=-1, timestamp=when) for p in partitions])],
            min_version=1,
        )
        try:
            answer = self.ask(request, leader, wait_s=RETRY_MS / 1_000)
        except LogUnreachable:
            return {}
        found = {}
        for partition in answer.topics[0].partitions:
            error = errors.for_code(partition.error_code)
            if error is errors.NoError:
                found[partition.partition_index] = int(partition.offset)
            elif error is errors.TopicAuthorizationFailedError:
                raise explain.not_allowed("read", topic, self.config)
        return found

    def leader(self, topic: str, partition: int, *, of: Any = None) -> int | None:
        """The broker that leads a partition, as far as is known."""
        cluster = (of or self.control).cluster
        if topic not in cluster._topics:  # noqa: SLF001 - ``add_topic`` asks for an update each time
            cluster.add_topic(topic)
        found = cluster.leader_for_partition(TopicPartition(topic, partition))
        return None if found is None or found < 0 else int(found)

    def refresh(self) -> None:
        """Ask for metadata soon."""
        for manager in (self.control, self.fetching):
            manager.cluster.request_update()

    # --- ending -------------------------------------------------------------------------------------------------------
    @property
    def is_closed(self) -> bool:
        return self._is_closed.is_set()

    def close(self) -> None:
        if self._is_closed.is_set():
            return
        self._is_closed.set()
        for manager in (self.control, self.fetching):
            self.net.call_soon_with_future(_closing(manager))
        self.net.stop(timeout_ms=2_000)
        self.net.close()


def _adopting(manager: Connections, metadata: Any) -> Callable[[], Coroutine[Any, Any, None]]:
    async def adopt() -> None:
        manager.adopt(metadata)

    return adopt


def _closing(manager: Any) -> Callable[[], Coroutine[Any, Any, None]]:
    async def close() -> None:
        manager.close()

    return close


def _is_passing(error: errors.KafkaError) -> bool:
    """Whether asking again may help."""
    return isinstance(
        error, (errors.KafkaConnectionError, errors.NodeNotReadyError, errors.RequestTimedOutError, errors.KafkaTimeoutError, errors.UnknownBrokerIdError)
    ) or bool(getattr(error, "retriable", False))
