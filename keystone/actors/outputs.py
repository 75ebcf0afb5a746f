"""Where a session actor's alerts and dead letters go, and when they count as delivered.

The actor hands over what a step found as one ``Delivery``; it is finished when each of its alerts is visible and each of its
dead letters in its place. Offsets are committed in the order of deliveries, so never past one that is not finished.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from keystone.actors.trail import Trails
from keystone.config import KafkaConfig
from keystone.errors import KeystoneError, LogUnreachable
from keystone.events import Alert
from keystone.letter_batch import LetterBatch
from keystone.log.url import KafkaUrl
from keystone.logs import get
from keystone.metrics import LatencyHistogram
from keystone.sinks.kafka import Item, TopicSink
from keystone.sinks.letter_objects import LetterObjects, Ticket
from keystone.sinks.letters_limit import LettersLimit
from keystone.sinks.ndjson import DeadLetterFile, last_place
from keystone.store import open_store

CLOSE_WAIT_S: Final = 30.0  # for outcomes that are still to come at the end
TOGETHER_S: Final = 0.005  # after which an alert waits no longer for those of other partitions in the same turn
MEND_EVERY_S: Final = 1.0  # between two tries to deliver what failed
MARK_EVERY_S: Final = 5.0  # between two looks where the actions end: so much of them is read again at most, beyond a checkpoint's age
ACTIONS_MARK: Final = "actions"

LETTERS_TOGETHER: Final = 1_000  # dead letters that are sent again together, should one of them not arrive

log = get(__name__)


@dataclass(slots=True)
class Delivery:
    """What one step of one partition found, and the offset behind its records. ``visible_ms``: wall time, one an alert, once finished."""

    partition: int
    next_offset: int
    alerts: list[Alert]
    decoded_ms: list[float]
    alerted_ms: list[float]
    dead_letters: LetterBatch = field(default_factory=LetterBatch)
    visible_ms: list[float] = field(default_factory=list)


class Output(Protocol):
    """One thread calls it. ``alerts``: delivered so far; ``detect``: ms from append to visible, of those."""

    @property
    def alerts(self) -> int: ...
    @property
    def detect(self) -> LatencyHistogram: ...

    def send(self, delivery: Delivery) -> None:
        """Hand over. May wait where too much is under way."""

    def finished(self) -> Iterator[Delivery]:
        """Deliveries finished since the last call, in the order of ``send``."""

    def pending(self) -> int:
        """Deliveries handed over and not finished."""

    def own(self, epochs: Mapping[int, int], marks: Sequence[Mapping[str, Any]]) -> None:
        """These partitions are ours now. What earlier owners said after ``marks`` (of their last checkpoints) is not said again."""

    def disown(self, partition: int) -> None:
        """Another says what there is to say of this partition."""

    def marks(self) -> dict[str, Any]:
        """Where the outputs stand, at or before what is sent next: JSON, for a checkpoint."""

    def flush(self) -> bool:
        """Wait, within a limit, for what is under way; False where something is not delivered."""

    def close(self) -> None:
        """Release everything. May be repeated."""


class LocalOutput:
    """Files of this machine, one of each kind for a partition and its owner, or nothing: delivered when ``send`` returns."""

    def __init__(self, trail_dir: Path | None, letters: Letters | None) -> None:
        self.alerts = 0
        self.detect = LatencyHistogram()
        self._trails = Trails(trail_dir) if trail_dir is not None else None
        self._letters = letters
        self._done: deque[Delivery] = deque()

    def own(self, epochs: Mapping[int, int], marks: Sequence[Mapping[str, Any]]) -> None:  # noqa: ARG002 - what was said is in the files themselves
        for partition, epoch in epochs.items():
            if self._trails is not None:
                self._trails.own(partition, epoch)
            if self._letters is not None:
                self._letters.own(partition, epoch)

    def disown(self, partition: int) -> None:
        if self._trails is not None:
            self._trails.disown(partition)
        if self._letters is not None:
            self._letters.disown(partition)

    def marks(self) -> dict[str, Any]:
        return {}

    def flush(self) -> bool:
        return True

    def send(self, delivery: Delivery) -> None:
        if delivery.alerts:
            self._say(delivery)
        if delivery.dead_letters and self._letters is not None:
            self._letters.write(delivery.partition, delivery.dead_letters)
        self._done.append(delivery)

    def _say(self, delivery: Delivery) -> None:
        alerts = delivery.alerts
        fresh: Sequence[int] = range(len(alerts))
        if self._trails is not None:
            fresh = self._trails.append(delivery.partition, alerts, decoded_ms=delivery.decoded_ms, alerted_ms=delivery.alerted_ms)
        visible_ms = time.time() * 1_000
        if fresh:
            self.detect.add(visible_ms - np.array([float(alerts[i].append_ts_ms) for i in fresh]))
            self.alerts += len(fresh)
        delivery.visible_ms = [visible_ms] * len(delivery.alerts)

    def finished(self) -> Iterator[Delivery]:
        while self._done:
            yield self._done.popleft()

    def pending(self) -> int:
        return len(self._done)

    def close(self) -> None:
        if self._trails is not None:
            self._trails.close()
        if self._letters is not None:
            self._letters.close()


class Letters:
    """Files of dead letters in a directory, one of each partition and owner. Who takes over leaves out what is there already."""

    def __init__(self, directory: Path, files: str, limit: LettersLimit | None = None) -> None:
        """``limit``: None keeps all."""
        self._directory, self._files, self._limit = directory, files, limit
        self._open: dict[int, DeadLetterFile] = {}
        self._last: dict[int, tuple[int, int]] = {}  # (offset, line) of the last one that earlier owners wrote

    def own(self, partition: int, epoch: int) -> None:
        """Letters of a partition come in the order of their places, so the last one tells of all."""
        earlier = sorted(self._directory.glob(f"{self._files}p{partition:05d}-e*.ndjson"))
        *place, is_marker = max((last_place(path) for path in earlier), default=(-1, -1, False))
        self._last[partition] = place[0], place[1]
        if self._limit is not None:
            self._limit.own(partition, sum(path.stat().st_size for path in earlier), is_marked=is_marker)
        self._open[partition] = DeadLetterFile(self._directory / f"{self._files}p{partition:05d}-e{epoch:08d}.ndjson", per_line=False)

    def disown(self, partition: int) -> None:
        self._open.pop(partition).close()
        if self._limit is not None:
            self._limit.disown(partition)

    def write(self, partition: int, letters: LetterBatch) -> None:
        """Those that are not there yet; they are when this returns, as far as they are kept."""
        fresh = letters.behind(*self._last[partition])
        self._open[partition].write(fresh if self._limit is None else self._limit.kept(partition, fresh))

    def flush(self, wait_s: float) -> bool:  # noqa: ARG002 - nothing is held
        return True

    def close(self) -> None:
        for file in self._open.values():
            file.close()


@dataclass(slots=True)
class _UnderWay:
    delivery: Delivery
    items: list[Item]

    @property
    def is_done(self) -> bool:
        return all(item.state == "acknowledged" for item in self.items)


class TopicOutput:
    """Topics of Kafka. ``trail``, where one is given, is told what became visible and when. ``said``: ids not to be said again."""

    def __init__(self, sink: TopicSink, trail_dir: Path | None, actions_from: Mapping[int, int]) -> None:
        self.alerts = 0
        self.detect = LatencyHistogram()
        self._sink = sink
        self._trails = Trails(trail_dir) if trail_dir is not None else None
        self._actions_from = dict(actions_from)
        self._said: set[str] = set()
        self._under_way: deque[_UnderWay] = deque()
        self._mended_s = 0.0
        self._waiting_since_s: float | None = None  # what was handed over and is not under way yet
        self._ends = dict(actions_from)  # of the actions, at or before what is sent next
        self._ends_s = 0.0

    def own(self, epochs: Mapping[int, int], marks: Sequence[Mapping[str, Any]]) -> None:
        """Raises ``LogUnreachable`` where what was said cannot be read."""
        if any(epoch > 1 for epoch in epochs.values()):  # else nobody owned any of these before
            starts = [{int(p): offset for p, offset in mark.get(ACTIONS_MARK, {}).items()} or self._actions_from for mark in marks]
            self._said |= self._sink.said_from({p: min(start.get(p, 0) for start in starts) for p in self._sink.end_offsets()})
        if self._trails is not None:
            for partition, epoch in epochs.items():
                self._trails.own(partition, epoch)

    def disown(self, partition: int) -> None:
        if self._trails is not None:
            self._trails.disown(partition)

    def marks(self) -> dict[str, Any]:
        """Ends of the actions' topic that were asked before now: what is sent from now on is behind them. The question is not waited for."""
        now_s = time.monotonic()
        if now_s - self._ends_s > MARK_EVERY_S:
            self._ends_s = now_s
            threading.Thread(target=self._look_at_ends, name="marks", daemon=True).start()
        return {ACTIONS_MARK: {str(p): offset for p, offset in self._ends.items()}}

    def _look_at_ends(self) -> None:
        try:
            self._ends = self._sink.end_offsets()
        except KeystoneError as error:
            log.warning("where the actions end cannot be looked up", reason=str(error))

    def flush(self) -> bool:
        self._wake()
        until = time.monotonic() + CLOSE_WAIT_S
        while (items := self._troubled_or_pending()) and time.monotonic() < until:
            self._sink.wait(items, wait_s=0.5)
            self._mend_when_due()
        return not items

    def _troubled_or_pending(self) -> list[Item]:
        return [item for under_way in self._under_way for item in under_way.items if item.state != "acknowledged"]

    def send(self, delivery: Delivery) -> None:
        fresh = [i for i, alert in enumerate(delivery.alerts) if alert.alert_id not in self._said]
        if len(fresh) != len(delivery.alerts):
            self._note_said(delivery, set(fresh))
            for name in ("alerts", "decoded_ms", "alerted_ms"):
                setattr(delivery, name, [getattr(delivery, name)[i] for i in fresh])
        letters = delivery.dead_letters
        items = [*map(Item, delivery.alerts), *(Item(letters[at : at + LETTERS_TOGETHER]) for at in range(0, len(letters), LETTERS_TOGETHER))]
        self._under_way.append(_UnderWay(delivery, items))
        if items:
            now_s = time.monotonic()
            self._waiting_since_s = self._waiting_since_s or now_s
            self._sink.send(items, wakes=False)
            if now_s - self._waiting_since_s > TOGETHER_S:
                self._wake()

    def _wake(self) -> None:
        """What the partitions of a turn had to say goes together: a request costs 1-2 ms, here and at the broker."""
        if self._waiting_since_s is not None:
            self._waiting_since_s = None
            self._sink.wake()

    def _note_said(self, delivery: Delivery, fresh: set[int]) -> None:
        """What is in the topic, and perhaps not on the trail, because its owner died between the two: it is visible now at the latest."""
        said = [i for i in range(len(delivery.alerts)) if i not in fresh]
        if self._trails is not None and said:
            alerts = [delivery.alerts[i] for i in said]
            decoded_ms, alerted_ms = ([moments[i] for i in said] for moments in (delivery.decoded_ms, delivery.alerted_ms))
            self._trails.append(delivery.partition, alerts, decoded_ms=decoded_ms, alerted_ms=alerted_ms)

    def finished(self) -> Iterator[Delivery]:
        self._wake()
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
        if self._trails is not None:
            self._trails.append(
                delivery.partition, delivery.alerts, decoded_ms=delivery.decoded_ms, alerted_ms=delivery.alerted_ms, visible_ms=delivery.visible_ms
            )

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

    def close(self) -> None:
        self._sink.close()
        if self._trails is not None:
            self._trails.close()


