"""``--chaos``: which fault strikes what and when. Pure: text and seeds in, faults out; ``striking`` carries them out.

    kill:TARGET@TIME               SIGKILL
    freeze:TARGET:LENGTH@TIME      SIGSTOP, and SIGCONT after LENGTH
    FAULT,FAULT,...                each at its time, whatever else is going on
    random:SEED:EVERY              one fault every EVERY seconds, drawn from SEED; each waits until the one before is over

Times and lengths are seconds (``20s``, ``1.5s``, ``20``) or milliseconds (``500ms``); TIME is counted from the schedule's start.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from keystone.errors import UsageError

KILL, FREEZE = "kill", "freeze"
SESSION_ACTOR, COMMITTER, SUPERVISOR, FLEET, DRIVER = "session-actor", "committer", "supervisor", "fleet", "driver"
TARGETS: Final = (SESSION_ACTOR, COMMITTER, SUPERVISOR, FLEET, DRIVER)
EXAMPLE: Final = "kill:session-actor@10s,freeze:session-actor:5s@20s or random:7:8"

FREEZE_MAX_S: Final = 60.0
#: Players that stall report within 2 s, and silence of 10 s is an alert: devices kept from sending for longer than this
#: would really be silent, and the truth, which knows the schedule alone, would be wrong.
FLEET_FREEZE_MAX_S: Final = 6.0
EVERY_MIN_S: Final = 5.0  # 6 of 8 drawn faults end an actor: closer together, they are more deaths than a supervisor forgives
FROZEN_S: Final = (6.0, 9.0)  # of drawn ones: beyond the 5 s after which others take the partitions, so it comes back to be fenced

#: What is drawn: each cycle holds all of them once, in an order of its own. Session actors more often: recovery is about them.
CYCLE: Final = (
    (KILL, SESSION_ACTOR), (KILL, SESSION_ACTOR), (KILL, SESSION_ACTOR), (FREEZE, SESSION_ACTOR),
    (KILL, COMMITTER), (KILL, SUPERVISOR), (KILL, FLEET), (KILL, DRIVER),
)  # fmt: skip

_FAULT: Final = re.compile(r"(?P<action>[a-z]+):(?P<target>[a-z-]+)(?::(?P<length>[^:@]+))?@(?P<at>[^:@]+)")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s)?")


@dataclass(frozen=True, slots=True)
class Fault:
    """``at_s``: after the schedule's start, at the earliest. ``draw``: decides which of several processes. ``for_s``: how long frozen."""

    action: str
    target: str
    at_s: float
    for_s: float = 0.0
    draw: int = 0

    @property
    def kind(self) -> str:
        """What recoveries are grouped by."""
        return f"{self.action}:{self.target}"

    def __str__(self) -> str:
        length = f":{self.for_s:g}s" if self.action == FREEZE else ""
        return f"{self.kind}{length}@{self.at_s:g}s"


@dataclass(frozen=True, slots=True)
class Chaos:
    """``faults`` in order of time. ``waits``: a fault strikes only where everything is up and nothing is behind."""

    spec: str
    faults: tuple[Fault, ...]
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Process:
    """One that may be struck. ``partitions``: those it owns, or sends to; ``epochs``: of each that is owned below it."""

    target: str
    name: str
    pid: int
    partitions: tuple[int, ...] = ()
    epochs: tuple[tuple[int, int], ...] = ()


def parse(spec: str, *, seconds: float) -> Chaos:
    """The faults of a run of ``seconds``. Raises ``UsageError`` for what cannot be read, or would strike after the end."""
    if spec.startswith("random:"):
        return Chaos(spec, _random(spec, seconds), waits=True)
    faults = tuple(sorted((_fault(part.strip(), number) for number, part in enumerate(spec.split(","))), key=lambda fault: fault.at_s))
    for fault in faults:
        if fault.at_s >= seconds:
            raise UsageError(f"--chaos: {fault} would strike after the end of the run: choose a time below --seconds {seconds:g}")
    return Chaos(spec, faults)


def drawn(seed: int, every_s: float, seconds: float) -> tuple[Fault, ...]:
    """One fault in the first half of each stretch of ``every_s`` after the first. The same for the same seed, however long the run."""
    draw = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    faults: list[Fault] = []
    cycle: list[tuple[str, str]] = []
    number = 1
    while True:
        if not cycle:
            cycle = list(CYCLE)
            draw.shuffle(cycle)
        action, target = cycle.pop()
        at_s = round((number + draw.random() / 2) * every_s, 3)
        for_s = round(draw.uniform(*FROZEN_S), 3)
        fault = Fault(action, target, at_s, for_s if action == FREEZE else 0.0, draw.randrange(1 << 16))
        if at_s >= seconds:
            return tuple(faults)
        faults.append(fault)
        number += 1


def choose(fault: Fault, processes: Sequence[Process]) -> Process | None:
    """The process that a fault strikes: of those that own something, if any does. None where there is none of its kind."""
    found = sorted((p for p in processes if p.target == fault.target), key=lambda p: p.name)
    found = [p for p in found if p.partitions] or ([] if fault.target == SESSION_ACTOR else found)
    return found[fault.draw % len(found)] if found else None


def _random(spec: str, seconds: float) -> tuple[Fault, ...]:
    parts = spec.split(":")
    if len(parts) != 3 or not parts[1].isdigit():
        raise UsageError(f"--chaos {spec!r} is not random:SEED:EVERY, for example random:7:8")
    every_s = _seconds(parts[2], spec)
    if every_s < EVERY_MIN_S:
        raise UsageError(f"--chaos {spec!r}: a fault every {every_s:g} s is more than any supervisor forgives: at least every {EVERY_MIN_S:g} s")
    faults = drawn(int(parts[1]), every_s, seconds)
    if not faults:
        raise UsageError(f"--chaos {spec!r}: no fault would strike within --seconds {seconds:g}: a longer run, or a shorter EVERY")
    return faults


def _fault(text: str, number: int) -> Fault:
    found = _FAULT.fullmatch(text)
    if found is None or found["action"] not in (KILL, FREEZE):
        raise UsageError(f"--chaos: {text!r} is no fault, for example {EXAMPLE}")
    action, target, length = found["action"], found["target"], found["length"]
    if target not in TARGETS:
        raise UsageError(f"--chaos: {text!r}: there is no {target!r} to strike: choose of {', '.join(TARGETS)}")
    if (length is None) == (action == FREEZE):
        raise UsageError(f"--chaos: {text!r}: a freeze has a length and a kill has none, for example {EXAMPLE}")
    for_s = _seconds(length, text) if length is not None else 0.0
    most_s = FLEET_FREEZE_MAX_S if target == FLEET else FREEZE_MAX_S
    if action == FREEZE and not 0 < for_s <= most_s:
        raise UsageError(f"--chaos: {text!r}: a {target} may be frozen for up to {most_s:g} s")
    return Fault(action, target, _seconds(found["at"], text), for_s, number)


def _seconds(text: str, whole: str) -> float:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise UsageError(f"--chaos: {whole!r}: {text!r} is no time: write 20s, 1.5s or 500ms")
    return float(found[1]) * (0.001 if found[2] == "ms" else 1.0)
