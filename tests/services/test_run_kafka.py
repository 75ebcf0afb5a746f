"""``keystone run`` over a real topic, and over an embedded log: what comes out equals the reference, computed over what is in the log."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from keystone.log.embedded import EmbeddedLog
from tests import corpus
from tests.dirty import dirty_text
from tests.kafka_server import KafkaCluster
from tests.rdkafka import CLIENTS, Codec, Independent
from tests.reference import LogRecord
from tests.services import runs
from tests.services.runs import QUICK, Topics

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LARGE = (
    corpus.HEAD + b',"foo":"' + b"x" * 70_000 + b'"}',
    corpus.HEAD + b',"foo":"' + b"x" * 70_000 + b'"',
    corpus.HEAD + b',"foo":"' + b"x" * 1_100_000 + b'"}',
    b"x" * 1_048_577,
)


def text_of(seed: int, events: int) -> bytes:
    """A dirty file whose devices are its own."""
    return dirty_text(seed, events).replace(b'"d-', b'"d%d-' % seed)


def assert_all(folder: Path, log: dict[int, list[LogRecord]], alerts: runs.Rows | None, letters: runs.Rows, **options: int) -> None:
    expected = runs.expected_of(log, idle_ms=1_500, grace_ms=600, open_stall_ms=1_000, **options)
    kinds = {(alert["kind"]) for alert in expected.alerts}
    reasons = {letter["reason"] for letter in expected.dead_letters}
    endings = {session["end_reason"] for session in expected.sessions}
    assert (len(kinds), len(reasons), len(endings)) == (2, 7, 2), "the log is rich enough to tell"
    assert sum(row["duplicate"] for row in expected.rows) > 50
    assert sum(row["late"] for row in expected.rows) > 50
    if alerts is not None:
        runs.assert_alerts(alerts, expected)
    runs.assert_letters(letters, expected)
    runs.assert_sessions(folder / "lake-sessions", expected)
    runs.assert_lake(folder / "lake", expected)
    runs.assert_report(folder / "report.json", expected)


@pytest.mark.kafka
@pytest.mark.parametrize(("client", "codec", "actors"), [(CLIENTS[0], "lz4", 1), (CLIENTS[-1], "zstd", 2)], ids=["confluent-1", f"{CLIENTS[-1]}-2"])
def test_a_topic_that_others_wrote_gives_what_the_reference_says(
    kafka: KafkaCluster, topic_name: str, tmp_path: Path, client: Independent, codec: Codec, actors: int
) -> None:
    topics = Topics.made(kafka.servers, topic_name)
    key = None if str(client) == "confluent" else b"broken"
    client.produce(topics.servers, topics.name, [*runs.singles(text_of(1, 1_200), key), *((key, line) for line in LARGE)])
    client.produce(topics.servers, topics.name, [(b"k", None), (b"k", b"")])
    time.sleep(1.2)  # stalls stay open, and stopped sessions are forgotten, in the middle of the log too
    values: dict[int, list[tuple[None, bytes]]] = {}
    for partition, value in runs.frames(text_of(2, 1_500), topics.partitions, lines=(1, 7, 40)):
        values.setdefault(partition, []).append((None, value))
    for partition, of_partition in values.items():
        client.produce(topics.servers, topics.name, of_partition, codec=codec, partition=partition)
    client.produce(topics.servers, topics.name, runs.singles(text_of(1, 1_400).split(b"\n", 1_200)[-1], key))
    done = runs.command(
        "run", "--log", topics.url, "--lake", str(tmp_path / "lake"), "--until-idle", "1.5", "--report", str(tmp_path / "report.json"),
        "--session-actors", str(actors), *runs.settings(topics.names | QUICK),
    )  # fmt: skip
    assert done.status == 0, done.err
    assert_all(tmp_path, topics.log(), topics.alerts(), topics.letters())


@pytest.mark.parametrize("actors", [1, 2])
def test_an_embedded_log_gives_the_same(tmp_path: Path, actors: int) -> None:
    records = write_embedded(tmp_path / "log")
    done = runs.command(
        "run", "--log", f"embedded:{tmp_path / 'log'}", "--lake", str(tmp_path / "lake"), "--until-idle", "1.5", "--report", str(tmp_path / "report.json"),
        "--session-actors", str(actors), *runs.settings(QUICK),
    )  # fmt: skip
    assert done.status == 0, done.err
    assert_all(tmp_path, records, None, runs.letters_in(tmp_path / "lake-dead-letters"))


def write_embedded(folder: Path) -> dict[int, list[LogRecord]]:
    log = EmbeddedLog.create(folder, partitions=4, segment_bytes=4 << 20, retention_bytes=16 << 20)
    writers = [log.writer(p) for p in range(4)]
    found: dict[int, list[LogRecord]] = {p: [] for p in range(4)}
    for part, text in enumerate((text_of(1, 1_200), text_of(2, 1_500), text_of(3, 300))):
        for partition, value in [*runs.frames(text, 4, lines=(1,) if part == 0 else (1, 7, 40)), *((i, line) for i, line in enumerate(LARGE)), (0, b"")]:
            found[partition].append(LogRecord(value, *writers[partition].append(value)))
        time.sleep(1.2 if part == 0 else 0)
    log.close()
    return found
