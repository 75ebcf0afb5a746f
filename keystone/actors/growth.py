"""Nodes that join a cluster while a run goes on get session actors, which take partitions over; those on nodes that leave give theirs away in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from keystone.actors.nodes import SESSION, SUPERVISOR, Placement, counted, draining_nodes, living_nodes
from keystone.actors.supervisor import Supervisor
from keystone.errors import UsageError
from keystone.logs import get

LOOK_EVERY_S: Final = 5.0  # a node takes tens of seconds to start

log = get(__name__)


def _ids(placement: Placement) -> frozenset[str]:
    return frozenset(node.node_id for node in placement.nodes)


@dataclass(slots=True)
class Growth:
    """``tick`` it now and then. ``owners`` session actors own partitions now; ``numbered`` were made so far, those that stand by included.

    ``add(numbers)`` makes more; ``check(placement)`` raises ``UsageError`` where a node does not reach what the others share. ``reserve``: units of the
    nodes that are left for who stands by.
    """

    add: Callable[[Iterable[int]], None]
    check: Callable[[Placement], None]
    name_of: Callable[[int], str]
    owners: int
    numbered: int
    partitions: int
    reserve: int = 0
    retiring: frozenset[str] = frozenset()  # names of session actors whose nodes leave: they shall own nothing
    _may_go: bool = False  # said so
    _known: frozenset[str] = frozenset()
    _looked_s: float = float("-inf")

    def tick(self, supervisor: Supervisor) -> str | None:
        """A line to tell, where there is something to tell. Where no node says what it is for, there is no telling how many it takes."""
        if not supervisor.placement.is_joined or time.monotonic() - self._looked_s < LOOK_EVERY_S:
            return None
        self._looked_s = time.monotonic()
        draining = draining_nodes()
        placement = Placement(tuple(node for node in living_nodes() if node.node_id not in draining), is_joined=True)
        line = self._retire(supervisor, draining)
        known, self._known = self._known or _ids(supervisor.placement), _ids(placement)  # at first those whom the first actors were for
        if not self._known <= known:
            line = self._grow(supervisor, placement) or line
        self._tell(supervisor)
        return line

    def _retire(self, supervisor: Supervisor, draining: frozenset[str]) -> str | None:
        """See who is on a node that leaves, and when nothing is left there."""
        leaving = [ward for ward in supervisor.of_kind(SESSION) if not ward.is_down and ward.status.get("node") in draining]
        before, self.retiring = self.retiring, frozenset(ward.name for ward in leaving)
        if fresh := len(self.retiring - before):
            self._may_go = False
            return f"{counted(fresh, 'session actor')} on nodes that leave: what they own goes to others"
        if self._may_go or not leaving or any(ward.status.get("partitions") for ward in leaving):
            return None
        self._may_go = True
        return "session actors on nodes that leave own nothing any more: these nodes may go"

    def _grow(self, supervisor: Supervisor, placement: Placement) -> str | None:
        try:
            self.check(placement)
        except UsageError as error:
            log.warning("a node has joined that cannot be used", reason=str(error))
            return None
        supervisor.placement = placement
        room = placement.offered(SESSION) - self.reserve
        more = min(self.partitions, room) - self._staying
        if more <= 0:
            return None
        numbers = range(self.numbered, self.numbered + more)
        self.add(numbers)
        self.owners, self.numbered = self.owners + more, self.numbered + more
        return f"{counted(more, 'session actor')} more, on nodes that joined: {self._staying} own partitions now"

    @property
    def _staying(self) -> int:
        """How many shall own partitions."""
        return max(1, self.owners - len(self.retiring))

    def _tell(self, supervisor: Supervisor) -> None:
        """Say it to whoever gives partitions away, again where that one was started anew and does not know."""
        for ward in supervisor.of_kind(SUPERVISOR):
            if ward.status and (ward.status.get("owners_wanted"), frozenset(ward.status.get("retiring", ()))) != (self._staying, self.retiring):
                names = [self.name_of(number) for number in range(self.numbered)]
                wards = tuple((SESSION, name, supervisor.actor_name(name)) for name in names)
                ward.handle.want.remote(self._staying, wards, tuple(sorted(self.retiring)))
