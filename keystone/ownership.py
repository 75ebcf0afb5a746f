"""Which session actor owns which partition: decided here, from what is told, without Ray, clock or log; the supervisor carries it out.

A partition is *free* until it is given to a member, and given until that member is lost or has let go of it. Nothing is given
twice: who is suspected is declared lost first, and then kept from doing harm by its epoch (``keystone/checkpoint.py``), not by hope.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Member:
    """A session actor as far as ownership goes. ``given``: what it was told to own; ``leaving``: of these, what it was told to let go of."""

    name: str
    given: set[int] = field(default_factory=set)
    leaving: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Order:
    """``give``: own these partitions from now on. ``release``: finish with these, save them, let go."""

    member: str
    give: tuple[int, ...] = ()
    release: tuple[int, ...] = ()


class Ownership:
    """``owners_wanted`` members own partitions, evenly; the others stand by, built and warm, for one that is lost.

    Tell it what happens (``join``, ``lose``, ``released``, ``gain``); after each, ``orders`` says what to do, each order once.
    """

    def __init__(self, partitions: Iterable[int], owners_wanted: int) -> None:
        self.members: dict[str, Member] = {}
        self._wanted = owners_wanted
        self.partitions = set(partitions)
        self._lost_together: list[set[int]] = []  # free partitions by their last owner: a member that stands by takes one whole

    # --- what happens -------------------------------------------------------------------------------------------------
    def join(self, name: str, owned: Iterable[int] = ()) -> None:
        """A member is built. ``owned``: what it already owns, when a new supervisor adopts it."""
        self.members[name] = Member(name, set(owned) & self.partitions)

    def lose(self, name: str) -> tuple[int, ...]:
        """A member is dead, or no longer believed in. Returns what is free now."""
        member = self.members.pop(name, None)
        if member is None or not member.given:
            return ()
        self._lost_together.append(set(member.given))
        return tuple(sorted(member.given))

    def released(self, name: str, partitions: Iterable[int]) -> None:
        """A member has let go of these, as it was told, by whoever decided here or before."""
        member = self.members[name]
        gone = set(partitions) & member.given
        member.given -= gone
        member.leaving -= gone

    def gain(self, partitions: Iterable[int]) -> None:
        """The log has more partitions than before."""
        self.partitions |= set(partitions)

    def want(self, owners: int) -> None:
        """So many members shall own partitions from now on."""
        self._wanted = owners

    # --- what is so ---------------------------------------------------------------------------------------------------
    @property
    def owners_wanted(self) -> int:
        """How many members shall own partitions."""
        return self._wanted

    @property
    def free(self) -> set[int]:
        """Partitions that nobody was given."""
        return self.partitions.difference(*(member.given for member in self.members.values()))

    def owner_of(self, partition: int) -> str | None:
        return next((name for name, member in self.members.items() if partition in member.given), None)

    # --- what to do ---------------------------------------------------------------------------------------------------
    def orders(self, *, may_move: bool = True) -> list[Order]:
        """Give away what is free; where all is given and owners are too few or uneven, make the fullest let go, if it ``may_move``."""
        given = self._give_whole()
        for partition in sorted(self.free):
            member = self._emptiest()
            if member is None:
                break
            member.given.add(partition)
            given.setdefault(member.name, []).append(partition)
        orders = [Order(name, give=tuple(sorted(partitions))) for name, partitions in given.items()]
        return orders if orders or self.free or not may_move else self._even_out()

    def _give_whole(self) -> dict[str, list[int]]:
        """What a lost member owned goes to one that stands by: it alone pauses for it, and it has nothing else to do."""
        given: dict[str, list[int]] = {}
        for lost in self._lost_together:
            group = lost & self.free
            idle = self._idle()
            if group and idle and len(self._owners()) < self._wanted:
                idle[0].given |= group
                given[idle[0].name] = sorted(group)
        self._lost_together = []
        return given

    def _even_out(self) -> list[Order]:
        """One order at a time, and none while partitions are on their way: what moves pauses."""
        if any(member.leaving for member in self.members.values()) or not self.members:
            return []
        fullest = max(self._owners(), key=lambda member: len(member.given), default=None)
        emptiest = self._emptiest()
        if fullest is None or emptiest is None:
            return []
        too_many = (len(fullest.given) - len(emptiest.given)) // 2
        if too_many < 1:
            return []
        leaving = sorted(fullest.given)[-too_many:]
        fullest.leaving |= set(leaving)
        return [Order(fullest.name, release=tuple(leaving))]

    def _owners(self) -> list[Member]:
        return [member for member in self.members.values() if member.given]

    def _idle(self) -> list[Member]:
        return [member for member in self.members.values() if not member.given]

    def _emptiest(self) -> Member | None:
        """Who should own one more: someone who stands by while owners are too few, else the owner of the fewest."""
        owners, idle = self._owners(), self._idle()
        if idle and (len(owners) < self._wanted or not owners):
            return idle[0]
        return min(owners, key=lambda member: len(member.given), default=None)
