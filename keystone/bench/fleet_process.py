"""Devices in a process of their own, outside of Ray: whatever happens to the engine, the world goes on sending."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from keystone.actors.fleet import FleetSpec, FleetTotals
from keystone.actors.loop import FAILED, OVER
from keystone.actors.relay import RelayFleet
from keystone.bench.children import Child, Ear, Mouth
from keystone.config import Config
from keystone.config import load as load_config
from keystone.sim.plan import FleetPlan

HEAR_EVERY_S: Final = 0.05
SAY_EVERY_S: Final = 0.1
MODULE: Final = "keystone.bench.fleet_process"


def start_fleet(spec: FleetSpec, relay: str, first_offsets: dict[int, int], config_file: str | None, *, leads: bool) -> Child:
    """A process around ``RelayFleet``. It is told ``go`` (start_ms), ``lead`` and ``finish``."""
    order = {
        "name": spec.name, "relay": relay, "partitions": spec.partitions, "log": spec.log, "work_dir": spec.work_dir,
        "plan": spec.plan.model_dump(), "first_offsets": list(first_offsets.items()), "leads": leads, "config": config_file,
    }  # fmt: skip
    return Child(MODULE, spec.name, Path(spec.work_dir), order)


def totals_of(status: dict[str, Any]) -> FleetTotals:
    """Of one that has finished."""
    told = status["totals"]
    return FleetTotals(**{**told, "partitions": tuple(told["partitions"])})


def main(order_path: str) -> int:
    """Until it has finished, failed, or is an orphan."""
    ear = Ear(order_path)
    order = ear.order
    config = load_config(Path(order["config"]) if order["config"] else None)
    fleet = _fleet(order, config)
    mouth = Mouth(Path(order["work_dir"]), order["name"])
    fleet.begin()
    said_s = 0.0
    while not ear.is_orphan:
        status = fleet.status()
        is_over = status["state"] in OVER
        if is_over or time.monotonic() - said_s > SAY_EVERY_S:
            said_s = time.monotonic()
            mouth.say(status | ({"totals": _without_histogram(fleet.result())} if is_over and status["state"] != FAILED else {}))
        if is_over:
            return 1 if status["state"] == FAILED else 0
        for told in ear.hear(HEAR_EVERY_S):
            _obey(fleet, told)
    os._exit(1)  # its loop may be waiting for room in a log that nobody reads


def _obey(fleet: RelayFleet, told: dict[str, Any]) -> None:
    if "go" in told:
        fleet.go(told["go"])
    if "lead" in told:
        fleet.lead()
    if "finish" in told:
        fleet.finish()


def _fleet(order: dict[str, Any], config: Config) -> RelayFleet:
    plan = FleetPlan.model_validate(order["plan"])
    spec = FleetSpec(order["name"], tuple(order["partitions"]), order["log"], order["work_dir"], plan, config.kafka)
    return RelayFleet(spec, order["relay"], {int(p): int(offset) for p, offset in order["first_offsets"]}, leads=order["leads"])


def _without_histogram(totals: FleetTotals) -> dict[str, Any]:
    """What travels as JSON: how late events were is in a file."""
    totals.delays = None
    return asdict(totals)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
