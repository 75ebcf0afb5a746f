"""u: how fast one thread of polars.read_ndjson reads the simulator's events here, in events a second of CPU time.

Machines differ and are noisy; a rate in u does not. Measured in a process of its own, so that POLARS_MAX_THREADS=1
holds whatever this process has loaded.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

UNIT_EVENTS = 200_000  # ~50 MB: beyond the caches, 0.3 s a reading
READINGS = 5
SAMPLE_S = 20  # of schedule: the mix of kinds is that of a run, not of its first second


@dataclass(frozen=True, slots=True)
class Unit:
    """events/s of CPU time, the median of ``readings``; bytes an event."""

    events_per_s: float
    bytes_per_event: float
    readings: tuple[float, ...]


def measure_unit() -> Unit:
    """Run this module in a process with one-threaded polars."""
    environment = {**os.environ, "POLARS_MAX_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "keystone.bench.unit"], env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the unit could not be measured: {(done.stderr.splitlines() or ['no message'])[-1]}")
    found = json.loads(done.stdout)
    return Unit(found["events_per_s"], found["bytes_per_event"], tuple(found["readings"]))


def _read_repeatedly() -> Unit:
    import io

    import polars as pl

    lines, events = sample_lines(UNIT_EVENTS)
    rates = []
    for _ in range(READINGS):
        began_s = time.process_time()
        rows = pl.read_ndjson(io.BytesIO(lines)).height
        rates.append(rows / (time.process_time() - began_s))
        if rows != events:
            raise RuntimeError(f"polars read {rows:,} rows of {events:,} events")
    return Unit(statistics.median(rates), len(lines) / events, tuple(round(r) for r in rates))


def sample_lines(events_min: int, seed: int = 1) -> tuple[bytes, int]:
    """At least ``events_min`` simulated events as NDJSON, and how many."""
    from keystone.sim.fleet import PartitionFleet
    from keystone.sim.plan import FleetPlan

    fleet = PartitionFleet(FleetPlan(eps=events_min / SAMPLE_S, seconds=SAMPLE_S, devices=events_min // 4, seed=seed, partitions=1), 0)
    texts = []
    while (frames := fleet.tick()) is not None:
        texts.append(frames.lines.tobytes())
    return b"".join(texts), fleet.events


if __name__ == "__main__":
    print(json.dumps(asdict(_read_repeatedly())))  # noqa: T201 - the parent reads it
