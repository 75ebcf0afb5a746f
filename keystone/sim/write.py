"""Simulated events as one NDJSON file: ``python -m keystone.sim.write --events 4000000 --out FILE [--seed N]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from keystone.errors import UsageError
from keystone.events import U8
from keystone.sim.fleet import PartitionFleet
from keystone.sim.plan import FleetPlan

EVENTS_PER_DEVICE: Final = 12  # a minute's worth: every twelfth event is a session's first, which carries all fields
SECONDS: Final = 60.0


def file_plan(events: int, seed: int = 0, partitions: int = 1) -> FleetPlan:
    """A minute of usual traffic with exactly ``events`` events."""
    if events < 1:
        raise UsageError(f"events = {events} must be at least 1")
    plan = FleetPlan(seed=seed, eps=events / SECONDS, seconds=SECONDS, devices=max(2, events // EVENTS_PER_DEVICE), partitions=partitions)
    assert plan.events == events  # noqa: S101 - by construction: eps x seconds
    return plan


def lines(plan: FleetPlan) -> Iterator[U8]:
    """NDJSON text of a run, tick by tick, partitions in turn; each text is valid until the next."""
    fleets = [PartitionFleet(plan, partition) for partition in range(plan.partitions)]
    for _ in range(plan.ticks):
        for fleet in fleets:
            frames = fleet.tick()
            if frames is not None and len(frames):
                yield frames.lines


def sample(events: int, seed: int = 0) -> bytes:
    """``events`` events of usual traffic as NDJSON, in memory."""
    return b"".join(text.tobytes() for text in lines(file_plan(events, seed)))


def write_events(out: BinaryIO, plan: FleetPlan) -> int:
    """Write a run as NDJSON; return its bytes."""
    return sum(out.write(text.data) for text in lines(plan))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m keystone.sim.write", description=__doc__.split(":", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        plan = file_plan(given.events, given.seed)
        with given.out.open("wb") as out:
            size = write_events(out, plan)
    except (UsageError, OSError) as refusal:
        print(f"error: {refusal}", file=sys.stderr)  # noqa: T201 - for a person at a terminal
        return 2
    print(f"{plan.events:,} events, {size:,} bytes, {size / plan.events:.1f} an event: {given.out}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
