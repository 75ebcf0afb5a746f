"""What a simulated event costs: device model and encoding, against libraries that write the same events.

    python benchmarks/simulator.py [--eps 1000000] [--devices 5000000] [--seconds 6] [--partitions 8] [--json FILE]

CPU time of this process, one thread. Up to 12 s of the schedule pass first: in the first report interval every event is a session's
first and carries all fields. *whole* is what a fleet actor does before it appends, Python per tick included; *model*
calls the device kernel alone, *encode* the encoder alone on the rows of one call, again and again.
The rivals write the same events from ready-made dicts (orjson) and columns (polars): the model is given to them.
"""

# ruff: noqa: SLF001 - it measures the parts by themselves
from __future__ import annotations

import argparse
import io
import os
import time
from typing import Any

os.environ["POLARS_MAX_THREADS"] = "1"  # as the kernels are; read when polars is imported

import orjson
import polars as pl
import psutil

from benchmarks.measure import cpu_seconds, report
from keystone.kernels import devices, encode, seats
from keystone.sim.fleet import PartitionFleet
from keystone.sim.plan import FleetPlan
from keystone.sim.write import sample

WARM_S = 12.0
CALLS = 100  # of a kernel, in one turn
SAMPLE = 200_000  # events that the rivals write


def whole(fleets: list[PartitionFleet], ticks: int) -> dict[str, Any]:
    """The next ``ticks`` ticks of all partitions in turn."""
    events, size = sum(f.events for f in fleets), sum(f.bytes for f in fleets)
    began = time.process_time()
    for _ in range(ticks):
        for fleet in fleets:
            fleet.tick()
    spent = time.process_time() - began
    events = sum(f.events for f in fleets) - events
    return row("whole", spent, events, (sum(f.bytes for f in fleets) - size) / events)


def parts(fleet: PartitionFleet) -> list[dict[str, Any]]:
    """Model and encoder alone, on one partition's seats. Spoils the fleet for anything else."""
    chunk = fleet._events.size // seats.EVENT

    def model() -> None:
        for _ in range(CALLS):
            fleet._room_for_truth(2 * chunk)
            devices.advance(fleet._fleet, fleet._model, chunk, 0, 10 << 10, 1_000, fleet._events, fleet._intended, fleet._truth)

    def encoding() -> None:
        for _ in range(CALLS):
            encode.encode(fleet._events, chunk, fleet._texts, 1_790_000_000_000, fleet._text, 0, 1 << 30, fleet._frames, 0)

    return [row(work.__name__, cpu_seconds(work), CALLS * chunk) for work in (model, encoding)]


def rivals() -> list[dict[str, Any]]:
    """Libraries, on the same kind of events."""
    text = sample(SAMPLE)
    dicts = [orjson.loads(line) for line in text.splitlines()]
    frame = pl.read_ndjson(io.BytesIO(text), infer_schema_length=None)
    ways = {
        "orjson.dumps of dicts": lambda: [orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE) for event in dicts],
        "polars write_ndjson": lambda: frame.write_ndjson(io.BytesIO()),
    }
    return [row(name, cpu_seconds(work), SAMPLE) for name, work in ways.items()]


def row(part: str, seconds: float, events: int, size: float | None = None) -> dict[str, Any]:
    return {"part": part, "us_per_event": round(seconds / events * 1e6, 4), "events_per_cpu_s": round(events / seconds), "bytes_per_event": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, default=1_000_000)
    parser.add_argument("--devices", type=int, default=5_000_000)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--json")
    given = parser.parse_args()
    plan = FleetPlan(eps=given.eps, devices=given.devices, seconds=WARM_S + given.seconds, partitions=given.partitions)
    PartitionFleet(FleetPlan(eps=100, devices=1_000, seconds=1, partitions=1), 0).tick()  # compiles, loads
    before = psutil.Process().memory_info().rss
    began = time.process_time()
    fleets = [PartitionFleet(plan, p) for p in range(plan.partitions)]
    built_s = time.process_time() - began
    warm_ticks = int(min(WARM_S, plan.beat_ms * 1.2 / 1_000) * 1_000 / plan.tick_length_ms)
    whole(fleets, warm_ticks)
    held = psutil.Process().memory_info().rss - before
    seated = sum(f.seats for f in fleets)
    rows = [whole(fleets, int(given.seconds * 1_000 / plan.tick_length_ms)), *parts(fleets[0]), *rivals()]
    more = {"devices": given.devices, "seats": seated, "build_cpu_s": round(built_s, 2), "rss_bytes_per_seat": round(held / seated, 1)}
    report("simulator", rows, given.json, **more)
    print(more)


if __name__ == "__main__":
    main()
