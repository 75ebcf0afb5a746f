"""Dead letters of whole runs: kept up to a limit, looked at, mended and put back, and then accepted once by whatever run reads the log."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

from keystone.config import KafkaConfig, LakeConfig
from keystone.log.embedded import EmbeddedLog
from keystone.partition import partition_of
from keystone.sinks.iceberg.tables import LakeTables
from keystone.sinks.letters_read import open_letters
from tests.kafka_server import KafkaCluster
from tests.lakes import rows_of
from tests.letters import told
from tests.rdkafka import Confluent, create_topic
from tests.reference import LogRecord
from tests.s3_server import S3Server
from tests.services import runs
from tests.services.runs import QUICK, Command, Topics, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.ray]

TS = 1_790_000_000_000
PARTITIONS = 2
OFTEN = {**QUICK, "checkpoint.interval_ms": 500, "lake.commit_interval_ms": 500}
EVENTS = ("Start", "Heartbeat", "Buffer", "Buffer", "Buffer", "Stop")  # of each session: one buffering loop
MEND = ".ts = tonumber(.timestamp) | del(.timestamp)"
PYTHON = """
import base64
import json

def mend(line, letter):
    if letter["reason"] != "invalid_json":
        return None
    event, ts, device, seq = line.decode().split(";")
    return json.dumps({"event": event, "ts": int(ts), "device_id": device, "session_id": "s", "seq": int(seq)}).encode()
"""


def good(device: str, seq: int) -> bytes:
    return b'{"event":"%s","ts":%d,"device_id":"%s","session_id":"s","seq":%d}' % (EVENTS[seq].encode(), TS + seq * 1_000, device.encode(), seq)


def renamed(device: str, seq: int) -> bytes:
    """As an app says it that names the time otherwise: an expression mends it."""
    return good(device, seq).replace(b'"ts":%d' % (TS + seq * 1_000), b'"timestamp":"%d"' % (TS + seq * 1_000))


def listed(device: str, seq: int) -> bytes:
    """No JSON at all: only Python mends it."""
    return b"%s;%d;%s;%d" % (EVENTS[seq].encode(), TS + seq * 1_000, device.encode(), seq)


SESSIONS = {f"{kind.__name__}-{n}": kind for n in range(5) for kind in (good, renamed, listed)}
LINES = [(device, kind(device, seq)) for seq in range(len(EVENTS)) for device, kind in SESSIONS.items()]
DEAD = sum(not device.startswith("good") for device, _ in LINES)


def append(log: EmbeddedLog, lines: Sequence[tuple[str, bytes]]) -> None:
    writers = [log.writer(p) for p in range(PARTITIONS)]
    for device, line in lines:
        writers[partition_of(device, PARTITIONS)].append(line)


def records_of(folder: Path) -> dict[int, list[LogRecord]]:
    """Everything in an embedded log, with the times of its appends."""
    found: dict[int, list[LogRecord]] = {p: [] for p in range(PARTITIONS)}
    with closing(EmbeddedLog.open(folder)) as log:
        for partition, there in found.items():
            with closing(log.reader(partition)) as reader:
                reader.seek(0)
                while reader.position() < reader.end_offset():
                    part = reader.poll(bytes_max=1 << 20, wait_ms=0)
                    places = zip(part.starts, part.ends, part.offsets, part.append_ts_ms, strict=True)
                    there += [LogRecord(part.text[start:end].tobytes(), int(offset), int(ms)) for start, end, offset, ms in places]
    return found


def made(folder: Path) -> EmbeddedLog:
    return EmbeddedLog.create(folder, partitions=PARTITIONS, segment_bytes=1 << 20, retention_bytes=4 << 20)


def kept_in(place: Path | str) -> int:
    with closing(open_letters(str(place), KafkaConfig())) as source:
        return sum(1 for _ in source.letters())


def most_of(place: str) -> str:
    """The run that most of the letters are of."""
    with closing(open_letters(place, KafkaConfig())) as source:
        return Counter(found.run or "" for found in source.letters()).most_common(1)[0][0]


def alerts_of(lake: Path) -> Counter[str]:
    """By device, of the lake's table."""
    with closing(LakeTables.open(str(lake), LakeConfig(), is_made=False)) as tables:
        found = pl.DataFrame(tables.load("alerts").scan(selected_fields=("device_id", "kind")).to_arrow())
    assert set(found["kind"]) <= {"buffering_loop"}
    return Counter(found["device_id"].to_list())


def assert_each_once(lake: Path, log: dict[int, list[LogRecord]]) -> None:
    """What the reference says of the log as it is now; and as it was meant: of each device six events, a loop and a session."""
    expected = runs.expected_of(log, idle_ms=2_000, grace_ms=600, open_stall_ms=1_000)
    runs.assert_lake(lake, expected)
    runs.assert_sessions(lake, expected)
    assert Counter(rows_of(lake)["device_id"].to_list()) == dict.fromkeys(SESSIONS, len(EVENTS))
    assert alerts_of(lake) == dict.fromkeys(SESSIONS, 1)
    assert Counter((row["device_id"], row["end_reason"]) for row in runs.session_rows(lake)) == dict.fromkeys(((device, "stop") for device in SESSIONS), 1)


