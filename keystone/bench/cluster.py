"""A bench on a Ray cluster: what must be true of it, how many actors it takes, and what is told of its nodes."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from keystone.actors.nodes import FLEET, SESSION, Node, Placement, check_shared, clock_offsets_ms, counted, living_nodes
from keystone.actors.supervisor import Supervisor, Ward
from keystone.bench.plan import BenchPlan, Options, kafka_url
from keystone.bench.screen import Progress
from keystone.errors import UsageError

SHARED = "name a directory that every node mounts (NFS, EFS, a bucket by a file system)"


def on_cluster(options: Options, plan: BenchPlan, out: Path, progress: Progress) -> tuple[Placement, BenchPlan]:
    """Where actors of a run go on the cluster that we have joined, and the plan with as many as it takes. ``UsageError`` where it cannot be."""
    placement = Placement(tuple(living_nodes()), is_joined=True)
    plan = fitted(options, plan, placement)
    if placement.is_spread and kafka_url(options) is None:
        raise UsageError(
            f"the embedded log is memory of one machine, and this cluster has {len(placement.nodes)} nodes:"
            " say --log kafka://HOST:PORT, which all of them reach"
        )
    placement.check_room({SESSION: plan.session_actors, FLEET: plan.fleet_actors})
    check_shared({"--out": out}, placement.nodes, SHARED)
    progress.say(headline(plan, placement.nodes))
    return placement, plan


def fitted(options: Options, plan: BenchPlan, placement: Placement) -> BenchPlan:
    """``plan`` with the session actors that the nodes offer, unless their number was given; and partitions enough for them."""
    if options.session_actors is not None or not (placement.is_spread or placement.offered(SESSION)):
        return plan
    sessions = placement.session_actors()
    if options.partitions is not None:
        sessions = min(sessions, options.partitions)
    partitions = options.partitions or max(plan.partitions, 2 * sessions)
    return replace(plan, session_actors=sessions, partitions=partitions)


def headline(plan: BenchPlan, nodes: Sequence[Node]) -> str:
    return (
        f"{plan.eps:,.0f} events/s for {plan.seconds} s from {plan.devices:,} devices: {plan.partitions} partitions,"
        f" {plan.fleet_actors} fleet and {plan.session_actors} session actors on {counted(len(nodes), 'node')} ({', '.join(node.address for node in nodes)})"
    )


def nodes_section(placement: Placement, supervisor: Supervisor) -> list[dict[str, Any]]:
    """One entry a node: its actors as they last said, and by how much its clock is ahead of this program's, ms (None: not known)."""
    living = {node.node_id: node for node in living_nodes()}
    offsets = clock_offsets_ms(living.values())
    sessions, fleets = supervisor.by_node(SESSION), supervisor.by_node(FLEET)
    return [
        {
            "address": node.address,
            "node_id": key,
            "is_alive": key in living,
            "session_actors": sessions.get(key, 0),
            "fleet_actors": fleets.get(key, 0),
            "clock_ms": round(offsets[key][0], 2) if key in offsets else None,
            "clock_uncertain_ms": round(offsets[key][1], 2) if key in offsets else None,
        }
        for key, node in ({node.node_id: node for node in placement.nodes} | living).items()
    ]


@dataclass(slots=True)
class Outages:
    """How long partitions had no owner in a run: from the last sign of life of the one that had it to the next one's claim.

    ``ended_ms``: that owner was lost; ``moved_ms``: it lives, and was told to let go. Seen as often as ``look`` is called: a duration is right
    to within two looks.
    """

    partitions: Iterable[int]
    ended_ms: list[float] = field(default_factory=list)
    moved_ms: list[float] = field(default_factory=list)
    _since_s: dict[int, float] = field(default_factory=dict)
    _claimed_s: dict[int, float] = field(default_factory=dict)  # partitions that two say to own: what the first one said is old
    _owners: dict[int, str] = field(default_factory=dict)
    _alive_s: dict[str, float] = field(default_factory=dict)

    def look(self, wards: Sequence[Ward], now_s: float) -> None:
        """What owners say now. ``now_s``: monotonic, as ``Ward.answered_at`` is."""
        living = {str(ward.status["incarnation"]): ward for ward in wards if ward.status and not ward.is_down and not ward.is_lost}
        claims: dict[int, list[str]] = {}
        for incarnation, ward in living.items():
            self._alive_s[incarnation] = ward.answered_at
            for partition in ward.status.get("partitions", ()):
                claims.setdefault(partition, []).append(incarnation)
        for partition in self.partitions:
            self._look_at(partition, claims.get(partition, []), living.keys(), now_s)

    def _look_at(self, partition: int, claims: Sequence[str], living: Container[str], now_s: float) -> None:
        before = self._owners.get(partition)
        others = [incarnation for incarnation in claims if incarnation != before]
        if before is None:
            if others:
                self._owners[partition] = others[-1]
        elif before in claims:  # it owns it still, or has died, or let go of it, since it said so
            self._since_s.pop(partition, None)
            if others:
                self._claimed_s.setdefault(partition, now_s)
        elif others:
            until_s = self._claimed_s.pop(partition, now_s)
            since_s = self._since_s.pop(partition, self._alive_s[before])
            (self.moved_ms if before in living else self.ended_ms).append(max(0.0, until_s - since_s) * 1_000)
            self._owners[partition] = others[-1]
        else:
            self._claimed_s.pop(partition, None)
            self._since_s.setdefault(partition, self._alive_s[before])
