"""More session actors, as nodes join a cluster while a run goes on: they are made where there is room, and take partitions over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from keystone.actors.nodes import SESSION, SUPERVISOR, Placement, living_nodes
from keystone.actors.supervisor import Supervisor
from keystone.errors import UsageError
from keystone.logs import get

LOOK_EVERY_S: Final = 5.0  # a node takes tens of seconds to start

log = get(__name__)


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
    _known: frozenset[str] = frozenset()
    _looked_s: float = float("-inf")

    def tick(self, supervisor: Supervisor) -> str | None:
        """A line to tell, where there is something to tell. Where no node says what it is for, there is no telling how many it takes."""
        if not supervisor.placement.is_joined or time.monotonic() - self._looked_s < LOOK_EVERY_S:
            return None
        self._looked_s = time.monotonic()
        placement = Placement(tuple(living_nodes()), is_joined=True)
        known, self._known = self._known, frozenset(node.node_id for node in placement.nodes)
        if not known or self._known <= known:
            self._tell(supervisor)
            return None
        return self._grow(supervisor, placement)

    def _grow(self, supervisor: Supervisor, placement: Placement) -> str | None:
        try:
            self.check(placement)
        except UsageError as error:
            log.warning("a node has joined that cannot be used", reason=str(error))
            return None
        supervisor.placement = placement
        room = placement.offered(SESSION) - self.reserve
        more = min(self.partitions, room) - self.owners
        if more <= 0:
            return None
        numbers = range(self.numbered, self.numbered + more)
        self.add(numbers)
        self.owners, self.numbered = self.owners + more, self.numbered + more
        self._tell(supervisor)
        return f"{more} session actor{'s' if more > 1 else ''} more, on nodes that joined: {self.owners} own partitions now"

    def _tell(self, supervisor: Supervisor) -> None:
        """Say it to whoever gives partitions away, again where that one was started anew and does not know."""
        for ward in supervisor.of_kind(SUPERVISOR):
            if ward.status and ward.status.get("owners_wanted", self.owners) < self.owners:
                names = [self.name_of(number) for number in range(self.numbered)]
                ward.handle.want.remote(self.owners, tuple((SESSION, name, supervisor.actor_name(name)) for name in names))