class Taking(Protocol):
    """What takes dead letters: ``Letters``, ``letter_objects.LetterObjects``."""

    def own(self, partition: int, epoch: int) -> None: ...
    def disown(self, partition: int) -> None: ...
    def write(self, partition: int, letters: LetterBatch) -> Ticket | None: ...
    def flush(self, wait_s: float) -> bool: ...
    def close(self) -> None: ...


class WithLetters:
    """An ``Output`` whose dead letters go elsewhere than its alerts.

    A delivery is finished when its alerts are, by ``inner``, and its dead letters are where they belong.
    """

    def __init__(self, inner: Output, letters: Taking) -> None:
        self._inner, self._letters = inner, letters
        self._tickets: deque[Ticket | None] = deque()  # of all deliveries, in order
        self._alerted: deque[Delivery] = deque()  # finished by ``inner``; the first tickets are theirs

    @property
    def alerts(self) -> int:
        return self._inner.alerts

    @property
    def detect(self) -> LatencyHistogram:
        return self._inner.detect

    def own(self, epochs: Mapping[int, int], marks: Sequence[Mapping[str, Any]]) -> None:
        self._inner.own(epochs, marks)
        for partition, epoch in epochs.items():
            self._letters.own(partition, epoch)

    def disown(self, partition: int) -> None:
        self._inner.disown(partition)
        self._letters.disown(partition)

    def marks(self) -> dict[str, Any]:
        return self._inner.marks()

    def send(self, delivery: Delivery) -> None:
        letters, delivery.dead_letters = delivery.dead_letters, LetterBatch()
        self._inner.send(delivery)  # first: nobody waits for a letter
        self._tickets.append(self._letters.write(delivery.partition, letters) if letters else None)

    def finished(self) -> Iterator[Delivery]:
        self._alerted.extend(self._inner.finished())
        while self._alerted and (self._tickets[0] is None or self._tickets[0].is_done):
            self._tickets.popleft()
            yield self._alerted.popleft()

    def pending(self) -> int:
        return len(self._tickets)

    def flush(self) -> bool:
        is_letters, is_inner = self._letters.flush(CLOSE_WAIT_S), self._inner.flush()
        return is_letters and is_inner

    def close(self) -> None:
        self._inner.close()
        self._letters.close()


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """Which output.

    ``actions dead_letters``: a topic's URL, or None; ``trail``: keep files of alerts and moments; ``dead_letters_dir``: a directory
    or a bucket's URL for dead letters, where no topic is named; ``run``: what tells them from those of other runs, but for runs over the same state.
    ``actions_from``: the ends of the actions' topic when the run began: what is behind them, this run said.
    """

    actions: KafkaUrl | None = None
    dead_letters: KafkaUrl | None = None
    trail: bool = True
    dead_letters_dir: str | None = None
    run: str = ""
    actions_from: tuple[tuple[int, int], ...] = ()

    @property
    def files(self) -> str:
        """What names of files and objects of dead letters begin with."""
        return f"{self.run}-" if self.run else ""


