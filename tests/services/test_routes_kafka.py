"""``keystone routes sample`` of a real topic, and of one that a run reads: what comes is right, and nobody notices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from keystone.cli import main
from tests.dirty import dirty_text
from tests.kafka_server import KafkaCluster, free_port
from tests.rdkafka import Confluent
from tests.services import runs
from tests.services.runs import Topics

Tell = Callable[..., tuple[int, list[str], str]]
PARTITIONS = 3


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tell:
    """Exit status, lines and errors of ``keystone routes``."""
    monkeypatch.chdir(tmp_path)

    def told(*words: str) -> tuple[int, list[str], str]:
        with pytest.raises(SystemExit) as ended:
            main(["routes", *words])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out.splitlines(), err

    return told


def fill(topics: Topics, text: bytes, lines: tuple[int, ...]) -> None:
    values: dict[int, list[bytes]] = {partition: [] for partition in range(PARTITIONS)}
    for partition, value in runs.frames(text, PARTITIONS, lines=lines):
        values[partition].append(value)
    for partition, found in values.items():
        Confluent().produce(topics.servers, topics.name, [(None, value) for value in found], partition=partition)


def groups_of(kafka: KafkaCluster) -> set[str]:
    admin = AdminClient({"bootstrap.servers": ",".join(kafka.servers)})  # by a name: without one it may be gone before the answer comes
    listed = admin.list_consumer_groups().result(30)
    return {group.group_id for group in listed.valid}


@pytest.mark.kafka
def test_a_sample_of_a_topic_is_what_the_reference_says_and_leaves_no_trace(kafka: KafkaCluster, topic_name: str, tell: Tell) -> None:
    topics = Topics.made(kafka.servers, topic_name, PARTITIONS)
    fill(topics, dirty_text(3, 1_500), lines=(1, 7, 20))
    expected = runs.expected_of(topics.log(), idle_ms=0)
    groups = groups_of(kafka)
    asked = ("--log", topics.url, "--rows", "100000", "--seconds", "6", *runs.settings(topics.names))
    status, lines, errors = tell("sample", "lake-events", *asked)
    assert status == 0, errors
    found = [json.loads(line) for line in lines]
    names = ("partition", "offset", "line", "device_id", "seq", "duplicate", "late", "append_ts")
    assert sorted(str([row[name] for name in names]) for row in found) == sorted(str([row[name] for name in names]) for row in expected.rows)
    status, lines, errors = tell("sample", "dead-letters", *asked)
    assert status == 0, errors
    letters = [json.loads(line) for line in lines]
    assert sorted((row["partition"], row["offset"], row["line"], row["reason"]) for row in letters) == sorted(
        (row["partition"], row["offset"], row["line"], row["reason"]) for row in expected.dead_letters
    )
    assert groups_of(kafka) == groups
    assert topics.alerts() == topics.letters() == [], "nothing was sent"


@pytest.mark.kafka
def test_a_sample_ends_with_its_rows_long_before_its_time(kafka: KafkaCluster, topic_name: str, tell: Tell) -> None:
    topics = Topics.made(kafka.servers, topic_name, PARTITIONS)
    fill(topics, dirty_text(4, 500), lines=(20,))
    status, lines, errors = tell("sample", "lake-events", "--log", topics.url, "--rows", "4", "--seconds", "600")
    assert (status, len(lines)) == (0, 4), errors


def test_a_broker_that_is_not_there_is_one_line(tell: Tell) -> None:
    status, lines, errors = tell("sample", "lake-events", "--log", f"kafka://127.0.0.1:{free_port()}/t")
    assert (status, lines) == (2, [])
    assert "nothing listens there" in errors.splitlines()[-1]
