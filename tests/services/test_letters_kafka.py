"""``keystone dead-letters replay`` on a real broker: from the topic of letters to the topic they came from."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from keystone.config import KafkaConfig
from keystone.events import DeadLetter
from keystone.letter_batch import LetterBatch
from keystone.log.kafka import KafkaLog
from keystone.log.kafka.headers import HeaderReader
from keystone.log.url import KafkaUrl
from keystone.partition import partition_of
from keystone.run.letters_check import look_at
from keystone.sinks.kafka import Item, TopicSink
from tests.kafka_server import KafkaCluster
from tests.letters import letter, told, write
from tests.rdkafka import CLIENTS, Independent, create_topic

TS = 1_790_000_000_000
PARTITIONS = 3
MEND = ".ts = tonumber(.timestamp) | del(.timestamp)"


def broken(n: int) -> bytes:
    return b'{"event":"Start","timestamp":"%d","device_id":"d-%d","session_id":"s"}' % (TS + n, n)


def send(url: KafkaUrl, letters: list[DeadLetter]) -> None:
    """As a run does."""
    sink = TopicSink(None, url, KafkaConfig(), role="test")
    items = [Item(LetterBatch.of([one])) for one in letters]
    sink.send(items)
    sink.wait(items, wait_s=30)
    assert {item.state for item in items} == {"acknowledged"}
    sink.close()


@pytest.mark.kafka
def test_from_topic_to_topic_once_with_key_and_headers(
    kafka: KafkaCluster, topic_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    letters, log = (KafkaUrl(tuple(kafka.servers), f"{topic_name}{end}") for end in ("-letters", ""))
    create_topic(kafka.servers, letters.topic, 2)
    create_topic(kafka.servers, log.topic, PARTITIONS)
    some = [letter(n, broken(n), "missing_field", partition=n % 4, line=n) for n in range(40)]
    send(letters, [*some, *some[:5], letter(90, b"not json", "invalid_json")])  # a letter may be there twice
    words = ("dead-letters", "replay", "--from", str(letters), "--log", str(log), "--expr", MEND)
    status, out, err = told(capsys, *words)
    assert (status, err.splitlines()[-1]) == (1, "0:90:0  not sent, cannot be mended: it is no JSON: only --python can mend it")  # behind its progress
    assert out.startswith("40 sent (partition 0: ")
    status, out, _ = told(capsys, *words, "--reason", "missing_field")
    assert (status, out.splitlines()) == (0, ["0 sent", "40 sent before: passed over (--again sends them once more)"])
    [journal] = (tmp_path / "keystone" / "replays").glob("*.ndjson")
    sent = [row for row in map(json.loads, journal.read_text().splitlines()) if row["state"] == "sent"]

    found: dict[str, tuple[int, int]] = {}
    with closing(KafkaLog.open(log, KafkaConfig())) as opened:
        for partition, end in opened.end_offsets().items():
            reader = opened.reader(partition, kind=HeaderReader)
            assert isinstance(reader, HeaderReader)
            while reader.position() < end:
                records = reader.poll(bytes_max=1 << 20, wait_ms=1_000)
                for start, stop, offset in zip(records.starts.tolist(), records.ends.tolist(), records.offsets.tolist(), strict=True):
                    value = records.text[start:stop].tobytes()
                    event, headers = json.loads(value), reader.headers(offset)
                    assert look_at(value).reason is None
                    assert partition_of(event["device_id"], PARTITIONS) == partition
                    n = int(event["device_id"][2:])
                    assert event["ts"] == TS + n
                    assert headers["keystone-replayed-from"] == b"%d:%d:%d" % (n % 4, n, n)
                    assert headers["keystone-reason"] == b"missing_field"
                    found[f"{n % 4}:{n}:{n}"] = partition, offset
            reader.close()
    assert found == {f"{row['partition']}:{row['offset']}:{row['line']}": (row["to_partition"], row["to_offset"]) for row in sent}
    assert len(found) == 40


@pytest.mark.kafka
@pytest.mark.parametrize("independent", CLIENTS, ids=str)
def test_other_clients_find_the_key(kafka: KafkaCluster, topic_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], independent: Independent) -> None:
    create_topic(kafka.servers, topic_name)
    write(tmp_path, [letter(n, broken(n), "missing_field") for n in range(5)])
    url = KafkaUrl(tuple(kafka.servers), topic_name)
    assert told(capsys, "dead-letters", "replay", "--from", str(tmp_path), "--log", str(url), "--expr", MEND)[0] == 0
    found = independent.consume(kafka.servers, topic_name)
    assert sorted(record[2] for record in found) == [b"d-%d" % n for n in range(5)]
