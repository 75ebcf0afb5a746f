"""A topic's settings, as its brokers tell them."""

from __future__ import annotations

from typing import Any

from kafka import errors
from kafka.protocol.admin import DescribeConfigsRequest

from keystone.log.kafka.client import KafkaClient

_TOPIC, _BROKER = 2, 4


def _settings(client: KafkaClient, kind: int, name: str, node_id: Any = None) -> dict[str, str | None] | None:
    resource = DescribeConfigsRequest.DescribeConfigsResource
    request = DescribeConfigsRequest(
        resources=[resource(resource_type=kind, resource_name=name, configuration_keys=None)], include_synonyms=False, include_documentation=False
    )
    [found] = client.ask(request, node_id).results
    if errors.for_code(found.error_code) is not errors.NoError:
        return None  # not allowed, mostly: DESCRIBE_CONFIGS is a right of its own
    return {entry.name: entry.value for entry in found.configs}


def topic_settings(client: KafkaClient, topic: str) -> dict[str, str | None] | None:
    """Every setting by name, defaults included; None where this user may not know them."""
    return _settings(client, _TOPIC, topic)


def broker_settings(client: KafkaClient, broker: int) -> dict[str, str | None] | None:
    """The same of one broker, asked itself."""
    return _settings(client, _BROKER, str(broker), broker)
