"""Actions and dead letters as records of two topics, each counted as delivered only when every replica in sync has it.

An action is the alert as JSON under the key ``device_id``, in the partition that any Kafka client would choose; ``letter_records`` says what a
dead letter is. An outcome that is unknown is looked up in the topic before an alert is said twice; one that failed is sent again: alerts and
dead letters are never dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from keystone.config import KafkaConfig
from keystone.errors import LogUnreachable, RecordTooLarge
from keystone.events import Alert
from keystone.letter_batch import PARTITION, LetterBatch
from keystone.log.kafka import KafkaLog
from keystone.log.url import KafkaUrl
from keystone.logs import get
from keystone.partition import partition_of
from keystone.sinks.letter_records import LetterRecords
from keystone.sinks.ndjson import alert_line

LOOK_BACK_MS: Final = 60_000  # before a record was handed over: brokers' clocks may be that far behind
POLL_BYTES: Final = 4 << 20
POLL_WAIT_MS: Final = 1_000
LOOK_WAIT_S: Final = 30.0

log = get(__name__)


def action_record(alert: Alert) -> tuple[bytes, bytes]:
    """Key and value of an alert's action."""
    return alert.device_id.encode(), alert_line(alert).rstrip(b"\n")


@dataclass(slots=True)
class Item:
    """What must arrive: an alert, or dead letters of one partition together. ``state``: pending | acknowledged | failed | unknown.

    ``left``: records without an outcome; ``trouble``: the state of one that did not arrive.
    """

    what: Alert | LetterBatch
    sent_ms: int = 0
    state: str = "pending"
    done_ms: float = 0.0
    left: int = 0
    trouble: str | None = None