def open_output(spec: OutputSpec, config: KafkaConfig, *, name: str, work_dir: Path, limit: LettersLimit | None = None) -> Output:
    """The output of the actor ``name``. ``limit``: of dead letters that are not in a topic; None: none."""
    trail_dir, place = work_dir if spec.trail else None, spec.dead_letters_dir
    is_bucket = place is not None and "://" in place
    if spec.actions is None and spec.dead_letters is None:
        inner: Output = LocalOutput(trail_dir, Letters(Path(place), spec.files, limit) if place is not None and not is_bucket else None)
    else:
        inner = TopicOutput(TopicSink(spec.actions, spec.dead_letters, config, role=name, run=spec.run), trail_dir, dict(spec.actions_from))
    if place is not None and is_bucket:
        return WithLetters(inner, LetterObjects(open_store(place), place, spec.files, limit))
    if place is not None and spec.actions is not None:
        return WithLetters(inner, Letters(Path(place), spec.files, limit))
    return inner


def rehearsed(alerts: Sequence[Alert], scratch: Path) -> None:
    """Say a few alerts into a scratch file: first uses cost up to a second."""
    output = LocalOutput(scratch, None)
    output.own({0: 1}, [])
    moments = [1.0] * len(alerts)
    output.send(Delivery(0, 0, list(alerts), moments, moments))
    output.close()
