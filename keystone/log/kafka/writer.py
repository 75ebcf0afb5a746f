"""The writer of one partition: ``append`` waits for the answer, ``send`` for room only."""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from keystone.errors import LogClosed, LogUnreachable
from keystone.events import U8
from keystone.log.base import Appended, Sent
from keystone.log.kafka.batches import Headers
from keystone.log.kafka.lanes import ACKNOWLEDGED, Lane, Outcome
from keystone.log.kafka.owner import Owner
from keystone.log.kafka.producer import Producer

CLOSE_WAIT_S: Final = 10.0  # for answers that are still to come
APPEND_WAIT_S: Final = 150.0  # beyond kafka.delivery_timeout_ms every outcome is known


class KafkaWriter:
    """See ``LogWriter``. Any number of other programs may write to the partition: Kafka knows no single writer, this object's log does."""

    def __init__(self, owner: Owner, producer: Producer, partition: int, record_bytes_max: int) -> None:
        self.partition = partition
        self.record_bytes_max = record_bytes_max
        self._log = owner
        self._producer = producer
        self._lane: Lane = producer.lane(owner.topic, partition)
        self._is_closed = False

    @property
    def sent(self) -> Sent:
        """How the sends to this partition ended so far, of all writers this log gave of it."""
        return self._lane.sent

    def append(self, value: bytes | memoryview | U8, *, events: int = 1, key: bytes | None = None) -> Appended:
        """See ``LogWriter.append``. ``LogUnreachable`` where the outcome is unknown: the record may be there."""
        done = threading.Event()
        outcome: list[Outcome] = []

        def on_outcome(found: Outcome) -> None:
            outcome.append(found)
            done.set()

        self._send(value, events, key, (), on_outcome, is_urgent=True)
        until = time.monotonic() + APPEND_WAIT_S
        while not done.wait(0.2):
            if self._is_closed:
                raise LogClosed(f"{self._log.url}, partition {self.partition}: the writer was closed")
            if time.monotonic() > until:
                raise LogUnreachable(f"{self._log.url}, partition {self.partition}: no answer for {APPEND_WAIT_S:.0f} s")
        [found] = outcome
        if found.state != ACKNOWLEDGED:
            raise found.error or LogUnreachable(f"{self._log.url}, partition {self.partition}: the record is {found.state}")
        return Appended(found.offset, found.append_ts_ms if found.append_ts_ms >= 0 else int(time.time() * 1_000))

    def send(self, value: bytes | memoryview | U8, *, events: int = 1, key: bytes | None = None, headers: Headers = (), on_outcome: Any = None) -> None:
        """See ``LogWriter.send``. ``on_outcome`` is called on the connection's thread: quick, and never raising."""
        self._send(value, events, key, headers, on_outcome, is_urgent=False)

    def _send(self, value: Any, events: int, key: bytes | None, headers: Headers, on_outcome: Any, *, is_urgent: bool) -> None:
        if self._is_closed or self._log.is_closed:
            raise LogClosed(f"{self._log.url}, partition {self.partition}: the writer was closed")
        self._producer.send(
            self._lane, value, key=key, headers=headers, events=events, on_outcome=on_outcome, is_urgent=is_urgent,
            limit_bytes=self.record_bytes_max, has_ended=lambda: self._is_closed,
        )  # fmt: skip

    def flush(self, *, wait_s: float) -> bool:
        """See ``LogWriter.flush``."""
        return self._producer.flush([self._lane], wait_s=wait_s)

    def close(self, *, wait_s: float = CLOSE_WAIT_S) -> None:
        """Wait up to ``wait_s`` for answers; what has none by then keeps trying until the log is closed."""
        if self._is_closed:
            return
        self._is_closed = True
        if not self._log.is_closed:
            self._producer.flush([self._lane], wait_s=wait_s)
        self._log.release(self.partition)
