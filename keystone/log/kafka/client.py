"""Connections to the brokers: one thread that does all input and output, requests by whoever wants an answer.

kafka-python's consumer and producer are not used: they make an object of each record, hide why a connection fails, and stay
wedged after some errors. Its protocol, connections, TLS, SASL and metadata are.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from kafka import errors
from kafka.future import Future
from kafka.net.selector import NetworkSelector
from kafka.protocol.consumer import ListOffsetsRequest
from kafka.protocol.metadata import MetadataRequest
from kafka.structs import TopicPartition

from keystone.config import KafkaConfig
from keystone.errors import KeystoneError, LogClosed, LogUnreachable, UsageError
from keystone.log.kafka import explain
from keystone.log.kafka.connections import Connections
from keystone.log.kafka.security import Login, connection_options, hide_secrets

LATEST, EARLIEST = -1, -2  # of ListOffsets
RECONNECT_MAX_MS: Final = 1_000  # kafka-python's 30 s would add up to that to every outage
RETRY_MS: Final = 100
ANSWER_BYTES_MAX: Final = 256 << 20  # of one answer
IN_FLIGHT_MAX: Final = 8  # requests of one connection
CALL_WAIT_S: Final = 10.0  # for an answer to a request that may be repeated
OPEN_MARGIN_S: Final = 1.5  # beyond kafka.connect_timeout_ms, until the topic is known too: 9.5 s in all
CLOSED_LOOK_S: Final = 0.1  # between two looks whether whoever waits for an answer waits in vain
_OPERATIONS: Final = {"read": 3, "write": 4}  # of a topic's authorized operations (KIP-430)

_CLOSED: Final = "the connection to the brokers was closed"

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
        told: set[Any] = set()
        self.control = Connections(self.net, config, login, told, **options)
        # A fetch is kept by the broker until records come; answers on one connection keep their order, so fetches have their own.
        self.fetching = Connections(self.net, config, login, told, **options)
        for manager in (self.control, self.fetching):
            manager.cluster.config["allow_auto_create_topics"] = False
            manager.cluster.config["retry_backoff_ms"] = RETRY_MS
        self._is_closed, self._is_gone = threading.Event(), threading.Event()
        self._closing = threading.Lock()
        self._open_until_s = 0.0
        self.net.start()
        self._thread: threading.Thread = self.net._io_thread  # noqa: SLF001 - who must not wait for itself

    # --- connecting ---------------------------------------------------------------------------------------------------
    def connect(self) -> None:
        """Reach one of the servers, and a broker where it sends us. ``UsageError`` says why the one that came furthest cannot be used."""
        began_s = time.monotonic()
        until = began_s + self.config.connect_timeout_ms / 1_000
        self._open_until_s = until + OPEN_MARGIN_S
        self.run(self._connect, until)

    async def _connect(self, until: float) -> None:
        """All servers at once: one that is silent costs no time where another answers."""
        named = sorted(self.control.cluster.bootstrap_brokers(), key=lambda broker: _place_of(_address(broker), self.servers))
        greetings = await self._first([partial(self._greet, broker.node_id, until) for broker in named], until)
        for broker in named:
            self.control.close(broker.node_id)  # from now on, the cluster's own addresses are used
        answered = next((place for place, greeting in enumerate(greetings) if greeting.succeeded()), None)
        if answered is None:
            refused, broker = _furthest(greetings, named)
            raise explain.explain(refused, _address(broker), self.config)
        server, metadata = _address(named[answered]), greetings[answered].value
        if not metadata.brokers:
            raise UsageError(f"{server}: answers, but knows no broker of its cluster yet: wait until it has started, or look at its log")
        for manager in (self.control, self.fetching):
            manager.adopt(metadata)
        await self._reach_any(server, max(until, time.monotonic() + 1.0))
        self.control.tells = self.fetching.tells = True

    async def _greet(self, node_id: Any, until: float) -> Any:
        """Connect to a server that was named, log in, and ask for the cluster: all that may be refused."""
        connection = self.control.get_connection(node_id, timeout_ms=(until - time.monotonic()) * 1_000, refresh_metadata_on_err=False)
        began_s = time.monotonic()
        await connection.init_future
        try:
            request = MetadataRequest(topics=[], allow_auto_topic_creation=False)
            return await connection.send_request(request, request_timeout_ms=max(500.0, (until - time.monotonic()) * 1_000))
        except errors.KafkaError as error:
            raise explain.StepFailed("metadata", error, time.monotonic() - began_s) from None

    async def _reach_any(self, server: str, until: float) -> None:
        """See that one of the addresses where ``server`` sends us can be used from here; of the others, the log tells."""
        brokers = self.control.cluster.brokers()
        reached = await self._first([partial(self._reach, broker.node_id, until) for broker in brokers], until)
        if not any(attempt.succeeded() for attempt in reached):
            refused, broker = _furthest(reached, brokers)
            raise explain.advertised(refused, server, broker.node_id, _address(broker), self.config)

    async def _reach(self, node_id: Any, until: float) -> None:
        await self.control.get_connection(node_id, timeout_ms=(until - time.monotonic()) * 1_000).init_future

    async def _first(self, attempts: list[Callable[[], Coroutine[Any, Any, Any]]], until: float) -> list[Any]:
        """Start all; return when one succeeded, all failed, or it is ``until``."""
        outcomes = [self.control.call_soon(attempt) for attempt in attempts]
        decided = Future()

        def look(_: Any) -> None:
            if not decided.is_done and (any(outcome.succeeded() for outcome in outcomes) or all(outcome.is_done for outcome in outcomes)):
                decided.success(None)

        for outcome in outcomes:
            outcome.add_both(look)
        with suppress(errors.KafkaTimeoutError):
            await self.control.wait_for(decided, max(0.0, until + 0.2 - time.monotonic()) * 1_000)  # each ends by itself, and knows why
        return outcomes

    # --- asking -------------------------------------------------------------------------------------------------------
    def run(self, coro: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
        """Run on the thread of input and output and wait for the result. ``LogClosed`` where ``close`` comes first, from wherever."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("whoever waits here keeps the result from coming")
        if self._is_closed.is_set():
            raise LogClosed(_CLOSED)
        done = threading.Event()
        try:
            future = self.net.call_soon_with_future(coro, *arguments)
        except RuntimeError:  # closed meanwhile
            raise LogClosed(_CLOSED) from None
        future.add_both(lambda _: done.set())
        while not done.wait(CLOSED_LOOK_S):
            if (self._is_gone.is_set() or not self._thread.is_alive()) and not done.is_set():
                raise LogClosed(_CLOSED)
        if future.exception is None:
            return future.value
        if self._is_closed.is_set() and not isinstance(future.exception, KeystoneError):
            raise LogClosed(_CLOSED) from None
        raise future.exception

    def start(self, coro: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> None:
        """Run there without waiting."""
        try:
            self.net.call_soon_with_future(coro, *arguments)
        except RuntimeError:
            raise LogClosed(_CLOSED) from None

    def ask(self, request: Any, node_id: Any = None, *, wait_s: float = CALL_WAIT_S) -> Any:
        """An answer, whoever gives it (or ``node_id``); repeated while connections break. ``LogUnreachable`` after ``wait_s``."""
        until = time.monotonic() + wait_s
        while True:
            try:
                return self.run(self._ask, request, node_id, until)
            except errors.KafkaError as error:
                if not _is_passing(error):
                    raise explain.as_ours(error, f"brokers {', '.join(self.servers)}") from None
                if time.monotonic() > until:
                    why = self.control.complaint or explain.explain(error, self.servers[0], self.config)
                    raise LogUnreachable(f"{', '.join(self.servers)}: no answer within {wait_s:.3g} s: {why}") from None
            if self._is_closed.wait(RETRY_MS / 1_000):
                raise LogClosed(_CLOSED)

    async def _ask(self, request: Any, node_id: Any, until: float) -> Any:
        node = self.control.least_loaded_node() if node_id is None else node_id
        if node is None:
            raise errors.NodeNotReadyError("no broker is known")
        return await self.control.wait_for(self.control.send(request, node), max(1.0, (until - time.monotonic()) * 1_000))

    def topic(self, name: str, *, wait_s: float = CALL_WAIT_S) -> TopicState | None:
        """The topic, or None where there is none. ``UsageError`` where this user may not see it, ``LogUnreachable`` after ``wait_s``."""
        until = time.monotonic() + wait_s
        while True:
            request = MetadataRequest(
                topics=[MetadataRequest.MetadataRequestTopic(name=name)],
                allow_auto_topic_creation=False,
                include_cluster_authorized_operations=False,
                include_topic_authorized_operations=True,
            )
            [found] = self.ask(request, wait_s=max(RETRY_MS / 1_000, until - time.monotonic())).topics
            error = errors.for_code(found.error_code)
            if error is errors.NoError:
                allowed = getattr(found, "authorized_operations", None)
                return TopicState(len(found.partitions), getattr(found, "topic_id", None), frozenset(allowed) if allowed else None)
            if error is errors.UnknownTopicOrPartitionError:
                return None
            if error is errors.TopicAuthorizationFailedError:
                raise explain.not_allowed("see", name, self.config)
            if not issubclass(error, errors.RetriableError):
                raise UsageError(f"topic {name!r} cannot be used: {error.__name__}: choose another, or look at the broker's log")
            if time.monotonic() > until:
                raise LogUnreachable(f"topic {name!r}: {error.__name__} for {wait_s:.3g} s: look at the brokers")
            if self._is_closed.wait(RETRY_MS / 1_000):
                raise LogClosed(_CLOSED)

    def need_topic(self, name: str, *, action: str | None = None) -> TopicState:
        """The topic; ``UsageError`` where it is not there, brokers do not answer, or ``action`` (read | write) is not allowed."""
        left_s = self._open_until_s - time.monotonic()
        try:
            found = self.topic(name, wait_s=left_s if left_s > 0 else CALL_WAIT_S)
        except LogUnreachable as error:
            raise UsageError(str(error)) from None
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
                found |= self._offsets_at(leader, topic, ours, when, until)
            wanted -= found.keys()
            if wanted:
                self.refresh()
                if time.monotonic() > until:
                    why = f": {self.control.complaint}" if self.control.complaint else ""
                    raise LogUnreachable(f"topic {topic!r}: no leader of partition {min(wanted)} answers within {CALL_WAIT_S:.0f} s{why}")
                if self._is_closed.wait(RETRY_MS / 1_000):
                    raise LogClosed(_CLOSED)
        late = [partition for partition, offset in found.items() if offset < 0]
        return found | (self.offsets(topic, late, LATEST) if late and when >= 0 else {})

    def _offsets_at(self, leader: int, topic: str, partitions: list[int], when: int, until: float) -> dict[int, int]:
        kinds = ListOffsetsRequest.ListOffsetsTopic
        request = ListOffsetsRequest(
            replica_id=-1,
            isolation_level=0,
            topics=[kinds(name=topic, partitions=[kinds.ListOffsetsPartition(partition_index=p, current_leader_epoch=-1, timestamp=when) for p in partitions])],
            min_version=1,
        )
        try:
            answer = self.run(self._ask, request, leader, until)
        except errors.KafkaError as failure:
            if not _is_passing(failure):
                raise explain.as_ours(failure, f"topic {topic!r}") from None
            return {}
        found = {}
        for partition in answer.topics[0].partitions:
            kind = errors.for_code(partition.error_code)
            if kind is errors.NoError:
                found[partition.partition_index] = int(partition.offset)
            elif kind is errors.TopicAuthorizationFailedError:
                raise explain.not_allowed("read", topic, self.config)
        return found

    def leader(self, topic: str, partition: int, *, of: Any = None) -> int | None:
        """The broker that leads a partition, as far as is known."""
        cluster = (of or self.control).cluster
        if topic not in cluster._topics:  # noqa: SLF001 - ``add_topic`` asks for an update each time
            with suppress(RuntimeError):  # closed: nobody is left to ask
                cluster.add_topic(topic)
        found = cluster.leader_for_partition(TopicPartition(topic, partition))
        return None if found is None or found < 0 else int(found)

    def refresh(self) -> None:
        """Ask for metadata soon."""
        with suppress(RuntimeError):  # as above
            for manager in (self.control, self.fetching):
                manager.cluster.request_update()

    # --- ending -------------------------------------------------------------------------------------------------------
    @property
    def is_closed(self) -> bool:
        return self._is_closed.is_set()

    def close(self) -> None:
        """End every connection, and every wait for an answer, with ``LogClosed``. From any thread but the one of input and output."""
        with self._closing:
            if self._is_closed.is_set():
                return
            self._is_closed.set()
        with suppress(Exception):  # the thread has ended by itself
            for manager in (self.control, self.fetching):
                self.net.call_soon_with_future(_closing(manager))
            self.net.stop(timeout_ms=2_000)
            self.net.close()
        self._is_gone.set()


def _address(broker: Any) -> str:
    return f"[{broker.host}]:{broker.port}" if ":" in broker.host else f"{broker.host}:{broker.port}"


def _place_of(server: str, servers: tuple[str, ...]) -> int:
    """kafka-python shuffles them."""
    return servers.index(server) if server in servers else len(servers)


def _furthest(attempts: list[Any], brokers: list[Any]) -> tuple[BaseException, Any]:
    """Whose refusal says most: a wrong password matters more than another server that is down."""
    refusals = [attempt.exception or explain.StepFailed("connect", TimeoutError()) for attempt in attempts]
    best = max(range(len(refusals)), key=lambda place: (explain.progress(refusals[place]), -place))
    return refusals[best], brokers[best]


def _closing(manager: Any) -> Callable[[], Coroutine[Any, Any, None]]:
    async def close() -> None:
        manager.close()

    return close


def _is_passing(error: errors.KafkaError) -> bool:
    """Whether asking again may help."""
    return isinstance(
        error, (errors.KafkaConnectionError, errors.NodeNotReadyError, errors.RequestTimedOutError, errors.KafkaTimeoutError, errors.UnknownBrokerIdError)
    ) or bool(getattr(error, "retriable", False))
