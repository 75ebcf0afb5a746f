"""The topic of actions and the place of dead letters, and an owner's way to them: handed over at once, visible a little later."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keystone.actors.leases import LEASE_S
from keystone.actors.outputs import ACTIONS_MARK, Delivery
from keystone.checkpoint import key_of
from keystone.errors import LogUnreachable
from keystone.metrics import LatencyHistogram
from tests.simulation.storage import SimStore
from tests.simulation.world import Process, Violation, World


@dataclass(frozen=True)
class Said:
    """One alert in the topic. ``is_zombies``: another had claimed the partition by then."""

    alert_id: str
    is_zombies: bool


@dataclass
class SimTopics:
    """What was said, by anybody, in order. Saying twice is a matter for zombies alone."""

    world: World
    store: SimStore
    said: list[Said] = field(default_factory=list)
    letters: set[tuple[int, int, int, str]] = field(default_factory=set)

    def say(self, alert_id: str, partition: int, epoch: int, checked_ms: int) -> None:
        claims = self.store.claims.get(key_of(partition), [])
        is_zombies = len(claims) > epoch
        if is_zombies and claims[epoch] <= checked_ms - LEASE_S * 1_000:
            raise Violation(f"partition {partition}: an owner of epoch {epoch} speaks that had to know that it is none")
        twice = [said for said in self.said if said.alert_id == alert_id]
        if twice and not is_zombies and not any(said.is_zombies for said in twice):
            raise Violation(f"alert {alert_id} of partition {partition} is said twice, and no zombie is among those who say it")
        if twice:
            self.world.count("repeats", alert_id)
        self.said.append(Said(alert_id, is_zombies))


class SimOutput:
    """``keystone.actors.outputs.Output``, with the rules of its ``TopicOutput``. ``checked_ms``: when the lease of a partition was last looked at."""

    def __init__(self, process: Process, topics: SimTopics, checked_ms: Mapping[int, int]) -> None:
        self.alerts = 0
        self.detect = LatencyHistogram()
        self._process, self._world, self._topics, self._checked_ms = process, process.world, topics, checked_ms
        self._epochs: dict[int, int] = {}
        self._known: set[str] = set()
        self._end = 0
        self._under_way: deque[tuple[Delivery, int, int]] = deque()
        self._done: deque[Delivery] = deque()
        self._strand = process.spawn("output", self._live)

    def own(self, epochs: Mapping[int, int], marks: Sequence[Mapping[str, Any]]) -> None:
        self._world.point("read what was said")
        if self._world.chance(self._world.rates.unavailable):
            self._world.count("unavailable", "what was said")
            raise LogUnreachable("what was said cannot be read")
        start = min((mark.get(ACTIONS_MARK, 0) for mark in marks), default=0)
        self._known |= {said.alert_id for said in self._topics.said[start:]}
        self._epochs |= epochs

    def disown(self, partition: int) -> None:
        """Nothing is kept of it."""

    def marks(self) -> dict[str, Any]:
        if self._world.rng.random() < 0.5:  # the question is not waited for
            self._end = len(self._topics.said)
        return {ACTIONS_MARK: self._end}

    def send(self, delivery: Delivery) -> None:
        self._world.point("send")
        delivery.alerts = [alert for alert in delivery.alerts if alert.alert_id not in self._known]
        partition = delivery.partition
        self._under_way.append((delivery, self._epochs[partition], self._checked_ms[partition]))
        self._world.wake(self._strand)

    def finished(self) -> Iterator[Delivery]:
        while self._done:
            yield self._done.popleft()

    def pending(self) -> int:
        return len(self._under_way)

    def flush(self) -> bool:
        return not self._under_way

    def close(self) -> None:
        """Nothing is open."""

    def _live(self) -> None:
        while True:
            while self._under_way:
                self._deliver(*self._under_way[0])
                self._done.append(self._under_way.popleft()[0])
            self._world.park()

    def _deliver(self, delivery: Delivery, epoch: int, checked_ms: int) -> None:
        for alert in delivery.alerts:
            self._world.point(f"say {alert.alert_id}")
            self._topics.say(alert.alert_id, delivery.partition, epoch, checked_ms)
            self.alerts += 1
            self._world.point(f"said {alert.alert_id}")
            if self._world.chance(self._world.rates.lost_answer):
                self._world.sleep(1_000)  # then it is looked up, and found
        for letter in delivery.dead_letters:
            self._topics.letters.add((letter.partition, letter.offset, letter.line, letter.reason))
        delivery.visible_ms = [float(self._world.now_ms)] * len(delivery.alerts)
