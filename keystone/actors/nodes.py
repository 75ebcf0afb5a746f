"""The nodes of a Ray cluster: what each offers, which actors go where, and whether a directory is the same one on all of them."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keystone.actors.runtime import remote_class
from keystone.errors import UsageError

FLEET, SESSION, COMMITTER, SUPERVISOR = "fleet", "session", "committer", "supervisor"
#: Custom resources by which a cluster says what a node is for; an actor takes one unit of its kind's. Where no node offers it, any node will do.
RESOURCE_OF: Final = {SESSION: "session", FLEET: "fleet"}
CPU_CRUMB: Final = 0.001  # Ray's least
ASK_WAIT_S: Final = 60.0  # for a task on every node: a worker process is started for it
CLOCK_LOOKS: Final = 10  # the first starts a process
PROBE: Final = ".keystone-probe-"  # files that tell whether a directory is shared


@dataclass(frozen=True, slots=True)
class Node:
    """One living node. ``resources``: in all, by name, as Ray counts them."""

    node_id: str
    address: str
    resources: Mapping[str, float]
    is_ours: bool  # this process is on it

    def offers(self, kind: str) -> int:
        """How many actors of ``kind`` it was set up for."""
        return int(self.resources.get(RESOURCE_OF.get(kind, ""), 0))


def counted(count: int, noun: str) -> str:
    """For people: "1 node", "2 nodes"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def living_nodes() -> list[Node]:
    """Of the Ray that this process is connected to, our own first, then by address."""
    import ray

    ours = ray.get_runtime_context().get_node_id()
    told: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    found = [Node(n["NodeID"], n["NodeManagerAddress"], dict(n["Resources"]), n["NodeID"] == ours) for n in told if n["Alive"]]
    return sorted(found, key=lambda node: (not node.is_ours, node.address, node.node_id))


def draining_nodes() -> frozenset[str]:
    """The ids of those that Ray was told to drain, as before a machine is taken away: they live, and get nothing new."""
    import ray

    return frozenset(ray._private.state.state.get_draining_nodes())  # noqa: SLF001 - there is no public way


@dataclass(frozen=True, slots=True)
class Placement:
    """Which nodes actors go to. A Ray of our own leaves no choice; of a cluster nodes may come and go."""

    nodes: tuple[Node, ...] = ()
    is_joined: bool = False  # the cluster was there before us

    @property
    def is_spread(self) -> bool:
        return len(self.nodes) > 1

    def offered(self, kind: str) -> int:
        """Units for actors of ``kind`` on all nodes; 0 where no node says what it is for."""
        return sum(node.offers(kind) for node in self.nodes)

    def session_actors(self) -> int:
        """What ``auto`` means: all that the nodes were set up for; else half of their cores, for devices and servers need some too."""
        return self.offered(SESSION) or max(1, sum(int(node.resources.get("CPU", 0)) for node in self.nodes) // 2)

    def options(self, kind: str) -> dict[str, Any]:
        """Ray's options for an actor of ``kind``.

        Session actors are spread: a node's loss costs a share of the partitions. Devices go where ``fleet`` is offered, else to this
        program's node, as who commits and supervises does: that node's loss ends the program anyway. Of an actor that asks for nothing
        Ray 2.60 obeys neither ``SPREAD`` nor a soft affinity: it takes any node. So it asks for a crumb of a core, or is bound hard.
        """
        if not self.is_joined:
            return {}
        resource = RESOURCE_OF.get(kind)
        if resource is not None and self.offered(kind):
            return {"resources": {resource: 1}, "scheduling_strategy": "SPREAD"}
        if kind == SESSION:
            return {"scheduling_strategy": "SPREAD", "num_cpus": CPU_CRUMB if any(node.resources.get("CPU", 0) for node in self.nodes) else 0}
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=self.nodes[0].node_id, soft=False)}

    def check_room(self, wanted: Mapping[str, int]) -> None:
        """``UsageError`` where more actors are wanted than the nodes were set up for: Ray would wait for ever, without a word."""
        for kind, count in wanted.items():
            offered = self.offered(kind)
            if offered and count > offered:
                name = RESOURCE_OF[kind]
                raise UsageError(f"{count} {kind} actors are wanted, the nodes offer {offered} of the resource {name!r}: fewer --{kind}-actors, or more nodes")


