"""What the tests of commands share: processes with a terminal's signals, topics read by others, and what must come out of a log."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import psutil
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from keystone.log.embedded import EmbeddedLog
from tests.dirty import dirty_text
from tests.lakes import rows_of, session_rows
from tests.rdkafka import CONSUMING, WAIT_S_MAX, Confluent, Pair, create_topic, watermarks
from tests.reference import DIMENSIONS, INTS, LogRecord, ReferenceSessions, Result, decode_line, parse_json, partition_of, reference_log

Rows = list[dict[str, Any]]
ROOT = Path(__file__).parents[2]
APPEND_TIME = {"message.timestamp.type": "LogAppendTime"}
END_S_MAX = 150.0  # of any command here: the slowest takes a fifth
ALERT_COLUMNS = (
    "alert_id", "kind", "action", "device_id", "session_id", "event_ts", "seq", "buffers_in_run", "bitrate_kbps", "recommended_bitrate_kbps", *DIMENSIONS,
)  # fmt: skip
LAKE_COLUMNS = (
    "event", "ts", "device_id", "session_id", "phase", "fatal", "reason", "error_code", *INTS, *DIMENSIONS,
    "append_ts", "partition", "offset", "line", "duplicate", "late",
)  # fmt: skip
#: Short enough for a test to wait for each of them: what is late by seconds in production is late by tenths here.
QUICK = {"session.grace_ms": 600, "detection.open_stall_ms": 1_000}


# --- processes --------------------------------------------------------------------------------------------------------
class Command:
    """A command of ours in a session of its own, as a terminal has it; its output goes to a file and may be read while it runs.

    A context manager: what of the group is still there at the end is killed. ``env``: over ours. Its temporary directory is its own.
    """

    def __init__(self, *words: str, script: str | None = None, env: Mapping[str, str] | None = None, stdout: int | None = None) -> None:
        start = ["-m", "keystone"] if script is None else [str(ROOT / script)]
        self._held = ExitStack()
        folder = Path(self._held.enter_context(tempfile.TemporaryDirectory(prefix="run-")))  # a short name: Ray's sockets would else go elsewhere
        self._tmp = folder / "tmp"
        self._tmp.mkdir()
        self._out = self._held.enter_context((folder / "out").open("w+b"))
        self._err = self._held.enter_context((folder / "err").open("w+b"))
        self.process = subprocess.Popen(
            [sys.executable, *start, *words], stdin=subprocess.DEVNULL, stdout=self._out if stdout is None else stdout, stderr=self._err,
            start_new_session=True, env={**os.environ, "PYTHONUTF8": "1", "TMPDIR": str(self._tmp), **(env or {})},
        )  # fmt: skip
        self._seen: list[psutil.Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.family()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for process in self._seen:
            if process.is_running():
                process.kill()
        self._held.close()

    @property
    def out(self) -> str:
        """What it has said on stdout."""
        return _said(self._out)

    @property
    def err(self) -> str:
        return _said(self._err)

    def family(self) -> list[psutil.Process]:
        """Everything below it that there is, or was at an earlier call."""
        if self.process.poll() is None:
            known = {process.pid for process in self._seen}
            self._seen += [child for child in psutil.Process(self.process.pid).children(recursive=True) if child.pid not in known]
        return self._seen

    def session_actors(self) -> list[psutil.Process]:
        """Those that live now."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return sorted((p for p in children if p.name().startswith("ray::SessionA")), key=lambda process: process.pid)

    def wait_for(self, *patterns: str, within_s: float = END_S_MAX) -> None:
        """Until its stdout has something for each of ``patterns``."""
        deadline = time.monotonic() + within_s
        while missing := [pattern for pattern in patterns if not re.search(pattern, self.out)]:
            assert self.process.poll() is None, f"ended with {self.process.returncode} before it said {missing}:\n{self.out}\n{self.err}"
            assert time.monotonic() < deadline, f"{missing} not said within {within_s:.0f} s:\n{self.out}\n{self.err}"
            time.sleep(0.05)

    def interrupt(self) -> None:
        """Ctrl-C: to the whole group."""
        self.family()
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, within_s: float = END_S_MAX) -> int:
        """Wait for its end, and for that of everything below it; the exit status. It leaves nothing: neither our files nor Ray's."""
        deadline = time.monotonic() + within_s
        while self.process.poll() is None:
            self.family()
            assert time.monotonic() < deadline, f"it runs on:\n{self.out}\n{self.err}"
            time.sleep(0.1)
        _, alive = psutil.wait_procs(self._seen, timeout=10)
        assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == [], "processes are left"
        assert sorted(path.name for path in self._tmp.iterdir()) == [], "files are left"
        return self.process.returncode


