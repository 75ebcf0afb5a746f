"""One schedule: a world with devices, owners, a committer and a supervisor; faults, then none; then what must have come out of it."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable

from tests import corpus, dirty
from tests.reference import Result, decode_line, partition_of, reference_log
from tests.simulation.lake import SimCatalog
from tests.simulation.oracles import check_all, is_complete
from tests.simulation.owners import DETECTION, RULES, Place
from tests.simulation.storage import SimDisk, SimLog, SimStore
from tests.simulation.supervisor import Supervisor
from tests.simulation.world import START_MS, Process, World

PARTITIONS = 3
EVENTS = 64
LINES = 40
HEAT = 3  # more tries to hit the partition that is hot
FAULTS_MS = 12_000  # then they end
QUIET_MS = 120_000  # after which everything must be where it belongs
AFTERWARDS_MS = 3_000  # for whatever comes too late, or twice
FAR_MS = 1 << 50
EDGES = (0, 2**53 - 1, 1.5e12)
BROKEN = [line for line in corpus.SMALL if not isinstance(decode_line(line), dict)]  # dead letters, and blank lines


class Devices(Process):
    """They append, and never fail: what is in the log is what counts."""

    def __init__(self, place: Place) -> None:
        super().__init__(place.world, "devices")
        self.is_done = False
        self._log = place.log
        self._hot = place.world.rng.choice((None, None, *range(PARTITIONS)))  # most events go there
        self.spawn("append", self._live)

    def _live(self) -> None:
        world, rng = self.world, self.world.rng
        at = 0
        while at < EVENTS:
            frames: dict[int, list[bytes]] = {}
            for _ in range(rng.randrange(1, 9)):
                partition, line = _line(rng, at)
                for _ in range(HEAT if self._hot is not None else 0):
                    if partition != self._hot:
                        partition, line = _line(rng, at)
                frames.setdefault(partition, []).append(line)
                at += 1
            for partition, lines in frames.items():
                self._log.append(partition, b"\n".join(lines))
            world.sleep(rng.choice((5, 100, 400, 2_000)))
        self.is_done = True


@functools.cache
def _events(at: int) -> list[tuple[int, bytes]]:
    """Lines that may come at one place in the stream, with their partitions. Few, so that the slow reference reads each but once."""
    rng = random.Random(at)
    found = []
    for _ in range(LINES):
        event = dirty.event(rng, at)
        if event["ts"] in EDGES:  # two sessions that begin with such a ts would have alerts of the same id
            event["ts"] = dirty.TS + at * 700
        if rng.random() < 0.3:
            event["event"] = "Buffer"
        found.append((partition_of(str(event["device_id"]), PARTITIONS), json.dumps(event).encode()))
    return found


_decoded = functools.cache(decode_line)


def _line(rng: random.Random, at: int) -> tuple[int, bytes]:
    if rng.random() < 0.06:
        return rng.randrange(PARTITIONS), rng.choice(BROKEN)
    return rng.choice(_events(at))


class Schedule:
    """Everything that one seed brings about. ``run`` raises ``Violation`` where a promise is broken."""

    def __init__(self, seed: int, *, is_torn: bool = False, tell: Callable[[str], None] | None = None) -> None:
        self.world = World(seed, tell)
        store, disk = SimStore(self.world, is_torn=is_torn), SimDisk(self.world, is_torn)
        self.place = Place(self.world, store, SimLog(self.world, store, PARTITIONS), SimCatalog(self.world, disk))
        self.devices = Devices(self.place)
        rng = self.world.rng
        self.place.log.partitions_seen = rng.choice((PARTITIONS, PARTITIONS - 1))
        self._wanted = rng.choice((1, 2, 2, 2, 3))
        self.supervisor = self._supervisor()
        changes = (self._regrow, self._want, self._restart_all, self._replace_supervisor, self._double_committer)
        times = sorted(self.world.now_ms + rng.randrange(1_000, FAULTS_MS) for _ in range(3))
        self._changes = [(now_ms, rng.choice(changes)) for now_ms in times]

    def run(self) -> World:
        world = self.world
        try:
            self._run_until(lambda: world.now_ms > START_MS + FAULTS_MS)
            self.place.log.partitions_seen = PARTITIONS
            world.end_faults()
            self._run_until(lambda: self.devices.is_done)
            expected = reference_log(self.place.log.journal, end_log_time=FAR_MS, decode=_decoded, **RULES, **DETECTION)
            self._settle(expected)
            check_all(self.place, self.supervisor, expected)
        finally:
            world.close()
        return world

    def _settle(self, expected: Result) -> None:
        """Until all is where it belongs; then a while longer, for what comes too late; and hand-overs that began meanwhile to their end."""
        self._run_until_complete(expected)
        until_ms = self.world.now_ms + AFTERWARDS_MS
        self._run_until(lambda: self.world.now_ms > until_ms)
        self._run_until_complete(expected)

    def _run_until_complete(self, expected: Result) -> None:
        until_ms = self.world.now_ms + QUIET_MS
        while not is_complete(self.place, self.supervisor, expected) and self.world.now_ms < until_ms:
            for _ in range(20):
                self.world.step()

    def _run_until(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            while self._changes and self._changes[0][0] <= self.world.now_ms:
                self._changes.pop(0)[1]()
            self.world.step()

    # --- what people do ---------------------------------------------------------------------------------------------------
    def _supervisor(self) -> Supervisor:
        return Supervisor(self.place, self._wanted + 1, self._wanted, self.place.log.partitions_seen)

    def _regrow(self) -> None:
        self.world.count("partitions added")
        self.place.log.partitions_seen = PARTITIONS

    def _want(self) -> None:
        self._wanted = self.world.rng.choice((1, 2, 3))
        self.world.count("owners changed", str(self._wanted))
        self.supervisor.want(self._wanted)

    def _replace_supervisor(self) -> None:
        self.world.count("supervisor replaced")
        before = self.supervisor
        self.world.kill(before, "its process")
        self.world._reap()
        self.supervisor = Supervisor(self.place, 0, self._wanted, self.place.log.partitions_seen, before)

    def _double_committer(self) -> None:
        self.world.count("committers doubled")
        self.supervisor.double_committer()

    def _restart_all(self) -> None:
        self.world.count("run restarted")
        supervisor = self.supervisor
        self.world.kill(supervisor, "run killed")
        for process in list(self.world.processes):
            if process not in (supervisor, self.devices) and not process.is_dead:
                self.world.kill(process, "run killed")
        self.world._reap()
        self.supervisor = self._supervisor()


def run(seed: int, *, is_torn: bool = False, tell: Callable[[str], None] | None = None) -> World:
    """One schedule. Raises ``Violation``; the world tells what happened in it."""
    return Schedule(seed, is_torn=is_torn, tell=tell).run()


def replay_command(seed: int, mutation: str = "none") -> str:
    """What shows every step of it again."""
    return f"python -m tests.simulation --seed {seed}{f' --mutation {mutation}' if mutation != 'none' else ''} -v"