@dataclass(slots=True)
class NodeProbe:
    """Runs on one node: what only a process there can tell, or do."""

    address: str

    def sees(self, paths: Sequence[str]) -> list[bool]:
        """Which of these files are there."""
        return [Path(path).is_file() for path in paths]

    def wall_ms(self) -> float:
        """This node's clock."""
        return time.time() * 1_000

    def remove(self, directory: str) -> bool:
        """Remove it with all that is in it."""
        shutil.rmtree(directory, ignore_errors=True)
        return True


def ask_nodes(nodes: Iterable[Node], method: str, *arguments: Any) -> dict[str, Any]:
    """What a process on each node answers, by the node's id; nodes that do not answer in time are left out."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probes = {
        node.node_id: remote_class(NodeProbe, max_restarts=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.node_id, soft=False)).remote(
            node.address
        )
        for node in nodes
    }
    calls = {key: getattr(probe, method).remote(*arguments) for key, probe in probes.items()}
    answers = {}
    ready, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=ASK_WAIT_S)
    for key, call in calls.items():
        if call in ready:
            with suppress(ray.exceptions.RayError):
                answers[key] = ray.get(call)
    for probe in probes.values():
        ray.kill(probe)
    return answers


def clock_offsets_ms(nodes: Iterable[Node]) -> dict[str, tuple[float, float]]:
    """By how much each node's clock is ahead of ours, and how uncertain that is (half of the answer's way), ms, by its id.

    Latencies from one node's clock to another's are wrong by so much. The best of a few answers counts.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    offsets: dict[str, tuple[float, float]] = {}
    for node in nodes:
        probe = remote_class(NodeProbe, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.node_id, soft=False)).remote(node.address)
        for _ in range(CLOCK_LOOKS):
            asked_ms = time.time() * 1_000
            try:
                theirs_ms = ray.get(probe.wall_ms.remote(), timeout=ASK_WAIT_S)
            except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
                break
            half_ms = (time.time() * 1_000 - asked_ms) / 2
            if node.node_id not in offsets or half_ms < offsets[node.node_id][1]:
                offsets[node.node_id] = (theirs_ms - asked_ms - half_ms, half_ms)
        ray.kill(probe)
    return offsets


def check_shared(places: Mapping[str, Path], nodes: Sequence[Node], instead: str) -> None:
    """``UsageError`` where a directory is not one and the same on every node; ``places`` by the option that named each.

    Not guessed by its name: a file is put there, and every node is asked for it. ``instead``: what to say, for the message.
    """
    others = [node for node in nodes if not node.is_ours]
    if not others or not places:
        return
    marks: dict[str, Path] = {}
    try:
        for option, directory in places.items():
            directory.mkdir(parents=True, exist_ok=True)
            marks[option] = directory / f"{PROBE}{secrets.token_hex(8)}"
            marks[option].write_bytes(b"")
        answers = ask_nodes(others, "sees", [str(mark) for mark in marks.values()])
    finally:
        for mark in marks.values():
            mark.unlink(missing_ok=True)
    silent = [node.address for node in others if node.node_id not in answers]
    if silent:
        raise UsageError(f"no process could be started on {', '.join(silent)} within {ASK_WAIT_S:.0f} s: is the same Keystone installed there?")
    for node in others:
        for (option, directory), is_there in zip(places.items(), answers[node.node_id], strict=True):
            if not is_there:
                raise UsageError(f"{option} {directory} is another directory on the node {node.address}: {instead}")