def wait_until(claim: Callable[[], bool], otherwise: str) -> None:
    """Until it is true: ``otherwise`` says what is wrong where that takes too long."""
    until = time.monotonic() + WAIT_S_MAX
    while not claim():
        assert time.monotonic() < until, f"{otherwise} within {WAIT_S_MAX:.0f} s"
        time.sleep(0.05)


def _said(file: BinaryIO) -> str:
    return os.pread(file.fileno(), 1 << 26, 0).decode("utf-8", "replace")


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def command(*words: str, within_s: float = END_S_MAX, **options: Any) -> Ended:
    """Run to the end."""
    with Command(*words, **options) as running:
        return Ended(running.end(within_s), running.out, running.err)


def settings(given: Mapping[str, object]) -> list[str]:
    return [word for name, value in given.items() for word in ("--set", f"{name}={value}")]


# --- topics -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Topics:
    """Three topics of one test: telemetry ``name`` of ``partitions``, and two beside it."""

    servers: Sequence[str]
    name: str
    partitions: int

    @classmethod
    def made(cls, servers: Sequence[str], name: str, partitions: int = 4) -> Self:
        topics = cls(servers, name, partitions)
        create_topic(servers, name, partitions, settings=APPEND_TIME)
        for other in (topics.actions, topics.dead_letters):
            create_topic(servers, other, 3)
        return topics

    @property
    def actions(self) -> str:
        return f"{self.name}-actions"

    @property
    def dead_letters(self) -> str:
        return f"{self.name}-letters"

    @property
    def url(self) -> str:
        return f"kafka://{','.join(self.servers)}/{self.name}"

    @property
    def names(self) -> dict[str, object]:
        """Settings that a run with these topics needs."""
        return {"kafka.actions_topic": self.actions, "kafka.dead_letters_topic": self.dead_letters}

    def log(self) -> dict[int, list[LogRecord]]:
        """The telemetry with its append times, as librdkafka reads it."""
        return log_of(self.servers, self.name)

    def alerts(self) -> Rows:
        """All actions; each has the key and lies where any client of Kafka would put it."""
        found = []
        for record in Confluent().consume(self.servers, self.actions):
            assert record.value is not None
            action = json.loads(record.value)
            assert record.key == action["device_id"].encode()
            assert record.partition == partition_of(action["device_id"], 3)
            assert b"\n" not in record.value
            found.append(action)
        return found

    def letters(self) -> Rows:
        """All dead letters, as rows of the reference's."""
        found = []
        for record in Confluent().consume(self.servers, self.dead_letters):
            headers = dict(record.headers)
            assert list(headers) == ["reason", "partition", "offset", "line", "length", "run"]
            numbers = {name: int(headers[name]) for name in ("partition", "offset", "line", "length")}
            found.append({"reason": headers["reason"].decode(), "raw": record.value or b"", **numbers})
        return found


def log_of(servers: Sequence[str], topic: str) -> dict[int, list[LogRecord]]:
    """Every record from the beginning to the present end."""
    reader = Consumer({"bootstrap.servers": ",".join(servers), "group.id": "independent", **CONSUMING})
    try:
        numbers = sorted(reader.list_topics(topic, timeout=WAIT_S_MAX).topics[topic].partitions)
        missing = {p: end for p in numbers if (end := watermarks(reader, topic, p)[1])}
        found: dict[int, list[LogRecord]] = {p: [] for p in numbers}
        reader.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in missing])
        deadline = time.monotonic() + WAIT_S_MAX
        while missing:
            assert time.monotonic() < deadline, f"{topic}: {missing} not read"
            for message in reader.consume(10_000, timeout=0.1):
                partition, error = message.partition(), message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                if error is None:
                    found[partition].append(LogRecord(message.value(), message.offset(), message.timestamp()[1]))
                if partition in missing and (error is not None or message.offset() + 1 >= missing[partition]):
                    del missing[partition]
        return found
    finally:
        reader.close()


def singles(text: bytes, broken_key: bytes | None) -> Iterator[Pair]:
    """One record a line, its key the device's id."""
    for line in text.split(b"\n"):
        event = decode_line(line)
        yield (event["device_id"].encode() if isinstance(event, dict) else broken_key), line