def replays(folder: Path, *words: str) -> list[tuple[str, ...]]:
    """The words of two replays that mend everything between them."""
    (folder / "mend.py").write_text(PYTHON)
    start = ("dead-letters", "replay", *words)
    return [(*start, "--expr", MEND, "--reason", "missing_field"), (*start, "--python", str(folder / "mend.py"), "--reason", "invalid_json")]


def assert_clean(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """An audit without a difference; its lines."""
    status, out, err = told(capsys, "audit", *words)
    assert (status, err) == (0, ""), out
    return out.splitlines()


# --- a limit ---------------------------------------------------------------------------------------------------------------------
def test_past_the_limit_letters_are_counted_told_and_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 80 letters some thirty are kept by the first run, hardly one by the next: the disk has no more than the limit, whoever comes."""
    limit, kept_before = 5_000, 0
    log, lake, letters = tmp_path / "log", tmp_path / "lake", tmp_path / "letters"
    words = ("--log", f"embedded:{log}", "--lake", str(lake), "--dead-letters", str(letters))
    made(log).close()
    for turn in (1, 2):
        with closing(EmbeddedLog.open(log)) as opened:
            append(opened, [(f"d-{n}", broken) for n in range(40) for broken in (good(f"d-{n}", 0), b"not json " * 3, b'{"event":"Start"}')])
        ended = runs.command(
            "run", *words, "--no-story", "--until-idle", "2", "--session-actors", "1", "--report", str(tmp_path / "report.json"),
            *runs.settings({**OFTEN, "dead_letters.bytes_max": limit}),
        )  # fmt: skip
        assert ended.status == 0, ended.err
        report = json.loads((tmp_path / "report.json").read_bytes())
        assert (report["ledger"]["received"], report["ledger"]["accepted"], report["ledger"]["dead_lettered"]) == (120, 40, 80)
        assert report["dead_letters"] == {"invalid_json": 40, "missing_field": 40}
        assert sum(path.stat().st_size for path in letters.iterdir()) <= limit
        status, out, err = told(capsys, "dead-letters", "count", "--from", str(letters))
        kept = int(out.splitlines()[-1].split()[0])
        assert (status, err) == (0, "more were counted and not kept (dead_letters.bytes_max)\n")
        assert 20 < kept < 60
        past = report["dead_letters_not_kept"]
        assert sum(past.values()) == 80 - (kept - kept_before)
        by_reason = ", ".join(f"{reason} {count}" for reason, count in sorted(past.items()))
        assert f"dead letters counted and not kept {sum(past.values())} ({by_reason}): dead_letters.bytes_max is reached" in ended.out
        assert "dead letters are counted and not kept any more: dead_letters.bytes_max is reached" in ended.err
        kept_before = kept
        lines = assert_clean(capsys, *words)
        parts = [next(part for part in line.split("; ") if part.startswith("dead letters")).split() for line in lines[:PARTITIONS]]
        assert sum(int(part[2].rstrip(",")) for part in parts) == kept
        assert sum(int(part[4]) for part in parts if len(part) > 3) == 80 * turn - kept
        assert all("dead letters were counted and not kept (dead_letters.bytes_max)" in note for note in lines[PARTITIONS:-1])


# --- there and back ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("is_live", [True, False], ids=["into the run that goes on", "into the next run"])
def test_mended_letters_are_accepted_once(tmp_path: Path, is_live: bool, capsys: pytest.CaptureFixture[str]) -> None:
    log, lake, letters = tmp_path / "log", tmp_path / "lake", tmp_path / "lake-dead-letters"
    words = ("--log", f"embedded:{log}", "--lake", str(lake))
    with closing(made(log)) as opened:
        append(opened, LINES)
    run = ("run", *words, "--no-story", *runs.settings(OFTEN))
    mending = replays(tmp_path, "--from", str(letters), *words[:2])
    if is_live:
        with Command(*run) as running:
            running.wait_for("(?m)^reading ")
            wait_until(lambda: letters.is_dir() and kept_in(letters) == DEAD, "not every letter is there")
            said = [told(capsys, *replay) for replay in mending]
            wait_until(lambda: rows_of(lake).height == len(LINES), "not every mended line is in the lake")
            again = [told(capsys, *replay) for replay in mending]
            wait_until(lambda: alerts_of(lake).total() == len(SESSIONS) and len(runs.session_rows(lake)) == len(SESSIONS), "sessions are not closed")
            running.interrupt()
            assert running.end() == 0, running.err
    else:
        assert runs.command(*run, "--until-idle", "2").status == 0
        assert rows_of(lake).height == len(LINES) - DEAD
        said = [told(capsys, *replay) for replay in mending]
        assert runs.command(*run, "--until-idle", "2").status == 0
        again = [told(capsys, *replay) for replay in mending]
    assert [(status, out.partition(" (")[0], err) for status, out, err in said] == [(0, f"{DEAD // 2} sent", "")] * 2
    assert [(status, out) for status, out, _ in again] == [(0, f"0 sent\n{DEAD // 2} sent before: passed over (--again sends them once more)\n")] * 2
    records = records_of(log)
    assert sum(map(len, records.values())) == len(LINES) + DEAD
    assert_each_once(lake, records)
    assert kept_in(letters) == DEAD, "they stay where they are, and none is new"
    states = Counter(json.loads(line)["state"] for line in (letters / "replays.ndjson").read_text().splitlines())
    assert states == {"intent": DEAD, "sent": DEAD}
    assert assert_clean(capsys, *words)[-1] == "clean"


@pytest.mark.kafka
def test_the_same_over_topics_that_two_runs_share(
    kafka: KafkaCluster, topic_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of two logs give one topic of letters theirs, at the same places: neither's audit counts the other's."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    topics = Topics.made(kafka.servers, topic_name, PARTITIONS)
    other = f"kafka://{','.join(topics.servers)}/{topic_name}-other"
    create_topic(topics.servers, f"{topic_name}-other", PARTITIONS, settings=runs.APPEND_TIME)
    Confluent().produce(topics.servers, f"{topic_name}-other", [(None, b"{")] * 3, partition=0)
    Confluent().produce(topics.servers, topics.name, [(device.encode(), line) for device, line in LINES])
    names = runs.settings(topics.names)
    beside = runs.command("run", "--log", other, "--lake", str(tmp_path / "other"), "--no-story", "--until-idle", "1", *names)
    assert beside.status == 0, beside.err
    lake = tmp_path / "lake"
    words = ("--log", topics.url, "--lake", str(lake), *names)
    letters = f"kafka://{','.join(topics.servers)}/{topics.dead_letters}"
    with Command("run", *words, "--no-story", *runs.settings(OFTEN)) as running:
        running.wait_for("(?m)^reading ")
        wait_until(lambda: kept_in(letters) == DEAD + 3, "not every letter is there")
        [first, *_] = replays(tmp_path, "--from", letters, "--log", topics.url)
        assert "has letters of several runs" in told(capsys, *first)[2]
        mending = replays(tmp_path, "--from", letters, "--log", topics.url, "--run", most_of(letters))
        said = [told(capsys, *replay) for replay in mending]
        wait_until(lambda: rows_of(lake).height == len(LINES), "not every mended line is in the lake")
        again = [told(capsys, *replay) for replay in mending]
        wait_until(lambda: len(runs.session_rows(lake)) == len(SESSIONS), "sessions are not closed")
        running.interrupt()
        assert running.end() == 0, running.err
    assert [out.partition(" (")[0] for _, out, _ in said] == [f"{DEAD // 2} sent"] * 2
    assert [out.splitlines()[0] for _, out, _ in again] == ["0 sent"] * 2
    assert sum(map(len, topics.log().values())) == len(LINES) + DEAD
    assert_each_once(lake, topics.log())
    assert Counter(alert["device_id"] for alert in topics.alerts()) == dict.fromkeys(SESSIONS, 1)
    assert kept_in(letters) == DEAD + 3
    lines = assert_clean(capsys, *words)
    assert lines[-2:] == ["note: 3 dead letters of other runs are in the same place: not compared", "clean"]
    assert assert_clean(capsys, "--log", other, "--lake", str(tmp_path / "other"), *names)[0].endswith("; dead letters 3")


def test_letters_in_a_bucket_are_looked_at_and_put_back(s3: S3Server, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, lake, letters = tmp_path / "log", tmp_path / "lake", f"s3://{bucket}/letters"
    words = ("--log", f"embedded:{log}", "--lake", str(lake), "--dead-letters", letters)
    with closing(made(log)) as opened:
        append(opened, LINES)
    run = ("run", *words, "--no-story", "--until-idle", "2", *runs.settings(OFTEN))
    assert runs.command(*run).status == 0
    asked = ("--from", letters, "--log", f"embedded:{log}")
    status, out, err = told(capsys, "dead-letters", "count", *asked)
    assert (status, out.splitlines()[-1], err) == (0, f"{DEAD} dead letters", "")
    status, out, _ = told(capsys, "dead-letters", "list", *asked, "--json", "--limit", "0")
    rows = [json.loads(line) for line in out.splitlines()]
    assert sorted(base64.b64decode(row["raw"]) for row in rows) == sorted(line for device, line in LINES if not device.startswith("good"))
    assert {row["source"].partition("/")[0] for row in rows} <= {name.removeprefix("letters/") for name in s3.names(bucket, "letters/")}
    first = next(row for row in rows if row["reason"] == "missing_field")
    status, out, _ = told(capsys, "dead-letters", "show", f"{first['partition']}:{first['offset']}:0", *asked)
    assert status == 0
    assert "error     place unknown: ts: absent or null" in out
    for expected in (f"{DEAD // 2} sent", "0 sent"):
        assert [told(capsys, *replay)[1].splitlines()[0].partition(" (")[0] for replay in replays(tmp_path, *asked)] == [expected] * 2
    assert runs.command(*run).status == 0
    assert_each_once(lake, records_of(log))
    assert kept_in(letters) == DEAD
    assert assert_clean(capsys, *words)[-1] == "clean"
