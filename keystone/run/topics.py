"""``keystone topics create|check``: the three topics of a Kafka log."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import click

from keystone.errors import UsageError
from keystone.run.options import CONTEXT, config_options, load_config

EXIT_FAIL: Final = 1
_UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LOG = click.option("--log", "log", required=True, metavar="URL", help="kafka://HOST[:PORT][,...][/TOPIC]")


@click.group("topics", context_settings=CONTEXT)
def topics_command() -> None:
    """Make the topics that a run needs, or look at those there are."""


@topics_command.command("create", context_settings=CONTEXT)
@_LOG
@click.option("--partitions", type=click.IntRange(1, 10_000), default=12, help="Of the telemetry topic.")
@click.option("--replication", type=click.IntRange(0, 32), default=0, help="Replicas; 0: 3, or as many as there are brokers.")
@click.option("--retention", default="1d", metavar="TIME", help="How long telemetry is kept: 90m, 12h, 3d; none: for ever.")
@click.option("--retention-bytes", type=click.IntRange(-1), default=-1, help="Of a partition; -1: no limit.")
@config_options
def create_command(**given: Any) -> None:
    """Make keystone-telemetry (or the URL's topic), keystone-actions and keystone-dead-letters; those that are there stay as they are."""
    from keystone.log.kafka.topics import create, plans

    config = load_config(given["config_file"], given["settings"])
    retention_ms = milliseconds(given["retention"])
    with _connected(given["log"], config) as (url, client):
        wanted = plans(
            url,
            config.kafka,
            partitions=given["partitions"],
            replication=given["replication"],
            retention_ms=retention_ms,
            retention_bytes=given["retention_bytes"],
        )
        for plan in wanted:
            click.echo(create(client, plan) or f"{plan.name}: is there already; keystone topics check tells whether it is right")


@topics_command.command("check", context_settings=CONTEXT)
@_LOG
@click.option("--partitions", type=click.IntRange(1, 10_000), default=None, help="How many the telemetry topic must have.  [default: any]")
@config_options
def check_command(**given: Any) -> None:
    """Say, line by line, what the topics have that would hurt. Exit status 1 if anything does."""
    config = load_config(given["config_file"], given["settings"])
    with _connected(given["log"], config) as (url, client):
        hurts = False
        for finding in findings(url, client, config, partitions=given["partitions"] or 0):
            hurts |= finding.hurts
            click.echo(f"{'HURTS' if finding.hurts else 'note '}  {finding.topic}: {finding.text}")
        if not hurts:
            click.echo("nothing hurts")
    sys.exit(EXIT_FAIL if hurts else 0)


def findings(url: Any, client: Any, config: Any, *, partitions: int) -> Iterator[Any]:
    """Of the three topics and the brokers."""
    from dataclasses import replace

    from keystone.log.kafka.topics import broker_findings, check, plans

    for plan in plans(url, config.kafka, partitions=1, replication=0, retention_ms=-1):
        is_telemetry = plan.name == url.topic
        yield from check(client, replace(plan, partitions=partitions if is_telemetry else 0), is_telemetry=is_telemetry)
    yield from broker_findings(client)


@contextmanager
def _connected(text: str, config: Any) -> Iterator[tuple[Any, Any]]:
    """The brokers of a Kafka URL. ``UsageError`` for any other URL, or where none can be reached."""
    from keystone import logs
    from keystone.log.kafka.client import KafkaClient
    from keystone.log.url import KafkaUrl, parse_log_url

    url = parse_log_url(text)
    if not isinstance(url, KafkaUrl):
        raise UsageError(f"--log {text}: topics are Kafka's: write it as kafka://HOST[:PORT]/keystone-telemetry")
    with closing(logs.configure(config.logs)):
        client = KafkaClient(url.servers, config.kafka, role="topics")
        try:
            client.connect()
            yield url, client
        finally:
            client.close()


def milliseconds(text: str) -> int:
    """``90m``, ``12h``, ``3d``; -1 for ``none``."""
    if text == "none":
        return -1
    match = re.fullmatch(r"([0-9]{1,9})(ms|s|m|h|d)", text)
    if match is None:
        raise UsageError(f"--retention {text}: write it as a number with ms, s, m, h or d, such as 12h, or none")
    return int(match[1]) * _UNITS_MS[match[2]]
