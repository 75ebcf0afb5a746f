"""The devices of a run with faults, as the judge sees them: for each fleet actor one process that sends and one that follows."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Final

from keystone.actors.fleet import FleetSpec, FleetTotals
from keystone.actors.loop import FINISHED, READY, RUNNING
from keystone.bench.chaos import FLEET, Process
from keystone.bench.children import Child, ChildFailed
from keystone.bench.fleet_process import start_fleet, totals_of

CLOSE_MAX_S: Final = 30.0  # for the log's answers to what was sent last


class Relay:
    """``tend`` it often: where the leader was killed the follower leads, and another one follows."""

    def __init__(self, spec: FleetSpec, first_offsets: dict[int, int], config_file: str | None) -> None:
        self._spec, self._first_offsets, self._config_file = spec, first_offsets, config_file
        self._started = 0
        self._start_ms: float | None = None
        self._killed: set[int] = set()  # on purpose
        self.leader = self._start(leads=True)
        self.follower = self._start(leads=False)

    @property
    def name(self) -> str:
        return self._spec.name

    @property
    def partitions(self) -> tuple[int, ...]:
        return self._spec.partitions

    @property
    def status(self) -> dict[str, Any]:
        return self.leader.status()

    def process(self) -> Process:
        return Process(FLEET, self.leader.name, self.leader.pid, self.partitions)

    def children(self) -> list[Child]:
        return [self.leader, self.follower]

    def is_ready(self) -> bool:
        return all(child.status().get("state") in (READY, RUNNING) for child in self.children())

    def is_finished(self) -> bool:
        return bool(self.leader.status().get("state") == FINISHED)

    def go(self, start_ms: float) -> None:
        """Start the schedule at that wall time."""
        self._start_ms = start_ms
        for child in self.children():
            child.tell(go=start_ms)

    def note_kill(self) -> None:
        """The leader was killed on purpose."""
        self._killed.add(self.leader.pid)

    def tend(self) -> None:
        """Raises ``ChildFailed`` where a process ended that nobody had killed."""
        if self.leader.ended is not None and self.leader.pid in self._killed:
            self.follower.tell(lead=True)
            self.leader, self.follower = self.follower, self._start(leads=False)
        for child in self.children():
            if child.ended is not None and child.status().get("state") != FINISHED:
                raise ChildFailed(child.status().get("error") or f"{child.name} ended with status {child.ended}: {child.last_lines()}")

    def finish(self) -> None:
        """No more is sent: what is under way gets its outcome."""
        self.leader.tell(finish=True)
        until = time.monotonic() + CLOSE_MAX_S
        while not self.is_finished() and self.leader.ended is None and time.monotonic() < until:
            time.sleep(0.05)

    def totals(self) -> FleetTotals | None:
        """None where it did not finish."""
        return totals_of(self.status) if self.is_finished() else None

    def end(self) -> None:
        for child in self.children():
            child.end(0.0)

    def _start(self, *, leads: bool) -> Child:
        name = self._spec.name
        self._started += 1
        spec = replace(self._spec, name=f"{name}-{self._started}")
        child = start_fleet(spec, name, self._first_offsets, self._config_file, leads=leads)
        if self._start_ms is not None:
            child.tell(go=self._start_ms)
        return child
