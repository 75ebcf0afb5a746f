"""The three topics: made as a run needs them, and looked at for what would hurt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kafka import errors
from kafka.protocol.admin import CreateTopicsRequest, DeleteTopicsRequest

from keystone.config import KafkaConfig
from keystone.errors import UsageError
from keystone.log.kafka import explain
from keystone.log.kafka.client import KafkaClient
from keystone.log.kafka.log import wait_for_topic
from keystone.log.kafka.settings import broker_settings, topic_settings
from keystone.log.url import KafkaUrl

DAY_MS: Final = 86_400_000
READY_WAIT_S: Final = 20.0
_SEGMENT_BYTES: Final = 256 << 20  # retention drops whole segments
_SEGMENT_BYTES_MIN: Final = 1 << 20  # brokers of Kafka 4 take no smaller ones
_MESSAGE_BYTES: Final = 8 << 20  # a line of 1 MiB is still an event, and frames hold some
_COPIES: Final = 3  # replicas, where there are as many brokers


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """How a topic shall be. ``retention_bytes`` is of one partition; -1: no limit."""

    name: str
    partitions: int
    replication: int  # 0: 3, or as many as there are brokers
    retention_ms: int
    retention_bytes: int = -1
    message_bytes: int = _MESSAGE_BYTES


class Finding(NamedTuple):
    """One line of a check. ``hurts``: results or data are at risk; otherwise it is worth knowing."""

    topic: str
    text: str
    hurts: bool = True


def plans(url: KafkaUrl, config: KafkaConfig, *, partitions: int, replication: int, retention_ms: int, retention_bytes: int = -1) -> list[TopicPlan]:
    """Telemetry by the given figures; actions and dead letters are few, and kept at least a week."""
    kept_ms = max(retention_ms, 7 * DAY_MS) if retention_ms >= 0 else -1
    few = max(1, min(partitions, 4))
    return [
        TopicPlan(url.topic, partitions, replication, retention_ms, retention_bytes),
        TopicPlan(config.actions_topic, few, replication, kept_ms),
        TopicPlan(config.dead_letters_topic, few, replication, kept_ms),
    ]


def create(client: KafkaClient, plan: TopicPlan) -> str | None:
    """Make the topic and wait until it has leaders; a line that says so, None where it was there. ``UsageError`` where refused."""
    if client.topic(plan.name) is not None:
        return None
    brokers = len(client.control.cluster.brokers())
    copies = plan.replication or max(1, min(_COPIES, brokers))
    in_sync = max(1, copies - 1)
    settings = {
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": plan.message_bytes,
        "retention.ms": plan.retention_ms,
        "retention.bytes": plan.retention_bytes,
        "segment.bytes": _SEGMENT_BYTES if plan.retention_bytes < 0 else max(_SEGMENT_BYTES_MIN, min(_SEGMENT_BYTES, plan.retention_bytes // 4)),
        "min.insync.replicas": in_sync,
        "unclean.leader.election.enable": "false",
        "compression.type": "producer",
        "cleanup.policy": "delete",
    }
    _create(client, plan.name, plan.partitions, copies, settings)
    wait_for_topic(client, plan.name, partitions=plan.partitions, wait_s=READY_WAIT_S)
    return f"{plan.name}: made, {plan.partitions} partitions, {copies} replica{'s' if copies > 1 else ''} (in sync at least {in_sync}), LogAppendTime"


def _create(client: KafkaClient, name: str, partitions: int, copies: int, settings: dict[str, Any]) -> None:
    kinds = CreateTopicsRequest.CreatableTopic
    request = CreateTopicsRequest(
        topics=[
            kinds(
                name=name, num_partitions=partitions, replication_factor=copies, assignments=[],
                configs=[kinds.CreatableTopicConfig(name=key, value=str(value)) for key, value in settings.items()],
            )
        ],
        timeout_ms=client.config.request_timeout_ms,
        validate_only=False,
    )  # fmt: skip
    controller = client.control.cluster.controller
    [found] = client.ask(request, controller.node_id if controller is not None else None).topics
    error = errors.for_code(found.error_code)
    if error in (errors.NoError, errors.TopicAlreadyExistsError):
        return
    if issubclass(error, errors.AuthorizationError):
        raise explain.not_allowed("create", name, client.config)
    if error is errors.InvalidReplicationFactorError:
        raise UsageError(f"topic {name!r}: {copies} replicas need as many brokers ({found.error_message}): lower --replication")
    raise UsageError(f"topic {name!r} cannot be made: {error.__name__}: {found.error_message}")


def delete(client: KafkaClient, name: str) -> None:
    """Delete the topic; nothing happens where there is none."""
    controller = client.control.cluster.controller
    request = DeleteTopicsRequest(
        topic_names=[name], topics=[DeleteTopicsRequest.DeleteTopicState(name=name, topic_id=None)], timeout_ms=client.config.request_timeout_ms, max_version=5
    )
    client.ask(request, controller.node_id if controller is not None else None)


def check(client: KafkaClient, plan: TopicPlan, *, is_telemetry: bool) -> Iterator[Finding]:
    """What an existing topic has that would hurt, or should be known. ``plan.partitions`` 0: any number will do."""
    found = client.topic(plan.name)
    if found is None:
        yield Finding(plan.name, "is not there: make it by keystone topics create")
        return
    if plan.partitions and found.partitions != plan.partitions:
        yield Finding(
            plan.name,
            f"has {found.partitions} partitions, not {plan.partitions}: sessions of before lie in other partitions than their events from now on;"
            " finish what is open with the old number, or make a topic anew",
        )  # fmt: skip
    settings = topic_settings(client, plan.name)
    if settings is None:
        yield Finding(plan.name, "its settings may not be seen (DESCRIBE_CONFIGS on the topic): nothing more can be checked", hurts=False)
        return
    yield from _of_settings(plan.name, settings, is_telemetry=is_telemetry)
    yield from _of_replicas(client, plan.name, settings)


def _of_settings(name: str, settings: dict[str, str | None], *, is_telemetry: bool) -> Iterator[Finding]:
    if settings.get("message.timestamp.type") != "LogAppendTime":
        yield Finding(
            name,
            "message.timestamp.type = CreateTime: log time would be the producers' clocks, and one fast clock could close sessions: set it to LogAppendTime",
            hurts=is_telemetry,
        )
    if settings.get("unclean.leader.election.enable") == "true":
        yield Finding(name, "unclean.leader.election.enable = true: an election may lose acknowledged records: set it to false")
    if "compact" in (settings.get("cleanup.policy") or ""):
        yield Finding(name, f"cleanup.policy = {settings['cleanup.policy']}: compaction drops records by key: set it to delete")
    size = int(settings.get("max.message.bytes") or 0)
    if size < _MESSAGE_BYTES // 8:
        yield Finding(name, f"max.message.bytes = {size:,}: events of 1 MiB do not fit: set it to {_MESSAGE_BYTES:,}")
    retention_ms = int(settings.get("retention.ms") or -1)
    if is_telemetry and 0 <= retention_ms < DAY_MS // 24:
        yield Finding(name, f"retention.ms = {retention_ms:,}: what is not read within {retention_ms / 60_000:.0f} min is lost: raise it")


def _of_replicas(client: KafkaClient, name: str, settings: dict[str, str | None]) -> Iterator[Finding]:
    cluster = client.control.cluster
    client.leader(name, 0)
    answer = client.ask(cluster.metadata_request())
    topic = next((t for t in answer.topics if t.name == name), None)
    partitions = topic.partitions if topic is not None else []
    copies = min((len(p.replica_nodes) for p in partitions), default=0)
    in_sync = int(settings.get("min.insync.replicas") or 1)
    if copies == 1:
        yield Finding(name, "1 replica: a broker that is lost takes its records with it: make the topic with 3", hurts=len(cluster.brokers()) > 1)
    elif in_sync < 2:
        yield Finding(name, f"min.insync.replicas = {in_sync} of {copies} replicas: an acknowledged record may be in one place only: set it to {copies - 1}")
    elif in_sync >= copies > 0:
        yield Finding(name, f"min.insync.replicas = {in_sync} of {copies} replicas: one broker down stops every send: set it to {copies - 1}")
    behind = sum(len(p.isr_nodes) < len(p.replica_nodes) for p in partitions)
    if behind:
        yield Finding(name, f"{behind} partitions have replicas that are not in sync now", hurts=False)
    if headless := sum(p.leader_id < 0 for p in partitions):
        yield Finding(name, f"{headless} partitions have no leader now: look at the brokers")


def broker_findings(client: KafkaClient) -> Iterator[Finding]:
    """What the brokers have that a topic cannot make up for."""
    for broker in client.control.cluster.brokers():
        settings = broker_settings(client, broker.node_id)
        if settings is None:
            continue
        size = int(settings.get("replica.fetch.max.bytes") or _MESSAGE_BYTES)
        if size < _MESSAGE_BYTES // 8:
            text = f"replica.fetch.max.bytes = {size:,}: below the topics' max.message.bytes, replication is slow"
            yield Finding(f"broker {broker.node_id}", text, hurts=False)
