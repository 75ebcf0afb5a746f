"""How fast this machine is at what we do: simulate, decode, keep sessions, detect; in as many processes as cores, all at once.

u, one thread of somebody else's code, sees neither what busy cores take from each other nor what memory does to our tables. On a machine that is shared
with others both change from one minute to the next: this is the middle one of a few windows.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from keystone.bench.machine import usable_cores

if TYPE_CHECKING:
    from keystone.pipeline import PartitionPipeline
    from keystone.sim.fleet import PartitionFleet

EPS: Final = 500_000  # of the simulated clock, which does not wait: 5,000 events a tick
DEVICES: Final = 400_000  # a process: tables far beyond the caches, as in a run
WARM_S: Final = 1.5  # dictionaries, tables, branch history
WINDOW_S, WINDOWS = 2.0, 5
SCHEDULE_S: Final = 3_600  # more than is ever used


def measure_speed() -> float:
    """events/s of one core with all of them busy; 15 s. Raises ``RuntimeError`` where it cannot be measured."""
    command = [sys.executable, "-m", "keystone.bench.speed"]
    cores = usable_cores()
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(cores)]  # noqa: S603 - our own
    try:
        ready = [process.stdout.readline() for process in started if process.stdout is not None]
        for process in started if all(ready) else ():
            print("go", file=process.stdin, flush=True)
        told = [process.communicate()[0] for process in started]
    finally:
        for process in started:
            process.kill()
    if not all(told):
        raise RuntimeError("the speed of this machine could not be measured: see the message above")
    windows: list[list[float]] = [json.loads(line) for line in told]
    return float(statistics.median(sum(one) / cores for one in zip(*windows, strict=True)))


class Work:
    """A partition's devices, and the pipeline that takes what they send."""

    def __init__(self) -> None:
        from keystone.config import Config
        from keystone.decode import Decoder
        from keystone.pipeline import PartitionPipeline
        from keystone.sim.fleet import PartitionFleet
        from keystone.sim.plan import FleetPlan

        self._plan = FleetPlan(eps=EPS, seconds=SCHEDULE_S, devices=DEVICES, seed=1, partitions=1)
        self._fleet: PartitionFleet = PartitionFleet(self._plan, 0)
        self._pipeline: PartitionPipeline = PartitionPipeline(0, Decoder(), Config(), sessions_expected=DEVICES)
        self._offset = 0

    def go_on(self, seconds: float) -> float:
        """Work for so long; events/s."""
        from keystone.events import Records

        began_s, before = time.perf_counter(), self._fleet.events
        while (since_s := time.perf_counter() - began_s) < seconds:
            frames = self._fleet.tick()
            if frames is None:
                break
            offsets = np.arange(self._offset, self._offset + len(frames), dtype=np.int64)
            self._offset += len(frames)
            append_ts_ms = np.full(len(frames), self._plan.epoch_ms + frames.due_ms, np.int64)
            self._pipeline.step(Records(0, frames.text, frames.starts, frames.ends, offsets, append_ts_ms, self._offset))
        return (self._fleet.events - before) / since_s


def main() -> None:
    """One process: ready, wait, measure, tell."""
    work = Work()
    work.go_on(WARM_S)
    print("ready", flush=True)  # noqa: T201 - the parent reads it
    sys.stdin.readline()
    print(json.dumps([round(work.go_on(WINDOW_S)) for _ in range(WINDOWS)]))  # noqa: T201


if __name__ == "__main__":
    main()
