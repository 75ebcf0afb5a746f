"""``keystone run`` over a real topic, and over an embedded log: what comes out equals the reference, computed over what is in the log."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import polars as pl
import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from keystone.log.embedded import EmbeddedLog
from tests import corpus
from tests.dirty import dirty_text
from tests.kafka_server import KafkaCluster
from tests.lakes import rows_of
from tests.rdkafka import CLIENTS, Codec, Confluent, Independent, leaders
from tests.reference import LogRecord
from tests.services import runs
from tests.services.runs import QUICK, Topics, wait_until

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
    assert (len(kinds), len(reasons)) == (2, 7), "the log is rich enough to tell"
    assert len(expected.sessions) > 50
    assert sum(row["duplicate"] for row in expected.rows) > 50
    assert sum(row["late"] for row in expected.rows) > 50
    if alerts is not None:
        runs.assert_alerts(alerts, expected)
    runs.assert_letters(letters, expected)
    runs.assert_sessions(folder / "lake", expected)
    runs.assert_lake(folder / "lake", expected)
    assert runs.assert_report(folder / "report.json", expected)["alerts"] == len(expected.alerts)


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


def test_an_embedded_log_gives_the_same(tmp_path: Path) -> None:
    records = write_embedded(tmp_path / "log")
    done = runs.command(
        "run", "--log", f"embedded:{tmp_path / 'log'}", "--lake", str(tmp_path / "lake"), "--until-idle", "1.5", "--report", str(tmp_path / "report.json"),
        "--session-actors", "2", *runs.settings(QUICK),
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


@pytest.mark.kafka
def test_every_alert_that_two_simulations_expect_is_sent_once_and_no_other(kafka: KafkaCluster, topic_name: str, tmp_path: Path) -> None:
    """One sends frames and one an event a record, at the same time, to the topic that is being read."""
    topics = Topics.made(kafka.servers, topic_name)
    stall = runs.settings({"detection.open_stall_ms": 7_000})
    watched = ("--lake", str(tmp_path / "lake"), "--until-idle", "8", "--report", str(tmp_path / "report.json"))
    sent = ("simulate", "--log", topics.url, "--eps", "5000", "--seconds", "6", "--bad-paths", "0.2", *stall)
    with (
        runs.Command("run", "--log", topics.url, *watched, *runs.settings(topics.names), *stall) as reading,
        runs.Command(*sent, "--seed", "5", "--truth", str(tmp_path / "truth-0.parquet")) as framed,
        runs.Command(*sent, "--seed", "6", "--truth", str(tmp_path / "truth-1.parquet"), "--one-event-per-record") as single,
    ):
        for simulation in (framed, single):
            assert simulation.end() == 0, simulation.err
            assert re.search(r"intended 30,000 = acknowledged 30,000 \+ failed 0 \+ unknown 0", simulation.out), simulation.out
        assert reading.end() == 0, reading.err
    names = ["device_id", "session_id", "kind", "event_ts", "seq"]
    truth = pl.concat([pl.read_parquet(tmp_path / f"truth-{i}.parquet") for i in range(2)]).select(names)
    assert set(truth["kind"]) == {"buffering_loop", "open_stall"}
    assert sorted(truth.rows()) == sorted(tuple(alert[name] for name in names) for alert in topics.alerts())
    records = [len(of_partition) for of_partition in topics.log().values()]
    assert 30_000 < sum(records) < 60_000, "half of the events are in frames"
    assert topics.letters() == []
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert report["ledger"]["received"] == report["ledger"]["accepted"] == report["ledger"]["lake_rows"] == 60_000
    assert (report["alerts"], report["failures"]) == (truth.height, [])
    lake = rows_of(tmp_path / "lake").select("partition", "offset", "line")
    assert lake.n_unique() == lake.height == 60_000


@pytest.mark.kafka
@pytest.mark.parametrize("kills", [0, 2])
def test_partitions_that_a_topic_gains_are_read_from_their_start(kafka: KafkaCluster, topic_name: str, tmp_path: Path, kills: int) -> None:
    """Also by actors that are killed after they gained them: what their predecessors wrote of these is not there twice."""
    topics = Topics.made(kafka.servers, topic_name, partitions=2)
    first, second = halves = split(dirty_text(7, 2_000, broken_share=0), 800)
    watched = ("--lake", str(tmp_path / "lake"), "--until-idle", "8", "--report", str(tmp_path / "report.json"), "--session-actors", "2")
    limits = QUICK | {"session.timeout_ms": 2_500, "kafka.metadata_max_age_ms": 500}
    with runs.Command("run", "--log", topics.url, *watched, *runs.settings(topics.names | limits)) as reading:
        reading.wait_for("reading kafka://")
        Confluent().produce(topics.servers, topics.name, runs.singles(first, None))
        admin = AdminClient({"bootstrap.servers": ",".join(topics.servers)})
        admin.create_partitions([NewPartitions(topics.name, 5)])[topics.name].result(30)
        while len(found := leaders(topics.servers, topics.name)) < 5 or min(found.values()) < 0:
            time.sleep(0.05)
        Confluent().produce(topics.servers, topics.name, runs.singles(second, None))
        for actor in reading.session_actors()[:kills]:
            wait_until(lambda: topics.alerts() != [], "nothing is read")
            time.sleep(1)
            actor.kill()
        assert reading.end() == 0, reading.err
    records = topics.log()
    assert {partition for partition, of_partition in records.items() if of_partition} >= {0, 1, 3, 4}, "devices have moved; none belongs to partition 2"
    expected = runs.expected_of(records, idle_ms=8_000, grace_ms=600, open_stall_ms=1_000, timeout_ms=2_500)
    assert expected.ledger()["received"] == sum(bool(line.strip()) for half in halves for line in half.split(b"\n"))
    assert {session["end_reason"] for session in expected.sessions} == {"stop", "timeout"}
    runs.assert_alerts(topics.alerts(), expected)
    letters = topics.letters()
    if kills:  # said twice at worst: who reads them knows them by their place
        letters = list({(row["partition"], row["offset"], row["line"]): row for row in letters}.values())
    runs.assert_letters(letters, expected)
    runs.assert_sessions(tmp_path / "lake", expected)
    runs.assert_lake(tmp_path / "lake", expected)
    report = runs.assert_report(tmp_path / "report.json", expected)
    assert report["restarts"] == kills
    assert report["next_offsets"] == {str(partition): len(of_partition) for partition, of_partition in records.items()}


def split(text: bytes, lines: int) -> tuple[bytes, bytes]:
    """The first ``lines``, and the rest."""
    found = text.split(b"\n")
    return b"\n".join(found[:lines]), b"\n".join(found[lines:])
