"""The simulated world: one clock, one scheduler, processes that crash, freeze and are cut off, all by one seed.

Time stands still while anything runs. The scheduler picks by chance among the strands and letters that are ready; where none is,
time goes on to the next that will be. Whatever touches something outside of its process says so by ``World.point``, before and
after: there it may be killed, frozen with its whole process, or just have to wait while others go on.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tests.simulation.strands import Killed, Strand

START_MS = 1_790_000_000_000
NEVER_MS = 1 << 62
STEPS_MAX = 60_000  # of a schedule: ~20 times what one takes


class Violation(BaseException):
    """A promise was broken. Nothing that handles errors may handle it."""


@dataclass(frozen=True)
class Rates:
    """How likely what is, at each point. All 0: nothing goes wrong."""

    crash: float = 0.0
    freeze: float = 0.0
    cut_off: float = 0.0
    pause: float = 0.0
    unavailable: float = 0.0
    lost_answer: float = 0.0

    @classmethod
    def drawn(cls, rng: random.Random) -> Rates:
        """Schedules differ: many faults of one kind find other things than some of each."""

        def rate(highest: float) -> float:
            return highest * rng.choice((0.0, 0.1, 0.4, 1.0))

        return cls(rate(0.006), rate(0.006), rate(0.004), rng.choice((0.02, 0.1, 0.3)), rate(0.06), rate(0.06))


NO_FAULTS = Rates(pause=0.02)


class Process:
    """What dies, and freezes, as a whole."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.is_dead = False
        self.frozen_until_ms = self.cut_off_until_ms = 0
        self.strands: list[Strand] = []
        world.processes.append(self)

    @property
    def is_frozen(self) -> bool:
        return self.frozen_until_ms > self.world.now_ms

    @property
    def is_cut_off(self) -> bool:
        return self.cut_off_until_ms > self.world.now_ms

    def spawn(self, name: str, run: Callable[[], None], delay_ms: int = 0) -> Strand:
        strand = Strand(f"{self.name} {name}", run)
        strand.wake_ms = self.world.now_ms + delay_ms
        self.strands.append(strand)
        return strand

    def died(self) -> None:
        """For subclasses: what the rest of the world does about it."""