class TopicSink:
    """Sends alerts to one topic and dead letters to another, of the same brokers. One thread calls it.

    ``run``: what all runs over the same state have in common, said with each dead letter. ``UsageError`` at once where a topic is not there, or may
    not be written.
    """

    def __init__(self, actions: KafkaUrl | None, dead_letters: KafkaUrl | None, config: KafkaConfig, *, role: str, run: str = "") -> None:
        self._run = run
        self.undeliverable = 0  # too large for the topic in any form; logged
        self._actions = KafkaLog.open(actions, config, action="write", role=f"{role}-actions") if actions is not None else None
        self._dead = KafkaLog.open(dead_letters, config, action="write", role=f"{role}-dead-letters") if dead_letters is not None else None
        self._changed = threading.Condition()

    def send(self, items: Sequence[Item], *, wakes: bool = True) -> None:
        """Hand over; each item's state changes when its outcome is known. Waits while too much is under way. ``wakes=False``: a ``wake`` follows."""
        now_ms = int(time.time() * 1_000)
        for item in items:
            item.state, item.sent_ms = "pending", now_ms
            try:
                self._send(item)
            except RecordTooLarge as error:
                self._give_up(item, error)
        if wakes and items:
            self.wake()

    def wake(self) -> None:
        """What was handed over goes now."""
        for topic in (self._actions, self._dead):
            if topic is not None:
                topic.producer().wake()

    def _send(self, item: Item) -> None:
        def on_outcome(outcome: Any) -> None:
            with self._changed:
                item.done_ms = time.time() * 1_000
                item.state = outcome.state
                self._changed.notify_all()

        what = item.what
        if isinstance(what, LetterBatch):
            self._send_letters(item, what)
        elif self._actions is None:
            item.state, item.done_ms = "acknowledged", time.time() * 1_000
        else:
            key, value = action_record(what)
            lane = self._actions.producer().lane(self._actions.topic, partition_of(key, self._actions.partitions))
            self._actions.producer().send(lane, value, key=key, on_outcome=on_outcome, is_urgent=True, wakes=False, limit_bytes=self._actions.record_bytes_max)

    def _send_letters(self, item: Item, letters: LetterBatch) -> None:
        def on_outcomes(outcome: Any, records: int) -> None:
            with self._changed:
                item.left -= records
                if outcome.state != "acknowledged":
                    item.trouble = outcome.state
                if not item.left:
                    item.done_ms, item.state = time.time() * 1_000, item.trouble or "acknowledged"
                    self._changed.notify_all()

        records = LetterRecords(letters, self._dead.record_bytes_max, run=self._run) if self._dead is not None else None
        if records is not None and records.too_large:
            self.undeliverable += records.too_large
            item.what = records.letters  # those are told and counted once, however often the others are sent
            log.error("dead letters are too large for their topic", letters=records.too_large, topic=self._dead.topic if self._dead is not None else "")
        if self._dead is None or records is None or not records.left:
            item.state, item.done_ms = "acknowledged", time.time() * 1_000
            return
        item.left, item.trouble = records.left, None
        lane = self._dead.producer().lane(self._dead.topic, int(letters.columns[PARTITION, 0]) % self._dead.partitions)
        self._dead.producer().send_records(lane, records, on_outcomes=on_outcomes)

    def _give_up(self, item: Item, error: RecordTooLarge) -> None:
        """Once more without dimensions, which the action can do without; then it cannot be said."""
        what = item.what
        if isinstance(what, Alert) and any(what.dimensions.values()):
            item.what = replace(what, dimensions={})
            try:
                self._send(item)
            except RecordTooLarge:
                pass
            else:
                return
        self.undeliverable += 1
        item.state, item.done_ms = "acknowledged", time.time() * 1_000
        log.error("an action cannot be delivered: %s", error)

    def mend(self, items: Sequence[Item]) -> None:
        """Send again what failed, and what is unknown and not in the topic."""
        unknown = [item for item in items if item.state == "unknown" and isinstance(item.what, Alert)]
        if unknown:
            said = self.said_since(min(item.sent_ms for item in unknown) - LOOK_BACK_MS)
            for item in unknown:
                if item.what.alert_id in said:  # type: ignore[union-attr]
                    item.state, item.done_ms = "acknowledged", time.time() * 1_000
        self.send([item for item in items if item.state in ("failed", "unknown")])

    def said_since(self, since_ms: int) -> set[str]:
        """The ids of all actions in the topic from ``since_ms`` (broker time) on."""
        if self._actions is None:
            return set()
        return {
            action["alert_id"]
            for action in read_json(self._actions, self._actions.client.offsets(self._actions.topic, range(self._actions.partitions), since_ms))
        }

    def end_offsets(self) -> dict[int, int]:
        """Of the actions' topic now."""
        return self._actions.end_offsets() if self._actions is not None else {}

    def said_from(self, offsets: dict[int, int]) -> set[str]:
        """The ids of all actions from these offsets on."""
        return {action["alert_id"] for action in read_json(self._actions, offsets)} if self._actions is not None else set()

    def wait(self, items: Sequence[Item], *, wait_s: float) -> bool:
        """Until none of ``items`` is pending; False where that takes longer."""
        until = time.monotonic() + wait_s
        with self._changed:
            while any(item.state == "pending" for item in items):
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 0.5))
        return True

    def close(self) -> None:
        """May be repeated. What is still pending keeps no one waiting: ``wait`` before."""
        for topic in (self._actions, self._dead):
            if topic is not None:
                topic.close()


def read_json(log_: KafkaLog, start_offsets: dict[int, int]) -> list[dict[str, Any]]:
    """Every action in a topic from ``start_offsets`` to its present ends, with the append time of its record as ``visible_ms``.

    ``LogUnreachable`` where that is not possible within LOOK_WAIT_S a partition: what was not seen is not known to be missing.
    """
    ends = log_.end_offsets()
    found: list[dict[str, Any]] = []
    for partition, start in start_offsets.items():
        reader = log_.reader(partition, start_offset=start)
        until = time.monotonic() + LOOK_WAIT_S
        while reader.position() < ends[partition] and time.monotonic() < until:
            records = reader.poll(bytes_max=POLL_BYTES, wait_ms=POLL_WAIT_MS)
            places = zip(records.starts.tolist(), records.ends.tolist(), records.append_ts_ms.tolist(), strict=True)
            for begin, end, append_ms in places:
                try:
                    value = orjson.loads(records.text[begin:end].tobytes())
                except orjson.JSONDecodeError:
                    continue
                if isinstance(value, dict) and "alert_id" in value:
                    found.append({**value, "visible_ms": float(append_ms)})
        reader.close()
        if reader.position() < ends[partition]:
            raise LogUnreachable(f"{log_.url}, partition {partition}: not read to its end within {LOOK_WAIT_S:.0f} s")
    return found