def frames(text: bytes, partitions: int, lines: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """(partition, value): ``lines`` of one partition, in turn, a record; broken ones anywhere. Some values end in LF, some do not."""
    held: dict[int, list[bytes]] = {p: [] for p in range(partitions)}
    for number, line in enumerate(text.split(b"\n")):
        event = decode_line(line)
        partition = partition_of(event["device_id"], partitions) if isinstance(event, dict) else number % partitions
        held[partition].append(line)
        if len(held[partition]) >= lines[number % len(lines)]:
            yield partition, b"\n".join(held.pop(partition)) + b"\n" * (number % 2)
            held[partition] = []
    for partition, rest in held.items():
        if rest:
            yield partition, b"\n".join(rest)


class Appending:
    """A log of segment files, written part by part."""

    PARTITIONS = 4

    def __init__(self, folder: Path) -> None:
        self.log = EmbeddedLog.create(folder, partitions=self.PARTITIONS, segment_bytes=4 << 20, retention_bytes=64 << 20)
        self._writers = [self.log.writer(p) for p in range(self.PARTITIONS)]
        self.records: dict[int, list[LogRecord]] = {p: [] for p in range(self.PARTITIONS)}
        self.url = f"embedded:{folder}"

    def write(self, seed: int, events: int = 1_500) -> None:
        for partition, value in frames(dirty_text(seed, events), self.PARTITIONS, lines=(1, 7, 20)):
            self.records[partition].append(LogRecord(value, *self._writers[partition].append(value)))


# --- what must come out --------------------------------------------------------------------------------------------------
def expected_of(log: Mapping[int, Sequence[LogRecord]], *, idle_ms: int, **options: Any) -> Result:
    """Of a run that read all of ``log`` and was ended after ``idle_ms`` of silence at least. What is open then stays open, for the next run.

    ``idle_ms`` is behind every timer that may have fired: the result is the same however much longer the run took.
    """
    result = reference_log(dict(log), **options)
    end = max((record.append_ts for records in log.values() for record in records), default=0) + idle_ms
    tables = {partition: ReferenceSessions(partition=partition, **options) for partition in log}
    for row in result.rows:
        tables[row["partition"]].apply(row, row["append_ts"])
    result.alerts, result.sessions = [], []
    for table in tables.values():
        table.advance(end)
        result.alerts += table.alerts
        result.sessions += table.sessions
    return result


def assert_alerts(found: Rows, expected: Result) -> None:
    wanted = [{name: row[name] for name in ALERT_COLUMNS} for row in expected.alerts]
    assert by(found, "alert_id") == by(wanted, "alert_id")


def assert_sessions(lake: Path | str, expected: Result) -> None:
    identity = ("device_id", "session_id", "start_ts", "end_ts", "events", "duplicates", "end_reason")
    assert by(session_rows(lake), *identity) == by(expected.sessions, *identity)


def assert_letters(found: Rows, expected: Result) -> None:
    place = ("partition", "offset", "line")
    assert by(found, *place) == by(expected.dead_letters, *place)


def letters_in(folder: Path) -> Rows:
    """Dead letters of files, as rows of the reference's."""
    rows = [json.loads(line) for path in sorted(folder.glob("*.ndjson")) for line in path.read_bytes().splitlines()]
    return [row | {"raw": base64.b64decode(row["raw"])} for row in rows]


def assert_lake(lake: Path | str, expected: Result) -> None:
    """Each accepted event once, as it was sent, where it lies in the log."""
    rows = sorted(expected.rows, key=lambda row: (row["partition"], row["offset"], row["line"]))
    found = rows_of(lake).sort("partition", "offset", "line")
    assert found.height == len(rows)
    assert found.select(LAKE_COLUMNS).to_dicts() == [{name: row[name] for name in LAKE_COLUMNS} for row in rows]
    assert [None if text is None else parse_json(text) for text in found["extra"]] == [row["extra"] for row in rows]


def assert_report(path: Path, expected: Result) -> dict[str, Any]:
    """What the run says of itself. Its count of alerts is left to the caller: those that a killed actor had said may be in it."""
    report: dict[str, Any] = json.loads(path.read_bytes())
    late = sum(row["late"] for row in expected.rows)
    assert report["ledger"] == expected.ledger() | {"late": late, "sent": 0}
    assert (report["sessions"], report["session_rows"]) == (len(expected.sessions), len(expected.sessions))
    assert report["failures"] == []
    return report


def by(rows: Rows, *names: str) -> Rows:
    return sorted(rows, key=lambda row: tuple(str(row[name]) for name in names))
