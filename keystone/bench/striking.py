"""Carries faults out: finds the process, signals it, thaws what was frozen. Only processes that this one started, or that descend from them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psutil

from keystone.bench.chaos import COMMITTER, FREEZE, KILL, SESSION_ACTOR, SUPERVISOR, Chaos, Fault, Process, choose
from keystone.bench.chaos_report import Struck

#: Kinds of actors that a driver tells of, by what a fault calls them.
ACTOR_TARGETS: Final = {"session": SESSION_ACTOR, "committer": COMMITTER, "supervisor": SUPERVISOR}


def actors_of(status: dict[str, Any]) -> list[Process]:
    """Running actors, by a driver's last word."""
    wards = [ward for ward in status.get("wards", ()) if ward["state"] == "running" and not ward["is_down"] and not ward["is_lost"]]
    return [
        Process(ACTOR_TARGETS[ward["kind"]], ward["name"], ward["pid"], tuple(ward["partitions"]), tuple(epochs_of(ward).items()))
        for ward in wards
        if ward["kind"] in ACTOR_TARGETS
    ]


def epochs_of(ward: dict[str, Any]) -> dict[int, int]:
    """What an actor owns, as it last told."""
    return {int(partition): int(epoch) for partition, epoch in ward.get("epochs", {}).items()}


@dataclass(slots=True)
class Striker:
    """``due`` -> ``strike``; ``thaw`` often, and ``thaw(everything)`` at the end."""

    chaos: Chaos
    struck: list[Struck] = field(default_factory=list)
    _next: int = 0
    _frozen: list[tuple[float, psutil.Process]] = field(default_factory=list)  # until when (monotonic)

    def due(self, at_s: float) -> Fault | None:
        """The next fault, if it is time."""
        left = self.left()
        return left[0] if left and at_s >= left[0].at_s else None

    def left(self) -> tuple[Fault, ...]:
        """Those that did not strike yet."""
        return self.chaos.faults[self._next :]

    @property
    def has_frozen(self) -> bool:
        return bool(self._frozen)

    def strike(self, fault: Fault, processes: Sequence[Process], at_s: float) -> Struck | None:
        """Signal the process that the fault is for; None where there is none yet."""
        chosen = choose(fault, processes)
        process = _ours(chosen.pid) if chosen is not None else None
        if chosen is None or process is None:
            return None
        try:
            process.kill() if fault.action == KILL else process.suspend()
        except psutil.NoSuchProcess:
            return None
        if fault.action == FREEZE:
            self._frozen.append((time.monotonic() + fault.for_s, process))
        struck = Struck(fault, at_s, time.time() * 1_000, chosen.name, chosen.pid, chosen.partitions, dict(chosen.epochs))
        self.struck.append(struck)
        self._next += 1
        return struck

    def thaw(self, *, everything: bool = False) -> None:
        """Let go on what was frozen for long enough."""
        due = [(until_s, process) for until_s, process in self._frozen if everything or time.monotonic() >= until_s]
        for frozen in due:
            self._frozen.remove(frozen)
            with contextlib.suppress(psutil.NoSuchProcess):
                frozen[1].resume()


def _ours(pid: int) -> psutil.Process | None:
    """The process, if it lives and descends from this one."""
    try:
        process = psutil.Process(pid)
        is_ours = os.getpid() in (parent.pid for parent in process.parents()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if is_ours else None
