"""The first sign of work after a fault, by what processes say of themselves. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keystone.bench.chaos import COMMITTER, FLEET, KILL, SUPERVISOR, Process
from keystone.bench.chaos_report import Struck
from keystone.bench.striking import epochs_of


@dataclass(frozen=True, slots=True)
class Sign:
    """``incarnations``: of the actors of each kind before the fault."""

    incarnations: frozenset[str]

    def is_given(self, struck: Struck, driver: dict[str, Any], sending: Sequence[tuple[Process, float]]) -> bool:
        """Whether what was struck, or what follows it, is at work.

        ``driver``: its last word. ``sending``: each fleet that leads, and when it sent last (wall time, ms).
        """
        is_kill = struck.fault.action == KILL
        after_ms = struck.wall_ms + struck.fault.for_s * 1_000
        if struck.fault.target == FLEET:
            same = [(fleet.pid, sent_ms) for fleet, sent_ms in sending if fleet.partitions == struck.partitions]
            return any(sent_ms > after_ms and not (is_kill and pid == struck.pid) for pid, sent_ms in same)
        if driver.get("at_ms", 0.0) <= after_ms or driver.get("phase") != "running":
            return False
        wards = [ward for ward in driver["wards"] if ward["state"] == "running" and not ward["is_down"] and not ward["is_lost"]]
        if struck.fault.target in (COMMITTER, SUPERVISOR):
            same_kind = [ward for ward in wards if ward["kind"] == struck.fault.target]
            return any(ward["turns"] > 0 and not (is_kill and ward["incarnation"] in self.incarnations) for ward in same_kind)
        owned = {partition: epoch for ward in wards for partition, epoch in epochs_of(ward).items()}
        least = {partition: struck.epochs.get(partition, 0) + is_kill for partition in struck.partitions}
        return all(owned.get(partition, 0) >= epoch for partition, epoch in least.items())


def sign_of(driver: dict[str, Any]) -> Sign:
    """As things are before a fault."""
    return Sign(frozenset(ward["incarnation"] for ward in driver.get("wards", ()) if "incarnation" in ward))