class WorldClock:
    """The world's time as the program asks for it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def now_ms(self) -> int:
        return self._world.now_ms


class Mailbox:
    """Letters to a process (or, None, to nobody that can fail), in the order of sending; each after some time."""

    def __init__(self, world: World, to: Process | None) -> None:
        self.to, self._world = to, world
        self.letters: deque[tuple[int, Callable[[], None]]] = deque()

    def send(self, open_it: Callable[[], None], delay_ms: int) -> None:
        if not self.letters:
            self._world.mailboxes.append(self)
        last_ms = self.letters[-1][0] if self.letters else 0
        self.letters.append((max(last_ms, self._world.now_ms + delay_ms), open_it))

    @property
    def due_ms(self) -> int:
        """When the next one can be opened, as far as is known. There is one."""
        return max(self.letters[0][0], self.to.frozen_until_ms, self.to.cut_off_until_ms) if self.to is not None else self.letters[0][0]


class World:
    """``now_ms`` is log time, wall time and (``now_s``) monotonic time of everybody."""

    def __init__(self, seed: int, tell: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now_ms = START_MS
        self.clock = WorldClock(self)
        self.rates = Rates.drawn(self.rng)
        self.processes: list[Process] = []
        self.mailboxes: list[Mailbox] = []
        self.at_end: list[Callable[[], None]] = []
        self.steps = 0
        self.counts: dict[str, int] = {}
        self._tell = tell
        self._running: tuple[Process, Strand] | None = None
        self._calm = 0
        self._dead: list[Process] = []

    # --- time -----------------------------------------------------------------------------------------------------------
    def now_s(self) -> float:
        return self.now_ms / 1_000

    # --- from inside strands ---------------------------------------------------------------------------------------------
    @property
    def running(self) -> Process:
        assert self._running is not None
        return self._running[0]

    def point(self, label: str) -> None:
        """Something is about to be touched, or was just touched: anything may come between."""
        process, strand = self._here()
        if self._tell is not None:
            self.tell(label)
        draw, rates = self.rng.random(), self.rates
        if draw >= rates.crash + rates.freeze + rates.cut_off + rates.pause:
            return
        if draw < rates.crash:
            self.kill(process, label)
            raise Killed
        draw -= rates.crash
        if draw < rates.freeze:
            self.freeze(process, label)
        elif draw < rates.freeze + rates.cut_off:
            self.count("cut off", label)
            process.cut_off_until_ms = self.now_ms + self.rng.randrange(1_000, 9_000)
            return
        else:
            strand.wake_ms = self.now_ms + self.rng.choice((0, 0, 1, 20, 300))
        strand.pause()

    def sleep(self, wait_ms: int) -> None:
        _, strand = self._here()
        strand.wake_ms = self.now_ms + wait_ms
        strand.pause()

    def wait_for(self, is_so: Callable[[], bool], every_ms: int) -> None:
        while not is_so():
            self.sleep(every_ms)

    def park(self) -> None:
        """Until ``wake``."""
        _, strand = self._here()
        strand.wake_ms = NEVER_MS
        strand.pause()

    def wake(self, strand: Strand) -> None:
        strand.wake_ms = min(strand.wake_ms, self.now_ms)

    def chance(self, rate: float) -> bool:
        return rate > 0 and self._calm == 0 and self.rng.random() < rate

    def calmly(self, run: Callable[[], None]) -> None:
        """Without refusals and lost answers: where the program promises nothing about them."""
        self._calm += 1
        try:
            run()
        finally:
            self._calm -= 1

    def _here(self) -> tuple[Process, Strand]:
        assert self._running is not None
        if self._running[0].is_dead:
            raise Killed
        return self._running

    # --- faults -------------------------------------------------------------------------------------------------------------
    def kill(self, process: Process, where: str) -> None:
        """Nothing of it is left but what it wrote."""
        self.count("killed", f"{process.name} {where}")
        process.is_dead = True
        self._dead.append(process)
        process.died()

    def freeze(self, process: Process, where: str) -> None:
        self.count("frozen", f"{process.name} {where}")
        process.frozen_until_ms = self.now_ms + self.rng.choice((300, 2_500, 6_000, 9_000, 15_000))

    def end_faults(self) -> None:
        self.rates = NO_FAULTS
        for process in self.processes:
            process.frozen_until_ms = process.cut_off_until_ms = 0

    # --- the scheduler ---------------------------------------------------------------------------------------------------------
    def step(self) -> None:
        """Let one that is ready go on, or time pass until one is."""
        self.steps += 1
        if self.steps > STEPS_MAX:
            raise Violation(f"not over after {STEPS_MAX:,} steps")
        ready, next_ms = self._look()
        if not ready:
            if next_ms == NEVER_MS:
                raise Violation("everything waits for something that will not come")
            self.now_ms = next_ms
            return
        chosen = ready[self.rng.randrange(len(ready))] if len(ready) > 1 else ready[0]
        if isinstance(chosen, Mailbox):
            _, open_it = chosen.letters.popleft()
            if not chosen.letters:
                self.mailboxes.remove(chosen)
            open_it()
        else:
            self._resume(*chosen)
        self._reap()

    def _look(self) -> tuple[list[tuple[Process, Strand] | Mailbox], int]:
        """What is ready, and when the next will be."""
        ready: list[tuple[Process, Strand] | Mailbox] = []
        now_ms, next_ms = self.now_ms, NEVER_MS
        for process in self.processes:
            if process.frozen_until_ms > now_ms:
                next_ms = min(next_ms, process.frozen_until_ms)
                continue
            for strand in process.strands:
                if strand.wake_ms <= now_ms:
                    ready.append((process, strand))
                elif strand.wake_ms < next_ms:
                    next_ms = strand.wake_ms
        for mailbox in self.mailboxes:
            due_ms = mailbox.due_ms
            if due_ms <= now_ms:
                ready.append(mailbox)
            elif due_ms < next_ms:
                next_ms = due_ms
        return ready, next_ms

    def _resume(self, process: Process, strand: Strand) -> None:
        self._running, before = (process, strand), self._running
        try:
            strand.resume()
        finally:
            self._running = before
        if strand.is_over:
            process.strands.remove(strand)

    def _reap(self) -> None:
        while self._dead:
            self._bury(self._dead.pop())

    def _bury(self, process: Process) -> None:
        process.is_dead = True
        for strand in process.strands:
            self._running, before = (process, strand), self._running
            try:
                strand.kill()
            finally:
                self._running = before
        process.strands = []
        self.processes.remove(process)
        self.mailboxes = [mailbox for mailbox in self.mailboxes if mailbox.to is not process]

    def close(self) -> None:
        """Give every thread back."""
        while self.processes:
            self._bury(self.processes[-1])
        while self.at_end:
            self.at_end.pop()()

    # --- telling ----------------------------------------------------------------------------------------------------------------
    def count(self, what: str, detail: str = "") -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        if self._tell is not None:
            self.tell(f"*** {what}: {detail}")

    def tell(self, line: str) -> None:
        if self._tell is not None:
            who = self._running[1].name if self._running is not None else "world"
            self._tell(f"{(self.now_ms - START_MS) / 1_000:8.3f} {who:24} {line}")
