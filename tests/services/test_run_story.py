"""The console story as a person has it: two terminals, one terminal, a terminal without Unicode, a reader that goes away."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from keystone.log.embedded import EmbeddedLog
from tests.kafka_server import KafkaCluster
from tests.services import runs
from tests.services.runs import Command, Topics

pytestmark = [pytest.mark.ray, pytest.mark.slow]

WITHIN_S = 15.0  # of the devices' start, a person has seen everything
STORY = (
    r"(?m)^\d\d:\d\d:\d\d  ▶ START +\S+  \S.*, .+$",
    r"(?m)^\d\d:\d\d:\d\d  ⚠ BUFFERING  \S+  1 of 3$",
    r"(?m)^\d\d:\d\d:\d\d  ⚠ BUFFERING  \S+  2 of 3$",
    r"(?m)^\d\d:\d\d:\d\d  🚨 CRITICAL QoE ALERT  \S+  3 stalls in a row: downgrade [\d,]+ → [\d,]+ kbps, [\d,.]+ m?s after the log had it  \(.+$",
    r"(?m)^\d\d:\d\d:\d\d  ⏹ STOP +\S+  watched [\d.]+ s, stalled [\d.]+ s, (played|left before the video began|failed .*)$",
    r"(?m)^[\d,]+ events/s  [\d,]+ sessions  [\d,]+ alerts  p99 (-|[\d,.]+ m?s)  lag [\d,]+",
)
#: Letters, but none beyond ASCII: what Python does by itself is switched off too.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def watch(url: str, env: dict[str, str], story: tuple[str, ...], *words: str) -> None:
    """Consumer first, then the producer; all of the story; Ctrl-C in both terminals."""
    with Command("--log", url, *words, script="consumer.py", env=env) as consumer:
        consumer.wait_for("(?m)^reading ")
        with Command("--log", url, script="producer.py", env=env) as producer:
            consumer.wait_for(*story, within_s=WITHIN_S + 5)  # a Python and its kernels come to life first
            for terminal in (producer, consumer):
                terminal.interrupt()
                assert terminal.end() == 0, terminal.err
                assert "Traceback" not in terminal.out + terminal.err
            assert "acknowledged" in producer.out
        assert "events received" in consumer.out


@pytest.mark.alone
def test_two_terminals_over_an_embedded_log_that_the_first_one_makes(tmp_path: Path) -> None:
    watch(f"embedded:{tmp_path / 'a' / 'log'}", {}, STORY)


@pytest.mark.alone
@pytest.mark.kafka
def test_two_terminals_without_unicode_over_a_topic(kafka: KafkaCluster, topic_name: str) -> None:
    topics = Topics.made(kafka.servers, topic_name)
    story = tuple("".join(letter if letter.isascii() else r"\?" for letter in pattern) for pattern in STORY)
    watch(topics.url, ASCII, story, *runs.settings(topics.names))
    assert len(topics.alerts()) > 0


def test_a_demo_shows_everything_in_one_terminal_and_leaves_nothing() -> None:
    with Command("demo", "--seconds", "12") as demo:
        demo.wait_for(*STORY)
        assert demo.end() == 0, demo.err
        assert "Traceback" not in demo.out + demo.err


def test_a_reader_that_goes_away_ends_the_showing_and_not_the_run(tmp_path: Path) -> None:
    """As with ``| head -1``."""
    with closing(EmbeddedLog.create(tmp_path / "log", partitions=2, segment_bytes=1 << 20, retention_bytes=4 << 20)) as log:
        for session in range(200):
            log.writer(0).append(b'{"event":"Start","ts":%d,"device_id":"d","session_id":"%d"}' % (session, session))
            log._given.pop().close()
    reading, writing = os.pipe()
    words = ("--story", "--until-idle", "1", "--report", str(tmp_path / "report.json"))
    with Command("run", "--log", f"embedded:{tmp_path / 'log'}", *words, stdout=writing) as run:
        os.close(writing)
        with os.fdopen(reading, "rb") as terminal:
            assert terminal.readline().startswith(b"starting")
        assert run.end() == 0
        assert run.err == ""
    assert json.loads((tmp_path / "report.json").read_bytes())["ledger"]["accepted"] == 200
