"""Where a session actor's alerts and dead letters go, and when they count as delivered.

The actor hands over what a step found as one ``Delivery``; it is finished when each of its alerts is visible and each of its
dead letters in its place. Offsets are committed in the order of deliveries, so never past one that is not finished.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from keystone.actors.trail import AlertTrail
from keystone.config import KafkaConfig
from keystone.errors import LogUnreachable
from keystone.events import Alert, DeadLetter
from keystone.log.url import KafkaUrl
from keystone.logs import get
from keystone.metrics import LatencyHistogram
from keystone.sinks.kafka import Item, TopicSink
from keystone.sinks.ndjson import DeadLetterFile

CLOSE_WAIT_S: Final = 30.0  # for outcomes that are still to come at the end
MEND_EVERY_S: Final = 1.0  # between two tries to deliver what failed

log = get(__name__)


@dataclass(slots=True)
class Delivery:
    """What one step of one partition found, and the offset behind its records. ``visible_ms``: wall time, one an alert, once finished."""

    partition: int
    next_offset: int
    alerts: list[Alert]
    decoded_ms: list[float]
    alerted_ms: list[float]
    dead_letters: list[DeadLetter] = field(default_factory=list)
    visible_ms: list[float] = field(default_factory=list)


class Output(Protocol):
    """One thread calls it. ``alerts``: delivered so far; ``detect``: ms from append to visible, of those."""

    alerts: int
    detect: LatencyHistogram

    def send(self, delivery: Delivery) -> None:
        """Hand over. May wait where too much is under way."""

    def finished(self) -> Iterator[Delivery]:
        """Deliveries finished since the last call, in the order of ``send``."""

    def pending(self) -> int:
        """Deliveries handed over and not finished."""

    def close(self) -> bool:
        """Wait, within a limit, for what is under way; False where something is not delivered."""


class LocalOutput:
    """Files of this machine, or nothing: delivered when ``send`` returns."""

    def __init__(self, trail: AlertTrail | None, dead_letters: DeadLetterFile | None) -> None:
        self.alerts = trail.alerts if trail is not None else 0
        self.detect = trail.detect if trail is not None else LatencyHistogram()
        self._trail = trail
        self._dead_letters = dead_letters
        self._done: deque[Delivery] = deque()

    def send(self, delivery: Delivery) -> None:
        if delivery.alerts:
            self._say(delivery)
        if delivery.dead_letters and self._dead_letters is not None:
            self._dead_letters.write(delivery.dead_letters)
        self._done.append(delivery)

    def _say(self, delivery: Delivery) -> None:
        if self._trail is not None:
            visible_ms = self._trail.append(delivery.alerts, decoded_ms=delivery.decoded_ms, alerted_ms=delivery.alerted_ms)
            self.alerts = self._trail.alerts
        else:
            visible_ms = time.time() * 1_000
            self.detect.add(visible_ms - np.array([float(alert.append_ts_ms) for alert in delivery.alerts]))
            self.alerts += len(delivery.alerts)
        delivery.visible_ms = [visible_ms] * len(delivery.alerts)

    def finished(self) -> Iterator[Delivery]:
        while self._done:
            yield self._done.popleft()

    def pending(self) -> int:
        return len(self._done)

    def close(self) -> bool:
        if self._trail is not None:
            self._trail.close()
        if self._dead_letters is not None:
            self._dead_letters.close()
        return True


@dataclass(slots=True)
class _UnderWay:
    delivery: Delivery
    items: list[Item]

    @property
    def is_done(self) -> bool:
        return all(item.state == "acknowledged" for item in self.items)


class TopicOutput:
    """Topics of Kafka. ``trail``, where one is given, is told what became visible and when. ``said``: ids not to be said again."""

    def __init__(self, sink: TopicSink, trail: AlertTrail | None, said: frozenset[str] = frozenset()) -> None:
        self.alerts = 0
        self.detect = LatencyHistogram()
        self._sink = sink
        self._trail = trail
        self._said = said
        self._under_way: deque[_UnderWay] = deque()
        self._mended_s = 0.0

    def send(self, delivery: Delivery) -> None:
        fresh = [i for i, alert in enumerate(delivery.alerts) if alert.alert_id not in self._said]
        if len(fresh) != len(delivery.alerts):
            for name in ("alerts", "decoded_ms", "alerted_ms"):
                setattr(delivery, name, [getattr(delivery, name)[i] for i in fresh])
        items = [*map(Item, delivery.alerts), *map(Item, delivery.dead_letters)]
        self._under_way.append(_UnderWay(delivery, items))
        self._sink.send(items)

    def finished(self) -> Iterator[Delivery]:
        self._mend_when_due()
        while self._under_way and self._under_way[0].is_done:
            done = self._under_way.popleft()
            self._note(done)
            yield done.delivery

    def _note(self, done: _UnderWay) -> None:
        delivery = done.delivery
        count = len(delivery.alerts)
        if count == 0:
            return
        delivery.visible_ms = [item.done_ms for item in done.items[:count]]
        self.alerts += count
        self.detect.add(np.array(delivery.visible_ms) - np.array([float(alert.append_ts_ms) for alert in delivery.alerts]))
        if self._trail is not None:
            self._trail.append(delivery.alerts, decoded_ms=delivery.decoded_ms, alerted_ms=delivery.alerted_ms, visible_ms=delivery.visible_ms)

    def _mend_when_due(self) -> None:
        if not self._under_way or time.monotonic() - self._mended_s < MEND_EVERY_S:
            return
        self._mended_s = time.monotonic()
        troubled = [item for under_way in self._under_way for item in under_way.items if item.state in ("failed", "unknown")]
        if troubled:
            try:
                self._sink.mend(troubled)
            except LogUnreachable as error:  # what is in the topic cannot be looked up now
                log.warning("alerts or dead letters without an answer cannot be looked up: %s", error)

    def pending(self) -> int:
        return len(self._under_way)

    def close(self) -> bool:
        until = time.monotonic() + CLOSE_WAIT_S
        while self._under_way and time.monotonic() < until:
            items = [item for under_way in self._under_way for item in under_way.items]
            self._sink.wait(items, wait_s=0.5)
            for _ in self.finished():
                pass
        self._sink.close()
        if self._trail is not None:
            self._trail.close()
        return not self._under_way


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """Which output.

    ``actions dead_letters``: a topic's URL, or None; ``trail``: keep a file of alerts and moments; ``dead_letters_dir``: a directory
    for a file of them, where no topic is named. ``actions_from``: the ends of the actions' topic when the run began: what is behind
    them, this run said.
    """

    actions: KafkaUrl | None = None
    dead_letters: KafkaUrl | None = None
    trail: bool = True
    dead_letters_dir: str | None = None
    actions_from: tuple[tuple[int, int], ...] = ()


def open_output(spec: OutputSpec, config: KafkaConfig, *, name: str, files: str, work_dir: Path, is_again: bool) -> Output:
    """The output of the actor ``name``. ``files``: what its file of dead letters is called.

    ``is_again``: a predecessor died; what it said is not said once more.
    """
    trail = AlertTrail(work_dir, name) if spec.trail else None
    if spec.actions is None and spec.dead_letters is None:
        letters = DeadLetterFile(Path(spec.dead_letters_dir) / f"{files}.ndjson", per_line=False, keep=False) if spec.dead_letters_dir is not None else None
        return LocalOutput(trail, letters)
    sink = TopicSink(spec.actions, spec.dead_letters, config, role=name)
    said = frozenset(sink.said_from(dict(spec.actions_from))) if is_again and spec.actions_from else frozenset()
    return TopicOutput(sink, trail, said)


def rehearsed(alerts: Sequence[Alert], scratch: Path) -> None:
    """Say a few alerts into a scratch file: first uses cost up to a second."""
    output = LocalOutput(AlertTrail(scratch, "rehearsal"), None)
    moments = [1.0] * len(alerts)
    output.send(Delivery(0, 0, list(alerts), moments, moments))
    output.close()
