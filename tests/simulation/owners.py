"""The process of a session actor: the real ``Owner``, its checkpoints' steps, its leases; and the process of a committer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from keystone.actors.committer import COMMITTER, Committing
from keystone.actors.durable import RETRY_EVERY_S, Finishing, Taken
from keystone.actors.leases import LEASE_S, LOOK_EVERY_S
from keystone.actors.loop import FAILED, NEW, RUNNING
from keystone.actors.owned import Echo
from keystone.actors.owner import Owner, Rules
from keystone.checkpoint import Checkpoints
from keystone.config import BalanceConfig, CheckpointConfig, Config, DetectionConfig, SessionConfig
from keystone.decode import Decoder, Dictionaries
from keystone.errors import Fenced, SinkBusy, StoreUnavailable
from tests.simulation.lake import SimCatalog, SimLakeWriter, SimSideFiles, SimTables
from tests.simulation.outputs import SimOutput, SimTopics
from tests.simulation.storage import SimLog, SimStore
from tests.simulation.world import Process, Violation, World

RULES = {"timeout_ms": 3_000, "grace_ms": 700}
DETECTION = {"loop_threshold": 3, "open_stall_ms": 1_000}
CONFIG = Config(
    session=SessionConfig(**RULES), detection=DetectionConfig(**DETECTION), checkpoint=CheckpointConfig(interval_ms=2_500),
    balance=BalanceConfig(window_ms=1_000, patience_ms=300, uneven_percent=105, gain_percent=5, partition_cost_eps=1),
)  # fmt: skip


_DECODERS: list[Decoder] = []  # that no process has now: its memory costs 10 ms to touch first


def decoder_of(process: Process, seed: int) -> Decoder:
    """As good as new: what it keeps is memory, and learned spelling, which costs time only."""
    decoder = _DECODERS.pop() if _DECODERS else Decoder(seed=seed)
    decoder.dictionaries = Dictionaries(seed=seed)
    decoder.holders.clear()
    process.world.at_end.append(lambda: _DECODERS.append(decoder))
    return decoder


class Place:
    """All that outlives processes."""

    def __init__(self, world: World, store: SimStore, log: SimLog, catalog: SimCatalog) -> None:
        self.world, self.store, self.log, self.catalog = world, store, log, catalog
        self.topics = SimTopics(world, store)


class SimLeases:
    """The rule of ``keystone.actors.leases.Leases`` with a strand instead of its thread."""

    def __init__(self, process: Process, checkpoints: Checkpoints) -> None:
        self.checked_ms: dict[int, int] = {}
        self._world, self._checkpoints = process.world, checkpoints
        self._held: dict[str, int] = {}
        self._seen_s: dict[str, float] = {}
        self._fenced: Fenced | None = None
        process.spawn("leases", self._live)

    def hold(self, key: str, epoch: int, since_s: float) -> None:
        self._held[key], self._seen_s[key] = epoch, since_s

    def drop(self, key: str) -> None:
        self._held.pop(key, None)
        self._seen_s.pop(key, None)

    def is_held(self, key: str) -> bool:
        if self._fenced is not None:
            raise self._fenced
        is_held = self._world.now_s() - self._seen_s[key] < LEASE_S or self._look(key, self._held[key])
        if is_held:
            self.checked_ms[int(key[1:])] = self._world.now_ms
        return is_held

    def _look(self, key: str, epoch: int) -> bool:
        asked_s = self._world.now_s()
        try:
            self._checkpoints.check(key, epoch)
        except StoreUnavailable:
            return False
        if self._held.get(key) == epoch:
            self._seen_s[key] = asked_s
        return True

    def _live(self) -> None:
        while True:
            self._world.sleep(int(LOOK_EVERY_S * 1_000))
            for key, epoch in list(self._held.items()):
                try:
                    self._look(key, epoch)
                except Fenced as error:
                    if self._held.get(key) == epoch:
                        self._fenced = error


class SimSaving:
    """``CheckpointThread`` with a strand instead of its thread."""

    def __init__(self, process: Process, finishing: Finishing) -> None:
        self._world, self._finishing = process.world, finishing
        self._work: deque[Taken] = deque()
        self._done: deque[Taken] = deque()
        self._error: Exception | None = None
        self._strand = process.spawn("saving", self._live)

    def put(self, taken: Taken) -> None:
        self._check()
        self._work.append(taken)
        self._world.wake(self._strand)

    def finished(self) -> Iterator[Taken]:
        self._check()
        while self._done:
            yield self._done.popleft()

    def has_room(self) -> bool:
        return True

    def wait(self, wait_s: float) -> bool:
        raise NotImplementedError

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _live(self) -> None:
        while True:
            while self._work:
                try:
                    self._finish(self._work.popleft())
                except Exception as error:  # noqa: BLE001 - it ends the owner, in its own strand
                    self._error = error
            self._world.park()

    def _finish(self, taken: Taken) -> None:
        if taken.cut is not None:
            self._world.wait_for(lambda: taken.cut.wait(0), 50)
        self._finishing.complete(taken)
        while True:
            try:
                self._finishing.save(taken)
            except StoreUnavailable:
                self._world.sleep(int(RETRY_EVERY_S * 1_000))
            else:
                self._done.append(taken)
                return


class Actor(Process):
    """What a supervisor watches. It fails, or is fenced, as ``LoopActor`` does."""

    incarnations = 0

    def __init__(self, place: Place, name: str, delay_ms: int) -> None:
        super().__init__(place.world, name)
        self.place = place
        self.state, self.error, self.is_fenced = NEW, "", False
        self.on_death: Callable[[], None] = lambda: None
        self.incarnation = f"{name}-{len(place.store.objects)}-{place.world.steps}"
        self.spawn("loop", self._live, delay_ms)

    def died(self) -> None:
        self.on_death()

    def status(self) -> dict[str, Any]:
        return {"state": self.state, "error": self.error, "is_fenced": self.is_fenced, "incarnation": self.incarnation}

    def build(self) -> None:
        raise NotImplementedError

    def turn(self) -> int:
        """Returns how long to sleep, ms."""
        raise NotImplementedError

    def _live(self) -> None:
        try:
            self.world.calmly(self.build)
            self.state = RUNNING
            while True:
                self.world.sleep(self.turn())
        except Fenced as error:
            self.state, self.error, self.is_fenced = FAILED, str(error), True
            self.world.count("fenced", str(error))
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"{self.name} would fail the run: {type(error).__name__}: {error}") from error


class OwnerProcess(Actor):
    def __init__(self, place: Place, name: str, delay_ms: int = 0) -> None:
        self.orders: deque[tuple[str, Any]] = deque()
        self.owner: Owner | None = None
        super().__init__(place, name, delay_ms)

    def build(self) -> None:
        place = self.place
        checkpoints = Checkpoints(place.store)
        decoder = decoder_of(self, checkpoints.seed())
        leases = SimLeases(self, checkpoints)
        side_files = SimSideFiles(place.catalog.disk)
        self.owner = Owner(
            self.incarnation, CONFIG, Rules({}, lake_ends=self._lake_ends), place.log, decoder, checkpoints,
            output=SimOutput(self, place.topics, leases.checked_ms), saving=SimSaving(self, Finishing(checkpoints, side_files)),
            leases=leases, lake=SimLakeWriter(self, place.catalog.disk), has_side_files=True, clock=self.world.clock, now_s=self.world.now_s,
        )  # fmt: skip

    def _lake_ends(self) -> dict[int, Echo]:
        ends = SimTables(self.place.catalog).committed()
        return {partition: Echo(link.next_offset, link.next_sequence, link.log_time_ms) for partition, link in ends.items()}

    def turn(self) -> int:
        assert self.owner is not None
        self.owner.obey(self.orders)
        self.owner.turn()
        return self.world.rng.choice((50, 300, 900)) if self.owner.owned else 200

    def status(self) -> dict[str, Any]:
        owned, let_go = (self.owner.owned, dict(self.owner.let_go)) if self.owner is not None else ({}, {})
        loads = {partition: one.load.events_per_s for partition, one in owned.items() if one.load.events_per_s is not None}
        return super().status() | {"partitions": list(owned), "let_go": let_go, "loads": loads, "log_partitions": self.place.log.partitions_now()}


class CommitterProcess(Actor):
    def __init__(self, place: Place, name: str, delay_ms: int = 0) -> None:
        self.committing: Committing | None = None
        self._checkpoints = Checkpoints(place.store)
        super().__init__(place, name, delay_ms)

    def build(self) -> None:
        epoch = self._checkpoints.claim(COMMITTER, self.incarnation)
        self.committing = Committing(self._checkpoints, SimTables(self.place.catalog), epoch, self.world.clock)

    def turn(self) -> int:
        assert self.committing is not None
        try:
            found = [self._checkpoints.header(partition) for partition in self._checkpoints.partitions()]
            self.committing.turn([header for header in found if header is not None])
        except (SinkBusy, StoreUnavailable) as error:
            self.world.count("nothing committed", str(error))
        return self.world.rng.choice((500, 1_500))

    def status(self) -> dict[str, Any]:
        return super().status() | {"committed": dict(self.committing.committed) if self.committing is not None else {}}
